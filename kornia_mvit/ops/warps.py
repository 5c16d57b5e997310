"""Points under a free warp, which is told by the places that its pixels show, and back.

A warp is a tensor (B, 2, H, W): x and y of the point that each pixel of the result shows, in pixels of what was warped.
Between the centres of pixels these places are interpolated bilinearly; beyond the outermost centres, points move as far
as the nearest point between them does. Coordinates are those of :mod:`kornia_mvit.ops.geometry`.
"""

# B batch, N points, H W canvas

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.ops.geometry import constant, sample_bilinear

__all__ = ["find_points", "show_map", "show_points"]

_CELL = 4  # each table of points to start from is coarser by that than the one before
_LEVELS = 3
_STEPS = 8
_NEAR = 0.25  # pixels: a point that was found is nearer than that to the true one
_EXACT = 1e-3  # pixels: steps below it bring nothing
_FLAT = 0.02  # determinant below which a warp has no direction to search in


def show_points(places: Tensor, points: Tensor) -> Tensor:
    """Return what points of the result show: (B, N, 2) of what was warped.

    Args:
        places: (B, 2, H, W).
        points: (B, N, 2), x and y.

    Example:
        >>> y, x = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(6) + 0.5, indexing="ij")
        >>> show_points(torch.stack([x + 2, y])[None], torch.tensor([[[1.0, 3.0]]]))
        tensor([[[3., 3.]]])
    """
    return points + _shift(places, points.nan_to_num(0.0))[0]


