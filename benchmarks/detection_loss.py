"""What matching and loss cost beside a whole training step of SSDLite.

    python benchmarks/detection_loss.py [--threads 1] [--batch 32] [--rows 100] [--repeats 5] [--json FILE]

The step is that of xxs at 320 px: forward, matching, loss, backward, AdamW. Matching and loss run by themselves, with
the gradient of the loss, in turn with the step, so that what else the machine does falls on both alike. Rows of
boxes are padded, as a data set's batches are, with seven boxes an image in the mean; or all of them are boxes.
"""

import argparse
import statistics
from pathlib import Path

import common
import torch
from torch import Tensor

from kornia_mvit import SSDLite
from kornia_mvit.ops.boxes import assign_targets
from kornia_mvit.ops.losses import multibox_loss

MEAN_BOXES = 7  # of an image of COCO


def boxed(batch: int, rows: int, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of COCO's sizes, small ones most often, their classes, and which are crowds."""
    side = torch.rand(batch, rows, 2) ** 2 * 0.9 + 0.02
    low = torch.rand(batch, rows, 2) * (1 - side)
    number = torch.full((batch,), rows) if full else torch.poisson(torch.full((batch,), float(MEAN_BOXES))).long()
    valid = torch.arange(rows) < number[:, None]
    boxes = torch.cat([low, low + side], -1) * valid[..., None]
    return boxes, torch.randint(1, 81, (batch, rows)).where(valid, -1), torch.rand(batch, rows) < 0.01


def race(batch: int, rows: int, full: bool, repeats: int) -> dict[str, float]:
    """Time both in turn."""
    model = SSDLite("xxs").train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images, (boxes, labels, ignore) = torch.rand(batch, 3, 320, 320), boxed(batch, rows, full)

    def targets() -> tuple[Tensor, Tensor]:
        return assign_targets(model.anchors((320, 320)), boxes, labels, ignore)

    def step() -> None:
        optimizer.zero_grad()
        multibox_loss(*model(images), *targets()).total.backward()
        optimizer.step()

    with torch.no_grad():
        outputs = [output.detach().requires_grad_() for output in model(images)]
    logits, deltas = outputs

    def loss() -> None:
        for output in outputs:
            output.grad = None
        multibox_loss(logits, deltas, *targets()).total.backward()

    times = common.race({"loss": loss, "matching": targets, "step": step}, repeats)
    ratios = [a / b for a, b in zip(times["loss"], times["step"], strict=True)]
    row = {f"{name}_best_ms": min(taken) * 1e3 for name, taken in times.items()}
    row |= {f"{name}_median_ms": statistics.median(taken) * 1e3 for name, taken in times.items()}
    return row | {"ratio_of_bests": min(times["loss"]) / min(times["step"]), "ratio_median": statistics.median(ratios)}


def main() -> None:
    """Run both races, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rows", type=int, default=100, help="boxes of an image, with padding")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = {}
    for title, full in ((f"{MEAN_BOXES} boxes in the mean", False), ("boxes in all rows", True)):
        row = results[title] = race(args.batch, args.rows, full, args.repeats)
        print(f"\nbatch {args.batch}, {args.rows} rows, {title}, {args.threads} threads, {args.repeats} turns")
        for name, what in (("loss", "matching and loss"), ("matching", "of which matching"), ("step", "training step")):
            print(f"  {what:20}{row[f'{name}_best_ms']:9.1f}ms best{row[f'{name}_median_ms']:9.1f}ms median")
        print(f"  {'ratio':20}{row['ratio_of_bests']:9.1%} of bests{row['ratio_median']:7.1%} median")
    common.write(args.json, common.stamp(batch=args.batch, rows=args.rows, results=results))


if __name__ == "__main__":
    main()
