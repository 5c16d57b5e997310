"""What a dataset is for, told from its layout: which data module reads it, and which recipe trains on it."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from kornia_mvit.data.reading import IMAGE_SUFFIXES, DataError, is_hidden
from kornia_mvit.data.splits import SPLITS, split_of
from kornia_mvit.files import check_local
from kornia_mvit.parsing import cut, is_file, is_folder, read_lines, read_text

__all__ = ["RECIPES", "Layout", "find_layout"]

RECIPES = {"classification": "folder", "segmentation": "folder-segmentation", "detection": "folder-detection"}

_KNOWN = {  # layouts, as errors name them
    "classification": "a folder of images for each class, perhaps below train and val; or a table (.csv, .tsv, .jsonl)",
    "segmentation": "train and val with images, train_labels and val_labels with a label image for each; "
    "or VOC's JPEGImages and SegmentationClass",
    "detection": "YOLO's images and labels, or data.yaml; COCO's annotations/*.json; VOC's JPEGImages and Annotations",
}
_TABLES = (".csv", ".tsv", ".jsonl")
_YAML = (".yaml", ".yml")
_PARTS = frozenset(("images", "jpegimages"))  # folders beside which others are no classes
_HEAD = 2**16  # bytes of a JSON file that are looked at
_LOOK = 1000  # files that are looked at to tell what a folder holds
_LABELS, _LABELS_END = ("labels", "masks", "annotations"), ("_labels", "_masks", "annot")  # folders of label images
_MARK = re.compile(r"[-_. ](masks?|labels?)$", re.IGNORECASE)  # of the name of a label image beside its image
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(name for names in SPLITS.values() for name in names)})(?![a-z])")


@dataclass(frozen=True)
class Layout:
    """How a dataset lies on the disk.

    Args:
        found: what it was told by, such as ``'class folders (rose, tulip)'``.
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``.
        data: name of the class in :mod:`kornia_mvit.training.datamodules` that reads it.
        options: the arguments of that class.
        train: folders of the training images.
        split_off: whether a part of these is kept for validation.
    """

    found: str
    task: str
    data: str
    options: Mapping[str, Any]
    train: Sequence[Path] = field(default=())
    split_off: bool = False

    @property
    def recipe(self) -> str:
        """Name of the recipe that trains on it."""
        return RECIPES[self.task]

    def count_images(self, most: int) -> int:
        """Return about how many images there are to train on, and no more than ``most``."""
        found = (path for folder in self.train for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
        count = sum(1 for _ in islice(found, 2 * most))
        return min(most, count - count // 5 if self.split_off else count)


def find_layout(source: str | Path, task: str | None = None) -> Layout:
    """Tell how a dataset lies on the disk.

    Args:
        source: its folder; or a table, or the ``data.yaml`` of YOLO's layout.
        task: the task that it is for; told from the layout when None.

    Raises:
        DataError: naming what was found and which layouts would do.
        ValueError: for an unknown task.
    """
    if task is not None and task not in RECIPES:
        raise ValueError(f"unknown task {task!r}; available: {', '.join(map(repr, RECIPES))}")
    check_local(source)
    root = Path(source)
    if is_file(root):
        found = [*_of_file(root)]
    elif is_folder(root):
        found = [layout for look in _LOOKS for layout in look(root)]
    else:
        raise DataError(f"no such folder: {cut(root)}; give the folder with your images")
    fitting = [layout for layout in found if task in (None, layout.task)]
    if fitting:
        return fitting[0]
    known = " ".join(f"for {name}: {text}." for name, text in _KNOWN.items() if task in (None, name))
    what = f"has {found[0].found}, for {found[0].task}" if found else _describe(root)
    raise DataError(f"{cut(root)} {what}. What would do, {known}")


def _of_file(file: Path) -> Iterator[Layout]:
    if file.suffix.lower() in _TABLES:
        yield Layout("rows of paths and labels", "classification", "TableData", {"train": str(file)}, (file.parent,))
    elif file.suffix.lower() in _YAML:
        yield from _yolo(file.parent, file)


# ---------------------------------------------------------------------------------------------------------- detection


def _voc(root: Path) -> Iterator[Layout]:
    images = root / "JPEGImages"
    if not is_folder(images):
        return
    options = {"root": str(root)}
    if is_folder(root / "Annotations"):
        yield Layout("VOC's JPEGImages and Annotations", "detection", "VOCData", options, (images,))
    if is_folder(root / "SegmentationClass"):
        found = "VOC's JPEGImages and SegmentationClass"
        yield Layout(found, "segmentation", "VOCSegmentationData", options, (images,))


def _coco(root: Path) -> Iterator[Layout]:
    folders = [root, root / "annotations", *(path for name, path in _folders(root).items() if split_of(name))]
    files = [file for folder in folders if is_folder(folder) for file in sorted(folder.glob("*.json"))]
    parts: dict[str, list[Path]] = {}
    for file in filter(_is_coco, files):
        parts.setdefault(_split_of_file(file), []).append(file)
    if not parts:
        return
    options: dict[str, Any] = {"root": str(root)}
    for split, several in parts.items():
        own = [file for file in several if file.name.startswith("instances")] or several
        if len(own) > 1:
            names = ", ".join(str(file.relative_to(root)) for file in own)
            raise DataError(f"{root} has several COCO files for {split}: {names}; keep one of them there")
        options[f"{split}_file"] = str(own[0].relative_to(root))
        options[f"{split}_images"] = str(_images_of(own[0], root, split).relative_to(root))
    if "train" not in parts:
        options["train_file"] = None
    train = root / options.get("train_images", ".")
    yield Layout("COCO's annotations", "detection", "COCOData", options, (train,), "val" not in parts)


def _is_coco(file: Path) -> bool:
    with file.open("rb") as opened:
        return re.search(rb'"(images|annotations|categories|info|licenses)"\s*:', opened.read(_HEAD)) is not None


def _split_of_file(file: Path) -> str:
    """Return the split that a file's name has in it, or else its folder's."""
    word = _SPLIT_WORD.search(file.stem.lower())
    return (split_of(word[1]) if word else split_of(file.parent.name)) or "train"


def _images_of(file: Path, root: Path, split: str) -> Path:
    """Return the folder of the images of a COCO file: the one with the first image that it names."""
    with file.open("rb") as opened:
        first = re.search(rb'"file_name"\s*:\s*"([^"\\]+)"', opened.read(_HEAD))
    stem = file.stem.removeprefix("instances_")
    places = [stem, *SPLITS.get(split, ())]
    folders = [root / place for place in places] + [root / "images" / place for place in places]
    folders = [file.parent, *folders, root / "images", root]
    if first is not None:
        name = first[1].decode(errors="replace")
        folders = [folder for folder in folders if is_file(folder / name)] or folders[1:]
    return next((folder for folder in folders if is_folder(folder)), root)


def _yolo(root: Path, file: Path | None = None) -> Iterator[Layout]:
    options: dict[str, Any] = {"root": str(root)}
    file = file or _data_yaml(root)
    train = [folder for folder in _train_folders(root) if _has_images(folder)][:1]
    if file is not None:
        if file.name != "data.yaml":
            options["file"] = file.name
        yield Layout(f"YOLO's {file.name}", "detection", "YOLOData", options, train)
    elif is_folder(root / "images") and _suffixes(root / "labels")[".txt"]:
        yield Layout("YOLO's images and labels", "detection", "YOLOData", options, train)


def _data_yaml(root: Path) -> Path | None:
    """Return the file that tells the places and the classes of YOLO's layout."""
    usual = root / "data.yaml"
    if is_file(usual):
        return usual
    for file in sorted(path for path in root.iterdir() if path.suffix.lower() in _YAML):
        words = re.findall(r"(?m)^(train|names)\s*:", read_text(file, DataError))
        if {*words} == {"train", "names"}:
            return file
    return None


