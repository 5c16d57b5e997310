"""Seeds made from counters, and what is drawn from them alike on every process."""

import operator
from collections.abc import Sequence
from contextvars import ContextVar
from typing import SupportsIndex

__all__ = ["BATCH_PLACE", "BatchPlace", "combine_seed", "multiscale_size", "multiscale_sizes"]

_MASK = (1 << 64) - 1

BatchPlace = tuple[int, int, int]

# Rank, epoch and number of the batch that is being loaded in this thread, where its loader tells it: what is drawn
# meanwhile depends on them, whichever process loads it. Each batch has a tuple of its own.
BATCH_PLACE: ContextVar[BatchPlace | None] = ContextVar("BATCH_PLACE", default=None)


def combine_seed(*numbers: SupportsIndex) -> int:
    """Make one well-mixed seed of any integers; each order and count of them gives another.

    Returns:
        An integer in [0, 2**63), which ``torch.manual_seed`` takes.

    Raises:
        TypeError: for what is no integer; those of NumPy and tensors of one integer are.

    References:
        G. Steele, D. Lea, C. Flood: Fast splittable pseudorandom number generators, OOPSLA 2014 (the finaliser).

    Example:
        >>> combine_seed(0, 1) != combine_seed(1, 0) != combine_seed(1)
        True
    """
    state = len(numbers)
    for number in numbers:
        try:
            whole = operator.index(number)
        except TypeError:
            raise TypeError(f"seed {number!r} is a {type(number).__name__}, not an integer") from None
        state = _finalise((state + 0x9E3779B97F4A7C15 + (whole & _MASK)) & _MASK)
    return state >> 1


def _finalise(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def multiscale_sizes(
    low: int = 160, high: int = 320, count: int = 5, multiple: int = 32
) -> tuple[tuple[int, int], ...]:
    """List the sizes that a multi-scale run draws from: every pair of ``count`` lengths between two.

    Args:
        low: smallest height and width in pixels.
        high: largest height and width in pixels.
        count: number of lengths, evenly spread and rounded to multiples.
        multiple: what every length is a multiple of.

    Returns:
        Heights and widths, at most ``count`` squared.

    Raises:
        ValueError: if the range is not ascending, or holds no multiple.

    References:
        S. Mehta, M. Rastegari: MobileViT, section 3.1, multi-scale sampler. https://arxiv.org/abs/2110.02178

    Example:
        >>> sorted({height for height, _ in multiscale_sizes()})
        [160, 192, 256, 288, 320]
    """
    if not 0 < low <= high or count < 1 or multiple < 1:
        raise ValueError(f"low {low}, high {high}, count {count}, multiple {multiple}: not an ascending range of sizes")
    steps = [low + (high - low) * i / max(1, count - 1) for i in range(count)]
    lengths = sorted({max(multiple, round(step / multiple) * multiple) for step in steps})
    return tuple((height, width) for height in lengths for width in lengths)


def multiscale_size(sizes: Sequence[tuple[int, int]], seed: int, epoch: int, step: int) -> tuple[int, int]:
    """Choose one of the sizes for a step: the same on every process, whatever its rank.

    Example:
        >>> multiscale_size([(160, 160), (192, 256)], seed=0, epoch=0, step=3) in [(160, 160), (192, 256)]
        True
    """
    return sizes[combine_seed(0x5CA1E, seed, epoch, step) % len(sizes)]
