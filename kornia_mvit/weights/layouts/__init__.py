"""Names of the weights in the checkpoints of Apple, timm, transformers, Kornia and ourselves, one file a code base.

Each file has ordered rules that turn our names into theirs, and what the heads are called. The widths of the three
sizes differ, their names do not, so one map serves all, and it is read in both directions. Where a layout holds the
same numbers otherwise (transformers keeps query, key and value apart, Kornia's class concatenates the other way
round), :func:`to_native` and :func:`from_native` see to it.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

from kornia_mvit.weights.layouts.apple import APPLE
from kornia_mvit.weights.layouts.kornia import KORNIA
from kornia_mvit.weights.layouts.native import NATIVE
from kornia_mvit.weights.layouts.rules import Layout
from kornia_mvit.weights.layouts.timm import TIMM
from kornia_mvit.weights.layouts.transformers import TRANSFORMERS

__all__ = ["LAYOUTS", "Layout", "from_native", "module_map", "to_native"]

Triple = tuple[str, str, str]

LAYOUTS = {"native": NATIVE, "apple": APPLE, "timm": TIMM, "transformers": TRANSFORMERS, "kornia": KORNIA}

# Places of the inverted residuals and of the MobileViT blocks, as (stage, place in it), and the blocks' depths.
_RESIDUALS = ((0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (4, 0))
_BLOCKS = {(2, 1): 2, (3, 1): 4, (4, 1): 3}
_LAYER = ("norm1", "attn.qkv", "attn.proj", "norm2", "fc1", "fc2")
_FUSION = tuple(f"stages.{i}.{j}.fusion.conv.weight" for i, j in _BLOCKS)


def _list_modules() -> list[str]:
    """Return our names of the backbone's modules that have weights."""
    blocks = ["stem", "head_conv"]
    blocks += [f"stages.{i}.{j}.{name}" for i, j in _RESIDUALS for name in ("expand", "depthwise", "project")]
    blocks += [f"stages.{i}.{j}.{name}" for i, j in _BLOCKS for name in ("local", "proj_in", "proj_out", "fusion")]
    names = [f"{block}.{part}" for block in blocks for part in ("conv", "norm")]
    for (i, j), depth in _BLOCKS.items():
        names += [f"stages.{i}.{j}.transformer.{k}.{part}" for k in range(depth) for part in _LAYER]
        names.append(f"stages.{i}.{j}.norm")
    return names


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str | Triple:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    if not name.endswith("}"):
        return name
    start, _, parts = name.partition("{")
    q, k, v = parts.removesuffix("}").split(",")
    return start + q, start + k, start + v


@cache
def module_map(layout: str) -> dict[str, str | Triple]:
    """Map our names of the backbone's modules to a layout's; to three where it keeps query, key and value apart.

    Raises:
        ValueError: for an unknown layout.

    Example:
        >>> module_map('timm')['stages.2.1.fusion.conv']
        'stages.2.1.conv_fusion.conv'
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; available: {', '.join(map(repr, LAYOUTS))}")
    return {name: _rename(name, LAYOUTS[layout].rules) for name in _list_modules()}


def to_native(state: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return a backbone's weights our names.

    Args:
        state: names without prefix, and weights.
        layout: what the names follow.

    Returns:
        The weights under our names, and the names that the layout does not know.
    """
    if layout == "native":
        return dict(state), []
    ours: dict[str, str] = {}
    thirds: dict[str, tuple[str, int]] = {}
    for native, name in module_map(layout).items():
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
    if LAYOUTS[layout].transformed_first:
        out |= _swapped(out)
    return out, unknown


def from_native(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Return a backbone's weights under our names those of another layout; undoes :func:`to_native`.

    Raises:
        KeyError: for a name that is not one of ours.
    """
    if layout == "native":
        return dict(state)
    names = module_map(layout)
    if LAYOUTS[layout].transformed_first:
        state = {**state, **_swapped(state)}
    out = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        theirs = names[module]
        if isinstance(theirs, str):
            out[f"{theirs}.{leaf}"] = value
        else:
            out |= {f"{part}.{leaf}": third.clone() for part, third in zip(theirs, value.chunk(3), strict=True)}
    return out


def _swapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Exchange the halves of the input channels of the fusion convolutions."""
    return {name: torch.cat(state[name].chunk(2, dim=1)[::-1], dim=1) for name in _FUSION if name in state}


@cache
def _anchors(layout: str) -> tuple[frozenset[str], dict[str, int]]:
    """Return the modules of a layout, and the names that a prefix is looked for before, in the order of preference."""
    modules: set[str] = set()
    for module in module_map(layout).values():
        modules |= {module} if isinstance(module, str) else set(module)
    ordered = dict.fromkeys((str(module_map(layout)["stem.conv"]), *sorted(modules, key=lambda m: (-len(m), m))))
    return frozenset(modules), {f"{module}.weight": rank for rank, module in enumerate(ordered)}


def find_prefix(names: Iterable[str], layout: str) -> tuple[str, int]:
    """Find what stands before the backbone's names of a layout, and how many of the names are the layout's then."""
    names = list(names)
    modules, ranks = _anchors(layout)
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