def _beside(root: Path) -> Iterator[Layout]:
    """Tell boxes in files beside the images, or in a folder beside theirs, as LabelImg writes them."""
    places = [place for place in _train_folders(root) if _has_images(place)]
    folders = [place / name for place in (root, *places) for name in ("annotations", "Annotations", "labels")]
    if any(path.suffix.lower() == ".xml" for place in (*places, *folders) for path in _entries(place)):
        yield Layout("images and VOC's .xml files", "detection", "VOCData", {"root": str(root)}, places[:1], True)
    for place in places:
        stems = {path.stem for path in _entries(place) if path.suffix.lower() == ".txt"}
        if any(path.stem in stems and path.suffix.lower() in IMAGE_SUFFIXES for path in _entries(place)):
            yield Layout("images and YOLO's .txt files", "detection", "YOLOData", {"root": str(root)}, [place], True)


# ------------------------------------------------------------------------------------------------------- segmentation


def _label_images(root: Path) -> Iterator[Layout]:
    found = _pairs(root)
    if found is not None:
        images, labels = found
        inside = f"{images.relative_to(root)}, {labels.relative_to(root)}"
        told = "NAME_mask beside NAME" if images == labels else inside
        yield Layout(
            f"images and label images ({told})",
            "segmentation",
            "SegmentationFolderData",
            {"root": str(root), **_classes_of(root)},
            (images,),
        )


