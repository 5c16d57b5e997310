"""Readers of boxes: Pascal VOC, COCO and YOLO. What is wrong with single boxes is told, not raised."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.data.boxes import BoxRows
from kornia_mvit.data.reading import DataError
from kornia_mvit.parsing import brief, cut, read_json, read_lines, reason_of

__all__ = ["Annotation", "CocoFile", "distinct_names", "read_coco", "read_voc", "read_yolo"]


@dataclass
class Annotation:
    """The objects of one image, right or wrong.

    Args:
        boxes: left, top, right and bottom edges in pixels, or in shares of width and height; NaN for what is no number.
        names: of the objects' classes; their numbers where the file has no names.
        difficult: whether each is marked so.
        given: each as the file has it, for messages.
        faults: what is wrong with some besides their edges, by their place in the lists.
        size: height and width of the image in pixels; zeros where the file does not tell.
    """

    boxes: list[list[float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)

    def add(self, box: Sequence[float], name: str, given: str, fault: str | None, difficult: bool = False) -> None:
        """Append an object."""
        if fault is not None:
            self.faults[len(self.boxes)] = fault
        self.boxes.append(list(box))
        self.names.append(name)
        self.difficult.append(difficult)
        self.given.append(given)


def read_voc(path: str | Path, *, origin: int = 1) -> Annotation:
    """Read a Pascal VOC annotation.

    VOC counts pixels from 1 and names the last one of a box: one of the first two pixels of the first two rows is
    (1, 1, 2, 2), and (0, 0, 2, 2) in edges. Where the last pixel is the first, nothing was boxed.

    Args:
        path: an XML file.
        origin: number of the first pixel; 0 for files that count from there. Either way the last one is named.

    Returns:
        The objects, boxes in pixels, neither clipped nor left out.

    Raises:
        DataError: naming the file, if it is missing or not such a file, or has entities, which could expand.
        ImportError: if defusedxml is missing.
    """
    try:
        from defusedxml import ElementTree  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as error:
        raise ImportError("reading VOC annotations needs defusedxml; install kornia-mvit[train]") from error
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"no such annotation: {path}") from None
    except Exception as error:  # of the parser's, of defusedxml's, and of decoders'
        raise DataError(f"cannot read annotation {path}: {reason_of(error)}") from None
    height, width = (_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    told = all(math.isfinite(side) and 1 <= side <= _LONGEST for side in (height, width))
    out = Annotation(size=(round(height), round(width)) if told else (0, 0))
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        low_x, low_y, high_x, high_y = (
            _number(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        given = f"{name or 'an object without a name'} ({low_x:g}, {low_y:g}, {high_x:g}, {high_y:g})"
        fault = "has no area" if high_x <= low_x or high_y <= low_y else None if name else "is incomplete"
        box = (low_x - origin, low_y - origin, high_x + 1 - origin, high_y + 1 - origin)
        out.add(box, name, given, fault, _number(item.findtext("difficult")) == 1)
    return out


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


_NUMBERS = 10**28  # of images and categories
_LONGEST = 2**31 - 1  # side of an image, in pixels
_MOST = 1.5  # of a share, which rounding or a box that reaches out may bring above 1


def read_yolo(path: str | Path, *, kpt_shape: tuple[int, int] | None = None) -> Annotation:
    """Read a label file of YOLO's: a class number, centre, width and height in each line.

    Centre, width and height are shares of the image's width and height. Lines with more numbers are outlines, x and y
    of three points or more, whose boxes are taken; or, with ``kpt_shape``, boxes and keypoints, which are left.

    Args:
        path: a text file.
        kpt_shape: number of keypoints behind each box, and of the values of each.

    Returns:
        The objects, boxes in shares of width and height, neither clipped nor left out.

    Raises:
        DataError: naming the file, if it cannot be read.
    """
    out = Annotation()
    keypoints = 4 + (0 if kpt_shape is None else kpt_shape[0] * kpt_shape[1])
    for number, line in enumerate(read_lines(path, DataError, "labels"), 1):
        words = line.split()
        if not words:
            continue
        kind, *values = map(_number, words)
        box, fault = [math.nan] * 4, None
        if len(values) in (4, keypoints):
            x, y, width, height = values[:4]
            if max(values[:4]) > _MOST:
                fault = "has numbers above 1; they are shares of the image's sides, not pixels"
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        elif kpt_shape is not None:
            fault = (
                f"has {len(words)} numbers; a box has 5, with keypoints of kpt_shape {list(kpt_shape)} {keypoints + 1}"
            )
        elif len(values) >= 6 and len(values) % 2 == 0:
            if max(values) > _MOST:
                fault = "has numbers above 1; points are shares of the image's sides, and keypoints need kpt_shape"
            elif all(map(math.isfinite, values)):
                across, down = values[::2], values[1::2]
                box = [min(across), min(down), max(across), max(down)]
        else:
            fault = f"has {len(words)} numbers; a box has 5, an outline an odd number from 7"
            fault += "; keypoints need kpt_shape" if len(words) > 6 else ""
        name = cut(words[0]) if not kind.is_integer() or abs(kind) > _LONGEST else str(int(kind))
        out.add(box, name, f"line {number}", fault)
    return out


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
    """

    files: list[str]
    image_ids: list[int]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    rows: BoxRows
    sizes: Tensor
    given: list[Any]


def read_coco(path: str | Path) -> CocoFile:
    """Read boxes from a COCO file; outlines, masks and keypoints are left.

    Args:
        path: a JSON file with ``images``, ``annotations`` and ``categories``.

    Returns:
        Images, classes and boxes in pixels, neither clipped nor left out.

    Raises:
        DataError: naming the file, if it is missing, not JSON, or not such a file.
    """
    data = read_json(path, DataError, "file of annotations", hook=_without_outlines)
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
    return CocoFile(
        names,
        image_ids,
        tuple(category_ids),
        tuple(class_names[i] for i in order),
        _coco_rows(items, image_ids, category_ids),
        sizes.reshape(-1, 2).long(),
        [item.get("id") for item in items],
    )


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    """Let go of what is large in an annotation and not asked for, while the file is read."""
    for key in ("segmentation", "keypoints"):
        entry.pop(key, None)
    return entry


def _entries(data: Any, key: str) -> list[dict[str, Any]]:
    """Give a list of mappings out of a file."""
    entries = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError(f"it has no list {key!r}")
    if wrong := next((n for n, entry in enumerate(entries) if type(entry) is not dict), -1) + 1:
        raise ValueError(f"entry {wrong} of {key!r} is not a mapping")
    return entries


def _by_number(entries: Sequence[Mapping[str, Any]], key: str, name: str) -> tuple[list[int], list[str]]:
    """Give the numbers of entries, which occur once, and their names."""
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
    """Give names that differ: those that several classes have are followed by the number of each.

    Example:
        >>> distinct_names(["cat", "dog", "cat"], [3, 5, 9])
        ('cat (3)', 'dog', 'cat (9)')
    """
    counts = Counter(names)
    numbered = [f"{name} ({number})" for name, number in zip(names, numbers, strict=True)]
    out = tuple(new if counts[name] > 1 else name for name, new in zip(names, numbered, strict=True))
    return out if len(set(out)) == len(out) else tuple(numbered)


def _whole(value: Any) -> int | None:
    """Give a whole number, which some tools write as 3.0 or "3"; None for anything else."""
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
    """Give a number, which some tools write as a text; NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except (OverflowError, ValueError):
        return math.nan
