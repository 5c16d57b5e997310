"""Operations of colour on images of any number of channels: done where they mean something, else refused by name."""

from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from kornia_mvit.augmentation.color import RandomColorTwist
from kornia_mvit.augmentation.kornia_adapter import OperationBase, PolicyAugmentBase, PolicySequential

__all__ = ["apply_to_channels", "check_channels", "keeps_grey", "takes_channels"]

# What these change, an image of one channel has not got.
_OF_NO_GREY = (K.RandomSaturation, K.RandomHue, K.RandomGrayscale)
# These Kornia computes of three channels alone; on three equal ones they do to a grey image what they mean for it.
_OF_GREY_TOO = (K.ColorJiggle, K.ColorJitter, K.RandomJPEG, K.RandomSnow)
_OF_COLOUR = (K.RandomPlanckianJitter, K.RandomRGBShift, K.RandomDissolving)
_ENTERED = (K.ImageSequential, PolicyAugmentBase, PolicySequential, OperationBase)
_REMEDIES = {
    RandomColorTwist: "with saturation=0 and hue=0 it takes any (policies: jitter=0, hue=0)",
    K.RandomSaturation: "classification_strong has none with auto='trivialaugment'",
    K.ColorJitter: "RandomBrightness and RandomContrast take any",
    K.ColorJiggle: "RandomBrightness and RandomContrast take any",
}


# B batch, C channels, H W images
def keeps_grey(module: nn.Module, channels: int) -> bool:
    """Tell whether an operation leaves images of as many channels as they are, since they have no colours."""
    return channels == 1 and isinstance(module, _OF_NO_GREY)


def apply_to_channels(
    module: nn.Module, image: Tensor, draw: dict[str, Any], function: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply an operation to images of any number of channels that :func:`check_channels` lets pass.

    Args:
        module: the operation.
        image: (B, C, H, W).
        draw: what it drew.
        function: applies it to images of as many channels as Kornia takes.
    """
    channels = image.shape[1]
    if channels == 1 and isinstance(module, _OF_GREY_TOO):
        return function(image.expand(-1, 3, -1, -1))[:, :1]
    if channels not in (1, 3) and isinstance(module, K.RandomSaltAndPepperNoise):
        salt, pepper, gate = (
            draw[name].to(image.device, non_blocking=True) for name in ("mask_salt", "mask_pepper", "batch_prob")
        )
        chosen = (gate > 0.5)[:, None, None, None]
        return image.masked_fill(salt & chosen, 1.0).masked_fill(pepper & chosen, 0.0)
    return function(image)


def check_channels(stack: nn.Module, channels: int) -> None:
    """Refuse images of other channels than an augmentation of colours takes, whether it is drawn or not.

    Raises:
        ValueError: naming the augmentations.
    """
    if channels == 3 and not any(isinstance(module, K.Normalize | K.Denormalize) for module in stack.modules()):
        return
    refused: dict[str, list[str]] = {}
    remedies = []
    for module, alone in _operations(stack, alone=True):
        counts = _counts(module, alone)
        if counts is None or channels in counts:
            continue
        names = refused.setdefault(" or ".join(map(str, counts)), [])
        if type(module).__name__ not in names:
            names.append(type(module).__name__)
            remedies += [remedy for kind, remedy in _REMEDIES.items() if isinstance(module, kind)]
    if refused:
        told = "; ".join(f"{', '.join(sorted(some))} takes images of {many} channels" for many, some in refused.items())
        what = "; ".join(["take it out of augment, or give images of as many channels", *dict.fromkeys(remedies)])
        raise ValueError(f"{told}, got {channels}; {what}")


def takes_channels(stack: nn.Module, channels: int) -> bool:
    """Tell whether :func:`check_channels` lets images of so many channels pass."""
    taken = [_counts(module, alone) for module, alone in _operations(stack, alone=True)]
    return all(counts is None or channels in counts for counts in taken)


def _operations(module: nn.Module, *, alone: bool) -> list[tuple[nn.Module, bool]]:
    """List the operations of a stack, and whether the pipeline applies each by itself, not Kornia a part of it."""
    entered = isinstance(module, _ENTERED) and not isinstance(module, K.PatchSequential)
    children = list(module.children())
    if isinstance(module, K.IntensityAugmentationBase2D) or not children:
        return [(module, alone)]
    return [found for child in children for found in _operations(child, alone=alone and entered)]


def _counts(module: nn.Module, alone: bool) -> tuple[int, ...] | None:
    """Return the numbers of channels that an operation takes, None for any."""
    counts: set[int] = set()
    if isinstance(module, RandomColorTwist):
        counts = {1, 3} if module.strengths["saturation"] or module.strengths["hue"] else set()
    elif isinstance(module, K.RandomGrayscale):
        weights = module.rgb_weights
        counts = set() if weights is None else {1, int(torch.as_tensor(weights).numel())}
    elif isinstance(module, K.Normalize | K.Denormalize):
        counts = {int(torch.as_tensor(module.flags[name]).numel()) for name in ("mean", "std")} - {1}
    elif isinstance(module, K.RandomSaltAndPepperNoise):
        counts = set() if alone else {1, 3}
    elif isinstance(module, (*_OF_NO_GREY, *_OF_GREY_TOO, K.RandomRain)):
        counts = {1, 3} if alone or isinstance(module, K.RandomRain) else {3}
    elif isinstance(module, _OF_COLOUR):
        counts = {3}
    return tuple(sorted(counts)) or None
