"""Random numbers that depend on a seed alone, and leave PyTorch's own generators alone.

Kornia samples from PyTorch's global generators. Here its calls are given a generator of the run's own instead, in the
thread that makes them and nowhere else.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, wraps
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import get_worker_info

from kornia_mvit.augmentation.locks import shared_lock
from kornia_mvit.ops.seeds import BATCH_PLACE, BatchPlace, combine_seed

__all__ = ["OwnGenerators", "SeedCounter", "isolated_generators", "seed_generators", "uncompiled"]

P = ParamSpec("P")
T = TypeVar("T")

_COUNTING = shared_lock()
_BORROWING = shared_lock()
_RANDOM_WORDS = ("attention", "dropout", "gru", "lstm", "rand", "rnn", "rrelu")  # of operators made of others


_COMMON = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.multinomial, torch.bernoulli)


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Keep a function that samples, and all that it calls, out of ``torch.compile``, which would sample otherwise."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
            return function(*args, **kwargs)
        plain: Callable[P, T] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # PyTorch has it so
        return plain(*args, **kwargs)

    return call


class OwnGenerators:
    """The random numbers of one run: what a function samples under :meth:`sample` comes from generators of its own.

    The numbers are those that PyTorch's global generators would give after ``torch.manual_seed``; these are neither
    read nor moved, and other threads notice nothing. Operators that take no generator, such as dropout on a GPU and
    attention with dropout, borrow the global ones, under a lock that all runs share.

    Example:
        >>> own = OwnGenerators()
        >>> own.seed(3)
        >>> torch.equal(own.sample(torch.rand, 4), torch.rand(4, generator=torch.Generator().manual_seed(3)))
        True
    """

    def __init__(self) -> None:
        self._seed = 0
        self._generators: dict[torch.device, Generator] = {}
        every = _EveryOperator(self)
        self._every: AbstractContextManager[object, None] = every
        self._named: AbstractContextManager[object, None] = _NamedFunctions(every)

    def seed(self, seed: int) -> None:
        """Seed the generators of all devices."""
        self._seed = seed
        for generator in self._generators.values():
            generator.manual_seed(seed)

    def sample(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may do anything; every operator is looked at, which takes some 10 µs for each."""
        with self._every:
            return function(*args, **kwargs)

    def sample_plainly(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that samples by PyTorch's named functions alone, as Kornia's do; some 2 µs for each."""
        with self._named:
            return function(*args, **kwargs)

    def generator(self, device: torch.device) -> Generator:
        """Return the generator of a device."""
        device = torch.empty(0, device=device).device if device.index is None else device  # with its number
        found = self._generators.get(device)
        if found is None:
            found = self._generators[device] = Generator(device).manual_seed(self._seed)
        return found


class _EveryOperator(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch has it untyped
    """Return operators that sample a generator, whoever calls them."""

    def __init__(self, own: OwnGenerators) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.own = own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _samples(func):
            return func(*args, **kwargs)
        device = _device(args, kwargs)
        if device.type == "meta" or any(isinstance(value, Generator) for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        taking = _taking_generator(func)
        if taking is not None:
            return taking(*args, **kwargs | {"generator": self.own.generator(device)})
        with _BORROWING, isolated_generators(device):
            pairs = [(theirs, self.own.generator(theirs.device)) for theirs in _global_generators(device)]
            for theirs, ours in pairs:
                theirs.set_state(ours.get_state())
            try:
                return func(*args, **kwargs)
            finally:
                for theirs, ours in pairs:
                    ours.set_state(theirs.get_state())


class _NamedFunctions(TorchFunctionMode):
    """Look at the operators inside those of PyTorch's functions alone whose name tells that they may sample."""

    def __init__(self, every: _EveryOperator) -> None:
        super().__init__()
        self.every = every

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _may_sample(func):
            return func(*args, **kwargs or {})
        kwargs = kwargs or {}
        device = _device(args, kwargs)
        if func in _COMMON and "generator" not in kwargs and device.type != "meta":  # the detour would take longest
            return func(*args, **kwargs, generator=self.every.own.generator(device))
        with self.every:
            return func(*args, **kwargs or {})


@cache
def _samples(operator: Any) -> bool:
    """Tell whether an operator samples: it says so, or it takes a generator."""
    return torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ()) or _takes_generator(operator)


