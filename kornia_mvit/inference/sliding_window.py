"""Maps of whole images: at their own size, and in windows where they are large."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.augmentation.pipeline import AugmentationPipeline, Params
from kornia_mvit.augmentation.targets import MapsBack, way_back
from kornia_mvit.batch import Batch

__all__ = ["SlidingWindow", "predict_labels", "predict_maps", "read_labels"]

_STRIP = 2**21  # numbers of a map that are at hand at a time
_ROWS = 16  # of the result, at most

Size = int | tuple[int, int]


class SlidingWindow(nn.Module):
    r"""Predict dense maps of large images in windows, averaged where they overlap.

    Windows stand ``stride`` pixels apart from the upper left corner on; the last of a row or column ends at the edge.
    Where a window covers the image, the result is that of ``predict`` alone.

    Args:
        predict: takes images (B, C, h, w) and returns maps (B, K, h', w') of any stride, such as logits.
        window: height and width of a window in pixels, or one number for both.
        stride: pixels from one window to the next, down and across, or one number for both; two thirds of the window
            when None.

    Shape:
        - Input: :math:`(B, C, H, W)`
        - Output: :math:`(B, K, H, W)`

    Raises:
        ValueError: for a window or stride that is not positive, or a stride longer than the window, which would leave
            gaps.

    Example:
        >>> slide = SlidingWindow(lambda image: image.mean(1, keepdim=True), window=32, stride=16)
        >>> image = torch.rand(1, 3, 40, 100)
        >>> torch.allclose(slide(image), image.mean(1, keepdim=True))
        True
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], window: Size, stride: Size | None = None) -> None:
        super().__init__()
        self.predict = predict
        self.window: tuple[int, int] = _pair(window)
        self.stride: tuple[int, int] = (max(1, self.window[0] * 2 // 3), max(1, self.window[1] * 2 // 3))
        if stride is not None:
            self.stride = _pair(stride)
        if min(self.window) < 1 or any(not 0 < s <= w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(
                f"window {self.window} and stride {self.stride} are not positive numbers of pixels, the stride no "
                "longer than the window"
            )

    def forward(self, image: Tensor) -> Tensor:
        """Predict maps at the size of the images."""
        height, width = image.shape[-2:]
        h, w = min(self.window[0], height), min(self.window[1], width)
        if (h, w) == (height, width):
            return self._look(image)
        total: Tensor | None = None
        count = image.new_zeros(height, width, dtype=torch.float32)
        for top in _starts(height, h, self.stride[0]):
            for left in _starts(width, w, self.stride[1]):
                maps = self._look(image[..., top : top + h, left : left + w])
                if total is None:
                    total = maps.new_zeros(*maps.shape[:2], height, width)
                total[..., top : top + h, left : left + w] += maps
                count[top : top + h, left : left + w] += 1
        assert total is not None
        return total / count.to(total.dtype)

    def _look(self, image: Tensor) -> Tensor:
        maps = self.predict(image)
        size = (image.shape[-2], image.shape[-1])
        return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"window={self.window}, stride={self.stride}"


@torch.no_grad()
def predict_maps(
    predict: Callable[[Tensor], Tensor], batch: Batch, pipeline: AugmentationPipeline
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Predict dense maps of a batch's images, each at its own size and apart from the canvas beside it.

    Images of one size are preprocessed and predicted together, so that what an image gives does not depend on the
    sizes of the others in the batch.

    Args:
        predict: takes preprocessed images (n, C, h, w) and returns maps (n, K, h', w') of any stride, such as logits.
        batch: images as they were stored.
        pipeline: whose preprocessing they go through, and the maps back.

    Yields:
        For the images of each size: their numbers in the batch, their maps (n, K, H, W), zero where the preprocessing
        cut the image off, and (n, 1, H, W) which pixels were in view.

    Example:
        >>> from kornia_mvit.preprocess import Preprocess
        >>> batch = Batch.collate([{'image': torch.rand(3, 40, 50)}, {'image': torch.rand(3, 60, 50)}])
        >>> pipeline = AugmentationPipeline(preprocess=Preprocess(32))
        >>> [(rows, maps.shape) for rows, maps, _ in predict_maps(lambda image: image[:, :1], batch, pipeline)]
        [([0], torch.Size([1, 1, 40, 50])), ([1], torch.Size([1, 1, 60, 50]))]
    """
    whole = (int(batch.image.shape[-2]), int(batch.image.shape[-1]))
    sizes = [whole] * len(batch) if batch.size is None else [(int(h), int(w)) for h, w in batch.size.tolist()]
    groups: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    for (height, width), rows in groups.items():
        own = batch.image[torch.tensor(rows, device=batch.image.device), :, :height, :width]
        prepared, params = pipeline.prepare(Batch(own))
        yield rows, *pipeline.inverse(predict(prepared.image), params)


@torch.no_grad()
def predict_labels(predict: Callable[[Tensor], Tensor], image: Tensor, pipeline: AugmentationPipeline) -> Tensor:
    """Predict the class of each pixel of an image, at its own size.

    It is that of the highest number in what :func:`predict_maps` gives, found in strips of rows, so that maps of many
    classes at the size of a large image are never in memory whole.

    Args:
        predict: takes preprocessed images (n, C, h, w) and returns maps (n, K, h', w') of any stride, such as logits.
        image: (C, H, W), as it was stored.
        pipeline: whose preprocessing it goes through, and the maps back.

    Returns:
        (H, W), uint8, or int32 where there are more than 256 classes.

    Example:
        >>> from kornia_mvit.preprocess import Preprocess
        >>> pipeline = AugmentationPipeline(preprocess=Preprocess(32))
        >>> predict_labels(lambda image: image, torch.rand(3, 40, 50), pipeline).shape
        torch.Size([40, 50])
    """
    prepared, params = pipeline.prepare(Batch(image[None]))
    return read_labels(predict(prepared.image), params)


@torch.no_grad()
def read_labels(maps: Tensor, params: Params) -> Tensor:
    """Return the class of each pixel of an image, from the maps of its prepared image; see :func:`predict_labels`.

    Args:
        maps: (1, K, h', w') of any stride, such as logits.
        params: what :meth:`AugmentationPipeline.prepare` returned for the image.

    Returns:
        (H, W), uint8, or int32 where there are more than 256 classes.
    """
    back = MapsBack(maps, way_back(params, maps))
    height, width = back.size
    out = torch.empty(height, width, dtype=torch.uint8 if maps.shape[1] <= 256 else torch.int32, device=maps.device)
    top = 0
    while top < height:
        near = _classes_near(back, slice(top, top + _ROWS))
        rows = slice(top, top + max(1, min(_ROWS, _STRIP // (width * len(near)))))
        found, valid = back.read(rows, near)
        out[rows] = near[found.max(1).indices[0]].to(out.dtype).masked_fill(~valid[0, 0], 0)
        top = rows.stop
    return out


def _classes_near(back: MapsBack, rows: slice) -> Tensor:
    """Return the classes that can be highest somewhere in rows of the result, in order.

    Between four neighbours of a map, bilinear reading keeps each class between its lowest and its highest there: a
    class whose highest is below the lowest of another is nowhere the highest. What is not a number is never left out.
    """
    read = (back.y[0, rows, 0] - 0.5).clamp(0, back.maps.shape[-2] - 1)
    block = back.maps[0, :, int(read.min()) : int(read.max()) + 2]
    block = F.pad(block, (0, 1, 0, 1), mode="replicate")  # of a pixel beside itself at the edge
    highest, lowest = F.max_pool2d(block, 2, 1), -F.max_pool2d(-block, 2, 1)
    return (~(highest < lowest.amax(0))).flatten(1).any(1).nonzero()[:, 0]


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along a side; the last one ends with it.

    Example:
        >>> _starts(100, 40, 25)
        [0, 25, 50, 60]
    """
    return [*range(0, length - window, stride), length - window]


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
