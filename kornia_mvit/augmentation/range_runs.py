"""Learned ranges in a pipeline: which gradients a run carries, and what it leaves."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from kornia_mvit.augmentation.ranges import LearnedRanges, Params
from kornia_mvit.batch import Batch, replace_checked

__all__ = ["Gradients", "plan_gradients", "range_extra", "run_ranges"]


@dataclass
class Gradients:
    """What of a run of the ranges carries gradients, and what it leaves.

    Args:
        image: whether the images do.
        wanted: whether the loss is computed.
        present: whether a replay takes the present ends, and not those that were recorded.
        loss: of the ranges.
        similarity: mean of the images that were changed, in dB or as SSIM, without gradients.
    """

    image: bool = False
    wanted: bool = False
    present: bool = False
    loss: Tensor | None = None
    similarity: Tensor | None = None

    def forget(self) -> None:
        """Set the loss to 0, as that of no images is."""
        with torch.enable_grad():
            self.loss = None if self.loss is None else 0 * self.loss


def plan_gradients(ranges: LearnedRanges | None, training: bool, wanted: bool = False) -> Gradients:
    """Return which gradients a run is to carry.

    Args:
        ranges: of the pipeline.
        training: whether the images may carry them, where ``task_gradients`` say so.
        wanted: whether the loss of the ranges is.

    Raises:
        ValueError: where the loss is wanted of a pipeline without ranges.
    """
    if ranges is None and wanted:
        raise ValueError("this pipeline has no learned ranges; build it with ranges=LearnedRanges(...)")
    teaches = ranges is not None and ranges.task_gradients and training and torch.is_grad_enabled()
    return Gradients(image=teaches, wanted=wanted)


def run_ranges(
    ranges: LearnedRanges, image: Tensor, seed: int, recorded: Params | None, gradients: Gradients
) -> tuple[Tensor, Params]:
    """Augment images by learned ranges, and tell what was done.

    Args:
        ranges: whose ends they are.
        image: (B, C, H, W), floating point in [0, 1].
        seed: of what is sampled.
        recorded: what was done before, to be done again.
        gradients: what is to carry them; gets the loss.

    Returns:
        The images, and plain data: what :meth:`LearnedRanges.sample` gave, and the ``ends`` (K, 2).

    Raises:
        ValueError: where a loader's process would learn.
    """
    if get_worker_info() is not None and any(one.requires_grad for one in ranges.parameters()):
        raise ValueError(
            "learned ranges learn in the process that trains, and this is one that loads data, where they would stay "
            "as they are; apply the pipeline to what the loader gives, or freeze them with ranges.requires_grad_(False)"
        )
    drawn = ranges.sample(len(image), seed) if recorded is None else recorded
    ends = None if recorded is None or gradients.present else recorded["ends"]
    with torch.set_grad_enabled(gradients.image or gradients.wanted):
        out = ranges(image, drawn, ends)
        if gradients.wanted:
            gradients.loss, gradients.similarity = ranges.compare(out, image, drawn)
    record = drawn if recorded is not None else drawn | {"ends": ranges.ends().detach().clone()}
    return out if gradients.image else out.detach(), record


def range_extra(ranges: LearnedRanges, batch: Batch, record: Params) -> Batch:
    """Return a batch whose further images were changed as its image was, without gradients.

    Args:
        ranges: whose operations they are.
        batch: floating-point images in [0, 1].
        record: what :func:`run_ranges` gave.
    """
    if batch.extra is None:
        return batch
    changed = {
        name: one.replace(ranges(one.tensor, record, record["ends"]).detach()) if one.kind == "image" else one
        for name, one in batch.extra.items()
    }
    return replace_checked(batch, extra=changed)
