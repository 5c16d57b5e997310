"""Batches that are read from shards in a stream."""

import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from kornia_mvit.batch import Batch
from kornia_mvit.data.loading.plans import Cut, EpochPlan, Scales, Stand
from kornia_mvit.data.loading.readers import ShardPiece, ShardReader
from kornia_mvit.data.loading.samplers import EpochBatchSampler, find_place
from kornia_mvit.data.loading.shards import ShardFiles
from kornia_mvit.data.reading import DataError
from kornia_mvit.files import printable
from kornia_mvit.ops.seeds import combine_seed

__all__ = ["ShardBatches", "ShardLoader"]

_Read = tuple[
    list[dict[str, Any]], list[str], Stand
]  # a batch, what was skipped before it, and where its worker stands


class ShardBatches(IterableDataset[_Read]):
    """The batches of an epoch over shards, shared among processes and their workers.

    The shards are laid end to end, in training in an order sampled from seed and epoch. Each process takes an equal run
    of the samples, and each of its workers a run of that: whole shards, but for those at the ends of a run, which
    neighbours share, whatever the sizes of the shards. So that all processes have equally many batches, in training
    whole ones, what is over at the ends of the processes' runs is left out, less than a batch each; which samples
    these are differs from epoch to epoch. With ``drop_last=False`` training sees each sample, the last batch is
    smaller, and fewer samples than there are processes come twice. In evaluation each sample comes once and some
    batches are smaller, and where there are fewer samples than processes, or batches hold a single one, a few come
    twice, as in :class:`~kornia_mvit.data.loading.samplers.EpochBatchSampler`.

    Within a worker, training samples pass a buffer that gives out random ones. The order depends on seed, epoch, and
    the numbers of processes and workers alone.

    Where images are skipped, others of the same worker are repeated in training, so that the number of batches stays;
    in evaluation batches get smaller, and one of which nothing is left holds another image again. Labels that are
    missing or unknown are never skipped.

    Args:
        files: the shards.
        batch_size: images in a batch, on each process.
        train: whether to sample orders and leave out what does not fill a batch.
        drop_last: in training, whether to leave out what does not fill a batch on every process.
        seed: of the orders.
        shuffle_buffer: undecoded samples that each worker holds to choose from.
        scales: sizes to sample from for each batch, and the one that ``batch_size`` is for, as in
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
        drop_last: bool = True,
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
        self.on_error = on_error
        self.rank: int
        self.num_replicas: int
        self.rank, self.num_replicas = find_place(rank, num_replicas)
        if len(files) == 0 or (train and len(files) < self.num_replicas):
            raise DataError(f"{len(files)} samples in all shards are too few for {self.num_replicas} processes")
        # Evaluation goes by the sampler, which also checks the batch size; training by the plan.
        self._sampler = EpochBatchSampler(
            files, batch_size, repeat=False, num_replicas=self.num_replicas, rank=self.rank
        )
        self._cut = Cut(self.num_replicas, 1, batch_size, drop_last, shuffle_buffer)
        self._scales = scales
        self._resumed: tuple[int, tuple[Cut, ...]] = (0, ())  # an epoch, and how it was shared
        self._planned: tuple[Any, EpochPlan] | None = None
        # Workers that persist over epochs see these change: the epoch, and whether it is the one that is resumed.
        self._shared = torch.zeros(2, dtype=torch.int64)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]  # it has no types

    @property
    def epoch(self) -> int:
        """Number of the epoch, on which what is sampled depends."""
        return int(self._shared[0])

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        if epoch != self.epoch:
            self.restart()
        self._shared[0] = epoch

    @property
    def resumes(self) -> bool:
        """Whether this epoch goes on where another iteration stopped."""
        return bool(self._shared[1])

    def restart(self) -> None:
        """Start the epoch from scratch."""
        self._shared[1] = 0

    def resume(self, epoch: int, cuts: Sequence[Cut]) -> None:
        """Continue in an epoch that was shared as it is told, the last of it as it is now."""
        self._shared[0], self._shared[1] = epoch, 1
        self._resumed = (epoch, tuple(cuts))
        self._planned = None

    def cuts(self, workers: int) -> list[Cut]:
        """Return how this epoch was shared so far, and is now."""
        return list(self._resumed[1]) if self.resumes else [replace(self._cut, workers=workers)]

    def plan_epoch(self, workers: int = 1) -> EpochPlan:
        """Return the plan of this epoch of training, for a number of workers of each process."""
        key = (self.epoch, 0 if self.resumes else workers)
        if self._planned is None or self._planned[0] != key:
            counts = list(self.files.counts.values())
            plan = EpochPlan(counts, self.seed, self.epoch, self.cuts(workers), self._scales)
            self._planned = (key, plan)
        return self._planned[1]

    def lengths(self) -> list[int]:
        """Return the number of images in each batch of this process; in an epoch that was shared anew from there."""
        if self.train:
            lengths: list[int] = self.plan_epoch().lengths.tolist()
            return lengths
        return self._sampler.lengths()

    def __len__(self) -> int:
        """Number of batches of this process in the whole epoch, the same on all."""
        if self.train:
            plan = self.plan_epoch()
            return plan.before + len(plan.lengths)
        return len(self._sampler)

    @property
    def left_out(self) -> int:
        """Number of samples that no process sees in this epoch."""
        return self.plan_epoch().left_out if self.train else 0

    @property
    def repeated(self) -> int:
        """Number of samples that two processes see in this epoch of training."""
        return self.plan_epoch().repeated if self.train else 0

    def plan(self, worker: int = 0, workers: int = 1) -> tuple[list[int], list[ShardPiece]]:
        """Return the lengths of a worker's batches, and the runs of samples that it reads for them.

        Batches are asked of the workers in turn.
        """
        names = list(self.files.counts)
        if self.train:
            plan = self.plan_epoch(workers)
            pieces = [(names[shard], first, last) for shard, first, last in plan.pieces(self.rank, worker)]
            mine: list[int] = plan.lengths[worker::workers].tolist()
            return mine, pieces
        lengths = self.lengths()
        count, needed = len(self.files), sum(lengths)
        share, more = divmod(count, self.num_replicas)
        start = min(share * self.rank + min(self.rank, more), count - needed)
        start += sum(sum(lengths[before::workers]) for before in range(worker))
        mine = lengths[worker::workers]
        return mine, self.files.cut(start, start + sum(mine))

    def __iter__(self) -> Iterator[_Read]:
        """Yield the samples of each batch, the reasons for those that were skipped before it, and where this stands."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        taken = 0
        reader = ShardReader(self.files, self.on_error)
        if self.train:
            plan = self.plan_epoch(workers)
            taken = plan.cut.batches
            worker = (worker + taken) % workers  # whose turn it is
            reader = ShardReader(
                self.files,
                self.on_error,
                partial(plan.buffer, self.rank, worker),
                plan.stand(self.rank, worker),
            )
        lengths, pieces = self.plan(worker, workers)
        samples = reader.read_on(pieces) if self.train else reader.read(pieces)
        batch: list[dict[str, Any]] = []
        for length in lengths[len(range(worker, taken, workers)) :]:
            batch = list(islice(samples, length)) or batch[-1:] or list(islice(reader.read_on(pieces), 1))
            yield batch, reader.skipped.copy(), reader.stand
            reader.skipped.clear()


