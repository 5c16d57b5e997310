"""The names of splits, and lists of images."""

import os
import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import torch

from kornia_mvit.data.reading import IMAGE_SUFFIXES, DataError, is_hidden
from kornia_mvit.parsing import either_case, is_file, is_folder, read_lines

__all__ = ["SPLITS", "find_places", "find_splits", "folders_of", "read_list", "split_of", "split_off", "target_file"]

IMAGE_FOLDERS = ("images", "JPEGImages")
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_of(name: str) -> str | None:
    """Return the split that a name stands for, in upper or lower case; None for other names.

    Example:
        >>> split_of("Training"), split_of("valid"), split_of("cats")
        ('train', 'val', None)
    """
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def find_splits(names: Iterable[str], place: str) -> dict[str, str]:
    """Return the name of each split that is among some names.

    Args:
        names: such as those of folders.
        place: where they are, for errors.

    Raises:
        DataError: if two names stand for one split.

    Example:
        >>> find_splits(["validation", "Train", "notes"], "photos")
        {'train': 'Train', 'val': 'validation'}
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if (split := split_of(name)) is not None:
            found.setdefault(split, []).append(name)
    for split, several in found.items():
        if len(several) > 1:
            raise DataError(f"{place} has {' and '.join(several)}, which both stand for {split}; keep one of them")
    return {split: found[split][0] for split in SPLITS if split in found}


def folders_of(place: Path) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones; none where there is no such folder."""
    if not is_folder(place):
        return []
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def find_places(root: Path) -> dict[str, Path]:
    """Return the folder with the images of each split.

    ``images/train``, ``JPEGImages/train``, ``train/images`` or ``train``, and so on for val and test; or, without such
    folders, ``images``, ``JPEGImages``, or the root itself for train.

    Raises:
        DataError: for folders of splits without train, or two for one split.
    """
    places = [root / name for name in IMAGE_FOLDERS if is_folder(root / name)]
    for place in (*places, root):
        if found := find_splits(folders_of(place), str(place)):
            if "train" not in found:
                raise DataError(f"{place} has {', '.join(found.values())}, but no train folder")
            folders = {split: place / name for split, name in found.items()}
            return {split: _images_in(folder) for split, folder in folders.items()}
    return {"train": _images_in(root)}


def _images_in(folder: Path) -> Path:
    return next((folder / name for name in IMAGE_FOLDERS if is_folder(folder / name)), folder)


def target_file(image: Path, suffix: str, folders: Sequence[str]) -> Path:
    """Return the path of an image's annotation: in a folder beside the images' one, or beside the image.

    Args:
        image: the image; the last folder of its path that is named ``images`` or ``JPEGImages`` is that of the images.
        suffix: of the annotation.
        folders: names that the annotations' folder may have; the first is returned where there is no annotation.
    """
    file = image.with_suffix(suffix)
    parts = list(file.parts)
    places = [n for n, part in enumerate(parts[:-1]) if part in IMAGE_FOLDERS][-1:]
    paths = [Path(*parts[:n], folder, *parts[n + 1 :]) for n in places for folder in folders] + [file]
    paths = [either_case(path) for path in paths]
    return next((path for path in paths if is_file(path)), paths[0])


def split_off(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the items that stay, and of those that are split off: of two items, one or both.

    Args:
        count: number of items.
        fraction: share that is split off; all items for 1, else all but one at most.
        seed: of the random choice.

    Example:
        >>> split_off(10, 0.2, 0)
        ([0, 2, 3, 5, 6, 7, 8, 9], [1, 4])
    """
    wanted = count if fraction == 1 else max(0, min(max(round(count * fraction), 1), count - 1))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[wanted:]), sorted(order[:wanted])


def read_list(file: Path, known: Container[str]) -> list[str]:
    """Return the names of images in a list of Pascal VOC's kind, one in each line, without their suffix.

    Names may have spaces. Behind a name may stand whether the image has a class (-1, 0 or 1), or the path of its label
    image; of two readings of a line, that which names an image is taken.

    Args:
        file: the list.
        known: the names of the images that are there.

    Raises:
        DataError: naming the file, if it cannot be read.
    """
    names = []
    for line in read_lines(file, DataError, "list"):
        if text := line.strip():
            readings = (text, re.sub(r"\s+-?[01]$", "", text), text.split()[0])
            stems = [stem for reading in readings for stem in (reading, _stem(reading))]
            names.append(next((stem for stem in stems if stem in known), stems[3]))
    return names


def _stem(entry: str) -> str:
    path = Path(entry)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
