"""Runs of the command line in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from kornia_mvit.training import last_checkpoint

ROOT = Path(__file__).parents[2]


def write_recipe(
    folder: Path,
    *,
    signal_at: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    callbacks: list[dict[str, Any]] | None = None,
) -> Path:
    """A run of 4 epochs of 6 steps whose every part is random: order, augmentation, mixes, dropout."""
    own, more = callbacks or [], trainer or {}
    callbacks = [
        {"class_path": "kornia_mvit.training.EMA", "init_args": {"decay": 0.9}},
        {"class_path": "kornia_mvit.training.LastCheckpoint", "init_args": {"every_n_train_steps": 3}},
    ]
    callbacks += own
    if signal_at:
        callbacks.append({"class_path": "tests.training.probes.SignalAt", "init_args": signal_at})
    recipe = {
        "model": {
            "class_path": "kornia_mvit.training.ClassificationTask",
            "init_args": {"mode": "xxs", "image_size": 32, "backbone_dropout": 0.1, "policy": "classification_strong"}
            | (model or {}),
        },
        "data": {
            "class_path": "kornia_mvit.training.datamodules.FolderData",
            "init_args": {"root": str(folder / "images"), "batch_size": 5, "num_workers": 1} | (data or {}),
        },
        "trainer": {
            "max_epochs": 4,
            "accelerator": "cpu",
            "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "logger": False,
            "callbacks": callbacks,
            **more,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def fit(recipe: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kornia_mvit", "fit", "--config", str(recipe), *arguments]
    return subprocess.run(
        command,
        env=environment,
        cwd=recipe.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        start_new_session=True,
    )


def state_of(folder: Path, steps: int = 24) -> dict[str, torch.Tensor]:
    """Every tensor of the weights, their average and the optimiser at the end of a run."""
    path = last_checkpoint(folder)
    assert path is not None
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == steps
    tensors = {}

    def walk(name, value):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}.{key}", item)
        elif isinstance(value, list):
            for key, item in enumerate(value):
                walk(f"{name}.{key}", item)

    for part in ("state_dict", "current_model_state", "optimizer_states", "exact_resume"):
        walk(part, checkpoint[part])
    return tensors
