"""A callback that has the run's own process meet a signal."""

import os

import pytorch_lightning as pl


class SignalAt(pl.Callback):
    """Send a signal to this process after a step, on one rank; or to its whole group, as Ctrl+C in a terminal does."""

    def __init__(self, step: int, number: int, rank: int = 0, group: bool = False) -> None:
        self.step = step
        self.number = number
        self.rank = rank
        self.group = group

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            if self.group:
                os.killpg(os.getpgrp(), self.number)
            else:
                os.kill(os.getpid(), self.number)
