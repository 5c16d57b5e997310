"""Memory that a training step gives back, kept for the next one: settings of glibc's malloc.

glibc takes memory of more than 32 MiB from the system each time it is asked for, and gives it back at once. The system
clears it page by page as it is written, which is up to a quarter of a training step on a CPU.

References:
    - mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html: the settings, their numbers and defaults.
"""

import ctypes
import os
import platform
from functools import cache
from threading import Event

__all__ = ["keep_freed_memory", "release_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
MOST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc's own threshold rises as far as this by itself, as memory is freed
VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Keep the memory that this process frees, for what it asks for next.

    The process stays as large as it was at its largest. Processes that it forks, such as those that read data, give
    memory back as ever.

    Returns:
        Whether malloc is glibc's and does so. It is left as it is where the environment has settings for it.
    """
    if not _is_settable():
        return False
    _release_in_children()
    _kept.set()
    return _set({MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1})


def release_freed_memory() -> bool:
    """Give freed memory back to the system again, as glibc does once large pieces of it were freed.

    Returns:
        Whether it does so; false where nothing was kept.
    """
    if not _kept.is_set():
        return False
    _kept.clear()
    done = _set({MMAP_MAX: 65536, MMAP_THRESHOLD: MOST_MMAP_THRESHOLD, TRIM_THRESHOLD: 2 * MOST_MMAP_THRESHOLD})
    ctypes.CDLL(None).malloc_trim(0)
    return done


_kept = Event()  # whether memory is kept


@cache
def _release_in_children() -> None:
    os.register_at_fork(after_in_child=release_freed_memory)  # for ever, and so once


def _is_settable() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    is_set = "glibc.malloc" in tunables or any(name in os.environ for name in VARIABLES)
    return platform.libc_ver()[0] == "glibc" and not is_set


def _set(values: dict[int, int]) -> bool:
    """Set each value, and return whether malloc took all."""
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) == 1 for name, value in values.items()])
