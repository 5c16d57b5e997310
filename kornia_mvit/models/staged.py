"""What both versions of MobileViT have in common: a stem, stages of residuals and blocks, and the maps after them."""

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from kornia_mvit.models import fast
from kornia_mvit.models.base import Recomputing, Shareable, TaskModel
from kornia_mvit.models.layers import ConvNormAct, InvertedResidual, check_image, init_weights, recompute

if TYPE_CHECKING:
    from kornia_mvit.models.backbones import TimmBackbone
    from kornia_mvit.models.mobilevit import Stage

__all__ = ["Classifier", "StageConfig", "StagedBackbone", "as_pair"]

BlockBuilder = Callable[["Stage", int, Sequence[float]], nn.Module]


class StageConfig(Protocol):
    """What the configurations of both versions say."""

    @property
    def stem(self) -> int:
        """Channels after the first convolution, which halves the image."""

    @property
    def expand(self) -> int:
        """Expansion of the inverted residuals."""

    @property
    def stages(self) -> "tuple[Stage, ...]":
        """The levels, shallowest first."""


def as_pair(patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a patch, which may be one number for both.

    Raises:
        ValueError: for another count of numbers, and for one below 1.
    """
    patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if len(patch) != 2 or min(patch) < 1:
        raise ValueError(f"patch size {patch_size} is not one or two numbers of at least 1")
    return patch


class StagedBackbone(Recomputing, Shareable):
    """Stem, stages and, for some networks, a last 1x1 convolution; the base of both versions.

    Args:
        config: the widths.
        in_channels: channels of the image.
        patch_size: height and width of a patch.
        block: builds the block of a stage, from the stage, its dilation and the rates of stochastic depth.
        output_stride: 32, 16 or 8.
        drop_path: the highest rate of stochastic depth.

    Attributes:
        feature_channels: width of each stage's map.
        feature_strides: pixels of the image for one step on each stage's map.
        out_channels: width of the map that :meth:`forward` gives.
    """

    def __init__(
        self,
        config: StageConfig,
        in_channels: int,
        patch_size: tuple[int, int],
        block: BlockBuilder,
        *,
        output_stride: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output stride {output_stride} is not available; give 8, 16 or 32")
        self.config: StageConfig = config
        self.in_channels = in_channels
        self.patch_size = patch_size

        # one rate for each residual layer, in the order of the network
        residuals = sum(stage.repeat + stage.depth for stage in config.stages)
        rates = (drop_path * i / max(1, residuals - 1) for i in range(residuals))
        self.stem: ConvNormAct = ConvNormAct(in_channels, config.stem, 3, stride=2)
        stages, channels, strides = [], config.stem, [2]
        dilation = 1
        for stage in config.stages:
            stride, first_dilation = stage.stride, dilation
            if stride > 1 and strides[-1] * stride > output_stride:
                stride, dilation = 1, dilation * stride
            layers: list[nn.Module] = []
            for i in range(stage.repeat):
                step, gap = (stride, first_dilation) if i == 0 else (1, dilation)
                layers.append(InvertedResidual(channels, stage.channels, step, config.expand, gap, next(rates)))
                channels = stage.channels
            if stage.depth:
                layers.append(block(stage, dilation, [next(rates) for _ in range(stage.depth)]))
            stages.append(nn.Sequential(*layers))
            strides.append(strides[-1] * stride)
        self.stages: nn.ModuleList = nn.ModuleList(stages)
        self.head_conv: nn.Module = nn.Identity()

        self.feature_channels: tuple[int, ...] = tuple(stage.channels for stage in config.stages)
        self.feature_strides: tuple[int, ...] = tuple(strides[1:])
        self.out_channels: int = channels

    def _put_head(self, conv: nn.Module, channels: int) -> None:
        """End with a convolution of so many channels."""
        self.head_conv, self.out_channels = conv, channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the final map: (B, in_channels, H, W) -> (B, out_channels, H / output stride, W / output stride)."""
        y: Tensor = self.head_conv(self.forward_features(x, (-1,))[0])
        return y

    def forward_features(self, x: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return the maps of the stages, before the last 1x1 convolution.

        Args:
            x: images, (B, in_channels, H, W).
            out_indices: stages whose maps are wanted, negative ones counted from the last; all when None. What lies
                behind the deepest one is not computed.

        Returns:
            The maps, shallowest first, whatever the order of ``out_indices``.

        Raises:
            ValueError: for a stage that does not exist, and for images of another rank or number of channels, or with
                a side under 32 px.
        """
        check_image(x, self.in_channels)
        count = len(self.stages)
        indices = range(count) if out_indices is None else out_indices
        if not indices or any(not -count <= i < count for i in indices):
            raise ValueError(f"out_indices {tuple(indices)} are not among the {count} stages, {-count} to {count - 1}")
        wanted = {i % count for i in indices}
        maps = self._run(x, range(max(wanted) + 1), wanted)
        return [maps[i] for i in sorted(wanted)]

    @property
    def size_multiple(self) -> int:
        """Pixels of which the sides of an image have to be a multiple for its last map to cover it exactly."""
        return self.feature_strides[-1]

    def feature_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return height and width of each stage's map for images of a height and width in pixels.

        Example:
            >>> from kornia_mvit import MobileViT, MobileViTV2
            >>> MobileViT('xxs').feature_sizes((224, 160))[-1], MobileViTV2(0.5).feature_sizes((224, 160))[-1]
            ((7, 5), (8, 6))
        """
        height, width = image_size
        return [((height + n - 1) // n, (width + n - 1) // n) for n in self.feature_strides]

    @fast.sliced
    def _run(self, x: Tensor, stages: range, wanted: Set[int]) -> dict[int, Tensor]:
        """Run some stages in turn, before the first of all the stem; return the wanted maps, and the last, by stage."""
        saving = self.gradient_checkpointing == "stages" and torch.is_grad_enabled()
        maps = {}
        for i in stages:
            if i == 0:
                x = self.stem(x)
            x = recompute(self.stages[i], x) if saving else self.stages[i](x)
            if i in wanted or i == stages[-1]:
                maps[i] = x
        return maps


class Classifier(TaskModel):
    """A backbone with average pooling and a linear classifier; the base of both versions' classifiers.

    Args:
        backbone: the network under the classifier.
        num_classes: number of classes; 0 for pooled features in place of logits.
        head_dropout: dropout before the classifier.
    """

    def __init__(self, backbone: "StagedBackbone | TimmBackbone", num_classes: int, head_dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout: nn.Dropout = nn.Dropout(head_dropout)
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.backbone(x))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """Run forward, with the hooks."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the backbone's final map and classify it.

        Args:
            x: what the backbone's forward gives, (B, C_out, h, w).
            pre_logits: stop before the classifier.

        Returns:
            (B, num_classes), or (B, C_out) with ``pre_logits``.
        """
        x = self.dropout(x.mean(dim=(-2, -1)))
        return x if pre_logits else self.classifier(x)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an Identity if there are no classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Put a freshly initialised classifier for another number of classes; 0 leaves pooled features."""
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes} is negative; give 0 for pooled features")
        weight = next(self.backbone.parameters())
        self.num_classes = num_classes
        self.classifier: nn.Module = (
            nn.Linear(self.backbone.out_channels, num_classes, device=weight.device, dtype=weight.dtype)
            if num_classes
            else nn.Identity()
        )
        self.classifier.apply(init_weights)
