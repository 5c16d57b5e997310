"""Put this package's backbone where Kornia's documentation looks for it."""

import kornia.contrib

from kornia_mvit.models.mobilevit import MobileViT

__all__ = ["register_in_kornia"]


def register_in_kornia() -> None:
    """Make ``kornia.contrib.MobileViT`` this package's :class:`~kornia_mvit.MobileViT`, for the running process.

    Kornia's documentation shows ``kornia.contrib.MobileViT``, which left the package with 0.9.0. Nothing is changed
    until this is called.

    Example:
        >>> import torch
        >>> register_in_kornia()
        >>> import torch, kornia.contrib as K
        >>> K.MobileViT(mode='xxs')(torch.rand(1, 3, 256, 256)).shape
        torch.Size([1, 320, 8, 8])
        >>> del K.MobileViT
    """
    kornia.contrib.MobileViT = MobileViT  # type: ignore[attr-defined]  # the module has no such name: we give it one
