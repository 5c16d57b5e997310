"""What is wrong with what came of a case."""

import traceback
from pathlib import Path

import torch
from torch import Tensor

LONGEST = 500  # characters of a message


class Fault(Exception):
    """What came of a case is not what should; the message says where."""


def check_error(error: BaseException, *names: str) -> None:
    """Raise where an error is not a short line that has one of the names."""
    text = str(error)
    if type(error) not in (ValueError, TypeError):
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "kornia_mvit" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        raise Fault(f"{type(error).__name__} at {where}: {text[:150]!r}")
    if "\n" in text or len(text) > LONGEST:
        raise Fault(f"{len(text)} characters, {text.count(chr(10))} breaks: {text[:150]!r}")
    if not any(name in text for name in names):
        raise Fault(f"none of {names} is named: {text[:150]!r}")


def same(one: Tensor, other: Tensor) -> bool:
    """Tell whether tensors are equal, numbers that are none included."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    return one.shape == other.shape and torch.equal(one.to(wide).nan_to_num(7), other.to(wide).nan_to_num(7))
