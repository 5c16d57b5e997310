"""What a classifier said of labelled images, in little memory, and the numbers that follow from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

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
from kornia_mvit.ops.intervals import wilson_interval
from kornia_mvit.preprocess import Preprocess, antialiased_resize

__all__ = [
    "Collector",
    "Evaluation",
    "Mistake",
    "classification_metrics",
    "name_of",
    "name_of_image",
    "thumbnail",
]

# N images, K classes, k = min(5, K)
_TOP = 5
_BINS = 15
_THUMBNAIL = 160


@dataclass
class Mistake:
    """An image that was taken for something else.

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


@dataclass
class Evaluation:
    """What was predicted for N labelled images: the five most probable classes of each, and its loss.

    All numbers of a report follow from these, so that an evaluation on 50,000 images and 1,000 classes takes 4 MB and
    not 200 MB, and can go into every checkpoint.

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
        """Make one from (N, K) logits and (N,) labels, or (N, K) soft ones, of which the largest is taken.

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

    @classmethod
    def concatenate(cls, parts: Sequence["Evaluation"], worst: int = 24) -> Self:
        """Make one of several, with the worst mistakes of all.

        Raises:
            ValueError: for none, or if they differ in their number of classes.
        """
        if not parts:
            raise ValueError("no evaluations to put together")
        if len(found := {part.num_classes for part in parts}) > 1:
            raise ValueError(f"evaluations of {' and '.join(map(str, sorted(found)))} classes do not go together")
        names = ("label", "top_class", "top_probability", "loss")
        values = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        mistakes = _worst([mistake for part in parts for mistake in part.mistakes], worst)
        return cls(**values, num_classes=parts[0].num_classes, mistakes=mistakes)

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

    def to_dict(self) -> dict[str, Any]:
        """Give tensors, numbers and strings in dictionaries and lists, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make one from what :meth:`to_dict` gave."""
        return cls(**{**values, "mistakes": [Mistake(**mistake) for mistake in values["mistakes"]]})


class Collector:
    """Takes in what was predicted, batch by batch, and keeps small pictures of the worst mistakes.

    Args:
        worst: mistakes to keep.
    """

    def __init__(self, worst: int = 24) -> None:
        self.worst = worst
        self._parts: list[Evaluation] = []
        self._mistakes: list[Mistake] = []
        self._count = 0

    def add(self, logits: Tensor, batch: Batch, preprocess: Preprocess | None = None) -> None:
        """Take in a batch.

        Args:
            logits: (B, K).
            batch: images and labels.
            preprocess: what the values of the images went through, to be undone for looking at.

        Raises:
            ValueError: if the batch has no labels, or others than the K classes.
        """
        if batch.label is None:
            raise ValueError("an evaluation needs labels; this batch has none")
        part = Evaluation.from_logits(logits, batch.label)
        self._parts.append(part)
        wrong = (~part.right).nonzero().flatten()
        for i in wrong[part.confidence[wrong].argsort(descending=True)[: self.worst]].tolist():
            if len(self._mistakes) == self.worst and part.confidence[i] <= self._mistakes[-1].confidence:
                break
            probabilities = _probabilities(logits[i].detach().float().cpu())
            picture = thumbnail(batch, i, preprocess)
            name = name_of_image(batch, i, self._count + i)
            self._mistakes = _worst(
                [*self._mistakes, Mistake(picture, int(part.label[i]), probabilities, name)], self.worst
            )
        self._count += len(batch)

    def evaluation(self) -> Evaluation | None:
        """Give all that was taken in; None for nothing."""
        if not self._parts:
            return None
        whole = Evaluation.concatenate(self._parts)
        whole.mistakes = list(self._mistakes)
        return whole


def _probabilities(logits: Tensor) -> Tensor:
    """Give softmax, and zeros where a logit is not finite, so that such an image counts as the least confident."""
    return logits.softmax(-1).nan_to_num(0)


def _worst(mistakes: Sequence[Mistake], count: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: mistake.confidence, reverse=True)[:count]


