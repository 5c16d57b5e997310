"""What a model for segmentation said of labelled images, in little memory, and the numbers that follow from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.batch import Batch
from kornia_mvit.evaluation.classification import name_of, name_of_image, thumbnail

__all__ = [
    "Example",
    "SegmentationCollector",
    "SegmentationEvaluation",
    "bootstrap_intervals",
    "class_iou",
    "image_iou",
    "segmentation_metrics",
]

# N images, K classes
_DRAWS = 1000
_SIDE = 224  # pixels of small pictures
_NONE = 65535  # in the place of pixels of no class


@dataclass
class Example:
    """An image with the classes of its pixels, small enough to be kept.

    Args:
        image: (3, h, w), uint8.
        truth: (h, w), int32; 65535 where pixels are ignored.
        predicted: (h, w), int32; 65535 where the image was cut off.
        score: mean IoU over the classes that truth or prediction have.
        name: what the image is found by, such as its path.
    """

    image: Tensor
    truth: Tensor
    predicted: Tensor
    score: float
    name: str


@dataclass
class SegmentationEvaluation:
    """How the pixels of N labelled images were classified.

    All numbers of a report follow from these. On 2,000 images of 150 classes they take 4 MB.

    Args:
        right: (N, K) pixels of each class that were found, int32.
        truth: (N, K) pixels of each class, int32.
        predicted: (N, K) pixels taken for each class, int32.
        confusion: (K, K) pixels of all images, ``confusion[truth][predicted]``, int64.
        names: of the images.
        worst: the images with the lowest scores, the lowest first.
        best: those with the highest, the highest first.

    Raises:
        ValueError: for no images, or shapes that do not fit.
    """

    right: Tensor
    truth: Tensor
    predicted: Tensor
    confusion: Tensor
    names: list[str]
    worst: list[Example] = field(default_factory=list)
    best: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, k = len(self.names), len(self.confusion)
        if n == 0:
            raise ValueError("an evaluation needs one image or more")
        for name in ("right", "truth", "predicted"):
            if (shape := getattr(self, name).shape) != (n, k):
                raise ValueError(f"expected {name} of {n} images and {k} classes, got {tuple(shape)}")

    @classmethod
    def concatenate(cls, parts: Sequence["SegmentationEvaluation"], worst: int = 24) -> Self:
        """Make one of several, with the worst and best images of all.

        Raises:
            ValueError: for none, or if they differ in their number of classes.
        """
        if not parts:
            raise ValueError("no evaluations to put together")
        if len(found := {part.num_classes for part in parts}) > 1:
            raise ValueError(f"evaluations of {' and '.join(map(str, sorted(found)))} classes do not go together")
        keep = _kept(worst)
        ranked = _rank(
            [one for part in parts for one in part.worst], [one for part in parts for one in part.best], keep
        )
        return cls(
            torch.cat([part.right for part in parts]),
            torch.cat([part.truth for part in parts]),
            torch.cat([part.predicted for part in parts]),
            torch.stack([part.confusion for part in parts]).sum(0),
            [name for part in parts for name in part.names],
            *ranked,
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.confusion)

    @property
    def union(self) -> Tensor:
        """(N, K) pixels that are of a class or were taken for it."""
        return self.truth + self.predicted - self.right

    def to_dict(self) -> dict[str, Any]:
        """Give tensors, numbers and strings in dictionaries and lists, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make one from what :meth:`to_dict` gave."""
        examples = {name: [Example(**one) for one in values[name]] for name in ("worst", "best")}
        return cls(**{**values, **examples})


class SegmentationCollector:
    """Takes in what was predicted, batch by batch, and keeps small pictures of the worst and best images.

    Args:
        worst: images to show: a third of them are the worst, a third the best.
    """

    def __init__(self, worst: int = 24) -> None:
        self._keep = _kept(worst)
        self._parts: list[SegmentationEvaluation] = []
        self._worst: list[Example] = []
        self._best: list[Example] = []
        self._count = 0

    def add(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """Take in a batch.

        Args:
            outputs: ``counts`` (B, K, K), pixels of each image by their class and by what they were taken for, and
                ``prediction`` (B, H, W), the class of each pixel.
            batch: the images as they were stored, with their masks.

        Raises:
            ValueError: if the batch has no masks.
        """
        if batch.mask is None:
            raise ValueError("an evaluation needs masks; this batch has none")
        counts = outputs["counts"].detach().cpu()
        right, truth, predicted = counts.diagonal(dim1=1, dim2=2), counts.sum(2), counts.sum(1)
        scores = image_iou(right, truth + predicted - right)
        names = [name_of_image(batch, i, self._count + i) for i in range(len(batch))]
        self._count += len(batch)
        small = [each.to(torch.int32) for each in (right, truth, predicted)]
        self._parts.append(SegmentationEvaluation(small[0], small[1], small[2], counts.sum(0), names))
        for i, score in enumerate(scores.tolist()):
            wanted = _has_place(self._worst, score, self._keep, 1) or _has_place(self._best, score, self._keep, -1)
            if math.isnan(score) or not wanted:  # no other has to be made small
                continue
            one = _example(batch, i, outputs["prediction"][i], counts.shape[1], score, names[i])
            self._worst, self._best = _rank([*self._worst, one], [*self._best, one], self._keep)

    def evaluation(self) -> SegmentationEvaluation | None:
        """Give all that was taken in; None for nothing."""
        if not self._parts:
            return None
        whole = SegmentationEvaluation.concatenate(self._parts)
        whole.worst, whole.best = list(self._worst), list(self._best)
        return whole


def _rank(worst: Sequence[Example], best: Sequence[Example], keep: int) -> tuple[list[Example], list[Example]]:
    """Sort both by score, and keep the first of each."""
    low = sorted(worst, key=lambda one: one.score)[:keep]
    return low, sorted(best, key=lambda one: -one.score)[:keep]


def _kept(worst: int) -> int:
    return -(-worst // 3)


def _has_place(known: Sequence[Example], score: float, keep: int, sign: int) -> bool:
    """Tell whether a score is among the first, ascending with the sign 1, descending with -1."""
    return len(known) < keep or (keep > 0 and sign * score < sign * known[-1].score)


def _example(
    batch: Batch,
    index: int,
    prediction: Tensor,
    num_classes: int,
    score: float,
    name: str,
) -> Example:
    assert batch.mask is not None
    image = thumbnail(batch, index, None, _SIDE)
    masks = [batch.mask[index].cpu().long(), prediction.detach().cpu().long()]
    if batch.size is not None:
        height, width = batch.size[index].tolist()
        masks = [mask[:height, :width] for mask in masks]
    size = (image.shape[-2], image.shape[-1])
    masks = [mask.where((mask >= 0) & (mask < num_classes), _NONE) for mask in masks]
    truth, predicted = (
        F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].to(torch.int32) for mask in masks
    )
    return Example(image, truth, predicted, score, name)


# ----------------------------------------------------------------------------------------------------------- numbers


def class_iou(counts: Tensor) -> Tensor:
    """Give the intersection over union of each class.

    Args:
        counts: (K, K) pixels of each class, by what they were taken for.

    Returns:
        (K,), NaN for classes that neither labels nor predictions have.

    Example:
        >>> class_iou(torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        tensor([0.7500, 0.5000,    nan])
    """
    right = counts.diagonal()
    return right / (counts.sum(0) + counts.sum(1) - right)


def image_iou(right: Tensor, union: Tensor) -> Tensor:
    """Give the mean IoU of each image over the classes that are in it or were predicted.

    Args:
        right: (N, K) pixels of each class that were found.
        union: (N, K) pixels that are of a class or were taken for it.

    Returns:
        (N,), NaN for images without a labelled pixel.

    Example:
        >>> image_iou(torch.tensor([[2, 0, 0]]), torch.tensor([[4, 1, 0]]))
        tensor([0.2500])
    """
    return (right.double() / union).nanmean(1).float()


def bootstrap_intervals(right: Tensor, union: Tensor, draws: int = _DRAWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Give 95 % intervals of each class's IoU and of their mean, by drawing images with replacement.

    They say how far the numbers would vary with other images of the same kind, not with other training runs.

    Args:
        right: (N, K) pixels of each class that were found, of each image; or their differences, see below.
        union: (N, K) pixels that are of a class or were taken for it.
        draws: how many sets of N images are drawn.
        seed: of the draws.

    Returns:
        (K, 2) and (2,): lower and upper ends; NaN for classes that were not there.

    References:
        B. Efron: Bootstrap methods: another look at the jackknife, Annals of Statistics 7, 1979.
    """
    iou = resample_iou(right, union, draws, seed)
    ends = torch.tensor([0.025, 0.975], dtype=iou.dtype)
    return iou.nanquantile(ends, 0).T, iou.nanmean(1).nanquantile(ends)


def resample_iou(right: Tensor, union: Tensor, draws: int = _DRAWS, seed: int = 0) -> Tensor:
    """Give each class's IoU (draws, K) over sets of images that are drawn with replacement."""
    n = len(right)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(n, (draws, n), generator=generator)
    times = torch.zeros(draws, n, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(draws, n, dtype=torch.float64)
    )
    return (times @ right.double()) / (times @ union.double())


def segmentation_metrics(
    evaluation: SegmentationEvaluation, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Compute what a report tells, as numbers, strings, lists and dictionaries.

    Where a number is not defined it is None: the IoU of a class that is neither in the labels nor predicted.

    Args:
        evaluation: what was predicted.
        class_names: names of the K classes; their numbers stand in when None.

    Returns:
        ``images``, ``classes``, ``pixels`` (labelled ones), ``miou`` (``value`` and its 95 % interval over images,
        ``low`` to ``high``) over ``miou_classes`` classes, those that are labelled or predicted, ``accuracy`` (share of
        the pixels), ``class_accuracy`` (mean recall) over ``labelled_classes`` classes, a row for each class in
        ``per_class`` and ``confusion[truth][predicted]`` in pixels.

    Raises:
        ValueError: if there are not K names.
    """
    k = evaluation.num_classes
    if class_names is not None and len(class_names) != k:
        raise ValueError(f"{len(class_names)} class names for {k} classes")
    confusion = evaluation.confusion.double()
    total = float(confusion.sum())
    right, truth, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    iou, recall, precision = class_iou(confusion), right / truth, right / said
    ends, mean_ends = bootstrap_intervals(evaluation.right, evaluation.union)
    images = (evaluation.truth > 0).sum(0)
    per_class = [
        {
            "class": name_of(i, class_names),
            "iou": _number(iou[i]),
            "iou_low": _number(ends[i, 0]),
            "iou_high": _number(ends[i, 1]),
            "recall": _number(recall[i]),
            "precision": _number(precision[i]),
            "pixels": int(truth[i]),
            "share": _number(truth[i] / max(total, 1)),
            "predicted_share": _number(said[i] / max(total, 1)),
            "images": int(images[i]),
        }
        for i in range(k)
    ]
    return {
        "images": len(evaluation),
        "classes": k,
        "pixels": int(total),
        "miou": {"value": _number(iou.nanmean()), "low": _number(mean_ends[0]), "high": _number(mean_ends[1])},
        "miou_classes": int((~iou.isnan()).sum()),
        "accuracy": _number(right.sum() / max(total, 1)),
        "class_accuracy": _number(recall.nanmean()),
        "labelled_classes": int((truth > 0).sum()),
        "per_class": per_class,
        "confusion": evaluation.confusion.tolist(),
    }


def _number(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None
