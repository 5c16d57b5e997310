"""Memory of a training step beside the peers: a process each, the peak less what it held before the first step.

    python benchmarks/memory.py [--modes xxs,s] [--size 256] [--batch 16] [--json FILE] [--png FILE]

The contestants are those of benchmarks/training_step.py, and the memory-saving settings of ours and of timm. The peak
is of the resident size, as Linux counts it (VmHWM, reset before the first of three steps).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import common
import torch
from training_step import make_step

SAVING = {
    "timm": lambda model: model,
    "timm, channels_last": lambda model: model,
    "timm, channels_last, checkpointing": lambda model: model.set_grad_checkpointing() or model,
    "transformers": lambda model: model,
    "kornia": lambda model: model,
    "ours": lambda model: model,
    "ours, channels_last": lambda model: model,
    "ours, channels_last, saving activations": lambda model: model.set_gradient_checkpointing("activations") or model,
    "ours, channels_last, checkpointing stages": lambda model: model.set_gradient_checkpointing("stages") or model,
}


def read_status(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(name: str, mode: str, batch: int, size: int) -> dict[str, float]:
    """Take three steps in this process."""
    common.setup(1)
    ours = common.build_ours(mode)
    models = common.build_peers(ours, mode) | {"ours": ours}
    known = "timm, channels_last" if name.startswith("timm, ") else name.partition(",")[0]
    model = SAVING[name](models[known])
    if "channels_last" in name:
        model = model.to(memory_format=torch.channels_last)
    del models, ours
    images = common.lay_out(name, torch.rand(batch, 3, size, size))
    step = make_step(model.train(), images, torch.arange(batch), None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = read_status("VmRSS")
    for _ in range(3):
        step()
    return {"peak_mib": read_status("VmHWM") - before, "before_mib": before}


def main() -> None:
    """Start a process for each contestant, print a table, write JSON and a chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modes", default="xxs,s")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--one", metavar="CONTESTANT", help="measure one in this process, and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.modes, args.batch, args.size)))
        return
    results, panels = {}, {}
    for mode in args.modes.split(","):
        title = f"{mode}, batch {args.batch}, {args.size} px"
        rows = {}
        for name in SAVING:
            options = ["--modes", mode, "--size", str(args.size), "--batch", str(args.batch), "--one", name]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            rows[name] = json.loads(done.stdout.splitlines()[-1])
        least = min(rows[name]["peak_mib"] for name in common.TIMM)
        print(f"\n{title}\n  {'':38}{'peak':>10}   ratio to the better timm")
        for name, row in rows.items():
            row["ratio"] = row["peak_mib"] / least
            print(f"  {name:38}{row['peak_mib']:7.0f}MiB   {row['ratio']:.2f}")
        results[title] = rows
        panels[title] = {name: row["ratio"] for name, row in rows.items()}
    common.write(args.json, common.stamp(batch=args.batch, results=results))
    if args.png is not None:
        common.draw_bars(args.png, panels, "peak memory, ratio to the better timm", "Memory of a training step")


if __name__ == "__main__":
    main()
