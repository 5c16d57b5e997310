"""Charts of a run and of what it learned. Needs Matplotlib, from ``kornia-mvit[train]``.

Each function returns a PNG file, and raises an ImportError if Matplotlib is missing.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kornia_mvit.extras import needing
from kornia_mvit.ops.intervals import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "confused_pairs",
    "draw_confusion",
    "draw_curves",
    "draw_per_class",
    "draw_precision_recall",
    "draw_ranges",
    "draw_reliability",
    "draw_scores",
    "most_confused",
    "shorten",
]

_INK, _QUIET, _LINE = "#1f2328", "#59636e", "#d1d9e0"
_BLUE, _ORANGE, _GREEN = "#0969da", "#bc4c00", "#1a7f37"
_SHARES = ("accuracy", "top5", "class_accuracy", "calibration_error", "miou", "map", "map_50", "map_75")
_RANGES = "ranges/"
_NAMED = 30  # classes that a chart has room to name
_LONGEST = 22  # letters of a name


def draw_curves(history: Sequence[Mapping[str, float]], best: float | None = None) -> bytes:
    """Draw each metric over the epochs, training and validation in one panel, and the learning rate.

    Args:
        history: rows with ``epoch`` (how many had passed) and any of ``train/NAME``, ``val/NAME`` and ``lr``. Those of
            single classes, as ``val/accuracy/CLASS``, are left out, and so is ``ranges/NAME``, for
            :func:`~kornia_mvit.draw.charts.draw_ranges`.
        best: the epoch to mark.

    Raises:
        ValueError: if there is nothing to draw.
    """
    names = {name for row in history for name in row if name != "epoch" and not name.startswith(_RANGES)}
    panels: dict[str, list[str]] = {"loss": [], "accuracy": []}  # which come first
    for name in sorted(names - {"lr"}):  # train before val
        title = name.partition("/")[2] or name
        if "/" not in title:
            panels.setdefault(title, []).append(name)
    panels = {title: series for title, series in panels.items() if series}
    if "lr" in names:
        panels["learning rate"] = ["lr"]
    if not panels:
        raise ValueError("the history has no metrics to draw")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(3.7 * columns + 0.2, 3.3 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw={"hspace": 0.08}).flat)
    last = max(row["epoch"] for row in history)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, series) in zip(grid, panels.items(), strict=False):
        _plain(axes, title.replace("_", " "))
        for name in series:
            x, y = _points(history, name)
            colour = _GREEN if name == "lr" else _ORANGE if name.startswith("train") else _BLUE
            stage = name.partition("/")[0]
            marker = "o" if len(x) <= 30 else ""
            axes.plot(x, y, color=colour, label=stage, linewidth=1.8, marker=marker, markersize=3)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, last * 1.03 + 0.1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if best is not None:
            axes.axvline(best, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if title in _SHARES:
            axes.yaxis.set_major_formatter(_percent())
        if title == "learning rate":
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def draw_ranges(history: Sequence[Mapping[str, float]]) -> bytes | None:
    """Draw the ends of learned ranges over the epochs, and the similarity that they reached beside its target.

    Args:
        history: rows with ``epoch``, and any of ``ranges/NAME_low``, ``ranges/NAME_high``, ``ranges/psnr``,
            ``ranges/ssim`` and ``ranges/target``.

    Returns:
        A PNG file; None if there are no ranges in the history.
    """
    names = {name.removeprefix(_RANGES) for row in history for name in row if name.startswith(_RANGES)}
    panels = sorted(name.removesuffix("_low") for name in names if name.endswith("_low"))
    if not panels:
        return None
    measure = next((name for name in ("psnr", "ssim") if name in names), None)
    count = len(panels) + (measure is not None)
    columns = min(2, count)
    rows = -(-count // columns)
    figure = _figure(4.6 * columns, 2.7 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw={"hspace": 0.08}).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes, name in zip(grid, panels, strict=False):
        _plain(axes, name)
        ends = [_points(history, f"{_RANGES}{name}_{end}") for end in ("low", "high")]
        axes.fill_between(ends[0][0], ends[0][1], ends[1][1], color="#9cc7f5", alpha=0.5, linewidth=0)
        for x, y in ends:
            axes.plot(x, y, color=_BLUE, linewidth=1.8, marker="o" if len(x) <= 30 else "", markersize=3)
        axes.set_xlabel("epoch")
    if measure is not None:
        axes = grid[len(panels)]
        _plain(axes, "PSNR in dB" if measure == "psnr" else "SSIM")
        axes.plot(*_points(history, f"{_RANGES}{measure}"), color=_ORANGE, linewidth=1.8, label="augmented images")
        target = _points(history, f"{_RANGES}target")
        axes.plot(*target, color=_QUIET, linewidth=1.2, linestyle=(0, (4, 3)), label="target")
        axes.set_xlabel("epoch")
        axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def _points(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Return the epochs in which a value is known, and the values."""
    points = [(row["epoch"], row[name]) for row in history if math.isfinite(row.get(name, math.nan))]
    return [point[0] for point in points], [point[1] for point in points]


