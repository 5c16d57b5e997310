"""Learned ranges in a task: their loss, optimiser, log, checkpoints and report."""

import inspect
import json
import signal
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from kornia_mvit import AugmentationPipeline, Batch, LearnedRanges, from_pretrained, policies
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.charts import draw_curves, draw_ranges
from kornia_mvit.training import EMA, ClassificationTask, DetectionTask, Report, SegmentationTask, last_checkpoint
from kornia_mvit.training.optimization import warmup_schedule
from kornia_mvit.training.range_learning import RangeLearning, range_groups, range_values
from kornia_mvit.training.recipe_cli import build_cli
from tests.data.test_datamodules import make_folder
from tests.training.gadgets import QUIET, ShapeLoader
from tests.training.runs import fit, state_of, write_recipe
from tests.training.shapes import make_pairs, make_yolo

LEARNED = {"policy": "classification_learned", "policy_args": {"target_psnr": 20}}


def loader(count=12):
    own = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 4, 4, generator=own)
    images = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic").clamp(0, 1)
    return torch.utils.data.DataLoader([(image, n % 3) for n, image in enumerate(images)], batch_size=4)


def classify(**arguments):
    return ClassificationTask("xxs", 3, image_size=32, warmup_steps=0, **(LEARNED | arguments))


def train(task, folder, *callbacks, epochs=2, **arguments):
    trainer = pl.Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=list(callbacks), **(QUIET | arguments))
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(task, loader(), loader())
    return trainer


