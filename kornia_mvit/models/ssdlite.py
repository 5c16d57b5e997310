r"""SSDLite on MobileViT: boxes around objects, and their classes.

References:
    - SSD: Single Shot MultiBox Detector (arXiv 1512.02325).
    - MobileNetV2 (arXiv 1801.04381), section 6.2: SSDLite, SSD with separable convolutions.
    - MobileViT (arXiv 2110.02178), section 4.2.1.

Shapes are written with B batch, C channels, H W an image's height and width, h w a map's, A anchors and K classes of
objects; the logits have one more, the background, at 0.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from kornia_mvit.models.backbones import TimmBackbone, feature_sizes, given_backbone
from kornia_mvit.models.base import TaskModel, renamed_arguments
from kornia_mvit.models.layers import ConvNormAct, SeparableConv, init_weights
from kornia_mvit.models.mobilevit import MobileViTConfig
from kornia_mvit.models.modes import build_backbone
from kornia_mvit.models.staged import StagedBackbone
from kornia_mvit.ops.anchors import anchor_shapes, make_anchors
from kornia_mvit.ops.boxes import decode_boxes

__all__ = ["Detections", "SSDLite"]

STRIDES = (16, 32, 64, 128, 256)  # pixels of the image for one step on a level's map; the last level is one place
RATIOS = ((2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,))
WIDTHS = (512, 256, 256, 128, 128, 64)
SCALES = (0.1, 1.05)


class Detections(NamedTuple):
    """The objects of one image, highest score first.

    Args:
        boxes: (n, 4) left, top, right and bottom in pixels, within the image.
        scores: (n,) probability of the class.
        labels: (n,) the class, from 0; the background is not among them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


# ------------------------------------------------------------------------------------------------------ levels, heads


class PooledLevel(nn.Module):
    """The mean of the whole map, mixed: (B, C, h, w) -> (B, C_out, 1, 1). Without normalisation, as Apple has it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix: ConvNormAct = ConvNormAct(in_channels, out_channels, 1, norm=False, act=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(x.mean(dim=(-2, -1), keepdim=True))
        return y


class DetectionHead(nn.Module):
    """Logits and box deltas of a level: (B, C, h, w) -> (B, h w shapes, K + 1), (B, h w shapes, 4).

    Args:
        in_channels: of the level's map.
        channels: what the map is first brought to, if it is another width.
        shapes: anchors in a place.
        num_classes: K + 1.
        kernel_size: 3, or 1 for the level that has a single place.
    """

    def __init__(self, in_channels: int, channels: int, shapes: int, num_classes: int, kernel_size: int) -> None:
        super().__init__()
        self.shapes = shapes
        self.project: nn.Module = nn.Identity()
        if channels != in_channels:
            self.project = ConvNormAct(in_channels, channels, 1, act=nn.ReLU)
        self.depthwise: nn.Module = nn.Identity()
        if kernel_size > 1:
            self.depthwise = ConvNormAct(channels, channels, kernel_size, groups=channels, act=None)
        self.box: nn.Conv2d = nn.Conv2d(channels, shapes * 4, 1)
        self.classifier: nn.Conv2d = nn.Conv2d(channels, shapes * num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.project(x))
        return self._list(self.classifier(x)), self._list(self.box(x))

    def _list(self, y: Tensor) -> Tensor:
        """Return each anchor a row, as :func:`make_anchors` orders them: (B, shapes n, h, w) -> (B, h w shapes, n)."""
        b, c, h, w = y.shape
        return y.permute(0, 2, 3, 1).reshape(b, h * w * self.shapes, c // self.shapes)

    def init_weights(self) -> None:
        """Fill the layers by Xavier's rule, the last two as the one that they are in Apple's code."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.init_last(self.box)
        self.init_last(self.classifier)

    def init_last(self, layer: nn.Conv2d) -> None:
        """Fill one of the last two layers."""
        bound = (6 / (layer.in_channels + self.box.out_channels + self.classifier.out_channels)) ** 0.5
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has a bias


