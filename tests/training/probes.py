"""Callbacks that look at a run from inside, or have it meet a signal."""

import json
import os
from pathlib import Path

import pytorch_lightning as pl


class SignalAt(pl.Callback):
    """Send a signal to this process after a step, on one rank; or to its whole group, as Ctrl+C in a terminal does.

    Where torchrun starts a run again, which goes through the same step once more, the first one alone gets it. With
    ``launcher`` the parent gets it.
    """

    def __init__(self, step: int, number: int, rank: int = 0, group: bool = False, launcher: bool = False) -> None:
        self.step = step
        self.number = number
        self.rank = rank
        self.group = group
        self.launcher = launcher

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if trainer.global_step == self.step and trainer.global_rank == self.rank and first:
            if self.launcher:
                os.kill(os.getppid(), self.number)
            elif self.group:
                os.killpg(os.getpgrp(), self.number)
            else:
                os.kill(os.getpid(), self.number)


class Record(pl.Callback):
    """Write down each step's loss and the images that it saw, for each process."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        seen = [Path(meta["path"]).relative_to(Path(meta["path"]).parents[1]).as_posix() for meta in batch.meta]
        self.steps.append({"epoch": trainer.current_epoch, "loss": float(outputs["loss"]), "seen": seen})

    def on_train_end(self, trainer, pl_module):
        Path(self.folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(self.steps))


class NoteRanges(pl.Callback):
    """Write down for each process, in each step, the loss, and the gradients of the learned ranges and their ends."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        ranges = pl_module.pipeline.ranges
        ends = [list(pair) for pair in ranges.values().values()]
        self.steps.append({"gradient": [one.grad.tolist() for one in ranges.parameters()], "ends": ends})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps[-1]["loss"] = float(outputs["loss"])

    def on_train_end(self, trainer, pl_module):
        Path(self.folder, f"ranges{trainer.global_rank}.json").write_text(json.dumps(self.steps))
