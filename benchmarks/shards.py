"""Images a second that one core reads from shards and decodes: ours beside webdataset alone and litdata.

    python benchmarks/shards.py [--images 500] [--batch 32] [--repeats 15] [--json FILE]

Photos of 500×375 pixels become batches of uint8 whose shorter sides are 256 pixels, once from shards that hold them at
that size, so that they are decoded alone, and once from shards that hold the originals, which are decoded and resized.
All shuffle, and load in the process itself, with one thread, in turn, files that the system has in memory. Times are of
the processor, of all threads of this process, and those of the clock stand beside them.

litdata belongs to no extra: where it is not installed, it is left out, and said to be. It reads its own format, which
holds the same JPEG files. webdataset decodes by PIL, as its documentation has it, or by torchvision.
"""

import argparse
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import common
import torch
import torchvision.io
import webdataset
from loading import SIDE, write_photos
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from kornia_mvit import shards
from kornia_mvit.training.datamodules import ShardData

BUFFER = 1000  # samples of a shuffle buffer
Loaders = dict[str, Iterable[Any]]


def unpack(folder: Path, out: Path) -> list[tuple[str, int]]:
    """Write the JPEG files of shards into a folder, and return their paths and classes."""
    rows = []
    for shard in sorted(folder.glob("train-*.tar")):
        with tarfile.open(shard) as archive:
            members = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]  # files
        for name, content in members.items():
            if name.endswith(".jpg"):
                label = members[name[:-3] + "cls"]
                (out / f"{shard.stem}-{Path(name).name}").write_bytes(content)
                rows.append((str(out / f"{shard.stem}-{Path(name).name}"), int(label)))
    return rows


def contestants(folder: Path, batch: int, resized: bool) -> Loaders:
    """The loaders of a folder of shards, each an epoch of batches; ``resized`` says that shards hold the final size."""
    names = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    data = ShardData(str(folder), batch_size=batch, num_workers=0, storage_size=SIDE, shuffle_buffer=BUFFER)
    data.setup("fit")
    loaders: Loaders = {"ours": data.train_dataloader()}
    resize = [] if resized else [v2.Resize(SIDE)]
    of_pil, of_tensors = v2.Compose([*resize, v2.PILToTensor()]), v2.Compose(resize) if resize else torch.nn.Identity()

    def read(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        pixels = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8))
        return of_tensors(pixels), int(sample["cls"])

    def stream() -> Any:
        return webdataset.WebDataset(names, shardshuffle=100, empty_check=False).shuffle(BUFFER)

    by_pil = stream().decode("pilrgb").to_tuple("jpg", "cls").map_tuple(of_pil, int)
    loaders["webdataset, PIL"] = DataLoader(by_pil.batched(batch, partial=False), None)
    loaders["webdataset, torchvision"] = DataLoader(stream().map(read).batched(batch, partial=False), None)
    if "litdata" in sys.modules:
        import litdata

        own = folder / "litdata"
        transform = None if resized else lambda sample: {**sample, "image": of_tensors(sample["image"])}
        dataset = litdata.StreamingDataset(str(own), shuffle=True, drop_last=True, transform=transform)
        loaders["litdata"] = litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=0, drop_last=True)
    return loaders


def race(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[list[float], list[float]]]:
    """Time things in turn, by the processor and by the clock, once each to warm up."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time(), time.perf_counter()
            run()
            taken = time.process_time() - began[0], time.perf_counter() - began[1]
            if turn:
                for column, seconds in zip(times[name], taken, strict=True):
                    column.append(seconds)
    return times


def check(loaders: Loaders, count: int) -> None:
    """Stop unless each gives batches of as many images of the right size, in nearly the same colours."""
    means = {}
    for name, loader in loaders.items():
        total, seen = 0.0, 0
        for batch in loader:
            images = batch.image if name == "ours" else batch["image"] if name == "litdata" else batch[0]
            assert images.dtype == torch.uint8 and min(images.shape[-2:]) == SIDE, name
            seen += len(images)
            total += float(images.double().mean()) * len(images)
        assert seen == count, f"{name} gives {seen} of {count} images"
        means[name] = total / seen
    assert max(means.values()) - min(means.values()) < 1.5, means


def measure(folder: Path, args: argparse.Namespace, resized: bool) -> dict[str, Any]:
    """Run a race over a folder of shards."""
    loaders = contestants(folder, args.batch, resized)
    count = args.images // args.batch * args.batch
    check(loaders, count)
    times = race({name: lambda loader=loader: sum(1 for _ in loader) for name, loader in loaders.items()}, args.repeats)
    others = [name for name in loaders if name != "ours"]
    rows = common.compare({name: processor for name, (processor, _) in times.items()}, others)
    title = "decoded" if resized else "decoded and resized"
    common.show(f"{title}: {count} photos, one core, time of the processor", rows, "the fastest of the others")
    for name, row in rows.items():
        row["images_per_second"] = 1e3 * count / row["median_ms"]
        row["clock_median_ms"] = 1e3 * statistics.median(times[name][1])
        row["clock_best_ms"] = 1e3 * min(times[name][1])
        print(f"  {name:34}{row['images_per_second']:7.0f} images/s (median)")
    ours = sorted(1 / ratio for ratio in _ratios(times, others))
    speed = {"median": statistics.median(ours), "low": ours[len(ours) // 4], "high": ours[-1 - len(ours) // 4]}
    print(f"  ours to the fastest of the others, images a second: {speed['median']:.3f}")
    return {"rows": rows, "speed_of_ours": speed}


def _ratios(times: dict[str, tuple[list[float], list[float]]], others: list[str]) -> list[float]:
    fastest = min(others, key=lambda name: statistics.median(times[name][0]))
    return [a / b for a, b in zip(times["ours"][0], times[fastest][0], strict=True)]


def main() -> None:
    """Write shards, run the races, print tables, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    try:
        import litdata

        version = litdata.__version__
    except ImportError:
        version = "not installed"
        print("litdata is not installed, and left out")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, count in (("train", args.images), ("val", 2)):
            write_photos(folder / "photos" / part, count)
        for resized in (True, False):
            place = folder / ("resized" if resized else "whole")
            shards(folder / "photos", place, size=SIDE if resized else None, max_count=100, processes=1)
            if version != "not installed":
                _write_litdata(place)
            results["decoded" if resized else "decoded and resized"] = measure(place, args, resized)
    versions = {"webdataset": webdataset.__version__, "litdata": version}
    stamp = common.stamp(images=args.images, batch=args.batch, results=results)
    stamp["versions"] |= versions
    common.write(args.json, stamp)


def _write_litdata(folder: Path) -> None:
    from litdata.streaming import Cache

    files = folder / "files"
    files.mkdir()
    rows = unpack(folder, files)
    cache = Cache(str(folder / "litdata"), chunk_bytes="4MB")  # as litdata.optimize, which takes a second an image
    for number, (path, label) in enumerate(rows):
        cache[number] = {"image": Image.open(path), "label": label}
    cache.done()
    cache.merge()


if __name__ == "__main__":
    main()
