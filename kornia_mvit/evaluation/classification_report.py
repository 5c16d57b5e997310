"""A report of a run: what a classifier gets right and wrong, as pictures, tables, numbers and one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.draw import charts as figures
from kornia_mvit.draw.images import draw_predictions
from kornia_mvit.evaluation.classification import Evaluation, Mistake, classification_metrics, name_of
from kornia_mvit.evaluation.page import Gallery, Part, Picture, Section, Table, Text, Tiles, render_page
from kornia_mvit.evaluation.report_parts import curves, percent, png, settings_table, write_files

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_mistakes", "write_report"]

_NAMED = 30  # classes whose confusion matrix has room for names
_BLOCK = 20  # classes of the part that is drawn where there are more
_ROWS = 50  # of a table in the page
_PAIRS = 15
_FILES = ("curves", "confusion", "confusion_part", "reliability", "per_class", "mistakes")


def write_report(
    folder: str | Path,
    evaluation: Evaluation,
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
    history), ``confusion.png``, ``confusion_part.png`` (the most confused of more than 30 classes),
    ``reliability.png``, ``per_class.png`` and ``mistakes.png`` (if there are any). ``metrics.json`` has every number,
    ``per_class.csv`` the table of all classes. What an earlier report left there is replaced.

    Args:
        folder: made where it is missing.
        evaluation: what was predicted.
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
        ImportError: if Matplotlib or Pillow is missing.

    Example:
        >>> import tempfile
        >>> evaluation = Evaluation.from_logits(torch.eye(3), torch.arange(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(folder, evaluation, class_names=['cat', 'dog', 'owl']).name
        'index.html'
    """
    metrics = classification_metrics(evaluation, class_names)
    names = [name_of(i, class_names) for i in range(evaluation.num_classes)]
    confusion = torch.tensor(metrics["confusion"])
    pictures = _draw(metrics, confusion, names, evaluation.mistakes, history, best)
    sections = [
        *([curves(pictures["curves"], best)] if "curves" in pictures else []),
        _confusion(pictures, metrics, confusion, names),
        _per_class(pictures["per_class"], metrics),
        _reliability(pictures["reliability"], metrics),
        _mistakes(evaluation, metrics, names),
        *([settings_table(settings)] if settings else []),
    ]
    page = render_page(title, [Text([*about, *_warnings(metrics)]), _summary(metrics)], sections)
    data = {**metrics, "worst": [_worst(mistake, names) for mistake in evaluation.mistakes]}
    data |= {"about": list(about), "history": [dict(row) for row in history]}
    files = {name: pictures.get(name) for name in _FILES}
    return write_files(Path(folder), page, data, files, {"per_class": metrics["per_class"]})


def _draw(
    metrics: dict[str, Any],
    confusion: Tensor,
    names: Sequence[str],
    mistakes: Sequence[Mistake],
    history: Sequence[Mapping[str, float]],
    best: float | None,
) -> dict[str, bytes]:
    pictures = {
        "confusion": figures.draw_confusion(confusion, confusion.sum(1), names),
        "reliability": figures.draw_reliability(metrics["reliability"]),
        "per_class": figures.draw_per_class(_weakest(metrics)[:_NAMED]),
    }
    if any(len(row) > 1 for row in history):
        pictures["curves"] = figures.draw_curves(history, best)
    chosen = figures.most_confused(confusion, _BLOCK) if len(names) > _NAMED else []
    if chosen:
        block = confusion[chosen][:, chosen]
        pictures["confusion_part"] = figures.draw_confusion(block, confusion.sum(1)[chosen], [names[i] for i in chosen])
    if mistakes:
        pictures["mistakes"] = png(draw_mistakes(mistakes, names))
    return pictures


