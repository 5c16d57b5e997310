"""Properties that any backbone should have, to be run on any network that takes images."""

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import nn

from kornia_mvit.testing.checks import CHECKS, OPTIONAL
from kornia_mvit.testing.report import BackboneReport, Result, Status
from kornia_mvit.testing.strategies import image_sizes
from kornia_mvit.testing.subject import (
    Difference,
    NotApplicable,
    Subject,
    Violation,
    describe_error,
    is_refusal,
    seeded,
)

__all__ = ["PROPERTIES", "check_backbone"]

Size = tuple[int, int]

PROPERTIES: dict[str, str] = {name: (check.__doc__ or "").splitlines()[0] for name, check in CHECKS.items()}
"""The properties and what each says, in the order in which they are checked."""


def check_backbone(
    factory: Callable[[], nn.Module],
    *,
    in_channels: int = 3,
    sizes: SearchStrategy[Size] | Sequence[Size] | None = None,
    max_examples: int = 20,
    output_shape: Callable[[int, int, int], Any] | None = None,
    properties: Collection[str] | None = None,
    exclude: Collection[str] = (),
    seed: int = 0,
    raise_on_failure: bool = True,
) -> BackboneReport:
    """Check that a network behaves as a backbone should: on any size, in any batch, dtype and memory layout.

    The network takes images (B, C, H, W) and gives a tensor whose first dimension is B, such as logits or a feature
    map, or a list, tuple, dictionary or dataclass of these. Sizes are drawn by Hypothesis, and the smallest that fails
    is reported. Weights and images depend on ``seed`` alone, so a report comes out the same again; the global
    generators are left as they were. Weights that begin as a constant are stirred first.

    A size that raises a ValueError, TypeError, NotImplementedError or AssertionError with a message is *refused*, which
    is told apart from a crash. Where some sizes are not taken, the other properties are checked on the drawn sizes that
    are.

    Args:
        factory: builds the network, a new one at each call.
        in_channels: channels of its images.
        sizes: heights and widths that it is to take, as a strategy or a list; 32 to 96 pixels each when None.
        max_examples: how many sizes each property is tried on.
        output_shape: takes batch, height and width, and gives the shape that is expected, or for several outputs a
            list or dictionary of shapes. Without it, shapes are only checked for being consistent.
        properties: names of those to check; all of :data:`PROPERTIES` when None, but for ``'compile'``.
        exclude: names of those to leave out.
        seed: of weights and images.
        raise_on_failure: raise at the end if a property failed or a size was refused; otherwise only report it.

    Returns:
        The report: a table when printed.

    Raises:
        BackboneError: an AssertionError with the report, if a property failed or a size was refused.
        ValueError: for an unknown property, or no size.
        TypeError: for a factory that is a network, or gives the same one twice.

    Example:
        >>> from kornia_mvit import MobileViT
        >>> report = check_backbone(lambda: MobileViT("xxs"), properties=["sizes", "shapes"], max_examples=3)
        >>> report.ok, report["sizes"].status.value
        (True, 'passed')
    """
    chosen = _choose(properties, exclude)
    if max_examples < 1 or in_channels < 1:
        raise ValueError(f"max_examples {max_examples} and in_channels {in_channels} are not at least 1")
    if isinstance(factory, nn.Module):
        raise TypeError(
            f"factory is a {type(factory).__name__} itself; give a function that builds one, such as "
            "lambda: copy.deepcopy(model)"
        )
    strategy = _sizes(sizes)
    with seeded(seed):
        model = factory()
        if not isinstance(model, nn.Module):
            raise TypeError(f"factory gave a {type(model).__name__}; it is to build a torch.nn.Module")
        if factory() is model:
            raise TypeError("factory gave the same network twice; it is to build a new one at each call")
        drawn = _draw(strategy, max_examples)
        subject = Subject(factory, in_channels, strategy, drawn, max_examples, seed, output_shape)
        subject.survey()
        report = BackboneReport(type(model).__name__, tuple(_check(name, subject) for name in chosen))
    if raise_on_failure:
        report.raise_for_failures()
    return report


def _check(name: str, subject: Subject) -> Result:
    """Check one property, and turn whatever comes of it into a result."""
    start = time.perf_counter()
    status, detail = Status.PASSED, ""
    try:
        with warnings.catch_warnings():
            if name in ("export", "compile"):  # PyTorch warns of its own insides there
                warnings.simplefilter("ignore")
            detail = CHECKS[name](subject) or ""
    except NotApplicable as reason:
        status, detail = Status.NOT_APPLICABLE, str(reason)
    except Difference as difference:
        status, detail = Status.FAILED, str(difference)
        if subject.unsteady not in (None, name):
            status = Status.NOT_APPLICABLE
            detail = f"outputs differ from run to run, and cannot be compared; see {subject.unsteady}"
    except Violation as violation:
        status, detail = Status.FAILED, str(violation)
        if name == "sizes" and all(is_refusal(error) for error in subject.problems.values()):
            status = Status.REFUSED
    except Exception as error:  # whatever a network raises
        status, detail = Status.FAILED, f"raised {describe_error(error)}"
    return Result(name, status, detail, time.perf_counter() - start)


def _choose(properties: Collection[str] | None, exclude: Collection[str]) -> list[str]:
    for given_names in (properties or (), exclude):
        names = [given_names] if isinstance(given_names, str) else given_names
        if unknown := [name for name in names if name not in CHECKS]:
            raise ValueError(f"unknown properties {', '.join(unknown)}; available: {', '.join(CHECKS)}")
    wanted = [name for name in CHECKS if name not in OPTIONAL] if properties is None else properties
    return [name for name in CHECKS if name in wanted and name not in exclude]


def _sizes(sizes: SearchStrategy[Size] | Sequence[Size] | None) -> SearchStrategy[Size]:
    if sizes is None:
        return st.one_of(image_sizes(max_side=96), image_sizes(32, max_side=96))
    if isinstance(sizes, SearchStrategy):
        return sizes
    if not sizes:
        raise ValueError("sizes is empty; give at least one height and width")
    return st.sampled_from(sorted(((int(h), int(w)) for h, w in sizes), key=lambda size: (size[0] * size[1], size)))


def _draw(sizes: SearchStrategy[Size], count: int) -> list[Size]:
    """Draw some sizes, and give them by area."""
    found: set[Size] = set()

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(sizes)
    def collect(size: Size) -> None:
        found.add(size)

    collect()
    return sorted(found, key=lambda size: (size[0] * size[1], size))
