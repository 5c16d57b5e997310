"""Names of what stands on the backbone, in the checkpoints of each layout and task, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["HEADS", "Head", "find_head", "head_from_native", "head_name"]


@dataclass(frozen=True)
class Head:
    """What stands on the backbone in the files of one layout and task.

    Args:
        prefix: what stands before the backbone's names.
        modules: what our modules beside the backbone are called. Of several names all are read, the first is written.
    """

    prefix: str
    modules: Mapping[str, tuple[str, ...]]


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


HEADS: dict[str, dict[str, Head]] = {
    # Ours are told by their first part alone, so that a pyramid may have any number of branches.
    "native": {
        "classification": Head("backbone.", {"classifier": ("classifier",)}),
        "segmentation": Head("backbone.", {"head": ("head",), "aux_head": ("aux_head",)}),
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
    "kornia": {},
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


def head_from_native(state: Mapping[str, Tensor], layout: str, task: str) -> dict[str, Tensor]:
    """Give the weights beside the backbone the names of another layout; undoes :func:`head_name`.

    Raises:
        KeyError: for a name that the layout has none for.
    """
    if layout == "native":
        return dict(state)
    modules = HEADS[layout][task].modules
    out = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        out[f"{modules[module][0]}.{leaf}"] = value
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
