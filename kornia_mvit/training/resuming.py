"""Stopping a run at any time, and resuming it as if it had not been stopped."""

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
import torch

from kornia_mvit.files import printable, sweep, write_whole
from kornia_mvit.training.launchers import LauncherWatch, requeue
from kornia_mvit.training.lightning_adapter import (
    EpochMetrics,
    ends_step,
    is_trial,
    is_validation_due,
    is_within_epoch,
    leave_finished_epoch,
    own_callbacks,
    recount_batches,
    requeue_signal,
    resume_averaging,
)
from kornia_mvit.training.lightning_names import (
    CombinedLoader,
    ModelCheckpoint,
    TorchCheckpointIO,
    WeightAveraging,
    pl,
    rank_zero_info,
    rank_zero_warn,
)
from kornia_mvit.training.loading import confine_paths, read_run
from kornia_mvit.training.runs import RunFolder
from kornia_mvit.weights.files import CheckpointError, read_checkpoint

__all__ = ["AtomicCheckpointIO", "ExactResume", "LastCheckpoint", "SaveOnSignal", "Stopped", "last_checkpoint"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STATE = "exact_resume"  # the place in a checkpoint


class ExactResume(pl.Callback):
    """Keep in the checkpoint what Lightning leaves out, so that a resumed run does what it would have done.

    These are the states of Python's, NumPy's and PyTorch's generators (CUDA's included) on every process, the training
    metrics of the epoch so far, and the place in the training data. Lightning 2.6 has a loader's state in its
    checkpoints, but passes over it wherever the number of steps was asked for before, as a learning-rate schedule does.
    Lightning's ``StochasticWeightAveraging`` resumes in the middle of an epoch, too.

    A run that resumes with another number of processes shares the rest of the epoch's samples anew among them, each of
    which comes at most once; it starts its generators and the epoch's metrics from scratch, and says so.

    Raises:
        CheckpointError: at the start of a run, for a state that is damaged or another run's.
    """

    def __init__(self) -> None:
        self._loaded: Any = None
        self._metrics = EpochMetrics()
        self._recount = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the states of all processes."""
        loaders = _loaders(trainer)
        places = [loader.state_dict() for loader in loaders]
        own = [_generator_states(), self._metrics.state_dict(trainer, pl_module), places]
        shares: list[Any] = [own]
        if trainer.world_size > 1:
            shares = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(shares, own)
        checkpoint[_STATE] = {
            "generators": [generators for generators, _, _ in shares],
            "metrics": [metrics for _, metrics, _ in shares],
            "loaders": [_merge(loader, [one[2][n] for one in shares]) for n, loader in enumerate(loaders)],
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until all is built, and check that the files it names are the run's own."""
        confine_paths(checkpoint, own_callbacks(trainer))
        self._loaded = checkpoint.get(_STATE)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the states."""
        loaded, self._loaded = self._loaded, None
        resume_averaging(trainer, pl_module)
        if not is_within_epoch(trainer):
            leave_finished_epoch(trainer)
        if loaded is None:
            return
        try:
            self._set_states(trainer, pl_module, loaded)
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else printable(error)
            raise CheckpointError(
                f"cannot resume from {trainer.ckpt_path}: what it keeps under {_STATE!r} is damaged, or of another run "
                f"({reason})"
            ) from None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the metrics stand."""
        self._metrics.start(pl_module)
        if self._recount:  # the epoch before was shorter or longer
            self._recount = False
            recount_batches(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the metrics of training from those of validation."""
        self._metrics.start_validation(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the metrics of training from those of validation."""
        self._metrics.end_validation(pl_module)

    def _set_states(self, trainer: pl.Trainer, module: pl.LightningModule, loaded: dict[str, Any]) -> None:
        loaders = _loaders(trainer)
        if loaded["loaders"] or not all(hasattr(loader, "merge_states") for loader in loaders):  # of older versions
            for loader, state in zip(loaders, loaded["loaders"], strict=True):
                loader.load_state_dict(state)
        if any(getattr(loader, "was_shared_anew", False) for loader in loaders):
            self._recount = True
            recount_batches(trainer)
        states, metrics = _checked_generators(loaded), loaded.get("metrics")  # the first version kept no metrics
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint has the random states of {len(states)} processes, this run has {trainer.world_size}; "
                "dropout continues with other random numbers, and the metrics of this epoch start here"
            )
            return
        if metrics is not None:
            self._metrics.load_state_dict(trainer, module, metrics[trainer.global_rank])
        _set_generator_states(states[trainer.global_rank])


def _loaders(trainer: pl.Trainer) -> list[Any]:
    """Return the training loaders that have a state."""
    loaders = trainer.train_dataloader
    flat = [] if loaders is None else CombinedLoader(loaders).flattened
    return [loader for loader in flat if hasattr(loader, "load_state_dict")]


def _merge(loader: Any, states: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one state of a loader for all processes; those of most loaders are the same."""
    merge: Any = getattr(loader, "merge_states", None)
    merged: dict[str, Any] = states[0] if merge is None else merge(states)
    return merged


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


def _checked_generators(loaded: object) -> list[dict[str, Any]]:
    """Return the generators' states, after checking what NumPy and PyTorch would take unseen."""
    try:
        states: list[dict[str, Any]] = loaded["generators"]  # type: ignore[index]  # a TypeError else
        for state in states:
            version, numbers, gauss = state["python"]
            random.Random().setstate((version, tuple(numbers), gauss))
            name, key, position, has_gauss, cached = state["numpy"]
            if type(position) is not int or not 0 <= position <= len(key):  # NumPy reads from there, wherever that is
                raise ValueError(position)
            np.random.RandomState().set_state((name, np.array(key, dtype=np.uint32), position, has_gauss, cached))
            torch.Generator().set_state(state["torch"].cpu())
            if not all(isinstance(own, torch.Tensor) for own in state["cuda"]):
                raise TypeError(state["cuda"])
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError):
        raise CheckpointError("the checkpoint's random states are damaged; resume from another") from None
    return states


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
        checkpoint: the file that the run resumes from.
    """

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(128 + number)
        self.signal: signal.Signals = signal.Signals(number)
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        told = f"stopped by {self.signal.name}; everything is in {self.checkpoint}"
        folder = os.path.dirname(self.checkpoint) or "."
        return f"{told}; the same command with --checkpoint {folder} resumes from it"


class _BetweenSteps(pl.Callback):
    """Something that is done between two steps of the optimiser, after the weights' average has taken the step in.

    Raises:
        ValueError: if it stands before a callback that averages weights, whose update it would miss.
    """

    def __init__(self) -> None:
        self._step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the order of the callbacks."""
        callbacks = own_callbacks(trainer)
        after = callbacks[callbacks.index(self) + 1 :]
        if late := [type(callback).__name__ for callback in after if isinstance(callback, WeightAveraging)]:
            raise ValueError(f"{type(self).__name__} comes before {late[0]} in callbacks; put it behind")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step at which the run starts."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait for a step, as gradients that are accumulated are in no checkpoint, and for the end of an epoch.

        A step that validation follows is passed over: a run that resumes there would leave the validation out.
        """
        if not ends_step(trainer, self._step):
            return
        self._step = trainer.global_step
        if not trainer.is_last_batch and not is_validation_due(trainer):
            self._between(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do it after the validation of the epoch."""
        self._at_epoch_end(trainer)

    def _between(self, trainer: pl.Trainer) -> None:
        raise NotImplementedError

    def _at_epoch_end(self, trainer: pl.Trainer) -> None:
        raise NotImplementedError


class LastCheckpoint(_BetweenSteps):
    """Keep ``last.ckpt``, which a run resumes from, beside the other checkpoints.

    It is written every so many steps, and at the end of each epoch after its validation; and once more before the next
    epoch, when callbacks that look at a metric, such as EarlyStopping, and schedules have taken the epoch in.

    Args:
        every_n_train_steps: steps of the optimiser from one writing to the next.
    """

    def __init__(self, every_n_train_steps: int = 50) -> None:
        super().__init__()
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps {every_n_train_steps} is not at least one step")
        self.every_n_train_steps = every_n_train_steps
        self._written = 0  # step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step at which the run starts."""
        super().on_train_start(trainer, pl_module)
        self._written = self._step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the last epoch has left."""
        if trainer.current_epoch and self._written == trainer.global_step:
            self._write(trainer, before_epoch=True)

    def _between(self, trainer: pl.Trainer) -> None:
        if self._step // self.every_n_train_steps > self._written // self.every_n_train_steps:
            self._write(trainer)

    def _at_epoch_end(self, trainer: pl.Trainer) -> None:
        self._write(trainer)

    def _write(self, trainer: pl.Trainer, before_epoch: bool = False) -> None:
        self._written = trainer.global_step
        if not is_trial(trainer):
            _save_last(trainer, before_epoch)


class SaveOnSignal(_BetweenSteps):
    """Write ``last.ckpt`` on SIGTERM or SIGINT, and end with exit status 143 or 130.

    The step that runs is finished first, and so is a validation, since a run resumes exactly only between two steps.
    A second SIGINT stops at once, without a checkpoint of its own. All processes of a distributed run stop at the same
    step, whichever of them was told. Under torchrun they stop too when that was killed. Under SLURM they stop on the
    signal of Lightning's ``SLURMEnvironment``, SIGUSR1, too, and the job is put into the queue again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._received: int | None = None
        self._stopped: Stopped | None = None
        self._earlier: dict[int, Any] = {}
        self._requeue_at: int | None = None  # signal
        self._group: Any = None
        self._watch: LauncherWatch | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set signal handlers, in place of Lightning's own."""
        super().on_train_start(trainer, pl_module)
        self._received = self._stopped = None
        if trainer.world_size > 1:  # on the CPU, so that no device is waited for at each step
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._requeue_at = requeue_signal(trainer)
            numbers = [*_SIGNALS, *([] if self._requeue_at is None else [self._requeue_at])]
            self._earlier = {number: signal.signal(number, self._receive) for number in numbers}
            self._watch = LauncherWatch()
            self._watch.start()

    # Once the checkpoint is written, the step's or the epoch's metrics are still to be logged: the next hook stops.

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if told to."""
        self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if told to, with what the last epoch has left."""
        if self._stopped is not None:
            _save_last(trainer, before_epoch=True)
        self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if told to."""
        self._stop()
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the signal handlers, and stop if told to."""
        self._restore()
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._restore()

    def _between(self, trainer: pl.Trainer) -> None:
        self._save_if_told(trainer)

    def _at_epoch_end(self, trainer: pl.Trainer) -> None:
        self._save_if_told(trainer)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is None or self._received != self._requeue_at:  # SIGTERM follows where the time is up
            self._received = number
        name = signal.Signals(number).name
        rank_zero_info(f"\n{name}: finishing the step, or the validation, and writing a checkpoint")

    def _save_if_told(self, trainer: pl.Trainer) -> None:
        number = self._received or 0
        if trainer.world_size > 1:
            told = torch.tensor([number, number if number == self._requeue_at else 0])
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(told[1]) or int(told[0])
        if number:
            self._stopped = Stopped(number, _save_last(trainer))
            if number == self._requeue_at and trainer.is_global_zero:
                requeue()

    def _stop(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}
        if self._watch is not None:
            self._watch.stop()


def _save_last(trainer: pl.Trainer, before_epoch: bool = False) -> Path:
    """Write the checkpoint; before an epoch as if that had not begun, since Lightning takes no other up."""
    path = _folder(trainer) / "last.ckpt"
    for logger in trainer.loggers:  # what waits in memory is not logged again by a run that resumes
        logger.save()
    progress: Any = trainer.fit_loop.epoch_progress
    for tracker in (progress.total, progress.current):
        tracker.ready -= before_epoch
    try:
        trainer.save_checkpoint(path)
    finally:
        for tracker in (progress.total, progress.current):
            tracker.ready += before_epoch
    return path


def _folder(trainer: pl.Trainer) -> Path:
    """Return the folder of a run's checkpoints."""
    for callback in own_callbacks(trainer):
        if isinstance(callback, RunFolder) and callback.folder is not None:
            return callback.checkpoints
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
        data = io.BytesIO()
        torch.save(checkpoint, data)
        with write_whole(path) as beside:
            beside.write_bytes(data.getbuffer())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint as data.

        Args:
            path: the file, or its address.
            map_location: where the tensors go.
            weights_only: False leaves reading to Lightning, which then runs what a pickle says.

        Raises:
            CheckpointError: if it cannot be read, or holds a function or a class.
        """
        if weights_only is False:
            return super().load_checkpoint(path, map_location, weights_only=False)
        return read_run(path, map_location)


def last_checkpoint(folder: str | Path) -> Path | None:
    """Find the newest complete checkpoint that a run can resume from, in a folder and those below it.

    Args:
        folder: such as the trainer's ``default_root_dir``.

    Returns:
        The newest file named ``last*.ckpt`` that can be read and holds the state of a run; None without one. Those
        that cannot be read are named and passed over. What killed processes left half written is removed.
    """
    sweep(folder)
    for path in _newest_first(Path(folder)):
        try:
            if "loops" in read_checkpoint(path, whole=True):
                return path
            reason = "it holds weights alone"
        except CheckpointError as error:
            reason = str(error)
        rank_zero_warn(printable(f"passed over {path}: {reason}"))
    return None


def _newest_first(folder: Path) -> Iterator[Path]:
    files = [path for path in folder.rglob("last*.ckpt") if path.is_file()]
    yield from sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