def draw_confusion(confusion: Tensor, support: Tensor, names: Sequence[str], unit: str = "images") -> bytes:
    """Draw how often each class was taken for each.

    A row is a true class; its colours are shares of the class's images, its numbers are images, or percentages of the
    row where the unit is another. More than 30 classes are drawn without numbers and names, for the pattern alone.

    Args:
        confusion: (K, K) counts, ``confusion[truth][predicted]``, or some rows and the same columns of it.
        support: (K,) images of each class, those taken for a class that is left out too.
        names: of the K classes.
        unit: what is counted.
    """
    k = len(confusion)
    named = k <= _NAMED
    side = min(10.5, max(4.3, 0.41 * k)) if named else 7.0
    longest = max(len(shorten(name)) for name in names) if named else 0
    figure = _figure(side + 1.6 + 0.075 * longest, side + 0.5 + 0.055 * longest)
    from matplotlib.colors import PowerNorm  # there if _figure went well

    axes = figure.subplots()
    shares = confusion / support.clamp(min=1)[:, None]
    scale = PowerNorm(1.0 if named else 0.4, 0, 1)  # the faint ones have to be seen where no number tells of them
    look = "nearest" if named else "auto"
    picture = axes.imshow(shares.numpy(), cmap="Blues", norm=scale, interpolation=look)
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, format=_percent(), label=f"share of the true class's {unit}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9)
    axes.set(xlabel="predicted", ylabel="truth")
    for spine in axes.spines.values():
        spine.set_color(_LINE)
    if not named:
        return _png(figure)
    turned = 0 if longest * 0.08 < side / k else 90
    axes.set_xticks(range(k), [shorten(name) for name in names], rotation=turned, parse_math=False)
    axes.set_yticks(range(k), [shorten(name) for name in names], parse_math=False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xticks(torch.arange(k - 1).add(0.5).tolist(), minor=True)
    axes.set_yticks(torch.arange(k - 1).add(0.5).tolist(), minor=True)
    axes.grid(which="minor", color=_LINE, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    size = 10 if k <= 12 else 8 if k <= 22 else 6.5
    for row, values in enumerate(confusion.tolist()):
        for column, count in enumerate(values):
            share = float(shares[row, column])
            text = str(count) if unit == "images" else f"{100 * share:.0f}"
            if count and text != "0":
                colour = "white" if share > 0.55 else _INK
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    return _png(figure)


def draw_reliability(bins: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the accuracy of images by the confidence that they were given, and how many had which.

    Args:
        bins: of confidence, each with ``low``, ``high``, ``images`` and, where there are any, ``confidence`` and
            ``accuracy``.
    """
    figure = _figure(5.6, 5.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    full = [one for one in bins if one["images"]]
    left, width = [one["low"] for one in full], [one["high"] - one["low"] for one in full]
    _plain(upper)
    upper.plot([0, 1], [0, 1], color=_QUIET, linewidth=1.2, linestyle=(0, (4, 3)), label="as right as confident")
    upper.bar(left, [one["accuracy"] for one in full], width, align="edge", color="#9cc7f5", edgecolor="white")
    for one in full:
        ends = wilson_interval(round(one["accuracy"] * one["images"]), one["images"])
        upper.plot([one["confidence"]] * 2, ends, color=_BLUE, linewidth=1.2)
    x, y = [one["confidence"] for one in full], [one["accuracy"] for one in full]
    upper.plot(x, y, "o", color=_BLUE, markersize=5, label="these images, with 95 % intervals")
    upper.set(ylabel="accuracy", ylim=(0, 1.03), xlim=(0, 1))
    upper.yaxis.set_major_formatter(_percent())
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=2)
    _plain(lower)
    lower.bar(left, [one["images"] for one in full], width, align="edge", color=_QUIET, edgecolor="white")
    lower.set(xlabel="confidence", ylabel="images")
    lower.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    lower.xaxis.set_major_formatter(_percent())
    return _png(figure)


def draw_per_class(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw precision, recall with its interval, and F1 of classes, a row each in the order given.

    Args:
        rows: each with ``class``, ``precision``, ``recall``, ``recall_low``, ``recall_high`` and ``f1``; None where
            not defined.
    """
    figure, axes = _panel(8.2, 1.3 + 0.36 * len(rows))
    for place, row in enumerate(rows):
        if row["recall"] is not None:
            axes.plot([row["recall_low"], row["recall_high"]], [place] * 2, color="#9cc7f5", linewidth=5, zorder=1)
    for name, marker, colour in (("recall", "o", _BLUE), ("precision", "D", _ORANGE), ("f1", "|", _INK)):
        points = [(row[name], place) for place, row in enumerate(rows) if row[name] is not None]
        if points:
            label = {"recall": "recall and its 95 % interval", "f1": "F1"}.get(name, name)
            size = {"o": 36, "D": 24, "|": 120}[marker]
            x, y = [point[0] for point in points], [point[1] for point in points]
            axes.scatter(x, y, s=size, c=colour, marker=marker, label=label, zorder=2)
    _name_rows(axes, rows)
    ends = [row[name] for row in rows for name in ("recall_low", "precision", "f1") if row[name] is not None]
    lowest = math.floor(min(ends, default=0) * 10) / 10
    axes.set_xlim(lowest - 0.01, 1.01)
    axes.xaxis.set_major_formatter(_percent())
    figure.legend(frameon=False, fontsize=9, loc="outside upper left", ncols=3)
    return _png(figure)


def draw_scores(rows: Sequence[Mapping[str, Any]], score: str, label: str) -> bytes:
    """Draw a score of each class, with its 95 % interval where it is known, in the order given.

    Args:
        rows: each with ``class``, ``NAME`` of the score, and perhaps ``NAME_low`` and ``NAME_high``; None where not
            defined.
        score: NAME.
        label: what the axis is called.
    """
    figure, axes = _panel(8.2, 1.1 + 0.34 * len(rows))
    for place, row in enumerate(rows):
        if row[score] is None:
            continue
        axes.barh(place, row[score], height=0.62, color="#9cc7f5")
        low, high = (row.get(f"{score}_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            axes.plot([low, high], [place] * 2, color=_BLUE, linewidth=2.2)
        axes.plot(row[score], place, "o", color=_BLUE, markersize=5)
    _name_rows(axes, rows)
    axes.set_xlim(0, 1.01)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(_percent())
    return _png(figure)


def draw_precision_recall(curves: Mapping[str, Sequence[float]], mean: Sequence[float]) -> bytes:
    """Draw the precision of classes over their recall, and the mean of all.

    Args:
        curves: of each class to draw, the precision at evenly spaced recalls from 0 to 1.
        mean: over all classes.
    """
    figure, axes = _panel(7.2, 4.6)
    recall = torch.linspace(0, 1, len(mean)).tolist()
    for place, (name, precision) in enumerate(curves.items()):
        axes.plot(recall, precision, color=f"C{place % 10}", linewidth=1.4, label=shorten(name))
    if len(curves) != 1:
        axes.plot(recall, mean, color=_INK, linewidth=2.4, label="mean of all")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(_percent())
    axes.yaxis.set_major_formatter(_percent())
    figure.legend(frameon=False, fontsize=9, loc="outside right center")
    return _png(figure)


def most_confused(confusion: Tensor, count: int = 20) -> list[int]:
    """Choose the classes of the most frequent confusions, in the order of their numbers.

    Args:
        confusion: (K, K) counts.
        count: classes to choose at most; classes that were never confused are not among them.

    Example:
        >>> most_confused(torch.tensor([[5, 0, 0, 1], [0, 9, 0, 0], [0, 0, 9, 0], [2, 0, 0, 7]]), 2)
        [0, 3]
    """
    chosen: set[int] = set()
    for pair in confused_pairs(confusion):
        if len(chosen.union(pair)) > count:
            break
        chosen.update(pair)
    return sorted(chosen)


def confused_pairs(confusion: Tensor) -> list[tuple[int, int]]:
    """Return truth and prediction of all confusions that (K, K) counts hold, the most frequent first."""
    off = confusion.clone().fill_diagonal_(0)
    pairs = off.nonzero()
    order = off[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)
    return [(truth, predicted) for truth, predicted in pairs[order].tolist()]


def shorten(name: str, letters: int = _LONGEST) -> str:
    """Return a name that fits beside a chart.

    Example:
        >>> shorten('Welsh springer spaniel', 12)
        'Welsh …aniel'
    """
    name = " ".join(name.split())
    if len(name) <= letters:
        return name
    return name[: letters // 2] + "…" + name[letters // 2 + 1 - letters :]


def _figure(width: float, height: float) -> "Figure":
    with needing("charts need Matplotlib", "train"):
        from matplotlib.figure import Figure
    return Figure((width, height), dpi=144, layout="constrained", facecolor="white")


def _panel(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return a figure with one plain chart."""
    figure = _figure(width, height)
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _percent() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, _: f"{round(100 * share, 2):g} %")


def _plain(axes: "Axes", title: str = "") -> None:
    """Leave the frame out and draw a grid that stays behind."""
    axes.set_title(title, loc="left", fontsize=11, color=_INK, parse_math=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(length=0, labelcolor=_INK, labelsize=9)
    axes.grid(color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _name_rows(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the names of classes beside the rows of a chart, the first at the top."""
    axes.set_yticks(range(len(rows)), [shorten(row["class"]) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _png(figure: "Figure") -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings():
        # A name in letters that the font lacks shows as boxes in the chart; the tables have it in full.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
