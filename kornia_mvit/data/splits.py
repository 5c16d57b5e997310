"""The names by which folders, lists and tables call their splits."""

from collections.abc import Iterable

from kornia_mvit.data.datasets import DataError

__all__ = ["SPLITS", "find_splits", "split_of"]

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_of(name: str) -> str | None:
    """Give the split that a name stands for, in upper or lower case; None for other names.

    Example:
        >>> split_of("Training"), split_of("valid"), split_of("cats")
        ('train', 'val', None)
    """
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def find_splits(names: Iterable[str], place: str) -> dict[str, str]:
    """Give the name of each split that is among some names.

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
