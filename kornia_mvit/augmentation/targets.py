"""Targets taken along with their images, and brought back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.augmentation.keypoints import move_keypoints
from kornia_mvit.augmentation.rows import pick_rows
from kornia_mvit.augmentation.slices import are_sliced
from kornia_mvit.batch import Batch, map_tensors
from kornia_mvit.ops.boxes import have_pixels, masks_to_boxes
from kornia_mvit.ops.geometry import (
    EDGE_TOLERANCE,
    SHARE_TOLERANCE,
    all_neighbours,
    box_area,
    constant,
    sample_bilinear,
)
from kornia_mvit.ops.keypoints import Pairs
from kornia_mvit.ops.oriented import fit_oriented, oriented_corners, transform_oriented

__all__ = [
    "BoxRules",
    "MapsBack",
    "choose_box_method",
    "detach_memory",
    "filled_size",
    "inverse_boxes",
    "inverse_maps",
    "inverse_oriented",
    "known_part",
    "move_targets",
    "run_empty",
    "warp_instances",
    "way_back",
]

# Takes the order (B, N) that instance masks are wanted in and which of them are kept, or None and None for all as they
# are; gives the masks where the images are to be.
InstanceWarp = Callable[[Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True)
class BoxRules:
    """How boxes are measured, and which of them are kept; see :class:`kornia_mvit.AugmentationPipeline`.

    Raises:
        ValueError: for a negative area, or a visibility outside [0, 1].
    """

    min_area: float
    min_visibility: float
    method: str = "corners"

    def __post_init__(self) -> None:
        """Check the two limits."""
        if self.min_area < 0 or not 0 <= self.min_visibility <= 1:
            raise ValueError(
                f"min_box_area {self.min_area} is negative, or min_box_visibility {self.min_visibility} not in [0, 1]"
            )


def choose_box_method(method: str, from_masks: bool) -> str:
    """Return how boxes are measured, from two arguments of a pipeline.

    Raises:
        ValueError: for an unknown method, and arguments that contradict each other.
    """
    if method not in ("corners", "ellipse", "mask", "oriented"):
        raise ValueError(f"unknown box_method {method!r}; available: 'corners', 'ellipse', 'mask', 'oriented'")
    if from_masks and method in ("ellipse", "oriented"):
        raise ValueError(f"box_method={method!r} and boxes_from_masks=True contradict each other; leave one out")
    return "mask" if from_masks else method


def move_targets(
    batch: Batch,
    geometry: Geometry,
    rules: BoxRules,
    *,
    flip_pairs: Pairs | None,
    sized: bool,
    warp: InstanceWarp | None = None,
) -> dict[str, Any]:
    """Return the boxes with what is bound to them, keypoints and size of a batch that went through a geometry.

    Boxes that the rules keep stay in their order. The others become padding, and padding goes to the end. A batch
    without sizes gets them if it is ``sized``.

    Args:
        batch: as it was given.
        geometry: where its pixels went.
        rules: for its boxes.
        flip_pairs: keypoints that are swapped in mirrored images.
        sized: whether the result has sizes in any case.
        warp: brings its instance masks to where the images are; by the geometry when None.
    """
    out: dict[str, Any] = {}
    select: Callable[..., Tensor] | None = None
    if batch.boxes is not None and batch.box_label is not None:
        moved, select = _move_boxes(batch, geometry, rules, warp)
        out |= moved
    out |= move_keypoints(batch, geometry, flip_pairs, select)
    if batch.size is not None or sized:
        dtype = torch.int64 if batch.size is None else torch.promote_types(batch.size.dtype, torch.int32)
        out["size"] = filled_size(geometry).to(dtype)
    return out


def _is_own(masks: Tensor, given: Tensor | None) -> bool:
    """Tell whether masks may be written to, on a CPU that goes by slices: they are not the memory of the given ones."""
    if given is None or not are_sliced(masks):
        return False
    return masks.untyped_storage().data_ptr() != given.untyped_storage().data_ptr()


def _close_up(masks: Tensor, keep: Tensor) -> Tensor:
    """Bring the masks (B, N, H, W) that are kept to the front, in place, and empty the rest: memory is what costs."""
    for of_image, kept in zip(masks, keep.tolist(), strict=True):
        numbers = [number for number, one in enumerate(kept) if one]
        for place, number in enumerate(numbers):
            if place != number:
                of_image[place] = of_image[number]
        of_image[len(numbers) :] = 0
    return masks


def _move_boxes(
    batch: Batch, geometry: Geometry, rules: BoxRules, warp: InstanceWarp | None
) -> tuple[dict[str, Any], Callable[..., Tensor]]:
    """Return the boxes of a batch that are kept with what is bound to them, and what selects other rows likewise."""
    given, label, masks = batch.boxes, batch.box_label, batch.instance_masks
    assert given is not None and label is not None
    corners: Tensor | None = None
    if rules.method == "oriented":
        if batch.oriented_boxes is None:
            raise ValueError(
                "box_method='oriented' makes boxes of oriented ones, and the batch has boxes without oriented_boxes; "
                "give them, or take 'corners' or 'ellipse'"
            )
        corners = oriented_corners(batch.oriented_boxes.double())
    boxes, share = geometry.move_boxes(given, ellipses=rules.method == "ellipse", corners=corners)
    if masks is not None and warp is None:
        warp = partial(warp_instances, masks, geometry)
    moved: Tensor | None = None
    if rules.method == "mask" and masks is not None and warp is not None:
        moved = warp(None, None)
        known = have_pixels(masks)[..., None]  # of the others, there is nothing to go by but the corners
        boxes = torch.where(known, masks_to_boxes(moved.view(torch.bool)).to(boxes.dtype), boxes)
    area, boxes = box_area(boxes), boxes.to(given.dtype)  # which may leave no area of a sliver
    left = (share > 0) & (box_area(boxes) > 0) & (box_area(given) > 0)  # min_area may be none
    large = (area >= rules.min_area * (1 - SHARE_TOLERANCE)) & (share >= rules.min_visibility - SHARE_TOLERANCE)
    keep = (label >= 0) & left & large
    order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    kept = keep.gather(1, order)

    follow = partial(pick_rows, order=order, kept=kept)
    out: dict[str, Any] = {
        "boxes": follow(boxes),
        "box_label": follow(label, padding=-1),
        "box_index": order.masked_fill(~kept, -1),
    }
    for name, fill in {"box_ignore": 0, "box_weight": 0, "box_source": -1}.items():
        if (rows := getattr(batch, name)) is not None:
            out[name] = follow(rows, padding=fill)
    if batch.oriented_boxes is not None:
        out["oriented_boxes"] = follow(_move_oriented(batch.oriented_boxes, geometry))
    if batch.fields is not None:
        out["fields"] = {name: follow(rows) for name, rows in batch.fields.items()}
    if moved is not None:
        out["instance_masks"] = _close_up(moved, keep) if _is_own(moved, masks) else follow(moved)
    elif warp is not None:
        out["instance_masks"] = warp(order, keep)
    return out, follow


def _move_oriented(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Bring oriented boxes (B, N, 5) to the last canvas: the smallest around where their corners go, not cut."""
    if not len(geometry):
        return boxes
    corners = oriented_corners(boxes.double()).flatten(1, 2)
    return fit_oriented(geometry.move_points(corners)[0].view(*boxes.shape[:2], 4, 2)).to(boxes.dtype)


