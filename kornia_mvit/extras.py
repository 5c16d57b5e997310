"""What is said where a package of an extra is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needing"]


@contextmanager
def needing(text: str, extra: str) -> Iterator[None]:
    """Name the extra to install where a package cannot be imported.

    Args:
        text: what needs the package, such as ``'drawing needs Pillow'``; ``{}`` stands for the package's name.
        extra: the extra that it belongs to.

    Raises:
        ImportError: in place of the one that says what is missing alone.

    Example:
        >>> with needing("a ship needs {}", "train"):
        ...     import an_anchor
        Traceback (most recent call last):
            ...
        ImportError: a ship needs an_anchor; install kornia-mvit[train]
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{text.format(error.name)}; install kornia-mvit[{extra}]") from error
