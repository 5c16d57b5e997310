"""Public names are what they say, whatever was imported before."""

import ast
import json
from pathlib import Path

import pytest

import kornia_mvit
from kornia_mvit import training
from kornia_mvit.data import reading
from kornia_mvit.training import datamodules
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


@pytest.mark.long(every_share=True)
def test_no_module_hides_a_public_name():
    """A module of the same name, once imported, would be an attribute of the package in the place of a function."""
    result = run_python(PROBE)
    assert result.returncode == 0, result.stderr
    kinds = json.loads(result.stdout.splitlines()[-1])
    assert {name for name, kind in kinds.items() if kind == "module"} == MODULES
    assert {"convert", "demo", "info", "preview"} <= set(kinds)


def test_short_names_are_those_of_their_modules():
    assert kornia_mvit.read_image is reading.read_image
    assert {*datamodules.__all__} <= {*dir(kornia_mvit)}
    for name in ("ClassificationTask", "SegmentationTask", "DetectionTask", "EMA", "ExactResume", "Report"):
        assert getattr(kornia_mvit, name) is getattr(training, name)


def test_type_checkers_read_the_same_places():
    tree = ast.parse(Path(kornia_mvit.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        for alias in node.names:
            assert alias.asname == (None if alias.name in kornia_mvit.__all__ else alias.name)
            found[alias.name] = node.module
    places = {name: f"kornia_mvit.{place}" for name, place in kornia_mvit._PLACES.items()}
    for name in MODULES:
        places[name] = places[name].rpartition(".")[0]
    assert found == places


def test_names():
    assert {*kornia_mvit.__all__} <= kornia_mvit._PLACES.keys() <= {*dir(kornia_mvit)}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        kornia_mvit.Nothing  # noqa: B018
    scope = {}
    exec("from kornia_mvit import *", scope)
    assert {*kornia_mvit.__all__} == scope.keys() - {"__builtins__"}


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys, kornia_mvit\n"
        "loaded = {name for name in sys.modules if name.startswith('kornia_mvit.')}\n"
        "assert loaded == {'kornia_mvit.moved'}, loaded\n"
        "dir(kornia_mvit)\n"
        "kornia_mvit.read_image, kornia_mvit.MobileViT, kornia_mvit.Results\n"
        "assert not {'pytorch_lightning', 'torchvision', 'PIL', 'timm', 'huggingface_hub'} & {*sys.modules}\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