def warp_instances(
    masks: Tensor, geometry: Geometry, order: Tensor | None = None, keep: Tensor | None = None, *, first: int = 0
) -> Tensor:
    """Bring masks of single objects to the last canvas of a geometry.

    Args:
        masks: (B, N, H, W), on canvas ``first``.
        geometry: where pixels go.
        order: (B, N) of the result; that of the masks when None.
        keep: (B, N) which of the given masks are kept, first ones of the order; the others become empty.
        first: number of a canvas.
    """
    last = len(geometry)
    still = first == last and not (first == 0 and geometry.view is not None)
    rows: list[list[int]] | None = None
    if order is not None and keep is not None and are_sliced(masks):
        counts = keep.sum(1).tolist()
        if still and min(counts, default=0) == masks.shape[1]:
            return masks
        rows = [numbers[:count] for numbers, count in zip(order.tolist(), counts, strict=True)]
    if rows is not None and not still:
        return geometry.warp_instances(masks, first, last, rows)
    moved = masks if still else geometry.warp_instances(masks, first, last)
    if order is None or keep is None:
        return moved
    return pick_rows(moved, order, keep.gather(1, order))


def detach_memory(out: Batch, given: Batch) -> Batch:
    """Copy, in a batch, what of it still is the memory of another, so that writing to one leaves the other alone."""
    further = [one.tensor for one in (given.extra or {}).values()]
    held = (*vars(given).values(), *(given.fields or {}).values(), *further)
    tensors = [value for value in held if isinstance(value, Tensor)]
    shared = {value.untyped_storage().data_ptr() for value in tensors}

    def own(value: Tensor) -> Tensor:
        return value.clone() if value.untyped_storage().data_ptr() in shared else value

    for name, value in vars(out).items():
        if isinstance(value, Tensor | dict):
            setattr(out, name, map_tensors(value, own))
    if out.meta is not None:
        out.meta = [dict(entry) for entry in out.meta]
    return out


