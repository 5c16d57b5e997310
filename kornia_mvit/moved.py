"""Import paths of 0.1.0 whose modules stand elsewhere now: they work until 0.3, with a DeprecationWarning."""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "NAMES", "forward", "install"]

MOVED = {
    "augmentation.colour": "augmentation.color",
    "augmentation.dense": "inference.sliding_window",
    "augmentation.detections": "inference.detection",
    "augmentation.preprocess": "preprocess",
    "augmentation.tta": "inference.tta",
    "data.annotations": "data.formats",
    "data.batch": "batch",
    "data.datamodules": "training.datamodules",
    "data.datamodules.base": "training.datamodules.base",
    "data.datamodules.classification": "training.datamodules.classification",
    "data.datamodules.detection": "training.datamodules.detection",
    "data.datamodules.segmentation": "training.datamodules.segmentation",
    "data.datamodules.shards": "training.datamodules.shards",
    "data.datamodules.tables": "training.datamodules.tables",
    "data.datamodules.yolo": "training.datamodules.yolo",
    "data.datasets": "data.reading",
    "data.loaders": "data.loading.loaders",
    "data.samplers": "data.loading.samplers",
    "data.shards": "data.loading.shards",
    "data.streams": "data.loading.streams",
    "data.tables": "data.formats.tables",
    "models.fuse": "inference.engines.fuse",
    "models.optimize": "inference.engines.optimize",
    "training.detection_evaluation": "evaluation.detection",
    "training.detection_metrics": "evaluation.coco",
    "training.detection_report": "evaluation.report",
    "training.evaluation": "evaluation.classification",
    "training.figures": "draw.charts",
    "training.page": "evaluation.page",
    "training.report": "evaluation.report",
    "training.segmentation_evaluation": "evaluation.segmentation",
    "training.segmentation_report": "evaluation.report",
    "training.tasks": "training.classification",
    "visualize": "draw.images",
    "weights.heads": "weights.layouts.heads",
}

# Names that moved alone, out of modules of 0.1.0 that stand where they stood or in MOVED.
NAMES: dict[str, dict[str, str]] = {
    "data.datasets": {"MaskFiles": "data.masks", "read_mask": "data.masks"},
}


def forward(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that finds the names that left it, and warns of them.

    Args:
        module: the module's path.
    """
    package, _, old = module.partition(".")

    def find(name: str) -> Any:
        new = NAMES.get(old, {}).get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is {package}.{new}.{name} now; the old path goes in 0.3", DeprecationWarning, 2)
        return getattr(import_module(f"{package}.{new}"), name)

    return find


class _Forward(Loader):
    """Make a module that has the names of another, and warns of it."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        package = __name__.rpartition(".")[0]
        old, new = module.__name__, f"{package}.{MOVED[module.__name__.removeprefix(package + '.')]}"
        module.__dict__["_new"] = new
        warnings.warn(f"{old} is {new} now; the old path goes in 0.3", DeprecationWarning, stacklevel=2)


class _Moved(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name in {"__path__", "__file__", "_new"}:
            raise AttributeError(name)
        if name in NAMES.get(self.__name__.partition(".")[2], {}):
            return forward(self.__name__)(name)
        return getattr(import_module(self._new), name)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package != __name__.partition(".")[0] or rest not in MOVED:
            return None
        return ModuleSpec(name, _Forward(), is_package=rest == "data.datamodules")


def install() -> None:
    """Let the old paths be found, after all others."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
