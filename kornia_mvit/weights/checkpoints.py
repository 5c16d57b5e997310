"""Load weights from whoever wrote them, and write them for whoever reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.models.mobilevit import VARIANTS, MobileViT, MobileViTClassifier, MobileViTConfig, Stage
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, read_checkpoint, write_checkpoint
from kornia_mvit.weights.layouts import LAYOUTS, find_prefix, from_native, module_map, to_native

__all__ = [
    "CARD_KEY",
    "CheckpointError",
    "LoadReport",
    "Weights",
    "classifier_card",
    "from_card",
    "load_checkpoint",
    "read_card",
    "read_checkpoint",
    "read_weights",
    "save_checkpoint",
]

STEM = "stem.conv.weight"
# Keys under which training programs keep the weights, averaged ones first.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")


@dataclass
class Weights:
    """The weights of a network under our names, and what the file that they came from is.

    Args:
        backbone: weights of the backbone, without prefix.
        classifier: weight and bias of the linear classifier, if there are any.
        unknown: names among them that the layout does not know.
        layout: what the file's names followed.
        mode: the size of the network, or None for a width of its own.
        variant: whose network it is.
        wrapper: key of the file that the weights stood under, and what stood before their names; empty for neither.
    """

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]
    unknown: list[str]
    layout: str
    mode: str | None
    variant: str
    wrapper: str

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without a classifier."""
        return self.classifier["weight"].shape[0] if "weight" in self.classifier else 0

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self.backbone[STEM].shape[1]

    def build(self) -> MobileViT | MobileViTClassifier:
        """Build the network that the weights are of, a bare backbone where they have no classifier.

        Raises:
            CheckpointError: if they are of none of the sizes in the variant table.
        """
        if self.mode is None:
            raise CheckpointError("the weights are of no size in the table; build the model with a MobileViTConfig")
        if self.num_classes:
            return MobileViTClassifier(self.mode, self.num_classes, self.in_channels, variant=self.variant)
        return MobileViT(self.mode, self.in_channels, variant=self.variant)


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
        module_map(layout)
    data = read_checkpoint(source) if isinstance(source, str | Path) else source
    name = name or _name(source)
    state, wrapper = _unwrap(data, name)
    scores = {key: find_prefix(state, key) for key in ([layout] if layout != "auto" else LAYOUTS)}
    chosen = max(scores, key=lambda key: scores[key][1])
    prefix, known = scores[chosen]
    if layout != "native" and 2 * known < max(1, sum(key.startswith(prefix) for key in state)):
        some = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{name} holds no MobileViT{'' if layout == 'auto' else f' in layout {layout!r}'}: "
            f"its {len(state)} names start with {some}"
        )
    inner = LAYOUTS[chosen].prefix
    outer = prefix.removesuffix(inner) if inner and prefix.endswith(inner) else prefix
    head = LAYOUTS[chosen].classifier
    classifier, body, unknown = {}, {}, []
    for key, value in state.items():
        if head is not None and key.startswith(f"{outer}{head}."):
            classifier[key.removeprefix(f"{outer}{head}.")] = value
        elif key.startswith(prefix):
            body[key.removeprefix(prefix)] = value
        elif key.startswith(outer):
            unknown.append(key)
    backbone, foreign = to_native(body, chosen)
    mode, variant = _identify(backbone)
    where = ".".join(part for part in (wrapper, outer.rstrip(".")) if part)
    return Weights(backbone, classifier, unknown + [prefix + n for n in foreign], chosen, mode, variant, where)


def _name(source: str | Path | Mapping[str, Any]) -> str:
    return str(source) if isinstance(source, str | Path) else "the state dict"


def _unwrap(data: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], str]:
    path = []
    while not any(isinstance(value, Tensor) for value in data.values()):
        key = next((key for key in _WRAPPERS if isinstance(data.get(key), Mapping)), None)
        if key is None:
            raise CheckpointError(f"{name} holds no weights; its keys are {list(data)[:6]}")
        path.append(key)
        data = data[key]
    return {key: value for key, value in data.items() if isinstance(value, Tensor)}, ".".join(path)


