"""The images of a batch a few at a time, so that what lies between two operations stays in the CPU's cache."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kornia_mvit.augmentation.footprints import Point
from kornia_mvit.ops.geometry import complex_grid, sample_bilinear, sample_complex_grid

__all__ = ["ImageWarp", "Seen", "are_sliced", "in_slices"]

SLICE_BYTES = 2**19  # of the images of a slice, as single precision; what is made of them takes as much again

SpreadFunction = Callable[[slice], Sequence[Point]]  # of the rows of some images in the batch
# Takes part of a batch, its rows in the batch, and where the result may be written to, if that is known; gives the same
# part of the result.
PartFunction = Callable[[Tensor, slice, Tensor | None], Tensor]


def are_sliced(image: Tensor) -> bool:
    """Tell whether batches go by slices: on a CPU, where no graph is made of what is done to them."""
    return image.device.type == "cpu" and not torch.compiler.is_compiling()


def in_slices(image: Tensor, function: PartFunction) -> Tensor:
    """Apply a function to a batch, on a CPU to a few images at a time, as many at least as there are threads.

    Args:
        image: (B, ...), a batch of at least one image.
        function: takes images (b, ...), their rows in the batch, and a tensor that it may write its result (b, ...) to.

    Returns:
        (B, ...) of what it gave.

    Example:
        >>> in_slices(torch.ones(3), lambda part, rows, out: part + torch.arange(rows.start, rows.stop))
        tensor([1., 2., 3.])
    """
    count = len(image)
    step = count
    if are_sliced(image):
        step = torch.get_num_threads() * max(1, SLICE_BYTES // (4 * max(1, image[0].numel())))
    if step >= count:
        return function(image, slice(0, count), None)
    out: Tensor | None = None
    for start in range(0, count, step):
        rows = slice(start, min(count, start + step))
        place = None if out is None else out[rows]
        part = function(image[rows], rows, place)
        if out is None:
            out = part.new_empty((count, *part.shape[1:]))
        if part is not place:
            out[rows] = part
    assert out is not None
    return out


class Seen:
    """Which pixels of a batch were in view: those of which two masks say so.

    Where rows stay rows, one is of columns and the other of rows, and they are brought together slice by slice.

    Args:
        across: (B, 1, w) or (B, h, w), bool.
        down: (B, h, 1) or (B, h, w), bool.
    """

    def __init__(self, across: Tensor, down: Tensor) -> None:
        self._masks = across, down

    def __and__(self, other: "Seen") -> "Seen":
        return Seen(*(mine & theirs for mine, theirs in zip(self._masks, other._masks, strict=True)))

    def all(self) -> Tensor:
        """Return the mask of the batch: (B, h, w)."""
        return self._masks[0] & self._masks[1]

    def sides(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the masks of columns (b, 1, w) and of rows (b, h, 1) of some images, where rows stay rows."""
        across, down = (mask[rows] if len(mask) > 1 else mask for mask in self._masks)
        return across, down

    def part(self, rows: slice) -> Tensor | None:
        """Return the mask (b, h, w) of some images, or None where a slice on a CPU has all of them in view."""
        across, down = (mask[rows] for mask in self._masks)
        if are_sliced(across) and bool(across.all()) and bool(down.all()):
            return None
        return across & down


class ImageWarp:
    """Read the images of a batch bilinearly at points, the outermost pixels repeated beyond the edge.

    Of a slice of uint8 images, the window alone that the points lie in becomes floating point.

    Args:
        image: the batch (B, C, H, W), floating point, or uint8, which becomes floating point in [0, 1].
        x: of the points, in pixels, (B, 1, w) or (B, h, w).
        y: of the points, in pixels, (B, h, 1) or (B, h, w).
        seen: where the result is not zero; None for everywhere.
        spread: gives for some images the points, as pairs of x and y, of which a pixel of the result is the mean, a
            power of two in number, in place of x and y.
    """

    def __init__(
        self, image: Tensor, x: Tensor, y: Tensor, seen: Seen | None, spread: SpreadFunction | None = None
    ) -> None:
        self._dtype = x.dtype
        self._seen = seen
        self._spread = spread
        self._sliced = are_sliced(image)
        self._windows: list[tuple[float, ...]] = []
        self._frame: Tensor | None = None  # serves one slice after another, so that it stays in the cache
        if self._sliced and not image.is_floating_point() and spread is None:
            self._windows = _find_windows([(x, y)])
        self._at = (x, y)
        if self._sliced and spread is None:
            self._at = complex_grid(x, y, (int(image.shape[-2]), int(image.shape[-1])))

    def __call__(self, part: Tensor, rows: slice) -> Tensor:
        """Return what the points of some rows show of their images: (b, C, h, w)."""
        points = None if self._spread is None else self._spread(rows)
        if points is not None and self._sliced and _are_one(points):
            points = points[:1]
        if not part.is_floating_point():
            if self._sliced:
                part = self._read(part, self._windows[rows] if points is None else _find_windows(points))
            else:
                part = part.to(self._dtype).div_(255.0)
        if points is not None:
            out = _mean_of([sample_bilinear(part, *point) for point in points])
        else:
            sample = sample_complex_grid if self._sliced else sample_bilinear
            out = sample(part, *(places[rows] for places in self._at))
        seen = None if self._seen is None else self._seen.part(rows)
        return out if seen is None else out * seen[:, None]

    def _read(self, part: Tensor, windows: list[tuple[float, ...]]) -> Tensor:
        """Return images that are right inside their windows; elsewhere they hold what was read before."""
        if self._frame is None:
            self._frame = torch.zeros(part.shape, dtype=self._dtype)
        frame = self._frame[: len(part)]
        tops, bottoms, lefts, rights = zip(*windows, strict=True)
        window = (..., _span(min(tops), max(bottoms), part.shape[-2]), _span(min(lefts), max(rights), part.shape[-1]))
        frame[window].copy_(part[window]).div_(255.0)
        return frame


def _find_windows(points: Sequence[Point]) -> list[tuple[float, ...]]:
    """Return least and greatest y and x of each image's points."""
    bounds = [
        torch.stack([torch.stack(torch.aminmax(v.flatten(1), dim=1)) for v in vs]) for vs in zip(*points, strict=True)
    ]
    x, y = ((low.amin(0), high.amax(0)) for low, high in (bound.unbind(1) for bound in bounds))
    return [tuple(row) for row in torch.stack([*y, *x], 1).tolist()]


def _are_one(points: Sequence[Point]) -> bool:
    """Tell whether points are spread over nothing: the first and the last are the same."""
    return all(torch.equal(first, last) for first, last in zip(points[0], points[-1], strict=True))


def _mean_of(images: list[Tensor]) -> Tensor:
    """Return the mean of images, a power of two in number, which is exact where they are the same."""
    while len(images) > 1:
        images = [a.add_(b).mul_(0.5) for a, b in zip(images[::2], images[1::2], strict=True)]
    return images[0]


def _span(low: float, high: float, length: int) -> slice:
    """Return the pixels of a side that a bilinear look at points reads, and one more on both sides."""
    if not math.isfinite(low) or not math.isfinite(high):
        return slice(0, length)
    return slice(min(max(math.floor(low) - 2, 0), length - 1), max(min(math.ceil(high) + 2, length), 1))
