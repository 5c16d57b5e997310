"""The masks of single objects over a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.draw.sheets import pillow

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["paint_instances"]

_SHARE = 0.45  # of an object's colour in what is painted inside it


def paint_instances(
    picture: "Image.Image", masks: Tensor, colours: Sequence[tuple[int, int, int]], line: int = 1
) -> "Image.Image":
    """Return a picture with objects painted over it, each in a colour and with a line around it.

    Args:
        picture: a Pillow image.
        masks: (N, H, W), bool, on the CPU; of any size.
        colours: red, green and blue of each, from 0 to 255.
        line: width of the line in pixels.
    """
    images = pillow()[0]
    out: Image.Image = picture.copy()
    height, width = picture.height, picture.width
    row, column = (
        ((torch.arange(n) + 0.5) * (m / n)).long() for n, m in zip((height, width), masks.shape[1:], strict=True)
    )
    for mask, colour in zip(masks, colours, strict=True):
        large = mask[row[:, None], column].float()
        inner = 1 - F.max_pool2d(1 - F.pad(large, [line] * 4)[None, None], 2 * line + 1, 1)[0, 0]
        weight = torch.where(inner > 0, _SHARE, 1.0) * large
        out.paste(colour, mask=images.fromarray((weight * 255).to(torch.uint8).numpy()))
    return out
