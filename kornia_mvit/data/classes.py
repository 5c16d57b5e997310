"""Names and colours of the classes of label images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kornia_mvit.data.reading import DataError
from kornia_mvit.parsing import brief, cut, parse_json, parse_yaml, read_text, reason_of, repeated

__all__ = ["Colour", "LabelClasses", "by_number", "grey_colours", "parse_file", "read_classes", "voc_colours"]

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelClasses:
    """The classes of label images.

    Args:
        names: in the order of their numbers.
        colours: of each class, red, green and blue from 0 to 255, if label images or pictures of them have some.
        ignored: colours of pixels to ignore.

    Raises:
        ValueError: for no names, a number of colours other than that of the names, or a colour that occurs twice.

    Example:
        >>> LabelClasses(('sky', 'road'), ((0, 128, 255), (90, 90, 90)), ignored=((0, 0, 0),)).numbers(255)
        {(0, 128, 255): 0, (90, 90, 90): 1, (0, 0, 0): 255}
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None = None
    ignored: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("there are no classes; give their names")
        if again := repeated(self.names):
            raise ValueError(f"the class {brief(again[0])} occurs twice")
        if self.colours is None:
            if self.ignored:
                raise ValueError("there are colours to ignore, but the classes have none")
            return
        if len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} classes, but {len(self.colours)} colours")
        if twice := repeated(self.colours + self.ignored):
            raise ValueError(f"the colour {twice[0]} occurs twice")

    def numbers(self, ignore_index: int) -> dict[Colour, int] | None:
        """Return the number that stands for each colour; None where the classes have no colours."""
        if self.colours is None:
            return None
        return {colour: n for n, colour in enumerate(self.colours)} | dict.fromkeys(self.ignored, ignore_index)


def grey_colours(values: Sequence[int]) -> tuple[Colour, ...]:
    """Return the colours of classes that grey label images hold as other values than their numbers, such as 0 and 255.

    Raises:
        ValueError: for a value that is none of 8 bits.
    """
    if wrong := [value for value in values if not 0 <= value <= 255]:
        raise ValueError(f"values {list(values)} has {wrong[0]}; grey label images hold 0 to 255")
    return tuple((value, value, value) for value in values)


def read_classes(path: str | Path) -> LabelClasses:
    """Read names and colours of classes from a YAML or JSON file, in the order of their numbers.

    A list of names, or names by their numbers, as they are written: ``yes`` and ``007`` are names. Or names with their
    colours, as red, green and blue or as ``'#rrggbb'``; or any of them as ``classes``, beside a list ``ignore`` of the
    colours of pixels to ignore::

        classes:
          sky: [128, 128, 128]
          building: "#800000"
        ignore: [[0, 0, 0]]

    Entries of the form ``{name: sky, color: [128, 128, 128]}`` do as well.

    Args:
        path: the file; one named ``.json`` is JSON, any other YAML.

    Raises:
        DataError: naming the file, if it is missing or says something else.
        ImportError: for a YAML file where PyYAML is missing.
    """
    data = parse_file(Path(path))
    try:
        ignored: list[Any] = []
        if isinstance(data, Mapping) and "classes" in data:
            if unknown := sorted(map(str, data.keys() - {"classes", "ignore"})):
                raise ValueError(f"unknown entries {', '.join(unknown)}; known: classes, ignore")
            ignored, data = data.get("ignore") or [], data["classes"]
            if isinstance(ignored, list) and len(ignored) == 3 and not any(map(_is_colour, ignored)):
                ignored = [ignored]
        elif isinstance(data, Mapping) and "ignore" in data:
            raise ValueError(
                "ignore stands beside classes and not among them; write 'classes:' with the classes below it, and "
                "'ignore: [[255, 255, 255]]' with the colours to ignore"
            )
        if isinstance(data, Mapping) and not all(v is None or _is_colour(v) for v in data.values()):
            data = by_number(data) or data
        entries = [*data.items()] if isinstance(data, Mapping) else data
        if not isinstance(entries, list) or not isinstance(ignored, list):
            raise ValueError("expected a list of names, or a mapping of names to colours")
        pairs = [_entry(entry) for entry in entries]
        bare = [name for name, colour in pairs if colour is None]
        if bare and len(bare) < len(pairs):
            raise ValueError(f"{brief(bare[0])} has no colour, others have; '#rrggbb' needs its quotes in YAML")
        colours = None if bare or not pairs else tuple(_colour(colour) for _, colour in pairs)
        return LabelClasses(tuple(name for name, _ in pairs), colours, tuple(map(_colour, ignored)))
    except ValueError as error:
        raise DataError(f"{path}: {reason_of(error)}") from None


