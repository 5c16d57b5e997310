"""Training and evaluation from Python in a line, and the plain names of options."""

import json
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from kornia_mvit import MobileViTClassifier, evaluate, fit, predict
from kornia_mvit.cli import main
from kornia_mvit.data.reading import DataError
from kornia_mvit.training import ClassificationTask, DetectionTask, SegmentationTask
from kornia_mvit.training.datamodules import COCOData, FolderData, SegmentationFolderData
from kornia_mvit.training.fit import _BestScores
from kornia_mvit.training.options import expand, full_name, plan_run
from kornia_mvit.training.resuming import Stopped
from tests.data.test_datamodules import make_folder
from tests.training.shapes import make_coco, make_pairs, make_voc_masks, make_yolo

FAST = {"image_size": 32, "epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}
FAST |= {"enable_model_summary": False, "seed_everything": 0}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("fit") / "photos", ("rose", "tulip"), count=10)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A first run, without the drawing of its report."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr("kornia_mvit.training.reporting.write_report", lambda *args, **how: None)
        warnings.simplefilter("ignore")
        return fit(photos, out=tmp_path_factory.mktemp("fit") / "run", **FAST | {"epochs": 2})


class TestFit:
    def test_run(self, run, photos):
        assert run.best.is_file()
        assert run.last.is_file()
        assert run.folder in run.best.parents
        assert 0 <= run.metrics["accuracy"] <= 1
        assert run.model.class_names == ("rose", "tulip")
        assert not run.model.training
        assert {result.top[0][0] for result in predict(run.model, photos / "rose")} <= {"rose", "tulip"}
        assert "accuracy=" in repr(run)

    def test_metrics_are_those_of_the_model(self, run, photos):
        scores = evaluate(run.model, photos, **QUIET)
        assert scores == pytest.approx(run.metrics, abs=1e-5)

    def test_settings_are_what_was_asked_for(self, run):
        saved = torch.load(run.best, weights_only=True)["hyper_parameters"]
        assert (saved["image_size"], saved["mode"]) == (32, "xxs")
        assert torch.load(run.last, weights_only=True)["epoch"] == 1

    def test_pair_of_datasets(self, tmp_path):
        images = torch.rand(8, 3, 32, 32)
        samples = [{"image": image, "label": n % 3} for n, image in enumerate(images)]
        found = fit((samples, samples), num_classes=3, batch_size=4, out=tmp_path, **FAST | LEAN)
        assert found.model.num_classes == 3
        assert found.metrics.keys() >= {"accuracy", "loss"}

    def test_data_module(self, photos, tmp_path):
        data = FolderData(str(photos), batch_size=8, num_workers=0)
        found = fit(data, out=tmp_path, mode="xs", **FAST | LEAN)
        assert found.model.backbone.config == MobileViTClassifier("xs", 2).backbone.config
        assert found.best is None
        assert found.model.preprocess.crop == 32

    @pytest.mark.long
    def test_segmentation(self, tmp_path):
        found = fit(make_pairs(tmp_path / "data"), num_classes=4, batch_size=2, out=tmp_path / "run", **FAST)
        assert "miou" in found.metrics
        assert found.model.num_classes == 4
        scores = evaluate(found, tmp_path / "data", **QUIET)
        assert scores == pytest.approx(found.metrics, abs=1e-4)

    @pytest.mark.long
    def test_detection(self, tmp_path):
        data = make_yolo(tmp_path / "data")
        found = fit(data, batch_size=2, out=tmp_path / "run", **FAST | {"image_size": 64})
        assert "map" in found.metrics
        scores = evaluate(found, data, batch_size=2, **QUIET)  # the loss of detection is a mean over a batch's boxes
        assert scores == pytest.approx(found.metrics, abs=1e-4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"imagesize": 3}, "imagesize.*image_size"),
            ({"epoch": 3}, "epoch; did you mean epochs"),
            ({"trainer.maxepochs": 3}, "--trainer.max_epochs"),
            ({"image_size": "large"}, "--model.image_size is large; expected int"),
            ({"image_size": 16}, "^image_size 16 .* at least 32$"),
            ({"compile": "block"}, "^compile='block' is not true, false or 'blocks'$"),
            (
                {"weights": "mobilevit_xxs.timm_in2k"},
                "no weights of that name: mobilevit_xxs.timm_in2k; nearest: [^\\n]*$",
            ),
            ({"precision": "int8"}, "precision is int8; expected 32-true or 16-mixed or bf16-mixed$"),
            ({"recipe": "no"}, "'no'.*digits"),
            ({"recipe": "camvid", "task": "detection"}, "camvid is for segmentation"),
            ({"task": "detection"}, "class folders.*YOLO"),
            ({"logger": object()}, "logger is a object"),
        ],
    )
    def test_exception(self, options, message, photos):
        with pytest.raises(ValueError, match=message):
            fit(photos, **options)

    def test_exception_of_loaders(self):
        """One whose collate_fn cannot take PIL images is told of before any process starts."""
        data = [(Image.new("RGB", (8, 8)), 0)] * 4
        with pytest.raises(TypeError, match=r"collate_fn=kornia_mvit\.Batch\.collate"):
            fit((DataLoader(data, 2), DataLoader(data, 2)), num_classes=2)

    def test_exception_of_unreadable_images(self, photos, tmp_path):
        root = Path(shutil.copytree(photos, tmp_path / "photos"))
        for file in root.rglob("*.*"):
            file.write_bytes(b"broken")
        with pytest.raises(DataError, match=r"on_error='skip' \(--on_error skip\)"):
            fit(root, out=tmp_path / "out", epochs=1, **QUIET)

    def test_exception_of_data(self, photos):
        with pytest.raises(TypeError, match="data is a int"):
            fit(3)
        with pytest.raises(ValueError, match="num_classes"):
            fit(([{"image": torch.rand(3, 8, 8), "label": 0}],) * 2)
        with pytest.raises(ValueError, match="batch_size"):
            fit(FolderData(str(photos)), batch_size=3)

    @pytest.mark.parametrize(
        ("stop", "raised"),
        [
            (Stopped(signal.SIGINT, "last.ckpt"), KeyboardInterrupt),
            (Stopped(signal.SIGTERM, "last.ckpt"), SystemExit),
            (SystemExit(2), SystemExit),
        ],
    )
    def test_interrupt(self, stop, raised, photos, monkeypatch):
        """Ctrl+C does not end the interpreter, as it ends the command."""

        def build(*args, **how):
            raise stop

        monkeypatch.setattr("kornia_mvit.training.fit.build_cli", build)
        with pytest.raises(raised):
            fit(photos)

    def test_scores_are_of_the_best_validation(self):
        scores = _BestScores()
        told = ((0.5, 2.0), (0.75, 1.5), (0.75, 1.0), (0.75, 1.25), (0.25, 3.0))
        scores.seen = [({"accuracy": accuracy, "loss": loss}, loss) for accuracy, loss in told]

        class Kept:
            monitor, mode, best_model_score = "val/accuracy", "max", torch.tensor(0.75)

        assert scores.at(Kept()) == {"accuracy": 0.75, "loss": 1.0}
        Kept.mode, Kept.best_model_score = "min", torch.tensor(0.25)
        assert scores.at(Kept())["loss"] == 3.0
        Kept.best_model_score = torch.tensor(0.125)  # of before the run was resumed
        assert scores.at(Kept()) == {"accuracy": 0.125}
        assert scores.at(None)["loss"] == 3.0


