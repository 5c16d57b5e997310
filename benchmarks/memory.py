"""Memory and time of a training step beside the peers: a process each, in turn.

    python benchmarks/memory.py [--modes xxs,s] [--size 256] [--batch 16] [--turns 1] [--json FILE] [--png FILE]

The contestants are those of benchmarks/training_step.py, the memory-saving settings of ours and of timm, and both with
the memory kept that a step gives back, as the tasks do on a CPU (``kornia_mvit.training.heap``). The memory is the peak
of the resident size, as Linux counts it (VmHWM, reset before the first step), less what the process held before; the
time is that of the median step, after three.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import common
import torch
from training_step import make_step

from kornia_mvit.inference.engines.timing import time_in_turn
from kornia_mvit.training.heap import keep_freed_memory

STEPS = 6  # that are timed in a turn

SAVING = {
    "timm": lambda model: model,
    "timm, channels_last": lambda model: model,
    "timm, channels_last, checkpointing": lambda model: model.set_grad_checkpointing() or model,
    "transformers": lambda model: model,
    "kornia": lambda model: model,
    "ours": lambda model: model,
    "ours, channels_last": lambda model: model,
    "timm, channels_last, memory kept": lambda model: model,
    "ours, channels_last, memory kept": lambda model: model,
    "ours, channels_last, saving activations": lambda model: model.set_gradient_checkpointing("activations") or model,
    "ours, channels_last, checkpointing stages": lambda model: model.set_gradient_checkpointing("stages") or model,
}


def read_status(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(name: str, mode: str, batch: int, size: int) -> dict[str, Any]:
    """Take some steps in this process."""
    common.setup(1)
    if "memory kept" in name and not keep_freed_memory():
        raise SystemExit("this machine's malloc, or its environment, does not let memory be kept")
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
    times = time_in_turn({name: step}, STEPS, warmup=0)[name]
    return {"peak_mib": read_status("VmHWM") - before, "before_mib": before, "seconds": times}


def main() -> None:
    """Start a process for each contestant, print a table, write JSON and a chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modes", default="xxs,s")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=1, help="processes of each contestant")
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
        rows: dict[str, dict[str, Any]] = {}
        for name in list(SAVING) * args.turns:
            options = ["--modes", mode, "--size", str(args.size), "--batch", str(args.batch), "--one", name]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            row = json.loads(done.stdout.splitlines()[-1])
            seconds = [*rows.get(name, {}).get("seconds", ()), *row["seconds"]]
            rows[name] = row | {"seconds": seconds, "median": median(seconds)}
        least, fastest = (min(rows[name][key] for name in common.TIMM) for key in ("peak_mib", "median"))
        print(f"\n{title}\n  {'':42}{'peak':>10}{'median':>10}   ratios to the better timm")
        for name, row in rows.items():
            row |= {"ratio": row["peak_mib"] / least, "time_ratio": row["median"] / fastest}
            figures = (
                f"{row['peak_mib']:7.0f}MiB{row['median'] * 1e3:8.0f}ms   {row['ratio']:.2f}, {row['time_ratio']:.2f}"
            )
            print(f"  {name:42}{figures}")
        results[title] = rows
        panels[title] = {name: row["ratio"] for name, row in rows.items()}
    common.write(args.json, common.stamp(batch=args.batch, results=results))
    if args.png is not None:
        common.draw_bars(args.png, panels, "peak memory, ratio to the better timm", "Memory of a training step")


if __name__ == "__main__":
    main()
