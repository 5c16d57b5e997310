"""Runs over shards that are killed, and resumed by as many processes and workers or by others."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from kornia_mvit.training import last_checkpoint
from tests.data.test_shards import make_shards
from tests.training.runs import ROOT

pytestmark = [pytest.mark.long, pytest.mark.processes]

EPOCHS, KILLS = 3, 10
PROGRAM = """
import sys, json
import pytorch_lightning as pl
from kornia_mvit.training import AtomicCheckpointIO, ClassificationTask, ExactResume, LastCheckpoint
from kornia_mvit.training.datamodules import ShardData
from tests.training.test_tasks import Tiny, trainer


class Log(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        names = ["/".join(meta["path"].split("/")[-2:]) for meta in batch.meta]
        with open(f"{folder}/seen-{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps([trainer.global_step, trainer.current_epoch, names]) + "\\n")


folder, shards, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pl.seed_everything(7, verbose=False)
data = ShardData(
    shards, shards, 4, options["workers"], 16, num_classes=2, shuffle_buffer=9, drop_last=options.get("drop_last", True)
)
task = ClassificationTask(num_classes=2, network=Tiny(), image_size=16)
run = trainer(
    folder, max_epochs=options["epochs"], devices=options["ranks"], plugins=[AtomicCheckpointIO()],
    strategy="ddp" if options["ranks"] > 1 else "auto", limit_val_batches=0,
    callbacks=[Log(), ExactResume(), LastCheckpoint(3)],  # what is in a checkpoint is in the log
)
run.fit(task, data, ckpt_path=options.get("checkpoint"), weights_only=True)
"""


def start(folder, shards, **options):
    folder.mkdir(exist_ok=True)
    (folder / "run.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, folder / "run.py", folder, shards, json.dumps({"epochs": EPOCHS, **options})],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(run):
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return err


def seen(folder, epoch):
    """The names in each step of an epoch; of steps that were taken twice, the last time."""
    steps = {}
    for path in sorted(folder.glob("seen-*.jsonl")):
        for line in path.read_text().splitlines():
            step, number, names = json.loads(line)
            if number == epoch:
                steps[path.name, step] = names
    return steps


def last_step(folder):
    files = list(folder.glob("seen-*.jsonl"))
    lines = [line for path in files for line in path.read_text().splitlines()[-1:]]
    return max((json.loads(line)[0] for line in lines if line.endswith("]")), default=0)


def checkpoint_of(folder):
    return torch.load(last_checkpoint(folder), weights_only=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """40 shards of unequal sizes."""
    sizes = random.Random(5)
    folder = tmp_path_factory.mktemp("shards")
    counts = [sizes.randint(1, 11) for _ in range(40)]
    assert sum(counts) < 256
    make_shards(folder, counts)
    return str(folder / "*.tar"), sum(counts)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A run of two processes with two workers each, from start to end."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, shards[0], ranks=2, workers=2))
    return folder


@pytest.fixture(scope="module")
def stopped(shards, tmp_path_factory):
    """The same run, killed in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    run = start(folder, shards[0], ranks=2, workers=2)
    kill_after(run, folder, shards[1] // 8 + 13)
    return folder


def kill_after(run, folder, step):
    end = time.monotonic() + 300
    while last_step(folder) < step and run.poll() is None:
        assert time.monotonic() < end, "it does not come so far"
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


class TestResumedRuns:
    def test_killed_ten_times_and_resumed_bit_for_bit(self, shards, whole, tmp_path):
        rng = random.Random(3)
        steps = checkpoint_of(whole)["global_step"]
        assert steps == EPOCHS * (shards[1] // 8)
        for step in sorted(rng.sample(range(1, steps - 1), KILLS)):
            path = last_checkpoint(tmp_path)
            run = start(tmp_path, shards[0], ranks=2, workers=2, checkpoint=path and str(path))
            kill_after(run, tmp_path, step)
        finish(start(tmp_path, shards[0], ranks=2, workers=2, checkpoint=str(last_checkpoint(tmp_path))))
        expected, found = checkpoint_of(whole), checkpoint_of(tmp_path)
        assert found["global_step"] == steps
        assert all(torch.equal(value, found["state_dict"][name]) for name, value in expected["state_dict"].items())
        for epoch in range(EPOCHS):
            assert seen(whole, epoch) == seen(tmp_path, epoch)

    @pytest.mark.parametrize("drop_last", [True, False])
    @pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (3, 1), (2, 3)])
    def test_others_go_on(self, ranks, workers, drop_last, shards, stopped, tmp_path):
        checkpoint = last_checkpoint(stopped)
        step = checkpoint_of(stopped)["global_step"]
        assert step > shards[1] // 8, "in the second epoch"
        before = [names for (_, number), names in seen(stopped, 1).items() if number <= step]
        shutil.copy(checkpoint, tmp_path / "start.ckpt")
        options = {"epochs": 2, "drop_last": drop_last, "checkpoint": str(tmp_path / "start.ckpt")}
        err = finish(start(tmp_path, shards[0], ranks=ranks, workers=workers, **options))
        after = list(seen(tmp_path, 1).values())
        counted = Counter(name for names in before + after for name in names)
        assert f"epoch 1: resumes after {step - shards[1] // 8} batches" in err
        if drop_last:
            assert set(counted.values()) == {1}, "each at most once"
            assert shards[1] - len(counted) < ranks * 4
        else:
            assert len(counted) == shards[1]
            repeats = counted.total() - len(counted)
            assert repeats < ranks
            assert (f"epoch 1: {repeats} of {shards[1]} samples come twice" in err) == (repeats > 0)
