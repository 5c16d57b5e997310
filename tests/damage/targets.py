"""Batches of random fields: shapes and dtypes, layouts of memory, lists, NumPy, TVTensors, numbers that are not finite.

``python -m tests.damage.targets --cases 20000`` makes them. Where every field is right, the batch must hold what the
fields held, and a flip of it too; random pipelines must keep together what belongs to a box. Where a field is wrong, a
``ValueError`` or ``TypeError`` of one line must name it.
"""

import argparse
import collections
import random
import sys
import time
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from kornia_mvit import Batch
from tests.damage.checks import (
    OPTIONAL,
    PARTS,
    check_batch,
    check_change,
    check_change_of_fields,
    check_flip,
)
from tests.damage.faults import Fault, check_error
from tests.damage.further import check_change_of_extra
from tests.damage.pipelines import check_pipeline
from tests.damage.truths import make_truth, write
from tests.damage.wrong import spoil


def check_case(r: random.Random) -> None:
    """Make a case, and raise where what comes of it is not right."""
    names = [f.name for f in fields(Batch) if f.name != "image" and r.random() < 0.6]
    names += [PARTS[name] for name in names if name in PARTS]
    names += [part for part, of in PARTS.items() if of in names and part not in OPTIONAL]
    names = list(dict.fromkeys(names))
    ignore_index = r.choice([255, -100, -1, 0, 7, 65535])
    dtype = r.choice([np.uint8, np.uint8, np.float16, np.float32, np.float64])
    truths = make_truth(r, names, r.randint(1, 3), dtype, r.choice([1, 3, 4, 6]))
    samples: list[Any] = [{name: write(r, name, truth) for name in truth} for truth in truths]
    wrong = r.choice(["image", "sample", *names]) if r.random() < 0.5 else None
    if wrong is not None:
        i = r.randrange(len(samples))
        if wrong == "sample":
            whole = samples[i]
            image = whole["image"]
            samples[i] = r.choice([(image, 1, 2), [1, image], 5, whole | {"further": 1}, {"label": 1}, {}])
        else:
            samples[i][wrong] = spoil(r, wrong, truths[i])
    try:
        batch = Batch.collate(samples, ignore_index=ignore_index)
    except Exception as error:
        if wrong is None:
            raise Fault(f"refused: {type(error).__name__}: {str(error)[:150]}") from error
        others = {"image": ("mask", "size"), "sample": ("field",), "label": ("mask",)}  # of two dimensions it is a mask
        check_error(error, wrong, *others.get(wrong, (PARTS.get(wrong, wrong),)))
        return
    if wrong is not None:
        raise Fault(f"a wrong {wrong} is taken")
    check_batch(batch, truths, ignore_index)
    check_flip(r, batch, ignore_index)
    check_change(r, batch)
    check_change_of_fields(r, batch)
    check_change_of_extra(r, batch)
    check_pipeline(r, batch)


def run_cases(cases: int, seed: int, first: int = 0) -> dict[str, list[int]]:
    """Run cases; return what went wrong, and the numbers of the cases."""
    wrong: dict[str, list[int]] = collections.defaultdict(list)
    for case in range(first, first + cases):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", "all (boxes|keypoints) of a batch lie within")
                warnings.filterwarnings("ignore", ".* of a batch lie wholly outside their images")
                check_case(random.Random(f"{seed} {case}"))
        except Exception as error:
            wrong[str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {str(error)[:150]}"].append(
                case
            )
    return dict(wrong)


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    wrong = run_cases(args.cases, args.seed, args.first)
    print(f"targets: {args.cases} cases, {time.perf_counter() - began:.0f} s, {len(wrong)} faults", flush=True)
    for fault, cases in wrong.items():
        print(f"  {len(cases)} times, first in case {cases[0]}: {fault}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
