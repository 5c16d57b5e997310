"""The further images and maps of a batch as images."""

import torch
from torch import Tensor

from kornia_mvit.extra_images import Extra

__all__ = ["paint_extra"]

_UNKNOWN = 128  # grey, of what is not finite
# From low to high values: dark blue, green and yellow, as dark and bright as the value is.
_COLOURS = ((0.16, 0.06, 0.35), (0.20, 0.30, 0.55), (0.12, 0.55, 0.55), (0.40, 0.78, 0.38), (0.98, 0.91, 0.20))


def paint_extra(one: Extra) -> Tensor:
    """Return maps as images (B, 3, H, W), uint8, on the CPU.

    Values go from dark blue to yellow, from the least to the greatest of the batch, by the mean of their channels.
    Vectors have the hue of their direction, red to the right and green down to the left, and are the brighter, the
    longer; black is none. What is not finite is grey.

    Args:
        one: of kind ``'values'`` or ``'vectors'``, (B, C, H, W).
    """
    maps = one.tensor.detach().cpu().float()
    known = maps.isfinite().all(1, keepdim=True)
    maps = maps.masked_fill(~known, 0.0)
    colours = _paint_vectors(maps) if one.kind == "vectors" else _paint_values(maps.mean(1), known[:, 0])
    return (colours * 255).round().to(torch.uint8).masked_fill(~known, _UNKNOWN)


def _paint_values(values: Tensor, known: Tensor) -> Tensor:
    """Return values (B, H, W) as colours (B, 3, H, W) in [0, 1]."""
    shown = values[known]
    low, high = (float(v) for v in shown.aminmax()) if len(shown) else (0.0, 0.0)
    share = ((values - low) / max(high - low, 1e-12)).clamp(0, 1) * (len(_COLOURS) - 1)
    first = share.floor().long().clamp_max(len(_COLOURS) - 2)
    table, rest = torch.tensor(_COLOURS), (share - first)[..., None]
    return torch.lerp(table[first], table[first + 1], rest).permute(0, 3, 1, 2)


def _paint_vectors(vectors: Tensor) -> Tensor:
    """Return vectors (B, 2, H, W) as colours (B, 3, H, W) in [0, 1]."""
    length = vectors.square().sum(1).sqrt()
    turn = torch.atan2(vectors[:, 1], vectors[:, 0]) / (2 * torch.pi)
    share = (length / length.amax().clamp_min(1e-6)).clamp(0, 1)
    hues = [(1.5 - 6 * ((turn + 1 - place / 3 + 0.5) % 1 - 0.5).abs() + 0.5).clamp(0, 1) for place in range(3)]
    return torch.stack(hues, 1) * share[:, None]
