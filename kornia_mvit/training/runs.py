"""One run, one folder: where a run writes, and how it goes on there when it resumes."""

import csv
import math
import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from kornia_mvit.files import printable, write_whole
from kornia_mvit.training.lightning_adapter import (
    is_trial,
    keep_one_file,
    move_run,
    own_callbacks,
    save_after_validation,
)
from kornia_mvit.training.lightning_names import (
    CSVLogger,
    ModelCheckpoint,
    TensorBoardLogger,
    TrainerFn,
    pl,
    rank_zero_experiment,
    rank_zero_info,
    save_hparams_to_yaml,
)

__all__ = ["RunFolder", "RunTable", "deciding_loss", "family_of", "first_step", "folder_of", "run_folder"]

_UNNAMED = Path("runs", "run")  # in place of the working folder, which is Lightning's default
_LOSS = "val/loss"
_OLDER = "checkpoints"  # the folder below a run's that 0.1.0 and Lightning's loggers keep checkpoints in
_BEGUN = ("metrics.csv", "hparams.yaml", "config.yaml", "events.out.tfevents.*", "pictures", "pictures/epoch-*.png")
_TRACES = ("last*.ckpt", "best.ckpt", "config.yaml", "metrics.csv", "events.out.tfevents.*", _OLDER, "lightning_logs")


