"""What the fields of a batch must be: shapes and dtypes that fit each other, and values that targets can have."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kornia_mvit.extra_images import check_extra
from kornia_mvit.fields import (
    check_flags,
    check_instances,
    check_layout,
    check_rows,
    is_float,
    name_size,
    plain_tensor,
    widen,
)

if TYPE_CHECKING:
    from kornia_mvit.batch import Batch

__all__ = ["check_fields", "check_targets", "warn_of_coordinates"]

_TOLD: list[bool] = []  # whether boxes outside their images were told of: once is enough, as each batch has others
_WHOLE = ("box_label", "box_source", "box_index", "keypoint_index", "mask", "size", "original_size")


def check_fields(batch: "Batch") -> None:
    """Check shapes and dtypes of a batch, and widen the dtypes that cannot hold all that they may have to.

    Raises:
        ValueError: if the fields' shapes do not fit each other, or a field lacks the one that goes with it.
        TypeError: for an image that is neither uint8 nor floating point, or a field of a wrong dtype.
    """
    image = batch.image = plain_tensor("image", batch.image)
    if image.ndim != 4:
        raise ValueError(f"expected images of shape (B, C, H, W), got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not is_float(image):
        raise TypeError(f"expected uint8 or floating-point images, got {image.dtype}")
    if 0 in image.shape[1:]:
        raise ValueError(f"images {tuple(image.shape)} have no pixels")
    if image.dtype == torch.uint8:  # what an operation made of others may have any shape
        check_layout(image.shape)
    _check_lengths(batch)
    _check_label(batch)
    _check_rows(batch, "boxes", "box_label", "box_ignore", "box_weight", "box_source", "box_index")
    _check_rows(batch, "keypoints", "keypoint_visible", "keypoint_index")
    if batch.boxes is not None and batch.keypoints is not None:
        check_instances(batch.boxes, batch.keypoints)
    _check_of_boxes(batch)
    _check_whole(batch)


def _check_lengths(batch: "Batch") -> None:
    """Check that each field is of as many entries as there are images: a tensor, or what holds tensors or entries."""
    count = len(batch)
    for field in fields(batch):
        value = getattr(batch, field.name)
        if value is None:
            continue
        if field.name == "meta":
            if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
                raise TypeError("meta is not a list of dictionaries, one for each image")
            batch.meta = value if isinstance(value, list) else list(value)
            _check_length(count, "meta", len(value))
        elif field.name == "extra":
            batch.extra = check_extra(value, batch.image)
        elif field.name == "fields":
            if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
                raise TypeError("fields is not a dictionary of tensors (B, N, ...) by name, such as {'track': ids}")
            tensors = {name: plain_tensor(f"fields[{name!r}]", one) for name, one in value.items()}
            for name, one in tensors.items():
                _check_length(count, f"fields[{name!r}]", len(one) if one.ndim else None)
            batch.fields = tensors
        else:
            value = plain_tensor(field.name, value)
            setattr(batch, field.name, value)
            _check_length(count, field.name, len(value) if value.ndim else None)


def _check_length(count: int, name: str, length: int | None) -> None:
    if length is None:
        raise ValueError(f"{count} images, but {name} is a single number")
    if length != count:
        raise ValueError(f"{count} images, but {name} has {length} entries")


def _check_whole(batch: "Batch") -> None:
    """Check what holds whole numbers, and give it a dtype that can hold them all."""
    for name in _WHOLE:
        if (value := getattr(batch, name)) is None:
            continue
        setattr(batch, name, widen(name, value))
        if name == "mask" and value.shape[1:] != batch.image.shape[2:]:
            raise ValueError(
                f"expected masks of shape (B, H, W) as the images {tuple(batch.image.shape)}, got {tuple(value.shape)}"
            )
        if name in ("size", "original_size") and value.shape[1:] != (2,):
            raise ValueError(f"expected {name} of shape (B, 2), height and width, got {tuple(value.shape)}")


def _check_label(batch: "Batch") -> None:
    label = batch.label
    if label is None:
        return
    soft = label.is_floating_point()
    if label.ndim != (2 if soft else 1) or label.dtype == torch.bool:
        raise ValueError(
            f"expected integer labels of shape (B,) or soft ones (B, K), got {label.dtype} {tuple(label.shape)}"
        )
    if not soft:
        batch.label = widen("label", label)
    elif not is_float(label):
        raise TypeError(f"expected soft labels of 16 to 64 bits, got {label.dtype}")


def _check_rows(batch: "Batch", name: str, *companions: str) -> None:
    """Check rows of coordinates and the fields that describe each of them."""
    rows: Tensor | None = getattr(batch, name)
    if rows is None:
        if orphans := [other for other in companions if getattr(batch, other) is not None]:
            raise ValueError(f"{orphans[0]} is given without {name}")
        return
    setattr(batch, name, check_rows(name, rows))
    if getattr(batch, companions[0]) is None:
        shape = "(B, N, K)" if rows.ndim == 4 else "(B, N)"
        raise ValueError(f"{name} come with {companions[0]} of shape {shape}; it is missing")
    for other in companions:
        value = getattr(batch, other)
        if value is not None and value.shape != rows.shape[:-1]:
            raise ValueError(f"{name} are {tuple(rows.shape)}, but {other} is {tuple(value.shape)}")
        if value is not None and other not in _WHOLE:
            check_flags(other, value)


def _check_of_boxes(batch: "Batch") -> None:
    """Check what is bound to boxes and goes where they go: masks of single objects, and fields of the user's own."""
    bound = {f"fields[{name!r}]": value for name, value in (batch.fields or {}).items()}
    masks = batch.instance_masks
    if masks is not None:
        if masks.ndim != 4 or masks.shape[2:] != batch.image.shape[2:]:
            raise ValueError(
                f"expected instance_masks of shape (B, N, H, W) as the images {tuple(batch.image.shape)}, "
                f"got {tuple(masks.shape)}"
            )
        if masks.dtype not in (torch.bool, torch.uint8):
            raise TypeError(f"expected instance_masks to be bool, or uint8 of 0 and 1, got {masks.dtype}")
        bound["instance_masks"] = masks
    if (oriented := batch.oriented_boxes) is not None:
        batch.oriented_boxes = bound["oriented_boxes"] = check_rows("oriented_boxes", oriented)
    for name, value in bound.items():
        if batch.boxes is None and name == "oriented_boxes":
            raise ValueError(
                "oriented_boxes is given without boxes, which it goes with; kornia_mvit.ops.oriented.oriented_bounds "
                "makes boxes of them"
            )
        if batch.boxes is None:
            raise ValueError(
                f"{name} is given without boxes, which it goes with; kornia_mvit.ops.boxes.masks_to_boxes makes boxes "
                "of masks"
            )
        if value.shape[:2] != batch.boxes.shape[:2]:
            raise ValueError(f"boxes are {tuple(batch.boxes.shape)}, but {name} is {tuple(value.shape)}")


