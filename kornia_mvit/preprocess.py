"""What happens to an image before the network sees it, stated once for training, evaluation and deployment."""

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.fields import check_image_values, check_layout, plain_tensor
from kornia_mvit.parsing import check_truths
from kornia_mvit.pictures import array_to_tensor, is_array, is_picture, picture_to_tensor

__all__ = ["MAX_PIXELS", "Preprocess", "PreprocessModule", "antialiased_resize", "round_ratio", "to_float"]

Size = int | tuple[int, int]

MAX_PIXELS = 4096 * 4096  # that an image may have when it is resized, unless told otherwise


@dataclass(frozen=True)
class Preprocess:
    """A record of how images become the network's input: resize, centre crop, channel order, mean and std.

    The record is plain data, so that it travels inside a checkpoint. Called with an image, it returns the network's
    input; :meth:`module` builds the module that it applies.

    Args:
        size: what the image is resized to, in pixels. One number is the length of the shorter side, the aspect kept;
            two are height and width. None leaves the size alone.
        crop: height and width of the centre crop after the resize, or one number for both; None for no crop.
        interpolation: ``'bilinear'`` or ``'bicubic'``, antialiased both.
        channel_order: the order of the channels that the network takes; images are RGB.
        mean: subtracted from each channel of an image in [0, 1]; None for nothing.
        std: what each channel is divided by afterwards; None for nothing.
        letterbox: keep the aspect where the size is a height and a width: the image is resized to fit, and black is
            laid below it or at its right.
        max_pixels: most pixels that an image may have when it is resized, or as it is where the size is None; larger
            ones are refused, as one of 20000x1 pixels, whose longer side would be 5,120,000 pixels long. None for no
            bound. Of a size that is a height and a width there is none.

    Raises:
        ValueError: for sizes that are not positive, a crop that the resized image cannot hold, an unknown
            interpolation or channel order, a std of zero, or a letterbox without a height and width or with a crop.

    Example:
        >>> apple = Preprocess(size=288, crop=256)
        >>> apple.module()(torch.zeros(1, 3, 480, 640, dtype=torch.uint8)).shape
        torch.Size([1, 3, 256, 256])
        >>> Preprocess.from_dict(apple.to_dict()) == apple
        True
        >>> apple(torch.zeros(3, 480, 640, dtype=torch.uint8)).shape  # a PIL image or a NumPy array does as well
        torch.Size([1, 3, 256, 256])
    """

    size: Size | None = 256
    crop: Size | None = None
    interpolation: str = "bilinear"
    channel_order: str = "rgb"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    letterbox: bool = False
    max_pixels: int | None = field(default=MAX_PIXELS, repr=False)

    # of the network whose record it is, see `bound_to`; no fields, as they are no part of what the record says
    _device: ClassVar[torch.device | None] = None
    _channels: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        for name in ("size", "crop", "mean", "std"):  # lists, as YAML and JSON have them, become tuples
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        check_truths(letterbox=self.letterbox)
        for name in ("size", "crop"):
            _check_size(name, getattr(self, name))
        if self.max_pixels is not None and (type(self.max_pixels) is not int or self.max_pixels < 1):
            raise ValueError(f"max_pixels {self.max_pixels!r} is not a positive number of pixels, nor None")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"unknown interpolation {self.interpolation!r}; available: 'bilinear', 'bicubic'")
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(f"unknown channel order {self.channel_order!r}; available: 'rgb', 'bgr'")
        if self.std is not None and not all(s > 0 for s in self.std):
            raise ValueError(f"std {self.std} is not positive; None leaves the values alone")
        if self.letterbox and (not isinstance(self.size, tuple) or self.crop is not None):
            raise ValueError(
                f"a letterbox has a height and a width, and no crop; size is {self.size} and crop {self.crop}"
            )
        if self.size is not None and self.crop is not None:
            held = (self.size, self.size) if isinstance(self.size, int) else self.size
            height, width = _pair(self.crop)
            if height > held[0] or width > held[1]:
                raise ValueError(f"crop {self.crop} is larger than the image resized to {self.size}; resize to more")

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of every result, or None where they depend on the image."""
        if self.crop is not None:
            return _pair(self.crop)
        return self.size if isinstance(self.size, tuple) else None

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of the given ones is resized to, before the crop or the letterbox.

        Raises:
            ValueError: if they are more pixels than ``max_pixels``.
        """
        if self.size is None:
            return self._bound((height, width), height, width)
        # in whole numbers and without a branch, so that a graph that is traced for all sizes has it too
        if self.letterbox:
            full = _pair(self.size)
            fitted = round_ratio(height * full[1], width), round_ratio(width * full[0], height)
            return _least(full[0], torch.sym_max(1, fitted[0])), _least(full[1], torch.sym_max(1, fitted[1]))
        if isinstance(self.size, tuple):
            return self.size
        short = _least(height, width)
        return self._bound((self.size * height // short, self.size * width // short), height, width)

    def _bound(self, resized: tuple[int, int], height: int, width: int) -> tuple[int, int]:
        """Raise where an image is too large when resized; sizes of a graph that is traced are not known."""
        if self.max_pixels is None or type(height) is not int or type(width) is not int:
            return resized
        if not torch.compiler.is_compiling() and resized[0] * resized[1] > self.max_pixels:
            what = "is" if self.size is None else f"resized to {resized[0]}x{resized[1]} is"
            raise ValueError(
                f"an image of {height}x{width} pixels {what} larger than {self.max_pixels:,} pixels; crop it, or give "
                "Preprocess two numbers as size or a larger max_pixels"
            )
        return resized

    def crop_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the centre crop in a resized image; all of it where there is no crop.

        Raises:
            ValueError: if the image is smaller than the crop.
        """
        if self.crop is None:
            return 0, 0, height, width
        h, w = _pair(self.crop)
        if height < h or width < w:
            raise ValueError(
                f"an image of {height}x{width} pixels is smaller than the crop {h}x{w}; give Preprocess a size"
            )
        return round_ratio(height - h, 2), round_ratio(width - w, 2), h, w

    def __call__(self, image: Any) -> Tensor:
        """Return an image, or several, as the network takes them.

        Args:
            image: a tensor (C, H, W) or (B, C, H, W), uint8 or floating point in [0, 1]; a PIL image of any mode; a
                NumPy array (H, W, 3), (H, W, 4) or (H, W), uint8; or a list of these.

        Returns:
            (B, C, h, w), floating point, on the device of the image; ``model.preprocess(image)`` returns it on the
            model's, and repeats the one channel of a grey image where the model takes more.

        Raises:
            TypeError: for an image of another type or dtype.
            ValueError: for an image of another shape or with values outside [0, 1], for images of a list that do not
                come out in one size, and for a number of channels that the model does not take.
            ImportError: for arrays other than (H, W, 3), where Pillow is missing.
        """
        if isinstance(image, list | tuple):
            parts = [self(one) for one in image]
            if len(sizes := {(part.shape[-2], part.shape[-1]) for part in parts}) != 1:
                told = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
                raise ValueError(f"the images come out in {len(sizes)} sizes {told}; give size two numbers, or a crop")
            return torch.cat(parts)
        batch = _to_batch(image).to(self._device)
        if self._channels is not None and batch.shape[1] != self._channels:
            if batch.shape[1] != 1:
                raise ValueError(f"the image has {batch.shape[1]} channels, and the model takes {self._channels}")
            batch = batch.expand(-1, self._channels, -1, -1)
        return self.module().to(batch.device)(batch)

    def bound_to(self, device: torch.device, channels: int) -> Self:
        """Return an equal record whose call returns images on a device, and with a network's number of channels."""
        record = copy(self)
        object.__setattr__(record, "_device", device)  # the dataclass is frozen
        object.__setattr__(record, "_channels", channels)
        return record

    def module(self) -> "PreprocessModule":
        """Build the module that applies the record."""
        return PreprocessModule(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as numbers, strings and lists; ``max_pixels`` where it is not the usual one."""
        data = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        if self.max_pixels == MAX_PIXELS:
            del data["max_pixels"]  # which the first version does not know
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gives.

        Raises:
            ValueError: for a field that does not exist.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"Preprocess has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**data)


class PreprocessModule(nn.Module):
    r"""Apply a :class:`Preprocess` to a batch of RGB images of one size.

    The resize is torchvision's (v2) antialiased one. On the CPU, uint8 images are equal to the bit; elsewhere, when
    compiled, and in exported graphs, they are resampled as floating point and rounded where torchvision's are, so that
    one pixel in some hundred differs, by 1/255.

    Args:
        preprocess: the record.

    Shape:
        - Input: :math:`(B, C, H, W)` or :math:`(C, H, W)`; uint8, or floating point in [0, 1]
        - Output: the same rank, floating point, height and width as the record says
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        for name in ("mean", "std"):
            values = getattr(preprocess, name)
            tensor = None if values is None else torch.tensor(values).view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Resize, crop, and bring the values to what the network takes."""
        if image.dtype == torch.uint8:
            if image.device.type == "cpu" and not torch.compiler.is_compiling():
                return self.values(to_float(self.geometry(image)))
            return self.values(self.geometry(image.to(torch.get_default_dtype()), levels=True) / 255.0)
        return self.values(self.geometry(to_float(image))).to(image.dtype)

    if TYPE_CHECKING:

        def __call__(self, image: Tensor) -> Tensor:
            """Run forward, with the hooks."""

    def geometry(self, image: Tensor, *, levels: bool = False) -> Tensor:
        """Resize and crop images, or lay them in their letterbox; uint8 ones on the CPU only.

        Args:
            image: (C, H, W) or (B, C, H, W).
            levels: whether floating-point images hold grey levels from 0 to 255, which stay whole numbers.

        Raises:
            ValueError: if an image is smaller than the crop and no resize is asked for.
        """
        size = self.preprocess.resized_size(image.shape[-2], image.shape[-1])
        image = self.resize(image, size, levels=levels)
        if self.preprocess.letterbox:
            height, width = _pair(self.preprocess.size or 0)
            return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
        if self.preprocess.crop is None:
            return image
        top, left, height, width = self.preprocess.crop_box(image.shape[-2], image.shape[-1])
        return image[..., top : top + height, left : left + width]

    def resize(self, image: Tensor, size: tuple[int, int], *, levels: bool = False) -> Tensor:
        """Resize images to a height and width with the record's interpolation, antialiased."""
        if image.shape[-2:] == size:
            return image
        batch = self.interpolate(image if image.ndim == 4 else image[None], size, levels=levels)
        return batch if image.ndim == 4 else batch[0]

    def interpolate(self, batch: Tensor, size: tuple[int, int], *, levels: bool = False) -> Tensor:
        """Resize images (B, C, H, W), of a traced size too, clipped where 8-bit resizers do: after each direction."""
        mode = self.preprocess.interpolation
        if not levels and (mode == "bilinear" or not batch.is_floating_point()):
            return antialiased_resize(batch, size, mode)
        for step in ((batch.shape[-2], size[1]), size):
            batch = self.clip(antialiased_resize(batch, step, mode), levels=levels)
        return batch

    def clip(self, image: Tensor, *, levels: bool = False) -> Tensor:
        """Bring grey levels to whole ones from 0 to 255, halves up; else what a bicubic resize overshoots to [0, 1]."""
        if levels:
            return (image + 0.5).floor().clamp(0.0, 255.0)
        return image.clamp(0.0, 1.0) if self.preprocess.interpolation == "bicubic" else image

    def values(self, image: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Put the channels in order, subtract the mean and divide by the std: the part that leaves pixels in place.

        Args:
            image: (C, H, W) or (B, C, H, W), floating point in [0, 1].
            out: a tensor that the result may be written to.
        """
        if self.preprocess.channel_order == "bgr":
            image = image.flip(-3)
        if self.mean is not None:
            image = image - self.mean.to(image.device, image.dtype, non_blocking=True)
        if self.std is not None:
            image = torch.div(image, self.std.to(image.device, image.dtype, non_blocking=True), out=out)
        return image

    def undo_values(self, image: Tensor) -> Tensor:
        """Undo :meth:`values`, for looking at."""
        if self.std is not None:
            image = image * self.std.to(image.device, image.dtype)
        if self.mean is not None:
            image = image + self.mean.to(image.device, image.dtype)
        return image.flip(-3) if self.preprocess.channel_order == "bgr" else image

    def extra_repr(self) -> str:
        """Show the record."""
        return str(self.preprocess)


def _to_batch(image: Any) -> Tensor:
    """Return an image of any library as a tensor (B, C, H, W)."""
    if is_picture(image):
        return picture_to_tensor(image)[None]
    if is_array(image):
        return array_to_tensor(image)[None]
    if not isinstance(image, Tensor):
        hint = "; read_image(path) reads a file" if isinstance(image, str | PurePath) else ""
        raise TypeError(f"expected a tensor, a PIL image or a NumPy array, got {type(image).__name__}{hint}")
    tensor = plain_tensor("image", image)
    if tensor.ndim not in (3, 4) or tensor.numel() == 0:
        raise ValueError(f"the image is {tuple(tensor.shape)}; tensors are (C, H, W) or (B, C, H, W)")
    check_layout(tensor.shape)
    check_image_values(tensor)
    return tensor if tensor.ndim == 4 else tensor[None]


def antialiased_resize(batch: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resize images, antialiased, those too that become one pixel wide.

    Of these, PyTorch 2.14 repeats the first row where they are floating point, and fails where they are uint8 and one
    pixel high as well.
    """
    if type(size[1]) is int and size[1] == 1:  # of a graph that is traced for all sizes nothing is known
        if batch.is_floating_point():
            return F.interpolate(batch.mT, size=(1, size[0]), mode=mode, align_corners=False, antialias=True).mT
        if size[0] == 1:
            return antialiased_resize(batch.float(), size, mode).round().clamp(0, 255).to(batch.dtype)
    return F.interpolate(batch, size=size, mode=mode, align_corners=False, antialias=True)


def to_float(image: Tensor) -> Tensor:
    """Bring uint8 images to [0, 1] and half precision to single; leave other floating-point images alone.

    Resampling in half precision would lose half the grey levels, and the CPU has no kernels for it.

    Raises:
        TypeError: for any other dtype.
    """
    if image.dtype == torch.uint8:
        return image.to(torch.get_default_dtype()).div_(255.0)
    if image.dtype in (torch.float16, torch.bfloat16):
        return image.float()
    if not image.is_floating_point():
        raise TypeError(f"images are uint8 or floating point, got {image.dtype}; convert with image.to(torch.uint8)")
    return image


def round_ratio(number: Any, divisor: Any) -> Any:
    """Round a ratio of whole numbers as :func:`round` does, halves to even, for numbers of a traced graph too.

    Example:
        >>> [round_ratio(n, 2) for n in range(6)]
        [0, 0, 1, 2, 2, 2]
    """
    return (2 * number + divisor - 1 + number // divisor % 2) // (2 * divisor)


def _least(one: Any, other: Any) -> int:
    """Return the smaller of two whole numbers, which may be those of a traced graph."""
    return cast(int, torch.sym_min(one, other))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_size(name: str, size: Any) -> None:
    if size is None:
        return
    numbers = (size,) if isinstance(size, int) else size
    if not isinstance(numbers, tuple) or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError(f"{name} {size!r} is not a positive number of pixels, nor a height and a width")
    if len(numbers) > 2:
        raise ValueError(f"{name} {size!r} has {len(numbers)} numbers; give one, or a height and a width")
