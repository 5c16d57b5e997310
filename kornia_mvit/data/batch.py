"""Images and their targets, in one object that travels together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Batch", "check_image_values"]

_PADDING = {"boxes": 0, "box_label": -1, "box_ignore": False, "keypoints": 0, "keypoint_visible": False}


@dataclass
class Batch:
    """Images on one canvas and what is known of them. Fields that are absent are None, and stay so.

    Coordinates are in pixels of the canvas, x before y, measured from its upper left corner: the first pixel covers 0
    to 1 and its centre is at 0.5, so that a box around the whole canvas is (0, 0, W, H).

    Args:
        image: (B, C, H, W), uint8, or floating point in [0, 1].
        label: (B,) classes from 0, or (B, K) soft targets that sum to one, or multi-hot ones.
        boxes: (B, N, 4) left, top, right and bottom edges, floating point. N is that of the image with most; the rows
            after an image's own are padding.
        box_label: (B, N) class of each box from 0, integer; -1 marks padding. Comes with ``boxes``.
        box_ignore: (B, N) bool, boxes to leave out of loss and score (crowds, difficult ones).
        mask: (B, H, W) class of each pixel, integer, with one number for pixels to ignore.
        keypoints: (B, N, 2) x and y, floating point.
        keypoint_visible: (B, N) bool, False for padding too. Comes with ``keypoints``.
        size: (B, 2) height and width of the part of the canvas, from its upper left corner, that holds the image; the
            rest is padding. None where the image fills the canvas.
        original_size: (B, 2) height and width of the image before it was brought to the canvas.
        meta: a dictionary for each image, such as ``{'path': …}``.

    Raises:
        ValueError: if the fields' shapes do not fit each other, or a field lacks the one that goes with it.
        TypeError: for an image that is neither uint8 nor floating point, or a field of a wrong dtype.

    Example:
        >>> batch = Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
        >>> len(batch), batch[1:3].label
        (4, tensor([1, 2]))
    """

    image: Tensor
    label: Tensor | None = None
    _: KW_ONLY
    boxes: Tensor | None = None
    box_label: Tensor | None = None
    box_ignore: Tensor | None = None
    mask: Tensor | None = None
    keypoints: Tensor | None = None
    keypoint_visible: Tensor | None = None
    size: Tensor | None = None
    original_size: Tensor | None = None
    meta: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 4:
            raise ValueError(f"expected images of shape (B, C, H, W), got {tuple(self.image.shape)}")
        if self.image.dtype != torch.uint8 and not self.image.is_floating_point():
            raise TypeError(f"expected uint8 or floating-point images, got {self.image.dtype}")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != len(self):
                raise ValueError(f"{len(self)} images, but {field.name} has {len(value)} entries")
        if self.label is not None:
            soft = self.label.is_floating_point()
            if self.label.ndim != (2 if soft else 1) or self.label.dtype == torch.bool:
                raise ValueError(
                    f"expected integer labels of shape (B,) or soft ones (B, K), got {self.label.dtype} "
                    f"{tuple(self.label.shape)}"
                )
        self._check_rows("boxes", 4, "box_label", "box_ignore")
        self._check_rows("keypoints", 2, "keypoint_visible")
        self._check_integer("box_label")
        if self.mask is not None:
            self._check_integer("mask")
            if self.mask.shape[1:] != self.image.shape[2:]:
                raise ValueError(
                    f"expected masks of shape (B, H, W) as the images {tuple(self.image.shape)}, "
                    f"got {tuple(self.mask.shape)}"
                )
        for name in ("size", "original_size"):
            value = getattr(self, name)
            if value is not None:
                self._check_integer(name)
                if value.shape[1:] != (2,):
                    raise ValueError(f"expected {name} of shape (B, 2), height and width, got {tuple(value.shape)}")

    def _check_rows(self, name: str, width: int, *companions: str) -> None:
        """Check rows of coordinates and the fields that describe each of them."""
        rows: Tensor | None = getattr(self, name)
        if rows is None:
            if orphans := [other for other in companions if getattr(self, other) is not None]:
                raise ValueError(f"{orphans[0]} is given without {name}")
            return
        if rows.ndim != 3 or rows.shape[-1] != width:
            raise ValueError(f"expected {name} of shape (B, N, {width}), got {tuple(rows.shape)}")
        if not rows.is_floating_point():
            raise TypeError(f"expected floating-point {name}, got {rows.dtype}")
        if getattr(self, companions[0]) is None:
            raise ValueError(f"{name} come with {companions[0]} of shape (B, N); it is missing")
        for other in companions:
            value = getattr(self, other)
            if value is not None and value.shape != rows.shape[:2]:
                raise ValueError(f"{name} are {tuple(rows.shape)}, but {other} is {tuple(value.shape)}")
        for other in set(companions) - {"box_label"}:
            value = getattr(self, other)
            if value is not None and value.dtype != torch.bool:
                raise TypeError(f"expected {other} to be bool, got {value.dtype}")

    def _check_integer(self, name: str) -> None:
        value: Tensor | None = getattr(self, name)
        if value is not None and (value.is_floating_point() or value.dtype == torch.bool):
            raise TypeError(f"expected {name} to be of an integer dtype, got {value.dtype}")

    def __repr__(self) -> str:
        """Tell which fields there are, with their shapes and dtypes."""
        told = [
            f"{name}={tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        ]
        return f"{type(self).__name__}({', '.join(told)})"

    def __len__(self) -> int:
        return self.image.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Self:
        """Give the batch of the chosen images.

        Raises:
            TypeError: for a single number; use :meth:`sample` for one image.
        """
        if isinstance(index, int):
            raise TypeError(f"batch[{index}] would lose the batch dimension; write batch.sample({index})")
        rows = range(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index)
        if isinstance(rows, Tensor):
            rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
            numbers = rows.tolist()
        else:
            numbers = list(rows)
        return self._map(lambda v: v[numbers], lambda v: [v[i] for i in numbers])

    def sample(self, index: int) -> dict[str, Any]:
        """Give one image and its targets without the batch dimension, as :meth:`collate` takes them."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value[index] for name, value in values if value is not None}

    def replace(self, **changes: Any) -> Self:
        """Give a batch with some fields changed; the others are shared, not copied."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**(values | changes))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Give the batch with its tensors on a device."""
        return self._map(lambda v: v.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Give the batch with its tensors in page-locked memory."""
        return self._map(lambda v: v.pin_memory())

    @classmethod
    def collate(cls, samples: Sequence[Mapping[str, Any]], *, ignore_index: int = 255) -> Self:
        """Make a batch from dictionaries with the fields of a batch, less the batch dimension.

        Images of several sizes are laid on one canvas as large as the largest height and width, padded right and
        below with zeros, their masks with ``ignore_index``, and ``size`` says which part is image. Lists of boxes and
        keypoints of any length, none included, are padded to the longest. Values of floating-point images are checked
        here, on the CPU.

        Args:
            samples: dictionaries such as ``{'image': (C, H, W), 'boxes': (n, 4), 'box_label': (n,)}``.
            ignore_index: what masks are padded with.

        Raises:
            ValueError: if samples differ in their fields or in the channels of their images, or if values are not in
                [0, 1].
        """
        if not samples:
            raise ValueError("cannot make a batch of no samples")
        names = list(samples[0])
        if unknown := sorted(set(names) - {field.name for field in fields(cls)}):
            raise ValueError(
                f"a batch has no field {', '.join(unknown)}; it has {', '.join(field.name for field in fields(cls))}"
            )
        for i, sample in enumerate(samples):
            if set(sample) != set(names):
                raise ValueError(f"sample {i} has the fields {list(sample)}, sample 0 has {names}")
        columns: dict[str, list[Any]] = {name: [sample[name] for sample in samples] for name in names}
        images = columns["image"]
        if len({(image.shape[0], image.dtype) for image in images}) > 1:
            found = sorted({f"{image.dtype} {tuple(image.shape)}" for image in images})
            raise ValueError(f"images of several dtypes or numbers of channels in one batch: {', '.join(found)}")
        height, width = (max(image.shape[k] for image in images) for k in (1, 2))
        if any(image.shape[1:] != (height, width) for image in images):
            columns.setdefault("size", [torch.tensor(image.shape[1:]) for image in images])
        values: dict[str, Any] = {}
        for name, column in columns.items():
            if name == "meta":
                values[name] = column
                continue
            rows = [torch.as_tensor(value) for value in column]
            if name in _PADDING:
                rows = [_as_rows(name, row) for row in rows]
            if name in ("image", "mask"):
                fill = ignore_index if name == "mask" else 0
                values[name] = torch.stack([_pad(row, height, width, fill) for row in rows])
            elif name in _PADDING:
                values[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PADDING[name])
            else:
                values[name] = torch.stack(rows)
        check_image_values(values["image"])
        return cls(**values)

    def _map(
        self, tensor: Callable[[Tensor], Tensor], other: Callable[[list[Any]], list[Any]] = lambda value: value
    ) -> Self:
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = tensor(value) if isinstance(value, Tensor) else None if value is None else other(value)
        return type(self)(**values)


def _as_rows(name: str, row: Tensor) -> Tensor:
    """Give an image's rows of a ragged field their dtype and shape, which an empty list has not got."""
    match name:
        case "boxes" | "keypoints":
            return row.to(torch.get_default_dtype()).reshape(-1, 4 if name == "boxes" else 2)
        case "box_label":
            return row.to(torch.int64).reshape(-1)
    return row.to(torch.bool).reshape(-1)


def _pad(image: Tensor, height: int, width: int, fill: int) -> Tensor:
    """Pad an image or a mask right and below."""
    below, right = height - image.shape[-2], width - image.shape[-1]
    return F.pad(image, (0, right, 0, below), value=fill) if below or right else image


def check_image_values(image: Tensor) -> None:
    """Raise unless floating-point images are finite and in [0, 1]; uint8 ones cannot be otherwise.

    On an accelerator this waits for the device.

    Raises:
        ValueError: telling the range found, and what would do.
    """
    if not image.is_floating_point() or image.numel() == 0:
        return
    low, high = (value.item() for value in torch.aminmax(image))
    if not (low >= 0.0 and high <= 1.0):  # so that NaN fails too
        if math.isnan(low) or math.isnan(high):
            raise ValueError("an image has NaN values")
        hint = "divide by 255, or give uint8" if high > 1.0 and low >= 0.0 else "undo the normalisation first"
        raise ValueError(f"floating-point images must lie in [0, 1], got values from {low:g} to {high:g}; {hint}")
