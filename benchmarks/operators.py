"""Where the time of an inference goes, by operator: timm, ours, ours fused.

python benchmarks/operators.py [--mode s] [--batch 8] [--threads 1] [--runs 5] [--json FILE]
"""

import argparse
import warnings
from pathlib import Path

import common
import torch
from torch.profiler import ProfilerActivity, profile

from kornia_mvit import fuse

GROUPS = {
    "convolution, with what is fused into it": ("convolution", "conv2d", "convolution_pointwise"),
    "linear layers": ("addmm", "mm", "linear"),
    "attention": ("flash_attention", "bmm", "softmax"),
    "batch normalisation": ("batch_norm",),
    "SiLU": ("silu",),
    "layer normalisation": ("layer_norm",),
    "copies": ("copy_", "clone", "cat"),
    "additions": ("add", "add_"),
}


def classify(name: str) -> str:
    """The group of an operator."""
    short = name.rpartition("::")[2].lstrip("_")
    for group, parts in GROUPS.items():
        if any(short == part or (len(part) >= 4 and part in short) for part in parts):
            return group
    return "the rest"


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", default="s")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    common.setup(args.threads)
    ours = common.build_ours(args.mode).eval()
    peers = common.build_peers(ours, args.mode)
    models = {"timm, channels_last": peers["timm, channels_last"].eval(), "ours": ours, "ours, fused": fuse(ours)}
    results = {}
    for name, model in models.items():
        images = common.lay_out(name, torch.rand(args.batch, 3, 256, 256))
        with torch.inference_mode():
            for _ in range(3):
                model(images)
            with profile(activities=[ProfilerActivity.CPU]) as taken:
                for _ in range(args.runs):
                    model(images)
        times = dict.fromkeys([*GROUPS, "the rest"], 0.0)
        for event in taken.key_averages():
            times[classify(event.key)] += event.self_cpu_time_total / 1e3 / args.runs
        results[name] = times
    print(f"{args.mode}, batch {args.batch}, 256 px: ms\n{'':42}" + "".join(f"{name:>22}" for name in results))
    for group in [*GROUPS, "the rest"]:
        print(f"{group:42}" + "".join(f"{times[group]:22.1f}" for times in results.values()))
    print(f"{'in all':42}" + "".join(f"{sum(times.values()):22.1f}" for times in results.values()))
    common.write(args.json, common.stamp(mode=args.mode, batch=args.batch, results=results))


if __name__ == "__main__":
    main()