# ------------------------------------------------------------------------------------------------------------- model


class SSDLite(TaskModel):
    r"""MobileViT with SSDLite's head: for each anchor the logits of the classes, and how its box departs from it.

    The heads stand on the backbone's maps of stride 16 and 32, on three more of stride 64 to 256, and on the mean of
    the last; the backbone's last 1x1 convolution is not built. Images may be of any height and width from 32 px up,
    3,232 anchors at 320x320. The outputs are raw; :meth:`decode` gives the objects.

    Args:
        mode: ``'xxs'``, ``'xs'`` or ``'s'``, a :class:`MobileViTConfig` with stages of stride 16 and 32, or
            ``'v2-0.5'`` to ``'v2-2.0'`` for :class:`MobileViTV2` of a width.
        num_classes: K + 1, the background counted, at 0: 81 for COCO.
        in_channels: channels of the image.
        patch_size: see :class:`MobileViT`.
        backbone_dropout: the ``dropout`` of :class:`MobileViT`.
        drop_path: see :class:`MobileViT`.
        variant: see :class:`MobileViT`.
        widths: channels of the six levels under the heads.
        aspect_ratios: for each level, ratios of the anchors' sides above 1; see
            :func:`~kornia_mvit.ops.boxes.make_anchors`, and :func:`~kornia_mvit.ops.boxes.fit_anchors` for those that
            fit given boxes.
        scales: sides of the smallest anchors, and of those that a seventh level would have, in shares of the image.
        backbone: the network under the heads, in place of the one built from ``mode``: ``'timm:NAME'`` for one of
            timm, with fresh weights, or a module that has what
            :class:`~kornia_mvit.models.backbones.Backbone` lists; see
            :func:`~kornia_mvit.models.backbones.as_backbone`.

    Shape:
        - Input: :math:`(B, C, H, W)`, see :class:`MobileViT`
        - Output: :math:`(B, A, K + 1)` logits and :math:`(B, A, 4)` deltas, see
          :func:`~kornia_mvit.ops.boxes.encode_boxes`

    Attributes:
        num_classes: K + 1.
        class_names: names of the K classes without the background, where a checkpoint gave them.
        preprocess: what images go through before the network, where a checkpoint gave it.

    Raises:
        ValueError: for fewer than two classes, for widths, ratios or scales that are not six levels', for a backbone
            without stride 16 or 32, and as :class:`MobileViT` says; in the forward pass for a training batch of one
            image of up to 256 px, of whose smallest map batch normalisation would see a single value.

    Example:
        >>> model = SSDLite('xxs', num_classes=4).eval()
        >>> logits, deltas = model(torch.rand(2, 3, 160, 200))
        >>> logits.shape, deltas.shape
        (torch.Size([2, 1096, 4]), torch.Size([2, 1096, 4]))
        >>> model.anchors((160, 200)).shape
        torch.Size([1096, 4])
    """

    @renamed_arguments(mode="s")
    def __init__(
        self,
        mode: str | MobileViTConfig = "xxs",
        num_classes: int = 81,
        in_channels: int = 3,
        *,
        patch_size: int | tuple[int, int] = (2, 2),
        backbone_dropout: float = 0.0,
        drop_path: float = 0.0,
        variant: str = "apple",
        widths: Sequence[int] = WIDTHS,
        aspect_ratios: Sequence[Sequence[float]] = RATIOS,
        scales: tuple[float, float] = SCALES,
        backbone: nn.Module | str | None = None,
    ) -> None:
        super().__init__()
        _check_classes(num_classes)
        _check_levels(widths, aspect_ratios, scales)
        self.backbone: StagedBackbone | TimmBackbone
        if backbone is None:
            self.backbone = build_backbone(
                mode, in_channels, patch_size, backbone_dropout, variant=variant, drop_path=drop_path
            )
        else:
            self.backbone = given_backbone(
                backbone,
                in_channels,
                mode=mode,
                patch_size=patch_size,
                backbone_dropout=backbone_dropout,
                drop_path=drop_path,
                variant=variant,
            )
        strides = self.backbone.feature_strides
        if missing := [stride for stride in STRIDES[:2] if stride not in strides]:
            raise ValueError(f"no stage of the backbone has stride {missing[0]}; its strides are {strides}")
        self.levels: tuple[int, ...] = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES[:2])
        self.num_classes: int = num_classes
        self.widths: tuple[int, ...] = tuple(widths)
        self.aspect_ratios: tuple[tuple[float, ...], ...] = tuple(tuple(map(float, ratios)) for ratios in aspect_ratios)
        self.scales: tuple[float, float] = (float(scales[0]), float(scales[1]))

        given = [*(self.backbone.feature_channels[level] for level in self.levels), *self.widths[2:]]
        self.extras: nn.ModuleList = nn.ModuleList(SeparableConv(given[n - 1], given[n], stride=2) for n in (2, 3, 4))
        self.extras.append(PooledLevel(given[4], given[5]))
        shapes = [len(level) for level in anchor_shapes(self.aspect_ratios, self.scales)]
        self.heads: nn.ModuleList = nn.ModuleList(
            DetectionHead(given[n], self.widths[n], shapes[n], num_classes, 1 if n == 5 else 3) for n in range(6)
        )
        self.extras.apply(init_weights)
        for head in self._heads():
            head.init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and box deltas of all anchors: (B, C, H, W) -> (B, A, num_classes), (B, A, 4)."""
        maps = self.backbone.forward_features(x, self.levels)
        if self.training:
            self._check_statistics(x)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        logits, deltas = zip(*(head(level) for head, level in zip(self.heads, maps, strict=True)), strict=True)
        return torch.cat(logits, 1), torch.cat(deltas, 1)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
            """Run forward, with the hooks."""

    def anchors(
        self,
        image_size: tuple[int, int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the anchors of images of a height and width in pixels: (A, 4), see :mod:`kornia_mvit.ops.boxes`."""
        return make_anchors(self.map_sizes(image_size), self.aspect_ratios, self.scales, device=device, dtype=dtype)

    def map_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return height and width of the six levels' maps, for images of a height and width in pixels.

        Example:
            >>> SSDLite('xxs', num_classes=4).map_sizes((320, 200))
            [(20, 13), (10, 7), (5, 4), (3, 2), (2, 1), (1, 1)]
        """
        stages = feature_sizes(self.backbone, image_size)
        sizes = [stages[level] for level in self.levels]
        for _ in STRIDES[2:]:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return [*sizes, (1, 1)]

    def locate(self, logits: Tensor, deltas: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return boxes and probabilities of all anchors, overlapping as they are; fit for an exported graph.

        Args:
            logits: (B, A, K + 1), as :meth:`forward` gives them.
            deltas: (B, A, 4).
            image_size: height and width in pixels of the images that the network saw.

        Returns:
            (B, A, 4) left, top, right and bottom in pixels, within the image; and (B, A, K), the background left out.
        """
        dtype = torch.promote_types(deltas.dtype, torch.float32)
        anchors = self.anchors(image_size, device=deltas.device, dtype=dtype)
        left, top, right, bottom = decode_boxes(deltas.to(dtype), anchors).clamp(0, 1).unbind(-1)
        height, width = image_size
        boxes = torch.stack([left * width, top * height, right * width, bottom * height], -1)
        return boxes, logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)[..., 1:]

    @torch.no_grad()
    def decode(
        self,
        logits: Tensor,
        deltas: Tensor,
        image_size: tuple[int, int],
        score_threshold: float = 0.01,
        iou_threshold: float = 0.5,
        top_k: int = 400,
        max_detections: int = 200,
    ) -> list[Detections]:
        """Return the objects of each image: of each class the boxes of highest score that do not overlap.

        Args:
            logits: (B, A, K + 1), as :meth:`forward` gives them.
            deltas: (B, A, 4).
            image_size: height and width in pixels of the images that the network saw.
            score_threshold: least probability, exclusive.
            iou_threshold: overlap above which the box of lower score of two of a class is dropped.
            top_k: boxes of a class that are looked at, those of highest score.
            max_detections: objects of an image, those of highest score.

        Raises:
            ValueError: if there are not as many rows as an image of that size has anchors.
            ImportError: where torchvision is missing.

        Example:
            >>> model = SSDLite('xxs', num_classes=4).eval()
            >>> image = torch.rand(2, 3, 64, 96)
            >>> found = model.decode(*model(image), (64, 96), max_detections=5)
            >>> len(found), found[0].boxes.shape
            (2, torch.Size([5, 4]))
        """
        try:
            from torchvision.ops import batched_nms  # type: ignore[import-untyped]  # it comes without stubs
        except ImportError as error:
            raise ImportError(
                "to suppress overlapping boxes needs torchvision; install kornia-mvit[train], or use locate()"
            ) from error
        expected = self._count_anchors(image_size)
        if logits.shape[1] != expected or deltas.shape[1] != expected:
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} pixels have {expected} anchors, but there are "
                f"{logits.shape[1]} rows of logits and {deltas.shape[1]} of deltas; give the size that the network saw"
            )
        out = []
        for boxes, probabilities in zip(*self.locate(logits, deltas, image_size), strict=True):
            scores, rows = probabilities.topk(min(top_k, len(boxes)), dim=0)
            place, labels = (scores > score_threshold).nonzero(as_tuple=True)
            scores, boxes = scores[place, labels], boxes[rows[place, labels]]  # noqa: PLW2901
            kept = batched_nms(boxes, scores, labels, iou_threshold)[:max_detections]
            out.append(Detections(boxes[kept], scores[kept], labels[kept]))
        return out

    def reset_classifier(self, num_classes: int) -> None:
        """Put freshly initialised layers for another number of classes, the background counted; the boxes' stay."""
        _check_classes(num_classes)
        self.num_classes = num_classes
        for head in self._heads():
            old = head.classifier
            head.classifier = nn.Conv2d(
                old.in_channels, head.shapes * num_classes, 1, device=old.weight.device, dtype=old.weight.dtype
            )
            head.init_last(head.classifier)

    def _heads(self) -> list[DetectionHead]:
        return [head for head in self.heads if isinstance(head, DetectionHead)]

    def _count_anchors(self, image_size: tuple[int, int]) -> int:
        places = [height * width for height, width in self.map_sizes(image_size)]
        return sum(n * head.shapes for n, head in zip(places, self._heads(), strict=True))

    def _check_statistics(self, x: Tensor) -> None:
        """Raise where batch normalisation would find a single value to normalise."""
        last = self.get_submodule("extras.2.depthwise.norm")
        # SyncBatchNorm, which is no BatchNorm2d, may still find a second value on another device
        if x.shape[0] > 1 or not last.training or not isinstance(last, nn.BatchNorm2d):
            return
        if self.map_sizes((x.shape[-2], x.shape[-1]))[-2] == (1, 1):
            raise ValueError(
                f"SSDLite cannot train on a batch of one image of {x.shape[-2]}x{x.shape[-1]} pixels: of its smallest "
                f"map batch normalisation sees a single value. Train on two or more, or on sides above {STRIDES[-1]}"
            )


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes {num_classes} is not at least 2; count the background")


def _check_levels(widths: Sequence[int], aspect_ratios: Sequence[Sequence[float]], scales: tuple[float, float]) -> None:
    if len(widths) != 6 or min(widths) < 1:
        raise ValueError(f"widths {tuple(widths)} are not six numbers of at least 1, one for each level")
    if len(aspect_ratios) != 6 or any(ratio <= 0 for ratios in aspect_ratios for ratio in ratios):
        raise ValueError(f"aspect_ratios {tuple(aspect_ratios)} are not six lists of positive numbers")
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise ValueError(f"scales {tuple(scales)} are not two numbers above 0, the smaller one first")