def _identify(backbone: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """Find mode and variant by the shapes of the weights."""
    variant = "kornia" if any(name.startswith("stages.2.1.proj_in.norm.") for name in backbone) else "apple"
    for mode, config in VARIANTS[variant].items():
        widths = {
            f"stages.{i}.0.project.conv.weight": (stage.channels, (config.stem, *_channels(config))[i] * config.expand)
            for i, stage in enumerate(config.stages)
        }
        if all(name in backbone and tuple(backbone[name].shape[:2]) == shape for name, shape in widths.items()):
            return mode, variant
    return None, variant


def _channels(config: MobileViTConfig) -> tuple[int, ...]:
    return tuple(stage.channels for stage in config.stages)


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
        left_out: the file's names of weights that the model has no place for, as was asked for.
        notes: what else was done to the weights.
    """

    source: str
    layout: str
    mode: str | None
    num_classes: int
    wrapper: str = ""
    fresh: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        size = f" {self.mode}" if self.mode else ""
        classes = f" of {self.num_classes} classes" if self.num_classes else " without classifier"
        under = f", under {self.wrapper}" if self.wrapper else ""
        text = [f"{self.source}: MobileViT{size}{classes} in layout {self.layout!r}{under}", *self.notes]
        if self.fresh:
            text.append(f"left fresh: {', '.join(self.fresh)}")
        if self.left_out:
            text.append(f"left out: {', '.join(self.left_out)}")
        return "; ".join(text)


def load_checkpoint(
    model: MobileViT | MobileViTClassifier,
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
    something does not.

    Args:
        model: what the weights go into; a bare backbone leaves the file's classifier out.
        source: a ``.pt``, ``.pth``, ``.ckpt`` or ``.safetensors`` file, or a state dict, or a dictionary around one.
            Of averaged and raw weights beside each other the averaged ones are taken.
        layout: whose names the file has, or ``'auto'`` to find out.
        channel_order: what the file's network takes. ``'bgr'`` turns the stem's input channels around, so that the
            model takes RGB.
        new_head: leave the classifier as it is initialised, for another number of classes or a file without one.
        adapt_stem: fit the stem to another number of input channels: for one channel the weights are summed, for
            more they are repeated and scaled by the ratio.
        name: what errors and the report call the source, if not by its path.

    Returns:
        What was found and done.

    Raises:
        CheckpointError: if the file cannot be read, holds no MobileViT or one of another size, or if names are
            missing or left over, each with its nearest match.
        ValueError: for an unknown layout or channel order.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"unknown channel order {channel_order!r}; available: 'rgb', 'bgr'")
    name = name or _name(source)
    found = read_weights(source, layout, name=name)
    backbone = model.backbone if isinstance(model, MobileViTClassifier) else model
    report = LoadReport(name, found.layout, found.mode, found.num_classes, found.wrapper)
    _check_model(backbone, found, name)

    state = dict(found.backbone)
    if channel_order == "bgr":
        state[STEM] = state[STEM].flip(1)
        report.notes.append("the stem's input channels turned from BGR to RGB")
    if state[STEM].shape[1] != backbone.in_channels:
        if not adapt_stem:
            raise CheckpointError(
                f"{name} takes images of {state[STEM].shape[1]} channels, the model {backbone.in_channels}; "
                "pass adapt_stem=True"
            )
        report.notes.append(f"the stem fitted from {state[STEM].shape[1]} to {backbone.in_channels} channels")
        state[STEM] = _fit_stem(state[STEM], backbone.in_channels)
    wanted = backbone.state_dict()
    if not any(key.startswith("head_conv.") for key in wanted):  # a backbone built without its last convolution
        report.left_out += [key for key in state if key.startswith("head_conv.")]
        state = {key: value for key, value in state.items() if not key.startswith("head_conv.")}
    for key in wanted.keys() - state.keys():
        if key.endswith("num_batches_tracked"):  # a counter that older files lack and inference does not read
            state[key] = wanted[key]
    head = _choose_head(model, found, name, new_head, report)
    _check_names(wanted, state, found, name)
    if mismatch := [key for key, value in state.items() if value.shape != wanted[key].shape]:
        pairs = (f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}" for key in mismatch[:3])
        raise CheckpointError(f"{len(mismatch)} weights in {name} have another shape: {'; '.join(pairs)}")
    backbone.load_state_dict(state)
    if head:
        assert isinstance(model, MobileViTClassifier)
        model.classifier.load_state_dict(head)
    return report


def _choose_head(
    model: MobileViT | MobileViTClassifier, found: Weights, name: str, new_head: bool, report: LoadReport
) -> dict[str, Tensor]:
    """Give the weights for the model's classifier, or none, and say in the report what becomes of which."""
    names = [f"classifier.{key}" for key in found.classifier]
    if not isinstance(model, MobileViTClassifier) or model.num_classes == 0:
        report.left_out += names
        return {}
    if new_head:
        report.left_out += names
        report.fresh += [f"classifier.{key}" for key in model.classifier.state_dict()]
        return {}
    if not found.classifier:
        raise CheckpointError(f"{name} has no classifier; pass new_head=True to leave the model's fresh")
    if found.num_classes != model.num_classes:
        raise CheckpointError(
            f"{name} has {found.num_classes} classes, the model {model.num_classes}; "
            "pass new_head=True to leave the model's classifier fresh"
        )
    return found.classifier


def _check_model(backbone: MobileViT, found: Weights, name: str) -> None:
    """Tell a checkpoint of another size by its name rather than by its shapes."""
    own = _known_config(backbone.config)
    if own is None or found.mode is None or own == (found.mode, found.variant):
        return
    arguments = f"{found.mode!r}" + ("" if found.variant == "apple" else f", variant={found.variant!r}")
    raise CheckpointError(
        f"{name} is a MobileViT of mode {found.mode!r}, variant {found.variant!r}; the model is {own[0]!r}, "
        f"{own[1]!r}. Build it with ({arguments})"
    )


def _check_names(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], found: Weights, name: str) -> None:
    """Raise with the names that are missing or left over, each beside its nearest match."""
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys())
    theirs = [*(_their_name(key, found.layout) for key in extra), *found.unknown]
    if not missing and not theirs:
        return
    lines = []
    for title, names, others in (
        ("missing", [_their_name(key, found.layout) for key in missing], theirs),
        ("unexpected", theirs, [_their_name(key, found.layout) for key in missing or wanted]),
    ):
        shown = [
            key + (f" (nearest: {match[0]})" if (match := get_close_matches(key, others, 1, 0.6)) else "")
            for key in names[:5]
        ]
        if names:
            lines.append(f"{len(names)} {title}: {', '.join(shown)}{', …' if len(names) > 5 else ''}")
    raise CheckpointError(f"the names in {name} (layout {found.layout!r}) do not fit the model; {'; '.join(lines)}")


