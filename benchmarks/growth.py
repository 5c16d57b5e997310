"""How the time of inference grows with the batch and with the image's area, fitted and drawn.

    python benchmarks/growth.py [--mode xxs] [--threads 1] [--json FILE] [--png FILE] [--short]

Over the batch, at 256 px, a line is fitted: a fixed cost and one for each image. Over the area, with one image, a
parabola through the origin's fixed cost: convolutions grow with the area, attention with its square.
"""

import argparse
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
import torch

from kornia_mvit import fuse

BATCHES = (1, 2, 4, 8, 16)
SIDES = (128, 192, 256, 320, 384, 512)


def fit(x: Sequence[float], times: Sequence[float], degree: int) -> dict[str, object]:
    """Fit a polynomial by relative least squares, so that small times count as much as large ones."""
    values, measured = np.asarray(x, float), np.asarray(times)
    columns = np.vander(values, degree + 1, increasing=True)
    coefficients, *_ = np.linalg.lstsq(columns / measured[:, None], np.ones_like(measured), rcond=None)
    off = float(np.abs(columns @ coefficients / measured - 1).max())
    return {"coefficients_ms": coefficients.tolist(), "largest_relative_error": off}


def main() -> None:
    """Measure, fit, print, write JSON and a chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", default="xxs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="fewer turns")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    common.setup(args.threads)
    ours = common.build_ours(args.mode).eval()
    models = {
        "timm, channels_last": common.build_peers(ours, args.mode)["timm, channels_last"].eval(),
        "ours": ours,
        "ours, fused": fuse(ours),
    }
    sweeps = {
        "batch": ([(b, 256) for b in BATCHES], [float(b) for b in BATCHES], 1),
        "megapixels": ([(1, s) for s in SIDES], [s * s / 1e6 for s in SIDES], 2),
    }
    results: dict[str, dict[str, dict[str, object]]] = {}
    for axis, (cases, x, degree) in sweeps.items():
        best: dict[str, list[float]] = {name: [] for name in models}
        for batch, side in cases:
            images = torch.rand(batch, 3, side, side)
            runs = {name: functools.partial(model, common.lay_out(name, images)) for name, model in models.items()}
            with torch.inference_mode():
                times = common.race(runs, 5 if args.short else 20, 2.0 if args.short else 6.0)
            for name, taken in times.items():
                best[name].append(1e3 * min(taken))
        results[axis] = {name: {"x": x, "best_ms": best[name], **fit(x, best[name], degree)} for name in models}
        for name, row in results[axis].items():
            terms = " + ".join(
                f"{c:.3g} ms" + (f" x {axis}" + (f"^{power}" if power > 1 else "") if power else "")
                for power, c in enumerate(row["coefficients_ms"])
            )
            print(f"{args.mode}, {name:22} {terms}; off by {row['largest_relative_error']:.1%} at most", flush=True)
    common.write(args.json, common.stamp(mode=args.mode, results=results))
    if args.png is not None:
        draw(args.png, results, args.mode)


def draw(path: Path, results: dict[str, dict[str, dict[str, object]]], mode: str) -> None:
    """Draw measurements as points, and what was fitted as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    colours = {"timm, channels_last": "#8a98a8", "ours": "#5b9bd5", "ours, fused": "#1b4f8f"}
    for axis, (label, rows) in zip(axes, results.items(), strict=True):
        for name, row in rows.items():
            x = np.asarray(row["x"])
            line = np.linspace(0, x.max(), 100)
            power = np.polynomial.Polynomial(row["coefficients_ms"])
            axis.plot(x, row["best_ms"], "o", color=colours[name], label=name)
            axis.plot(line, power(line), "-", color=colours[name], linewidth=1)
        axis.set_xlabel({"batch": "images in the batch, 256 px", "megapixels": "megapixels, one image"}[label])
        axis.set_ylabel("ms, best")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle(f"MobileViT-{mode.upper()}: time by batch and by area, with what was fitted")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
