"""Images and their targets, in one object that travels together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Batch", "check_image_values"]


@dataclass
class Batch:
    """Images of one size and what is known of them. Fields that are absent are None, and stay so.

    Args:
        image: (B, C, H, W), uint8, or floating point in [0, 1].
        label: (B,) classes from 0, or (B, K) soft targets that sum to one.
        meta: a dictionary for each image, such as ``{'path': …}``.

    Raises:
        ValueError: if the fields' shapes do not fit each other.
        TypeError: for an image that is neither uint8 nor floating point, or labels of a wrong dtype.

    Example:
        >>> batch = Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
        >>> len(batch), batch[1:3].label
        (4, tensor([1, 2]))
    """

    image: Tensor
    label: Tensor | None = None
    meta: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 4:
            raise ValueError(f"expected images of shape (B, C, H, W), got {tuple(self.image.shape)}")
        if self.image.dtype != torch.uint8 and not self.image.is_floating_point():
            raise TypeError(f"expected uint8 or floating-point images, got {self.image.dtype}")
        for name in ("label", "meta"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self):
                raise ValueError(f"{len(self)} images, but {name} has {len(value)} entries")
        if self.label is not None:
            soft = self.label.is_floating_point()
            if self.label.ndim != (2 if soft else 1) or self.label.dtype == torch.bool:
                raise ValueError(
                    f"expected integer labels of shape (B,) or soft ones (B, K), got {self.label.dtype} "
                    f"{tuple(self.label.shape)}"
                )

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
    def collate(cls, samples: Sequence[Mapping[str, Any]]) -> Self:
        """Make a batch from dictionaries with the fields of a batch, less the batch dimension.

        Values of floating-point images are checked here, on the CPU.

        Raises:
            ValueError: if samples differ in their fields or in the size of their images, or if values are not in
                [0, 1].
        """
        if not samples:
            raise ValueError("cannot make a batch of no samples")
        names = list(samples[0])
        for i, sample in enumerate(samples):
            if list(sample) != names:
                raise ValueError(f"sample {i} has the fields {list(sample)}, sample 0 has {names}")
        images = [sample["image"] for sample in samples]
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise ValueError(f"images of several shapes in one batch: {shapes}; bring them to one storage size")
        values: dict[str, Any] = {"image": torch.stack(images)}
        check_image_values(values["image"])
        for name in names:
            column = [sample[name] for sample in samples]
            if name == "label":
                values[name] = torch.stack([torch.as_tensor(v) for v in column])
            elif name != "image":
                values[name] = column
        return cls(**values)

    def _map(
        self, tensor: Callable[[Tensor], Tensor], other: Callable[[list[Any]], list[Any]] = lambda value: value
    ) -> Self:
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = tensor(value) if isinstance(value, Tensor) else None if value is None else other(value)
        return type(self)(**values)


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
