"""Tasks on networks of timm, and on modules of a user's own: built, saved, loaded, resumed, and on the command line."""

import pytest
import torch

from kornia_mvit import from_pretrained, save_checkpoint
from kornia_mvit.models.backbones import TimmBackbone
from kornia_mvit.training import ClassificationTask, DetectionTask, SegmentationTask
from kornia_mvit.training.recipe_cli import build_cli, quiet_lightning
from kornia_mvit.weights.files import CARD_KEY, CheckpointError
from tests.models.test_backbones import NAMES, Halves
from tests.training.shapes import BoxShapeData, ShapeData, make_pairs, make_yolo
from tests.training.test_tasks import Tones, trainer

NAME = "timm:mobilenetv3_small_050"
TASKS = {
    "classification": (ClassificationTask, Tones, {"num_classes": 2, "image_size": 32}),
    "segmentation": (
        SegmentationTask,
        ShapeData,
        {"num_classes": 4, "image_size": 32, "policy_args": {"short_side": (32, 48)}, "aspp_channels": 8},
    ),
    "detection": (DetectionTask, BoxShapeData, {"num_classes": 3, "image_size": 64}),
}


def fit(kind, folder, backbone=NAME, epochs=1, checkpoint=None, **more):
    owner, data, arguments = TASKS[kind]
    torch.manual_seed(0)
    task = owner(**arguments, backbone=backbone, **more)
    run = trainer(folder, max_epochs=epochs)
    run.fit(task, data(), ckpt_path=checkpoint, weights_only=True)
    run.save_checkpoint(folder / "a.ckpt")
    return task, folder / "a.ckpt"


def first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("kind", TASKS)
class TestTasks:
    @pytest.mark.long
    def test_by_name(self, kind, tmp_path):
        """A checkpoint builds the same network for a task, a model, and a run that goes on."""
        task, path = fit(kind, tmp_path)
        assert task.hparams["backbone"] == NAME
        x = torch.rand(2, 3, 64, 64)
        again, model = type(task).load_from_checkpoint(path), from_pretrained(path)
        with torch.no_grad():
            expected = first(task.eval().network(x))
            for network in (again.eval().network, model):
                assert network.backbone.name == NAME
                assert torch.allclose(first(network(x)), expected, atol=1e-5)
        resumed, _ = fit(kind, tmp_path, epochs=2, checkpoint=path)
        assert resumed.trainer.current_epoch == 2

    def test_a_module_is_passed_again(self, kind, tmp_path):
        task, path = fit(kind, tmp_path, Halves())
        assert task.hparams["backbone"] is None
        with pytest.raises(
            CheckpointError, match=r"on a backbone that is none of timm's; build .* pass it as backbone="
        ):
            type(task).load_from_checkpoint(path)
        x = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            expected = first(task.eval().network(x))
            for network in (
                type(task).load_from_checkpoint(path, backbone=Halves()).eval().network,
                from_pretrained(path, backbone=Halves()),
            ):
                assert torch.allclose(first(network(x)), expected, atol=1e-5)

    @pytest.mark.long
    def test_weights(self, kind, tmp_path):
        """What a task starts from says what it stands on."""
        owner, _, arguments = TASKS[kind]
        _, path = fit(kind, tmp_path)
        start = from_pretrained(path)
        task = owner(**arguments, weights=str(path))
        assert task.network.backbone.name == task.hparams["backbone"] == NAME
        for name, value in start.backbone.state_dict().items():
            assert torch.equal(value, task.network.backbone.state_dict()[name]), name
        own = owner(**arguments, backbone=Halves())
        save_checkpoint(own.network, tmp_path / "own.pt")
        with pytest.raises(CheckpointError, match="pass it as backbone="):
            owner(**arguments, weights=str(tmp_path / "own.pt"))
        again = owner(**arguments, weights=str(tmp_path / "own.pt"), backbone=Halves())
        for name, value in own.network.backbone.state_dict().items():
            assert torch.equal(value, again.network.backbone.state_dict()[name]), name

    def test_exception(self, kind):
        owner, _, arguments = TASKS[kind]
        for given, message in (
            ({"backbone": "resnet18"}, "unknown backbone 'resnet18'"),
            ({"backbone": "timm:a/b"}, "unknown backbone 'timm:a/b'"),
            ({"backbone": NAME, "mode": "s"}, "mode is for MobileViT"),
            ({"backbone": NAME, "network": Halves()}, "give network or backbone, not both"),
            ({"pretrained": True}, "pretrained is for a backbone of timm by its name"),
            ({"backbone": Halves(), "pretrained": True}, "pretrained is for a backbone of timm by its name"),
            ({"backbone": NAME, "pretrained": True, "weights": "a.ckpt"}, "give weights or pretrained, not both"),
        ):
            with pytest.raises(ValueError, match=message):
                owner(**arguments, **given)

    @pytest.mark.long
    def test_untrusted_checkpoints(self, kind, tmp_path, monkeypatch):
        """One that says another thing is refused, and none has anything fetched."""

        def refuse(*_, **__):
            raise AssertionError("fetched")

        task, path = fit(kind, tmp_path)
        monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
        for value, message in (
            ("os.system", "no name of a network of timm"),
            ("timm:hf-hub:timm/resnet18", "no name of a network of timm"),
            ("timm:timm/resnet18", "no name of a network of timm"),
            ({"class_path": "os.system"}, "a dict is not Module or str"),
            ("timm:resnet19x", "timm has no model 'resnet19x'"),
        ):
            saved = torch.load(path, weights_only=True)
            saved["hyper_parameters"]["backbone"] = value
            torch.save(saved, tmp_path / "b.ckpt")
            with pytest.raises(CheckpointError, match=message):
                type(task).load_from_checkpoint(tmp_path / "b.ckpt")
        saved = torch.load(path, weights_only=True)
        assert saved["hyper_parameters"]["pretrained"] is False
        saved["hyper_parameters"]["pretrained"] = True
        torch.save(saved, tmp_path / "b.ckpt")
        assert type(task).load_from_checkpoint(tmp_path / "b.ckpt").network.backbone.name == NAME
        assert saved[CARD_KEY]["model"]["backbone"] == NAME

    def test_pretrained(self, kind, tmp_path, monkeypatch):
        """timm's weights are asked for by the task alone, and their mean and std used."""
        asked = []
        monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: asked.append(1))
        task, path = fit(kind, tmp_path, pretrained=True)
        assert asked == [1]
        assert isinstance(task.network.backbone, TimmBackbone)
        assert task.preprocess.mean == (0.485, 0.456, 0.406)
        assert type(task).load_from_checkpoint(path).network.backbone.name == NAME
        assert asked == [1]