def draw_mistakes(mistakes: Sequence[Mistake], class_names: Sequence[str] | None = None) -> "Image.Image":
    """Draw mistakes in a grid, with what was predicted and what is true.

    Args:
        mistakes: one or more.
        class_names: names of the classes; their numbers stand in when None.

    Returns:
        A Pillow image.

    Raises:
        ImportError: if Pillow is missing.
    """
    side = max(max(mistake.image.shape[1:]) for mistake in mistakes)
    images = torch.stack([_square(mistake.image, side) for mistake in mistakes])
    probabilities = torch.stack([mistake.probabilities for mistake in mistakes])
    label = torch.tensor([mistake.label for mistake in mistakes])
    names = None if class_names is None else [figures.shorten(name, 14) for name in class_names]
    return draw_predictions(images, probabilities, label, names)


# ---------------------------------------------------------------------------------------------------------- sections


def _summary(metrics: dict[str, Any]) -> Tiles:
    tiles = []
    for name, text in (("top1", "Accuracy"), ("top5", "Among the top 5")):
        if name in metrics:
            share = metrics[name]
            interval = f"95\u00a0% interval {percent(share['low'])} to {percent(share['high'])}"
            tiles.append((text, percent(share["value"]), interval))
    tiles += [
        ("Mistakes", f"{metrics['mistakes']:,}", f"of {metrics['images']:,} images, {metrics['classes']:,} classes"),
        ("Mean F1", percent(metrics["f1"]), f"each of {metrics['mean_classes']:,} classes counts alike"),
        ("Cross-entropy", _decimal(metrics["loss"]), "mean, in nats"),
        ("Calibration error", percent(metrics["calibration_error"]), "expected, over 15 bins of confidence"),
    ]
    return Tiles(tiles)


def _warnings(metrics: dict[str, Any]) -> list[str]:
    if not metrics["not_finite"]:
        return []
    return [
        f"The loss of {metrics['not_finite']:,} images is not finite: the training diverged, or an image is broken."
    ]


def _confusion(
    pictures: Mapping[str, bytes], metrics: dict[str, Any], confusion: Tensor, names: Sequence[str]
) -> Section:
    parts: list[Part] = [Text(["A row holds the images of one class, a column what they were taken for."])]
    if "confusion_part" in pictures:
        shown = len(figures.most_confused(confusion, _BLOCK))
        caption = f"{shown} of {len(names):,} classes: those of the most frequent confusions. Numbers are images."
        parts.append(Picture(pictures["confusion_part"], "Confusion matrix of the most confused classes", [caption]))
    caption = "All classes, in the order of their numbers." if len(names) > _NAMED else "Numbers are images."
    parts.append(Picture(pictures["confusion"], "Confusion matrix of all classes", [caption]))
    off = confusion.clone().fill_diagonal_(0)
    pairs = off.nonzero()
    order = off[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)[:_PAIRS]
    rows = []
    for truth, predicted in pairs[order].tolist():
        count = int(off[truth, predicted])
        share = percent(count / int(confusion[truth].sum()))
        rows.append([names[truth], names[predicted], f"{count:,}", share])
    if rows:
        head = ["truth", "taken for", "images", "of the class"]
        parts.append(Table(head, rows, "The most frequent confusions", words=2))
    else:
        parts.append(Text(["No class was taken for another."]))
    return Section("Confusion matrix", parts)


