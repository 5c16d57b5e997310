"""Small tensors sent from the CPU to a device, many in one copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["upload"]

_ALIGNED = 16  # bytes, which suits every dtype


def upload(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors on a device, with the values that those on the CPU have now.

    They go in one copy that the host does not wait for, from pinned memory where the device is a GPU. Those that are on
    the device are returned as they are.

    Args:
        tensors: on the CPU, or on the device.
        device: where to.

    Example:
        >>> upload([torch.tensor([1, 2]), torch.tensor(0.5)], torch.device("cpu"))
        [tensor([1, 2]), tensor(0.5000)]
    """
    out = list(tensors)
    starts: dict[int, int] = {}  # of the tensors that go, in bytes
    end = 0
    for number, tensor in enumerate(tensors):
        if tensor.device != device:
            starts[number] = end
            end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    if not starts:
        return out
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for number, start in starts.items():
        _part(buffer, start, tensors[number]).copy_(tensors[number])
    there = buffer.to(device, non_blocking=True)
    for number, start in starts.items():
        out[number] = _part(there, start, tensors[number])
    return out


def _part(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """Return the part of a buffer of bytes that holds a tensor's values."""
    return buffer[start : start + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
