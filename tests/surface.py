"""The public names of an installed kornia_mvit with their parameters: ``python -m tests.surface MODULE... > FILE``.

Run it with ``PYTHONPATH`` at the checkout of a release to make the list that ``test_surface.py`` holds later versions
to.
"""

import inspect
import json
import sys
from importlib import import_module
from typing import Any

__all__ = ["list_module", "list_parameters"]

# What 0.1.0 documents, by its own paths; of each module the names in `__all__` are public.
MODULES = """
augmentation.auto augmentation.colour augmentation.crops augmentation.dense augmentation.detections
augmentation.geometry augmentation.mix augmentation.pipeline augmentation.policies
augmentation.preprocess augmentation.randomness augmentation.tta
data.annotations data.batch data.boxes data.classes data.datamodules data.datamodules.base data.datasets
data.loaders data.samplers data.shards data.storage data.streams data.synthetic data.tables
export models.deeplabv3 models.fuse models.layers models.mobilevit models.optimize models.registration models.ssdlite
ops.boxes ops.geometry ops.losses ops.seeds predict
training training.callbacks training.detection_metrics training.evaluation training.optimization training.recipes
training.tasks visualize weights weights.checkpoints weights.files weights.heads weights.layouts weights.registry cli
""".split()

Parameters = list[list[str | None]]  # name, kind and default of each


def list_parameters(function: Any) -> Parameters | None:
    """Return name, kind and default of each parameter, in order; None where there is no signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [[p.name, p.kind.name, None if p.default is p.empty else _show(p.default)] for p in parameters]


def _show(default: Any) -> str:
    plain = default is None or isinstance(default, bool | int | float | str | tuple)
    return repr(default) if plain else f"a {type(default).__name__}"


def _list_members(owner: type) -> dict[str, Parameters | None]:
    """Return the public methods and properties that a class of the package defines or inherits within it."""
    out: dict[str, Parameters | None] = {}
    for cls in owner.__mro__:
        if cls.__module__.partition(".")[0] != "kornia_mvit":
            continue
        for name, member in vars(cls).items():
            if name.startswith("_") or name in out:
                continue
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function):
                out[name] = list_parameters(function)
            elif isinstance(member, property):
                out[name] = None
    return out


def list_module(module: Any) -> dict[str, Any]:
    """Return the public names of a module: the parameters of functions, and those of classes with their members."""
    found: dict[str, Any] = {}
    for name in sorted(module.__all__):
        value = getattr(module, name)
        entry: dict[str, Any] = {"parameters": list_parameters(value) if callable(value) else None}
        if inspect.isclass(value):
            entry["members"] = _list_members(value)
        found[name] = entry
    return found


if __name__ == "__main__":
    names = ["kornia_mvit", *(f"kornia_mvit.{name}" for name in sys.argv[1:] or MODULES)]
    surface = {name: list_module(import_module(name)) for name in names}
    lines = [
        f"{json.dumps(module)}: {{\n"
        + ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items())
        + "\n}"
        for module, found in surface.items()
    ]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
