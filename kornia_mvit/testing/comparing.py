"""What the checks share: sizes drawn by Hypothesis, outputs compared, gradients sent back."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from torch import Tensor, nn

from kornia_mvit.testing.subject import (
    Difference,
    NotApplicable,
    Outputs,
    Subject,
    Violation,
    describe_error,
    tensors_of,
)

__all__ = [
    "compare",
    "compare_shapes",
    "fits",
    "for_sizes",
    "join",
    "row_of",
    "same",
    "send_back",
    "telling_size",
    "weigh",
]

Size = tuple[int, int]


def for_sizes(subject: Subject, test: Callable[..., None], everything: bool = False, **drawn: Any) -> None:
    """Try a test on sizes that Hypothesis draws, and raise what it raises at the smallest that it finds to fail.

    Args:
        subject: the network, and which sizes are drawn.
        test: takes a size, and what else is drawn.
        everything: draw sizes too that the network does not take; without it, only some are drawn where there are any.
        drawn: strategies for the test's other arguments.
    """
    if not everything and not subject.accepted:
        raise NotApplicable("no size that was drawn is taken")
    sizes = subject.sizes if everything or not subject.problems else st.sampled_from(subject.accepted)

    @settings(
        max_examples=subject.max_examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(size=sizes, **drawn)
    def run(size: Size, **values: Any) -> None:
        test(size, **values)

    try:
        run()
    except Unsatisfiable:
        raise NotApplicable("no size that was drawn is taken") from None


def compare(actual: Outputs, expected: Outputs, what: str, tolerance: float = 1e-4) -> None:
    """Raise unless outputs are equal but for rounding, which is in proportion to the largest value."""
    if actual.keys() != expected.keys():
        raise Violation(f"{what}: outputs are {', '.join(actual)}, not {', '.join(expected)}")
    for name, found in actual.items():
        if found.shape != expected[name].shape:
            raise Violation(f"{what}: {name} is {tuple(found.shape)}, not {tuple(expected[name].shape)}")
        if not found.numel():
            continue
        one, other = (
            y.detach().to(torch.complex128 if y.is_complex() else torch.float64) for y in (found, expected[name])
        )
        scale = max(1e-3, float(other.nan_to_num(0, 0, 0).abs().max()))
        if not torch.allclose(one, other, rtol=0, atol=tolerance * scale, equal_nan=True):
            far = float((one - other).abs().nan_to_num(torch.inf).max())
            raise Difference(f"{what}: {name} differs by up to {far:.3g}, its values go up to {scale:.3g}")


def telling_size(test: Callable[[Size], None]) -> Callable[[Size], None]:
    """Let a crash tell its size."""

    def run(size: Size) -> None:
        try:
            test(size)
        except (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise Violation(f"{size[0]}x{size[1]}: {describe_error(error)}") from None

    return run


def send_back(subject: Subject, model: nn.Module, image: Tensor) -> None:
    """Send a random gradient back from all outputs."""
    outputs = subject.run(model, image, grad=True)
    if any(y.is_floating_point() and not y.isfinite().all() for y in outputs.values()):
        raise NotApplicable("the outputs are not finite; see finite")
    total = weigh(outputs, subject.seed)
    if total is None:
        raise Violation("no output depends on a weight or the image by way of autograd")
    torch.autograd.backward(total)


def weigh(outputs: Outputs, seed: int) -> Tensor | None:
    """Sum outputs by random weights; None where none has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        (y.float() * torch.randn(y.shape, generator=generator)).sum()
        for y in outputs.values()
        if y.is_floating_point() and y.requires_grad
    ]
    return torch.stack(parts).sum() if parts else None


def row_of(outputs: Outputs, index: int) -> Outputs:
    """Return the outputs of one image."""
    return {name: y[index] for name, y in outputs.items() if y.ndim}


def same(one: Any, other: Any) -> bool:
    """Whether two are tensors of one shape and the same values."""
    return (
        isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    )


def fits(sides: Sequence[int], size: Size, stride: int) -> bool:
    """Whether a map's height and width are those of an image by a stride, padding or none."""
    return all(given // stride - 1 <= side <= -(-given // stride) + 1 for side, given in zip(sides, size, strict=True))


def compare_shapes(outputs: Outputs, expected: Any, said: str) -> None:
    """Raise unless outputs have the shapes that the caller expects."""
    if isinstance(expected, Sequence) and all(isinstance(n, int) for n in expected):
        wanted = {"output": tuple(expected)}
    else:
        wanted = {name: tuple(y.shape) for name, y in tensors_of(_as_meta(expected)).items()}
    found = {name: tuple(y.shape) for name, y in outputs.items()}
    if found != wanted:
        wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        told = [f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'expected')}" for name in wrong]
        raise Violation(f"{said}: {', '.join(told)}")


def _as_meta(shape: Any) -> Any:
    """Replace shapes by meta tensors."""
    if isinstance(shape, dict):
        return {name: _as_meta(value) for name, value in shape.items()}
    if all(isinstance(n, int) for n in shape):
        return torch.empty(tuple(shape), device="meta")
    return [_as_meta(value) for value in shape]


def join(names: Sequence[Any], limit: int = 8) -> str:
    """List names, not too many."""
    shown = [f"{n[0]}x{n[1]}" if isinstance(n, tuple) else str(n) for n in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")
