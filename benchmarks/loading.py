"""From JPEG to batch: images a second of one process beside torchvision's ImageFolder and timm's loader.

    python benchmarks/loading.py [--images 400] [--batch 32] [--repeats 7] [--json FILE]

Photos of 500×375 pixels become batches of uint8 whose shorter sides are 256 pixels, as a training pipeline on
the device takes. torchvision resizes PIL images, or tensors, as its documentation advises; timm resizes PIL images. All
load in the process itself, with one thread, in turn.
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import common
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from kornia_mvit.training.datamodules import FolderData

HEIGHT, WIDTH, SIDE = 375, 500, 256


def write_photos(folder: Path, count: int) -> None:
    """Write JPEGs of two classes, with the noise and the size of a file that photos have."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        coarse = torch.rand(1, 3, 48, 64, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")[0].clamp(0, 1) * 255
        pixels += 6 * torch.randn(3, HEIGHT, WIDTH, generator=generator)
        place = folder / f"class{index % 2}" / f"{index:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(place, quality=90)


def contestants(root: Path, batch: int) -> dict[str, Iterable[object]]:
    """The loaders, each an epoch of batches."""
    data = FolderData(root, batch_size=batch, num_workers=0, storage_size=SIDE)
    data.setup("fit")
    of_pil = v2.Compose([v2.Resize(SIDE), v2.PILToTensor()])
    of_tensors = v2.Compose([v2.ToImage(), v2.Resize(SIDE)])
    dataset = timm.data.create_dataset("", root=str(root / "train"))
    return {
        "ours": data.train_dataloader(),
        "torchvision, PIL": DataLoader(ImageFolder(root / "train", of_pil), batch, shuffle=True),
        "torchvision, tensors": DataLoader(ImageFolder(root / "train", of_tensors), batch, shuffle=True),
        "timm": timm.data.create_loader(
            dataset, (3, SIDE, SIDE), batch, is_training=True, no_aug=True, use_prefetcher=False, num_workers=0
        ),
    }


def main() -> None:
    """Run the race, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for part, count in (("train", args.images), ("val", 2)):
            write_photos(Path(folder) / part, count)
        loaders = contestants(Path(folder), args.batch)
        runs = {name: lambda loader=loader: sum(1 for _ in loader) for name, loader in loaders.items()}
        times = common.race(runs, args.repeats)
    rows = common.compare(times, ["torchvision, tensors"])
    common.show(f"{args.images} photos, batches of {args.batch}, one process", rows, "torchvision, tensors")
    for name, row in rows.items():
        print(f"  {name:38s}{1e3 * args.images / row['best_ms']:7.0f} images/s")
        row["images_per_second"] = 1e3 * args.images / row["best_ms"]
    common.write(args.json, common.stamp(images=args.images, batch=args.batch, results=rows))


if __name__ == "__main__":
    main()
