"""Further images and maps of a batch, beside its image: what each of them is, and how it is read and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.fields import is_float, name_size, plain_tensor

__all__ = ["Extra", "check_extra", "fill_unknown", "stack_extra"]

KINDS = ("image", "values", "vectors")
MODES = ("bilinear", "nearest")
_EXAMPLE = "such as {'depth': Extra(depth, kind='values')}"


@dataclass(frozen=True, eq=False)
class Extra:
    """A further image or map of a batch's images, and what it is: an entry of ``Batch.extra``.

    It is as high and as wide as the images, and goes through a pipeline in step with them.

    Args:
        tensor: (B, C, H, W), or (C, H, W) in a sample; NumPy arrays become tensors.
        kind: ``'image'``, a further image with as many channels, such as a second frame: it gets the colours, the noise
            and the values of the first, by the same random numbers; ``'values'``, a map of numbers, such as depth or
            heat maps, which no operation of colours changes; ``'vectors'``, a field of two channels, dx and dy in
            pixels of the canvas, such as optical flow, whose vectors are turned and scaled with the images.
        mode: how maps are read between pixels: ``'bilinear'``, or ``'nearest'`` for maps in which a mean of two
            neighbours is wrong, such as depth at edges. Bilinear for floating-point numbers when None, else nearest.
        fill: what maps hold where there was no image; NaN is allowed for floating-point numbers.

    Raises:
        ValueError: for another kind, mode or shape, and a mode or fill that the kind or dtype cannot have.
        TypeError: for a dtype that the kind cannot have.

    Example:
        >>> depth = Extra(torch.rand(2, 1, 32, 48), kind="values", mode="nearest", fill=-1.0)
        >>> from kornia_mvit import Batch
        >>> Batch(torch.rand(2, 3, 32, 48), extra={"depth": depth})
        Batch(image=(2, 3, 32, 48) float32, extra={depth: values (2, 1, 32, 48) float32})
    """

    tensor: Tensor
    _: KW_ONLY
    kind: str
    mode: str | None = None
    fill: float = 0.0

    def __post_init__(self) -> None:
        tensor = self.tensor if isinstance(self.tensor, Tensor) else _from_array(self.tensor)
        tensor = plain_tensor("the tensor of an Extra", tensor)
        object.__setattr__(self, "tensor", tensor)
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of an Extra; available: {', '.join(map(repr, KINDS))}")
        if tensor.ndim not in (3, 4):
            raise ValueError(
                f"the tensor of an Extra is {tuple(tensor.shape)}; expected (B, C, H, W), or (C, H, W) in a sample: "
                "tensor.unsqueeze(-3) adds the dimension of channels"
            )
        if self.kind == "vectors" and tensor.shape[-3] != 2:
            raise ValueError(f"vectors have two channels, dx and dy, got {tuple(tensor.shape)}")
        if tensor.is_complex() or (tensor.is_floating_point() and not is_float(tensor)):
            raise TypeError(f"an Extra of kind {self.kind!r} cannot be {tensor.dtype}")
        if self.kind == "vectors" and not tensor.is_floating_point():
            raise TypeError(f"vectors are floating point, got {tensor.dtype}; give tensor.float()")
        if self.kind == "image" and not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
            raise TypeError(f"an Extra of kind 'image' is uint8 or floating point, got {tensor.dtype}")
        self._check_reading(tensor)

    def _check_reading(self, tensor: Tensor) -> None:
        """Check mode and fill, and choose the mode where it is None."""
        smooth = tensor.is_floating_point() or self.kind == "image"
        mode = self.mode or ("bilinear" if smooth else "nearest")
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r} of an Extra; available: 'bilinear', 'nearest'")
        if mode == "bilinear" and not smooth:
            raise ValueError(
                f"maps of {tensor.dtype} cannot be read bilinearly; give mode='nearest', or tensor.float()"
            )
        if self.kind == "image" and (mode != "bilinear" or self.fill != 0):
            raise ValueError("an Extra of kind 'image' has no mode and no fill: it is read as the image is")
        object.__setattr__(self, "mode", mode)
        if tensor.is_floating_point() or self.kind == "image":
            return
        low, high = (0, 1) if tensor.dtype == torch.bool else (torch.iinfo(tensor.dtype).min, _most(tensor.dtype))
        if not (math.isfinite(self.fill) and self.fill == int(self.fill) and low <= self.fill <= high):
            raise ValueError(f"fill {self.fill:g} is no number of {tensor.dtype}; it goes from {low} to {high}")

    def replace(self, tensor: Tensor) -> Self:
        """Return the same with another tensor."""
        return replace(self, tensor=tensor)

    def __repr__(self) -> str:
        told = f"{tuple(self.tensor.shape)} {str(self.tensor.dtype).removeprefix('torch.')}, kind={self.kind!r}"
        return f"Extra({told})" if self.kind == "image" else f"Extra({told}, mode={self.mode!r}, fill={self.fill:g})"


def _most(dtype: torch.dtype) -> int:
    return int(torch.iinfo(dtype).max)


def _from_array(value: Any) -> Tensor:
    try:
        return torch.as_tensor(value.__array__().copy() if hasattr(value, "__array__") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"an Extra of a {type(value).__name__} cannot become a tensor: {reason}") from None


def _check_mapping(extra: Any) -> dict[str, Extra]:
    if not isinstance(extra, Mapping) or not all(isinstance(name, str) for name in extra):
        raise TypeError(f"extra is a {type(extra).__name__}, not a dictionary of Extra by name, {_EXAMPLE}")
    for name, one in extra.items():
        if not isinstance(one, Extra):
            raise TypeError(
                f"extra[{name!r}] is a {type(one).__name__}, and nothing says what it is; give "
                "Extra(tensor, kind='image'), 'values' or 'vectors'"
            )
    return dict(extra)


def _check_shape(name: str, one: Extra, shape: Sequence[int]) -> None:
    """Check an entry against the shape of the image or images."""
    own, wanted = tuple(one.tensor.shape), f"({'B, ' * (len(shape) == 4)}C, H, W)"
    if len(own) != len(shape):
        raise ValueError(f"extra[{name!r}] is {own}; expected {wanted}, as the image {tuple(shape)}")
    if len(own) == 4 and own[0] != shape[0]:
        raise ValueError(f"{shape[0]} images, but extra[{name!r}] has {own[0]} entries")
    if own[-2:] != tuple(shape[-2:]):
        raise ValueError(
            f"extra[{name!r}] is {name_size(own[-2:])}, but the image is {name_size(shape[-2:])} (height x width)"
        )
    if one.kind == "image" and own[-3] != shape[-3]:
        raise ValueError(
            f"extra[{name!r}] has {own[-3]} channels and the image {shape[-3]}; kind='values' is for images of other "
            "channels, whose colours stay"
        )


def check_extra(extra: Any, image: Tensor) -> dict[str, Extra]:
    """Return the extra of a batch or sample as a dictionary, checked against its images (B, C, H, W) or (C, H, W).

    Raises:
        ValueError: for an entry of another shape than the images.
        TypeError: for what is no :class:`Extra`.
    """
    out = _check_mapping(extra)
    for name, one in out.items():
        _check_shape(name, one, image.shape)
    return out


def fill_unknown(values: Tensor, unknown: Tensor, fill: float) -> Tensor:
    """Return values with a fill where they are unknown; PyTorch's ``masked_fill`` knows no large unsigned integers.

    Args:
        values: of any dtype that an :class:`Extra` may have.
        unknown: bool, broadcasting to the values.
        fill: a number of that dtype.
    """
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return torch.where(unknown, torch.tensor(int(fill), dtype=values.dtype, device=values.device), values)
    return values.masked_fill(unknown, fill)


def stack_extra(rows: Sequence[Mapping[str, Extra]], canvas: tuple[int, int]) -> dict[str, Extra]:
    """Return what samples have as the extra of a batch: on one canvas, filled right and below.

    Raises:
        ValueError: for samples that differ in the names, or in what stands under one.
    """
    if len(names := {", ".join(sorted(row)) for row in rows}) > 1:
        raise ValueError(f"extra differs in its names: {' or '.join(sorted(names))}")
    out = {}
    for name, first in rows[0].items():
        column = [row[name] for row in rows]
        told = [
            f"{one.kind} of {one.tensor.dtype}, {one.tensor.shape[0]} channels, mode {one.mode}, fill {one.fill:g}"
            for one in column
        ]
        if len(set(told)) > 1:
            raise ValueError(f"extra[{name!r}] differs between samples: {' or '.join(sorted(set(told)))}")
        out[name] = first.replace(torch.stack([_pad(one, canvas) for one in column]))
    return out


def _pad(one: Extra, canvas: tuple[int, int]) -> Tensor:
    below, right = canvas[0] - one.tensor.shape[-2], canvas[1] - one.tensor.shape[-1]
    return F.pad(one.tensor, (0, right, 0, below), value=one.fill) if below or right else one.tensor
