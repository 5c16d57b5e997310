"""Train and evaluate from Python in a line, by the recipes of the command line."""

import copy
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.parsing import cut
from kornia_mvit.training import datamodules
from kornia_mvit.training.given_data import count_classes, data_module, task_of_data
from kornia_mvit.training.layouts import RECIPES, Layout, find_layout
from kornia_mvit.training.lightning_names import Callback, ModelCheckpoint, pl
from kornia_mvit.training.options import (
    TASKS,
    data_options,
    full_name,
    may_start_processes,
    plan_run,
    without_data,
)
from kornia_mvit.training.recipe_cli import build_cli, quiet_lightning
from kornia_mvit.training.resuming import Stopped
from kornia_mvit.training.runs import deciding_loss
from kornia_mvit.weights.cards import task_of
from kornia_mvit.weights.registry import from_pretrained

__all__ = ["Run", "evaluate", "fit"]

_OUTPUTS = ("logger", "enable_checkpointing", "enable_model_summary")  # of the Trainer, which scores do not need


@dataclass(frozen=True)
class Run:
    """What :func:`fit` trained.

    Args:
        model: the best network in eval mode, with its ``class_names`` and ``preprocess``.
        metrics: scores of the validation at which it was the best, such as ``accuracy``, ``miou`` or ``map``.
        folder: where checkpoints, logs and the report are.
        best: the checkpoint of ``model``; None where none was written.
        last: the checkpoint that the run resumes from; None where none was written.
    """

    model: Any
    metrics: dict[str, float]
    folder: Path
    best: Path | None = None
    last: Path | None = None

    def __repr__(self) -> str:
        scores = ", ".join(f"{name}={value:.4f}" for name, value in self.metrics.items())
        return f"Run({type(self.model).__name__}, {scores}, folder={str(self.folder)!r})"