def check_targets(batch: "Batch") -> None:
    """Raise for values that no target can have; see :meth:`kornia_mvit.Batch.check_values`."""
    if batch.label is not None and batch.label.is_floating_point() and not bool(batch.label.isfinite().all()):
        raise ValueError("label has NaN or infinity; soft labels are the shares of the classes")
    _check_boxes(batch)
    if batch.keypoints is not None and batch.keypoint_visible is not None:
        _check_keypoint_values(batch.keypoints, batch.keypoint_visible)
    masks = batch.instance_masks
    if masks is not None and masks.dtype == torch.uint8 and masks.numel() and int(masks.amax()) > 1:
        raise ValueError(
            f"instance_masks has {int(masks.amax())}; an object's mask is 1 where the object is and 0 elsewhere: "
            "give masks > 0"
        )
    height, width = batch.image.shape[2:]
    for name, value in (("size", batch.size), ("original_size", batch.original_size)):
        if value is None or not len(value):
            continue
        least, most = value.amin(0).tolist(), value.amax(0).tolist()
        if min(least) < 1 or (name == "size" and (most[0] > height or most[1] > width)):
            limit = f"the canvas is {height}x{width}" if name == "size" else "sizes start at 1x1"
            raise ValueError(f"{name} goes from {name_size(least)} to {name_size(most)}, but {limit}")


