"""Tables of image paths and labels: CSV, TSV or JSON lines."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kornia_mvit.data.reading import DataError, unknown_label
from kornia_mvit.parsing import brief, parse_json, reason_of, repeated

__all__ = ["Row", "find_names", "number_labels", "read_table"]

_DIGITS = 19  # of a number that torch can hold
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Row:
    """An image of a table.

    Args:
        path: of the image, as it is written.
        label: name or number of its class, as it is written.
        split: name of its split; None without such a column.
        place: file and line, for errors.
    """

    path: str
    label: str
    split: str | None
    place: str


def read_table(
    file: str | Path, path_column: str = "path", label_column: str = "label", split_column: str | None = None
) -> list[Row]:
    r"""Read a table of images and their labels.

    Args:
        file: a ``.csv`` or ``.tsv`` whose first line names the columns, or a ``.jsonl`` with an object in each line;
            UTF-8. Further columns and empty lines do not matter.
        path_column: name of the column of paths.
        label_column: name of the column of labels, text or integers.
        split_column: name of the column that says which split an image belongs to, if there is one.

    Returns:
        The rows, in their order.

    Raises:
        DataError: naming file and line, if the file is missing, empty, of another kind, lacks a column or has one
            twice, or a row is incomplete.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, 'train.csv')
        ...     _ = file.write_text('path,label\na.jpg,cat\nb.jpg,dog\n')
        ...     [(row.path, row.label) for row in read_table(file)]
        [('a.jpg', 'cat'), ('b.jpg', 'dog')]
    """
    file = Path(file)
    columns = [path_column, label_column, *([] if split_column is None else [split_column])]
    if file.suffix.lower() not in (*_DELIMITERS, ".jsonl"):
        raise DataError(f"{file} is not a .csv, .tsv or .jsonl file")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            read = _read_objects if file.suffix.lower() == ".jsonl" else _read_delimited
            rows = [_row(values, place) for values, place in read(lines, file, columns)]
    except FileNotFoundError:
        raise DataError(f"no such table: {file}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"cannot read table {file}: {reason_of(error)}") from None
    if not rows:
        raise DataError(f"{file} has no rows; it needs one for each image")
    return rows


def _row(values: list[str], place: str) -> Row:
    return Row(values[0], values[1], values[2] if len(values) > 2 else None, place)


def _read_delimited(lines: Iterator[str], file: Path, columns: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Read lines of fields below a line of their names."""
    reader = csv.reader(lines, delimiter=_DELIMITERS[file.suffix.lower()], strict=True)
    header: list[str] | None = None
    places: list[int] = []
    try:
        for fields in reader:
            place = f"{file}, line {reader.line_num}"
            if not fields:
                continue
            if header is None:
                header = [field.strip() for field in fields]
                if again := repeated(header):
                    raise DataError(f"{place}: the column {brief(again[0])} is there twice")
                _check_columns(columns, header, place)
                places = [header.index(name) for name in columns]
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{place} has {len(fields)} fields, but {len(header)} columns are named; put fields that hold the "
                    "delimiter in double quotes"
                )
            yield [_text(fields[k], name, place) for k, name in zip(places, columns, strict=True)], place
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from None


def _read_objects(lines: Iterator[str], file: Path, columns: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Read a JSON object from each line."""
    for number, line in enumerate(lines, 1):
        place = f"{file}, line {number}"
        if not line.strip():
            continue
        values = parse_json(line, place, DataError)
        if not isinstance(values, dict):
            raise DataError(f"{place} is not an object, such as {json.dumps(dict.fromkeys(columns, '...'))}")
        _check_columns(columns, list(values), place)
        yield [_text(values[name], name, place) for name in columns], place


def _check_columns(columns: Sequence[str], found: Sequence[str], place: str) -> None:
    if missing := [name for name in columns if name not in found]:
        raise DataError(f"{place}: no column {missing[0]!r}; there are {', '.join(map(brief, found[:20])) or 'none'}")


def _text(value: object, column: str, place: str) -> str:
    """Return a field as text; of numbers, only integers are names."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        shown = str(value).lower() if isinstance(value, bool) else brief(value)
        raise DataError(f"{place}: {column} is {shown}; give text or an integer")
    if not str(value).strip():
        raise DataError(f"{place}: {column} is empty")
    return str(value).strip()


def find_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """Name the classes that labels speak of: text sorted, or every number from 0 to the largest integer.

    Raises:
        DataError: if labels are integers that do not count from 0 without a gap, or text and there is but one.

    Example:
        >>> find_names([Row('a.jpg', '1', None, ''), Row('b.jpg', '0', None, ''), Row('c.jpg', '1', None, '')])
        ('0', '1')
    """
    labels = {row.label: row for row in reversed(rows)}  # each with its first row
    file = rows[0].place.rpartition(", line ")[0]
    if not all(_is_number(label) for label in labels):
        if len(labels) < 2:
            raise DataError(f"{file} has one label, {rows[0].label!r}; classification needs two or more classes")
        return tuple(sorted(labels))
    numbers = sorted(map(int, labels))
    if len(numbers) < 2 or numbers[0] < 0 or numbers[-1] != len(numbers) - 1:
        shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
        raise DataError(
            f"the labels in {file} are {shown}: integers count two or more classes from 0, each with an image; give "
            "class_names otherwise"
        )
    return tuple(map(str, numbers))


def number_labels(rows: Sequence[Row], class_names: Sequence[str]) -> list[int]:
    """Return the number of each row's class: labels are names of classes, or else their numbers.

    Raises:
        DataError: naming file and line, for a label that is neither.

    Example:
        >>> number_labels([Row('a.jpg', 'dog', None, ''), Row('b.jpg', 'cat', None, '')], ['cat', 'dog'])
        [1, 0]
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    if not any(row.label in numbers for row in rows):  # one way or the other for a whole table
        numbers = {str(number): number for number in range(len(class_names))}
    for row in rows:
        if row.label not in numbers:
            raise unknown_label(row.place, row.label, class_names)
    return [numbers[row.label] for row in rows]


def _is_number(label: str) -> bool:
    return len(label) < _DIGITS and label.removeprefix("-").isdecimal() and str(int(label)) == label
