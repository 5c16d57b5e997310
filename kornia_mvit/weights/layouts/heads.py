"""What stands on the backbone in the checkpoints of each layout and task, brought to our names and back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kornia_mvit.weights.files import CheckpointError
from kornia_mvit.weights.layouts import LAYOUTS, find_layout
from kornia_mvit.weights.layouts.rules import Head

__all__ = ["HEADS", "Head", "find_head", "head_from_native", "head_name", "head_to_native", "their_module"]


HEADS = {name: layout.heads for name, layout in LAYOUTS.items()}


def head_name(name: str, layout: str, task: str, version: int = 1) -> str | None:
    """Return our name of a weight beside the backbone, or None for one that is not of the task's head.

    Example:
        >>> head_name('segmentation_head.aspp.convs.4.conv_1x1.normalization.bias', 'transformers', 'segmentation')
        'head.aspp.pool.norm.bias'
    """
    modules = find_layout(layout, version).heads[task].modules
    if layout == "native":
        return name if name.partition(".")[0] in modules else None
    module, _, leaf = name.rpartition(".")
    return next((f"{ours}.{leaf}" for ours, theirs in modules.items() if module in theirs), None)


def their_module(module: str, layout: str, task: str, version: int = 1) -> str:
    """Return what a layout calls one of our modules beside the backbone; our name for one that it has not.

    Example:
        >>> their_module('heads.1.box', 'apple', 'detection')
        'ssd_heads.1.loc_cls_layer.pw_conv.block.conv'
    """
    head = find_layout(layout, version).heads[task]
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


def head_from_native(state: Mapping[str, Tensor], layout: str, task: str, version: int = 1) -> dict[str, Tensor]:
    """Return the weights beside the backbone under another layout's names, as :func:`head_to_native` takes them.

    Raises:
        KeyError: for a name that the layout has none for, or of another number of anchors than it has.
    """
    if layout == "native":
        return dict(state)
    head = find_layout(layout, version).heads[task]
    out = {}
    for name, value in _joined(state, head.shapes).items():
        module, _, leaf = name.rpartition(".")
        out[f"{head.modules[module][0]}.{leaf}"] = value
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


def find_head(names: Iterable[str], layout: str, prefix: str, version: int = 1) -> tuple[str, str | None]:
    """Find what a file has on its backbone.

    Args:
        names: of all its weights.
        layout: what they follow.
        prefix: what stands before the backbone's.
        version: of MobileViT.

    Returns:
        What stands before all names of the model, and the task, None for a bare backbone.
    """
    names = list(names)
    best: tuple[int, str, str | None] = (-1, prefix, None)
    for task, head in find_layout(layout, version).heads.items():
        if prefix.endswith(head.prefix):
            outer = prefix.removesuffix(head.prefix)
            inner = [name.removeprefix(outer) for name in names if name.startswith(outer)]
            count = sum(head_name(name, layout, task, version) is not None for name in inner)
            best = max(best, (count, outer, task if count else None), key=lambda found: found[0])
    return best[1:]
