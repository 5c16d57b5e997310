"""Put this package's backbone where Kornia's documentation looks for it, and in timm's list of models."""

import kornia.contrib

from kornia_mvit.models import timm_entry
from kornia_mvit.models.mobilevit import MobileViT

__all__ = ["register_in_kornia", "register_in_timm"]


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


def register_in_timm() -> None:
    """Add this package's networks to timm's list, for the running process.

    They are ``kornia_mvit_xxs``, ``kornia_mvit_xs`` and ``kornia_mvit_s``, and ``kornia_mvit_v2_050`` to
    ``kornia_mvit_v2_200`` for the seven widths of :class:`~kornia_mvit.MobileViTV2`.
    ``timm.create_model`` builds them then, as do programs that take backbones of timm by their name. timm's own
    entries stay as they are. ``pretrained=True`` reads the weights that timm publishes for the same networks.

    Raises:
        ImportError: if timm is missing.

    Example:
        >>> import timm, torch
        >>> register_in_timm()
        >>> model = timm.create_model('kornia_mvit_xxs', features_only=True, in_chans=1).eval()
        >>> model.feature_info.channels(), model.feature_info.reduction()
        ([16, 24, 48, 64, 80], [2, 4, 8, 16, 32])
        >>> [tuple(features.shape[1:]) for features in model(torch.rand(1, 1, 64, 96))][-1]
        (80, 2, 3)
    """
    try:
        from timm.models import is_model, register_model
    except ImportError as error:
        raise ImportError("register_in_timm needs timm; pip install timm") from error
    for name in timm_entry.default_cfgs:
        if not is_model(name):  # timm warns of a name that it has
            register_model(getattr(timm_entry, name))
