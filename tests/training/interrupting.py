"""A callback that has the run's own process meet a signal."""

import os

import pytorch_lightning as pl


class SignalAt(pl.Callback):
    """Send a signal to this process after a step, on one rank."""

    def __init__(self, step: int, number: int, rank: int = 0) -> None:
        self.step = step
        self.number = number
        self.rank = rank

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)
