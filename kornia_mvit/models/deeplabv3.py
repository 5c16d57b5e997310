r"""DeepLabV3 on MobileViT: a class for each pixel.

References:
    - Rethinking Atrous Convolution for Semantic Image Segmentation (arXiv 1706.05587).
    - MobileViT (arXiv 2110.02178), section 4.2.2: the head on a backbone of output stride 16.

Shapes are written with B batch, C channels, H W an image's height and width, h w those of the backbone's last map and
K classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.models.backbones import TimmBackbone, given_backbone, size_multiple
from kornia_mvit.models.base import TaskModel, renamed_arguments
from kornia_mvit.models.graph import crop_to, pad_to
from kornia_mvit.models.layers import ConvNormAct, check_image, init_weights
from kornia_mvit.models.mobilevit import MobileViTConfig
from kornia_mvit.models.mobilevitv2 import mode_width
from kornia_mvit.models.modes import build_backbone
from kornia_mvit.models.staged import StagedBackbone

__all__ = ["DeepLabV3"]


# ------------------------------------------------------------------------------------------------------------- head


class ImagePooling(ConvNormAct):
    """The mean of the whole map, convolved, in every place of the map: (B, C, h, w) -> (B, C_out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, act=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        # SyncBatchNorm, which is no BatchNorm2d, may still find a second value on another device
        if x.shape[0] == 1 and self.norm.training and isinstance(self.norm, nn.BatchNorm2d):
            raise ValueError(
                "DeepLabV3 cannot train on a batch of one image: of the pooled map its batch normalisation sees a "
                "single value. Train on two or more, or keep its statistics fixed with model.head.aspp.pool.eval()"
            )
        y = super().forward(x.mean(dim=(-2, -1), keepdim=True))
        return y.expand(-1, -1, x.shape[-2], x.shape[-1])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: views of a map at several scales, side by side, then mixed by a 1x1."""

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.point: ConvNormAct = ConvNormAct(in_channels, out_channels, 1, act=nn.ReLU)
        self.atrous: nn.ModuleList = nn.ModuleList(
            ConvNormAct(in_channels, out_channels, 3, dilation=rate, act=nn.ReLU) for rate in rates
        )
        self.pool: ImagePooling = ImagePooling(in_channels, out_channels)
        self.project: ConvNormAct = ConvNormAct((2 + len(rates)) * out_channels, out_channels, 1, act=nn.ReLU)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        views = [self.point(x), *(conv(x) for conv in self.atrous), self.pool(x)]
        y: Tensor = self.dropout(self.project(torch.cat(views, dim=1)))
        return y


class DeepLabHead(nn.Module):
    """Pyramid and classifier: (B, C, h, w) -> (B, K, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.aspp: ASPP = ASPP(in_channels, channels, rates, dropout)
        self.dropout: nn.Dropout2d = nn.Dropout2d(dropout)
        self.classifier: nn.Conv2d = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.dropout(self.aspp(x)))
        return y


class AuxiliaryHead(nn.Module):
    """A shallow classifier of an earlier map: (B, C, h, w) -> (B, K, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.project: ConvNormAct = ConvNormAct(in_channels, channels, 3, act=nn.ReLU)
        self.dropout: nn.Dropout2d = nn.Dropout2d(dropout)
        self.classifier: nn.Conv2d = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.dropout(self.project(x)))
        return y


# ------------------------------------------------------------------------------------------------------------ model


class DeepLabV3(TaskModel):
    r"""MobileViT with DeepLabV3's head: logits of the classes for each pixel of the image.

    The head stands on the last stage's map; the backbone's last 1x1 convolution is not built. Images may be of any
    height and width from 32 px up.

    Args:
        mode: ``'xxs'``, ``'xs'`` or ``'s'``, a :class:`MobileViTConfig`, or ``'v2-0.5'`` to ``'v2-2.0'`` for
            :class:`MobileViTV2` of a width.
        num_classes: number of classes K, the background among them where there is one.
        in_channels: channels of the image.
        patch_size: see :class:`MobileViT`.
        backbone_dropout: the ``dropout`` of :class:`MobileViT`.
        head_dropout: dropout in the head: of single values after the pyramid, and of whole channels before the
            classifier. Apple trained with 0.1.
        drop_path: see :class:`MobileViT`.
        variant: see :class:`MobileViT`.
        output_stride: pixels of the image for one step on the map under the head: 16, 8 or 32.
        aspp_channels: width of the head; when None that of Apple's networks, 256 and, on MobileViTV2, 512.
        rates: dilations of the pyramid's convolutions; 6, 12 and 18 at stride 16 when None, and in proportion at
            others, so that they reach equally far in the image.
        align_corners: how the logits are brought to the image's size: with False a pixel is an area, as
            transformers, PyTorch's default and Apple's first release have it, with True a point, as Apple's later
            code evaluates.
        aux_channels: width of an auxiliary head on the last stage but one, for :meth:`forward_with_aux`; 0 for none.
            Apple's first release has 256, its later code 128.
        pad: whether images whose sides ``output_stride`` does not divide are padded, by repeating their last row and
            column, to the next multiple, and the logits cropped. With False the logits of a map that reaches beyond the
            image are squeezed into it, as Apple and transformers do.
        backbone: the network under the head, in place of the one built from ``mode``: ``'timm:NAME'`` for one of
            timm, with fresh weights and dilated where timm can, or a module that has what
            :class:`~kornia_mvit.models.backbones.Backbone` lists; see
            :func:`~kornia_mvit.models.backbones.as_backbone`.

    Shape:
        - Input: :math:`(B, C, H, W)`, see :class:`MobileViT`
        - Output: :math:`(B, K, H, W)`

    Attributes:
        num_classes: K.
        class_names: names of the classes in the order of the logits, where a checkpoint gave them.
        preprocess: what images go through before the network, where a checkpoint gave it.
        class_colours: red, green and blue of each class, from 0 to 255, where a checkpoint gave them.

    Raises:
        ValueError: for a number of classes or a width that is not positive, and as :class:`MobileViT` says; in the
            forward pass for a training batch of one image, whose pooled map has nothing to be normalised by.

    Example:
        >>> model = DeepLabV3('xxs', num_classes=3).eval()
        >>> model(torch.rand(1, 3, 75, 100)).shape
        torch.Size([1, 3, 75, 100])
        >>> model.head(model.backbone(torch.rand(1, 3, 64, 96))).shape  # before they are brought to the image's size
        torch.Size([1, 3, 4, 6])
    """

    class_colours: tuple[tuple[int, int, int], ...] | None = None

    @renamed_arguments(
        positions={2: "output_stride", 3: "aspp_channels", 4: "head_dropout", 5: "in_channels"},
        names={"dropout": "head_dropout"},
        mode="s",
    )
    def __init__(
        self,
        mode: str | MobileViTConfig = "xxs",
        num_classes: int = 21,
        *,
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = (2, 2),
        backbone_dropout: float = 0.0,
        head_dropout: float = 0.1,
        drop_path: float = 0.0,
        variant: str = "apple",
        output_stride: int = 16,
        aspp_channels: int | None = None,
        rates: Sequence[int] | None = None,
        align_corners: bool = False,
        aux_channels: int = 0,
        pad: bool = True,
        backbone: nn.Module | str | None = None,
    ) -> None:
        super().__init__()
        if aspp_channels is None:
            aspp_channels = 256 if mode_width(mode) is None else 512
        for name, value, least in (("aspp_channels", aspp_channels, 1), ("aux_channels", aux_channels, 0)):
            if value < least:
                raise ValueError(f"{name} {value} is not at least {least}")
        _check_classes(num_classes)
        self.backbone: StagedBackbone | TimmBackbone
        if backbone is None:
            self.backbone = build_backbone(
                mode,
                in_channels,
                patch_size,
                backbone_dropout,
                variant=variant,
                output_stride=output_stride,
                drop_path=drop_path,
            )
        else:
            self.backbone = given_backbone(
                backbone,
                in_channels,
                output_stride,
                mode=mode,
                patch_size=patch_size,
                backbone_dropout=backbone_dropout,
                drop_path=drop_path,
                variant=variant,
            )
        if rates is None:
            rates = [96 * n // self.backbone.feature_strides[-1] for n in (1, 2, 3)]
        if not rates or min(rates) < 1:
            raise ValueError(f"rates {tuple(rates)} are not one or more dilations of at least 1")
        self.num_classes: int = num_classes
        self.aspp_channels: int = aspp_channels
        self.rates: tuple[int, ...] = tuple(rates)
        self.align_corners = align_corners
        self.aux_channels = aux_channels
        self.pad: bool = pad
        self.head: DeepLabHead = DeepLabHead(
            self.backbone.feature_channels[-1], num_classes, aspp_channels, self.rates, head_dropout
        )
        self.aux_head: AuxiliaryHead | None = None
        if aux_channels:
            if len(self.backbone.feature_channels) < 2:
                raise ValueError("an auxiliary head stands on the last stage but one; this backbone has one stage")
            self.aux_head = AuxiliaryHead(self.backbone.feature_channels[-2], num_classes, aux_channels, head_dropout)
        for head in self._heads():
            head.apply(init_weights)
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits at the size of the images: (B, C, H, W) -> (B, num_classes, H, W)."""
        padded = self._pad(x)
        (last,) = self.backbone.forward_features(padded, (-1,))
        return self._upsample(self.head(last), padded, x)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """Run forward, with the hooks."""

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and those of the auxiliary head, an aid in training; both (B, num_classes, H, W).

        Raises:
            ValueError: if the model has no auxiliary head.
        """
        if self.aux_head is None:
            raise ValueError("the model has no auxiliary head; build it with aux_channels, such as 256")
        padded = self._pad(x)
        earlier, last = self.backbone.forward_features(padded, (-2, -1))
        return self._upsample(self.head(last), padded, x), self._upsample(self.aux_head(earlier), padded, x)

    def reset_classifier(self, num_classes: int) -> None:
        """Put freshly initialised last layers for another number of classes; the pyramid stays."""
        _check_classes(num_classes)
        self.num_classes = num_classes
        for head in self._heads():
            old = head.classifier
            head.classifier = nn.Conv2d(
                old.in_channels, num_classes, 1, device=old.weight.device, dtype=old.weight.dtype
            )
            # A linear layer for each pixel, and initialised as one: by its fan-out it would start with large logits.
            nn.init.trunc_normal_(head.classifier.weight, std=0.02)
            nn.init.zeros_(head.classifier.bias)  # type: ignore[arg-type]  # it has a bias

    def _heads(self) -> list["DeepLabHead | AuxiliaryHead"]:
        return [self.head] if self.aux_head is None else [self.head, self.aux_head]

    def _pad(self, x: Tensor) -> Tensor:
        if not self.pad:
            return x
        check_image(x, self.backbone.in_channels)
        return pad_to(x, size_multiple(self.backbone))

    def _upsample(self, logits: Tensor, padded: Tensor, x: Tensor) -> Tensor:
        """Bring logits to the size of the padded images, and crop them to that of the images."""
        size = (padded.shape[-2], padded.shape[-1])
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)
        return logits if padded is x else crop_to(logits, (x.shape[-2], x.shape[-1]))


def _check_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes {num_classes} is not at least 1; count the background where it is a class")
