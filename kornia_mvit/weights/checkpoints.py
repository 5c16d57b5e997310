"""Load weights from whoever wrote them, and write them for whoever reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.models.backbones import TimmBackbone
from kornia_mvit.models.mobilevit import VARIANTS, MobileViT
from kornia_mvit.models.mobilevitv2 import WIDTHS, MobileViTV2, MobileViTV2Config, mode_name, mode_width
from kornia_mvit.models.modes import find_mode
from kornia_mvit.models.staged import StageConfig, StagedBackbone
from kornia_mvit.parsing import cut
from kornia_mvit.weights.cards import Model, build_model, check_network, from_card, model_card, read_card, task_of
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, read_checkpoint, write_checkpoint
from kornia_mvit.weights.layouts import LAYOUTS, find_layout, from_native, module_map, to_native, versions_of
from kornia_mvit.weights.layouts.heads import find_head, head_from_native, head_name, head_to_native, their_module
from kornia_mvit.weights.states import find_native, find_state, fit_stem, fitting, in_short

__all__ = [
    "CARD_KEY",
    "CheckpointError",
    "LoadReport",
    "Weights",
    "from_card",
    "load_checkpoint",
    "read_card",
    "read_checkpoint",
    "read_native",
    "read_weights",
    "save_checkpoint",
]

STEM = "stem.conv.weight"
# What stands on a backbone, by task.
_PARTS = {"classification": "classifier", "segmentation": "segmentation head", "detection": "detection head"}
_NAMES = {"segmentation": "DeepLabV3 on ", "detection": "SSDLite on "}
VERSIONS = {1: "MobileViT", 2: "MobileViTV2"}
_LAST = {"segmentation": "head.classifier.", "detection": "heads.0.classifier."}  # layer


@dataclass
class Weights:
    """The weights of a network under our names, and what the file that they came from is.

    Args:
        backbone: weights of the backbone, without prefix.
        head: the model's other weights, if there are any.
        unknown: names among them that the layout does not know.
        layout: what the file's names followed.
        mode: the size of the network, or None for a width of its own.
        variant: whose network it is.
        wrapper: key of the file that the weights stood under, and what stood before their names; empty for neither.
        task: what the model is for, ``'classification'``, ``'segmentation'`` or ``'detection'``; None for a backbone.
        version: of MobileViT.
    """

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    unknown: list[str]
    layout: str
    mode: str | None
    variant: str
    wrapper: str
    task: str | None = None
    version: int = 1

    @property
    def classifier(self) -> dict[str, Tensor]:
        """Weight and bias of the last layer, if there is one; of a detector's, those of the first level."""
        prefix = _LAST.get(str(self.task), "classifier.")
        return {key.removeprefix(prefix): value for key, value in self.head.items() if key.startswith(prefix)}

    @property
    def num_classes(self) -> int:
        """Number of classes, a detector's background among them; 0 without a classifier."""
        weight = self.classifier.get("weight")
        if weight is None:
            return 0
        box = self.head.get("heads.0.box.weight")
        return weight.shape[0] if box is None else 4 * weight.shape[0] // box.shape[0]

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        if STEM not in self.backbone:
            raise CheckpointError(f"the weights have no {STEM}; they are damaged, or of another network")
        return self.backbone[STEM].shape[1]

    @property
    def arguments(self) -> dict[str, Any]:
        """What builds a model for the weights, as far as their shapes tell it."""
        known: dict[str, Any] = {"mode": self.mode, "variant": self.variant, "in_channels": self.in_channels}
        if self.task is not None:
            known["num_classes"] = self.num_classes
        if self.task == "segmentation":
            known["pad"] = False  # as the code that such files are of
            for argument, key in (("aspp_channels", "head.aspp.project"), ("aux_channels", "aux_head.project")):
                if (weight := self.head.get(f"{key}.conv.weight")) is not None:
                    known[argument] = weight.shape[0]
            if self.version == 2 and self.layout == "apple":
                known["align_corners"] = True  # as the code that made its files has it
        if self.task == "detection":
            widths = [self.head.get(f"heads.{n}.classifier.weight") for n in range(6)]
            if all(weight is not None for weight in widths):
                known["widths"] = tuple(weight.shape[1] for weight in widths if weight is not None)
        return known

    def build(self) -> StagedBackbone | Model:
        """Build the network that the weights are of, a bare backbone where nothing stands on it.

        Raises:
            CheckpointError: if they are of none of the sizes in the variant table.
        """
        if self.mode is None:
            raise CheckpointError("the weights are of no size in the table; build the model with a MobileViTConfig")
        if self.task is None:
            width = mode_width(self.mode)
            return MobileViT(**self.arguments) if width is None else MobileViTV2(width, self.in_channels)
        return build_model(self.task, self.arguments, {**self.backbone, **self.head}, "the weights")


