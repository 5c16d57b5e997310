"""What keeps torch.compile and torch.export to one graph for all image sizes.

A traced size may be symbolic. To look at it costs a graph for each answer, and PyTorch itself traces sizes of 1 apart
from all others. So nothing here looks at a symbolic size, and no dimension is 1 for one image and more for another.

Shapes are written as in :mod:`kornia_mvit.models.mobilevit`.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fold_dynamic", "is_static", "resize", "unfold_dynamic"]


def is_static(*sizes: int) -> bool:
    """Whether all sizes are numbers, and none of them is a symbol of the graph being traced."""
    if not torch.compiler.is_compiling():
        return True
    # imported here because it takes half a second
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all(has_static_value(size) for size in sizes)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map bilinearly; free where it has that size already, exact where a symbolic one turns out to be it."""
    h, w = x.shape[-2:]
    if is_static(h, w, *size) and (h, w) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def unfold_dynamic(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Unfold a map that has one patch or several: (B, C, H, W) -> (B, P, max(N, 2), C).

    A single patch comes out twice. To attend to two equal tokens is to attend to one: but for the draws of dropout,
    the transformer's results are those of :func:`~kornia_mvit.models.mobilevit.unfold`.

    Example:
        >>> unfold_dynamic(torch.arange(4.0).view(1, 1, 2, 2), (2, 2))[0, :, :, 0]
        tensor([[0., 0.],
                [1., 1.],
                [2., 2.],
                [3., 3.]])
    """
    (b, c, h, w), (ph, pw) = x.shape, patch_size
    count = (h // ph) * (w // pw)
    shown = cast(int, torch.sym_max(count, 2))
    pixel, patch = _divmod(torch.arange(ph * pw * shown, device=x.device), shown)
    (row, column), (i, j) = _divmod(_divmod(patch, count)[1], w // pw), _divmod(pixel, pw)
    index = (row * ph + i) * w + column * pw + j
    return x.permute(0, 2, 3, 1).reshape(b, h * w, c).index_select(1, index).view(b, ph * pw, shown, c)


def fold_dynamic(tokens: Tensor, patch_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put the tokens of :func:`unfold_dynamic` back in their places: (B, P, max(N, 2), C) -> (B, C, H, W).

    Example:
        >>> x = torch.rand(2, 3, 2, 3)
        >>> torch.equal(fold_dynamic(unfold_dynamic(x, (2, 3)), (2, 3), (2, 3)), x)
        True
    """
    (b, p, shown, c), (ph, pw), (h, w) = tokens.shape, patch_size, size
    row, column = _divmod(torch.arange(h * w, device=tokens.device), w)
    (row, i), (column, j) = _divmod(row, ph), _divmod(column, pw)
    index = (i * pw + j) * shown + row * (w // pw) + column
    return tokens.reshape(b, p * shown, c).index_select(1, index).view(b, h, w, c).permute(0, 3, 1, 2)


def _divmod(x: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    quotient = x // divisor
    return quotient, x - quotient * divisor  # ONNX has no % by a symbolic size
