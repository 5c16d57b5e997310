"""What tracing a graph needs: the sizes of its images, and examples of them."""

from typing import Any

import torch
from torch import Tensor

from kornia_mvit.exporters.graph import Deployed
from kornia_mvit.exporters.options import Size, sides
from kornia_mvit.models.layers import MIN_SIDE

__all__ = ["check_size", "dynamic_shapes", "example_input"]

# Sides of the example that dynamic graphs are traced with: no side, and no map's, is one that makes a special case.
_EXAMPLE = (333, 500)


def check_size(graph: Deployed, size: Size, *, dynamic: bool = True, format_name: str = "the format") -> None:
    """Raise a ValueError for a size that a format, or the network, does not take.

    Args:
        graph: what is exported.
        size: ``'dynamic'``, or height and width in pixels, or one number for both.
        dynamic: whether the format takes images of any size.
        format_name: what the error calls it.
    """
    if isinstance(size, str):
        if size != "dynamic":
            raise ValueError(f"size {size!r} is neither 'dynamic' nor a number of pixels, such as 256, nor two")
        if not dynamic:
            raise ValueError(f"{format_name} does not take images of any size; give one, such as 256")
        return
    height, width = sides(size)
    if min(height, width) < 1:
        raise ValueError(f"size {size} is not one or two positive numbers of pixels")
    if not graph.with_preprocess and min(height, width) < MIN_SIDE:
        raise ValueError(f"size {height}x{width} is below the {MIN_SIDE} px that the network takes")


def example_input(graph: Deployed, size: Size, batch: int = 2) -> Tensor:
    """Return an input to trace a graph with: random pixels, the same each time."""
    height, width = _EXAMPLE if isinstance(size, str) else sides(size)
    generator = torch.Generator().manual_seed(0)
    if not graph.with_preprocess:
        return torch.rand(batch, graph.model.backbone.in_channels, height, width, generator=generator)
    shape = (batch, height, width, 3) if graph.layout == "nhwc" else (batch, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def dynamic_shapes(graph: Deployed, size: Size, batch: bool = True) -> list[dict[int, Any]]:
    """Return which dimensions of the input are free, as torch.export takes it."""
    from torch.export import Dim

    free: dict[int, Any] = {0: Dim.DYNAMIC} if batch else {}
    if isinstance(size, str):
        free |= dict.fromkeys((1, 2) if graph.layout == "nhwc" else (2, 3), Dim.DYNAMIC)
    return [free]
