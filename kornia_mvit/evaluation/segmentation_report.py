"""A report of a run for segmentation: which pixels are right and wrong, as pictures, tables and one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kornia_mvit.draw import charts as figures
from kornia_mvit.draw.images import Colours, add_legend, classes_in, draw_segmentation, stack_rows
from kornia_mvit.evaluation.classification import name_of
from kornia_mvit.evaluation.page import Gallery, Part, Picture, Section, Table, Text, Tiles, render_page
from kornia_mvit.evaluation.report_parts import curves, percent, png, settings_table, write_files
from kornia_mvit.evaluation.segmentation import (
    Example,
    SegmentationEvaluation,
    image_iou,
    segmentation_metrics,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_worst_masks", "write_segmentation_report"]

_NAMED = 30  # classes whose confusion matrix has room for names
_BLOCK = 20  # classes of the part that is drawn where there are more
_ROWS = 50  # of a table in the page
_PAIRS = 15
_IGNORED = 65535
_WIDTH = 200  # pixels, about, that a small picture is enlarged to
_FILES = ("curves", "confusion", "confusion_part", "per_class", "worst", "best")


def write_segmentation_report(
    folder: str | Path,
    evaluation: SegmentationEvaluation,
    *,
    history: Sequence[Mapping[str, float]] = (),
    class_names: Sequence[str] | None = None,
    title: str = "Report",
    about: Sequence[str] = (),
    best: float | None = None,
    settings: Mapping[str, Any] | None = None,
    class_colours: Colours | None = None,
) -> Path:
    """Write a report into a folder.

    ``index.html`` holds all of it and needs no other file. Beside it stand its pictures: ``curves.png`` (with a
    history), ``confusion.png``, ``confusion_part.png`` (the most confused of more than 30 classes), ``per_class.png``,
    ``worst.png`` and ``best.png`` (if pictures were kept). ``metrics.json`` has every number, ``per_class.csv`` the
    table of all classes, ``per_image.csv`` how many pixels of each image were right (``right/CLASS``), and how many are
    of a class or were taken for it (``union/CLASS``). What an earlier report left there is replaced.

    Args:
        folder: made where it is missing.
        evaluation: what was predicted.
        history: rows of metrics, as :func:`kornia_mvit.draw.charts.draw_curves` takes them.
        class_names: names of the K classes; their numbers stand in when None.
        title: of the page.
        about: sentences on what was evaluated: the images, and the weights.
        best: the epoch that was evaluated, to be marked in the curves.
        settings: names and values to list at the end.
        class_colours: red, green and blue of the K classes, from 0 to 255, for pictures.

    Returns:
        The path of ``index.html``.

    Raises:
        ValueError: if there are not K names.
        ImportError: if Matplotlib or Pillow is missing.
    """
    metrics = segmentation_metrics(evaluation, class_names)
    names = [name_of(i, class_names) for i in range(evaluation.num_classes)]
    pictures = _draw(metrics, evaluation, names, history, best, class_colours)
    sections = [
        *([curves(pictures["curves"], best)] if "curves" in pictures else []),
        _per_class(pictures["per_class"], metrics),
        _confusion(pictures, evaluation.confusion, names),
        _examples("Worst images", "worst", evaluation, names, class_colours),
        _examples("Best images", "best", evaluation, names, class_colours),
        *([settings_table(settings)] if settings else []),
    ]
    page = render_page(title, [Text(about), _summary(metrics)], sections)
    data = {**metrics, "worst": [{"image": one.name, "miou": one.score} for one in evaluation.worst]}
    data |= {"about": list(about), "history": [dict(row) for row in history]}
    files = {name: pictures.get(name) for name in _FILES}
    tables = {"per_class": metrics["per_class"], "per_image": _per_image(evaluation, names)}
    return write_files(Path(folder), page, data, files, tables)


def _draw(
    metrics: dict[str, Any],
    evaluation: SegmentationEvaluation,
    names: Sequence[str],
    history: Sequence[Mapping[str, float]],
    best: float | None,
    colours: Colours | None,
) -> dict[str, bytes]:
    confusion = evaluation.confusion
    support = confusion.sum(1)
    pictures = {
        "confusion": figures.draw_confusion(confusion, support, names, "pixels"),
        "per_class": figures.draw_scores(_weakest(metrics)[:_NAMED], "iou", "intersection over union"),
    }
    if any(len(row) > 1 for row in history):
        pictures["curves"] = figures.draw_curves(history, best)
    if len(names) > _NAMED and (chosen := figures.most_confused(confusion, _BLOCK)):
        block = confusion[chosen][:, chosen]
        part = figures.draw_confusion(block, support[chosen], [names[i] for i in chosen], "pixels")
        pictures["confusion_part"] = part
    for name in ("worst", "best"):
        if examples := getattr(evaluation, name):
            pictures[name] = png(draw_worst_masks(examples, names, colours))
    return pictures


def draw_worst_masks(
    examples: Sequence[Example], class_names: Sequence[str] | None = None, class_colours: Colours | None = None
) -> "Image.Image":
    """Draw images, their labels and what was predicted side by side, a row each, with a legend below.

    Args:
        examples: one or more.
        class_names: names of the classes; their numbers stand in when None.
        class_colours: red, green and blue of the classes, from 0 to 255.

    Returns:
        A Pillow image.

    Raises:
        ImportError: if Pillow is missing.
    """
    rows = [_panels(one, class_colours) for one in examples]
    sheet = stack_rows(rows, ("image", "labels", "predicted"))
    return add_legend(sheet, _classes(examples), class_names, class_colours)


def _panels(example: Example, colours: Colours | None) -> "Image.Image":
    """Draw one, small images enlarged by a whole number."""
    times = max(1, round(_WIDTH / example.image.shape[-1]))
    image, truth, predicted = (
        each.repeat_interleave(times, -2).repeat_interleave(times, -1)
        for each in (example.image, example.truth, example.predicted)
    )
    return draw_segmentation(image, [truth, predicted], colours, ignore_index=_IGNORED)


def _classes(examples: Sequence[Example]) -> list[int]:
    return sorted({k for one in examples for mask in (one.truth, one.predicted) for k in classes_in(mask, _IGNORED)})


# ---------------------------------------------------------------------------------------------------------- sections


def _summary(metrics: dict[str, Any]) -> Tiles:
    mean = metrics["miou"]
    interval = f"95\u00a0% interval over images {percent(mean['low'])} to {percent(mean['high'])}"
    known, labelled = metrics["miou_classes"], metrics["labelled_classes"]
    over = f", of {known:,} of {metrics['classes']:,} classes" if known < metrics["classes"] else ""
    alike = f"each of {labelled:,} labelled classes counts alike"
    tiles = [
        ("Mean IoU", percent(mean["value"]), interval + over),
        ("Pixel accuracy", percent(metrics["accuracy"]), f"of {metrics['pixels']:,} labelled pixels"),
        ("Mean recall", percent(metrics["class_accuracy"]), alike),
        ("Images", f"{metrics['images']:,}", f"{metrics['classes']:,} classes, {known:,} of them seen"),
    ]
    return Tiles(tiles)


def _weakest(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Sort classes by IoU, the lowest first and those that were not there last."""
    rows: list[dict[str, Any]] = metrics["per_class"]
    return sorted(rows, key=lambda row: 2.0 if row["iou"] is None else row["iou"])


