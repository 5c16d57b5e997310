"""Files: one error for those that are not what they should be, writing whole or not at all, text for a terminal."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FileError", "printable", "write_whole"]


class FileError(ValueError):
    """A file is missing, damaged, or not what is asked for; the message is one line and names it."""


def printable(text: object) -> str:
    r"""Return a text that a terminal shows as it is, in one line: control characters are escaped.

    Example:
        >>> printable("tulip\x1b[2J\n")
        'tulip\\x1b[2J\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a path beside a file to write to, and move what was written into the file's place at the end.

    Where writing fails, as on a full disk, the older file stays and nothing is left beside it.

    Args:
        path: the file, or the folder, that is to be written.

    Raises:
        OSError: if it cannot be written, naming the file.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        before = "the one from before stays" if path.exists() else "there is none from before"
        raise OSError(f"could not write {path} ({error.strerror or error}); {before}") from error
    finally:
        beside.unlink(missing_ok=True)