def _pairs(root: Path) -> tuple[Path, Path] | None:
    """Return the folders of the training images and of their label images, the same where these are beside them."""
    for images in _train_folders(root):
        beside = [images.with_name(images.name + end) for end in _LABELS_END] if images != root else []
        parts = images.relative_to(root).parts
        if "images" in parts:
            beside += [Path(root, *(name if part == "images" else part for part in parts)) for name in _LABELS]
        for labels in beside:
            if _has_images(labels) and _has_images(images):
                return images, labels
        names = {path.stem for path in _entries(images) if path.suffix.lower() in IMAGE_SUFFIXES}
        if any(_MARK.sub("", name) in names for name in names if _MARK.search(name)):
            return images, images
    return None


def _classes_of(root: Path) -> dict[str, Any]:
    """Return what names the classes: a file beside the images, if there is one."""
    for suffix in (*_YAML, ".json"):
        if is_file(file := root / f"classes{suffix}"):
            return {"classes": str(file)}
    if is_file(file := root / "classes.txt"):
        return {"class_names": [line.strip() for line in read_lines(file, DataError) if line.strip()]}
    return {}


# ----------------------------------------------------------------------------------------------------- classification


def _class_folders(root: Path) -> Iterator[Layout]:
    folders = _folders(root)
    deep = {split_of(name): path for name, path in folders.items() if split_of(name) and _folders(path)}
    place = deep.get("train", root)
    classes = [name for name, path in _folders(place).items() if _has_images(path)]
    if len(classes) < 2 or _PARTS & {name.lower() for name in folders}:
        return
    below = f" in {' and '.join(str(split) for split in SPLITS if split in deep)}" if "train" in deep else ""
    yield Layout(
        f"class folders{below} ({_some(classes)})",
        "classification",
        "FolderData",
        {"root": str(root)},
        (place,),
        split_off="val" not in deep,
    )


_LOOKS: tuple[Callable[[Path], Iterator[Layout]], ...] = (_voc, _coco, _yolo, _label_images, _beside, _class_folders)


# ------------------------------------------------------------------------------------------------------ what is there


def _folders(root: Path) -> dict[str, Path]:
    if not is_folder(root):
        return {}
    return {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)}


def _train_folders(root: Path) -> list[Path]:
    """Return the folders that training images may be in, those of a split first."""
    splits = [folder for place in (root / "images", root) for folder in _folders(place).items()]
    trains = [path for name, path in splits if split_of(name) == "train"]
    inner = [path / "images" for path in trains if is_folder(path / "images")]
    return [*inner, *trains, *([root / "images"] if is_folder(root / "images") else []), root]


def _entries(folder: Path) -> list[Path]:
    return [] if not is_folder(folder) else [path for path in folder.iterdir() if not is_hidden(path.name)]


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, those of links to folders too."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(place, name) for name in sorted(names) if not is_hidden(name))


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in islice(_files(folder), _LOOK))


def _suffixes(folder: Path) -> Counter[str]:
    return Counter(path.suffix.lower() for path in islice(_files(folder), _LOOK))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _describe(root: Path) -> str:
    """Say what a folder of no known layout has."""
    if is_file(root):
        return f"is a file ({root.suffix or 'no suffix'})"
    folders = _folders(root)
    if len(folders) == 1:
        (inner,) = folders.values()
        if any(layout for look in _LOOKS for layout in look(inner)):
            return f"has its data one folder below: pass {cut(inner)}"
    kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in _suffixes(root).most_common(5))
    return f"has {f'folders ({_some([*folders])})' if folders else 'no folders'} and {kinds or 'no files'}"
