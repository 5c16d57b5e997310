"""Arguments of strategies: looked at when a strategy is made, not when it is drawn from."""

from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

__all__ = ["as_pair", "as_strategy", "check_contents", "check_count", "check_range", "check_size", "multiples"]

T = TypeVar("T")
Size = tuple[int, int]


def multiples(step: int, low: int, high: int) -> SearchStrategy[int]:
    """Draw the multiples of a number in a range."""
    first, last = -(-low // step), high // step
    if first > last:
        raise ValueError(
            f"no multiple of {step} lies from {low} to {high}; the nearest are {last * step} and {first * step}"
        )
    return st.integers(first, last).map(lambda number: number * step)


def as_strategy(value: T | SearchStrategy[T]) -> SearchStrategy[T]:
    """Return a strategy unchanged, and any other value as a strategy of that value alone."""
    return value if isinstance(value, SearchStrategy) else st.just(value)


def as_pair(name: str, value: int | Size) -> Size:
    """Return one number twice, and two numbers unchanged."""
    pair = (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
    if min(pair) < 1:
        raise ValueError(f"{name} {value} is not at least 1")
    return pair


def check_size(size: Size | SearchStrategy[Size]) -> Size | SearchStrategy[Size]:
    """Raise unless a size is a strategy, or a height and a width."""
    if not isinstance(size, SearchStrategy) and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size {size} is not a height and a width of at least 1 pixel")
    return size


def check_count(name: str, value: Any, least: int) -> None:
    """Raise for a number below the least; strategies and None pass."""
    if isinstance(value, int) and value < least:
        raise ValueError(f"{name} {value} is not at least {least}")


def check_range(low_name: str, low: int, high_name: str, high: int, least: int) -> None:
    """Raise unless two bounds ascend."""
    if not least <= low <= high:
        raise ValueError(f"{low_name} {low} and {high_name} {high} are not ascending from {least}")


def check_contents(contents: Sequence[str], known: Sequence[str]) -> None:
    """Raise unless kinds of content are a list of known ones."""
    if isinstance(contents, str) or not contents or (unknown := sorted(set(contents) - set(known))):
        wrong = repr(contents) if isinstance(contents, str) or not contents else ", ".join(map(repr, unknown))
        raise ValueError(f"contents {wrong} are not among {', '.join(map(repr, known))}; give a list of these")
