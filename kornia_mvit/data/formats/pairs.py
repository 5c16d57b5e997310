"""Folders of images and of their label images, in the layouts that tools write."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kornia_mvit.data.reading import DataError, find_images
from kornia_mvit.data.splits import IMAGE_FOLDERS, find_places, find_splits, folders_of

__all__ = ["LAYOUT", "find_folders", "pair_images"]

LAYOUT = (
    "root (--data.root) has images in train, images/train or images, or itself, and label images in train_labels, "
    "labels/train or labels, or beside the images as NAME_mask.png; and so on for masks, val and test"
)
_FOLDERS = ("labels", "masks", "annotations")
_ENDS = ("_labels", "_masks", "annot")
_MARK = re.compile(r"(?<=.)[-_. ](masks?|labels?|labelids|seg|segmentation|gt|l)$", re.IGNORECASE)


def find_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folder of the images of each split, and that of the label images, which may be the same, or missing.

    Raises:
        DataError: if there are label images of a split without images, or two folders for one split.
    """
    if not root.is_dir():
        raise DataError(f"no such folder: {root}; {LAYOUT}")
    found = {split: (folder, _labels_of(folder, split, root)) for split, folder in find_places(root).items()}
    ends = [name.removesuffix("_labels") for name in folders_of(root) if name.endswith("_labels")]
    for split, name in find_splits(ends, str(root)).items():
        if split not in found:
            raise DataError(f"no such folder: {root / name}; {LAYOUT}")
    return found


def _labels_of(images: Path, split: str, root: Path) -> Path:
    """Return the folder of label images: the first that is there, or else the images' own or the usual one."""
    places = list(_places_of(images, split, root))
    if found := next((place for place in places if place.is_dir()), None):
        return found
    marked = images.is_dir() and any(path.suffix and _MARK.search(path.stem) for path in images.rglob("*"))
    return images if marked else places[0]


def _places_of(images: Path, split: str, root: Path) -> Iterator[Path]:
    if images != root and images.name not in IMAGE_FOLDERS:
        for end in _ENDS:
            ends = [name.removesuffix(end) for name in folders_of(images.parent) if name.endswith(end)]
            yield images.with_name(find_splits(ends, str(images.parent)).get(split, images.name) + end)
    parts = list(images.relative_to(root).parts)
    for n in (n for n, part in enumerate(parts) if part in IMAGE_FOLDERS):
        yield from (Path(root, *parts[:n], name, *parts[n + 1 :]) for name in _FOLDERS)
    yield from (images / name for name in _FOLDERS)


def pair_images(images: Path, labels: Path) -> dict[Path, Path]:
    """Return the images of a folder with the label image of each.

    The label image of ``NAME.jpg`` is ``NAME.png``, or ``NAME_mask.png``, ``NAME_label.png`` and the like; in one
    folder with the images only the latter. Subfolders are the same on both sides.

    Raises:
        DataError: naming the folder or the file, if one is missing, or an image has two label images.
    """
    keys = {path: path.relative_to(images).with_suffix("") for path in find_images(images)}
    if not labels.is_dir():
        raise DataError(f"no such folder: {labels}; {LAYOUT}")
    exact: dict[Path, list[Path]] = {}
    marked: dict[Path, list[Path]] = {}
    if images == labels:
        there = {*keys.values()}
        masks = {path: key for path, key in keys.items() if _unmarked(key) != key and _unmarked(key) in there}
    else:
        masks = {path: path.relative_to(labels).with_suffix("") for path in find_images(labels)}
        _sort(masks, exact)
    _sort({path: _unmarked(key) for path, key in masks.items()}, marked)
    keys = {path: key for path, key in keys.items() if path not in masks}
    found = {path: exact.get(key) or marked.get(key) or [] for path, key in keys.items()}
    for several in found.values():
        if len(several) > 1:
            raise DataError(f"two label images have the same name: {several[0]} and {several[1]}")
    if missing := [path for path, files in found.items() if not files]:
        raise DataError(
            f"{len(missing)} of the {len(keys)} images in {images} without a label image in {labels.name}, such as "
            f"{missing[0].relative_to(images)}"
        )
    return {path: files[0] for path, files in found.items()}


def _sort(keys: Mapping[Path, Path], files: dict[Path, list[Path]]) -> None:
    for path, key in keys.items():
        files.setdefault(key, []).append(path)


def _unmarked(key: Path) -> Path:
    return key.with_name(_MARK.sub("", key.name))
