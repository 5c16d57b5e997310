"""Samples as datasets of torchvision, COCO and Hugging Face give them, under the names of a batch's fields."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.fields import as_image, name_size
from kornia_mvit.pictures import is_picture

__all__ = ["name_fields", "open_batch"]

_FORMS = (
    "a dictionary such as {'image': image, 'label': label}, a pair (image, label), (image, mask) or "
    "(image, {'boxes': ..., 'labels': ...}), or an image"
)
_META = ("image_id", "id", "file_name", "filename", "path", "width", "height")
_DERIVED = ("area", "segmentation")  # what goes with boxes, and follows from others or has no place in a batch
_TARGETS = (  # which are never strings
    *(
        "image",
        "label",
        "labels",
        "mask",
        "masks",
        "boxes",
        "oriented_boxes",
        "box_label",
        "box_ignore",
        "box_weight",
        "box_source",
    ),
    *("box_index", "iscrowd", "instance_masks", "fields", "keypoints", "keypoint_visible", "keypoint_index", "size"),
    *("original_size", "meta", "extra", "objects", "annotations"),
)
_LISTS = ("objects", "annotations")
_COLUMNS = {
    "box_label": ("category_id", "category", "label", "labels"),
    "box_ignore": ("iscrowd", "is_crowd"),
}


def name_fields(sample: Any) -> dict[str, Any]:
    """Return a sample under the names of a batch's fields, its values as they are.

    Taken are dictionaries with these names; images alone; pairs of an image and a class, a mask, torchvision's
    dictionary of boxes or COCO's list of annotations; and rows of Hugging Face's datasets. COCO's x, y, width and
    height become corners, and torchvision's ``masks`` of single objects ``instance_masks``. Areas and outlines are left
    out, and what names an image, as its ``image_id``, goes into ``meta``, as do all other strings. Other names stay,
    for a batch to refuse.

    Args:
        sample: what a dataset gives for an image.

    Raises:
        TypeError: for other forms, saying what was given and what would do.
        ValueError: where two values claim one field, and for boxes in the pixels of an image of another size.
    """
    if isinstance(sample, Mapping):
        return _from_mapping(sample)
    if is_image(sample):
        return {"image": sample}
    if isinstance(sample, tuple | list) and sample and is_image(sample[0]):
        if len(sample) == 1:
            return {"image": sample[0]}
        if len(sample) == 2:
            return _from_pair(*sample)
    raise TypeError(f"it is {describe(sample)}; give {_FORMS}")


def open_batch(loaded: Any) -> dict[str, Tensor] | list[Any]:
    """Return the fields of a batch that a loader has stacked, or a list of the samples that it holds.

    Args:
        loaded: what the ``collate_fn`` of a loader gave: that of PyTorch, ``list``, or one that gives images and
            targets apart, such as ``lambda samples: tuple(zip(*samples))``.

    Raises:
        TypeError: for other forms, saying what was given and what would do.
    """
    found: dict[str, Tensor] | list[Any] | None = None
    if _is_stack(loaded):
        found = {"image": loaded}
    elif isinstance(loaded, Mapping):
        images = loaded.get("image", loaded.get("img"))
        found = _rows(loaded, len(images)) if _is_stack(images) else None
    elif isinstance(loaded, tuple | list) and loaded:
        if len(loaded) == 1 and _is_stack(loaded[0]):
            found = {"image": loaded[0]}
        elif len(loaded) == 2:
            found = _open_pair(*loaded)
        if found is None and all(_is_sample(one) for one in loaded):
            found = list(loaded)
    if found is None:
        raise TypeError(
            f"cannot tell images and targets in {describe(loaded)}; give the DataLoader collate_fn=Batch.collate, and "
            f"samples such as {_FORMS}"
        )
    return found


def is_image(value: object) -> bool:
    """Return whether a value can be an image: a tensor or an array of two dimensions or more, or a PIL image."""
    return is_picture(value) or (hasattr(value, "__array__") and getattr(value, "ndim", 0) > 1)


def describe(value: object) -> str:
    """Tell the type of a value, and the types and shapes of its parts.

    Example:
        >>> describe([torch.zeros(2, 3), {"a": 1}])
        'a list of Tensor (2, 3), dict of a'
    """
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, tuple | list):
        parts = [describe(one).removeprefix("a ") if isinstance(one, Mapping) else _brief(one) for one in value[:4]]
        return f"a {kind} of {', '.join(parts) or 'nothing'}" + (", ..." if len(value) > 4 else "")
    return f"a {_brief(value)}"


def _brief(value: object) -> str:
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    return f"{kind} {tuple(shape)}" if isinstance(shape, tuple) else kind


# ------------------------------------------------------------------------------------------------------------ a sample


def _from_pair(image: Any, target: Any) -> dict[str, Any]:
    if isinstance(target, Mapping):
        if isinstance(target.get("annotation"), Mapping):
            raise TypeError(
                "the target is VOC's annotation with names of classes; give (image, {'boxes': corners, 'labels': "
                "numbers}), or use kornia_mvit.training.datamodules.VOCData"
            )
        if "image" in target:
            raise ValueError("the target of a pair has an image of its own; give one dictionary, or another pair")
        return _from_mapping({"image": image, **target})
    if isinstance(target, list | tuple) and all(isinstance(one, Mapping) for one in target):
        return _from_mapping({"image": image, "annotations": target})
    return {"image": image, "mask" if is_image(target) else "label": target}


def _from_mapping(sample: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(sample)
    _rename(out, "img", "image")
    meta = {name: _plain(out.pop(name)) for name in _META if name in out}
    meta |= {name: out.pop(name) for name in [*out] if isinstance(out[name], str) and name not in _TARGETS}
    for name in _LISTS:
        if name in out:
            for field, value in _read_objects(name, out.pop(name)).items():
                _add(out, field, value, name)
    for name in ("label", "labels", "annotation"):
        if is_image(out.get(name)):
            _rename(out, name, "mask")
    _rename(out, "labels", "box_label" if "boxes" in out else "label")
    if "keypoints" in out and "keypoint_visible" not in out:
        out |= _split_keypoints(out["keypoints"])
    if "boxes" in out:
        _rename(out, "iscrowd", "box_ignore")
        for name in _DERIVED:
            out.pop(name, None)
        _rename(out, "masks", "instance_masks")
        _check_size(out.get("image"), meta)
    if meta and isinstance(given := out.get("meta", {}), Mapping):
        out["meta"] = meta | dict(given)
    return out


def _split_keypoints(keypoints: Any) -> dict[str, Any]:
    """Return keypoints (..., 3) of x, y and visibility, as torchvision has them, as two fields; others as they are."""
    try:
        rows = torch.as_tensor(keypoints)
    except (TypeError, ValueError, RuntimeError):
        return {}
    if rows.ndim < 2 or rows.shape[-1] != 3:
        return {}
    return {"keypoints": rows[..., :2], "keypoint_visible": rows[..., 2]}


def _rename(out: dict[str, Any], name: str, field: str) -> None:
    if name in out and name != field:
        _add(out, field, out.pop(name), name)


def _add(out: dict[str, Any], field: str, value: Any, source: str) -> None:
    if field in out:
        raise ValueError(f"{field} is given twice, as {field} and by {source}; leave one out")
    out[field] = value


def _read_objects(name: str, objects: Any) -> dict[str, Any]:
    """Read boxes (x, y, width, height) and classes: a list of annotations, or a dictionary of columns."""
    if isinstance(objects, Mapping):
        columns = dict(objects)
    elif isinstance(objects, list | tuple) and all(isinstance(one, Mapping) for one in objects):
        names = {key for one in objects for key in one} if objects else {"bbox", "category_id"}
        columns = {key: [one.get(key) for one in objects] for key in names}
    else:
        raise TypeError(f"{name} is {describe(objects)}; expected a list of annotations with bbox and category_id")
    found = {field: next((k for k in known if k in columns), None) for field, known in _COLUMNS.items()}
    if "bbox" not in columns or found["box_label"] is None:
        raise ValueError(
            f"{name} has {', '.join(map(str, columns)) or 'nothing'}; expected bbox (x, y, width and height) and "
            "category_id or category"
        )
    try:
        boxes = torch.as_tensor(columns["bbox"], dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"bbox of {name} cannot become a tensor: {error}; give x, y, width and height") from None
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"bbox of {name} is {tuple(boxes.shape)}; expected (n, 4), x, y, width and height")
    crowds = columns[found["box_ignore"]] if found["box_ignore"] else [0] * len(boxes)
    return {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
        "box_label": columns[found["box_label"]],
        "box_ignore": [one or 0 for one in crowds] if isinstance(crowds, list) else crowds,
    }


def _check_size(image: Any, meta: Mapping[str, Any]) -> None:
    """Raise for boxes of a row that says another height and width than its image has."""
    height, width = meta.get("height"), meta.get("width")
    if image is None or not isinstance(height, int) or not isinstance(width, int):
        return
    size, told = tuple(as_image(image, turn=False).shape[-2:]), (height, width)
    if size != told:
        raise ValueError(
            f"the sample says {name_size(told)}, but its image is {name_size(size)} (height x width); give boxes in "
            "the image's own pixels, and leave height and width out"
        )


def _plain(value: Any) -> Any:
    """Return a tensor of one number as that number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


