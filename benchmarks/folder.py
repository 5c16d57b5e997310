"""A folder through `predict(stream=True)`: images a second beside a plain loop, and memory of many over that of few.

Each row runs in a process of its own, whose peak memory is its own. Three images of each hundred are broken.

    python benchmarks/folder.py [--images 3000] [--photos 500] [--json FILE]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from common import setup, stamp, write

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, predict, save_checkpoint

FEW = 30


def write_folder(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs, of which each 33rd is cut off in its middle."""
    from PIL import Image

    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 24, 32, generator=generator) * 255
    kinds = []
    for pixels in torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255).to(torch.uint8):
        place = folder.parent / "kind.jpg"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place, quality=90)
        kinds.append(place.read_bytes())
    for index in range(count):
        data = kinds[index % len(kinds)]
        (folder / f"{index:05}.jpg").write_bytes(data[: len(data) // 2] if index % 33 == 32 else data)


def write_model(task: str, path: Path) -> None:
    """Write a checkpoint of an untrained network, whose weights do not matter here."""
    torch.manual_seed(0)
    model = MobileViTClassifier("xxs", num_classes=5) if task == "classification" else DeepLabV3("xxs", num_classes=5)
    model.class_names = tuple("abcde")
    model.preprocess = Preprocess((256, 256)) if task == "classification" else Preprocess(max_pixels=320 * 320)
    save_checkpoint(model.eval(), path)


def run_ours(model: str, folder: str) -> dict[str, float]:
    """Stream the answers of a folder."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        answered = sum(1 for _ in predict(model, folder, stream=True))
    return {"answered": answered, "named": sum("skipped: " in str(one.message) for one in told)}


def run_plain(model: str, folder: str) -> dict[str, float]:
    """Classify a folder in a loop of torchvision and PIL, batches of 32, with the same resizing."""
    from PIL import Image
    from torchvision.transforms import v2

    from kornia_mvit import from_pretrained

    network = from_pretrained(model).eval()
    convert = v2.Compose(
        [v2.Resize((256, 256)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.0], [1.0])]
    )
    answered = named = 0
    batch: list[torch.Tensor] = []
    files = sorted(Path(folder).iterdir())
    with torch.no_grad():
        for number, file in enumerate(files):
            try:
                batch.append(convert(Image.open(file).convert("RGB")))
            except OSError:
                named += 1
            if len(batch) == 32 or (batch and number == len(files) - 1):
                answered += len(network(torch.stack(batch)).softmax(-1).topk(1).indices.tolist())
                batch = []
    return {"answered": answered, "named": named}


def measure(kind: str, model: Path, folder: Path) -> dict[str, float]:
    """Run a row in a process of its own."""
    command = [sys.executable, __file__, "--row", kind, str(model), str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return row


def run_row(kind: str, model: str, folder: str, threads: int) -> None:
    """Run a row here, and print it."""
    setup(threads)
    began = time.perf_counter()
    row = (run_ours if kind == "ours" else run_plain)(model, folder)
    row["images_a_second"] = round((row["answered"] + row["named"]) / (time.perf_counter() - began), 2)
    row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(row))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="500x375 pixels each, for classification")
    parser.add_argument("--photos", type=int, default=500, help="12 megapixels each, for segmentation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        run_row(*args.row, args.threads)
        return
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for task, count, size in (
            ("classification", args.images, (375, 500)),
            ("segmentation", args.photos, (3000, 4000)),
        ):
            if not count:
                continue
            model = root / f"{task}.ckpt"
            write_model(task, model)
            for number in (FEW, count):
                write_folder(root / f"{task}-{number}", number, size)
                rows[f"{task}, {number} images"] = measure("ours", model, root / f"{task}-{number}")
            if task == "classification":
                rows[f"plain loop, {count} images"] = measure("plain", model, root / f"{task}-{count}")
    for name, row in rows.items():
        print(f"{name:30}", "  ".join(f"{key} {value:g}" for key, value in row.items()))
    write(args.json, stamp(threads=args.threads) | {"rows": rows})


if __name__ == "__main__":
    main()
