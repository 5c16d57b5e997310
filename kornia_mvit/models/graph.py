"""The traced forward pass, which engines and exporters share: one graph for all image sizes.

A traced size may be symbolic. To look at it costs a graph for each answer, and PyTorch itself traces sizes of 1 apart
from all others. So nothing here looks at a symbolic size, and no dimension is 1 for one image and more for another.

Shapes are written as in :mod:`kornia_mvit.models.mobilevit`.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.models.tokens import fold, unfold

__all__ = [
    "crop_to",
    "fold_dynamic",
    "is_static",
    "is_traced",
    "pad_to",
    "resize",
    "round_up",
    "to_map",
    "to_tokens",
    "unfold_dynamic",
]


def is_traced() -> bool:
    """Whether the code runs to be recorded: by torch.compile, torch.export, or torch.jit.trace."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]  # torch.jit has no types


def is_static(*sizes: int) -> bool:
    """Whether all sizes are numbers, and none of them is a symbol of the graph being traced."""
    if not torch.compiler.is_compiling():
        return True
    # imported here because it takes half a second
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in sizes)


def round_up(size: tuple[int, int], multiple: tuple[int, int]) -> tuple[int, int]:
    """Return the least multiples of two numbers that are not smaller than a height and width.

    Example:
        >>> round_up((7, 6), (2, 2))
        (8, 6)
    """
    # without a division of negative numbers, which ONNX rounds towards zero
    (h, w), (mh, mw) = size, multiple
    return (h + mh - 1) // mh * mh, (w + mw - 1) // mw * mw


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Resize a map bilinearly; free where it has that size already, exact where a symbolic one turns out to be it."""
    h, w = x.shape[-2:]
    if is_static(h, w, *size) and (h, w) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of images until both sides are multiples of a number of pixels.

    Example:
        >>> pad_to(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 2)
        tensor([[[[1., 2., 3., 3.],
                  [1., 2., 3., 3.]]]])
    """
    h, w = x.shape[-2:]
    if is_static(h, w) and h % multiple == 0 and w % multiple == 0:
        return x
    # by index, which every export format has
    for dim, side in ((2, h), (3, w)):
        places = torch.arange((side + multiple - 1) // multiple * multiple, device=x.device)
        x = x.index_select(dim, places.clamp(max=side - 1))
    return x


def crop_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the first rows and columns of a map."""
    if is_static(*x.shape[-2:], *size):
        return x[..., : size[0], : size[1]]
    # by index, since where a slice ends may not depend on a traced size
    return x.index_select(2, torch.arange(size[0], device=x.device)).index_select(
        3, torch.arange(size[1], device=x.device)
    )


def to_tokens(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Unfold a map as :func:`~.tokens.unfold` does, or as traced code can where sizes are symbols."""
    return unfold(x, patch_size) if is_static(*x.shape[-2:]) else unfold_dynamic(x, patch_size)


def to_map(tokens: Tensor, patch_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Fold what :func:`to_tokens` returned."""
    return fold(tokens, patch_size, size) if is_static(*size) else fold_dynamic(tokens, patch_size, size)


def unfold_dynamic(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Unfold a map that has one or several patches in a row or a column: (B, C, H, W) -> (B, P, N, C).

    A single row of patches comes out twice, as does a single column. To attend to every token twice is to attend to
    it once, so that the transformer's results are those of :func:`~kornia_mvit.models.tokens.unfold`.

    Example:
        >>> unfold_dynamic(torch.arange(8.0).view(1, 1, 2, 4), (2, 2))[0, :, :, 0]
        tensor([[0., 2., 0., 2.],
                [1., 3., 1., 3.],
                [4., 6., 4., 6.],
                [5., 7., 5., 7.]])
    """
    (b, c, h, w), (ph, pw) = x.shape, patch_size
    row, column = _places(h, ph, x.device), _places(w, pw, x.device)
    index = row[:, None, :, None] * w + column[:, None, :]  # of pixels, by place in the patch and patch
    tokens = x.permute(0, 2, 3, 1).reshape(b, h * w, c).index_select(1, index.flatten())
    return tokens.view(b, ph * pw, row.shape[1] * column.shape[1], c)


def fold_dynamic(tokens: Tensor, patch_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put the tokens of :func:`unfold_dynamic` back in their places: (B, P, N, C) -> (B, C, H, W).

    Example:
        >>> x = torch.rand(2, 3, 2, 3)
        >>> torch.equal(fold_dynamic(unfold_dynamic(x, (2, 3)), (2, 3), (2, 3)), x)
        True
    """
    (b, p, n, c), (ph, pw), (h, w) = tokens.shape, patch_size, size
    row, column = torch.arange(h, device=tokens.device)[:, None], torch.arange(w, device=tokens.device)
    place, patch = row % ph * pw + column % pw, row // ph * _shown(w // pw) + column // pw
    x = tokens.reshape(b, p * n, c).index_select(1, (place * n + patch).flatten())
    return x.view(b, h, w, c).permute(0, 3, 1, 2)


def _shown(count: int) -> int:
    """How many of the patches in a row or a column come out: never one."""
    return cast(int, torch.sym_max(count, 2))


def _places(side: int, patch: int, device: torch.device) -> Tensor:
    """The pixels of a map's side, by their place in the patch and by the patch: (patch, number of patches shown)."""
    count = side // patch
    first = torch.arange(_shown(count), device=device).clamp(max=count - 1) * patch
    return torch.arange(patch, device=device)[:, None] + first
