"""Names of Kornia that its documentation does not promise, and what is read of its objects' insides.

No other file of the package uses them. ``tests/augmentation/test_kornia_adapter.py`` checks that they are there and act
as described; ``TRIED_WITH`` is the release of Kornia that it was run with.
"""

from typing import Any

from kornia.augmentation import (
    ColorJitter,
    RandomAffine,
    RandomCutMixV2,
    RandomPerspective,
    RandomResizedCrop,
    RandomRotation,
)
from kornia.augmentation.auto.base import PolicyAugmentBase
from kornia.augmentation.auto.operations.base import OperationBase
from kornia.augmentation.auto.operations.policy import PolicySequential
from kornia.augmentation.base import _AugmentationBase as AugmentationBase
from kornia.augmentation.base import _BasicAugmentationBase as BasicAugmentationBase
from kornia.augmentation.container.base import ImageSequentialBase, SequentialBase
from kornia.augmentation.container.params import ParamItem
from torch import Tensor, nn

__all__ = [
    "TRIED_WITH",
    "AugmentationBase",
    "BasicAugmentationBase",
    "ImageSequentialBase",
    "OperationBase",
    "ParamItem",
    "PolicyAugmentBase",
    "PolicySequential",
    "SequentialBase",
    "color_order",
    "crop_ranges",
    "least_scale",
    "rotation_degrees",
    "sample_cutmix",
]

TRIED_WITH = "0.9.0"


def crop_ranges(module: RandomResizedCrop) -> tuple[Any, Any]:
    """Return the ranges that a crop samples from: of the share of the area, and of width / height."""
    generator: Any = module._param_generator
    return generator.scale, generator.ratio


def least_scale(module: nn.Module) -> float:
    """Return the smallest share of its sides that a RandomAffine or RandomPerspective leaves an image; else 1."""
    generator: Any = getattr(module, "_param_generator", None)
    if isinstance(module, RandomAffine) and generator.scale is not None:
        return max(1e-3, min(1.0, *map(float, generator.scale[::2])))
    if isinstance(module, RandomPerspective):
        return max(1e-3, 1 - float(generator.distortion_scale))
    return 1.0


def color_order(module: ColorJitter, params: dict[str, Tensor]) -> list[int]:
    """Return in which order a jitter changes brightness (0), contrast (1), saturation (2) and hue (3)."""
    return list(params["order"].tolist() if module._fixed_order is None else module._fixed_order)


def rotation_degrees(module: RandomRotation) -> Any:
    """Return the angles that a rotation samples from, in degrees, as its constructor was given them."""
    generator: Any = module._param_generator
    return generator.samplers[0][0]


def sample_cutmix(module: RandomCutMixV2, batch_size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Sample from PyTorch's global generator which images meet, and where.

    Returns:
        The partner (B,) of each image, and the corners (B, 4, 2) of each box: x and y, last pixel included.
    """
    sampled: dict[str, Tensor] = module._param_generator((batch_size, 1, height, width))
    return sampled["mix_pairs"][0], sampled["crop_src"][0]
