"""The outlines of objects under geometric steps: corners, ellipses, and the masks of single objects."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kornia_mvit.augmentation.slices import Seen, are_sliced
from kornia_mvit.ops.geometry import (
    EDGE_TOLERANCE,
    box_corners,
    constant,
    corner_bounds,
    is_inside,
    pixel_index,
    transform_points,
)

__all__ = ["Corners", "Ellipses", "Outlines", "Shapes", "bend", "read_instances"]

Size = tuple[int, int]
# Brings points (B, ..., 2) to another canvas, and tells which (B, ...) were found there, None for all.
Move = Callable[[Tensor], tuple[Tensor, Tensor | None]]

_BITS = 8  # masks that share the bytes of one plane
_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes
# Of outlines under free warps: points of a side are about so many pixels apart for boxes as large as the canvas.
_SPACING = 8
_FEWEST, _MOST = 8, 64
_SPOKES, _RINGS = 32, 4  # points inside an outline, which tell the share that is in view
_STILL = 1e-9  # pixels: lines shorter than that along an axis meet nothing along it


class Corners:
    """Boxes as the quadrilaterals that their corners become.

    Args:
        boxes: (B, N, 4), float64.
        corners: (B, N, 4, 2), float64, of quadrilaterals in place of the boxes.
    """

    def __init__(self, boxes: Tensor, corners: Tensor | None = None) -> None:
        self._corners = box_corners(boxes) if corners is None else corners

    def move(self, matrix: Tensor) -> None:
        """Bring them to another canvas by matrices (B, 3, 3)."""
        self._corners = transform_points(matrix, self._corners)

    def bounds(self) -> Tensor:
        """Return the upright boxes around them: (B, N, 4)."""
        return corner_bounds(self._corners)

    def cut(self, boxes: Tensor, where: Tensor) -> None:
        """Go on with boxes (B, N, 4) in place of some of them, (B, N) bool."""
        self._corners = torch.where(where[..., None, None], box_corners(boxes), self._corners)

    def outline(self, size: Size) -> Tensor:
        """Return points along their edges, in order, the corners among them: (B, N, P, 2), P by the canvas's size."""
        count = _points_of_a_side(size)
        part = torch.arange(count, dtype=self._corners.dtype, device=self._corners.device)[:, None] / count
        return torch.lerp(self._corners[..., None, :], self._corners.roll(-1, -2)[..., None, :], part).flatten(-3, -2)


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

    def outline(self, size: Size) -> Tensor:
        """Return points along them, in order: (B, N, P, 2), P by the canvas's size."""
        count = 4 * _points_of_a_side(size)
        angle = torch.arange(count, dtype=self._boxes.dtype, device=self._boxes.device) * (2 * math.pi / count)
        circle = torch.stack([angle.cos(), angle.sin(), torch.ones_like(angle)], -1)
        low, high = self._boxes[..., :2], self._boxes[..., 2:]
        stretch = torch.diag_embed(torch.cat([(high - low) / 2, torch.ones_like(low[..., :1])], -1))
        stretch[..., :2, 2] = (low + high) / 2
        points = circle @ (self._matrix @ stretch).mT
        return points[..., :2] / points[..., 2:]


class Outlines:
    """Objects as the polygons that outlines become under a free warp.

    Args:
        points: (B, N, P, 2), in order, float64.
    """

    def __init__(self, points: Tensor) -> None:
        self._points = points

    def move(self, matrix: Tensor) -> None:
        """Bring them to another canvas by matrices (B, 3, 3)."""
        self._points = transform_points(matrix, self._points)

    def bounds(self) -> Tensor:
        """Return the upright boxes around them: (B, N, 4)."""
        return corner_bounds(self._points)

    def cut(self, boxes: Tensor, where: Tensor) -> None:
        """Go on with boxes (B, N, 4) in place of some of them, (B, N) bool."""
        count = self._points.shape[-2] // 4
        corners = box_corners(boxes)
        part = torch.arange(count, dtype=boxes.dtype, device=boxes.device)[:, None] / count
        edges = torch.lerp(corners[..., None, :], corners.roll(-1, -2)[..., None, :], part).flatten(-3, -2)
        self._points = torch.where(where[..., None, None], edges, self._points)

    def outline(self, size: Size) -> Tensor:
        """Return their points."""
        return self._points


Shapes = Corners | Ellipses | Outlines


