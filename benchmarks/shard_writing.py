"""``kornia-mvit shards`` twice over the same photos, the second time killed on the way: equal bytes, images a second.

    python benchmarks/shard_writing.py [--images 10000] [--size 256] [--kills 2] [--processes 2] [--json FILE]

The photos of ``loading.py``, 500 pixels wide, are written as they are, and encoded anew at ``--size``. The whole group
of processes is killed, by SIGKILL, after random shares of the shards; the same command then goes on. Time is that of
the processors, of the command and all its processes: images a second are those of one core.
"""

import argparse
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from loading import write_photos

COUNT = 500  # photos in a shard


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def start(photos: Path, out: Path, args: argparse.Namespace, size: int | None) -> subprocess.Popen[bytes]:
    """Start the command."""
    argv = ["shards", str(photos), str(out), "--max-count", str(COUNT), "--processes", str(args.processes)]
    argv += [] if size is None else ["--size", str(size)]
    command = [sys.executable, "-m", "kornia_mvit", *argv]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def seconds_of_children() -> float:
    """Seconds of the processors that ended children took, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_whole(photos: Path, out: Path, args: argparse.Namespace, size: int | None) -> tuple[float, float]:
    """Write all shards, and return seconds of the processors and of the clock."""
    began = seconds_of_children(), time.perf_counter()
    if start(photos, out, args, size).wait():
        raise SystemExit("kornia-mvit shards failed")
    return seconds_of_children() - began[0], time.perf_counter() - began[1]


def write_killed(photos: Path, out: Path, args: argparse.Namespace, size: int | None) -> list[int]:
    """Write all shards, killed so many times, and return how many stood after each time."""
    stood, total, draws = [], -(-args.images // COUNT), random.Random(args.seed)
    for after in sorted(draws.sample(range(1, total), args.kills)):
        run = start(photos, out, args, size)
        while run.poll() is None and (not out.exists() or len(list(out.glob("train-*.tar"))) < after):
            time.sleep(0.005)
        if run.poll() is not None:
            raise SystemExit("kornia-mvit shards ended before it was killed")
        time.sleep(draws.uniform(0, 0.3))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        stood.append(len(list(out.glob("train-*.tar"))))
    write_whole(photos, out, args, size)
    return stood


def main() -> None:
    """Write twice, compare, print, and write figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256, help="of those that are encoded anew")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos" / "train", args.images)
        write_photos(folder / "photos" / "val", 2)
        for title, size in (("as they are", None), (f"encoded at {args.size} pixels", args.size)):
            once, twice = folder / "once", folder / "twice"
            processor, clock = write_whole(folder / "photos", once, args, size)
            stood = write_killed(folder / "photos", twice, args, size)
            if (expected := digests(once)) != digests(twice):
                raise SystemExit(f"{title}: the shards differ")
            results[title] = {
                "images_per_second_of_a_core": args.images / processor,
                "images_per_second": args.images / clock,
                "megabytes": sum(path.stat().st_size for path in once.iterdir()) / 1e6,
                "killed_at_shards": stood,
                "equal_files": len(expected),
            }
            print(title, results[title])
            shutil.rmtree(once)
            shutil.rmtree(twice)
    common.write(args.json, common.stamp(images=args.images, processes=args.processes, results=results))


if __name__ == "__main__":
    main()
