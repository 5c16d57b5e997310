"""Plant faults one at a time in a copy of the sources, and see which of them the tests of their area find.

    python tests/mutants.py            # all, some minutes
    python tests/mutants.py 3 7        # by number

A fault that is found ends the run of its tests. It ends with status 1 where more than ``MISSED`` go unnoticed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MISSED = 2


class Mutant(NamedTuple):
    """A fault: what stands in a file of the package, what is put in its place, and the tests that may notice."""

    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    # models
    Mutant("models/fast.py", "torch.rsqrt(variance + norm.eps)", "torch.rsqrt(variance)", "models/test_layers.py"),
    Mutant(
        "models/fast.py",
        "norm.bias, mean, scale, value=-1)",
        "norm.bias, mean, scale, value=1)",
        "models/test_layers.py",
    ),
    Mutant("models/deeplabv3.py", "[96 * n //", "[64 * n //", "models/test_deeplabv3.py"),
    Mutant("models/ssdlite.py", "(scores > score_threshold)", "(scores >= score_threshold)", "models/test_ssdlite.py"),
    Mutant(
        "models/ssdlite.py", "[left * width, top * height,", "[left * height, top * width,", "models/test_ssdlite.py"
    ),
    # losses
    Mutant("ops/losses.py", "(rank < count)", "(rank <= count)", "ops/test_losses.py"),
    Mutant("ops/losses.py", "return each.sum() / share.sum()", "return each.sum() / valid.sum()", "ops/test_losses.py"),
    # targets of a detector
    Mutant("ops/boxes.py", "overlap >= iou_threshold", "overlap > iou_threshold", "ops/test_boxes.py"),
    Mutant("ops/boxes.py", "* variances[1]).exp()", "* variances[0]).exp()", "ops/test_boxes.py"),
    Mutant("ops/boxes.py", "holder = _claim(iou, valid & ~ignore)", "holder = _claim(iou, valid)", "ops/test_boxes.py"),
    Mutant("ops/boxes.py", "torch.where(wins, number, rows)", "torch.where(active, number, rows)", "ops/test_boxes.py"),
    # targets in the pipeline
    Mutant(
        "augmentation/targets.py",
        "(share >= rules.min_visibility - SHARE_TOLERANCE",
        "(share >= rules.min_visibility + SHARE_TOLERANCE",
        "augmentation/test_edges.py",
    ),
    Mutant(
        "augmentation/keypoints.py",
        "visible = visible & seen",
        "visible = seen",
        "augmentation/test_pipeline_targets.py augmentation/test_inverse.py",
    ),
    Mutant(
        "augmentation/targets.py",
        "x * (maps.shape[-1] / width)",
        "x * (maps.shape[-2] / width)",
        "augmentation/test_inverse.py",
    ),
    Mutant(
        "augmentation/targets.py", "order = keep.logical_not()", "order = keep", "augmentation/test_pipeline_targets.py"
    ),
    # pipeline
    Mutant("augmentation/mix.py", "boxes[:, 0] + 1) * chosen", "boxes[:, 0]) * chosen", "augmentation/test_mix.py"),
    Mutant("augmentation/mix.py", '"mixup_lambdas": 1 - own', '"mixup_lambdas": own', "augmentation/test_mix.py"),
    # weights
    Mutant("weights/checkpoints.py", "body[STEM].flip(1)", "body[STEM].flip(0)", "weights"),
    Mutant("weights/layouts/__init__.py", ".chunk(2, dim=1)[::-1]", ".chunk(2, dim=1)", "weights"),
    Mutant("weights/registry.py", '"bgr" if processor.get', '"rgb" if processor.get', "weights/test_registry.py"),
    # export
    Mutant("exporters/graph.py", "torch.where(x < 2.0, far", "torch.where(x < 1.5, far", "exporters/test_graph.py"),
    Mutant("exporters/graph.py", "label] > score_threshold", "label] >= score_threshold", "exporters/test_graph.py"),
    # the second version, free warps, oriented boxes, learned ranges, shards
    Mutant(
        "models/mobilevitv2.py",
        "query.softmax(dim=-2)",
        "query.softmax(dim=-3)",
        "models/test_mobilevitv2.py weights/test_second.py",
    ),
    Mutant(
        "models/mobilevitv2.py",
        "resize(x, whole, align_corners=True)",
        "resize(x, whole)",
        "models/test_mobilevitv2.py weights/test_second.py",
    ),
    Mutant(
        "ops/warps.py",
        "by_y = (lower - upper)",
        "by_y = (upper - lower)",
        "augmentation/test_free_warps.py",
    ),
    Mutant(
        "ops/oriented.py", "[-angle.sin(), angle.cos()]", "[angle.sin(), angle.cos()]", "augmentation/test_oriented.py"
    ),
    Mutant(
        "augmentation/keypoints.py",
        "index = swap_pairs(index, mirrored, order, -1)",
        "index = index.clone()",
        "augmentation/test_keypoints.py",
    ),
    Mutant("augmentation/ranges.py", "(1 + math.cos(", "(1 - math.cos(", "augmentation/test_ranges.py"),
    Mutant(
        "data/loading/plans.py",
        'self._ends, begins, side="right"',
        'self._ends, begins, side="left"',
        "data/test_plans.py",
    ),
    Mutant(
        "inference/engines/optimize.py",
        "min(times, key=times.__getitem__)",
        "max(times, key=times.__getitem__)",
        "inference/test_optimize.py",
    ),
)


def try_mutant(mutant: Mutant) -> bool:
    """Return whether the tests notice a fault; where old and new are the same, whether they fail without one."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("kornia_mvit", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "constraints.txt", "Makefile", "README.rst"):
            shutil.copy(ROOT / name, folder)
        path = Path(folder, "kornia_mvit", mutant.file)
        source = path.read_text(encoding="utf-8")
        if source.count(mutant.old) < 1:
            raise ValueError(f"{mutant.file} has no {mutant.old!r} any more; change the mutant")
        path.write_text(source.replace(mutant.old, mutant.new, 1), encoding="utf-8")
        tests = [f"tests/{name}" for name in mutant.tests.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{mutant.file}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.returncode == 1


def main(argv: Sequence[str]) -> int:
    """Try the mutants of the given numbers, or all, and print what became of each."""
    chosen = [int(text) for text in argv] or range(len(MUTANTS))
    missed = 0
    areas = " ".join(sorted({name for number in chosen for name in MUTANTS[number].tests.split()}))
    if try_mutant(Mutant("__init__.py", "import", "import", areas)):
        raise RuntimeError(f"without any fault these fail already: {areas}")
    for number in chosen:
        mutant, start = MUTANTS[number], time.monotonic()
        found = try_mutant(mutant)
        missed += not found
        told = f"{'found' if found else 'MISSED'}  {time.monotonic() - start:4.0f} s"
        print(f"{number:2} {told}  {mutant.file}: {mutant.old} => {mutant.new}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} found")
    return int(missed > MISSED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
