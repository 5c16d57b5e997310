"""Batches that are read from shards in a stream."""

import random
import warnings
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from kornia_mvit.batch import Batch
from kornia_mvit.data.loading.samplers import EpochBatchSampler, MultiScaleBatchSampler, find_place
from kornia_mvit.data.loading.shards import ShardFiles, decode_label, read_shard, shuffle_samples
from kornia_mvit.data.reading import DataError
from kornia_mvit.files import printable
from kornia_mvit.ops.seeds import combine_seed

__all__ = ["ShardBatches", "ShardLoader"]

Scales = tuple[tuple[tuple[int, int], ...], tuple[int, int]]
_Piece = tuple[str, int, int]  # a shard, the first of its samples, and that after the last


class ShardBatches(IterableDataset[tuple[list[dict[str, Any]], list[str]]]):
    """The batches of an epoch over shards, shared among processes and their workers.

    The shards are laid end to end, in training in an order drawn from seed and epoch. Each process takes an equal run
    of the samples, and each of its workers a run of that: whole shards, but for those at the ends of a run, which
    neighbours share, whatever the sizes of the shards. So that all processes have equally many batches, in training
    whole ones, what is over at the ends of the processes' runs is left out, less than a batch each; which samples
    these are differs from epoch to epoch. In evaluation each sample comes once and some batches are smaller, and where
    there are fewer samples than processes, or batches hold a single one, a few come twice, as in
    :class:`~kornia_mvit.data.loading.samplers.EpochBatchSampler`.

    Within a worker, training samples pass a buffer that gives out random ones. The order depends on seed, epoch, and
    the numbers of processes and workers alone.

    Where images are skipped, others of the same worker are repeated in training, so that the number of batches stays;
    in evaluation batches get smaller, and one of which nothing is left holds another image again. Labels that are
    missing or unknown are never skipped.

    Args:
        files: the shards.
        batch_size: images in a batch, on each process.
        train: whether to draw orders and leave out what does not fill a batch.
        seed: of the orders.
        shuffle_buffer: undecoded samples that each worker holds to draw from.
        scales: sizes to draw from for each batch, and the one that ``batch_size`` is for, as in
            :class:`~kornia_mvit.data.loading.samplers.MultiScaleBatchSampler`.
        on_error: ``'raise'`` stops at an image or shard that cannot be read, ``'skip'`` skips it.
        num_replicas: number of processes; that of the distributed run when None.
        rank: number of this process; that in the distributed run when None.

    Raises:
        ValueError: for a batch size or a buffer below one, or a rank that is not among the processes.
        DataError: if there are no samples, or fewer than processes to train; when read, for what is not skipped, or
            if no image can be read.

    Example:
        >>> files = ShardFiles({'a.tar': 5, 'b.tar': 9, 'c.tar': 7}, ['cat', 'dog'])
        >>> batches = ShardBatches(files, 3, num_replicas=2, rank=0)
        >>> len(batches), batches.left_out
        (3, 3)
    """

    def __init__(
        self,
        files: ShardFiles,
        batch_size: int,
        *,
        train: bool = True,
        seed: int = 0,
        shuffle_buffer: int = 1000,
        scales: Scales | None = None,
        on_error: str = "raise",
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer {shuffle_buffer} is not at least one sample")
        self.files = files
        self.train = train
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.on_error = on_error
        self.rank: int
        self.num_replicas: int
        self.rank, self.num_replicas = find_place(rank, num_replicas)
        if len(files) == 0 or (train and len(files) < self.num_replicas):
            raise DataError(f"{len(files)} samples in all shards are too few for {self.num_replicas} processes")
        self._lengths = self._make_lengths(batch_size, scales)
        # Workers that persist over epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # it has no types

    def _make_lengths(self, batch_size: int, scales: Scales | None) -> EpochBatchSampler:
        """Return a sampler with the same number and lengths of batches."""
        if not self.train:
            return EpochBatchSampler(
                self.files, batch_size, repeat=False, num_replicas=self.num_replicas, rank=self.rank
            )
        share = range(len(self.files) // self.num_replicas)
        if scales is None:
            return EpochBatchSampler(share, batch_size, drop_last=True, num_replicas=1, rank=0)
        sizes, base = scales
        return MultiScaleBatchSampler(
            share, batch_size, sizes, base=base, seed=self.seed, drop_last=True, num_replicas=1, rank=0
        )

    @property
    def epoch(self) -> int:
        """Number of the epoch, on which what is drawn depends."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        self._epoch.fill_(epoch)

    def lengths(self) -> list[int]:
        """Return the number of images in each batch of this process."""
        self._lengths.set_epoch(self.epoch)
        return self._lengths.lengths()

    def __len__(self) -> int:
        """Number of batches of this process, the same on all."""
        return len(self.lengths())

    @property
    def left_out(self) -> int:
        """Number of samples that no process sees in this epoch."""
        return len(self.files) - sum(self.lengths()) * self.num_replicas if self.train else 0

    def plan(self, worker: int = 0, workers: int = 1) -> tuple[list[int], list[_Piece]]:
        """Return the lengths of a worker's batches, and the runs of samples that it reads for them.

        Batches are asked of the workers in turn.
        """
        count, lengths = len(self.files), self.lengths()
        needed = sum(lengths)
        share, more = divmod(count, self.num_replicas)
        start, own = share * self.rank + min(self.rank, more), share + (self.rank < more)
        order = None
        if self.train:
            generator = torch.Generator().manual_seed(combine_seed(self.seed, self.epoch))
            order = torch.randperm(len(self.files.counts), generator=generator).tolist()
            start += combine_seed(self.seed, self.epoch, self.rank) % (own - needed + 1)
        start = min(start, count - needed)
        start += sum(sum(lengths[before::workers]) for before in range(worker))
        mine = lengths[worker::workers]
        return mine, self.files.cut(start, start + sum(mine), order)

    def __iter__(self) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
        """Yield the samples of each batch, and the reasons for those that were skipped before it."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        lengths, pieces = self.plan(worker, workers)
        reader = _Reader(self, random.Random(combine_seed(self.seed, self.epoch, self.rank, worker)))
        samples = reader.read_on(pieces) if self.train else reader.read(pieces)
        batch: list[dict[str, Any]] = []
        for length in lengths:
            batch = list(islice(samples, length)) or batch[-1:] or list(islice(reader.read_on(pieces), 1))
            yield batch, reader.skipped.copy()
            reader.skipped.clear()


class _Reader:
    """Read a worker's samples, and gather what was skipped on the way.

    Args:
        batches: the shards, and what to do about those that cannot be read.
        rng: of the order of training samples.
    """

    def __init__(self, batches: ShardBatches, rng: random.Random) -> None:
        self.batches = batches
        self.files = batches.files
        self.rng = rng
        self.skipped: list[str] = []

    def read_on(self, pieces: list[_Piece]) -> Iterator[dict[str, Any]]:
        """Read over and over; from all shards, if nothing in those of the worker can be read."""
        everything = self.files.cut(0, len(self.files))
        while True:
            samples = self.read(pieces)
            first = next(samples, None)
            if first is not None:
                yield first
                yield from samples
            elif pieces == everything:
                raise DataError(f"no image in {len(self.files.counts)} shards can be read; {self.skipped[0]}")
            else:
                pieces = everything

    def read(self, pieces: list[_Piece]) -> Iterator[dict[str, Any]]:
        """Read once."""
        raw = self._read_raw(pieces)
        if self.batches.train:
            raw = shuffle_samples(raw, self.batches.shuffle_buffer, self.rng)
        for sample in raw:
            label = decode_label(sample, self.files.class_names)  # outside, since it is never skipped
            try:
                decoded = self.files.decode(sample, label)
            except DataError as error:
                self._skip(error)
            else:
                yield decoded

    def _read_raw(self, pieces: list[_Piece]) -> Iterator[dict[str, Any]]:
        for piece in pieces:
            try:
                yield from read_shard(*piece)
            except DataError as error:
                self._skip(error)

    def _skip(self, error: DataError) -> None:
        if self.batches.on_error == "raise":
            raise error
        self.skipped.append(str(error))


class _Epochs(Sampler[None]):
    """What Lightning tells the epoch; it asks for one batch after another."""

    def __init__(self, batches: ShardBatches) -> None:
        self.set_epoch = batches.set_epoch

    def __iter__(self) -> Iterator[None]:
        return repeat(None)


class ShardLoader(DataLoader[Batch]):
    """Batches that workers read from shards.

    It starts with the first batch, when the epoch is known, and nothing is drawn from PyTorch's own generator. Each
    image or shard that was skipped is told of in a warning, once, on the process that met it.

    It has no state: an iteration always begins with the first batch of an epoch.

    Args:
        batches: what is read.
        num_workers: processes that read.
        report: takes a line for each epoch in which samples are left out; none are written when None.
        **options: further ones of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        batches: ShardBatches,
        *,
        num_workers: int = 0,
        report: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            cast(Any, batches),  # samples and batches have one type in DataLoader
            batch_size=None,
            num_workers=num_workers,
            collate_fn=cast(Any, _collate),
            generator=torch.Generator(),
            **options,
        )
        object.__setattr__(self, "sampler", _Epochs(batches))  # DataLoader takes none for a stream
        self.skipped: list[str] = []
        self._batches = batches
        self._report = report

    def __len__(self) -> int:
        """Number of batches, the same on every process."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader tells its iterator's class
        batches = self._batches
        left_out = batches.left_out
        if self._report is not None and left_out:
            self._report(
                f"epoch {batches.epoch}: {left_out} of {len(batches.files)} samples left out, which do not make one "
                f"more batch on every process (processes: {batches.num_replicas}, batches on each: {len(batches)})"
            )
        self.generator.manual_seed(combine_seed(batches.seed, batches.rank, batches.epoch))
        for batch, skipped in super().__iter__():
            for reason in skipped:
                if reason not in self.skipped:
                    self.skipped.append(reason)
                    warnings.warn(printable(f"skipped, as number {len(self.skipped)}: {reason}"), stacklevel=2)
            yield batch


def _collate(read: tuple[list[dict[str, Any]], list[str]]) -> tuple[Batch, list[str]]:
    samples, skipped = read
    return Batch.collate(samples), skipped
