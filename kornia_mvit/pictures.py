"""Pictures of Pillow as tensors. Nothing is imported from Pillow before a picture is there."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ORIENTATION", "is_picture", "read_numbers", "to_rgb", "to_tensor", "upright"]

ORIENTATION = 274  # tag of EXIF
_BITS, _GREATEST = 258, 281  # tags of TIFF
_DARK: list[int] = []  # greatest value of an image that was told of: one is enough
_STRIP = 2**22  # pixels of an image that are at hand in several forms at a time


def is_picture(value: object) -> "TypeGuard[Image.Image]":
    """Return whether a value is an image of Pillow."""
    return any(f"{kind.__module__}.{kind.__name__}" == "PIL.Image.Image" for kind in type(value).__mro__)


def upright(picture: "Image.Image") -> Tensor:
    """Return a picture of any mode, turned as its EXIF data tell: (3, H, W), uint8.

    Raises:
        ValueError: for pixels that have no known range.
    """
    from PIL import ImageOps

    return to_tensor(to_rgb(ImageOps.exif_transpose(picture)))


def read_numbers(picture: "Image.Image") -> Tensor:
    """Return the numbers of a label image: (H, W), uint8 or int32.

    Raises:
        ValueError: for a picture of colours.
    """
    image = picture.convert("I") if picture.mode.startswith("I") else picture
    if image.mode not in ("1", "L", "P", "I"):
        raise ValueError(f"{image.mode}, colours; a label image holds a class a pixel, in one channel or a palette")
    data = (image.convert("L") if image.mode == "1" else image).tobytes()
    numbers = torch.frombuffer(bytearray(data), dtype=torch.int32 if image.mode == "I" else torch.uint8)
    numbers = numbers.view(image.height, image.width)
    return (numbers > 0).to(torch.uint8) if image.mode == "1" else numbers


def to_tensor(rgb: "Image.Image") -> Tensor:
    """Return the pixels of a picture in RGB: (3, H, W), uint8."""
    out = torch.empty(3, rgb.height, rgb.width, dtype=torch.uint8)
    step = max(1, _STRIP // rgb.width)
    for top in range(0, rgb.height, step):  # so that large images are not in memory several times
        strip = rgb.crop((0, top, rgb.width, min(top + step, rgb.height)))
        pixels = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8)
        out[:, top : top + step] = pixels.view(strip.height, strip.width, 3).permute(2, 0, 1)
    return out


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Return a picture in RGB: grey of 16 bits as 8, transparent pixels over white.

    Raises:
        ValueError: for pixels that have no known range.
    """
    from PIL import Image

    if image.mode.startswith("I"):
        return _grey_to_rgb(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the file to 8 or 16 bit")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_rgb(image: "Image.Image") -> "Image.Image":
    """Scale grey of 16 bits, or as many as the file says, to 8; Pillow's own conversion clips instead of scaling."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits, greatest = (
        value[0] if isinstance(value, tuple) else value for value in (tags.get(_BITS, 16), tags.get(_GREATEST, 0))
    )
    numbers = image.convert("I")
    low, high = cast(tuple[int, int], numbers.getextrema())
    if low < 0 or high >= 2**16:
        raise ValueError(f"grey values from {low} to {high} are none of 16 bits; convert the file to 8 or 16 bit")
    used = max(8, min(bits, int(greatest).bit_length() or 16, 16))
    if high >= 2**used:
        used = 16
    if used == 16 and 0 < high < 2**12 and not _DARK:
        _DARK.append(high)
        warnings.warn(
            f"a grey image of 16 bits has no value above {high:,} and turns nearly black; if its data have fewer bits, "
            "scale them to 16, or save as TIFF with MaxSampleValue",
            stacklevel=2,
        )
    return numbers.point([min(v >> (used - 8), 255) for v in range(65536)], "L").convert("RGB")
