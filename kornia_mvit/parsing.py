"""Parsing of JSON, YAML and text files, with one kind of error, and values as error messages show them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kornia_mvit.files import FileError, printable

__all__ = [
    "brief",
    "check_truths",
    "count_of",
    "cut",
    "either_case",
    "is_file",
    "is_folder",
    "other_kind",
    "parse_json",
    "parse_yaml",
    "read_json",
    "read_lines",
    "read_text",
    "reading",
    "reason_of",
    "repeated",
]

_SHOWN = 200  # characters of a value, or of another program's message, that an error repeats
_YAML_BYTES = 2_000_000  # PyYAML takes some five seconds for so much
_YAML_DEPTH = 50


def cut(text: object) -> str:
    """Return a text as an error shows it: in one line, and cut where it is long."""
    text = printable(text)
    return f"{text[: _SHOWN - 4]} ..." if len(text) > _SHOWN else text


def brief(value: object) -> str:
    """Return a value as Python writes it, in one line, and cut where it is long.

    Example:
        >>> brief("tulip"), brief("x" * 1000)[-9:]
        ("'tulip'", 'xxxxx ...')
    """
    try:
        text = repr(value[:_SHOWN] if isinstance(value, str | bytes | list | tuple) else value)
    except Exception:  # a number too long to be written, or lists within lists
        text = f"a {type(value).__name__} that is too large to show"
    return cut(text)


def check_truths(**values: object) -> None:
    """Check that arguments are true or false, as any text would count as true.

    Raises:
        ValueError: for one that is not, by its name.

    Example:
        >>> check_truths(fuse=True, antialias="no")
        Traceback (most recent call last):
        ...
        ValueError: antialias='no' is neither true nor false; give True or False
    """
    for name, value in values.items():
        known = type(value).__name__ in ("bool", "bool_")  # numpy's, too
        if not known and not (isinstance(value, int) and value in (0, 1)):
            raise ValueError(f"{name}={brief(value)} is neither true nor false; give True or False")


def count_of(number: int, one: str, more: str = "") -> str:
    """Return a number of things in words.

    Args:
        number: how many there are.
        one: what one of them is called.
        more: what several are called, unless they end in an s.

    Example:
        >>> count_of(1, "image"), count_of(2000, "image"), count_of(0, "class", "classes")
        ('1 image', '2,000 images', '0 classes')
    """
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first = next((line for line in told.splitlines() if line.strip()), "")
    return cut(first.strip() or type(error).__name__)


def is_file(path: str | Path) -> bool:
    """Return whether there is such a file; False also for names that the file system does not allow."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Return whether there is such a folder; False also for names that the file system does not allow."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def other_kind(path: str | Path) -> str | None:
    """Return what stands at a path in place of a file, as an error calls it; None for a file, or nothing."""
    if not Path(path).exists() or Path(path).is_file():
        return None
    return "a folder" if Path(path).is_dir() else "a pipe or a device"


def either_case(path: Path) -> Path:
    """Return a path, or the same with its suffix in upper case where only that is there."""
    upper = path.with_name(path.stem + path.suffix.upper())
    return upper if not is_file(path) and is_file(upper) else path


def repeated(values: Iterable[Any]) -> list[Any]:
    """Return the values that occur again, compared as texts, in their order.

    Example:
        >>> repeated(["a", "b", "a", "c", "c"])
        ['a', 'c']
    """
    seen: set[str] = set()
    again = []
    for value in values:
        if str(value) in seen:
            again.append(value)
        seen.add(str(value))
    return again


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever another package raises on a file into a FileError that names it; a missing file stays one.

    Args:
        path: the file.
        what: what it should be.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise FileError(f"{path} is damaged, or not {what} ({reason_of(error)})") from error


def _read(path: str | Path, error: type[FileError], what: str) -> bytes:
    try:
        if kind := other_kind(path):  # on a named pipe, reading would wait for ever
            raise error(f"cannot read {what} {path}: it is {kind}, not a file")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise error(f"no such {what}: {path}") from None
    except FileError:
        raise
    except (OSError, ValueError) as found:
        raise error(f"cannot read {what} {path}: {reason_of(found)}") from None


def read_text(path: str | Path, error: type[FileError], what: str = "file") -> str:
    """Return a text file's content, which is UTF-8, without the mark that some editors write before it.

    Args:
        path: the file.
        error: what is raised for a file that cannot be read.
        what: what errors call the file.
    """
    try:
        return _read(path, error, what).decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(f"cannot read {what} {path}: it is not UTF-8 text ({found.reason} at byte {found.start})") from None


def read_lines(path: str | Path, error: type[FileError], what: str = "file") -> list[str]:
    """Return a text file's lines; see :func:`read_text`."""
    return read_text(path, error, what).splitlines()


