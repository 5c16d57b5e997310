r"""MobileViT: a light backbone that mixes convolutions with attention over the whole image.

References:
    - MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer (arXiv 2110.02178). The network
      here is the one that Apple's own training code builds.
    - MobileNetV2: Inverted Residuals and Linear Bottlenecks (arXiv 1801.04381).

Shapes are written with B batch, C channels, H W a map's height and width, P pixels in a patch, N patches in a map and
D the width of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.models.backbones import TimmBackbone, given_backbone
from kornia_mvit.models.base import renamed_arguments
from kornia_mvit.models.graph import resize, round_up, to_map, to_tokens
from kornia_mvit.models.layers import ConvNormAct, DropPath, init_weights
from kornia_mvit.models.staged import Classifier, StagedBackbone, as_pair
from kornia_mvit.models.tokens import fold, unfold

__all__ = ["VARIANTS", "MobileViT", "MobileViTClassifier", "MobileViTConfig", "Stage", "fold", "unfold"]


# ---------------------------------------------------------------------------------------------------- variant table


@dataclass(frozen=True)
class Stage:
    """One level of the network: inverted residuals, and a MobileViT block after them where ``depth`` is not 0.

    Args:
        channels: width of the stage's output map.
        stride: 1, or 2 to halve the map.
        repeat: number of inverted residuals; the first one has the stride.
        dim: width D of the block's tokens.
        depth: number of the block's transformer layers.
        ffn_ratio: hidden width of a layer's feed-forward part, as a multiple of D.
    """

    channels: int
    stride: int = 1
    repeat: int = 1
    dim: int = 0
    depth: int = 0
    ffn_ratio: int = 2


@dataclass(frozen=True)
class MobileViTConfig:
    """A row of the variant table; a custom one is accepted wherever a mode is.

    Args:
        stem: channels after the first convolution, which halves the image.
        expand: expansion of the inverted residuals.
        stages: the levels, shallowest first.
        head_channels: width of the last 1x1 convolution.
        heads: attention heads.
        head_dim: width of a head; None for D / heads.
        qkv_bias: whether the projection to query, key and value has a bias.
        closing_norm: whether a LayerNorm closes the transformer of a block.
        proj_norm_act: whether batch normalisation and SiLU follow the 1x1 convolution into the transformer.
    """

    stem: int
    expand: int
    stages: tuple[Stage, ...]
    head_channels: int
    heads: int = 4
    head_dim: int | None = None
    qkv_bias: bool = True
    closing_norm: bool = True
    proj_norm_act: bool = False


def _conv(channels: int, stride: int = 1, repeat: int = 1) -> Stage:
    return Stage(channels, stride, repeat)


def _attn(channels: int, dim: int, depth: int) -> Stage:
    return Stage(channels, stride=2, dim=dim, depth=depth)


def _kornia(config: MobileViTConfig) -> MobileViTConfig:
    """Depart from Apple's network as ``kornia.models.vit_mobile.MobileViT`` does."""
    stages = tuple(replace(s, ffn_ratio=r) for s, r in zip(config.stages, (2, 2, 2, 4, 4), strict=True))
    return replace(config, stages=stages, head_dim=8, qkv_bias=False, closing_norm=False, proj_norm_act=True)


_APPLE = {
    "xxs": MobileViTConfig(
        stem=16,
        expand=2,
        stages=(_conv(16), _conv(24, stride=2, repeat=3), _attn(48, 64, 2), _attn(64, 80, 4), _attn(80, 96, 3)),
        head_channels=320,
    ),
    "xs": MobileViTConfig(
        stem=16,
        expand=4,
        stages=(_conv(32), _conv(48, stride=2, repeat=3), _attn(64, 96, 2), _attn(80, 120, 4), _attn(96, 144, 3)),
        head_channels=384,
    ),
    "s": MobileViTConfig(
        stem=16,
        expand=4,
        stages=(_conv(32), _conv(64, stride=2, repeat=3), _attn(96, 144, 2), _attn(128, 192, 4), _attn(160, 240, 3)),
        head_channels=640,
    ),
}
VARIANTS = {"apple": _APPLE, "kornia": {mode: _kornia(config) for mode, config in _APPLE.items()}}


def _find_config(mode: str | MobileViTConfig, variant: str) -> MobileViTConfig:
    if isinstance(mode, MobileViTConfig):
        if not mode.stages:
            raise ValueError("MobileViTConfig has no stages; give at least one Stage")
        return mode
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; available: {', '.join(map(repr, VARIANTS))}")
    if mode not in VARIANTS[variant]:
        known = ", ".join(map(repr, VARIANTS[variant]))
        second = "; of the second version build MobileViTV2" if mode.startswith("v2-") else ""
        raise ValueError(f"unknown mode {mode!r}; available: {known}, or pass a MobileViTConfig{second}")
    return VARIANTS[variant][mode]


