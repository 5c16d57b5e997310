"""Large batches by slices, where that spares time: a CPU takes longest over maps that do not fit its cache."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kornia_mvit.models.tracing import is_traced

__all__ = ["join", "slice_size", "split"]

SLICE_BYTES = 4 * 2**20  # of the largest map, for a thread: what second-level caches and their neighbours hold


def slice_size(x: Tensor, width: float, layers: Iterable[nn.Module]) -> int | None:
    """Say how many images of a batch go through some layers at a time, so that their largest map stays in the cache.

    Args:
        x: the batch, (B, C, H, W).
        width: channels of the largest map, for a pixel of the image.
        layers: what they go through.

    Returns:
        The number, or None for all of them: where they fit, on other devices, and where slices could show, which is
        with gradients, in traced code, in training mode, and where hooks look on.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or is_traced():
        return None
    size = max(1, SLICE_BYTES // int(width * x.shape[-2] * x.shape[-1] * x.element_size())) * torch.get_num_threads()
    if size >= len(x):
        return None
    parts = (part for layer in layers for part in layer.modules())
    return None if any(p.training or p._forward_hooks or p._forward_pre_hooks for p in parts) else size


def split(x: Tensor, size: int | None) -> tuple[Tensor, ...]:
    """Cut a batch into slices of some images; None is for one of all."""
    return (x,) if size is None else torch.split(x, size)


def join(slices: list[Tensor]) -> Tensor:
    """Put slices back together."""
    return slices[0] if len(slices) == 1 else torch.cat(slices)
