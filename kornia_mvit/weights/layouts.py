"""Names of the backbone's weights in the checkpoints of Apple, timm, transformers, Kornia and ourselves, as data.

A layout says what each part of the backbone is called; for what stands on it see :mod:`kornia_mvit.weights.heads`.
The widths of the three sizes differ, their names do not, so one map serves all, and it is read in both directions.
Where a layout holds the same numbers otherwise (transformers keeps query, key and value apart, Kornia's class
concatenates the other way round), :func:`to_native` and :func:`from_native` see to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "Layout", "from_native", "module_map", "to_native"]

Pair = tuple[str, str]  # a convolution and its normalisation
Triple = tuple[str, str, str]

# Places of the inverted residuals and of the MobileViT blocks, as (stage, place in it), and the blocks' depths.
_RESIDUALS = ((0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (4, 0))
_BLOCKS = ((2, 1), (3, 1), (4, 1))
_DEPTHS = (2, 4, 3)


@dataclass(frozen=True)
class Layout:
    """What the parts of the network are called. Parts that a variant does not have do not occur in its files.

    Args:
        stem: the first convolution.
        residuals: the seven inverted residuals.
        residual: within one: expand, filter, project.
        blocks: the three MobileViT blocks.
        block: within one: the convolutions local, into the transformer, out of it, fusion.
        layer: within a block: transformer layer number ``{k}``.
        parts: within a layer: first norm, query-key-value together or apart, projection, second norm, both linears.
        closing_norm: within a block: the LayerNorm after the last of ``{depth}`` layers.
        head_conv: the last convolution.
        transformed_first: whether the fusion takes (transformed, input) instead of (input, transformed).
    """

    stem: Pair
    residuals: tuple[str, ...]
    residual: tuple[Pair, ...]
    blocks: tuple[str, ...]
    block: tuple[Pair, ...]
    layer: str
    parts: tuple[str | Triple, ...]
    closing_norm: str
    head_conv: Pair
    transformed_first: bool = False


def _pairs(pattern: Pair, *names: str) -> tuple[Pair, ...]:
    conv, norm = pattern
    return tuple((f"{name}.{conv}", f"{name}.{norm}") for name in names)


_OURS, _APPLE, _TIMM, _HF = (
    ("conv", "norm"),
    ("block.conv", "block.norm"),
    ("conv", "bn"),
    ("convolution", "normalization"),
)

LAYOUTS = {
    "native": Layout(
        stem=_pairs(_OURS, "stem")[0],
        residuals=tuple(f"stages.{i}.{j}" for i, j in _RESIDUALS),
        residual=_pairs(_OURS, "expand", "depthwise", "project"),
        blocks=tuple(f"stages.{i}.{j}" for i, j in _BLOCKS),
        block=_pairs(_OURS, "local", "proj_in", "proj_out", "fusion"),
        layer="transformer.{k}",
        parts=("norm1", "attn.qkv", "attn.proj", "norm2", "fc1", "fc2"),
        closing_norm="norm",
        head_conv=_pairs(_OURS, "head_conv")[0],
    ),
    "apple": Layout(
        stem=_pairs(_APPLE, "conv_1")[0],
        residuals=tuple(f"layer_{i + 1}.{j}.block" for i, j in _RESIDUALS),
        residual=_pairs(_APPLE, "exp_1x1", "conv_3x3", "red_1x1"),
        blocks=tuple(f"layer_{i + 1}.{j}" for i, j in _BLOCKS),
        block=_pairs(_APPLE, "local_rep.conv_3x3", "local_rep.conv_1x1", "conv_proj", "fusion"),
        layer="global_rep.{k}",
        parts=(
            "pre_norm_mha.0",
            "pre_norm_mha.1.qkv_proj",
            "pre_norm_mha.1.out_proj",
            "pre_norm_ffn.0",
            "pre_norm_ffn.1",
            "pre_norm_ffn.4",
        ),
        closing_norm="global_rep.{depth}",
        head_conv=_pairs(_APPLE, "conv_1x1_exp")[0],
    ),
    "timm": Layout(
        stem=_pairs(_TIMM, "stem")[0],
        residuals=tuple(f"stages.{i}.{j}" for i, j in _RESIDUALS),
        residual=_pairs(_TIMM, "conv1_1x1", "conv2_kxk", "conv3_1x1"),
        blocks=tuple(f"stages.{i}.{j}" for i, j in _BLOCKS),
        block=(
            *_pairs(_TIMM, "conv_kxk"),
            ("conv_1x1", "conv_1x1.bn"),
            *_pairs(_TIMM, "conv_proj", "conv_fusion"),
        ),
        layer="transformer.{k}",
        parts=("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
        closing_norm="norm",
        head_conv=_pairs(_TIMM, "final_conv")[0],
    ),
    "transformers": Layout(
        stem=_pairs(_HF, "conv_stem")[0],
        residuals=tuple(
            f"encoder.layer.{i}.layer.{j}" if i < 2 else f"encoder.layer.{i}.downsampling_layer" for i, j in _RESIDUALS
        ),
        residual=_pairs(_HF, "expand_1x1", "conv_3x3", "reduce_1x1"),
        blocks=tuple(f"encoder.layer.{i}" for i, _ in _BLOCKS),
        block=_pairs(_HF, "conv_kxk", "conv_1x1", "conv_projection", "fusion"),
        layer="transformer.layer.{k}",
        parts=(
            "layernorm_before",
            ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
            "attention.output.dense",
            "layernorm_after",
            "intermediate.dense",
            "output.dense",
        ),
        closing_norm="layernorm",
        head_conv=_pairs(_HF, "conv_1x1_exp")[0],
    ),
    "kornia": Layout(
        stem=("conv1.0", "conv1.1"),
        residuals=tuple(f"mv2.{n}.conv" for n in range(len(_RESIDUALS))),
        residual=(("0", "1"), ("3", "4"), ("6", "7")),
        blocks=tuple(f"mvit.{n}" for n in range(len(_BLOCKS))),
        block=_pairs(("0", "1"), "conv1", "conv2", "conv3", "conv4"),
        layer="transformer.layers.{k}",
        parts=("0.norm", "0.fn.to_qkv", "0.fn.to_out.0", "1.norm", "1.fn.net.0", "1.fn.net.3"),
        closing_norm="norm",
        head_conv=("conv2.0", "conv2.1"),
        transformed_first=True,
    ),
}

_FUSION = tuple(f"{place}.fusion.conv.weight" for place in LAYOUTS["native"].blocks)


def _modules(layout: Layout) -> list[str | Triple]:
    """Name every module of the backbone that has weights, in the same order for every layout."""
    names: list[str | Triple] = [*layout.stem]
    for place in layout.residuals:
        names += [f"{place}.{name}" for pair in layout.residual for name in pair]
    for place, depth in zip(layout.blocks, _DEPTHS, strict=True):
        names += [f"{place}.{name}" for pair in layout.block for name in pair]
        for k in range(depth):
            layer = f"{place}.{layout.layer.format(k=k)}"
            for part in layout.parts:
                if isinstance(part, str):
                    names.append(f"{layer}.{part}")
                else:
                    q, key, v = part
                    names.append((f"{layer}.{q}", f"{layer}.{key}", f"{layer}.{v}"))
        names.append(f"{place}.{layout.closing_norm.format(depth=depth)}")
    return [*names, *layout.head_conv]


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
    return dict(zip(_modules(LAYOUTS["native"]), _modules(LAYOUTS[layout]), strict=True))  # type: ignore[arg-type]  # ours are all str


def to_native(state: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Give a backbone's weights our names.

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
    """Give a backbone's weights under our names those of another layout; undoes :func:`to_native`.

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
    ordered = dict.fromkeys((LAYOUTS[layout].stem[0], *sorted(modules, key=lambda m: (-len(m), m))))
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
