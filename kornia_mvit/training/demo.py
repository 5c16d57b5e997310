"""A first run: handwritten digits, which come with scikit-learn."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.draw.images import draw_batch, draw_predictions
from kornia_mvit.files import printable, write_whole
from kornia_mvit.training.recipe_cli import build_cli, quiet_lightning
from kornia_mvit.weights.registry import from_pretrained

__all__ = ["DemoRun", "demo"]

_DRAWN = 40  # predictions


@dataclass(frozen=True)
class DemoRun:
    """What :func:`demo` trained; printed, it says what came out and which files show it.

    Args:
        folder: where the results are.
        accuracy: share of the test digits that are classified correctly.
        count: number of test digits.
        epochs: length of the run.
        seconds: time that it took.
        report: the page with curves, confusions and worst mistakes.
    """

    folder: Path
    accuracy: float
    count: int
    epochs: int
    seconds: float
    report: Path

    @property
    def checkpoint(self) -> Path:
        """The file with the weights, class names and preprocessing."""
        return self.folder / "digits.ckpt"

    def __str__(self) -> str:
        wrong = round((1 - self.accuracy) * self.count)
        told = {
            self.folder / "augmented.png": "what the network saw while training",
            self.folder / "predictions.png": "what it says of digits kept apart, wrong ones first, in red",
            self.checkpoint: "the weights, with class names and preprocessing",
            self.report: "curves, confusions and worst mistakes, for a browser",
        }
        files = {str(path): text for path, text in told.items() if path.is_file()}  # no report without an epoch
        width = max(map(len, files), default=0)
        lines = [
            f"{self.accuracy:.1%} of {self.count} digits kept apart are right ({wrong} wrong), "
            f"after {self.seconds / 60:.1f} minutes.",
            "",
            *(f"  {path:<{width}}  {text}" for path, text in files.items()),
        ]
        if self.epochs < 5:
            lines.insert(0, "The weights are averaged over the run; in fewer than five epochs the average lags behind.")
        return "\n".join(printable(line) for line in lines)


def demo(output: str | Path = "runs/demo", *, epochs: int | None = None) -> DemoRun:
    """Train xxs on scikit-learn's handwritten digits, evaluate it on digits kept apart, and draw both.

    Args:
        output: folder for the results.
        epochs: epochs in place of the recipe's.

    Returns:
        The record of the run, which prints as a summary.
    """
    began, folder = time.perf_counter(), Path(output)
    argv = ["--config", "digits", "--trainer.default_root_dir", str(folder), "--trainer.enable_model_summary", "false"]
    if epochs is not None:
        argv += ["--trainer.max_epochs", str(epochs)]
    with quiet_lightning():
        cli = build_cli(argv, run=False)
        task: Any = cli.model
        data: Any = cli.datamodule
        trainer: Any = cli.trainer
        trainer.fit(task, data)
        folder = Path(trainer.default_root_dir)  # another where that one holds a run
        augmented = task.pipeline.train()(next(iter(data.train_dataloader())))
        sheet = draw_batch(augmented[:32], data.class_names, preprocess=task.preprocess, cell=96)
        _save(sheet, folder / "augmented.png")
        trainer.save_checkpoint(folder / "digits.ckpt", weights_only=True)
        model: Any = from_pretrained(folder / "digits.ckpt")
        images, labels = _prepared(model, data.test_dataloader())

    with torch.inference_mode():
        probabilities = torch.cat([model(part) for part in torch.split(images, 64)]).softmax(-1)
    wrong = probabilities.argmax(-1) != labels
    order = torch.argsort(probabilities.amax(-1) - 2 * wrong)[:_DRAWN]  # the wrong ones first, then the least sure
    sheet = draw_predictions(
        images[order], probabilities[order], labels[order], model.class_names, preprocess=model.preprocess, cell=96
    )
    _save(sheet, folder / "predictions.png")
    return DemoRun(
        folder=folder,
        accuracy=1 - wrong.float().mean().item(),
        count=len(labels),
        epochs=trainer.max_epochs,
        seconds=time.perf_counter() - began,
        report=folder / "report" / "index.html",
    )


def _prepared(model: Any, loader: Any) -> tuple[Tensor, Tensor]:
    """Return a loader's images as the model takes them, and their labels."""
    prepare, images, labels = model.preprocess.module(), [], []
    for batch in loader:
        images.append(prepare(batch.image))
        labels.append(batch.label)
    return torch.cat(images), torch.cat(labels)


def _save(sheet: Any, path: Path) -> None:
    with write_whole(path) as beside:
        sheet.save(beside)