@cache
def _taking_generator(operator: Any) -> Any:
    """Return an operator's overload with a generator beside its arguments, or None."""
    if _takes_generator(operator):
        return operator
    arguments = [(a.name, str(a.type)) for a in operator._schema.arguments]
    for name in operator.overloadpacket.overloads():
        other = getattr(operator.overloadpacket, name)
        if _takes_generator(other):
            rest = [(a.name, str(a.type)) for a in other._schema.arguments if a.name != "generator"]
            if rest == arguments:
                return other
    return None


def _takes_generator(operator: Any) -> bool:
    return hasattr(operator, "_schema") and any(a.name == "generator" for a in operator._schema.arguments)


@cache
def _may_sample(function: Any) -> bool:
    """Tell whether one of PyTorch's functions may sample; of those written in Python nothing is known."""
    name = getattr(function, "__name__", "")
    if isinstance(function, FunctionType) or any(word in name for word in _RANDOM_WORDS):
        return True
    packet = None if name.startswith("__") else getattr(torch.ops.aten, name, None)
    return packet is not None and any(_samples(getattr(packet, overload)) for overload in packet.overloads())


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Return the device that an operator samples on."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    return next((value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), torch.device("cpu"))


@contextmanager
def isolated_generators(device: torch.device) -> Iterator[None]:
    """Put the global generators of the CPU and of a device back to where they were at the end."""
    generators = _global_generators(device)
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of a device; for use inside :func:`isolated_generators`."""
    for generator in _global_generators(device):
        generator.manual_seed(seed)


def _global_generators(device: torch.device) -> list[Generator]:
    if device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]  # PyTorch has it untyped
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


class SeedCounter:
    """Seeds for the draws of a run, one after another: each of its own rank, loader worker, epoch and step.

    Threads may share a counter: no two of them get the same step. In a process that loads data, a copy counts:

    - while a :class:`~kornia_mvit.data.loading.loaders.ResumableLoader` loads a batch, by the rank, epoch and number of
      the batch and the draws since it began, so that the number of workers and a resumption change nothing;
    - under any other loader, by worker and step in the epoch that :meth:`set_epoch` told before the workers started; if
      it told none, by the seed that the loader gives each worker, another for each iteration.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed: int = seed
        self.epoch: int = 0
        self.step: int = 0
        self._told = False  # whether the epoch was
        self._rank = 0  # of the process that this counter was copied from, for workers that are in no group
        self._place: BatchPlace | None = None
        self._drawn = 0  # at that place

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rank": self._find_rank(), "_place": None}

    def next(self) -> int:
        """Return the seed of the next draw."""
        return self.take()[1]

    def take(self) -> tuple[tuple[int, int, int], int]:
        """Return the seed, epoch and step of the next draw, and the seed that they make."""
        batch, worker = BATCH_PLACE.get(), get_worker_info()
        with _COUNTING:
            if batch is not None:
                if batch is not self._place:
                    self._place, self._drawn = batch, 0
                self._drawn += 1
                rank, epoch, number = batch
                return (self.seed, epoch, number), combine_seed(self.seed, rank, -1, epoch, number, self._drawn)
            place = self.seed, self.epoch, self.step
            self.step += 1
        of_worker = () if worker is None or self._told else (worker.seed,)
        number = 0 if worker is None else worker.id + 1
        return place, combine_seed(self.seed, self._find_rank(), number, *place[1:], *of_worker)

    def _find_rank(self) -> int:
        """Return this process's rank; in a worker that was started anew, that of the process which started it."""
        return self._rank if get_worker_info() is not None and not _in_group() else current_rank()

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch at its first step; the epoch that it is in already goes on."""
        with _COUNTING:
            self._told = True
            if epoch != self.epoch:
                self.epoch, self.step = epoch, 0

    def state(self) -> Tensor:
        """Return seed, epoch and step: (3,), int64. The rank is asked for at each draw: one checkpoint serves all."""
        with _COUNTING:
            return torch.tensor([self.seed, self.epoch, self.step])

    def load_state(self, state: Tensor) -> None:
        """Go on where another counter stopped."""
        with _COUNTING:
            self.seed, self.epoch, self.step = state.tolist()
            self._told = self.epoch > 0


def current_rank() -> int:
    """Return this process's rank among those that train together; 0 for one alone."""
    return torch.distributed.get_rank() if _in_group() else 0


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