def run_empty(batch: Batch, run: Callable[[Batch], tuple[Batch, dict[str, Any]]]) -> tuple[Batch, dict[str, Any]]:
    """Run a batch of no images by way of one blank image, so that it gets the size that others get.

    Kornia samples nothing for no images, not even their size.
    """
    blank: dict[str, Any] = {
        name: map_tensors(value, lambda one: one.new_ones(1, *one.shape[1:]))
        for name, value in vars(batch).items()
        if isinstance(value, Tensor | dict)
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

    It ends with the last row and column whose centres show an image, and has one of each at least. Behind a step of
    which it is not known where it moves pixels, the whole canvas counts as image.
    """
    rest = known_part(geometry)
    height, width = rest.sizes[0]
    whole = constant((0.0, 0.0, width, height), geometry.device, torch.float32)
    edges = rest.move_boxes(whole.expand(geometry.batch, 1, 4))[0][:, 0, 2:].flip(-1)
    return (edges + 0.5 + EDGE_TOLERANCE).floor().clamp_min(1)


def known_part(geometry: Geometry) -> Geometry:
    """Return the steps behind the last one that is not known; its whole canvas then counts as image."""
    start = max((k + 1 for k, step in enumerate(geometry.steps) if not step.known), default=0)
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
        raise ValueError(
            f"a batch mixed by {mix['kind']} has no inverse: its images are of several; augment without mix"
        )
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


def inverse_boxes(boxes: Tensor, geometry: Geometry, *, ellipses: bool = False) -> Tensor:
    """Bring boxes back; see :meth:`kornia_mvit.AugmentationPipeline.inverse_boxes`."""
    return geometry.inverse().carry_boxes(boxes, ellipses=ellipses).to(boxes.dtype)


def inverse_oriented(boxes: Tensor, geometry: Geometry) -> Tensor:
    """Bring oriented boxes back; see :meth:`kornia_mvit.AugmentationPipeline.inverse_oriented_boxes`."""
    back = geometry.inverse()
    if back.has_matrix(0, len(back)):
        return transform_oriented(back.matrix(0, len(back)), boxes) if len(back) else boxes.clone()
    corners = back.carry_points(oriented_corners(boxes.double()))
    return fit_oriented(corners).to(boxes.dtype)
