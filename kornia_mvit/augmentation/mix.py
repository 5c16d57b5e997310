"""MixUp and CutMix into soft targets."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
from kornia.geometry.bbox import bbox_to_mask
from torch import Tensor, nn

from kornia_mvit.augmentation.kornia_adapter import sample_cutmix
from kornia_mvit.augmentation.randomness import uncompiled
from kornia_mvit.batch import Batch, replace_checked
from kornia_mvit.ops.uploads import upload

__all__ = ["Mix", "canvas_shown", "check_classes", "soften"]

# What such targets need in place of Mix.
_SPATIAL = {"boxes": "MixUp, CutMix or Mosaic", "mask": "CutMix or Mosaic", "keypoints": None, "extra": "CutMix"}


class Mix(nn.Module):
    """Mix the images of a batch with each other, and their labels into soft targets.

    For each batch MixUp or CutMix is chosen; Kornia's operations mix the images. Targets are one-hot with label
    smoothing, weighted by the share that each image has in the result: by MixUp's lambda, or by the pixels of each that
    CutMix left. Pixels that show no image do not count, such as the canvas beside ``batch.size`` and what a pipeline's
    rotation left empty. An image that is not chosen, or meets itself, keeps its pixels and a target of its own class
    alone.

    Args:
        num_classes: number of classes, K.
        mixup: alpha of the Beta distribution of MixUp's lambda; 0 for no MixUp.
        cutmix: alpha of the Beta distribution of CutMix's area; 0 for no CutMix.
        p: share of the images that are mixed.
        switch: probability of CutMix rather than MixUp for a batch, if both are on.
        label_smoothing: share of a target that is spread over all classes.

    Shape:
        - Input: a batch with images :math:`(B, C, H, W)` and labels :math:`(B,)`, or soft or multi-hot ones
          :math:`(B, K)` in [0, 1]
        - Output: the same with labels :math:`(B, K)`. They sum to one; multi-hot ones to the sums of both images'
          labels, weighted, since smoothing spreads a share of each sum and leaves the sum as it is

    Raises:
        ValueError: for numbers out of range, both off, a batch without labels or with boxes, masks or keypoints, and
            on the CPU for labels outside [0, K), or (B, K) outside [0, 1].

    References:
        H. Zhang et al.: mixup. https://arxiv.org/abs/1710.09412
        S. Yun et al.: CutMix. https://arxiv.org/abs/1905.04899

    Example:
        >>> batch = Batch(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
        >>> Mix(num_classes=3)(batch).label.sum(1).allclose(torch.ones(4))
        True
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float | None = 0.8,
        cutmix: float | None = 1.0,
        p: float = 1.0,
        switch: float = 0.5,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        mixup, cutmix = mixup or 0.0, cutmix or 0.0
        if num_classes < 2:
            raise ValueError(f"num_classes {num_classes} is not at least 2; give the number of classes of the labels")
        if mixup < 0 or cutmix < 0:
            raise ValueError(f"mixup {mixup} or cutmix {cutmix} is negative; 0 turns one off")
        if not mixup and not cutmix:
            raise ValueError("mixup and cutmix are both off; turn one on, or leave the mix away")
        for name, value in {"p": p, "switch": switch, "label_smoothing": label_smoothing}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value} is not in [0, 1]")
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.p = p
        self.switch = switch
        self.label_smoothing = label_smoothing
        # Kept from registration: a move would have Kornia draw on the device.
        self._mixup: RandomMixUpV2
        self._cutmix: RandomCutMixV2
        object.__setattr__(self, "_mixup", RandomMixUpV2())
        object.__setattr__(self, "_cutmix", RandomCutMixV2(beta=cutmix or 1.0, use_correct_lambda=True))

    def check(self, batch: Batch) -> None:
        """Refuse batches that cannot be mixed; labels are looked at on the CPU alone, where nothing waits."""
        if found := [name for name in _SPATIAL if getattr(batch, name) is not None]:
            instead = [f"{_SPATIAL[name]} for {name}" for name in found if _SPATIAL[name] is not None]
            told = f"take {', '.join(instead)}, " if instead else ""
            raise ValueError(
                f"Mix cannot carry {' and '.join(found)} along; {told}leave mix away for this batch, or the targets"
            )
        if batch.label is None:
            raise ValueError("mixing needs labels, and the batch has none; give labels, or leave mix away")
        check_classes(batch.label, self.num_classes)

    def draw_for(self, batch: Batch) -> dict[str, Any]:
        """Draw for a batch; see :meth:`draw`."""
        return self.draw(len(batch), batch.image.shape[-2], batch.image.shape[-1])

    @uncompiled
    def draw(self, batch_size: int, height: int, width: int) -> dict[str, Any]:
        """Draw from PyTorch's global generator on the CPU: who is mixed with whom, how, and how much.

        Returns:
            Plain data: ``kind`` (``'mixup'``, ``'cutmix'`` or ``'none'``), ``own`` (B,) the share of each image's own
            label in its target, ``pairs`` (B,) whom it meets, and what Kornia's operation needs.
        """
        chosen = torch.rand(batch_size) < self.p
        use_cutmix = bool(torch.rand(()) < self.switch) if self.mixup and self.cutmix else bool(self.cutmix)
        if batch_size < 2 or not bool(chosen.any()):
            return {"kind": "none", "own": torch.ones(batch_size), "pairs": torch.arange(batch_size)}
        if use_cutmix:
            pairs, boxes = sample_cutmix(self._cutmix, batch_size, height, width)
            # Kornia's boxes name their last pixel: one of no extent ends before it begins.
            side = (boxes[:, 2] - boxes[:, 0] + 1) * chosen[:, None]
            boxes = torch.where(chosen[:, None, None], boxes, _empty(boxes))
            return {"kind": "cutmix", "own": 1 - side.prod(1) / (height * width), "pairs": pairs, "boxes": boxes}
        pairs = torch.randperm(batch_size)
        concentration = torch.full((batch_size,), float(self.mixup))
        own = torch.distributions.Beta(concentration, concentration, validate_args=False).sample()
        return {"kind": "mixup", "own": torch.where(chosen, own, 1.0), "pairs": pairs}

    @staticmethod
    def send(params: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return what :meth:`draw` gave on the device of the images, sent there in one copy."""
        names = [name for name, value in params.items() if isinstance(value, Tensor)]
        return params | dict(zip(names, upload([params[name] for name in names], device), strict=True))

    def weigh(self, params: dict[str, Any], seen: Tensor) -> dict[str, Any]:
        """Return what was drawn for CutMix with the shares of the pixels that show an image.

        Args:
            params: what :meth:`draw` gave.
            seen: (B, H, W) bool, which pixels show the image before it is mixed; the others are padding.

        Returns:
            ``params``, with another ``own``: 1 where nothing of both images is left.
        """
        pairs = params["pairs"].to(seen.device, non_blocking=True)
        boxes = params["boxes"].to(seen.device, non_blocking=True)
        inside = bbox_to_mask(boxes, seen.shape[-1], seen.shape[-2]).bool()
        kept, put = (shown.flatten(1).sum(1) for shown in (seen & ~inside, seen.index_select(0, pairs) & inside))
        return params | {"own": 1 - put / (kept + put).clamp_min(1)}

    @staticmethod
    def size(size: Tensor, params: dict[str, Any]) -> Tensor:
        """Return the sizes (B, 2) of images after they were mixed: each holds both images."""
        own = params["own"].to(size.device, non_blocking=True)
        pairs = params["pairs"].to(size.device, non_blocking=True)
        return torch.where((own < 1)[:, None], torch.maximum(size, size.index_select(0, pairs)), size)

    def mix(self, image: Tensor, label: Tensor, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) and their labels as was drawn, without waiting for the device.

        Returns:
            Images of the same dtype, and (B, K) soft targets in float32.
        """
        soft = soften(label, self.num_classes, self.label_smoothing)
        if params["kind"] == "none":
            return image, soft
        own = params["own"].to(image.device, non_blocking=True)
        pairs = params["pairs"].to(image.device, non_blocking=True)
        if params["kind"] == "mixup":
            drawn = {"mixup_pairs": pairs, "mixup_lambdas": 1 - own}
            mixed = self._mixup.apply_transform(image, drawn)
            mixed = torch.where((own == 1)[:, None, None, None], image, mixed)
        else:  # Kornia's own assignment by a boolean mask would wait for the device
            boxes = params["boxes"].to(image.device, non_blocking=True)
            inside = bbox_to_mask(boxes, image.shape[-1], image.shape[-2]).bool()[:, None]
            mixed = torch.where(inside, image.index_select(0, pairs), image)
        weight = own.to(soft.dtype)[:, None]
        return mixed, soft * weight + soft.index_select(0, pairs) * (1 - weight)

    def run(
        self, batch: Batch, params: dict[str, Any], seen: Callable[[], Tensor] | None
    ) -> tuple[Batch, dict[str, Any]]:
        """Mix a batch as was drawn.

        Args:
            batch: floating-point images with labels.
            params: what :meth:`draw` gave.
            seen: gives (B, H, W) bool, which pixels show an image; None where that was asked for already.

        Returns:
            The batch, and what was drawn with the shares of the labels.
        """
        assert batch.label is not None
        sent = self.send(params, batch.image.device)
        if seen is not None and params["kind"] == "cutmix":
            sent = self.weigh(sent, seen())
            params = params | {"own": sent["own"]}
        image, label = self.mix(batch.image, batch.label, sent)
        size = None if batch.size is None else self.size(batch.size, sent)
        return replace_checked(batch, image=image, label=label, size=size), params

    def forward(self, batch: Batch) -> Batch:
        """Draw, and mix a batch of floating-point images."""
        self.check(batch)
        if not batch.image.is_floating_point():
            raise TypeError(f"mixing takes floating-point images, got {batch.image.dtype}; divide by 255 first")
        return self.run(batch, self.draw_for(batch), None if batch.size is None else partial(canvas_shown, batch))[0]

    def __repr__(self) -> str:
        return (
            f"Mix({self.num_classes} classes, mixup={self.mixup}, cutmix={self.cutmix}, p={self.p}, "
            f"switch={self.switch}, label_smoothing={self.label_smoothing})"
        )


def _empty(boxes: Tensor) -> Tensor:
    """Return boxes (B, 4, 2) in Kornia's form that hold no pixel."""
    return boxes.new_tensor([[0, 0], [-1, 0], [-1, -1], [0, -1]]).expand_as(boxes)


def check_classes(label: Tensor, num_classes: int) -> None:
    """Refuse labels of other classes; values are looked at on the CPU alone, where nothing waits."""
    if label.is_floating_point():
        if label.shape[1] != num_classes:
            raise ValueError(f"soft labels have {label.shape[1]} classes, the mix {num_classes}")
        if label.device.type == "cpu" and not bool(((label >= 0) & (label <= 1)).all()):
            low, high = (value.item() for value in label.aminmax())
            raise ValueError(
                f"soft and multi-hot labels lie in [0, 1], got values from {low:g} to {high:g}; divide counts and "
                "take the softmax of logits"
            )
    elif label.device.type == "cpu" and len(label):
        low, high = (int(value) for value in label.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels go from {low} to {high}, but num_classes {num_classes} allows 0 to {num_classes - 1}"
            )


def soften(label: Tensor, num_classes: int | None, smoothing: float) -> Tensor:
    """Return labels (B,) or (B, K) as soft ones (B, K), float32, a share of which is spread over all classes.

    Args:
        label: classes, or soft or multi-hot ones.
        num_classes: K; read for classes alone.
        smoothing: the share.
    """
    soft = label.float() if label.is_floating_point() else F.one_hot(label.long(), num_classes or -1).float()
    return soft * (1 - smoothing) + soft.mean(1, keepdim=True) * smoothing


def canvas_shown(batch: Batch) -> Tensor:
    """Return which pixels (B, H, W) of a batch's canvas its sizes say to be image."""
    height, width = batch.image.shape[-2:]
    if batch.size is None:
        return torch.ones((), dtype=torch.bool, device=batch.image.device).expand(len(batch), height, width)
    row, column = (torch.arange(n, device=batch.size.device) for n in (height, width))
    return (row < batch.size[:, :1])[:, :, None] & (column < batch.size[:, 1:])[:, None]
