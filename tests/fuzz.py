"""``make fuzz``: the property tests on random examples, in passes of a seed each, until the time is up or one fails.

Tests that draw no examples do the same each time, and are left to ``make test``.
"""

import argparse
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence


def command(seed: int, arguments: Sequence[str]) -> list[str]:
    """Return the command of one pass; it runs the same examples again."""
    marked = "hypothesis and not long and not network and not install and not notebooks"
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "--maxfail=1", f"--hypothesis-seed={seed}"]
    return [sys.executable, "-m", "pytest", *options, "-m", marked, *arguments]


def run_pass(argv: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a pass, and return its status, None where its time was up before its end, and what it printed."""
    environment = os.environ | {"HYPOTHESIS_PROFILE": "fuzz"}
    process = subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=seconds)
        return process.returncode, out
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    return None, out


def main(argv: Sequence[str] | None = None) -> int:
    """Run passes for some minutes, and return 1 as soon as one has failures."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="The rest goes to pytest.", allow_abbrev=False)
    parser.add_argument("minutes", type=float, help="how long to go on")
    parser.add_argument("--seed", type=int, help="of the first pass; a random one unless given")
    args, rest = parser.parse_known_args(argv)
    end, seeds, number = time.monotonic() + 60 * args.minutes, random.SystemRandom(), 0
    seed = args.seed if args.seed is not None else seeds.randrange(2**31)
    while (left := end - time.monotonic()) > 0:
        start, again = time.monotonic(), command(seed, rest)
        status, out = run_pass(again, left)
        lines = out.rstrip().splitlines() or ["no output"]
        failed = re.search(r"\b[1-9]\d* (failed|errors?)\b", lines[-1]) is not None  # before it was interrupted
        if failed or status:
            print(out, f"pass {number + 1} failed; again: HYPOTHESIS_PROFILE=fuzz {shlex.join(again)}", sep="\n")
            return 1
        if status is not None:
            number += 1
            print(f"pass {number}, seed {seed}: {time.monotonic() - start:.0f} s, {lines[-1].strip('= ')}", flush=True)
        seed = seeds.randrange(2**31)
    print(f"{number} passes without a failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
