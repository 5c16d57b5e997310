"""What a checkpoint says of the model in it, so that it can be used without being told anything."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kornia_mvit.models.backbones import TIMM, backbone_name
from kornia_mvit.models.deeplabv3 import DeepLabV3
from kornia_mvit.models.mobilevit import MobileViT, MobileViTConfig, Stage
from kornia_mvit.models.modes import MODES, build_classifier, find_mode
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.models.staged import Classifier, StagedBackbone
from kornia_mvit.parsing import brief, cut, reason_of
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, stored_bytes

__all__ = [
    "GIVEN",
    "MODELS",
    "Model",
    "Sketch",
    "build_model",
    "check_network",
    "from_card",
    "model_card",
    "read_card",
    "read_preprocess",
    "task_of",
]

Model = Classifier | DeepLabV3 | SSDLite
MODELS: dict[str, type[Classifier] | type[DeepLabV3] | type[SSDLite]] = {
    "classification": Classifier,
    "segmentation": DeepLabV3,
    "detection": SSDLite,
}
_BUILDERS: dict[str, Callable[..., Model]] = {**MODELS, "classification": build_classifier}  # from a mode


def task_of(model: nn.Module) -> str | None:
    """Return what a model of ours is for, or None for a backbone or a network of another kind."""
    return next((task for task, kind in MODELS.items() if isinstance(model, kind)), None)


def check_network(network: object) -> None:
    """Raise for what has no checkpoint.

    Raises:
        TypeError: for what is no model of this package.
        ValueError: for a copy that :func:`~kornia_mvit.fuse` or :func:`~kornia_mvit.optimize` made.
    """
    if getattr(network, "fused", False):
        raise ValueError(
            f"this {type(network).__name__} is a fused copy, whose weights fit no checkpoint; save or load the model "
            "that was given to optimize or fuse"
        )
    if not isinstance(network, Model | StagedBackbone):
        given = type(network).__name__ if isinstance(network, nn.Module) else brief(network)
        remedy = "from_pretrained reads one" if isinstance(network, str | Path) else ""
        if hasattr(network, "network") and hasattr(network, "configure_optimizers"):
            remedy = "pass the task's network"
        raise TypeError(
            f"{given} is none of this package's models; "
            f"{remedy or 'pass a backbone, MobileViTClassifier, MobileViTV2Classifier, DeepLabV3 or SSDLite'}"
        )


def model_card(
    network: nn.Module,
    class_names: Sequence[str] | None,
    preprocess: Preprocess | None,
    task: str = "classification",
) -> dict[str, Any]:
    """Return in plain data what a checkpoint holds.

    Args:
        network: the model, with the colours of its classes, if it has any; the arguments of a
            :class:`~kornia_mvit.MobileViTClassifier`, :class:`~kornia_mvit.MobileViTV2Classifier`,
            :class:`~kornia_mvit.DeepLabV3` or :class:`~kornia_mvit.SSDLite` are kept, no others.
        class_names: names of the classes, in the order of the logits, if known; without SSDLite's background.
        preprocess: what images go through before the network, if known.
        task: what a network of another kind is for.
    """
    from kornia_mvit import __version__

    card = {
        "format": 1,
        "version": __version__,
        "task": task_of(network) or task,
        "model": _arguments(network) if isinstance(network, Model) else None,
        "class_names": None if class_names is None else list(class_names),
        "preprocess": None if preprocess is None else preprocess.to_dict(),
    }
    if isinstance(network, DeepLabV3) and network.class_colours is not None:
        card["class_colours"] = [list(colour) for colour in network.class_colours]
    return card


def _arguments(model: Model) -> dict[str, Any]:
    """Return what builds a model of the same shape, and of the same outputs in evaluation."""
    backbone = model.backbone
    arguments: dict[str, Any] = {"num_classes": model.num_classes, "in_channels": backbone.in_channels}
    if isinstance(backbone, StagedBackbone):
        known = find_mode(backbone)
        arguments["mode"] = asdict(cast(MobileViTConfig, backbone.config)) if known is None else known[0]
        arguments |= {"variant": "apple" if known is None else known[1], "patch_size": list(backbone.patch_size)}
    else:
        arguments["backbone"] = backbone_name(backbone) or GIVEN
    if isinstance(model, SSDLite):
        return arguments | {
            "widths": list(model.widths),
            "aspect_ratios": [list(ratios) for ratios in model.aspect_ratios],
            "scales": list(model.scales),
        }
    if arguments.get("backbone") != GIVEN:  # 8 is the least that can be asked for
        arguments["output_stride"] = min(32, max(8, backbone.feature_strides[-1]))
    if isinstance(model, DeepLabV3):
        arguments |= {
            "aspp_channels": model.aspp_channels,
            "rates": list(model.rates),
            "align_corners": model.align_corners,
            "aux_channels": model.aux_channels,
            "pad": model.pad,
        }
    elif isinstance(backbone, MobileViT) and isinstance(backbone.head_conv, nn.Identity):
        arguments["head_conv"] = False  # which earlier versions do not know
    return arguments


def read_card(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, each field of it being of its type and in its bounds.

    Raises:
        CheckpointError: if it says nothing, is of a format newer than this package knows, or says what cannot be.
    """
    card = checkpoint.get(CARD_KEY)
    if not isinstance(card, dict):
        raise CheckpointError(f"{path} does not say what model it holds: it was not written by kornia-mvit fit")
    if type(card.get("format")) is not int or card["format"] != 1:
        version, written = cut(card.get("format")), cut(card.get("version"))
        raise CheckpointError(f"{path} has format {version}, written by {written}; update")
    _check_fields(card, _CARD, path)
    if card.get("preprocess") is not None:
        _check_fields(card["preprocess"], _PREPROCESS, path, "preprocess.")
    task, model = card.get("task", "classification"), card.get("model")
    if task in MODELS and model is not None:
        if "mode" not in model and "backbone" not in model:
            raise CheckpointError(f"{path} does not say the mode of its model; {_AGAIN}")
        if unknown := sorted(map(cut, model.keys() - _MODEL[task].keys())):
            raise CheckpointError(f"{path} has the argument {unknown[0]} of a model, which is unknown; update")
        _check_fields(model, _MODEL[task], path, "model.")
        if "mode" in model and "backbone" in model:
            raise CheckpointError(f"{path} says both the mode and the backbone of its model; {_AGAIN}")
        if isinstance(model.get("mode"), dict):
            _check_config(model["mode"], path)
        names, count = card.get("class_names"), model.get("num_classes")
        if names and count is not None and len(names) != count - (task == "detection"):
            raise CheckpointError(f"{path} has {len(names)} names of classes, but num_classes is {count}; {_AGAIN}")
    return card


