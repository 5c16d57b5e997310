"""Crops that look at what they crop: at the boxes, at the mask, and at which part of the canvas is image.

They are Kornia augmentations. In an :class:`~kornia_mvit.AugmentationPipeline` they see the targets; in a Kornia
container of their own they crop without looking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor

from kornia_mvit.ops.geometry import (
    box_iou,
    center_matrix,
    constant,
    gather_pixels,
    invert,
    is_inside,
    sample_bilinear,
    source_points,
    window_matrix,
)
from kornia_mvit.ops.uploads import upload

__all__ = ["RandomCropKeepingBoxes", "RandomIoUCrop", "RandomScaledCrop", "RandomZoomOut", "View", "WindowCrop"]

Size = tuple[int, int]


@dataclass(frozen=True)
class View:
    """What a crop may look at.

    Args:
        canvas: height and width of the canvas in pixels.
        size: (B, 2) height and width of the part of it that is image.
        boxes: (B, N, 4) left, top, right, bottom.
        box_valid: (B, N), False for padding.
        mask: (B, H, W) classes.
        ignore_index: the class in ``mask`` that is none.
    """

    canvas: Size
    size: Tensor
    boxes: Tensor | None = None
    box_valid: Tensor | None = None
    mask: Tensor | None = None
    ignore_index: int = 255


class WindowCrop(GeometricAugmentationBase2D):
    """Lay a window of each image onto a canvas of one size: the base of this module's crops.

    A subclass says in :meth:`windows` which; a window may reach beyond the image, and what lies there is zero. With
    ``same_on_batch``, which Kornia's containers set, all images get the same window, in shares of each one's sides. A
    pipeline sends what :meth:`numbers` draws to its device together with what the other operations draw.

    Args:
        size: height and width of the result in pixels; None keeps those of the canvas.
    """

    fusable = True
    aligned = True
    covers = False
    looks_at: str | None = None

    def __init__(self, size: Size | None) -> None:
        super().__init__(p=1.0)
        self.size = size

    def numbers(self, count: int) -> tuple[Tensor, ...]:
        """Draw on the CPU the random numbers that :meth:`windows` takes for a number of images."""
        return ()

    def windows(self, view: View, *numbers: Tensor) -> Tensor:
        """Return the windows: (B, 4) left, top, right, bottom in pixels.

        Args:
            view: what there is to look at.
            *numbers: what :meth:`numbers` drew, on the device of ``view``; drawn here if there are none.
        """
        raise NotImplementedError

    def _sent(self, numbers: Sequence[Tensor], view: View) -> Sequence[Tensor]:
        return numbers or upload(self.numbers(len(view.size)), view.size.device)

    def _rand(self, *shape: int, batch: int = 0) -> Tensor:
        """Draw numbers in [0, 1), float64, for each image, or the same for all along the dimension ``batch``."""
        drawn = [1 if self.same_on_batch and k == batch else side for k, side in enumerate(shape)]
        return torch.rand(drawn, dtype=torch.float64).expand(shape)

    def _first_fit(self, fits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number (B,) of the first trial that fits, of (B, T), and whether one does; the same for all."""
        if self.same_on_batch:
            fits = fits.all(0, keepdim=True).expand_as(fits)
        return fits.to(torch.uint8).argmax(1), fits.any(1)

    def reach(self, given: Size, size: Size) -> float:
        """Return how many pixels of a canvas of one size may lie between neighbours of a result of another."""
        return max(given[0] / size[0], given[1] / size[1])

    def draw(self, view: View, shape: tuple[int, ...], numbers: Sequence[Tensor] = ()) -> dict[str, Any]:
        """Return parameters in Kornia's form.

        Args:
            view: what there is to look at.
            shape: of the images, (B, C, H, W).
            numbers: see :meth:`windows`.
        """
        size = self.size or view.canvas
        return {
            "window": self.windows(view, *numbers),
            "batch_prob": torch.ones(shape[0]),
            "output_size": torch.tensor(size).expand(shape[0], 2),
            "forward_input_shape": torch.tensor(shape),
        }

    def forward_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw parameters for images of a shape (B, C, H, W), of which nothing else is known."""
        canvas = (int(batch_shape[-2]), int(batch_shape[-1]))
        return self.draw(View(canvas, torch.tensor(canvas).expand(batch_shape[0], 2)), tuple(batch_shape))

    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        """Return the matrices between pixel centres, as Kornia counts."""
        return center_matrix(window_matrix(params["window"], self._out(input))).to(input.dtype)

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Resample the windows bilinearly."""
        inverse = invert(window_matrix(params["window"].to(input.device), self._out(input)))
        x, y, _ = source_points(inverse, self._out(input), input.dtype, aligned=True)
        inside = is_inside(x, y, input.shape[-1], input.shape[-2])
        return sample_bilinear(input, x, y) * inside[:, None]

    def _out(self, image: Tensor) -> Size:
        return self.size or (int(image.shape[-2]), int(image.shape[-1]))


