"""Checkpoints from others in all commands: nothing is run, and the error takes one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kornia_mvit.cli import main
from kornia_mvit.training import ClassificationTask
from kornia_mvit.weights.files import CARD_KEY
from kornia_mvit.weights.settings import constructor_types
from tests.training.gadgets import (
    changed,
    gadgets,
    make_elsewhere,
    nothing_runs,
    pairs,
    train_tasks,
)

elsewhere = pytest.fixture(scope="module")(make_elsewhere)
trained = pytest.fixture(scope="module")(train_tasks)


FAST = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
FAST += ["--trainer.logger=false", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
FAST += ["--trainer.limit_test_batches=1", "--data.batch_size=4", "--data.num_workers=0", "--seed_everything=false"]


COMMANDS = {
    "fit": ["fit", "--config=digits", "--ckpt_path={}", *FAST, "--trainer.max_epochs=2", "--model.image_size=32"],
    "fit last": ["fit", "--config=digits", "--ckpt_path=last", *FAST, "--trainer.max_epochs=2"],
    "validate": ["validate", "--config=digits", "--checkpoint={}", *FAST],
    "test": ["test", "--config=digits", "--checkpoint={}", *FAST],
    "predict": ["predict", "{image}", "--checkpoint={}"],
    "export": ["export", "{}", "{out}.pt2", "--size=32", "--no-report"],
    "convert": ["convert", "{}", "{out}.safetensors", "--to=timm"],
    "info": ["info", "{}"],
}

FITS = [pytest.param(name, marks=pytest.mark.long) if "fit" in name else name for name in COMMANDS]


def run_command(command: str, path: Path, root: Path) -> int:
    """Run a command on a checkpoint, in a folder of its own."""
    image = root / "image.png"
    if not image.exists():
        Image.new("RGB", (32, 32)).save(image)
    arguments = [part.format(path, image=image, out=root / "out") for part in COMMANDS[command]]
    if arguments[0] in ("fit", "validate", "test"):
        arguments += [f"--trainer.default_root_dir={root}", "--trainer.callbacks=[]"]
    return main(arguments)


@pytest.mark.filterwarnings("ignore:.*dirpath has changed", "ignore:.*exists and is not empty", "ignore:Be aware that")
class TestCommands:
    @pytest.mark.long
    @pytest.mark.parametrize("command", [name for name in FITS if name != "export"])  # which comes below
    def test_plain_checkpoint(self, command, trained, tmp_path, capsys):
        path = changed(trained["classification"], tmp_path / "last.ckpt")
        assert run_command(command, path, tmp_path) == 0, capsys.readouterr().err

    @pytest.mark.long(every_share=True)
    @pytest.mark.parametrize("command", ["fit", "fit last", "validate", "test"])
    def test_gadgets_in_settings(self, command, trained, elsewhere, tmp_path, capsys):
        """One for each way in that there was: a value, a string, a class in place of the task or of its network."""
        values = gadgets(elsewhere)
        places = [
            (("hyper_parameters", "policy_args"), values["popen in a dictionary"]),
            (("hyper_parameters", "network"), values["planted by name"]),
            (("hyper_parameters", "class_path"), values["planted by name"]),
            (("hyper_parameters", "policy_args"), {"jitter": values["popen as YAML"]}),
        ]
        for place in places if command == "validate" else places[:1]:
            path = changed(trained["classification"], tmp_path / "last.ckpt", place)
            with nothing_runs(elsewhere):
                assert run_command(command, path, tmp_path) == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert error.startswith("kornia-mvit: error: ")
            assert place[0][-1] in error
            assert str(path) in error

    @pytest.mark.long
    @pytest.mark.parametrize("command", FITS)
    def test_gadgets_where_nothing_is_taken(self, command, trained, elsewhere, tmp_path, capsys):
        """Lightning's keys and the data's settings, and for those that do not train all settings: as if not there."""
        popen = gadgets(elsewhere)["popen"]
        names = ["_class_path", "_instantiator", "weights", "teacher"]
        if command in ("predict", "export", "convert", "info"):
            names += constructor_types(ClassificationTask)
        places = [(("hyper_parameters", name), popen) for name in names]
        places += [(("datamodule_hyper_parameters",), popen), (("hparams_type",), popen), (("unknown",), popen)]
        path = changed(trained["classification"], tmp_path / "last.ckpt", *places)
        with nothing_runs(elsewhere):
            assert run_command(command, path, tmp_path) == 0, capsys.readouterr().err

    @pytest.mark.long
    @pytest.mark.parametrize("command", COMMANDS)
    def test_gadgets_in_every_field(self, command, trained, elsewhere, tmp_path, capsys):
        """Each field of settings, card, data and states by each command, with the gadgets in turn."""
        checkpoint = torch.load(trained["classification"], weights_only=True)
        trains = command in ("fit", "fit last", "validate", "test")
        places: list[tuple[Any, ...]] = [(CARD_KEY,), *((CARD_KEY, name) for name in checkpoint[CARD_KEY])]
        places += [(CARD_KEY, "model", name) for name in checkpoint[CARD_KEY]["model"]]
        places += [(CARD_KEY, "preprocess", name) for name in checkpoint[CARD_KEY]["preprocess"]]
        places += [(CARD_KEY, "class_colours"), (CARD_KEY, "channel_order")]
        if trains:
            places += [("hyper_parameters", name) for name in (*constructor_types(ClassificationTask), "init_args")]
            places += [("hyper_parameters", "policy_args", "jitter"), ("callbacks", "EMA"), ("loops", "fit_loop")]
            places += [(name,) for name in checkpoint if name != "state_dict"]
        places += [("hyper_parameters",), ("datamodule_hyper_parameters",), ("state_dict",), ("current_model_state",)]
        values = gadgets(elsewhere)
        step = {"validate": 2, "info": 1}.get(command, 6)  # those of training read in the same way, as do the others
        refused = 0
        for place, name in pairs(places, values, list(COMMANDS).index(command) % step, step):
            path = changed(trained["classification"], tmp_path / "last.ckpt", (place, values[name]))
            with nothing_runs(elsewhere):
                status = run_command(command, path, tmp_path)
            refused += status == 2
            capsys.readouterr()
        assert refused > 0