def _per_class(picture: bytes, metrics: dict[str, Any]) -> Section:
    weakest = _weakest(metrics)
    some = f"The {{}} weakest of {len(weakest):,} classes by IoU"
    drawn = "Classes by IoU, the weakest first." if len(weakest) <= _NAMED else f"{some.format(_NAMED)}."
    caption = "All classes, the weakest first"
    if len(weakest) > _ROWS:
        caption = f"{some.format(_ROWS)}; per_class.csv has all"
    head = ["class", "IoU", "95 % interval", "recall", "precision", "of the pixels", "predicted", "images"]
    rows = []
    for row in weakest[:_ROWS]:
        interval = "–" if row["iou_low"] is None else f"{percent(row['iou_low'])} – {percent(row['iou_high'])}"
        shares = [percent(row[name]) for name in ("recall", "precision", "share", "predicted_share")]
        rows.append([row["class"], percent(row["iou"]), interval, *shares, f"{row['images']:,}"])
    text = [
        "IoU is the share of right pixels among those that are of a class or were taken for it. Recall is the share of "
        "a class's pixels that were found, precision that of the pixels taken for it that are of it.",
        "Intervals are over images, drawn with replacement: they tell how far the numbers would vary with other images "
        "of the same kind, not with another training run.",
    ]
    alt = "IoU of classes"
    return Section("Classes", [Text(text), Picture(picture, alt, [drawn]), Table(head, rows, caption)])


