"""What the fields of a batch may hold: types, shapes and values, of one sample and of a whole batch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.pictures import ORIENTATION, is_picture, picture_to_tensor, read_numbers

__all__ = [
    "align_keypoints",
    "as_image",
    "check_flags",
    "check_image_values",
    "check_instances",
    "check_layout",
    "check_rows",
    "hold_value",
    "is_float",
    "name_size",
    "plain_tensor",
    "read_sample",
    "widen",
]

Size = tuple[int, int]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_WIDE = (torch.int32, torch.int64)
_ROWS = {"boxes": 4, "oriented_boxes": 5, "keypoints": 2}  # numbers in a row
_COMPANIONS = {
    **dict.fromkeys(("box_label", "box_ignore", "box_weight", "box_source", "box_index", "instance_masks"), "boxes"),
    "oriented_boxes": "boxes",
    **dict.fromkeys(("keypoint_visible", "keypoint_index"), "keypoints"),
}
_IN_PIXELS = {"boxes", "oriented_boxes", "keypoints", "mask", "instance_masks", "extra"}
_FLAGS = {"box_ignore": 1, "keypoint_visible": 2}  # largest number of each
_CHANNELS = (1, 3, 4)  # of images as arrays have them
_MOST_CHANNELS = 16  # below which the last of three dimensions may be that of channels
_FORMATS = ("XYXY", "XYWH", "CXCYWH")
_EXPECTED = {
    "boxes": "(n, 4), left, top, right and bottom",
    "oriented_boxes": "(n, 5), cx, cy, w, h and angle in radians",
    "keypoints": "(k, 2), x and y, or (n, k, 2), those of n instances; whether each is visible goes into "
    "keypoint_visible",
}
_SHAPES = {"boxes": "(B, N, 4)", "oriented_boxes": "(B, N, 5)", "keypoints": "(B, K, 2) or (B, N, K, 2)"}
_ENTRIES = {"boxes": "one for each of the boxes, (n,)", "keypoints": "one for each of the keypoints, (k,) or (n, k)"}
_DIMENSIONS = {"boxes": (2,), "oriented_boxes": (2,), "keypoints": (2, 3)}  # without that of the batch


def plain_tensor(name: str, value: Tensor) -> Tensor:
    """Return the tensor of a field without torchvision's wrapper around it.

    Raises:
        TypeError: for what is no tensor, or a sparse or nested one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {_kind(value)}, not a torch.Tensor; torch.as_tensor({name}) makes one")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name} is a sparse or nested tensor; give a dense one")
    return value.as_subclass(Tensor) if _kind(value).startswith("torchvision.") else value


def is_float(value: Tensor) -> bool:
    """Tell floating-point numbers of 16 bits and more, in which PyTorch computes, from all others."""
    return value.dtype in _FLOATS


def widen(name: str, value: Tensor) -> Tensor:
    """Bring integers of a batch's field to int64 where their dtype cannot hold all that the field may.

    Padding has the class -1, sizes grow, losses take labels of int64, and PyTorch computes little with 16 and 32 bits
    without sign.

    Raises:
        TypeError: for numbers that are no integers, and those of 64 bits without sign.
    """
    if value.dtype in (torch.uint16, torch.uint32):
        return value.long()
    if value.dtype not in _INTEGERS:
        raise TypeError(f"expected {name} to be of an integer dtype, got {value.dtype}; {name}.long() makes it int64")
    if name in ("size", "original_size") and value.dtype not in _WIDE:
        return value.long()
    return value.long() if name == "label" or (name == "box_label" and value.dtype == torch.uint8) else value


def hold_value(mask: Tensor, value: int) -> Tensor:
    """Return masks in a dtype that holds a number such as ``ignore_index``: their own, or int64."""
    limits = torch.iinfo(mask.dtype)
    return mask if limits.min <= value <= limits.max else mask.long()


def check_layout(shape: Sequence[int]) -> None:
    """Raise for images whose channels seem to come last.

    Raises:
        ValueError: telling the shape.
    """
    channels, height, width = shape[-3:]
    if width in (1, 3, 4) and min(channels, height) > 4:
        raise ValueError(
            f"images {tuple(shape)} seem to have their {width} channels last; channels come before height and width: "
            f"image.permute({'2, 0, 1' if len(shape) == 3 else '0, 3, 1, 2'})"
        )


