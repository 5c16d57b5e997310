"""The network that is being checked: built, run, and its outputs laid out as tensors."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import numpy as np
import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kornia_mvit.augmentation.randomness import isolated_generators, seed_generators
from kornia_mvit.testing.builders import make_image

__all__ = [
    "Difference",
    "NotApplicable",
    "Outputs",
    "Subject",
    "Violation",
    "describe_error",
    "is_refusal",
    "seeded",
    "tensors_of",
]

Size = tuple[int, int]
Outputs = dict[str, Tensor]


class Violation(Exception):
    """A property does not hold; the message says how."""


class Difference(Violation):
    """Two outputs that should be equal are not."""


class NotApplicable(Exception):
    """A property says nothing of this network; the message says why."""


@dataclass
class Subject:
    """A network and what it is to be run on.

    Args:
        factory: builds it.
        in_channels: of its images.
        sizes: strategy for the heights and widths that are tried.
        drawn: some sizes of the strategy, by area.
        max_examples: how many sizes each property is tried on.
        seed: of weights and images.
        output_shape: what the caller says of the outputs' shapes.
        accepted: those of ``drawn`` that the network takes; found by the first property.
        problems: what the others raised.
        unsteady: the property that explains why the outputs of one image differ from run to run, if they do; found by
            the survey.
    """

    factory: Callable[[], nn.Module]
    in_channels: int
    sizes: SearchStrategy[Size]
    drawn: Sequence[Size]
    max_examples: int
    seed: int
    output_shape: Callable[[int, int, int], Any] | None = None
    accepted: list[Size] = field(default_factory=list)
    problems: dict[Size, Exception] = field(default_factory=dict)
    unsteady: str | None = None

    @property
    def size(self) -> Size:
        """The largest size that the network takes."""
        if not self.accepted:
            raise NotApplicable("no size that was drawn is taken")
        return self.accepted[-1]

    def survey(self) -> None:
        """Find out which of the drawn sizes the network takes, and whether its outputs are its images' alone."""
        model = self.build()
        for size in self.drawn:
            try:
                self.run(model, self.image(size))
            except Exception as error:  # whatever a network raises
                self.problems[size] = error
            else:
                self.accepted.append(size)
        if self.accepted:
            image = self.image(self.size)
            with seeded(self.seed), torch.no_grad():
                before = generator_states()
                model(image)
                moved = before != generator_states()
            one, other = ({name: y.clone() for name, y in self.run(model, image).items()} for _ in range(2))
            changed = any(not torch.equal(y.nan_to_num(), other[name].nan_to_num()) for name, y in one.items())
            self.unsteady = "randomness" if moved else "repeatable" if changed else None

    def build(self, seed: int | None = None) -> nn.Module:
        """Build the network in eval mode, with every constant vector of weights stirred.

        Fresh networks hide what is dead: a norm that begins with zeros keeps gradients from all before it.
        """
        with seeded(self.seed if seed is None else seed):
            model = self.factory()
        stir(model, self.seed)
        return model.eval()

    def image(
        self, size: Size, *, batch: int = 2, seed: int | None = None, content: str = "noise", dtype: Any = torch.float32
    ) -> Tensor:
        """Make a batch of images."""
        shape = (batch, self.in_channels, *size)
        return make_image(shape, content=content, seed=self.seed if seed is None else seed, dtype=dtype)

    def run(
        self, model: Callable[[Tensor], Any], image: Tensor, *, grad: bool = False, as_it_is: bool = False
    ) -> Outputs:
        """Run the network on a copy of an image, or on the image as it is, and give its outputs by name."""
        with torch.set_grad_enabled(grad), seeded(self.seed):
            return tensors_of(model(image if as_it_is else image.clone()))

    def accepts(self, model: nn.Module, size: Size) -> bool:
        """Whether the network takes a size at all; what it does with it is another property's business."""
        if size in self.accepted:
            return True
        if size not in self.problems:
            try:
                self.run(model, self.image(size))
            except Exception as error:  # whatever a network raises
                self.problems[size] = error
            else:
                return True
        return False


def tensors_of(output: Any, name: str = "output") -> Outputs:
    """Lay out a network's output: a tensor, or lists, tuples, dictionaries and dataclasses of them.

    Raises:
        Violation: for anything else, and for none.
    """
    if isinstance(output, Tensor):
        return {name: output}
    if isinstance(output, Mapping):
        parts = {f"{name}[{key!r}]": value for key, value in output.items()}
    elif isinstance(output, (list, tuple)):
        parts = {f"{name}[{place}]": value for place, value in enumerate(output)}
    elif is_dataclass(output):
        parts = {f"{name}.{key}": value for key, value in vars(output).items()}
    else:
        raise Violation(
            f"{name} is a {type(output).__name__}; a backbone gives tensors, in lists or dictionaries or not"
        )
    out: Outputs = {}
    for key, value in parts.items():
        if value is not None:
            out |= tensors_of(value, key)
    if not out:
        raise Violation(f"{name} holds no tensor")
    return out


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of PyTorch, NumPy and Python, and put them back at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # PyTorch has it untyped
    device = torch.device("cuda" if started else "cpu")
    with isolated_generators(device):
        seed_generators(seed, device)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@torch.no_grad()
def stir(model: nn.Module, seed: int) -> None:
    """Replace the values of parameters and statistics that are initialised as a constant by distinct ones."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    for parameter in model.parameters():
        if parameter.is_floating_point() and not parameter.is_meta and parameter.numel() and _is_constant(parameter):
            parameter.add_(0.1 * noise(parameter))
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.add_(0.1 * noise(module.running_mean))
            module.running_var.mul_(1 + 0.3 * noise(module.running_var).clamp(-2, 2))


def is_refusal(error: Exception) -> bool:
    """Return whether an error was raised on purpose: it has a message, and PyTorch did not raise it."""
    return isinstance(error, (AssertionError, NotImplementedError, TypeError, ValueError)) and bool(str(error).strip())


def describe_error(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


def generator_states() -> dict[str, str]:
    """Return the states of the global generators, by library."""
    return {
        "PyTorch's": str(torch.get_rng_state().tolist()),
        "NumPy's": repr(np.random.get_state(legacy=False)["state"]),
        "Python's": repr(random.getstate()),
    }


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())
