"""A shuffle buffer of numbers, whose state after any number of steps is computed, not stored."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kornia_mvit.ops.seeds import combine_seed

__all__ = ["ShuffleBuffer"]

_INITIAL = 100  # numbers that are held before the first is given out
_BLOCK = 4096  # random numbers made at once, from a seed of their own


class ShuffleBuffer(Iterator[int]):
    """The numbers 0 to ``count`` - 1 in a random order, as a buffer gives them out that reads them one after another.

    The buffer starts with up to 100 numbers and grows by one with each number that it gives out, until it has its size.
    What it gives out depends on count, size and seed alone. A buffer that resumes is computed in blocks, which is much
    faster than to repeat its steps.

    Args:
        count: how many numbers.
        size: how many the buffer holds at most.
        seed: of the random order.
        taken: how many were given out before.

    Attributes:
        slots: numbers that are held.
        read: how many numbers were read so far; the next one is this.

    Example:
        >>> whole = list(ShuffleBuffer(1000, 200, seed=3))
        >>> whole[600:] == list(ShuffleBuffer(1000, 200, seed=3, taken=600))
        True
    """

    def __init__(self, count: int, size: int, seed: int, taken: int = 0) -> None:
        self.count = count
        self.size = size
        self._seed = seed
        self._draws: NDArray[np.float64] = np.empty(0)
        initial = min(_INITIAL, size, count)
        growth = size - initial
        self._step = min(taken, _whole_steps(count, initial, growth))
        self.slots: list[int] = self._replay(initial, growth).tolist()
        self.read: int = initial + self._step + min(self._step, growth)
        while self._step < min(taken, count):  # the last ones, while the buffer gets empty
            next(self)

    def _replay(self, initial: int, growth: int) -> NDArray[np.int64]:
        """Return what is in the slots after the steps: of each slot the number that was last put into it."""
        slots = np.arange(min(initial + self._step, self.size), dtype=np.int64)
        slots[initial:] += slots[initial:] - initial + 1
        for first in range(0, self._step, _BLOCK):
            steps = np.arange(first, min(first + _BLOCK, self._step))
            held = np.minimum(initial + steps, self.size)
            chosen = (self._draw(first)[: len(steps)] * held).astype(np.int64)
            slots[chosen] = initial + steps + np.minimum(steps, growth)  # the last of those that share a slot stays
        return slots

    def _draw(self, first: int) -> NDArray[np.float64]:
        seed = combine_seed(self._seed, first // _BLOCK)
        return np.random.Generator(np.random.Philox(key=seed)).random(_BLOCK)

    def __next__(self) -> int:
        if not self.slots:
            raise StopIteration
        place = self._step % _BLOCK
        if place == 0 or not len(self._draws):
            self._draws = self._draw(self._step - place)
        chosen = int(self._draws[place] * len(self.slots))
        number = self.slots[chosen]
        if self.read < self.count:
            self.slots[chosen] = self.read
            self.read += 1
            if self.read < self.count and len(self.slots) < self.size:
                self.slots.append(self.read)
                self.read += 1
        else:
            self.slots[chosen] = self.slots[-1]
            self.slots.pop()
        self._step += 1
        return number


def _whole_steps(count: int, initial: int, growth: int) -> int:
    """Return after how many steps the first one comes for which there is too little left to read."""
    if count - initial >= 2 * growth:
        return count - initial - growth
    return (count - initial) // 2