# ------------------------------------------------------------------------------------------------------------- batches


def _is_stack(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _is_sample(value: object) -> bool:
    if isinstance(value, Mapping):
        return is_image(value.get("image", value.get("img")))
    first = value[0] if isinstance(value, tuple | list) and 0 < len(value) < 3 else value
    return is_image(first)


def _open_pair(images: Any, targets: Any) -> dict[str, Tensor] | list[Any] | None:
    """Return what a pair of images and targets holds; None where it is no such pair."""
    if _is_stack(images):
        if isinstance(targets, Tensor):  # labels (B,) or (B, K), or masks (B, H, W) or (B, 1, H, W)
            squeezed = targets[:, 0] if targets.ndim == 4 and targets.shape[1] == 1 else targets
            return {"image": images, "label" if targets.ndim < 3 else "mask": squeezed}
        if isinstance(targets, Mapping):
            targets = _rows(targets, len(images))
    elif not isinstance(images, tuple | list) or not all(map(_is_one_image, images)):
        return None
    if not isinstance(targets, tuple | list) or len(images) != len(targets) or any(map(_is_one_image, targets)):
        return None
    return list(zip(images, targets, strict=True))


def _is_one_image(value: object) -> bool:
    return is_image(value) and getattr(value, "ndim", 3) == 3


def _rows(stacked: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the samples of a dictionary of stacked tensors, of lists of strings, and of ``fields``."""
    inner = {"fields": _rows(of, count)} if isinstance(of := stacked.get("fields"), Mapping) else {}
    for name, value in stacked.items():
        if name in inner:
            continue
        strings = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        if not (strings or (isinstance(value, Tensor) and value.ndim)) or len(value) != count:
            raise TypeError(
                f"{name} of a loaded batch of {count} images is {describe(value)}; give the DataLoader "
                "collate_fn=Batch.collate"
            )
    return [{name: inner.get(name, value)[i] for name, value in stacked.items()} for i in range(count)]
