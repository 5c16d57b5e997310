"""Callbacks that show how a run went: a report, pictures in the log, a table of the log."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kornia_mvit import __version__
from kornia_mvit.batch import Batch
from kornia_mvit.draw.images import draw_batch
from kornia_mvit.evaluation.base import BaseCollector, BaseEvaluation
from kornia_mvit.evaluation.classification import Collector
from kornia_mvit.evaluation.detection import DetectionCollector
from kornia_mvit.evaluation.report import write_report
from kornia_mvit.evaluation.segmentation import SegmentationCollector
from kornia_mvit.files import printable, write_whole
from kornia_mvit.parsing import count_of
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.lightning_adapter import is_trial
from kornia_mvit.training.lightning_names import (
    CSVLogger,
    ModelCheckpoint,
    TensorBoardLogger,
    TrainerFn,
    WeightAveraging,
    pl,
    rank_zero_info,
)
from kornia_mvit.training.range_learning import range_values
from kornia_mvit.training.resuming import LastCheckpoint, SaveOnSignal
from kornia_mvit.training.runs import RunTable, deciding_loss, first_step, run_folder

__all__ = ["CSVLog", "LogPictures", "Report"]

_VALIDATION = "val"  # what the names of validation's metrics begin with
_COLLECTORS: dict[str, type[BaseCollector[Any]]] = {
    "classification": Collector,
    "detection": DetectionCollector,
    "segmentation": SegmentationCollector,
}


class _Collects(pl.Callback):
    """Something that looks at the predictions of validation: it knows the run's folder, and collects from batches."""

    def __init__(self) -> None:
        self._folder = Path()
        self._collector: BaseCollector[Any] | None = None  # while there is something to collect

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask for the folder while all processes are here to agree on it."""
        self._folder = run_folder(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch."""
        if self._collector is None or dataloader_idx:
            return
        if self._is_known(pl_module, outputs, batch):
            self._collector.add(outputs, batch, _preprocess(pl_module))

    def _is_known(self, module: pl.LightningModule, outputs: Any, batch: Any) -> bool:
        """Return whether a step returned what is collected."""
        return isinstance(batch, Batch) and isinstance(outputs, dict) and _collector_of(module).output in outputs


