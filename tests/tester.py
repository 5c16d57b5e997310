"""The shape of a test class in Kornia's manner: one for each public name."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo
from hypothesis import settings
from torch import Tensor, nn

# Relative and absolute tolerances of sums over some hundred terms.
TOLERANCES = {
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
    torch.float32: (1e-4, 1e-5),
    torch.float64: (1e-9, 1e-10),
}


def cases(count: int, quick: int = 8) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Draw so many examples in ``make test-long`` and ``make fuzz``; in ``make test`` a tenth, at least ``quick``."""
    whole = settings.get_current_profile_name() in ("long", "fuzz")
    draws = settings(max_examples=count if whole else max(quick, count // 10))
    return lambda test: pytest.mark.cases(draws(test))


@contextmanager
def raises_at_workers(error: type[Exception], match: str) -> Iterator[None]:
    """``pytest.raises`` for what comes from a loader's workers, which end with it.

    The error's traceback holds their iterator in a circle. There the garbage collector takes the queues to them down
    first, and then waits five seconds for each of them.
    """
    with pytest.raises(error, match=match) as caught:
        yield
    traceback.clear_frames(caught.tb)


class GraphCounter:
    """A backend for torch.compile that counts the graphs that ran.

    Args:
        backend: what compiles them; ``"aot_eager"`` differentiates ahead of time, and adds guards as it does.
    """

    def __init__(self, backend: str = "aot_eager") -> None:
        torch.compiler.reset()  # what other tests compiled
        self.backend = torch._dynamo.lookup_backend(backend)
        self.graphs: set[Callable[..., Any]] = set()

    @property
    def count(self) -> int:
        return len(self.graphs)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled = self.backend(graph, inputs)

        def run(*args: Any) -> Any:
            self.graphs.add(run)
            return compiled(*args)

        return run


class BaseTester(ABC):
    """A public name's tests; what a name has no use for, its class says in one line of the method's body."""

    @abstractmethod
    def test_smoke(self, device: torch.device, dtype: torch.dtype) -> None:
        """It runs, and keeps device and dtype."""

    @abstractmethod
    def test_exception(self) -> None:
        """Each wrong argument raises what the docstring says, with a message that tells what would do."""

    @abstractmethod
    def test_cardinality(self) -> None:
        """Shapes of the outputs."""

    @abstractmethod
    def test_feature(self) -> None:
        """Values known from elsewhere."""

    @abstractmethod
    def test_gradcheck(self) -> None:
        """Gradients against finite differences, in float64."""

    @abstractmethod
    def test_dynamo(self) -> None:
        """Compiled whole, it gives what eager code gives."""

    @staticmethod
    def assert_close(actual: Tensor, expected: Tensor, rtol: float | None = None, atol: float | None = None) -> None:
        """Compare values, dtype and device, with tolerances that fit the dtype."""
        default = TOLERANCES.get(actual.dtype, (0.0, 0.0))
        torch.testing.assert_close(
            actual, expected, rtol=default[0] if rtol is None else rtol, atol=default[1] if atol is None else atol
        )

    @staticmethod
    def gradcheck(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        """Compare analytic and numeric gradients of all inputs along a random direction, in float64."""
        inputs = [x.detach().double().requires_grad_() for x in inputs]
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)

    @staticmethod
    def gradcheck_module(module: nn.Module, x: Tensor) -> None:
        """As :meth:`gradcheck`, by the input and by every parameter."""
        module = module.double()
        names = [name for name, _ in module.named_parameters()]

        def run(x: Tensor, *values: Tensor) -> Tensor:
            y: Tensor = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
            return y

        BaseTester.gradcheck(run, [x, *module.parameters()])
