"""Images composed of parts of several images of a batch, with the targets of those parts."""

# B images of a batch, M of them that are mixed, N boxes of an image with padding, H W canvas

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kornia_mvit.augmentation.outlines import read_instances
from kornia_mvit.augmentation.rows import pick_rows
from kornia_mvit.augmentation.targets import BoxRules
from kornia_mvit.batch import Batch
from kornia_mvit.ops.boxes import have_pixels, masks_to_boxes
from kornia_mvit.ops.geometry import (
    EDGE_TOLERANCE,
    SHARE_TOLERANCE,
    box_area,
    gather_pixels,
    is_inside,
    sample_bilinear,
)

__all__ = [
    "CutBoxes",
    "Layer",
    "box_rows",
    "clip_boxes",
    "cover_boxes",
    "join_boxes",
    "keep_boxes",
    "name_rows",
    "read_image",
    "read_map",
]


# What has a row for each box, and what rows of padding hold.
_ROWS = {
    **{"boxes": 0, "box_label": -1, "box_ignore": 0, "box_weight": 0, "box_index": -1, "box_source": -1},
    **{"oriented_boxes": 0, "instance_masks": 0},
}
_POINTS = {"keypoints": 0, "keypoint_visible": 0, "keypoint_index": -1}  # the same, of keypoints (B, N, K, 2)
_FIELD = "fields."  # before the names of the batch's own fields


class CutBoxes(NamedTuple):
    """Boxes of a layer as the result shows them.

    Args:
        boxes: (M, N, 4) the boxes around what is left of them, in pixels of the result.
        area: (M, N) what is left of each, in square pixels of the result.
        share: (M, N) the same as a share of the whole box.
    """

    boxes: Tensor
    area: Tensor
    share: Tensor


@dataclass(frozen=True)
class Layer:
    """What mixed images show of one image each.

    Args:
        source: (M,) the image of the batch that each mixed image shows.
        cut: brings boxes (M, N, 4), float64, of these images to the result.
        shown: (M, H, W) the pixels of the result that show it; None for all.
        weight: (M,) its weight in the result, if each pixel shows several layers; None where that is 1.
        places: x and y of the pixels of the result in the image, broadcasting to (M, H, W); None where they stay.
        move: brings points (M, P, 2), float64, of these images to the result; None where they stay.
    """

    source: Tensor
    cut: Callable[[Tensor], CutBoxes]
    shown: Tensor | None = None
    weight: Tensor | None = None
    places: tuple[Tensor, Tensor] | None = None
    move: Callable[[Tensor], Tensor] | None = None


def box_rows(batch: Batch) -> dict[str, tuple[Tensor, int]]:
    """Return what a batch has a row (B, N, ...) for each box of, by name, and what rows of padding hold."""
    known = _ROWS if batch.keypoints is None or batch.keypoints.ndim == 3 else _ROWS | _POINTS
    out = {name: (value, fill) for name, fill in known.items() if (value := getattr(batch, name)) is not None}
    return out | {_FIELD + name: (value, 0) for name, value in (batch.fields or {}).items()}


def name_rows(rows: dict[str, Tensor]) -> dict[str, Any]:
    """Return what has rows for boxes under the names of a batch's fields."""
    own = {name.removeprefix(_FIELD): value for name, value in rows.items() if name.startswith(_FIELD)}
    out = {name: value for name, value in rows.items() if not name.startswith(_FIELD)}
    return out | ({"fields": own} if own else {})


def read_image(image: Tensor, layer: Layer) -> Tensor:
    """Return the images (M, C, H, W) of a layer where the result has them, read bilinearly."""
    part = image.index_select(0, layer.source)
    if layer.places is None:
        return part
    x, y = layer.places
    wide = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
    return sample_bilinear(wide, x.to(wide.dtype), y.to(wide.dtype)).to(part.dtype)


def read_map(values: Tensor, layer: Layer) -> Tensor:
    """Return masks (M, H, W), of any dtype, of a layer where the result has them, read from the nearest pixel."""
    part = values.index_select(0, layer.source)
    return part if layer.places is None else gather_pixels(part, *layer.places)


def _read_instances(masks: Tensor, layer: Layer) -> Tensor:
    """Return what is seen in the result of masks (M, N, h, w) of single objects of a layer's images: (M, N, H, W)."""
    if layer.places is None:
        return masks if layer.shown is None else masks.masked_fill(~layer.shown[:, None], 0)
    out = read_instances(masks, *layer.places, None)
    return out if layer.shown is None else out.masked_fill(~layer.shown[:, None], 0)


