"""Scores of several checkpoints of detectors on the same validation images, with intervals, and their differences.

    python benchmarks/compare_detection.py DIR one=runs/one/best.ckpt two=runs/two/best.ckpt [--draws 200] [--json FILE]

DIR is the dataset, in a layout that ``kornia_mvit.evaluate`` finds by itself. Intervals are of 95 %, by drawing images
with replacement, the same ones for all checkpoints. Differences are to the first, and marked where the interval leaves
out zero.
"""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import common
import torch

import kornia_mvit
from kornia_mvit.evaluation.coco import CocoMetrics

Rows = list[tuple[Mapping[str, Any], Mapping[str, Any]]]
SCORES = ("map", "map_50", "map_75")


def collect(checkpoint: str, data: Path) -> tuple[Rows, tuple[str, ...]]:
    """Return predictions and truths of each image, and the names of the classes."""
    rows: Rows = []
    names: list[tuple[str, ...]] = []
    update = CocoMetrics.update

    def note(self: CocoMetrics, predictions: Sequence[Any], truths: Sequence[Any]) -> None:
        names.append(self.class_names)
        # Without its number, by which an image that is drawn twice would count once.
        rows.extend(
            (one, {k: v for k, v in truth.items() if k != "image_id"})
            for one, truth in zip(predictions, truths, strict=True)
        )
        update(self, predictions, truths)

    with mock.patch.object(CocoMetrics, "update", note):
        kornia_mvit.evaluate(kornia_mvit.from_pretrained(checkpoint), data)
    return rows, names[0]


def score(rows: Rows, names: tuple[str, ...]) -> list[float]:
    """Return the scores of some images."""
    metrics = CocoMetrics(names)
    metrics.update([one for one, _ in rows], [truth for _, truth in rows])
    found = metrics.compute()
    return [float(found[name]) for name in SCORES]


def main() -> None:
    """Evaluate, draw, print, and write figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    generator = torch.Generator().manual_seed(0)
    chosen: list[list[int]] = []
    base, results = None, {}
    for name, checkpoint in (run.split("=", 1) for run in args.runs):
        rows, names = collect(checkpoint, args.data)
        count = len(rows)
        chosen = chosen or [torch.randint(count, (count,), generator=generator).tolist() for _ in range(args.draws)]
        draws = torch.tensor([score([rows[n] for n in drawn], names) for drawn in chosen], dtype=torch.float64)
        own: dict[str, Any] = {"images": count}
        for k, (title, value) in enumerate(zip(SCORES, score(rows, names), strict=True)):
            low, high = common.interval(draws[:, k])
            own[title] = {"value": value, "low": low, "high": high}
            text = f"{name:16}{title:8}{value:8.2%} ({low:.2%} to {high:.2%})"
            if base is not None:
                difference = draws[:, k] - base[:, k]
                low, high = common.interval(difference)
                own[title] |= {"difference_low": low, "difference_high": high}
                mark = " *" if low > 0 or high < 0 else ""
                text += f"  {float(difference.mean()):+.2%} ({low:+.2%} to {high:+.2%}){mark}"
            print(text)
        results[name] = own
        base = draws if base is None else base
    common.write(args.json, common.stamp(draws=args.draws, results=results))


if __name__ == "__main__":
    main()
