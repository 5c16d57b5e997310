"""What a model for segmentation predicted for labelled images, in little memory, and what a report makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.batch import Batch
from kornia_mvit.draw import charts
from kornia_mvit.draw.images import add_legend, classes_in, draw_segmentation
from kornia_mvit.draw.sheets import png, stack_rows, to_picture
from kornia_mvit.evaluation import parts
from kornia_mvit.evaluation.base import BaseCollector, BaseEvaluation, Colours, thumbnail
from kornia_mvit.evaluation.page import Part, Picture, Section
from kornia_mvit.evaluation.parts import number, percent
from kornia_mvit.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "SegmentationCollector",
    "SegmentationEvaluation",
    "SegmentationExample",
    "bootstrap_intervals",
    "class_iou",
    "image_iou",
    "resample_iou",
    "segmentation_metrics",
]

# N images, K classes
_DRAWS = 1000
_SIDE = 224  # pixels of small pictures
_WIDTH = 200  # pixels, about, that smaller ones are enlarged to
_NONE = 65535  # in the place of pixels of no class


@dataclass
class SegmentationExample:
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

    def draw(self, names: Sequence[str] | None, colours: Colours | None) -> "Image.Image":
        """Draw the image, its labels and the prediction side by side, small ones enlarged by a whole number."""
        times = max(1, round(_WIDTH / self.image.shape[-1]))
        image, truth, predicted = (
            each.repeat_interleave(times, -2).repeat_interleave(times, -1)
            for each in (self.image, self.truth, self.predicted)
        )
        return draw_segmentation(image, [truth, predicted], colours, ignore_index=_NONE)

    def caption(self, names: Sequence[str]) -> tuple[str, list[str]]:
        """Return what the picture shows, and lines on how much of it is right."""
        right = (self.truth == self.predicted)[self.truth != _NONE]
        accuracy = percent(float(right.float().mean())) if len(right) else "–"
        alt = f"An image, its labels and what was predicted: {self.name}"
        return alt, [f"mean IoU {percent(self.score)}", f"{accuracy} of the pixels"]


@dataclass
class SegmentationEvaluation(BaseEvaluation):
    """How the pixels of N labelled images were classified.

    On 2,000 images of 150 classes it takes 4 MB.

    Args:
        right: (N, K) pixels of each class that were found, int32.
        truth: (N, K) pixels of each class, int32.
        predicted: (N, K) pixels taken for each class, int32.
        confusion: (K, K) pixels of all images, ``confusion[truth][predicted]``, int64.
        names: of the images.
        worst: the images with the lowest scores, the lowest first; a third as many as are asked for.
        best: as many with the highest, the highest first.

    Raises:
        ValueError: for no images, or shapes that do not fit.
    """

    example_type: ClassVar[type] = SegmentationExample
    example_lists: ClassVar[Mapping[str, int]] = {"worst": 1, "best": -1}
    examples_share: ClassVar[int] = 3

    right: Tensor
    truth: Tensor
    predicted: Tensor
    confusion: Tensor
    names: list[str]
    worst: list[SegmentationExample] = field(default_factory=list)
    best: list[SegmentationExample] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, k = len(self.names), len(self.confusion)
        if n == 0:
            raise ValueError("an evaluation needs one image or more")
        for name in ("right", "truth", "predicted"):
            if (shape := getattr(self, name).shape) != (n, k):
                raise ValueError(f"expected {name} of {n} images and {k} classes, got {tuple(shape)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:  # type: ignore[override]  # it follows from the confusion matrix
        """K."""
        return len(self.confusion)

    @property
    def union(self) -> Tensor:
        """(N, K) pixels that are of a class or were taken for it."""
        return self.truth + self.predicted - self.right

    @classmethod
    def _join(cls, name: str, values: Sequence[Any]) -> Any:
        return torch.stack(list(values)).sum(0) if name == "confusion" else super()._join(name, values)

    def metrics(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what :func:`segmentation_metrics` does."""
        return segmentation_metrics(self, class_names)

    def summary(self, metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """Return the numbers to see first."""
        mean, known, count = metrics["miou"], metrics["miou_classes"], metrics["classes"]
        interval = f"95\u00a0% interval over images {percent(mean['low'])} to {percent(mean['high'])}"
        over = f", of {known:,} of {count:,} classes" if known < count else ""
        alike = f"each of {metrics['labelled_classes']:,} labelled classes counts alike"
        return [
            ("Mean IoU", percent(mean["value"]), interval + over),
            ("Pixel accuracy", percent(metrics["accuracy"]), f"of {metrics['pixels']:,} labelled pixels"),
            ("Mean recall", percent(metrics["class_accuracy"]), alike),
            ("Images", f"{metrics['images']:,}", f"{count:,} classes, {known:,} of them seen"),
        ]

    def sections(self, metrics: Mapping[str, Any], names: Sequence[str], colours: Colours | None) -> list[Section]:
        """Show classes, confusions, and the worst and best images."""
        numbers = "Numbers are percentages of the row; those below one half are left out."
        return [
            _classes(metrics),
            parts.confusion_matrix(self.confusion, names, "pixels", numbers),
            Section("Worst images", _gallery(self.worst, "lowest", names, colours)),
            Section("Best images", _gallery(self.best, "highest", names, colours)),
        ]

    def examples(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the names and scores of the worst images."""
        return [{"image": one.name, "miou": one.score} for one in self.worst]

    def tables(self, metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Return the rows of classes, and those of images: pixels that were right, and of the union, of each class."""
        union = self.union
        rows = []
        for i, score in enumerate(image_iou(self.right, union)):
            right, around, total = self.right[i].tolist(), union[i].tolist(), int(self.truth[i].sum())
            accuracy = round(sum(right) / total, 6) if total else None
            row: dict[str, Any] = {"image": self.names[i], "miou": number(score), "accuracy": accuracy}
            for k, kind in enumerate(names):
                row |= {f"right/{kind}": right[k], f"union/{kind}": around[k]}
            rows.append(row)
        return {**super().tables(metrics, names), "per_image": rows}

    def _draw(
        self, examples: Sequence[SegmentationExample], names: Sequence[str] | None, colours: Colours | None
    ) -> "Image.Image":
        """Draw images, their labels and predictions, a row each, with a legend below."""
        sheet = stack_rows([one.draw(names, colours) for one in examples], ("image", "labels", "predicted"))
        return add_legend(sheet, _shown(examples), names, colours)


class SegmentationCollector(BaseCollector[SegmentationEvaluation]):
    """Takes in what was predicted, batch by batch, and keeps small pictures of the worst and best images.

    A batch's outputs are ``counts`` (B, K, K), pixels of each image by their class and by what they were taken for, and
    ``prediction`` (B, H, W), the class of each pixel. The images are as they were stored, with their masks.

    Args:
        worst: images to show: a third of them are the worst, a third the best.
    """

    kind = SegmentationEvaluation
    output = "prediction"

    def add(self, outputs: Mapping[str, Any], batch: Batch, preprocess: Preprocess | None = None) -> None:
        """Take in a batch; ValueError if it has no masks."""
        if batch.mask is None:
            raise ValueError("an evaluation needs masks; this batch has none")
        counts = outputs["counts"].detach().cpu()
        right, truth, predicted = counts.diagonal(dim1=1, dim2=2), counts.sum(2), counts.sum(1)
        scores = image_iou(right, truth + predicted - right)
        names = self._names(batch)
        small = [each.to(torch.int32) for each in (right, truth, predicted)]
        self._parts.append(SegmentationEvaluation(small[0], small[1], small[2], counts.sum(0), names))
        for i, score in enumerate(scores.tolist()):
            self._offer(score, partial(_example, batch, i, outputs["prediction"][i], counts.shape[1], score, names[i]))


def _example(
    batch: Batch, index: int, prediction: Tensor, num_classes: int, score: float, name: str
) -> SegmentationExample:
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
    return SegmentationExample(image, truth, predicted, score, name)


# ----------------------------------------------------------------------------------------------------------- numbers


def class_iou(counts: Tensor) -> Tensor:
    """Return the intersection over union of each class.

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
    """Return the mean IoU of each image over the classes that are in it or were predicted.

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
    """Return 95 % intervals of each class's IoU and of their mean, by sampling images with replacement.

    They say how far the numbers would vary with other images of the same kind, not with other training runs.

    Args:
        right: (N, K) pixels of each class that were found, of each image.
        union: (N, K) pixels that are of a class or were taken for it.
        draws: how many sets of N images are sampled.
        seed: of the sampling.

    Returns:
        (K, 2) and (2,): lower and upper ends; NaN for classes that were not there.

    References:
        B. Efron: Bootstrap methods: another look at the jackknife, Annals of Statistics 7, 1979.
    """
    iou = resample_iou(right, union, draws, seed)
    ends = torch.tensor([0.025, 0.975], dtype=iou.dtype)
    return iou.nanquantile(ends, 0).T, iou.nanmean(1).nanquantile(ends)


def resample_iou(right: Tensor, union: Tensor, draws: int = _DRAWS, seed: int = 0) -> Tensor:
    """Return each class's IoU (draws, K) over sets of images sampled with replacement."""
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
    """Return the numbers of a report, as numbers, strings, lists and dictionaries.

    Where a number is not defined it is None: the IoU of a class that is neither in the labels nor predicted.

    Args:
        evaluation: what was predicted.
        class_names: names of the K classes; their numbers are used when None.

    Returns:
        ``images``, ``classes``, ``pixels`` (labelled ones), ``miou`` (``value`` and its 95 % interval over images,
        ``low`` to ``high``) over ``miou_classes`` classes, those that are labelled or predicted, ``accuracy`` (share of
        the pixels), ``class_accuracy`` (mean recall) over ``labelled_classes`` classes, a row for each class in
        ``per_class`` and ``confusion[truth][predicted]`` in pixels.

    Raises:
        ValueError: if there are not K names.
    """
    k = evaluation.num_classes
    names = evaluation.name_classes(class_names)
    confusion = evaluation.confusion.double()
    total = float(confusion.sum())
    right, truth, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    iou, recall, precision = class_iou(confusion), right / truth, right / said
    ends, mean_ends = bootstrap_intervals(evaluation.right, evaluation.union)
    per_class = parts.class_rows(
        names,
        iou=iou,
        iou_low=ends[:, 0],
        iou_high=ends[:, 1],
        recall=recall,
        precision=precision,
        pixels=truth.long(),
        share=truth / max(total, 1),
        predicted_share=said / max(total, 1),
        images=(evaluation.truth > 0).sum(0),
    )
    return {
        "images": len(evaluation),
        "classes": k,
        "pixels": int(total),
        "miou": {"value": number(iou.nanmean()), "low": number(mean_ends[0]), "high": number(mean_ends[1])},
        "miou_classes": int((~iou.isnan()).sum()),
        "accuracy": number(right.sum() / max(total, 1)),
        "class_accuracy": number(recall.nanmean()),
        "labelled_classes": int((truth > 0).sum()),
        "per_class": per_class,
        "confusion": evaluation.confusion.tolist(),
    }


# ---------------------------------------------------------------------------------------------------------- sections


def _classes(metrics: Mapping[str, Any]) -> Section:
    rows = parts.weakest(metrics["per_class"], "iou")
    columns: parts.Columns = {
        "class": "class",
        "IoU": "iou",
        "95 % interval": ("iou_low", "iou_high"),
        "recall": "recall",
        "precision": "precision",
        "of the pixels": "share",
        "predicted": "predicted_share",
        "images": "images",
    }
    text = [
        "IoU is the share of right pixels among those that are of a class or were taken for it. Recall is the share of "
        "a class's pixels that were found, precision that of the pixels taken for it that are of it.",
        "Intervals are over images, sampled with replacement: they tell how far the numbers would vary with other "
        "images of the same kind, not with another training run.",
    ]
    chart = Picture(charts.draw_scores(rows[: parts.NAMED], "iou", "intersection over union"), "IoU of classes")
    return parts.classes(text, chart, "IoU", rows, columns)


def _gallery(
    examples: Sequence[SegmentationExample], which: str, names: Sequence[str], colours: Colours | None
) -> list[Part]:
    text = f"The image, its labels and what was predicted, of the {len(examples)} images with the {which} mean IoU "
    text += "over the classes in them. Ignored pixels are hatched."
    text += " Look for wrong labels here first." if which == "lowest" else ""
    blank = to_picture(torch.full((3, 1, 900), 255, dtype=torch.uint8))
    data = png(add_legend(blank, _shown(examples), names, colours))
    legend = Picture(data, "The colours of the classes", chart=False)
    return parts.gallery(text, examples, names, colours, legend=legend)


def _shown(examples: Sequence[SegmentationExample]) -> list[int]:
    return sorted({k for one in examples for mask in (one.truth, one.predicted) for k in classes_in(mask, _NONE)})
