r"""MobileViTV2: the second version, whose attention costs as much as the image has pixels.

References:
    - Separable Self-attention for Mobile Vision Transformers (arXiv 2206.02680). The network here is the one that
      Apple's own training code builds.
    - Group Normalization (arXiv 1803.08494).

Shapes are written with B batch, C channels, H W a map's height and width, P pixels in a patch, N patches in a map and
D the width of a token.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.models.graph import resize, round_up, to_map, to_tokens
from kornia_mvit.models.layers import ConvNormAct, DropPath, init_weights
from kornia_mvit.models.mobilevit import Stage
from kornia_mvit.models.staged import Classifier, StagedBackbone, as_pair

__all__ = ["WIDTHS", "MobileViTV2", "MobileViTV2Classifier", "MobileViTV2Config", "mode_name", "mode_width"]


# ------------------------------------------------------------------------------------------------------------ widths

WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # those of the paper and of published weights
_WIDEST = 8.0
_MODE = re.compile(r"v2-(\d{1,2}(?:\.\d{1,4})?)", re.ASCII)


@dataclass(frozen=True)
class MobileViTV2Config:
    """The network of a width.

    Args:
        width: what the paper's numbers of channels are multiplied by.
        stem: channels after the first convolution, which halves the image.
        stages: the levels, shallowest first.
        expand: expansion of the inverted residuals.
    """

    width: float
    stem: int
    stages: tuple[Stage, ...]
    expand: int = 2

    @classmethod
    def of(cls, width: float) -> "MobileViTV2Config":
        """Return the network of a width: the paper's numbers of channels, multiplied and rounded.

        Raises:
            ValueError: for a width that is not above 0 and at most 8.
            TypeError: for one that is not a number.
        """
        if not isinstance(width, int | float) or isinstance(width, bool):
            raise TypeError(f"width {width!r} is not a number; give one such as 0.5, or 1.0")
        if not 0 < width <= _WIDEST:
            raise ValueError(
                f"width {width} is not above 0 and at most {_WIDEST:g}; the published ones are "
                f"{', '.join(map(str, WIDTHS))}"
            )

        def attn(channels: int, dim: int, depth: int) -> Stage:
            wide, narrow = _round(width * channels, 8), _round(width * dim, 8)
            return Stage(wide, stride=2, dim=narrow, depth=depth)

        return cls(
            float(width),
            stem=_round(min(max(32 * width, 16), 64), 8),
            stages=(
                Stage(_round(64 * width, 16)),
                Stage(_round(128 * width, 8), stride=2, repeat=2),
                attn(256, 128, 2),
                attn(384, 192, 4),
                attn(512, 256, 3),
            ),
        )


def _round(value: float, multiple: int) -> int:
    """Round to the nearest multiple, at least one of it, and by no more than a tenth down, as MobileNets do."""
    rounded = max(multiple, int(value + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * value else rounded + multiple


def mode_name(width: float) -> str:
    """Return what a width is called where a mode is asked for.

    Example:
        >>> mode_name(0.5), mode_name(2)
        ('v2-0.5', 'v2-2.0')
    """
    return f"v2-{float(width)}"


def mode_width(mode: object) -> float | None:
    """Return the width that a mode names, or None for a mode of the first version.

    Example:
        >>> mode_width('v2-1.25'), mode_width('xxs')
        (1.25, None)
    """
    found = _MODE.fullmatch(mode) if isinstance(mode, str) else None
    return None if found is None else float(found[1])


# ------------------------------------------------------------------------------------------------------------ blocks


class SampleNorm(nn.GroupNorm):
    """Normalise all tokens of a sample together, then scale and shift each channel: (B, P, N, D) -> (B, P, N, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x.permute(0, 3, 1, 2), 1, self.weight, self.bias, self.eps)
        return y.permute(0, 2, 3, 1)


