"""What a code base calls the parts of the network: ordered rules for the backbone, and the names of the heads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Head", "Layout", "name_deeplab"]


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


@dataclass(frozen=True)
class Layout:
    """The names of one code base.

    Args:
        rules: regular expressions and their replacements, which turn our name of a module of the backbone into
            theirs, one after the other. ``{query,key,value}`` in the result is three modules for one of ours.
        heads: what stands on the backbone, by task.
        transformed_first: whether the fusion takes (transformed, input) instead of (input, transformed).
    """

    rules: tuple[tuple[str, str], ...]
    heads: Mapping[str, Head]
    transformed_first: bool = False


def name_deeplab(
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