class TestRangeLearning:
    def test_ends_learn_and_are_logged(self, tmp_path):
        task = classify()
        start = task.pipeline.ranges.values()
        trainer = train(task, tmp_path)
        ends = task.pipeline.ranges.values()
        assert all(ends[name] != start[name] for name in start)
        assert sum(high - low for low, high in ends.values()) > sum(high - low for low, high in start.values())
        logged = trainer.callback_metrics
        for name, value in range_values(task).items():
            assert float(logged[name]) == pytest.approx(value)
        assert float(logged["ranges/target"]) == 20
        assert float(logged["ranges/psnr"]) > 20
        assert float(logged["ranges/loss"]) > 0

    @pytest.mark.parametrize("task_gradients", [False, True])
    def test_the_network_learns_as_without_the_loss_of_the_ranges(self, tmp_path, task_gradients):
        """Its gradients have no part in it; and the ends get the task's where that was asked for."""
        task = classify(policy_args={"target_psnr": 20, "task_gradients": task_gradients})
        batch = task._augment(Batch(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])))
        loss = torch.nn.functional.cross_entropy(task(batch.image), batch.label)
        task.log = lambda *args, **kwargs: None
        task.add_range_loss(loss).backward()
        weight = next(task.network.parameters())
        both = weight.grad.clone(), task.pipeline.ranges.raw_high.grad.clone()
        task.zero_grad()
        logits = task(batch.image.detach())
        torch.nn.functional.cross_entropy(logits, batch.label).backward()
        torch.testing.assert_close(weight.grad, both[0], rtol=1e-3, atol=1e-6)
        assert bool(both[1].abs().min() > 0)
        assert batch.image.requires_grad == task_gradients

    @pytest.mark.parametrize("kind", [SegmentationTask, DetectionTask])
    def test_other_tasks(self, kind, tmp_path):
        name = "segmentation_learned" if kind is SegmentationTask else "detection_learned"
        count = len(Shapes.mask_names if kind is SegmentationTask else Shapes.class_names)
        task = kind("xxs", count, image_size=32, policy=name, policy_args={"target_psnr": [40, 20]})
        start = task.pipeline.ranges.values()
        trainer = pl.Trainer(max_steps=2, default_root_dir=tmp_path, **QUIET, enable_checkpointing=False)
        with warnings.catch_warnings(action="ignore"):
            trainer.fit(task, ShapeLoader())
        assert all(ends != start[one] for one, ends in task.pipeline.ranges.values().items())
        assert 30 <= float(trainer.callback_metrics["ranges/target"]) <= 40

    def test_the_curriculum_follows_the_steps(self, tmp_path):
        seen: list[float] = []

        class Note(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                seen.append(pl_module.pipeline.ranges.target)

        note, task = Note(), classify(policy_args={"target_psnr": [40, 20]})
        train(task, tmp_path, note, enable_checkpointing=False)
        assert seen == [task.pipeline.ranges.target_at(step, 6) for step in range(6)]

    def test_own_learning_rate_and_no_decay(self):
        ranges = LearnedRanges(learning_rate=0.3)
        (group,) = range_groups(ranges)
        assert group["weight_decay"] == 0
        assert {id(one) for one in group["params"]} == {id(one) for one in ranges.parameters()}
        other = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0, "head": True}
        optimiser = torch.optim.AdamW([other, group])
        schedule = warmup_schedule(optimiser, 10, warmup=0, first=0.1, last=0.0)
        for _ in range(10):
            optimiser.step()
            schedule.step()
        assert [one["lr"] for one in optimiser.param_groups] == pytest.approx([0.0, 0.3], abs=1e-6)
        assert range_groups(None) == range_groups(ranges.requires_grad_(False)) == []

    def test_clipping_leaves_the_ends_alone(self, tmp_path):
        task = classify()
        trainer = pl.Trainer(default_root_dir=tmp_path, **QUIET)
        task.trainer = trainer
        for parameter in task.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser = torch.optim.SGD(task.parameters(), 0.1)
        task.configure_gradient_clipping(optimiser, 1e-3, "norm")
        assert float(next(task.network.parameters()).grad.abs().max()) < 1e-3
        assert task.pipeline.ranges.raw_low.grad.tolist() == [1.0] * 3

    def test_frozen_in_evaluation(self, tmp_path):
        task = classify()
        trainer = pl.Trainer(default_root_dir=tmp_path, **QUIET)
        before = task.pipeline.ranges.values()
        with warnings.catch_warnings(action="ignore"):
            trainer.validate(task, loader(), verbose=False)
        assert task.pipeline.ranges.values() == before
        assert "ranges/loss" not in trainer.callback_metrics

    def test_exception_of_a_step_without_the_loss(self, tmp_path):
        class Own(ClassificationTask):
            def training_step(self, batch, batch_idx):
                return self._step(batch, "train")[0]

        task = Own("xxs", 3, image_size=32, **LEARNED)
        with pytest.raises(RuntimeError, match=r"Own.training_step lacks .* return self.add_range_loss\(loss\)"):
            train(task, tmp_path)
        assert train(Own("xxs", 3, image_size=32), tmp_path, epochs=1).global_step == 3

    @pytest.mark.long
    def test_average_checkpoint_and_report(self, tmp_path):
        """EMA leaves the ends alone; a checkpoint holds them; the report draws them."""
        task = classify()
        keep = ModelCheckpoint(tmp_path, "kept", save_weights_only=False)
        train(task, tmp_path, keep, EMA(0.9), Report(folder=str(tmp_path / "report")))
        saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)
        for name in ("raw_low", "raw_high", "_extra_state"):
            average, raw = (saved[part][f"pipeline.ranges.{name}"] for part in ("state_dict", "current_model_state"))
            assert torch.equal(average, raw)
        assert any(
            not torch.equal(value, saved["current_model_state"][name])
            for name, value in saved["state_dict"].items()
            if name.endswith("weight")
        )
        again = ClassificationTask.load_from_checkpoint(tmp_path / "kept.ckpt")
        assert again.pipeline.ranges.values() == task.pipeline.ranges.values()
        assert from_pretrained(tmp_path / "kept.ckpt").num_classes == 3
        history = json.loads((tmp_path / "report" / "metrics.json").read_text())["history"]
        last = history[-1]
        assert {name: last[name] for name in range_values(task)} == pytest.approx(range_values(task))
        assert {"ranges/psnr", "ranges/target", "ranges/loss"} <= last.keys()
        assert (tmp_path / "report" / "ranges.png").is_file()
        assert "Learned ranges" in (tmp_path / "report" / "index.html").read_text()

    def test_a_pipeline_of_ones_own(self, tmp_path):
        pipeline = AugmentationPipeline(ranges=LearnedRanges(["hue"], target_psnr=25))
        task = ClassificationTask("xxs", 3, image_size=32, pipeline=pipeline)
        train(task, tmp_path, epochs=1)
        assert isinstance(task, RangeLearning)
        assert pipeline.ranges.values()["hue"][1] > 0.01


