"""The way back from augmented or prepared images, which a pipeline's parameters tell."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.augmentation.companions import inverse_extra
from kornia_mvit.augmentation.keypoints import inverse_keypoint_order, inverse_keypoints
from kornia_mvit.augmentation.rejection import by_tries
from kornia_mvit.augmentation.targets import inverse_boxes, inverse_maps, inverse_oriented, way_back
from kornia_mvit.extra_images import Extra
from kornia_mvit.ops.keypoints import Pairs

__all__ = ["Inverses"]

Params = dict[str, Any]


class Inverses:
    """What brings results of augmented or prepared images back to the images as they were put in."""

    keypoint_flip_pairs: Pairs | None
    box_method: str

    @torch.no_grad()
    def inverse(self, maps: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        """Bring dense maps of augmented or prepared images back to the images as they were put in.

        Args:
            maps: (B, C, h, w), floating point, at any stride of the augmented images, such as logits or features.
            params: what ``augment`` or ``prepare`` gave.

        Returns:
            (B, C, H, W) at the height and width of what was put in, zero where unknown, and (B, 1, H, W) a boolean
            mask of the pixels that were in view.

        Raises:
            ValueError: for mixed batches, and naming the operations that have no inverse.
        """
        return by_tries(lambda part, own: inverse_maps(part, way_back(own, part)), maps, params)

    @torch.no_grad()
    def inverse_extra(self, extra: Mapping[str, Extra], params: Params) -> tuple[dict[str, Extra], Tensor]:
        """Bring further images and maps of augmented or prepared images back, each as it says what it is.

        Images and maps are read as they are augmented, and vectors turned back. Colours stay.

        Args:
            extra: of the batch that ``augment`` or ``prepare`` gave, or the like.
            params: what that gave, too.

        Returns:
            The extra at the height and width of what was put in, each with its ``fill`` where unknown, and (B, 1, H, W)
            a boolean mask of the pixels that were in view.

        Raises:
            ValueError: as :meth:`inverse`, and for maps of another size than the augmented images.
        """
        if not extra:
            raise ValueError("extra is empty; give the extra of a batch")

        def bring(part: dict[str, Extra], own: Params) -> tuple[dict[str, Extra], Tensor]:
            return inverse_extra(part, way_back(own, next(iter(part.values())).tensor))

        return by_tries(bring, dict(extra), params)

    @torch.no_grad()
    def inverse_boxes(self, boxes: Tensor, params: Params) -> Tensor:
        """Bring boxes (B, N, 4) of augmented or prepared images back, unclipped.

        They are the boxes around their corners, or with ``box_method='ellipse'`` around the ellipses inside them.

        Raises:
            ValueError: as :meth:`inverse`.
        """
        ellipses = self.box_method == "ellipse"
        return by_tries(lambda part, own: inverse_boxes(part, way_back(own, part), ellipses=ellipses), boxes, params)

    @torch.no_grad()
    def inverse_oriented_boxes(self, boxes: Tensor, params: Params) -> Tensor:
        """Bring oriented boxes (B, N, 5) of augmented or prepared images back: the smallest around their corners there.

        Raises:
            ValueError: as :meth:`inverse`.
        """
        return by_tries(lambda part, own: inverse_oriented(part, way_back(own, part)), boxes, params)

    @torch.no_grad()
    def inverse_keypoints(self, keypoints: Tensor, params: Params) -> Tensor:
        """Bring keypoints (B, K, 2) or (B, N, K, 2) of augmented or prepared images back, swapped pairs too.

        Raises:
            ValueError: as :meth:`inverse`.
        """
        pairs = self.keypoint_flip_pairs
        return by_tries(lambda part, own: inverse_keypoints(part, way_back(own, part), pairs), keypoints, params)

    @torch.no_grad()
    def inverse_keypoint_order(self, values: Tensor, params: Params, dim: int = -1) -> Tensor:
        """Swap back what was swapped of anything that belongs to keypoints, such as their visibility or heatmaps.

        Args:
            values: (B, ...), with the K keypoints along ``dim``.
            params: what ``augment`` or ``prepare`` gave.
            dim: 1 for heatmaps (B, K, h, w).

        Raises:
            ValueError: for mixed batches, and for fewer keypoints than ``keypoint_flip_pairs`` name.
        """
        pairs = self.keypoint_flip_pairs
        return by_tries(lambda part, own: inverse_keypoint_order(part, way_back(own, part), pairs, dim), values, params)
