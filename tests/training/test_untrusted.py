"""Checkpoints from others in tasks and the Trainer: nothing is run, no file outside the run's folder is touched."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from kornia_mvit.data.loading.loaders import ResumableLoader
from kornia_mvit.training import AtomicCheckpointIO, ClassificationTask, ExactResume
from kornia_mvit.training.datamodules import DigitsData
from kornia_mvit.training.networks import find_teacher
from kornia_mvit.weights.files import CARD_KEY, CheckpointError
from kornia_mvit.weights.settings import constructor_types
from tests.training.gadgets import (
    QUIET,
    TASKS,
    TOKEN,
    WATCH,
    changed,
    gadgets,
    make_elsewhere,
    model_checkpoint,
    nothing_runs,
    pairs,
    train_tasks,
)
from tests.weights.test_files import Trace

elsewhere = pytest.fixture(scope="module")(make_elsewhere)
trained = pytest.fixture(scope="module")(train_tasks)


class TestWatch:
    """What the tests below go by sees what it has to see."""

    def test_sees_what_gadgets_do(self, tmp_path):
        import subprocess

        made = tmp_path / f"{TOKEN}-made"
        WATCH.events = events = []
        try:
            subprocess.run(["true", str(made)], check=True)
            made.write_text("")
            made.unlink()
            with pytest.raises(ImportError):
                __import__(f"not_{TOKEN}")
        finally:
            WATCH.events = None
        assert {event.split()[0] for event in events} >= {"subprocess.Popen", "open", "os.remove", "import"}

    @pytest.mark.filterwarnings("ignore")  # the parser's, that it will do so no longer
    def test_a_gadget_acts_where_it_is_built(self, elsewhere):
        """As a recipe of the user's own may do."""
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=dict[str, Any])
        with pytest.raises(AssertionError, match=f"{TOKEN}-made"), nothing_runs(elsewhere):
            made = parser.instantiate_classes(parser.parse_object({"value": gadgets(elsewhere)["log"]}))
            made.value["flip"].close()
        (elsewhere / f"{TOKEN}-made").unlink()


