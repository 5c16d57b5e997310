"""The stack of a pipeline: built of what it is given, and checked."""

from collections.abc import Sequence
from typing import Any, cast

from kornia.augmentation import AugmentationSequential, ImageSequential, MixAugmentationBaseV2
from torch import nn

from kornia_mvit.augmentation.kornia_adapter import AugmentationBase, PolicyAugmentBase
from kornia_mvit.augmentation.operations import check_stack, keeps_pixels
from kornia_mvit.parsing import check_truths

__all__ = ["build_stack", "check_flags"]


def build_stack(
    augment: AugmentationSequential | Sequence[nn.Module] | None, *, erases: bool = False
) -> AugmentationSequential | None:
    """Return what a pipeline is given to augment by as one of Kornia's containers; None for nothing.

    Args:
        augment: a policy, a container, a list of Kornia's augmentations, or None.
        erases: whether erasing changes targets.

    Raises:
        TypeError: for what is none of these, and for mixes.
        ValueError: as :func:`~kornia_mvit.augmentation.operations.check_stack`.
    """
    if isinstance(augment, Sequence):
        # check_stack says what to do in place of a mix
        kinds = (AugmentationBase, ImageSequential, PolicyAugmentBase, MixAugmentationBaseV2)
        if wrong := [type(step).__name__ for step in augment if not (isinstance(step, kinds) or keeps_pixels(step))]:
            raise TypeError(f"augmentations are Kornia's, or containers of them; got {', '.join(wrong)}")
        steps = cast(Sequence[Any], augment)  # Kornia's own annotation leaves its automatic policies out
        augment = AugmentationSequential(*steps, data_keys=["input"]) if steps else None
    elif augment is not None and not isinstance(augment, AugmentationSequential):
        raise TypeError(
            f"augment is a policy, a kornia AugmentationSequential or a list of augmentations, "
            f"got {type(augment).__name__}"
        )
    if augment is not None:
        check_stack(augment, erases=erases)
    return augment


def check_flags(*, fuse: bool, antialias: bool, **others: bool) -> None:
    """Check what a pipeline is told by yes or no.

    Raises:
        ValueError: for a value that is neither, and for ``antialias`` where Kornia resamples.
    """
    check_truths(fuse=fuse, antialias=antialias, **others)
    if antialias and not fuse:
        raise ValueError(
            "antialias=True is for operations that are composed, and fuse=False lets Kornia resample at "
            "each; leave one of them away"
        )
