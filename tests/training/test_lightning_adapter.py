"""Runs that are stopped anywhere and resume: all that they compute and log, compared with runs that nothing stopped."""

import copy
import math
import os
import random
import signal
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from kornia_mvit.training import EMA, ClassificationTask, ExactResume, LastCheckpoint, Report, SaveOnSignal
from kornia_mvit.training.lightning_adapter import trainer_of
from kornia_mvit.training.resuming import Stopped
from kornia_mvit.weights.files import CheckpointError
from tests.training.test_tasks import Tones, trainer

LONG = pytest.mark.long
PLACES = ("dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models")


class Net(nn.Sequential):
    """With batch normalisation, and dropout."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.extend([nn.Dropout(0.3), nn.Linear(4, 2)])


class Rows(Logger):
    """Keeps what is logged."""

    name, version = "rows", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *arguments, **options):
        pass


class StopAfter(pl.Callback):
    """Sends SIGTERM after so many batches of a run, and notes the learning rate of each."""

    def __init__(self, batches):
        self.batches = batches
        self.rates = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.rates.append((trainer.current_epoch, index, trainer.optimizers[0].param_groups[0]["lr"]))
        if len(self.rates) == self.batches:
            os.kill(os.getpid(), signal.SIGTERM)


class LogsMuch(ClassificationTask):
    """Logs in every way that Lightning has, and updates a metric by hand."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.by_hand = MulticlassAccuracy(2)

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("each", loss, on_step=True, on_epoch=True)
        self.log("greatest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("least", loss, on_step=False, on_epoch=True, reduce_fx="min")
        self.log("total", loss, on_step=False, on_epoch=True, reduce_fx="sum")
        if index == 0:
            self.log("first", loss, on_step=False, on_epoch=True)
        self.by_hand.update(torch.rand(8, 2), torch.arange(8) % 2)
        return loss

    def on_train_epoch_end(self):
        self.log("by_hand", self.by_hand.compute())
        self.by_hand.reset()


class Plateau(ClassificationTask):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, mode="max")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def run(folder, callbacks, stop=0, ckpt_path=None, task=ClassificationTask, **arguments):
    """A run, and the checkpoint that it stopped with."""
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    arguments = {"max_epochs": 3, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "logger": Rows()} | arguments
    stopper = StopAfter(stop)
    callbacks = [*callbacks(), stopper, LastCheckpoint(1000), ExactResume(), SaveOnSignal()]
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    fit = trainer(folder, callbacks=callbacks, enable_checkpointing=checkpoints, **arguments)
    module = task(
        num_classes=2, network=Net(), image_size=32, learning_rate=1e-2, policy="classification_train", warmup_steps=2
    )
    stopped = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, about intervals and folders
        try:
            fit.fit(module, Tones(), ckpt_path=ckpt_path, weights_only=True)
        except Stopped as error:
            stopped = error.checkpoint
        fit.save_checkpoint(folder / "end.ckpt")
    return fit, stopper.rates, stopped