def from_card(checkpoint: Mapping[str, Any], path: str | Path, **overrides: Any) -> Model:
    """Build the model that a checkpoint of ours names; its weights are still to be loaded.

    Args:
        checkpoint: what :func:`~kornia_mvit.weights.files.read_checkpoint` gives.
        path: where it came from, for errors.
        overrides: arguments of the model's class in place of the card's.

    Raises:
        CheckpointError: if the checkpoint does not say what it holds, says what cannot be, is for a task that this
            package has no model for, or holds a network of its own.
    """
    card = read_card(checkpoint, path)
    task = card.get("task", "classification")
    if task not in MODELS:
        raise CheckpointError(f"{path} is for {cut(task)}, written by {cut(card.get('version'))}; update")
    if card.get("model") is None:
        raise CheckpointError(
            f"{path} holds a network of its own, which only its code can build; "
            f"use {task.capitalize()}Task.load_from_checkpoint(path, network=...)"
        )
    arguments = {**card["model"], "patch_size": tuple(card["model"].get("patch_size", (2, 2)))}
    if "backbone" in overrides:
        for name in ("mode", "variant", "patch_size", "backbone"):
            arguments.pop(name, None)
    elif arguments.get("backbone") == GIVEN:
        raise CheckpointError(f"{path} holds a {MODELS[task].__name__} on a backbone that is none of timm's; {_PASS}")
    if task == "segmentation":
        arguments.setdefault("pad", False)  # as earlier versions, which do not say
    if isinstance(arguments.get("mode"), dict):
        stages = tuple(Stage(**stage) for stage in arguments["mode"]["stages"])
        arguments["mode"] = MobileViTConfig(**{**arguments["mode"], "stages": stages})
    model = build_model(task, arguments, checkpoint, path, **overrides)
    model.preprocess = read_preprocess(card, path)
    model.class_names = tuple(card["class_names"]) if card.get("class_names") else None
    colours = card.get("class_colours")
    if isinstance(model, DeepLabV3) and colours and len(colours) == model.num_classes:
        model.class_colours = tuple((red, green, blue) for red, green, blue in colours)
    return model