class RunFolder(pl.Callback):
    """Keep all of a run in one folder, the trainer's ``default_root_dir``, and go on there when it resumes.

    It holds ``best.ckpt`` and ``last.ckpt``, ``metrics.csv``, TensorBoard's log, the report and the pictures. A new run
    does not touch a folder that holds a run: it takes the next free name, such as ``runs/folder-2``, and says so. A run
    that resumes goes on in the folder of its checkpoint: what was logged after the checkpoint's step is cut off, so
    that each step stands once, and the best checkpoint is known though the folder was moved. All processes write into
    the folder that the first one chooses. A folder that a run has made is removed where the run fails before its first
    step, unless there are other files than the run's in it.

    The first ModelCheckpoint with a monitor, and without a ``dirpath`` and a ``filename``, writes ``best.ckpt``: of
    epochs with the same score that with the lowest ``val/loss``, where it monitors another value of the validation.
    Others without a ``dirpath`` write into the folder under their own names. It stands before all other callbacks; the
    command line puts it there. ``fast_dev_run``, and a ``default_root_dir`` that is an address, are left to Lightning.

    Args:
        ckpt_path: what is given to ``Trainer.fit`` under this name, which callbacks learn too late.
        log: whether to write ``metrics.csv`` and TensorBoard's log; both only where the trainer has no logger.

    Raises:
        ValueError: where the run resumes from a checkpoint of another folder, which it was not told of.

    Example:
        >>> trainer = pl.Trainer(default_root_dir="runs/mine", logger=False, callbacks=[RunFolder()])  # doctest: +SKIP
    """

    def __init__(self, ckpt_path: str | Path | None = None, *, log: bool = True) -> None:
        self.ckpt_path = ckpt_path
        self.log = log
        self.folder: Path | None = None
        self.best: ModelCheckpoint | None = None  # where the loss decides between equal scores
        self._best_loss = math.inf
        self._made = False  # the folder, by this run
        self._loggers: list[Any] = []
        self._first: int | None = None  # the step that a resumed run starts with

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the folder, while all processes are here to agree on it."""
        if is_trial(trainer) or "://" in trainer.default_root_dir:
            return
        if self.folder is None:
            chosen = str(self._choose(Path(trainer.default_root_dir), stage)) if trainer.is_global_zero else ""
            self.folder = Path(trainer.strategy.broadcast(chosen))
        move_run(trainer, self.folder)
        if stage != "fit":
            return
        named = False
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.dirpath is not None:
                continue
            callback.dirpath = str(self.checkpoints)
            if callback.monitor is not None and callback.monitor.startswith("val"):
                save_after_validation(callback)
            if not named and callback.monitor is not None and callback.filename is None and callback.save_top_k == 1:
                keep_one_file(callback, "best")
                named = True
                if callback.monitor.startswith("val") and callback.monitor != _LOSS:
                    self.best = callback
                    takes = partial(self._takes, callback.check_monitor_top_k)
                    callback.check_monitor_top_k = takes  # type: ignore[method-assign]  # its class has to stay

    def _takes(self, usual: Callable[..., bool], trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether the best checkpoint is written anew: for a better score, or a lower loss at an equal one."""
        assert self.best is not None
        loss, before = _loss(trainer), self.best.best_model_score
        lower = (
            current is not None and before is not None and float(current) == float(before) and loss < self._best_loss
        )
        taken = usual(trainer, current) or trainer.strategy.reduce_boolean_decision(lower)
        if taken:
            self._best_loss = loss
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Keep the loss of the best checkpoint."""
        return {"best_loss": self._best_loss} if math.isfinite(self._best_loss) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the loss of the best checkpoint."""
        loss = state_dict.get("best_loss")
        self._best_loss = loss if isinstance(loss, float) else math.inf

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's own checkpoints: that of the run, but for runs of 0.1.0."""
        assert self.folder is not None
        return Path(self.ckpt_path).parent if self.ckpt_path and folder_of(self.ckpt_path) else self.folder

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note where the run resumes, and find its best checkpoint where the folder now is."""
        if self.folder is None or trainer.state.fn != TrainerFn.FITTING:
            return
        own = folder_of(trainer.ckpt_path) if trainer.ckpt_path else None
        if own is not None and own.resolve() != self.folder.resolve():
            raise ValueError(
                f"the run in {own} would go on in {self.folder}; RunFolder(ckpt_path={str(trainer.ckpt_path)!r}) "
                "resumes it where it is"
            )
        self._first = first_step(checkpoint)
        self.follow(trainer, checkpoint)

    def follow(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Set the paths of the run's files in a checkpoint to where they are now, though the folder was moved.

        A task calls it before it forgets paths of other folders.
        """
        if self.folder is None or trainer.state.fn != TrainerFn.FITTING:
            return
        states = checkpoint.get("callbacks")
        for callback in trainer.checkpoint_callbacks:
            state = states.get(callback.state_key) if isinstance(states, dict) else None
            if isinstance(callback, ModelCheckpoint) and callback.dirpath == str(self.checkpoints):
                _find_files(state, callback.dirpath)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the loggers, which go on where the checkpoint was written."""
        if self.folder is None or not self.log or trainer.loggers != self._loggers:
            return
        self._loggers = [RunTable(self.folder, self._first)]
        try:
            board = TensorBoardLogger(self.folder, name="", version="", purge_step=self._first)
            self._loggers.insert(0, board)
        except ModuleNotFoundError:  # of TensorBoard
            pass
        trainer.loggers = self._loggers

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the folder where nothing was trained, which would count as a run."""
        if self.folder is None or not self._made or trainer.global_step:
            return
        if self._loggers and trainer.loggers == self._loggers:
            for logger in self._loggers:
                logger.finalize("failed")
            trainer.loggers = []  # Lightning finalises them afterwards
        _remove_begun(self.folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so where a finished run was resumed."""
        if self._first is None or trainer.global_step != self._first:
            return
        loop = trainer.fit_loop
        limit = "max_steps" if 0 <= loop.max_steps <= trainer.global_step else "max_epochs"
        if limit == "max_epochs" and not 0 <= (loop.max_epochs or 0) <= trainer.current_epoch:
            limit = "max_time"
        rank_zero_info(
            printable(
                f"the run in {self.folder} is finished, at epoch {trainer.current_epoch} and step "
                f"{trainer.global_step}: nothing was trained; to go on, raise --trainer.{limit}"
            )
        )

    def _choose(self, asked: Path, stage: str) -> Path:
        """Return the folder to write to, which is there from then on."""
        own = folder_of(self.ckpt_path) if self.ckpt_path else None
        if stage != "fit":
            return own or asked
        if own is not None:
            if own.resolve() not in (folder.resolve() for folder in family_of(asked)):
                rank_zero_info(printable(f"going on in {own}, the folder of the checkpoint"))
            return own
        if any(asked.glob("hpc_ckpt_*.ckpt")):  # from which Lightning resumes by itself
            return asked
        if asked.resolve() == Path.cwd():
            asked = _UNNAMED
        for number in count(1):
            folder = asked.with_name(f"{asked.name}-{number}") if number > 1 else asked
            if _holds_run(folder):
                continue
            self._made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            if self.log:
                try:  # no other run that starts now takes it too
                    (folder / RunTable.NAME).open("x").close()
                except FileExistsError:
                    continue
            if number > 1:
                rank_zero_info(printable(f"{asked} holds a run already: this one is in {folder}"))
            return folder
        raise AssertionError


def folder_of(checkpoint: str | Path) -> Path | None:
    """Return the folder of the run that a checkpoint lies in; None where it lies in none."""
    folder = Path(checkpoint).parent
    folder = folder.parent if folder.name == _OLDER else folder
    return folder if _holds_run(folder) else None


def family_of(folder: Path) -> list[Path]:
    """Return a run's folder and those of the later runs that were to have its name."""
    numbered = [one for one in folder.parent.glob("*-*") if re.fullmatch(re.escape(folder.name) + r"-\d+", one.name)]
    return [folder, *(one for one in numbered if one.is_dir())]


def run_folder(trainer: pl.Trainer) -> Path:
    """Return the folder that a run's report and pictures go to. All processes have to ask."""
    if any(isinstance(callback, RunFolder) and callback.folder for callback in own_callbacks(trainer)):
        return Path(trainer.default_root_dir)
    return Path(trainer.log_dir or trainer.default_root_dir)


def deciding_loss(trainer: pl.Trainer) -> float:
    """Return the loss that decides between equal scores of the trainer's best checkpoint; infinite where none does."""
    kept = trainer.checkpoint_callback
    deciding = [one.best for one in own_callbacks(trainer) if isinstance(one, RunFolder)]
    return _loss(trainer) if kept is not None and kept in deciding else math.inf


def _loss(trainer: pl.Trainer) -> float:
    loss = float(trainer.callback_metrics.get(_LOSS, math.inf))
    return math.inf if math.isnan(loss) else loss


def first_step(checkpoint: Mapping[str, Any]) -> int:
    """Return the step that a run starts with where it resumes from a checkpoint."""
    step = checkpoint.get("global_step")
    return step if isinstance(step, int) else 0


def _holds_run(folder: Path) -> bool:
    return any(True for trace in _TRACES for _ in folder.glob(trace))


def _remove_begun(folder: Path) -> None:
    """Remove a run's folder in which there is nothing but what runs write before their first step."""
    own = [path for name in _BEGUN for path in folder.glob(name)]
    if {*folder.rglob("*")} <= {*own}:
        with suppress(OSError):  # what another process has written since stays
            for path in reversed(own):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()


def _find_files(state: Any, folder: str) -> None:
    """Set the names of files in the state of a ModelCheckpoint to where they are now; leave out those that are not."""
    if not isinstance(state, dict) or not isinstance(state.get("dirpath"), str):
        return
    before = Path(state["dirpath"])

    def found(path: Any) -> Any:
        if not isinstance(path, str) or Path(path).parent != before:
            return path
        now = os.path.join(folder, Path(path).name)
        return now if os.path.exists(now) else ""

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if name in state:
            state[name] = found(state[name])
    if isinstance(kept := state.get("best_k_models"), dict):
        state["best_k_models"] = {found(path): score for path, score in kept.items() if found(path)}
    state["dirpath"] = folder


# -------------------------------------------------------------------------------------------------------------- table


class RunTable(CSVLogger):
    """Lightning's CSVLogger, with one row for each step, which goes on with the table of a run that resumes.

    Lightning's removes the table that it finds, and has a row for each time that something is logged.

    Args:
        folder: where ``metrics.csv`` lies.
        first: the step that the run resumes with, whose row and later ones of the interrupted run are cut off; None
            for a new run.
    """

    NAME = "metrics.csv"

    def __init__(self, folder: str | Path, first: int | None = None) -> None:
        super().__init__(folder, name="", version="")
        self._first = first or 0
        self._table: _Table | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the table."""
        if self._table is None:
            self._table = _Table(Path(self.log_dir), self._first)
        return self._table

    def finalize(self, status: str) -> None:
        """Write what is left."""
        if self._table is not None:
            self.save()


class _Table:
    """The rows, as CSVLogger asks for them."""

    def __init__(self, folder: Path, first: int) -> None:
        self.metrics: list[dict[str, Any]] = []  # not yet written
        self._path = folder / RunTable.NAME
        self._rows = [row for row in _read_rows(self._path) if row["step"] < first]
        self._names = sorted({name for row in self._rows for name in row})
        self._write_all()

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        self.metrics.append({**plain, "step": step})

    def log_hparams(self, params: dict[str, Any] | Namespace) -> None:
        save_hparams_to_yaml(self._path.with_name("hparams.yaml"), params)

    def save(self) -> None:
        new, self.metrics = self.metrics, []
        written = kept = len(self._rows)
        for row in new:
            if self._rows and self._rows[-1]["step"] == row["step"]:
                self._rows[-1] |= row
                kept = min(kept, len(self._rows) - 1)
            else:
                self._rows.append(row)
        names = sorted({*self._names, *(name for row in new for name in row)})
        if names != self._names or kept < written:
            self._names = names
            self._write_all()
        elif new:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._names).writerows(self._rows[written:])

    def _write_all(self) -> None:
        with write_whole(self._path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(self._rows)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table that was written before, less what is damaged, such as a last one that was cut."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"])} for row in rows if str(row.get("step")).isdigit()]