def fit(
    data: Any,
    *,
    task: str | None = None,
    recipe: str | Path | None = None,
    epochs: int | None = None,
    mode: str | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Run:
    """Train on a dataset, as ``kornia-mvit fit`` does.

    Args:
        data: the folder of a dataset, whose layout tells the task and the recipe: a folder for each class, images and
            label images, or boxes as YOLO, COCO or Pascal VOC have them. Or a table of paths and labels; a data module;
            or a pair of datasets or loaders, to train on and to validate on.
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``; told from the data when None.
        recipe: name or file of a recipe; that of the layout when None, or ``'finetune'`` for a classifier that starts
            from weights.
        epochs: length of the run; the recipe's when None.
        mode: size of the network, such as ``'xxs'``, ``'s'`` or ``'v2-0.5'``; the recipe's when None.
        weights: what training starts from: published weights by name, or a checkpoint.
        out: folder for checkpoints, logs and the report; the recipe's when None.
        options: any option of the recipe, by its plain name (``image_size=128``, ``batch_size=32``, ``precision=...``)
            or its whole one (``trainer__devices=1``, or ``**{"trainer.devices": 1}``). Datasets of a few images get a
            small batch, and no processes that read, unless these are given. ``callbacks`` are beside the recipe's own.

    Returns:
        The best model, its scores, and where the files are.

    Raises:
        DataError: for a folder of no known layout, naming what it has; and for data that cannot be read.
        ValueError: for options that there are not, naming the nearest; and for values that do not fit.
        KeyboardInterrupt: where Ctrl+C stopped the run, after its checkpoint was written.

    Example:
        >>> run = fit("photos", epochs=30)  # doctest: +SKIP
        >>> run.model.class_names, run.metrics["accuracy"]  # doctest: +SKIP
        (('rose', 'tulip'), 0.94)
    """
    named = {"epochs": epochs, "mode": mode, "weights": weights, "out": out}
    options |= {name: value for name, value in named.items() if value is not None}
    callbacks = options.pop("callbacks", [])
    recipe = None if recipe is None else str(recipe)
    best = _BestScores()
    with TemporaryDirectory() as folder, _interruptible():
        module = None
        if isinstance(data, str | os.PathLike):
            argv = plan_run(os.fspath(data), options, task=task, recipe=recipe, workers=may_start_processes())
        else:
            module = data_module(data, options)
            task = task or task_of_data(module)
            argv = plan_run(None, options, task=task, recipe=recipe or RECIPES.get(task), data=type(module))
            argv = without_data(argv, Path(folder))
            argv.append(f"--model.num_classes={count_classes(module)}")
        cli = build_cli(["fit", *argv], run=True, callbacks=[*callbacks, best], data=module)
    return _describe(cli.trainer, cli.model, best)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of the SystemExit that ends a command, and would end an interpreter."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop, Stopped) and stop.signal == signal.SIGINT:
            raise KeyboardInterrupt(str(stop)) from None
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


class _BestScores(Callback):
    """Keeps the scores of each validation, by what the first ModelCheckpoint monitors."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], float]] = []  # the scores, and the loss that decides between equal ones

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the scores."""
        if not trainer.sanity_checking:
            self.seen.append((_scores(trainer.callback_metrics, "val"), deciding_loss(trainer)))

    def at(self, checkpoint: ModelCheckpoint | None) -> dict[str, float]:
        """Return the scores of the best validation, or of the last one where nothing is monitored."""
        if checkpoint is None or checkpoint.monitor is None:
            return self.seen[-1][0] if self.seen else {}
        name = checkpoint.monitor.removeprefix("val/")
        known = [one for one in self.seen if name in one[0]]
        sign = -1 if checkpoint.mode == "max" else 1
        best, _ = min(known, key=lambda one: (sign * one[0][name], one[1]), default=({}, 0.0))
        kept = checkpoint.best_model_score
        if kept is not None and best.get(name) != float(kept):  # of before the run was resumed
            return {name: float(kept)}
        return best


def _scores(metrics: Mapping[str, Tensor], stage: str) -> dict[str, float]:
    """Return the metrics of a stage by their names without it."""
    return {
        name.removeprefix(f"{stage}/"): float(value) for name, value in metrics.items() if name.startswith(f"{stage}/")
    }


def _describe(trainer: pl.Trainer, task: Any, scores: _BestScores) -> Run:
    """Return what a run leaves behind."""
    kept = trainer.checkpoint_callback
    kept = kept if isinstance(kept, ModelCheckpoint) else None
    folder = Path(trainer.default_root_dir)
    folders = [folder] if kept is None or kept.dirpath is None else [Path(kept.dirpath), folder]
    places = [Path(kept.best_model_path)] if kept is not None and kept.best_model_path else []
    best = next((path for path in [*places, folder / "best.ckpt"] if kept is not None and path.is_file()), None)
    last = next((path for place in folders if kept is not None and (path := place / "last.ckpt").is_file()), None)
    return Run(_best_network(task, best), scores.at(kept), folder, best, last)


def _best_network(task: Any, path: Path | None) -> Any:
    """Return the network of a checkpoint, or the task's own where there is none."""
    if path is not None and task_of(task.network) is not None:
        return from_pretrained(path)
    if path is not None:
        task = type(task).load_from_checkpoint(path, map_location="cpu")  # a network of another package
    network = task.network.eval()
    network.class_names, network.preprocess = task.class_names, task.preprocess
    return network


def evaluate(
    model: Any,
    data: Any,
    *,
    tta: str | None = None,
    split: str = "val",
    **options: Any,
) -> dict[str, float]:
    """Return the scores of a model on a dataset, those that ``kornia-mvit validate`` prints of its checkpoint.

    Args:
        model: a model of this package; a checkpoint or a name that :func:`~kornia_mvit.from_pretrained` takes; or what
            :func:`fit` returned.
        data: see :func:`fit`.
        tta: test-time augmentation, such as ``'flip'``.
        split: ``'val'`` or ``'test'``.
        options: options of the task in evaluation, of the data and of the Trainer, as for :func:`fit`.

    Returns:
        Each score by its name, such as ``accuracy``, ``miou`` or ``map``, and the ``loss``.

    Raises:
        CheckpointError: if the model cannot be read.
        DataError: for data that cannot be read, and a folder of no known layout for the model's task.
        TypeError: for a model that is none of this package's.
        ValueError: for another split, for classes that are not the model's, and for options that there are not.

    Example:
        >>> evaluate("runs/folder/best.ckpt", "photos", tta="flip")  # doctest: +SKIP
        {'loss': 0.31, 'accuracy': 0.94}
    """
    if split not in ("val", "test"):
        raise ValueError(f"unknown split {split!r}; available: 'val', 'test'")
    model = model.model if isinstance(model, Run) else model
    network: Any = copy.deepcopy(model) if isinstance(model, nn.Module) else from_pretrained(model)
    task = task_of(network)
    if task is None:
        raise TypeError(
            f"{type(network).__name__} is none of this package's models for a task; give a MobileViTClassifier, "
            "MobileViTV2Classifier, DeepLabV3 or SSDLite, or the path of a checkpoint"
        )
    if network.preprocess is None:
        raise ValueError("the model does not say what images go through; set its preprocess, a kornia_mvit.Preprocess")
    names = network.class_names
    layout: Layout | None = None
    module: Any = None
    if isinstance(data, str | os.PathLike):
        layout = find_layout(os.fspath(data), task)
        kind = getattr(datamodules, layout.data)
    else:
        module = data_module(data, options)
        kind = type(module)
    parts: dict[str, dict[str, Any]] = {"model": {"tta": tta}, "data": {}, "trainer": {}}
    for name, value in options.items():
        part, _, argument = full_name(name, TASKS[task], kind).partition(".")
        if part not in parts or (part == "data" and layout is None):
            raise ValueError(f"evaluate does not take {name}; give it to the data module, or leave it out")
        parts[part][argument] = value
    if layout is not None:
        module = kind(**data_options(layout, {}, parts["data"], names, may_start_processes()) | parts["data"])
    if names is not None and (told := getattr(module, "class_names", None)) is not None and tuple(told) != tuple(names):
        raise ValueError(
            f"the data's classes ({cut(', '.join(told))}) are not the model's ({cut(', '.join(names))}); where they "
            "are the same by number, load the model with from_pretrained and set its class_names to None"
        )
    count = network.num_classes - (task == "detection")
    pipeline = AugmentationPipeline(preprocess=network.preprocess)
    usual: dict[str, Any] = {"devices": 1} | dict.fromkeys(_OUTPUTS, False)
    with quiet_lightning():
        module_task = TASKS[task](network=network, num_classes=count, pipeline=pipeline, **parts["model"])
        trainer = pl.Trainer(**usual | parts["trainer"])
        run = trainer.validate if split == "val" else trainer.test
        run(module_task, datamodule=module, verbose=False)
    return _scores(trainer.callback_metrics, split)
