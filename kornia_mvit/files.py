"""Files: one error for those that are not what they should be, writing whole or not at all, text for a terminal."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

fcntl: Any
try:
    fcntl = import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

__all__ = ["FileError", "cell", "check_local", "printable", "scratch", "sweep", "write_whole"]

_MISTAKES = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError, ImportError)
_STREAMS = re.compile(r"/dev/(std(in|out|err)|fd/\d+)|/proc/.*")
_ADDRESS = re.compile(r"([a-zA-Z][\w+.-]+):/+")  # as paths have it; a single letter is a disk of Windows
_DAY = 86400.0
_LONGEST = 240  # bytes of a name that leave room for what is put around it
_OLDER = ".older"  # the folder for what is being replaced by several files at once
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class FileError(ValueError):
    """A file is missing, damaged, or not what is asked for; the message is one line and names it."""


def printable(text: object) -> str:
    r"""Return a text that a terminal shows as it is, in one line: control characters are escaped.

    So are those that turn the direction of writing, and halves of surrogate pairs, as file names may have.

    Example:
        >>> printable("tulip\x1b[2J\n")
        'tulip\\x1b[2J\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def check_local(path: str | Path) -> None:
    """Raise a FileError for an address in place of a path.

    Example:
        >>> check_local("https://example.org/a.png")
        Traceback (most recent call last):
        ...
        kornia_mvit.files.FileError: https://example.org/a.png is an address; give the path of a file or folder
    """
    found = _ADDRESS.match(str(path))
    if found is not None and not Path(f"{found[1]}:").exists():
        address = f"{found[1]}://{str(path)[found.end() :]}"
        raise FileError(f"{printable(address)} is an address; give the path of a file or folder")


def cell(value: Any) -> Any:
    """Return a value as a cell of a CSV file that no spreadsheet takes for a formula.

    Texts that begin with ``=``, ``+``, ``-``, ``@``, a tab or a line break get an apostrophe before them; numbers stay
    numbers.

    Example:
        >>> cell("=1+1"), cell("-x"), cell("forget-me-not"), cell(-1.5)
        ("'=1+1", "'-x", 'forget-me-not', -1.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


# ------------------------------------------------------------------------------------------------------------ writing


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield a path beside a file to write to, and move what was written into the file's place at the end.

    The path that is given has the file's name, in a hidden folder beside it, ``.NAME.part``. Whatever else is written
    into that folder, such as the weights that belong to a description, is moved beside the file with it. Where writing
    fails, as on a full disk, the older files stay and nothing is left beside them. What a killed process left is
    removed when the same file is written again, see also :func:`sweep`.

    A file keeps its permissions. Of a link the file that it points to is replaced. What goes to a device, a pipe or
    a standard stream is written to the temporary folder first, and then into it.

    Args:
        path: the file, or the folder, that is to be written. Missing folders above it are made.

    Raises:
        OSError: if it cannot be written, naming the file and the reason, whatever the library that wrote it raised.
    """
    check_local(path)
    path = Path(path)
    try:
        with _stage(path) as folder:
            yield folder / path.name
            if _is_stream(path):
                with (folder / path.name).open("rb") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                _settle(folder, path)
    except _MISTAKES:
        raise
    except Exception as error:
        raise _unwritten(path, _reason(error)) from error