def read_weights(source: str | Path | Mapping[str, Any], layout: str = "auto", *, name: str | None = None) -> Weights:
    """Find the weights in a checkpoint, whoever wrote it, and give them our names.

    Args:
        source: a file, or what it holds: a state dict, or a dictionary around one.
        layout: ``'native'``, ``'apple'``, ``'timm'``, ``'transformers'``, ``'kornia'``, or ``'auto'`` to go by the
            names.
        name: what errors call the source, if not by its path.

    Raises:
        CheckpointError: as :func:`read_checkpoint` says, and if no MobileViT is found.
        ValueError: for an unknown layout.
    """
    if layout != "auto":
        versions_of(layout)
    data = read_checkpoint(source) if isinstance(source, str | Path) else source
    name = name or _name(source)
    held = find_state(data, name, [layout] if layout != "auto" else LAYOUTS)
    state, chosen, prefix, version = held.state, held.layout, held.prefix, held.version
    if layout != "native" and 2 * held.known < max(1, held.count):
        some = ", ".join(map(cut, list(state)[:3]))
        raise CheckpointError(
            f"{name} holds no MobileViT{'' if layout == 'auto' else f' in layout {layout!r}'}: "
            f"its {len(state)} names start with {some}"
        )
    outer, task = find_head(state, chosen, prefix, version)
    head, body, unknown = {}, {}, []
    for key, value in state.items():
        own = head_name(key.removeprefix(outer), chosen, task, version) if task and key.startswith(outer) else None
        if own is not None:
            head[own] = value
        elif key.startswith(prefix):
            body[key.removeprefix(prefix)] = value
        elif key.startswith(outer):
            unknown.append(key)
    with fitting(name):
        head = head_to_native(head, chosen, task) if task else head
        backbone, foreign = to_native(body, chosen, version)
        mode, variant = _identify(backbone, version)
    where = ".".join(part for part in (*held.path, outer.rstrip(".")) if part)
    unknown += [prefix + key for key in foreign]
    found = Weights(backbone, head, unknown, chosen, mode, variant, where, task, version)
    with fitting(name):
        if STEM in backbone:
            found.arguments  # noqa: B018  # for its errors
    return found


def read_native(source: str | Path | Mapping[str, Any], name: str) -> Weights:
    """Find the weights of a model on another backbone than MobileViT, under our names.

    Raises:
        CheckpointError: as :func:`read_checkpoint` says, and if there are none.
    """
    state, outer = find_native(read_checkpoint(source) if isinstance(source, str | Path) else source, name)
    _, task = find_head(state, "native", "backbone.")
    body = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    head = {key: value for key, value in rest.items() if task is not None and head_name(key, "native", task)}
    return Weights(body, head, [*rest.keys() - head.keys()], "native", None, "apple", outer, task)


def _name(source: str | Path | Mapping[str, Any]) -> str:
    return str(source) if isinstance(source, str | Path) else "the state dict"


def _identify(backbone: Mapping[str, Tensor], version: int) -> tuple[str | None, str]:
    """Return the mode and variant that the shapes of the weights tell; None for a mode that is not in the table."""
    variant = "kornia" if any(name.startswith("stages.2.1.proj_in.norm.") for name in backbone) else "apple"
    configs: Mapping[str, StageConfig] = VARIANTS[variant]
    if version == 2:
        configs = {mode_name(width): MobileViTV2Config.of(width) for width in WIDTHS}
    for mode, config in configs.items():
        channels = (config.stem, *(stage.channels for stage in config.stages))
        widths = {
            f"stages.{i}.0.project.conv.weight": (after, before * config.expand)
            for i, (before, after) in enumerate(pairwise(channels))
        }
        if all(name in backbone and tuple(backbone[name].shape[:2]) == shape for name, shape in widths.items()):
            return mode, variant
    return None, variant


# ---------------------------------------------------------------------------------------------------------- loading