class SeparableAttention(nn.Module):
    """Separable self-attention among the N tokens that hold the same place in their patches.

    Each token has one score. The keys' mean by these scores is the context, which multiplies every value.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.qkv: nn.Linear = nn.Linear(dim, 1 + 2 * dim)
        self.proj: nn.Linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split((1, self.dim, self.dim), dim=-1)
        context = query.softmax(dim=-2).transpose(-2, -1) @ key  # (B, P, 1, D)
        y: Tensor = self.proj(value.relu() * context)
        return y


class SeparableLayer(nn.Module):
    """Pre-norm separable attention and feed-forward part, each with a residual."""

    def __init__(self, dim: int, hidden: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1: SampleNorm = SampleNorm(dim)
        self.attn: SeparableAttention = SeparableAttention(dim)
        self.norm2: SampleNorm = SampleNorm(dim)
        self.fc1: nn.Linear = nn.Linear(dim, hidden)
        self.act: nn.SiLU = nn.SiLU()
        self.fc2: nn.Linear = nn.Linear(hidden, dim)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.drop_path: DropPath = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x))))
        y: Tensor = x + self.drop_path(self.dropout(self.fc2(self.act(self.fc1(self.norm2(x))))))
        return y


class MobileViTV2Block(nn.Module):
    """Local features by a depthwise convolution, global ones by separable attention; no skip and no fusion."""

    def __init__(
        self, stage: Stage, patch_size: tuple[int, int], dilation: int, dropout: float, drop_path: Sequence[float]
    ) -> None:
        super().__init__()
        channels, dim = stage.channels, stage.dim
        self.patch_size = patch_size
        self.local: ConvNormAct = ConvNormAct(channels, channels, 3, dilation=dilation, groups=channels)
        self.proj_in: ConvNormAct = ConvNormAct(channels, dim, 1, norm=False, act=None)
        self.layers: nn.Sequential = nn.Sequential(
            *(SeparableLayer(dim, dim * stage.ffn_ratio, dropout, rate) for rate in drop_path)
        )
        self.norm: SampleNorm = SampleNorm(dim)
        self.proj_out: ConvNormAct = ConvNormAct(dim, channels, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        whole = round_up((x.shape[-2], x.shape[-1]), self.patch_size)
        y = self.proj_in(self.local(resize(x, whole, align_corners=True)))
        tokens = self.norm(self.layers(to_tokens(y, self.patch_size)))
        z: Tensor = self.proj_out(to_map(tokens, self.patch_size, whole))
        return z


# ------------------------------------------------------------------------------------------------------------ models


class MobileViTV2(StagedBackbone):
    r"""MobileViTV2 backbone.

    Takes images of any height and width from 32 px up. Where a patch does not divide a map, the map is resized
    bilinearly to the next multiple, and stays so: of 224x160 px the last map is 8x6, not 7x5, as in Apple's code. There
    is no last 1x1 convolution.

    Args:
        width: what the paper's numbers of channels are multiplied by: 0.5, 0.75, 1, 1.25, 1.5, 1.75 or 2, of which
            there are published weights, or another number up to 8. Where a mode is asked for it is named
            ``'v2-0.5'`` and so on.
        in_channels: channels of the image.
        patch_size: height and width of a patch in pixels of the map, or one number for both.
        dropout: dropout after the attention's projection and after the feed-forward part. Apple trained without.
        output_stride: 32, or 16 or 8 for dense tasks: the last one or two stages that halve the map keep its size, and
            depthwise convolutions are dilated instead, those of the blocks too.
        drop_path: stochastic depth; the rate rises linearly from 0 at the first residual to this at the last.

    Shape:
        - Input: :math:`(B, C, H, W)`, floating point, values in [0, 1] for the published weights
        - Output: :math:`(B, C_{out}, h, w)`, :math:`C_{out}` 512 for width 1, and :math:`h, w` the side of the image
          by 32, rounded up, and then up to a multiple of the patch; see :meth:`feature_sizes`

    Attributes:
        feature_channels: width of each stage's map.
        feature_strides: pixels of the image for one step on each stage's map.
        out_channels: width of the map that :meth:`forward` gives.
        width: the width.

    Raises:
        ValueError: for a width that is not above 0 and at most 8, an output stride other than 8, 16 and 32, a patch
            below 1 pixel; in the forward pass for an image of another rank or number of channels, or with a side under
            32 px.
        TypeError: for a width that is not a number; in the forward pass for an image that is not floating point.

    Example:
        >>> import torch
        >>> MobileViTV2(0.5)(torch.rand(1, 3, 256, 256)).shape
        torch.Size([1, 256, 8, 8])
        >>> [tuple(f.shape[1:]) for f in MobileViTV2(0.5).forward_features(torch.rand(1, 3, 224, 160))]
        [(32, 112, 80), (64, 56, 40), (128, 28, 20), (192, 14, 10), (256, 8, 6)]
    """

    config: MobileViTV2Config

    def __init__(
        self,
        width: float = 1.0,
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = (2, 2),
        *,
        dropout: float = 0.0,
        output_stride: int = 32,
        drop_path: float = 0.0,
    ) -> None:
        patch = as_pair(patch_size)
        super().__init__(
            MobileViTV2Config.of(width),
            in_channels,
            patch,
            lambda stage, dilation, rates: MobileViTV2Block(stage, patch, dilation, dropout, rates),
            output_stride=output_stride,
            drop_path=drop_path,
        )
        self.apply(_init_weights)

    @property
    def width(self) -> float:
        """What the paper's numbers of channels are multiplied by."""
        return self.config.width

    @property
    def size_multiple(self) -> int:
        """As of the first version; the patches have to fit as well, since maps stay as they were resized for them."""
        return self.feature_strides[-1] * math.lcm(*self.patch_size)

    def feature_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return height and width of each stage's map, which each block rounds up to a multiple of the patch."""
        (height, width), before, sizes = image_size, 1, []
        for stage, stride in zip(self.config.stages, self.feature_strides, strict=True):
            step = stride // before  # of the first stage with the stem's
            size = ((height + step - 1) // step, (width + step - 1) // step)
            height, width = round_up(size, self.patch_size) if stage.depth else size
            sizes.append((height, width))
            before = stride
        return sizes


class MobileViTV2Classifier(Classifier):
    r"""MobileViTV2 with average pooling and a linear classifier.

    Args:
        width: see :class:`MobileViTV2`.
        num_classes: number of classes; 0 for pooled features in place of logits.
        in_channels: channels of the image.
        patch_size: see :class:`MobileViTV2`.
        backbone_dropout: the ``dropout`` of :class:`MobileViTV2`.
        head_dropout: dropout before the classifier. Apple trained without.
        drop_path: see :class:`MobileViTV2`.
        output_stride: see :class:`MobileViTV2`.

    Shape:
        - Input: :math:`(B, C, H, W)`, see :class:`MobileViTV2`
        - Output: :math:`(B, K)` logits for :math:`K` classes, or :math:`(B, C_{out})` features for none

    Attributes:
        num_classes: K.
        class_names, preprocess: names of the classes and the :class:`~kornia_mvit.Preprocess`, or None.

    Raises:
        ValueError: for a negative number of classes, and as :class:`MobileViTV2` says.

    Example:
        >>> import torch
        >>> MobileViTV2Classifier(0.5, num_classes=5)(torch.rand(2, 3, 96, 128)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = (2, 2),
        *,
        backbone_dropout: float = 0.0,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        backbone = MobileViTV2(
            width,
            in_channels,
            patch_size,
            dropout=backbone_dropout,
            output_stride=output_stride,
            drop_path=drop_path,
        )
        super().__init__(backbone, num_classes, head_dropout)


def _init_weights(module: nn.Module) -> None:
    """Fill a layer as Apple's code does, of which the linear layers of the blocks are 1x1 convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(module.bias)
    else:
        init_weights(module)
