"""Changes of an image's values, each by a magnitude of the image's own, with gradients to the magnitudes.

Brightness, contrast, saturation and hue are 3x3 matrices and offsets of each image's channels: those that follow each
other are put together first, and take one pass over the pixels.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor

from kornia_mvit.augmentation.color import LUMA, saturate, turn
from kornia_mvit.ops.geometry import constant
from kornia_mvit.ops.seeds import combine_seed

__all__ = ["COLOURS", "NEUTRAL", "adjust"]

# B batch, C channels, H W image
NEUTRAL = {
    "brightness": 1.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "hue": 0.0,
    "gamma": 1.0,
    "sharpness": 1.0,
    "blur": 0.0,
    "noise": 0.0,
}
COLOURS = ("saturation", "hue")  # which images of three channels alone have
_LINEAR = ("brightness", "contrast", *COLOURS)
_DARKEST = 1e-6  # of gamma's input: its derivative has a logarithm
_SHARPEST = 0.05  # standard deviation in pixels below which a blur changes nothing
_TAPS = 13  # of the blur


def adjust(
    image: Tensor, order: Sequence[str], magnitudes: Mapping[str, Tensor], rows: Mapping[str, Tensor], seed: int
) -> Tensor:
    r"""Apply operations in an order, each to some of the images, and clamp to [0, 1] once, at the end.

    ========== =========================================================== ===================
    operation  result for a magnitude :math:`m`                            neutral
    ========== =========================================================== ===================
    brightness :math:`m x`                                                 1
    contrast   :math:`m x + (1 - m) \mu`, the mean of each channel          1
    saturation :math:`m x + (1 - m) g`, the luma of each pixel             1
    hue        a turn of the colours by m full turns about the grey axis   0
    gamma      :math:`x^m`                                                 1
    sharpness  :math:`m x + (1 - m) s`, the image smoothed 3x3             1
    blur       Gaussian blur, m its standard deviation in pixels           0
    noise      :math:`x + m \varepsilon`, standard normal for each value    0
    ========== =========================================================== ===================

    Args:
        image: (B, C, H, W), floating point in [0, 1].
        order: names of the operations.
        magnitudes: for each operation (n,), one for each of its images.
        rows: for each operation (n,), the numbers of its images in the batch, without repetition.
        seed: of the noise.

    Returns:
        (B, C, H, W), another tensor than ``image``.

    Example:
        >>> grey, rows = torch.full((2, 3, 4, 4), 0.4), {"brightness": torch.tensor([1])}
        >>> adjust(grey, ["brightness"], {"brightness": torch.tensor([2.0])}, rows, 0)[:, 0, 0, 0]
        tensor([0.4000, 0.8000])
    """
    linear = _Linear(image)
    for name in order:
        magnitude, chosen = magnitudes[name].to(image.dtype), rows[name]
        if name in _LINEAR:
            linear.add(name, magnitude, chosen)
            continue
        image = linear.apply()
        part = image.index_select(0, chosen)
        if name == "noise":
            own = Generator(image.device).manual_seed(combine_seed(seed, 1))
            noise = torch.randn(part.shape, dtype=image.dtype, device=image.device, generator=own)
            part = torch.addcmul(part, noise, magnitude[:, None, None, None])
        elif name == "gamma":
            part = part.clamp_min(_DARKEST) ** magnitude[:, None, None, None]
        elif name == "sharpness":
            part = torch.lerp(_smooth(part), part, magnitude[:, None, None, None])
        else:
            sigma = magnitude.clamp_min(_SHARPEST)[:, None].expand(-1, 2)
            part = gaussian_blur2d(part, _TAPS, sigma, border_type="replicate")
        linear = _Linear(image.index_copy(0, chosen, part))
    return linear.apply().clamp(0, 1)


class _Linear:
    """Linear operations of each image's channels that are still to be done."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.matrix: Tensor | None = None  # (B, C, C)
        self.offset = image.new_zeros(())

    def add(self, name: str, magnitude: Tensor, chosen: Tensor) -> None:
        """Put an operation behind the others."""
        image = self.image
        count, channels = image.shape[:2]
        same = torch.eye(channels, dtype=image.dtype, device=image.device)
        if self.matrix is None:
            self.matrix = same.expand(count, channels, channels)
            self.offset = image.new_zeros(count, channels, 1)
        neutral = image.new_full((count,), NEUTRAL[name])
        each = neutral.index_copy(0, chosen, magnitude)[:, None, None]
        if name in COLOURS:
            luma = constant(LUMA, image.device, torch.float32).to(image.dtype)
            step = turn(each) if name == "hue" else saturate(each, luma)
            self.matrix, self.offset = step @ self.matrix, step @ self.offset
            return
        if name == "contrast":
            mean = self.matrix @ image.mean((2, 3))[..., None] + self.offset
            self.offset = each * self.offset + (1 - each) * mean
        else:
            self.offset = each * self.offset
        self.matrix = each * self.matrix

    def apply(self) -> Tensor:
        """Return the images after the operations."""
        if self.matrix is None:
            return self.image
        return torch.baddbmm(self.offset, self.matrix, self.image.flatten(2)).view(self.image.shape)


def _smooth(image: Tensor) -> Tensor:
    """Return the mean of 3x3 pixels in which the middle one counts five times, as Pillow's sharpness has it."""
    near = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (9 * near + 4 * image) / 13
