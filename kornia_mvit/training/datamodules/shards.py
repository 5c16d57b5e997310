"""Labelled images in WebDataset shards."""

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from kornia_mvit.batch import Batch
from kornia_mvit.data.loading.index import count_indexed, find_index
from kornia_mvit.data.loading.shards import ShardFiles, count_shards, find_shards
from kornia_mvit.data.loading.sources import ShardCache, is_address
from kornia_mvit.data.loading.streams import ShardBatches, ShardLoader
from kornia_mvit.data.loading.targets import TARGETS
from kornia_mvit.data.reading import DataError
from kornia_mvit.data.storage import StorageResize
from kornia_mvit.files import printable
from kornia_mvit.parsing import count_of, read_lines, repeated
from kornia_mvit.training.datamodules.base import ImageData, list_classes
from kornia_mvit.training.datamodules.settings import DataSettings, check_choice, check_on_error
from kornia_mvit.training.lightning_names import rank_zero_info, rank_zero_warn
from kornia_mvit.training.settings import accepts

__all__ = ["ShardData", "ShardSettings"]


@dataclass
class _Shards:
    train: str | list[str]
    val: str | list[str] | None = None


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
    targets: str | None = None
    ignore_index: int = 255
    on_bad_box: str = "drop"
    cache: str | None = None
    cache_gb: float = 20.0
    attempts: int = 6
    stall: float = 60.0


