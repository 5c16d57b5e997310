"""COCO's JSON files of boxes."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.data.boxes import BoxRows, read_points
from kornia_mvit.data.reading import DataError
from kornia_mvit.parsing import brief, read_json

__all__ = ["CocoFile", "distinct_names", "read_coco"]

_NUMBERS = 10**28  # of images and categories
_LONGEST = 2**31 - 1  # side of an image, in pixels


@dataclass
class CocoFile:
    """What a COCO file holds.

    Args:
        files: name of each image's file.
        image_ids: number of each image.
        category_ids: numbers of the categories, ascending; a class's label is its place here.
        class_names: their names; those of several categories are followed by the category's number.
        rows: the boxes, right or wrong.
        sizes: (M, 2) height and width of each image in pixels, int64; 0 where the file does not tell.
        given: number of each annotation.
        keypoint_names: names of the keypoints of an object, where they are read.
        keypoint_skeleton: numbers, from 0, of the keypoints between which lines are drawn.
        outlines: outline of each as the file has it; None where they were not asked for.
    """

    files: list[str]
    image_ids: list[int]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    rows: BoxRows
    sizes: Tensor
    given: list[Any]
    keypoint_names: tuple[str, ...] = ()
    keypoint_skeleton: tuple[tuple[int, int], ...] = ()
    outlines: list[Any] | None = None


def read_coco(path: str | Path, *, keypoints: bool = False, outlines: bool = False) -> CocoFile:
    """Read boxes, and perhaps keypoints and outlines, from a COCO file.

    COCO counts keypoints in whole pixels, from the middle of the first: half a pixel is added to the labelled ones, so
    that they are measured from the edge of the image, as boxes are.

    Args:
        path: a JSON file with ``images``, ``annotations`` and ``categories``.
        keypoints: read the keypoints too; an annotation without any, or of a category that has none, gets keypoints of
            which none is labelled.
        outlines: keep the outlines: polygons and run lengths.

    Returns:
        Images, classes and boxes in pixels, neither clipped nor left out.

    Raises:
        DataError: naming the file, if it is missing, not JSON, or not such a file; for keypoints that no category has,
            or that differ from category to category.
    """
    unwanted = [key for key, asked in (("keypoints", keypoints), ("segmentation", outlines)) if not asked]
    data = read_json(path, DataError, "file of annotations", hook=partial(_without, unwanted))
    point_names, skeleton = _keypoints_of(data, path) if keypoints else ((), ())
    try:
        images, items, categories = (_entries(data, key) for key in ("images", "annotations", "categories"))
        image_ids, names = _by_number(images, "images", "file_name")
        category_ids, class_names = _by_number(categories, "categories", "name")
        class_names = list(distinct_names(class_names, category_ids))
    except ValueError as error:
        raise DataError(f"{path} is not a COCO file: {error}") from None
    order = sorted(range(len(category_ids)), key=category_ids.__getitem__)
    category_ids = [category_ids[i] for i in order]
    sizes = torch.tensor([[_length(image.get(side)) for side in ("height", "width")] for image in images])
    rows = _coco_rows(items, image_ids, category_ids)
    if keypoints:
        rows.keypoints = _coco_keypoints(items, len(point_names), rows.faults)
    return CocoFile(
        names,
        image_ids,
        tuple(category_ids),
        tuple(class_names[i] for i in order),
        rows,
        sizes.reshape(-1, 2).long(),
        [item.get("id") for item in items],
        point_names,
        skeleton,
        [item.get("segmentation") for item in items] if outlines else None,
    )


def _without(keys: Collection[str], entry: dict[str, Any]) -> dict[str, Any]:
    """Let go of what is large in an annotation and not asked for, while the file is read."""
    for key in keys:
        entry.pop(key, None)
    return entry


def _keypoints_of(data: Any, path: str | Path) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Return the names of the keypoints of the categories that have some, and the lines between them, from 0."""
    try:
        categories = [category for category in _entries(data, "categories") if category.get("keypoints")]
        if not categories:
            raise ValueError("none of its categories has keypoints; leave keypoints (--data.keypoints) out")
        first = categories[0]
        for category in categories:
            if category["keypoints"] != first["keypoints"]:
                raise ValueError(
                    f"the categories {brief(first.get('name'))} and {brief(category.get('name'))} have other keypoints "
                    "from each other; give a file of one of them"
                )
        names = first["keypoints"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"keypoints of category {brief(first.get('name'))} is {brief(names)}, not a list of names")
        lines = []
        drawn = first.get("skeleton") or []
        for line in drawn if isinstance(drawn, list) else [drawn]:
            numbers = [_whole(number) for number in line] if isinstance(line, list) else []
            if len(numbers) != 2 or not all(number is not None and 0 < number <= len(names) for number in numbers):
                raise ValueError(
                    f"skeleton of category {brief(first.get('name'))} has {brief(line)}; each line is two numbers of "
                    f"keypoints, from 1 to {len(names)}"
                )
            lines.append((int(numbers[0] or 0) - 1, int(numbers[1] or 0) - 1))
    except ValueError as error:
        raise DataError(f"{path} is not a COCO file of keypoints: {error}") from None
    return tuple(names), tuple(lines)