class TestLoadFromCheckpoint:
    @pytest.mark.parametrize("task", TASKS)
    def test_loads_its_own(self, task, trained):
        loaded = TASKS[task].load_from_checkpoint(trained[task], image_size=64)
        saved = torch.load(trained[task], weights_only=True)
        assert all(torch.equal(value, saved["state_dict"][name]) for name, value in loaded.state_dict().items())
        assert loaded.hparams["image_size"] == 64
        assert loaded.hparams["policy_args"] == {"flip": 0.5}
        assert loaded.class_names == (tuple("0123456789") if task == "classification" else None)
        with trained[task].open("rb") as file:
            assert TASKS[task].load_from_checkpoint(file, map_location="cpu").hparams["image_size"] == 32

    @pytest.mark.parametrize(
        ("task", "step"), [("classification", 9), *(pytest.param(task, 2, marks=pytest.mark.long) for task in TASKS)]
    )
    def test_gadgets(self, task, step, trained, elsewhere, tmp_path):
        """A gadget in each setting and beside them, each gadget in turn, and all of them where the parser looked."""
        places = [("hyper_parameters", name) for name in (*constructor_types(TASKS[task]), "class_path", "unknown")]
        places += [("hyper_parameters",), ("hyper_parameters", "_instantiator"), ("hparams_type",), ("hparams",)]
        places += [("module_arguments", "policy_args"), (CARD_KEY,), (CARD_KEY, "class_names"), ("state_dict",)]
        values = gadgets(elsewhere)
        cases = pairs(places, values, 0, step)
        cases += [(("hyper_parameters", "policy_args"), name) for name in list(values)[::step]]
        small = changed(trained[task], tmp_path / "small.ckpt", (("optimizer_states",), []))
        refused = 0
        with nothing_runs(elsewhere):
            for place, name in cases:
                path = changed(small, tmp_path / "a.ckpt", (place, values[name]))
                try:
                    TASKS[task].load_from_checkpoint(path)
                except CheckpointError as error:
                    assert str(path) in str(error)
                    assert "\n" not in str(error)
                    refused += 1
        assert refused > len(cases) / 2

    @pytest.mark.parametrize("task", TASKS)
    def test_damaged_cards(self, task, trained, tmp_path):
        """The error names the file, whichever hook reads the card, too."""
        for card in ({}, {"format": 2, "version": "9.0"}, {"format": 1, "task": task, "model": 5}):
            path = changed(trained[task], tmp_path / "a.ckpt", ((CARD_KEY,), card))
            with pytest.raises(CheckpointError, match=r"update|model is 5") as caught:
                TASKS[task].load_from_checkpoint(path)
            assert str(caught.value).startswith(f"{path} ")

    @pytest.mark.long(every_share=True)
    def test_instantiators(self, trained, elsewhere, tmp_path):
        popen = gadgets(elsewhere)["popen in a dictionary"]
        for build in ("pytorch_lightning.cli.instantiate_module", f"planted_{TOKEN}.build", None):
            for owner in (f"planted_{TOKEN}.Planted", "kornia_mvit.training.ClassificationTask"):
                places = (
                    (("hyper_parameters", "_instantiator"), build),
                    (("hyper_parameters", "_class_path"), owner),
                    (("hyper_parameters", "policy_args"), popen),
                )
                path = changed(trained["classification"], tmp_path / "a.ckpt", *places)
                with nothing_runs(elsewhere), pytest.raises(CheckpointError, match=r"policy_args .*class_path"):
                    ClassificationTask.load_from_checkpoint(path)

    def test_settings_in_a_file(self, trained, elsewhere, tmp_path):
        (tmp_path / "hparams.yaml").write_text(yaml.safe_dump({"num_classes": 10, "policy_args": {"flip": 0.25}}))
        task = ClassificationTask.load_from_checkpoint(
            trained["classification"], hparams_file=tmp_path / "hparams.yaml"
        )
        assert task.hparams["policy_args"] == {"flip": 0.25}
        popen = {"num_classes": 10, "policy_args": gadgets(elsewhere)["popen in a dictionary"]}
        (tmp_path / "hparams.yaml").write_text(yaml.safe_dump(popen))
        with nothing_runs(elsewhere), pytest.raises(CheckpointError, match="policy_args"):
            ClassificationTask.load_from_checkpoint(trained["classification"], hparams_file=tmp_path / "hparams.yaml")

    def test_data_modules(self, trained, elsewhere, tmp_path):
        """They keep nothing in checkpoints; what another put there is no way in."""
        assert DigitsData.load_from_checkpoint(trained["classification"], batch_size=3).batch_size == 3
        path = tmp_path / "a.ckpt"
        for (name, value), field in itertools.product(gadgets(elsewhere).items(), ("batch_size", "_instantiator", "x")):
            settings = {"_instantiator": "pytorch_lightning.cli.instantiate_module", field: value}
            torch.save({"datamodule_hyper_parameters": settings}, path)
            with nothing_runs(elsewhere):
                if field == "_instantiator" or (field, name) == ("batch_size", "number"):
                    assert isinstance(DigitsData.load_from_checkpoint(path), DigitsData)
                    continue
                with pytest.raises(CheckpointError, match=f"setting '?{field}"):
                    DigitsData.load_from_checkpoint(path)

    @pytest.mark.long
    @pytest.mark.parametrize("field", ["network", "network_args", "num_classes", "state_dict"])
    def test_teachers(self, field, trained, elsewhere, tmp_path):
        """A network of timm's in a checkpoint, as teacher: none is built that another file or a hub would give."""
        values = gadgets(elsewhere)
        timm = (("hyper_parameters", "network"), "timm:mobilenetv3_small_050")
        names = ("huge",) if field == "num_classes" else ("popen", "planted as timm's", "timm's folder", "timm's file")
        for name in names:
            place = (field,) if field in ("hyper_parameters", "state_dict") else ("hyper_parameters", field)
            path = changed(trained["classification"], tmp_path / "a.ckpt", timm, (place, values[name]))
            with nothing_runs(elsewhere), pytest.raises(ValueError, match=r"a\.ckpt|planted"):
                find_teacher(str(path), 10)


def run_trainer(stage: str, path: Path, root: Path, **arguments: Any) -> pl.Trainer:
    """Run one of the Trainer's functions on the digits, from a checkpoint, with its defaults."""
    keep = ModelCheckpoint(dirpath=root, filename="run", save_last=True, **arguments)
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[keep, ExactResume()],
        default_root_dir=root,
        limit_train_batches=1,
        limit_val_batches=1,
        limit_test_batches=1,
        limit_predict_batches=1,
        num_sanity_val_steps=0,
        **QUIET,
    )
    task = ClassificationTask("xxs", 10, image_size=32)
    if stage == "predict":
        loader = torch.utils.data.DataLoader(torch.rand(2, 3, 32, 32), batch_size=2)
        trainer.predict(task, loader, ckpt_path=path)
    else:
        getattr(trainer, stage)(task, datamodule=DigitsData(4), ckpt_path=path)
    return trainer