def check_rows(name: str, rows: Tensor) -> Tensor:
    """Return the boxes or keypoints of a batch in a dtype that holds all pixels.

    Raises:
        ValueError: for another shape.
        TypeError: for numbers that are not floating point.
    """
    if rows.ndim - 1 not in _DIMENSIONS[name] or rows.shape[-1] != _ROWS[name]:
        raise ValueError(f"expected {name} of shape {_SHAPES[name]}, got {tuple(rows.shape)}")
    if not is_float(rows):
        raise TypeError(f"expected floating-point {name}, got {rows.dtype}")
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows  # no pixels beyond the 2048th, 256th


def check_flags(name: str, value: Tensor) -> None:
    """Raise a TypeError unless ``box_ignore`` is bool, weights floating point, and visibility bool or integer."""
    wanted = {"box_ignore": "bool", "box_weight": "floating-point"}.get(name, "bool or, for COCO's 0, 1 and 2, integer")
    right = is_float(value) if name == "box_weight" else value.dtype == torch.bool
    if not right and not (name == "keypoint_visible" and value.dtype in _INTEGERS):
        raise TypeError(f"expected {name} to be {wanted}, got {value.dtype}")


def check_instances(boxes: Tensor, keypoints: Tensor) -> None:
    """Raise a ValueError unless keypoints of instances are as many as the boxes that they go with."""
    if keypoints.ndim > boxes.ndim and keypoints.shape[-3] != boxes.shape[-2]:
        raise ValueError(
            f"keypoints are {tuple(keypoints.shape)}, but boxes {tuple(boxes.shape)}; keypoints of instances go with "
            "boxes, row by row: give as many, with keypoint_visible 0 where a box has none"
        )


def read_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Read an image and its targets as tensors, and check each target against the image.

    Lists, numbers, NumPy arrays and PIL images become tensors; torchvision's boxes and keypoints are brought from their
    format and canvas to corners in pixels of the image.

    Args:
        sample: fields of a :class:`~kornia_mvit.Batch` without the batch dimension.

    Returns:
        The sample; boxes and keypoints floating point, what belongs to them int64 or bool.

    Raises:
        ValueError: for a target of another shape than its image or than what it belongs to, and numbers that are not
            whole where they must be.
        TypeError: for what cannot become a tensor, and numbers of a wrong kind.
    """
    out = dict(sample)
    image = out["image"] = as_image(sample["image"], turn=not sample.keys() & _IN_PIXELS)
    if image.ndim != 3:
        raise ValueError(f"image is {tuple(image.shape)}; expected (C, H, W), for grey ones (1, H, W)")
    if image.dtype != torch.uint8 and not is_float(image):
        raise TypeError(f"expected a uint8 or floating-point image, got {image.dtype}")
    check_layout(image.shape)
    if image.numel() == 0:
        raise ValueError(f"image is {tuple(image.shape)}: it has no pixels")
    size = (int(image.shape[1]), int(image.shape[2]))
    for name, value in sample.items():
        if name not in ("image", "meta", "extra"):
            out[name] = _as_target(name, value, size)
    for name, one in out.get("fields", {}).items():
        if one.ndim == 0 or len(one) != len(out.get("boxes", one)):
            told = f"{len(one)} entries" if one.ndim else "a single number"
            raise ValueError(f"{len(out.get('boxes', ()))} boxes, but fields[{name!r}] has {told}")
    _check_companions(out)
    if "size" in out and bool((out["size"] > torch.tensor(size)).any()):
        raise ValueError(f"size {tuple(out['size'].tolist())} is larger than the image, which is {name_size(size)}")
    return out


def _check_companions(sample: dict[str, Any]) -> None:
    """Raise a ValueError unless a sample's rows and what belongs to each of them are as many; empty lists fit."""
    found = {name: value for name, value in sample.items() if name.startswith("keypoint_")}
    if (rows := sample.get("keypoints")) is not None and not any(map(len, (rows, *found.values()))):
        shape = max([rows.shape[:-1], *(value.shape for value in found.values())], key=len)
        sample |= {"keypoints": rows.reshape(*shape, 2)} | {name: value.reshape(shape) for name, value in found.items()}
    for name, owner in _COMPANIONS.items():
        if name not in sample or owner not in sample:
            continue
        own = sample[name].shape[:1] if name in ("instance_masks", "oriented_boxes") else sample[name].shape
        if own != sample[owner].shape[:-1]:
            counts = [" x ".join(map(str, shape)) for shape in (sample[owner].shape[:-1], own)]
            raise ValueError(f"{counts[0]} {owner}, but {name} has {counts[1]} entries")
    if "boxes" in sample and "keypoints" in sample:
        check_instances(sample["boxes"], sample["keypoints"])


