"""Names of what stands on the backbone, in the checkpoints of each layout and task, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kornia_mvit.weights.files import CheckpointError

__all__ = ["HEADS", "Head", "find_head", "head_from_native", "head_name", "head_to_native", "their_module"]


@dataclass(frozen=True)
class Head:
    """What stands on the backbone in the files of one layout and task.

    Args:
        prefix: what stands before the backbone's names.
        modules: what our modules beside the backbone are called. Of several names all are read, the first is written.
        shapes: of modules that are two of ours in one, the anchors of a place: for each anchor four rows of ours that
            is called ``box``, then those of ``classifier``. In ``modules`` they have the name ``both``.
        written: whether files of ours have it too.
    """

    prefix: str
    modules: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, int] = field(default_factory=dict)
    written: bool = True


def _deeplab(
    prefix: str, aspp: str, pool: str, pattern: tuple[str, str], classifier: tuple[str, ...], *aux: tuple[str, str]
) -> Head:
    """Name the parts of a DeepLabV3, whose pyramid Apple and transformers number alike.

    Args:
        prefix: see :class:`Head`.
        aspp: the pyramid.
        pool: what its pooling branch, the last, has between its number and its convolution.
        pattern: a convolution and its normalisation.
        classifier: the last layer's names.
        aux: names of the auxiliary head's convolution and last layer.
    """
    branches = {
        "point": "convs.0",
        **{f"atrous.{n}": f"convs.{n + 1}" for n in range(3)},
        "pool": f"convs.4.{pool}",
        "project": "project",
    }
    modules: dict[str, tuple[str, ...]] = {
        f"head.aspp.{ours}.{part}": (f"{aspp}.{theirs}.{name}",)
        for ours, theirs in branches.items()
        for part, name in zip(("conv", "norm"), pattern, strict=True)
    }
    modules["head.classifier"] = classifier
    if aux:
        for part, name in zip(("conv", "norm"), pattern, strict=True):
            modules[f"aux_head.project.{part}"] = tuple(f"{project}.{name}" for project, _ in aux)
        modules["aux_head.classifier"] = tuple(last for _, last in aux)
    return Head(prefix, modules)


def _ssd(prefix: str) -> Head:
    """Name the parts of Apple's SSDLite."""
    names: dict[str, str] = {}

    def block(ours: str, theirs: str) -> None:
        names.update({f"{ours}.conv": f"{theirs}.block.conv", f"{ours}.norm": f"{theirs}.block.norm"})

    for n, stride in enumerate((64, 128, 256)):
        block(f"extras.{n}.depthwise", f"extra_layers.os_{stride}.dw_conv")
        block(f"extras.{n}.pointwise", f"extra_layers.os_{stride}.pw_conv")
    block("extras.3.mix", "extra_layers.os_-1.1")
    for n in range(6):
        last = f"ssd_heads.{n}.loc_cls_layer"
        block(f"heads.{n}.project", f"ssd_heads.{n}.proj_layer")
        if n < 5:
            block(f"heads.{n}.depthwise", f"{last}.dw_conv")
        names[f"heads.{n}.both"] = f"{last}.block.conv" if n == 5 else f"{last}.pw_conv.block.conv"
    shapes = {f"heads.{n}": 4 if n == 5 else 6 for n in range(6)}
    return Head(prefix, {ours: (theirs,) for ours, theirs in names.items()}, shapes)


HEADS: dict[str, dict[str, Head]] = {
    # Ours are told by their first part alone, so that a pyramid may have any number of branches.
    "native": {
        "classification": Head("backbone.", {"classifier": ("classifier",)}),
        "segmentation": Head("backbone.", {"head": ("head",), "aux_head": ("aux_head",)}),
        "detection": Head("backbone.", {"extras": ("extras",), "heads": ("heads",)}),
    },
    # The published files are of Apple's first release, whose names come first; its later code has the others.
    "apple": {
        "classification": Head("", {"classifier": ("classifier.fc",)}),
        "segmentation": _deeplab(
            "encoder.",
            "seg_head.aspp.aspp_layer",
            "aspp_pool.conv_1x1",
            ("block.conv", "block.norm"),
            ("seg_head.classifier.classifier.block.conv", "seg_head.classifier.block.conv"),
            ("seg_head.aux_head.aux_projection", "seg_head.aux_head.aux_classifier.block.conv"),
            ("seg_head.aux_head.0", "seg_head.aux_head.2.block.conv"),
        ),
        "detection": _ssd("encoder."),
    },
    "timm": {"classification": Head("", {"classifier": ("head.fc",)})},
    "transformers": {
        "classification": Head("mobilevit.", {"classifier": ("classifier",)}),
        "segmentation": _deeplab(
            "mobilevit.",
            "segmentation_head.aspp",
            "conv_1x1",
            ("convolution", "normalization"),
            ("segmentation_head.classifier.convolution",),
        ),
    },
    # Kornia's class has none; the code that it came from has a linear layer without bias.
    "kornia": {"classification": Head("", {"classifier": ("fc",)}, written=False)},
}