def _points_of_a_side(size: Size) -> int:
    return min(max(-(-max(size) // _SPACING), _FEWEST), _MOST)


def bend(shapes: Shapes, move: Move, size: Size) -> tuple[Outlines, Tensor]:
    """Bring shapes to another canvas by a free warp, and cut them at its edges.

    Args:
        shapes: in view on the canvas before.
        move: the warp.
        size: height and width of the canvas after, in pixels.

    Returns:
        What is left of them, and the share (B, N) of the area of each that is in view.
    """
    outline = shapes.outline(size)
    count = outline.shape[-2]
    centre = outline.mean(-2, keepdim=True)
    spokes = (outline - centre)[..., :: max(1, count // _SPOKES), :]
    reach = [math.sqrt((ring + 0.5) / _RINGS) for ring in range(_RINGS)]  # rings of one area
    inner = torch.cat([centre + part * spokes for part in reach], -2)
    moved, found = move(torch.cat([outline, inner], -2))
    if found is None:
        found = torch.ones_like(moved[..., 0], dtype=torch.bool)
    shown = found & is_inside(moved[..., 0], moved[..., 1], size[1], size[0])
    points, whole = moved[..., :count, :], shown[..., :count].all(-1)
    bounds, some = _cut_bounds(points, found[..., :count], moved[..., count:, :], shown[..., count:], size)

    following = spokes.roll(-1, -2)
    area = (spokes[..., 0] * following[..., 1] - spokes[..., 1] * following[..., 0]).abs()
    seen = shown[..., count:].view(*area.shape[:2], _RINGS, area.shape[-1]).to(area.dtype).mean(-2)
    share = (seen * area).sum(-1) / area.sum(-1).clamp_min(torch.finfo(area.dtype).tiny)
    share = torch.where(some, share.clamp_min(1 / count**2), 0.0)  # what is in view may be less than the samples see
    out = Outlines(points)
    out.cut(bounds, ~whole)
    return out, torch.where(whole, 1.0, share)


def _cut_bounds(points: Tensor, found: Tensor, inner: Tensor, shown: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return the boxes around what of polygons is on a canvas, and whether there is anything.

    Args:
        points: (B, N, P, 2) of the polygons.
        found: (B, N, P) which of them are known.
        inner: (B, N, Q, 2) points within them.
        shown: (B, N, Q) which of these are on the canvas.
        size: height and width of the canvas.
    """
    following = points.roll(-1, -2)
    known = found & found.roll(-1, -1)
    side = constant((size[1], size[0]), points.device)
    step = following - points
    flat = step.abs() < _STILL
    over = 1 / torch.where(flat, 1.0, step)
    ends = torch.stack([-points * over, (side - points) * over])  # where each line meets the canvas's edges
    inside = (points >= -EDGE_TOLERANCE) & (points <= side + EDGE_TOLERANCE)
    first = torch.where(flat, torch.where(inside, -torch.inf, torch.inf), ends.amin(0))
    last = torch.where(flat, torch.where(inside, torch.inf, -torch.inf), ends.amax(0))
    start, stop = first.amax(-1).clamp_min(0), last.amin(-1).clamp_max(1)
    meets = known & (start <= stop)
    start, stop = (torch.where(meets, v, 0.0)[..., None] for v in (start, stop))
    corner = box_corners(torch.cat([torch.zeros_like(side), side])).unsqueeze(-2)  # 4 1 2
    above = (points[..., None, :, 1] > corner[..., 1]) != (following[..., None, :, 1] > corner[..., 1])
    across = points[..., 0] - points[..., 1] * step[..., 0] * over[..., 1]
    crossed = across[..., None, :] + corner[..., 1] * (step[..., 0] * over[..., 1])[..., None, :] > corner[..., 0]
    covered = ((above & crossed & known[..., None, :]).sum(-1) % 2 == 1) & found.all(-1, keepdim=True)
    sets = [
        (points + start * step, meets),
        (points + stop * step, meets),
        (corner[:, 0].expand(*points.shape[:2], 4, 2), covered),
        (inner, shown),
    ]
    places, there = torch.cat([place for place, _ in sets], -2), torch.cat([mark for _, mark in sets], -1)
    low = places.masked_fill(~there[..., None], torch.inf).amin(-2)
    high = places.masked_fill(~there[..., None], -torch.inf).amax(-2)
    some = there.any(-1)
    bounds = torch.cat([low.clamp_min(0).minimum(side), high.clamp_min(0).minimum(side)], -1)
    return bounds.masked_fill(~some[..., None], 0.0), some


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
    if x.shape[1] == y.shape[2] == 1:
        return _read_windows(masks, x, y, seen, rows)
    height, width = max(x.shape[1], y.shape[1]), max(x.shape[2], y.shape[2])
    out = torch.empty(batch, count, height, width, dtype=torch.uint8)
    for i in range(batch):
        given, wanted = masks[i].view(torch.uint8), list(range(count)) if rows is None else rows[i]
        place = slice(i, i + 1)
        own_x, own_y = (v[place] if len(v) > 1 else v for v in (x, y))
        if wanted:
            inside = None if seen is None else seen.part(place)
            _read_bits(given, pixel_index(own_x, own_y, size).flatten(), inside, wanted, out[i].flatten(1))
        out[i, len(wanted) :] = 0
    return out.view(masks.dtype)


def _read_windows(masks: Tensor, x: Tensor, y: Tensor, seen: Seen | None, rows: list[list[int]] | None) -> Tensor:
    """Do as :func:`read_instances` at points of columns x (B, 1, w) and rows y (B, h, 1), which rise or fall.

    Of each mask, the window alone is read that shows its object; the rest of the result is never touched.
    """
    batch, count, height, width = masks.shape
    given = masks.view(torch.uint8).contiguous()
    column = pixel_index(x, torch.zeros_like(x), (1, width))[:, 0]
    row = pixel_index(torch.zeros_like(y), y, (height, 1))[..., 0]
    across, down = _occupied(given, row.aminmax(dim=1))
    shown = (None, None) if seen is None else seen.sides(slice(None))
    left, right = _window(across, column, shown[0])
    top, bottom = _window(down, row, shown[1])
    windows = torch.stack([top, left, bottom - top, right - left], 2).tolist()
    across_all = column.shape[1]
    out = torch.zeros(batch, count, row.shape[1], across_all, dtype=torch.uint8)
    flat, plane = given.flatten(2), out[0, :1].numel()
    starts = row * width
    index = torch.empty(out.shape[2:], dtype=torch.int64)
    for i in range(batch):
        chosen = range(count) if rows is None else rows[i]
        torch.add(starts[i % len(starts), :, None], column[i % len(column)], out=index)
        of_image = flat[i].unbind(0)
        for place, number in enumerate(chosen):
            first, start, tall, wide = windows[i][number]
            if tall > 0 and wide > 0:  # by strides, which takes half the time of slices
                corner, size, stride = first * across_all + start, (tall, wide), (across_all, 1)
                result = out.as_strided(size, stride, (i * count + place) * plane + corner)
                torch.take(of_image[number], index.as_strided(size, stride, corner), out=result)
    return out.view(masks.dtype)


def _window(occupied: Tensor, places: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return from which to which place of the result it may show objects, along one side.

    Args:
        occupied: (B, N, 2) the pixels of the side that hold an object, from and to.
        places: (B, w) the pixel that each place of the result shows, in rising or falling order; B may be 1.
        seen: in which places of the result anything is shown, an interval of them.

    Returns:
        (B, N) the first place and the one after the last; they are as many or fewer where it shows nothing.
    """
    falls = places[:, -1:] < places[:, :1]
    ordered = torch.where(falls, -places, places).expand(len(occupied), -1).contiguous()
    low, high = occupied.unbind(2)
    ends = torch.where(falls, -high, low - 1), torch.where(falls, -low, high - 1)
    first, last = (torch.searchsorted(ordered, end.contiguous(), right=True) for end in ends)
    if seen is not None:
        inside = seen.flatten(1).to(torch.uint8)
        start, end = inside.argmax(1), places.shape[1] - inside.flip(1).argmax(1)
        first, last = first.maximum(start[:, None]), last.minimum((end * inside.amax(1))[:, None])
    return first, last


def _occupied(masks: Tensor, between: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Tell between which columns and which rows of masks the pixels of the object lie.

    They are looked at in blocks, of which a row is read as one number.

    Args:
        masks: (B, N, H, W), of 0 and 1, contiguous.
        between: (B,) the first and the last row that matter; the others may be left out. B may be 1.

    Returns:
        (B, N, 2) columns and rows, from and to; 0 and 0 for empty masks.
    """
    batch, count, height, width = masks.shape
    tall, wide = math.gcd(height, _BITS), math.gcd(width, masks.storage_offset(), _BITS)
    numbers = masks.view(_NUMBERS[wide]).view(batch, count, height // tall, tall, width // wide)
    blocks = torch.zeros(batch, count, height // tall, width // wide, dtype=numbers.dtype)
    first, last = ((side.expand(batch) // tall).tolist() for side in between)
    for i in range(batch):
        strip = slice(first[i], last[i] + 1)
        torch.amax(numbers[i, :, strip], 2, out=blocks[i, :, strip])
    sides = []
    for axis, size in ((2, wide), (3, tall)):
        found = (blocks.amax(axis) > 0).to(torch.uint8)
        start, end = found.argmax(2), found.shape[2] - found.flip(2).argmax(2)
        sides.append(torch.stack([start, end * found.amax(2)], 2) * size)
    return sides[0], sides[1]


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
