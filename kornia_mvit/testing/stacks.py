"""Augmentations to draw from, and which of them can carry which targets."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import kornia.augmentation as K
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from kornia.augmentation.auto import RandAugment, TrivialAugment
from torch import nn

from kornia_mvit.augmentation.auto import PerImageRandAugment, PerImageTrivialAugment
from kornia_mvit.augmentation.channels import takes_channels
from kornia_mvit.augmentation.choices import OneOf, SomeOf
from kornia_mvit.augmentation.color import RandomColorTwist
from kornia_mvit.augmentation.crops import RandomCropKeepingBoxes, RandomIoUCrop, RandomScaledCrop, RandomZoomOut
from kornia_mvit.augmentation.operations import Kind, lost_targets, unable
from kornia_mvit.augmentation.rotations import RandomExpandedRotation

__all__ = ["all_operations", "find_operations"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """An augmentation, and what each of its arguments is drawn from, simplest first."""

    make: Callable[..., nn.Module]
    arguments: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def strategy(self) -> SearchStrategy[nn.Module]:
        """Draw the arguments by one number, whatever their count, so that the first entry is the simplest; build it."""
        combinations = list(itertools.product(*self.arguments.values()))

        def build(number: int) -> SearchStrategy[nn.Module]:
            values = combinations[number % len(combinations)]
            return st.builds(self.make, **{k: st.just(v) for k, v in zip(self.arguments, values, strict=True)})

        return st.integers(0, max(1, len(combinations) - 1)).flatmap(build)

    def simplest(self) -> nn.Module:
        """Build it with the first of all arguments."""
        return self.make(**{name: values[0] for name, values in self.arguments.items()})


def find_operations(
    targets: Sequence[str], *, channels: int, size: Size, names: Collection[str] | None
) -> dict[str, SearchStrategy[nn.Module]]:
    """Return the operations that support targets, by name.

    Args:
        targets: any of ``'label'``, ``'mask'``, ``'boxes'``, ``'keypoints'`` and ``'extra'``.
        channels: of the images.
        size: height and width that crops and resizing operations give.
        names: those to choose from; all when None.

    Raises:
        ValueError: for an unknown name, and for names of operations that do not support the targets or the channels.
    """
    if min(size) < 8:
        raise ValueError(f"size {size} is below 8 pixels, which the operations after it may need")
    table = all_operations(size)
    if names is not None and (unknown := sorted(set(names) - set(table))):
        raise ValueError(f"unknown operations {', '.join(unknown)}; available: {', '.join(table)}")
    if names is not None and not names:
        raise ValueError("operations is empty; name at least one, or give None for all")
    out, refused = {}, []
    for name in table if names is None else [name for name in table if name in names]:
        entry = table[name]
        kinds = unable(entry.simplest())
        lost = [target for kind, found in kinds.items() if found for target in lost_targets(kind, targets)]
        if kinds[Kind.DENSE] and "extra" in targets:  # of which vectors do not follow
            lost.append("extra")
        if not takes_channels(entry.simplest(), channels):
            lost.append(f"{channels} channels")
        if lost:
            refused.append(f"{name} ({', '.join(lost)})")
        else:
            out[name] = entry.strategy()
    if names is not None and refused:
        raise ValueError(f"unsupported operations: {'; '.join(refused)}; leave them out")
    return out


def _nested(p: float, degrees: float) -> K.ImageSequential:
    """Wrap two operations in a container."""
    return K.ImageSequential(K.RandomHorizontalFlip(p=p), K.RandomRotation(degrees, p=p))


def _one_of(p: float) -> OneOf:
    """Choose a flip, a rotation, other colours or nothing for each image."""
    return OneOf(K.RandomVerticalFlip(p=1.0), K.RandomRotation(30.0, p=p), K.RandomInvert(p=1.0), nn.Identity())


def _some_of(p: float) -> SomeOf:
    """Choose none to two of three operations for each image, one of which is a container."""
    both = K.ImageSequential(K.RandomHorizontalFlip(p=1.0), K.RandomSolarize(p=p))
    return SomeOf((0, 2), both, K.RandomShear(10.0, p=1.0), K.RandomGamma((0.7, 1.3), p=1.0), weights=[1, 2, 1])


def _patchwise(p: float) -> K.PatchSequential:
    """Augment the quarters of images apart, which is unknown ground for targets."""
    return K.PatchSequential(K.RandomGamma(p=p), grid_size=(2, 2), patchwise_apply=False)


def _fisheye(strength: float) -> K.RandomFisheye:
    """Return centre and curvature of a lens in the form that Kornia takes."""
    ends = torch.tensor([-strength, strength])
    return K.RandomFisheye(ends, ends, torch.tensor([0.9, 1.0]), p=1.0)


def all_operations(size: Size) -> dict[str, Entry]:
    """List the operations, simplest first. New ones need no word on targets: their kind is looked up."""
    p = {"p": (1.0, 0.5)}
    sizes = {"size": (size,)}
    twice = (2 * size[0], 2 * size[1])
    entries = [
        Entry(K.RandomHorizontalFlip, p),
        Entry(K.RandomVerticalFlip, p),
        Entry(K.RandomInvert, p),
        Entry(K.RandomBrightness, {"brightness": ((0.7, 1.3),), **p}),
        Entry(K.RandomContrast, {"contrast": ((0.7, 1.3),), **p}),
        Entry(K.RandomGamma, {"gamma": ((0.7, 1.3),), **p}),
        Entry(K.RandomPosterize, {"bits": (4,), **p}),
        Entry(K.RandomSolarize, p),
        Entry(K.RandomSharpness, p),
        Entry(K.RandomGaussianNoise, {"std": (0.1,), **p}),
        Entry(K.RandomGaussianBlur, {"kernel_size": (3, (3, 5)), "sigma": ((0.1, 2.0),), **p}),
        Entry(K.RandomBoxBlur, {"kernel_size": ((3, 3),), **p}),
        Entry(K.RandomErasing, {"scale": ((0.02, 0.3),), **p}),
        Entry(RandomColorTwist, {"brightness": (0.2, 0.0), "contrast": (0.2, 0.0), "saturation": (0.2,)}),
        Entry(K.RandomGrayscale, p),
        Entry(K.RandomChannelShuffle, p),
        Entry(K.ColorJitter, {"brightness": (0.2,), "hue": (0.0, 0.1), **p}),
        Entry(K.RandomTranslate, {"translate_x": ((0.1, 0.3),), "translate_y": ((0.1, 0.3), None), **p}),
        Entry(K.RandomRotation90, {"times": ((-1, 2), (1, 1)), **p}),
        Entry(K.RandomRotation, {"degrees": (10.0, 45.0, 180.0), **p}),
        Entry(RandomExpandedRotation, {"degrees": (10.0, 45.0, (90.0, 90.0)), **p}),
        Entry(K.RandomShear, {"shear": (10.0, (15.0, 15.0)), **p}),
        Entry(
            K.RandomAffine,
            {
                "degrees": (10.0, 45.0),
                "translate": (None, (0.1, 0.2)),
                "scale": (None, (0.7, 1.3)),
                "padding_mode": ("zeros", "border"),
                "resample": ("bilinear", "nearest"),
                **p,
            },
        ),
        Entry(K.RandomPerspective, {"distortion_scale": (0.2, 0.5), **p}),
        Entry(K.CenterCrop, {"size": ((8, 8),), **p}),
        Entry(K.RandomCrop, {**sizes, "pad_if_needed": (True,), "padding": (None, 4)}),
        Entry(K.RandomResizedCrop, {**sizes, "scale": ((0.3, 1.0),), "align_corners": (True, False)}),
        Entry(K.PadTo, {"size": (twice,), "pad_value": (0, 0.5)}),
        Entry(K.Resize, {**sizes, "antialias": (False, True)}),
        Entry(K.LongestMaxSize, {"max_size": (max(size),)}),
        Entry(K.SmallestMaxSize, {"max_size": (min(size),)}),
        Entry(RandomZoomOut, {"max_scale": (2.0, 1.0), **p}),
        Entry(RandomScaledCrop, {**sizes, "short_side": ((min(size), 2 * min(size)),)}),
        Entry(RandomIoUCrop, sizes),
        Entry(RandomCropKeepingBoxes, {"size": (size, None), "keep": (1.0, 0.5)}),
        Entry(_one_of, p),
        Entry(_some_of, p),
        Entry(_nested, {"p": (1.0, 0.5), "degrees": (10.0,)}),
        Entry(PerImageTrivialAugment),
        Entry(PerImageRandAugment, {"n": (1, 2), "m": (9,)}),
        Entry(TrivialAugment),
        Entry(RandAugment, {"n": (1, 2), "m": (9,)}),
        Entry(_fisheye, {"strength": (0.1, 0.3)}),
        Entry(K.RandomElasticTransform, {"kernel_size": ((5, 5),), "sigma": ((4.0, 4.0),), **p}),
        Entry(K.RandomThinPlateSpline, {"scale": (0.2,), **p}),
        Entry(_patchwise, p),
    ]
    names = {
        _nested: "ImageSequential",
        _one_of: "OneOf",
        _some_of: "SomeOf",
        _fisheye: "RandomFisheye",
        _patchwise: "PatchSequential",
    }
    return {names.get(entry.make, entry.make.__name__): entry for entry in entries}
