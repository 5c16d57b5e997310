"""Damage files at random and have them read; what is raised must be the package's own error, in one line.

``python -m tests.damage.run --cases 20000`` calls the functions, ``--commands 200`` the commands, for each kind.
What goes wrong is told once for each place that it comes from, and its file is kept.
"""

import argparse
import collections
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from kornia_mvit.files import FileError
from tests.damage.kinds import Kind, make_kinds

SECONDS = 10
MEMORY = 2 * 2**30
LONGEST = 2000  # characters of a message


class TooLong(BaseException):
    """A case took more than its time; no handler of exceptions keeps it back."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


def limit_memory() -> None:
    """Allow two GiB more than what is taken now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Give each case its time, and put the limits back at the end."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _stop)
    try:
        if sys.platform == "linux":
            limit_memory()
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def complaint(error: BaseException, path: Path) -> str | None:
    """Say what is wrong with an error as that of a damaged file; None for nothing."""
    message = str(error)
    if isinstance(error, MemoryError | TooLong) or not isinstance(error, FileError):
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "kornia_mvit" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"{type(error).__name__} at {where}: {message[:150]!r}"
    if "\n" in message:
        return f"more than a line: {message[:150]!r}"
    if len(message) > LONGEST:
        return f"{len(message)} characters: {message[:150]!r}"
    if not {path.name, path.stem, str(path.parent)} & {
        part for part in (path.name, path.stem, str(path.parent)) if part in message
    }:
        return f"the file is not named: {message[:150]!r}"
    return None


def call_readers(kind: Kind, cases: int, seed: int) -> dict[str, list[int]]:
    """Damage files and call the functions that read them.

    Returns:
        What went wrong, and the numbers of the cases; none where all is as it should be.
    """
    wrong: dict[str, list[int]] = collections.defaultdict(list)
    with limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in range(cases):
            path = kind.damage(random.Random(f"{seed} {case}"))
            for reader in kind.readers:
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                try:
                    reader(path)
                except (Exception, TooLong) as error:
                    if found := complaint(error, path):
                        wrong[f"{getattr(reader, '__name__', reader)}: {found}"].append(case)
                    break  # the others read it in the same way
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    return dict(wrong)


def call_commands(kind: Kind, cases: int, seed: int) -> dict[str, list[int]]:
    """Damage files and call the commands that read them, each in a process of its own."""
    wrong: dict[str, list[int]] = collections.defaultdict(list)
    for case in range(cases):
        path = kind.damage(random.Random(f"{seed} {case}"))
        commands = kind.commands(path)
        argv = commands[case % len(commands)]
        status, out, err = run_command(argv)
        if found := command_complaint(status, out, err):
            wrong[f"{argv[0]}: {found}"].append(case)
    return dict(wrong)


def run_command(argv: list[str]) -> tuple[int, str, str]:
    """Run a command in a fork of this process, within the limits; return its exit status, output and errors."""
    from kornia_mvit.cli import main

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(SECONDS)
                limit_memory()
                code = main(argv)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 98
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, raw = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return (
            os.waitstatus_to_exitcode(raw),
            out.read().decode("utf-8", "replace"),
            err.read().decode("utf-8", "replace"),
        )


def command_complaint(status: int, out: str, err: str) -> str | None:
    """Say what is wrong with how a command ended: with success, or with a line that is an error and the last one.

    Before it may stand warnings, and what was found in the data and left out of it.
    """
    lines = [line for line in err.splitlines() if not line.startswith("kornia-mvit: warning")]
    errors = [line for line in lines if line.startswith("kornia-mvit: error: ")]
    if status == -signal.SIGALRM:
        return "took too long"
    if status not in (0, 2) or "Traceback" in err or "Exception ignored" in err:
        return f"exit status {status}: {lines[-1][:200] if lines else ''}"
    if status == 2 and (len(errors) != 1 or lines[-1] != errors[0]):
        return f"not one line of error at the end: {err[:200]!r}"
    if status == 0 and errors:
        return f"errors beside success: {err[:200]!r}"
    if "NaN" in out or "Infinity" in out:
        return f"output that is no JSON: {out[:200]!r}"
    return None


def main() -> int:
    """Run the cases of the kinds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000, help="of each kind, through the functions (default 20000)")
    parser.add_argument("--commands", type=int, default=0, help="of each kind, through the commands (default none)")
    parser.add_argument("--kinds", nargs="*", help="kinds of files (default all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("damaged"), help="folder for what goes wrong")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        kinds = make_kinds(Path(folder))
        if args.commands:
            from kornia_mvit import training, visualize  # noqa: F401  # paid for once, before the forks
        for name in args.kinds or kinds:
            for title, run, count in (
                ("functions", call_readers, args.cases),
                ("commands", call_commands, args.commands),
            ):
                if not count:
                    continue
                began = time.perf_counter()
                wrong = run(kinds[name], count, args.seed)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
                took = time.perf_counter() - began
                print(
                    f"{name:<12} {title}: {count} cases, {took:.0f} s, peak {peak:.2f} GiB, {len(wrong)} faults",
                    flush=True,
                )
                for fault, cases in wrong.items():
                    bad += 1
                    print(f"  {len(cases)} times, first in case {cases[0]}: {fault}", flush=True)
                    path = kinds[name].damage(random.Random(f"{args.seed} {cases[0]}"))
                    args.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, args.keep / f"{name}-{args.seed}-{cases[0]}{path.suffix}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
