"""Kornia's free warps: which place of an image each pixel of the result shows, by what was drawn."""

from typing import Any

import kornia.augmentation as K
import torch
from kornia.constants import Resample, SamplePadding
from kornia.filters import get_gaussian_kernel1d
from torch import Tensor, nn

from kornia_mvit.ops.geometry import constant
from kornia_mvit.ops.uploads import upload

__all__ = ["DRAWN", "FREE_WARPS", "is_plain_warp", "sampled_places", "warp_rim"]

FREE_WARPS = (K.RandomElasticTransform, K.RandomThinPlateSpline, K.RandomFisheye)
DRAWN = ("noise", "src", "dst", "center_x", "center_y", "gamma")  # what of their parameters is read where images are


# B batch, H W canvas
def sampled_places(module: nn.Module, draw: dict[str, Any], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return what each pixel shows of images that one of :data:`FREE_WARPS` warps: x and y in pixels, (B, 2, H, W).

    Images that did not draw the warp show themselves.

    Args:
        module: the augmentation.
        draw: what it drew.
        shape: of the images, (B, C, H, W).
        device: of the images.
    """
    size = (int(shape[-2]), int(shape[-1]))
    names, gate = [name for name in DRAWN if name in draw], draw["batch_prob"] > 0.5
    there = upload([gate, *(draw[name] for name in names)], device)
    drawn = {name: value.float() for name, value in zip(names, there[1:], strict=True)}
    flags: dict[str, Any] = module.flags  # type: ignore[assignment]  # of each of Kornia's augmentations
    if isinstance(module, K.RandomElasticTransform):
        places = _elastic(drawn["noise"], flags)
    elif isinstance(module, K.RandomThinPlateSpline):
        places = _spline(drawn["src"], drawn["dst"], size, flags["align_corners"])
    else:
        centre_x, centre_y, gamma = (drawn[name].view(-1, 1, 1) for name in ("center_x", "center_y", "gamma"))
        places = _fisheye((centre_x, centre_y), gamma, size)
    if gate.device.type == "cpu" and not torch.compiler.is_compiling() and bool(gate.all()):
        return places
    x, y = (torch.arange(n, dtype=torch.float32, device=device) + 0.5 for n in (size[1], size[0]))
    still = torch.stack([x.expand(size), y[:, None].expand(size)])
    return torch.where(there[0][:, None, None, None], places, still)


def is_plain_warp(module: nn.Module) -> bool:
    """Tell whether a free warp samples bilinearly and leaves zeros outside."""
    flags: dict[str, Any] = module.flags  # type: ignore[assignment]  # as above
    return flags.get("resample", Resample.BILINEAR) == Resample.BILINEAR and _leaves_zeros(flags)


def warp_rim(module: nn.Module) -> float:
    """Return how far from an image's edges Kornia mixes its pixels with what lies outside, in pixels."""
    return 0.5 if is_plain_warp(module) else 0.0


def _leaves_zeros(flags: dict[str, Any]) -> bool:
    return flags.get("padding_mode", "zeros") in ("zeros", SamplePadding.ZEROS)


def _axis(length: int, corners: bool, device: torch.device) -> Tensor:
    """Return the normalised places of pixels, as Kornia counts them: -1 and 1 at the outermost centres or the edges."""
    if corners:
        return torch.linspace(-1, 1, length, device=device) * (length > 1)
    return (2 * torch.arange(length, dtype=torch.float32, device=device) + 1) / length - 1


def _in_pixels(x: Tensor, y: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    """Return normalised places in pixels from the upper left corner: (B, H, W) each -> (B, 2, H, W)."""
    height, width = size
    scale = ((width - 1) / 2, (height - 1) / 2) if corners else (width / 2, height / 2)
    shift = (width / 2, height / 2)
    by, start = (constant(pair, x.device, torch.float32)[:, None, None] for pair in (scale, shift))
    return torch.stack([x, y], 1).mul_(by).add_(start)


def _elastic(noise: Tensor, flags: dict[str, Any]) -> Tensor:
    size, device = (int(noise.shape[-2]), int(noise.shape[-1])), noise.device
    down, across = (
        _band(get_gaussian_kernel1d(length, torch.full((1, 1), float(sigma), device=device), device=device)[0], side)
        for length, sigma, side in zip(flags["kernel_size"], flags["sigma"], size, strict=True)
    )
    smooth = down @ noise @ across.T
    corners = bool(flags["align_corners"])
    x = _axis(size[1], corners, device) + smooth[:, 0] * float(flags["alpha"][0])
    y = _axis(size[0], corners, device)[:, None] + smooth[:, 1] * float(flags["alpha"][1])
    return _in_pixels(x, y, size, corners)


def _band(kernel: Tensor, side: int) -> Tensor:
    """Return the matrix that filters along a side, with zeros beyond its ends, as products are faster: (side, side)."""
    places = torch.arange(side, device=kernel.device)
    tap = places - places[:, None] + len(kernel) // 2
    return kernel[tap.clamp(0, len(kernel) - 1)] * ((tap >= 0) & (tap < len(kernel)))


def _spline(source: Tensor, target: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    kernel, affine = _solve_spline(source, target)
    x, y = _axis(size[1], corners, source.device), _axis(size[0], corners, source.device)[:, None]
    out = [affine[:, 0, k, None, None] + affine[:, 1, k, None, None] * x for k in range(2)]
    out = [part + affine[:, 2, k, None, None] * y for k, part in enumerate(out)]
    for point in range(source.shape[1]):
        square = (x - source[:, point, 0, None, None]).square() + (y - source[:, point, 1, None, None]).square()
        bent = torch.xlogy(0.5 * square, square)
        out = [part + kernel[:, point, k, None, None] * bent for k, part in enumerate(out)]
    return _in_pixels(out[0], out[1], size, corners)


def _solve_spline(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of the spline that takes ``target`` to ``source``, as Kornia has it."""
    given, wanted = target.double(), source.double()
    square = (given[:, :, None] - wanted[:, None]).square().sum(-1)
    ones = torch.cat([torch.ones_like(given[..., :1]), given], -1)
    below = torch.cat([ones.mT, ones.new_zeros(len(ones), 3, 3)], -1)
    whole = torch.cat([torch.cat([torch.xlogy(0.5 * square, square), ones], -1), below], 1)
    right = torch.cat([wanted, wanted.new_zeros(len(wanted), 3, 2)], 1)
    weights: Tensor = torch.linalg.solve_ex(whole, right).result.float()
    return weights[:, :-3], weights[:, -3:]


def _fisheye(centre: tuple[Tensor, Tensor], gamma: Tensor, size: tuple[int, int]) -> Tensor:
    x, y = _axis(size[1], True, gamma.device), _axis(size[0], True, gamma.device)[:, None]
    square = (centre[0] - x).square() + (centre[1] - y).square()
    scale = 1 + square ** (gamma / 2)
    return _in_pixels(x * scale, y * scale, size, True)
