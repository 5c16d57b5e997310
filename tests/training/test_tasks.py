"""ClassificationTask: its batches, loss, schedule and checkpoints."""

from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from kornia_mvit import AugmentationPipeline, Batch, MobileViTClassifier, Preprocess
from kornia_mvit.data.datamodules.base import ImageData
from kornia_mvit.training import EMA, ClassificationTask
from kornia_mvit.training.optimization import learning_rate_factor
from kornia_mvit.weights.files import CARD_KEY, read_checkpoint
from kornia_mvit.weights.registry import from_pretrained


class Tones(ImageData):
    """Dark and bright images: two classes that anything can learn."""

    def __init__(self, names=("dark", "bright"), count=32):
        super().__init__(batch_size=8, num_workers=0, storage_size=None)
        self.names = names
        self.count = count

    @property
    def class_names(self):
        return self.names

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        tones = torch.randint(0, 100, (self.count, 3, 40, 40), generator=generator, dtype=torch.uint8)
        samples = [{"image": tone + 150 * (i % 2), "label": i % 2, "meta": {"id": i}} for i, tone in enumerate(tones)]
        self.splits = {"train": samples, "val": samples, "test": samples[:8]}


class Tiny(nn.Sequential):
    def __init__(self, num_classes=2):
        super().__init__(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(4, num_classes))


