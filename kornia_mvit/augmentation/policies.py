"""Stacks of Kornia augmentations for each task, by name."""

import math

from kornia.augmentation import AugmentationSequential, ColorJitter, RandomHorizontalFlip, RandomResizedCrop
from kornia.augmentation.base import _AugmentationBase

__all__ = ["classification_train"]


def classification_train(
    size: int | tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
) -> AugmentationSequential:
    """Random resized crop and flip, which Apple trained its classifiers with, and colour jitter if asked for.

    Args:
        size: height and width of the result in pixels, or one number for both.
        scale: share of the image's area that a crop takes, from and to.
        ratio: width over height of a crop, from and to.
        flip: probability of a mirror image.
        jitter: strength of random brightness, contrast and saturation; 0 for none.

    Returns:
        A Kornia container that takes (B, C, H, W) images in [0, 1].

    Raises:
        ValueError: for a range that is not ascending, or a probability or strength outside [0, 1].

    Example:
        >>> import torch
        >>> classification_train(128)(torch.rand(2, 3, 160, 200)).shape
        torch.Size([2, 3, 128, 128])
    """
    for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
        limit = 1.0 if name == "scale" else math.inf
        if not 0 < low <= high <= limit:
            raise ValueError(f"{name} {(low, high)} is not an ascending range in (0, {limit:g}]")
    for name, value in {"flip": flip, "jitter": jitter}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} {value} is not in [0, 1]")
    out = (size, size) if isinstance(size, int) else tuple(size)
    steps: list[_AugmentationBase] = [
        RandomResizedCrop(out, scale=tuple(scale), ratio=tuple(ratio), align_corners=False)
    ]
    if flip:
        steps.append(RandomHorizontalFlip(p=flip))
    if jitter:
        steps.append(ColorJitter(jitter, jitter, jitter, 0.0, p=0.8))
    return AugmentationSequential(*steps, data_keys=["input"])
