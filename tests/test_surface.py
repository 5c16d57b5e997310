"""The public names of 0.1.0 and their parameters: each is still found at its old path, and takes what it took.

``golden/public_0_1_0.json`` was made by ``python -m tests.surface`` at 0.1.0. What changes on purpose stands in the
tables below, and in ``docs/upgrade.rst``.
"""

import inspect
import json
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kornia_mvit import moved
from tests.surface import Parameters, list_parameters

OLD: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "public_0_1_0.json").read_text())

# Modules whose names stand elsewhere, and whose own name is that of a function now: no path forwards to them.
SUCCESSORS = {"export": "exporters", "predict": "inference.predictor"}

# Names that are gone, as `module:name` or `module:Class.member`, and what takes their place.
REMOVED: dict[str, str] = {
    ":MobileViT.slice_size": "models.fast.slice_size",
    "models.mobilevit:MobileViT.slice_size": "models.fast.slice_size",
    "predict:add_arguments": "kornia_mvit.predict",
    "predict:run": "kornia_mvit.predict",
    "training:ClassificationTask.rest": "freeze_modules",
    "training:CocoMetrics.restore": "evaluation.coco.coco_scores",
    "training:DetectionTask.rest": "freeze_modules",
    "training:SegmentationTask.rest": "freeze_modules",
    "training.detection_metrics:CocoMetrics.restore": "evaluation.coco.coco_scores",
    "training.evaluation:name_of": "Evaluation.name_classes",
    "training.evaluation:name_of_image": "evaluation.base.image_names",
    "training.tasks:ClassificationTask.rest": "freeze_modules",
}

_CLASSIFICATION = {
    "dropout": "backbone_dropout",
    "head_factor": "head_lr_multiplier",
    "raw_weights": "use_ema_weights",
}
_DETECTION = _CLASSIFICATION | {"negatives": "negative_ratio"}
_SEGMENTATION = _CLASSIFICATION | {"dropout": "head_dropout"}

# Parameters that have another name, as `module:name` or `module:Class.member`: the old name and the new one.
RENAMED: dict[str, dict[str, str]] = {
    ":DeepLabV3": {"dropout": "head_dropout"},
    ":MobileViTClassifier": {"dropout": "backbone_dropout"},
    "models.deeplabv3:DeepLabV3": {"dropout": "head_dropout"},
    "models.mobilevit:MobileViTClassifier": {"dropout": "backbone_dropout"},
    "training:ClassificationTask": _CLASSIFICATION,
    "training:DetectionTask": _DETECTION,
    "training:SegmentationTask": _SEGMENTATION,
    "training.evaluation:Collector.add": {"logits": "outputs"},
    "training.optimization:parameter_groups": {"head_factor": "head_lr_multiplier"},
    "training.tasks:ClassificationTask": _CLASSIFICATION,
}

_BY_NAME = {"mode", "output_stride", "aspp_channels", "in_channels", "dropout"}
_RULES = "stem residuals residual blocks block layer parts closing_norm head_conv transformed_first rules heads".split()

# What else differs on purpose, as `module:name` or `module:Class.member`: the parameters that may differ in place, kind
# or default, and why.
CHANGED: dict[str, tuple[set[str], str]] = {
    ":DeepLabV3": (_BY_NAME, "by name, as in the other models; an old place works with a warning, as does no mode"),
    ":MobileViTClassifier": ({"dropout"}, "by name; the old place works with a warning"),
    ":optimize": ({"mode"}, "engine is its name; the old name works with a warning"),
    "models.optimize:optimize": ({"mode"}, "as above"),
    ":SSDLite": ({"mode"}, "the default that is shown is that of the other models; without a mode it is s, as before"),
    "models.deeplabv3:DeepLabV3": (_BY_NAME, "as above"),
    "models.mobilevit:MobileViTClassifier": ({"dropout"}, "as above"),
    "models.ssdlite:SSDLite": ({"mode"}, "as above"),
    "training:ClassificationTask": ({"raw_weights"}, "the new name says the opposite"),
    "training:DetectionTask": ({"raw_weights"}, "the new name says the opposite"),
    "training:SegmentationTask": (
        {"raw_weights", "aspp_channels"},
        "the new name says the opposite; None is 256 as before, and 512 on the second version",
    ),
    "training.evaluation:thumbnail": ({"side"}, "a constant of the module in place of a number"),
    "training.tasks:ClassificationTask": ({"raw_weights"}, "the new name says the opposite"),
    "weights.layouts:Layout": (set(_RULES), "ordered rules in place of a field for each part"),
}


