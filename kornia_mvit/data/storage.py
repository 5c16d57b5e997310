"""Resize samples of any size to a storage size, so that they can be batched."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.fields import read_sample
from kornia_mvit.preprocess import MAX_PIXELS, Preprocess, PreprocessModule

__all__ = ["StorageResize"]

Size = int | tuple[int, int]


@dataclass(frozen=True)
class StorageResize:
    """Resize a sample, antialiased, its boxes, keypoints and masks with it, and note its original size.

    Nothing is padded or cropped here: :meth:`kornia_mvit.Batch.collate` lays images of several sizes on one canvas.

    Args:
        size: a length in pixels, the aspect kept; or height and width, to which images are stretched.
        fit: what the length is: ``'cover'``, of the shorter side, which lets crops of that size lie within the image;
            ``'inside'``, of the longer side.
        max_aspect: with ``'cover'``, the longer side is at most this many times the length: longer images are made
            smaller than asked, rather than their batch much larger.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
        reduced: whether images without targets in pixels may be decoded with fewer pixels, but at least twice as many
            in height and width as are kept: of large JPEGs that takes a fraction of the time, and pixels differ a
            little. For training.

    Raises:
        ValueError: for a size that is not positive, or an unknown fit or interpolation.

    Example:
        >>> sample = StorageResize(100)({'image': torch.zeros(3, 300, 400, dtype=torch.uint8)})
        >>> sample['image'].shape, sample['original_size'].tolist()
        (torch.Size([3, 100, 133]), [300, 400])
    """

    size: Size
    fit: str = "cover"
    max_aspect: float = 2.0
    interpolation: str = "bilinear"
    reduced: bool = False

    def __post_init__(self) -> None:
        Preprocess(self.size, interpolation=self.interpolation)  # which checks them
        if self.fit not in ("cover", "inside"):
            raise ValueError(f"unknown fit {self.fit!r}; available: 'cover', 'inside'")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect {self.max_aspect} is below 1; a longer side is at least as long")

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of the given ones is brought to, in pixels."""
        return _resized_size(self, height, width)

    def needed_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is to be decoded with at least, where ``reduced``."""
        target = self.resized_size(height, width)
        return 2 * target[0], 2 * target[1]

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Resize a sample with ``image`` (C, H, W) and perhaps ``boxes``, ``keypoints``, ``mask`` and others.

        An ``original_size`` that it tells stays.

        Raises:
            ValueError: as :meth:`kornia_mvit.Batch.collate`, for targets that do not fit their image.
        """
        out = read_sample(sample)
        image: Tensor = out["image"]
        height, width = int(image.shape[-2]), int(image.shape[-1])
        whole = out["original_size"].tolist() if self.reduced and "original_size" in out else (height, width)
        target = self.resized_size(*whole)
        out["image"] = _resizer(self.interpolation).resize(image, target)
        out.setdefault("original_size", torch.tensor([height, width]))
        if "boxes" in out or "keypoints" in out:
            factor = torch.tensor([target[1] / width, target[0] / height])
            out |= {name: out[name] * factor.repeat(n) for name, n in (("boxes", 2), ("keypoints", 1)) if name in out}
        for name in {"mask", "instance_masks"} & out.keys():
            rows, columns = (_nearest(n, m) for n, m in zip(target, (height, width), strict=True))
            out[name] = out[name][..., rows[:, None], columns]
        return out


# All are asked for with each image, of which most have one of a few sizes.
@lru_cache(maxsize=1024)
def _resized_size(storage: StorageResize, height: int, width: int) -> tuple[int, int]:
    if isinstance(storage.size, tuple):
        return storage.size
    short, long = min(height, width), max(height, width)
    limit = round(storage.size * storage.max_aspect) if storage.fit == "cover" else storage.size
    if storage.fit == "cover" and int(storage.size * long / short) <= limit:
        return _covering(storage.size).resized_size(height, width)
    other = max(1, int(limit * short / long))
    return (other, limit) if height <= width else (limit, other)


@lru_cache
def _covering(size: int) -> Preprocess:
    return Preprocess(size, max_pixels=max(MAX_PIXELS, round(size**2 * 2)))


@lru_cache
def _resizer(interpolation: str) -> PreprocessModule:
    return Preprocess(None, interpolation=interpolation).module()


def _nearest(count: int, source: int) -> Tensor:
    """Return the source pixel under the centre of each target pixel."""
    return ((torch.arange(count, dtype=torch.float64) + 0.5) * (source / count)).long().clamp_max(source - 1)
