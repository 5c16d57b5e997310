"""What the benchmarks share: peers with our weights, races in turn, tables, charts and the stamp of a result."""

import argparse
import copy
import json
import math
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_mvit import MobileViT, save_checkpoint
from kornia_mvit.inference.engines.timing import time_in_turn
from kornia_mvit.models.mobilevitv2 import mode_width
from kornia_mvit.models.modes import build_classifier
from kornia_mvit.models.staged import Classifier

Contestants = dict[str, Callable[[], Any]]
Rows = dict[str, dict[str, float]]

TIMM = ("timm", "timm, channels_last")  # the better of the two is the one to beat
_WIDTHS = {  # of transformers' configurations
    "xxs": ([64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0),
    "xs": ([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
    "s": ([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
}


def add_arguments(parser: argparse.ArgumentParser, seconds: float, repeats: int) -> None:
    """Add what every race takes."""
    parser.add_argument("--threads", type=int, default=1, help="0 for all (default 1)")
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of a race at most")
    text = "of a race, after which it ends (3 turns at least)"
    parser.add_argument("--seconds", type=float, default=seconds, help=text)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)


def setup(threads: int) -> None:
    """Set threads, flush denormals, which untrained weights run into, and seed; 0 threads are all that there are."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)


def build_ours(mode: str) -> Classifier:
    """A classifier whose weights and statistics keep signals at their size, unlike fresh ones."""
    model = build_classifier(mode)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0.0, 0.1)
            elif value.ndim > 1:
                value.normal_(0.0, 1.25 / value[0].numel() ** 0.5)
            elif not name.endswith("num_batches_tracked"):
                value.uniform_(0.8, 1.2)
    return model


class Logits(nn.Module):
    """Transformers' class, giving logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        y: Tensor = self.model(x).logits
        return y


class KorniaClassifier(nn.Module):
    """Kornia's backbone with pooling and a classifier: it is another network, and compared for speed alone."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        from kornia.models.vit_mobile import MobileViT as KorniaMobileViT

        self.backbone = KorniaMobileViT(mode)
        self.classifier = nn.Linear(MobileViT(mode).out_channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        y: Tensor = self.classifier(self.backbone(x).mean(dim=(-2, -1)))
        return y


def build_peers(ours: Classifier, mode: str) -> dict[str, nn.Module]:
    """Timm in both layouts and transformers, with our weights; and Kornia's class of the first version."""
    theirs = _first(mode) if mode_width(mode) is None else _second(mode)
    with tempfile.TemporaryDirectory() as folder:
        for name, model in theirs.items():
            path = Path(folder) / f"{name}.pt"
            save_checkpoint(ours, path, layout=name)
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state.get("state_dict", state))
    peers: dict[str, nn.Module] = {
        "timm": theirs["timm"],
        "timm, channels_last": copy.deepcopy(theirs["timm"]).to(memory_format=torch.channels_last),
        "transformers": Logits(theirs["transformers"]),
    }
    return peers if mode_width(mode) is not None else peers | {"kornia": KorniaClassifier(mode)}


def _first(mode: str) -> dict[str, nn.Module]:
    import timm
    import transformers

    hidden, neck, expand = _WIDTHS[mode]
    config = transformers.MobileViTConfig(
        hidden_sizes=hidden,
        neck_hidden_sizes=neck,
        expand_ratio=expand,
        num_labels=1000,
        hidden_dropout_prob=0.0,  # as the others, in training
        classifier_dropout_prob=0.0,
    )
    return {
        "timm": timm.create_model(f"mobilevit_{mode}"),
        "transformers": transformers.MobileViTForImageClassification(config),
    }


def _second(mode: str) -> dict[str, nn.Module]:
    import timm
    import transformers

    width = mode_width(mode)
    assert width is not None
    config = transformers.MobileViTV2Config(width_multiplier=width, num_labels=1000)
    return {
        "timm": timm.create_model(f"mobilevitv2_{round(100 * width):03d}"),
        "transformers": transformers.MobileViTV2ForImageClassification(config),
    }


def lay_out(name: str, images: Tensor) -> Tensor:
    """The images in the layout that a contestant's name tells."""
    return images.contiguous(memory_format=torch.channels_last) if "channels_last" in name else images


def check_equal(name: str, output: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Stop unless a contestant computes what ours does."""
    difference = ((output - expected).abs().max() / expected.abs().max()).item()
    if not difference <= tolerance:
        raise SystemExit(f"{name} gives other outputs: they differ by {difference:.1e} of the largest")


def race(contestants: Contestants, repeats: int, seconds: float = math.inf) -> dict[str, list[float]]:
    """Time contestants in turn, once each to warm up, until the repeats or the seconds are over; at least 3 times."""
    return time_in_turn(contestants, repeats, seconds=seconds, warmup=1)


def compare(times: Mapping[str, list[float]], references: Iterable[str]) -> Rows:
    """Best, median and quartiles of each contestant, in ms and as a ratio to the best of the references.

    The median ratio is that of the ratios within each turn, so that what else the machine does falls on both alike.
    """
    base = [min(turn) for turn in zip(*(times[name] for name in references if name in times), strict=True)]
    rows = {}
    for name, taken in times.items():
        ratios = sorted(a / b for a, b in zip(taken, base, strict=True))
        rows[name] = {
            "best_ms": min(taken) * 1e3,
            "median_ms": statistics.median(taken) * 1e3,
            "ratio_of_bests": min(taken) / min(base),
            "ratio_median": statistics.median(ratios),
            "ratio_low": ratios[len(ratios) // 4],
            "ratio_high": ratios[-1 - len(ratios) // 4],
            "turns": len(taken),
        }
    return rows


def interval(values: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of draws."""
    low, high = values.nanquantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def show(title: str, rows: Rows, reference: str) -> None:
    """Print a table."""
    print(f"\n{title}\n  {'':34}{'best':>10}{'median':>10}   ratio to {reference}: of bests, median (quartiles)")
    for name, row in rows.items():
        spread = f"{row['ratio_median']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        times = f"{row['best_ms']:8.1f}ms{row['median_ms']:8.1f}ms"
        print(f"  {name:34}{times}   {row['ratio_of_bests']:.2f}, {spread}", flush=True)


def stamp(**settings: Any) -> dict[str, Any]:
    """Where, when and with what a result was measured."""
    import kornia
    import torchvision

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, kornia)}
    for name in ("timm", "transformers", "onnxruntime", "openvino"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = "not installed"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": platform.processor() or platform.machine(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        **settings,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def draw_bars(path: Path, panels: Mapping[str, Mapping[str, float]], label: str, title: str) -> None:
    """Draw ratios as bars, a panel for each title; ours are dark."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    tallest = max(len(bars) for bars in panels.values())
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, (0.32 * tallest + 1.1) * rows), squeeze=False)
    for axis, (name, bars) in zip(axes.flat, panels.items(), strict=False):
        names = list(bars)[::-1]
        colours = ["#1b4f8f" if "ours" in n else "#b8c4d0" for n in names]
        drawn = axis.barh(names, [bars[n] for n in names], color=colours)
        axis.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
        axis.axvline(1.0, color="#888", linewidth=0.8, linestyle="--")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.set_xlim(0, 1.12 * max(bars.values()))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
