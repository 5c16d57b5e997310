"""Anchors of a detector: centre x and y, width and height, in shares of the image's width and height.

References:
    SSD: Single Shot MultiBox Detector (arXiv 1512.02325).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from kornia_mvit.ops.geometry import center_boxes, constant, corner_boxes

__all__ = ["Anchors", "anchor_shapes", "fit_anchors", "make_anchors"]


def make_anchors(
    map_sizes: Sequence[tuple[int, int]],
    aspect_ratios: Sequence[Sequence[float]],
    scales: tuple[float, float] = (0.1, 1.05),
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Return the anchors of all places of several maps.

    Scales rise linearly from the first to the last, which would be that of one map more. A place has a square of its
    map's scale s, one of :math:`\sqrt{s s'}` with the next map's scale, and two of scale s for each ratio, wide and
    tall. No side is longer than the image's, though an anchor may reach beyond it.

    Args:
        map_sizes: height and width of each map.
        aspect_ratios: for each map, ratios of the sides above 1.
        scales: the first map's and the one after the last's, in shares of the image's side.
        device: where to.
        dtype: of the result.

    Returns:
        (A, 4): maps in their order, of a map places row by row, of a place the anchors as above.

    Raises:
        ValueError: if there are not as many maps as lists of ratios.

    Example:
        >>> make_anchors([(1, 2)], [()], (0.25, 1.0))
        tensor([[0.2500, 0.5000, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.5000, 0.5000],
                [0.7500, 0.5000, 0.2500, 0.2500],
                [0.7500, 0.5000, 0.5000, 0.5000]])
    """
    if len(map_sizes) != len(aspect_ratios):
        raise ValueError(
            f"{len(map_sizes)} maps and {len(aspect_ratios)} lists of aspect ratios; give one for each map"
        )
    out = []
    sides_of_maps = anchor_shapes(aspect_ratios, scales)
    if device is None:
        shapes = [torch.tensor(sides, dtype=dtype) for sides in sides_of_maps]
    else:
        shapes = [constant(tuple(sides), torch.device(device), dtype) for sides in sides_of_maps]
    for (height, width), side in zip(map_sizes, shapes, strict=True):
        y, x = (((torch.arange(n, device=device) + 0.5) / n).to(dtype) for n in (height, width))
        place = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        grid = (height, width, len(side), 2)
        out.append(torch.cat([place[:, :, None].expand(grid), side.expand(grid)], -1).flatten(0, 2))
    return torch.cat(out)


def anchor_shapes(
    aspect_ratios: Sequence[Sequence[float]], scales: tuple[float, float]
) -> list[list[tuple[float, float]]]:
    """Return width and height of the anchors of a place, for each map; see :func:`make_anchors`."""
    first, last = scales
    steps = [first + (last - first) * n / len(aspect_ratios) for n in range(len(aspect_ratios) + 1)]
    out = []
    for n, ratios in enumerate(aspect_ratios):
        scale, between = steps[n], (steps[n] * steps[n + 1]) ** 0.5
        shapes = [(scale, scale), (between, between)]
        for ratio in ratios:
            root = ratio**0.5
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        out.append([(min(1.0, width), min(1.0, height)) for width, height in shapes])
    return out


class Anchors(NamedTuple):
    """The shapes of a detector's anchors, as :func:`make_anchors` takes them.

    Args:
        scales: sides of the first map's anchors, and of those after the last map's, in shares of the image's sides.
        aspect_ratios: for each map, ratios of the sides above 1.
    """

    scales: tuple[float, float]
    aspect_ratios: tuple[tuple[float, ...], ...]


_APPLE = Anchors((0.1, 1.05), ((2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,)))
# What fit_anchors tries: first scales up to 0.76, scales after the last, and ratios.
_FIRST = tuple(round(0.02 * 1.15**n, 3) for n in range(27))
_AFTER = tuple(round(0.15 * n, 3) for n in range(1, 9))
_RATIOS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)
_MOST = 2000  # boxes that are looked at
_GAIN = 1e-3  # in overlap, for which other shapes are taken


