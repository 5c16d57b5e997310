"""Copy-paste of single objects by their masks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.augmentation.layers import CutBoxes, Layer
from kornia_mvit.augmentation.target_mix import Params, TargetMix, draw_partners
from kornia_mvit.batch import Batch
from kornia_mvit.ops.boxes import have_pixels, masks_to_boxes
from kornia_mvit.ops.geometry import box_area

__all__ = ["CopyPaste"]


class CopyPaste(TargetMix):
    """Paste objects of another image of the batch over each image, by their instance masks, at their places.

    The pixels of a pasted object's mask are exactly those that show it: nothing is blended. It brings its box, its
    class, its mask and what else belongs to its row. Of an object of the image itself that is hidden in part, the mask
    loses the hidden pixels and the box becomes the one around those that are left; the share of its mask that is left
    counts for ``min_box_visibility``, and their number for ``min_box_area``. Where such an object has no mask, that
    share is told from the pixels within its box, which keeps its edges. Crowds and objects without a mask are not
    pasted.

    Args:
        p: share of the images that objects are pasted over.
        objects: share of the other image's objects that are pasted, each by chance; at least one of them is.
        num_classes: see :class:`~kornia_mvit.augmentation.target_mix.TargetMix`.
        max_boxes: likewise.

    Raises:
        ValueError: for numbers out of range, and on the first batch without ``instance_masks``.

    References:
        G. Ghiasi et al.: Simple copy-paste is a strong data augmentation method for instance segmentation.
        https://arxiv.org/abs/2012.07177

    Example:
        >>> masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
        >>> masks[0, 0, 1:3, 1:3], masks[1, 0, 2:5, 2:5] = True, True
        >>> boxes = torch.tensor([[[1.0, 1.0, 3.0, 3.0]], [[2.0, 2.0, 5.0, 5.0]]])
        >>> batch = Batch(
        ...     torch.rand(2, 3, 8, 8), boxes=boxes, box_label=torch.zeros(2, 1).long(), instance_masks=masks
        ... )
        >>> out = CopyPaste(p=1.0)(batch)
        >>> out.boxes[0]  # the image's own, of which a pixel is hidden, and the pasted one
        tensor([[1., 1., 3., 3.],
                [2., 2., 5., 5.]])
        >>> out.instance_masks[0].sum((1, 2))
        tensor([3, 9])
    """

    kind = "copy_paste"

    def __init__(
        self, p: float = 0.5, *, objects: float = 0.5, num_classes: int | None = None, max_boxes: int | None = None
    ) -> None:
        super().__init__(p, num_classes=num_classes, max_boxes=max_boxes)
        if not 0 <= objects <= 1:
            raise ValueError(
                f"objects {objects} is not in [0, 1]; it is the share of an image's objects that are pasted"
            )
        self.objects = objects

    def check(self, batch: Batch) -> None:
        """Refuse batches without masks of single objects, and those whose targets cannot be mixed."""
        if batch.instance_masks is None:
            raise ValueError(
                "CopyPaste pastes objects by their masks, and the batch has no instance_masks; give them, (B, N, H, W) "
                "beside boxes, or take CutMix or Mosaic"
            )
        super().check(batch)

    def _settings(self) -> dict[str, Any]:
        return {"objects": self.objects}

    def _draw(self, chosen: Tensor, batch_size: int, size: tuple[int, int], rows: int) -> Params:
        return {"others": draw_partners(chosen, batch_size), "numbers": torch.rand(len(chosen), rows)}

    def _layers(self, batch: Batch, params: Params) -> Sequence[Layer]:
        own, other, numbers = params["rows"], params["others"][:, 0], params["numbers"]
        masks = batch.instance_masks
        assert masks is not None and batch.boxes is not None and batch.box_label is not None
        if numbers.shape[1] != masks.shape[1]:
            raise ValueError(
                f"the parameters are for {numbers.shape[1]} boxes an image, the batch has {masks.shape[1]}; give the "
                "batch that they were sampled for"
            )
        given, placed = (masks.index_select(0, source).bool() for source in (own, other))
        valid = (batch.box_label >= 0).index_select(0, other) & have_pixels(placed)
        if batch.box_ignore is not None:
            valid = valid & ~batch.box_ignore.index_select(0, other)
        numbers = numbers.masked_fill(~valid, 2.0)
        pasted = valid & (numbers < self.objects)
        if numbers.shape[1]:
            pasted = pasted | (valid & (numbers == numbers.amin(1, keepdim=True)))
        shown = (placed & pasted[..., None, None]).any(1)
        hidden = partial(_hide, masks=given, shown=shown)
        return [Layer(own, hidden, ~shown), Layer(other, partial(_keep, pasted=pasted), shown)]


def _keep(boxes: Tensor, *, pasted: Tensor) -> CutBoxes:
    """Return all of the boxes that are pasted, and nothing of others."""
    return CutBoxes(boxes, box_area(boxes) * pasted, pasted.to(boxes.dtype))


def _hide(boxes: Tensor, *, masks: Tensor, shown: Tensor) -> CutBoxes:
    """Return what is left of boxes (M, N, 4) whose masks (M, N, H, W) are hidden where another image is shown."""
    known = have_pixels(masks)
    row, column = (torch.arange(n, device=boxes.device) + 0.5 for n in masks.shape[2:])
    left, top, right, below = (side[..., None] for side in boxes.unbind(-1))
    within = ((row > top) & (row < below))[..., None] & ((column > left) & (column < right))[..., None, :]
    whole = torch.where(known[..., None, None], masks, within)
    rest = whole & ~shown[:, None]
    before, after = (value.flatten(2).sum(2) for value in (whole, rest))
    cut = after < before
    tight = torch.where((cut & known)[..., None], masks_to_boxes(rest).to(boxes.dtype), boxes)
    area = torch.where(cut, after.to(boxes.dtype), box_area(boxes))
    return CutBoxes(tight, area, torch.where(cut, after / before.clamp_min(1), 1.0).to(boxes.dtype))
