"""A loader that can resume in the middle of an epoch."""

import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kornia_mvit.batch import Batch
from kornia_mvit.data.loading.samplers import EpochBatchSampler
from kornia_mvit.ops.seeds import BATCH_PLACE, BatchPlace, combine_seed

__all__ = ["ResumableLoader"]

_OF_SAMPLERS = ("batch_size", "drop_last", "generator", "shuffle", "worker_init_fn")  # which the loader has its own of


class ResumableLoader(DataLoader[Batch]):
    """Batches of a sampler, counted as they are taken, so that a resumed run continues with the next.

    Batches that workers have loaded ahead do not count. Each iteration starts the epoch from scratch, except the one
    after :meth:`load_state_dict`. Workers start with the first batch, when the epoch is known, and PyTorch's global
    generator is not used. What an :class:`~kornia_mvit.AugmentationPipeline` in the dataset
    or the ``collate_fn`` samples for a batch depends on its seed and on the batch's rank, epoch and number, not on the
    workers: a resumed run samples the same.

    Args:
        dataset: samples by their number.
        sampler: which of them make a batch. Where Lightning builds another loader, to overfit or to predict, it passes
            a ``batch_sampler`` of its own instead; then the samples come in their order.
        num_workers: processes that load.
        collate_fn: makes a batch of samples.
        **options: further ones of :class:`torch.utils.data.DataLoader`.

    Example:
        >>> samples = [{"image": torch.zeros(3, 8, 8), "label": i} for i in range(6)]
        >>> loader = ResumableLoader(samples, EpochBatchSampler(samples, 2, shuffle=False))
        >>> first = next(iter(loader))
        >>> again = ResumableLoader(samples, EpochBatchSampler(samples, 2, shuffle=False))
        >>> again.load_state_dict(loader.state_dict())
        >>> [batch.label.tolist() for batch in again]
        [[2, 3], [4, 5]]
    """

    def __init__(
        self,
        dataset: Any,
        sampler: EpochBatchSampler | None = None,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[dict[str, Any]]], Batch] = Batch.collate,
        **options: Any,
    ) -> None:
        given = options.pop("batch_sampler", None)
        if sampler is None:
            options = {name: value for name, value in options.items() if name not in _OF_SAMPLERS}
            sampler = _in_order(dataset, given)
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_parent,
            **options,
        )
        # DataLoader would show a sequential sampler here, and Lightning take it for one that it has to replace.
        object.__setattr__(self, "sampler", sampler)
        self._samples = dataset
        self._batches = sampler
        self._state = {"epoch": sampler.epoch, "consumed": 0}
        self._start: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader tells its iterator's class
        sampler, start = self._batches, self._start
        self._start = None
        state = {"epoch": sampler.epoch, "consumed": 0}
        if start is None or start["epoch"] != sampler.epoch:
            start = state
        elif start["consumed"] >= len(sampler) and not sampler.was_shared_anew:
            start = state
        self._state = state
        state["consumed"] = start["consumed"]
        sampler.load_state_dict({**start, "position": start["consumed"]})
        self.generator.manual_seed(combine_seed(sampler.seed, sampler.rank, sampler.epoch))
        before = set(multiprocessing.active_children())
        batches = self._start_loading()
        _end_with_this_process(set(multiprocessing.active_children()) - before)
        while True:
            outside = BATCH_PLACE.get()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                BATCH_PLACE.set(outside)  # which is told here where no worker loads
            state["consumed"] += 1
            yield batch

    def _start_loading(self) -> Iterator[Batch]:
        """Iterate with samples and batches that know their place, which nobody else gets to see."""
        object.__setattr__(self, "dataset", _PlacedSamples(self._samples))
        object.__setattr__(self, "batch_sampler", _PlacedBatches(self._batches))
        try:
            return iter(super().__iter__())
        finally:
            object.__setattr__(self, "dataset", self._samples)
            object.__setattr__(self, "batch_sampler", self._batches)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of its batches that were taken, and how the epoch is shared."""
        return {**self._state, **self._batches.shared(self._state["consumed"])}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that another loader yielded, on as many processes or on another number of them."""
        self._start = {name: int(value) for name, value in state.items()}
        self._state = {name: self._start[name] for name in ("epoch", "consumed")}
        self._batches.load_state_dict({**self._start, "position": self._start["consumed"]})

    @property
    def was_shared_anew(self) -> bool:
        """Whether the rest of this epoch is shared among other processes, or in other batches, than its beginning."""
        return self._batches.was_shared_anew


def _in_order(dataset: Any, given: Any) -> EpochBatchSampler:
    """Return a sampler of the same batches in each epoch, as large as those of another."""
    given = getattr(given, "_batch_sampler", given)  # Lightning's, to predict, which gives each sample once
    if not isinstance(given, EpochBatchSampler):
        raise ValueError("a loader needs a sampler: an EpochBatchSampler")
    if given.drop_last:
        return EpochBatchSampler(dataset, given.batch_size, shuffle=False, drop_last=True)
    return EpochBatchSampler(dataset, given.batch_size, shuffle=False, repeat=False)


class _PlacedBatches:
    """A sampler's batches as pairs: rank, epoch and number of a batch, and the numbers of its samples."""

    def __init__(self, sampler: EpochBatchSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[tuple[BatchPlace, list[int]]]:
        for batch in self.sampler:
            yield (self.sampler.rank, self.sampler.epoch, self.sampler.position), batch

    def __len__(self) -> int:
        return len(self.sampler)


class _PlacedSamples(Dataset[Any]):
    """Samples of batches that know their place, which holds until the next one is loaded."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __getitems__(self, batch: tuple[BatchPlace, list[int]]) -> list[Any]:
        place, numbers = batch
        BATCH_PLACE.set(place)
        if hasattr(self.samples, "__getitems__"):
            return list(self.samples.__getitems__(numbers))
        return [self.samples[number] for number in numbers]


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore the signals that a terminal or a scheduler sends to all processes: the main process decides when to stop.

    The worker ends when its parent asks it to, or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


_WORKERS: "weakref.WeakSet[BaseProcess]" = weakref.WeakSet()
_OWNER: list[int] = []  # number of the process whose workers these are


def _end_with_this_process(workers: set[BaseProcess]) -> None:
    """Have workers killed when this process ends and has not yet done with them, as after an error.

    Python asks them by SIGTERM, which they ignore, and would wait for ever.
    """
    if _OWNER != [os.getpid()]:  # a fork inherits both
        _OWNER[:] = [os.getpid()]
        _WORKERS.clear()
        Finalize(None, _kill_workers, exitpriority=10)
    _WORKERS.update(worker for worker in workers if worker.daemon)


def _kill_workers() -> None:
    for worker in list(_WORKERS):
        if worker.is_alive():
            worker.kill()
