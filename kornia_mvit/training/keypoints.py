"""What data know of their keypoints, handed to a pipeline."""

from typing import Any

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.ops.keypoints import check_flip_pairs

__all__ = ["adopt_flip_pairs"]


def adopt_flip_pairs(pipeline: AugmentationPipeline, data: Any) -> None:
    """Have a pipeline that was given no pairs of keypoints swap those that a data module knows.

    Args:
        pipeline: one with ``keypoint_flip_pairs=()`` swaps none.
        data: a data module, or anything else.
    """
    pairs = getattr(data, "keypoint_flip_pairs", None)
    if pairs and pipeline.keypoint_flip_pairs is None:
        pipeline.keypoint_flip_pairs = check_flip_pairs(pairs)
