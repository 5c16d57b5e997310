"""The score of boxes: COCO's average precision, and the truth it is measured against."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from kornia_mvit.batch import Batch
from kornia_mvit.data.formats.coco import distinct_names
from kornia_mvit.extras import needing
from kornia_mvit.inference.detection import sizes_of

__all__ = ["CocoMetrics", "coco_scores", "truths_of"]

_IGNORED, _CROWD = 1, 2  # kinds of truths; 0 for those that count
_BEYOND = 2e10  # square pixels: beyond the largest range of areas, so that no range counts a truth as large


def truths_of(batch: Batch) -> list[dict[str, Any]]:
    """Return the boxes of each image in the pixels of its file, for :class:`CocoMetrics`.

    Args:
        batch: images as they are stored, not augmented, with boxes. ``size`` and ``original_size`` tell how they were
            resized; ``meta``, as :class:`~kornia_mvit.data.boxes.BoxFiles` makes it, of areas and crowds.

    Returns:
        Dictionaries of ``boxes`` (n, 4), ``labels`` (n,), ``ignore`` (n,) and, where ``meta`` has them, ``crowd`` and
        ``area`` (n,) and ``image_id``.

    Raises:
        ValueError: for a batch without boxes, or one whose ``meta`` tells of other boxes.
    """
    if batch.boxes is None or batch.box_label is None:
        raise ValueError("the batch has no boxes, against which predictions could be measured")
    size, original = sizes_of(batch)
    factor = (original / size).flip(-1).repeat(1, 2)
    out = []
    for i in range(len(batch)):
        real = batch.box_label[i] >= 0
        ignore = torch.zeros_like(real) if batch.box_ignore is None else batch.box_ignore[i]
        truth: dict[str, Any] = {
            "boxes": batch.boxes[i][real] * factor[i],
            "labels": batch.box_label[i][real],
            "ignore": ignore[real],
        }
        meta = {} if batch.meta is None else batch.meta[i]
        for key, name, dtype in (("box_area", "area", torch.float32), ("box_crowd", "crowd", torch.bool)):
            if key in meta:
                if len(meta[key]) != len(truth["labels"]):
                    raise ValueError(
                        f"image {i} has {len(truth['labels'])} boxes, but its meta {key} of {len(meta[key])}; measure "
                        "batches as they are stored, without augmentation"
                    )
                truth[name] = torch.tensor(meta[key], dtype=dtype, device=real.device)
        if "image_id" in meta:
            truth["image_id"] = meta["image_id"]
        out.append(truth)
    return out


# N predictions, T truths, K classes, I IoU thresholds, R recalls, S ranges of areas, M most boxes of an image
class CocoMetrics(Metric):
    """COCO's average precision and recall of boxes, as pycocotools computes it, by faster-coco-eval.

    Boxes are in pixels of the original image, which decide what is small, medium and large. A prediction counts for at
    most one truth. Truths of a crowd are never missed, and take in any number of predictions that lie within them by
    the share of the prediction's own area; other truths to ignore, such as VOC's difficult ones, are never missed
    either, and take in one that overlaps them by the usual measure.

    In several processes each measures its share of the images, however many, and all get the score of the whole. An
    image that two of them saw, by its ``image_id``, counts once.

    torchmetrics' ``MeanAveragePrecision`` (1.9) is not used here: it gathers what it stores image by image, which fails
    where processes have different numbers of images, and rounds thresholds to float32, by which an IoU of exactly 0.6
    misses its own.

    Args:
        class_names: of the classes, in the order of labels; those that occur twice are followed by their label.

    Raises:
        ValueError: for no classes.

    Example:
        >>> metrics = CocoMetrics(['cat', 'dog'])
        >>> box = torch.tensor([[10.0, 10, 60, 90]])
        >>> truth = {'boxes': box, 'labels': torch.tensor([1])}
        >>> metrics.update([truth | {'scores': torch.tensor([0.9])}], [truth])
        >>> scores = metrics.compute()
        >>> float(scores['map']), float(scores['ap/dog']), 'ap/cat' in scores
        (1.0, 1.0, False)
    """

    higher_is_better: bool | None = True
    is_differentiable: bool | None = False
    full_state_update: bool | None = False

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        if not class_names:
            raise ValueError("there are no classes; give their names")
        self.class_names: tuple[str, ...] = distinct_names(class_names, range(len(class_names)))
        # Rows of all images in a few tensors, so that processes gather few, and may have different numbers of images.
        self._empty = {
            "images": torch.zeros(0, 3, dtype=torch.long),  # image_id or -1, number of truths, of predictions
            "truths": torch.zeros(0, 5),  # box and area
            "truth_kinds": torch.zeros(0, 2, dtype=torch.long),  # label and kind
            "predictions": torch.zeros(0, 5),  # box and score
            "prediction_labels": torch.zeros(0, dtype=torch.long),
        }
        for name in self._empty:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[Mapping[str, Any]], truths: Sequence[Mapping[str, Any]]) -> None:
        """Take in the boxes of some images.

        Args:
            predictions: of each image ``boxes`` (n, 4), left, top, right and bottom edges, ``scores`` and ``labels``
                (n,).
            truths: of each image ``boxes`` (n, 4) and ``labels`` (n,); perhaps ``ignore`` and ``crowd`` (n,), bool,
                ``area`` (n,) of the objects in square pixels, the boxes' own when missing, and ``image_id``, by which
                ties are ordered and repetitions found.

        Raises:
            ValueError: for lists or boxes of different numbers, boxes that are not rows of four, or labels of no class.
        """
        if len(predictions) != len(truths):
            raise ValueError(f"predictions of {len(predictions)} images, but truths of {len(truths)}")
        for number, (found, truth) in enumerate(zip(predictions, truths, strict=True)):
            self._check(found, "prediction", number, "scores")
            self._check(truth, "truth", number, "ignore", "crowd", "area")
            boxes, labels = truth["boxes"].detach().float(), truth["labels"]
            area = truth.get("area")
            area = (boxes[:, 2:] - boxes[:, :2]).prod(-1) if area is None else area
            kind = _flags(truth.get("ignore"), labels) * _IGNORED
            kind = kind.where(~_flags(truth.get("crowd"), labels), _CROWD)
            values = torch.cat([found["boxes"], found["scores"][:, None]], 1).detach()
            counts = [_fitting(int(truth.get("image_id", -1))), len(labels), len(values)]
            for name, rows in (
                ("images", torch.tensor([counts])),
                ("truths", torch.cat([boxes, area[:, None]], 1)),
                ("truth_kinds", torch.stack([labels, kind], 1)),
                ("predictions", values),
                ("prediction_labels", found["labels"]),
            ):
                getattr(self, name).append(rows.to(self.device, self._empty[name].dtype))

    def stored(self) -> dict[str, Tensor]:
        """Return what was taken in, on the CPU; the rows of several metrics can be concatenated."""
        return {name: self._rows(name) for name in self._empty}

    def _check(self, rows: Mapping[str, Any], kind: str, number: int, *companions: str) -> None:
        boxes, labels = rows["boxes"], rows["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"expected boxes of shape (n, 4), {kind} {number} has {tuple(boxes.shape)}")
        for name in ("labels", *companions):
            if rows.get(name) is not None and rows[name].shape != boxes.shape[:1]:
                raise ValueError(f"{kind} {number} has {len(boxes)} boxes, but {name} {tuple(rows[name].shape)}")
        if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < len(self.class_names)):
            raise ValueError(
                f"{kind} {number} has labels from {int(labels.min())} to {int(labels.max())}, but there are "
                f"{len(self.class_names)} classes, from 0"
            )

    def compute(self) -> dict[str, Tensor]:
        """Return the scores, float32 on the CPU.

        Returns:
            ``map`` over IoUs from 0.5 to 0.95, ``map_50``, ``map_75``, ``map_small``, ``map_medium``, ``map_large``,
            and ``mar_100``, the recall with at most 100 boxes an image and class: NaN where no truth is of the kind.
            For each class that truths have, ``ap/NAME``, its share of ``map``, ``ap_50/NAME``, and
            ``precision_50/NAME``, (101,), the precision at IoU 0.5 for the recalls 0, 0.01 to 1. Classes without a
            truth are absent.
        """
        return coco_scores(self.stored(), self.class_names)

    def _rows(self, name: str) -> Tensor:
        rows = getattr(self, name)
        return torch.cat([self._empty[name], *(row.cpu() for row in ([rows] if isinstance(rows, Tensor) else rows))])

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        """Gather what the processes have; one without images gives tensors without rows, not what no other can join."""
        for name, empty in self._empty.items():
            if isinstance(rows := getattr(self, name), list) and not rows:
                rows.append(empty.to(self.device))
        super()._sync_dist(*args, **kwargs)


def coco_scores(rows: Mapping[str, Tensor], class_names: Sequence[str]) -> dict[str, Tensor]:
    """Return what :meth:`CocoMetrics.compute` does, of the rows that :meth:`CocoMetrics.stored` returned."""
    precision, recall = _evaluate(rows, class_names)  # I R K S M, I K S M
    precision, recall = precision[..., -1], recall[..., -1]
    scores = {
        "map": precision[..., 0],
        "map_50": precision[0, ..., 0],
        "map_75": precision[5, ..., 0],
        "map_small": precision[..., 1],
        "map_medium": precision[..., 2],
        "map_large": precision[..., 3],
        "mar_100": recall[..., 0],
    }
    out = {name: _mean(values) for name, values in scores.items()}
    for label, name in enumerate(class_names):
        values = precision[:, :, label, 0]
        if (values >= 0).any():
            out |= {f"ap/{name}": _mean(values), f"ap_50/{name}": _mean(values[0])}
            out[f"precision_50/{name}"] = values[0].float()
    return out


def _evaluate(rows: Mapping[str, Tensor], class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
    with needing("scores of boxes need faster-coco-eval", "train"):
        from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]  # it has no stubs
    images, truths, found = _annotations(rows)
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names)]
    sides = []
    for annotations in (truths, found):
        side = COCO()
        side.dataset = {"images": images, "categories": categories, "annotations": annotations}
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval_faster(*sides, iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return torch.as_tensor(evaluation.eval["precision"]), torch.as_tensor(evaluation.eval["recall"])


def _annotations(
    stored: Mapping[str, Tensor],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return images, truths and predictions as COCO has them, in an order that processes do not change."""
    ids, *counts = stored["images"].unbind(-1)
    ids = ids.where(ids >= 0, torch.iinfo(torch.long).max)
    order = torch.argsort(ids, stable=True)
    repeated = (ids[order].diff() == 0) & (ids[order][1:] < torch.iinfo(torch.long).max)
    places = torch.full_like(ids, -1)
    order = order[~torch.cat([repeated.new_zeros(min(1, len(ids))), repeated])]
    places[order] = torch.arange(len(order))
    truths, found = (places.repeat_interleave(count) for count in counts)
    labels, kinds = stored["truth_kinds"].unbind(-1)
    truth_rows = _annotate(truths, stored["truths"], labels)
    areas = stored["truths"][:, 4].double().where(kinds != _IGNORED, _BEYOND).tolist()
    for row, area, crowd in zip(truth_rows, areas, (kinds == _CROWD).tolist(), strict=True):
        row |= {"area": area, "iscrowd": int(crowd)}
    found_rows = _annotate(found, stored["predictions"], stored["prediction_labels"])
    scores = stored["predictions"][:, 4].tolist()
    for row, score in zip(found_rows, scores, strict=True):
        row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0, "score": score}
    images = [{"id": place} for place in range(len(order))]
    return images, _in_order(truth_rows), _in_order(found_rows)


def _fitting(image: int) -> int:
    """Return an image's number, -1 for none; one that a tensor cannot hold becomes another, which it alone has."""
    if -1 <= image < 2**62:
        return image
    return int.from_bytes(blake2b(str(image).encode(), digest_size=7).digest(), "big")


def _flags(values: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool) if values is None else values.bool()


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the rows of an image together, and leave out those of images that were seen before."""
    return sorted((row for row in rows if row["image_id"] >= 0), key=lambda row: int(row["image_id"]))


def _annotate(images: Tensor, values: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Return COCO's form of boxes, numbered from 1, since 0 is no number there."""
    boxes = values[:, :4].double()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(images.tolist(), boxes.tolist(), labels.tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": label, "bbox": box}
        for number, (image, box, label) in enumerate(columns, 1)
    ]


def _mean(values: Tensor) -> Tensor:
    """Return the mean of what is not -1, which stands for nothing to find; NaN where that is all."""
    return values[values >= 0].mean().float()