def _weakest(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Sort classes by F1, the lowest first and those without images last."""
    rows: list[dict[str, Any]] = metrics["per_class"]
    return sorted(rows, key=lambda row: (row["support"] == 0, row["f1"] if row["f1"] is not None else 2.0))


def _per_class(picture: bytes, metrics: dict[str, Any]) -> Section:
    weakest = _weakest(metrics)
    some = f"The {{}} weakest of {len(weakest):,} classes by F1"
    drawn = "Classes by F1, the weakest first." if len(weakest) <= _NAMED else f"{some.format(_NAMED)}."
    caption = "All classes, the weakest first"
    if len(weakest) > _ROWS:
        caption = f"{some.format(_ROWS)}; per_class.csv has all"
    head = ["class", "images", "right", "recall", "95 % interval", "precision", "F1", "predicted"]
    rows = []
    for row in weakest[:_ROWS]:
        interval = f"{percent(row['recall_low'])} – {percent(row['recall_high'])}" if row["support"] else "–"
        shares = [percent(row[name]) for name in ("precision", "f1")]
        numbers = [f"{row[name]:,}" for name in ("support", "right", "predicted")]
        rows.append([row["class"], numbers[0], numbers[1], percent(row["recall"]), interval, *shares, numbers[2]])
    text = "Recall is the accuracy among a class's own images. Precision is the share of the images taken for a class "
    text += "that are of it. F1 is their harmonic mean."
    alt = "Precision, recall and F1 of classes"
    return Section("Classes", [Text([text]), Picture(picture, alt, [drawn]), Table(head, rows, caption)])


def _reliability(picture: bytes, metrics: dict[str, Any]) -> Section:
    full = [one for one in metrics["reliability"] if one["images"]]
    mean = sum(one["confidence"] * one["images"] for one in full) / metrics["images"]
    accuracy = metrics["top1"]["value"]
    how = "as confident as" if abs(mean - accuracy) < 0.01 else "less confident than"
    how = "more confident than" if mean - accuracy >= 0.01 else how
    text = [
        "Confidence is the probability of the predicted class. Where it can be trusted, of the images predicted with "
        "80 % some 80 % are right, and the dots lie on the dashed line.",
        f"Mean confidence {percent(mean)}, accuracy {percent(accuracy)}: on the whole {how} right. "
        f"Expected calibration error {percent(metrics['calibration_error'])}.",
    ]
    return Section("Reliability", [Text(text), Picture(picture, "Accuracy and number of images by confidence")])


def _mistakes(evaluation: Evaluation, metrics: dict[str, Any], names: Sequence[str]) -> Section:
    title = "Worst mistakes"
    if not metrics["mistakes"]:
        return Section(title, [Text([f"There is none: all {metrics['images']:,} images were classified rightly."])])
    if not evaluation.mistakes:
        return Section(title, [Text([f"No pictures of the {metrics['mistakes']:,} mistakes were kept."])])
    pictures = []
    for mistake in evaluation.mistakes:
        truth, predicted = names[mistake.label], names[mistake.predicted]
        share = mistake.probabilities.tolist()
        lines = [f"{predicted}: {percent(mistake.confidence)}", f"is {truth} ({percent(share[mistake.label])})"]
        others = [i for i in mistake.probabilities.topk(min(3, len(names))).indices.tolist() if i != mistake.label]
        lines += [f"or {names[i]} ({percent(share[i])})" for i in others[1:2]]
        lines.append("/".join(Path(mistake.name).parts[-2:]))
        alt = f"An image of {truth} taken for {predicted}"
        pictures.append(Picture(png(_picture(mistake.image)), alt, lines, chart=False))
    some, all_ = len(pictures), metrics["mistakes"]
    which = (
        "All mistakes, the most confident first" if some == all_ else f"The most confident {some} of {all_:,} mistakes"
    )
    text = f"{which}: what was predicted, what it is, and the probability of each. Look for wrong labels here first."
    return Section(title, [Text([text]), Gallery(pictures)])


# ----------------------------------------------------------------------------------------------------------- helpers


def _worst(mistake: Mistake, names: Sequence[str]) -> dict[str, Any]:
    return {
        "image": mistake.name,
        "truth": names[mistake.label],
        "predicted": names[mistake.predicted],
        "confidence": mistake.confidence,
        "truth_probability": float(mistake.probabilities[mistake.label]),
    }


def _decimal(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _picture(image: Tensor) -> "Image.Image":
    from PIL import Image  # the drawing before has said so if it is missing

    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _square(image: Tensor, side: int) -> Tensor:
    """Lay an image in the middle of a white square."""
    below, right = side - image.shape[1], side - image.shape[2]
    return F.pad(image, (right // 2, right - right // 2, below // 2, below - below // 2), value=255)