@pytest.mark.filterwarnings("ignore:.*dirpath has changed", "ignore:.*exists and is not empty", "ignore:Be aware that")
class TestTrainer:
    @pytest.mark.long(every_share=True)
    @pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
    def test_gadgets_everywhere_at_once(self, stage, trained, elsewhere, tmp_path):
        """In all places from which the Trainer takes nothing: it goes on as from the plain checkpoint."""
        popen = gadgets(elsewhere)["popen"]
        settings = {name: popen for name in (*constructor_types(ClassificationTask), "_class_path", "_instantiator")}
        path = changed(
            trained["classification"],
            tmp_path / "a.ckpt",
            (("hyper_parameters",), settings),
            (("datamodule_hyper_parameters",), settings),
            (("hparams_name",), popen),
            (("hparams_type",), f"planted_{TOKEN}.Planted"),
            (("DigitsData",), popen),
            (("callbacks", f"planted_{TOKEN}.Planted"), popen),
            ((CARD_KEY, "model"), popen),
            ((CARD_KEY, "preprocess"), popen),
        )
        with nothing_runs(elsewhere):
            trainer = run_trainer(stage, path, tmp_path)
        assert trainer.state.finished
        assert trainer.global_step == (2 if stage == "fit" else 0)

    @pytest.mark.long
    @pytest.mark.parametrize("place", ["callbacks", "loops", "optimizer_states", "lr_schedulers", "state_dict"])
    def test_states_of_another_type(self, place, trained, tmp_path):
        path = changed(trained["classification"], tmp_path / "a.ckpt", ((place,), 5))
        with pytest.raises(CheckpointError, match=rf"{place} of .*a\.ckpt is of type int"):
            AtomicCheckpointIO().load_checkpoint(path)

    @pytest.mark.parametrize("card", [5, {"class_names": 5}, {"class_names": [1]}])
    def test_cards_of_another_type(self, card, trained, tmp_path):
        path = changed(trained["classification"], tmp_path / "a.ckpt", ((CARD_KEY,), card))
        with pytest.raises(CheckpointError, match="class_names"):
            run_trainer("validate", path, tmp_path)

    @pytest.mark.long(every_share=True)
    @pytest.mark.parametrize("name", [None, "fit_loop", "validate_loop"])
    def test_progress_of_another_kind(self, name, trained, elsewhere, tmp_path):
        place = ("loops",) if name is None else ("loops", name, "epoch_loop.batch_progress")
        place = ("loops", name, "batch_progress") if name == "validate_loop" else place
        path = changed(trained["classification"], tmp_path / "a.ckpt", (place, {"total": 5}))
        with (
            nothing_runs(elsewhere),
            pytest.raises(CheckpointError, match=f"progress is damaged .{name or 'fit_loop'}"),
        ):
            run_trainer("validate", path, tmp_path)

    def test_functions_in_a_state(self, trained, tmp_path):
        """The restricted unpickler gives the functions that it knows."""
        place = ("lr_schedulers", 0, "get_lr")
        path = changed(trained["classification"], tmp_path / "a.ckpt", (place, torch._utils._rebuild_tensor_v2))
        assert callable(torch.load(path, weights_only=True)["lr_schedulers"][0]["get_lr"])
        with pytest.raises(CheckpointError, match="_rebuild_tensor_v2"):
            run_trainer("fit", path, tmp_path)

    def test_pickles_by_default(self, trained, tmp_path, monkeypatch):
        """Whatever the environment says of PyTorch's default."""
        path, trace = tmp_path / "a.ckpt", tmp_path / "ran"
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        torch.save({"state_dict": {}, "x": Trace(trace)}, path)
        with pytest.raises(CheckpointError, match=r"posix\.mkdir"):
            run_trainer("validate", path, tmp_path)
        with pytest.raises(CheckpointError, match=r"posix\.mkdir"):
            ClassificationTask.load_from_checkpoint(path)
        assert not trace.exists()

    @pytest.mark.parametrize("version", [None, 5, "1.9.0", "0.5", "x.y"])
    def test_versions_whose_states_lightning_would_rewrite(self, version, trained, tmp_path):
        """As into states of callbacks by class, from other places of the checkpoint."""
        old = (("checkpoint_callback_best_model_path",), "another.ckpt")
        path = changed(trained["classification"], tmp_path / "a.ckpt", (("pytorch-lightning_version",), version), old)
        with pytest.raises(CheckpointError, match=r"a\.ckpt is (not the checkpoint of a run|of Lightning)"):
            AtomicCheckpointIO().load_checkpoint(path)

    @pytest.mark.parametrize(
        ("monitor", "form"),
        [
            (None, "local://{}"),
            ("val/loss", "{root}/{up}"),
            pytest.param(None, "{root}/{up}", marks=pytest.mark.long),
            pytest.param(None, "file://{}", marks=pytest.mark.long),
            pytest.param("val/loss", "{}", marks=pytest.mark.long),
            pytest.param("val/loss", "local://{}", marks=pytest.mark.long),
            pytest.param("val/loss", "{root}/link.ckpt", marks=pytest.mark.long),
        ],
    )
    def test_removes_no_file_but_its_own(self, form, monitor, trained, elsewhere, tmp_path):
        """Lightning's ModelCheckpoint removes the files that its state names, wherever they lie."""
        victim = elsewhere / f"{TOKEN}-victim.ckpt"
        up = Path(*[".."] * (len(tmp_path.parts) - 1)) / victim.relative_to("/")
        named = form.format(victim, root=tmp_path, up=up)
        (tmp_path / "link.ckpt").symlink_to(victim)
        key = model_checkpoint(trained["classification"])
        state = {
            "monitor": monitor,
            "best_model_score": torch.tensor(0.5),
            "best_model_path": named,
            "current_score": torch.tensor(0.5),
            "dirpath": str(tmp_path),
            "best_k_models": {named: torch.tensor(99.0)},
            "kth_best_model_path": named,
            "kth_value": torch.tensor(99.0),
            "last_model_path": named,
        }
        key = key.replace("'monitor': None", f"'monitor': {monitor!r}")
        path = changed(trained["classification"], tmp_path / "a.ckpt", (("callbacks", key), state))
        with nothing_runs(elsewhere):
            trainer = run_trainer("fit", path, tmp_path, monitor=monitor)
        assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "run.ckpt")
        assert (tmp_path / "last.ckpt").is_file()

    @pytest.mark.long
    def test_goes_on_with_its_own_files(self, trained, tmp_path):
        """The best checkpoint of a run that is resumed in its folder stays known, and goes when a better one comes."""
        key = model_checkpoint(trained["classification"]).replace("'monitor': None", "'monitor': 'val/loss'")
        best = tmp_path / "best.ckpt"
        best.write_bytes(b"the run's own")
        state = {
            "best_model_score": torch.tensor(99.0),
            "best_model_path": str(best),
            "dirpath": str(tmp_path),
            "best_k_models": {str(best): torch.tensor(99.0)},
            "kth_best_model_path": str(best),
            "kth_value": torch.tensor(99.0),
            "last_model_path": "",
        }
        path = changed(trained["classification"], tmp_path / "a.ckpt", (("callbacks", key), state))
        trainer = run_trainer("validate", path, tmp_path, monitor="val/loss")
        assert trainer.checkpoint_callback.best_model_path == str(best)
        assert trainer.checkpoint_callback.best_k_models.keys() == {str(best)}
        trainer = run_trainer("fit", path, tmp_path, monitor="val/loss")
        assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "run.ckpt")
        assert not best.exists()

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("keys", "value"),
        [
            (("exact_resume",), 5),
            (("exact_resume", "generators"), [{}]),
            (("exact_resume", "generators", 0, "python"), [3, [1, 2], None]),
            (("exact_resume", "generators", 0, "numpy", 2), 10**6),
            (("exact_resume", "generators", 0, "numpy", 2), -1),
            (("exact_resume", "generators", 0, "numpy", 0), "PCG64"),
            (("exact_resume", "generators", 0, "torch"), torch.zeros(8, dtype=torch.uint8)),
            (("exact_resume", "generators", 0, "torch"), "text"),
            (("exact_resume", "loaders"), [{"epoch": "x"}]),
            (("exact_resume", "loaders"), 5),
        ],
    )
    def test_random_states_that_are_none(self, keys, value, trained, tmp_path, monkeypatch):
        path = changed(trained["classification"], tmp_path / "a.ckpt", (keys, value))
        run, callback = pl.Trainer(enable_checkpointing=False, **QUIET), ExactResume()
        monkeypatch.setattr(
            "kornia_mvit.training.resuming._loaders", lambda trainer: [ResumableLoader.__new__(ResumableLoader)]
        )
        callback.on_load_checkpoint(run, None, torch.load(path, weights_only=True))
        with pytest.raises(CheckpointError, match=r"random states|exact_resume.* is damaged"):
            callback.on_train_start(run, None)
