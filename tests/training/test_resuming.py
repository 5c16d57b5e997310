"""Runs that are stopped, and go on."""

import errno
import os
import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from kornia_mvit.training import EMA, AtomicCheckpointIO, ExactResume, LastCheckpoint, SaveOnSignal, last_checkpoint
from kornia_mvit.training.resuming import Stopped
from tests.data.test_datamodules import make_folder
from tests.training.probes import SignalAt
from tests.training.runs import fit, state_of, write_recipe
from tests.training.test_tasks import Tiny, Tones, trainer

ROOT = Path(__file__).parents[2]


class TestExactResume:
    def test_numbers_go_on(self):
        module = pl.LightningModule()
        callback, run = ExactResume(), pl.Trainer(logger=False, enable_checkpointing=False)
        for generator in (random.random, np.random.rand, torch.rand):
            generator(*() if generator is random.random else (3,))
        random.gauss(0, 1), np.random.randn()  # which keep a number for the next call
        checkpoint = {}
        callback.on_save_checkpoint(run, module, checkpoint)
        expected = random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.rand(4)
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        callback.on_load_checkpoint(run, module, checkpoint)
        callback.on_train_start(run, module)
        again = random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.rand(4)
        assert again[:3] == expected[:3]
        assert torch.equal(again[3], expected[3])

    def test_they_are_plain_data(self, tmp_path):
        checkpoint = {}
        ExactResume().on_save_checkpoint(pl.Trainer(logger=False, enable_checkpointing=False), None, checkpoint)
        torch.save(checkpoint, tmp_path / "states.pt")
        assert torch.load(tmp_path / "states.pt", weights_only=True).keys() == checkpoint.keys()

    def test_those_of_another_number_of_processes_are_left(self):
        callback, run = ExactResume(), pl.Trainer(logger=False, enable_checkpointing=False)
        checkpoint = {}
        callback.on_save_checkpoint(run, None, checkpoint)
        checkpoint["exact_resume"]["generators"] *= 2
        callback.on_load_checkpoint(run, None, checkpoint)
        before = torch.get_rng_state()
        with pytest.warns(UserWarning, match="random states of 2 processes, this run has 1"):
            callback.on_train_start(run, None)
        assert torch.equal(torch.get_rng_state(), before)


class TestSaveOnSignal:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_writes_a_checkpoint_and_stops(self, tmp_path, number):
        from kornia_mvit.training import ClassificationTask

        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        run = trainer(tmp_path, max_epochs=3, callbacks=[SignalAt(6, number), EMA(0.9), SaveOnSignal()])
        handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
        with pytest.raises(Stopped) as stop:
            run.fit(task, Tones())
        assert stop.value.code == 128 + number
        assert signal.Signals(number).name in str(stop.value)
        assert torch.load(stop.value.checkpoint, weights_only=True)["global_step"] == 6
        assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert last_checkpoint(tmp_path) == stop.value.checkpoint

    @pytest.mark.parametrize("asked", [True, False])
    def test_the_signal_of_slurm(self, tmp_path, monkeypatch, asked):
        """It is the run's own only where the job is to be run again; two tasks of a job: test_distributed.py."""
        from kornia_mvit.training import ClassificationTask

        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
        for name, value in {**job, "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
        (tmp_path / "scontrol").chmod(0o755)
        seen = []
        before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        try:
            task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
            # At step 4 validation follows, so that SIGTERM comes before the first signal was answered.
            callbacks = [SignalAt(4, signal.SIGUSR1), SignalAt(4, signal.SIGTERM), SaveOnSignal()]
            run = trainer(tmp_path, max_epochs=3, callbacks=callbacks, plugins=[SLURMEnvironment(auto_requeue=asked)])
            with pytest.raises(Stopped) as stop:
                run.fit(task, Tones())
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert stop.value.signal == (signal.SIGUSR1 if asked else signal.SIGTERM)
        assert seen == ([] if asked else [signal.SIGUSR1])
        assert (tmp_path / "asked").exists() == asked
        if asked:
            assert (tmp_path / "asked").read_text() == "requeue 7\n"

    def test_waits_for_the_validation_that_ends_an_epoch(self, tmp_path):
        from kornia_mvit.training import ClassificationTask

        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        run = trainer(tmp_path, max_epochs=3, callbacks=[SignalAt(4, signal.SIGTERM), SaveOnSignal()])
        with pytest.raises(Stopped):
            run.fit(task, Tones())
        assert "val/accuracy" in run.callback_metrics

    def test_exception(self, tmp_path):
        from kornia_mvit.training import ClassificationTask

        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        with pytest.raises(ValueError, match="SaveOnSignal comes before EMA in callbacks; put it behind"):
            trainer(tmp_path, callbacks=[SaveOnSignal(), EMA(0.9)]).fit(task, Tones())


class TestLastCheckpoint:
    def test_is_there_after_so_many_steps_and_at_the_end_of_an_epoch(self, tmp_path):
        from kornia_mvit.training import ClassificationTask

        steps = []

        class Look(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, index):
                path = tmp_path / "checkpoints" / "last.ckpt"
                steps.append(torch.load(path, weights_only=True)["global_step"] if path.exists() else None)

        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        trainer(tmp_path, max_epochs=2, callbacks=[LastCheckpoint(3), Look()]).fit(task, Tones())
        assert steps == [None, None, None, 3, 4, 4, 6, 6]
        assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 8

    def test_accumulated_gradients_are_not_lost(self, tmp_path):
        from kornia_mvit.training import ClassificationTask

        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        callbacks = [SignalAt(1, signal.SIGTERM), SaveOnSignal()]
        run = trainer(tmp_path, callbacks=callbacks, accumulate_grad_batches=2, num_sanity_val_steps=0)
        with pytest.raises(Stopped) as stop:
            run.fit(task, Tones())
        batches = torch.load(stop.value.checkpoint, weights_only=True)["loops"]["fit_loop"]
        assert batches["epoch_loop.batch_progress"]["total"]["processed"] == 2

    def test_exception(self):
        with pytest.raises(ValueError, match="every_n_train_steps 0 is not at least one step"):
            LastCheckpoint(0)


class TestAtomicCheckpointIO:
    def test_smoke(self, tmp_path):
        AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, tmp_path / "new" / "last.ckpt")
        loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "new" / "last.ckpt", weights_only=True)
        assert torch.equal(loaded["a"], torch.ones(2))
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]

    def test_a_write_that_fails_leaves_the_older_one(self, tmp_path):
        """The system lets this process write 100 kB to a file and no more, as a full disk would."""
        path = tmp_path / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, path)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(OSError, match=r"could not write .*last\.ckpt \(File too large\); .*before stays"):
                AtomicCheckpointIO().save_checkpoint({"a": torch.ones(1_000_000)}, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(2))
        assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]

    def test_a_full_disk_is_named(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"\(No space left on device\); there is none from before"):
            AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, tmp_path / "last.ckpt")
        assert list(tmp_path.iterdir()) == []


