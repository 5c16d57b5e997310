"""Callbacks that report: what they write in a fit, and what a resumed one knows."""

import csv
import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from kornia_mvit import Batch
from kornia_mvit.evaluation.classification import Collector
from kornia_mvit.training import (
    EMA,
    ClassificationTask,
    CSVLog,
    Evaluation,
    LastCheckpoint,
    LogPictures,
    Report,
    RunFolder,
    last_checkpoint,
    reporting,
)
from tests.training.test_tasks import Tiny, Tones, trainer

PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)


def new_task(**arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ClassificationTask(num_classes=2, network=Tiny(), image_size=32, learning_rate=1e-3, **arguments)


def fit(folder, *callbacks, data=None, ckpt_path=None, **arguments):
    arguments["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    run = trainer(folder, callbacks=list(callbacks), log_every_n_steps=2, **arguments)
    run.fit(new_task(), data or Tones(), ckpt_path=ckpt_path, weights_only=True)
    return run


def log_folder(run):
    return Path(run.loggers[0].log_dir)


def numbers(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def uncharted(monkeypatch):
    """Charts take a second, and test_report.py looks at them."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **how: file.write(PNG))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of three epochs with everything."""
    folder = tmp_path_factory.mktemp("fit")
    best = ModelCheckpoint(monitor="val/loss", mode="min", filename="{epoch}")
    callbacks = [EMA(0.9), best, Report(worst=3), LogPictures(every_n_epochs=2, count=4), CSVLog()]
    logger = TensorBoardLogger(folder)
    run = fit(folder, *callbacks, max_epochs=3, logger=logger)
    return run, best


@pytest.mark.usefixtures("uncharted")
class TestReport:
    def test_smoke(self, fitted):
        run, best = fitted
        found = numbers(log_folder(run) / "report")
        assert found["images"] == 32
        assert [row["epoch"] for row in found["history"]] == [1.0, 2.0, 3.0]
        names = {"epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"}
        assert all(set(row) >= names for row in found["history"])
        assert best.best_model_path in " ".join(found["about"])
        assert "the moving average of the weights (EMA) after epoch" in found["about"][0]
        assert len(found["worst"]) == min(3, found["mistakes"])

    @pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
    def test_is_about_the_best_checkpoint(self, fitted, tmp_path):
        """Evaluated by itself, that checkpoint gives the same numbers, and a report of its own."""
        run, best = fitted
        found = numbers(log_folder(run) / "report")
        assert found["loss"] == pytest.approx(float(best.best_model_score), abs=1e-5)
        again = trainer(tmp_path, callbacks=[Report(worst=3)])
        again.validate(new_task(), Tones(), ckpt_path=best.best_model_path, weights_only=True, verbose=False)
        alone = numbers(tmp_path / "report-validate")
        assert {k: alone[k] for k in ("confusion", "worst")} == {k: found[k] for k in ("confusion", "worst")}
        assert best.best_model_path in alone["about"][0]
        again.test(new_task(), Tones(), ckpt_path=best.best_model_path, weights_only=True, verbose=False)
        assert numbers(tmp_path / "report-test")["images"] == 8

    @pytest.mark.filterwarnings("ignore:The dirpath has changed")
    def test_a_resumed_run_reports_all_epochs(self, tmp_path):
        """And what was best before it was stopped, if nothing better comes."""
        arguments = {"monitor": "val/loss", "mode": "min", "save_last": True}
        fit(tmp_path, ModelCheckpoint(**arguments, dirpath=tmp_path / "a"), Report(), max_epochs=2)
        before = numbers(tmp_path / "report")
        checkpoint = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)
        checkpoint["callbacks"]["Report"]["best"]["score"] = -1.0  # better than any loss
        torch.save(checkpoint, tmp_path / "last.ckpt")
        keep = ModelCheckpoint(**arguments, dirpath=tmp_path / "b")
        fit(tmp_path, keep, Report(), max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
        after = numbers(tmp_path / "report")
        assert [row["epoch"] for row in after["history"]] == [1.0, 2.0, 3.0, 4.0]
        assert after["history"][:2] == before["history"]
        assert after["confusion"] == before["confusion"]
        assert "after epoch 2 of 4, where val/loss was best (-1.0000)" in after["about"][0]
        assert (
            after["about"][1] == "That was before the run was resumed; the checkpoint lies with the log of that time."
        )

    def test_goes_on_from_the_last_checkpoint(self, tmp_path):
        """Which has the metrics of the epoch that it was written at the end of."""
        fit(tmp_path, Report(), LastCheckpoint(), max_epochs=2)
        before = numbers(tmp_path / "report")
        last = last_checkpoint(tmp_path)
        fit(tmp_path, Report(), LastCheckpoint(), max_epochs=3, ckpt_path=last)
        after = numbers(tmp_path / "report")
        assert after["history"][:2] == before["history"]
        assert len(after["history"]) == 3

    def test_takes_the_best_of_a_monitor(self, tmp_path):
        keep, callback = ModelCheckpoint(monitor="val/accuracy", mode="max"), Report()
        run = trainer(tmp_path, callbacks=[keep, callback], enable_checkpointing=True)
        latest = [Evaluation.from_logits(torch.eye(2), torch.tensor(label)) for label in ([0, 1], [0, 0], [1, 0])]
        kept = []
        for evaluation, score in zip(latest, (0.5, 0.7, 0.7), strict=True):
            run._logger_connector._callback_metrics["val/accuracy"] = torch.tensor(score)
            callback._keep_best(run, evaluation)
            kept.append(callback._best["evaluation"]["label"].tolist())
        assert kept == [[0, 1], [0, 0], [0, 0]]  # the first of equals, as ModelCheckpoint

    def test_takes_the_lower_loss_of_equal_scores(self, tmp_path):
        """As the run's folder has the best checkpoint of."""
        keep, callback = ModelCheckpoint(monitor="val/accuracy", mode="max"), Report()
        run = trainer(tmp_path, callbacks=[RunFolder(), keep, callback], enable_checkpointing=True)
        run.callbacks[0].best = keep
        evaluation, kept = Evaluation.from_logits(torch.eye(2), torch.tensor([0, 1])), []
        for score, loss in ((0.5, 0.1), (0.75, 0.5), (0.75, 0.25), (0.75, float("nan")), (0.75, 0.375), (0.5, 0.125)):
            metrics = {"val/accuracy": torch.tensor(score), "val/loss": torch.tensor(loss)}
            run._logger_connector._callback_metrics.update(metrics)
            callback._keep_best(run, evaluation)
            kept.append((callback._best["score"], callback._best["loss"]))
        assert kept == [(0.5, pytest.approx(0.1)), (0.75, 0.5), *[(0.75, 0.25)] * 4]

    def test_without_a_monitor_it_is_about_the_end(self, tmp_path):
        fit(tmp_path, Report(folder=str(tmp_path / "mine")), max_epochs=2)
        found = numbers(tmp_path / "mine")
        assert found["about"] == ["32 validation images, the weights after epoch 2 of 2."]
        assert found["loss"] == pytest.approx(found["history"][-1]["val/loss"], abs=1e-5)

    def test_validation_within_an_epoch(self, tmp_path):
        fit(tmp_path, Report(), val_check_interval=0.5)
        rows = numbers(tmp_path / "report")["history"]
        assert [row["epoch"] for row in rows] == [0.5, 1.0]
        assert all("val/loss" in row for row in rows)

    def test_without_validation_there_is_none(self, tmp_path):
        fit(tmp_path, Report(), limit_val_batches=0)
        assert not (tmp_path / "report").exists()

    def test_batches_without_meta(self, tmp_path):
        samples = [{"image": torch.rand(3, 32, 32), "label": i % 2} for i in range(8)]
        loader = DataLoader(samples, batch_size=4, collate_fn=Batch.collate)
        run = trainer(tmp_path, callbacks=[Report()], log_every_n_steps=1)
        run.fit(new_task(), loader, loader)
        found = numbers(tmp_path / "report")
        assert all(one["image"].startswith("image ") for one in found["worst"])

    def test_processes_are_put_together(self, monkeypatch):
        shares = [Evaluation.from_logits(torch.eye(3), torch.tensor(label)) for label in ([0, 1, 2], [2, 1, 0])]

        def gather(out, own):
            out[:] = [own, shares[1].to_dict(), None]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)

        class Three:
            world_size = 3

        class Collected(Collector):
            def evaluation(self):
                return shares[0]

        whole = reporting._gather(Three(), Collected())
        assert whole.label.tolist() == [0, 1, 2, 2, 1, 0]
        assert int(whole.right.sum()) == 4

    def test_exception(self, tmp_path):
        with pytest.raises(ValueError, match="worst -1 is negative"):
            Report(worst=-1)

        with pytest.raises(ValueError, match=r"Report.*LastCheckpoint.*callbacks"):
            fit(tmp_path, LastCheckpoint(), Report())

        class Silent(ClassificationTask):
            def validation_step(self, batch, batch_idx):
                super().validation_step(batch, batch_idx)

        with pytest.raises(TypeError, match=r"logits.*Silent returned NoneType"):
            trainer(tmp_path, callbacks=[Report()], log_every_n_steps=2, num_sanity_val_steps=0).fit(
                Silent(num_classes=2, network=nn.Sequential(Tiny()), image_size=32), Tones()
            )


class TestLogPictures:
    def test_smoke(self, fitted):
        run, _ = fitted
        folder = log_folder(run)
        names = {path.name for path in (folder / "pictures").iterdir()}
        assert {"epoch-0000-batch.png", "epoch-0002-batch.png"} <= names
        assert not any("epoch-0001" in name for name in names)
        log = EventAccumulator(str(folder)).Reload()
        batches = log.Images("pictures/batch")
        assert [image.step for image in batches] == [0, 8]
        assert batches[0].width == 4 * (128 + 8 + 6) + 8
        drawn = {name.removesuffix("-mistakes.png") for name in names if "mistakes" in name}
        if drawn:
            assert len(log.Images("pictures/mistakes")) == len(drawn)

    def test_draws_mistakes_alone(self, tmp_path):
        """A task that has all wrong has them drawn; one that has none wrong has no such picture."""

        class Known(nn.Module):
            def __init__(self, sign):
                super().__init__()
                self.sign, self.weight = sign, nn.Parameter(torch.ones(1))

            def forward(self, image):
                bright = image.mean((1, 2, 3)) - 0.5
                return torch.stack([-bright, bright], 1) * self.sign * self.weight

        for sign, expected in ((1.0, False), (-1.0, True)):
            run = trainer(tmp_path / str(sign), callbacks=[LogPictures()], limit_train_batches=1)
            run.fit(ClassificationTask(num_classes=2, network=Known(sign), image_size=32, learning_rate=1e-6), Tones())
            assert (tmp_path / str(sign) / "pictures" / "epoch-0000-batch.png").exists()
            assert (tmp_path / str(sign) / "pictures" / "epoch-0000-mistakes.png").exists() == expected

    @pytest.mark.parametrize("arguments", [{"every_n_epochs": 0}, {"count": 0}])
    def test_exception(self, arguments):
        with pytest.raises(ValueError, match="are not at least 1"):
            LogPictures(**arguments)


class TestCSVLog:
    def test_smoke(self, fitted):
        """One folder for both logs, and the same numbers in the table and the report."""
        run, _ = fitted
        folder = log_folder(run)
        with (folder / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["val/loss"]]
        history = numbers(folder / "report")["history"]
        assert [float(row["val/loss"]) for row in rows] == pytest.approx([row["val/loss"] for row in history])

    def test_is_there_once(self, tmp_path):
        run = fit(tmp_path, CSVLog(), logger=CSVLogger(tmp_path), max_epochs=1)
        assert len(run.loggers) == 1
        assert fit(tmp_path, CSVLog(), max_epochs=1).loggers == []