def head_name(name: str, layout: str, task: str) -> str | None:
    """Give our name of a weight beside the backbone, or None for one that is not of the task's head.

    Example:
        >>> head_name('segmentation_head.aspp.convs.4.conv_1x1.normalization.bias', 'transformers', 'segmentation')
        'head.aspp.pool.norm.bias'
    """
    modules = HEADS[layout][task].modules
    if layout == "native":
        return name if name.partition(".")[0] in modules else None
    module, _, leaf = name.rpartition(".")
    return next((f"{ours}.{leaf}" for ours, theirs in modules.items() if module in theirs), None)


def their_module(module: str, layout: str, task: str) -> str:
    """Give what a layout calls one of our modules beside the backbone; our name for one that it has not.

    Example:
        >>> their_module('heads.1.box', 'apple', 'detection')
        'ssd_heads.1.loc_cls_layer.pw_conv.block.conv'
    """
    head = HEADS[layout][task]
    owner = module.rpartition(".")[0]
    return head.modules.get(f"{owner}.both" if owner in head.shapes else module, (module,))[0]


def head_to_native(state: Mapping[str, Tensor], layout: str, task: str) -> dict[str, Tensor]:
    """Take apart what is one in another layout and two with us; for weights under the names of :func:`head_name`.

    Raises:
        CheckpointError: for weights of another number of anchors than the layout has.
    """
    out = {}
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".both.")
        if not owner:
            out[name] = value
            continue
        count = HEADS[layout][task].shapes[owner]
        if not value.ndim or value.shape[0] % count or value.shape[0] // count <= 4:
            theirs = f"{their_module(f'{owner}.both', layout, task)}.{leaf}"
            raise CheckpointError(f"{theirs} {tuple(value.shape)} is not four rows and one a class for {count} anchors")
        rows = value.reshape(count, -1, *value.shape[1:])
        out[f"{owner}.box.{leaf}"] = rows[:, :4].flatten(0, 1)
        out[f"{owner}.classifier.{leaf}"] = rows[:, 4:].flatten(0, 1)
    return out


def head_from_native(state: Mapping[str, Tensor], layout: str, task: str) -> dict[str, Tensor]:
    """Give the weights beside the backbone another layout's names; undoes :func:`head_name` and :func:`head_to_native`.

    Raises:
        KeyError: for a name that the layout has none for, or of another number of anchors than it has.
    """
    if layout == "native":
        return dict(state)
    modules = HEADS[layout][task].modules
    out = {}
    for name, value in _joined(state, HEADS[layout][task].shapes).items():
        module, _, leaf = name.rpartition(".")
        out[f"{modules[module][0]}.{leaf}"] = value
    return out


def _joined(state: Mapping[str, Tensor], shapes: Mapping[str, int]) -> dict[str, Tensor]:
    """Put two of ours together where they are one; undoes the taking apart of :func:`head_to_native`."""
    out = dict(state)
    for owner, count in shapes.items():
        for leaf in ("weight", "bias"):
            box, classifier = (out.pop(f"{owner}.{name}.{leaf}", None) for name in ("box", "classifier"))
            if box is None or classifier is None:
                continue
            if box.shape[0] != 4 * count:
                raise KeyError(f"{owner}.box")
            rows = [value.reshape(count, -1, *value.shape[1:]) for value in (box, classifier)]
            out[f"{owner}.both.{leaf}"] = torch.cat(rows, 1).flatten(0, 1)
    return out


def find_head(names: Iterable[str], layout: str, prefix: str) -> tuple[str, str | None]:
    """Find what a file has on its backbone.

    Args:
        names: of all its weights.
        layout: what they follow.
        prefix: what stands before the backbone's.

    Returns:
        What stands before all names of the model, and the task, None for a bare backbone.
    """
    names = list(names)
    best: tuple[int, str, str | None] = (-1, prefix, None)
    for task, head in HEADS[layout].items():
        if prefix.endswith(head.prefix):
            outer = prefix.removesuffix(head.prefix)
            inner = [name.removeprefix(outer) for name in names if name.startswith(outer)]
            count = sum(head_name(name, layout, task) is not None for name in inner)
            best = max(best, (count, outer, task if count else None), key=lambda found: found[0])
    return best[1:]