class ShardData(ImageData):
    """Images in WebDataset shards, tar files read in a stream, for sets that are too large for a disk or a folder.

    A sample is an image (``jpg``, ``png``, ``webp`` and others) and what ``targets`` says:

    - ``'label'``, for classification: a class number in ``cls``, or a number or a name as ``label`` in ``json``.
    - ``'mask'``, for segmentation: a label image, ``NAME.mask.png`` beside ``NAME.jpg``, of class numbers.
    - ``'boxes'``, for detection: ``boxes`` in ``json``, a list of left, top, right and bottom edges in pixels, with
      ``labels``, a number or a name for each. ``ignore`` and ``crowd`` may tell of each box whether loss and score
      leave it out, ``areas`` the area of its object, and ``image_id`` the number of the image.

    :func:`~kornia_mvit.shards`, and ``kornia-mvit shards``, make such shards of datasets of files, with an index: then
    their folder, as ``train``, is all that has to be given.

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
            ``'shards/train-{00000..00127}.tar'`` or ``'shards/train-*.tar'``; or addresses that fsspec knows, as
            ``'s3://bucket/train-{00000..00127}.tar'``, which need the extra ``stream`` and ``sizes``. What begins with
            ``pipe:`` is a command, which runs in a shell, and needs ``sizes``, too.
            Or a folder with an ``index.json``, or that file's path, which tell the shards of each split, their sizes,
            the targets and the classes.
        val: names of the validation shards; those of the index of train when None.
        test: names of the test shards; those of the index of train when None, if it has some.
        class_names: names of the classes in the order of their numbers, or a file with one in each line; those of the
            index when None.
        num_classes: their number, where they have no names.
        sizes: a JSON file with the number of samples of each shard; see
            :func:`~kornia_mvit.data.loading.shards.count_shards`. When None, ``sizes.json`` beside the shards is taken,
            or samples are counted at the start.
        shuffle_buffer: undecoded samples that each worker holds to choose from in training, all in its memory.
        drop_last: whether training leaves out what does not fill a batch on every process; with False each sample
            comes once, the last batch of an epoch is smaller, and fewer samples than there are processes come twice.
        targets: what stands beside an image; when None what the index says, or ``'label'``.
        ignore_index: number of the pixels of label images to ignore.
        on_bad_box: boxes without an area or outside their image: ``'drop'`` leaves them out and names each once,
            ``'raise'`` stops.
        cache: folder for shards from addresses, which processes share; one in that for temporary files when None. See
            :class:`~kornia_mvit.data.loading.sources.ShardCache`.
        cache_gb: size that it has at most, in GB.
        attempts: how often a shard is tried to be fetched, with growing pauses, before it counts as one that cannot be
            read.
        stall: seconds without a byte after which an attempt has failed.
        on_error: ``'raise'`` stops at an image or shard that cannot be read and names it; ``'skip'`` warns of it once
            and continues; other images are repeated in its place, so that the number of batches stays.

    Raises:
        DataError: if a shard is missing or damaged, or there is no file of class names.
        ValueError: without a number of classes, or of shards to validate on.

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
        index = find_index(settings.train)
        targets = settings.targets or ("label" if index is None else index[1].targets)
        check_choice("targets", targets, TARGETS)
        check_choice("on_bad_box", settings.on_bad_box, ("drop", "raise"))
        self.targets: str = targets
        self.ignore_index: int = settings.ignore_index
        self._on_bad_box = settings.on_bad_box
        self._known: dict[str, tuple[int, str]] = {}  # size and checksum of shards
        if settings.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer {settings.shuffle_buffer} is not at least one sample")
        self.on_error: str = settings.on_error
        self.shuffle_buffer: int = settings.shuffle_buffer
        self.drop_last: bool = settings.drop_last
        names, number = settings.class_names, settings.num_classes
        if index is not None and names is None and number is None:
            names = list(index[1].class_names)
        self._class_names = _find_names(names, number)
        self._broken: list[str] = []
        self._skipped: list[list[str]] = []  # those of the loaders, which are not kept alive for them
        given: dict[str, Any] = {"train": settings.train, "val": settings.val, "test": settings.test}
        for split in ("val", "test"):
            if given[split] is None and index is not None and split in index[1].splits:
                given[split] = settings.train
        if given["val"] is None:
            raise ValueError("there are no shards to validate on; give val (--data.val)")
        self._counts = {
            split: self._count(shards, split, settings.sizes) for split, shards in given.items() if shards is not None
        }
        for split, counts in self._counts.items():
            if not sum(counts.values()):
                raise DataError(f"the {split} shards have no samples: {', '.join(list(counts)[:3])}")
        self._cache: ShardCache | None = None
        if any(is_address(name) for counts in self._counts.values() for name in counts):
            limit = int(settings.cache_gb * 1e9)
            self._cache = ShardCache(
                settings.cache, limit, attempts=settings.attempts, stall=settings.stall, known=self._known
            )

    def _count(self, given: str | Sequence[str], split: str, sizes: str | None) -> dict[str, int]:
        index = find_index(cast(Any, given))
        if index is None:
            counts, errors = count_shards(find_shards(given), sizes)
        else:
            counts, errors = count_indexed(*index, split)
            for entry in index[1].splits[split]:
                self._known[f"{index[0]}/{entry.name}"] = (entry.bytes, entry.sha256)
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
            self.splits[split] = ShardFiles(
                counts,
                self.class_names,
                self._transform(split),
                targets=self.targets,
                ignore_index=self.ignore_index,
                on_bad_box=self._on_bad_box,
                cache=self._cache,
            )
        parts = (
            f"{count_of(sum(c.values()), 'image')} in {count_of(len(c), 'shard')} in {split}"
            for split, c in self._counts.items()
        )
        self._tell(next(iter(self._counts["train"])), parts)
        if self._broken:
            lines = "\n".join(f"  {printable(reason)}" for reason in self._broken)
            rank_zero_warn(f"skipped {len(self._broken)} shards:\n{lines}")

    def _transform(self, split: str) -> StorageResize | None:
        """Return the resize transform of a split, as the data modules of files have it for each task."""
        if self.targets == "label":
            return self.storage(split)
        if split == "train":
            return self.storage_if_told()
        return StorageResize(self.storage_size) if self.storage_size and self.targets == "boxes" else None

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
