"""Losses of pixels, some of which are to be ignored, and of a detector's anchors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from kornia.losses import dice_loss, lovasz_softmax_loss
from torch import Tensor

__all__ = ["MultiboxLoss", "multibox_loss", "pixel_cross_entropy", "pixel_dice", "pixel_lovasz"]


def pixel_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy, averaged over the pixels of a batch that are labelled.

    It is PyTorch's, but for a batch without a labelled pixel, of which it is 0 and not NaN.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W), class of each pixel, integer.
        ignore_index: number of the pixels to ignore.
        weight: (K,), weight of each class; the mean is that of the weights, as PyTorch's.
        label_smoothing: share of a target that is spread over all classes.

    Example:
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> pixel_cross_entropy(logits, torch.tensor([[[3, 255]]]))
        tensor(1.3863)
        >>> pixel_cross_entropy(logits, torch.tensor([[[255, 255]]]))
        tensor(0.)
    """
    logits, target = logits.float(), target.long()
    each = F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    valid = target != ignore_index
    share = valid.float() if weight is None else weight.float()[target.where(valid, 0)] * valid
    return each.sum() / share.sum().clamp_min(torch.finfo(torch.float32).tiny)


def pixel_dice(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Dice loss of the labelled pixels of a batch taken together: the mean over the classes, by kornia.losses.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W), class of each pixel, integer.
        ignore_index: number of the pixels to ignore.

    Returns:
        A scalar; 0 where no pixel is labelled.
    """
    picked = _pick(logits, target, ignore_index)
    return logits.sum() * 0.0 if picked is None else dice_loss(*picked, average="macro")


def pixel_lovasz(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Lovász-Softmax loss of the labelled pixels of a batch taken together, by kornia.losses.

    Args:
        logits: (B, K, H, W), of two classes or more.
        target: (B, H, W), class of each pixel, integer.
        ignore_index: number of the pixels to ignore.

    Returns:
        A scalar; 0 where no pixel is labelled.

    References:
        M. Berman et al.: The Lovász-Softmax loss. https://arxiv.org/abs/1705.08790
    """
    picked = _pick(logits, target, ignore_index)
    return logits.sum() * 0.0 if picked is None else lovasz_softmax_loss(*picked)


def _pick(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor] | None:
    """Lay the labelled pixels out as one image: (1, K, N, 1) and (1, N, 1); Kornia's losses ignore none, or not all."""
    valid = target != ignore_index
    chosen = logits.float().permute(0, 2, 3, 1)[valid]
    return None if not len(chosen) else (chosen.T[None, :, :, None], target[valid].long()[None, :, None])


class MultiboxLoss(NamedTuple):
    """The parts of a detector's loss, scalars.

    Args:
        total: the sum of the others.
        classification: cross-entropy of the anchors that have a box to find, and of the hardest of the background.
        regression: smooth L1 of what boxes depart from their anchors.
    """

    total: Tensor
    classification: Tensor
    regression: Tensor


def multibox_loss(
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    negative_ratio: int = 3,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> MultiboxLoss:
    """SSD's loss: cross-entropy with hard negatives, and smooth L1, each a sum divided by the number of positives.

    The negatives of an image are those of its background anchors which are least sure to be background, in proportion
    to its positives. An image without any is mined and counted as if it had one, so that it too teaches what background
    is; a batch that has no box at all then weighs as much as another.

    Args:
        logits: (B, A, K + 1), the background's first.
        deltas: (B, A, 4).
        labels: (B, A) classes from 1, 0 for the background, -1 for anchors that do not count.
        targets: (B, A, 4) what ``deltas`` should be; read where a label is above 0.
        negative_ratio: negatives for each positive.
        label_smoothing: share of a target that is spread over all classes.
        weights: (B, A) what both terms of a positive are multiplied by, such as the weight of its box in a blend of
            two images; None for 1. Negatives, and what the sums are divided by, stay as they are.

    Returns:
        The loss and its parts, float32 or wider.

    Example:
        >>> logits, deltas = torch.zeros(1, 9, 3), torch.zeros(1, 9, 4)
        >>> labels = torch.tensor([[2, 0, 0, 0, 0, 0, 0, 0, -1]])
        >>> total, classification, regression = multibox_loss(logits, deltas, labels, torch.ones(1, 9, 4))
        >>> classification / 4, regression
        (tensor(1.0986), tensor(2.))
    """
    logits, deltas = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, deltas))
    positive = labels > 0
    count = positive.sum(1, keepdim=True).clamp_min(1)
    chosen = positive | _hardest(logits, labels == 0, negative_ratio * count)
    targets = targets.to(deltas.dtype)
    if weights is not None:
        weights = torch.where(positive, weights.to(deltas.dtype), 1.0)
    if logits.device.type == "cpu":
        logits, labels, deltas, targets = logits[chosen], labels[chosen], deltas[positive], targets[positive]
        each = None if weights is None else (weights[chosen], weights[positive])
    else:  # an accelerator would have to be waited for to know how many there are
        logits, labels = logits.flatten(0, 1), labels.masked_fill(~chosen, -100).flatten()
        deltas, targets = (x.masked_fill(~positive[..., None], 0) for x in (deltas, targets))
        each = None if weights is None else (weights.flatten(), weights)
    reduction = "sum" if each is None else "none"
    classes = F.cross_entropy(
        logits, labels, reduction=reduction, label_smoothing=label_smoothing
    )  # without labels of -100
    places = F.smooth_l1_loss(deltas, targets, reduction=reduction)
    if each is not None:
        classes, places = (classes * each[0]).sum(), (places * each[1][..., None]).sum()
    classes, places = classes / count.sum(), places / count.sum()
    return MultiboxLoss(classes + places, classes, places)


@torch.no_grad()
def _hardest(logits: Tensor, background: Tensor, count: Tensor) -> Tensor:
    """Choose the background anchors that are least sure to be background.

    Args:
        logits: (B, A, K + 1).
        background: (B, A), the anchors to choose from.
        count: (B, 1), how many of an image.

    Returns:
        (B, A), where they are.
    """
    loss = (logits.logsumexp(-1) - logits[..., 0]).masked_fill(~background, -torch.inf)
    order = loss.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return background & (rank < count)
