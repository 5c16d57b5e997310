"""Random numbers that depend on a seed alone, and leave PyTorch's own generators as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor
from torch.utils.data import get_worker_info

from kornia_mvit.ops.seeds import combine_seed

__all__ = ["SeedCounter", "isolated_generators", "seed_generators"]


@contextmanager
def isolated_generators(device: torch.device) -> Iterator[None]:
    """Put the global generators of the CPU and of a device back to where they were at the end."""
    generators = _generators(device)
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of a device; for use inside :func:`isolated_generators`."""
    for generator in _generators(device):
        generator.manual_seed(seed)


def _generators(device: torch.device) -> list[Generator]:
    if device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]  # PyTorch has it untyped
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


class SeedCounter:
    """Seeds for the draws of a run, one after another: each of its own rank, loader worker, epoch and step.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed: int = seed
        self.epoch: int = 0
        self.step: int = 0

    def next(self) -> int:
        """Give the seed of the next draw."""
        worker = get_worker_info()
        step, self.step = self.step, self.step + 1
        return combine_seed(self.seed, current_rank(), 0 if worker is None else worker.id + 1, self.epoch, step)

    def state(self) -> Tensor:
        """Give seed, epoch and step: (3,), int64. The rank is asked for at each draw: one checkpoint serves all."""
        return torch.tensor([self.seed, self.epoch, self.step])

    def load_state(self, state: Tensor) -> None:
        """Go on where another counter stopped."""
        self.seed, self.epoch, self.step = state.tolist()


def current_rank() -> int:
    """Give this process's rank among those that train together; 0 for one alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
