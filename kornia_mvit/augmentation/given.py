"""What a pipeline is given: read as a batch, and refused where some target of it cannot be carried along."""

from collections.abc import Mapping, Sequence
from typing import Any

from kornia.augmentation import AugmentationSequential
from torch import Tensor

from kornia_mvit.augmentation.channels import check_channels
from kornia_mvit.augmentation.mix_runs import AnyMix
from kornia_mvit.augmentation.operations import Kind, lost_targets
from kornia_mvit.batch import Batch
from kornia_mvit.ops.keypoints import Pairs, swap_order

__all__ = ["read_given", "refuse_targets"]


def read_given(batch: Any, label: Tensor | None, ignore_index: int) -> Batch:
    """Return images and labels, or what a loader gave, as a batch."""
    if isinstance(batch, Tensor):
        return Batch(batch, label)
    if label is not None:
        raise TypeError(f"a {type(batch).__name__} carries its labels; give none beside it")
    return Batch.read(batch, ignore_index=ignore_index)


def refuse_targets(
    batch: Batch,
    stack: AugmentationSequential | None,
    unable: Mapping[Kind, Sequence[str]],
    mixes: Sequence[AnyMix],
    flip_pairs: Pairs | None,
) -> None:
    """Refuse a batch with targets that some operation cannot carry, sampled or not.

    Args:
        batch: images with their targets.
        stack: the operations.
        unable: names of the operations that cannot carry some target, by their kind.
        mixes: what mixes the images, in order.
        flip_pairs: keypoints that are swapped in mirrored images.
    """
    has = [name for name in ("boxes", "keypoints", "mask", "extra") if getattr(batch, name) is not None]
    has += [f"extra[{name!r}]" for name, one in (batch.extra or {}).items() if one.kind == "vectors"]
    for kind, names in unable.items():
        lost = lost_targets(kind, has)
        if names and lost:
            raise ValueError(
                f"{', '.join(names)} cannot carry {' and '.join(lost)} along: it {kind.value}; take it out of the "
                "augmentation, or the targets out of the batch"
            )
    if batch.keypoints is not None and flip_pairs:
        swap_order(flip_pairs, batch.keypoints.shape[-2])
    if stack is not None:
        check_channels(stack, batch.image.shape[1])
    for mix in mixes:
        mix.check(batch)
