"""Targets taken along with their images, and brought back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.augmentation.keypoints import move_keypoints
from kornia_mvit.batch import Batch
from kornia_mvit.ops.geometry import (
    EDGE_TOLERANCE,
    SHARE_TOLERANCE,
    all_neighbours,
    box_area,
    box_corners,
    constant,
    corner_bounds,
    sample_bilinear,
    transform_points,
)
from kornia_mvit.ops.keypoints import Pairs

__all__ = [
    "MapsBack",
    "detach_memory",
    "filled_size",
    "inverse_boxes",
    "inverse_maps",
    "known_part",
    "move_targets",
    "run_empty",
    "way_back",
]


def move_targets(
    batch: Batch,
    geometry: Geometry,
    *,
    min_box_area: float,
    min_box_visibility: float,
    flip_pairs: Pairs | None,
    sized: bool,
) -> dict[str, Tensor]:
    """Return the boxes, keypoints and size of a batch after its images went through a geometry.

    Boxes that reach both bounds are kept. The others become padding, and padding goes to the end; the order of those
    that are kept stays. A batch without sizes gets them if it is ``sized``.
    """
    out: dict[str, Tensor] = {}
    select: Callable[..., Tensor] | None = None
    if batch.boxes is not None and batch.box_label is not None:
        boxes, share = geometry.move_boxes(batch.boxes)
        area = box_area(boxes)  # none of what is wholly outside, and yet min_box_area may be none
        left = (share > 0) & (area > 0) & (box_area(batch.boxes) > 0)
        large = (area >= min_box_area * (1 - SHARE_TOLERANCE)) & (share >= min_box_visibility - SHARE_TOLERANCE)
        keep = (batch.box_label >= 0) & left & large
        order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        select = partial(_select_rows, keep, order)
        out["boxes"] = select(boxes.to(batch.boxes.dtype))
        out["box_label"] = select(batch.box_label, padding=-1)
        if batch.box_ignore is not None:
            out["box_ignore"] = select(batch.box_ignore)
        if batch.box_weight is not None:
            out["box_weight"] = select(batch.box_weight)
        if batch.box_source is not None:
            out["box_source"] = select(batch.box_source, padding=-1)
    out |= move_keypoints(batch, geometry, flip_pairs, select)
    if batch.size is not None or sized:
        dtype = torch.int64 if batch.size is None else torch.promote_types(batch.size.dtype, torch.int32)
        out["size"] = filled_size(geometry).to(dtype)
    return out


def _select_rows(keep: Tensor, order: Tensor, rows: Tensor, padding: int = 0) -> Tensor:
    """Bring rows (B, N, ...) into another order, and write padding into those that are not kept."""
    places = (..., *[None] * (rows.ndim - 2))
    return rows.masked_fill(~keep[places], padding).gather(1, order[places].expand_as(rows))


def detach_memory(out: Batch, given: Batch) -> Batch:
    """Copy, in a batch, what of it still is the memory of another, so that writing to one leaves the other alone."""
    tensors = [value for value in vars(given).values() if isinstance(value, Tensor)]
    shared = {value.untyped_storage().data_ptr() for value in tensors}
    for name, value in vars(out).items():
        if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in shared:
            setattr(out, name, value.clone())
    if out.meta is not None:
        out.meta = [dict(entry) for entry in out.meta]
    return out


def run_empty(batch: Batch, run: Callable[[Batch], tuple[Batch, dict[str, Any]]]) -> tuple[Batch, dict[str, Any]]:
    """Run a batch of no images by way of one blank image, so that it gets the size that others get.

    Kornia samples nothing for no images, not even their size.
    """
    blank: dict[str, Any] = {
        name: value.new_ones(1, *value.shape[1:]) for name, value in vars(batch).items() if isinstance(value, Tensor)
    }
    if batch.size is not None:
        blank["size"] = torch.tensor([batch.image.shape[2:]]).to(batch.size)
    out, params = run(Batch(**blank, meta=None if batch.meta is None else [{}]))
    geometry = params["geometry"]
    view = None if geometry["view"] is None else geometry["view"][:0]
    steps = [step if (m := step["matrix"]) is None else step | {"matrix": m[:0]} for step in geometry["steps"]]
    none: dict[str, Any] = {"geometry": geometry | {"view": view, "batch": 0, "steps": steps}}
    if "shape" in params:
        none["shape"] = list(batch.image.shape)
    return out[:0], params | none


def filled_size(geometry: Geometry) -> Tensor:
    """Return height and width (B, 2) of the part of the last canvas, from its upper left corner, that holds the images.

    It ends with the last row and column whose centres show an image, and has one of each at least. Behind a step that
    no matrix describes, the whole canvas counts as image.
    """
    rest = known_part(geometry)
    height, width = rest.sizes[0]
    whole = constant((0.0, 0.0, width, height), geometry.device, torch.float32)
    edges = rest.move_boxes(whole.expand(geometry.batch, 1, 4))[0][:, 0, 2:].flip(-1)
    return (edges + 0.5 + EDGE_TOLERANCE).floor().clamp_min(1)


def known_part(geometry: Geometry) -> Geometry:
    """Return the steps behind the last one that no matrix describes; its whole canvas then counts as image."""
    start = max((k + 1 for k, step in enumerate(geometry.steps) if step.matrix is None), default=0)
    view = geometry.view if start == 0 else None
    rest = Geometry(geometry.sizes[start], view, geometry.batch, geometry.device)
    for step in geometry.steps[start:]:
        rest.append(step)
    return rest


def way_back(params: dict[str, Any], like: Tensor) -> Geometry:
    """Read the geometry from a pipeline's parameters, for tensors of as many images on whatever device.

    Raises:
        ValueError: for mixed batches, and for another number of images.
    """
    mix = params["mix"]
    if mix is not None and mix["kind"] != "none":
        raise ValueError(f"a batch mixed by {mix['kind']} has no inverse: its images are of two; augment without mix")
    geometry = Geometry.from_dict(params["geometry"], like.device)
    if len(like) != geometry.batch:
        raise ValueError(f"the parameters are for {geometry.batch} images, but {len(like)} were given")
    return geometry


class MapsBack:
    """Reads dense maps of augmented images at the pixels of the images as they were.

    They are read bilinearly at their own stride, which is what upsampling them first would give, at one
    interpolation less. What was in view is told at the stride of the images, whatever that of the maps is: a pixel was
    where all pixels of the augmented image that it lies between were made from the image alone.

    Args:
        maps: (B, C, h, w), floating point.
        geometry: the way that the images went.
    """

    def __init__(self, maps: Tensor, geometry: Geometry) -> None:
        if maps.ndim != 4 or not maps.is_floating_point():
            raise ValueError(f"maps are (B, C, h, w) and floating point, got {maps.dtype} {tuple(maps.shape)}")
        back = geometry.inverse()
        self.dtype: torch.dtype = maps.dtype
        self.maps: Tensor = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
        self.view: Tensor | None = geometry.view
        self.size: tuple[int, int] = back.sizes[-1]
        x, y, pixels = back.source(0, len(back), self.maps.dtype)
        seen = None if pixels is None else pixels.all()
        height, width = back.sizes[0]
        if geometry.filled is not None:  # bars beside an image are not read
            edge = (geometry.filled.to(x.device, x.dtype) - 0.5)[:, :, None, None]
            x, y = torch.minimum(x, edge[:, 1]), torch.minimum(y, edge[:, 0])
        elif (made := geometry.seen(self.maps.dtype)) is not None:
            made = all_neighbours(made, x, y)
            seen = made if seen is None else seen & made
        self.seen: Tensor | None = seen
        self.x: Tensor = x * (maps.shape[-1] / width)  # on the maps, of each pixel of the result
        self.y: Tensor = y * (maps.shape[-2] / height)

    def read(self, rows: slice = slice(None), classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read rows of the result, and of some of the classes.

        Args:
            rows: those of the result, of ways that only flip, scale and shift.
            classes: (K,), numbers of the channels; None for all.

        Returns:
            The maps (B, K, H, W), zero where nothing was in view, and (B, 1, H, W) where that is not so.
        """
        maps = self.maps if classes is None else self.maps[:, classes]
        out = sample_bilinear(maps, self.x, self.y[:, rows])
        if self.seen is None:
            valid = torch.ones(len(maps), *out.shape[-2:], dtype=torch.bool, device=out.device)
        else:
            valid = self.seen[:, rows]
        if self.view is not None:
            row, column = (torch.arange(n, device=out.device) for n in self.size)
            valid = valid & (row[rows] < self.view[:, :1])[:, :, None] & (column < self.view[:, 1:])[:, None, :]
        return out.masked_fill(~valid[:, None], 0.0).to(self.dtype), valid[:, None]


def inverse_maps(maps: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Bring dense maps back; see :meth:`kornia_mvit.AugmentationPipeline.inverse`."""
    return MapsBack(maps, geometry).read()


def inverse_boxes(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Bring boxes back; see :meth:`kornia_mvit.AugmentationPipeline.inverse_boxes`."""
    back = geometry.inverse()
    corners = transform_points(back.matrix(0, len(back)), box_corners(boxes))
    return corner_bounds(corners).to(boxes.dtype)
