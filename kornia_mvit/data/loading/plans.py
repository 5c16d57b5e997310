"""Who reads which samples of an epoch over shards: arithmetic alone, also where an interrupted epoch is shared anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kornia_mvit.data.loading.samplers import multiscale_lengths
from kornia_mvit.data.loading.shuffling import ShuffleBuffer
from kornia_mvit.ops.seeds import combine_seed

__all__ = ["Cut", "EpochPlan", "Piece", "Runs", "Scales", "Stand"]

Scales = tuple[tuple[tuple[int, int], ...], tuple[int, int]]
Piece = tuple[int, int, int]  # number of a shard, the first of its samples, and that after the last
Stand = tuple[int, int]  # how often a worker has read its samples, and how many it took of the time that runs
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """How an epoch, or what is left of it, is shared, and how far the processes have come.

    Args:
        ranks: number of processes.
        workers: number of workers of each.
        batch_size: samples in a batch, on each process.
        drop_last: whether samples that do not fill a batch on every process are left out.
        buffer: size of the shuffle buffer of each worker.
        batches: batches that each process has taken.
        stands: where the workers of a rank stand, if it skipped samples; otherwise this follows from the batches.
    """

    ranks: int
    workers: int
    batch_size: int
    drop_last: bool
    buffer: int
    batches: int = 0
    stands: Mapping[int, Sequence[Stand]] = field(default_factory=dict)

    def is_like(self, other: "Cut") -> bool:
        """Return whether both share an epoch in the same way."""
        return replace(self, batches=0, stands={}) == replace(other, batches=0, stands={})

    def state_dict(self) -> dict[str, Any]:
        """Return plain data, from which :meth:`from_state` makes the same."""
        own = {name: getattr(self, name) for name in _COUNTS}
        return own | {"drop_last": self.drop_last, "stands": {k: [list(s) for s in v] for k, v in self.stands.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Cut":
        """Read plain data.

        Raises:
            ValueError: if it is not what :meth:`state_dict` returns.
        """
        stands = {rank: [tuple(stand) for stand in own] for rank, own in state["stands"].items()}
        counts = {name: state[name] for name in _COUNTS}
        pairs = [pair for own in stands.values() for pair in own]
        whole = all(type(number) is int for pair in pairs for number in pair) and all(len(pair) == 2 for pair in pairs)
        good = all(type(count) is int and count >= (name != "batches") for name, count in counts.items())
        if not whole or not good or not all(len(own) == counts["workers"] for own in stands.values()):
            raise ValueError(f"{counts} is not how an epoch of shards is shared")
        return cls(**counts, drop_last=bool(state["drop_last"]), stands=stands)


_COUNTS = ("ranks", "workers", "batch_size", "buffer", "batches")


class Runs:
    """Places in ascending order, as runs of neighbours.

    Args:
        starts: the first place of each run.
        stops: the place after the last of each.

    Example:
        >>> Runs([0, 10], [3, 15]).part(2, 5)
        [(2, 3), (10, 12)]
    """

    def __init__(self, starts: Any, stops: Any) -> None:
        self.starts: Numbers = np.asarray(starts, dtype=np.int64)
        self.stops: Numbers = np.asarray(stops, dtype=np.int64)
        self._ends = np.cumsum(self.stops - self.starts)
        self._begins = self._ends - (self.stops - self.starts)

    def __len__(self) -> int:
        """Number of places."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def part(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the runs of a part of the places, by their number among them."""
        starts, stops = self._map(np.array([first]), np.array([last]))
        return list(zip(starts.tolist(), stops.tolist(), strict=True))

    def without(self, starts: Numbers, stops: Numbers) -> "Runs":
        """Return the places less some, which are given as runs of their numbers among them, in any order."""
        order = np.argsort(starts, kind="stable")
        ends = np.maximum.accumulate(np.concatenate(([0], stops[order])))
        begins = np.concatenate((starts[order], [len(self)]))
        kept = ends < begins
        return Runs(*self._map(ends[kept], begins[kept]))

    def _map(self, starts: Numbers, stops: Numbers) -> tuple[Numbers, Numbers]:
        """Return the places of numbers, both as runs; those given do not overlap."""
        begins, ends = _split(starts, stops, self._begins)
        run = np.searchsorted(self._ends, begins, side="right")
        shift = self.starts[run] - self._begins[run]
        return begins + shift, ends + shift


