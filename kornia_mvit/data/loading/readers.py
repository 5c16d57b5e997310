"""Reading a worker's samples from shards, shuffled, and again from the place where another stopped."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import Any

from kornia_mvit.data.loading.plans import Stand
from kornia_mvit.data.loading.shards import ShardFiles, read_shard
from kornia_mvit.data.loading.shuffling import ShuffleBuffer
from kornia_mvit.data.loading.sources import is_address
from kornia_mvit.data.loading.targets import TargetError
from kornia_mvit.data.reading import DataError

__all__ = ["ShardPiece", "ShardReader"]

_AHEAD = 2  # shards that are fetched while one is read

ShardPiece = tuple[str, int, int]  # a shard, the first of its samples, and that after the last


class ShardReader:
    """Read a worker's samples, and gather what was skipped on the way.

    Args:
        files: the shards.
        on_error: ``'raise'`` stops at an image or shard that cannot be read, ``'skip'`` skips it.
        buffer: makes the shuffle buffer of a number of samples, for a time that they are read and a number of those
            that were taken of it; None reads in order.
        stand: where it starts: how often the samples were read, below 0 those of all shards, and how many were taken of
            the time that runs.
    """

    def __init__(
        self,
        files: ShardFiles,
        on_error: str,
        buffer: Callable[[int, Stand], ShuffleBuffer] | None = None,
        stand: Stand = (0, 0),
    ) -> None:
        self.files = files
        self.on_error = on_error
        self.stand: Stand = stand
        self.skipped: list[str] = []
        self._buffer = buffer

    def read_on(self, pieces: list[ShardPiece]) -> Iterator[dict[str, Any]]:
        """Read over and over; from all shards, if nothing in those of the worker can be read."""
        everything = self.files.cut(0, len(self.files))
        while True:
            number, taken = self.stand
            found = taken > 0
            for sample in self.read(pieces if number >= 0 else everything):
                found = True
                yield sample
            if not found and number < 0:
                raise DataError(f"no image in {len(self.files.counts)} shards can be read; {self.skipped[0]}")
            self.stand = (number + 1 if found and number >= 0 else min(number, 0) - 1, 0)

    def read(self, pieces: list[ShardPiece]) -> Iterator[dict[str, Any]]:
        """Read once; with a shuffle buffer what is left of the time that runs."""
        for sample in self._read_raw(pieces) if self._buffer is None else self._shuffled(pieces, self._buffer):
            if sample is None:
                continue
            try:
                decoded = self.files.decode(sample, self.files.target_of(sample))
            except TargetError:
                raise
            except DataError as error:
                self._skip(error)
            else:
                self.skipped += self.files.notes
                self.files.notes.clear()
                yield decoded

    def _shuffled(
        self, pieces: list[ShardPiece], make: Callable[[int, Stand], ShuffleBuffer]
    ) -> Iterator[dict[str, Any] | None]:
        """Return the samples as a shuffle buffer gives them out, and hold no more of them than it takes."""
        number, before = self.stand
        count = sum(last - first for _, first, last in pieces)
        buffer = make(count, self.stand)
        kept = sorted(buffer.slots)
        raw, numbers = self._read_raw(_pick(pieces, kept, buffer.read)), chain(kept, range(buffer.read, count))
        held: dict[int, dict[str, Any] | None] = {}
        for taken, chosen in enumerate(buffer, before + 1):
            while chosen not in held:
                held[next(numbers)] = next(raw)
            self.stand = (number, taken)
            yield held.pop(chosen)

    def _read_raw(self, pieces: list[ShardPiece]) -> Iterator[dict[str, Any] | None]:
        """Read the samples of pieces undecoded; None for one that cannot be read."""
        cache = self.files.cache
        groups = [
            (shard, [(first, last) for _, first, last in parts]) for shard, parts in groupby(pieces, itemgetter(0))
        ]
        for place, (shard, runs) in enumerate(groups):
            if cache is not None:
                ahead = groups[1 : _AHEAD + 1] if place == 0 else groups[place + _AHEAD : place + _AHEAD + 1]
                cache.fetch_ahead(name for name, _ in ahead if is_address(name))
            wanted, first = sum(stop - start for start, stop in runs), runs[0][0]
            try:
                for number, sample in enumerate(read_shard(shard, first, runs[-1][1], cache), first):
                    if number >= runs[0][1]:
                        del runs[0]
                    if number >= runs[0][0]:
                        wanted -= 1
                        yield sample
            except DataError as error:
                self._skip(error)
            yield from repeat(None, wanted)

    def _skip(self, error: DataError) -> None:
        if self.on_error == "raise":
            raise error
        self.skipped.append(str(error))


def _pick(pieces: list[ShardPiece], numbers: list[int], rest: int) -> list[ShardPiece]:
    """Return the parts of pieces with the samples of some numbers, in ascending order, and with all from one on."""
    picked: list[ShardPiece] = []
    begin = 0
    for shard, first, last in pieces:
        shift, end = first - begin, begin + last - first
        for number in numbers[bisect_left(numbers, begin) : bisect_left(numbers, end)]:
            place = number + shift
            if picked and (picked[-1][0], picked[-1][2]) == (shard, place):
                picked[-1] = (shard, picked[-1][1], place + 1)
            else:
                picked.append((shard, place, place + 1))
        if rest < end:
            picked.append((shard, max(rest, begin) + shift, last))
        begin = end
    return picked
