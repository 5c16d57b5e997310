"""Times that can be compared."""

import math
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["time_in_turn"]


def time_in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int = 10, *, seconds: float = math.inf, warmup: int = 2
) -> dict[str, list[float]]:
    """Time things in turn, so that what slows the machine down slows all of them.

    Args:
        runs: what to call, by name.
        rounds: calls of each that are timed.
        seconds: after which no further round begins, once there have been three.
        warmup: calls of each before.

    Returns:
        The seconds of each call, an accelerator's work included.

    Example:
        >>> times = time_in_turn({"sum": lambda: sum(range(10)), "max": lambda: max(range(10))}, rounds=4)
        >>> {name: len(taken) for name, taken in times.items()}
        {'sum': 4, 'max': 4}
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warmup):
        for run in runs.values():
            run()
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name, run in runs.items():
            _wait()
            began = time.perf_counter()
            run()
            _wait()
            times[name].append(time.perf_counter() - began)
    return times


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