def read_preprocess(card: Mapping[str, Any], path: str | Path) -> Preprocess | None:
    """Return the preprocessing that a card tells, if it does.

    Raises:
        CheckpointError: if what it tells cannot be.
    """
    if card.get("preprocess") is None:
        return None
    try:
        return Preprocess.from_dict(card["preprocess"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} has a preprocess that cannot be: {reason_of(error)}; {_AGAIN}") from None


def build_model(
    task: str, arguments: Mapping[str, Any], checkpoint: Mapping[str, Any], path: str | Path, **overrides: Any
) -> Model:
    """Build a model whose arguments come from a file, if it is not larger than what the file holds.

    Args:
        task: what the model is for.
        arguments: of its class.
        checkpoint: the weights, however they are nested.
        path: where they came from, for errors.
        overrides: arguments that the user gives, in place of the others.

    Raises:
        CheckpointError: if the arguments do not make a model, or one that is larger than the weights.
    """
    config = arguments["mode"] if isinstance(arguments.get("mode"), MobileViTConfig) else None
    values = [v for given in arguments.values() for v in (given if isinstance(given, list | tuple) else (given,))]
    try:
        # a configuration, a width that may be large, or a network of timm
        unusual = arguments.get("mode") not in MODES
        large = unusual or any(isinstance(v, int | float) and abs(v) > _ORDINARY for v in values)
        if large and "backbone" not in overrides:
            count, held = stored_bytes(checkpoint)
            if config is not None and 10 * sum(s.repeat + s.depth for s in config.stages) > max(count, _FEW):
                raise ValueError(f"it has more layers than the file's {count} weights are of")
            with torch.device("meta"), Sketch():
                wanted = sum(value.numel() for value in _BUILDERS[task](**arguments).state_dict().values())
            if wanted > max(2 * held, _SMALL):
                raise ValueError(f"it has {wanted:,} weights, and the file holds {held:,} bytes")
        return _BUILDERS[task](**{**arguments, **overrides})
    except (ValueError, TypeError, ArithmeticError, RuntimeError, IndexError, MemoryError) as error:
        if overrides:  # which may be what is wrong
            raise
        raise CheckpointError(f"the model that {path} tells of cannot be built: {reason_of(error)}") from None


class Sketch(TorchFunctionMode):
    """Skip the initialisation of weights of which the shapes alone are wanted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), [*args, *(kwargs or {}).values()]
        if name.endswith("_") and not name.endswith("__") and given and isinstance(given[0], Tensor):
            return given[0]
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------------------- checking

_AGAIN = "it is damaged; write or copy it again"
GIVEN = "given"  # what a card says of a backbone that has no name
_PASS = "build that backbone and pass it as backbone="
_ORDINARY = 1024  # a size in the table with no number above this is small
_SMALL = 2**25  # weights of a network that needs no look at the file's size
_FEW = 1000  # weights of a network of 100 layers
_WIDE = 2**16

_Rule = tuple[Callable[[Any], bool], str]  # what a value is held against, and in words what it should be


def _check_fields(values: Any, rules: Mapping[str, _Rule], path: str | Path, prefix: str = "") -> None:
    """Raise for a field that breaks its rule; fields without a rule, of later versions, are skipped."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} says of itself that {prefix[:-1]} is {brief(values)}, no mapping; {_AGAIN}")
    for name, (holds, what) in rules.items():
        if name in values and not holds(values[name]):
            raise CheckpointError(
                f"{path} says of itself that {prefix}{name} is {brief(values[name])}, not {what}; {_AGAIN}"
            )


def _check_config(config: dict[str, Any], path: str | Path) -> None:
    _check_part(config, _CONFIG, {"stem", "expand", "stages", "head_channels"}, path)
    for stage in config["stages"]:
        _check_part(stage, _STAGE, {"channels"}, path)


def _check_part(values: dict[str, Any], rules: Mapping[str, _Rule], needed: set[str], path: str | Path) -> None:
    if missing := sorted(needed - values.keys()):
        raise CheckpointError(f"{path} does not say {missing[0]} of its network; {_AGAIN}")
    if unknown := sorted(map(cut, values.keys() - rules.keys())):
        raise CheckpointError(f"{path} says {unknown[0]} of its network, which is unknown; update")
    _check_fields(values, rules, path, "model.mode.")


def _whole(least: int, most: int) -> _Rule:
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most:,}"


def _one_of(*known: Any) -> _Rule:
    return lambda value: type(value) is type(known[0]) and value in known, f"one of {', '.join(map(repr, known))}"


