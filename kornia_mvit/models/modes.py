"""The names under which the heads, tasks and checkpoints know the networks of both versions."""

from typing import Any

from kornia_mvit.models.backbones import TimmBackbone
from kornia_mvit.models.mobilevit import VARIANTS, MobileViT, MobileViTClassifier, MobileViTConfig
from kornia_mvit.models.mobilevitv2 import WIDTHS, MobileViTV2, MobileViTV2Classifier, mode_name, mode_width
from kornia_mvit.models.staged import Classifier, StagedBackbone

__all__ = ["MODES", "build_backbone", "build_classifier", "find_mode"]

MODES = (*VARIANTS["apple"], *map(mode_name, WIDTHS))


def build_backbone(
    mode: str | MobileViTConfig,
    in_channels: int = 3,
    patch_size: int | tuple[int, int] = (2, 2),
    dropout: float = 0.0,
    *,
    variant: str = "apple",
    output_stride: int = 32,
    drop_path: float = 0.0,
) -> StagedBackbone:
    """Build the backbone of a mode for a head: of the first version without its last 1x1 convolution.

    Args:
        mode: ``'xxs'``, ``'xs'`` or ``'s'``, a :class:`~kornia_mvit.MobileViTConfig`, or ``'v2-'`` and a width of
            :class:`~kornia_mvit.MobileViTV2`, such as ``'v2-0.5'``.
        in_channels: see :class:`~kornia_mvit.MobileViT`.
        patch_size: see :class:`~kornia_mvit.MobileViT`.
        dropout: see :class:`~kornia_mvit.MobileViT`.
        variant: see :class:`~kornia_mvit.MobileViT`; of the second version there is ``'apple'`` alone.
        output_stride: see :class:`~kornia_mvit.MobileViT`.
        drop_path: see :class:`~kornia_mvit.MobileViT`.

    Raises:
        ValueError: for an unknown mode or variant, and as the backbones say.

    Example:
        >>> build_backbone('v2-0.5').out_channels, build_backbone('xxs').out_channels
        (256, 80)
    """
    width = _find_width(mode, variant)
    if width is not None:
        return MobileViTV2(
            width, in_channels, patch_size, dropout=dropout, output_stride=output_stride, drop_path=drop_path
        )
    return MobileViT(
        mode,
        in_channels,
        patch_size,
        dropout,
        variant=variant,
        output_stride=output_stride,
        drop_path=drop_path,
        head_conv=False,
    )


def build_classifier(
    mode: str | MobileViTConfig = "xxs", *arguments: Any, variant: str = "apple", **options: Any
) -> Classifier:
    """Build the classifier of a mode.

    Args:
        mode: see :func:`build_backbone`.
        arguments: of :class:`~kornia_mvit.MobileViTClassifier` or :class:`~kornia_mvit.MobileViTV2Classifier`.
        variant: see :func:`build_backbone`.
        options: as ``arguments``, by name.

    Raises:
        ValueError: for an unknown mode or variant, and as the classifiers say.

    Example:
        >>> type(build_classifier('v2-0.5', 10)).__name__
        'MobileViTV2Classifier'
    """
    width = _find_width(mode, variant)
    if width is not None:
        return MobileViTV2Classifier(width, *arguments, **options)
    return MobileViTClassifier(mode, *arguments, variant=variant, **options)


def _find_width(mode: str | MobileViTConfig, variant: str) -> float | None:
    """Return the width of a mode of the second version, or None for one of the first."""
    width = mode_width(mode)
    if width is not None and variant != "apple":
        raise ValueError(f"mode {mode!r} has no variant {variant!r}; leave variant out")
    if width is None and isinstance(mode, str) and mode not in VARIANTS["apple"]:
        raise ValueError(f"unknown mode {mode!r}; available: {', '.join(map(repr, MODES))}, or pass a MobileViTConfig")
    return width


def find_mode(backbone: StagedBackbone | TimmBackbone) -> tuple[str, str] | None:
    """Return the mode and variant of a backbone, or None for one of a configuration that is not in the table.

    Example:
        >>> find_mode(MobileViTV2(0.5)), find_mode(MobileViT('xs', variant='kornia'))
        (('v2-0.5', 'apple'), ('xs', 'kornia'))
    """
    if not isinstance(backbone, StagedBackbone):
        return None
    if isinstance(backbone, MobileViTV2):
        return mode_name(backbone.width), "apple"
    rows = ((mode, variant) for variant, modes in VARIANTS.items() for mode in modes)
    return next(((mode, variant) for mode, variant in rows if VARIANTS[variant][mode] == backbone.config), None)
