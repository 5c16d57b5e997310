"""What lets a run be stopped at any time and go on as if it had not been."""

import io
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from pytorch_lightning.utilities import CombinedLoader, rank_zero_info, rank_zero_warn

from kornia_mvit.weights.files import CheckpointError, read_checkpoint

__all__ = ["AtomicCheckpointIO", "ExactResume", "LastCheckpoint", "SaveOnSignal", "Stopped", "last_checkpoint"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STATE = "exact_resume"  # the place in a checkpoint


class ExactResume(pl.Callback):
    """Keep in the checkpoint what Lightning leaves out, so that a resumed run does what it would have done.

    These are the states of Python's, NumPy's and PyTorch's generators (CUDA's included) on every process, and the place
    in the training data. Lightning 2.6 has a loader's state in its checkpoints, but passes over it wherever the number
    of steps was asked for before, as a learning-rate schedule does.

    A run that goes on with another number of processes starts its generators anew, and says so.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the states of all processes."""
        own = _generator_states()
        states = [own]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, own)
        checkpoint[_STATE] = {"generators": states, "loaders": [loader.state_dict() for loader in _loaders(trainer)]}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the states, to set them when all is built."""
        self._loaded = checkpoint.get(_STATE)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the states."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        for loader, state in zip(_loaders(trainer), loaded["loaders"], strict=True):
            loader.load_state_dict(state)
        states = loaded["generators"]
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint has the random states of {len(states)} processes, this run has {trainer.world_size}; "
                "dropout goes on with numbers of its own"
            )
            return
        _set_generator_states(states[trainer.global_rank])


def _loaders(trainer: pl.Trainer) -> list[Any]:
    """Give the training loaders that have a state."""
    loaders = trainer.train_dataloader
    flat = [] if loaders is None else CombinedLoader(loaders).flattened
    return [loader for loader in flat if hasattr(loader, "load_state_dict")]


def _generator_states() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [
            legacy["bit_generator"],
            legacy["state"]["key"].tolist(),
            int(legacy["state"]["pos"]),
            int(legacy["has_gauss"]),
            float(legacy["gauss"]),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def _set_generator_states(states: dict[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, key, pos, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(key, dtype=np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


class Stopped(SystemExit):
    """A signal stopped the run, after its checkpoint was written; ``code`` is the exit status, 128 and the signal.

    Args:
        number: the signal.
        checkpoint: the file that the run goes on from.
    """

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(128 + number)
        self.signal: signal.Signals = signal.Signals(number)
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}; everything is in {self.checkpoint}; --ckpt_path last goes on from it"


class _BetweenSteps(pl.Callback):
    """Something that is done between two steps of the optimiser, after the weights' average has taken the step in.

    Raises:
        ValueError: if it stands before a callback that averages weights, whose update it would miss.
    """

    def __init__(self) -> None:
        self._step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look at the order of the callbacks."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        after = callbacks[callbacks.index(self) + 1 :]
        if late := [type(callback).__name__ for callback in after if isinstance(callback, WeightAveraging)]:
            raise ValueError(f"{type(self).__name__} comes before {late[0]} in callbacks; put it behind")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the run begins."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait for a step, as gradients that are accumulated are in no checkpoint, and for the end of an epoch."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            if not trainer.is_last_batch:  # else validation follows
                self._between(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do it after the validation."""
        self._at_epoch_end(trainer)

    def _between(self, trainer: pl.Trainer) -> None:
        raise NotImplementedError

    def _at_epoch_end(self, trainer: pl.Trainer) -> None:
        raise NotImplementedError


class LastCheckpoint(_BetweenSteps):
    """Keep ``last.ckpt``, which a run goes on from, beside the other checkpoints.

    It is written every so many steps, and at the end of each epoch after its validation.

    Args:
        every_n_train_steps: steps of the optimiser from one writing to the next.
    """

    def __init__(self, every_n_train_steps: int = 50) -> None:
        super().__init__()
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps {every_n_train_steps} is not at least one step")
        self.every_n_train_steps = every_n_train_steps

    def _between(self, trainer: pl.Trainer) -> None:
        if self._step % self.every_n_train_steps == 0:
            _save_last(trainer)

    def _at_epoch_end(self, trainer: pl.Trainer) -> None:
        _save_last(trainer)


class SaveOnSignal(_BetweenSteps):
    """Write ``last.ckpt`` on SIGTERM or SIGINT, and end with exit status 143 or 130.

    The step that runs is finished first, and so is a validation, since checkpoints go on exactly from between steps.
    A second SIGINT stops at once, without a checkpoint of its own. All processes of a distributed run stop at the same
    step, whichever of them was told.
    """

    def __init__(self) -> None:
        super().__init__()
        self._received: int | None = None
        self._earlier: dict[int, Any] = {}
        self._group: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, in the place of Lightning's own handlers."""
        super().on_train_start(trainer, pl_module)
        self._received = None
        if trainer.world_size > 1:  # on the CPU, so that no device is waited for at each step
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no longer."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._restore()

    def _between(self, trainer: pl.Trainer) -> None:
        self._stop_if_told(trainer)

    def _at_epoch_end(self, trainer: pl.Trainer) -> None:
        self._stop_if_told(trainer)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        name = signal.Signals(number).name
        rank_zero_info(f"\n{name}: finishing the step, or the validation, and writing a checkpoint")

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        number = self._received or 0
        if trainer.world_size > 1:
            told = torch.tensor(number)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(told)
        if number:
            raise Stopped(number, _save_last(trainer))

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}


def _save_last(trainer: pl.Trainer) -> Path:
    path = _folder(trainer) / "last.ckpt"
    trainer.save_checkpoint(path)
    return path


def _folder(trainer: pl.Trainer) -> Path:
    """Give the folder of a run's checkpoints."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            return Path(callback.dirpath)
    return Path(trainer.default_root_dir) / "checkpoints"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their place and move them into it when they are whole.

    Where writing fails, as on a full disk, the file that was there before stays, and the error says so. Lightning's
    own writes to the system's temporary folder first, which is often another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: if it cannot be written, naming the file.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        torch.save(checkpoint, data)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                file.write(data.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            before = "the one from before stays" if path.exists() else "there is none from before"
            raise OSError(
                f"could not write checkpoint {path} of {data.tell() / 2**20:.1f} MiB ({error.strerror}); {before}"
            ) from error
        finally:
            part.unlink(missing_ok=True)


def last_checkpoint(folder: str | Path) -> Path | None:
    """Find the newest whole checkpoint that a run can go on from, in a folder and those below it.

    Args:
        folder: such as the trainer's ``default_root_dir``.

    Returns:
        The newest file named ``last*.ckpt`` that can be read and holds the state of a run; None without one. Those
        that cannot be read are named and passed over.
    """
    for path in _newest_first(Path(folder)):
        try:
            if "loops" in read_checkpoint(path):
                return path
            reason = "it holds weights alone"
        except CheckpointError as error:
            reason = str(error)
        rank_zero_warn(f"passed over {path}: {reason}")
    return None


def _newest_first(folder: Path) -> Iterator[Path]:
    files = [path for path in folder.rglob("last*.ckpt") if path.is_file()]
    yield from sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
