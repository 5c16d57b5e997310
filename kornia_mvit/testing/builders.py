"""What the strategies build with: small arguments in, tensors out.

Hypothesis prints a counter-example as the call that made it, such as ``make_image((3, 32, 33), content='noise',
seed=7)``: short, and to be pasted into a test. Nothing here draws from PyTorch's global generator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.batch import Batch

__all__ = [
    "IMAGE_CONTENTS",
    "INSTANCE_CONTENTS",
    "MASK_CONTENTS",
    "make_batch",
    "make_boxes",
    "make_image",
    "make_instance_masks",
    "make_keypoints",
    "make_mask",
    "make_soft_labels",
]

Shape = tuple[int, ...]
Device = torch.device | str

IMAGE_CONTENTS = ("low", "high", "constant", "gradient", "checkerboard", "noise")
MASK_CONTENTS = ("background", "constant", "halves", "blocks", "noise")
INSTANCE_CONTENTS = ("box", "ellipse", "nothing")


def make_image(
    shape: Shape,
    *,
    content: str = "low",
    seed: int = 0,
    value_range: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> Tensor:
    """Make an image, or a batch of images, of a kind of content.

    Args:
        shape: (C, H, W) or (B, C, H, W).
        content: ``'low'`` and ``'high'`` are the ends of the range everywhere, ``'constant'`` a value between them,
            ``'gradient'`` rises from the upper left to the lower right corner, ``'checkerboard'`` has both ends in
            turn, ``'noise'`` is uniform.
        seed: what the constant and the noise depend on, alone.
        value_range: least and greatest value; [0, 1] when None, or 0 to 255 for uint8.
        dtype: uint8 or floating point.
        device: where the image is put; values are the same on each.

    Raises:
        ValueError: for an unknown content.

    Example:
        >>> make_image((1, 2, 3), content="checkerboard")
        tensor([[[0., 1., 0.],
                 [1., 0., 1.]]])
    """
    low, high = value_range or ((0.0, 255.0) if dtype == torch.uint8 else (0.0, 1.0))
    height, width = shape[-2:]
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.arange(height)[:, None], torch.arange(width)
    match content:
        case "low" | "high":
            share = torch.full((), float(content == "high"))
        case "constant":
            share = torch.rand((), generator=generator)
        case "gradient":
            share = (row + column) / max(1, height + width - 2)
        case "checkerboard":
            share = ((row + column) % 2).float()
        case "noise":
            share = torch.rand(shape, generator=generator)
        case _:
            raise ValueError(f"unknown content {content!r}; available: {', '.join(map(repr, IMAGE_CONTENTS))}")
    image = (low + (high - low) * share).clamp(low, high)
    image = image.round() if dtype == torch.uint8 else image
    return image.to(dtype).expand(shape).contiguous().to(device)


def make_mask(
    size: tuple[int, int],
    *,
    classes: int = 2,
    content: str = "background",
    seed: int = 0,
    ignore_index: int | None = None,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Make a mask (H, W) of the class of each pixel.

    Args:
        size: height and width.
        classes: number of classes, from 0, the background.
        content: ``'background'`` is 0 everywhere, ``'constant'`` another class, ``'halves'`` two classes side by side,
            ``'blocks'`` a coarse grid of classes, ``'noise'`` a class for each pixel.
        seed: what the classes depend on, alone.
        ignore_index: what a border of the mask, a quarter of its height from above, holds; None for no border.
        dtype: an integer one.

    Raises:
        ValueError: for an unknown content.

    Example:
        >>> make_mask((2, 4), content="halves")
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1]])
    """
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    match content:
        case "background":
            mask = torch.zeros(size, dtype=torch.int64)
        case "constant":
            mask = torch.full(size, min(1 + seed % max(1, classes - 1), classes - 1))
        case "halves":
            other = min(1 + seed % max(1, classes - 1), classes - 1)
            mask = (torch.arange(width) >= width // 2).long().mul(other).expand(size).clone()
        case "blocks":
            grid = torch.randint(classes, (4, 4), generator=generator)
            mask = grid[torch.arange(height)[:, None] * 4 // height, torch.arange(width) * 4 // width]
        case "noise":
            mask = torch.randint(classes, size, generator=generator)
        case _:
            raise ValueError(f"unknown content {content!r}; available: {', '.join(map(repr, MASK_CONTENTS))}")
    if ignore_index is not None:
        mask[: max(1, height // 4)] = ignore_index
    return mask.to(dtype)


def make_instance_masks(size: tuple[int, int], corners: Sequence[Sequence[float]], *, content: str = "box") -> Tensor:
    """Make the masks (N, H, W) of single objects, one in each box, bool.

    Args:
        size: height and width.
        corners: left, top, right and bottom edges of the boxes.
        content: ``'box'`` fills the boxes, as far as the centres of pixels lie in them, ``'ellipse'`` the ellipses
            inside them, ``'nothing'`` leaves the masks empty.

    Raises:
        ValueError: for an unknown content.

    Example:
        >>> make_instance_masks((2, 3), [(1, 0, 3, 1)]).int()
        tensor([[[0, 1, 1],
                 [0, 0, 0]]], dtype=torch.int32)
    """
    if content not in INSTANCE_CONTENTS:
        raise ValueError(f"unknown content {content!r}; available: {', '.join(map(repr, INSTANCE_CONTENTS))}")
    boxes = make_boxes(corners, torch.float64)[..., None, None]
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    away = [((place - boxes[:, k]) - half[:, k]).abs() / half[:, k] for k, place in enumerate((x, y))]
    if content == "nothing":
        return torch.zeros(len(boxes), *size, dtype=torch.bool)
    return (away[0] ** 2 + away[1] ** 2 <= 1) if content == "ellipse" else (torch.maximum(*away) <= 1)


def make_boxes(corners: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """Make boxes (N, 4) of their left, top, right and bottom edges; none for an empty list.

    Example:
        >>> make_boxes([]).shape
        torch.Size([0, 4])
    """
    return torch.tensor(corners, dtype=dtype).reshape(-1, 4)


def make_keypoints(points: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """Make keypoints (N, 2) of their x and y; none for an empty list.

    Example:
        >>> make_keypoints([(1, 2)])
        tensor([[1., 2.]])
    """
    return torch.tensor(points, dtype=dtype).reshape(-1, 2)


def make_soft_labels(
    rows: Sequence[tuple[int, int, float]],
    classes: int,
    *,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make soft labels (B, K) as mixing and label smoothing make them: rows that sum to one.

    Args:
        rows: for each image a class, the class that is mixed in, and the share of the first.
        classes: K.
        smoothing: the share that is spread evenly over all classes.
        dtype: floating point.

    Example:
        >>> make_soft_labels([(0, 0, 1.0), (0, 2, 0.75)], 3)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.7500, 0.0000, 0.2500]])
    """
    out = torch.full((len(rows), classes), smoothing / classes, dtype=torch.float64)
    for row, (own, other, share) in zip(out, rows, strict=True):
        row[own] += (1 - smoothing) * share
        row[other] += (1 - smoothing) * (1 - share)
    return out.to(dtype)


def make_batch(samples: Sequence[Mapping[str, Any]], *, ignore_index: int = 255, device: Device = "cpu") -> Batch:
    """Make a batch of samples by :meth:`kornia_mvit.Batch.collate`, on a device.

    Args:
        samples: dictionaries with the fields of a batch, less the batch dimension.
        ignore_index: what masks are padded with.
        device: where its tensors are put.

    Example:
        >>> make_batch([{"image": make_image((3, 8, 8)), "label": 2}]).label
        tensor([2])
    """
    batch = Batch.collate(samples, ignore_index=ignore_index)
    return batch if torch.device(device).type == "cpu" else batch.to(device)
