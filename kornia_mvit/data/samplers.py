"""Batches of one size each, drawn anew for every batch."""

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from torch.utils.data import Sampler

from kornia_mvit.ops.seeds import combine_seed, multiscale_size, multiscale_sizes

__all__ = ["MultiScaleBatchSampler"]


class MultiScaleBatchSampler(Sampler[list[int]]):
    """Batches whose images are to be brought to a size drawn for each, with more of them where it is small.

    Height times width times images stays about constant. An :class:`~kornia_mvit.AugmentationPipeline` with the same
    ``multi_scale`` sizes and seed draws the same size for each batch, and resizes on the device. All processes of a
    distributed run draw the same sizes and share the images, so each has as many batches; a few images are repeated
    where they do not divide evenly. Give Lightning's trainer ``use_distributed_sampler=False``, since it would put a
    sampler of its own in place of this one.

    Args:
        data: what is sampled from; its length counts.
        batch_size: images in a batch of the base size, on each process.
        sizes: heights and widths to draw from, in pixels; Apple's when None.
        base: height and width for which ``batch_size`` holds, in pixels.
        seed: of order and sizes.
        shuffle: whether to draw the order anew in each epoch.
        drop_last: leave out an incomplete last batch.
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
        joined = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if joined else 1
        if rank is None:
            rank = torch.distributed.get_rank() if joined else 0
        if batch_size < 1 or not 0 <= rank < num_replicas:
            raise ValueError(
                f"batch_size {batch_size} is not at least one, or rank {rank} not among {num_replicas} processes"
            )
        self.sizes = multiscale_sizes() if sizes is None else tuple(sizes)
        if not self.sizes:
            raise ValueError("no sizes to draw from; give at least one height and width")
        self.data = data
        self.batch_size = batch_size
        self.base = base
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self.position = 0

    def size_of(self, step: int) -> tuple[int, int]:
        """Give height and width of a batch of the epoch, counted from 0."""
        return multiscale_size(self.sizes, self.seed, self.epoch, step)

    def __len__(self) -> int:
        """Number of batches of the whole epoch, the same on every process."""
        return len(self._bounds())

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(len(self.data))
        if self.shuffle:
            generator = torch.Generator().manual_seed(combine_seed(self.seed, self.epoch))
            order = torch.randperm(len(self.data), generator=generator)
        share = -(-len(order) // self.num_replicas)
        places = torch.arange(self.rank, share * self.num_replicas, self.num_replicas)
        own = order[places % max(1, len(order))]
        bounds = self._bounds()
        while self.position < len(bounds):
            first, last = bounds[self.position]
            self.position += 1
            yield own[first:last].tolist()
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: its order and sizes depend on its number."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Give epoch and number of batches given so far."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another sampler stopped: the next iteration gives the remaining batches."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _bounds(self) -> list[tuple[int, int]]:
        """Give first and last place of each batch in a process's share."""
        count = -(-len(self.data) // self.num_replicas)
        pixels = self.batch_size * self.base[0] * self.base[1]
        bounds: list[tuple[int, int]] = []
        first = 0
        while first < count:
            height, width = self.size_of(len(bounds))
            wanted = max(1, round(pixels / (height * width)))
            if self.drop_last and first + wanted > count:
                break
            bounds.append((first, min(first + wanted, count)))
            first += wanted
        return bounds
