"""Images with boxes, as YOLO's tools lay them out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kornia_mvit.data.classes import by_number, parse_file
from kornia_mvit.data.formats.annotations import Annotation, read_yolo
from kornia_mvit.data.reading import DataError, find_images
from kornia_mvit.data.splits import find_splits
from kornia_mvit.parsing import brief, cut, is_file, is_folder, read_lines
from kornia_mvit.training.datamodules.detection import BoxData, check_names

__all__ = ["YOLOData"]

_DIGITS = 10  # of the number of a class


@dataclass
class _Layout:
    """Where the images of each split are, and what the classes are called."""

    folder: Path
    splits: dict[str, list[str]]
    names: tuple[str, ...] = field(default=())
    kpt_shape: tuple[int, int] | None = None


class YOLOData(BoxData):
    """Images with boxes in YOLO's layout, as Ultralytics and many tools write it.

    ``root/images/{train,val}/NAME.*`` with ``root/labels/{train,val}/NAME.txt``, and test if there is one, or whatever
    places ``root/data.yaml`` tells: ``train``, ``val`` and ``test`` are folders, files that list images, or lists of
    either, relative to ``path``; the labels of ``.../images/NAME.jpg`` are in ``.../labels/NAME.txt``. Each line has a
    class number, centre, width and height, as shares of the image's sides, or the class and an outline, whose box is
    taken. Where ``data.yaml`` has a ``kpt_shape``, keypoints follow the box, and are left. Images without a label file,
    or with an empty one, stay as background. ``valid`` and ``validation`` stand for val, ``training`` for train and
    ``testing`` for test. Test images that ``data.yaml`` names and that are not there matter to ``test`` alone.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: of training images, see :class:`FolderData`. Others keep their size, at which they are scored,
            unless it is given.
        file: the file with ``names``, and perhaps ``path``, ``train``, ``val`` and ``test``, below the root;
            ``data.yaml`` when None, if there is one.
        class_names: names of the classes in the order of their numbers; those of the file when None.
        kpt_shape: number of keypoints behind each box, and of the values of each, 2 or 3; what the file says when None.
        on_bad_box: boxes without an area, outside their image, incomplete, with a wrong count of numbers, or of an
            unknown class: ``'drop'`` counts and lists them with file and line, ``'raise'`` refuses the dataset.

    Raises:
        DataError: naming the file or folder, if one is missing or broken, or if there are no labels at all.

    References:
        https://docs.ultralytics.com/datasets/detect
    """

    _TEST = "add images/test, or name test in data.yaml"

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 2,
        storage_size: int | None = None,
        *,
        file: str | None = None,
        class_names: Sequence[str] | None = None,
        kpt_shape: tuple[int, int] | None = None,
        on_bad_box: str = "drop",
    ) -> None:
        super().__init__(batch_size, num_workers, storage_size, on_bad_box)
        self.root: Path = Path(root)
        self._place = str(root)
        layout = _find_layout(self.root, file, named=bool(class_names))
        self._class_names = check_names(class_names or layout.names)
        if kpt_shape is not None:
            layout.kpt_shape = _check_keypoints("kpt_shape", kpt_shape)
        if not self._class_names:
            raise DataError(
                f"{self.root} does not tell the names of its classes; give class_names (--data.class_names), or a "
                f"data.yaml{_hint(self.root)}"
            )
        splits: dict[str, list[Path]] = {}
        for split, places in layout.splits.items():
            try:
                images = [path for place in places for path in _list_images(layout.folder, place)]
            except DataError as error:
                if split != "test":
                    raise
                self._TEST = f"{error}"  # which no other command needs
                self._notes.append(f"test is left out: {error}")
                continue
            splits[split] = list(dict.fromkeys(images))
        labels = {path: _label_file(path) for files in splits.values() for path in files}
        found = {
            path: read_yolo(label, kpt_shape=layout.kpt_shape) if is_file(label) else Annotation()
            for path, label in labels.items()
        }
        if not any(is_file(label) for label in labels.values()):
            first, label = next(iter(labels.items()))
            raise DataError(f"no image of {self.root} has labels; those of {first} would be in {label}")
        for split, files in splits.items():
            if files and split != "test" and not any(is_file(labels[path]) for path in files):
                raise DataError(f"no {split} image has labels; those of {files[0]} would be in {labels[files[0]]}")
        for annotation in found.values():
            _name_classes(annotation, self._class_names)
        self._fill(splits, found, {path: _below(label, self.root) for path, label in labels.items()}, relative=True)


def _hint(root: Path) -> str:
    """Tell of another layout that is there."""
    for place, name in (("annotations", "COCOData"), ("Annotations", "VOCData")):
        if (root / place).is_dir():
            return f"; the folder {place} is of another layout: --data kornia_mvit.training.datamodules.{name}"
    return ""


def _name_classes(annotation: Annotation, names: Sequence[str]) -> None:
    """Put names in the place of numbers; a number that has none is a fault, also where it is the name of a class."""
    for place, number in enumerate(annotation.names):
        if number.isdecimal() and len(number) < _DIGITS and int(number) < len(names):
            annotation.names[place] = names[int(number)]
        else:
            annotation.faults.setdefault(place, f"is of the unknown class {number}")


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _find_layout(root: Path, name: str | None, *, named: bool) -> _Layout:
    """Find the images, and the names of their classes unless these are given."""
    if not root.is_dir():
        raise DataError(f"no such folder: {root}; root (--data.root) has images and labels, or a data.yaml")
    file = root / (name or "data.yaml")
    if name is None and not file.is_file():
        return _Layout(root, _usual_places(root))
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
    if splits and (lacking := [split for split in ("train", "val") if split not in splits]):
        raise DataError(f"{file} names no {lacking[0]} images")
    names = () if named else _names(file, data.get("names"))
    count = data.get("nc")
    if names and count is not None and str(count) != str(len(names)):
        raise DataError(
            f"{file}: nc is {brief(count)}, but there are {len(names)} names, {cut(', '.join(names))}; make them agree"
        )
    shape = data.get("kpt_shape")
    keypoints = None if shape is None else _check_keypoints(f"{file}: kpt_shape", shape)
    return _Layout(folder, splits or _usual_places(folder), names, keypoints)


def _check_keypoints(place: str, shape: Any) -> tuple[int, int]:
    """Give the number of keypoints and of the values of each."""
    if not isinstance(shape, list | tuple) or len(shape) != 2 or not all(type(v) is int for v in shape):
        raise DataError(f"{place} is {brief(shape)}; give the number of keypoints and of their values, such as [17, 3]")
    count, values = shape
    if not 0 < count < 10**4 or values not in (2, 3):
        raise DataError(f"{place} is {brief(shape)}; keypoints are 1 or more, with 2 or 3 values each")
    return count, values


def _usual_places(root: Path) -> dict[str, list[str]]:
    folder = root / "images"
    there = [path.name for path in folder.iterdir() if path.is_dir()] if is_folder(folder) else []
    names = {"train": "train", "val": "val"} | find_splits(there, str(folder))
    return {split: [f"images/{name}"] for split, name in names.items()}


def _names(file: Path, names: Any) -> tuple[str, ...]:
    """Give the names of classes, which a file has as a list or by their numbers."""
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
    if len(set(found)) < len(found):
        raise DataError(f"{file}: a name occurs twice among {cut(', '.join(found))}")
    return found


def _list_images(folder: Path, place: str) -> list[Path]:
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


def _label_file(image: Path) -> Path:
    """Give the place of an image's labels: the last folder named images becomes labels."""
    parts = list(image.with_suffix(".txt").parts)
    places = [n for n, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    path = Path(*parts)
    upper = path.with_suffix(".TXT")
    return upper if not is_file(path) and is_file(upper) else path
