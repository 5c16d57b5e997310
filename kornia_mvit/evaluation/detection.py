"""What a detector found in labelled images, and the numbers and pictures made of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kornia_mvit.batch import Batch
from kornia_mvit.data.formats.coco import distinct_names
from kornia_mvit.draw import charts
from kornia_mvit.draw.images import draw_detections
from kornia_mvit.draw.sheets import side_by_side, stack_rows
from kornia_mvit.evaluation import parts
from kornia_mvit.evaluation.base import BaseCollector, BaseEvaluation, Colours, thumbnail
from kornia_mvit.evaluation.coco import CocoMetrics, coco_scores, truths_of
from kornia_mvit.evaluation.page import Picture, Section, Text
from kornia_mvit.evaluation.parts import number, percent
from kornia_mvit.inference.detection import sizes_of
from kornia_mvit.ops.geometry import box_iou
from kornia_mvit.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DetectionCollector", "DetectionEvaluation", "DetectionExample", "detection_metrics", "image_f1"]

# N images, T truths, P predictions, K classes
SURE = 0.3  # least score of what is shown and counted as found
_SIDE = 320  # pixels of small pictures
_LINES = 8  # classes whose precision is drawn
_ROWS = 100  # of the table of classes in the page
_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


@dataclass
class DetectionExample:
    """An image with what is in it and what was found, small enough to be kept.

    Args:
        image: (3, h, w), uint8.
        truth: ``boxes`` (t, 4) in pixels of that image, ``labels`` and ``ignore`` (t,).
        found: ``boxes`` (p, 4), ``labels`` and ``scores`` (p,), those of a score of 0.3 at least.
        score: see :func:`image_f1`.
        name: what the image is found by, such as its path.
    """

    image: Tensor
    truth: dict[str, Tensor]
    found: dict[str, Tensor]
    score: float
    name: str

    def draw(self, names: Sequence[str] | None, colours: Colours | None = None) -> "Image.Image":
        """Draw the image with its truths, and beside it with what was found."""
        truth, found = self.truth, self.found
        left = draw_detections(self.image, truth["boxes"], truth["labels"], None, names, ignore=truth["ignore"])
        right = draw_detections(self.image, found["boxes"], found["labels"], found["scores"], names)
        return side_by_side([left, right])

    def caption(self, names: Sequence[str]) -> tuple[str, list[str]]:
        """Return what the picture shows, and lines on the score and the numbers of boxes."""
        counts = f"{len(self.truth['labels'])} objects, {len(self.found['labels'])} found"
        alt = f"An image with what is in it, and with what was found: {self.name}"
        return alt, [f"F1 {percent(self.score)}", counts]


@dataclass
class DetectionEvaluation(BaseEvaluation):
    """What was found in N labelled images.

    On COCO's 5,000 validation images, with 100 boxes each, it takes 16 MB.

    Args:
        rows: what :class:`~kornia_mvit.evaluation.coco.CocoMetrics` has stored, by the names of its states.
        names: of the images.
        num_classes: K.
        worst: the images with the lowest scores, the lowest first; half as many as are asked for.

    Raises:
        ValueError: for no images.
    """

    example_type: ClassVar[type] = DetectionExample
    examples_share: ClassVar[int] = 2

    rows: dict[str, Tensor]
    names: list[str]
    num_classes: int
    worst: list[DetectionExample] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("an evaluation needs one image or more")

    def __len__(self) -> int:
        return len(self.names)

    def metrics(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what :func:`detection_metrics` does."""
        return detection_metrics(self, class_names)

    def summary(self, metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """Return the numbers to see first."""
        known, count = metrics["map_classes"], metrics["classes"]
        over = f", over the {known:,} of {count:,} classes that have objects" if known < count else ""
        return [
            ("mAP", percent(metrics["map"]), f"mean of IoU 0.5 to 0.95, as COCO has it{over}"),
            ("AP50", percent(metrics["map_50"]), "at IoU 0.5"),
            ("AP75", percent(metrics["map_75"]), "at IoU 0.75"),
            ("Recall", percent(metrics["mar_100"]), "of IoU 0.5 to 0.95, with 100 boxes an image"),
            ("Images", f"{metrics['images']:,}", f"{metrics['truths']:,} objects of {count:,} classes"),
        ]

    def sections(self, metrics: Mapping[str, Any], names: Sequence[str], colours: Colours | None) -> list[Section]:
        """Show precision and recall, classes, sizes and the worst images."""
        weakest = parts.weakest(metrics["per_class"], "ap")
        text = f"What is in the image, and what was found with a score of {SURE:.0%} at least, of the images where the "
        text += "two fit least: F1 is twice the right boxes over all boxes of both. Ignored truths are grey. Look for "
        text += "wrong or missing labels here first."
        return [
            _precision(metrics["precision"], weakest),
            _classes(weakest),
            _sizes(metrics["per_size"]),
            Section("Worst images", parts.gallery(text, self.worst, names)),
        ]

    def examples(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the names and scores of the worst images."""
        return [{"image": one.name, "f1": one.score} for one in self.worst]

    def _draw(
        self, examples: Sequence[DetectionExample], names: Sequence[str] | None, colours: Colours | None
    ) -> "Image.Image":
        """Draw images with what is in them, and with what was found, side by side."""
        return stack_rows([one.draw(names) for one in examples], ("truth", f"found at {SURE:.0%}"))


class DetectionCollector(BaseCollector[DetectionEvaluation]):
    """Takes in what was found, batch by batch, and keeps small pictures of the worst images.

    A batch's outputs are ``detections``, for each image ``boxes`` (n, 4) in the pixels of its file, ``scores`` and
    ``labels`` (n,); and ``num_classes``. The images are as they were stored, with their boxes.

    Args:
        worst: images to show: half as many.
    """

    kind = DetectionEvaluation
    output = "detections"

    def add(self, outputs: Mapping[str, Any], batch: Batch, preprocess: Preprocess | None = None) -> None:
        """Take in a batch; ValueError if it has no boxes."""
        found = [{name: value.detach().cpu() for name, value in one.items()} for one in outputs["detections"]]
        truths = [
            {name: value.cpu() if isinstance(value, Tensor) else value for name, value in one.items()}
            for one in truths_of(batch)
        ]
        metrics = CocoMetrics(tuple(map(str, range(outputs["num_classes"]))))
        metrics.update(found, truths)
        names = self._names(batch)
        self._parts.append(DetectionEvaluation(metrics.stored(), names, outputs["num_classes"]))
        for i, (one, truth) in enumerate(zip(found, truths, strict=True)):
            score = image_f1(one, truth)
            self._offer(score, partial(_example, batch, i, one, truth, score, names[i]))


def _example(
    batch: Batch, index: int, found: Mapping[str, Tensor], truth: Mapping[str, Any], score: float, name: str
) -> DetectionExample:
    image = thumbnail(batch, index, None, _SIDE)
    height, width = sizes_of(batch)[1][index].tolist()
    factor = torch.tensor([image.shape[-1] / width, image.shape[-2] / height]).repeat(2)
    sure = found["scores"] >= SURE
    return DetectionExample(
        image,
        {"boxes": truth["boxes"].float() * factor, "labels": truth["labels"], "ignore": truth["ignore"]},
        {
            "boxes": found["boxes"][sure].float() * factor,
            "labels": found["labels"][sure],
            "scores": found["scores"][sure],
        },
        score,
        name,
    )


# ----------------------------------------------------------------------------------------------------------- numbers


def image_f1(found: Mapping[str, Tensor], truth: Mapping[str, Any], sure: float = SURE, iou: float = 0.5) -> float:
    """Return how well what was found in an image fits what is in it: 2 right / (found + truths).

    A box is right that overlaps a truth of its class, which no better one took, by the IoU. Truths to ignore, and boxes
    that overlap one of their class, do not count.

    Args:
        found: ``boxes`` (p, 4), ``labels`` and ``scores`` (p,).
        truth: ``boxes`` (t, 4), ``labels`` and perhaps ``ignore`` and ``crowd`` (t,).
        sure: least score of the boxes to look at.
        iou: least overlap.

    Returns:
        From 0 to 1; NaN where there is nothing and nothing was found.

    Example:
        >>> box, label = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0])
        >>> truth = {'boxes': box, 'labels': label}
        >>> image_f1({'boxes': box, 'labels': label, 'scores': torch.tensor([0.9])}, truth)
        1.0
    """
    chosen = (found["scores"] >= sure).nonzero().flatten()
    chosen = chosen[found["scores"][chosen].argsort(descending=True, stable=True)]
    labels = truth["labels"]
    off = torch.zeros(len(labels), dtype=torch.bool)
    for name in ("ignore", "crowd"):
        if truth.get(name) is not None:
            off = off | truth[name]
    overlap = box_iou(found["boxes"][chosen].float(), truth["boxes"].float())
    overlap = overlap * (found["labels"][chosen][:, None] == labels)
    free, right, wrong = ~off, 0, 0
    for row in overlap:
        candidates = row * free
        if len(row) and float(candidates.max()) >= iou:
            free[int(candidates.argmax())] = False
            right += 1
        elif not (row[off] >= iou).any():
            wrong += 1
    total = right + wrong + int((~off).sum())
    return 2 * right / total if total else math.nan


def detection_metrics(evaluation: DetectionEvaluation, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the numbers of a report, as numbers, strings, lists and dictionaries.

    Where a number is not defined it is None: the average precision of a class without truths.

    Args:
        evaluation: what was found.
        class_names: names of the K classes; their numbers are used when None.

    Returns:
        ``images``, ``classes``, ``truths`` (those that count), ``map``, ``map_50``, ``map_75``, ``mar_100``, all over
        ``map_classes`` classes, those that have truths, a row for each size of objects in ``per_size`` and for each
        class in ``per_class``, and in ``precision`` the precision at IoU 0.5 for recalls from 0 to 1, of each class and
        in the mean.

    Raises:
        ValueError: if there are not K names.
    """
    k = evaluation.num_classes
    names = distinct_names(evaluation.name_classes(class_names), range(k))
    scores = coco_scores(evaluation.rows, tuple(map(str, range(k))))
    labels, kinds = evaluation.rows["truth_kinds"].unbind(-1)
    counted = kinds == 0
    areas = evaluation.rows["truths"][:, 4]
    said = evaluation.rows["prediction_labels"][evaluation.rows["predictions"][:, 4] >= SURE]
    ap, ap_50 = (torch.tensor([scores.get(f"{name}/{i}", math.nan) for i in range(k)]) for name in ("ap", "ap_50"))
    truths, found = labels[counted].bincount(minlength=k), said.bincount(minlength=k)
    per_class = parts.class_rows(names, ap=ap, ap_50=ap_50, truths=truths, found=found)
    per_size = [
        {
            "size": size,
            "ap": number(scores[f"map_{size}"]),
            "truths": int((counted & (areas >= low) & (areas < high)).sum()),
        }
        for size, (low, high) in _SIZES.items()
    ]
    known = {names[i]: scores[f"precision_50/{i}"] for i in range(k) if f"precision_50/{i}" in scores}
    mean = torch.stack(list(known.values())).mean(0) if known else torch.zeros(101)
    return {
        "images": len(evaluation),
        "classes": k,
        "truths": int(counted.sum()),
        **{name: number(scores[name]) for name in ("map", "map_50", "map_75", "mar_100")},
        "map_classes": len(known),
        "per_size": per_size,
        "per_class": per_class,
        "precision": {"mean": _rounded(mean), "classes": {name: _rounded(values) for name, values in known.items()}},
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


# ---------------------------------------------------------------------------------------------------------- sections


def _precision(precision: Mapping[str, Any], weakest: parts.Rows) -> Section:
    curves = precision["classes"]
    drawn = [row["class"] for row in weakest if row["ap"] is not None][:_LINES]
    data = charts.draw_precision_recall({name: curves[name] for name in drawn}, precision["mean"])
    text = "Boxes are taken in the order of their scores. Recall is the share of the objects that were found so far, "
    text += "precision the share of the boxes that are right, at IoU 0.5; the area below a curve is AP50."
    caption = f"The {_LINES} weakest of {len(curves):,} classes." if len(curves) > _LINES else "All classes."
    chart = Picture(data, "Precision over recall", [caption], file="precision_recall")
    return Section("Precision and recall", [Text([text]), chart])


def _classes(weakest: parts.Rows) -> Section:
    columns = {"class": "class", "mAP": "ap", "AP50": "ap_50", "objects": "truths", f"found at {SURE:.0%}": "found"}
    text = f"The last column counts the boxes with a score of {SURE:.0%} at least, right or wrong."
    data = charts.draw_scores(weakest[: parts.NAMED], "ap", "average precision, IoU 0.5 to 0.95")
    chart = Picture(data, "Average precision of classes")
    return parts.classes([text], chart, "average precision", weakest, columns, _ROWS)


def _sizes(per_size: parts.Rows) -> Section:
    what = {"small": "below 32×32 pixels", "medium": "to 96×96", "large": "above"}
    rows = [{**row, "size": f"{row['size']}, {what[row['size']]}"} for row in per_size]
    text = "Areas are of the objects, in pixels of the original images."
    return Section("Sizes", [Text([text]), parts.table(rows, {"size": "size", "mAP": "ap", "objects": "truths"})])