@contextmanager
def scratch(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder for the parts of a file; where the disk is full, the error names the file.

    Args:
        path: the file that is to be written in the end.

    Raises:
        OSError: if what goes into the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        reason = _reason(error.__cause__ or error)
        raise _unwritten(Path(path), f"{reason}, in the temporary folder {tempfile.gettempdir()}") from error


def _unwritten(path: Path, reason: str) -> OSError:
    before = "the one from before stays" if path.exists() else "there is none from before"
    before = "" if _is_stream(path) else f"; {before}"
    return OSError(f"could not write {printable(path)} ({reason}){before}")


def sweep(folder: str | Path) -> list[Path]:
    """Remove what killed processes left of files that they were writing, in a folder and all below it.

    What a process is writing at this moment stays. So does what cannot be locked, as on some network disks, until it
    is a day old.

    Returns:
        What was removed.
    """
    parts = sorted(Path(folder).rglob(".*.part"))
    old = [part for part in parts if part.name.endswith(".ckpt.part") and part.is_file()]  # of version 0.1
    for part in old:
        part.unlink(missing_ok=True)
    return [*old, *(part for part in parts if part.is_dir() and not part.is_symlink() and _remove_stale(part))]


@contextmanager
def _stage(path: Path) -> Iterator[Path]:
    """Yield an empty folder for the time of writing: beside the file, where nobody else writes."""
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    missing = [above for above in _real(path).parents if not above.exists()]
    part, lock = None, None
    try:
        _real(path).parent.mkdir(parents=True, exist_ok=True)
        part, lock = _claim(_real(path))
        yield part
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        for above in missing:
            with contextlib.suppress(OSError):  # it has what was written
                above.rmdir()


def _claim(path: Path) -> tuple[Path, int | None]:
    """Make the folder that a file is written in, and lock it until this process ends or closes what is returned."""
    name = path.name if len(os.fsencode(path.name)) < _LONGEST else hashlib.sha1(os.fsencode(path.name)).hexdigest()
    for number in count():
        part = path.with_name(f".{name}.{number}.part" if number else f".{name}.part")
        if not number and part.is_file():  # as the first version named it
            part.unlink(missing_ok=True)
        _remove_stale(part)
        try:
            part.mkdir()
            lock = _lock(part)
        except (FileExistsError, FileNotFoundError, BlockingIOError):  # another process has it, or just removed it
            continue
        for later in count(number + 1):
            if not (other := path.with_name(f".{name}.{later}.part")).exists():
                return part, lock
            _remove_stale(other)
    raise AssertionError


def _remove_stale(part: Path) -> bool:
    """Remove the folder of a process that is no more; where it was moving files at its end, finish that first."""
    try:
        lock = _lock(part)
        if lock is None and time.time() - part.stat().st_mtime < _DAY:
            return False
    except OSError:  # it is in use, or there is none
        return False
    try:
        if (part / _OLDER).is_dir():
            for entry in _entries(part):
                _replace(entry, part.with_name(entry.name), part / _OLDER)
        shutil.rmtree(part, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)
    return True


def _lock(folder: Path) -> int | None:
    """Lock a folder, and return what keeps the lock while it is open; None where there are no locks.

    Raises:
        BlockingIOError: if another process has locked it.
        FileNotFoundError: if it is missing, or was removed by the process that had locked it.
    """
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), folder.stat()):
            raise FileNotFoundError(folder)
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise
    except OSError:  # a disk without locks
        os.close(lock)
        return None
    return lock


def _settle(part: Path, path: Path) -> None:
    """Move all that was written into its place; where that fails, put the older files back."""
    if not (part / path.name).exists():
        raise OSError("nothing was written")
    # what the others belong to comes last
    targets = {
        entry: _real(path.with_name(entry.name)) for entry in sorted(_entries(part), key=(part / path.name).__eq__)
    }
    for entry, target in targets.items():
        if target.exists() and target.is_dir() != entry.is_dir():
            raise OSError("a folder has that name" if target.is_dir() else "a file has that name")
        if target.is_file():
            shutil.copymode(target, entry)
        for file in (entry, *entry.rglob("*")) if entry.is_dir() else (entry,):
            _flush(file)
    if len(targets) == 1 and not (part / path.name).is_dir():
        (part / path.name).replace(targets[part / path.name])
    else:
        older = part / _OLDER  # from here on, who finds it finishes what is begun
        older.mkdir()
        done: list[tuple[Path, Path, bool]] = []
        try:
            for entry, target in targets.items():
                done.append((older / entry.name, target, target.exists()))
                _replace(entry, target, older)
        except OSError:
            for kept, target, existed in reversed(done):
                if kept.exists():
                    _replace(kept, target, part)
                elif not existed:
                    target.unlink(missing_ok=True)
            raise
    _flush(_real(path).parent)


def _replace(entry: Path, target: Path, older: Path) -> None:
    """Replace a file or folder by another; the old one is kept in a folder."""
    if target.is_dir():
        target.rename(older / entry.name)
    elif target.exists():
        with contextlib.suppress(OSError):  # a disk without hard links: then it is not kept
            os.link(target, older / entry.name)
    entry.replace(target)


def _entries(part: Path) -> list[Path]:
    return [entry for entry in part.iterdir() if entry.name != _OLDER]


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and fcntl is None:
        return
    file = os.open(path, os.O_RDWR if fcntl is None else os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _real(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _is_stream(path: Path) -> bool:
    """Return whether a path is that of a device, a pipe or an open file, which cannot be replaced."""
    return _STREAMS.fullmatch(str(path)) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _reason(error: BaseException) -> str:
    """Return why something could not be written: what the system said, wherever a library put it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return printable((str(error) or type(error).__name__).splitlines()[0])