def show_map(places: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return what as many points as a map has pixels show: x and y (B, h, w).

    Args:
        places: (B, 2, H, W).
        x: broadcasting to (B, h, w).
        y: broadcasting to (B, h, w).
    """
    here = sample_bilinear(_moved(places).to(x.dtype), x, y)
    return x + here[:, 0], y + here[:, 1]


def _centres(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (W,) and y (H, 1) of the centres of pixels."""
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    return x, y[:, None]


def _moved(places: Tensor) -> Tensor:
    """Return how far places are from the pixels that show them: (B, 2, H, W)."""
    x, y = _centres(int(places.shape[-2]), int(places.shape[-1]), places)
    return torch.stack([places[:, 0] - x, places[:, 1] - y], 1)


def _shift(places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far what points show is from them, (B, N, 2), and its derivatives (B, N, 2, 2): of x, y by x, y."""
    height, width = int(places.shape[-2]), int(places.shape[-1])
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
    inner = [(v > 0) & (v < n - 1) for v, n in ((x, width), (y, height))]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor().clamp_max(max(width - 2, 0)), y.floor().clamp_max(max(height - 2, 0))
    u, v = (x - left)[..., None], (y - top)[..., None]
    column, row = left.long(), top.long()
    flat = places.flatten(2)

    def read(dx: int, dy: int) -> Tensor:
        """Read how far one of the four pixels about each point moves: (B, N, 2)."""
        i, j = (column + dx).clamp_max(width - 1), (row + dy).clamp_max(height - 1)
        index = (j * width + i)[:, None].expand(-1, 2, -1)
        return flat.gather(2, index).mT.to(points.dtype) - torch.stack([i, j], -1) - 0.5

    a, b, c, d = read(0, 0), read(1, 0), read(0, 1), read(1, 1)
    upper, lower = torch.lerp(a, b, u), torch.lerp(c, d, u)
    by_x = torch.lerp(b - a, d - c, v) * inner[0][..., None]
    by_y = (lower - upper) * inner[1][..., None]
    return torch.lerp(upper, lower, v), torch.stack([by_x, by_y], -1)


def find_points(places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the result shows points of what was warped: the inverse of :func:`show_points`, by Newton's method.

    Where a warp folds, so that several places show a point, it is one of these.

    Args:
        places: (B, 2, H, W).
        points: (B, N, 2), x and y, single precision or more.

    Returns:
        (B, N, 2), beyond the canvas where that does not show a point, and (B, N) whether the place was found, within a
        quarter of a pixel.

    Example:
        >>> y, x = torch.meshgrid(torch.arange(4) + 0.5, torch.arange(6) + 0.5, indexing="ij")
        >>> find_points(torch.stack([x + 2, y])[None], torch.tensor([[[3.0, 3.0]]]))
        (tensor([[[1., 3.]]]), tensor([[True]]))
    """
    if torch.compiler.is_compiling():
        place, found = _find_opaquely(places, points)
        return place, found
    return _find(places, points)


def _find(places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    known = points.isfinite().all(-1)  # padding may hold anything
    points = torch.where(known[..., None], points, 0.0)
    longest = max(2.0, max(places.shape[-2:]) / 4)
    place, found = _search(places, points, _start(places, points, 2), longest)
    if places.device.type == "cpu" and bool(found.all()):
        return place, found & known
    # A rough warp is steep between two of the pixels that were looked at: begin nearer, and go slowly.
    other, there = _search(places, points, _start(places, points, 1), 1.0)
    return torch.where((there & ~found)[..., None], other, place), (found | there) & known


def _search(places: Tensor, points: Tensor, start: Tensor, longest: float) -> tuple[Tensor, Tensor]:
    """Search by Newton's method, in steps of so many pixels along an axis at most."""
    place = best = start
    least, near = torch.full_like(place[..., 0], torch.inf), torch.zeros_like(place[..., 0], dtype=torch.bool)
    for _ in range(_STEPS):
        shift, slope = _shift(places, place)
        error = place + shift - points
        step = _solve(slope, error)
        size = error.square().sum(-1)
        better = size < least
        best, least = torch.where(better[..., None], place, best), torch.where(better, size, least)
        near = torch.where(better, step.abs().amax(-1) <= _NEAR, near)
        if places.device.type == "cpu" and bool((step.abs() < _EXACT).all()):
            break
        place = place - step.clamp(-longest, longest)
    return best, near & (least <= _NEAR**2)


# One node of a graph: what is read at places that were read at others takes minutes to compile.
@torch.library.custom_op("kornia_mvit::find_points", mutates_args=())
def _find_opaquely(places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    return _find(places, points)


@_find_opaquely.register_fake
def _(places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(points), points.new_empty(points.shape[:-1], dtype=torch.bool)


def _solve(slope: Tensor, error: Tensor) -> Tensor:
    """Return Newton's step, or the error itself where the warp is flat."""
    a, b = slope[..., 0, 0] + 1, slope[..., 0, 1]
    c, d = slope[..., 1, 0], slope[..., 1, 1] + 1
    determinant = a * d - b * c
    steep = determinant.abs() > _FLAT
    over = 1 / torch.where(steep, determinant, 1.0)
    x, y = error.unbind(-1)
    step = torch.stack([(d * x - b * y) * over, (a * y - c * x) * over], -1)
    return torch.where(steep[..., None], step, error)


def _start(places: Tensor, points: Tensor, stride: int) -> Tensor:
    """Return a place to begin the search at for each point: of one of every so many pixels that shows what is near."""
    height, width = int(places.shape[-2]), int(places.shape[-1])
    thin, size = places[..., ::stride, ::stride], stride**2
    rows, columns = -(-height // size), -(-width // size)
    x, y = thin[:, 0] / size, thin[:, 1] / size
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    cell = torch.where(inside, y.floor() * columns + x.floor(), rows * columns).long().flatten(1)
    number = torch.arange(thin[0, 0].numel(), device=places.device)
    # of the pixels that show something in a cell, the last one, so that results do not hang on an order of writing
    table = number.new_full((len(places), rows * columns + 1), -1)
    table = table.scatter_reduce(1, cell, number.expand_as(cell), "amax")[:, :-1].view(-1, rows, columns)
    span = constant((width - 1, height - 1), points.device, torch.float32).to(points.dtype)
    within = torch.minimum(points.clamp_min(0), span)
    found = torch.full_like(points[..., 0], -1, dtype=torch.int64)
    for level in range(_LEVELS):
        if level:
            below = (-table.shape[-2] % _CELL, -table.shape[-1] % _CELL)
            table = F.pad(table, (0, below[1], 0, below[0]), value=-1)
            table = table.view(len(places), table.shape[1] // _CELL, _CELL, table.shape[2] // _CELL, _CELL).amax((2, 4))
            size *= _CELL
        at = (within / size).floor().long()
        index = at[..., 1] * table.shape[-1] + at[..., 0]
        found = torch.where(found >= 0, found, table.flatten(1).gather(1, index))
    across = int(thin.shape[-1])
    start = torch.stack([found % across, found // across], -1) * stride + 0.5
    return torch.where((found >= 0)[..., None], start.to(points.dtype), points)