def _either(what: str, *rules: _Rule) -> _Rule:
    return lambda value: any(holds(value) for holds, _ in rules), what


def _or_none(rule: _Rule) -> _Rule:
    return _either(f"{rule[1]}, or nothing", rule, (lambda value: value is None, ""))


def _list(item: _Rule, what: str, least: int = 0, most: int = 10**7) -> _Rule:
    def check(value: Any) -> bool:
        return isinstance(value, list | tuple) and least <= len(value) <= most and all(map(item[0], value))

    return check, what


_TRUTH: _Rule = (lambda value: isinstance(value, bool), "true or false")
_TEXT: _Rule = (lambda value: isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value), "a text")
_NUMBER: _Rule = (lambda v: type(v) in (int, float) and abs(v) < 1e9 and math.isfinite(v), "a number")
_MAPPING: _Rule = (lambda value: isinstance(value, dict), "a mapping")
_WIDTH = _whole(1, _WIDE)
_VALUES = _or_none(_list(_NUMBER, "numbers, one for each channel", 1, _WIDE))
_SIZE = _or_none(_either(f"one or two numbers of pixels up to {_WIDE:,}", _WIDTH, _list(_WIDTH, "", 2, 2)))
_CARD: dict[str, _Rule] = {
    "version": _or_none(_TEXT),
    "task": _TEXT,
    "model": _or_none(_MAPPING),
    "class_names": _or_none(_list(_TEXT, "a list of texts")),
    "class_colours": _or_none(_list(_list(_whole(0, 255), "", 3, 3), "a list of colours")),
    "preprocess": _or_none(_MAPPING),
    "channel_order": _one_of("rgb", "bgr"),
}
_PREPROCESS: dict[str, _Rule] = {
    "size": _SIZE,
    "crop": _SIZE,
    "interpolation": _TEXT,
    "channel_order": _TEXT,
    "mean": _VALUES,
    "std": _VALUES,
    "letterbox": _TRUTH,
}
_BACKBONE = re.compile(rf"{TIMM}\w{{1,100}}|{GIVEN}", re.ASCII)
_COMMON: dict[str, _Rule] = {
    "backbone": (
        lambda value: isinstance(value, str) and _BACKBONE.fullmatch(value) is not None,
        f"a name of timm such as 'timm:resnet18', or {GIVEN!r}",
    ),
    "mode": _either("the name of a size, or a mapping", _TEXT, _MAPPING),
    "variant": _TEXT,
    "num_classes": _whole(0, 10**7),
    "in_channels": _WIDTH,
    "patch_size": _list(_whole(1, 256), "two numbers of pixels", 2, 2),
}
_STRIDE: dict[str, _Rule] = {"output_stride": _one_of(8, 16, 32)}
_SEGMENTATION: dict[str, _Rule] = {
    "aspp_channels": _WIDTH,
    "rates": _list(_whole(1, 4096), "up to 16 dilations", 1, 16),
    "align_corners": _TRUTH,
    "aux_channels": _whole(0, _WIDE),
    "pad": _TRUTH,
}
_DETECTION: dict[str, _Rule] = {
    "widths": _list(_WIDTH, "six numbers of channels", 6, 6),
    "aspect_ratios": _list(_list(_NUMBER, "", 0, 16), "six lists of up to 16 ratios", 6, 6),
    "scales": _list(_NUMBER, "two shares of the image", 2, 2),
}
_MODEL: dict[str, dict[str, _Rule]] = {
    "classification": _COMMON | _STRIDE | {"head_conv": _TRUTH},
    "segmentation": _COMMON | _STRIDE | _SEGMENTATION,
    "detection": _COMMON | _DETECTION,
}
_CONFIG: dict[str, _Rule] = {
    "stem": _WIDTH,
    "expand": _whole(1, 256),
    "stages": _list(_MAPPING, "up to 32 mappings", 1, 32),
    "head_channels": _WIDTH,
    "heads": _whole(1, 1024),
    "head_dim": _or_none(_WIDTH),
    "qkv_bias": _TRUTH,
    "closing_norm": _TRUTH,
    "proj_norm_act": _TRUTH,
}
_STAGE: dict[str, _Rule] = {
    "channels": _WIDTH,
    "stride": _whole(1, 64),
    "repeat": _whole(0, 10_000),
    "dim": _whole(0, _WIDE),
    "depth": _whole(0, 10_000),
    "ffn_ratio": _whole(1, 256),
}
