"""SegmentationTask: its loss, what it counts, evaluation at the images' own size, and its checkpoints."""

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from kornia_mvit import AugmentationPipeline, Batch, DeepLabV3, MobileViTClassifier, Preprocess, save_checkpoint
from kornia_mvit.training import EMA, Report, SegmentationTask
from kornia_mvit.training.recipe_cli import build_cli, quiet_lightning
from kornia_mvit.weights.files import CARD_KEY, read_checkpoint
from kornia_mvit.weights.registry import from_pretrained
from tests.training.shapes import ShapeData, all_ignored, make_pairs
from tests.training.test_tasks import trainer

SMALL = {"num_classes": 4, "image_size": 32, "policy_args": {"short_side": (32, 48)}, "aspp_channels": 8}


class Pixels(nn.Sequential):
    """Sees each pixel for itself, so that neither windows nor flips nor company change what it says."""

    def __init__(self, num_classes=4):
        super().__init__(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))


def pixels(**arguments):
    torch.manual_seed(0)
    task = SegmentationTask(**{"network": Pixels(), **SMALL, **arguments})
    task.logged = {}
    task.log = lambda name, value, **_: task.logged.update({name: value})
    return task


def scenes(sizes=((40, 40), (40, 48), (36, 40)), **arguments):
    data = ShapeData(sizes, **arguments)
    data.setup()
    return Batch.collate(data.splits["train"])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A task fitted for two epochs with EMA, and its checkpoint."""
    folder = tmp_path_factory.mktemp("segmentation")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = SegmentationTask(**SMALL, aux_weight=0.4, aux_channels=8, resize_size=32, head_dropout=0.0)
        run = trainer(folder, max_epochs=2, callbacks=[EMA(0.5)])
        run.fit(task, ShapeData())
    run.save_checkpoint(folder / "a.ckpt")
    return task, run.callback_metrics, folder / "a.ckpt"


class TestSegmentationTask:
    def test_smoke(self, fitted, tmp_path):
        task, metrics, _ = fitted
        assert {"train/loss", "val/loss", "val/miou", "val/accuracy"} <= metrics.keys()
        (result,) = trainer(tmp_path).test(task, ShapeData(), verbose=False)
        assert 0 <= result["test/miou"] <= 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_classes": None}, "num_classes is missing"),
            ({"mode": "m"}, "unknown mode 'm'; available: 'xxs', 'xs', 's'"),
            ({"policy": "best"}, "unknown policy 'best'"),
            ({"network": Pixels(), "weights": "a.ckpt"}, "give network or weights, not both"),
            ({"resize_size": (48, 64)}, "resize_size (48, 64) is a height and a width, to which training crops would"),
            ({"resize_size": "image"}, "unknown resize_size 'image'; give a number of pixels, 'image_size' or None"),
            ({"ignore_index": 3}, "ignore_index 3 is one of the 4 classes; use another number"),
            ({"class_weights": [1.0, 2.0]}, "class_weights [1.0, 2.0] are not 4 numbers from 0, one a class"),
            ({"dice_weight": -1.0}, "dice_weight -1.0 is negative"),
            ({"num_classes": 1, "lovasz_weight": 1.0}, "the Lovász loss needs two classes or more"),
            ({"schedule": "step"}, "unknown schedule 'step'; available: 'cosine', 'poly'"),
            ({"tta": "spin"}, "unknown transforms spin"),
            ({"window": 8, "stride": 9}, "window (8, 8) and stride (9, 9)"),
            ({"stride": 9}, "stride 9 is that of windows; give window too"),
            ({"compile": True, "aux_weight": 0.4}, "compile is for the forward pass"),
            ({"network": Pixels(), "aux_weight": 0.4}, "needs an auxiliary head, which Pixels lacks"),
            ({"pipeline": AugmentationPipeline(ignore_index=9)}, "the pipeline ignores pixels of 9, the task those of"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError) as error:
            SegmentationTask(**{**SMALL, **arguments})
        assert message in str(error.value)

    def test_exception_of_data(self, tmp_path):
        with pytest.raises(ValueError, match=r"99.*255; give both"):
            trainer(tmp_path).fit(SegmentationTask(**SMALL, network=Pixels()), ShapeData(ignore_index=99))
        loader = DataLoader([{"image": torch.zeros(3, 32, 32)}] * 2, batch_size=2, collate_fn=Batch.collate)
        with pytest.raises(ValueError, match="needs masks"):
            trainer(tmp_path).validate(SegmentationTask(**SMALL, network=Pixels()), loader)

    def test_loss_by_hand(self):
        """Three labelled pixels of four, weighted by class, smoothed in training alone."""
        logits = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]], [[1.0, 0.0], [0.0, 0.0]]]])
        mask = torch.tensor([[[0, 1], [0, 255]]])
        log = logits.log_softmax(1)
        a, b, c = log[0, 0, 0, 0], log[0, 1, 0, 1], log[0, 0, 1, 0]
        plain = {"num_classes": 2, "network": nn.Identity(), "label_smoothing": 0.2}
        task = pixels(**plain).eval()
        torch.testing.assert_close(task.loss(logits, mask), -(a + b + c) / 3)
        weighted = pixels(**plain, class_weights=[1.0, 3.0]).eval()
        torch.testing.assert_close(weighted.loss(logits, mask), -(a + 3 * b + c) / 5)
        spread = log.mean(1).flatten()[:3].sum() / 3
        torch.testing.assert_close(task.train().loss(logits, mask), -0.8 * (a + b + c) / 3 - 0.2 * spread)

    @pytest.mark.parametrize("name", ["dice_weight", "lovasz_weight"])
    def test_overlap_losses_see_labelled_pixels_alone(self, name):
        """Whatever stands where nothing is known changes neither the loss nor what is learned of the rest."""
        task, more = pixels(), pixels(**{name: 1.0})
        mask = torch.randint(4, (2, 8, 8))
        mask[:, 0] = 255
        logits = torch.randn(*mask.shape, 4).movedim(-1, 1)
        other = torch.where((mask == 255)[:, None], torch.randn_like(logits), logits)
        torch.testing.assert_close(more.loss(logits, mask), more.loss(other, mask))
        extra = more.loss(logits, mask) - task.loss(logits, mask)
        assert 0 < extra < 1
        perfect = 30.0 * F.one_hot(mask.where(mask != 255, 0), 4).movedim(-1, 1).float()
        assert more.loss(perfect, mask) < 1e-3

    def test_nothing_but_ignored_pixels_gives_no_loss_and_no_gradient(self):
        task = pixels(dice_weight=1.0, lovasz_weight=1.0, class_weights=[1.0, 1.0, 0.0, 1.0])
        loss = task.training_step(task.pipeline(all_ignored(scenes())), 0)
        loss.backward()
        assert loss == 0
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in task.network.parameters())
        task.eval().validation_step(all_ignored(scenes()), 0)
        task.on_validation_epoch_end()
        assert task.logged["val/miou"] == task.logged["val/loss"] == 0

    def test_metrics_against_counting(self, caplog):
        """Class 3 occurs nowhere and does not count; class 2 is predicted alone and does."""
        task = pixels(network=nn.Identity(), per_class=True).eval()
        task.class_names = ("a", "b", "c", "d")
        right = torch.tensor([[[0, 0, 1, 1], [0, 1, 255, 255]]])
        said = torch.tensor([[[0, 1, 1, 1], [2, 0, 3, 1]]])
        task.predict_logits = lambda image: F.one_hot(said, 4).movedim(-1, 1).float()
        out = task.validation_step(Batch(torch.zeros(1, 3, 2, 4), mask=right), 0)
        with caplog.at_level("INFO"):
            task.on_validation_epoch_end()
            task.on_validation_epoch_end()
        assert caplog.text.count("val/miou is the mean over 3 of 4 classes") == 1
        assert torch.equal(out["prediction"], said)
        assert task.logged["val/iou/a"] == pytest.approx(1 / 4)
        assert task.logged["val/iou/b"] == pytest.approx(2 / 4)
        assert task.logged["val/iou/c"] == 0
        assert "val/iou/d" not in task.logged
        assert task.logged["val/miou"] == pytest.approx((1 / 4 + 2 / 4) / 3)
        assert task.logged["val/accuracy"] == pytest.approx(3 / 6)

    @pytest.mark.parametrize("resize", [None, 32])
    def test_images_of_many_sizes_count_as_they_do_alone(self, resize):
        """Neither the canvas beside an image nor its neighbours change its prediction, or are counted."""
        torch.manual_seed(0)
        task = pixels(network=DeepLabV3("xxs", 4, aspp_channels=8), resize_size=resize).eval()
        batch = scenes(((40, 40), (48, 40), (40, 40), (40, 64)))
        together = task.validation_step(batch, 0)["prediction"]
        counted = task.confusion.compute().sum()
        assert counted == (batch.mask != 255).sum()
        for i, (height, width) in enumerate(batch.size.tolist()):
            one = Batch(batch.image[i : i + 1, :, :height, :width], mask=batch.mask[i : i + 1, :height, :width])
            alone = task.validation_step(one, 0)["prediction"][0]
            assert (together[i, :height, :width] == alone).float().mean() > 0.999
            assert (together[i, height:] == 255).all()
            assert (together[i, :, width:] == 255).all()

    def test_flips_and_windows_leave_what_sees_single_pixels(self):
        batch = scenes()
        plain = pixels().eval().validation_step(batch, 0)
        for more in ({"tta": "flip"}, {"window": 16}, {"window": 16, "stride": 5}, {"window": 24, "tta": "flip"}):
            out = pixels(**more).eval().validation_step(batch, 0)
            torch.testing.assert_close(out["loss"], plain["loss"])
            assert (out["prediction"] == plain["prediction"]).float().mean() > 0.999

    def test_a_window_over_the_whole_image_is_the_plain_forward(self):
        torch.manual_seed(0)
        network = DeepLabV3("xxs", 4, aspp_channels=8)
        batch = scenes(((40, 40), (40, 40)))
        plain = pixels(network=network).eval().validation_step(batch, 0)["prediction"]
        whole = pixels(network=network, window=48).eval().validation_step(batch, 0)["prediction"]
        assert torch.equal(plain, whole)

    def test_starts_from_weights(self, fitted, tmp_path):
        """Of segmentation all but the last layer, of classification the backbone."""
        _, _, path = fitted
        given = from_pretrained(path)
        task = SegmentationTask(num_classes=7, weights=str(path), image_size=32)
        assert task.hparams["weights"] is None
        assert task.hparams["aspp_channels"] == 8
        assert torch.equal(task.network.head.aspp.project.conv.weight, given.head.aspp.project.conv.weight)
        assert task.network.head.classifier.weight.shape[0] == 7
        classifier = MobileViTClassifier("xs", 5)
        classifier.preprocess = Preprocess(64, channel_order="bgr")
        save_checkpoint(classifier, tmp_path / "a.pt")
        task = SegmentationTask("xxs", 7, weights=str(tmp_path / "a.pt"), image_size=32)
        assert task.hparams["mode"] == "xs"
        assert torch.equal(task.network.backbone.stem.conv.weight, classifier.backbone.stem.conv.weight)
        assert task.preprocess.channel_order == "bgr"

    def test_heads_learn_faster_or_alone(self, tmp_path):
        task = SegmentationTask(**SMALL, aux_weight=0.4, aux_channels=8, train_backbone=False, schedule="poly")
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        trainer(tmp_path, limit_val_batches=0).fit(task, ShapeData())
        assert task.network.head.aspp.dropout.training
        assert not task.network.backbone.training
        changed = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
        assert {name.partition(".")[0] for name in changed} == {"head", "aux_head"}
        rates = {}

        class Look(pl.Callback):
            def on_train_start(self, trainer, module):
                rates.update({g["head"]: g["initial_lr"] for g in trainer.optimizers[0].param_groups})

        task = SegmentationTask(**SMALL, learning_rate=1e-3, head_lr_multiplier=10.0)
        trainer(tmp_path, max_steps=1, callbacks=[Look()], limit_val_batches=0).fit(task, ShapeData())
        assert rates == {False: 1e-3, True: pytest.approx(1e-2)}

    def test_checkpoint_says_what_it_holds(self, fitted):
        task, _, path = fitted
        card = read_checkpoint(path)[CARD_KEY]
        assert card["task"] == "segmentation"
        assert card["class_names"] == ["background", "circle", "square", "triangle"]
        model = from_pretrained(path)
        assert isinstance(model, DeepLabV3)
        assert model.preprocess == Preprocess(32)
        image = torch.rand(2, 3, 40, 48)
        with torch.no_grad():
            torch.testing.assert_close(model(image), task.eval()(image))

    def test_colours_of_the_data_reach_the_checkpoint_and_the_pictures(self, tmp_path):
        colours = ((0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250))

        class Coloured(ShapeData):
            class_colours = colours

        task = SegmentationTask(**SMALL)
        run = trainer(tmp_path, callbacks=[Report(worst=3)])
        run.fit(task, Coloured())
        run.save_checkpoint(tmp_path / "a.ckpt")
        assert from_pretrained(tmp_path / "a.ckpt").class_colours == colours
        with Image.open(tmp_path / "report" / "worst.png") as picture:
            assert {colours[1], colours[2], colours[3]} & {colour for _, colour in picture.getcolors(1 << 20)}

    def test_resize_size(self):
        assert SegmentationTask(**SMALL).preprocess.size == 32
        assert SegmentationTask(**{**SMALL, "image_size": (64, 48)}).preprocess.size == 48
        assert SegmentationTask(**SMALL, resize_size=None).preprocess.size is None

    def test_resumes(self, fitted, tmp_path):
        _, _, path = fitted
        task = SegmentationTask(**SMALL, aux_weight=0.4, aux_channels=8, resize_size=32, head_dropout=0.0)
        run = trainer(tmp_path, max_epochs=3, callbacks=[EMA(0.5)])
        run.fit(task, ShapeData(), ckpt_path=path, weights_only=True)
        assert run.current_epoch == 3

    @pytest.mark.long
    def test_a_checkpoint_of_an_earlier_version_goes_on_without_padding(self, fitted, tmp_path):
        """Whether it is loaded, evaluated or resumed, and what is saved then says so."""
        task, _, path = fitted
        assert task.network.pad
        old = torch.load(path, weights_only=True)
        del old["hyper_parameters"]["pad"], old[CARD_KEY]["model"]["pad"]
        torch.save(old, tmp_path / "old.ckpt")
        assert not SegmentationTask.load_from_checkpoint(tmp_path / "old.ckpt").network.pad
        assert SegmentationTask.load_from_checkpoint(tmp_path / "old.ckpt", pad=True).network.pad
        assert not from_pretrained(tmp_path / "old.ckpt").pad
        settings = {**SMALL, "aux_weight": 0.4, "aux_channels": 8, "resize_size": 32, "head_dropout": 0.0}
        task = SegmentationTask(**settings)
        run = trainer(tmp_path, max_epochs=3, callbacks=[EMA(0.5)])
        run.fit(task, ShapeData(), ckpt_path=tmp_path / "old.ckpt", weights_only=True)
        run.save_checkpoint(tmp_path / "new.ckpt")
        assert not SegmentationTask.load_from_checkpoint(tmp_path / "new.ckpt").network.pad
        assert SegmentationTask.load_from_checkpoint(path).network.pad
        assert not SegmentationTask(**settings, pad=False).network.pad

    @pytest.mark.long
    def test_overfits_eight_images(self, tmp_path):
        """Through recipe, data, pipeline and task: mIoU 0.95 in 260 steps, which take half a minute of one core."""
        root = make_pairs(tmp_path / "data", 8, (64, 64), shapes=(1, 2), radius=(0.2, 0.35))
        options = {
            "data.root": root,
            "data.num_classes": 4,
            "data.batch_size": 8,
            "data.num_workers": 0,
            "model.image_size": 64,
            "model.resize_size": 64,
            "model.policy_args": "{short_side: [64, 64], max_class_share: 1.0, flip: 0.0}",
            "model.output_stride": 8,
            "model.aspp_channels": 64,
            "model.head_dropout": 0.0,
            "model.learning_rate": 2.0e-3,
            "model.head_lr_multiplier": 1.0,
            "trainer.max_epochs": 260,
            "trainer.check_val_every_n_epoch": 260,
            "trainer.accelerator": "cpu",
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.log_every_n_steps": 1,
            "trainer.default_root_dir": tmp_path,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        cli = build_cli(["--config", "folder-segmentation", *arguments], run=False)
        with quiet_lightning():
            cli.trainer.fit(cli.model, cli.datamodule)
        assert cli.trainer.callback_metrics["val/miou"] >= 0.95
