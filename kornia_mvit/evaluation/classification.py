"""What a classifier predicted for labelled images, in little memory, and the numbers and pictures made of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from kornia_mvit.batch import Batch
from kornia_mvit.draw import charts
from kornia_mvit.draw.images import draw_predictions
from kornia_mvit.draw.sheets import to_picture
from kornia_mvit.evaluation import parts
from kornia_mvit.evaluation.base import BaseCollector, BaseEvaluation, Colours, thumbnail
from kornia_mvit.evaluation.page import Part, Picture, Section, Text
from kornia_mvit.evaluation.parts import number, percent
from kornia_mvit.ops.intervals import wilson_interval
from kornia_mvit.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Collector", "Evaluation", "Mistake", "classification_metrics"]

# N images, K classes, k = min(5, K)
_TOP = 5
_BINS = 15
_SIDE = 160  # pixels of small pictures


@dataclass
class Mistake:
    """An image that was taken for another class.

    Args:
        image: (3, h, w), uint8, small enough to be kept.
        label: the truth.
        probabilities: (K,).
        name: what the image is found by, such as its path.
    """

    image: Tensor
    label: int
    probabilities: Tensor
    name: str

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """Its probability."""
        return float(self.probabilities.max())

    @property
    def score(self) -> float:
        """The confidence, by which mistakes are sorted."""
        return self.confidence

    def draw(self, names: Sequence[str], colours: Colours | None = None) -> "Image.Image":
        """Return the image as a Pillow image."""
        return to_picture(self.image)

    def caption(self, names: Sequence[str]) -> tuple[str, list[str]]:
        """Return what the image shows, and lines on what was predicted and what is true."""
        truth, predicted, share = names[self.label], names[self.predicted], self.probabilities.tolist()
        lines = [f"{predicted}: {percent(self.confidence)}", f"is {truth} ({percent(share[self.label])})"]
        others = [i for i in self.probabilities.topk(min(3, len(names))).indices.tolist() if i != self.label]
        lines += [f"or {names[i]} ({percent(share[i])})" for i in others[1:2]]
        return f"An image of {truth} taken for {predicted}", lines


@dataclass
class Evaluation(BaseEvaluation):
    """What was predicted for N labelled images: the five most probable classes of each, and its loss.

    On 50,000 images and 1,000 classes it takes 4 MB, where all probabilities would take 200 MB.

    Args:
        label: (N,), the truth.
        top_class: (N, k) classes, the most probable first.
        top_probability: (N, k).
        loss: (N,) cross-entropy in nats.
        num_classes: K.
        mistakes: the worst of them, the most confident first.

    Raises:
        ValueError: for fewer than two classes, no images, labels that are no class, or shapes that do not fit.

    Example:
        >>> evaluation = Evaluation.from_logits(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> evaluation.predicted, evaluation.right
        (tensor([0, 1]), tensor([ True, False]))
    """

    example_type: ClassVar[type] = Mistake
    example_lists: ClassVar[Mapping[str, int]] = {"mistakes": -1}

    label: Tensor
    top_class: Tensor
    top_probability: Tensor
    loss: Tensor
    num_classes: int
    mistakes: list[Mistake] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, k = len(self.label), min(_TOP, self.num_classes)
        if self.num_classes < 2:
            raise ValueError(f"{self.num_classes} class; an evaluation needs two or more")
        if n == 0:
            raise ValueError("an evaluation needs one image or more")
        if self.label.shape != (n,) or self.loss.shape != (n,):
            raise ValueError(
                f"expected labels and losses of shape (N,), got {tuple(self.label.shape)} and {tuple(self.loss.shape)}"
            )
        if self.top_class.shape != (n, k) or self.top_probability.shape != (n, k):
            raise ValueError(f"expected the top {k} of {n} images, got {tuple(self.top_class.shape)}")
        low, high = int(self.label.min()), int(self.label.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels from {low} to {high} are not among {self.num_classes} classes counted from 0")

    @classmethod
    def from_logits(cls, logits: Tensor, label: Tensor) -> Self:
        """Return the evaluation of (N, K) logits and (N,) labels, or (N, K) soft ones, whose largest counts.

        Raises:
            ValueError: as the class does.
        """
        if logits.ndim != 2 or len(logits) != len(label):
            raise ValueError(f"expected (N, K) logits and N labels, got {tuple(logits.shape)} and {len(label)}")
        hard = (label.argmax(1) if label.is_floating_point() else label).detach().cpu().long()
        logits = logits.detach().float().cpu()
        top = _probabilities(logits).topk(min(_TOP, logits.shape[1]), 1)
        if len(hard) and 0 <= int(hard.min()) and int(hard.max()) < logits.shape[1]:
            loss = F.cross_entropy(logits, hard, reduction="none")
        else:
            loss = torch.zeros(len(hard))  # the class refuses such labels
        return cls(hard, top.indices, top.values, loss, logits.shape[1])

    def __len__(self) -> int:
        return len(self.label)

    @property
    def predicted(self) -> Tensor:
        """(N,) most probable classes."""
        return self.top_class[:, 0]

    @property
    def confidence(self) -> Tensor:
        """(N,) probabilities of the most probable classes."""
        return self.top_probability[:, 0]

    @property
    def right(self) -> Tensor:
        """(N,) whether the most probable class is the truth."""
        return self.predicted == self.label

    def metrics(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what :func:`classification_metrics` does."""
        return classification_metrics(self, class_names)

    def summary(self, metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """Return the numbers to see first."""
        tiles = []
        for name, text in (("top1", "Accuracy"), ("top5", "Among the top 5")):
            if name in metrics:
                share = metrics[name]
                interval = f"95\u00a0% interval {percent(share['low'])} to {percent(share['high'])}"
                tiles.append((text, percent(share["value"]), interval))
        images = f"of {metrics['images']:,} images, {metrics['classes']:,} classes"
        loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.3f}"
        return [
            *tiles,
            ("Mistakes", f"{metrics['mistakes']:,}", images),
            ("Mean F1", percent(metrics["f1"]), f"each of {metrics['mean_classes']:,} classes counts alike"),
            ("Cross-entropy", loss, "mean, in nats"),
            ("Calibration error", percent(metrics["calibration_error"]), "expected, over 15 bins of confidence"),
        ]

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        """Tell of losses that are not finite."""
        count = metrics["not_finite"]
        text = f"The loss of {count:,} images is not finite: the training diverged, or an image is broken."
        return [text] if count else []

    def sections(self, metrics: Mapping[str, Any], names: Sequence[str], colours: Colours | None) -> list[Section]:
        """Show confusions, classes, reliability and the worst mistakes."""
        confusion = torch.tensor(metrics["confusion"])
        return [
            parts.confusion_matrix(confusion, names, "images", "Numbers are images."),
            _classes(metrics),
            _reliability(metrics),
            Section("Worst mistakes", self._mistakes(metrics, names)),
        ]

    def _mistakes(self, metrics: Mapping[str, Any], names: Sequence[str]) -> list[Part]:
        count, shown = metrics["mistakes"], len(self.mistakes)
        if not count:
            return [Text([f"There is none: all {metrics['images']:,} images were classified rightly."])]
        if not shown:
            return [Text([f"No pictures of the {count:,} mistakes were kept."])]
        which = f"The most confident {shown} of {count:,} mistakes"
        which = "All mistakes, the most confident first" if shown == count else which
        text = f"{which}: what was predicted, what it is, and the probability of each. "
        text += "Look for wrong labels here first."
        return parts.gallery(text, self.mistakes, names, wide=False)

    def examples(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the names, classes and probabilities of the worst mistakes."""
        return [
            {
                "image": one.name,
                "truth": names[one.label],
                "predicted": names[one.predicted],
                "confidence": one.confidence,
                "truth_probability": float(one.probabilities[one.label]),
            }
            for one in self.mistakes
        ]

    def _draw(self, examples: Sequence[Mistake], names: Sequence[str] | None, colours: Colours | None) -> "Image.Image":
        """Draw the mistakes in a grid, with what was predicted and what is true."""
        side = max(max(one.image.shape[1:]) for one in examples)
        images = torch.stack([_square(one.image, side) for one in examples])
        probabilities = torch.stack([one.probabilities for one in examples])
        label = torch.tensor([one.label for one in examples])
        return draw_predictions(images, probabilities, label, names and [charts.shorten(name, 14) for name in names])


class Collector(BaseCollector[Evaluation]):
    """Takes in ``logits`` (B, K) and labels, batch by batch, and keeps small pictures of the worst mistakes.

    Args:
        worst: mistakes to keep.
    """

    kind = Evaluation
    output = "logits"

    def add(self, outputs: Mapping[str, Any], batch: Batch, preprocess: Preprocess | None = None) -> None:
        """Take in a batch; ValueError if it has no labels, or others than the K classes."""
        if batch.label is None:
            raise ValueError("an evaluation needs labels; this batch has none")
        logits = outputs["logits"]
        part = Evaluation.from_logits(logits, batch.label)
        self._parts.append(part)
        names = self._names(batch)
        wrong = (~part.right).nonzero().flatten()
        order = part.confidence[wrong].argsort(descending=True)[: self.worst]  # so that few pictures are made
        for i in wrong[order].tolist():

            def mistake(i: int = i) -> Mistake:
                probabilities = _probabilities(logits[i].detach().float().cpu())
                return Mistake(thumbnail(batch, i, preprocess, _SIDE), int(part.label[i]), probabilities, names[i])

            self._offer(float(part.confidence[i]), mistake)


def _probabilities(logits: Tensor) -> Tensor:
    """Return softmax, and zeros where a logit is not finite, so that such an image counts as the least confident."""
    return logits.softmax(-1).nan_to_num(0)


def _square(image: Tensor, side: int) -> Tensor:
    """Return an image in the middle of a white square."""
    below, right = side - image.shape[1], side - image.shape[2]
    return F.pad(image, (right // 2, right - right // 2, below // 2, below - below // 2), value=255)


def classification_metrics(evaluation: Evaluation, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the numbers of a report, as numbers, strings, lists and dictionaries.

    Where a number is not defined it is None: the recall of a class without images, the precision of one that was
    never predicted.

    Args:
        evaluation: what was predicted.
        class_names: names of the K classes; their numbers are used when None.

    Returns:
        ``images``, ``classes``, ``mistakes``, ``not_finite`` (images whose logits were not all finite), ``top1`` and,
        for more than five classes, ``top5`` (each with ``right``, ``value`` and its 95 % interval ``low`` to ``high``),
        ``loss`` (mean cross-entropy in nats), ``calibration_error`` (expected, 15 bins of equal width), the means over
        classes ``precision``, ``recall`` and ``f1``, over the ``mean_classes`` that have images or predictions, a row
        for each class in ``per_class``, the bins in ``reliability``, and ``confusion[truth][predicted]`` in images.

    Raises:
        ValueError: if there are not K names.
    """
    count, k = len(evaluation), evaluation.num_classes
    names = evaluation.name_classes(class_names)
    predicted, label, right = evaluation.predicted, evaluation.label, evaluation.right
    confusion = multiclass_confusion_matrix(predicted, label, k)
    support, said, found = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    scores = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    means = {name: number(score(predicted, label, k, average="macro")) for name, score in scores.items()}
    defined = {"precision": said > 0, "recall": support > 0, "f1": said + support > 0}
    columns = {
        name: score(predicted, label, k, average=None).where(defined[name], math.nan) for name, score in scores.items()
    }
    per_class = parts.class_rows(names, support=support, predicted=said, right=found, **columns)
    for row in per_class:
        low, high = wilson_interval(row["right"], row["support"]) if row["support"] else (None, None)
        row |= {"recall_low": low, "recall_high": high}
    confidence = evaluation.confidence.clamp(0, 1)
    shares = {"top1": _share(right)}
    if k > _TOP:
        shares["top5"] = _share((evaluation.top_class == label[:, None]).any(1))
    return {
        "images": count,
        "classes": k,
        "mistakes": count - shares["top1"]["right"],
        "not_finite": int((~evaluation.loss.isfinite()).sum()),
        **shares,
        "loss": number(evaluation.loss.double().mean()),
        "calibration_error": number(binary_calibration_error(confidence, right.long(), n_bins=_BINS)),
        **means,
        "mean_classes": sum(row["f1"] is not None for row in per_class),
        "per_class": per_class,
        "reliability": _bins(confidence, right),
        "confusion": confusion.tolist(),
    }


def _share(right: Tensor) -> dict[str, float]:
    """Return how many images are right, their share, and its interval."""
    count = int(right.sum())
    low, high = wilson_interval(count, len(right))
    return {"right": count, "value": count / len(right), "low": low, "high": high}


def _bins(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:
    """Return the images, mean confidence and accuracy of each bin of confidence."""
    edges = torch.linspace(0, 1, _BINS + 1)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, _BINS - 1)
    bins = []
    for i in range(_BINS):
        chosen = place == i
        bins.append(
            {
                "low": round(float(edges[i]), 6),
                "high": round(float(edges[i + 1]), 6),
                "images": int(chosen.sum()),
                "confidence": number(confidence[chosen].mean()),
                "accuracy": number(right[chosen].float().mean()),
            }
        )
    return bins


# ---------------------------------------------------------------------------------------------------------- sections


def _classes(metrics: Mapping[str, Any]) -> Section:
    rows = parts.weakest(metrics["per_class"], "f1")
    columns: parts.Columns = {
        "class": "class",
        "images": "support",
        "right": "right",
        "recall": "recall",
        "95 % interval": ("recall_low", "recall_high"),
        "precision": "precision",
        "F1": "f1",
        "predicted": "predicted",
    }
    text = "Recall is the accuracy among a class's own images. Precision is the share of the images taken for a class "
    text += "that are of it. F1 is their harmonic mean."
    chart = Picture(charts.draw_per_class(rows[: parts.NAMED]), "Precision, recall and F1 of classes")
    return parts.classes([text], chart, "F1", rows, columns)


def _reliability(metrics: Mapping[str, Any]) -> Section:
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
    data = charts.draw_reliability(metrics["reliability"])
    chart = Picture(data, "Accuracy and number of images by confidence", file="reliability")
    return Section("Reliability", [Text(text), chart])
