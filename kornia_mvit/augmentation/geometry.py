"""Where the pixels of a batch went: the geometric steps of an augmentation, and targets taken along or back."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from kornia_mvit.augmentation.footprints import Point, count_samples, spread_points
from kornia_mvit.augmentation.outlines import Corners, Ellipses, Outlines, Shapes, bend, read_instances
from kornia_mvit.augmentation.slices import ImageWarp, Seen, in_slices
from kornia_mvit.ops.geometry import (
    all_neighbours,
    box_area,
    constant,
    gather_pixels,
    invert,
    is_inside,
    is_within,
    source_points,
    transform_points,
)
from kornia_mvit.ops.keypoints import is_mirrored
from kornia_mvit.ops.uploads import upload
from kornia_mvit.ops.warps import find_points, show_map, show_points

__all__ = ["Geometry", "Step"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One geometric step.

    Args:
        name: of the operation.
        matrix: (B, 3, 3), from points of the canvas before to points of the canvas after, see
            :mod:`kornia_mvit.ops.geometry`; None for a step that no matrix describes.
        size: height and width of the canvas after, in pixels.
        covers: every pixel of the canvas after comes from inside the canvas before.
        aligned: rows stay rows and columns columns.
        joined: it was carried out with the step before, in one.
        rim: pixels whose source is nearer than that to the edge of the canvas before are mixed with what lies outside,
            in pixels of that canvas.
        places: (B, 2, h, w) what each pixel of the canvas after shows of the canvas before, for a free warp; see
            :mod:`kornia_mvit.ops.warps`.
        back: ``places`` are of the way that this step goes back.
        reach: see :func:`~kornia_mvit.augmentation.footprints.find_reach`.
    """

    name: str
    matrix: Tensor | None
    size: Size
    covers: bool = False
    aligned: bool = False
    joined: bool = False
    rim: float = 0.0
    places: Tensor | None = None
    back: bool = False
    reach: float = 1.0

    @property
    def known(self) -> bool:
        """Whether it is known where the step moves points."""
        return self.matrix is not None or self.places is not None

    def move(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Bring points (B, ..., 2) to the canvas after; also tell which (B, ...) were found, None for all."""
        if self.matrix is not None:
            return transform_points(self.matrix, points), None
        assert self.places is not None, self.name
        return _follow(self.places, points, find=not self.back)

    def trace(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring points of the canvas after, x and y that broadcast to (B, h, w), to the canvas before.

        Returns:
            x and y, and which of the points are of that canvas, None for all.
        """
        if self.matrix is not None:
            m = invert(self.matrix).to(x.dtype)[:, :, :, None, None]
            across, down, depth = (m[:, k, 0] * x + m[:, k, 1] * y + m[:, k, 2] for k in range(3))
            return across / depth, down / depth, depth > 0
        assert self.places is not None, self.name
        if not self.back:
            return *show_map(self.places, x, y), None
        shape = (len(self.places), y.shape[1], x.shape[2])
        found, there = _follow(self.places, torch.stack([x.expand(shape), y.expand(shape)], -1), find=True)
        return found[..., 0], found[..., 1], there


def _follow(places: Tensor, points: Tensor, *, find: bool) -> tuple[Tensor, Tensor | None]:
    """Bring points (B, ..., 2) through a free warp: where they are shown, with ``find``, or to what they show."""
    flat = points.flatten(1, -2)
    moved, found = find_points(places, flat) if find else (show_points(places, flat), None)
    return moved.view(points.shape), None if found is None else found.view(points.shape[:-1])


class Geometry:
    """The geometric steps that a batch went through, in order.

    Args:
        size: height and width of the first canvas, in pixels.
        view: (B, 2) height and width of the part of it that is image, or None where all is.
        batch: number of images.
    """

    def __init__(self, size: Size, view: Tensor | None, batch: int, device: torch.device) -> None:
        self.sizes: list[Size] = [size]
        self.view: Tensor | None = None if view is None else view.to(device, non_blocking=True, copy=True)
        self.batch = batch
        self.device = device
        self.steps: list[Step] = []
        # (B, 2) height and width of the part of the last canvas that is image, where a letterbox or a canvas of several
        # images has more
        self.filled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def append(self, step: Step) -> None:
        """Add a step; which part of its canvas is image is not known yet."""
        self.filled = None
        if step.matrix is not None:
            (matrix,) = upload([step.matrix], self.device)
            step = replace(step, matrix=matrix.double().expand(self.batch, 3, 3))
        elif step.places is not None:
            step = replace(step, places=step.places.to(self.device, non_blocking=True))
        self.steps.append(step)
        self.sizes.append(step.size)

    def matrix(self, first: int, last: int) -> Tensor:
        """Return the matrices from canvas ``first`` to canvas ``last``: (B, 3, 3)."""
        out = torch.eye(3, dtype=torch.float64, device=self.device).expand(self.batch, 3, 3)
        for step in self.steps[first:last]:
            assert step.matrix is not None, step.name
            out = step.matrix @ out
        return out

    def source(
        self, first: int, last: int, dtype: torch.dtype, *, whole: bool = False
    ) -> tuple[Tensor, Tensor, Seen | None]:
        """Say where the pixels of canvas ``last`` lie on canvas ``first``, and which of them were in view all along.

        With ``whole``, pixels that were mixed with what lies outside do not count as in view.

        Returns:
            x and y that broadcast to (B, h, w), and the pixels that were in view, or None where every pixel was.
        """
        size = self.sizes[last]
        steps = self.steps[first:last]
        if any(step.places is not None for step in steps):
            return self._source_freely(first, last, dtype, whole)
        x = y = None
        seen: Seen | None = None
        for k in range(last - 1, first - 1, -1):
            view = self.view if k == 0 else None
            if k > first and self.steps[k].covers and view is None:
                continue
            aligned = all(step.aligned for step in self.steps[k:last])
            x, y, depth = source_points(invert(self.matrix(k, last)), size, dtype, aligned=aligned)
            if self.steps[k].covers and view is None:
                continue
            inside = _inside(x, y, self.sizes[k], view, self.steps[k].rim if whole else 0.0)
            if depth is not None:
                inside = inside & Seen(depth > 0, depth > 0)
            seen = inside if seen is None else seen & inside
        if x is None or y is None:
            assert not steps
            x, y, _ = source_points(self.matrix(0, 0), size, dtype, aligned=True)
            if first == 0 and self.view is not None:
                seen = _inside(x, y, size, self.view)
        return x, y, seen

    def _source_freely(self, first: int, last: int, dtype: torch.dtype, whole: bool) -> tuple[Tensor, Tensor, Seen]:
        """Do as :meth:`source` step by step, where some step is a free warp."""
        x, y, _ = source_points(self.matrix(0, 0), self.sizes[last], dtype, aligned=True)
        seen: Seen | None = None
        for k in range(last - 1, first - 1, -1):
            step, view = self.steps[k], self.view if k == 0 else None
            if k == last - 1 and step.places is not None and not step.back:
                x, y, found = *step.places.to(dtype).unbind(1), None
            else:
                x, y, found = step.trace(x, y)
            inside = _inside(x, y, self.sizes[k], view, step.rim if whole else 0.0)
            if found is not None:
                inside = inside & Seen(found, found)
            if not step.covers or view is not None or found is not None:
                seen = inside if seen is None else seen & inside
        assert seen is not None
        return x, y, seen

    def seen(self, dtype: torch.dtype) -> Tensor | None:
        """Tell which pixels of the last canvas were made from nothing but the image: (B, h, w), None for all."""
        seen: Tensor | None = None
        bounds = [k for k, step in enumerate(self.steps) if not step.joined]
        for first, last in zip(bounds, [*bounds[1:], len(self)], strict=False):
            x, y, pixels = self.source(first, last, dtype, whole=True)
            inside = None if pixels is None else pixels.all()
            if seen is not None:
                before = all_neighbours(seen, x, y)
                inside = before if inside is None else inside & before
            seen = inside
        return seen

    def warp_image(self, image: Tensor, first: int, last: int) -> Tensor:
        """Bring images of canvas ``first`` to canvas ``last`` in one bilinear step; zero where nothing was in view.

        Images of uint8 become floating point in [0, 1].
        """
        warp = self.image_warp(image, first, last)
        return in_slices(image, lambda part, rows, _: warp(part, rows))

    def image_warp(self, image: Tensor, first: int, last: int, *, antialias: bool = False) -> ImageWarp:
        """Return what warps parts of a batch of images, as :meth:`warp_image` does all of them.

        With ``antialias``, the footprints of pixels are read where images become smaller.
        """
        dtype = image.dtype if image.is_floating_point() else torch.get_default_dtype()
        x, y, seen = self.source(first, last, dtype)
        if not antialias:
            return ImageWarp(image, *self.in_view(x, y, first), seen)
        reach = 1.0
        for step in self.steps[first:last]:
            reach *= step.reach
        return ImageWarp(image, x, y, seen, partial(self._spread, x, y, first, count_samples(reach)))

    def _spread(self, x: Tensor, y: Tensor, first: int, count: int, rows: slice) -> list[Point]:
        return [self.in_view(*point, first, rows) for point in spread_points(x[rows], y[rows], count)]

    def warp_mask(self, mask: Tensor, first: int, last: int, ignore_index: int) -> Tensor:
        """Bring masks (B, H, W) of canvas ``first`` to canvas ``last``; ``ignore_index`` where nothing was in view."""
        x, y, seen = self.source(first, last, torch.float32)
        x, y = self.in_view(x, y, first)

        def warp(part: Tensor, rows: slice, _: Tensor | None) -> Tensor:
            out, inside = gather_pixels(part, x[rows], y[rows]), None if seen is None else seen.part(rows)
            return out if inside is None else out.masked_fill_(~inside, ignore_index)

        return in_slices(mask, warp)

    def warp_instances(self, masks: Tensor, first: int, last: int, rows: list[list[int]] | None = None) -> Tensor:
        """Bring masks of single objects (B, N, H, W) of canvas ``first`` to canvas ``last``; none where none was seen.

        Args:
            masks: bool, or uint8 of 0 and 1.
            first: number of a canvas.
            last: number of a canvas.
            rows: for batches that go by slices, which masks of each image are wanted; the others become empty and go to
                the end.
        """
        x, y, seen = self.source(first, last, torch.float32)
        return read_instances(masks, *self.in_view(x, y, first), seen, rows)

    def in_view(self, x: Tensor, y: Tensor, canvas: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Bring points of a canvas, of some images, to pixels that are image, so that no padding is read."""
        if canvas > 0 or self.view is None:
            return x, y
        edge = (self.view[rows].to(x.dtype) - 0.5)[:, :, None, None]
        return torch.minimum(x, edge[:, 1]), torch.minimum(y, edge[:, 0])

    def move_boxes(
        self, boxes: Tensor, *, ellipses: bool = False, corners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Bring boxes (B, N, 4) to the last canvas, clipped to it and to what was in view before.

        A box that is cut by the edge of a canvas between is cut there; any other stays a quadrilateral until the end,
        so that two rotations widen it but once.

        Args:
            boxes: left, top, right and bottom.
            ellipses: the boxes are those around the ellipses inside the given ones, not around their corners.
            corners: (B, N, 4, 2) that the boxes are those around, in place of their own.

        Returns:
            boxes (B, N, 4), float64, and the share (B, N) of each one's area that is still in view, where a box that
            was turned counts as the upright one around it.
        """
        shapes: Shapes = Ellipses(boxes.double()) if ellipses else Corners(boxes.double(), corners)
        share = _clip(shapes, self._limit(0))
        for k, step in enumerate(self.steps):
            if k > 0 and not step.covers:
                share = share * _clip(shapes, self._limit(k))
            if step.matrix is not None:
                shapes.move(step.matrix)
                continue
            shapes, left = bend(shapes, step.move, self.sizes[k + 1])
            share = share * left
        limit = self._limit(len(self))
        share = share * _clip(shapes, limit)
        return _within(shapes.bounds(), limit), share

    def move_points(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Bring points (B, N, 2) to the last canvas.

        Returns:
            points (B, N, 2), float64, and (B, N) whether each was in view all along.
        """
        points = points.double()
        seen = _contains(points, self._limit(0))
        for k, step in enumerate(self.steps):
            if k > 0 and not step.covers:
                seen = seen & _contains(points, self._limit(k))
            points, found = step.move(points)
            seen = seen if found is None else seen & found
        return points, seen & _contains(points, self._limit(len(self)))

    def has_matrix(self, first: int, last: int) -> bool:
        """Tell whether one matrix says it all from canvas ``first`` to canvas ``last``."""
        return all(step.matrix is not None for step in self.steps[first:last])

    def carry_points(self, points: Tensor) -> Tensor:
        """Bring points (B, ..., 2) to the last canvas, in view or not: float64."""
        if self.has_matrix(0, len(self)):
            return transform_points(self.matrix(0, len(self)), points)
        return self.follow_points(points.double(), 0, len(self))[0]

    def follow_points(self, points: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Bring points (B, ..., 2) of canvas ``first`` to canvas ``last``, and tell which were found."""
        known = torch.ones_like(points[..., 0], dtype=torch.bool)
        for step in self.steps[first:last]:
            points, found = step.move(points)
            known = known if found is None else known & found
        return points, known

    def carry_boxes(self, boxes: Tensor, *, ellipses: bool = False) -> Tensor:
        """Bring boxes (B, N, 4) to the last canvas, unclipped, as :meth:`move_boxes` measures them."""
        shapes: Shapes = (Ellipses if ellipses else Corners)(boxes.double())
        if self.has_matrix(0, len(self)):
            shapes.move(self.matrix(0, len(self)))
            return shapes.bounds()
        for k, step in enumerate(self.steps):
            if step.matrix is not None:
                shapes.move(step.matrix)
            else:
                shapes = Outlines(step.move(shapes.outline(self.sizes[k]))[0])
        return shapes.bounds()

    def mirrored(self) -> Tensor:
        """Tell which images (B,) end up mirrored, as far as matrices say so: free warps bend, and do not mirror."""
        rigid = [step.matrix for step in self.steps if step.matrix is not None]
        out = torch.eye(3, dtype=torch.float64, device=self.device).expand(self.batch, 3, 3)
        for matrix in rigid:
            out = matrix @ out
        return is_mirrored(out)

    def inverse(self) -> Self:
        """Return the way back: from the last canvas to the first.

        Raises:
            ValueError: naming the steps of which it is not known where they move pixels.
        """
        if lost := [step.name for step in self.steps if not step.known]:
            raise ValueError(f"{', '.join(lost)} cannot be inverted: no matrix describes it; leave it out, or p=0")
        out = type(self)(self.sizes[-1], None, self.batch, self.device)
        for step, size in zip(reversed(self.steps), reversed(self.sizes[:-1]), strict=True):
            matrix = None if step.matrix is None else invert(step.matrix)
            out.append(Step(step.name, matrix, size, aligned=step.aligned, places=step.places, back=matrix is None))
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the steps as tensors, numbers and strings."""
        return {
            "size": list(self.sizes[0]),
            "view": self.view,
            "batch": self.batch,
            "filled": self.filled,
            "steps": [vars(step) | {"size": list(step.size)} for step in self.steps],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], device: torch.device) -> Self:
        """Read what :meth:`to_dict` gives."""
        height, width = data["size"]
        out = cls((height, width), data["view"], data["batch"], device)
        for step in data["steps"]:
            h, w = step["size"]
            out.append(Step(**(step | {"size": (h, w)})))
        out.filled = data.get("filled")  # which parameters that were saved before have not got
        return out

    def _limit(self, canvas: int) -> Tensor:
        """Return width and height of what is in view on a canvas: (2,) or (B, 1, 2), float64."""
        if canvas == 0 and self.view is not None:
            return self.view.double().flip(-1)[:, None]
        height, width = self.sizes[canvas]
        return constant((width, height), self.device)


def _inside(x: Tensor, y: Tensor, size: Size, view: Tensor | None, rim: float = 0.0) -> Seen:
    if view is None:
        return Seen(is_within(x, size[1], rim), is_within(y, size[0], rim))
    limit = view.to(x.dtype)[:, :, None, None]
    return Seen(is_within(x, limit[:, 1], rim), is_within(y, limit[:, 0], rim))


def _contains(points: Tensor, limit: Tensor) -> Tensor:
    return is_inside(points[..., 0], points[..., 1], limit[..., 0], limit[..., 1])


def _within(boxes: Tensor, limit: Tensor) -> Tensor:
    """Cut boxes (B, N, 4) at the edges of a canvas of a width and height."""
    return torch.cat([side.clamp_min(0).minimum(limit) for side in (boxes[..., :2], boxes[..., 2:])], -1)


def _clip(shapes: Shapes, limit: Tensor) -> Tensor:
    """Cut shapes that leave a canvas down to boxes, and say which share (B, N) of each one is left."""
    bounds = shapes.bounds()
    clipped = _within(bounds, limit)
    within = _contains(bounds.view(*bounds.shape[:-1], 2, 2), limit.unsqueeze(-2)).all(-1)
    shapes.cut(clipped, ~within)
    share = box_area(clipped) / box_area(bounds).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(within, 1.0, share)
