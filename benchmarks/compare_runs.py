"""Accuracies of several runs on one validation set, with intervals, and which differences they support.

    python benchmarks/compare_runs.py DIR plain=runs/plain/last.ckpt strong=runs/strong/last.ckpt [--reference NAME]

Each checkpoint is evaluated with its averaged and its raw weights, each without and with flip test-time augmentation.
DIR holds train/ and val/ with a folder for each class. Accuracies come with Wilson's 95 % interval. Differences to the
reference are of the same images: their interval is of the paired difference, and is marked where it leaves out zero.
"""

import argparse
import math
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from kornia_mvit.training import EMA, ClassificationTask
from kornia_mvit.training.datamodules import FolderData

WAYS = {"average": (False, None), "average, flip": (False, "flip"), "raw": (True, None), "raw, flip": (True, "flip")}
Z = 1.96


class Right(pl.Callback):
    """Note for each image whether it was classified right."""

    def __init__(self) -> None:
        self.right: dict[str, bool] = {}

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):  # type: ignore[no-untyped-def]  # as Lightning has it
        """Take in a batch."""
        found = (outputs["logits"].argmax(1) == batch.label).tolist()
        self.right |= {meta["path"]: value for meta, value in zip(batch.meta, found, strict=True)}


def evaluate(checkpoint: Path, root: str, raw: bool, tta: str | None) -> dict[str, bool]:
    """Tell for each validation image whether it is classified right."""
    # A run without an average has one kind of weights.
    if raw and "current_model_state" not in torch.load(checkpoint, weights_only=True, map_location="cpu"):
        return {}
    task = ClassificationTask.load_from_checkpoint(checkpoint, use_ema_weights=not raw, tta=tta, weights_only=True)
    look = Right()
    run = pl.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=[look, EMA()])
    data = FolderData(root, num_workers=0)
    run.validate(task, data, verbose=False)
    return look.right


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    share = right / count
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return middle - half, middle + half


def paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the difference of two shares over the same images, and half of its 95 % interval."""
    difference = one.double() - other.double()
    return difference.mean().item(), Z * difference.std().item() / math.sqrt(len(difference))


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", metavar="DIR")
    parser.add_argument("runs", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--reference", help="run that the others are compared with, averaged and without flip")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    runs = dict(run.split("=", 1) for run in args.runs)
    reference = args.reference or next(iter(runs))
    found = {
        (name, way): evaluate(Path(path), args.root, raw, tta)
        for name, path in runs.items()
        for way, (raw, tta) in WAYS.items()
    }
    base = found[reference, "average"]
    print(f"{len(base)} images; differences to {reference}, average")
    print(f"{'run':14}{'weights':16}{'right':>7}{'interval':>17}{'difference':>22}")
    for (name, way), right in found.items():
        if not right:
            continue
        values, others = (torch.tensor([rows[path] for path in base]) for rows in (right, base))
        low, high = wilson(int(values.sum()), len(values))
        difference, half = paired(values, others)
        mark = " *" if abs(difference) > half else ""
        print(
            f"{name:14}{way:16}{values.float().mean():7.1%}{f'{low:.1%} to {high:.1%}':>17}"
            f"{f'{difference:+.1%} ± {half:.1%}{mark}':>22}"
        )


if __name__ == "__main__":
    main()
