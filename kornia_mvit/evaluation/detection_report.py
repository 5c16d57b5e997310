"""A report of a run for detection: what was found and missed, as pictures, tables and one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kornia_mvit.draw import charts as figures
from kornia_mvit.draw.images import draw_detections, stack_rows
from kornia_mvit.evaluation.classification import name_of
from kornia_mvit.evaluation.detection import (
    SURE,
    DetectionEvaluation,
    DetectionExample,
    detection_metrics,
)
from kornia_mvit.evaluation.page import Gallery, Picture, Section, Table, Text, Tiles, render_page
from kornia_mvit.evaluation.report_parts import curves, percent, png, settings_table, write_files

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_worst_boxes", "write_detection_report"]

_NAMED = 30  # classes that a chart has room for
_LINES = 8  # classes whose precision is drawn
_ROWS = 100  # of a table in the page
_FILES = ("curves", "precision_recall", "per_class", "worst")


def write_detection_report(
    folder: str | Path,
    evaluation: DetectionEvaluation,
    *,
    history: Sequence[Mapping[str, float]] = (),
    class_names: Sequence[str] | None = None,
    title: str = "Report",
    about: Sequence[str] = (),
    best: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a report into a folder.

    ``index.html`` holds all of it and needs no other file. Beside it stand its pictures: ``curves.png`` (with a
    history), ``precision_recall.png``, ``per_class.png`` and ``worst.png`` (if pictures were kept). ``metrics.json``
    has every number, ``per_class.csv`` the table of all classes. What an earlier report left there is replaced.

    Args:
        folder: made where it is missing.
        evaluation: what was found.
        history: rows of metrics, as :func:`kornia_mvit.draw.charts.draw_curves` takes them.
        class_names: names of the K classes; their numbers stand in when None.
        title: of the page.
        about: sentences on what was evaluated: the images, and the weights.
        best: the epoch that was evaluated, to be marked in the curves.
        settings: names and values to list at the end.

    Returns:
        The path of ``index.html``.

    Raises:
        ValueError: if there are not K names.
        ImportError: if Matplotlib, Pillow or faster-coco-eval is missing.
    """
    metrics = detection_metrics(evaluation, class_names)
    names = [name_of(i, class_names) for i in range(evaluation.num_classes)]
    pictures = _draw(metrics, evaluation, names, history, best)
    sections = [
        *([curves(pictures["curves"], best)] if "curves" in pictures else []),
        _precision(pictures["precision_recall"], metrics),
        _per_class(pictures["per_class"], metrics),
        _per_size(metrics),
        _worst(evaluation, names),
        *([settings_table(settings)] if settings else []),
    ]
    page = render_page(title, [Text(about), _summary(metrics)], sections)
    data = {**metrics, "worst": [{"image": one.name, "f1": one.score} for one in evaluation.worst]}
    data |= {"about": list(about), "history": [dict(row) for row in history]}
    files = {name: pictures.get(name) for name in _FILES}
    return write_files(Path(folder), page, data, files, {"per_class": metrics["per_class"]})


def _draw(
    metrics: dict[str, Any],
    evaluation: DetectionEvaluation,
    names: Sequence[str],
    history: Sequence[Mapping[str, float]],
    best: float | None,
) -> dict[str, bytes]:
    weakest = _weakest(metrics)
    drawn = [row["class"] for row in weakest if row["ap"] is not None][:_LINES]
    precision = metrics["precision"]
    pictures = {
        "precision_recall": figures.draw_precision_recall(
            {name: precision["classes"][name] for name in drawn}, precision["mean"]
        ),
        "per_class": figures.draw_scores(weakest[:_NAMED], "ap", "average precision, IoU 0.5 to 0.95"),
    }
    if any(len(row) > 1 for row in history):
        pictures["curves"] = figures.draw_curves(history, best)
    if evaluation.worst:
        pictures["worst"] = png(draw_worst_boxes(evaluation.worst, names))
    return pictures


def draw_worst_boxes(examples: Sequence[DetectionExample], class_names: Sequence[str] | None = None) -> "Image.Image":
    """Draw images with what is in them, and with what was found, side by side, a row each.

    Args:
        examples: one or more.
        class_names: names of the classes; their numbers stand in when None.

    Returns:
        A Pillow image.

    Raises:
        ImportError: if Pillow is missing.
    """
    return stack_rows([_panels(one, class_names) for one in examples], ("truth", f"found at {SURE:.0%}"))


