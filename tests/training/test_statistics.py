"""The statistics of batch normalisation, estimated anew: what they are, when, and what stays as it was."""

import warnings
from contextlib import suppress

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, IterableDataset

from kornia_mvit import Batch
from kornia_mvit.training import EMA, ClassificationTask, ExactResume, LastCheckpoint, SegmentationTask
from kornia_mvit.training.datamodules.base import ImageData
from kornia_mvit.training.statistics import estimating
from tests.training.shapes import ShapeData
from tests.training.test_tasks import Tiny, Tones, trainer

NORM = "network.1."


def tiny(**arguments):
    defaults = {"policy_args": {"scale": [0.5, 1.0], "flip": 0.5}, "learning_rate": 0.01}
    return ClassificationTask(num_classes=2, network=Tiny(), image_size=32, **{**defaults, **arguments})


def norm_of(state):
    return {name: value for name, value in state.items() if name.startswith((f"{NORM}running", f"{NORM}num"))}


class Watch(pl.Callback):
    """Keep what the network holds while it is validated, and the modes of all modules."""

    def __init__(self):
        self.states, self.training = [], set()

    def on_validation_batch_start(self, trainer, module, *rest):
        self.training |= {one.training for one in module.modules()}
        self.states.append({name: value.clone() for name, value in module.state_dict().items()})


class Lagging(pl.Callback):
    """What a short run does to statistics: they are not those of the weights."""

    def __init__(self, by=100.0):
        self.by = by

    def on_train_batch_end(self, trainer, module, *rest):
        module.network[1].running_mean.add_(self.by)


class TestEstimating:
    def test_is_pytorchs_update(self):
        batches = [torch.randn(count, 3, 9, 9) * 3 + 1 for count in (4, 2, 6)]
        ours, theirs = Tiny().eval(), Tiny().eval()
        theirs.load_state_dict(ours.state_dict())
        ours[1].num_batches_tracked.fill_(7)
        with torch.no_grad(), estimating([ours[1]]):
            for batch in batches:
                ours(batch)
            update_bn(batches, theirs)
        torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean)
        torch.testing.assert_close(ours[1].running_var, theirs[1].running_var)
        assert (ours[1].momentum, ours[1].training, int(ours[1].num_batches_tracked)) == (0.1, False, 7)

    @pytest.mark.parametrize("fails", [True, False])
    def test_restores_where_nothing_was_estimated(self, fails):
        norm = nn.BatchNorm2d(3).train()
        norm.running_mean.fill_(5.0)
        with pytest.raises(RuntimeError) if fails else warnings.catch_warnings(), estimating([norm]):
            if fails:
                norm(torch.randn(2, 3, 4, 4))
                raise RuntimeError
        assert norm.running_mean.tolist() == [5.0] * 3
        assert norm.training
        assert norm.momentum == 0.1


