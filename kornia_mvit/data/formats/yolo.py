"""YOLO's layout: a data.yaml, folders of images, and a text file with the boxes of each image."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kornia_mvit.data.boxes import Annotation, parse_number, read_points
from kornia_mvit.data.classes import by_number, parse_file
from kornia_mvit.data.reading import DataError, find_images
from kornia_mvit.data.splits import find_places, find_splits, target_file
from kornia_mvit.ops.keypoints import Pairs, pairs_of_names, pairs_of_order
from kornia_mvit.parsing import brief, cut, is_file, is_folder, read_lines, repeated

__all__ = ["YOLOLayout", "check_keypoints", "find_layout", "label_file", "list_images", "name_classes", "read_yolo"]

_LONGEST = 2**31 - 1  # class number
_MOST = 1.5  # of a share, which rounding or a box that reaches out may bring above 1
_DIGITS = 10  # of the number of a class


def read_yolo(path: str | Path, *, kpt_shape: tuple[int, int] | None = None, keypoints: bool = False) -> Annotation:
    """Read a label file of YOLO's: a class number, centre, width and height in each line.

    Centre, width and height are shares of the image's width and height. Lines with more numbers are outlines, x and y
    of three points or more, whose boxes are taken; or, with ``kpt_shape``, boxes and keypoints. Keypoints of two values
    that have a negative one, or lie at (0, 0), are not labelled; the others are visible.

    Args:
        path: a text file.
        kpt_shape: number of keypoints behind each box, and of the values of each.
        keypoints: read the keypoints too; in a line without any, none is labelled.

    Returns:
        The objects, boxes in shares of width and height, neither clipped nor left out.

    Raises:
        DataError: naming the file, if it cannot be read.
    """
    out = Annotation()
    long = 4 + (0 if kpt_shape is None else kpt_shape[0] * kpt_shape[1])
    for number, line in enumerate(read_lines(path, DataError, "labels"), 1):
        words = line.split()
        if not words:
            continue
        kind, *values = map(parse_number, words)
        box, fault = [math.nan] * 4, None
        if len(values) in (4, long):
            x, y, width, height = values[:4]
            if max(values[:4]) > _MOST:
                fault = "has numbers above 1; they are shares of the image's sides, not pixels"
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        elif kpt_shape is not None:
            fault = f"has {len(words)} numbers; a box has 5, with keypoints of kpt_shape {list(kpt_shape)} {long + 1}"
        elif len(values) >= 6 and len(values) % 2 == 0:
            if max(values) > _MOST:
                fault = "has numbers above 1; points are shares of the image's sides, and keypoints need kpt_shape"
            elif all(map(math.isfinite, values)):
                across, down = values[::2], values[1::2]
                box = [min(across), min(down), max(across), max(down)]
        else:
            fault = f"has {len(words)} numbers; a box has 5, an outline an odd number from 7"
            fault += "; keypoints need kpt_shape" if len(words) > 6 else ""
        if keypoints and kpt_shape is not None:
            points, wrong = _read_keypoints(values[4:] if len(values) == long else [], kpt_shape)
            out.keypoints.append(points)
            fault = fault or wrong
        name = cut(words[0]) if not kind.is_integer() or abs(kind) > _LONGEST else str(int(kind))
        out.add(box, name, f"line {number}", fault)
    return out


def _read_keypoints(values: Sequence[float], shape: tuple[int, int]) -> tuple[list[float], str | None]:
    """Return x, y and visibility of the keypoints of a line, and what is wrong with them, if anything is."""
    count, width = shape
    if not values:
        return [0.0] * (3 * count), None
    if width == 3:
        return read_points(values, _MOST)
    pairs = zip(values[::2], values[1::2], strict=True)
    return read_points([v for x, y in pairs for v in (x, y, 0 if min(x, y) < 0 or x == y == 0 else 2)], _MOST)


@dataclass
class YOLOLayout:
    """Where the images of each split are, and what the classes and keypoints are called.

    Args:
        folder: that of the images.
        splits: folders and lists of images of each split.
        names: of the classes.
        kpt_shape: number of keypoints behind each box, and of the values of each.
        described: the file that describes them, if there is one.
        flip_idx: which keypoint takes the place of each in a mirrored image, as the file has it.
        kpt_names: names of the keypoints, as the file has them.
    """

    folder: Path
    splits: dict[str, list[str]]
    names: tuple[str, ...] = field(default=())
    kpt_shape: tuple[int, int] | None = None
    described: Path | None = None
    flip_idx: Any = None
    kpt_names: Any = None

    def keypoint_names(self, count: int) -> tuple[str, ...]:
        """Return the names of the keypoints, which must be the same in all classes; none where the file has none.

        Raises:
            DataError: for other names than one for each keypoint.
        """
        given = [*self.kpt_names.values()] if isinstance(self.kpt_names, Mapping) else [self.kpt_names]
        if given == [None] or not given:
            return ()
        first = given[0]
        if not isinstance(first, list) or len(first) != count or any(other != first for other in given):
            raise DataError(
                f"{self.described}: kpt_names is {brief(self.kpt_names)}, not the same {count} names for each class"
            )
        return tuple(map(str, first))

    def flip_pairs(self, count: int) -> Pairs | None:
        """Return the pairs of keypoints that ``flip_idx`` tells, or their names where it is missing.

        Raises:
            DataError: for a ``flip_idx`` that is not the partner of each keypoint.
        """
        if self.flip_idx is not None:
            try:
                return pairs_of_order(self.flip_idx, count, f"{self.described}: flip_idx")
            except ValueError as error:
                raise DataError(str(error)) from None
        return pairs_of_names(self.keypoint_names(count)) or None


def name_classes(annotation: Annotation, names: Sequence[str]) -> None:
    """Replace numbers by names; a number without a name is a fault, also where it is the name of a class."""
    for place, number in enumerate(annotation.names):
        if number.isdecimal() and len(number) < _DIGITS and int(number) < len(names):
            annotation.names[place] = names[int(number)]
        else:
            annotation.faults.setdefault(place, f"is of the unknown class {number}")


def find_layout(root: Path, name: str | None, *, named: bool) -> YOLOLayout:
    """Find the images, and the names of their classes unless these are given.

    Args:
        root: the folder.
        name: the file that describes them; ``data.yaml`` or ``data.yml`` when None, if there is one.
        named: whether names are given.

    Raises:
        DataError: naming the file or folder, if one is missing or wrong.
    """
    if not root.is_dir():
        raise DataError(f"no such folder: {root}; root (--data.root) has images and labels, or a data.yaml")
    described = [root / name] if name else [root / "data.yaml", root / "data.yml"]
    file = next((file for file in described if name or file.is_file()), None)
    if file is None:
        usual = find_places(root)
        listed = {split: [str(place.relative_to(root))] for split, place in usual.items()}
        return YOLOLayout(root, listed, () if named else _list_names(root, usual.values()))
    data = parse_file(file)
    if not isinstance(data, Mapping):
        raise DataError(f"{file} is not a mapping with names, train and val")
    folder = file.parent / str(data.get("path") or "")
    if not is_folder(folder):  # where the data were when the file was written
        folder = file.parent
    keys = find_splits((key for key in data if isinstance(key, str) and data[key]), str(file))
    splits = {}
    for split, key in keys.items():
        places = data[key] if isinstance(data[key], list) else [data[key]]
        if not all(type(place) in (str, int) for place in places):
            raise DataError(f"{file}: {key} is {brief(data[key])}, not a folder, a file or a list of them")
        splits[split] = [str(place) for place in places]
    if splits and "train" not in splits:
        raise DataError(f"{file} names no train images")
    usual = {} if splits else find_places(folder)
    splits |= {split: [str(place.relative_to(folder))] for split, place in usual.items()}
    names = () if named else _read_names(file, data.get("names")) or _list_names(root, usual.values())
    count = data.get("nc")
    if names and count is not None and str(count) != str(len(names)):
        raise DataError(
            f"{file}: nc is {brief(count)}, but there are {len(names)} names, {cut(', '.join(names))}; make them agree"
        )
    shape = data.get("kpt_shape")
    keypoints = None if shape is None else check_keypoints(f"{file}: kpt_shape", shape)
    return YOLOLayout(folder, splits, names, keypoints, file, data.get("flip_idx"), data.get("kpt_names"))


def check_keypoints(place: str, shape: Any) -> tuple[int, int]:
    """Return the number of keypoints and of the values of each."""
    if not isinstance(shape, list | tuple) or len(shape) != 2 or not all(type(v) is int for v in shape):
        raise DataError(f"{place} is {brief(shape)}; give the number of keypoints and of their values, such as [17, 3]")
    count, values = shape
    if not 0 < count < 10**4 or values not in (2, 3):
        raise DataError(f"{place} is {brief(shape)}; keypoints are 1 or more, with 2 or 3 values each")
    return count, values


def _list_names(root: Path, places: Iterable[Path]) -> tuple[str, ...]:
    """Return the names that LabelImg and like tools write into ``classes.txt``, beside or above the labels."""
    labels = [label_file(place / "classes.txt") for place in places]
    files = dict.fromkeys([root / "classes.txt", root / "labels" / "classes.txt", *labels])
    lines = {file: "\n".join(read_lines(file, DataError)).rstrip().split("\n") for file in files if is_file(file)}
    found = {_read_names(file, [name.strip() for name in names]): file for file, names in lines.items()}
    if len(found) > 1:
        raise DataError(f"{' and '.join(map(str, found.values()))} differ; keep one of them, or give class_names")
    return next(iter(found), ())


def _read_names(file: Path, names: Any) -> tuple[str, ...]:
    """Return the names of classes, which a file has as a list or by their numbers."""
    if names is None:
        return ()
    if isinstance(names, Mapping):
        numbered = by_number(names)
        if numbered is None:
            raise DataError(f"{file}: the classes have the numbers {cut(', '.join(map(str, names)))}, not those from 0")
        names = numbered
    if not isinstance(names, list) or not all(type(name) in (str, int) and str(name).strip() for name in names):
        raise DataError(f"{file}: names is {brief(names)}, not a list of names, or names by their numbers")
    found = tuple(map(str, names))
    if repeated(found):
        raise DataError(f"{file}: a name occurs twice among {cut(', '.join(found))}")
    return found


def list_images(folder: Path, place: str) -> list[Path]:
    """Find the images of a folder, or those that a file lists, one in each line."""
    path = folder / place
    if (
        place.startswith("../") and not is_file(path) and not is_folder(path)
    ):  # as Roboflow writes it, from a folder beside
        path = folder / place.removeprefix("../")
    if path.suffix.lower() != ".txt":
        return find_images(path)
    lines = read_lines(path, DataError, "list")
    files = [path.parent / line.strip() for line in lines if line.strip()]
    if not files:
        raise DataError(f"{path} names no image")
    if missing := [file for file in files if not is_file(file)]:
        raise DataError(f"{path} names {len(missing)} images that are missing, such as {cut(missing[0])}")
    return files


def label_file(image: Path) -> Path:
    """Return the path of an image's labels: the last folder named images becomes labels; or it is beside the image."""
    return target_file(image, ".txt", ("labels",))