def _confusion(pictures: Mapping[str, bytes], confusion: Tensor, names: Sequence[str]) -> Section:
    parts: list[Part] = [Text(["A row holds the pixels of one class, a column what they were taken for."])]
    numbers = "Numbers are percentages of the row; those below one half are left out."
    if "confusion_part" in pictures:
        shown = len(figures.most_confused(confusion, _BLOCK))
        caption = f"{shown} of {len(names):,} classes: those of the most frequent confusions. {numbers}"
        parts.append(Picture(pictures["confusion_part"], "Confusion matrix of the most confused classes", [caption]))
    caption = "All classes, in the order of their numbers." if len(names) > _NAMED else numbers
    parts.append(Picture(pictures["confusion"], "Confusion matrix of all classes", [caption]))
    off = confusion.clone().fill_diagonal_(0)
    pairs = off.nonzero()
    order = off[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)[:_PAIRS]
    wrong = max(1, int(off.sum()))
    rows = []
    for truth, predicted in pairs[order].tolist():
        count = int(off[truth, predicted])
        shares = [percent(count / int(confusion[truth].sum())), percent(count / wrong)]
        rows.append([names[truth], names[predicted], f"{count:,}", *shares])
    if rows:
        head = ["truth", "taken for", "pixels", "of the class", "of all wrong ones"]
        parts.append(Table(head, rows, "The most frequent confusions", words=2))
    else:
        parts.append(Text(["No pixel was taken for another class."]))
    return Section("Confusion matrix", parts)


def _examples(
    title: str, kind: str, evaluation: SegmentationEvaluation, names: Sequence[str], colours: Colours | None
) -> Section:
    examples: list[Example] = getattr(evaluation, kind)
    if not examples:
        return Section(title, [Text(["No pictures were kept."])])
    which = "lowest" if kind == "worst" else "highest"
    text = f"The image, its labels and what was predicted, of the {len(examples)} images with the {which} mean IoU "
    text += "over the classes in them. Ignored pixels are hatched."
    if kind == "worst":
        text += " Look for wrong labels here first."
    pictures = []
    for one in examples:
        right = (one.truth == one.predicted)[one.truth != _IGNORED]
        accuracy = percent(float(right.float().mean())) if len(right) else "–"
        lines = [f"mean IoU {percent(one.score)}", f"{accuracy} of the pixels", "/".join(Path(one.name).parts[-2:])]
        alt = f"An image, its labels and what was predicted: {one.name}"
        pictures.append(Picture(png(_panels(one, colours)), alt, lines, chart=False))
    return Section(title, [Text([text]), _legend(examples, names, colours), Gallery(pictures, wide=True)])


def _legend(examples: Sequence[Example], names: Sequence[str], colours: Colours | None) -> Picture:
    from PIL import Image  # the drawing before has said so if it is missing

    legend = add_legend(Image.new("RGB", (900, 1), "white"), _classes(examples), names, colours)
    return Picture(png(legend), "The colours of the classes", chart=False)


def _per_image(evaluation: SegmentationEvaluation, names: Sequence[str]) -> list[dict[str, Any]]:
    union = evaluation.union
    scores = image_iou(evaluation.right, union)
    rows = []
    for i, name in enumerate(evaluation.names):
        right, around = evaluation.right[i].tolist(), union[i].tolist()
        total = int(evaluation.truth[i].sum())
        row: dict[str, Any] = {
            "image": name,
            "miou": None if scores[i].isnan() else round(float(scores[i]), 6),
            "accuracy": round(sum(right) / total, 6) if total else None,
        }
        for k, kind in enumerate(names):
            row |= {f"right/{kind}": right[k], f"union/{kind}": around[k]}
        rows.append(row)
    return rows