def _panels(example: DetectionExample, names: Sequence[str] | None) -> "Image.Image":
    truth, found = example.truth, example.found
    left = draw_detections(example.image, truth["boxes"], truth["labels"], None, names, ignore=truth["ignore"])
    right = draw_detections(example.image, found["boxes"], found["labels"], found["scores"], names)
    from PIL import Image  # the drawing before has said so if it is missing

    sheet = Image.new("RGB", (left.width + 4 + right.width, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 4, 0))
    return sheet


# ---------------------------------------------------------------------------------------------------------- sections


def _summary(metrics: dict[str, Any]) -> Tiles:
    known, count = metrics["map_classes"], metrics["classes"]
    over = f", over the {known:,} of {count:,} classes that have objects" if known < count else ""
    tiles = [
        ("mAP", percent(metrics["map"]), f"mean of IoU 0.5 to 0.95, as COCO has it{over}"),
        ("AP50", percent(metrics["map_50"]), "at IoU 0.5"),
        ("AP75", percent(metrics["map_75"]), "at IoU 0.75"),
        ("Recall", percent(metrics["mar_100"]), "of IoU 0.5 to 0.95, with 100 boxes an image"),
        ("Images", f"{metrics['images']:,}", f"{metrics['truths']:,} objects of {metrics['classes']:,} classes"),
    ]
    return Tiles(tiles)


def _weakest(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Sort classes by average precision, the lowest first and those without truths last."""
    rows: list[dict[str, Any]] = metrics["per_class"]
    return sorted(rows, key=lambda row: 2.0 if row["ap"] is None else row["ap"])


def _precision(picture: bytes, metrics: dict[str, Any]) -> Section:
    text = "Boxes are taken in the order of their scores. Recall is the share of the objects that were found so far, "
    text += "precision the share of the boxes that are right, at IoU 0.5; the area below a curve is AP50."
    known = len(metrics["precision"]["classes"])
    caption = f"The {_LINES} weakest of {known:,} classes." if known > _LINES else "All classes."
    alt = "Precision over recall"
    return Section("Precision and recall", [Text([text]), Picture(picture, alt, [caption])])


def _per_class(picture: bytes, metrics: dict[str, Any]) -> Section:
    weakest = _weakest(metrics)
    some = f"The {{}} weakest of {len(weakest):,} classes"
    drawn = "Classes by average precision, the weakest first."
    drawn = drawn if len(weakest) <= _NAMED else f"{some.format(_NAMED)}."
    caption = "All classes, the weakest first"
    if len(weakest) > _ROWS:
        caption = f"{some.format(_ROWS)}; per_class.csv has all"
    head = ["class", "mAP", "AP50", "objects", f"found at {SURE:.0%}"]
    rows = [
        [row["class"], percent(row["ap"]), percent(row["ap_50"]), f"{row['truths']:,}", f"{row['found']:,}"]
        for row in weakest[:_ROWS]
    ]
    text = f"The last column counts the boxes with a score of {SURE:.0%} at least, right or wrong."
    alt = "Average precision of classes"
    return Section("Classes", [Text([text]), Picture(picture, alt, [drawn]), Table(head, rows, caption)])


def _per_size(metrics: dict[str, Any]) -> Section:
    what = {"small": "below 32×32 pixels", "medium": "to 96×96", "large": "above"}
    rows = [
        [f"{row['size']}, {what[row['size']]}", percent(row["ap"]), f"{row['truths']:,}"] for row in metrics["per_size"]
    ]
    text = "Areas are of the objects, in pixels of the original images."
    return Section("Sizes", [Text([text]), Table(["size", "mAP", "objects"], rows)])


def _worst(evaluation: DetectionEvaluation, names: Sequence[str]) -> Section:
    title = "Worst images"
    if not evaluation.worst:
        return Section(title, [Text(["No pictures were kept."])])
    text = f"What is in the image, and what was found with a score of {SURE:.0%} at least, of the images where the two "
    text += "fit least: F1 is twice the right boxes over all boxes of both. Ignored truths are grey. Look for wrong or "
    text += "missing labels here first."
    pictures = []
    for one in evaluation.worst:
        lines = [
            f"F1 {percent(one.score)}",
            f"{len(one.truth['labels'])} objects, {len(one.found['labels'])} found",
            "/".join(Path(one.name).parts[-2:]),
        ]
        alt = f"An image with what is in it, and with what was found: {one.name}"
        pictures.append(Picture(png(_panels(one, names)), alt, lines, chart=False))
    return Section(title, [Text([text]), Gallery(pictures, wide=True)])
