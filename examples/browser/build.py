"""Build the page: ``build.py [CHECKPOINT …]`` exports models and puts them beside the page and its runtime."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

import kornia_mvit
from kornia_mvit.weights.cards import Model, task_of
from kornia_mvit.weights.registry import from_pretrained

HERE = Path(__file__).parent
PAGE = HERE / "page"
TASKS = {"classification": "MobileViT classifier", "segmentation": "DeepLabv3 on MobileViT"}
RANDOM = "The weights are random, as no checkpoint was given to build.py: what the network answers means nothing."
# The part of onnxruntime-web that runs on the processor, and nothing else.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


class BuildError(ValueError):
    """The page cannot be built from what was given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build the page and tell what is in it."""
    parser = argparse.ArgumentParser(description="Build the page from checkpoints.")
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="a checkpoint of a classifier, of a model for segmentation, or one of each; names of published weights "
        "and ONNX files that kornia-mvit export wrote do, too (default: random weights)",
    )
    parser.add_argument("--out", type=Path, default=HERE / "dist", metavar="DIR", help="where to (default dist)")
    args = parser.parse_args(argv)
    try:
        build(args.checkpoints, args.out)
    except (BuildError, ValueError, OSError, ImportError) as error:
        print(f"build.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def build(checkpoints: Sequence[str], out: Path) -> None:
    """Write the page, its runtime and the models into a folder, in place of what an earlier build wrote there.

    Raises:
        BuildError: for two models of one task, one that the page has no mode for, or a folder that holds other things.
    """
    sources = [_open(checkpoint) for checkpoint in checkpoints] or [_make_random(task) for task in TASKS]
    for first, second in combinations(sources, 2):
        if first.task == second.task:
            raise BuildError(f"{first.name} and {second.name} are both for {first.task}; give one for each task")
    if out.exists() and not (out.is_dir() and ((out / "models.json").exists() or not any(out.iterdir()))):
        raise BuildError(f"{out} holds other files; give --out a new folder")
    runtime = fetch(HERE) / "onnxruntime-web"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = shutil.copytree(PAGE, Path(scratch) / "page")
        (folder / "ort").mkdir()
        for name in RUNTIME:
            shutil.copy(runtime / "dist" / name, folder / "ort")
        entries = [source.write(folder) for source in sources]
        version = json.loads((runtime / "package.json").read_text(encoding="utf-8"))["version"]
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        listed = {
            "runtime": f"onnxruntime-web {version}",
            "models": entries,
            "files": sorted(files - {"index.html", "sw.js"}),
        }
        (folder / "models.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    for entry in entries:
        print(f"{entry['task']:<15} {entry['title']}, {entry['count']} classes, {entry['bytes'] / 1e6:.1f} MB")
        if entry["note"]:
            print(f"{'':<15} {entry['note']}")
    print(f"{out / 'index.html'}: written; serve.py shows it")


# --------------------------------------------------------------------------------------------------------------- npm


def fetch(folder: Path) -> Path:
    """Install what a folder's package-lock.json names, unless it is there, and give where it is.

    Raises:
        BuildError: if npm is missing or fails.
    """
    modules = folder / "node_modules"
    lock = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    wanted = {name: package.get("integrity") for name, package in lock.items() if name}
    installed = modules / ".package-lock.json"
    if installed.exists():
        there = json.loads(installed.read_text(encoding="utf-8"))["packages"]
        if {name: package.get("integrity") for name, package in there.items()} == wanted:
            return modules
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError("npm is missing, which fetches onnxruntime-web; install Node.js 20 or newer")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"npm ci failed in {folder}: {result.stderr.strip() or result.stdout.strip()}")
    return modules


# ------------------------------------------------------------------------------------------------------------ models


@dataclass(frozen=True)
class Source:
    """Where a model of the page comes from: a model to export, or an ONNX file."""

    name: str
    task: str
    model: Model | None = None
    path: Path | None = None
    note: str = ""

    def write(self, folder: Path) -> dict[str, Any]:
        """Put the ONNX file into the page's folder and describe it by its own metadata."""
        target = folder / f"{self.task}.onnx"
        if self.model is None:
            shutil.copy(self.path or "", target)
        else:
            from kornia_mvit.exporters import to_onnx

            to_onnx(self.model.eval(), target, with_preprocess=True, with_decode=True, layout="nhwc")
        return _describe(target) | {"note": self.note}


def _open(checkpoint: str) -> Source:
    """Read a checkpoint, or see what an ONNX file says of itself.

    Raises:
        BuildError: if it is for another task, or does not lead from images as browsers have them to an answer.
    """
    if checkpoint.endswith(".onnx"):
        path = Path(checkpoint)
        if not path.is_file():
            raise BuildError(f"no such file: {path}")
        known = _metadata(path)
        _check_task(checkpoint, known.get("task"))
        graph = json.loads(known.get("graph", "{}"))
        if not (graph.get("with_preprocess") and graph.get("with_decode") and graph.get("layout") == "nhwc"):
            raise BuildError(
                f"{checkpoint} does not take images as browsers have them; "
                "export it with with_preprocess=True, with_decode=True and layout='nhwc'"
            )
        return Source(checkpoint, known["task"], path=path)
    model = from_pretrained(checkpoint)
    task = _check_task(checkpoint, task_of(model))
    if model.preprocess is None:
        raise BuildError(
            f"{checkpoint} does not say how images are preprocessed; set model.preprocess and save it again"
        )
    return Source(checkpoint, task, model)


def _check_task(name: str, task: str | None) -> str:
    if task not in TASKS:
        raise BuildError(
            f"{name} is for {task or 'nothing that it names'}; the page has modes for {' and '.join(TASKS)}"
        )
    return task


def _make_random(task: str) -> Source:
    """Make a network of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Model
        if task == "classification":
            model = kornia_mvit.MobileViTClassifier("xxs", num_classes=5)
            model.preprocess = kornia_mvit.Preprocess(size=288, crop=256)
        else:
            model = kornia_mvit.DeepLabV3("xxs", num_classes=5)
            model.preprocess = kornia_mvit.Preprocess(size=(256, 256))
    return Source("random weights", task, model, note=RANDOM)


def _metadata(path: Path) -> dict[str, str]:
    try:
        import onnx
    except ImportError as error:
        raise ImportError("reading ONNX files needs onnx; install kornia-mvit[export]") from error
    model = onnx.load(path, load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def _describe(path: Path) -> dict[str, Any]:
    """Say what the page has to know of an ONNX file, by the file's metadata."""
    known = _metadata(path)
    count = int(known["num_classes"])
    entry = {
        "task": known["task"],
        "file": path.name,
        "bytes": path.stat().st_size,
        "title": TASKS[known["task"]],
        "count": count,
        "classes": json.loads(known.get("class_names", "null")) or [f"class {k}" for k in range(count)],
        "preprocess": json.loads(known["preprocess"]),
        "version": known["version"],
    }
    if known["task"] == "segmentation":
        entry["colours"] = _colours(count, json.loads(known.get("class_colours", "null")))
    return entry


def _colours(count: int, known: list[list[int]] | None) -> list[list[int]]:
    """Return the colours of classes: their own, or those that the package's pictures have."""
    from kornia_mvit.draw.images import label_image

    palette = label_image(torch.zeros(1, 1, dtype=torch.uint8), known and [tuple(c) for c in known]).getpalette()
    return [palette[3 * k : 3 * k + 3] for k in range(count)]


if __name__ == "__main__":
    sys.exit(main())