OVERFIT = {
    "segmentation": {
        "data.num_classes": 4,
        "model.resize_size": 64,
        "model.image_size": 64,
        "model.policy_args": "{short_side: [64, 64], max_class_share: 1.0, flip: 0.0}",
        "model.output_stride": 8,
        "model.aspp_channels": 64,
        "model.head_dropout": 0.0,
        "model.head_lr_multiplier": 1.0,
    },
    "detection": {
        "data.storage_size": 96,
        "model.image_size": 96,
        "model.policy_args": "{zoom_out: 1.0, overlaps: [null], flip: 0.0, jitter: 0.0, hue: 0.0}",
        "model.warmup_steps": 20,
        "model.anchors": "auto",
    },
}


EPOCHS = {"timm:resnet18": 170, "timm:mobilenetv3_small_100": 260}  # an epoch of the first takes four times as long


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "metric", "least"), [("segmentation", "miou", 0.95), ("detection", "map_50", 0.9)])
def test_overfits_eight_images(name, kind, metric, least, tmp_path):
    """Through recipe, data, pipeline and task, as on MobileViT."""
    make, shape = {"segmentation": (make_pairs, (64, 64)), "detection": (make_yolo, (96, 96))}[kind]
    root = make(tmp_path / "data", 8, shape, shapes=(1, 2), radius=(0.2, 0.35))
    options = {
        "data.root": root,
        "data.batch_size": 8,
        "data.num_workers": 0,
        "model.backbone": name,
        "model.learning_rate": 2.0e-3,
        "trainer.max_epochs": EPOCHS[name],
        "trainer.check_val_every_n_epoch": EPOCHS[name],
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": tmp_path,
        **OVERFIT[kind],
    }
    arguments = [f"--{option}={value}" for option, value in options.items()]
    cli = build_cli(["--config", f"folder-{kind}", *arguments], run=False)
    with quiet_lightning():
        cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.model.network.backbone.name == name
    assert cli.trainer.callback_metrics[f"val/{metric}"] >= least
