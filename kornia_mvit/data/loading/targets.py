"""What stands beside an image in a shard: its class, its label image, or its boxes."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.data.boxes import BoxRows, build_table
from kornia_mvit.data.masks import check_mask, read_mask
from kornia_mvit.data.reading import DataError, unknown_label
from kornia_mvit.parsing import brief, parse_json

__all__ = [
    "TARGETS",
    "TargetError",
    "decode_boxes",
    "decode_label",
    "decode_mask",
    "find_boxes",
    "find_mask",
    "place_of",
]

TARGETS = ("label", "mask", "boxes")
_MASK = "mask.png"
_MOST = 1e12  # pixels
_LISTS = {"ignore": False, "crowd": False, "areas": math.nan}  # that a box may have beside its edges and its label


class TargetError(DataError):
    """A sample has no target, or one that the classes do not know: an error of the set, which is never skipped."""


def place_of(sample: Mapping[str, Any]) -> str:
    """Return how messages call a sample: its shard and its name."""
    return f"{sample['__url__']}/{sample['__key__']}"


def decode_label(sample: Mapping[str, Any], class_names: Sequence[str]) -> int:
    """Return the number of a sample's class: from ``cls``, an integer or a name; or from ``label`` in ``json``.

    Raises:
        TargetError: naming shard and sample, if there is none, or it is not among the classes.
    """
    place = place_of(sample)
    try:
        if "cls" in sample:
            label = sample["cls"].decode("utf-8-sig").strip()
            label = int(label) if label.removeprefix("-").isdecimal() else label
        else:
            label = parse_json(sample["json"], place, TargetError)["label"]
    except (KeyError, TypeError, ValueError):
        raise TargetError(f"{place} has no label: it needs a .cls file, or a .json one with a label in it") from None
    return _number(label, class_names, place)


def _number(label: object, class_names: Sequence[str], place: str) -> int:
    if type(label) is int and 0 <= label < len(class_names):
        return label
    if isinstance(label, str) and label in class_names:
        return class_names.index(label)
    raise TargetError(str(unknown_label(place, label, class_names)))


def find_mask(sample: Mapping[str, Any]) -> bytes:
    """Return the label image of a sample, undecoded: ``mask.png``.

    Raises:
        TargetError: naming shard and sample, if there is none.
    """
    if _MASK not in sample:
        place = place_of(sample)
        raise TargetError(f"{place} has no label image: it needs a file {sample['__key__']}.{_MASK}")
    content: bytes = sample[_MASK]
    return content


def decode_mask(content: bytes, place: str, num_classes: int, ignore_index: int) -> Tensor:
    """Return the classes of an image's pixels (H, W), int64.

    Raises:
        DataError: naming shard and sample, if the file cannot be read.
        TargetError: if it has other classes.
    """
    place = f"{place}.{_MASK}"
    mask = read_mask(io.BytesIO(content), name=place)
    try:
        return check_mask(mask, place, num_classes, [ignore_index])
    except DataError as error:
        raise TargetError(str(error)) from None


def find_boxes(sample: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Return what a sample's ``json`` says of its boxes, checked, labels as numbers.

    ``boxes`` holds left, top, right and bottom edges in pixels, ``labels`` a number or a name for each; ``ignore`` and
    ``crowd`` tell of each box whether loss and score leave it out, ``areas`` the area of the object, and ``image_id``
    is the number of the image. The last four may be missing.

    Raises:
        TargetError: naming shard and sample, if there is none, or it is something else.
    """
    place = place_of(sample)
    if "json" not in sample:
        raise TargetError(f"{place} has no boxes: it needs a .json file with 'boxes' and 'labels' in it")
    found = parse_json(sample["json"], place, TargetError)
    if not isinstance(found, dict) or not {"boxes", "labels"} <= found.keys():
        raise TargetError(f"the .json file of {place} needs 'boxes' and 'labels'")
    boxes = found["boxes"] if isinstance(found["boxes"], list) else None
    count = -1 if boxes is None else len(boxes)
    lists: dict[str, list[Any]] = {}
    for name in ("boxes", "labels", *_LISTS):
        values = found.get(name)
        if values is None and name in _LISTS:
            values = [_LISTS[name]] * count
        if not isinstance(values, list) or len(values) != count:
            raise TargetError(f"{name!r} of {place} is {brief(values)}, not a list with an entry for each box")
        lists[name] = values
    for box in lists["boxes"]:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise TargetError(f"box {brief(box)} of {place} is not left, top, right and bottom in pixels")
    lists["areas"] = [area if _is_number(area) else math.nan for area in lists["areas"]]
    lists["labels"] = [_number(label, class_names, place) for label in lists["labels"]]
    number = found.get("image_id")
    return {**lists, "image_id": number if type(number) is int else None}


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -_MOST < value < _MOST  # type: ignore[operator]  # a number by then


def decode_boxes(found: Mapping[str, Any], height: int, width: int) -> tuple[dict[str, Any], list[str]]:
    """Return the targets of a sample with boxes, clipped to the image, and what is wrong with those left out."""
    count = len(found["boxes"])
    rows = BoxRows(
        torch.zeros(count, dtype=torch.long),
        torch.tensor(found["boxes"], dtype=torch.float64).reshape(-1, 4),
        torch.tensor(found["labels"], dtype=torch.long),
        torch.tensor([bool(value) for value in found["ignore"]], dtype=torch.bool),
        torch.tensor([bool(value) for value in found["crowd"]], dtype=torch.bool),
        torch.tensor(found["areas"], dtype=torch.float64),
    )
    table, faults, _ = build_table(rows, torch.tensor([[height, width]]))
    meta = {"box_area": table.areas.tolist(), "box_crowd": table.crowd.tolist()}
    if found["image_id"] is not None:
        meta["image_id"] = found["image_id"]
    sample = {
        "boxes": table.boxes,
        "box_label": table.labels,
        "box_ignore": table.ignore,
        "original_size": torch.tensor([height, width]),
        "meta": meta,
    }
    return sample, [f"box {brief(found['boxes'][row])} {fault}" for row, fault in faults.items()]
