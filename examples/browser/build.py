"""Build the page: ``build.py [CHECKPOINT …]`` exports models and puts them beside the page and its runtime."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
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
    """Write the page, its runtime and the models into a folder, which is emptied first.

    Raises:
        BuildError: for two models of one task, one that the page has no mode for, or a folder that holds other things.
    """
    runtime = fetch(HERE) / "onnxruntime-web"
    if out.exists() and any(out.iterdir()) and not (out / "models.json").exists():
        raise BuildError(f"{out} holds other files; give --out a new folder")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(PAGE, out)
    (out / "ort").mkdir()
    for name in RUNTIME:
        shutil.copy(runtime / "dist" / name, out / "ort")
    version = json.loads((runtime / "package.json").read_text(encoding="utf-8"))["version"]
    entries = [_add(checkpoint, out) for checkpoint in checkpoints] or [_add_random(task, out) for task in TASKS]
    if len({entry["task"] for entry in entries}) < len(entries):
        raise BuildError(f"two models are for {entries[0]['task']}; the page takes one for each of {', '.join(TASKS)}")
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {"index.html", "sw.js"}
    listed = {"runtime": f"onnxruntime-web {version}", "models": entries, "files": sorted(files)}
    (out / "models.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1), encoding="utf-8")
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


def _add(checkpoint: str, out: Path) -> dict[str, Any]:
    """Put a model beside the page and describe it."""
    if checkpoint.endswith(".onnx"):
        if not Path(checkpoint).is_file():
            raise BuildError(f"no such file: {checkpoint}")
        return _place(Path(checkpoint), out)
    return _export(from_pretrained(checkpoint), out, checkpoint)


def _add_random(task: str, out: Path) -> dict[str, Any]:
    """Put a network of random weights beside the page and describe it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if task == "classification":
            model: Model = kornia_mvit.MobileViTClassifier("xxs", num_classes=5)
            model.preprocess = kornia_mvit.Preprocess(size=288, crop=256)
        else:
            model = kornia_mvit.DeepLabV3("xxs", num_classes=5)
            model.preprocess = kornia_mvit.Preprocess(size=(256, 256))
    return _export(model, out, f"random weights for {task}") | {"note": RANDOM}


def _export(model: Model, out: Path, name: str) -> dict[str, Any]:
    from kornia_mvit.export import to_onnx

    if task_of(model) not in TASKS:
        raise BuildError(f"{name} is for {task_of(model)}; the page has modes for {' and '.join(TASKS)}")
    path = out / f"{task_of(model)}.onnx"
    to_onnx(model.eval(), path, with_preprocess=True, with_decode=True, layout="nhwc")
    return _place(path, out)


def _place(path: Path, out: Path) -> dict[str, Any]:
    """Copy an ONNX file to the page unless it is there, and describe it by its own metadata.

    Raises:
        BuildError: if it is for another task, or does not take 8-bit images whose channels come last to an answer.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    known = {entry.key: entry.value for entry in model.metadata_props}
    task = known.get("task", "")
    if task not in TASKS:
        raise BuildError(
            f"{path} is for {task or 'nothing that it names'}; the page has modes for {' and '.join(TASKS)}"
        )
    graph = json.loads(known.get("graph", "{}"))
    if not (graph.get("with_preprocess") and graph.get("with_decode") and graph.get("layout") == "nhwc"):
        raise BuildError(
            f"{path} does not take images as browsers have them; "
            "export it with with_preprocess=True, with_decode=True and layout='nhwc'"
        )
    target = out / f"{task}.onnx"
    if path.resolve() != target.resolve():
        shutil.copy(path, target)
    count = int(known["num_classes"])
    entry = {
        "task": task,
        "file": target.name,
        "bytes": target.stat().st_size,
        "title": TASKS[task],
        "count": count,
        "classes": json.loads(known.get("class_names", "null")) or [str(k) for k in range(count)],
        "preprocess": json.loads(known["preprocess"]),
        "version": known["version"],
        "note": "",
    }
    if task == "segmentation":
        entry["colours"] = _colours(count, json.loads(known.get("class_colours", "null")))
    return entry


def _colours(count: int, known: list[list[int]] | None) -> list[list[int]]:
    """Give the colours of classes: their own, or those that the package's pictures have."""
    from kornia_mvit.visualize import label_image

    palette = label_image(torch.zeros(1, 1, dtype=torch.uint8), known and [tuple(c) for c in known]).getpalette()
    return [palette[3 * k : 3 * k + 3] for k in range(count)]


if __name__ == "__main__":
    sys.exit(main())