def state_of(folder):
    """All that a checkpoint holds, but for the places of files."""
    found = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in PLACES:
                    walk(f"{name}.{key}", item)
        elif isinstance(value, list | tuple):
            for key, item in enumerate(value):
                walk(f"{name}.{key}", item)
        else:
            found[name] = value.tolist() if isinstance(value, torch.Tensor) else value

    walk("", torch.load(folder / "end.ckpt", weights_only=True))
    return {name: "nan" if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def differences(tmp_path, stops, callbacks=list, **arguments):
    """The names of what differs between a run and one that is stopped after so many batches, and again after more."""
    whole, rates, _ = run(tmp_path / "whole", callbacks, **arguments)
    rows, seen, checkpoint = [], [], None
    for stop in (*stops, 0):
        part, some, checkpoint = run(tmp_path / "parts", callbacks, stop, checkpoint, **arguments)
        assert (checkpoint is None) == (stop == 0)
        rows += part.logger.rows
        seen += some
    expected, found = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    names += ["learning rates"] * (rates != seen) + ["rows"] * (whole.logger.rows != rows)
    assert whole.logger.rows, "nothing was logged"
    return names


def swa(**arguments):
    return lambda: [StochasticWeightAveraging(0.05, **arguments)]


def best():
    return ModelCheckpoint(monitor="val/loss", mode="min", save_top_k=2)


@pytest.fixture(autouse=True)
def unwritten(monkeypatch):
    """What a report is made of is in the checkpoints, and its pages take a second."""
    monkeypatch.setattr(Report, "on_fit_end", lambda *arguments: None)


class TestResume:
    """Weights, optimiser, schedules, callbacks, the report's history and every row of the log are equal to the bit."""

    @pytest.mark.parametrize(
        ("stops", "callbacks", "arguments"),
        [
            pytest.param((2, 1), lambda: [EMA(0.9), Report()], {}, id="within an epoch, twice"),
            pytest.param((4,), lambda: [EMA(0.9), Report()], {}, id="at its end", marks=LONG),
            pytest.param((2,), lambda: [Report()], {"task": LogsMuch}, id="all that can be logged", marks=LONG),
            pytest.param(
                (3,), lambda: [Report()], {"accumulate_grad_batches": 3}, id="accumulated gradients", marks=LONG
            ),
            pytest.param(
                (4, 3), lambda: [Report()], {"max_steps": 11, "max_epochs": -1}, id="counted in steps", marks=LONG
            ),
            pytest.param((4,), lambda: [Report()], {"task": Plateau, "max_epochs": 4}, id="plateau", marks=LONG),
            pytest.param((2,), lambda: [best(), Report()], {"val_check_interval": 0.5}, id="where validation follows"),
            pytest.param(
                (4,),
                lambda: [best(), EarlyStopping("val/loss", patience=1, mode="max")],
                {"max_epochs": 5},
                id="stop",
                marks=LONG,
            ),
            pytest.param(
                (5,),
                lambda: [best()],
                {"check_val_every_n_epoch": 2, "max_epochs": 4},
                id="rare validation",
                marks=LONG,
            ),
            pytest.param(
                (3,),
                lambda: [EMAWeightAveraging(decay=0.9, update_every_n_steps=2)],
                {},
                id="Lightning's EMA",
                marks=LONG,
            ),
        ],
    )
    def test_equals_a_run_that_nothing_stopped(self, tmp_path, stops, callbacks, arguments):
        assert differences(tmp_path, stops, callbacks, **arguments) == []

    @pytest.mark.parametrize(
        ("stops", "callbacks"),
        [
            pytest.param((3,), swa(swa_epoch_start=2, annealing_epochs=2), id="before averaging", marks=LONG),
            pytest.param((6, 3), swa(swa_epoch_start=2, annealing_epochs=2), id="in it, twice"),
            pytest.param((8,), swa(swa_epoch_start=2, annealing_epochs=2), id="between its epochs", marks=LONG),
            pytest.param(
                (10,),
                swa(swa_epoch_start=0.4, annealing_strategy="linear", device=None),
                id="in its last epoch, linear",
                marks=LONG,
            ),
            pytest.param(
                (14, 1),
                swa(swa_epoch_start=2, annealing_epochs=2),
                id="in the pass for the statistics, twice",
                marks=LONG,
            ),
        ],
    )
    def test_stochastic_weight_averaging(self, tmp_path, stops, callbacks):
        assert differences(tmp_path, stops, callbacks) == []


def set_in(state, path, value):
    *names, last = path
    for name in names:
        state = state[name]
    state[last] = value


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A checkpoint from the middle of an epoch."""
    _, _, path = run(tmp_path_factory.mktemp("stopped"), list, stop=2)
    return torch.load(path, weights_only=True)


class TestDamagedState:
    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ((), 5),
            (("loaders",), []),
            (("loaders", 0), {"epoch": "one"}),
            (("generators", 0, "python"), [3, [1], None]),
            (("generators", 0, "torch"), torch.zeros(3)),
            (("metrics",), []),
            (("metrics", 0), None),
            (("metrics", 0, "callback_metrics"), {"val/loss": torch.zeros(3)}),
            (("metrics", 0, "logged", 0, "reduction"), "eval"),
            (("metrics", 0, "logged", 0, "fx"), 1),
            (("metrics", 0, "logged", 0, "values", "value"), torch.zeros(2, 2)),
            (("metrics", 0, "logged", 0, "values"), {}),
            (("metrics", 0, "metrics", "metrics.train_.accuracy", "values", "tp"), torch.zeros(7)),
            (("metrics", 0, "metrics", "metrics.train_.accuracy", "updates"), "many"),
        ],
    )
    def test_exception(self, stopped, tmp_path, path, value):
        damaged = copy.deepcopy(stopped)
        set_in(damaged, ("exact_resume", *path), value)
        torch.save(damaged, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointError, match=r"bad\.ckpt: what it keeps under 'exact_resume' is damaged") as error:
            run(tmp_path, list, ckpt_path=tmp_path / "bad.ckpt")
        assert "\n" not in str(error.value)

    def test_one_of_an_earlier_version_resumes(self, stopped, tmp_path):
        """0.1.0 kept no metrics."""
        old = copy.deepcopy(stopped)
        del old["exact_resume"]["metrics"]
        torch.save(old, tmp_path / "old.ckpt")
        fit, rates, _ = run(tmp_path, list, ckpt_path=tmp_path / "old.ckpt")
        assert len(rates) == 10
        assert fit.global_step == 12


class TestContract:
    """What ``lightning_adapter`` expects of pytorch-lightning; it was tried with 2.6.6, and torchmetrics 1.9.0."""

    def test_names(self):
        run = pl.Trainer(logger=False, enable_checkpointing=False)
        loop, connector = run.fit_loop, run._logger_connector
        assert callable(loop.epoch_loop._should_check_val_fx)
        assert isinstance(loop._skip_backward, bool)
        assert hasattr(loop, "_data_fetcher")
        assert isinstance(loop.epoch_loop._results, dict)
        assert isinstance(connector._callback_metrics, dict)
        assert isinstance(connector._first_loop_iter, bool | None)
        assert {"total", "current"} <= set(vars(loop.epoch_progress))
        assert {"ready", "started", "processed", "completed"} <= set(vars(loop.epoch_progress.current))
        assert StochasticWeightAveraging(swa_lrs=0.1)._scheduler_state is None
        assert {"_defaults", "_update_count", "_computed"} <= set(vars(MulticlassAccuracy(2)))

    def test_trainer_of(self):
        module = pl.LightningModule()
        assert trainer_of(module) is None
        module.trainer = run = pl.Trainer(logger=False, enable_checkpointing=False)
        assert trainer_of(module) is run

    def test_leaves_filters_alone(self, tmp_path):
        """A task's own hook beside a data module's is no matter for a warning, and no filter stays."""
        before = list(warnings.filters)
        trainer(tmp_path, fast_dev_run=1).fit(ClassificationTask(num_classes=2, network=Net(), image_size=32), Tones())
        assert warnings.filters == before
