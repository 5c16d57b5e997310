"""Write random but plausible annotations, of which the right reading is known, and have them read.

``python -m tests.annotations.run --cases 4000 --seed 1`` writes as many sets of each kind. Each is read right, or gives
one clear line of error; whatever else comes out is told once for each place that it comes from, with its first case.
``--kinds yolo --only 17`` leaves the folder of one case to be looked at.
"""

import argparse
import collections
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch

from tests.annotations.boxes import make_coco, make_voc, make_yolo
from tests.annotations.cases import Case
from tests.annotations.images import make_folders, make_masks, make_table

LONGEST = 2000  # characters of a message
KINDS = {
    "voc": make_voc,
    "coco": make_coco,
    "yolo": make_yolo,
    "table": make_table,
    "masks": make_masks,
    "folders": make_folders,
}


def make_case(kind: str, root: Path, seed: int, number: int) -> Case:
    """Write a case into an empty folder."""
    return KINDS[kind](root, random.Random(f"{kind} {seed} {number}"))


def complaint(case: Case) -> str | None:
    """Read a case, and say what is wrong with what came out; None for nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = case.load()
    except Exception as error:
        return _wrong_error(error, case.errors)
    if case.errors:
        return f"read, though it should say {case.errors[0]!r}"
    for key in case.expected.keys() | found.keys():
        if (a := found.get(key)) != (b := case.expected.get(key)):
            return f"wrong {key}: {str(a)[:300]}, expected {str(b)[:300]}"
    return None


def _wrong_error(error: Exception, parts: tuple[str, ...]) -> str | None:
    message = str(error)
    shown = f"{type(error).__name__} at {_place(error)}: {message[:200]!r}"
    if not parts or not isinstance(error, ValueError):
        return f"refused: {shown}"
    if "\n" in message or len(message) > LONGEST:
        return f"more than a line: {shown}"
    lacking = [part for part in parts if part not in message]
    return f"lacks {lacking[0]!r}: {shown}" if lacking else None


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "kornia_mvit" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def run_cases(kind: str, cases: int, seed: int) -> tuple[dict[str, list[int]], int]:
    """Write and read cases.

    Returns:
        What went wrong, with the numbers of the cases, and how many were refused as they should be.
    """
    wrong: dict[str, list[int]] = collections.defaultdict(list)
    refused = 0
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(cases):
            root = Path(folder, "set")
            root.mkdir()
            case = make_case(kind, root, seed, number)
            refused += bool(case.errors)
            if found := complaint(case):
                wrong[found.replace(folder, "")].append(number)
            shutil.rmtree(root)
    logger.setLevel(before)
    return dict(wrong), refused


def main() -> int:
    """Run the cases of the kinds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=4000, help="of each kind (default 4000)")
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS], help="kinds of annotations (default all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of a case to write into a folder that stays, and to read")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bad = 0
    for kind in args.kinds or KINDS:
        if args.only is not None:
            root = Path(tempfile.mkdtemp())
            case = make_case(kind, root, args.seed, args.only)
            print(f"{root}: {complaint(case) or 'as it should be'}\nexpected: {case.errors or case.expected}")
            continue
        began = time.perf_counter()
        wrong, refused = run_cases(kind, args.cases, args.seed)
        took = time.perf_counter() - began
        print(f"{kind:<8} {args.cases} cases, {refused} to refuse, {took:.0f} s, {len(wrong)} faults", flush=True)
        for fault, numbers in wrong.items():
            bad += 1
            print(f"  {len(numbers)} times, first in case {numbers[0]}: {fault}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
