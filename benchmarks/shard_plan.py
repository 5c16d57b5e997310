"""Planning an epoch over 100 million samples in 20,000 uneven shards, for 2 to 1,024 processes with 8 workers each.

    python benchmarks/shard_plan.py [--samples 100000000] [--shards 20000] [--batch 64] [--json FILE]

Nothing is read: shards have numbers of samples alone. For each number of processes it is planned who reads what, first
by one process for itself, as in a run, then for all of them, which shows that no sample comes twice. Then the epoch is
interrupted at a random batch and resumed with another number of processes, and again; what was taken by then is counted
sample by sample, as the shuffle buffers give it out. Time, of the processor, and memory are those of one
process; memory is the peak while it plans, less what it holds before (of Linux).
"""

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np

from kornia_mvit.data.loading.plans import Cut, EpochPlan

RANKS = (2, 8, 64, 256, 1024)
WORKERS, BUFFER, NODE = 8, 1000, 8  # workers of a process, samples in the buffer of each, processes of a node


def make_counts(samples: int, shards: int) -> np.ndarray:
    """Return uneven numbers of samples, from a tenth to about twice the mean."""
    rng = np.random.default_rng(0)
    weights = 0.1 + 1.8 * rng.random(shards)
    counts = np.floor(weights / weights.sum() * samples).astype(np.int64)
    counts[: samples - counts.sum()] += 1
    return counts


def forget_peak() -> float:
    """Return what this process holds in MB, from which its peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Return the peak of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def look_at(plan: EpochPlan, counts: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Return shares and reading of all processes, and mark their samples."""
    begins = np.concatenate(([0], np.cumsum(counts)))
    per_rank, shards_of_node, twice = [], [], 0
    for node in range(0, plan.cut.ranks, NODE):
        touched: set[int] = set()
        for rank in range(node, min(node + NODE, plan.cut.ranks)):
            taken = 0
            for worker in range(plan.cut.workers):
                for shard, first, last in plan.pieces(rank, worker):
                    taken += last - first
                    touched.add(shard)
                    run = slice(begins[shard] + first, begins[shard] + last)
                    twice += int(seen[run].sum())
                    seen[run] = True
            per_rank.append(taken)
        shards_of_node.append(sum(int(counts[shard]) for shard in touched))
    return {
        "samples_of_a_process": [min(per_rank), max(per_rank)],
        "batches_of_each": len(plan.lengths),
        "left_out": plan.left_out,
        "samples_twice": twice,
        "read_by_a_node": [min(shards_of_node), max(shards_of_node)],  # samples in shards that it fetches
        "read_by_all": sum(shards_of_node) / max(1, sum(per_rank)),  # as a multiple of what they take
    }


def taken_of(plan: EpochPlan, counts: np.ndarray, seen: np.ndarray) -> None:
    """Mark what the processes have taken when a cut ended, sample by sample as their buffers give them out."""
    begins = np.concatenate(([0], np.cumsum(counts)))
    for rank in range(plan.cut.ranks):
        for worker in range(plan.cut.workers):
            places = np.concatenate([np.arange(begins[s] + a, begins[s] + b) for s, a, b in plan.pieces(rank, worker)])
            _, taken = plan.stand(rank, worker)
            buffer = plan.buffer(rank, worker, len(places), (0, 0))
            numbers = places[[next(buffer) for _ in range(taken)]]
            assert not seen[numbers].any()
            seen[numbers] = True


def one(ranks: int, samples: int, shards: int, batch: int) -> dict[str, Any]:
    """Plan for one number of processes."""
    counts, rng = make_counts(samples, shards), random.Random(ranks)
    cut = Cut(ranks, WORKERS, batch, True, BUFFER)
    EpochPlan(counts[:10], 0, 0, [cut])  # what is imported when it is first used
    before, start = forget_peak(), time.process_time()
    plan = EpochPlan(counts, 0, 1, [cut])
    for worker in range(WORKERS):
        plan.pieces(ranks // 2, worker)
    row: dict[str, Any] = {"ranks": ranks, "seconds": time.process_time() - start, "mb": peak() - before}
    row |= look_at(plan, counts, np.zeros(samples, bool))
    cuts, row["resumed"], seen = [], [], np.zeros(samples, bool)
    for _ in range(2):
        cuts.append(replace(cut, batches=rng.randrange(len(plan.lengths) // 4, len(plan.lengths) // 2)))
        taken_of(EpochPlan(counts, 0, 1, cuts), counts, seen)
        cut = replace(cut, ranks=rng.choice([n for n in (*RANKS, 3, 48, 1000) if n != cut.ranks]))
        before, start = forget_peak(), time.process_time()
        plan = EpochPlan(counts, 0, 1, [*cuts, cut])
        for worker in range(WORKERS):
            plan.pieces(0, worker)
        again = {
            "ranks": cut.ranks, "after": cuts[-1].batches, "left": plan.left, "batches_of_each": len(plan.lengths),
            "left_out": plan.left_out, "seconds": time.process_time() - start, "mb": peak() - before,
        }  # fmt: skip
        rest = seen.copy()
        row["resumed"].append(again | look_at(plan, counts, rest) | {"never_seen": int(samples - rest.sum())})
    return row


def main() -> None:
    """Run each number of processes in a process of its own, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.samples, args.shards, args.batch)))
        return
    rows = []
    size = ["--samples", str(args.samples), "--shards", str(args.shards), "--batch", str(args.batch)]
    print("ranks  plan s    MB  batches  left out  twice  read   resumed with: s, MB, never seen, twice")
    for ranks in RANKS:
        run = [sys.executable, __file__, "--one", str(ranks), *size]
        row = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        rows.append(row)
        again = "; ".join(
            f"{r['ranks']}: {r['seconds']:.1f}, {r['mb']:.0f}, {r['never_seen']}, {r['samples_twice']}"
            for r in row["resumed"]
        )
        print(
            f"{ranks:5d} {row['seconds']:7.3f} {row['mb']:5.0f} {row['batches_of_each']:8d} {row['left_out']:9d} "
            f"{row['samples_twice']:6d} {row['read_by_all']:5.2f}   {again}",
            flush=True,
        )
    common.write(args.json, common.stamp(samples=args.samples, shards=args.shards, batch=args.batch, results=rows))


if __name__ == "__main__":
    main()