LEAN = {"enable_checkpointing": False, "trainer.callbacks": []}  # which takes the recipe's callbacks out


class TestEvaluate:
    @pytest.mark.filterwarnings("ignore:Be aware that")  # of the callbacks that are left out
    def test_as_the_command(self, run, photos, tmp_path, capsys):
        """The same numbers as validate prints of the same checkpoint."""
        command = ["validate", str(photos), "--checkpoint", str(run.best), "--out", str(tmp_path), "--verbose", "false"]
        command += ["--accelerator", "cpu", "--enable_progress_bar", "false", "--tta", "flip"]
        command += ["--trainer.logger.class_path", "pytorch_lightning.loggers.CSVLogger"]
        command += ["--trainer.logger.save_dir", str(tmp_path), "--trainer.callbacks", "[]"]
        assert main(command) == 0, capsys.readouterr().err
        (table,) = tmp_path.rglob("metrics.csv")
        names, values = (line.split(",") for line in table.read_text().splitlines()[:2])
        told = {n.removeprefix("val/"): float(v) for n, v in zip(names, values, strict=True) if n.startswith("val/")}
        assert evaluate(run.best, photos, tta="flip", **QUIET) == pytest.approx(told, abs=1e-5)
        assert told.keys() >= {"accuracy", "loss"}

    def test_whole_folder(self, run, photos, caplog):
        """A folder without val, as one of images to test on, is scored by the part that fit splits off, or whole."""
        with caplog.at_level("INFO"):
            evaluate(run, photos, **QUIET)
            assert "val_fraction 1 evaluates on all images" in caplog.text
            caplog.clear()
            evaluate(run, photos, val_fraction=1, **QUIET)
        assert "0 images in train" in caplog.text
        assert "evaluates on all" not in caplog.text

    def test_without_a_test_split(self, run, photos, caplog):
        """Nothing is told of a val split, which is not asked for."""
        with caplog.at_level("INFO"), pytest.raises(DataError, match="no test split; add a folder named test"):
            evaluate(run, photos, split="test", val_fraction=1, **QUIET)
        assert "split off" not in caplog.text

    def test_leaves_the_model_alone(self, run, photos):
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        evaluate(run.model, photos, batch_size=3, **QUIET)
        assert not run.model.training
        assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())

    def test_test_split(self, run, photos, tmp_path):
        for name in ("train", "val", "test"):
            (tmp_path / name).symlink_to(photos)
        scores = [evaluate(run, tmp_path, split=split, **QUIET) for split in ("val", "test")]
        assert scores[0] == pytest.approx(scores[1])

    def test_exception(self, run, photos, tmp_path):
        with pytest.raises(ValueError, match=r"'train'.*'val'"):
            evaluate(run, photos, split="train")
        with pytest.raises(ValueError, match=r"max_epoch.*max_epochs"):
            evaluate(run, photos, max_epoch=3)
        with pytest.raises(ValueError, match=r"cat, dog.*rose, tulip"):
            evaluate(run, make_folder(tmp_path / "others"), **QUIET)
        with pytest.raises(TypeError, match="Linear"):
            evaluate(torch.nn.Linear(2, 2), photos)
        with pytest.raises(ValueError, match="preprocess"):
            evaluate(MobileViTClassifier("xxs", 2), photos)


