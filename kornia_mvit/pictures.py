"""Images of other libraries as tensors: PIL images and NumPy arrays."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor

from kornia_mvit.extras import needing

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "ORIENTATION",
    "array_to_tensor",
    "is_array",
    "is_picture",
    "picture_to_tensor",
    "read_numbers",
    "rgb_to_tensor",
    "to_rgb",
]

ORIENTATION = 274  # tag of EXIF
_BITS, _GREATEST = 258, 281  # tags of TIFF
_DARK: list[int] = []  # greatest value of an image that was told of: one is enough
_STRIP = 2**22  # pixels of an image that are at hand in several forms at a time
_CHANNELS = (1, 3, 4)


def is_array(value: object) -> bool:
    """Return whether a value is a NumPy array."""
    return type(value).__module__ == "numpy" and hasattr(value, "__array_interface__")


def is_picture(value: object) -> "TypeGuard[Image.Image]":
    """Return whether a value is a PIL image, without importing Pillow."""
    return any(f"{kind.__module__}.{kind.__name__}" == "PIL.Image.Image" for kind in type(value).__mro__)


def array_to_tensor(array: Any) -> Tensor:
    """Return a NumPy image as a tensor in RGB.

    Args:
        array: (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), uint8.

    Returns:
        (3, H, W), uint8.

    Raises:
        TypeError: for another dtype.
        ValueError: for another shape.
        ImportError: for other arrays than (H, W, 3), where Pillow is missing.
    """
    shape = tuple(array.shape)
    if str(array.dtype) != "uint8":
        hint = "; of values in [0, 1], (array * 255).round().astype('uint8')" if array.dtype.kind == "f" else ""
        raise TypeError(
            f"it is an array of {array.dtype}; arrays are uint8, (H, W, 3), as image libraries have it{hint}"
        )
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] not in _CHANNELS):
        raise ValueError(
            f"it is an array {shape}; arrays are (H, W, 3), (H, W, 4) or (H, W): for (C, H, W) pass "
            "torch.from_numpy(array), for several images a list"
        )
    if len(shape) == 3 and shape[2] == 3:
        return torch.from_numpy(array.copy()).permute(2, 0, 1)
    with needing("arrays other than (H, W, 3) need Pillow", "train"):
        from PIL import Image
    return rgb_to_tensor(to_rgb(Image.fromarray(array.reshape(shape[:2]) if shape[-1:] == (1,) else array)))


def picture_to_tensor(picture: "Image.Image") -> Tensor:
    """Return a PIL image of any mode as a tensor (3, H, W), uint8: turned upright, in RGB.

    Raises:
        ValueError: as :func:`to_rgb` says; and what Pillow raises, as a picture decodes when its pixels are asked for.
    """
    from PIL import ImageOps

    return rgb_to_tensor(to_rgb(ImageOps.exif_transpose(picture)))


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


def rgb_to_tensor(rgb: "Image.Image") -> Tensor:
    """Return a PIL image of mode RGB as a tensor (3, H, W), uint8.

    The three values of a pixel lie together in memory, as they come; resizing is faster that way.
    """
    out = torch.empty(rgb.height, rgb.width, 3, dtype=torch.uint8)
    step = max(1, _STRIP // rgb.width)
    for top in range(0, rgb.height, step):  # so that large images are not in memory several times
        whole = step >= rgb.height
        strip = rgb if whole else rgb.crop((0, top, rgb.width, min(top + step, rgb.height)))
        pixels = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8)
        out[top : top + step] = pixels.view(strip.height, strip.width, 3)
    return out.permute(2, 0, 1)


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Return a PIL image in RGB: grey of 16 bits scaled to 8, transparent pixels laid over white.

    Raises:
        ValueError: for floating-point pixels, and grey values that are none of 16 bits.
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
