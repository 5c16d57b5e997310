"""Which images are in which batch: a new order in each epoch, shared among processes, resumed where a run stopped."""

from collections.abc import Iterator, Sequence, Sized
from itertools import accumulate
from typing import Any, cast

import torch
from torch.utils.data import Dataset, DistributedSampler

from kornia_mvit.ops.seeds import combine_seed, multiscale_size, multiscale_sizes

__all__ = ["EpochBatchSampler", "MultiScaleBatchSampler", "find_place", "multiscale_lengths"]


def find_place(rank: int | None = None, num_replicas: int | None = None) -> tuple[int, int]:
    """Return the number of this process and the number of processes, those of the distributed run where they are None.

    Raises:
        ValueError: for a rank that is not among the processes.
    """
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_replicas is None:
        num_replicas = torch.distributed.get_world_size() if joined else 1
    if rank is None:
        rank = torch.distributed.get_rank() if joined else 0
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank {rank} is not among {num_replicas} processes, counted from 0")
    return rank, num_replicas


class EpochBatchSampler(DistributedSampler[list[int]]):
    """Batches in an order that depends on seed and epoch alone, each process's own share of them.

    All processes have equally many batches. In training every share is as long, and fewer images than there are
    processes are seen twice where they do not divide evenly. With ``repeat=False``, as evaluation needs, each image
    comes once and some batches are smaller; where batches hold a single image there is nothing to make smaller, and
    images are repeated as in training.

    Lightning takes it as it is, since it is a ``DistributedSampler``, and begins its epochs.

    A state that another number of processes or another batch size has left is resumed, too, but with ``repeat=False``:
    the images that no process has taken by then are shared anew, in the order of the epoch.

    Args:
        data: what is sampled from; its length counts.
        batch_size: images in a batch, on each process.
        seed: of the order.
        shuffle: whether each epoch has a new random order.
        drop_last: leave out an incomplete last batch, unless it is the only one.
        repeat: whether a few images are repeated so that every share is as long.
        num_replicas: number of processes; that of the distributed run when None.
        rank: number of this process; that in the distributed run when None.

    Raises:
        ValueError: for a batch size below one, a rank that is not among the processes, or ``drop_last`` together with
            ``repeat=False``.

    Example:
        >>> list(EpochBatchSampler(range(5), 2, shuffle=False))
        [[0, 1], [2, 3], [4]]
    """

    epoch: int

    def __init__(
        self,
        data: Sized,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        repeat: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        rank, num_replicas = find_place(rank, num_replicas)
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is not at least one")
        if drop_last and not repeat:
            raise ValueError("drop_last leaves images out, but with repeat=False each comes once; give one of them")
        super().__init__(cast("Dataset[Any]", data), num_replicas, rank, shuffle, seed, drop_last)
        self.batch_size = batch_size
        self.repeat = repeat
        self.position: int = 0
        self._start: int | None = None  # the batch that the next iteration starts with, where it resumes
        self._before = 0  # batches of each process before the images that were left were shared anew
        self._base = 0  # images in them, on all processes

    def __len__(self) -> int:
        """Number of batches of the whole epoch, the same on every process."""
        return self._before + len(self._bounds())

    def __iter__(self) -> Iterator[list[int]]:
        start, self._start = self._start, None
        if start is None:
            start = self._before = self._base = 0
        order = torch.arange(len(cast(Sized, self.dataset)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(combine_seed(self.seed, self.epoch))
            order = torch.randperm(len(order), generator=generator)
        order = order[self._base :]
        bounds = self._bounds()
        places = torch.arange(self.rank, self._share * self.num_replicas, self.num_replicas)
        own = order[places % max(1, self._count)]
        for number, (first, last) in enumerate(bounds[start - self._before :], start + 1):
            self.position = number
            yield own[first:last].tolist()
        self.position = 0

    def lengths(self) -> list[int]:
        """Return the number of images in each batch, on this process; in an epoch that was shared anew from there."""
        return [last - first for first, last in self._bounds()]

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, on whose number the order depends."""
        if epoch != self.epoch:
            self.epoch, self.position, self._start, self._before, self._base = epoch, 0, None, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the number of batches yielded so far, and how the epoch is shared."""
        return {"epoch": self.epoch, "position": self.position, **self.shared(self.position)}

    def shared(self, position: int) -> dict[str, int]:
        """Return how the epoch is shared, and how many images all processes took in a number of batches."""
        bounds = self._bounds()[: max(0, position - self._before)]
        taken = bounds[-1][1] * self.num_replicas if bounds else 0
        return {
            "ranks": self.num_replicas,
            "batch_size": self.batch_size,
            "before": self._before,
            "base": self._base,
            "taken": self._base + min(taken, self._count),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where another sampler stopped: the next iteration yields the remaining batches."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._start = self.position
        self._before = self._base = 0
        if "ranks" not in state or not self.repeat:  # those of older versions have no more than the position
            return
        if (state["ranks"], state["batch_size"]) == (self.num_replicas, self.batch_size):
            self._before, self._base = int(state["before"]), int(state["base"])
        else:
            self._before, self._base = self.position, int(state["taken"])
        if not 0 <= self._base <= len(cast(Sized, self.dataset)) or not 0 <= self._before <= self.position:
            raise ValueError(
                f"{self._base} of {len(cast(Sized, self.dataset))} images were taken in {self._before} batches; the "
                "images are other ones than those of the checkpoint"
            )

    @property
    def was_shared_anew(self) -> bool:
        """Whether the rest of this epoch is shared among other processes, or in other batches, than its beginning."""
        return self._before > 0

    @property
    def _count(self) -> int:
        """Number of images that are shared."""
        return len(cast(Sized, self.dataset)) - self._base

    @property
    def _share(self) -> int:
        """Length of the longest share."""
        return -(-self._count // self.num_replicas)

    def _bounds(self) -> list[tuple[int, int]]:
        """Return first and last place of each batch in a process's share."""
        size, whole = self.batch_size, self._share
        batches = -(-whole // size)
        if self.drop_last and (whole >= size or self._before):
            batches = whole // size
        own = len(range(self.rank, self._count, self.num_replicas))
        if self.repeat or own == whole or own < batches:
            return [(i * size, min((i + 1) * size, whole)) for i in range(batches)]
        return [(i * own // batches, (i + 1) * own // batches) for i in range(batches)]


class MultiScaleBatchSampler(EpochBatchSampler):
    """Batches of a random image size each, with more images where the size is small.

    Height times width times images stays about constant. An :class:`~kornia_mvit.AugmentationPipeline` with the same
    ``multi_scale`` sizes and seed samples the same size for each batch, and resizes on the device. All processes of a
    distributed run sample the same sizes and share the images, so each has as many batches; a few images are repeated
    where they do not divide evenly.

    Args:
        data: what is sampled from; its length counts.
        batch_size: images in a batch of the base size, on each process.
        sizes: heights and widths to sample from, in pixels; Apple's when None.
        base: height and width for which ``batch_size`` holds, in pixels.
        seed: of order and sizes.
        shuffle: whether each epoch has a new random order.
        drop_last: leave out an incomplete last batch, unless it is the only one.
        num_replicas: number of processes; that of the distributed run when None.
        rank: number of this process; that in the distributed run when None.

    Raises:
        ValueError: for a batch size below one, no sizes, or a rank that is not among the processes.

    References:
        S. Mehta, M. Rastegari: MobileViT, section 3.1. https://arxiv.org/abs/2110.02178

    Example:
        >>> sampler = MultiScaleBatchSampler(range(100), 16)
        >>> sum(len(batch) for batch in sampler)
        100
    """

    def __init__(
        self,
        data: Sized,
        batch_size: int,
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        base: tuple[int, int] = (256, 256),
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(
            data, batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, num_replicas=num_replicas, rank=rank
        )
        self.sizes: tuple[tuple[int, int], ...] = multiscale_sizes() if sizes is None else tuple(sizes)
        if not self.sizes:
            raise ValueError("no sizes to sample from; give at least one height and width")
        self.base = base

    def size_of(self, step: int) -> tuple[int, int]:
        """Return height and width of a batch of the epoch, counted from 0."""
        return multiscale_size(self.sizes, self.seed, self.epoch, step)

    def _bounds(self) -> list[tuple[int, int]]:
        pixels = self.batch_size * self.base[0] * self.base[1]
        place = (self.seed, self.epoch)
        lengths = multiscale_lengths(self._share, pixels, self.sizes, place, self._before, drop_last=self.drop_last)
        lasts = list(accumulate(lengths))
        return list(zip([0, *lasts], lasts, strict=False))


def multiscale_lengths(
    count: int,
    pixels: int,
    sizes: Sequence[tuple[int, int]],
    place: tuple[int, int],
    first: int = 0,
    *,
    drop_last: bool = False,
) -> list[int]:
    """Return how many images each batch has, where each has a random size.

    Args:
        count: images in all batches.
        pixels: of all images in a batch, about.
        sizes: heights and widths to sample from, in pixels.
        place: the seed and the epoch.
        first: number of the first batch within the epoch.
        drop_last: leave out an incomplete last batch, unless it is the only one of the epoch.

    Example:
        >>> multiscale_lengths(10, 4 * 32 * 32, [(32, 32)], (0, 0))
        [4, 4, 2]
    """
    lengths: list[int] = []
    while count > 0:
        height, width = multiscale_size(sizes, *place, first + len(lengths))
        wanted = max(1, round(pixels / (height * width)))
        if drop_last and wanted > count and first + len(lengths):
            break
        lengths.append(min(wanted, count))
        count -= lengths[-1]
    return lengths
