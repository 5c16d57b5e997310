"""Locks for what threads share."""

import os
import threading
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["lock_of", "shared_lock"]


def shared_lock() -> "threading.RLock":
    """Return a lock for a module's own use, which a process that is forked finds open."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):  # not on Windows, where no process is forked
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


_FINDING = shared_lock()
_LOCKS: "WeakKeyDictionary[nn.Module, threading.RLock]" = WeakKeyDictionary()


def lock_of(module: nn.Module) -> "threading.RLock":
    """Return the lock of a module: the same for all threads, and for all pipelines that hold the module."""
    with _FINDING:
        return _LOCKS.setdefault(module, threading.RLock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_LOCKS.clear)  # another thread may have held one
