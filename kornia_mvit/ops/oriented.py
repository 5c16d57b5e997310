"""Oriented boxes: centre, width, height and angle.

An oriented box is (cx, cy, w, h, angle), in pixels and radians. The angle is that of the side ``w``, from the x axis
towards the y axis, clockwise as one looks at the image: at 0 the box is upright. Half a turn changes nothing, so that
results have angles from -pi/2 up to, and without, pi/2.
"""

import math

import torch
from torch import Tensor

from kornia_mvit.ops.geometry import corner_bounds, transform_points

__all__ = ["fit_oriented", "oriented_bounds", "oriented_corners", "transform_oriented"]

_TIE = 1e-6  # share of an area by which another rectangle has to be smaller to be taken


def oriented_corners(boxes: Tensor) -> Tensor:
    """Return the corners of oriented boxes, in order around each: (..., 5) -> (..., 4, 2).

    From the first to the second corner goes the side w, along the angle; from the second to the third the side h.

    Example:
        >>> oriented_corners(torch.tensor([10.0, 5.0, 4.0, 2.0, 0.0]))
        tensor([[ 8.,  4.],
                [12.,  4.],
                [12.,  6.],
                [ 8.,  6.]])
    """
    angle = boxes[..., 4:]
    along = torch.cat([angle.cos(), angle.sin()], -1) * boxes[..., 2:3] / 2
    across = torch.cat([-angle.sin(), angle.cos()], -1) * boxes[..., 3:4] / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return torch.stack([boxes[..., :2] + a * along + b * across for a, b in signs], -2)


def oriented_bounds(boxes: Tensor) -> Tensor:
    """Return the upright boxes around oriented ones: (..., 5) -> (..., 4) left, top, right, bottom.

    Example:
        >>> oriented_bounds(torch.tensor([10.0, 5.0, 4.0, 2.0, torch.pi / 2])).round(decimals=3)
        tensor([ 9.,  3., 11.,  7.])
    """
    return corner_bounds(oriented_corners(boxes))


def fit_oriented(corners: Tensor) -> Tensor:
    """Return the smallest oriented boxes around convex quadrilaterals: (..., 4, 2) -> (..., 5).

    One side of the smallest rectangle around a polygon lies on one of its sides. Of a rectangle it is the rectangle
    itself, and its width stays the side from the first to the second corner.

    Args:
        corners: in order around each, as :func:`oriented_corners` gives them.
    """
    side = corners.roll(-1, -2) - corners  # ... 4 2
    length = side.square().sum(-1, keepdim=True).sqrt()
    usual = torch.eye(2, dtype=corners.dtype, device=corners.device).repeat(2, 1)
    along = torch.where(length > 0, side / length.clamp_min(torch.finfo(length.dtype).tiny), usual)
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    # Places of the corners along and across each side, counted from the middle for precision.
    middle = corners.mean(-2, keepdim=True)
    places = torch.stack([(corners - middle) @ axis.mT for axis in (along, across)], -1)  # ... 4 corners, 4 sides, 2
    low, high = places.amin(-3), places.amax(-3)
    reach = high - low
    rank = torch.arange(4, dtype=corners.dtype, device=corners.device) * _TIE
    area = (reach.prod(-1) * (1 + rank)).masked_fill((length == 0)[..., 0] & (length > 0).any(-2), torch.inf)
    best = area.argmin(-1)[..., None, None].expand(*area.shape[:-1], 1, 2)
    own, cross, size, mid = (value.gather(-2, best)[..., 0, :] for value in (along, across, reach, (low + high) / 2))
    centre = middle[..., 0, :] + own * mid[..., :1] + cross * mid[..., 1:]
    turned = (best[..., 0, :1] % 2).bool()  # found on a side h
    size = torch.where(turned, size.flip(-1), size)
    angle = torch.atan2(own[..., 1:], own[..., :1]) - turned * (math.pi / 2)
    return torch.cat([centre, size, (angle + math.pi / 2).remainder(math.pi) - math.pi / 2], -1)


def transform_oriented(matrix: Tensor, boxes: Tensor) -> Tensor:
    """Bring oriented boxes (B, N, 5) to another canvas by matrices (B, 3, 3): the smallest around their corners."""
    corners = oriented_corners(boxes.double()).flatten(1, 2)
    return fit_oriented(transform_points(matrix, corners).view(*boxes.shape[:2], 4, 2)).to(boxes.dtype)