class RandomZoomOut(WindowCrop):
    """Make images smaller on their canvas, with nothing around them, so that small objects are seen in training.

    Args:
        max_scale: how many times as long as the image's the canvas's sides get at most.
        p: share of the images that are zoomed out; the others fill the canvas.

    Raises:
        ValueError: for a scale below 1 or a probability outside [0, 1].

    References:
        W. Liu et al.: SSD: Single Shot MultiBox Detector, section 3.6. https://arxiv.org/abs/1512.02325

    Example:
        >>> RandomZoomOut(max_scale=2.0)(torch.rand(2, 3, 32, 48)).shape
        torch.Size([2, 3, 32, 48])
    """

    def __init__(self, max_scale: float = 4.0, p: float = 0.5) -> None:
        super().__init__(None)
        if max_scale < 1:
            raise ValueError(f"max_scale {max_scale} is below 1, which would zoom in")
        self.max_scale = max_scale
        self.share: float = _share(p)

    def numbers(self, count: int) -> tuple[Tensor, ...]:
        """Draw whether an image is zoomed out, its scale and its place."""
        return (self._rand(4, count, batch=1),)

    def windows(self, view: View, *numbers: Tensor) -> Tensor:
        """Return windows around the images."""
        (u,) = self._sent(numbers, view)
        scale = torch.where(u[0] < self.share, 1 + u[1] * (self.max_scale - 1), 1.0)[:, None]
        inside = view.size.double().flip(-1)
        low = -u[2:].T * (scale - 1) * inside
        return torch.cat([low, low + scale * inside], -1)

    def reach(self, given: Size, size: Size) -> float:
        """Return the largest scale: the canvas stays."""
        return self.max_scale

    def __repr__(self) -> str:
        return f"RandomZoomOut(max_scale={self.max_scale}, p={self.share})"


class RandomIoUCrop(WindowCrop):
    """Crop so that some object stays in view as well as a drawn overlap asks, and resize to one size.

    For each image one of ``overlaps`` is drawn, and of ``trials`` windows the first that overlaps some box by at
    least as much and holds the centre of one; where there is none, or None was drawn, the whole image is taken.

    Args:
        size: height and width of the result in pixels.
        overlaps: intersection over union to draw from; None for the whole image.
        scale: height and width of a window as shares of the image's, from and to.
        ratio: width over height of a window in pixels, from and to.
        trials: windows that are tried for each image.

    Raises:
        ValueError: for ranges that are not ascending.

    References:
        W. Liu et al.: SSD: Single Shot MultiBox Detector, section 2.2. https://arxiv.org/abs/1512.02325

    Example:
        >>> RandomIoUCrop((32, 32))(torch.rand(2, 3, 48, 64)).shape
        torch.Size([2, 3, 32, 32])
    """

    covers = True
    looks_at: str | None = "boxes"

    def __init__(
        self,
        size: Size,
        *,
        overlaps: tuple[float | None, ...] = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (0.5, 2.0),
        trials: int = 40,
    ) -> None:
        super().__init__(size)
        _check_ranges(scale, ratio)
        if not overlaps or trials < 1:
            raise ValueError(f"overlaps {overlaps} and trials {trials}: give at least one of each")
        self.overlaps: tuple[float | None, ...] = tuple(overlaps)
        self.scale: tuple[float, ...] = tuple(scale)
        self.ratio: tuple[float, ...] = tuple(ratio)
        self.trials: int = trials

    def numbers(self, count: int) -> tuple[Tensor, ...]:
        """Draw the windows to try, and the overlaps that they are to have."""
        u = self._rand(4, count, self.trials, batch=1)
        table = torch.tensor([2.0 if o is None else o for o in self.overlaps], dtype=torch.float64)
        # an overlap of 2 is never met: the whole image
        return u, table[torch.randint(len(table), (1 if self.same_on_batch else count,))].expand(count)

    def windows(self, view: View, *numbers: Tensor) -> Tensor:
        """Return windows, looking at the boxes."""
        u, least = self._sent(numbers, view)
        inside = view.size.double().flip(-1)[:, None]  # B 1 2, width and height
        side = (self.scale[0] + u[:2] * (self.scale[1] - self.scale[0])).permute(1, 2, 0) * inside
        low = u[2:].permute(1, 2, 0) * (inside - side)
        tried = torch.cat([low, low + side], -1)  # B T 4
        aspect = side[..., 0] / side[..., 1]
        fits = (aspect >= self.ratio[0]) & (aspect <= self.ratio[1])
        if view.boxes is not None and view.box_valid is not None and view.boxes.shape[1]:
            boxes = view.boxes.double()
            overlap = (box_iou(tried, boxes) * view.box_valid[:, None]).amax(-1)
            centre = (boxes[..., :2] + boxes[..., 2:]) / 2
            held = (centre[:, None] >= tried[:, :, None, :2]) & (centre[:, None] <= tried[:, :, None, 2:])
            held = (held.all(-1) & view.box_valid[:, None]).any(-1)
            none = ~view.box_valid.any(1, keepdim=True)
            fits = fits & (none | held & (overlap >= least[:, None]))
        first, some = self._first_fit(fits & (least[:, None] <= 1))
        chosen = tried.gather(1, first[:, None, None].expand(-1, 1, 4))[:, 0]
        whole = torch.cat([torch.zeros_like(inside), inside], -1)[:, 0]
        return torch.where(some[:, None], chosen, whole)

    def __repr__(self) -> str:
        return f"RandomIoUCrop(size={self.size}, overlaps={self.overlaps}, scale={self.scale}, ratio={self.ratio})"