def thumbnail(batch: Batch, index: int, preprocess: Preprocess | None, side: int = _THUMBNAIL) -> Tensor:
    """Give an image as (3, h, w) uint8, its longer side ``side`` pixels at most, without what it was padded with."""
    image = batch.image[index].detach().cpu()
    if batch.size is not None:
        height, width = batch.size[index].tolist()
        image = image[:, :height, :width]
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if preprocess is not None and batch.image.is_floating_point():
        image = preprocess.module().undo_values(image)
    image = (image if image.shape[0] in (1, 3) else image[:1]).expand(3, -1, -1)
    scale = side / max(image.shape[1:])
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in image.shape[1:])
        image = antialiased_resize(image[None], (height, width))[0]
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous()


def name_of_image(batch: Batch, index: int, number: int) -> str:
    """Give the path of an image, or its id, or its number where nothing is known of it."""
    meta = {} if batch.meta is None else batch.meta[index]
    if "path" in meta:
        return str(meta["path"])
    return f"id {meta['id']}" if "id" in meta else f"image {number}"


def name_of(index: int, class_names: Sequence[str] | None) -> str:
    """Give the name of a class, or its number where there are no names."""
    return str(index) if class_names is None else class_names[index]


def classification_metrics(evaluation: Evaluation, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Compute what a report tells, as numbers, strings, lists and dictionaries.

    Where a number is not defined it is None: the recall of a class without images, the precision of one that was
    never predicted.

    Args:
        evaluation: what was predicted.
        class_names: names of the K classes; their numbers stand in when None.

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
    if class_names is not None and len(class_names) != k:
        raise ValueError(f"{len(class_names)} class names for {k} classes")
    predicted, label = evaluation.predicted, evaluation.label
    confusion = multiclass_confusion_matrix(predicted, label, k)
    scores = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    means = {name: _number(score(predicted, label, k, average="macro")) for name, score in scores.items()}
    columns = {name: score(predicted, label, k, average=None).tolist() for name, score in scores.items()}
    per_class = []
    for i in range(k):
        support, said, right = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        defined = {"precision": said > 0, "recall": support > 0, "f1": said + support > 0}
        row: dict[str, Any] = {"class": name_of(i, class_names), "support": support, "predicted": said, "right": right}
        row |= {name: round(columns[name][i], 6) if defined[name] else None for name in columns}
        low, high = wilson_interval(right, support) if support else (None, None)
        per_class.append(row | {"recall_low": low, "recall_high": high})
    confidence = evaluation.confidence.clamp(0, 1)
    accuracies = {"top1": int(evaluation.right.sum())}
    if k > _TOP:
        accuracies["top5"] = int((evaluation.top_class == label[:, None]).any(1).sum())
    shares = {}
    for name, right in accuracies.items():
        low, high = wilson_interval(right, count)
        shares[name] = {"right": right, "value": right / count, "low": low, "high": high}
    return {
        "images": count,
        "classes": k,
        "mistakes": count - accuracies["top1"],
        "not_finite": int((~evaluation.loss.isfinite()).sum()),
        **shares,
        "loss": _number(evaluation.loss.double().mean()),
        "calibration_error": _number(binary_calibration_error(confidence, evaluation.right.long(), n_bins=_BINS)),
        **means,
        "mean_classes": sum(row["f1"] is not None for row in per_class),
        "per_class": per_class,
        "reliability": _reliability(confidence, evaluation.right),
        "confusion": confusion.tolist(),
    }


def _number(value: Tensor) -> float | None:
    return round(float(value), 6) if value.isfinite() else None


def _reliability(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:
    """Count images, and average confidence and accuracy, in bins of confidence."""
    edges = torch.linspace(0, 1, _BINS + 1)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, _BINS - 1)
    bins = []
    for i in range(_BINS):
        chosen = place == i
        some = bool(chosen.any())
        bins.append(
            {
                "low": round(float(edges[i]), 6),
                "high": round(float(edges[i + 1]), 6),
                "images": int(chosen.sum()),
                "confidence": _number(confidence[chosen].mean()) if some else None,
                "accuracy": _number(right[chosen].float().mean()) if some else None,
            }
        )
    return bins
