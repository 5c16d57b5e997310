"""The weights among what a checkpoint holds: plain tensors by their names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.parsing import brief, cut, reason_of
from kornia_mvit.weights.files import CheckpointError

__all__ = ["fitting", "unwrap"]

# Keys under which training programs keep the weights, averaged ones first.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")


def unwrap(data: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], str]:
    """Find the weights in a checkpoint, and the keys that they stand under.

    Args:
        data: what the checkpoint holds.
        name: what errors call it.

    Raises:
        CheckpointError: if it holds no weights, or some that are no plain tensors.
    """
    path: list[str] = []
    while not any(isinstance(value, Tensor) for value in data.values()):
        key = next((key for key in _WRAPPERS if isinstance(data.get(key), Mapping)), None)
        if key is None or len(path) == len(_WRAPPERS):  # a mapping may hold itself
            raise CheckpointError(f"{name} holds no weights; its keys are {brief(list(data)[:6])}")
        path.append(key)
        data = data[key]
    state = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    for key, value in state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{name} has weights under {brief(key)}, which is no name; it is damaged")
        if not _is_plain(value):
            raise CheckpointError(
                f"{cut(key)} in {name} is no plain tensor in memory (sparse, quantized, or larger than what the file "
                "holds of it); save it as a dense one"
            )
    return state, ".".join(path)


def _is_plain(value: Tensor) -> bool:
    """Tell whether a tensor is dense, on the CPU, and no larger than its memory."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Tell weights of shapes that make no sense together by the file's name."""
    try:
        yield
    except (RuntimeError, LookupError, ArithmeticError, TypeError) as error:
        raise CheckpointError(
            f"the weights in {name} do not fit together: {reason_of(error)}; it is damaged"
        ) from error