def _move_points(rows: dict[str, Tensor], layer: Layer, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return keypoints (M, N, K, 2) of a layer's images in the result, and the visibility of those that it shows."""
    points, visible = rows["keypoints"], rows["keypoint_visible"]
    flat = points.flatten(1, 2).double()
    moved = flat if layer.move is None else layer.move(flat)
    x, y = moved.nan_to_num().unbind(-1)
    shown = is_inside(x, y, size[1], size[0])
    if layer.shown is not None:
        shown = shown & gather_pixels(layer.shown, x[:, None], y[:, None])[:, 0]
    moved, shown = moved.view(points.shape).to(points.dtype), shown.view(visible.shape)
    if visible.dtype == torch.bool:
        return {"keypoints": moved, "keypoint_visible": visible & shown}
    visible = visible * shown
    return {"keypoints": moved.masked_fill((visible == 0)[..., None], 0.0), "keypoint_visible": visible}


def keep_boxes(boxes: Tensor) -> CutBoxes:
    """Return boxes of which all is left."""
    area = box_area(boxes)
    return CutBoxes(boxes, area, torch.ones_like(area))


def clip_boxes(boxes: Tensor, window: Tensor) -> CutBoxes:
    """Return what is left of boxes within a window.

    Args:
        boxes: (M, N, 4).
        window: (M, 4) left, top, right and bottom.
    """
    low, high = (side[:, None].to(boxes) for side in (window[:, :2], window[:, 2:]))
    cut = torch.cat([side.maximum(low).minimum(high) for side in (boxes[..., :2], boxes[..., 2:])], -1)
    area = box_area(cut)
    return CutBoxes(cut, area, area / box_area(boxes).clamp_min(torch.finfo(area.dtype).tiny))


def cover_boxes(boxes: Tensor, window: Tensor) -> CutBoxes:
    """Return what is left of boxes outside a window that is laid over them: the boxes around it.

    A box of which the window leaves a rectangle becomes that rectangle; any other keeps its edges.

    Args:
        boxes: (M, N, 4).
        window: (M, 4) left, top, right and bottom.
    """
    covered = clip_boxes(boxes, window)
    low, high = boxes[..., :2], boxes[..., 2:]
    first, last = (side[:, None].to(boxes) for side in (window[:, :2], window[:, 2:]))
    past_low, past_high = first <= low + EDGE_TOLERANCE, last >= high - EDGE_TOLERANCE
    spans = (past_low & past_high).flip(-1)  # the window is as high as the box, and as wide
    meets = (covered.area > 0)[..., None]
    low, high = (
        torch.where(meets & spans & past_low, last.minimum(high), low),
        torch.where(meets & spans & past_high, first.maximum(low), high),
    )
    area = box_area(boxes) - covered.area
    return CutBoxes(torch.cat([low, high.maximum(low)], -1), area, 1 - covered.share)


def join_boxes(batch: Batch, layers: Sequence[Layer], rules: BoxRules, max_boxes: int | None) -> dict[str, Tensor]:
    """Return the boxes of all layers of the mixed images, with what belongs to each box.

    Those of which too little is left become padding, and padding goes to the end; the order of the others stays.

    Args:
        batch: the images that layers are taken from.
        layers: of the mixed images.
        rules: for boxes.
        max_boxes: the most rows of the result, unless the batch has more; those of which most is left stay.

    Returns:
        The fields of a batch that have a row for each box, of the mixed images: (M, N, ...).
    """
    given = box_rows(batch)
    if not given:
        return {}
    parts: dict[str, list[Tensor]] = {name: [] for name in given}
    keeps, areas = [], []
    for layer in layers:
        rows = {name: value.index_select(0, layer.source) for name, (value, _) in given.items()}
        cut = layer.cut(rows["boxes"].double())
        if "instance_masks" in rows:
            masks = rows["instance_masks"]
            seen = rows["instance_masks"] = _read_instances(masks, layer)
            if rules.method == "mask":
                known = have_pixels(masks)
                found = masks_to_boxes(seen.view(torch.bool))
                tight = torch.where(known[..., None], found.to(cut.boxes.dtype), cut.boxes)
                cut = CutBoxes(tight, torch.where(known, box_area(tight).minimum(cut.area), cut.area), cut.share)
        if "keypoints" in rows:
            rows |= _move_points(rows, layer, (int(batch.image.shape[2]), int(batch.image.shape[3])))
        enough = cut.area >= rules.min_area * (1 - SHARE_TOLERANCE)
        enough = enough & (cut.share >= rules.min_visibility - SHARE_TOLERANCE)
        keeps.append((rows["box_label"] >= 0) & (cut.area > 0) & enough)
        areas.append(cut.area)
        rows["boxes"] = cut.boxes.to(rows["boxes"].dtype)
        if layer.weight is not None:
            rows["box_weight"] = rows["box_weight"] * layer.weight[:, None].to(rows["box_weight"].dtype)
        for name, value in rows.items():
            parts[name].append(value)
    keep, area = torch.cat(keeps, 1), torch.cat(areas, 1)
    count = keep.shape[1]
    if max_boxes is not None and (most := max(max_boxes, given["boxes"][0].shape[1])) < count:
        largest = area.masked_fill(~keep, -1.0).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(largest).scatter_(
            1, largest, torch.arange(count, device=area.device).expand_as(largest)
        )
        keep, count = keep & (rank < most), most
    order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    kept = keep.gather(1, order)
    return {name: pick_rows(torch.cat(values, 1), order, kept, given[name][1]) for name, values in parts.items()}
