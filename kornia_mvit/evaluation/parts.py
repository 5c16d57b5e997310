"""What the reports of several tasks show alike: tables of classes, confusion matrices, examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kornia_mvit.draw import charts
from kornia_mvit.draw.sheets import png
from kornia_mvit.evaluation.page import Gallery, Part, Picture, Section, Table, Text

__all__ = ["NAMED", "class_rows", "classes", "confusion_matrix", "gallery", "number", "percent", "table", "weakest"]

NAMED = 30  # classes that a chart has room to name
_BLOCK = 20  # classes of the part of a confusion matrix that is drawn where there are more
_PAIRS = 15

Rows = Sequence[Mapping[str, Any]]
Columns = Mapping[str, str | tuple[str, str]]


def percent(share: float | None) -> str:
    """Return a share as it is read; a dash where it is not defined."""
    return "–" if share is None else f"{share:.1%}".replace("%", "\u00a0%")


def number(value: Tensor | None) -> float | None:
    """Return a number of six decimal places; None where it is not finite."""
    return None if value is None or not value.isfinite() else round(float(value), 6)


def class_rows(names: Sequence[str], **columns: Tensor) -> list[dict[str, Any]]:
    """Return a row for each class, of columns of shares, as :func:`number` returns them, or of whole numbers."""
    return [
        {"class": name}
        | {key: number(one[i]) if one.is_floating_point() else int(one[i]) for key, one in columns.items()}
        for i, name in enumerate(names)
    ]


def weakest(rows: Rows, score: str) -> list[Mapping[str, Any]]:
    """Sort classes by a score, the lowest first, then those without one, and those without images last."""
    return sorted(rows, key=lambda row: (row.get("support") == 0, 2.0 if row[score] is None else row[score]))


def table(rows: Rows, columns: Columns, caption: str = "") -> Table:
    """Return a table of names, whole numbers, shares and intervals.

    Args:
        rows: of the table.
        columns: by their heads, the key of each in a row, or of an interval those of its two ends.
        caption: what it shows.
    """
    return Table(list(columns), [[_cell(row, key) for key in columns.values()] for row in rows], caption)


def _cell(row: Mapping[str, Any], key: str | tuple[str, str]) -> str:
    if isinstance(key, tuple):
        return "–" if row[key[0]] is None else " – ".join(percent(row[end]) for end in key)
    value = row[key]
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else percent(value)


def classes(texts: Sequence[str], picture: Picture, by: str, rows: Rows, columns: Columns, shown: int = 50) -> Section:
    """Show the scores of classes.

    Args:
        texts: what the columns mean.
        picture: the chart of the weakest classes.
        by: the score by which they are sorted.
        rows: of all classes, the weakest first.
        columns: as :func:`table` takes them.
        shown: rows that the page has at most.
    """
    some = f"The {{}} weakest of {len(rows):,} classes by {by}"
    drawn = f"Classes by {by}, the weakest first." if len(rows) <= NAMED else f"{some.format(NAMED)}."
    caption = "All classes, the weakest first"
    if len(rows) > shown:
        caption = f"{some.format(shown)}; per_class.csv has all"
    chart = Picture(picture.data, picture.alt, [drawn], file="per_class")
    return Section("Classes", [Text(texts), chart, table(rows[:shown], columns, caption)])


def confusion_matrix(confusion: Tensor, names: Sequence[str], unit: str, numbers: str) -> Section:
    """Show which classes were taken for which; of more than 30 classes the most confused in a picture of their own.

    Args:
        confusion: (K, K) counts, ``confusion[truth][predicted]``.
        names: of the classes.
        unit: what is counted, ``images`` or ``pixels``.
        numbers: what the numbers in the pictures are.
    """
    parts: list[Part] = [Text([f"A row holds the {unit} of one class, a column what they were taken for."])]
    support = confusion.sum(1)
    if len(names) > NAMED and (chosen := charts.most_confused(confusion, _BLOCK)):
        block = confusion[chosen][:, chosen]
        part = charts.draw_confusion(block, support[chosen], [names[i] for i in chosen], unit)
        caption = f"{len(chosen)} of {len(names):,} classes: those of the most frequent confusions. {numbers}"
        alt = "Confusion matrix of the most confused classes"
        parts.append(Picture(part, alt, [caption], file="confusion_part"))
    caption = "All classes, in the order of their numbers." if len(names) > NAMED else numbers
    whole = charts.draw_confusion(confusion, support, names, unit)
    parts.append(Picture(whole, "Confusion matrix of all classes", [caption], file="confusion"))
    wrong = int(support.sum() - confusion.diagonal().sum())
    head = ["truth", "taken for", unit, "of the class", *(["of all wrong ones"] if unit == "pixels" else [])]
    rows = []
    for truth, predicted in charts.confused_pairs(confusion)[:_PAIRS]:
        count = int(confusion[truth, predicted])
        shares = [percent(count / total) for total in (int(support[truth]), wrong)]
        rows.append([names[truth], names[predicted], f"{count:,}", *shares][: len(head)])
    if rows:
        parts.append(Table(head, rows, "The most frequent confusions", words=2))
    else:
        parts.append(Text(["No class was taken for another."]))
    return Section("Confusion matrix", parts)


def gallery(
    text: str,
    examples: Sequence[Any],
    names: Sequence[str],
    colours: Any = None,
    *,
    legend: Picture | None = None,
    wide: bool = True,
) -> list[Part]:
    """Show examples below a text, with their captions and the ends of their paths, or say that none were kept."""
    if not examples:
        return [Text(["No pictures were kept."])]
    pictures = []
    for one in examples:
        alt, lines = one.caption(names)
        lines = [*lines, "/".join(Path(one.name).parts[-2:])]
        pictures.append(Picture(png(one.draw(names, colours)), alt, lines, chart=False))
    return [Text([text]), *([] if legend is None else [legend]), Gallery(pictures, wide)]
