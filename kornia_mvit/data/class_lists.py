"""Names of the classes of public datasets."""

from pathlib import Path

__all__ = ["class_names"]


def class_names(classes: str) -> tuple[str, ...]:
    """Return the names of a set of classes in the order of their labels.

    Args:
        classes: ``'imagenet-1k'``, ``'voc'``, ``'coco'`` or ``'ade20k'``. Those of VOC begin with the background;
            ADE20K has none.

    Raises:
        ValueError: for an unknown set.

    Example:
        >>> class_names('imagenet-1k')[:2]
        ('tench', 'goldfish')
    """
    folder = Path(__file__).parent / "class_names"
    path = folder / f"{classes}.txt"
    if not path.is_file():
        known = ", ".join(sorted(repr(p.stem) for p in folder.glob("*.txt")))
        raise ValueError(f"unknown classes {classes!r}; available: {known}")
    return tuple(path.read_text(encoding="utf-8").splitlines())
