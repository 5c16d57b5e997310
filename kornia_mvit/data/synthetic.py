"""Shapes with exact labels for all three tasks, with no dataset to download."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kornia_mvit.batch import Batch

__all__ = ["Shapes"]


class Shapes(Dataset[dict[str, Any]]):
    """Coloured circles, squares and triangles on a grey ground: images with a label, boxes and a mask.

    Shapes lie apart from each other and whole within the image. Their kinds, places, sizes and colours are random;
    colours tell nothing of the kind. A sample depends on the seed and its number alone.

    Args:
        count: number of images.
        size: height and width in pixels, from 32.
        shapes: least and greatest number of shapes in an image; fewer where there is no room.
        radius: least and greatest radius of a shape, as a share of the image's shorter side.
        seed: of all random choices.

    Attributes:
        class_names: of labels and boxes.
        mask_names: of masks: the background, then the shapes.

    Raises:
        ValueError: for a count, size or range that is none.

    Example:
        >>> data = Shapes(4, (64, 96))
        >>> sample = data[0]
        >>> sample['image'].shape, sample['mask'].shape, sample['boxes'].shape[1]
        (torch.Size([3, 64, 96]), torch.Size([64, 96]), 4)
        >>> len(data.batch())
        4
    """

    class_names: tuple[str, ...] = ("circle", "square", "triangle")
    mask_names: tuple[str, ...] = ("background", *class_names)

    def __init__(
        self,
        count: int = 64,
        size: tuple[int, int] = (96, 96),
        *,
        shapes: tuple[int, int] = (1, 4),
        radius: tuple[float, float] = (0.12, 0.25),
        seed: int = 0,
    ) -> None:
        if count < 1 or min(size) < 32:
            raise ValueError(f"count {count} and size {size} are not at least 1 image and 32 pixels")
        if not 1 <= shapes[0] <= shapes[1] or not 0 < radius[0] <= radius[1] < 0.5:
            raise ValueError(f"shapes {shapes} and radius {radius} are not ascending, from 1 and within (0, 0.5)")
        self.count: int = count
        self.size: tuple[int, int] = size
        self.shapes: tuple[int, int] = shapes
        self.radius: tuple[float, float] = radius
        self.seed: int = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample as :meth:`Batch.collate` takes it.

        ``image`` (3, H, W) is uint8; ``mask`` (H, W) has 0 for the background and 1 for the first class; ``boxes``
        (N, 4) are the edges of each shape's pixels, with ``box_label`` (N,) from 0; ``label`` is the class of the
        shape with most pixels.

        Raises:
            IndexError: for a number that no image has.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"no image {index}; there are {self.count}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        image = 100 + 40 * torch.rand(1, *self.size, generator=generator).expand(3, -1, -1)
        mask = torch.zeros(self.size, dtype=torch.long)
        boxes: list[list[int]] = []
        labels: list[int] = []
        areas: list[int] = []
        for kind, inside in self._draw(generator):
            colour = torch.randint(0, 256, (3, 1), generator=generator).float()
            colour[int(torch.randint(3, (1,), generator=generator))] = 250 * (len(labels) % 2)  # never the ground's
            image = torch.where(inside, colour[..., None], image)
            mask[inside] = 1 + kind
            row, column = (inside.any(axis).nonzero() for axis in (1, 0))
            boxes.append([int(column[0]), int(row[0]), int(column[-1]) + 1, int(row[-1]) + 1])
            labels.append(kind)
            areas.append(int(inside.sum()))
        return {
            "image": image.round().to(torch.uint8),
            "label": labels[areas.index(max(areas))],
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "box_label": torch.tensor(labels),
            "mask": mask,
            "meta": {"id": index},
        }

    def batch(self) -> Batch:
        """Return all samples as one batch."""
        return Batch.collate([self[index] for index in range(self.count)])

    def _draw(self, generator: torch.Generator) -> list[tuple[int, Tensor]]:
        """Sample kinds and places: a class and the pixels (H, W) of each shape."""
        height, width = self.size
        wanted = int(torch.randint(self.shapes[0], self.shapes[1] + 1, (1,), generator=generator))
        found: list[tuple[float, float, float]] = []
        out: list[tuple[int, Tensor]] = []
        for _ in range(20 * wanted):
            if len(out) == wanted:
                break
            u = torch.rand(3, generator=generator).tolist()
            r = (self.radius[0] + u[2] * (self.radius[1] - self.radius[0])) * min(height, width)
            x, y = r + u[0] * (width - 2 * r), r + u[1] * (height - 2 * r)
            if any(math.hypot(x - a, y - b) < r + c + 1 for a, b, c in found):
                continue
            found.append((x, y, r))
            kind = int(torch.randint(len(self.class_names), (1,), generator=generator))
            out.append((kind, _pixels(kind, x, y, r, height, width)))
        return out


def _pixels(kind: int, x: float, y: float, radius: float, height: int, width: int) -> Tensor:
    """Return whether the centre of each pixel is within a shape in a circle: (H, W), bool."""
    across = (torch.arange(width) + 0.5 - x)[None, :]
    down = (torch.arange(height) + 0.5 - y)[:, None]
    if kind == 0:
        return across**2 + down**2 <= radius**2
    if kind == 1:
        half = radius / math.sqrt(2)
        return (across.abs() <= half) & (down.abs() <= half)
    # An equilateral triangle, its tip above.
    return (down <= radius / 2) & (math.sqrt(3) * across.abs() <= down + radius)