class TestOptions:
    @pytest.mark.parametrize(
        ("recipe", "make", "policy", "rest"),
        [
            ("folder", make_folder, "classification_learned", []),
            ("folder-segmentation", make_pairs, "segmentation_learned", ["--data.num_classes", "4"]),
            ("folder-detection", make_yolo, "detection_learned", []),
        ],
    )
    def test_of_the_recipes_there_are(self, tmp_path, recipe, make, policy, rest):
        root = make(tmp_path / "data")
        arguments = ["--config", recipe, "--data.root", str(root or tmp_path / "data"), *rest]
        arguments += ["--model.policy", policy, "--model.policy_args.target_psnr", "20", "--trainer.accelerator=cpu"]
        task = build_cli(arguments, run=False).model
        assert task.pipeline.ranges.curriculum == (20, 20)
        assert task.hparams["policy_args"]["target_psnr"] == 20

    @pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
    def test_learned_policies_take_what_the_others_take(self, task):
        learned, plain = (getattr(policies, f"{task}_{kind}") for kind in ("learned", "train"))
        assert set(inspect.signature(plain).parameters) <= set(inspect.signature(learned).parameters)
        assert [type(step) for step in learned(32, jitter=0.2).children()] == [
            type(step) for step in plain(32, jitter=0.2).children()
        ]


class TestDrawRanges:
    def test_smoke(self):
        rows = [{"epoch": n, "ranges/hue_low": -0.1 * n, "ranges/hue_high": 0.1 * n, "lr": 0.1} for n in range(3)]
        alone = draw_ranges(rows)
        both = draw_ranges([row | {"ranges/psnr": 30.0, "ranges/target": 20.0} for row in rows])
        assert alone[:4] == both[:4] == b"\x89PNG"
        assert alone != both
        assert draw_curves(rows) == draw_curves([{"epoch": row["epoch"], "lr": 0.1} for row in rows])

    def test_without_ranges(self):
        assert draw_ranges([{"epoch": 1.0, "train/loss": 2.0}]) is None


@pytest.mark.long
class TestResume:
    def test_after_sigkill_bit_for_bit(self, tmp_path):
        model = {"policy": "classification_learned", "policy_args": {"target_psnr": [40, 20], "task_gradients": True}}
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        make_folder(whole / "images", count=19)
        stopped.mkdir()
        (stopped / "images").symlink_to(whole / "images")
        run = fit(write_recipe(whole, model=model))
        assert run.returncode == 0, run.stderr
        run = fit(write_recipe(stopped, model=model, signal_at={"step": 10, "number": int(signal.SIGKILL)}))
        assert run.returncode == -9, run.stderr
        assert torch.load(last_checkpoint(stopped), weights_only=True)["global_step"] == 9
        run = fit(write_recipe(stopped, model=model), "--ckpt_path", "last")
        assert run.returncode == 0, run.stderr
        expected, found = state_of(whole), state_of(stopped)
        assert expected.keys() == found.keys()
        assert any("pipeline.ranges" in name for name in expected)
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


@pytest.mark.long
@pytest.mark.processes
class TestTwoProcesses:
    def test_ends_are_the_same_in_both_and_go_on_bit_for_bit(self, tmp_path):
        """Both processes see other images, and take the step that the mean of their gradients says."""
        model = {"policy": "classification_learned", "policy_args": {"target_psnr": [40, 20]}}
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        make_folder(whole / "images", count=21)
        stopped.mkdir()
        (stopped / "images").symlink_to(whole / "images")
        note = [{"class_path": "tests.training.probes.NoteRanges", "init_args": {"folder": str(whole)}}]
        options = {"model": model, "trainer": {"devices": 2, "strategy": "ddp"}}
        run = fit(write_recipe(whole, callbacks=note, **options))
        assert run.returncode == 0, run.stderr
        first, second = (json.loads((whole / f"ranges{rank}.json").read_text()) for rank in (0, 1))
        assert len(first) > 4
        assert [row["ends"] for row in first] == [row["ends"] for row in second]
        assert all(one["gradient"] == other["gradient"] for one, other in zip(first, second, strict=True))
        assert all(one["loss"] != other["loss"] for one, other in zip(first, second, strict=True))
        assert first[0]["ends"] != first[-1]["ends"]
        run = fit(write_recipe(stopped, signal_at={"step": 8, "number": int(signal.SIGTERM), "rank": 1}, **options))
        assert run.returncode == 143, run.stderr
        run = fit(write_recipe(stopped, **options), "--ckpt_path", "last")
        assert run.returncode == 0, run.stderr
        steps = torch.load(last_checkpoint(whole), weights_only=True)["global_step"]
        expected, found = state_of(whole, steps), state_of(stopped, steps)
        assert expected.keys() == found.keys()
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
