"""Labelled images in WebDataset shards."""

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from kornia_mvit.batch import Batch
from kornia_mvit.data.loading.shards import ShardFiles, count_shards, find_shards
from kornia_mvit.data.loading.streams import ShardBatches, ShardLoader
from kornia_mvit.data.reading import DataError
from kornia_mvit.files import printable
from kornia_mvit.parsing import read_lines, repeated
from kornia_mvit.training.datamodules.base import ImageData, list_classes
from kornia_mvit.training.datamodules.settings import DataSettings, check_on_error
from kornia_mvit.training.lightning_names import rank_zero_info, rank_zero_warn
from kornia_mvit.training.settings import accepts

__all__ = ["ShardData", "ShardSettings"]


@dataclass
class _Shards:
    train: str | list[str]
    val: str | list[str]


@dataclass
class ShardSettings(DataSettings, _Shards):
    """The settings of :class:`ShardData`, which documents them."""

    batch_size: int = 64
    _: KW_ONLY
    test: str | list[str] | None = None
    class_names: str | list[str] | None = None
    num_classes: int | None = None
    sizes: str | None = None
    shuffle_buffer: int = 1000
    drop_last: bool = True
    on_error: str = "raise"


class ShardData(ImageData):
    """Images in WebDataset shards, tar files read in a stream, for sets that are too large for a disk or a folder.

    A sample is an image (``jpg``, ``png``, ``webp`` and others) and its label: a class number in ``cls``, or a number
    or a name as ``label`` in ``json``. :func:`~kornia_mvit.data.loading.shards.write_shards` makes such shards of
    files.

    Every process reads an equal share of the samples, each of its workers a part of that, and all have equally many
    batches; how many samples are left out of a training epoch for that, or come twice with ``drop_last=False``, is told
    at its start. Validation and test see each sample once. See
    :class:`~kornia_mvit.data.loading.streams.ShardBatches`.

    A run resumes with the next sample, and with another number of processes or workers, or another batch size, it
    shares anew what is left of the epoch: each sample comes once. The callback
    :class:`~kornia_mvit.training.resuming.ExactResume`, which the recipes have, keeps what is needed for it.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Args:
        train: names of the training shards, with braces or globs, or a list of them, such as
            ``'shards/train-{00000..00127}.tar'`` or ``'shards/train-*.tar'``. What begins with ``https://`` and the
            like, or with ``pipe:`` and a command, which runs in a shell, is left to webdataset and needs ``sizes``.
        val: names of the validation shards.
        test: names of the test shards.
        class_names: names of the classes in the order of their numbers, or a file with one in each line.
        num_classes: their number, where they have no names.
        sizes: a JSON file with the number of samples of each shard; see
            :func:`~kornia_mvit.data.loading.shards.count_shards`. When None, ``sizes.json`` beside the shards is taken,
            or samples are counted at the start.
        shuffle_buffer: undecoded samples that each worker holds to choose from in training, all in its memory.
        drop_last: whether training leaves out what does not fill a batch on every process; with False each sample
            comes once, the last batch of an epoch is smaller, and fewer samples than there are processes come twice.
        on_error: ``'raise'`` stops at an image or shard that cannot be read and names it; ``'skip'`` warns of it once
            and continues; other images are repeated in its place, so that the number of batches stays.

    Raises:
        DataError: if a shard is missing or damaged, or there is no file of class names.
        ValueError: without a number of classes.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from kornia_mvit.data.loading.shards import write_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image = pathlib.Path(folder, 'a.png')
        ...     Image.new('RGB', (8, 8)).save(image)
        ...     shards = list(write_shards([(image, i % 2) for i in range(6)], f'{folder}/%03d.tar', max_count=2))
        ...     data = ShardData(shards[:2], shards[2:], batch_size=2, num_workers=0, num_classes=2)
        ...     data.setup()
        ...     [len(batch) for batch in data.train_dataloader()]
        [2, 2]
    """

    _TEST = "name shards for it as test"

    @accepts(ShardSettings)
    def __init__(self, settings: ShardSettings) -> None:
        self._begin(settings)
        check_on_error(settings.on_error)
        if settings.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer {settings.shuffle_buffer} is not at least one sample")
        self.on_error: str = settings.on_error
        self.shuffle_buffer: int = settings.shuffle_buffer
        self.drop_last: bool = settings.drop_last
        self._class_names = _find_names(settings.class_names, settings.num_classes)
        self._broken: list[str] = []
        self._skipped: list[list[str]] = []  # those of the loaders, which are not kept alive for them
        given = {"train": settings.train, "val": settings.val, "test": settings.test}
        self._counts = {
            split: self._count(find_shards(shards), settings.sizes)
            for split, shards in given.items()
            if shards is not None
        }
        for split, counts in self._counts.items():
            if not sum(counts.values()):
                raise DataError(f"the {split} shards have no samples: {', '.join(list(counts)[:3])}")

    def _count(self, shards: Sequence[str], sizes: str | None) -> dict[str, int]:
        counts, errors = count_shards(shards, sizes)
        if errors and (self.on_error == "raise" or not counts):
            raise DataError(errors[0])
        self._broken += errors
        return counts

    @property
    def skipped(self) -> list[str]:
        """What could not be read so far on this process, and why."""
        return self._broken + [reason for reasons in self._skipped for reason in reasons]

    def setup(self, stage: str | None = None) -> None:
        """Make the splits, and log the shards that cannot be read."""
        # What it warns of is handled: workers share the samples, and the length counts theirs.
        warnings.filterwarnings("ignore", "Your `IterableDataset` has `__len__` defined")
        for split, counts in self._counts.items():
            self.splits[split] = ShardFiles(counts, self.class_names, self.storage(split))
        parts = (f"{sum(c.values())} images in {len(c)} shards in {split}" for split, c in self._counts.items())
        self._tell(next(iter(self._counts["train"])), parts)
        if self._broken:
            lines = "\n".join(f"  {printable(reason)}" for reason in self._broken)
            rank_zero_warn(f"skipped {len(self._broken)} shards:\n{lines}")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order that depends on Lightning's ``seed_everything`` and the epoch."""
        scales = self._scales()
        seed = self._seed() if scales is None else scales[2]
        return self._stream(
            "train", train=True, drop_last=self.drop_last, seed=seed, scales=None if scales is None else scales[:2]
        )

    def _evaluation(self, split: str) -> DataLoader[Batch]:
        return self._stream(split, train=False)

    def _stream(self, split: str, **arguments: Any) -> ShardLoader:
        files = self.splits[split]
        assert isinstance(files, ShardFiles)
        batches = ShardBatches(
            files, self.batch_size, shuffle_buffer=self.shuffle_buffer, on_error=self.on_error, **arguments
        )
        loader = ShardLoader(
            batches,
            num_workers=self.num_workers,
            report=rank_zero_info,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )
        self._skipped.append(loader.skipped)
        return loader


def _find_names(class_names: str | list[str] | None, num_classes: int | None) -> tuple[str, ...]:
    """Return the names of the classes, from a list, a file, or their number."""
    if class_names is None:
        if num_classes is None:
            raise ValueError("the number of classes is missing; give num_classes, or class_names")
        class_names = [str(number) for number in range(num_classes)]
    elif isinstance(class_names, str):
        lines = read_lines(class_names, DataError, "class names")
        class_names = [line.strip() for line in lines if line.strip()]
    if num_classes not in (None, len(class_names)):
        raise ValueError(f"{len(class_names)} class_names, but num_classes is {num_classes}")
    if repeated(class_names) or len(class_names) < 2:
        raise DataError(f"{list_classes(class_names)}: give two or more, each once")
    return tuple(class_names)