class _Epochs(Sampler[None]):
    """What Lightning tells the epoch; it asks for one batch after another."""

    def __init__(self, batches: ShardBatches) -> None:
        self.set_epoch = batches.set_epoch

    def __iter__(self) -> Iterator[None]:
        return repeat(None)


class ShardLoader(DataLoader[Batch]):
    """Batches that workers read from shards.

    It starts with the first batch, when the epoch is known, and nothing is sampled from PyTorch's own generator. Each
    image or shard that was skipped is told of in a warning, once, on the process that met it.

    An iteration starts the epoch from scratch, except the one after :meth:`load_state_dict`, which continues with the
    next batch. Batches that workers have loaded ahead do not count. What the shuffle buffers held is read again from
    the shards. Another number of processes or workers, another batch size or buffer shares the samples anew that no
    process has taken.

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
            collate_fn=cast(Any, partial(_collate, ignore_index=batches.files.ignore_index)),
            generator=torch.Generator(),
            **options,
        )
        object.__setattr__(self, "sampler", _Epochs(batches))  # DataLoader takes none for a stream
        self.skipped: list[str] = []
        self._batches = batches
        self._report = report
        self._workers = max(1, num_workers)
        self._cuts = batches.cuts(self._workers)
        self._stands: dict[int, Stand] = {}  # where workers stand
        self._resumes = False

    def __len__(self) -> int:
        """Number of batches, the same on every process."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader tells its iterator's class
        batches = self._batches
        if not self._resumes:
            batches.restart()
        self._resumes = False
        self._cuts = batches.cuts(self._workers)
        self._stands = {}
        if self._report is not None:
            for line in self._tell():
                self._report(line)
        self.generator.manual_seed(combine_seed(batches.seed, batches.rank, batches.epoch))
        for batch, skipped, stand in super().__iter__():
            for reason in skipped:
                if reason not in self.skipped:
                    self.skipped.append(reason)
                    warnings.warn(printable(f"skipped, as number {len(self.skipped)}: {reason}"), stacklevel=2)
            cut = self._cuts[-1]
            self._stands[cut.batches % self._workers] = stand
            self._cuts[-1] = replace(cut, batches=cut.batches + 1)
            yield batch

    def _tell(self) -> Iterator[str]:
        """Return what is to be said about how this epoch is shared."""
        batches = self._batches
        if not batches.train:
            return
        plan, epoch, count = batches.plan_epoch(self._workers), batches.epoch, len(batches.files)
        own = f"processes: {batches.num_replicas}, batches on each: {len(plan.lengths)}"
        if plan.before:
            ranks = self._cuts[-2].ranks
            yield (
                f"epoch {epoch}: resumes after {plan.before} batches, the last on {ranks} processes; the {plan.left} "
                f"samples that are left are shared anew ({own})"
            )
        if plan.left_out:
            yield (
                f"epoch {epoch}: {plan.left_out} of {count} samples left out, which do not make one more batch on "
                f"every process ({own})"
            )
        if plan.repeated:
            yield (
                f"epoch {epoch}: {plan.repeated} of {count} samples come twice, so that all processes have equally "
                f"many batches ({own})"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how it is shared, and how many of its batches this process has taken.

        Where samples were skipped, the states of the other processes are needed, too: see :meth:`merge_states`.
        """
        batches, cuts = self._batches, list(self._cuts)
        if not batches.train:
            return {"epoch": batches.epoch, "consumed": 0, "cuts": []}
        plan = batches.plan_epoch(self._workers)
        expected = [plan.count_taken(worker, cuts[-1].batches) for worker in range(self._workers)]
        before = [plan.stand(batches.rank, worker) for worker in range(self._workers)]
        stands = [self._stands.get(worker, stand) for worker, stand in enumerate(before)]
        if stands != [(0, count) for count in expected]:
            cuts[-1] = replace(cuts[-1], stands={batches.rank: stands})
        else:
            cuts[-1] = replace(cuts[-1], stands={})
        return {
            "epoch": batches.epoch,
            "consumed": sum(cut.batches for cut in cuts),
            "seed": batches.seed,
            "shards": _checksum(batches.files),
            "cuts": [cut.state_dict() for cut in cuts],
        }

    @staticmethod
    def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return one state of those of all processes, from which each of them resumes."""
        merged = dict(states[0])
        if merged["cuts"]:
            stands = {rank: own for state in states for rank, own in state["cuts"][-1]["stands"].items()}
            merged["cuts"] = [*merged["cuts"][:-1], {**merged["cuts"][-1], "stands": stands}]
        return merged

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batches that other loaders yielded, on as many processes or on another number of them.

        Raises:
            ValueError: if the shards hold other numbers of samples, or the seed is another one.
        """
        batches = self._batches
        epoch, cuts = int(state["epoch"]), [Cut.from_state(cut) for cut in state["cuts"]]
        batches.set_epoch(epoch)
        self._iterator = None  # workers that stay do not know of it
        if not cuts or not batches.train:
            return
        if (state["shards"], state["seed"]) != (_checksum(batches.files), batches.seed):
            raise ValueError(
                f"the epoch was begun with other shards or another seed ({state['seed']}) than this run has "
                f"({batches.seed}); give the same ones, or resume from the end of an epoch"
            )
        batches.resume(epoch, cuts)
        if batches.plan_epoch().is_finished:
            batches.restart()
            return
        batches.restart()
        own = batches.cuts(self._workers)[0]
        if not cuts[-1].is_like(own):
            cuts = [*(cuts if cuts[-1].batches else cuts[:-1]), own]
        batches.resume(epoch, cuts)
        self._cuts, self._stands, self._resumes = batches.cuts(self._workers), {}, True

    @property
    def was_shared_anew(self) -> bool:
        """Whether the rest of this epoch is shared in another way than its beginning."""
        return len(self._batches.cuts(self._workers)) > 1


def _checksum(files: ShardFiles) -> int:
    """Return a number that tells the sizes of shards from others; their names may change with their place."""
    return zlib.crc32(json.dumps(list(files.counts.values())).encode())


def _collate(read: _Read, ignore_index: int) -> tuple[Batch, list[str], Stand]:
    samples, skipped, stand = read
    return Batch.collate(samples, ignore_index=ignore_index), skipped, stand
