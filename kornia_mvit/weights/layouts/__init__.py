"""Names of the weights in the checkpoints of Apple, timm, transformers, Kornia and ourselves, one file a code base.

Each file has ordered rules that turn our names into theirs, and what the heads are called. The widths of the sizes
differ, their names do not, so one map serves all of a version, and it is read in both directions. Where a layout holds
the same numbers otherwise (transformers keeps query, key and value of the first version apart, Kornia's class
concatenates the other way round, the second version's linear layers are 1x1 convolutions elsewhere), :func:`to_native`
and :func:`from_native` see to it.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

from kornia_mvit.weights.layouts.apple import APPLE, APPLE_V2
from kornia_mvit.weights.layouts.kornia import KORNIA
from kornia_mvit.weights.layouts.native import NATIVE
from kornia_mvit.weights.layouts.rules import Layout
from kornia_mvit.weights.layouts.timm import TIMM, TIMM_V2
from kornia_mvit.weights.layouts.transformers import TRANSFORMERS, TRANSFORMERS_V2

__all__ = ["LAYOUTS", "Layout", "find_layout", "find_prefix", "from_native", "module_map", "to_native", "versions_of"]

Triple = tuple[str, str, str]

LAYOUTS = {"native": NATIVE, "apple": APPLE, "timm": TIMM, "transformers": TRANSFORMERS, "kornia": KORNIA}
_SECOND = {"native": NATIVE, "apple": APPLE_V2, "timm": TIMM_V2, "transformers": TRANSFORMERS_V2}
_VERSIONS = {1: LAYOUTS, 2: _SECOND}  # of MobileViT

# Places of the inverted residuals and of the blocks, as (stage, place in it), and the blocks' depths.
_RESIDUALS = {
    1: ((0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (4, 0)),
    2: ((0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0)),
}
_BLOCKS = {(2, 1): 2, (3, 1): 4, (4, 1): 3}
# The convolutions around the stages and in a block, and what holds the block's layers.
_PARTS = {
    1: (("stem", "head_conv"), ("local", "proj_in", "proj_out", "fusion"), "transformer"),
    2: (("stem",), ("local", "proj_in", "proj_out"), "layers"),
}
_RESIDUAL = ("expand", "depthwise", "project")
_LAYER = ("norm1", "attn.qkv", "attn.proj", "norm2", "fc1", "fc2")
_LINEAR = re.compile(r"\.(attn\.qkv|attn\.proj|fc1|fc2)\.weight$")
_FUSION = tuple(f"stages.{i}.{j}.fusion.conv.weight" for i, j in _BLOCKS)


def versions_of(layout: str) -> list[int]:
    """Return the versions of MobileViT that a layout has names for.

    Raises:
        ValueError: for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; available: {', '.join(map(repr, LAYOUTS))}")
    return [version for version, layouts in _VERSIONS.items() if layout in layouts]


def find_layout(layout: str, version: int = 1) -> Layout:
    """Return the names of a code base for a version of MobileViT.

    Raises:
        ValueError: for an unknown layout, and for one that has no names for the version.
    """
    if version not in versions_of(layout):
        raise ValueError(
            f"layout {layout!r} has no names for a MobileViTV2; available: {', '.join(map(repr, _SECOND))}"
        )
    return _VERSIONS[version][layout]


def _list_modules(version: int) -> list[str]:
    """Return our names of the backbone's modules that have weights."""
    ends, convs, layers = _PARTS[version]
    blocks = [*ends, *(f"stages.{i}.{j}.{name}" for i, j in _RESIDUALS[version] for name in _RESIDUAL)]
    blocks += [f"stages.{i}.{j}.{name}" for i, j in _BLOCKS for name in convs]
    names = [f"{block}.{part}" for block in blocks for part in ("conv", "norm")]
    for (i, j), depth in _BLOCKS.items():
        names += [f"stages.{i}.{j}.{layers}.{k}.{part}" for k in range(depth) for part in _LAYER]
        names.append(f"stages.{i}.{j}.norm")
    # Kornia's variant of the first version has this normalisation
    return [name for name in names if version == 1 or not name.endswith("proj_in.norm")]


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str | Triple:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    if not name.endswith("}"):
        return name
    start, _, parts = name.partition("{")
    q, k, v = parts.removesuffix("}").split(",")
    return start + q, start + k, start + v