class TestOptions:
    def test_sections(self):
        assert full_name("image_size", ClassificationTask, FolderData) == "model.image_size"
        assert full_name("val_fraction", ClassificationTask, FolderData) == "data.val_fraction"
        assert full_name("num_classes", SegmentationTask, SegmentationFolderData) == "data.num_classes"
        assert full_name("devices", DetectionTask, COCOData) == "trainer.devices"
        assert full_name("trainer__devices", DetectionTask, None) == "trainer.devices"
        assert full_name("epochs", DetectionTask, None) == "trainer.max_epochs"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("lr", "lr; did you mean learning_rate"),
            ("batch", "batch; did you mean batch_size"),
            ("num_classes", "num_classes is told by the data"),
            ("data.image_size", "data.image_size; did you mean model.image_size"),
            ("model__root", "model.root; did you mean data.root"),
        ],
    )
    def test_exception_of_what_others_call_it(self, name, message, photos):
        with pytest.raises(ValueError, match=message):
            plan_run(photos, {name: 1})

    def test_exception(self):
        with pytest.raises(ValueError, match=r"ignore_index is one of model and data; give model.ignore_index"):
            full_name("ignore_index", SegmentationTask, SegmentationFolderData)
        with pytest.raises(ValueError, match="--batchsize; did you mean --batch_size"):
            full_name("batchsize", ClassificationTask, FolderData, "--")

    def test_recipe_and_reason_are_told(self, photos, caplog):
        with caplog.at_level("INFO"):
            argv = plan_run(photos, {})
        assert argv[0] == "--config=folder"
        (told,) = [message for message in caplog.messages if "recipe" in message]
        assert "class folders (rose, tulip): recipe folder" in told
        assert plan_run(photos, {"weights": "mobilevit_xs.apple_in1k"})[0] == "--config=finetune"

    def test_batches_suit_few_images(self, photos):
        """16 images to train on: four batches, and no processes that read."""
        argv = plan_run(photos, {})
        assert {"--data.batch_size=4", "--data.num_workers=0"} <= set(argv)
        argv = plan_run(photos, {"batch_size": 16})
        assert [option for option in argv if "batch_size" in option] == ["--data.batch_size=16"]
        assert not [option for option in plan_run(photos, {}, given=["data.num_workers"]) if "num_workers" in option]

    @pytest.mark.parametrize(
        ("make", "data", "recipe"),
        [(make_coco, "COCOData", "folder-detection"), (make_voc_masks, "VOCSegmentationData", "folder-segmentation")],
    )
    def test_other_data_take_the_place_of_the_recipes(self, make, data, recipe, tmp_path):
        task = "segmentation" if make is make_voc_masks else None
        argv = plan_run(make(tmp_path), {}, task=task)
        assert f"--config={recipe}" in argv
        assert f"--data=kornia_mvit.training.datamodules.{data}" in argv

    def test_values_are_text(self, photos, tmp_path):
        options = {"policy_args": {"jitter": 0.3}, "class_weights": [1, 2.5], "weights": None, "out": tmp_path}
        argv = plan_run(make_pairs(tmp_path), options | {"per_class": True})
        assert f"--model.policy_args={json.dumps({'jitter': 0.3})}" in argv
        assert {"--model.class_weights=[1, 2.5]", "--model.weights=null", "--model.per_class=true"} <= set(argv)
        assert f"--trainer.default_root_dir={tmp_path}" in argv

    @pytest.mark.parametrize(
        "argv",
        [
            ["fit", "--config", "digits", "--trainer.max_epochs", "3", "--seed_everything=3", "--ckpt_path=last"],
            ["fit", "--config=folder", "--print_config"],
            ["validate", "--config", "digits", "--checkpoint", "a.ckpt", "--verbose", "false"],
            ["fit", "--model.help"],
        ],
    )
    def test_lightnings_own_command_lines_stay(self, argv):
        assert expand(argv) == argv

    def test_command_line(self, photos, tmp_path):
        argv = expand(["fit", str(photos), "--epochs", "3", "--batch-size=2", "--trainer.devices", "1"])
        assert argv[:2] == ["fit", "--config=folder"]
        assert {"--trainer.max_epochs=3", "--data.batch_size=2", "--trainer.devices=1"} <= set(argv)
        argv = expand(["fit", "--epochs=3", "-c", "finetune", str(photos)])
        assert {"--config=finetune", f"--data.root={photos}", "--trainer.max_epochs=3"} <= set(argv)
        argv = expand(["fit", "--config", "digits", "--epochs", "3"])
        assert argv == ["fit", "--config=digits", "--trainer.max_epochs=3"]


def test_broken_recipe_file(photos, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: [")
    with pytest.raises(ValueError, match=r"a\.yaml is not YAML"):
        plan_run(photos, {}, recipe=str(path))