class Report(_Collects):
    """Write a report at the end of a fit, and of a validation or test run by itself.

    It is about the validation with the best value of what the trainer's first ModelCheckpoint monitors, and so about
    the weights of its best checkpoint; without a monitor, about the last validation. The predictions are taken from
    the validations as they run, so no pass is made for the report, and a distributed run writes it from all
    processes' images. Of each image what its numbers follow from is kept, such as the five most probable classes, and
    of the worst ones small pictures. They go into checkpoints, as do the metrics of all epochs, so that the report of
    a resumed run is about all of it.

    Reports of fits are in the folder ``report`` of the run, those of ``validate`` and ``test`` in ``report-validate``
    and ``report-test``. The run's folder is that of ``RunFolder``, or else that of the log. With several loaders the
    first is reported. A sampler that repeats images to even out processes, as Lightning's own does, has them counted
    twice.

    Args:
        folder: where fits are reported, in place of the run's folder.
        worst: mistakes to show; of segmentation a third as many images, and as many of
            the best; of detection half as many images.

    Raises:
        ValueError: for a negative ``worst``, and if it stands behind a callback that saves at the end of an epoch.
        TypeError: in the first validation, if ``validation_step`` does not return what that of the tasks does.

    Example:
        >>> from pytorch_lightning.callbacks import ModelCheckpoint
        >>> callbacks = [ModelCheckpoint(monitor='val/accuracy', mode='max'), Report(), LogPictures(), CSVLog()]
    """

    def __init__(self, folder: str | None = None, worst: int = 24) -> None:
        if worst < 0:
            raise ValueError(f"worst {worst} is negative; 0 shows no mistakes")
        super().__init__()
        self.folder = folder
        self.worst = worst
        self._latest: BaseEvaluation | None = None
        self._best: dict[str, Any] | None = None  # evaluation, epoch, monitor, score and loss, as plain data
        self._history: list[dict[str, float]] = []
        self._resumed_at = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look at the order of the callbacks, and ask for the folder."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        before = callbacks[: callbacks.index(self)]
        if early := [type(one).__name__ for one in before if isinstance(one, LastCheckpoint | SaveOnSignal)]:
            raise ValueError(f"Report comes after {early[0]} in callbacks, whose checkpoints miss it; put it before")
        super().setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Keep the curves, and what was best."""
        return {"history": self._history, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the curves, and what was best."""
        self._history = [dict(row) for row in state_dict["history"]]
        self._best = state_dict["best"]
        self._resumed_at = max((row["epoch"] for row in self._history), default=0.0)

    # Validation and test are collected alike.

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start collecting."""
        self._collector = None if trainer.sanity_checking else _collector_of(pl_module)(self.worst)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the evaluations of the processes."""
        if self._collector is not None:
            self._latest, self._collector = _gather(trainer, self._collector), None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics, and the predictions if they are the best so far."""
        if trainer.sanity_checking or self._latest is None:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._note(trainer, lambda name: name.startswith(_VALIDATION))
            self._keep_best(trainer, self._latest)
        else:
            self._write_evaluation(trainer, pl_module, "validation images", "validate")

    on_test_epoch_start = on_validation_epoch_start

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    on_test_epoch_end = on_validation_epoch_end

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report."""
        if self._latest is not None:
            self._write_evaluation(trainer, pl_module, "test images", "test")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics of training, the learning rate, and the ends of learned ranges."""
        self._note(trainer, lambda name: not name.startswith(_VALIDATION))
        if trainer.optimizers:
            self._row(trainer)["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._row(trainer).update(range_values(pl_module))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report."""
        if self._best is None:
            rank_zero_info("no report: there was no validation")
            return
        best = self._best
        evaluation = _collector_of(pl_module).kind.from_dict(best["evaluation"])
        when = f"after epoch {best['epoch']:g} of {max(row['epoch'] for row in self._history):g}"
        if best["monitor"] is not None:
            when += f", where {best['monitor']} was best ({best['score']:.4f})"
        about = [f"{count_of(len(evaluation), 'validation image')}, {_weights(trainer)} {when}."]
        kept = trainer.checkpoint_callback
        if isinstance(kept, ModelCheckpoint) and kept.monitor is not None and kept.best_model_score is not None:
            if kept.monitor == best["monitor"] and float(kept.best_model_score) == best["score"]:
                about.append(f"Checkpoint: {kept.best_model_path}")
            elif best["epoch"] <= self._resumed_at:
                about.append("That was before the run was resumed; the checkpoint lies with the log of that time.")
        folder = self._folder / "report" if self.folder is None else Path(self.folder)
        self._write(trainer, pl_module, folder, evaluation, about)

    def _is_known(self, module: pl.LightningModule, outputs: Any, batch: Any) -> bool:
        if not super()._is_known(module, outputs, batch):
            raise TypeError(
                f"a report needs a Batch, and steps that return {{'{_collector_of(module).output}': …}} as the "
                f"project's tasks do; {type(module).__name__} returned {type(outputs).__name__} for a "
                f"{type(batch).__name__}"
            )
        return True

    def _write_evaluation(self, trainer: pl.Trainer, pl_module: pl.LightningModule, images: str, command: str) -> None:
        assert self._latest is not None
        path = trainer.ckpt_path
        about = [f"{len(self._latest):,} {images}, {_weights(trainer)}{f' in {path}' if path else ' at hand'}."]
        self._write(trainer, pl_module, self._folder / f"report-{command}", self._latest, about)

    def _write(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        folder: Path,
        evaluation: BaseEvaluation,
        about: list[str],
    ) -> None:
        if not trainer.is_global_zero or is_trial(trainer):
            return
        fitting = trainer.state.fn == TrainerFn.FITTING
        network = getattr(pl_module, "network", pl_module)
        settings = {
            "network": type(network).__name__,
            "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        }
        given = pl_module.hparams.items()  # the names that Lightning adds begin with an underscore
        settings |= {name: value for name, value in given if value is not None and not name.startswith("_")}
        settings |= {"kornia_mvit": __version__, "torch": torch.__version__}
        path = write_report(
            folder,
            evaluation,
            history=self._history,
            class_names=getattr(pl_module, "class_names", None),
            title=f"{type(network).__name__} on {evaluation.num_classes} classes",
            about=about,
            best=self._best["epoch"] if fitting and self._best is not None else None,
            settings=settings,
            class_colours=getattr(pl_module, "class_colours", None),
        )
        rank_zero_info(printable(f"report: {path}"))

    def _row(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the history's row of this moment, a new one if need be."""
        loop = trainer.fit_loop.epoch_loop
        steps = trainer.num_training_batches
        done = loop.batch_progress.current.ready / steps if math.isfinite(steps) and steps else 1.0
        epoch = round(trainer.current_epoch + min(1.0, done), 4)
        if not self._history or self._history[-1]["epoch"] != epoch:
            self._history.append({"epoch": epoch})
        return self._history[-1]

    def _note(self, trainer: pl.Trainer, wanted: Callable[[str], bool]) -> None:
        row = self._row(trainer)
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if wanted(name)}

    def _keep_best(self, trainer: pl.Trainer, latest: BaseEvaluation) -> None:
        kept = trainer.checkpoint_callback
        monitor = kept.monitor if isinstance(kept, ModelCheckpoint) else None
        if monitor is None or not monitor.startswith(_VALIDATION) or monitor not in trainer.callback_metrics:
            monitor, score = None, math.nan
        else:
            score = float(trainer.callback_metrics[monitor])
        before, loss = self._best, deciding_loss(trainer)
        if before is not None and before["monitor"] == monitor and not math.isnan(before["score"]):
            assert isinstance(kept, ModelCheckpoint)
            better = score > before["score"] if kept.mode == "max" else score < before["score"]
            if not better and not (score == before["score"] and loss < before.get("loss", math.inf)):
                return
        epoch = self._row(trainer)["epoch"]
        self._best = {"evaluation": latest.to_dict(), "epoch": epoch, "monitor": monitor, "score": score, "loss": loss}


class LogPictures(_Collects):
    """Put pictures of augmented batches and of the worst mistakes into the log.

    TensorBoard's log gets them as images. They are also written as PNG files into the folder ``pictures`` of the run.
    Mistakes are shown where validation gives predictions, those of the main process's share of the images.

    Args:
        every_n_epochs: epochs from one picture to the next; the first has one.
        count: images in a picture.

    Raises:
        ValueError: unless both are at least 1.
    """

    def __init__(self, every_n_epochs: int = 5, count: int = 32) -> None:
        if every_n_epochs < 1 or count < 1:
            raise ValueError(f"every_n_epochs {every_n_epochs} and count {count} are not at least 1")
        super().__init__()
        self.every_n_epochs = every_n_epochs
        self.count = count

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw an epoch's first batch, as the network sees it."""
        if batch_idx == 0 and self._is_due(trainer) and isinstance(batch, Batch):
            names = getattr(pl_module, "class_names", None)
            picture = draw_batch(batch[: self.count], names, preprocess=_preprocess(pl_module))
            self._put(trainer, "batch", picture)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start collecting."""
        due = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._is_due(trainer)
        self._collector = _collector_of(pl_module)(self.count) if due else None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the worst mistakes, if there are any."""
        found = None if self._collector is None else self._collector.evaluation()
        self._collector = None
        names, colours = (getattr(pl_module, name, None) for name in ("class_names", "class_colours"))
        picture = None if found is None else found.draw_worst(names, colours)
        if picture is not None:
            self._put(trainer, "mistakes", picture)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return trainer.is_global_zero and not is_trial(trainer) and trainer.current_epoch % self.every_n_epochs == 0

    def _put(self, trainer: pl.Trainer, name: str, picture: Any) -> None:
        path = self._folder / "pictures" / f"epoch-{trainer.current_epoch:04d}-{name}.png"
        with write_whole(path) as beside:
            picture.save(beside)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
                image = pixels.reshape(picture.height, picture.width, 3)
                logger.experiment.add_image(f"pictures/{name}", image, trainer.global_step, dataformats="HWC")


class CSVLog(pl.Callback):
    """Write what is logged into a table too: ``metrics.csv``, with a row for each step, beside the report.

    A run that resumes in the same folder goes on with its table. Nothing is done without a logger, where there is a
    CSVLogger already, or in an evaluation.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self._first: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask for the folder while all processes are here to agree on it."""
        self._folder = run_folder(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note where the run resumes."""
        self._first = first_step(checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the logger."""
        there = is_trial(trainer) or any(isinstance(logger, CSVLogger) for logger in trainer.loggers)
        if trainer.loggers and not there:
            trainer.loggers = [*trainer.loggers, RunTable(self._folder, self._first)]


def _preprocess(module: pl.LightningModule) -> Preprocess | None:
    preprocess = getattr(module, "preprocess", None)
    return preprocess if isinstance(preprocess, Preprocess) else None


def _collector_of(module: pl.LightningModule) -> type[BaseCollector[Any]]:
    return _COLLECTORS[getattr(module, "task_name", "classification")]


def _gather(trainer: pl.Trainer, collector: BaseCollector[Any]) -> BaseEvaluation | None:
    """Join the evaluations of all processes, on each of them."""
    own: BaseEvaluation | None = collector.evaluation()
    if trainer.world_size == 1:
        return own
    shares: list[dict[str, Any] | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, None if own is None else own.to_dict())
    found = [collector.kind.from_dict(share) for share in shares if share is not None]
    return collector.kind.concatenate(found, collector.worst) if found else None


def _weights(trainer: pl.Trainer) -> str:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    averaged = any(isinstance(callback, WeightAveraging) for callback in callbacks)
    return "the moving average of the weights (EMA)" if averaged else "the weights"
