"""Public names are what they say, whatever was imported before."""

import json

from tests.test_imports import run_python

# Imports all modules, in the order in which the package is walked, and then looks the names up.
PROBE = """
import json, pkgutil, sys, types
from importlib import import_module

import kornia_mvit

for found in pkgutil.walk_packages(kornia_mvit.__path__, "kornia_mvit."):
    if not found.name.endswith("__main__"):
        import_module(found.name)
kinds = {name: type(getattr(kornia_mvit, name)).__name__ for name in kornia_mvit._PLACES}
print(json.dumps(kinds))
"""
MODULES = {"exporters", "policies"}


def test_no_module_hides_a_public_name():
    """A module of the same name, once imported, would be an attribute of the package in the place of a function."""
    result = run_python(PROBE)
    assert result.returncode == 0, result.stderr
    kinds = json.loads(result.stdout.splitlines()[-1])
    assert {name for name, kind in kinds.items() if kind == "module"} == MODULES
    assert {"convert", "demo", "info", "preview"} <= set(kinds)