class RandomCropKeepingBoxes(WindowCrop):
    """Crop so that boxes stay whole: all of them, or a share, and resize to one size.

    For each image the boxes to be kept are drawn, and then a window around them: its width and height between what
    they need and ``scale``, in a ratio between those of ``ratio``, and its place. Nothing is tried and thrown away: any
    window that holds the boxes is within reach. Where no window of such a ratio does, the whole image is taken. An
    image without boxes is cropped anywhere.

    Args:
        size: height and width of the result in pixels; None keeps those of the canvas.
        keep: share of an image's boxes, rounded up, that stay whole, above 0 up to 1; which ones is drawn.
        scale: height and width of a window as shares of the image's, from and to. Where the boxes need more, they get
            more.
        ratio: width over height of a window in pixels, from and to.

    Raises:
        ValueError: for ranges that are not ascending, and a share outside (0, 1].

    Example:
        >>> RandomCropKeepingBoxes((32, 32))(torch.rand(2, 3, 48, 64)).shape
        torch.Size([2, 3, 32, 32])
    """

    covers = True
    looks_at: str | None = "boxes"

    def __init__(
        self,
        size: Size | None = None,
        *,
        keep: float = 1.0,
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        super().__init__(size)
        if not 0 < keep <= 1:
            raise ValueError(f"keep {keep} is not in (0, 1]; it is the share of the boxes that stay whole")
        _check_ranges(scale, ratio)
        self.keep: float = keep
        self.scale: tuple[float, ...] = tuple(scale)
        self.ratio: tuple[float, ...] = tuple(ratio)

    def numbers(self, count: int) -> tuple[Tensor, ...]:
        """Draw the sides and the places of the windows, and what the boxes to be kept are drawn by."""
        return self._rand(4, count, batch=1), self._rand(count)

    def windows(self, view: View, *numbers: Tensor) -> Tensor:
        """Return windows around the boxes that are to be kept."""
        u, phase = self._sent(numbers, view)
        inside = view.size.double().flip(-1)
        low, high = self._bounds(view, phase, inside)
        needed = (high - low).clamp_min(0)
        least = torch.maximum(needed, self.scale[0] * inside)
        most = torch.maximum(least, self.scale[1] * inside)
        first, last = self.ratio
        narrow = torch.maximum(least[:, 0], first * least[:, 1])
        wide = torch.minimum(most[:, 0], last * most[:, 1])
        width = narrow + u[0] * (wide - narrow)
        flat, tall = torch.maximum(least[:, 1], width / last), torch.minimum(most[:, 1], width / first)
        side = torch.stack([width, flat + u[1] * (tall - flat)], -1)
        start = torch.maximum(high - side, torch.zeros_like(side))
        end = torch.minimum(low, inside - side)
        corner = start + u[2:].T * (end - start)
        fits = (narrow <= wide)[:, None]
        corner, side = torch.where(fits, corner, 0.0), torch.where(fits, side, inside)
        return torch.cat([corner, corner + side], -1)

    def _bounds(self, view: View, phase: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corners (B, 2) of what is around the boxes to be kept, the second first where there are none."""
        if view.boxes is None or view.box_valid is None or not view.boxes.shape[1]:
            return inside, torch.zeros_like(inside)
        valid, boxes = view.box_valid, view.boxes.double()
        place = torch.arange(valid.shape[1], dtype=torch.float64, device=valid.device)
        keys = ((place * 12.9898 + 1 + phase[:, None] * 78.233).sin() * 43758.5453).frac().abs()
        rank = keys.masked_fill(~valid, 2.0).argsort(1).argsort(1)
        wanted = (self.keep * valid.sum(1, keepdim=True) - 1e-9).ceil()
        kept = (valid & (rank < wanted))[..., None]
        low = torch.where(kept, boxes[..., :2], inside[:, None]).amin(1)
        return low, torch.where(kept, boxes[..., 2:], 0.0).amax(1)

    def __repr__(self) -> str:
        return f"RandomCropKeepingBoxes(size={self.size}, keep={self.keep}, scale={self.scale}, ratio={self.ratio})"


class RandomScaledCrop(WindowCrop):
    """Resize images so that their shorter side has a random length, and crop, avoiding windows of one class.

    A window that is larger than the resized image reaches beyond it.

    Args:
        size: height and width of the result in pixels.
        short_side: length in pixels that the image's shorter side is resized to, from and to.
        max_class_share: share of a window's labelled pixels that one class may take, estimated on a grid of 16 x 16
            points; of ``trials`` windows the first that keeps to it is taken, or the first of all. 1 for no bound.
        trials: windows that are tried for each image.

    Raises:
        ValueError: for a range that is not ascending, or a share outside (0, 1].

    References:
        Paper: MobileViT, section 4.2.2. https://arxiv.org/abs/2110.02178

    Example:
        >>> RandomScaledCrop((32, 32), short_side=(32, 64))(torch.rand(2, 3, 48, 64)).shape
        torch.Size([2, 3, 32, 32])
    """

    looks_at: str | None = "mask"

    def __init__(
        self,
        size: Size,
        *,
        short_side: tuple[int, int] = (256, 1024),
        max_class_share: float = 0.75,
        trials: int = 10,
    ) -> None:
        super().__init__(size)
        if not 0 < short_side[0] <= short_side[1]:
            raise ValueError(f"short_side {short_side} is not an ascending range of pixels")
        if not 0 < max_class_share <= 1 or trials < 1:
            raise ValueError(f"max_class_share {max_class_share} is not in (0, 1], or trials {trials} not at least 1")
        self.short_side: tuple[int, ...] = tuple(short_side)
        self.max_class_share: float = max_class_share
        self.trials: int = trials

    def numbers(self, count: int) -> tuple[Tensor, ...]:
        """Draw the lengths of the shorter sides, and the places to try."""
        return self._rand(count), self._rand(count, self.trials, 2)

    def windows(self, view: View, *numbers: Tensor) -> Tensor:
        """Return windows, looking at the mask."""
        assert self.size is not None
        u, place = self._sent(numbers, view)
        inside = view.size.double().flip(-1)[:, None]
        scale = (self.short_side[0] + u * (self.short_side[1] - self.short_side[0])) / inside.amin((1, 2))
        side = constant((self.size[1], self.size[0]), scale.device) / scale[:, None, None]
        low = place * (inside - side)
        tried = torch.cat([low, low + side.expand_as(low)], -1)
        if view.mask is None or self.max_class_share == 1:
            return tried[:, 0]
        first, _ = self._first_fit(_class_share(view.mask, tried, inside, view.ignore_index) <= self.max_class_share)
        return tried.gather(1, first[:, None, None].expand(-1, 1, 4))[:, 0]

    def reach(self, given: Size, size: Size) -> float:
        """Return by how much the shorter side of a canvas shrinks at most."""
        return min(given) / self.short_side[0]

    def __repr__(self) -> str:
        return (
            f"RandomScaledCrop(size={self.size}, short_side={self.short_side}, max_class_share={self.max_class_share})"
        )


def _check_ranges(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
        if not 0 < low <= high or (name == "scale" and high > 1):
            raise ValueError(f"{name} {(low, high)} is not an ascending range of positive numbers (scale: up to 1)")


def _class_share(mask: Tensor, windows: Tensor, inside: Tensor, ignore_index: int) -> Tensor:
    """Estimate the share of the commonest class among the labelled pixels of windows (B, T, 4): (B, T)."""
    step = (torch.arange(16, dtype=torch.float64, device=mask.device) + 0.5) / 16
    low, side = windows[..., :2], windows[..., 2:] - windows[..., :2]
    x = (low[..., 0, None] + side[..., 0, None] * step)[:, :, None, :]
    y = (low[..., 1, None] + side[..., 1, None] * step)[:, :, :, None]
    seen = is_inside(x, y, inside[..., 0, None, None], inside[..., 1, None, None])
    shape = seen.shape
    points = [v.expand(shape).flatten(1, 2) for v in (x, y)]
    classes = gather_pixels(mask, points[0], points[1]).view(shape).flatten(2).long()
    known = seen.flatten(2) & (classes != ignore_index)
    # Unknown pixels get numbers of their own, so that they are never the commonest class.
    alone = -1 - torch.arange(classes.shape[-1], device=mask.device).expand_as(classes)
    classes = torch.where(known, classes, alone)
    commonest = classes.mode(-1, keepdim=True).values
    return (classes == commonest).sum(-1) / known.sum(-1).clamp_min(1)


def _share(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"p {p} is not a probability in [0, 1]")
    return p
