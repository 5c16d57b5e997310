"""Keypoints taken along with their images, and brought back."""

from collections.abc import Callable

import torch
from torch import Tensor

from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.batch import Batch
from kornia_mvit.ops.keypoints import Pairs, swap_order, swap_pairs

__all__ = ["inverse_keypoint_order", "inverse_keypoints", "move_keypoints"]


def move_keypoints(
    batch: Batch, geometry: Geometry, flip_pairs: Pairs | None, select: Callable[..., Tensor] | None
) -> dict[str, Tensor]:
    """Return the keypoints of a batch, their visibility and numbers after its images went through a geometry.

    Coordinates of keypoints that are not labelled, where visibility has COCO's three states, are 0.

    Args:
        batch: images with keypoints.
        geometry: the way that the images went.
        flip_pairs: keypoints that are swapped in mirrored images.
        select: brings what belongs to boxes (B, N, ...) to the rows of those that are kept, with zeros behind them;
            None for a batch without boxes.
    """
    keypoints, visible = batch.keypoints, batch.keypoint_visible
    if keypoints is None or visible is None:
        return {}
    points, seen = geometry.move_points(keypoints.flatten(1, -2))
    points, seen = points.view(keypoints.shape).to(keypoints.dtype), seen.view(visible.shape)
    if visible.dtype == torch.bool:
        visible = visible & seen
    else:
        visible = visible * seen
        points = points.masked_fill((visible == 0)[..., None], 0.0)
    index = torch.arange(visible[:1].numel(), device=visible.device).view(visible.shape[1:]).expand(visible.shape)
    if flip_pairs:
        mirrored = geometry.mirrored()
        order = swap_order(flip_pairs, keypoints.shape[-2])
        points, visible = swap_pairs(points, mirrored, order, -2), swap_pairs(visible, mirrored, order, -1)
        index = swap_pairs(index, mirrored, order, -1)
    if keypoints.ndim == 4 and select is not None:
        points, visible, index = select(points), select(visible), select(index, padding=-1)
    return {"keypoints": points, "keypoint_visible": visible, "keypoint_index": index}


def inverse_keypoints(keypoints: Tensor, geometry: Geometry, flip_pairs: Pairs | None) -> Tensor:
    """Bring keypoints back; see :meth:`kornia_mvit.AugmentationPipeline.inverse_keypoints`."""
    points = geometry.inverse().carry_points(keypoints).to(keypoints.dtype)
    return inverse_keypoint_order(points, geometry, flip_pairs, -2)


def inverse_keypoint_order(values: Tensor, geometry: Geometry, flip_pairs: Pairs | None, dim: int) -> Tensor:
    """Bring values of keypoints back; see :meth:`kornia_mvit.AugmentationPipeline.inverse_keypoint_order`."""
    if not flip_pairs:
        return values
    order = swap_order(flip_pairs, values.shape[dim])
    return swap_pairs(values, geometry.mirrored(), order, dim)