def parse_file(path: Path) -> Any:
    """Return what a JSON or YAML file with names of classes holds; one named ``.json`` is JSON, any other YAML.

    Raises:
        DataError: naming the file, if it is missing or neither.
        ImportError: for a YAML file where PyYAML is missing.
    """
    text = read_text(path, DataError, "file of classes")
    if path.suffix.lower() == ".json":
        return parse_json(text, str(path), DataError, pairs=_unique)
    return parse_yaml(text, str(path), DataError, lambda yaml, root: _check_keys(root, yaml.MappingNode))


def by_number(names: Mapping[Any, Any]) -> list[Any] | None:
    """Return names by their numbers from 0, also in quotes, as a list; None for other keys.

    Example:
        >>> by_number({"1": "dog", "0": "cat"}), by_number({1: "cat", 2: "dog"})
        (['cat', 'dog'], None)
    """
    numbered = {str(key): name for key, name in names.items()}
    keys = [str(number) for number in range(len(names))]
    return [numbered[key] for key in keys] if set(numbered) == set(keys) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of a JSON object, whose repetitions Python would drop."""
    if again := repeated(key for key, _ in pairs):
        raise ValueError(f"{brief(again[0])} occurs twice")
    return dict(pairs)


def _check_keys(node: Any, mapping: type) -> None:
    """Raise for what a YAML mapping repeats, which PyYAML would drop."""
    if isinstance(node, mapping):
        if again := repeated(key.value for key, _ in node.value):  # type: ignore[attr-defined]  # PyYAML has no stubs
            raise ValueError(f"{brief(again[0])} occurs twice")
        for _, value in node.value:  # type: ignore[attr-defined]  # as above
            _check_keys(value, mapping)


def _entry(entry: Any) -> tuple[str, Any]:
    """Return a class's name, and its colour as the file has it."""
    colour = None
    if isinstance(entry, Mapping):
        if "name" not in entry or (unknown := entry.keys() - {"name", "color", "colour"}):
            what = "has no name" if "name" not in entry else f"has the unknown keys {', '.join(map(cut, unknown))}"
            raise ValueError(f"the entry {brief(dict(entry))} {what}")
        entry, colour = entry["name"], entry.get("color", entry.get("colour"))
    elif isinstance(entry, tuple):
        entry, colour = entry
    if isinstance(entry, int) and not isinstance(entry, bool):
        entry = str(entry)
    if not isinstance(entry, str):
        raise ValueError(f"{brief(entry)} is not a name; put it in quotes if it is meant to be")
    return entry, colour


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("#"))


def _colour(value: Any) -> Colour:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    if isinstance(value, list):  # such as [064, 128, 000] in YAML
        value = [int(v) if isinstance(v, str) and re.fullmatch("[0-9]{1,3}", v) else v for v in value]
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in value)
    ):
        raise ValueError(f"{brief(value)} is not a colour; give red, green and blue from 0 to 255, or '#rrggbb'")
    red, green, blue = value
    return red, green, blue


def voc_colours(count: int) -> tuple[Colour, ...]:
    """Return the colours that Pascal VOC's palette has for the first classes, black for the background.

    The bits of a class's number, from the lowest, are dealt out to red, green and blue in turn, where they count
    from the highest.

    Example:
        >>> voc_colours(4)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    return tuple((_spread(number), _spread(number >> 1), _spread(number >> 2)) for number in range(count))


def _spread(number: int) -> int:
    """Return every third bit, in reversed order."""
    return sum((number >> 3 * place & 1) << 7 - place for place in range(3))