@torch.no_grad()
def fit_anchors(boxes: Tensor, map_sizes: Sequence[tuple[int, int]], start: Anchors = _APPLE) -> Anchors:
    """Propose scales and aspect ratios of anchors for a dataset's boxes.

    They make the mean over the boxes of the largest overlap (intersection over union) with an anchor large, at the
    places where the anchors are. Scales and ratios are searched on a grid, in turn, and stay as they are where others
    are no better.

    Args:
        boxes: (N, 4) left, top, right and bottom, in shares of the image's width and height, as the network sees it.
            Those without an area are left out. Of more than 2,000, as many are taken evenly.
        map_sizes: height and width of each map, see :func:`make_anchors` and
            :meth:`SSDLite.map_sizes <kornia_mvit.SSDLite.map_sizes>`.
        start: where the search begins, Apple's unless given. The result has as many ratios for each map, so that a
            detector has as many weights as with these.

    Raises:
        ValueError: for boxes that are not (N, 4), reach outside the image or have no area, and if there are not as many
            maps as lists of ratios.

    Example:
        >>> boxes = torch.tensor([[0.05, 0.05, 0.37, 0.37], [0.6, 0.5, 0.95, 0.85]])
        >>> fit_anchors(boxes, [(6, 6), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)]).scales
        (0.053, 0.9)
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have shape {tuple(boxes.shape)}; give (N, 4)")
    if len(map_sizes) != len(start.aspect_ratios):
        raise ValueError(
            f"{len(map_sizes)} maps and {len(start.aspect_ratios)} lists of aspect ratios; give one for each map"
        )
    boxes = center_boxes(boxes.double().cpu())
    boxes = boxes[(boxes[:, 2:] > 0).all(1)]
    if not len(boxes):
        raise ValueError("none of the boxes has an area; give some that have")
    if not (-0.01 <= corner_boxes(boxes).min() and corner_boxes(boxes).max() <= 1.01):
        raise ValueError(
            f"boxes reach from {float(corner_boxes(boxes).min()):.4g} to {float(corner_boxes(boxes).max()):.4g}; give "
            "shares of the image's width and height, from 0 to 1"
        )
    boxes = boxes[torch.linspace(0, len(boxes) - 1, min(len(boxes), _MOST)).long()]
    centre, sides = boxes[:, :2], boxes[:, 2:]
    distances = [_to_nearest_place(centre, size) for size in map_sizes]

    def score(anchors: Anchors) -> float:
        """Return the mean of the largest overlap, which an anchor of the nearest place of a map has."""
        shapes = anchor_shapes(anchors.aspect_ratios, anchors.scales)
        found = [_overlap(sides, distance, shape) for distance, shape in zip(distances, shapes, strict=True)]
        return float(torch.cat(found, 1).amax(1).mean())

    best, reached = start, score(start)
    counts = [len(ratios) for ratios in start.aspect_ratios]
    scales = [(first, after) for first in _FIRST for after in _AFTER if first <= after]
    most = max(counts, default=0)
    ratios = [tuple(some[:count] for count in counts) for some in combinations(_RATIOS, most)]
    for _ in range(3):
        before = reached
        for by_ratios in (False, True):
            tried = [Anchors(best.scales, some) for some in ratios] if by_ratios else []
            tried = tried or [Anchors(pair, best.aspect_ratios) for pair in scales]
            gain, other = max((score(one), one) for one in tried)
            if gain > reached + _GAIN:
                best, reached = other, gain
        if reached == before:
            break
    return best


def _to_nearest_place(centre: Tensor, size: tuple[int, int]) -> Tensor:
    """Return how far (N, 2) centres are from the nearest place of a map, in x and in y."""
    count = centre.new_tensor([size[1], size[0]])
    place = (centre * count).floor().clamp_min(0).minimum(count - 1)
    return (centre - (place + 0.5) / count).abs()


def _overlap(sides: Tensor, distance: Tensor, shapes: Sequence[tuple[float, float]]) -> Tensor:
    """Return intersection over union of N boxes and S shapes whose centres are (N, 2) apart: (N, S)."""
    own, other = sides[:, None], sides.new_tensor(shapes)[None]
    shared = torch.minimum((own + other) / 2 - distance[:, None], torch.minimum(own, other)).clamp_min(0).prod(-1)
    return shared / (own.prod(-1) + other.prod(-1) - shared)