def _coco_keypoints(items: Sequence[Mapping[str, Any]], count: int, faults: dict[int, str]) -> Tensor:
    """Return the keypoints (N, K, 3) of annotations in pixels, and note what is wrong with some."""
    rows = []
    for row, item in enumerate(items):
        given = item.get("keypoints") or [0] * (3 * count)
        values, fault = [0.0] * (3 * count), None
        if not isinstance(given, list):
            fault = f"has keypoints {brief(given)}, not a list of numbers"
        elif len(given) != 3 * count:
            fault = f"has {len(given)} numbers of keypoints; {count} keypoints have {3 * count}, x, y and visibility"
        else:
            values, fault = read_points([_float(value) for value in given])
        if fault is not None:
            faults.setdefault(row, fault)
        rows.append(values)
    out = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), count, 3)
    out[..., :2] += 0.5 * (out[..., 2:] > 0)
    return out


def _entries(data: Any, key: str) -> list[dict[str, Any]]:
    """Return a list of mappings from a file."""
    entries = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError(f"it has no list {key!r}")
    if wrong := next((n for n, entry in enumerate(entries) if type(entry) is not dict), -1) + 1:
        raise ValueError(f"entry {wrong} of {key!r} is not a mapping")
    return entries


def _by_number(entries: Sequence[Mapping[str, Any]], key: str, name: str) -> tuple[list[int], list[str]]:
    """Return the numbers of entries, which occur once, and their names."""
    found: dict[int, str] = {}
    for entry in entries:
        number, text = _whole(entry.get("id")), entry.get(name)
        if key == "categories" and type(text) is int:
            text = str(text)
        if number is not None and abs(number) >= _NUMBERS:
            raise ValueError(f"{key!r} has an entry with id {brief(number)}, which has more than 28 digits")
        if number is None or not isinstance(text, str) or not text:
            raise ValueError(
                f"{key!r} has an entry with id {brief(entry.get('id'))} and {name} {brief(text)}, not a whole number "
                "and a text"
            )
        if number in found:
            raise ValueError(f"id {number} occurs twice in {key!r}")
        found[number] = text
    return [*found], [*found.values()]


def distinct_names(names: Sequence[str], numbers: Sequence[int]) -> tuple[str, ...]:
    """Return names that differ: those that several classes have are followed by the number of each.

    Example:
        >>> distinct_names(["cat", "dog", "cat"], [3, 5, 9])
        ('cat (3)', 'dog', 'cat (9)')
    """
    counts = Counter(names)
    numbered = [f"{name} ({number})" for name, number in zip(names, numbers, strict=True)]
    out = tuple(new if counts[name] > 1 else name for name, new in zip(names, numbered, strict=True))
    return out if len(set(out)) == len(out) else tuple(numbered)


def _whole(value: Any) -> int | None:
    """Return a whole number, which some tools write as 3.0 or "3"; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,100}(\.0{0,100})?\s*", value):
        return int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _length(value: Any) -> int:
    length = _whole(value)
    return length if length is not None and 0 < length <= _LONGEST else 0


def _coco_rows(items: Sequence[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]) -> BoxRows:
    faults: dict[int, str] = {}
    columns = []
    for key, known, kind in (("category_id", category_ids, "category"), ("image_id", image_ids, "image")):
        places = {number: place for place, number in enumerate(known)}
        values = [item.get(key) for item in items]
        column = [-1 if (number := _whole(value)) is None else places.get(number, -1) for value in values]
        for row in (row for row, place in enumerate(column) if place < 0):
            faults[row] = f"names {kind} {brief(values[row])}, which the file does not have"
        columns.append(torch.tensor(column, dtype=torch.long))
    boxes = _numbers([item.get("bbox") for item in items])
    boxes[:, 2:] += boxes[:, :2]
    crowd = torch.tensor([_float(item.get("iscrowd")) > 0 for item in items], dtype=torch.bool)
    areas = torch.tensor([_float(item.get("area")) for item in items], dtype=torch.float64)
    return BoxRows(columns[1], boxes, columns[0], torch.zeros_like(crowd), crowd, areas, faults)


def _numbers(values: Sequence[Any]) -> Tensor:
    """Make (N, 4) float64 of lists of four numbers, NaN of anything else."""
    try:
        boxes = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        boxes = torch.empty(0)
    if boxes.shape == (len(values), 4):
        return boxes
    lists = (value if isinstance(value, list) and len(value) == 4 else [None] * 4 for value in values)
    return torch.tensor([[_float(v) for v in value] for value in lists], dtype=torch.float64).reshape(-1, 4)


def _float(value: Any) -> float:
    """Return a number, which some tools write as a text; NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except (OverflowError, ValueError):
        return math.nan
