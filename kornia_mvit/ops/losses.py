"""Losses of pixels, some of which are to be ignored."""

import torch
import torch.nn.functional as F
from kornia.losses import dice_loss, lovasz_softmax_loss
from torch import Tensor

__all__ = ["pixel_cross_entropy", "pixel_dice", "pixel_lovasz"]


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
