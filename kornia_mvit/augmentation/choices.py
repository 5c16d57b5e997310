"""Choices among operations that are drawn for each image of a batch, where Kornia's containers draw for the batch."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from kornia_mvit.augmentation.crops import WindowCrop
from kornia_mvit.augmentation.kornia_adapter import (
    BasicAugmentationBase,
    OperationBase,
    PolicyAugmentBase,
    PolicySequential,
)
from kornia_mvit.augmentation.rotations import RandomExpandedRotation

__all__ = ["OneOf", "SomeOf"]

# Below 1, so that Kornia asks which images an operation is for, and yet never missed by what is drawn.
_ALWAYS = math.nextafter(1.0, 0.0)
_CONTAINERS = (K.ImageSequential, PolicyAugmentBase, PolicySequential, OperationBase)
_SIZED = (
    *(K.Resize, K.LongestMaxSize, K.SmallestMaxSize, K.RandomResizedCrop, K.RandomCrop, K.CenterCrop, K.PadTo),
    WindowCrop,
    RandomExpandedRotation,
)  # fmt: skip


class SomeOf(K.ImageSequential):
    """Draw, for each image of a batch, how many and which of several operations it goes through.

    They are carried out in the order in which they are given. Geometric ones still join what stands before and behind
    in one step. Each child may be a container, whose operations then go together; ``nn.Identity()`` is nothing. It
    works in an :class:`~kornia_mvit.AugmentationPipeline` alone: Kornia's own containers apply each child to the batch.

    Args:
        count: of operations for each image: a number, or from and to, of which one is drawn.
        operations: Kornia's augmentations that keep the size of their images, or containers of such.
        weights: of each operation, positive; they are equally likely when None.
        p: share of the images that any operation is drawn for.

    Raises:
        ValueError: for numbers out of range, and for operations that change sizes, by name.
        TypeError: for what is neither an augmentation nor a container of such.

    Example:
        >>> from kornia_mvit import AugmentationPipeline
        >>> some = SomeOf((0, 2), K.RandomHorizontalFlip(p=1.0), K.RandomVerticalFlip(p=1.0), K.RandomInvert(p=1.0))
        >>> AugmentationPipeline([some])(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 3, 8, 8])
    """

    def __init__(
        self,
        count: int | tuple[int, int],
        *operations: nn.Module,
        weights: Sequence[float] | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(*operations)
        name = type(self).__name__
        low, high = (count, count) if isinstance(count, int) else count
        if not operations or not 0 <= low <= high <= len(operations):
            raise ValueError(f"{name} has {len(operations)} operations; of these it cannot draw from {low} to {high}")
        if not 0 <= p <= 1:
            raise ValueError(f"p {p} is not in [0, 1]; it is the share of the images that any is drawn for")
        if weights is not None and (len(weights) != len(operations) or not all(w > 0 for w in weights)):
            raise ValueError(f"weights {list(weights)} are not {len(operations)} positive numbers, one an operation")
        self.count: tuple[int, int] = (low, high)
        self.weights: tuple[float, ...] | None = None if weights is None else tuple(weights)
        self.share: float = p
        for operation in operations:
            _prepare(operation, name)

    def choose(self, batch_size: int) -> Tensor:
        """Draw from PyTorch's global generator which images go through which operation: (B, N), bool."""
        low, high = self.count
        number = low + (torch.rand(batch_size) * (high - low + 1)).long().clamp_max(high - low)
        number = number * (torch.rand(batch_size) < self.share)
        weights = torch.ones(len(self)) if self.weights is None else torch.tensor(self.weights)
        # The least of exponentially distributed numbers: so each is drawn by its weight, and the next by those left.
        keys = torch.rand(batch_size, len(self)).clamp_min(1e-12).log().neg() / weights
        return keys.argsort(1).argsort(1) < number[:, None]

    def forward_parameters(self, batch_shape: Any) -> NoReturn:
        """Refuse Kornia's containers, which would apply every operation.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} draws for each image in a kornia_mvit.AugmentationPipeline; give it to that"
        )

    def __repr__(self) -> str:
        inner = ", ".join(repr(child).replace(f"p={_ALWAYS}", "p=1.0") for child in self.children())
        return f"{type(self).__name__}({self._told()}, {inner}, weights={self.weights}, p={self.share})"

    def _told(self) -> str:
        return f"count={self.count}"


class OneOf(SomeOf):
    """Draw, for each image of a batch, one of several operations; see :class:`SomeOf`.

    Args:
        operations: as there.
        weights: of each operation, positive; they are equally likely when None.
        p: share of the images that any operation is drawn for.

    Raises:
        ValueError: as there.
        TypeError: as there.

    Example:
        >>> from kornia_mvit import AugmentationPipeline
        >>> turn = OneOf(K.RandomRotation(20.0, p=1.0), K.RandomShear(20.0, p=1.0), nn.Identity(), weights=[2, 1, 1])
        >>> AugmentationPipeline([turn])(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4, 3, 8, 8])
    """

    def __init__(self, *operations: nn.Module, weights: Sequence[float] | None = None, p: float = 1.0) -> None:
        super().__init__(1, *operations, weights=weights, p=p)

    def _told(self) -> str:
        return f"{len(self)} operations"


def _prepare(module: nn.Module, name: str) -> None:
    """Have Kornia ask which images an operation is for, and refuse what cannot be done to some of a batch alone."""
    own = type(module).__name__
    if isinstance(module, _SIZED):
        raise ValueError(
            f"{own} may change the size of some images alone, and a batch has one; take it out of {name}, and apply it "
            "before or after"
        )
    if isinstance(module, BasicAugmentationBase) and not isinstance(module, K.RandomDissolving):
        if module.p == 1 and module.p_batch == 1:
            module.p = _ALWAYS
    elif isinstance(module, _CONTAINERS) and not isinstance(module, K.PatchSequential):
        for child in module.children():
            _prepare(child, name)
    elif not isinstance(module, nn.Identity):
        raise TypeError(
            f"{name} cannot apply {own} to some images of a batch alone; it takes Kornia's augmentations, "
            "containers of them and nn.Identity"
        )
