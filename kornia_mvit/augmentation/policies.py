"""Stacks of Kornia augmentations for each task, by name."""

import math
from collections.abc import Sequence

from kornia.augmentation import (
    AugmentationSequential,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
)
from kornia.augmentation.auto import RandAugment
from torch import nn

from kornia_mvit.augmentation.auto import PerImageRandAugment, PerImageTrivialAugment
from kornia_mvit.augmentation.color import RandomColorTwist
from kornia_mvit.augmentation.copy_paste import CopyPaste
from kornia_mvit.augmentation.crops import RandomIoUCrop, RandomScaledCrop, RandomZoomOut
from kornia_mvit.augmentation.kornia_adapter import PolicyAugmentBase, crop_ranges, rotation_degrees
from kornia_mvit.augmentation.mix import Mix
from kornia_mvit.augmentation.mixes import CutMix, MixUp, Mosaic
from kornia_mvit.augmentation.ranges import PAPER, LearnedRanges, Target
from kornia_mvit.augmentation.target_mix import TargetMix

__all__ = [
    "classification_learned",
    "classification_strong",
    "classification_train",
    "detection_learned",
    "detection_train",
    "segmentation_learned",
    "segmentation_train",
]

Size = int | tuple[int, int]
Range = tuple[float, float]


class Policy(AugmentationSequential):
    """A named Kornia stack, which prints itself legibly.

    Args:
        name: of the function that made it.
        steps: Kornia augmentations, in order.
        mix: what mixes the images afterwards: one, or several in order.
        ranges: learned ranges that go with it.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[nn.Module],
        mix: Mix | TargetMix | Sequence[TargetMix] | None = None,
        ranges: LearnedRanges | None = None,
    ) -> None:
        super().__init__(*steps, data_keys=["input"])  # type: ignore[arg-type]  # it takes automatic policies too
        self.name = name
        object.__setattr__(self, "mix", mix)  # beside the steps, not one of them
        object.__setattr__(self, "ranges", ranges)
        self.mix: Mix | TargetMix | Sequence[TargetMix] | None
        self.ranges: LearnedRanges | None

    def __repr__(self) -> str:
        lines = [f"{i}. {_describe(step)}" for i, step in enumerate(self.children(), 1)]
        mixes = self.mix if isinstance(self.mix, Sequence) else () if self.mix is None else (self.mix,)
        lines += [f"then {mix!r}" for mix in mixes]
        if self.ranges is not None:
            lines.append(f"then {self.ranges!r}")
        return "\n   ".join([self.name, *lines])


def classification_train(
    size: Size, *, scale: Range = (0.08, 1.0), ratio: Range = (3 / 4, 4 / 3), flip: float = 0.5, jitter: float = 0.0
) -> Policy:
    """Random resized crop and flip, which Apple trained its classifiers with, and colour jitter if asked for.

    Args:
        size: height and width of the result in pixels, or one number for both.
        scale: share of the image's area that a crop takes, from and to.
        ratio: width over height of a crop, from and to.
        flip: probability of a mirror image.
        jitter: strength of random brightness, contrast and saturation; 0 for none.

    Returns:
        A Kornia container that takes (B, C, H, W) images in [0, 1].

    Raises:
        ValueError: for a range that is not ascending, or a probability or strength outside [0, 1].

    Example:
        >>> import torch
        >>> policy = classification_train(128)
        >>> policy(torch.rand(2, 3, 160, 200)).shape
        torch.Size([2, 3, 128, 128])
        >>> policy
        classification_train
           1. RandomResizedCrop(size=(128, 128), scale=(0.08, 1.0), ratio=(0.75, 1.333))
           2. RandomHorizontalFlip(p=0.5)
    """
    steps = _crop_and_flip(size, scale, ratio, flip)
    _check_shares(jitter=jitter)
    if jitter:
        steps.append(RandomColorTwist(jitter, jitter, jitter, p=0.8))
    return Policy("classification_train", steps)


def classification_learned(
    size: Size,
    *,
    target_psnr: Target | None = None,
    target_ssim: Target | None = None,
    operations: Sequence[str] = PAPER,
    preset: str = "default",
    task_gradients: bool | None = None,
    range_learning_rate: float = 0.05,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
) -> Policy:
    """Random resized crop and flip, and brightness, contrast and noise of learned strength.

    Args:
        size: height and width of the result in pixels, or one number for both.
        target_psnr: see :class:`~kornia_mvit.LearnedRanges`.
        target_ssim: see :class:`~kornia_mvit.LearnedRanges`.
        operations: see :class:`~kornia_mvit.LearnedRanges`.
        preset: see :class:`~kornia_mvit.LearnedRanges`.
        task_gradients: see :class:`~kornia_mvit.LearnedRanges`.
        range_learning_rate: ``learning_rate`` of :class:`~kornia_mvit.LearnedRanges`.
        scale: see :func:`classification_train`.
        ratio: see :func:`classification_train`.
        flip: see :func:`classification_train`.
        jitter: see :func:`classification_train`; it comes before the learned part, and counts as the original image.

    Raises:
        ValueError: as :func:`classification_train` and :class:`~kornia_mvit.LearnedRanges`.

    References:
        S. Mehta et al.: RangeAugment. https://arxiv.org/abs/2212.10553

    Example:
        >>> classification_learned(128, target_psnr=20, operations=["noise"])
        classification_learned
           1. RandomResizedCrop(size=(128, 128), scale=(0.08, 1.0), ratio=(0.75, 1.333))
           2. RandomHorizontalFlip(p=0.5)
           then LearnedRanges(noise 0.0001 to 0.02, target=20 dB, preset=default, task_gradients=False)
    """
    stack = classification_train(size, scale=scale, ratio=ratio, flip=flip, jitter=jitter)
    ranges = LearnedRanges(
        operations,
        target_psnr=target_psnr,
        target_ssim=target_ssim,
        preset=preset,
        task_gradients=task_gradients,
        learning_rate=range_learning_rate,
    )
    return Policy("classification_learned", list(stack.children()), ranges=ranges)


def classification_strong(
    size: Size,
    *,
    num_classes: int | None = None,
    auto: str | None = "randaugment",
    operations: int = 2,
    magnitude: int = 9,
    erasing: float = 0.25,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    mixed: float = 1.0,
    label_smoothing: float = 0.1,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Policy:
    """Random resized crop, flip, automatic augmentation and erasing, with MixUp and CutMix: for long trainings.

    Args:
        size: height and width of the result in pixels, or one number for both.
        num_classes: number of classes, which mixing needs; None for no mixing.
        auto: ``'randaugment'``, ``'trivialaugment'`` or None for neither. Each image draws its own.
        operations: that RandAugment applies to each image.
        magnitude: of RandAugment's operations, above 0 and below 30.
        erasing: probability that a rectangle is erased.
        mixup: alpha of MixUp's Beta distribution; 0 for none.
        cutmix: alpha of CutMix's Beta distribution; 0 for none.
        mixed: share of the images that are mixed.
        label_smoothing: share of a target that is spread over all classes, where images are mixed.
        scale: see :func:`classification_train`.
        ratio: see :func:`classification_train`.
        flip: see :func:`classification_train`.

    Raises:
        ValueError: as :func:`classification_train`, and for an unknown ``auto``.

    References:
        E. Cubuk et al.: RandAugment. https://arxiv.org/abs/1909.13719
        S. Müller, F. Hutter: TrivialAugment. https://arxiv.org/abs/2103.10158

    Example:
        >>> import torch
        >>> classification_strong(64, num_classes=10).mix is None
        False
    """
    steps = _crop_and_flip(size, scale, ratio, flip)
    _check_shares(erasing=erasing, mixed=mixed)
    if auto == "randaugment":
        steps.append(PerImageRandAugment(operations, magnitude))
    elif auto == "trivialaugment":
        steps.append(PerImageTrivialAugment())
    elif auto is not None:
        raise ValueError(f"unknown auto {auto!r}; available: 'randaugment', 'trivialaugment', None")
    if erasing:
        steps.append(RandomErasing(p=erasing))
    mix = None
    if num_classes is not None and mixed and (mixup or cutmix):
        mix = Mix(num_classes, mixup=mixup, cutmix=cutmix, p=mixed, label_smoothing=label_smoothing)
    return Policy("classification_strong", steps, mix)


def segmentation_train(
    size: Size,
    *,
    short_side: tuple[int, int] | None = None,
    max_class_share: float = 0.75,
    flip: float = 0.5,
    jitter: float = 0.0,
    hue: float = 0.0,
    rotate: float = 0.0,
    cutmix: float = 0.0,
) -> Policy:
    """Random scale and crop, rotation, flip and colour jitter, for images with masks.

    Args:
        size: height and width of the result in pixels, or one number for both.
        short_side: length in pixels that the image's shorter side is resized to before the crop, from and to; half and
            twice the result's shorter side when None.
        max_class_share: share of a crop's labelled pixels that one class may take; 1 for no bound.
        flip: probability of a mirror image.
        jitter: strength of random brightness, contrast and saturation; 0 for none.
        hue: strength of random hue, up to 0.5 for all hues; 0 for none.
        rotate: largest angle in degrees; the corners that become empty are ignored by the mask.
        cutmix: share of the images that get a rectangle of another image; see :class:`~kornia_mvit.CutMix`. 0 for none.

    Raises:
        ValueError: for a range that is not ascending, a probability or strength outside [0, 1], or an angle outside
            [0, 180].

    Example:
        >>> import torch
        >>> segmentation_train(64, short_side=(64, 128))(torch.rand(2, 3, 96, 128)).shape
        torch.Size([2, 3, 64, 64])
    """
    _check_shares(flip=flip, jitter=jitter, hue=hue, cutmix=cutmix)
    if not 0 <= rotate <= 180:
        raise ValueError(f"rotate {rotate} is not an angle in [0, 180] degrees")
    if short_side is None:
        short_side = (max(1, min(_pair(size)) // 2), 2 * min(_pair(size)))
    steps: list[nn.Module] = [RandomScaledCrop(_pair(size), short_side=short_side, max_class_share=max_class_share)]
    if rotate:
        steps.append(RandomRotation(rotate, p=0.5))
    mixes = [CutMix(cutmix)] if cutmix else []
    return Policy("segmentation_train", [*steps, *_flip_and_colour(flip, jitter, hue)], mixes)


def segmentation_learned(
    size: Size,
    *,
    target_psnr: Target | None = None,
    target_ssim: Target | None = None,
    operations: Sequence[str] = PAPER,
    preset: str = "default",
    task_gradients: bool | None = None,
    range_learning_rate: float = 0.05,
    short_side: tuple[int, int] | None = None,
    max_class_share: float = 0.75,
    flip: float = 0.5,
    jitter: float = 0.0,
    hue: float = 0.0,
    rotate: float = 0.0,
    cutmix: float = 0.0,
) -> Policy:
    """Random scale and crop, rotation and flip as :func:`segmentation_train`, and learned brightness, contrast, noise.

    Args:
        size: height and width of the result in pixels, or one number for both.
        target_psnr: see :class:`~kornia_mvit.LearnedRanges`.
        target_ssim: see :class:`~kornia_mvit.LearnedRanges`.
        operations: see :class:`~kornia_mvit.LearnedRanges`.
        preset: see :class:`~kornia_mvit.LearnedRanges`.
        task_gradients: see :class:`~kornia_mvit.LearnedRanges`.
        range_learning_rate: ``learning_rate`` of :class:`~kornia_mvit.LearnedRanges`.
        short_side: see :func:`segmentation_train`.
        max_class_share: see :func:`segmentation_train`.
        flip: see :func:`segmentation_train`.
        jitter: see :func:`classification_learned`.
        hue: see :func:`segmentation_train`.
        rotate: see :func:`segmentation_train`.
        cutmix: see :func:`segmentation_train`.

    Raises:
        ValueError: as :func:`segmentation_train` and :class:`~kornia_mvit.LearnedRanges`.

    Example:
        >>> segmentation_learned(64, target_psnr=(40, 30)).ranges.target
        40.0
    """
    ranges = LearnedRanges(
        operations,
        target_psnr=target_psnr,
        target_ssim=target_ssim,
        preset=preset,
        task_gradients=task_gradients,
        learning_rate=range_learning_rate,
    )
    stack = segmentation_train(
        size,
        short_side=short_side,
        max_class_share=max_class_share,
        flip=flip,
        jitter=jitter,
        hue=hue,
        rotate=rotate,
        cutmix=cutmix,
    )
    return Policy("segmentation_learned", list(stack.children()), stack.mix, ranges)


def detection_train(
    size: Size,
    *,
    zoom_out: float = 4.0,
    overlaps: tuple[float | None, ...] = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
    scale: Range = (0.3, 1.0),
    flip: float = 0.5,
    jitter: float = 0.3,
    hue: float = 0.05,
    mosaic: float = 0.0,
    mixup: float = 0.0,
    copy_paste: float = 0.0,
) -> Policy:
    """Zoom out, crop by overlap, resize, flip and colour jitter, for images with boxes: what SSD is trained with.

    Boxes of which a crop leaves little are dropped by the pipeline: give it ``min_box_visibility``, such as 0.3.

    Args:
        size: height and width of the result in pixels, or one number for both; the aspect is not kept.
        zoom_out: how many times as long the canvas's sides get at most, for half of the images; 1 for none.
        overlaps: see :class:`~kornia_mvit.augmentation.crops.RandomIoUCrop`.
        scale: height and width of a crop as shares of the image's, from and to.
        flip: probability of a mirror image.
        jitter: strength of random brightness, contrast and saturation; 0 for none.
        hue: strength of random hue, up to 0.5 for all hues; 0 for none.
        mosaic: share of the images that become mosaics of four; see :class:`~kornia_mvit.Mosaic`. 0 for none. With it,
            take a smaller ``zoom_out``: mosaics make objects smaller, too.
        mixup: share of the images that are blended with another, mosaics included; see :class:`~kornia_mvit.MixUp`.
            0 for none.
        copy_paste: share of the images that objects of another are pasted over by their instance masks, before mosaics;
            see :class:`~kornia_mvit.CopyPaste`. 0 for none.

    Raises:
        ValueError: for a range that is not ascending, or a probability or strength outside [0, 1].

    Example:
        >>> import torch
        >>> detection_train(64)(torch.rand(2, 3, 96, 128)).shape
        torch.Size([2, 3, 64, 64])
    """
    _check_shares(flip=flip, jitter=jitter, hue=hue, mosaic=mosaic, mixup=mixup, copy_paste=copy_paste)
    steps: list[nn.Module] = [RandomZoomOut(zoom_out)] if zoom_out != 1 else []
    steps.append(RandomIoUCrop(_pair(size), overlaps=overlaps, scale=scale))
    mixes: list[TargetMix] = [CopyPaste(copy_paste)] if copy_paste else []
    if mosaic:
        mixes.append(Mosaic(mosaic))
    if mixup:
        mixes.append(MixUp(mixup))
    return Policy("detection_train", [*steps, *_flip_and_colour(flip, jitter, hue)], mixes)


def detection_learned(
    size: Size,
    *,
    target_psnr: Target | None = None,
    target_ssim: Target | None = None,
    operations: Sequence[str] = PAPER,
    preset: str = "default",
    task_gradients: bool | None = None,
    range_learning_rate: float = 0.05,
    zoom_out: float = 4.0,
    overlaps: tuple[float | None, ...] = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
    scale: Range = (0.3, 1.0),
    flip: float = 0.5,
    jitter: float = 0.0,
    hue: float = 0.0,
    mosaic: float = 0.0,
    mixup: float = 0.0,
    copy_paste: float = 0.0,
) -> Policy:
    """Zoom out, crop by overlap, resize and flip as :func:`detection_train`, and learned brightness, contrast, noise.

    Args:
        size: height and width of the result in pixels, or one number for both; the aspect is not kept.
        target_psnr: see :class:`~kornia_mvit.LearnedRanges`.
        target_ssim: see :class:`~kornia_mvit.LearnedRanges`.
        operations: see :class:`~kornia_mvit.LearnedRanges`.
        preset: see :class:`~kornia_mvit.LearnedRanges`.
        task_gradients: see :class:`~kornia_mvit.LearnedRanges`.
        range_learning_rate: ``learning_rate`` of :class:`~kornia_mvit.LearnedRanges`.
        zoom_out: see :func:`detection_train`.
        overlaps: see :func:`detection_train`.
        scale: see :func:`detection_train`.
        flip: see :func:`detection_train`.
        jitter: see :func:`classification_learned`.
        hue: see :func:`detection_train`.
        mosaic: see :func:`detection_train`.
        mixup: see :func:`detection_train`.
        copy_paste: see :func:`detection_train`.

    Raises:
        ValueError: as :func:`detection_train` and :class:`~kornia_mvit.LearnedRanges`.

    Example:
        >>> detection_learned(64, target_psnr=20).ranges.target
        20.0
    """
    ranges = LearnedRanges(
        operations,
        target_psnr=target_psnr,
        target_ssim=target_ssim,
        preset=preset,
        task_gradients=task_gradients,
        learning_rate=range_learning_rate,
    )
    stack = detection_train(
        size,
        zoom_out=zoom_out,
        overlaps=overlaps,
        scale=scale,
        flip=flip,
        jitter=jitter,
        hue=hue,
        mosaic=mosaic,
        mixup=mixup,
        copy_paste=copy_paste,
    )
    return Policy("detection_learned", list(stack.children()), stack.mix, ranges)


def _crop_and_flip(size: Size, scale: Range, ratio: Range, flip: float) -> list[nn.Module]:
    for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
        limit = 1.0 if name == "scale" else math.inf
        if not 0 < low <= high <= limit:
            raise ValueError(f"{name} {(low, high)} is not an ascending range in (0, {limit:g}]")
    _check_shares(flip=flip)
    crop = RandomResizedCrop(_pair(size), scale=tuple(scale), ratio=tuple(ratio), align_corners=False)
    return [crop, *_flip_and_colour(flip, 0.0, 0.0)]


def _flip_and_colour(flip: float, jitter: float, hue: float) -> list[nn.Module]:
    steps: list[nn.Module] = []
    if flip:
        steps.append(RandomHorizontalFlip(p=flip))
    if jitter or hue:
        steps.append(RandomColorTwist(jitter, jitter, jitter, hue, p=0.8))
    return steps


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        limit = 0.5 if name == "hue" else 1
        if not 0 <= value <= limit:
            raise ValueError(f"{name} {value} is not in [0, {limit}]")


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _describe(step: object) -> str:
    """Say in one line what a step does; Kornia's own words hold every default."""
    name = type(step).__name__
    match step:
        case RandomResizedCrop(flags={"size": size}):
            scale, ratio = (tuple(round(v, 3) for v in pair) for pair in crop_ranges(step))
            said = f"size={size}, scale={scale}, ratio={ratio}"
        case RandomHorizontalFlip(p=p) | RandomErasing(p=p):
            said = f"p={p}"
        case RandomRotation(p=p):
            said = f"degrees={rotation_degrees(step)}, p={p}"
        case RandAugment(n=n, m=m):
            said = f"{n} operations, magnitude {m} of 30"
        case PolicyAugmentBase():
            said = f"{len(list(step.children()))} operations to choose from"
        case _:
            return repr(step)
    return f"{name}({said})"
