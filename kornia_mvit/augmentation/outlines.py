"""The outlines of objects under geometric steps: corners, ellipses, and the masks of single objects."""

import torch
from torch import Tensor

from kornia_mvit.augmentation.slices import are_sliced
from kornia_mvit.ops.geometry import box_corners, corner_bounds, transform_points

__all__ = ["Corners", "Ellipses", "read_instances"]

_BITS = 8  # masks that share the bytes of one plane


class Corners:
    """Boxes as the quadrilaterals that their corners become.

    Args:
        boxes: (B, N, 4), float64.
    """

    def __init__(self, boxes: Tensor) -> None:
        self._corners = box_corners(boxes)

    def move(self, matrix: Tensor) -> None:
        """Bring them to another canvas by matrices (B, 3, 3)."""
        self._corners = transform_points(matrix, self._corners)

    def bounds(self) -> Tensor:
        """Return the upright boxes around them: (B, N, 4)."""
        return corner_bounds(self._corners)

    def cut(self, boxes: Tensor, where: Tensor) -> None:
        """Go on with boxes (B, N, 4) in place of some of them, (B, N) bool."""
        self._corners = torch.where(where[..., None, None], box_corners(boxes), self._corners)


class Ellipses:
    """Boxes as the ellipses inside them, and what these become.

    Args:
        boxes: (B, N, 4), float64.
    """

    def __init__(self, boxes: Tensor) -> None:
        self._boxes = boxes
        self._matrix = torch.eye(3, dtype=boxes.dtype, device=boxes.device).expand(*boxes.shape[:2], 3, 3)

    def move(self, matrix: Tensor) -> None:
        """Bring them to another canvas by matrices (B, 3, 3)."""
        self._matrix = matrix[:, None] @ self._matrix

    def bounds(self) -> Tensor:
        """Return the upright boxes around them: (B, N, 4).

        A line touches an ellipse where it is on the dual of its conic, C: for upright ones that is a quadratic in their
        place. Places are counted from where the centre goes, for precision.
        """
        centre, half = (
            (self._boxes[..., :2] + self._boxes[..., 2:]) / 2,
            (self._boxes[..., 2:] - self._boxes[..., :2]) / 2,
        )
        point = (self._matrix[..., :2] @ centre[..., None])[..., 0] + self._matrix[..., 2]
        depth = point[..., 2:]
        moved = point[..., :2] / depth
        tilt = self._matrix[..., 2, :2] * half
        axes = self._matrix[..., :2, :2] * half[..., None, :] - moved[..., None] * tilt[..., None, :]
        both, own = (axes * tilt[..., None, :]).sum(-1), axes.square().sum(-1)
        plane = (tilt.square().sum(-1, keepdim=True) - depth.square()).clamp_max(-torch.finfo(depth.dtype).tiny)
        reach = (both.square() - own * plane).clamp_min(0).sqrt()
        return torch.cat([moved + (both + reach) / plane, moved + (both - reach) / plane], -1)

    def cut(self, boxes: Tensor, where: Tensor) -> None:
        """Go on with the ellipses inside boxes (B, N, 4) in place of some of them, (B, N) bool."""
        self._boxes = torch.where(where[..., None], boxes, self._boxes)
        still = torch.eye(3, dtype=boxes.dtype, device=boxes.device)
        self._matrix = torch.where(where[..., None, None], still, self._matrix)


def read_instances(masks: Tensor, index: Tensor, inside: Tensor | None, rows: list[list[int]] | None = None) -> Tensor:
    """Read masks of single objects at pixels. On a CPU the masks are read eight at a time, each in a bit.

    Args:
        masks: (B, N, H, W), bool, or uint8 of 0 and 1.
        index: (B, h, w) number of the pixel that each one of the result shows, int64.
        inside: (B, h, w), False where the result shows none; None where it shows one everywhere.
        rows: on a CPU, the masks of each image that are wanted, which come first; the others become empty.

    Returns:
        (B, N, h, w), of the masks' dtype.
    """
    batch, count, (height, width) = *masks.shape[:2], index.shape[-2:]
    if rows is None and not are_sliced(masks):
        places = index.flatten(1)[:, None].expand(batch, count, height * width)
        out = masks.flatten(2).gather(2, places).view(batch, count, height, width)
        return out if inside is None else out * inside[:, None]
    out = torch.empty(batch, count, height * width, dtype=torch.uint8)
    given = masks.view(torch.uint8).flatten(2)
    for i in range(batch):
        wanted = list(range(count)) if rows is None else rows[i]
        for start in range(0, len(wanted), _BITS):
            group = wanted[start : start + _BITS]
            plane = given[i, group[0]].clone()
            for bit, row in enumerate(group[1:], 1):
                plane.add_(given[i, row], alpha=1 << bit)
            plane = plane.gather(0, index[i].flatten())
            if inside is not None:
                plane *= inside[i].flatten()
            for bit in range(len(group)):
                torch.bitwise_and(plane >> bit, 1, out=out[i, start + bit])
        out[i, len(wanted) :] = 0
    return out.view(masks.dtype).view(batch, count, height, width)