@cache
def module_map(layout: str, version: int = 1) -> dict[str, str | Triple]:
    """Map our names of the backbone's modules to a layout's; to three where it keeps query, key and value apart.

    Raises:
        ValueError: for an unknown layout, and for one that has no names for the version of MobileViT.

    Example:
        >>> module_map('timm')['stages.2.1.fusion.conv'], module_map('timm', 2)['stages.2.1.layers.0.attn.qkv']
        ('stages.2.1.conv_fusion.conv', 'stages.2.1.transformer.0.attn.qkv_proj')
    """
    rules = find_layout(layout, version).rules
    return {name: _rename(name, rules) for name in _list_modules(version)}


def to_native(state: Mapping[str, Tensor], layout: str, version: int = 1) -> tuple[dict[str, Tensor], list[str]]:
    """Return a backbone's weights our names.

    Args:
        state: names without prefix, and weights.
        layout: what the names follow.
        version: of MobileViT.

    Returns:
        The weights under our names, and the names that the layout does not know.
    """
    if layout == "native":
        return dict(state), []
    ours: dict[str, str] = {}
    thirds: dict[str, tuple[str, int]] = {}
    for native, name in module_map(layout, version).items():
        if isinstance(name, str):
            ours[name] = native
        else:
            thirds |= {part: (native, n) for n, part in enumerate(name)}
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    origin: dict[str, list[str]] = {}
    unknown = []
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if module in ours:
            out[f"{ours[module]}.{leaf}"] = value
        elif module in thirds:
            native, n = thirds[module]
            parts.setdefault(f"{native}.{leaf}", {})[n] = value
            origin.setdefault(f"{native}.{leaf}", []).append(name)
        else:
            unknown.append(name)
    for name, found in parts.items():
        if len(found) == 3:
            out[name] = torch.cat([found[n] for n in range(3)])
        else:
            unknown += origin[name]
    if find_layout(layout, version).transformed_first:
        out |= _swapped(out)
    return _linear(out) if version == 2 else out, unknown


def from_native(state: Mapping[str, Tensor], layout: str, version: int = 1) -> dict[str, Tensor]:
    """Return a backbone's weights under our names those of another layout; undoes :func:`to_native`.

    Raises:
        KeyError: for a name that is not one of ours.
        ValueError: for a layout that has no names for the version of MobileViT.
    """
    names = module_map(layout, version)
    if layout == "native":
        return dict(state)
    if find_layout(layout, version).transformed_first:
        state = {**state, **_swapped(state)}
    if version == 2:
        state = {name: value[..., None, None] if _LINEAR.search(name) else value for name, value in state.items()}
    out = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        theirs = names[module]
        if isinstance(theirs, str):
            out[f"{theirs}.{leaf}"] = value
        else:
            out |= {f"{part}.{leaf}": third.clone() for part, third in zip(theirs, value.chunk(3), strict=True)}
    return out


def _linear(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make 1x1 convolutions of what are linear layers here into these."""
    return {
        name: value.flatten(1) if _LINEAR.search(name) and value.ndim == 4 else value for name, value in state.items()
    }


def _swapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Exchange the halves of the input channels of the fusion convolutions."""
    return {name: torch.cat(state[name].chunk(2, dim=1)[::-1], dim=1) for name in _FUSION if name in state}


@cache
def _anchors(layout: str, version: int) -> tuple[frozenset[str], dict[str, int]]:
    """Return the modules of a layout, and the names that a prefix is looked for before, in the order of preference."""
    modules: set[str] = set()
    for module in module_map(layout, version).values():
        modules |= {module} if isinstance(module, str) else set(module)
    ordered = dict.fromkeys(
        (str(module_map(layout, version)["stem.conv"]), *sorted(modules, key=lambda m: (-len(m), m)))
    )
    return frozenset(modules), {f"{module}.weight": rank for rank, module in enumerate(ordered)}


def find_prefix(names: Iterable[str], layout: str, version: int = 1) -> tuple[str, int]:
    """Find what stands before the backbone's names of a layout, and how many of the names are the layout's then."""
    names = list(names)
    modules, ranks = _anchors(layout, version)
    endings, longest = tuple(ranks), max(map(len, ranks))
    # A file may hold several backbones, and the stem of one may be misspelt: every name is asked, the stem first.
    found = sorted(
        (ranks[name[at:]], number, name[:at])
        for number, name in enumerate(names)
        if name.endswith(endings)
        for at in range(max(0, len(name) - longest), len(name))
        if name[at:] in ranks
    )
    known = {
        prefix: sum(n.startswith(prefix) and n[len(prefix) :].rpartition(".")[0] in modules for n in names)
        for prefix in dict.fromkeys(prefix for _, _, prefix in found)
    }
    return max(known.items(), key=lambda pair: pair[1], default=("", 0))
