"""The names of splits, and lists of images."""

import re
from collections.abc import Container, Iterable
from pathlib import Path

from kornia_mvit.data.reading import IMAGE_SUFFIXES, DataError
from kornia_mvit.parsing import read_lines

__all__ = ["SPLITS", "find_splits", "read_list", "split_of"]

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