def read_json(
    path: str | Path,
    error: type[FileError],
    what: str = "file",
    *,
    hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Return what a JSON file holds.

    Args:
        path: the file.
        error: what is raised for a file that cannot be read or is not JSON.
        what: what errors call the file.
        hook: see ``object_hook`` of :func:`json.loads`.
    """
    return parse_json(_read(path, error, what), str(path), error, hook=hook)


def parse_json(
    text: str | bytes,
    place: str,
    error: type[FileError],
    *,
    hook: Callable[[dict[str, Any]], Any] | None = None,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Return what a JSON text says.

    Args:
        text: the text.
        place: what errors call it.
        error: what is raised for a text that is not JSON, or that nests or counts further than Python does.
        hook: see ``object_hook`` of :func:`json.loads`.
        pairs: see ``object_pairs_hook``.
    """
    try:
        return json.loads(text, object_hook=hook, object_pairs_hook=pairs)
    except json.JSONDecodeError as found:
        line = "" if found.lineno == 1 else f"line {found.lineno}, "
        raise error(f"{place} is not JSON: {found.msg}, at {line}character {found.colno}") from None
    except RecursionError:
        raise error(f"{place} has lists within lists further than can be read") from None
    except (ValueError, MemoryError) as found:  # not UTF-8, a number of thousands of digits, or what a hook refuses
        raise error(f"{place} is not JSON: {reason_of(found)}") from None


def parse_yaml(text: str, place: str, error: type[FileError], check: Callable[[Any, Any], None] | None = None) -> Any:
    """Return what a YAML text says: texts, whole numbers and nulls, in lists and mappings.

    Names stay as they are written: ``yes``, ``off``, ``1.0``, ``010`` and ``2024-01-01`` are texts.

    Args:
        text: the text.
        place: what errors call it.
        error: what is raised for a text that is not YAML, is too long or nested too deep, refers to itself, or whose
            aliases repeat its parts over and over.
        check: is given the module and the root of the nodes, and may raise a ValueError.

    Raises:
        ImportError: where PyYAML is missing.
    """
    try:
        import yaml  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as missing:
        raise ImportError("reading YAML needs PyYAML; install kornia-mvit[train]") from missing
    if len(text) > _YAML_BYTES:
        raise error(f"{place} has {len(text):,} characters, above the {_YAML_BYTES:,} of YAML; write it as JSON")
    try:
        loader = _yaml_loader(yaml)(text)
        root = loader.get_single_node()
        if root is None:
            return None
        size, depth = _expanded_size(root, {})
        if depth > _YAML_DEPTH:
            raise ValueError(f"it nests {depth} levels deep, above {_YAML_DEPTH}")
        if size > 4 * len(text) + 1000:
            raise ValueError(f"its aliases make {size:,} entries of {len(text):,} characters; write them out")
        if check is not None:
            check(yaml, root)
        return loader.construct_document(root)
    except yaml.YAMLError as found:
        raise error(f"{place} is not YAML: {' '.join(str(found).split())[:_SHOWN]}") from None
    except RecursionError:
        raise error(f"{place} has lists within lists further than can be read") from None
    except ValueError as found:
        raise error(f"{place}: {reason_of(found)}") from None
    except Exception as found:  # what PyYAML's constructors raise for tags that do not fit their values
        raise error(f"{place} is not YAML that can be read ({type(found).__name__}: {reason_of(found)})") from None


def _yaml_loader(yaml: Any) -> Any:
    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no stubs
        def construct_yaml_int(self, node: Any) -> int:
            if len(node.value) > 100:  # which may be cheap to read, and cannot be written out
                raise ValueError(f"a number has {len(node.value)} digits")
            return int(super().construct_yaml_int(node))

        def fetch_flow_collection_start(self, token: Any) -> None:
            if self.flow_level >= _YAML_DEPTH:  # the scanner takes long for each level
                raise ValueError(f"it nests more than {_YAML_DEPTH} levels deep")
            super().fetch_flow_collection_start(token)

        def add_indent(self, column: int) -> bool:
            if len(self.indents) >= _YAML_DEPTH:
                raise ValueError(f"it nests more than {_YAML_DEPTH} levels deep")
            return bool(super().add_indent(column))

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.yaml_implicit_resolvers = {}
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"(0|-?[1-9][0-9]*)$"), list("-0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
    return Loader


def _expanded_size(node: Any, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Count the entries of a YAML node and the levels below it, an alias as what it stands for."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise ValueError("it refers to itself")
        return found
    known[id(node)] = None
    parts: list[Any] = []
    if isinstance(node.value, list):
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    counted = [_expanded_size(part, known) for part in parts]
    result = 1 + sum(size for size, _ in counted), 1 + max((depth for _, depth in counted), default=0)
    known[id(node)] = result
    return result
