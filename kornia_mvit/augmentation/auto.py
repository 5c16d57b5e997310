"""Kornia's automatic policies, with operations of each image's own."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from kornia.augmentation.auto import RandAugment, TrivialAugment
from torch import Size, Tensor, nn

from kornia_mvit.augmentation.kornia_adapter import ParamItem

__all__ = ["PerImageRandAugment", "PerImageTrivialAugment", "apply_to_rows", "as_first", "choose_rows"]


class _PerImage:
    """Choose operations for each image of a batch, where Kornia's policies choose the same for all of them.

    A batch in which all images are inverted, or all are faded, is one that batch normalisation never meets again.
    Operations that move pixels come first, so that a pipeline can carry them out with the crop before them in one step;
    the others are applied to the images that drew them alone. With ``same_on_batch``, which Kornia's containers set,
    all images get what the first one draws.
    """

    named_children: Any
    n = 1
    _same_on_batch: bool | None

    def update_attribute(self, same_on_batch: bool | None = None, keepdim: bool | None = None) -> None:
        """Take over what a container around this one says; Kornia's policies do not."""
        if same_on_batch is not None:
            self._same_on_batch = same_on_batch

    def _choose_apart(self) -> None:
        for policy in self.children():  # type: ignore[attr-defined]  # an nn.Module's, beside which this class stands
            operation = policy[0].op
            operation.p = 0.5  # at 1 Kornia applies it to every image, whatever was drawn
            operation.by_rows = isinstance(operation, IntensityAugmentationBase2D)

    def get_forward_sequence(self, params: list[ParamItem] | None = None) -> Iterator[tuple[str, nn.Module]]:
        """Return every operation, or those that were drawn."""
        if params is not None:
            drawn: Iterator[tuple[str, nn.Module]] = super().get_forward_sequence(params)  # type: ignore[misc]  # as above
            return drawn
        moves = [(name, policy) for name, policy in self.named_children() if not policy[0].op.by_rows]
        return iter(moves + [(name, policy) for name, policy in self.named_children() if policy[0].op.by_rows])

    def forward_parameters(self, batch_shape: Size) -> list[ParamItem]:
        """Draw ``n`` different operations for each image, and their parameters.

        Args:
            batch_shape: of the images, (B, C, H, W).

        Returns:
            The operations that some image drew; ``batch_prob`` says which.
        """
        params: list[ParamItem] = super().forward_parameters(batch_shape)  # type: ignore[misc]  # as above
        order = torch.rand(batch_shape[0], len(params)).argsort(1)
        chosen = torch.zeros(batch_shape[0], len(params), dtype=torch.bool).scatter_(1, order[:, : self.n], True)
        if self._same_on_batch:
            chosen = chosen[:1].expand_as(chosen)
        out = []
        for item, rows in zip(params, chosen.unbind(1), strict=True):
            if bool(rows.any()):
                ((_, drawn),) = cast(list[ParamItem], item.data)  # a policy here has one operation
                cast(dict[str, Tensor], drawn)["batch_prob"] = rows.float()
                if self._same_on_batch:
                    cast(dict[str, Tensor], drawn).update(as_first(cast(dict[str, Tensor], drawn)))
                out.append(item)
        return out


class PerImageRandAugment(_PerImage, RandAugment):
    """RandAugment that draws its operations for each image.

    Args:
        n: operations for each image.
        m: magnitude of all operations, above 0 and below 30.
        policy: operations to choose from, as Kornia has them; its own choice when None.

    Shape:
        - Input and output: :math:`(B, C, H, W)`, values in [0, 1]

    References:
        E. Cubuk et al.: RandAugment. https://arxiv.org/abs/1909.13719

    Example:
        >>> PerImageRandAugment(2, 9)(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(self, n: int, m: int, policy: list[Any] | None = None) -> None:
        super().__init__(n, m, policy)
        self._choose_apart()


class PerImageTrivialAugment(_PerImage, TrivialAugment):
    """TrivialAugment that draws its operation for each image.

    Args:
        policy: operations to choose from, as Kornia has them; its own choice when None.

    Shape:
        - Input and output: :math:`(B, C, H, W)`, values in [0, 1]

    References:
        S. Müller, F. Hutter: TrivialAugment. https://arxiv.org/abs/2103.10158

    Example:
        >>> PerImageTrivialAugment()(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(self, policy: list[Any] | None = None) -> None:
        super().__init__(policy)
        self._choose_apart()


def as_first(draw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return all images what the first one of a policy's operation drew."""
    count = int(draw["forward_input_shape"][0])
    return {
        name: value[:1].repeat(count, *[1] * (value.ndim - 1))
        if name != "forward_input_shape" and value.ndim and len(value) == count
        else value
        for name, value in draw.items()
    }


def choose_rows(draw: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the parameters of the images that drew an operation alone, and the numbers of these as ``rows``.

    Args:
        draw: parameters for all images, on the CPU.
        shape: of the images, (B, C, H, W).
    """
    rows = (draw["batch_prob"] > 0.5).nonzero().flatten()
    if len(rows) == shape[0]:
        return draw
    own = {
        name: value[rows] if isinstance(value, Tensor) and name != "forward_input_shape" and len(value) > 1 else value
        for name, value in draw.items()
    }
    return own | {"forward_input_shape": torch.tensor([len(rows), *shape[1:]]), "rows": rows}


def apply_to_rows(module: nn.Module, image: Tensor, draw: dict[str, Any]) -> Tensor:
    """Augment the images that drew an operation, and leave the others as they are, without computing them.

    Args:
        module: a Kornia augmentation that changes values alone.
        image: (B, C, H, W).
        draw: what :func:`choose_rows` returned, ``rows`` on the images' device.
    """
    if "rows" not in draw:
        return _call(module, image, draw)
    own = dict(draw)
    rows = own.pop("rows")
    return image.index_copy(0, rows, _call(module, image.index_select(0, rows), own))


def _call(module: nn.Module, image: Tensor, draw: dict[str, Any]) -> Tensor:
    out: Tensor = module(image, params=draw)
    return out
