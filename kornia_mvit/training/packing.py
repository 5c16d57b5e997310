"""Datasets of files as shards, in a line."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kornia_mvit.data.loading.index import INDEX, ShardIndex, check_shards
from kornia_mvit.data.loading.packing import PROGRESS, SampleEncoder, ShardPlan, write_planned
from kornia_mvit.data.reading import DataError, FileSamples
from kornia_mvit.files import printable
from kornia_mvit.ops.seeds import combine_seed
from kornia_mvit.parsing import count_of
from kornia_mvit.training import datamodules
from kornia_mvit.training.datamodules.base import ImageData
from kornia_mvit.training.layouts import find_layout
from kornia_mvit.training.lightning_names import rank_zero_info

__all__ = ["ShardSet", "shards"]


@dataclass(frozen=True)
class ShardSet:
    """Shards that were written or checked.

    Args:
        folder: where they are, with their ``index.json``.
        index: what they hold.
        checked: whether they were compared with their checksums.
    """

    folder: Path
    index: ShardIndex
    checked: bool = False

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(entry.bytes for entries in self.index.splits.values() for entry in entries)

    def __str__(self) -> str:
        counts = {split: sum(entry.samples for entry in entries) for split, entries in self.index.splits.items()}
        parts = (
            f"{count_of(counts[split], 'sample')} in {count_of(len(entries), 'shard')} in {split}"
            for split, entries in self.index.splits.items()
        )
        state = "; all are as their checksums say" if self.checked else ""
        return f"{printable(self.folder)}: {', '.join(parts)}; {_told(self.bytes)}{state}"


def shards(
    source: "str | Path | ImageData",
    out: str | Path | None = None,
    *,
    size: int | None = None,
    quality: int | None = None,
    max_count: int = 1000,
    processes: int | None = None,
    seed: int = 0,
    task: str | None = None,
    check: bool = False,
) -> ShardSet:
    """Write a dataset of files into shards, or check shards that were written.

    The samples of train are in a random order, those of other splits in that of the files. The same dataset gives the
    same bytes each time, with the same version of Pillow where images are encoded. A call that was interrupted, and is
    made again, continues with the shards that are missing. Beside the shards, ``index.json`` has the names of the
    classes, and the number of samples, the size and the SHA-256 of each shard.

    Args:
        source: the dataset: a folder, a table, or the data.yaml of YOLO's layout, told by its layout as for fit; or a
            data module. With check, the folder of the shards.
        out: the folder that the shards go to.
        size: length in pixels that the shorter side of images is brought to (default: images are copied as they are).
        quality: of the JPEGs, from 1 to 100, where images are encoded anew (default: 90 with a size).
        max_count: samples in a shard.
        processes: that write at the same time (default: the number of cores).
        seed: of the order of train.
        task: classification, segmentation or detection, where the layout of the folder leaves it open.
        check: compare the shards in the folder with their index.

    Returns:
        Where the shards are, and what they hold.

    Raises:
        DataError: if an image cannot be read, shards are damaged, or the folder has another set.
        OSError: if the disk has too little room, or a shard cannot be written.
        ValueError: for an argument that does not fit, naming what would do.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in range(8):
        ...         file = pathlib.Path(folder, 'photos', 'ab'[number % 2], f'{number}.png')
        ...         file.parent.mkdir(parents=True, exist_ok=True)
        ...         Image.new('RGB', (8, 8), (number, 0, 0)).save(file)
        ...     written = shards(f'{folder}/photos', f'{folder}/shards', processes=1)
        ...     {split: [entry.name for entry in entries] for split, entries in written.index.splits.items()}
        {'train': ['train-00000.tar'], 'val': ['val-00000.tar']}
    """
    if check:
        if out is not None or isinstance(source, ImageData):
            raise ValueError("check takes the folder of the shards alone; leave out what else is given")
        return ShardSet(Path(source), check_shards(source, processes), checked=True)
    if out is None:
        raise ValueError("give the folder that the shards go to (out), or check=True (--check) for shards that exist")
    count = os.cpu_count() or 1 if processes is None else processes
    if max_count < 1 or count < 1:
        raise ValueError(f"max_count {max_count} and processes {count} are not at least 1")
    data = source if isinstance(source, ImageData) else _data_module(source, task)
    data.prepare_data()
    data.setup("fit")
    plans = _plan(data, _Options(size, quality, max_count, seed))
    folder = Path(out)
    index = ShardIndex(plans[0].encoder.targets, data.class_names, {})
    if (folder / INDEX).exists():
        raise DataError(f"{folder} has an {INDEX}; the set is whole. Give another folder, or remove it")
    _check_room(folder, plans)
    splits = write_planned(plans, folder, count, rank_zero_info)
    index = ShardIndex(index.targets, index.class_names, splits)
    index.write(folder)
    (folder / PROGRESS).unlink(missing_ok=True)
    return ShardSet(folder, index)


@dataclass(frozen=True)
class _Options:
    """How samples are encoded and ordered."""

    size: int | None
    quality: int | None
    max_count: int
    seed: int


def _data_module(source: "str | Path", task: str | None) -> Any:
    layout = find_layout(source, task)
    rank_zero_info(f"{printable(source)} has {printable(layout.found)}: {layout.data}")
    return getattr(datamodules, layout.data)(**layout.options)


def _plan(data: Any, options: _Options) -> list[ShardPlan]:
    plans = []
    for number, (split, samples) in enumerate(_files_of(data).items()):
        order = torch.arange(len(samples))
        if split == "train":
            generator = torch.Generator().manual_seed(combine_seed(options.seed, number))
            order = torch.randperm(len(samples), generator=generator)
        encoder = SampleEncoder(samples, options.size, options.quality)
        plans.append(ShardPlan(split, encoder, order.tolist(), options.max_count))
    if not plans or not plans[0].order:
        raise DataError("the dataset has no samples to write into shards")
    return plans


def _files_of(data: Any) -> Mapping[str, FileSamples]:
    for split, samples in data.splits.items():
        if not isinstance(samples, FileSamples) or not len(samples.files):
            raise ValueError(f"{split} of {type(data).__name__} are no files of images; shards are made of files")
    splits: Mapping[str, FileSamples] = data.splits
    return splits


def _check_room(folder: Path, plans: list[ShardPlan]) -> None:
    """Tell how large the shards will be, and raise an OSError where the disk has less room."""
    needed = sum(plan.estimate() for plan in plans)
    count = sum(len(plan.order) for plan in plans)
    rank_zero_info(f"{count_of(count, 'sample')} will take about {_told(needed)} in {printable(folder)}")
    above = folder
    while not above.exists():
        above = above.parent
    written = sum(file.stat().st_size for file in folder.glob("*.tar")) if folder.is_dir() else 0
    free = shutil.disk_usage(above).free
    if needed - written > free:
        raise OSError(f"{folder} needs about {_told(needed - written)}, and its disk has {_told(free)} left")


def _told(count: float) -> str:
    """Return a size in bytes as people read it.

    Example:
        >>> _told(2_345_678)
        '2.3 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