def _their_name(key: str, layout: str) -> str:
    module, _, leaf = key.rpartition(".")
    theirs = module_map(layout).get(module, module)
    return f"{theirs if isinstance(theirs, str) else theirs[0]}.{leaf}"


def _fit_stem(weight: Tensor, channels: int) -> Tensor:
    """Fit the stem's weights to another number of input channels, so that grey images give the same sums."""
    given = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, -(-channels // given), 1, 1)[:, :channels]
    return (repeated.float() * (given / channels)).to(weight.dtype)


# ----------------------------------------------------------------------------------------------------------- saving


def save_checkpoint(
    model: MobileViT | MobileViTClassifier, path: str | Path, layout: str = "native", *, channel_order: str = "rgb"
) -> None:
    """Write a model's weights under the names of Apple, timm, transformers, Kornia's class, or ours.

    The file appears whole or not at all. A native one says what it holds, see :func:`classifier_card`. The others are
    state dicts, as their readers expect; a ``.safetensors`` file carries the same beside them, where readers of
    other programs do not look, and a ``.pt`` file loses class names and preprocessing.

    Args:
        model: the model.
        path: a ``.safetensors`` file, or any other name for one that ``torch.load`` reads.
        layout: whose names to use.
        channel_order: what the file is to take; ``'bgr'`` turns the stem's input channels around.

    Raises:
        ValueError: for an unknown layout or channel order, or a model that the layout has no names for.
        ImportError: for a ``.safetensors`` file where safetensors is missing.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"unknown channel order {channel_order!r}; available: 'rgb', 'bgr'")
    module_map(layout)
    with_head = isinstance(model, MobileViTClassifier)
    backbone = model.backbone if isinstance(model, MobileViTClassifier) else model
    body = dict(backbone.state_dict())
    if channel_order == "bgr":
        body[STEM] = body[STEM].flip(1)
    head = model.classifier.state_dict() if isinstance(model, MobileViTClassifier) else {}
    record = LAYOUTS[layout]
    if head and record.classifier is None:
        raise ValueError(f"layout {layout!r} has no classifier; save model.backbone")
    variant = "apple" if backbone.config.closing_norm else "kornia"
    if (variant == "kornia") != (layout == "kornia") and layout != "native":
        raise ValueError(f"layout {layout!r} has no names for a network of variant {variant!r}; save it as 'native'")
    try:
        named = from_native(body, layout)
    except KeyError as error:
        raise ValueError(f"layout {layout!r} has no name for {error} of this model; save it as 'native'") from None
    prefix = record.prefix if with_head else ""
    state = {f"{prefix}{key}": value for key, value in named.items()}
    state |= {f"{record.classifier}.{key}": value for key, value in head.items()}
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    card = None
    if isinstance(model, MobileViTClassifier):
        known = model.class_names is not None or model.preprocess is not None
        if layout == "native" or (known and Path(path).suffix == ".safetensors"):
            card = classifier_card(model, model.class_names, model.preprocess)
            card["channel_order"] = channel_order  # of the file; the model itself takes RGB
    write_checkpoint(state, path, card)


# ------------------------------------------------------------------------------------------------------------ cards


def classifier_card(
    network: nn.Module, class_names: Sequence[str] | None, preprocess: Preprocess | None
) -> dict[str, Any]:
    """Say in plain data what a checkpoint of a classifier holds, so that it can be used without being told anything.

    Args:
        network: the classifier; the arguments of a :class:`~kornia_mvit.MobileViTClassifier` are kept, no others.
        class_names: names of the classes, in the order of the logits, if known.
        preprocess: what images go through before the network, if known.
    """
    from kornia_mvit import __version__

    return {
        "format": 1,
        "version": __version__,
        "task": "classification",
        "model": _arguments(network) if isinstance(network, MobileViTClassifier) else None,
        "class_names": None if class_names is None else list(class_names),
        "preprocess": None if preprocess is None else preprocess.to_dict(),
    }


def _arguments(model: MobileViTClassifier) -> dict[str, Any]:
    """Give what builds a model of the same shape."""
    mode, variant = _known_config(model.backbone.config) or (asdict(model.backbone.config), "apple")
    return {
        "mode": mode,
        "variant": variant,
        "num_classes": model.num_classes,
        "in_channels": model.backbone.in_channels,
        "patch_size": list(model.backbone.patch_size),
        "output_stride": model.backbone.feature_strides[-1],
    }


def _known_config(config: MobileViTConfig) -> tuple[str, str] | None:
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


def from_card(checkpoint: Mapping[str, Any], path: str | Path, **overrides: Any) -> MobileViTClassifier:
    """Build the model that a checkpoint of ours names; its weights are still to be loaded.

    Args:
        checkpoint: what :func:`~kornia_mvit.weights.files.read_checkpoint` gives.
        path: where it came from, for errors.
        overrides: arguments of :class:`~kornia_mvit.MobileViTClassifier` in place of the card's.

    Raises:
        CheckpointError: if the checkpoint does not say what it holds, or holds a network of its own.
    """
    card = read_card(checkpoint, path)
    if card["model"] is None:
        raise CheckpointError(
            f"{path} holds a network of its own, which only its code can build; "
            "use ClassificationTask.load_from_checkpoint(path, network=...)"
        )
    arguments = {**card["model"], "patch_size": tuple(card["model"].get("patch_size", (2, 2))), **overrides}
    if isinstance(arguments["mode"], dict):
        stages = tuple(Stage(**stage) for stage in arguments["mode"]["stages"])
        arguments["mode"] = MobileViTConfig(**{**arguments["mode"], "stages": stages})
    model = MobileViTClassifier(**arguments)
    model.preprocess = None if card["preprocess"] is None else Preprocess.from_dict(card["preprocess"])
    model.class_names = None if card["class_names"] is None else tuple(card["class_names"])
    return model
