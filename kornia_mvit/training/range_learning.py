"""How a task learns the ranges of its augmentation: their loss, their place in the optimiser and in the log."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.augmentation.range_runs import Gradients
from kornia_mvit.augmentation.ranges import LearnedRanges
from kornia_mvit.batch import Batch
from kornia_mvit.training.lightning_adapter import trainer_of
from kornia_mvit.training.lightning_names import pl

__all__ = ["RangeLearning", "range_groups", "range_values", "ranges_of"]


class RangeLearning(pl.LightningModule):
    """The part of a task that learns the ranges of its pipeline, where it has any.

    The loss of the ranges is computed with the augmentation of a batch, and waits for ``training_step`` to add it.
    """

    pipeline: AugmentationPipeline

    def __init__(self) -> None:
        super().__init__()
        self._found: Gradients | None = None
        self._total: float | None = None  # steps of the run

    def add_range_loss(self, loss: Tensor) -> Tensor:
        """Return the loss of a training batch with that of the pipeline's learned ranges, and log the latter."""
        ranges, found, self._found = self.pipeline.ranges, self._found, None
        if ranges is None or found is None or found.loss is None or found.similarity is None:
            return loss
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=1)
        log("ranges/loss", found.loss.detach())
        log(f"ranges/{ranges.measure}", found.similarity)
        log("ranges/target", ranges.target)
        return loss + found.loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Check that the step had the loss of the ranges in it.

        Raises:
            RuntimeError: where ``training_step`` left it out, naming what adds it.
        """
        if self._found is not None:
            raise RuntimeError(
                f"the loss of {type(self).__name__}.training_step lacks that of the learned ranges; return "
                "self.add_range_loss(loss)"
            )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of the network, and leave those of the ranges as they are."""
        parameters = [] if self.pipeline.ranges is None else list(self.pipeline.ranges.parameters())
        kept = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient

    def on_train_start(self) -> None:
        """Forget an earlier run of this task, such as a learning-rate finder's."""
        self._found = self._total = None

    def on_train_epoch_end(self) -> None:
        """Log the ends of the ranges."""
        self.log_dict(range_values(self))

    def _augment(self, batch: Batch) -> Batch:
        """Augment or prepare a batch as the pipeline's mode says, and keep the loss of its ranges where they learn.

        Raises:
            ValueError: for a curriculum in a run without a length.
        """
        ranges = self.pipeline.ranges
        if ranges is None or not self.pipeline.training or not torch.is_grad_enabled():
            plain: Batch = self.pipeline(batch)
            return plain
        trainer = trainer_of(self)
        if trainer is not None:
            if self._total is None:
                self._total = trainer.estimated_stepping_batches
            if self._total != math.inf:
                ranges.set_step(trainer.global_step, max(1, int(self._total)))
            elif ranges.curriculum[0] != ranges.curriculum[1]:
                raise ValueError("the ranges' curriculum needs the length of the run; give max_epochs or max_steps")
        out, _, self._found = self.pipeline.augment_with_loss(batch)
        return out


def ranges_of(module: pl.LightningModule) -> LearnedRanges | None:
    """Return the learned ranges of a task's pipeline, if there are any."""
    found = getattr(getattr(module, "pipeline", None), "ranges", None)
    return found if isinstance(found, LearnedRanges) else None


def range_values(module: pl.LightningModule) -> dict[str, float]:
    """Return the ends of a task's learned ranges, as ``ranges/NAME_low`` and ``ranges/NAME_high``."""
    ranges = ranges_of(module)
    ends = {} if ranges is None else ranges.values()
    return {
        f"ranges/{name}_{end}": value
        for name, pair in ends.items()
        for end, value in zip(("low", "high"), pair, strict=True)
    }


def range_groups(ranges: LearnedRanges | None) -> list[dict[str, Any]]:
    """Return the group of an optimiser's parameters that the ends of ranges are, with a constant learning rate."""
    parameters = [] if ranges is None else [one for one in ranges.parameters() if one.requires_grad]
    if ranges is None or not parameters:
        return []
    rate = ranges.learning_rate
    return [{"params": parameters, "lr": rate, "weight_decay": 0.0, "head": True, "constant": True}]