# ----------------------------------------------------------------------------------------------------------- blocks


class Attention(nn.Module):
    """Self-attention among the N tokens that hold the same place in their patches."""

    def __init__(self, dim: int, heads: int, head_dim: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads: int = heads
        self.head_dim: int = head_dim
        self.qkv: nn.Linear = nn.Linear(dim, 3 * heads * head_dim, bias=qkv_bias)
        self.proj: nn.Linear = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, p, n, _ = x.shape
        qkv = self.qkv(x).view(b * p, n, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B * P, heads, N, head_dim)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, p, n, self.heads * self.head_dim))
        return out


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward part, each with a residual."""

    def __init__(
        self, dim: int, hidden: int, heads: int, head_dim: int, qkv_bias: bool, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1: nn.LayerNorm = nn.LayerNorm(dim)
        self.attn: Attention = Attention(dim, heads, head_dim, qkv_bias)
        self.norm2: nn.LayerNorm = nn.LayerNorm(dim)
        self.fc1: nn.Linear = nn.Linear(dim, hidden)
        self.act: nn.SiLU = nn.SiLU()
        self.fc2: nn.Linear = nn.Linear(hidden, dim)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.drop_path: DropPath = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x))))
        y: Tensor = x + self.drop_path(self.dropout(self.fc2(self.act(self.fc1(self.norm2(x))))))
        return y


class MobileViTBlock(nn.Module):
    """Local features by a convolution, global ones by a transformer over unfolded patches, fused with the input."""

    def __init__(
        self,
        config: MobileViTConfig,
        stage: Stage,
        patch_size: tuple[int, int],
        dropout: float,
        drop_path: Sequence[float],
    ) -> None:
        super().__init__()
        channels, dim = stage.channels, stage.dim
        head_dim = dim // config.heads if config.head_dim is None else config.head_dim
        if config.head_dim is None and dim % config.heads:
            raise ValueError(
                f"token width {dim} is not a multiple of {config.heads} heads; give head_dim or other widths"
            )
        self.patch_size = patch_size
        self.local: ConvNormAct = ConvNormAct(channels, channels, 3)
        self.proj_in: ConvNormAct = ConvNormAct(
            channels, dim, 1, norm=config.proj_norm_act, act=nn.SiLU if config.proj_norm_act else None
        )
        self.transformer: nn.Sequential = nn.Sequential(
            *(
                TransformerLayer(dim, dim * stage.ffn_ratio, config.heads, head_dim, config.qkv_bias, dropout, rate)
                for rate in drop_path
            )
        )
        self.norm: nn.Module = nn.LayerNorm(dim) if config.closing_norm else nn.Identity()
        self.proj_out: ConvNormAct = ConvNormAct(dim, channels, 1)
        self.fusion: ConvNormAct = ConvNormAct(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj_in(self.local(x))
        h, w = y.shape[-2:]
        whole = round_up((h, w), self.patch_size)
        tokens = self.norm(self.transformer(to_tokens(resize(y, whole), self.patch_size)))
        y = self.proj_out(resize(to_map(tokens, self.patch_size, whole), (h, w)))
        z: Tensor = self.fusion(torch.cat((x, y), dim=1))
        return z


# ------------------------------------------------------------------------------------------------------------ models


class MobileViT(StagedBackbone):
    r"""MobileViT backbone.

    Takes images of any height and width from 32 px up. Where a patch does not divide a map, the map is resized
    bilinearly to the next multiple, and back after the transformer, as Apple's code does.

    Args:
        mode: ``'xxs'``, ``'xs'`` or ``'s'``, or a :class:`MobileViTConfig`.
        in_channels: channels of the image.
        patch_size: height and width of a patch in pixels of the map, or one number for both.
        dropout: dropout after the attention's projection and after the feed-forward part. Apple trained with 0.05
            for xxs and 0.1 for xs and s.
        variant: ``'apple'`` for the published network, ``'kornia'`` for the one of ``kornia.models.vit_mobile``.
        output_stride: 32, or 16 or 8 for dense tasks: the last one or two stages that halve the map keep its size
            and dilate their depthwise convolutions instead.
        drop_path: stochastic depth; the rate rises linearly from 0 at the first residual to this at the last.
        head_conv: whether the last 1x1 convolution is built; without it :meth:`forward` gives the last stage's map.

    Shape:
        - Input: :math:`(B, C, H, W)`, floating point, values in [0, 1] for the published weights
        - Output: :math:`(B, C_{out}, \lceil H / 32 \rceil, \lceil W / 32 \rceil)`, :math:`C_{out}` 320, 384 or 640

    Attributes:
        feature_channels: width of each stage's map.
        feature_strides: pixels of the image for one step on each stage's map.
        out_channels: width of the map that :meth:`forward` gives.

    Raises:
        ValueError: for an unknown mode or variant, an output stride other than 8, 16 and 32, a patch below 1 pixel;
            in the forward pass for an image of another rank or number of channels, or with a side under 32 px.
        TypeError: in the forward pass for an image that is not floating point.

    Example:
        >>> MobileViT('xxs')(torch.rand(1, 3, 256, 256)).shape
        torch.Size([1, 320, 8, 8])
        >>> [tuple(f.shape[1:]) for f in MobileViT('xs').forward_features(torch.rand(1, 3, 224, 160))]
        [(32, 112, 80), (48, 56, 40), (64, 28, 20), (80, 14, 10), (96, 7, 5)]
    """

    config: MobileViTConfig

    def __init__(
        self,
        mode: str | MobileViTConfig = "xxs",
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = (2, 2),
        dropout: float = 0.0,
        *,
        variant: str = "apple",
        output_stride: int = 32,
        drop_path: float = 0.0,
        head_conv: bool = True,
    ) -> None:
        config, patch = _find_config(mode, variant), as_pair(patch_size)
        super().__init__(
            config,
            in_channels,
            patch,
            lambda stage, _, rates: MobileViTBlock(config, stage, patch, dropout, rates),
            output_stride=output_stride,
            drop_path=drop_path,
        )
        if head_conv:
            self._put_head(ConvNormAct(self.out_channels, config.head_channels, 1), config.head_channels)
        self.apply(init_weights)


class MobileViTClassifier(Classifier):
    r"""MobileViT with average pooling and a linear classifier.

    Args:
        mode: ``'xxs'``, ``'xs'`` or ``'s'``, or a :class:`MobileViTConfig`.
        num_classes: number of classes; 0 for pooled features in place of logits.
        in_channels: channels of the image.
        patch_size: see :class:`MobileViT`.
        backbone_dropout: the ``dropout`` of :class:`MobileViT`.
        head_dropout: dropout before the classifier. Apple trained with 0.1.
        drop_path: see :class:`MobileViT`.
        variant: see :class:`MobileViT`.
        output_stride: see :class:`MobileViT`.
        head_conv: see :class:`MobileViT`.
        backbone: the network under the classifier, in place of the one built from ``mode``: ``'timm:NAME'`` for one of
            timm, with fresh weights, or a module that has what
            :class:`~kornia_mvit.models.backbones.Backbone` lists; see
            :func:`~kornia_mvit.models.backbones.as_backbone`.

    Shape:
        - Input: :math:`(B, C, H, W)`, see :class:`MobileViT`
        - Output: :math:`(B, K)` logits for :math:`K` classes, or :math:`(B, C_{out})` features for none

    Attributes:
        num_classes: K.
        class_names, preprocess: names of the classes and the :class:`~kornia_mvit.Preprocess`, or None.

    Raises:
        ValueError: for a negative number of classes, and as :class:`MobileViT` says.

    Example:
        >>> MobileViTClassifier('xxs', num_classes=5)(torch.rand(2, 3, 96, 128)).shape
        torch.Size([2, 5])
    """

    @renamed_arguments(positions={4: "backbone_dropout"}, names={"dropout": "backbone_dropout"})
    def __init__(
        self,
        mode: str | MobileViTConfig = "xxs",
        num_classes: int = 1000,
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = (2, 2),
        *,
        backbone_dropout: float = 0.0,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        variant: str = "apple",
        output_stride: int = 32,
        head_conv: bool = True,
        backbone: nn.Module | str | None = None,
    ) -> None:
        body: StagedBackbone | TimmBackbone
        if backbone is None:
            body = MobileViT(
                mode,
                in_channels,
                patch_size,
                backbone_dropout,
                variant=variant,
                output_stride=output_stride,
                drop_path=drop_path,
                head_conv=head_conv,
            )
        else:
            body = given_backbone(
                backbone,
                in_channels,
                output_stride,
                mode=mode,
                patch_size=patch_size,
                backbone_dropout=backbone_dropout,
                drop_path=drop_path,
                variant=variant,
                head_conv=head_conv,
            )
        super().__init__(body, num_classes, head_dropout)
