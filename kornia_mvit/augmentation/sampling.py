"""Parameters that Kornia samples for an operation, sampled again where its own would leave the image."""

from typing import Any

import kornia.augmentation as K
import torch
from kornia.geometry.transform import get_perspective_transform
from torch import Tensor, nn

from kornia_mvit.augmentation.kornia_adapter import crop_ranges
from kornia_mvit.augmentation.rotations import RandomExpandedRotation

__all__ = ["Draw", "keep_before_horizon", "sample_crop_in_view"]

Draw = dict[str, Any]


def keep_before_horizon(draw: Draw, shape: tuple[int, ...]) -> Draw:
    """Pull the corners of a perspective back, where part of the image would lie beyond its horizon.

    From a distortion of about 0.8 on, Kornia samples corners of no convex shape. It then shows part of the image
    mirrored, and a box across the horizon in two pieces.
    """
    start, end = draw["start_points"], draw["end_points"]
    edge = torch.tensor(
        [[-0.5, shape[-1] - 0.5, shape[-1] - 0.5, -0.5], [-0.5, -0.5, shape[-2] - 0.5, shape[-2] - 0.5]]
    )
    pulled = end
    for share in (0.8, 0.6, 0.4, 0.2, 0.0):
        row = get_perspective_transform(start, pulled)[:, 2]
        depth = row[:, :2] @ edge.to(row) + row[:, 2:]
        behind = ~(depth.amin(1) > 0.01 * depth.amax(1))  # where nothing is a number as well
        if not bool(behind.any()):
            break
        pulled = torch.where(behind[:, None, None], start + share * (end - start), pulled)
    return draw | {"end_points": pulled}


def sample_crop_in_view(module: nn.Module, params: Draw, view: Tensor) -> Draw:
    """Sample the windows of a random crop inside the part of the canvas that is image.

    Kornia samples them on the whole canvas, padding included.

    Args:
        module: a Kornia ``RandomResizedCrop``, or ``RandomCrop`` without padding, or a rotation on a canvas of its own;
            anything else keeps its parameters.
        params: what Kornia sampled.
        view: (B, 2) height and width of the images, in pixels.

    Returns:
        The parameters, with other windows.
    """
    if isinstance(module, RandomExpandedRotation):
        return module.fit(params, view)
    count = len(view)
    height, width = view.double().unbind(-1)
    rows = 1 if getattr(module, "same_on_batch", False) else count
    if isinstance(module, K.RandomResizedCrop):
        scale, ratio = (torch.as_tensor(limits, dtype=torch.float64) for limits in crop_ranges(module))
        u = torch.rand(3, rows, 10, dtype=torch.float64).to(view.device, non_blocking=True).expand(3, count, 10)
        area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * u[0])
        aspect = torch.exp(ratio.log()[0] + (ratio.log()[1] - ratio.log()[0]) * u[1])
        w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (w > 0) & (h > 0) & (w <= width[:, None]) & (h <= height[:, None])
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        whole = (width / height).clamp(ratio[0], ratio[1])  # no candidate fits: as much of the image as may be
        w = torch.where(fits.any(1), w.gather(1, first)[:, 0], torch.minimum(width, (height * whole).round()))
        h = torch.where(fits.any(1), h.gather(1, first)[:, 0], torch.minimum(height, (width / whole).round()))
        w, h = w.clamp_min(1), h.clamp_min(1)
        place = u[2, :, :2]
    elif isinstance(module, K.RandomCrop) and module.flags["padding"] is None and not module.flags["pad_if_needed"]:
        h, w = (torch.full_like(height, float(side)) for side in module.flags["size"])
        place = torch.rand(rows, 2, dtype=torch.float64).to(view.device, non_blocking=True).expand(count, 2)
    else:
        return params
    left = (place[:, 0] * (width - w + 1).clamp_min(1)).floor()
    top = (place[:, 1] * (height - h + 1).clamp_min(1)).floor()
    x, y = torch.stack([left, left + w - 1], -1), torch.stack([top, top + h - 1], -1)
    source = torch.stack([torch.cat([x, x.flip(1)], 1), y.repeat_interleave(2, 1)], -1)
    there = params["dst"].to(view.device, non_blocking=True)
    return params | {"src": source.to(params["src"].dtype), "dst": there}