def find_module(old: str) -> Any:
    """Import what stands at a path of 0.1.0, without the warning where it moved."""
    name = old.removeprefix("kornia_mvit.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return import_module(f"kornia_mvit.{SUCCESSORS[name]}" if name in SUCCESSORS else old)


def find_value(module: str, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(find_module(module), name)


def compare(place: str, old: Parameters | None, new: Parameters | None) -> list[str]:
    """List the parameters of 0.1.0 that a function does not take any more, or not in the same way."""
    if old is None:
        return []
    if new is None:
        return [f"{place} is not called any more"]
    renamed, (free, _) = RENAMED.get(place, {}), CHANGED.get(place, (set(), ""))
    places = {name: number for number, (name, *_) in enumerate(new)}
    found = []
    for number, (name, kind, default) in enumerate(old):
        told = f"{place}: {name}"
        now = renamed.get(str(name), str(name))
        if kind in ("VAR_POSITIONAL", "VAR_KEYWORD") or name in free:
            continue
        if now not in places:
            found.append(f"{told} is gone")
            continue
        _, kind_now, default_now = new[places[now]]
        if kind == "POSITIONAL_OR_KEYWORD" and (kind_now != kind or places[now] != number):
            found.append(f"{told} was number {number} by place, and is number {places[now]}, {kind_now}")
        if default != default_now and default is not None:
            found.append(f"{told} was {default} by default, and is {default_now}")
    known = {renamed.get(str(name), str(name)) for name, *_ in old}
    for name, kind, default in new:
        if name not in known | free and default is None and not str(kind).startswith("VAR_"):
            found.append(f"{place}: {name} is new, and has no default")
    return found


@pytest.mark.parametrize("module", OLD)
def test_names_and_parameters(module: str) -> None:
    short = module.removeprefix("kornia_mvit").removeprefix(".")
    found = []
    for name, entry in OLD[module].items():
        place = f"{short}:{name}"
        if place in REMOVED:
            continue
        try:
            value = find_value(module, name)
        except (AttributeError, ImportError) as error:
            found.append(f"{place} is gone: {error}")
            continue
        found += compare(place, entry["parameters"], list_parameters(value) if callable(value) else None)
        for member, parameters in entry.get("members", {}).items():
            inner = f"{place}.{member}"
            if inner in REMOVED:
                continue
            if (new := inspect.getattr_static(value, member, None)) is None and member not in dir(value):
                found.append(f"{inner} is gone")
                continue
            function = new.__func__ if isinstance(new, classmethod | staticmethod) else new
            found += compare(inner, parameters, list_parameters(function) if callable(function) else None)
    assert not found, "\n".join(found)


@pytest.mark.long(every_share=True)
def test_old_paths_warn_and_name_the_new_one() -> None:
    """In a new process, with nothing imported yet, and to a module that is there."""
    code = (
        "import importlib, warnings\n"
        "from kornia_mvit import moved\n"
        "for old, new in moved.MOVED.items():\n"
        "    with warnings.catch_warnings(record=True) as found:\n"
        "        warnings.simplefilter('always', DeprecationWarning)\n"
        "        importlib.import_module(f'kornia_mvit.{old}')\n"
        "    told = [str(w.message) for w in found if w.category is DeprecationWarning]\n"
        "    assert any(f'kornia_mvit.{new} ' in text for text in told), (old, told)\n"
        "    importlib.import_module(f'kornia_mvit.{new}')\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("module", "name", "new"),
    [(module, name, new) for module, names in moved.NAMES.items() for name, new in names.items()],
)
def test_names_that_moved_alone_warn(module: str, name: str, new: str) -> None:
    old = find_module(f"kornia_mvit.{module}")
    with pytest.warns(DeprecationWarning, match=f"kornia_mvit.{new}"):
        value = getattr(old, name)
    assert value is getattr(import_module(f"kornia_mvit.{new}"), name)


def test_upgrade_page_names_what_changes() -> None:
    page = (Path(__file__).parents[1] / "docs" / "upgrade.rst").read_text(encoding="utf-8")
    names = [name for renamed in RENAMED.values() for pair in renamed.items() for name in pair]
    names += [place.partition(":")[2] for place in REMOVED]
    assert [name for name in names if f"``{name}``" not in page] == []
    assert all(f"kornia_mvit.{old}" in page and f"kornia_mvit.{new}" in page for old, new in SUCCESSORS.items())


def test_tables_speak_of_names_that_there_were() -> None:
    for place in [*REMOVED, *RENAMED, *CHANGED]:
        module, _, name = place.partition(":")
        entry = OLD[f"kornia_mvit.{module}" if module else "kornia_mvit"][name.partition(".")[0]]
        if "." in name:
            entry = {"parameters": entry["members"][name.partition(".")[2]]}
        known = {parameter[0] for parameter in entry["parameters"] or []}
        assert {*RENAMED.get(place, {})} <= known, place


A, B, C = ["a", "POSITIONAL_OR_KEYWORD", None], ["b", "POSITIONAL_OR_KEYWORD", "1"], ["c", "KEYWORD_ONLY", "None"]


class TestCompare:
    """What the comparison reports, with parameters that are made up."""

    def test_same(self):
        assert compare("m:f", [A, B, C], [A, B, C, ["d", "KEYWORD_ONLY", "0"]]) == []

    @pytest.mark.parametrize(
        ("new", "told"),
        [
            ([A, B], "c is gone"),
            ([B, A, C], "a was number 0 by place"),
            ([A, ["b", "KEYWORD_ONLY", "1"], C], "b was number 1 by place"),
            ([A, ["b", "POSITIONAL_OR_KEYWORD", "2"], C], "b was 1 by default, and is 2"),
            ([A, B, C, ["d", "KEYWORD_ONLY", None]], "d is new, and has no default"),
        ],
    )
    def test_told(self, new, told):
        assert any(told in line for line in compare("m:f", [A, B, C], new))
