"""Boxes of whole images, found in what a Preprocess made of them and brought back into the images' own pixels."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.augmentation.pipeline import AugmentationPipeline, Params
from kornia_mvit.batch import Batch

__all__ = ["bring_back", "predict_boxes"]

Found = dict[str, Tensor]  # of an image: boxes (n, 4), scores (n,) and labels (n,)


def predict_boxes(
    predict: Callable[[Tensor], Sequence[Found]], batch: Batch, pipeline: AugmentationPipeline
) -> list[Found]:
    """Find the objects in a batch's images.

    Args:
        predict: takes preprocessed images (B, C, h, w) and gives for each ``boxes`` (n, 4) in its pixels, ``scores``
            and ``labels`` (n,).
        batch: images as they were stored.
        pipeline: whose preprocessing they go through, and the boxes back.

    Returns:
        The same, boxes in the pixels of the images' files, see :func:`bring_back`.

    Example:
        >>> from kornia_mvit.preprocess import Preprocess
        >>> whole = {'boxes': torch.tensor([[0.0, 0, 32, 32]]), 'scores': torch.ones(1), 'labels': torch.zeros(1)}
        >>> pipeline = AugmentationPipeline(preprocess=Preprocess((32, 32)))
        >>> predict_boxes(lambda image: [whole], Batch(torch.rand(1, 3, 40, 50)), pipeline)[0]['boxes']
        tensor([[ 0.,  0., 50., 40.]])
    """
    prepared, params = pipeline.prepare(Batch(batch.image, size=batch.size))
    return bring_back(predict(prepared.image), batch, pipeline, params)


@torch.no_grad()
def bring_back(found: Sequence[Found], batch: Batch, pipeline: AugmentationPipeline, params: Params) -> list[Found]:
    """Bring boxes of preprocessed images into the pixels of the images' files, and clip them there.

    Args:
        found: for each image ``boxes`` (n, 4) in the pixels of the network's input, and what goes with them.
        batch: the images as they were stored, with ``size`` and ``original_size`` where they were resized.
        pipeline: what prepared them.
        params: what its ``prepare`` gave.
    """
    most = max((len(one["boxes"]) for one in found), default=0)
    padded = torch.stack([F.pad(one["boxes"], (0, 0, 0, most - len(one["boxes"]))) for one in found])
    boxes = pipeline.inverse_boxes(padded, params)
    canvas = torch.tensor(batch.image.shape[2:], device=boxes.device).expand(len(batch), 2)
    size = canvas if batch.size is None else batch.size
    original = size if batch.original_size is None else batch.original_size
    limit, stored = (sides.flip(-1).repeat(1, 2)[:, None].to(boxes) for sides in (original, size))
    boxes = (boxes * limit / stored).clamp_min(0).minimum(limit)
    return [one | {"boxes": rows[: len(one["boxes"])]} for one, rows in zip(found, boxes, strict=True)]
