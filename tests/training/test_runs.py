"""One run, one folder: interrupted, resumed, moved, started again."""

import csv
import math
import signal
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kornia_mvit import from_pretrained
from kornia_mvit.cli import main
from kornia_mvit.training import (
    ClassificationTask,
    CSVLog,
    ExactResume,
    LastCheckpoint,
    LogPictures,
    RunFolder,
    SaveOnSignal,
    last_checkpoint,
    runs,
)
from kornia_mvit.training.resuming import Stopped
from kornia_mvit.training.runs import RunTable, family_of, folder_of
from kornia_mvit.weights.files import CheckpointError, read_checkpoint
from tests.data.test_datamodules import make_folder
from tests.training.probes import SignalAt
from tests.training.runs import fit, write_recipe
from tests.training.test_reporting import PNG, numbers
from tests.training.test_tasks import Tiny, Tones, trainer


class Each(pl.Callback):
    """Log each step, and fail after one, as if the process were killed."""

    def __init__(self, fails_after=None):
        self.fails_after = fails_after

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        module.log("each", outputs["loss"], on_step=True, on_epoch=False)
        module.log("number", float(trainer.global_step), on_step=True, on_epoch=False)
        if trainer.global_step == self.fails_after:
            raise RuntimeError("killed")


class Same(pl.Callback):
    """Log scores of epochs, 1 where nothing else is said."""

    def __init__(self, scores=None):
        self.scores = scores or {}

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/same", self.scores.get(trainer.current_epoch, 1.0))


def run(folder, *callbacks, resume=None, fails_after=None, log=True, checkpoint=None, every=5, **arguments):
    """Run three epochs of four steps; later callbacks come last."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, learning_rate=1e-3)
    keep = checkpoint or ModelCheckpoint(monitor="val/loss", mode="min")
    own = RunFolder(resume, log=log)
    before = [own, ExactResume(), Each(fails_after), keep, CSVLog(), LastCheckpoint(every)]
    arguments = {"max_epochs": 3, "log_every_n_steps": 1, "enable_checkpointing": True, **arguments}
    made = trainer(folder, callbacks=[*before, *callbacks], **arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        made.fit(task, Tones(), ckpt_path=resume, weights_only=True)
    return made


def table(folder):
    with (Path(folder) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder, name):
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


def files(folder):
    return {path.name for path in Path(folder).iterdir() if not path.name.startswith("events.")}


@pytest.fixture
def uncharted(monkeypatch):
    """Charts take a second, and test_report.py looks at them."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **how: file.write(PNG))


