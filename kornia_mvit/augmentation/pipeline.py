"""One object that augments a batch while training and prepares it while evaluating, on the batch's device."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import overload

import torch
from kornia.augmentation import AugmentationSequential, ImageSequential
from kornia.augmentation.base import _AugmentationBase
from torch import Tensor, nn

from kornia_mvit.augmentation.preprocess import Preprocess, to_float
from kornia_mvit.data.batch import Batch, check_image_values

__all__ = ["AugmentationPipeline"]

_STEPS = (_AugmentationBase, ImageSequential)


class AugmentationPipeline(nn.Module):
    """Augment and preprocess batches of images with their labels.

    In train mode the images are augmented, resized if the augmentation left another size than ``preprocess`` says,
    and go through the value part of ``preprocess`` (channel order, mean and std). In eval mode ``preprocess`` is
    applied, whole, and nothing is random. All happens on the batch's device and without gradients, in the image's
    own dtype (uint8 becomes the default one) even under autocast.

    Args:
        augment: a Kornia ``AugmentationSequential``, a list of Kornia augmentations, or None for none.
        preprocess: what the network's images go through; None leaves size and values alone.
        check_values: look at floating-point values on accelerators as well, which waits for the device. On the CPU
            they are always looked at.

    Shape:
        - Input: a :class:`~kornia_mvit.Batch`, or images :math:`(B, C, H, W)`, alone or followed by labels
        - Output: what was put in: a batch, images, or a pair of images and labels

    Raises:
        ValueError: for floating-point images with NaN or values outside [0, 1], and for images of another rank.
        TypeError: for images that are neither uint8 nor floating point, and for augmentations that are not Kornia's.

    Example:
        >>> from kornia_mvit.augmentation import policies
        >>> pipeline = AugmentationPipeline(policies.classification_train(128), preprocess=Preprocess(144, crop=128))
        >>> images = torch.randint(0, 256, (2, 3, 160, 200), dtype=torch.uint8)
        >>> pipeline.train()(images).shape, pipeline.eval()(images).shape
        (torch.Size([2, 3, 128, 128]), torch.Size([2, 3, 128, 128]))
    """

    def __init__(
        self,
        augment: AugmentationSequential | Sequence[_AugmentationBase | ImageSequential] | None = None,
        *,
        preprocess: Preprocess | None = None,
        check_values: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(augment, Sequence):
            if wrong := [type(step).__name__ for step in augment if not isinstance(step, _STEPS)]:
                raise TypeError(f"augmentations are Kornia's, or containers of them; got {', '.join(wrong)}")
            augment = AugmentationSequential(*augment, data_keys=["input"]) if augment else None
        elif augment is not None and not isinstance(augment, AugmentationSequential):
            raise TypeError(
                f"augment is a kornia AugmentationSequential or a list of augmentations, got {type(augment).__name__}"
            )
        self._augment = augment
        self.preprocess = preprocess if preprocess is not None else Preprocess(size=None)
        self._preprocess = self.preprocess.module()
        self.check_values = check_values

    @overload
    def forward(self, batch: Batch) -> Batch: ...

    @overload
    def forward(self, batch: Tensor) -> Tensor: ...

    @overload
    def forward(self, batch: Tensor, label: Tensor) -> tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def forward(self, batch: Batch | Tensor, label: Tensor | None = None) -> Batch | Tensor | tuple[Tensor, Tensor]:
        """Augment in train mode, preprocess alone in eval mode."""
        if isinstance(batch, Tensor):
            out = self._run(Batch(batch, label))
            return out.image if out.label is None else (out.image, out.label)
        if not isinstance(batch, Batch):
            raise TypeError(f"expected a Batch or a tensor of images, got {type(batch).__name__}")
        if label is not None:
            raise TypeError("a Batch carries its labels; give none beside it")
        return self._run(batch)

    def _run(self, batch: Batch) -> Batch:
        if self.check_values or batch.image.device.type == "cpu":
            check_image_values(batch.image)
        device = batch.image.device.type
        mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            if not self.training:
                return batch.replace(image=self._preprocess(batch.image))
            image = to_float(batch.image)
            if self._augment is not None:
                image = self._augment(image, data_keys=["input"])
            if self.preprocess.output_size is not None:
                image = self._preprocess.resize(image, self.preprocess.output_size)
            image = self._preprocess.values(image)
            return batch.replace(image=image.to(batch.image.dtype) if batch.image.is_floating_point() else image)
