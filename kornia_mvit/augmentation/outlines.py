"""The outlines of objects under geometric steps: corners, ellipses, and the masks of single objects."""

import torch
from torch import Tensor

from kornia_mvit.augmentation.slices import Seen, are_sliced
from kornia_mvit.ops.geometry import box_corners, corner_bounds, pixel_index, transform_points

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


def read_instances(
    masks: Tensor, x: Tensor, y: Tensor, seen: Seen | None, rows: list[list[int]] | None = None
) -> Tensor:
    """Read masks of single objects at points.

    Where a CPU goes by slices, they are read object by object, within the window that shows it; where the image was
    turned, eight masks at a time, each in a bit.

    Args:
        masks: (B, N, H, W), bool, or uint8 of 0 and 1.
        x: of the points, in pixels, (B, 1, w) or (B, h, w); B may be 1.
        y: of the points, in pixels, (B, h, 1) or (B, h, w).
        seen: where the result shows objects; None for everywhere.
        rows: on a CPU, the masks of each image that are wanted, which come first; the others become empty.

    Returns:
        (B, N, h, w), of the masks' dtype.
    """
    batch, count, size = masks.shape[0], masks.shape[1], (int(masks.shape[2]), int(masks.shape[3]))
    if rows is None and not are_sliced(masks):
        index = pixel_index(x, y, size)
        places = index.flatten(1)[:, None].expand(batch, count, -1)
        out = masks.flatten(2).gather(2, places).view(batch, count, *index.shape[1:])
        return out if seen is None else out * seen.all()[:, None]
    height, width = max(x.shape[1], y.shape[1]), max(x.shape[2], y.shape[2])
    upright = x.shape[1] == y.shape[2] == 1
    out = (torch.zeros if upright else torch.empty)(batch, count, height, width, dtype=torch.uint8)
    for i in range(batch):
        given, wanted = masks[i].view(torch.uint8), list(range(count)) if rows is None else rows[i]
        place = slice(i, i + 1)
        own_x, own_y = (v[place] if len(v) > 1 else v for v in (x, y))
        if upright and wanted:
            column, row = (pixel_index(v, torch.zeros_like(v), (1, n)) for v, n in ((own_x, size[1]), (own_y, size[0])))
            _read_windows(
                given, column.flatten(), row.flatten(), None if seen is None else seen.sides(place), wanted, out[i]
            )
        elif wanted:
            inside = None if seen is None else seen.part(place)
            _read_bits(given, pixel_index(own_x, own_y, size).flatten(), inside, wanted, out[i].flatten(1))
        out[i, len(wanted) :] = 0
    return out.view(masks.dtype)


def _read_windows(
    masks: Tensor, column: Tensor, row: Tensor, seen: tuple[Tensor, Tensor] | None, wanted: list[int], out: Tensor
) -> None:
    """Read masks (N, H, W) at columns (w,) and rows (h,) of pixels, into zeros (N, h, w)."""
    across, down = (side[wanted] for side in _occupied(masks))
    shown = [across.index_select(1, column), down.index_select(1, row)]
    if seen is not None:
        shown = [places & side.flatten() for places, side in zip(shown, seen, strict=True)]
    some = (shown[0].any(1) & shown[1].any(1)).tolist()
    first = [places.to(torch.uint8).argmax(1).tolist() for places in shown]
    last = [(places.shape[1] - places.flip(1).to(torch.uint8).argmax(1)).tolist() for places in shown]
    starts = row * masks.shape[2]
    for place, number in enumerate(wanted):
        if some[place]:
            (left, top), (right, bottom) = ([side[place] for side in ends] for ends in (first, last))
            index = starts[top:bottom, None] + column[left:right]
            part = masks[number].flatten().gather(0, index.flatten())
            out[place, top:bottom, left:right] = part.view(index.shape)


def _occupied(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which columns and rows of masks (N, H, W) may have pixels of the object: (N, W) and (N, H)."""
    count, height, width = masks.shape
    if height % _BITS or width % _BITS or not masks.is_contiguous() or masks.storage_offset() % _BITS:
        return masks.amax(1) > 0, masks.amax(2) > 0
    # by squares of eight pixels a side, of which a row is read as one number
    squares = masks.view(torch.int64).view(count, height // _BITS, _BITS, width // _BITS).amax(2)
    across, down = ((squares.amax(axis) > 0).repeat_interleave(_BITS, 1) for axis in (1, 2))
    return across, down


def _read_bits(masks: Tensor, index: Tensor, inside: Tensor | None, wanted: list[int], out: Tensor) -> None:
    """Read masks (N, H, W) at pixels (P,), eight masks at a time, into (N, P)."""
    flat = masks.flatten(1)
    for start in range(0, len(wanted), _BITS):
        group = wanted[start : start + _BITS]
        plane = flat[group[0]].clone()
        for bit, row in enumerate(group[1:], 1):
            plane.add_(flat[row], alpha=1 << bit)
        plane = plane.gather(0, index)
        if inside is not None:
            plane *= inside.flatten()
        for bit in range(len(group)):
            torch.bitwise_and(plane >> bit, 1, out=out[start + bit])