class TestRunFolder:
    @pytest.mark.usefixtures("uncharted")
    def test_interrupted_and_resumed_twice(self, tmp_path):
        """All is as if nothing had stopped it: one folder, one curve, the same best file."""
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        callbacks = {"val/loss": ModelCheckpoint(monitor="val/loss", mode="min")}
        run(whole, checkpoint=callbacks["val/loss"])
        with pytest.raises(RuntimeError, match="killed"):
            run(parts, fails_after=7)
        assert torch.load(parts / "last.ckpt", weights_only=True)["global_step"] == 5
        assert [row["step"] for row in table(parts)] == [str(step) for step in range(6)]
        with pytest.raises(Stopped):
            run(parts, SignalAt(10, signal.SIGTERM), SaveOnSignal(), resume=parts / "last.ckpt")
        again = ModelCheckpoint(monitor="val/loss", mode="min")
        run(parts, resume=parts / "last.ckpt", checkpoint=again)
        assert files(tmp_path) == {"whole", "parts"}
        assert files(parts) == files(whole) == {"best.ckpt", "last.ckpt", "metrics.csv", "hparams.yaml"}
        assert table(parts) == table(whole)
        assert [row["step"] for row in table(parts)] == [str(step) for step in range(12)]
        assert [row["number"] for row in table(parts)] == [str(float(step)) for step in range(1, 13)]
        for name in ("each", "val/loss", "train/loss"):
            assert scalars(parts, name) == scalars(whole, name)
        assert len(scalars(parts, "each")) == 12
        assert again.best_model_score == callbacks["val/loss"].best_model_score
        assert again.best_model_path == str(parts / "best.ckpt")
        best, expected = (torch.load(folder / "best.ckpt", weights_only=True) for folder in (parts, whole))
        assert best["global_step"] == expected["global_step"]
        assert all(torch.equal(value, expected["state_dict"][name]) for name, value in best["state_dict"].items())

    def test_the_best_of_before_stays(self, tmp_path):
        """A resumed run whose validations are worse neither replaces the best file nor recommends another."""
        run(tmp_path / "run", max_epochs=1)
        moved = (tmp_path / "run").rename(tmp_path / "moved")
        last = torch.load(moved / "last.ckpt", weights_only=True)
        (state,) = (state for name, state in last["callbacks"].items() if name.startswith("ModelCheckpoint"))
        state["best_model_score"] = torch.tensor(-1.0)
        state["kth_value"] = torch.tensor(-1.0)
        state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(-1.0))
        torch.save(last, moved / "last.ckpt")
        before = (moved / "best.ckpt").read_bytes()
        keep = ModelCheckpoint(monitor="val/loss", mode="min")
        run(moved, resume=moved / "last.ckpt", max_epochs=2, checkpoint=keep)
        assert float(keep.best_model_score) == -1.0
        assert keep.best_model_path == str(moved / "best.ckpt")
        assert (moved / "best.ckpt").read_bytes() == before
        assert files(tmp_path) == {"moved"}
        (moved / "best.ckpt").unlink()  # a best file that is gone is not recommended
        keep = ModelCheckpoint(monitor="val/loss", mode="min")
        run(moved, resume=moved / "last.ckpt", max_epochs=3, checkpoint=keep)
        assert float(keep.best_model_score) > 0
        assert (moved / "best.ckpt").is_file()

    def test_of_equal_scores_the_lowest_loss_is_kept(self, tmp_path, monkeypatch):
        """Also where the run is stopped and resumed; without a loss the first stays, as Lightning has it."""
        losses = [0.5, 0.25, math.inf, 0.375]
        monkeypatch.setattr(runs, "_loss", lambda trainer: losses[trainer.current_epoch])

        def best(name, epochs, resume=None):
            keep = ModelCheckpoint(monitor="val/same", mode="max")
            run(tmp_path / name, Same(), checkpoint=keep, max_epochs=epochs, resume=resume)
            assert keep.best_model_path == str(tmp_path / name / "best.ckpt")
            return torch.load(keep.best_model_path, weights_only=True)["epoch"]

        assert best("whole", 4) == 1
        last = tmp_path / "parts" / "last.ckpt"
        assert [best("parts", 1), best("parts", 2, last), best("parts", 4, last)] == [0, 1, 1]
        losses = [math.inf] * 3
        assert best("none", 3) == 0

    def test_a_better_score_wins_over_a_lower_loss(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runs, "_loss", lambda trainer: [0.5, 0.75, 0.25][trainer.current_epoch])
        keep = ModelCheckpoint(monitor="val/same", mode="min")
        run(tmp_path, Same({1: 0.5}), checkpoint=keep)
        assert float(keep.best_model_score) == 0.5
        assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 1

    def test_a_new_run_leaves_the_one_before(self, tmp_path, capsys):
        for _ in range(3):
            run(tmp_path / "run", max_epochs=1, limit_train_batches=1)
        assert files(tmp_path) == {"run", "run-2", "run-3"}
        assert len(family_of(tmp_path / "run")) == 3
        assert len(table(tmp_path / "run")) == 1
        assert all((tmp_path / name / "best.ckpt").is_file() for name in files(tmp_path))

    @pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
    def test_a_checkpoint_of_another_folder(self, tmp_path):
        """RunFolder has to be told, as it chooses the folder before Lightning looks at the checkpoint."""
        run(tmp_path / "run", max_epochs=1, limit_train_batches=1)
        made = trainer(tmp_path / "run", callbacks=[RunFolder()], max_epochs=2)
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        with pytest.raises(ValueError, match=r"RunFolder\(ckpt_path="):
            made.fit(task, Tones(), ckpt_path=tmp_path / "run" / "last.ckpt", weights_only=True)

    def test_a_finished_run_says_so(self, tmp_path, caplog):
        run(tmp_path, max_epochs=1)
        before = table(tmp_path)
        with caplog.at_level("INFO"):
            run(tmp_path, resume=tmp_path / "last.ckpt", max_epochs=1)
        assert any("finished" in text and "--trainer.max_epochs" in text for text in caplog.messages)
        assert table(tmp_path) == before

    def test_a_checkpoint_callback_of_ones_own(self, tmp_path):
        """It writes under its own names, where it was told to."""
        run(tmp_path / "a", max_epochs=1, checkpoint=ModelCheckpoint(monitor="val/loss", filename="{epoch}"))
        assert {"epoch=0.ckpt", "last.ckpt"} <= files(tmp_path / "a")
        keep = ModelCheckpoint(dirpath=tmp_path / "mine", monitor="val/loss", filename="{epoch}")
        run(tmp_path / "b", max_epochs=1, checkpoint=keep)
        assert files(tmp_path / "mine") == {"epoch=0.ckpt"}
        assert "last.ckpt" in files(tmp_path / "b")

    def test_a_run_of_the_first_version_goes_on_where_it_is(self, tmp_path):
        old = tmp_path / "lightning_logs" / "version_0"
        first = ModelCheckpoint(dirpath=old / "checkpoints", monitor="val/loss", mode="min", filename="{epoch}")
        callbacks = [ExactResume(), first, LastCheckpoint(), SignalAt(6, signal.SIGTERM), SaveOnSignal()]
        made = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, log_every_n_steps=1, max_epochs=2)
        with pytest.raises(Stopped):
            made.fit(ClassificationTask(num_classes=2, network=Tiny(), image_size=32), Tones())
        assert files(old / "checkpoints") == {"last.ckpt", "epoch=0.ckpt"}
        last = last_checkpoint(tmp_path)
        assert last == old / "checkpoints" / "last.ckpt"
        assert folder_of(last) == old
        keep = ModelCheckpoint(monitor="val/loss", mode="min")
        run(tmp_path, resume=last, checkpoint=keep, max_epochs=2)
        assert files(tmp_path) == {"lightning_logs"}
        assert files(old / "checkpoints") == {"last.ckpt", Path(keep.best_model_path).name}
        assert float(keep.best_model_score) <= float(first.best_model_score)

    @pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_sanity_check_start", "on_train_batch_start"])
    def test_a_run_that_fails_before_its_first_step_leaves_nothing(self, hook, tmp_path):
        def fail(*args, **how):
            raise RuntimeError("failed")

        fails, pictures = pl.Callback(), LogPictures()
        setattr(fails, hook, fail)
        with pytest.raises(RuntimeError, match="failed"):
            run(tmp_path / "runs" / "run", pictures, fails)
        assert files(tmp_path / "runs") == set()
        (tmp_path / "mine").mkdir()
        with pytest.raises(RuntimeError, match="failed"):
            run(tmp_path / "mine", fails)
        assert "metrics.csv" in files(tmp_path / "mine")  # which it has not made

    def test_a_run_that_fails_leaves_what_others_wrote(self, tmp_path):
        def fail(*args, **how):
            (tmp_path / "run" / "notes.txt").touch()
            raise RuntimeError("failed")

        fails = pl.Callback()
        fails.on_train_start = fail
        with pytest.raises(RuntimeError, match="failed"):
            run(tmp_path / "run", fails)
        assert {"notes.txt", "metrics.csv"} <= files(tmp_path / "run")
        with pytest.raises(CheckpointError, match=r"run has written no checkpoint; start it again"):
            read_checkpoint(tmp_path / "run")
        with pytest.raises(CheckpointError, match=r"run has written no checkpoint; start it again"):
            from_pretrained(tmp_path / "run")

    def test_a_run_that_fails_after_a_step_stays(self, tmp_path):
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "run", fails_after=1)
        assert "metrics.csv" in files(tmp_path / "run")

    def test_fast_dev_run_touches_nothing(self, tmp_path):
        run(tmp_path, max_epochs=1, limit_train_batches=1)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        run(tmp_path, fast_dev_run=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestRunTable:
    def test_a_row_for_each_step(self, tmp_path):
        one = RunTable(tmp_path)
        for step, metrics in enumerate([{"a": torch.tensor(1.0)}, {"a": 2.0}, {"a": 3.0}]):
            one.log_metrics(metrics, step)
            one.log_metrics({"b": step + 0.5}, step)
            one.save()
        rows = [{"a": "1.0", "b": "0.5", "step": "0"}, {"a": "2.0", "b": "1.5", "step": "1"}]
        assert table(tmp_path)[:2] == rows
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write("4.")  # a row that was cut
        two = RunTable(tmp_path, first=2)
        two.log_metrics({"c": 9}, 2)
        two.finalize("success")
        assert table(tmp_path) == [*({**row, "c": ""} for row in rows), {"a": "", "b": "", "c": "9", "step": "2"}]

    def test_a_new_run_has_a_new_table(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("step,a\n0,1\n")
        RunTable(tmp_path).experiment.save()
        assert table(tmp_path) == []
        assert isinstance(RunTable(tmp_path), CSVLogger)


FAST = ["--data.batch_size=4", "--data.num_workers=0", "--trainer.accelerator=cpu", "--model.image_size=32"]
FAST += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]


class TestCommandLine:
    @pytest.mark.long
    def test_a_folder_in_place_of_a_checkpoint(self, tmp_path, capsys, monkeypatch):
        """Training resumes from its last checkpoint, in it; all else takes its best."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(Figure, "savefig", lambda figure, file, **how: file.write(PNG))
        data = make_folder(tmp_path / "data", count=6, size=(60, 50))
        common = ["--config", "folder", f"--data.root={data}", *FAST]
        assert main(["fit", *common, "--trainer.max_epochs=1"]) == 0
        run = Path("runs", "folder")
        assert {"best.ckpt", "last.ckpt", "config.yaml", "metrics.csv", "report", "pictures"} <= files(run)
        assert not list(tmp_path.rglob("version_*"))
        config = (run / "config.yaml").read_bytes()
        assert f"--checkpoint {run / 'best.ckpt'}" in capsys.readouterr().out
        assert main(["fit", *common, "--trainer.max_epochs=2", "--checkpoint", str(run)]) == 0
        assert [row["step"] for row in table(run)] == sorted({row["step"] for row in table(run)}, key=int)
        assert len(numbers(run / "report")["history"]) == 2
        assert main(["validate", *common, "--checkpoint", str(run)]) == 0
        assert (run / "report-validate" / "index.html").is_file()
        assert b"max_epochs: 2" in (run / "config.yaml").read_bytes() != config
        assert main(["predict", str(data / "cat"), "--checkpoint", str(run)]) == 0
        capsys.readouterr()
        assert main(["fit", *common, "--trainer.max_epochs=1", "--ckpt_path=last"]) == 0
        assert main(["fit", *common, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
        assert files("runs") == {"folder", "folder-2"}
        assert main(["fit", *common, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
        assert f"resuming from {Path('runs', 'folder-2', 'last.ckpt')}" in capsys.readouterr().out
        assert files("runs") == {"folder", "folder-2"}


@pytest.mark.long
@pytest.mark.processes
class TestProcesses:
    @pytest.mark.parametrize("trainer_options", [{}, {"devices": 2, "strategy": "ddp"}], ids=["one", "two"])
    def test_killed_told_to_stop_and_resumed(self, trainer_options, tmp_path):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        keep = {
            "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
            "init_args": {"monitor": "val/loss", "mode": "min"},
        }
        more = [keep, {"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"}]
        make_folder(tmp_path / "images", count=19)
        options = {"callbacks": more, "trainer": {**trainer_options, "logger": True}}
        for folder in (whole, parts):
            folder.mkdir()
            (folder / "images").symlink_to(tmp_path / "images")
        made = fit(write_recipe(whole, **options))
        assert made.returncode == 0, made.stderr
        steps = len(table(whole / "run"))
        for step, number in ((steps // 2 - 1, signal.SIGKILL), (steps - 2, signal.SIGTERM), (0, None)):
            stop = {} if number is None else {"signal_at": {"step": step, "number": int(number)}}
            made = fit(write_recipe(parts, **stop, **options), "--ckpt_path", "last")
            assert made.returncode == {signal.SIGTERM: 143, None: 0}.get(number, made.returncode), made.stderr
            assert (made.returncode == 0) == (number is None)
        assert files(parts) == {"images", "run", "recipe.yaml"}
        assert files(parts / "run") == files(whole / "run")
        assert table(parts / "run") == table(whole / "run")
        for name in ("val/loss", "train/loss"):
            assert scalars(parts / "run", name) == scalars(whole / "run", name)
        best, expected = (torch.load(one / "run" / "best.ckpt", weights_only=True) for one in (parts, whole))
        assert best["global_step"] == expected["global_step"]

    def test_max_time(self, tmp_path):
        """A run that its time has run out on goes on where it was, when it is given more."""
        make_folder(tmp_path / "images", count=19)
        options = {"trainer": {"logger": True, "max_epochs": 1000, "max_time": "00:00:00:03"}}
        assert fit(write_recipe(tmp_path, **options)).returncode == 0
        first = table(tmp_path / "run")
        assert first
        made = fit(write_recipe(tmp_path, **options), "--ckpt_path", "last")
        assert made.returncode == 0
        assert "--trainer.max_time" in made.stdout + made.stderr
        options["trainer"]["max_time"] = "00:00:00:06"
        assert fit(write_recipe(tmp_path, **options), "--ckpt_path", "last").returncode == 0
        rows = table(tmp_path / "run")
        steps = [int(row["step"]) for row in rows]
        assert steps == sorted(set(steps))
        assert len(rows) > len(first)
        assert files(tmp_path) == {"images", "run", "recipe.yaml"}
