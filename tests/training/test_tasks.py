"""ClassificationTask: its batches, loss, schedule and checkpoints."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from torch import nn
from torch.utils.data import DataLoader

from kornia_mvit import AugmentationPipeline, Batch, MobileViTClassifier, Preprocess
from kornia_mvit.training import EMA, ClassificationTask, LastCheckpoint
from kornia_mvit.training.datamodules.base import ImageData
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
        task = ClassificationTask(num_classes=2, image_size=32, learning_rate=3e-3, backbone_dropout=0.1)
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

    @pytest.mark.parametrize("source", ["data", "own", "plain"])
    def test_predicts(self, source, tmp_path):
        """The logits of each image, in its order, whatever loads them."""
        task, data = ClassificationTask(num_classes=2, image_size=32, network=Tiny()), Tones(count=10)
        data.setup()
        loaders = {
            "data": data,
            "own": data.test_dataloader(),
            "plain": DataLoader(data.splits["test"], batch_size=3, collate_fn=Batch.collate),
        }
        found = torch.cat(trainer(tmp_path).predict(task, loaders[source]))
        images = torch.stack([sample["image"] for sample in data.splits["test"]])
        with torch.no_grad():
            torch.testing.assert_close(found, task.eval()(task.preprocess.module()(images)))

    @pytest.mark.filterwarnings("ignore:You requested to overfit")
    def test_overfits(self, tmp_path):
        """Each epoch sees the same batches, the first."""
        seen = []

        class Note(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, number):
                seen.append([one["id"] for one in batch.meta])

        task = ClassificationTask(num_classes=2, image_size=32, network=Tiny())
        trainer(tmp_path, max_epochs=3, overfit_batches=1, callbacks=[Note()]).fit(task, Tones())
        assert seen == [list(range(8))] * 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"precision": "bf16-true"}, "bf16-mixed"),
            ({"precision": "16-true"}, "16-mixed"),
            ({"precision": "64-true"}, "32-true"),
            ({"accumulate_grad_batches": 0}, "accumulate_grad_batches 0"),
        ],
    )
    def test_trainers_that_cannot_be(self, arguments, message, tmp_path):
        task = ClassificationTask(num_classes=2, image_size=32, network=Tiny())
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **arguments).fit(task, Tones())

    @pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
    def test_batches_that_cannot_be(self, tmp_path):
        task = ClassificationTask(num_classes=2, image_size=32)
        lone = DataLoader([{"image": torch.rand(3, 40, 40), "label": 0}], collate_fn=Batch.collate)
        with pytest.raises(ValueError, match=r"1 image of 32x32 .* batch_size"):
            trainer(tmp_path).fit(task, lone)
        with pytest.raises(TypeError, match=r"Tensor \(1,\).*Batch\.collate"):
            trainer(tmp_path).predict(task, DataLoader([1, 2]))

    @pytest.mark.filterwarnings("ignore:Found .* in eval mode")
    def test_trains_with_augmentation_after_evaluation(self, tmp_path):
        task = ClassificationTask(num_classes=2, image_size=32, network=Tiny()).eval()
        modes = []

        class Note(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, number):
                modes.append(module.pipeline.training)

        trainer(tmp_path, callbacks=[Note()], num_sanity_val_steps=0).fit(task, Tones())
        assert all(modes)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "num_classes is missing"),
            ({"num_classes": 2, "mode": "m"}, "unknown mode 'm'; available: 'xxs', 'xs', 's'"),
            ({"num_classes": 2, "variant": "google"}, "unknown variant 'google'; available: 'apple', 'kornia'"),
            (
                {"num_classes": 2, "policy": "best"},
                "unknown policy 'best'; available: 'classification_learned', 'classification_strong'",
            ),
            ({"num_classes": 2, "resize_size": 100}, "crop 256 is larger than the image resized to 100"),
            ({"num_classes": 2, "policy_args": {"colour": 1}}, "classification_train has no argument colour; it has"),
            ({"num_classes": 2, "network": "resnet18"}, "unknown network 'resnet18'; give a module, or a name of timm"),
            (
                {"num_classes": 2, "network": "timm:mobilevit_m"},
                "timm has no model 'mobilevit_m'; near it: mobilevit",
            ),
            (
                {"num_classes": 2, "network": "timm:mobilenetv3_small_050", "network_args": {"img_size": 32}},
                "timm cannot build 'mobilenetv3_small_050' with img_size=32: ",
            ),
            ({"num_classes": 2, "network": Tiny(), "weights": "a.ckpt"}, "give network or weights, not both"),
            ({"num_classes": 2, "network": Tiny(), "gradient_checkpointing": True}, "Tiny has no gradient checkpoint"),
            ({"num_classes": 2, "network": Tiny(), "compile": "blocks"}, "layers, and Tiny has none; give true"),
            ({"num_classes": 2, "compile": "best"}, "compile='best' is not true, false or 'blocks'"),
            ({"num_classes": 2, "antialias": "no"}, "antialias='no' is neither true nor false"),
            ({"num_classes": 2, "train_backbone": "false"}, "train_backbone='false' is neither true nor false"),
            ({"num_classes": 2, "layer_decay": 0.5, "temperature": 0.0}, "temperature 0.0 is not positive"),
            ({"num_classes": 3, "teacher": MobileViTClassifier(num_classes=2)}, "the teacher has 2 classes"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError) as error:
            ClassificationTask(**arguments)
        assert message in str(error.value)

    def test_exception_of_data(self, tmp_path):
        with pytest.raises(ValueError, match="2 classes, the task 3"):
            trainer(tmp_path).fit(ClassificationTask(num_classes=3, network=Tiny(3), image_size=32), Tones())
        loader = DataLoader([{"image": torch.zeros(3, 32, 32)}] * 4, batch_size=2, collate_fn=Batch.collate)
        with pytest.raises(ValueError, match="needs labels"):
            trainer(tmp_path).validate(ClassificationTask(num_classes=2, network=Tiny(), image_size=32), loader)

    @pytest.mark.parametrize("batch", [{"pixels": torch.rand(2, 3, 32, 32)}, torch.rand(3, 32, 32)])
    def test_exception_of_what_is_no_batch(self, batch):
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        for hook in (task.on_before_batch_transfer, task.on_after_batch_transfer):
            with pytest.raises(TypeError, match=rf"{type(batch).__name__}.*collate_fn=Batch.collate"):
                hook(batch, 0)

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

        pipeline = Spy(preprocess=Preprocess(32, crop=32))
        task = ClassificationTask(num_classes=2, network=Tiny(), pipeline=pipeline, statistics_images=0)
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
        with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, network"):
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
        task = ClassificationTask(num_classes=2, image_size=32, learning_rate=3e-3, backbone_dropout=0.1)
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
        with pytest.raises(ValueError, match=r"\(dark, bright\).*\(cat, dog\)"):
            trainer(tmp_path).validate(task, Tones(("cat", "dog")), ckpt_path=path, weights_only=True)

    def test_fits_with_every_switch(self, tmp_path):
        task = ClassificationTask(
            num_classes=2,
            image_size=64,
            head_dropout=0.1,
            drop_path=0.1,
            head_lr_multiplier=10.0,
            layer_decay=0.8,
            decay_norms=False,
            freeze_norms=True,
            freeze_epochs=1,
            gradient_checkpointing=True,
            channels_last=False,
            multi_scale=(32, 64, 2),
            tta="flip",
            per_class=True,
        )
        run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, precision="bf16-mixed")
        run.fit(task, Tones())
        assert {"val/accuracy/dark", "val/accuracy/bright", "val/calibration_error"} <= run.callback_metrics.keys()

    def test_metrics(self, tmp_path):
        """Of six classes, against counting: three right, five among the first five."""
        task = ClassificationTask(num_classes=6, network=nn.Flatten(), image_size=32, per_class=True)
        logits = torch.tensor(
            [[9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5], [1, 2, 9, 3, 4, 0.0]]
        ).repeat(2, 1)
        label = torch.tensor([0, 1, 1, 5, 0, 5, 0, 4])
        task.log = lambda *args, **kwargs: None
        logged = {}
        task.log_dict = logged.update
        task.eval().validation_step(Batch(logits[:, :, None, None] / 9, label), 0)
        values = {name: metric.compute().item() for name, metric in task.metrics["val_"].items()}
        assert values["accuracy"] == 3 / 8
        assert values["top5"] == 5 / 8
        assert task.confusion.compute().sum() == 8
        task.on_validation_epoch_end()
        assert logged["val/accuracy/0"] == pytest.approx(2 / 3)
        assert logged["val/accuracy/1"] == pytest.approx(1 / 2)

    def test_a_frozen_backbone_stays_as_it_is(self, tmp_path):
        """Its weights and its statistics, with and without an average; the classifier learns."""
        torch.manual_seed(0)
        settings = {"train_backbone": False, "backbone_dropout": 0.5, "learning_rate": 0.1}
        task = ClassificationTask(num_classes=2, image_size=32, **settings)
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        trainer(tmp_path, max_epochs=2).fit(task, Tones())
        changed = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {"classifier.weight", "classifier.bias"}

    def test_a_backbone_that_rests_at_first_learns_later(self, tmp_path):
        states = []

        class Look(pl.Callback):
            def on_train_epoch_end(self, trainer, module):
                states.append({name: value.clone() for name, value in module.network.state_dict().items()})

        task = ClassificationTask(num_classes=2, image_size=32, freeze_epochs=1, warmup_steps=0)
        states.append({name: value.clone() for name, value in task.network.state_dict().items()})
        trainer(tmp_path, max_epochs=2, callbacks=[Look()]).fit(task, Tones())
        first, second = (
            {name for name in states[0] if not torch.equal(states[i][name], states[i + 1][name])} for i in (0, 1)
        )
        assert first == {"classifier.weight", "classifier.bias"}
        assert {"backbone.stem.conv.weight", "backbone.stem.norm.running_mean"} <= second

    def test_frozen_norms_keep_their_statistics(self, tmp_path):
        task = ClassificationTask(num_classes=2, image_size=32, freeze_norms=True)
        trainer(tmp_path).fit(task, Tones())
        assert torch.equal(task.network.backbone.stem.norm.running_mean, torch.zeros(16))

    def test_starts_from_weights(self, fitted, tmp_path):
        """All but the classifier's; and its checkpoints do not ask for the file again."""
        _, _, path = fitted
        start = tmp_path / "start.ckpt"
        start.write_bytes(path.read_bytes())
        task = ClassificationTask("xs", num_classes=3, image_size=32, weights=str(start))
        given = from_pretrained(start)
        stem = given.backbone.stem.conv.weight
        assert torch.equal(task.network.backbone.stem.conv.weight, stem)
        assert task.network.num_classes == 3
        assert task.hparams["mode"] == "xxs"
        run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
        run.fit(task, Tones(("a", "b", "c")))
        run.save_checkpoint(tmp_path / "tuned.ckpt")
        start.unlink()
        ClassificationTask.load_from_checkpoint(tmp_path / "tuned.ckpt", weights_only=True)

    def test_raw_weights_of_a_checkpoint(self, tmp_path):
        """Evaluated as they are when asked for, in place of the average."""
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, learning_rate=0.1)
        trainer(tmp_path, callbacks=[EMA(0.9), LastCheckpoint()]).fit(task, Tones())
        path = tmp_path / "checkpoints" / "last.ckpt"
        found = []
        for raw in (True, False):
            task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, use_ema_weights=not raw)
            run = trainer(tmp_path, callbacks=[EMA(0.9)])
            run.validate(task, Tones(), ckpt_path=path, weights_only=True, verbose=False)
            found.append(task.network[-1].weight)
        checkpoint = read_checkpoint(path)
        assert torch.equal(found[0], checkpoint["current_model_state"]["network.4.weight"])
        assert torch.equal(found[1], checkpoint["state_dict"]["network.4.weight"])
        assert not torch.equal(*found)

    def test_learns_from_a_teacher(self, tmp_path):
        """With the teacher's word alone a student comes to answer as it does, against the labels; it is not saved."""

        class Oracle(nn.Module):
            def forward(self, image):
                bright = image.mean((1, 2, 3)) - 0.45
                return torch.stack([20 * bright, -20 * bright], 1)  # the wrong way round

        teacher = Oracle()
        task = ClassificationTask(
            num_classes=2, network=Tiny(), image_size=32, learning_rate=0.1, teacher=teacher, teacher_weight=1.0
        )
        run = trainer(tmp_path, max_epochs=6, callbacks=[EMA(0.5)])
        run.fit(task, Tones())
        assert run.callback_metrics["val/accuracy"] == 0.0
        assert not any("teacher" in name for name in task.state_dict())

    def test_a_checkpoint_of_either_kind_can_teach(self, fitted, tmp_path):
        """The teacher sees what the student sees, through its own mean and std."""
        task = ClassificationTask(
            num_classes=2, network="timm:mobilenetv3_small_050", image_size=32, statistics_images=0
        )
        run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
        run.fit(task, Tones())
        run.save_checkpoint(tmp_path / "timm.ckpt")
        image = torch.rand(2, 3, 32, 32)
        for path, network in ((tmp_path / "timm.ckpt", task), (fitted[2], from_pretrained(fitted[2]))):
            student = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, teacher=str(path))
            torch.testing.assert_close(student.teacher(image), network.eval()(image).detach())

    def test_takes_timm_by_name(self, tmp_path):
        task = ClassificationTask(num_classes=2, network="timm:mobilenetv3_small_050", image_size=32, layer_decay=0.9)
        run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=1)
        run.fit(task, Tones())
        run.save_checkpoint(tmp_path / "timm.ckpt")
        again = ClassificationTask.load_from_checkpoint(tmp_path / "timm.ckpt", weights_only=True)
        image = torch.rand(2, 3, 32, 32)
        assert torch.equal(again.eval()(image), task.eval()(image))

    @pytest.mark.long
    def test_compiles(self, tmp_path):
        """The network's own graphs are tests of the models; here it is that training, averaging and saving take one."""

        class Telling(Tiny):
            """All logits are 100 higher where they are compiled, which changes no probability."""

            def forward(self, x):
                y = super().forward(x)
                return y + 100 if torch.compiler.is_compiling() else y

        task = ClassificationTask(num_classes=2, network=Telling(), image_size=32, compile=True, learning_rate=0.1)
        run = trainer(tmp_path, callbacks=[EMA(0.5)], max_epochs=6)
        run.fit(task, Tones())
        assert run.callback_metrics["val/accuracy"] == 1.0
        run.save_checkpoint(tmp_path / "compiled.ckpt")
        plain = ClassificationTask.load_from_checkpoint(
            tmp_path / "compiled.ckpt", network=Tiny(), compile=False, weights_only=True
        )
        image = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(plain.eval()(image) + 100, task.eval()(image))

    @pytest.mark.parametrize("mode", ["xxs", "v2-0.5"])
    def test_compiles_blocks(self, mode, monkeypatch):
        """Each transformer layer is compiled by itself, and nothing else."""
        compiled = []
        monkeypatch.setattr(nn.Module, "compile", lambda module, dynamic, **how: compiled.append((module, dynamic)))
        task = ClassificationTask(mode, 2, image_size=32, compile="blocks", multi_scale=(32, 64, 2))
        layers = [m for m in task.network.modules() if type(m).__name__ in ("TransformerLayer", "SeparableLayer")]
        assert len(layers) == 9
        assert [(id(module), dynamic) for module, dynamic in compiled] == [(id(layer), True) for layer in layers]

    @pytest.mark.long
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch.compile looks at it
    def test_compiles_blocks_of_several_networks(self, monkeypatch):
        """All transformer layers of a process share what PyTorch counts its limit by."""
        plain = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda module, **how: plain(module, backend="eager", **how))
        torch._dynamo.reset()
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for mode, size in (("xxs", 64), ("xs", 96)):
                task = ClassificationTask(mode, 2, image_size=size, compile="blocks")
                for count in (4, 3):
                    task.train()(torch.rand(count, 3, size, size)).sum().backward()
                    with torch.no_grad():
                        task.eval()(torch.rand(count, 3, size, size))
        torch._dynamo.reset()

    @pytest.mark.long
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch.compile looks at it
    def test_trains_compiled_blocks(self):
        """Loss and gradients are those without compiling."""
        found, image = [], torch.rand(4, 3, 64, 64)
        for compile in (False, "blocks"):
            torch.manual_seed(0)
            task = ClassificationTask("xxs", 2, image_size=64, compile=compile)
            loss = task(image).square().mean()
            loss.backward()
            found.append([loss.detach(), *(parameter.grad for parameter in task.network.parameters())])
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)

    @pytest.mark.long
    @pytest.mark.parametrize(
        "finder", [LearningRateFinder(num_training_steps=20), BatchSizeFinder(max_trials=2, init_val=3)]
    )
    def test_finders_of_lightning(self, finder, tmp_path):
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        data = Tones(count=200)
        run = trainer(tmp_path, callbacks=[finder], enable_checkpointing=True)
        run.fit(task, data)
        assert (task.hparams.learning_rate, data.batch_size) != (2e-3, 8)

    def test_hyperparameters_are_plain_data(self, fitted):
        task, _, _ = fitted
        assert all(
            value is None or isinstance(value, str | int | float | dict | list) for value in task.hparams.values()
        ), task.hparams