def trainer(folder, **arguments):
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", enable_model_summary=False, **{**defaults, **arguments}
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A task fitted for two epochs with EMA, and its checkpoint."""
    folder = tmp_path_factory.mktemp("fit")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = ClassificationTask(num_classes=2, image_size=32, learning_rate=3e-3, dropout=0.1)
        run = trainer(folder, max_epochs=2, callbacks=[EMA(0.9)])
        run.fit(task, Tones())
    raw = {name: value.clone() for name, value in task.state_dict().items()}
    run.save_checkpoint(folder / "a.ckpt")
    return task, raw, folder / "a.ckpt"


class TestClassificationTask:
    def test_smoke(self, fitted, tmp_path):
        task, _, _ = fitted
        result = trainer(tmp_path).test(task, Tones(), verbose=False)
        assert 0 <= result[0]["test/accuracy"] <= 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "num_classes is missing"),
            ({"num_classes": 2, "mode": "m"}, "unknown mode 'm'; available: 'xxs', 'xs', 's'"),
            ({"num_classes": 2, "variant": "google"}, "unknown variant 'google'; available: 'apple', 'kornia'"),
            (
                {"num_classes": 2, "policy": "best"},
                "unknown policy 'best'; available: 'classification_strong', 'classification_train'",
            ),
            ({"num_classes": 2, "resize_size": 100}, "crop 256 is larger than the image resized to 100"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError) as error:
            ClassificationTask(**arguments)
        assert message in str(error.value)

    def test_exception_of_data(self, tmp_path):
        with pytest.raises(ValueError, match="the data have 2 classes, the task 3"):
            trainer(tmp_path).fit(ClassificationTask(num_classes=3, network=Tiny(3), image_size=32), Tones())
        loader = DataLoader([{"image": torch.zeros(3, 32, 32)}] * 4, batch_size=2, collate_fn=Batch.collate)
        with pytest.raises(ValueError, match="classification needs labels"):
            trainer(tmp_path).validate(ClassificationTask(num_classes=2, network=Tiny(), image_size=32), loader)

    def test_learns(self, tmp_path):
        """Two tones apart: whatever is wired wrongly keeps it from there."""
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, learning_rate=0.1, label_smoothing=0.0)
        run = trainer(tmp_path, max_epochs=6)
        run.fit(task, Tones())
        assert run.validate(task, Tones(), verbose=False)[0]["val/accuracy"] == 1.0

    def test_augments_in_training_alone_and_on_the_batch_that_was_moved(self, tmp_path):
        seen = []

        class Spy(AugmentationPipeline):
            def forward(self, batch, label=None):
                seen.append((self.training, torch.is_grad_enabled(), type(batch)))
                return super().forward(batch)

        task = ClassificationTask(num_classes=2, network=Tiny(), pipeline=Spy(preprocess=Preprocess(32, crop=32)))
        trainer(tmp_path, num_sanity_val_steps=0).fit(task, Tones())
        assert [entry[0] for entry in seen] == [True] * 4 + [False] * 4
        assert all(entry[2] is Batch for entry in seen)

    def test_takes_any_network(self, tmp_path):
        network = Tiny(2)
        task = ClassificationTask(num_classes=2, network=network, image_size=32)
        run = trainer(tmp_path)
        run.fit(task, Tones())
        assert task.network is network
        run.save_checkpoint(tmp_path / "own.ckpt")
        with pytest.raises(ValueError, match=r"network of its own.*load_from_checkpoint\(path, network"):
            from_pretrained(tmp_path / "own.ckpt")
        again = ClassificationTask.load_from_checkpoint(tmp_path / "own.ckpt", network=Tiny(2), weights_only=True)
        image = torch.rand(2, 3, 32, 32)
        assert torch.equal(again.eval()(image), task.eval()(image))
        assert again.class_names == ("dark", "bright")

    def test_loss_is_smoothed_cross_entropy(self):
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, label_smoothing=0.2)
        task.log = lambda *args, **kwargs: None
        batch = Batch(torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 1, 0, 1, 0]))
        task.eval()
        log = task(batch.image).log_softmax(-1)
        target = nn.functional.one_hot(batch.label, 2) * 0.8 + 0.1
        torch.testing.assert_close(task.training_step(batch, 0), -(target * log).sum(-1).mean())
        soft = batch.replace(label=nn.functional.one_hot(batch.label, 2).float())
        torch.testing.assert_close(task.training_step(soft, 0), task.training_step(batch, 0))

    def test_checkpoint_says_what_it_holds(self, fitted):
        """Mode, class names and Preprocess in plain data; the average of the weights, and the raw ones beside it."""
        task, _, path = fitted
        checkpoint = read_checkpoint(path)
        card = checkpoint[CARD_KEY]
        assert card["model"]["mode"] == "xxs"
        assert card["class_names"] == ["dark", "bright"]
        assert Preprocess.from_dict(card["preprocess"]) == Preprocess(32, crop=32)
        averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
        assert averaged.keys() == raw.keys()
        for name, value in task.network.state_dict().items():
            assert torch.equal(value, averaged[f"network.{name}"]), name

    def test_predicts_from_the_checkpoint_alone(self, fitted):
        task, _, path = fitted
        model = from_pretrained(path)
        assert isinstance(model, MobileViTClassifier)
        assert not model.training
        assert model.class_names == ("dark", "bright")
        photo = torch.randint(0, 256, (2, 3, 50, 60), dtype=torch.uint8)
        with torch.no_grad():
            expected = task.eval()(task.pipeline(photo))
            torch.testing.assert_close(model(model.preprocess.module()(photo)), expected)

    def test_resumes(self, fitted, tmp_path):
        """Raw weights, not the average, are what training goes on with."""
        _, _, path = fitted
        task = ClassificationTask(num_classes=2, image_size=32, learning_rate=3e-3, dropout=0.1)
        run = trainer(tmp_path, max_epochs=3, callbacks=[EMA(0.9)], limit_train_batches=1)
        starts = {}

        class Look(pl.Callback):
            def on_train_start(self, trainer, module):
                starts.update({name: value.clone() for name, value in module.state_dict().items()})

        run.callbacks.append(Look())
        run.fit(task, Tones(), ckpt_path=path, weights_only=True)
        raw = read_checkpoint(path)["current_model_state"]
        assert all(torch.equal(starts[name], value) for name, value in raw.items())
        assert run.current_epoch == 3

    def test_refuses_data_of_other_classes(self, fitted, tmp_path):
        _, _, path = fitted
        task = ClassificationTask(num_classes=2, image_size=32)
        with pytest.raises(ValueError, match=r"classes \(dark, bright\) are not those of the data \(cat, dog\)"):
            trainer(tmp_path).validate(task, Tones(("cat", "dog")), ckpt_path=path, weights_only=True)

    def test_hyperparameters_are_plain_data(self, fitted):
        task, _, _ = fitted
        assert all(value is None or isinstance(value, str | int | float | dict) for value in task.hparams.values()), (
            task.hparams
        )


class TestLearningRateFactor:
    @given(
        total=st.integers(20, 5000),
        warmup=st.integers(0, 500),
        first=st.floats(0.01, 1.0),
        last=st.floats(0.0, 1.0),
    )
    def test_rises_then_falls_between_its_ends(self, total, warmup, first, last):
        values = [learning_rate_factor(step, total, warmup, first, last) for step in range(total + 1)]
        peak = min(warmup, total // 10)
        assert values[peak] == pytest.approx(1.0)
        assert values[0] == pytest.approx(first if peak else 1.0)
        assert values[-1] == pytest.approx(last)
        assert all(a <= b + 1e-12 for a, b in pairwise(values[: peak + 1]))
        assert all(a >= b - 1e-12 for a, b in pairwise(values[peak:]))

    def test_follows_the_run(self, tmp_path):
        """Of 32 steps three are warm-up, however many were asked for."""
        task = ClassificationTask(
            num_classes=2, network=Tiny(), image_size=32, learning_rate=1.0, warmup_steps=500, final_factor=0.0
        )
        rates = []

        class Look(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, index):
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        trainer(tmp_path, max_epochs=8, callbacks=[Look()], limit_val_batches=0).fit(task, Tones())
        assert rates == pytest.approx([learning_rate_factor(i, 32, 3, 0.1, 0.0) for i in range(32)])
