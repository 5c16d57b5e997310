"""Boxes of whole images: predicted on preprocessed images, and brought back into the images' own pixels."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.augmentation.pipeline import AugmentationPipeline, Params
from kornia_mvit.augmentation.targets import inverse_boxes, way_back
from kornia_mvit.batch import Batch
from kornia_mvit.extras import needing
from kornia_mvit.ops.geometry import constant

__all__ = ["Found", "bring_back", "predict_boxes", "sizes_of", "to_image", "without_overlaps"]

Found = dict[str, Tensor]  # of an image: boxes (n, 4), scores (n,) and labels (n,)


def predict_boxes(
    predict: Callable[[Tensor], Sequence[Found]], batch: Batch, pipeline: AugmentationPipeline
) -> list[Found]:
    """Find the objects in a batch's images.

    Args:
        predict: takes preprocessed images (B, C, h, w) and returns for each ``boxes`` (n, 4) in its pixels, ``scores``
            and ``labels`` (n,).
        batch: images as they were stored.
        pipeline: whose preprocessing the images go through, and the boxes back.

    Returns:
        The same, boxes in the pixels of the images' files, see :func:`bring_back`.

    Example:
        >>> from kornia_mvit.preprocess import Preprocess
        >>> whole = {'boxes': torch.tensor([[0.0, 0, 32, 32]]), 'scores': torch.ones(1), 'labels': torch.zeros(1)}
        >>> pipeline = AugmentationPipeline(preprocess=Preprocess((32, 32)))
        >>> predict_boxes(lambda image: [whole], Batch(torch.rand(1, 3, 40, 50)), pipeline)[0]['boxes']
        tensor([[ 0.,  0., 50., 40.]])
    """
    stored, on_host = Batch(batch.image, size=batch.size), batch.host_size()
    if on_host is not None:
        stored.remember_size(on_host)
    prepared, params = pipeline.prepare(stored)
    return bring_back(predict(prepared.image), batch, pipeline, params)


@torch.no_grad()
def bring_back(found: Sequence[Found], batch: Batch, pipeline: AugmentationPipeline, params: Params) -> list[Found]:
    """Bring boxes of preprocessed images into the pixels of the images' files, and clip them there.

    Args:
        found: for each image ``boxes`` (n, 4) in the pixels of the network's input, and what goes with them.
        batch: the images as they were stored, with ``size`` and ``original_size`` where they were resized.
        pipeline: what prepared them.
        params: what its ``prepare`` returned.
    """
    most = max((len(one["boxes"]) for one in found), default=0)
    padded = torch.stack([F.pad(one["boxes"], (0, 0, 0, most - len(one["boxes"]))) for one in found])
    boxes = pipeline.inverse_boxes(padded, params)
    stored, limit = (sides.flip(-1).repeat(1, 2)[:, None].to(boxes) for sides in sizes_of(batch))
    boxes = (boxes * limit / stored).clamp_min(0).minimum(limit)
    return [one | {"boxes": rows[: len(one["boxes"])]} for one, rows in zip(found, boxes, strict=True)]


def sizes_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (B, 2) height and width of the images of a batch, and of their files."""
    canvas = constant(tuple(batch.image.shape[2:]), batch.image.device, torch.int64).expand(len(batch), 2)
    size = canvas if batch.size is None else batch.size
    return size, size if batch.original_size is None else batch.original_size


@torch.no_grad()
def to_image(found: Found, params: Params, size: tuple[int, int]) -> Found:
    """Bring the boxes of one prepared image into its own pixels, as :func:`bring_back` does for a batch.

    Args:
        found: ``boxes`` (n, 4) in the pixels of the network's input, and what goes with them.
        params: what ``prepare`` returned for a batch of this image alone.
        size: height and width of the image.
    """
    boxes = found["boxes"][None]
    limit = constant((size[1], size[0]) * 2, boxes.device, boxes.dtype)
    return found | {"boxes": inverse_boxes(boxes, way_back(params, boxes))[0].clamp_min(0).minimum(limit)}


def without_overlaps(
    found: Found, score_threshold: float = 0.01, iou_threshold: float = 0.5, max_detections: int = 100
) -> Found:
    """Return the boxes of each class that do not overlap, highest score first, as :meth:`SSDLite.decode` does.

    Args:
        found: ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,).
        score_threshold: least score, exclusive.
        iou_threshold: overlap above which the box of lower score is dropped.
        max_detections: most boxes that are kept.

    Raises:
        ImportError: where torchvision is missing.
    """
    with needing("suppressing overlapping boxes needs torchvision", "train"):
        from torchvision.ops import batched_nms  # type: ignore[import-untyped]  # it comes without stubs
    sure = (found["scores"] > score_threshold) & (found["labels"] >= 0)
    found = {name: value[sure] for name, value in found.items()}
    kept = batched_nms(found["boxes"], found["scores"], found["labels"], iou_threshold)[:max_detections]
    return {name: value[kept] for name, value in found.items()}
