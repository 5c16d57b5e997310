"""Scores of a checkpoint for segmentation with several kinds of test-time augmentation, class by class.

    python benchmarks/compare_segmentation.py RECIPE CHECKPOINT --data.root DIR [more of the recipe's options]

Every kind is evaluated on the same validation images. Intervals are of 95 %, by drawing images with replacement: of
each class's IoU, of their mean, and of the differences to the evaluation without augmentation, for which the same
images are drawn on both sides. A difference is marked where its interval leaves out zero.
"""

import argparse
import warnings

import common
import pytorch_lightning as pl
import torch
from torch import Tensor

from kornia_mvit.evaluation.segmentation import (
    SegmentationCollector,
    SegmentationEvaluation,
    resample_iou,
    segmentation_metrics,
)
from kornia_mvit.training import EMA
from kornia_mvit.training.recipe_cli import build_cli

WAYS = (None, "flip", "scale", "flip+scale")


class Counts(pl.Callback):
    """Take in what was predicted."""

    def __init__(self) -> None:
        self.collector = SegmentationCollector(0)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):  # type: ignore[no-untyped-def]  # as Lightning has it
        """Take in a batch."""
        self.collector.add(outputs, batch)


def evaluate(recipe: str, checkpoint: str, tta: str | None, more: list[str]) -> tuple[SegmentationEvaluation, float]:
    """Return the counts of all validation images, and the seconds that they took."""
    options = ["--config", recipe, *more, *([] if tta is None else ["--model.tta", tta])]
    cli = build_cli(options, run=False)
    counts = Counts()
    clock = pl.callbacks.Timer()
    callbacks = [counts, clock, EMA()]
    run = pl.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=callbacks)
    run.validate(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False)
    found = counts.collector.evaluation()
    assert found is not None
    return found, clock.time_elapsed("validate")


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    args, more = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    base: Tensor | None = None
    for tta in WAYS:
        found, seconds = evaluate(args.recipe, args.checkpoint, tta, more)
        draws = resample_iou(found.right, found.union, 2000)
        draws = torch.cat([draws, draws.nanmean(1, keepdim=True)], 1)
        metrics = segmentation_metrics(found)
        scores = [row["iou"] for row in metrics["per_class"]] + [metrics["miou"]["value"]]
        names = [*map(str, range(found.num_classes)), "mean"]
        print(f"\n{tta or 'none'}: {len(found)} images, {seconds:.1f} s, pixel accuracy {metrics['accuracy']:.2%}")
        for k, (name, score) in enumerate(zip(names, scores, strict=True)):
            if score is None:
                continue
            low, high = common.interval(draws[:, k])
            text = f"  {name:>6} {score:7.2%} ({low:.2%} to {high:.2%})"
            if base is not None:
                difference = draws[:, k] - base[:, k]
                low, high = common.interval(difference)
                mark = " *" if low > 0 or high < 0 else ""
                text += f"  {float(difference.nanmean()):+.2%} ({low:+.2%} to {high:+.2%}){mark}"
            print(text)
        base = draws if base is None else base


if __name__ == "__main__":
    main()
