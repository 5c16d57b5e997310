"""Callbacks that Lightning lacks."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from kornia_mvit.training.heap import keep_freed_memory, release_freed_memory
from kornia_mvit.training.lightning_adapter import restore_loaders
from kornia_mvit.training.lightning_names import Callback, TrainerFn, WeightAveraging, pl
from kornia_mvit.training.range_learning import ranges_of

__all__ = ["EMA", "KeepMemory", "RestoreLoaders"]


class EMA(WeightAveraging):
    """Exponential moving average of the weights and of the normalisation's statistics, its decay warmed up.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short run forgets its first weights too; an
    average over a shorter part of the run was no better (``benchmarks/first_run.py``).
    The ends of learned ranges are not averaged.
    Validation and the checkpoint's ``state_dict`` use the average; the raw weights stand in the checkpoint under
    ``current_model_state``.

    Args:
        decay: the decay reached in the end.
        device: where the average is kept; the model's device when None.

    Raises:
        ValueError: for a decay outside [0, 1).
    """

    def __init__(self, decay: float = 0.9995, device: str | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} is not in [0, 1)")
        super().__init__(device=device, use_buffers=True, multi_avg_fn=partial(_average, decay))
        self.decay = decay

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning keeps, and the decay."""
        return {**super().state_dict(), "decay": self.decay}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average, and give it the present ends of learned ranges."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        ranges, average = ranges_of(pl_module), self._average_model
        own = None if average is None else ranges_of(cast(pl.LightningModule, average.module))
        if ranges is not None and own is not None:
            own.load_state_dict(ranges.state_dict())

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average in training; evaluation has it already, in the checkpoint's ``state_dict``."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class KeepMemory(Callback):
    """Keep what a step frees for the next one, while a Trainer runs on a CPU; see :mod:`kornia_mvit.training.heap`."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep memory from now on."""
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give it back."""
        release_freed_memory()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give it back."""
        release_freed_memory()


class RestoreLoaders(Callback):
    """After an error, leave PyTorch's loaders as they were."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Undo what Lightning has left."""
        restore_loaders()


@torch.no_grad()
def _average(decay: float, average: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
    if not average[0].is_floating_point():  # counters
        for old, new in zip(average, current, strict=True):
            old.copy_(new)
        return
    n = torch.as_tensor(updates, device=average[0].device, dtype=torch.float32)
    keep = ((1 + n) / (10 + n)).clamp(max=decay)  # a tensor, so that no device has to be waited for
    difference = torch._foreach_sub(current, average)
    torch._foreach_mul_(difference, (1 - keep).to(average[0].dtype))
    torch._foreach_add_(average, difference)