@dataclass
class LoadReport:
    """What :func:`load_checkpoint` found and did; printed, it reads as a sentence.

    Args:
        source: the file, or what stands for a state dict.
        layout: what the names followed.
        mode: size of the network, or None for one of no known size.
        num_classes: classes of the file's classifier, 0 for none.
        wrapper: what the weights stood under in the file; empty for nothing.
        fresh: our names of weights that were left as they were initialised.
        left_out: our names of the file's weights that the model has no place for, as was asked for.
        notes: what else was done to the weights.
        task: what the file's model is for; None for a backbone.
        version: of the file's MobileViT.
    """

    source: str
    layout: str
    mode: str | None
    num_classes: int
    wrapper: str = ""
    fresh: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    task: str | None = None
    version: int = 1

    def __str__(self) -> str:
        model = _NAMES.get(str(self.task), "") + VERSIONS[self.version]
        size = f" {self.mode}" if self.mode else ""
        classes = f" of {self.num_classes} classes" if self.num_classes else " without classifier"
        under = f", under {self.wrapper}" if self.wrapper else ""
        text = [f"{self.source}: {model}{size}{classes} in layout {self.layout!r}{under}", *self.notes]
        if self.fresh:
            text.append(f"left fresh: {in_short(self.fresh)}")
        if self.left_out:
            text.append(f"left out: {in_short(self.left_out)}")
        return "; ".join(text)


def load_checkpoint(
    model: StagedBackbone | Model,
    source: str | Path | Mapping[str, Any],
    layout: str = "auto",
    *,
    channel_order: str = "rgb",
    new_head: bool = False,
    adapt_stem: bool = False,
    name: str | None = None,
) -> LoadReport:
    """Load the weights of a checkpoint of Apple, timm, transformers, Kornia's class or ours into a model.

    Every name and shape must fit, unless one of the last two arguments allows otherwise. Nothing is loaded where
    something does not. An auxiliary head, which only training uses, is left out or fresh where only one side has it.

    Args:
        model: what the weights go into; a bare backbone leaves out what stands on the file's.
        source: a ``.pt``, ``.pth``, ``.ckpt`` or ``.safetensors`` file, or a state dict, or a dictionary around one.
            Of averaged and raw weights beside each other the averaged ones are taken.
        layout: whose names the file has, or ``'auto'`` to find out.
        channel_order: what the file's network takes. ``'bgr'`` turns the stem's input channels around, so that the
            model takes RGB.
        new_head: leave the last layer as it is initialised, for another number of classes; and all that stands on
            the backbone, for a file of another task or without a head.
        adapt_stem: fit the stem to another number of input channels: for one channel the weights are summed, for
            more they are repeated and scaled by the ratio.
        name: what errors and the report call the source, if not by its path.

    Returns:
        What was found and done.

    Raises:
        CheckpointError: if the file cannot be read, holds no MobileViT or one of another size, or if names are
            missing or left over, each with its nearest match.
        TypeError: for what is no model of this package.
        ValueError: for an unknown layout or channel order, and a fused copy.
    """
    _check_order(channel_order)
    check_network(model)
    name = name or _name(source)
    backbone = model if isinstance(model, StagedBackbone) else model.backbone
    if isinstance(backbone, StagedBackbone):
        found = read_weights(source, layout, name=name)
    elif layout in ("auto", "native") and channel_order == "rgb":
        found = read_native(source, name)
    else:
        raise ValueError(f"layout and channel_order are of MobileViT, not of {type(backbone).__name__}; leave both out")
    report = LoadReport(name, found.layout, found.mode, found.num_classes, found.wrapper)
    report.task, report.version = found.task, found.version
    _check_model(backbone, found, name)

    state = dict(found.backbone)
    if channel_order == "bgr" and STEM in state:
        state[STEM] = state[STEM].flip(1)
        report.notes.append("the stem's input channels turned from BGR to RGB")
    if STEM in state and state[STEM].shape[1] != backbone.in_channels:
        if not adapt_stem:
            raise CheckpointError(
                f"{name} takes images of {state[STEM].shape[1]} channels, the model {backbone.in_channels}; "
                "pass adapt_stem=True"
            )
        report.notes.append(f"the stem fitted from {state[STEM].shape[1]} to {backbone.in_channels} channels")
        with fitting(name):
            state[STEM] = fit_stem(state[STEM], backbone.in_channels)
    own_body, own_head = _split(model)
    if not any(key.startswith("head_conv.") for key in own_body):  # a backbone built without its last convolution
        report.left_out += [key for key in state if key.startswith("head_conv.")]
        state = {key: value for key, value in state.items() if not key.startswith("head_conv.")}
    head = _choose_head(model, own_head, found, name, new_head, report)
    wanted, given = own_body | own_head, state | head  # no name of a head is one of the backbone's
    for key in wanted.keys() - given.keys():
        if key.endswith("num_batches_tracked"):  # a counter that older files lack and inference does not read
            given[key] = wanted[key]
    _check_names(wanted, given, found, name)
    if wrong := [key for key, value in given.items() if wanted[key].is_floating_point() > value.is_floating_point()]:
        kind = str(given[wrong[0]].dtype).removeprefix("torch.")
        raise CheckpointError(f"{cut(_their_name(wrong[0], found))} in {name} is {kind}; weights are floating-point")
    if mismatch := [key for key, value in given.items() if value.shape != wanted[key].shape]:
        pairs = (f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}" for key in mismatch[:3])
        raise CheckpointError(f"{len(mismatch)} weights in {name} have another shape: {'; '.join(pairs)}")
    prefix = "" if isinstance(model, StagedBackbone) else "backbone."
    with fitting(name):
        model.load_state_dict({key if key in own_head else f"{prefix}{key}": value for key, value in given.items()})
    return report