class TestRefresh:
    @pytest.mark.parametrize("callbacks", [[], [EMA(0.9)]], ids=["raw", "average"])
    def test_statistics_are_of_the_weights_that_are_validated(self, callbacks, tmp_path):
        """With all training images in one batch they can be computed in a line."""
        task, watch = tiny(learning_rate=0.1), Watch()
        data = Tones(count=8)
        trainer(tmp_path, max_epochs=8, callbacks=[Lagging(), *callbacks, watch]).fit(task, data)
        assert not watch.states[0][f"{NORM}running_mean"].any()  # before the run
        images = task.pipeline.eval()(Batch.collate(data.splits["train"])).image
        for state in watch.states[-1:]:
            network = Tiny()
            network.load_state_dict({name[8:]: value for name, value in state.items() if name.startswith("network.")})
            with torch.no_grad():
                maps = network[0](images)
            torch.testing.assert_close(state[f"{NORM}running_mean"], maps.mean((0, 2, 3)))
            torch.testing.assert_close(state[f"{NORM}running_var"], maps.var((0, 2, 3)))
        last = norm_of(task.state_dict())
        assert all(torch.equal(value, last[name]) for name, value in norm_of(watch.states[-1]).items())

    def test_changes_nothing_else(self, tmp_path):
        """The weights that are learnt, the images and the generators are those of a run without."""
        found = []
        for images in (0, 16):
            pl.seed_everything(3, verbose=False)
            task = tiny(statistics_images=images, learning_rate=0.1)
            with warnings.catch_warnings(action="ignore"):  # where it is off, of the lag
                trainer(tmp_path, max_epochs=3, callbacks=[Lagging()]).fit(task, Tones())
            found.append((task.state_dict(), torch.get_rng_state()))
        (without, one), (with_it, two) = found
        assert torch.equal(one, two)
        differ = {name for name in without if not torch.equal(without[name], with_it[name])}
        assert differ == {f"{NORM}running_mean", f"{NORM}running_var"}

    def test_keeps_running_averages_that_are_as_good(self, tmp_path):
        """After twelve epochs both are right on all training images."""
        states = []
        for images in (0, 16):
            pl.seed_everything(3, verbose=False)
            task = tiny(statistics_images=images, learning_rate=0.1)
            trainer(tmp_path, max_epochs=12, check_val_every_n_epoch=12).fit(task, Tones())
            states.append(norm_of(task.state_dict()))
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

    @pytest.mark.parametrize(
        "arguments",
        [{"statistics_images": 0}, {"freeze_norms": True}, {"train_backbone": False}],
        ids=["off", "frozen norms", "frozen backbone"],
    )
    def test_left_alone(self, arguments, tmp_path, monkeypatch):
        called = []
        task = tiny(**arguments)
        monkeypatch.setattr(task.network[1], "reset_running_stats", lambda: called.append(1))
        with warnings.catch_warnings(action="ignore"):
            trainer(tmp_path, max_epochs=1).fit(task, Tones(count=16))
        assert called == []

    def test_long_runs_and_streams_are_left_alone(self, tmp_path, monkeypatch):
        class Stream(IterableDataset):
            def __iter__(self):
                data = Tones(count=8)
                data.setup()
                return iter(data.splits["train"])

        task = tiny()
        loader = DataLoader(Stream(), batch_size=4, collate_fn=Batch.collate)
        trainer(tmp_path, max_epochs=1, limit_train_batches=2).fit(task, loader, loader)
        assert task._refreshed is None
        monkeypatch.setattr("kornia_mvit.training.statistics.SHORT_RUN", 3)
        for count, expected in ((32, None), (24, 3)):
            task = tiny()
            with warnings.catch_warnings(action="ignore"):  # the run is so short that the warning may be due
                trainer(tmp_path, max_epochs=1).fit(task, Tones(count=count))
            assert task._refreshed == expected

    def test_without_validation(self, tmp_path):
        """The last weights have statistics of their own."""
        task, data = tiny(learning_rate=0.1), Tones(count=8)
        trainer(tmp_path, max_epochs=8, limit_val_batches=0, callbacks=[Lagging()]).fit(task, data)
        images = task.pipeline.eval()(Batch.collate(data.splits["train"])).image
        with torch.no_grad():
            maps = task.network[0](images)
        torch.testing.assert_close(task.network[1].running_mean, maps.mean((0, 2, 3)))

    def test_of_tasks_whose_evaluation_has_many_sizes(self, tmp_path):
        """Segmentation estimates from augmented crops, which are of one size, when it is asked to."""
        settings = {"num_classes": ShapeData().num_classes, "image_size": 32}
        head = nn.Conv2d(4, settings["num_classes"], 1)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), head)
        assert SegmentationTask(network=network, **settings).hparams["statistics_images"] == 0
        task = SegmentationTask(network=network, statistics_images=4, **settings)
        watch = Watch()
        trainer(tmp_path, max_epochs=1, callbacks=[watch]).fit(task, ShapeData())
        assert task._refreshed == 1
        assert watch.training == {False}

    def test_resumes_bit_for_bit(self, tmp_path):
        """Through a validation in the middle of an epoch, whose statistics the training goes on from."""
        states = []
        for stop in (None, 7):
            folder = tmp_path / str(stop)
            for resumed in (False, True) if stop else (False,):
                pl.seed_everything(5, verbose=False)
                task = tiny()
                keep = ModelCheckpoint(dirpath=folder, filename="best")
                callbacks = [EMA(0.9), keep, LastCheckpoint(1), ExactResume()]
                if stop and not resumed:
                    callbacks.append(Stop(stop))
                arguments = {"max_epochs": 3, "val_check_interval": 2, "enable_checkpointing": True}
                run = trainer(folder, callbacks=callbacks, **arguments)
                with suppress(Stopped), warnings.catch_warnings(action="ignore"):
                    run.fit(task, Tones(), ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)
            states.append(torch.load(folder / "last.ckpt", weights_only=True))
        whole, parts = states
        assert whole["global_step"] == parts["global_step"] == 12
        for part in ("state_dict", "current_model_state"):
            assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())

    def test_a_run_of_an_earlier_version_goes_on_without(self, tmp_path):
        task = tiny()
        run = trainer(tmp_path, max_epochs=1)
        run.fit(task, Tones())
        run.save_checkpoint(tmp_path / "now.ckpt")
        checkpoint = torch.load(tmp_path / "now.ckpt", weights_only=True)
        del checkpoint["hyper_parameters"]["statistics_images"]
        torch.save(checkpoint, tmp_path / "before.ckpt")
        for name, expected in (("now", 8), ("before", None)):
            task = tiny()
            run = trainer(tmp_path, max_epochs=2)
            run.fit(task, Tones(), ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True)
            assert task._refreshed == expected

    def test_exception(self):
        with pytest.raises(ValueError, match=r"statistics_images -1 .* 0"):
            tiny(statistics_images=-1)