def align_keypoints(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the keypoints and visibility of samples in one shape and dtype, also where a sample has none.

    Where some samples have COCO's 0, 1 and 2, the others' True becomes 2.

    Args:
        columns: the fields of samples, as :func:`read_sample` returns them.

    Raises:
        ValueError: for samples with instances and without, with other numbers of keypoints, or with boxes and no row of
            keypoints for each.
    """
    found = {name: columns[name] for name in ("keypoints", "keypoint_visible", "keypoint_index") if name in columns}
    if "keypoints" not in found:
        return found
    shapes = {tuple(rows.shape[1:]) for rows in found["keypoints"] if rows.ndim == 3}
    if shapes:
        shapes |= {tuple(rows.shape[1:]) for rows in found["keypoints"] if len(rows)}
        if len(shapes) > 1:
            raise ValueError(
                f"keypoints of samples are {' and '.join(_shape_of_rows(one) for one in sorted(shapes))}; give each "
                "instance as many keypoints, with keypoint_visible 0 for those that it has not"
            )
        (shape,) = shapes
        found["keypoints"] = [rows.reshape(len(rows), *shape) for rows in found["keypoints"]]
        for i, (rows, boxes) in enumerate(zip(found["keypoints"], columns.get("boxes", []), strict=False)):
            if len(rows) != len(boxes):
                raise ValueError(f"sample {i} has {len(boxes)} boxes, but keypoints of {len(rows)} instances")
    shape = shapes.pop()[:-1] if shapes else ()
    if "keypoint_visible" in found:
        numbered = any(flags.dtype != torch.bool for flags in found["keypoint_visible"])
        found["keypoint_visible"] = [
            flags.to(torch.uint8) * 2 if numbered and flags.dtype == torch.bool else flags
            for flags in found["keypoint_visible"]
        ]
    for name in found.keys() - {"keypoints"}:
        found[name] = [values.reshape(len(values), *shape) for values in found[name]]
    return found


def _shape_of_rows(shape: Sequence[int]) -> str:
    return f"(n, {', '.join(map(str, shape))})"


def check_image_values(image: Tensor, name: str = "") -> None:
    """Raise unless floating-point images are finite and in [0, 1]; uint8 ones cannot be otherwise.

    On an accelerator this waits for the device. ``name`` is that of what is no batch's ``image``.

    Raises:
        ValueError: telling the range found, and what would do.
    """
    if not image.is_floating_point() or image.numel() == 0:
        return
    low, high = (value.item() for value in torch.aminmax(image))
    if not (low >= 0.0 and high <= 1.0):  # so that NaN fails too
        if math.isnan(low) or math.isnan(high):
            raise ValueError(f"{name or 'an image'} has NaN values")
        hint = "divide by 255, or give uint8" if high > 1.0 and low >= 0.0 else "undo the normalisation first"
        told = f"{name}: " * bool(name)
        raise ValueError(f"{told}floating-point images must lie in [0, 1], got values from {low:g} to {high:g}; {hint}")


def as_image(value: Any, *, turn: bool = True) -> Tensor:
    """Return an image as a tensor.

    A PIL image becomes RGB, (3, H, W) of uint8, turned as its EXIF data tell. Arrays of NumPy whose last dimension
    alone is 1, 3 or 4 have their channels last; they are brought to the front.

    Args:
        value: a tensor (C, H, W), a PIL image, or an array.
        turn: False where targets in pixels go with the image: they may be of the image turned or not.

    Raises:
        ValueError: for arrays whose channels may be first or last, and pictures that are turned while ``turn`` is
            False.
        TypeError: for what cannot become a tensor.
    """
    if is_picture(value):
        if not turn and (told := value.getexif().get(ORIENTATION, 1)) != 1:
            raise ValueError(
                f"the image's EXIF orientation is {told}, and its targets may be of the image turned or as stored; "
                "take PIL.ImageOps.exif_transpose(image), or delete image.getexif()[274] and save"
            )
        try:
            return picture_to_tensor(value)
        except ValueError as error:
            raise ValueError(f"the image cannot become RGB: {error}") from None
    if isinstance(value, str):
        raise TypeError(f"image is a str, {value!r}; kornia_mvit.data.reading.read_image reads an image file")
    image = _as_tensor("image", value)
    if isinstance(value, Tensor) or image.ndim != 3:
        return image
    first, last = (image.shape[k] in _CHANNELS for k in (0, 2))
    sides, depth = min(image.shape[:2]), image.shape[2]
    if (last and (first or sides <= max(_CHANNELS))) or (not (first or last) and depth <= _MOST_CHANNELS < sides):
        raise ValueError(
            f"an array {tuple(image.shape)} may have its channels first or last; give "
            "torch.from_numpy(image) if first, .permute(2, 0, 1) of it if last"
        )
    return image.permute(2, 0, 1).contiguous() if last else image


def _as_tensor(name: str, value: Any) -> Tensor:
    """Make a tensor of what is none yet."""
    if isinstance(value, Tensor):
        return plain_tensor(name, value)
    try:
        # A copy, since arrays of Pillow are read-only, and flipped ones run backwards.
        return torch.as_tensor(value.__array__().copy() if hasattr(value, "__array__") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"{name} is a {_kind(value)} that cannot become a tensor: {reason}") from None


def _as_target(name: str, value: Any, size: Size) -> Any:
    """Read a target of an image of a height and width."""
    match name:
        case "boxes" | "oriented_boxes" | "keypoints":
            return _as_rows(name, value, size)
        case "mask":
            return _as_mask(value, size)
        case "instance_masks":
            return _as_instance_masks(value, size)
        case "fields":
            return _as_fields(value)
        case "label" | "box_weight":
            return (_as_label if name == "label" else _as_weights)(value)
        case _:
            return _as_whole(name, value)


def _as_rows(name: str, value: Any, size: Size) -> Tensor:
    """Read boxes (n, 4) or keypoints (k, 2) or (n, k, 2) in pixels of an image."""
    rows, width = _as_tensor(name, value), _ROWS[name]
    code = getattr(getattr(value, "format", None), "name", None)
    if name == "boxes" and code is not None and code not in _FORMATS:
        raise ValueError(f"boxes are of the format {code}; only {', '.join(_FORMATS)} are upright")
    if rows.shape == (0,):  # an empty list
        rows = rows.reshape(0, width)
    if rows.ndim not in _DIMENSIONS[name] or rows.shape[-1] != width:
        raise ValueError(f"{name} are {tuple(rows.shape)}; expected {_EXPECTED[name]}")
    if rows.dtype == torch.bool or rows.is_complex():
        raise TypeError(f"expected {name} to be numbers, got {rows.dtype}")
    rows = rows.to(torch.promote_types(torch.get_default_dtype(), torch.float32))
    if code == "XYWH":
        rows = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:]], 1)
    elif code == "CXCYWH":
        rows = torch.cat([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2], 1)
    canvas = size if name == "oriented_boxes" else getattr(value, "canvas_size", size)
    if tuple(canvas) == size:
        return rows
    if tuple(canvas) == size[::-1] or min(canvas) < 1:
        raise ValueError(
            f"the canvas_size of {name} is {name_size(canvas)}, but the image is {name_size(size)} (height x width)"
        )
    factor = rows.new_tensor([size[1] / canvas[1], size[0] / canvas[0]])
    return rows * factor.repeat(width // 2)


def _as_mask(value: Any, size: Size) -> Tensor:
    """Read a mask of the size of its image."""
    if is_picture(value):
        try:
            mask = read_numbers(value)
        except ValueError as error:
            raise ValueError(f"mask is {error}") from None
    else:
        mask = _as_tensor("mask", value)
    mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
    if mask.ndim != 2:
        raise ValueError(f"mask is {tuple(mask.shape)}; expected (H, W), one class for each pixel")
    if mask.is_floating_point():
        raise TypeError(
            f"mask is {mask.dtype}; expected integers, the class of each pixel: mask.long() of whole numbers, and "
            "PILToTensor in place of ToTensor, which divides by 255"
        )
    if tuple(mask.shape) != size:
        raise ValueError(f"mask is {name_size(mask.shape)}, but its image is {name_size(size)} (height x width)")
    return _without_loss("mask", mask) if mask.dtype in _UNSIGNED else widen("mask", mask)


def _as_instance_masks(value: Any, size: Size) -> Tensor:
    """Read the masks of single objects, (n, H, W), of the size of their image."""
    if isinstance(value, list | tuple):
        one_by_one = [read_numbers(one) if is_picture(one) else _as_tensor("instance_masks", one) for one in value]
        parts = [_as_instance_masks(one[None], size) for one in one_by_one]
        masks = torch.cat(parts) if parts else torch.zeros(0, *size, dtype=torch.bool)
    else:
        masks = _as_tensor("instance_masks", value)
    masks = masks.reshape(0, *size) if masks.shape == (0,) else masks
    if masks.ndim != 3:
        raise ValueError(f"instance_masks is {tuple(masks.shape)}; expected (n, H, W), a mask for each box")
    if tuple(masks.shape[1:]) != size:
        raise ValueError(
            f"instance_masks is {name_size(masks.shape[1:])}, but its image is {name_size(size)} (height x width)"
        )
    if masks.is_floating_point() or masks.is_complex():
        raise TypeError(f"instance_masks is {masks.dtype}; expected bool, or integers of 0 and 1: give masks > 0.5")
    if masks.dtype in (torch.bool, torch.uint8):
        return masks
    masks = _without_loss("instance_masks", masks)
    if bool(((masks != 0) & (masks != 1)).any()):
        raise ValueError(
            f"instance_masks goes from {int(masks.min())} to {int(masks.max())}; expected 0 and 1: give masks > 0"
        )
    return masks.bool()


def _as_fields(value: Any) -> dict[str, Tensor]:
    """Read what a sample says of each of its boxes: tensors (n, ...) by name."""
    if not isinstance(value, Mapping):
        raise TypeError(f"fields is a {_kind(value)}, not a dictionary of values for each box by name")
    out: dict[str, Tensor] = {}
    for name, given in value.items():
        try:
            one = _as_tensor(f"fields[{name!r}]", given)
        except TypeError as error:
            raise TypeError(f"{error}; fields hold numbers: put texts into meta, and take them by box_index") from None
        out[str(name)] = one
    return out


def _as_label(value: Any) -> Tensor:
    """Read a class, or the shares of all classes."""
    if isinstance(value, str):
        raise TypeError(
            f"label is a str, {value!r}; give the number of its class, from 0 (a file's name goes into meta)"
        )
    label = _as_tensor("label", value)
    if label.dtype == torch.bool or label.is_complex():
        raise TypeError(f"expected label to be a class or shares of classes, got {label.dtype}")
    if label.ndim != int(label.is_floating_point()) or not label.numel():
        raise ValueError(
            f"label is {label.dtype} {tuple(label.shape)}; expected an integer, or floating-point shares (K,)"
        )
    return _without_loss("label", label) if label.dtype in _UNSIGNED else label


def _as_weights(value: Any) -> Tensor:
    """Read the weights of boxes."""
    weights = _as_tensor("box_weight", value)
    if weights.ndim != 1:
        raise ValueError(f"box_weight is {tuple(weights.shape)}; expected one for each of the boxes, (n,)")
    if weights.is_complex():
        raise TypeError(f"expected box_weight to be numbers, got {weights.dtype}")
    return weights.float()


def _without_loss(name: str, numbers: Tensor) -> Tensor:
    """Bring numbers to int64, and raise where that changes them."""
    if numbers.dtype == torch.int64:
        return numbers
    whole = numbers.long()
    kept = (whole.to(numbers.dtype) == numbers) & ((numbers.dtype != torch.uint64) | (whole >= 0))
    if not bool(kept.all()):
        wrong = numbers[~kept].flatten()[0].item()
        raise ValueError(f"{name} has {wrong:g}, which is not a whole number of at most 64 bits")
    return whole


def _as_whole(name: str, value: Any) -> Tensor:
    """Read classes, sizes, or what is true and false, without rounding."""
    numbers = _as_tensor(name, value)
    if numbers.dtype == torch.bool and name in _FLAGS:
        whole = numbers
    elif numbers.numel() == 0:
        whole = numbers.bool() if name in _FLAGS and numbers.is_floating_point() else numbers.long()
    elif numbers.dtype == torch.bool or numbers.is_complex():
        raise TypeError(f"expected {name} to be whole numbers, got {numbers.dtype}")
    else:
        whole = _without_loss(name, numbers)
    if name in ("size", "original_size"):
        if whole.shape != (2,):
            raise ValueError(f"{name} is {tuple(whole.shape)}; expected (2,), height and width")
        return whole
    if whole.ndim not in (dimension - 1 for dimension in _DIMENSIONS[_COMPANIONS[name]]):
        raise ValueError(f"{name} is {tuple(whole.shape)}; expected {_ENTRIES[_COMPANIONS[name]]}")
    if name in _FLAGS and whole.dtype != torch.bool:
        if bool(((whole < 0) | (whole > _FLAGS[name])).any()):
            hint = " or 0 not labelled, 1 labelled and hidden, 2 visible" if name == "keypoint_visible" else ""
            raise ValueError(
                f"{name} goes from {int(whole.min())} to {int(whole.max())}; expected True and False{hint}"
            )
        whole = whole.bool() if name == "box_ignore" else whole.to(torch.uint8)
    return whole


def _kind(value: object) -> str:
    """Name a value's type, with the library that it is from."""
    home = type(value).__module__.partition(".")[0]
    return type(value).__name__ if home == "builtins" else f"{home}.{type(value).__name__}"


def name_size(size: Sequence[int]) -> str:
    """Write height and width as ``40x60``."""
    return f"{size[0]}x{size[1]}"
