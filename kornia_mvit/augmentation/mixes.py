"""Mosaic, MixUp, CutMix and copy-paste of images with their boxes and masks."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from kornia_mvit.augmentation.layers import CutBoxes, Layer, clip_boxes, cover_boxes, keep_boxes, read_image
from kornia_mvit.augmentation.target_mix import Params, TargetMix, draw_partners
from kornia_mvit.batch import Batch
from kornia_mvit.ops.geometry import constant

__all__ = ["CutMix", "MixUp", "Mosaic"]

Range = tuple[float, float]


class Mosaic(TargetMix):
    """Show parts of four images of the batch in the quarters of one.

    The quarters meet in a random point. Each is filled by a part of its image, at a random scale and aspect ratio kept;
    an image that is too small for its quarter is enlarged until it fills it. The image itself has one of the quarters.
    Boxes are cut at the edges of their quarter; masks are read from the nearest pixel.

    Args:
        p: share of the images that become mosaics.
        scale: of the images in the quarters, from and to: 0.5 shows a whole image in a quarter of half its sides.
        centre: where the quarters meet, as a share of height and of width, from and to.
        num_classes: see :class:`~kornia_mvit.augmentation.target_mix.TargetMix`.
        max_boxes: likewise.

    Raises:
        ValueError: for numbers out of range, and on the first batch for keypoints without boxes of their own.

    References:
        A. Bochkovskiy et al.: YOLOv4. https://arxiv.org/abs/2004.10934

    Example:
        >>> boxes, labels = torch.tensor([[[2.0, 2.0, 30.0, 30.0]]] * 4), torch.tensor([[0], [1], [2], [3]])
        >>> out = Mosaic(p=1.0)(Batch(torch.rand(4, 3, 32, 32), boxes=boxes, box_label=labels))
        >>> out.boxes.shape, out.box_source.shape
        (torch.Size([4, 4, 4]), torch.Size([4, 4]))
    """

    kind = "mosaic"
    refuses: ClassVar[dict[str, str]] = {
        **TargetMix.refuses,
        "oriented_boxes": "they do not follow into the quarters",
    }
    carries: ClassVar[tuple[str, ...]] = ("image", "values")  # vectors would have to be scaled with their quarter

    def __init__(
        self,
        p: float = 0.5,
        *,
        scale: Range = (0.5, 1.0),
        centre: Range = (0.3, 0.7),
        num_classes: int | None = None,
        max_boxes: int | None = None,
    ) -> None:
        super().__init__(p, num_classes=num_classes, max_boxes=max_boxes)
        for name, (low, high), most in (("scale", scale, float("inf")), ("centre", centre, 1.0)):
            if not (0 <= low <= high <= most) or (name == "scale" and low == 0):
                raise ValueError(f"{name} {(low, high)} is not an ascending range of shares")
        self.scale: tuple[float, float] = (scale[0], scale[1])
        self.centre: tuple[float, float] = (centre[0], centre[1])

    def _settings(self) -> dict[str, Any]:
        return {"scale": self.scale, "centre": self.centre}

    def _draw(self, chosen: Tensor, batch_size: int, size: tuple[int, int], rows: int) -> Params:
        count = len(chosen)
        keys = torch.rand(count, batch_size).scatter_(1, chosen[:, None], 2.0)  # the image itself last
        others = keys.argsort(1)[:, torch.arange(3) % (batch_size - 1)]
        low, high = self.centre
        share = low + (high - low) * torch.rand(count, 2)
        low, high = self.scale
        return {
            "others": others,
            "quarters": torch.rand(count, 4).argsort(1),
            "middle": (share * torch.tensor(size)).round().long(),
            "scale": low + (high - low) * torch.rand(count, 4),
            "window": torch.rand(count, 4, 2),
        }

    def _layers(self, batch: Batch, params: Params) -> Sequence[Layer]:
        height, width = batch.image.shape[-2:]
        sources = torch.cat([params["rows"][:, None], params["others"]], 1)
        row, column = (torch.arange(n, device=sources.device, dtype=torch.float64) + 0.5 for n in (height, width))
        layers = []
        for k in range(4):
            source, quarter = sources[:, k], params["quarters"][:, k]
            tile = _find_tile(quarter, params["middle"], (height, width))
            length = tile[:, 2:] - tile[:, :2]
            view = constant((width, height), source.device)
            if batch.size is not None:
                view = batch.size.index_select(0, source).double().flip(-1)
            view = view.expand_as(length)
            scale = torch.maximum(params["scale"][:, k].double(), (length / view).amax(1))[:, None]
            start = params["window"][:, k].double() * (view - length / scale).clamp_min(0)
            x = ((column - tile[:, :1]) / scale + start[:, :1]).clamp_min(0.5).minimum(view[:, :1] - 0.5)
            y = ((row - tile[:, 1:2]) / scale + start[:, 1:]).clamp_min(0.5).minimum(view[:, 1:] - 0.5)
            inside = ((column > tile[:, :1]) & (column < tile[:, 2:3]))[:, None]
            inside = inside & ((row > tile[:, 1:2]) & (row < tile[:, 3:]))[:, :, None]
            cut = partial(_cut_into_tile, tile=tile, scale=scale, start=start)
            move = partial(_move_into_tile, scale=scale, start=start, tile=tile)
            layers.append(Layer(source, cut, inside, places=(x[:, None], y[:, :, None]), move=move))
        return layers

    def _sizes(self, batch: Batch, layers: Sequence[Layer]) -> Tensor:
        canvas = constant((batch.image.shape[-2], batch.image.shape[-1]), batch.image.device, torch.int64)
        return canvas.expand(len(layers[0].source), 2)


class MixUp(TargetMix):
    """Blend pairs of images of the batch; a blend has the boxes of both.

    Each box has the weight of its image in the blend, ``Batch.box_weight``. The loss of
    :class:`~kornia_mvit.training.DetectionTask` multiplies the terms of a box's anchors by it.

    Args:
        p: share of the images that are blended.
        alpha: of the Beta distribution of the image's own weight.
        num_classes: see :class:`~kornia_mvit.augmentation.target_mix.TargetMix`.
        max_boxes: likewise.

    Raises:
        ValueError: for numbers out of range, and on the first batch for masks, as a pixel has one class, and for
            keypoints without boxes of their own.

    References:
        H. Zhang et al.: mixup. https://arxiv.org/abs/1710.09412
        Z. Zhang et al.: Bag of freebies for training object detection networks. https://arxiv.org/abs/1902.04103

    Example:
        >>> boxes, labels = torch.tensor([[[2.0, 2.0, 30.0, 30.0]]] * 2), torch.tensor([[0], [1]])
        >>> out = MixUp(p=1.0)(Batch(torch.rand(2, 3, 32, 32), boxes=boxes, box_label=labels))
        >>> out.box_label, out.box_weight.sum(1)
        (tensor([[0, 1],
                [1, 0]]), tensor([1., 1.]))
    """

    kind = "mixup"
    carries: ClassVar[tuple[str, ...]] = ("image",)  # each pixel of a blend is of two values
    shares = True
    refuses: ClassVar[dict[str, str]] = {
        "mask": "each pixel of a blend is of two classes; CutMix keeps one",
    }

    def __init__(
        self, p: float = 0.5, *, alpha: float = 1.5, num_classes: int | None = None, max_boxes: int | None = None
    ) -> None:
        super().__init__(p, num_classes=num_classes, max_boxes=max_boxes)
        self.alpha: float = _positive(alpha)

    def _settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    def _draw(self, chosen: Tensor, batch_size: int, size: tuple[int, int], rows: int) -> Params:
        return {"others": draw_partners(chosen, batch_size), "own": _draw_beta(self.alpha, len(chosen))}

    def _layers(self, batch: Batch, params: Params) -> Sequence[Layer]:
        own = params["own"]
        return [
            Layer(params["rows"], keep_boxes, weight=own),
            Layer(params["others"][:, 0], keep_boxes, weight=1 - own),
        ]

    def _compose(self, image: Tensor, layers: Sequence[Layer]) -> Tensor:
        one, other = layers
        assert one.weight is not None
        return torch.lerp(
            read_image(image, other), read_image(image, one), one.weight.to(image.dtype)[:, None, None, None]
        )

    def _find_shares(self, seen: Tensor, layers: Sequence[Layer]) -> Tensor:
        return torch.stack([layer.weight for layer in layers if layer.weight is not None], 1)


class CutMix(TargetMix):
    """Put a rectangle of another image of the batch over each image, at its place.

    Masks show the classes of the pixels that are seen. Boxes of the other image are cut at the rectangle. Of the
    image's own, one of which the rectangle leaves a rectangle becomes that, and any other keeps its edges; the share
    that is hidden counts for the limits in both cases.

    Args:
        p: share of the images that are mixed.
        alpha: of the Beta distribution of the rectangle's share of the canvas. Its sides have the ratio of the canvas.
        num_classes: see :class:`~kornia_mvit.augmentation.target_mix.TargetMix`.
        max_boxes: likewise.

    Raises:
        ValueError: for numbers out of range, and on the first batch for keypoints without boxes of their own.

    References:
        S. Yun et al.: CutMix. https://arxiv.org/abs/1905.04899

    Example:
        >>> mask = torch.arange(2)[:, None, None].expand(2, 32, 32)
        >>> CutMix(p=1.0)(Batch(torch.rand(2, 3, 32, 32), mask=mask)).mask.shape
        torch.Size([2, 32, 32])
    """

    kind = "cutmix"

    def __init__(
        self, p: float = 0.5, *, alpha: float = 1.0, num_classes: int | None = None, max_boxes: int | None = None
    ) -> None:
        super().__init__(p, num_classes=num_classes, max_boxes=max_boxes)
        self.alpha: float = _positive(alpha)

    def _settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    def _draw(self, chosen: Tensor, batch_size: int, size: tuple[int, int], rows: int) -> Params:
        others = draw_partners(chosen, batch_size)
        canvas = torch.tensor(size)
        sides = (canvas * _draw_beta(self.alpha, len(chosen)).sqrt()[:, None]).round().long()
        first = (torch.rand(len(chosen), 2) * (canvas - sides + 1)).long()
        return {"others": others, "patch": torch.cat([first, first + sides], 1)[:, [1, 0, 3, 2]]}

    def _layers(self, batch: Batch, params: Params) -> Sequence[Layer]:
        patch = params["patch"]
        row, column = (torch.arange(n, device=patch.device) for n in batch.image.shape[-2:])
        inside = ((row >= patch[:, 1:2]) & (row < patch[:, 3:]))[:, :, None]
        inside = inside & ((column >= patch[:, :1]) & (column < patch[:, 2:3]))[:, None]
        return [
            Layer(params["rows"], partial(cover_boxes, window=patch), ~inside),
            Layer(params["others"][:, 0], partial(clip_boxes, window=patch), inside),
        ]


def _find_tile(quarter: Tensor, middle: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the edges (M, 4) of quarters 0 to 3 of a canvas, from the upper left, that meet in ``middle`` (M, 2)."""
    height, width = size
    y, x = middle.double().unbind(1)
    right, below = quarter % 2 == 1, quarter >= 2
    return torch.stack(
        [
            torch.where(right, x, 0.0),
            torch.where(below, y, 0.0),
            torch.where(right, float(width), x),
            torch.where(below, float(height), y),
        ],
        1,
    )


def _cut_into_tile(boxes: Tensor, *, tile: Tensor, scale: Tensor, start: Tensor) -> CutBoxes:
    """Bring boxes of an image to a tile of the result."""
    corners = boxes.reshape(len(boxes), 2 * boxes.shape[1], 2)
    corners = _move_into_tile(corners, scale=scale, start=start, tile=tile)
    return clip_boxes(corners.view(boxes.shape), tile)


def _move_into_tile(points: Tensor, *, scale: Tensor, start: Tensor, tile: Tensor) -> Tensor:
    """Bring points (M, P, 2) of an image to where a tile of the result shows them, or would beyond its edges."""
    return points * scale[:, None] + (tile[:, :2] - start * scale)[:, None]


def _draw_beta(alpha: float, count: int) -> Tensor:
    concentration = torch.full((count,), float(alpha))
    sampled: Tensor = torch.distributions.Beta(concentration, concentration, validate_args=False).sample()
    return sampled


def _positive(alpha: float) -> float:
    if not alpha > 0:
        raise ValueError(f"alpha {alpha} is not above 0; p=0 turns a mix off")
    return alpha
