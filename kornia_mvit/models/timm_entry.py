"""The models that :func:`~kornia_mvit.register_in_timm` adds to timm's list.

timm finds an entry by the name of its function, and what it is told of the weights in ``default_cfgs``. Importing this
module needs no timm.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kornia_mvit.models.layers import init_weights
from kornia_mvit.models.mobilevit import MobileViT
from kornia_mvit.models.mobilevitv2 import WIDTHS, MobileViTV2, mode_name, mode_width
from kornia_mvit.models.staged import StagedBackbone

__all__ = [
    "TimmMobileViT",
    "kornia_mvit_s",
    "kornia_mvit_v2_050",
    "kornia_mvit_v2_075",
    "kornia_mvit_v2_100",
    "kornia_mvit_v2_125",
    "kornia_mvit_v2_150",
    "kornia_mvit_v2_175",
    "kornia_mvit_v2_200",
    "kornia_mvit_xs",
    "kornia_mvit_xxs",
]

_MODES = {mode: mode for mode in ("xxs", "xs", "s")} | {
    f"v2_{round(100 * width):03d}": mode_name(width) for width in WIDTHS
}


def _describe(end: str) -> dict[str, Any]:
    """Say what timm says of its own weights of the same network, which are read here."""
    second = end.startswith("v2_")
    return {
        "hf_hub_id": f"timm/mobilevit{'' if second else '_'}{end}.cvnets_in1k",
        "num_classes": 1000,
        "input_size": (3, 256, 256),
        "pool_size": (8, 8),
        "crop_pct": 0.888 if second else 0.9,
        "interpolation": "bicubic",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": "backbone.stem.conv",
        "classifier": "classifier",
        "license": "cvnets-license",
    }


default_cfgs: dict[str, dict[str, Any]] = {f"kornia_mvit_{end}": _describe(end) for end in _MODES}


class TimmMobileViT(nn.Module):
    r"""MobileViT with the methods and arguments of timm's models.

    The names of its weights are those of :class:`MobileViTClassifier` and :class:`MobileViTV2Classifier`.

    Args:
        mode: see :class:`MobileViT`; or ``'v2-0.5'`` to ``'v2-2.0'`` for :class:`MobileViTV2` of a width.
        num_classes: number of classes; 0 for pooled features in place of logits.
        in_chans: channels of the image.
        global_pool: ``'avg'``, ``'max'``, ``'avgmax'``, ``'catavgmax'``, or ``''`` for none, without classes.
        output_stride: see :class:`MobileViT`.
        drop_rate: dropout before the classifier.
        proj_drop_rate: the ``dropout`` of :class:`MobileViT`.
        drop_path_rate: the ``drop_path`` of :class:`MobileViT`.
        patch_size: see :class:`MobileViT`.

    Shape:
        - Input: :math:`(B, C, H, W)`, see :class:`MobileViT`
        - Output: :math:`(B, K)`, or the features that ``global_pool`` leaves where there are no classes

    Attributes:
        feature_info: width, stride and module of each stage's map, as timm's ``FeatureInfo`` takes them.
    """

    def __init__(
        self,
        mode: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        *,
        output_stride: int = 32,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_size: int | tuple[int, int] = (2, 2),
    ) -> None:
        super().__init__()
        width = mode_width(mode)
        self.backbone: StagedBackbone
        if width is None:
            self.backbone = MobileViT(
                mode, in_chans, patch_size, proj_drop_rate, output_stride=output_stride, drop_path=drop_path_rate
            )
        else:
            self.backbone = MobileViTV2(
                width,
                in_chans,
                patch_size,
                dropout=proj_drop_rate,
                output_stride=output_stride,
                drop_path=drop_path_rate,
            )
        self.dropout: nn.Dropout = nn.Dropout(drop_rate)
        self.in_chans: int = in_chans
        self.num_features: int = self.backbone.out_channels
        self.head_hidden_size: int = self.num_features
        shapes = zip(self.backbone.feature_channels, self.backbone.feature_strides, strict=True)
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": stride, "module": f"backbone.stages.{i}"}
            for i, (channels, stride) in enumerate(shapes)
        ]
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """Run forward, with the hooks."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the final map, after the last 1x1 convolution: (B, C, H, W) -> (B, num_features, h, w)."""
        return self.backbone(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the final map and classify it.

        Args:
            x: what :meth:`forward_features` returns.
            pre_logits: stop before the classifier.
        """
        x = self.dropout(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of stages, and the final one.

        Args:
            x: images, (B, C, H, W).
            indices: the last n stages for a number, the stages that are listed, or all when None.
            norm: without effect: no normalisation follows a stage.
            stop_early: without effect: with ``intermediates_only`` what lies behind the deepest map is not computed.
            output_fmt: ``'NCHW'``.
            intermediates_only: leave out the final map.

        Returns:
            The final map and the list of the stages' maps, shallowest first; or the list alone.

        Raises:
            ValueError: for a stage that does not exist, and another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is not available; give 'NCHW'")
        wanted = self._indices(indices)
        if intermediates_only:
            return self.backbone.forward_features(x, wanted)
        last = len(self.backbone.stages) - 1
        maps = self.backbone.forward_features(x, [*wanted, last])
        return self.backbone.head_conv(maps[-1]), maps[: len(wanted)]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what lies behind the deepest wanted stage.

        Args:
            indices: see :meth:`forward_intermediates`.
            prune_norm: without effect: no normalisation follows a stage.
            prune_head: remove the last 1x1 convolution and the classifier as well.

        Returns:
            The numbers of the stages, from 0.
        """
        wanted = self._indices(indices)
        if max(wanted) + 1 < len(self.backbone.stages):
            self.backbone.stages = self.backbone.stages[: max(wanted) + 1]
        if prune_head:
            self.backbone.head_conv = nn.Identity()
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an Identity if there are no classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a freshly initialised classifier for another number of classes, and another pooling where it is given."""
        from timm.layers.classifier import create_classifier

        if global_pool is not None:
            self.pool_type: str = global_pool
        weight = self.backbone.stem.conv.weight
        self.num_classes: int = num_classes
        self.global_pool: nn.Module
        self.classifier: nn.Module
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, self.pool_type)
        self.classifier.apply(init_weights).to(weight.device, weight.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training; see :meth:`MobileViT.set_gradient_checkpointing`."""
        self.backbone.set_gradient_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how timm tells the layers of the weights apart, for learning rates that fall with the depth."""
        stage = r"^backbone\.stages\.(\d+)" if coarse else r"^backbone\.stages\.(\d+)\.(\d+)"
        return {"stem": r"^backbone\.stem", "blocks": [(stage, None), (r"^backbone\.head_conv", (99999,))]}

    def _indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.backbone.stages)
        if indices is None or isinstance(indices, int):
            indices = range(count - (count if indices is None else indices), count)
        if not indices or not all(-count <= i < count for i in indices):
            raise ValueError(f"indices {tuple(indices)} are not among the {count} stages, {-count} to {count - 1}")
        return sorted({i % count for i in indices})


def _from_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a checkpoint under our names, whichever of the known layouts it has."""
    import kornia_mvit  # the root imports the rest when it is used; a model's file imports none

    found = kornia_mvit.read_weights(state)
    return {**{f"backbone.{name}": value for name, value in found.backbone.items()}, **found.head}


def _create(end: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    from timm.models import build_model_with_cfg

    model: nn.Module = build_model_with_cfg(
        TimmMobileViT,
        f"kornia_mvit_{end}",
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
        pretrained_filter_fn=_from_timm,
        mode=_MODES[end],
        **options,
    )
    return model


def kornia_mvit_xxs(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViT-xxs for timm; see :class:`TimmMobileViT`."""
    return _create("xxs", pretrained, options)


def kornia_mvit_xs(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViT-xs for timm; see :class:`TimmMobileViT`."""
    return _create("xs", pretrained, options)


def kornia_mvit_s(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViT-s for timm; see :class:`TimmMobileViT`."""
    return _create("s", pretrained, options)


def kornia_mvit_v2_050(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViTV2 of width 0.5 for timm; see :class:`TimmMobileViT`."""
    return _create("v2_050", pretrained, options)


def kornia_mvit_v2_075(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViTV2 of width 0.75 for timm; see :class:`TimmMobileViT`."""
    return _create("v2_075", pretrained, options)


def kornia_mvit_v2_100(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViTV2 of width 1 for timm; see :class:`TimmMobileViT`."""
    return _create("v2_100", pretrained, options)


def kornia_mvit_v2_125(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViTV2 of width 1.25 for timm; see :class:`TimmMobileViT`."""
    return _create("v2_125", pretrained, options)


def kornia_mvit_v2_150(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViTV2 of width 1.5 for timm; see :class:`TimmMobileViT`."""
    return _create("v2_150", pretrained, options)


def kornia_mvit_v2_175(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViTV2 of width 1.75 for timm; see :class:`TimmMobileViT`."""
    return _create("v2_175", pretrained, options)


def kornia_mvit_v2_200(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build MobileViTV2 of width 2 for timm; see :class:`TimmMobileViT`."""
    return _create("v2_200", pretrained, options)
