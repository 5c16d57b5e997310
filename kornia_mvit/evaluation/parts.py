"""What the reports of several tasks show alike: tables of classes, confusion matrices, examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kornia_mvit.draw import charts
from kornia_mvit.draw.sheets import png, to_picture
from kornia_mvit.evaluation.page import Part, Picture, Section, Table, Text

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "NAMED",
    "classes",
    "confusion_matrix",
    "confusion_pictures",
    "example",
    "number",
    "percent",
    "weakest",
]

NAMED = 30  # classes that a chart has room to name
_BLOCK = 20  # classes of the part of a confusion matrix that is drawn where there are more
_PAIRS = 15


def percent(share: float | None) -> str:
    """Return a share as it is read; a dash where it is not defined."""
    return "–" if share is None else f"{share:.1%}".replace("%", "\u00a0%")


def number(value: Tensor | None) -> float | None:
    """Return a number of six decimal places; None where it is not finite."""
    return None if value is None or not value.isfinite() else round(float(value), 6)


def weakest(rows: Sequence[Mapping[str, Any]], score: str) -> list[Mapping[str, Any]]:
    """Sort classes by a score, the lowest first, then those without one, and those without images last."""
    return sorted(rows, key=lambda row: (row.get("support") == 0, 2.0 if row[score] is None else row[score]))


def classes(
    texts: Sequence[str], picture: Picture, by: str, head: Sequence[str], rows: Sequence[Sequence[str]], shown: int = 50
) -> Section:
    """Show the scores of classes.

    Args:
        texts: what the columns mean.
        picture: the chart of the weakest classes.
        by: the score by which they are sorted.
        head: names of the table's columns.
        rows: of all classes, the weakest first.
        shown: rows that the page has at most.
    """
    some = f"The {{}} weakest of {len(rows):,} classes by {by}"
    drawn = f"Classes by {by}, the weakest first." if len(rows) <= NAMED else f"{some.format(NAMED)}."
    caption = "All classes, the weakest first"
    if len(rows) > shown:
        caption = f"{some.format(shown)}; per_class.csv has all"
    chart = Picture(picture.data, picture.alt, [drawn])
    return Section("Classes", [Text(texts), chart, Table(head, rows[:shown], caption)])


def confusion_pictures(confusion: Tensor, names: Sequence[str], unit: str) -> dict[str, bytes | None]:
    """Draw the confusion matrix, and of more than 30 classes the part of the most confused."""
    support = confusion.sum(1)
    part = None
    if len(names) > NAMED and (chosen := charts.most_confused(confusion, _BLOCK)):
        block = confusion[chosen][:, chosen]
        part = charts.draw_confusion(block, support[chosen], [names[i] for i in chosen], unit)
    return {"confusion": charts.draw_confusion(confusion, support, names, unit), "confusion_part": part}


def confusion_matrix(
    pictures: Mapping[str, bytes | None], confusion: Tensor, names: Sequence[str], unit: str, numbers: str
) -> Section:
    """Show which classes were taken for which.

    Args:
        pictures: what :func:`confusion_pictures` returned.
        confusion: (K, K) counts, ``confusion[truth][predicted]``.
        names: of the classes.
        unit: what is counted, ``images`` or ``pixels``.
        numbers: what the numbers in the pictures are.
    """
    parts: list[Part] = [Text([f"A row holds the {unit} of one class, a column what they were taken for."])]
    if part := pictures["confusion_part"]:
        shown = len(charts.most_confused(confusion, _BLOCK))
        caption = f"{shown} of {len(names):,} classes: those of the most frequent confusions. {numbers}"
        parts.append(Picture(part, "Confusion matrix of the most confused classes", [caption]))
    caption = "All classes, in the order of their numbers." if len(names) > NAMED else numbers
    parts.append(Picture(pictures["confusion"] or b"", "Confusion matrix of all classes", [caption]))
    off = confusion.clone().fill_diagonal_(0)
    pairs = off.nonzero()
    order = off[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)[:_PAIRS]
    head = ["truth", "taken for", unit, "of the class", *(["of all wrong ones"] if unit == "pixels" else [])]
    rows = []
    for truth, predicted in pairs[order].tolist():
        count = int(off[truth, predicted])
        shares = [percent(count / int(whole)) for whole in (confusion[truth].sum(), off.sum())]
        rows.append([names[truth], names[predicted], f"{count:,}", *shares][: len(head)])
    if rows:
        parts.append(Table(head, rows, "The most frequent confusions", words=2))
    else:
        parts.append(Text(["No class was taken for another."]))
    return Section("Confusion matrix", parts)


def example(image: "Tensor | Image.Image", alt: str, lines: Sequence[str], name: str) -> Picture:
    """Show an image (3, h, w), uint8, or a picture of it, with lines below it and the end of its path."""
    drawn = to_picture(image) if isinstance(image, torch.Tensor) else image
    return Picture(png(drawn), alt, [*lines, "/".join(Path(name).parts[-2:])], chart=False)
