"""What the reports of all tasks share: sections, numbers as they are read, and the files that are written."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kornia_mvit.evaluation.page import Picture, Section, Table, Text
from kornia_mvit.files import cell, write_whole

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["curves", "percent", "png", "settings_table", "write_files"]


def curves(picture: bytes, best: float | None) -> Section:
    """Show the metrics over the epochs, and say which epoch the report is about."""
    text = [
        "Training values are means over an epoch's augmented batches, during which the weights changed; validation "
        "values are of images as they are, at the end. So the two need not meet."
    ]
    if best is not None:
        text.append(f"The dashed line marks what this report is about: the weights after epoch {best:g}.")
    return Section("Curves", [Picture(picture, "Metrics and learning rate over the epochs"), Text(text)])


def settings_table(settings: Mapping[str, Any]) -> Section:
    """List names and values."""
    rows = [[str(name), str(value)] for name, value in settings.items()]
    return Section("Settings", [Table(["name", "value"], rows, words=2)])


def percent(share: float | None) -> str:
    """Write a share as it is read; a dash where it is not defined."""
    return "–" if share is None else f"{share:.1%}".replace("%", "\u00a0%")


def png(picture: "Image.Image") -> bytes:
    """Give the file of a picture."""
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def write_files(
    folder: Path,
    page: str,
    data: Mapping[str, Any],
    pictures: Mapping[str, bytes | None],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """Write a report's files into a folder, and take away those of an earlier one.

    Args:
        folder: made where it is missing.
        page: HTML, for ``index.html``.
        data: for ``metrics.json``.
        pictures: PNG files by their names; None for those that this report has not.
        tables: rows of the CSV files by their names; texts that a spreadsheet would run get an apostrophe before
            them.

    Returns:
        The path of ``index.html``.

    Raises:
        OSError: if they cannot be written, naming the file; then those of the earlier report stay.
    """
    path = folder / "index.html"
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(_plain(value))}" for name, value in data.items())
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


def _plain(value: Any) -> Any:
    """Put None, which JSON has, in the place of numbers that are not finite, which it has not."""
    match value:
        case dict():
            return {name: _plain(one) for name, one in value.items()}
        case list():
            return [_plain(one) for one in value]
        case float() if not -float("inf") < value < float("inf"):
            return None
    return value
