"""Random colours in few passes over the pixels."""

import math
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from kornia_mvit.ops.geometry import constant

__all__ = ["LUMA", "RandomColorTwist", "jitter_colors", "saturate", "turn"]

# Luma, and red, green and blue to luma and two axes of colour (YIQ).
LUMA = (0.299, 0.587, 0.114)
_YIQ = (LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


class RandomColorTwist(IntensityAugmentationBase2D):
    """Change brightness, contrast, saturation and hue at random, by one 3x3 matrix and an offset for each image.

    What colour jitter does in four passes, of which hue needs another colour space, is done in one, some twenty times
    faster on the CPU. Contrast is about the image's mean luma; hue turns the colours about the grey axis. Values are
    clamped once, at the end.

    Args:
        brightness: the factor is drawn from 1 minus this to 1 plus this.
        contrast: likewise.
        saturation: likewise; 0 is grey.
        hue: the angle is drawn from minus this to this, in full turns.
        p: share of the images that are changed.

    Shape:
        - Input: :math:`(B, 3, H, W)` in [0, 1]; :math:`(B, 1, H, W)`, of which saturation and hue change nothing; or
          without these :math:`(B, C, H, W)`, of which contrast is about the mean of all channels
        - Output: the same

    Raises:
        ValueError: for a strength that is negative, a hue above half a turn, a probability outside [0, 1], or another
            number of channels.

    References:
        The operation is known as color twist in NVIDIA DALI; hue turns as in the NTSC colour space YIQ.

    Example:
        >>> RandomColorTwist(0.4, 0.4, 0.4, 0.1)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0, p: float = 1.0
    ) -> None:
        super().__init__(p=1.0)
        self.strengths: dict[str, float] = {
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        }
        for name, value in self.strengths.items():
            if value < 0 or (name == "hue" and value > 0.5):
                raise ValueError(f"{name} {value} is negative, or more than half a turn of hue")
        if not 0 <= p <= 1:
            raise ValueError(f"p {p} is not a probability in [0, 1]")
        self.share = p

    def forward_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw a factor or angle of each kind for each image of a shape (B, C, H, W), or the same for all."""
        count = batch_shape[0]
        rows = 1 if self.same_on_batch else count
        chosen = torch.rand(rows) < self.share
        out = {"batch_prob": torch.ones(count), "forward_input_shape": torch.tensor(batch_shape)}
        for name, strength in self.strengths.items():
            usual = 0.0 if name == "hue" else 1.0
            drawn = usual + strength * (2 * torch.rand(rows) - 1)
            out[name] = torch.where(chosen, drawn if name == "hue" else drawn.clamp_min(0), usual).expand(count)
        return out

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Apply what was drawn."""
        if input.shape[1] not in (1, 3) and (self.strengths["saturation"] or self.strengths["hue"]):
            raise ValueError(
                f"RandomColorTwist turns the colours of images of 1 or 3 channels, got {input.shape[1]}; give "
                "saturation=0 and hue=0"
            )
        drawn = {
            name: params[name].to(input.device, input.dtype, non_blocking=True)[:, None, None]
            for name in self.strengths
        }
        luma = constant(LUMA, input.device, torch.float32).to(input.dtype)
        mean = input.mean((2, 3), dtype=input.dtype)
        mean = (mean @ luma)[:, None, None] if input.shape[1] == 3 else mean.mean(1)[:, None, None]
        offset = (1 - drawn["contrast"]) * drawn["brightness"] * mean
        matrix = drawn["contrast"] * drawn["brightness"]
        if input.shape[1] == 3:
            matrix = matrix * (turn(drawn["hue"]) @ saturate(drawn["saturation"], luma))
        elif input.shape[1] > 1:
            return torch.addcmul(offset[..., None], matrix[..., None], input).clamp_(0, 1)
        out = torch.baddbmm(offset, matrix, input.flatten(2))
        return out.clamp_(0, 1).view(input.shape)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.strengths.items() if value)
        return f"RandomColorTwist({given}, p={self.share})" if given else f"RandomColorTwist(p={self.share})"


def saturate(factor: Tensor, luma: Tensor) -> Tensor:
    """Return matrices between a colour and its grey: (B, 1, 1) -> (B, 3, 3)."""
    whole = torch.eye(3, dtype=factor.dtype, device=factor.device)
    return factor * whole + (1 - factor) * luma.expand(3, 3)


def _turn_parts() -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Return the part of :func:`turn` that does not depend on the angle, and those of its cosine and of its sine."""
    there = torch.tensor(_YIQ, dtype=torch.float64)
    whole, cosine, sine = torch.zeros(3, 3, 3, dtype=torch.float64)
    whole[0, 0] = 1.0
    cosine[1, 1] = cosine[2, 2] = 1.0
    sine[1, 2], sine[2, 1] = 1.0, -1.0
    back = torch.linalg.inv(there)
    return tuple(tuple(map(tuple, (back @ part @ there).tolist())) for part in (whole, cosine, sine))


_TURN = _turn_parts()


def turn(angle: Tensor) -> Tensor:
    """Return matrices that turn colours about the grey axis by full turns: (B, 1, 1) -> (B, 3, 3)."""
    parts = constant(_TURN, angle.device, angle.dtype)
    radians = 2 * math.pi * angle
    turned = parts[0] + radians.cos() * parts[1] + radians.sin() * parts[2]
    same = torch.eye(3, dtype=angle.dtype, device=angle.device)
    return torch.where(angle == 0, same, turned)


def jitter_colors(image: Tensor, params: dict[str, Tensor], order: list[int]) -> Tensor:
    """Change colours as Kornia's ``ColorJitter`` does, on a CPU in a third of its time.

    The difference is rounding: hue goes by the chroma in place of the saturation.

    Args:
        image: (B, 3, H, W), floating point in [0, 1].
        params: what ``ColorJitter`` drew for these images: ``batch_prob`` and the four factors, (B,) each.
        order: of brightness (0), contrast (1), saturation (2) and hue (3).

    Returns:
        (B, 3, H, W), other tensors than ``image``.

    Example:
        >>> one = torch.ones(1)
        >>> params = {f"{name}_factor": one for name in ("brightness", "contrast", "saturation")}
        >>> params |= {"hue_factor": one / 3, "batch_prob": one}
        >>> jitter_colors(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1), params, [0, 1, 2, 3]).flatten()
        tensor([0.0000, 1.0000, 0.5000])
    """
    out = image.clone()
    names = ("batch_prob", "brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for one, (gate, *factors) in zip(out, zip(*(params[name].tolist() for name in names), strict=True), strict=True):
        if gate <= 0.5:
            continue
        one.clamp_(0, 1)
        for step in order:
            if factors[step] != _NEUTRAL[step]:
                _STEPS[step](one, factors[step])
    return out


def _brighten(image: Tensor, factor: float) -> None:
    image.mul_(factor).clamp_(0, 1)


def _contrast(image: Tensor, factor: float) -> None:
    mean = _grey(image).mean()
    image.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _resaturate(image: Tensor, factor: float) -> None:
    grey = _grey(image).mul_(1 - factor)
    image.mul_(factor).add_(grey).clamp_(0, 1)


def _grey(image: Tensor) -> Tensor:
    return torch.mul(image[0], LUMA[0]).add_(image[1], alpha=LUMA[1]).add_(image[2], alpha=LUMA[2])


def _rehue(image: Tensor, turns: float) -> None:
    """Turn the hue, in place: what is brightest and what is darkest of a pixel stays."""
    red, green, blue = image
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # The hue in sixths of a turn, counted from red; of grey it is any.
    is_red, is_green = high == red, high == green
    offset = torch.where(is_red, 6 * turns, torch.where(is_green, 6 * turns + 2, 6 * turns + 4))
    difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    hue = difference.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny)).add_(offset)
    hue.sub_(torch.floor(hue / 6), alpha=6)
    # Each channel is a trapezium over the hue.
    torch.addcmul(low, chroma, torch.sub(hue, 3).abs_().sub_(1).clamp_(0, 1), out=image[0])
    for channel, centre in ((1, 2), (2, 4)):
        torch.addcmul(low, chroma, torch.sub(hue, centre).abs_().neg_().add_(2).clamp_(0, 1), out=image[channel])


_STEPS = (_brighten, _contrast, _resaturate, _rehue)
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)