def _check_boxes(batch: "Batch") -> None:
    if batch.boxes is None or batch.box_label is None:
        return
    if bool((batch.box_label < -1).any()):
        raise ValueError(f"box_label has {int(batch.box_label.min())}; classes count from 0, -1 marks padding")
    right = (batch.boxes[..., 2:] >= batch.boxes[..., :2]).all(-1) & batch.boxes.isfinite().all(-1)
    wrong = (batch.box_label >= 0) & ~right
    if bool(wrong.any()):
        i, j = wrong.nonzero()[0].tolist()
        box = batch.boxes[i, j].tolist()
        told = f"boxes[{i}, {j}] is ({', '.join(f'{edge:g}' for edge in box)})"
        if not all(map(math.isfinite, box)):
            raise ValueError(f"{told}, which is not finite; leave the box out, or set its box_label to -1")
        raise ValueError(
            f"{told}, which ends before it starts; boxes are left, top, right and bottom: a box of x, y, "
            "width and height is x, y, x + width, y + height"
        )
    if batch.box_weight is not None:
        _check_weights(batch.box_weight)
    if (oriented := batch.oriented_boxes) is not None:
        wrong = (batch.box_label >= 0) & ~(oriented.isfinite().all(-1) & (oriented[..., 2:4] >= 0).all(-1))
        if bool(wrong.any()):
            i, j = wrong.nonzero()[0].tolist()
            told = ", ".join(f"{v:g}" for v in oriented[i, j].tolist())
            raise ValueError(
                f"oriented_boxes[{i}, {j}] is ({told}); they are cx, cy, w, h and angle, finite, with sides from 0"
            )


def _check_keypoint_values(keypoints: Tensor, visible: Tensor) -> None:
    """Raise a ValueError for visible keypoints that are not finite, and for visibility other than 0, 1 and 2.

    On an accelerator this waits for the device.
    """
    if visible.dtype != torch.bool and bool(((visible < 0) | (visible > 2)).any()):
        raise ValueError(
            f"keypoint_visible goes from {int(visible.min())} to {int(visible.max())}; expected 0 not labelled, 1 "
            "labelled and hidden, 2 visible, or True and False"
        )
    wrong = (visible > 0) & ~keypoints.isfinite().all(-1)
    if bool(wrong.any()):
        place = ", ".join(map(str, wrong.nonzero()[0].tolist()))
        unknown = "False" if visible.dtype == torch.bool else "0"
        raise ValueError(f"keypoints[{place}] is not finite; keypoint_visible is {unknown} for unknown ones")


def _check_weights(weight: Tensor) -> None:
    """Raise unless the weights of boxes are finite and not negative. On an accelerator this waits for the device.

    Raises:
        ValueError: telling the range found.
    """
    if not bool(((weight >= 0) & weight.isfinite()).all()):
        low, high = (value.item() for value in torch.aminmax(weight))
        raise ValueError(
            f"box_weight goes from {low:g} to {high:g}; weights of boxes in the loss are finite and from 0"
        )


def warn_of_coordinates(batch: "Batch") -> bool:
    """Warn of odd coordinates, and return whether there was a warning; see ``Batch.warn_of_coordinates``."""
    for name, rows, live, least in (
        ("boxes", batch.boxes, None if batch.box_label is None else batch.box_label >= 0, 1),
        ("keypoints", batch.keypoints, None if batch.keypoint_visible is None else batch.keypoint_visible > 0, 4),
    ):
        if rows is None or live is None or int(live.sum()) < least:
            continue
        found = rows[live]
        if bool(((found >= 0) & (found <= 1)).all() & (found != found.round()).any()):
            warnings.warn(
                f"all {name} of a batch lie within [0, 1]; they are in pixels: multiply shares of width and height "
                "by them",
                stacklevel=4,
            )
            return True
    return _warn_of_boxes_outside(batch)


def _warn_of_boxes_outside(batch: "Batch") -> bool:
    if _TOLD or batch.boxes is None or batch.box_label is None or not batch.boxes.numel():
        return False
    size = torch.tensor(batch.image.shape[2:], device=batch.boxes.device)
    size = (size[None] if batch.size is None else batch.size)[:, None].flip(-1)
    has_area = (batch.boxes[..., 2:] > batch.boxes[..., :2]).all(-1)
    beside = (batch.boxes[..., :2] >= size).any(-1) | (batch.boxes[..., 2:] <= 0).any(-1)
    outside = beside & has_area & (batch.box_label >= 0)
    if not bool(outside.any()):
        return False
    _TOLD.append(True)
    i, j = outside.nonzero()[0].tolist()
    height, width = batch.image.shape[2:] if batch.size is None else batch.size[i].tolist()
    path = f" of {batch.meta[i]['path']}" if batch.meta is not None and "path" in batch.meta[i] else ""
    warnings.warn(
        f"{int(outside.sum())} of {int((batch.box_label >= 0).sum())} boxes of a batch lie wholly outside their "
        f"images, such as boxes[{i}, {j}]{path}, ({', '.join(f'{edge:g}' for edge in batch.boxes[i, j].tolist())}), "
        f"outside {height}x{width} (height x width): nothing can be learned from them; boxes are in pixels of the "
        "image as it is given",
        stacklevel=5,
    )
    return True