def _check_order(channel_order: str) -> None:
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"unknown channel order {channel_order!r}; available: 'rgb', 'bgr'")


def _split(model: StagedBackbone | Model) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the backbone, without prefix, and those of what stands on it."""
    if isinstance(model, StagedBackbone):
        return model.state_dict(), {}
    state = model.state_dict()
    body = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return body, {key: value for key, value in state.items() if not key.startswith("backbone.")}


def _choose_head(
    model: StagedBackbone | Model,
    own: Mapping[str, Tensor],
    found: Weights,
    name: str,
    new_head: bool,
    report: LoadReport,
) -> dict[str, Tensor]:
    """Return the weights of the model's head; the report takes in which are fresh, and which are left out."""
    if isinstance(model, StagedBackbone) or not own:
        report.left_out += found.head
        return {}
    task = task_of(model)
    given = found.head if found.task == task else {}
    if not new_head:
        if not given:
            raise CheckpointError(f"{name} has no {_PARTS[str(task)]}; pass new_head=True to leave the model's fresh")
        if found.num_classes not in (0, model.num_classes):
            raise CheckpointError(
                f"{name} has {found.num_classes} classes, the model {model.num_classes}; "
                "pass new_head=True to leave the model's classifier fresh"
            )
    if found.layout == "kornia" and "classifier.bias" in own.keys() - given.keys() and given:
        given = given | {"classifier.bias": torch.zeros_like(own["classifier.bias"])}
        report.notes.append("its classifier has no bias: zeros")
    passed = set() if given else {*own}
    if new_head:
        passed |= {key for key in {*own, *given} if key.rpartition(".")[0].endswith("classifier")}
    aux = [[key for key in side if key.startswith("aux_head.")] for side in (own, given)]
    if not all(aux):
        passed.update(*aux)
    report.fresh += [key for key in own if key in passed]
    report.left_out += [key for key in found.head if key not in given or key in passed]
    kept = {key: value for key, value in given.items() if key not in passed}
    return kept | {key: value for key, value in own.items() if key in passed}


def _check_model(backbone: StagedBackbone | TimmBackbone, found: Weights, name: str) -> None:
    """Raise for a checkpoint of another size, naming the sizes instead of the shapes that differ."""
    own = find_mode(backbone)
    if own is None or found.mode is None or own == (found.mode, found.variant):
        return
    arguments = f"{found.mode!r}" + ("" if found.variant == "apple" else f", variant={found.variant!r}")
    raise CheckpointError(
        f"{name} is a {VERSIONS[found.version]} of mode {found.mode!r}, variant {found.variant!r}; the model is "
        f"{own[0]!r}, {own[1]!r}. Build it with ({arguments})"
    )


