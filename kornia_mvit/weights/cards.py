"""What a checkpoint says of the model in it, so that it can be used without being told anything."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.models.deeplabv3 import DeepLabV3
from kornia_mvit.models.mobilevit import VARIANTS, MobileViTClassifier, MobileViTConfig, Stage
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.weights.files import CARD_KEY, CheckpointError

__all__ = ["MODELS", "Model", "find_config", "from_card", "model_card", "read_card", "task_of"]

Model = MobileViTClassifier | DeepLabV3 | SSDLite
MODELS: dict[str, type[MobileViTClassifier] | type[DeepLabV3] | type[SSDLite]] = {
    "classification": MobileViTClassifier,
    "segmentation": DeepLabV3,
    "detection": SSDLite,
}


def task_of(model: nn.Module) -> str | None:
    """Give what a model of ours is for, or None for a backbone or a network of another kind."""
    return next((task for task, kind in MODELS.items() if isinstance(model, kind)), None)


def model_card(
    network: nn.Module,
    class_names: Sequence[str] | None,
    preprocess: Preprocess | None,
    task: str = "classification",
) -> dict[str, Any]:
    """Say in plain data what a checkpoint holds.

    Args:
        network: the model, with the colours of its classes, if it has any; the arguments of a
            :class:`~kornia_mvit.MobileViTClassifier`, :class:`~kornia_mvit.DeepLabV3` or
            :class:`~kornia_mvit.SSDLite` are kept, no others.
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
    """Give what builds a model of the same shape, and of the same outputs in evaluation."""
    mode, variant = find_config(model.backbone.config) or (asdict(model.backbone.config), "apple")
    arguments = {
        "mode": mode,
        "variant": variant,
        "num_classes": model.num_classes,
        "in_channels": model.backbone.in_channels,
        "patch_size": list(model.backbone.patch_size),
    }
    if isinstance(model, SSDLite):
        return arguments | {
            "widths": list(model.widths),
            "aspect_ratios": [list(ratios) for ratios in model.aspect_ratios],
            "scales": list(model.scales),
        }
    arguments["output_stride"] = max(8, model.backbone.feature_strides[-1])  # 8 is the least that can be asked for
    if isinstance(model, DeepLabV3):
        arguments |= {
            "aspp_channels": model.aspp_channels,
            "rates": list(model.rates),
            "align_corners": model.align_corners,
            "aux_channels": model.aux_channels,
        }
    return arguments


def find_config(config: MobileViTConfig) -> tuple[str, str] | None:
    """Find mode and variant of a row of the table."""
    rows = ((mode, variant) for variant, modes in VARIANTS.items() for mode in modes if modes[mode] == config)
    return next(rows, None)


def read_card(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Give what a checkpoint says of itself.

    Raises:
        CheckpointError: if it says nothing, or is of a format newer than this package knows.
    """
    card = checkpoint.get(CARD_KEY)
    if not isinstance(card, dict):
        raise CheckpointError(f"{path} does not say what model it holds: it was not written by kornia-mvit fit")
    if card.get("format") != 1:
        raise CheckpointError(f"{path} has format {card.get('format')}, written by {card.get('version')}; update")
    return card


def from_card(checkpoint: Mapping[str, Any], path: str | Path, **overrides: Any) -> Model:
    """Build the model that a checkpoint of ours names; its weights are still to be loaded.

    Args:
        checkpoint: what :func:`~kornia_mvit.weights.files.read_checkpoint` gives.
        path: where it came from, for errors.
        overrides: arguments of the model's class in place of the card's.

    Raises:
        CheckpointError: if the checkpoint does not say what it holds, is for a task that this package has no model
            for, or holds a network of its own.
    """
    card = read_card(checkpoint, path)
    task = card.get("task", "classification")
    if task not in MODELS:
        raise CheckpointError(f"{path} is for {task}, written by {card.get('version')}; update")
    if card["model"] is None:
        raise CheckpointError(
            f"{path} holds a network of its own, which only its code can build; "
            f"use {task.capitalize()}Task.load_from_checkpoint(path, network=...)"
        )
    arguments = {**card["model"], "patch_size": tuple(card["model"].get("patch_size", (2, 2))), **overrides}
    if isinstance(arguments["mode"], dict):
        stages = tuple(Stage(**stage) for stage in arguments["mode"]["stages"])
        arguments["mode"] = MobileViTConfig(**{**arguments["mode"], "stages": stages})
    model = MODELS[task](**arguments)
    model.preprocess = None if card["preprocess"] is None else Preprocess.from_dict(card["preprocess"])
    model.class_names = None if card["class_names"] is None else tuple(card["class_names"])
    if isinstance(model, DeepLabV3) and card.get("class_colours") and len(card["class_colours"]) == model.num_classes:
        model.class_colours = tuple((red, green, blue) for red, green, blue in card["class_colours"])
    return model
