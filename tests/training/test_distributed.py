"""Several processes: what each sees, that they learn as one would, and how they end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from kornia_mvit.training import last_checkpoint
from tests.data.test_datamodules import make_folder
from tests.training.runs import ROOT, fit, state_of, write_recipe

pytestmark = [pytest.mark.long, pytest.mark.processes]

TWO = {"devices": 2, "strategy": "ddp"}


def make_images(folder: Path, count: int) -> Path:
    """Square images, so many of them in train."""
    make_folder(folder / "images" / "train", count=(count + 1) // 2, size=(40, 40))
    if count % 2:
        next((folder / "images" / "train" / "cat").iterdir()).unlink()
    make_folder(folder / "images" / "val", count=3, size=(40, 40))
    return folder


def steps(folder: Path) -> list[list[dict]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def recorded(folder: Path, batch_size: int, trainer: dict, **arguments) -> Path:
    """A recipe in which nothing is random but the order, nothing depends on the company, and all is written down."""
    return write_recipe(
        folder,
        model={
            "backbone_dropout": 0.0,
            "policy": "classification_train",
            "policy_args": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0},
            "freeze_norms": True,
        },
        data={"batch_size": batch_size},
        trainer=trainer,
        callbacks=[{"class_path": "tests.training.probes.Record", "init_args": {"folder": str(folder)}}],
        **arguments,
    )


class TestTwoProcesses:
    def test_learn_as_one_with_the_double_batch(self, tmp_path):
        """40 images in batches of 5 on two processes, or of 10 on one: the same images and losses, step by step."""
        one, two = (make_images(tmp_path / name, 40) for name in ("one", "two"))
        for folder, size, trainer in ((one, 10, {}), (two, 5, TWO)):
            run = fit(recorded(folder, size, trainer | {"max_epochs": 3}))
            assert run.returncode == 0, run.stderr
        (single,) = steps(one)
        first, second = steps(two)
        assert len(single) == len(first) == len(second) == 12
        for a, b, c in zip(single[:10], first[:10], second[:10], strict=True):
            assert set(a["seen"]) == {*b["seen"], *c["seen"]}
            assert (b["loss"] + c["loss"]) / 2 == pytest.approx(a["loss"], abs=1e-4)
        assert abs(single[9]["loss"] - single[0]["loss"]) > 1e-3, "nothing was learned"

    def test_a_signal_to_one_stops_both_and_they_go_on_bit_for_bit(self, tmp_path):
        whole, stopped = (make_images(tmp_path / name, 41) for name in ("whole", "stopped"))
        options = {"data": {"batch_size": 4}, "trainer": TWO}
        run = fit(write_recipe(whole, **options))
        assert run.returncode == 0, run.stderr
        run = fit(write_recipe(stopped, signal_at={"step": 18, "number": int(signal.SIGTERM), "rank": 1}, **options))
        assert run.returncode == 143, run.stderr
        assert "kornia-mvit: stopped by SIGTERM; everything is in" in run.stderr
        assert torch.load(last_checkpoint(stopped), weights_only=True)["global_step"] == 18
        run = fit(write_recipe(stopped, **options), "--ckpt_path", "last")
        assert run.returncode == 0, run.stderr
        expected, found = state_of(whole, steps=20), state_of(stopped, steps=20)
        metrics = [f"exact_resume.metrics.{rank}.callback_metrics.train/loss" for rank in range(2)]
        assert not torch.equal(*(expected[name] for name in metrics)), "the processes have metrics of their own"
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []

    @pytest.mark.parametrize("rank", [0, 1])
    def test_when_one_is_killed_the_other_ends_with_an_error(self, rank, tmp_path):
        make_images(tmp_path, 41)
        recipe = write_recipe(
            tmp_path,
            signal_at={"step": 4, "number": int(signal.SIGKILL), "rank": rank},
            data={"batch_size": 4},
            trainer=TWO | {"max_epochs": 1000},
        )
        process = start(fit_command(recipe), recipe.parent)
        _, err = process.communicate(timeout=240)
        ended = time.monotonic()
        assert process.returncode != 0, err
        while group_lives(process.pid):
            assert time.monotonic() - ended < 60, "a process outlives the other by a minute"
            time.sleep(0.5)


class TestTwoNodes:
    def test_torchrun_on_loopback(self, tmp_path):
        """Two launchers with a process each, as on two machines."""
        make_images(tmp_path, 41)
        recipe = recorded(tmp_path, 7, {"devices": 1, "num_nodes": 2, "strategy": "ddp", "max_epochs": 2})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        runs = []
        for node in range(2):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}"]
            command += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
            runs.append(start([*command, "-m", "kornia_mvit", "fit", "--config", str(recipe)], tmp_path))
        outputs = [run.communicate(timeout=240)[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], outputs
        first, second = steps(tmp_path)
        assert len(first) == len(second) == 6
        for epoch in range(2):
            taken = [step["seen"] for rank in (first, second) for step in rank if step["epoch"] == epoch]
            seen = Counter(name for names in taken for name in names)
            assert len(seen) == 41
            assert seen.total() == 42  # one image twice: fewer than there are processes


def torchrun(recipe: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    return [*command, "-m", "kornia_mvit", "fit", "--config", str(recipe), "--ckpt_path", "last"]


class TestTorchrun:
    def test_starts_again_and_ends_as_without(self, tmp_path):
        """A process is killed, torchrun starts both again, and the weights are those of a run without."""
        whole, broken = (make_images(tmp_path / name, 41) for name in ("whole", "broken"))
        options = {"data": {"batch_size": 4}, "trainer": TWO}
        run = fit(write_recipe(whole, **options))
        assert run.returncode == 0, run.stderr
        recipe = write_recipe(broken, signal_at={"step": 8, "number": int(signal.SIGKILL), "rank": 1}, **options)
        process = start(torchrun(recipe, "--max-restarts=2"), broken)
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        assert "exitcode: -9" in err, "nothing was killed"
        expected, found = state_of(whole, steps=20), state_of(broken, steps=20)
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []

    def test_killed_itself_it_leaves_no_process(self, tmp_path):
        """Both write a checkpoint and end within a minute."""
        make_images(tmp_path, 41)
        recipe = write_recipe(
            tmp_path,
            signal_at={"step": 4, "number": int(signal.SIGKILL), "launcher": True},
            data={"batch_size": 4},
            trainer=TWO | {"max_epochs": 1000},
        )
        process = start(torchrun(recipe), tmp_path)
        assert process.wait(timeout=240) == -signal.SIGKILL
        ended = time.monotonic()
        assert len(running(recipe)) >= 2, "nothing is left to end"
        while running(recipe):
            assert time.monotonic() - ended < 60, "a process outlives torchrun by a minute"
            time.sleep(0.5)
        assert "torchrun, which started this process, is gone" in process.communicate()[1]
        assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] >= 4


class TestSlurm:
    """Two tasks of one job, with the variables that srun sets, and a scontrol that writes down what it is asked."""

    def srun(self, recipe: Path, folder: Path) -> list[subprocess.Popen]:
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
        (folder / "bin" / "scontrol").chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
        job |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", "MASTER_PORT": port}
        job["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
        ranks = [job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
        return [start([*fit_command(recipe), "--ckpt_path", "last"], folder, rank) for rank in ranks]

    def test_a_job_whose_time_is_up_is_put_into_the_queue_and_ends_as_without(self, tmp_path):
        """SIGUSR1 comes to one task in the midst of an epoch; on SIGTERM, at preemption, SLURM requeues by itself."""
        whole, stopped = (make_images(tmp_path / name, 41) for name in ("whole", "stopped"))
        options = {"data": {"batch_size": 4}, "trainer": TWO}
        run = fit(write_recipe(whole, **options))
        assert run.returncode == 0, run.stderr
        told = []
        for step, number in ((8, signal.SIGUSR1), (13, signal.SIGTERM)):
            recipe = write_recipe(stopped, signal_at={"step": step, "number": int(number), "rank": 1}, **options)
            tasks = self.srun(recipe, stopped)
            told.append([task.communicate(timeout=240)[1] for task in tasks])
            assert [task.returncode for task in tasks] == [128 + number] * 2, told
            assert torch.load(last_checkpoint(stopped), weights_only=True)["global_step"] == step
            assert (stopped / "asked").read_text() == "requeue 4711\n"
        assert "SLURM runs job 4711 again" in told[0][0]
        assert "stopped by SIGUSR1; everything is in" in told[0][0]
        tasks = self.srun(write_recipe(stopped, **options), stopped)
        told.append([task.communicate(timeout=240)[1] for task in tasks])
        assert [task.returncode for task in tasks] == [0, 0], told
        assert list(stopped.rglob("hpc_ckpt*")) == [], "Lightning's own checkpoint, in the midst of a step"
        expected, found = state_of(whole, steps=20), state_of(stopped, steps=20)
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def fit_command(recipe: Path) -> list[str]:
    return [sys.executable, "-m", "kornia_mvit", "fit", "--config", str(recipe)]


def start(command: list[str], folder: Path, variables: dict[str, str] | None = None) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (variables or {})
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def running(recipe: Path) -> list[str]:
    """Numbers of the processes whose command names a recipe, in sessions of their own too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(recipe).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True