class Stopped(Exception):
    pass


class Stop(pl.Callback):
    """Stop a run after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.step:
            raise Stopped


class TestWarning:
    @pytest.mark.long
    @pytest.mark.parametrize("by", [100.0, 0.0])
    def test_names_the_lag(self, by, tmp_path):
        task = tiny(statistics_images=0, learning_rate=0.1)
        run = trainer(tmp_path, max_epochs=6, callbacks=[Lagging(by)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.fit(task, Tones(count=64))
        told = [str(one.message) for one in caught if "statistics_images=256" in str(one.message)]
        assert run.callback_metrics["train/accuracy"] > 0.8
        assert len(told) == (by > 0)

    def test_leaves_the_network_as_it_was(self, tmp_path):
        seen = {}

        class Note(pl.Callback):
            def on_train_end(self, trainer, module):
                seen.update({name: value.clone() for name, value in module.state_dict().items()})

        task = tiny(statistics_images=0, learning_rate=0.1)
        with warnings.catch_warnings(action="ignore"):
            trainer(tmp_path, max_epochs=6, callbacks=[Note(), Lagging()]).fit(task, Tones(count=64))
        assert all(torch.equal(value, seen[name]) for name, value in task.state_dict().items() if "network" in name)


class Colours(ImageData):
    """Sixty images of three plain colours with a little noise, a fifth of them for validation."""

    class_names = ("blue", "green", "red")

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        samples = []
        for number in range(60):
            image = 40 + 8 * torch.randn(3, 64, 64, generator=generator)
            image[number % 3] += 150
            samples.append({"image": image.clamp(0, 255).to(torch.uint8), "label": number % 3})
        self.splits = {"train": samples[:48], "val": samples[48:]}


@pytest.mark.long
@pytest.mark.parametrize(
    ("images", "callbacks"),
    [(0, []), (256, []), (256, [EMA(0.998)])],
    ids=["running averages", "estimates", "estimates of the average"],
)
def test_a_first_run_on_plain_colours(images, callbacks, tmp_path):
    """Training is right on all of them. Validation is by chance with running averages, and right with estimates."""
    pl.seed_everything(0, verbose=False)
    task = ClassificationTask("xxs", num_classes=3, image_size=64, statistics_images=images)
    run = trainer(tmp_path, max_epochs=30, callbacks=callbacks, check_val_every_n_epoch=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(task, Colours(64, 0, None))
    accuracy = run.callback_metrics["val/accuracy"]
    assert run.callback_metrics["train/accuracy"] >= 0.95
    assert accuracy >= 0.95 if images else accuracy < 0.8
    assert any("statistics_images=256" in str(one.message) for one in caught) == (images == 0)