class TestFindLastCheckpoint:
    def test_removes_what_killed_processes_left(self, tmp_path):
        path = tmp_path / "run" / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "loops": {}}, path)
        (path.parent / ".best.ckpt.part").mkdir()
        (path.parent / ".best.ckpt.part" / "best.ckpt").write_text("half")
        path.with_name(".last.ckpt.part").write_text("half, as version 0.1.0 wrote it")
        assert last_checkpoint(tmp_path) == path
        assert list(path.parent.iterdir()) == [path]

    def test_passes_over_what_is_broken(self, tmp_path):
        for age, name in enumerate(["whole", "half", "weights"]):
            path = tmp_path / name / "last.ckpt"
            content = {"state_dict": {}} if name == "weights" else {"state_dict": {}, "loops": {}}
            AtomicCheckpointIO().save_checkpoint(content, path)
            os.utime(path, (age, age))
        half = tmp_path / "half" / "last.ckpt"
        half.write_bytes(half.read_bytes()[:100])
        os.utime(half, (5, 5))
        with pytest.warns(UserWarning, match="passed over") as caught:
            assert last_checkpoint(tmp_path) == tmp_path / "whole" / "last.ckpt"
        text = " ".join(str(warning.message) for warning in caught)
        assert "is truncated" in text
        assert "it holds weights alone" in text

    def test_of_nothing(self, tmp_path):
        assert last_checkpoint(tmp_path) is None
        assert last_checkpoint(tmp_path / "not there") is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    make_folder(folder / "images", count=19)
    run = fit(write_recipe(folder))
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.long
class TestResume:
    @pytest.mark.parametrize(
        "step, number, group, code, resumes_at",
        [
            (10, signal.SIGKILL, False, -9, 9),
            (12, signal.SIGKILL, False, -9, 9),
            (8, signal.SIGTERM, True, 143, 8),
            (8, signal.SIGINT, True, 130, 8),
            (12, signal.SIGTERM, False, 143, 12),
        ],
    )
    def test_ends_with_the_same_weights_bit_for_bit(self, whole, tmp_path, step, number, group, code, resumes_at):
        (tmp_path / "images").symlink_to(whole / "images")
        run = fit(write_recipe(tmp_path, signal_at={"step": step, "number": int(number), "group": group}))
        assert run.returncode == code, run.stderr
        if code > 0:
            assert run.stderr.strip().splitlines()[-1].startswith(f"kornia-mvit: stopped by {number.name}; everything")
        stopped = last_checkpoint(tmp_path)
        assert torch.load(stopped, weights_only=True)["global_step"] == resumes_at
        run = fit(write_recipe(tmp_path), "--ckpt_path", "last")
        assert run.returncode == 0, run.stderr
        assert f"resuming from {stopped}" in run.stdout
        expected, found = state_of(whole), state_of(tmp_path)
        assert expected.keys() == found.keys()
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
