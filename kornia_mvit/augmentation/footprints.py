r"""Points that stand for the whole footprint of a pixel, where a warp makes images smaller.

A warp reads images bilinearly, between the pixels nearest to a point: with a triangle of weights that is two pixels
wide. Where the pixels of the result lie s pixels of the image apart, s above 1, some of the image would go unread. An
antialiased resize reads with a triangle that is s times as wide. Here a pixel is the mean of several points, so far
apart that what they read together has the variance of that triangle, :math:`s^2 / 6`, of which reading itself has 1/6.
At s = 1 they are one point. They lie along the steps from a pixel to the next, turned and sheared as these.
"""

# B batch, h w canvas of the result

import math
from itertools import product
from typing import Any, cast

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from kornia_mvit.augmentation.kornia_adapter import least_scale

__all__ = ["Point", "count_samples", "find_reach", "spread_points"]

Point = tuple[Tensor, Tensor]  # x and y, in pixels


def find_reach(module: nn.Module, given: tuple[int, int], size: tuple[int, int]) -> float:
    """Return how far apart an operation may read pixels for neighbours of its result, as far as its arguments say.

    Args:
        module: one of Kornia's, or one of this package's with a method ``reach`` for these sizes.
        given: height and width of the canvas before.
        size: height and width of the canvas after.

    Returns:
        A number of pixels, below 1 where images become larger.

    Example:
        >>> import kornia.augmentation as K
        >>> find_reach(K.Resize((96, 96)), (288, 192), (96, 96)), find_reach(K.CenterCrop(96), (288, 192), (96, 96))
        (3.0, 1.0)
        >>> find_reach(K.RandomAffine(10.0, scale=(0.25, 1.0)), (96, 96), (96, 96))
        4.0
    """
    if hasattr(module, "reach"):
        return float(cast(Any, module).reach(given, size))
    if isinstance(module, (K.Resize, K.LongestMaxSize, K.SmallestMaxSize, K.RandomResizedCrop)):
        return max(given[0] / size[0], given[1] / size[1])
    return 1 / least_scale(module)


def count_samples(reach: float) -> int:
    """Return how many points along a side stand for a pixel: two, or four for one more than two pixels wide."""
    return 2 if reach <= 2 else 4


def spread_points(x: Tensor, y: Tensor, count: int) -> list[Point]:
    """Return ``count`` x ``count`` points for each that is given, its upper left one first, its lower right one last.

    Args:
        x: in pixels, (B, 1, w) where rows stay rows, else (B, h, w).
        y: in pixels, (B, h, 1) where rows stay rows, else (B, h, w).
        count: points along a side.

    Returns:
        Pairs of such tensors.

    Example:
        >>> x, y = torch.tensor([[[2.5, 7.5]]]), torch.tensor([[[0.5], [1.5]]])  # five times as wide
        >>> [(a[0, 0].tolist(), b[0, :, 0].tolist()) for a, b in spread_points(x, y, 2)][:2]
        [([0.5, 5.5], [0.5, 1.5]), ([4.5, 9.5], [0.5, 1.5])]
    """
    apart = math.sqrt(12 / (count**2 - 1))  # of a variance of 1
    shares = [(n - (count - 1) / 2) * apart for n in range(count)]
    if x.shape[1] == 1 and y.shape[2] == 1:
        across, down = (_reach(_steps(v, dim)[None])[0] for v, dim in ((x, 2), (y, 1)))
        return [(x + v * across, y + u * down) for u, v in product(shares, shares)]
    x, y = x + torch.zeros_like(y), y + torch.zeros_like(x)
    (right_x, right_y), (down_x, down_y) = (_reach(_shorter(x, y, dim)) for dim in (2, 1))
    return [(x + v * right_x + u * down_x, y + v * right_y + u * down_y) for u, v in product(shares, shares)]


def _steps(values: Tensor, dim: int) -> Tensor:
    """Return how far it is from each value to the next, in places where that is everywhere the same."""
    if values.shape[dim] == 1:
        return torch.zeros_like(values)
    return (values.narrow(dim, 1, 1) - values.narrow(dim, 0, 1)).abs()


def _shorter(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Return the steps from points to the next or from those before, whichever are shorter, (2, B, h, w).

    Where a warp tears, the longer one leads across.
    """
    places = torch.stack([x, y])
    if x.shape[dim] == 1:
        return torch.zeros_like(places)
    steps = places.diff(dim=dim + 1)
    last = steps.shape[dim + 1] - 1
    after = torch.cat([steps, steps.narrow(dim + 1, last, 1)], dim + 1)
    before = torch.cat([steps.narrow(dim + 1, 0, 1), steps], dim + 1)
    nearer = after.square().sum(0) <= before.square().sum(0)
    return torch.where(nearer, after, before)


def _reach(steps: Tensor) -> Tensor:
    """Bring steps to the length that is the points' standard deviation: (n, B, h, w), n coordinates."""
    length = steps.square().sum(0).clamp_min(1.0)  # squared
    return (steps * ((1 - 1 / length) / 6).sqrt()).nan_to_num(0.0, 0.0, 0.0)