def _split(starts: Numbers, stops: Numbers, borders: Numbers) -> tuple[Numbers, Numbers]:
    """Return runs, which are in order and do not overlap, cut at the borders within them."""
    if not len(starts):
        return starts, stops
    between = slice(np.searchsorted(borders, starts[0]), np.searchsorted(borders, stops[-1]))
    edges = np.sort(np.concatenate((starts, stops, borders[between])), kind="stable")  # which merges what is in order
    edges = edges[np.append(True, edges[1:] != edges[:-1])]
    begins, ends = edges[:-1], edges[1:]
    within = np.searchsorted(starts, begins, side="right") > np.searchsorted(stops, begins, side="right")
    return begins[within], ends[within]


class EpochPlan:
    """The batches of an epoch over shards, and who reads which samples for them.

    The shards are laid end to end, in an order sampled from seed and epoch. Each process takes an equal run of that,
    and each of its workers a run of the process's. Where an epoch was interrupted and another number of processes or
    workers resumes it, what no process took by then, the content of the shuffle buffers included, is laid end to end
    and shared anew.

    Args:
        counts: number of samples of each shard.
        seed: of the orders.
        epoch: number of the epoch.
        cuts: how it was shared so far, and is now, in the order of time.
        scales: sizes to sample from for each batch, and the one that ``batch_size`` is for.

    Attributes:
        before: batches of each process before the last cut.

    Example:
        >>> plan = EpochPlan([5, 9, 7], seed=0, epoch=0, cuts=[Cut(2, 1, 3, True, buffer=10)])
        >>> plan.lengths.tolist(), plan.left_out
        ([3, 3, 3], 3)
    """

    def __init__(
        self, counts: Sequence[int] | Numbers, seed: int, epoch: int, cuts: Sequence[Cut], scales: Scales | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(combine_seed(seed, epoch))
        self._order: Numbers = torch.randperm(len(counts), generator=generator).numpy()
        self._begins = np.concatenate(([0], np.cumsum(np.asarray(counts, dtype=np.int64)[self._order])))
        self._seeds = (seed, epoch)
        self._scales = scales
        self.before: int = 0
        self._number = 0
        self._left = Runs([0], [self._begins[-1]])
        self.cut: Cut = cuts[0]
        for cut in cuts[1:]:
            self._left = self._remainder()
            self.before += self.cut.batches
            self._number += 1
            self.cut = cut
            for name in ("lengths", "_sums"):
                self.__dict__.pop(name, None)

    @cached_property
    def lengths(self) -> Numbers:
        """Number of samples in each batch of the last cut, the same on every process."""
        cut, (seed, epoch) = self.cut, self._seeds
        whole = len(self._left) // cut.ranks if cut.drop_last else -(-len(self._left) // cut.ranks)
        if self._scales is not None:
            sizes, base = self._scales
            pixels = cut.batch_size * base[0] * base[1]
            return np.array(
                multiscale_lengths(whole, pixels, sizes, (seed, epoch), self.before, drop_last=cut.drop_last), np.int64
            )
        count, rest = divmod(whole, cut.batch_size)
        lengths = np.full(count, cut.batch_size, np.int64)
        alone = count == 0 and self.before == 0
        return np.append(lengths, rest) if rest and (alone or not cut.drop_last) else lengths

    @property
    def left_out(self) -> int:
        """Number of samples that no process sees in this epoch."""
        return max(0, len(self._left) - self.cut.ranks * int(self.lengths.sum()))

    @property
    def repeated(self) -> int:
        """Number of samples that two processes see in the last cut, so that all have equally many batches."""
        return max(0, self.cut.ranks * int(self.lengths.sum()) - len(self._left))

    def share(self, rank: int, worker: int) -> tuple[int, int]:
        """Return the number of a worker's first sample, and of that after its last, among those of the last cut."""
        start = self._start(rank) + sum(self._sums[:worker])
        return start, start + self._sums[worker]

    @cached_property
    def _sums(self) -> list[int]:
        """Number of samples of each worker of a process."""
        return [int(self.lengths[worker :: self.cut.workers].sum()) for worker in range(self.cut.workers)]

    def _start(self, rank: int) -> int:
        count, ranks, needed = len(self._left), self.cut.ranks, int(self.lengths.sum())
        if not self.cut.drop_last:
            return max(0, min(rank * count // ranks, count - needed))
        share, more = divmod(count, ranks)
        start, own = share * rank + min(rank, more), share + (rank < more)
        start += combine_seed(*self._seeds, rank, *self._of_cut) % max(1, own - needed + 1)
        return min(start, count - needed)

    @property
    def _of_cut(self) -> list[int]:
        return [self._number] if self._number else []

    def pieces(self, rank: int, worker: int) -> list[Piece]:
        """Return the runs of samples within shards that a worker reads, in their order."""
        return self.cut_shards(self._left.part(*self.share(rank, worker)))

    def cut_shards(self, runs: Sequence[tuple[int, int]]) -> list[Piece]:
        """Return runs of places in the epoch's order as runs of samples within shards."""
        bounds = np.array(runs, dtype=np.int64).reshape(-1, 2)
        starts, stops = _split(bounds[:, 0], bounds[:, 1], self._begins)
        places = np.searchsorted(self._begins, starts, side="right") - 1
        begins = self._begins[places]
        columns = (self._order[places], starts - begins, stops - begins)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def buffer(self, rank: int, worker: int, count: int, stand: Stand) -> ShuffleBuffer:
        """Return the shuffle buffer of a worker for a number of samples, where it stands."""
        number, taken = stand
        again = [number] if number else []
        seed = combine_seed(*self._seeds, rank, worker, *self._of_cut, *again)
        return ShuffleBuffer(count, self.cut.buffer, seed, taken)

    @property
    def left(self) -> int:
        """Number of samples that the last cut shares."""
        return len(self._left)

    @property
    def is_finished(self) -> bool:
        """Whether all batches are taken."""
        return self.cut.batches >= len(self.lengths)

    def count_taken(self, worker: int, batches: int) -> int:
        """Return how many samples a worker has in the first batches of its process."""
        return int(self.lengths[worker : batches : self.cut.workers].sum())

    def stand(self, rank: int, worker: int) -> Stand:
        """Return how often a worker has read its samples, and how many it took of the time that runs."""
        if rank in self.cut.stands:
            number, taken = self.cut.stands[rank][worker]
            return number, taken
        return 0, self.count_taken(worker, self.cut.batches)

    def _remainder(self) -> Runs:
        """Return what no process has taken when the cut ended."""
        starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for rank in range(self.cut.ranks):
            for worker in range(self.cut.workers):
                first, last = self.share(rank, worker)
                number, taken = self.stand(rank, worker)
                held, read = np.empty(0, np.int64), last - first
                if number == 0:
                    buffer = self.buffer(rank, worker, last - first, (number, taken))
                    held, read = np.sort(np.array(buffer.slots, np.int64)), buffer.read
                if read:
                    begins, ends = np.concatenate(([0], held + 1)), np.concatenate((held, [read]))
                    starts.append(first + begins[begins < ends])
                    stops.append(first + ends[begins < ends])
        return self._left.without(np.concatenate(starts), np.concatenate(stops))