def _check_names(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], found: Weights, name: str) -> None:
    """Raise with the names that are missing or left over, each beside its nearest match."""
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys())
    theirs = [*(_their_name(key, found) for key in extra), *found.unknown]
    if not missing and not theirs:
        return
    lines = []
    for title, names, others in (
        ("missing", [_their_name(key, found) for key in missing], theirs),
        ("unexpected", theirs, [_their_name(key, found) for key in missing or wanted]),
    ):
        shown = [
            cut(key) + (f" (nearest: {cut(match[0])})" if (match := get_close_matches(key, others, 1, 0.6)) else "")
            for key in names[:5]
        ]
        if names:
            lines.append(f"{len(names)} {title}: {', '.join(shown)}{', …' if len(names) > 5 else ''}")
    if found.task in _NAMES and any(key.startswith("head_conv.") for key in missing):
        lines.append(f"a {found.task} model has no last 1x1 convolution; build the backbone with head_conv=False")
    raise CheckpointError(f"the names in {name} (layout {found.layout!r}) do not fit the model; {'; '.join(lines)}")


def _their_name(key: str, found: Weights) -> str:
    module, _, leaf = key.rpartition(".")
    theirs = module_map(found.layout, found.version).get(module)
    if theirs is None:
        theirs = module if found.task is None else their_module(module, found.layout, found.task, found.version)
    return f"{theirs if isinstance(theirs, str) else theirs[0]}.{leaf}"


# ----------------------------------------------------------------------------------------------------------- saving


def save_checkpoint(
    model: StagedBackbone | Model, path: str | Path, layout: str = "native", *, channel_order: str = "rgb"
) -> None:
    """Write a model's weights under the names of Apple, timm, transformers, Kornia's class, or ours.

    The file appears whole or not at all. A native one says what it holds, see
    :func:`~kornia_mvit.weights.cards.model_card`. The others are state dicts, as their readers expect; a
    ``.safetensors`` file carries the same beside them, where readers of other programs do not look, and a ``.pt``
    file loses class names and preprocessing.

    Args:
        model: the model.
        path: a ``.safetensors`` file, or any other name for one that ``torch.load`` reads.
        layout: whose names to use; for Apple's, those of its published files.
        channel_order: what the file is to take; ``'bgr'`` turns the stem's input channels around.

    Raises:
        TypeError: for what is no model of this package.
        ValueError: for an unknown layout or channel order, a fused copy, or a model that the layout has no names for.
        ImportError: for a ``.safetensors`` file where safetensors is missing.
    """
    _check_order(channel_order)
    check_network(model)
    task = task_of(model)
    backbone = model if isinstance(model, StagedBackbone) else model.backbone
    if not isinstance(backbone, StagedBackbone) and layout != "native":
        raise ValueError(f"layout {layout!r} has no names for a {type(backbone).__name__}; save it as 'native'")
    version = 2 if isinstance(backbone, MobileViTV2) else 1
    names = find_layout(layout, version)
    body, head = _split(model)
    if channel_order == "bgr":
        if STEM not in body:
            raise ValueError(f"{type(backbone).__name__} has no {STEM} to turn around; leave channel_order at 'rgb'")
        body[STEM] = body[STEM].flip(1)
    heads = {task: head for task, head in names.heads.items() if head.written}
    if head and task not in heads:
        raise ValueError(f"layout {layout!r} has no {_PARTS[str(task)]}; save model.backbone")
    variant = "kornia" if isinstance(backbone, MobileViT) and not backbone.config.closing_norm else "apple"
    if (variant == "kornia") != (layout == "kornia") and layout != "native":
        raise ValueError(f"layout {layout!r} has no names for a network of variant {variant!r}; save it as 'native'")
    try:
        named = from_native(body, layout, version)
        beside = {} if task not in heads else head_from_native(head, layout, task, version)
    except KeyError as error:
        if str(error.args[0]).startswith("aux_head."):
            raise ValueError(
                f"layout {layout!r} has no names for an auxiliary head; load the weights into a model without one "
                "(aux_channels=0), and save that"
            ) from None
        raise ValueError(f"layout {layout!r} has no name for {error} of this model; save it as 'native'") from None
    prefix = heads[task].prefix if task in heads else ""
    state = {f"{prefix}{key}": value for key, value in named.items()} | beside
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    card = None
    if not isinstance(model, StagedBackbone):
        known = model.class_names is not None or model.preprocess is not None
        if layout == "native" or (known and Path(path).suffix == ".safetensors"):
            card = model_card(model, model.class_names, model.preprocess)
            card["channel_order"] = channel_order  # of the file; the model itself takes RGB
    write_checkpoint(state, path, card)
