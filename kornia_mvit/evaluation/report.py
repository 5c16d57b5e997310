"""A report of a run: what a model gets right and wrong, as pictures, tables, numbers and one HTML page."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kornia_mvit.draw.charts import draw_curves, draw_ranges
from kornia_mvit.draw.sheets import png
from kornia_mvit.evaluation.base import BaseEvaluation, Colours
from kornia_mvit.evaluation.page import Part, Picture, Section, Table, Text, Tiles, render_page
from kornia_mvit.files import cell, write_whole

__all__ = ["write_files", "write_report"]


def write_report(
    folder: str | Path,
    evaluation: BaseEvaluation,
    *,
    history: Sequence[Mapping[str, float]] = (),
    class_names: Sequence[str] | None = None,
    title: str = "Report",
    about: Sequence[str] = (),
    best: float | None = None,
    settings: Mapping[str, Any] | None = None,
    class_colours: Colours | None = None,
) -> Path:
    """Write the report of an evaluation, of whichever task, into a folder.

    ``index.html`` holds all of it and needs no other file. Beside it are ``metrics.json`` with every number,
    ``per_class.csv``, the table of all classes, and the pictures:

    - ``curves.png`` (with a history), ``ranges.png`` (with learned ranges in it) and ``per_class.png``;
    - classification: ``confusion.png``, ``confusion_part.png`` (the most confused of more than 30 classes),
      ``reliability.png`` and ``mistakes.png`` (if there are any);
    - segmentation: ``confusion.png``, ``confusion_part.png``, ``worst.png`` and ``best.png`` (if pictures were kept);
      ``per_image.csv`` has how many pixels of each image were right (``right/CLASS``), and how many are of a class or
      were taken for it (``union/CLASS``);
    - detection: ``precision_recall.png`` and ``worst.png`` (if pictures were kept).

    The files of an earlier report in the folder are replaced.

    Args:
        folder: made where it is missing.
        evaluation: what was predicted.
        history: rows of metrics, as :func:`kornia_mvit.draw.charts.draw_curves` takes them.
        class_names: names of the K classes; their numbers are shown when None.
        title: of the page.
        about: sentences on what was evaluated: the images, and the weights.
        best: the epoch that was evaluated, to be marked in the curves.
        settings: names and values to list at the end.
        class_colours: red, green and blue of the K classes, from 0 to 255, for the pictures of masks.

    Returns:
        The path of ``index.html``.

    Raises:
        ValueError: if there are not K names.
        ImportError: if Matplotlib, Pillow or, for detection, faster-coco-eval is missing.
        OSError: if a file cannot be written, naming it; then an earlier report stays.

    Example:
        >>> import tempfile, torch
        >>> from kornia_mvit.training import Evaluation
        >>> evaluation = Evaluation.from_logits(torch.eye(3), torch.arange(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(folder, evaluation, class_names=['cat', 'dog', 'owl']).name
        'index.html'
    """
    metrics = evaluation.metrics(class_names)
    names = evaluation.name_classes(class_names)
    curves = draw_curves(history, best) if any(len(row) > 1 for row in history) else None
    ranges = draw_ranges(history)
    sections = [
        *([] if curves is None else [_curves(curves, best)]),
        *([] if ranges is None else [_ranges(ranges)]),
        *evaluation.sections(metrics, names, class_colours),
        *([_settings(settings)] if settings else []),
    ]
    pictures: dict[str, bytes | None] = {"curves": None, "ranges": None, "confusion_part": None}
    pictures |= {part.file: part.data for one in sections for part in one.parts if isinstance(part, Picture)}
    for name in evaluation.example_lists:
        sheet = evaluation.draw_list(name, names, class_colours)
        pictures[name] = None if sheet is None else png(sheet)
    pictures.pop("", None)
    lead: list[Part] = [Text([*about, *evaluation.warnings(metrics)]), Tiles(evaluation.summary(metrics))]
    data = {**metrics, "worst": evaluation.examples(names), "about": list(about)}
    data["history"] = [dict(row) for row in history]
    tables = evaluation.tables(metrics, names)
    return write_files(Path(folder), render_page(title, lead, sections), data, pictures, tables)


def _curves(picture: bytes, best: float | None) -> Section:
    text = [
        "Training values are means over an epoch's augmented batches, during which the weights changed; validation "
        "values are of images as they are, at the end. So the two need not meet."
    ]
    if best is not None:
        text.append(f"The dashed line marks what this report is about: the weights after epoch {best:g}.")
    return Section("Curves", [Picture(picture, "Metrics and learning rate over the epochs", file="curves"), Text(text)])


def _ranges(picture: bytes) -> Section:
    text = [
        "Magnitudes of augmentation are sampled between the two ends of each range, which are learned with the "
        "network: until the augmented images are as similar to the original ones as the target says."
    ]
    return Section(
        "Learned ranges", [Picture(picture, "Ends of the ranges over the epochs", file="ranges"), Text(text)]
    )


def _settings(settings: Mapping[str, Any]) -> Section:
    rows = [[str(name), str(value)] for name, value in settings.items()]
    return Section("Settings", [Table(["name", "value"], rows, words=2)])


def write_files(
    folder: Path,
    page: str,
    data: Mapping[str, Any],
    pictures: Mapping[str, bytes | None],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """Write a report's files into a folder, and remove those of an earlier one.

    Args:
        folder: made where it is missing.
        page: HTML, for ``index.html``.
        data: for ``metrics.json``.
        pictures: PNG files by their names; None for those that this report does not have.
        tables: rows of the CSV files by their names; texts that a spreadsheet would run get an apostrophe before
            them.

    Returns:
        The path of ``index.html``.

    Raises:
        OSError: if a file cannot be written, naming it; then those of the earlier report stay.
    """
    path = folder / "index.html"
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(_finite(value))}" for name, value in data.items())
    with write_whole(path) as beside:
        for name, picture in pictures.items():
            if picture is not None:
                beside.with_name(f"{name}.png").write_bytes(picture)
        beside.with_name("metrics.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        for name, rows in tables.items():
            with beside.with_name(f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
        beside.write_text(page, encoding="utf-8")
    for name, picture in pictures.items():
        if picture is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
    return path


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON does not have, by None."""
    match value:
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list():
            return [_finite(one) for one in value]
        case float() if not -float("inf") < value < float("inf"):
            return None
    return value


# Names of 0.1.0.
write_detection_report: Callable[..., Path] = write_report
write_segmentation_report: Callable[..., Path] = write_report
