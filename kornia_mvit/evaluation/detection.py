"""What a detector found in labelled images, and the numbers that follow from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from kornia_mvit.batch import Batch
from kornia_mvit.data.formats.coco import distinct_names
from kornia_mvit.evaluation.classification import name_of, name_of_image, thumbnail
from kornia_mvit.evaluation.coco import CocoMetrics, truths_of
from kornia_mvit.ops.geometry import box_iou

__all__ = ["DetectionCollector", "DetectionEvaluation", "DetectionExample", "detection_metrics", "image_f1"]

# N images, T truths, P predictions, K classes
SURE = 0.3  # least score of what is shown and counted as found
_SIDE = 320  # pixels of small pictures
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


@dataclass
class DetectionEvaluation:
    """What was found in N labelled images.

    All numbers of a report follow from these. On COCO's 5,000 validation images, with 100 boxes each, they take 16 MB.

    Args:
        rows: what :class:`~kornia_mvit.evaluation.coco.CocoMetrics` has stored, by the names of its states.
        names: of the images.
        num_classes: K.
        worst: the images with the lowest scores, the lowest first.

    Raises:
        ValueError: for no images.
    """

    rows: dict[str, Tensor]
    names: list[str]
    num_classes: int
    worst: list[DetectionExample] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("an evaluation needs one image or more")

    @classmethod
    def concatenate(cls, parts: Sequence["DetectionEvaluation"], worst: int = 24) -> Self:
        """Make one of several, with the worst images of all.

        Raises:
            ValueError: for none, or if they differ in their number of classes.
        """
        if not parts:
            raise ValueError("no evaluations to put together")
        if len(found := {part.num_classes for part in parts}) > 1:
            raise ValueError(f"evaluations of {' and '.join(map(str, sorted(found)))} classes do not go together")
        return cls(
            {name: torch.cat([part.rows[name] for part in parts]) for name in parts[0].rows},
            [name for part in parts for name in part.names],
            parts[0].num_classes,
            _lowest([one for part in parts for one in part.worst], worst),
        )

    def __len__(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Give tensors, numbers and strings in dictionaries and lists, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make one from what :meth:`to_dict` gave."""
        return cls(**{**values, "worst": [DetectionExample(**one) for one in values["worst"]]})


class DetectionCollector:
    """Takes in what was found, batch by batch, and keeps small pictures of the worst images.

    Args:
        worst: images to show: half as many.
    """

    def __init__(self, worst: int = 24) -> None:
        self._keep = -(-worst // 2)
        self._metrics: CocoMetrics | None = None
        self._names: list[str] = []
        self._worst: list[DetectionExample] = []

    def add(self, outputs: Mapping[str, Any], batch: Batch) -> None:
        """Take in a batch.

        Args:
            outputs: ``detections``, for each image ``boxes`` (n, 4) in the pixels of its file, ``scores`` and
                ``labels`` (n,); and ``num_classes``.
            batch: the images as they were stored, with their boxes.

        Raises:
            ValueError: if the batch has no boxes.
        """
        found = [{name: value.detach().cpu() for name, value in one.items()} for one in outputs["detections"]]
        truths = [
            {name: value.cpu() if isinstance(value, Tensor) else value for name, value in one.items()}
            for one in truths_of(batch)
        ]
        if self._metrics is None:
            self._metrics = CocoMetrics(tuple(map(str, range(outputs["num_classes"]))))
        self._metrics.update(found, truths)
        for i, (one, truth) in enumerate(zip(found, truths, strict=True)):
            name = name_of_image(batch, i, len(self._names))
            self._names.append(name)
            score = image_f1(one, truth)
            if math.isnan(score) or not self._has_place(score):
                continue
            self._worst = _lowest([*self._worst, _example(batch, i, one, truth, score, name)], self._keep)

    def _has_place(self, score: float) -> bool:
        return len(self._worst) < self._keep or (self._keep > 0 and score < self._worst[-1].score)

    def evaluation(self) -> DetectionEvaluation | None:
        """Give all that was taken in; None for nothing."""
        if self._metrics is None:
            return None
        return DetectionEvaluation(
            self._metrics.stored(), list(self._names), len(self._metrics.class_names), list(self._worst)
        )


def _lowest(examples: Sequence[DetectionExample], keep: int) -> list[DetectionExample]:
    return sorted(examples, key=lambda one: one.score)[:keep]


def _example(
    batch: Batch, index: int, found: Mapping[str, Tensor], truth: Mapping[str, Any], score: float, name: str
) -> DetectionExample:
    image = thumbnail(batch, index, None, _SIDE)
    if batch.original_size is not None:
        height, width = batch.original_size[index].tolist()
    elif batch.size is not None:
        height, width = batch.size[index].tolist()
    else:
        height, width = batch.image.shape[-2:]
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
    """Give how well what was found in an image fits what is in it: 2 right / (found + truths).

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
    """Compute what a report tells, as numbers, strings, lists and dictionaries.

    Where a number is not defined it is None: the average precision of a class without truths.

    Args:
        evaluation: what was found.
        class_names: names of the K classes; their numbers stand in when None.

    Returns:
        ``images``, ``classes``, ``truths`` (those that count), ``map``, ``map_50``, ``map_75``, ``mar_100``, all over
        ``map_classes`` classes, those that have truths, a row for each size of objects in ``per_size`` and for each
        class in ``per_class``, and in ``precision`` the precision at IoU 0.5 for recalls from 0 to 1, of each class and
        in the mean.

    Raises:
        ValueError: if there are not K names.
    """
    k = evaluation.num_classes
    if class_names is not None and len(class_names) != k:
        raise ValueError(f"{len(class_names)} class names for {k} classes")
    class_names = None if class_names is None else distinct_names(class_names, range(k))
    metrics = CocoMetrics(tuple(map(str, range(k))))
    metrics.restore(evaluation.rows)
    scores = metrics.compute()
    labels, kinds = evaluation.rows["truth_kinds"].unbind(-1)
    counted = kinds == 0
    areas = evaluation.rows["truths"][:, 4]
    said = evaluation.rows["prediction_labels"][evaluation.rows["predictions"][:, 4] >= SURE]
    truths, found = labels[counted].bincount(minlength=k).tolist(), said.bincount(minlength=k).tolist()
    per_class = [
        {
            "class": name_of(i, class_names),
            "ap": _number(scores.get(f"ap/{i}")),
            "ap_50": _number(scores.get(f"ap_50/{i}")),
            "truths": truths[i],
            "found": found[i],
        }
        for i in range(k)
    ]
    per_size = [
        {
            "size": size,
            "ap": _number(scores[f"map_{size}"]),
            "truths": int((counted & (areas >= low) & (areas < high)).sum()),
        }
        for size, (low, high) in _SIZES.items()
    ]
    known = {name_of(i, class_names): scores[f"precision_50/{i}"] for i in range(k) if f"precision_50/{i}" in scores}
    mean = torch.stack(list(known.values())).mean(0) if known else torch.zeros(101)
    return {
        "images": len(evaluation),
        "classes": k,
        "truths": int(counted.sum()),
        **{name: _number(scores[name]) for name in ("map", "map_50", "map_75", "mar_100")},
        "map_classes": len(known),
        "per_size": per_size,
        "per_class": per_class,
        "precision": {"mean": _list(mean), "classes": {name: _list(values) for name, values in known.items()}},
    }


def _number(value: Tensor | None) -> float | None:
    return None if value is None or not value.isfinite() else round(float(value), 6)


def _list(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
