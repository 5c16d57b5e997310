"""What a head asks of the network under it, and networks of timm that give it.

References:
    - PyTorch Image Models, https://huggingface.co/docs/timm/feature_extraction: networks that say the widths and
      strides of their maps.

Shapes are written with B batch, C channels and H W an image's height and width.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from kornia_mvit.models.base import Recomputing
from kornia_mvit.models.graph import crop_to, pad_to
from kornia_mvit.models.layers import check_image

__all__ = [
    "TIMM",
    "Backbone",
    "TimmBackbone",
    "as_backbone",
    "backbone_name",
    "check_timm_name",
    "feature_sizes",
    "given_backbone",
    "import_timm",
    "size_multiple",
]

TIMM = "timm:"
_NAME = re.compile(r"timm:(\w{1,100})(\.[\w.]{1,100})?", re.ASCII)  # of a network, and of one of its published weights
_SIZES = ((128, 192), (97, 130))  # of images that tell a network's maps: its strides divide the first alone


class Backbone(Protocol):
    """What a network says and gives, so that heads can stand on it.

    ``feature_channels`` and ``feature_strides`` are the width of each stage's map, and the pixels of the image for one
    step on it; a map has the image's sides divided by the stride, rounded up. ``forward_features(x, out_indices)``
    returns the maps of some stages, or of all, shallowest first, and calling the network a map of ``out_channels``.
    """

    in_channels: int
    feature_channels: tuple[int, ...]
    feature_strides: tuple[int, ...]
    out_channels: int

    def forward_features(self, x: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return maps, see above."""


_ASKED = ("in_channels", "feature_channels", "feature_strides", "out_channels", "forward_features")


def as_backbone(
    backbone: nn.Module | str, in_channels: int = 3, *, output_stride: int = 32, pretrained: bool = False
) -> Backbone:
    """Return a network for heads to stand on.

    Args:
        backbone: the name of a network of timm, such as ``'timm:resnet18'``; a network of timm built with
            ``features_only=True``; or a module that has what :class:`Backbone` lists, which is returned as it is.
        in_channels: channels of the image, for a network of timm.
        output_stride: 16 or 8 to dilate the last stages of a network that is built by its name, where timm can.
        pretrained: whether such a network starts with the weights that timm publishes, which are fetched. A name may
            say which, as ``'timm:resnet18.a1_in1k'``.

    Raises:
        ValueError: for a name that is not in timm's list, and a network whose maps are not as it says, or that takes
            images of one size alone.
        TypeError: for a module that lacks something, naming it.
        ImportError: for a name, if timm is missing.

    Example:
        >>> backbone = as_backbone('timm:resnet18', output_stride=16)
        >>> backbone.feature_channels, backbone.feature_strides
        ((64, 64, 128, 256, 512), (2, 4, 8, 16, 16))
        >>> [tuple(features.shape[1:]) for features in backbone.forward_features(torch.rand(1, 3, 64, 96), (1, 4))]
        [(64, 16, 24), (512, 4, 6)]
    """
    if isinstance(backbone, str):
        name, weights = _split_name(backbone)
        if pretrained:
            name += weights
        network = _create(name, in_channels, output_stride, pretrained)
        return cast(Backbone, TimmBackbone(network, in_channels, name=f"{TIMM}{name.partition('.')[0]}"))
    if pretrained:
        raise ValueError("pretrained is for a network of timm by its name; a module brings its own weights")
    info = getattr(backbone, "feature_info", None)
    if all(hasattr(info, name) for name in ("channels", "reduction")) and not hasattr(backbone, "feature_channels"):
        return cast(Backbone, TimmBackbone(backbone, in_channels))
    if missing := [name for name in _ASKED if not hasattr(backbone, name)]:
        raise TypeError(
            f"{type(backbone).__name__} is no backbone: it lacks {', '.join(missing)}; see "
            "kornia_mvit.models.backbones.Backbone, or give a name of timm such as 'timm:resnet18'"
        )
    return cast(Backbone, backbone)


# Arguments that are for a backbone that is built from a mode.
_OF_MODES: Mapping[str, object] = {
    "mode": "xxs",
    "patch_size": (2, 2),
    "backbone_dropout": 0.0,
    "drop_path": 0.0,
    "variant": "apple",
    "head_conv": True,
}


def given_backbone(
    backbone: nn.Module | str, in_channels: int, output_stride: int = 32, **others: object
) -> "TimmBackbone":
    """Return the backbone that a model is given, in place of the one that it builds from a mode.

    Args:
        backbone: see :func:`as_backbone`.
        in_channels: see :func:`as_backbone`; a module that says another number keeps it where this is 3.
        output_stride: see :func:`as_backbone`.
        others: arguments that are for a backbone of a mode alone, as they were given.

    Raises:
        ValueError: if one of these is not its default, and for a module of another number of channels.
    """
    if given := [name for name, value in others.items() if value != _OF_MODES[name]]:
        raise ValueError(f"{given[0]} is for MobileViT, and a backbone is given; leave out one of both")
    found = as_backbone(backbone, in_channels, output_stride=output_stride)
    if in_channels not in (found.in_channels, 3):
        raise ValueError(f"the backbone takes images of {found.in_channels} channels, not {in_channels}; give as many")
    return cast(TimmBackbone, found)  # as far as heads ask


def feature_sizes(backbone: Any, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return height and width of each stage's map, as a backbone says, or else by its strides, rounded up."""
    if hasattr(backbone, "feature_sizes"):
        return cast(list[tuple[int, int]], backbone.feature_sizes(image_size))
    height, width = image_size
    return [((height + n - 1) // n, (width + n - 1) // n) for n in backbone.feature_strides]


def size_multiple(backbone: Any) -> int:
    """Return of what an image's sides have to be a multiple for the last map to cover it, the stride unless it says."""
    return int(getattr(backbone, "size_multiple", backbone.feature_strides[-1]))


def backbone_name(backbone: object) -> str | None:
    """Return by what name :func:`as_backbone` builds a network again, ``'timm:NAME'``; None for any other module."""
    return backbone.name if isinstance(backbone, TimmBackbone) else None


class TimmBackbone(Recomputing):
    r"""A network of timm that gives the maps of its stages.

    Args:
        network: built by timm with ``features_only=True``.
        in_channels: channels of the image.
        name: ``'timm:NAME'``, if it was built by that name.

    Shape:
        - Input: :math:`(B, C, H, W)`, floating point, of any height and width from 32 px up
        - Output: the last map, :math:`(B, C_{out}, \lceil H / s \rceil, \lceil W / s \rceil)`

    Attributes:
        feature_channels: width of each map.
        feature_strides: pixels of the image for one step on each map.
        out_channels: width of the last map.
        name: as above.

    Raises:
        ValueError: for a network whose maps are not what it says, or that takes images of one size alone.
    """

    def __init__(self, network: nn.Module, in_channels: int = 3, *, name: str | None = None) -> None:
        super().__init__()
        info: Any = network.feature_info
        self.network: nn.Module = network
        self.name: str | None = name
        self.in_channels: int = in_channels
        self.feature_channels: tuple[int, ...] = tuple(map(int, info.channels()))
        self.feature_strides: tuple[int, ...] = tuple(map(int, info.reduction()))
        self.out_channels: int = self.feature_channels[-1]
        # what images are padded to, by a network that rounds the sides of its maps down
        self.multiple: int = 1
        problem, stride = self._try(_SIZES[0]), max(self.feature_strides)
        if not problem:
            for self.multiple in (1, stride, 2 * stride):  # twice, for patches of two places of the last map
                problem = self._try(_SIZES[1])
                if not problem:
                    break
        if problem:
            raise ValueError(f"{name or type(network).__name__} cannot be a backbone: {problem}")

    def forward(self, x: Tensor) -> Tensor:
        """Return the last map."""
        return self.forward_features(x, (-1,))[0]

    def forward_features(self, x: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return the maps of the stages, as ``MobileViT.forward_features`` does; all of them are computed.

        Args:
            x: images, (B, in_channels, H, W).
            out_indices: stages whose maps are wanted, negative ones counted from the last; all when None.

        Raises:
            ValueError: for a stage that does not exist, and for images of another rank, number of channels or size.
        """
        check_image(x, self.in_channels)
        count = len(self.feature_channels)
        indices = range(count) if out_indices is None else out_indices
        if not indices or any(not -count <= i < count for i in indices):
            raise ValueError(f"out_indices {tuple(indices)} are not among the {count} stages, {-count} to {count - 1}")
        maps = self.network(pad_to(x, self.multiple))
        wanted = sorted({i % count for i in indices})
        if self.multiple == 1:
            return [maps[i] for i in wanted]
        return [crop_to(maps[i], _map_size(x, self.feature_strides[i])) for i in wanted]

    def set_gradient_checkpointing(self, enabled: bool | str = True) -> None:
        """Keep fewer activations for the backward pass, as timm does it, which has one way.

        Args:
            enabled: True, ``'stages'`` or ``'activations'``; False keeps all.

        Raises:
            ValueError: for anything else, and a network that cannot.
        """
        super().set_gradient_checkpointing(enabled)
        switch = getattr(self.network, "set_grad_checkpointing", None)
        if switch is not None:
            switch(bool(self.gradient_checkpointing))
        elif self.gradient_checkpointing:
            raise ValueError(f"{self.name or type(self.network).__name__} has no gradient checkpointing; leave it off")

    @torch.no_grad()
    def _try(self, size: tuple[int, int]) -> str:
        """Return in what the maps of an image of a size are not as they should be; nothing where they are."""
        weight = next(self.network.parameters())
        x = torch.zeros(1, self.in_channels, *size, device=weight.device, dtype=weight.dtype)
        training = self.training
        self.eval()
        try:
            found = [tuple(features.shape[1:]) for features in self.forward_features(x)]
        except Exception as error:  # timm's networks raise what they like
            return f"an image of {size[0]}x{size[1]} is refused ({' '.join(str(error).split())[:200]})"
        finally:
            self.train(training)
        expected = [
            (channels, *_map_size(x, stride))
            for channels, stride in zip(self.feature_channels, self.feature_strides, strict=True)
        ]
        return "" if found == expected else f"its maps of {size[0]}x{size[1]} are {found}, not {expected}"


def _map_size(x: Tensor, stride: int) -> tuple[int, int]:
    return (x.shape[-2] + stride - 1) // stride, (x.shape[-1] + stride - 1) // stride


# --------------------------------------------------------------------------------------------------------------- timm


def import_timm(name: str) -> Any:
    """Return timm, which a network's name asks for.

    Raises:
        ImportError: if it is missing.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{name} needs timm; pip install timm") from error
    return timm


def _split_name(name: str) -> tuple[str, str]:
    """Return the name of a network in timm's list, and what names its weights, with a dot, or nothing.

    Raises:
        ValueError: for a name that is none of timm's list; nothing is fetched to know.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"unknown backbone {name[:100]!r}; give a module, or a name of timm such as 'timm:resnet18'")
    check_timm_name(found[1], import_timm(name).list_models())
    return found[1], found[2] or ""


def check_timm_name(name: str, known: Sequence[str]) -> None:
    """Check that a name is one of timm's list.

    Raises:
        ValueError: where it is not, with the names near it.
    """
    if name not in known:
        near = ", ".join(get_close_matches(name, known, 5, 0.6))
        raise ValueError(
            f"timm has no model {name!r}; " + (f"near it: {near}" if near else "timm.list_models('resnet*') lists some")
        )


def _create(name: str, in_channels: int, output_stride: int, pretrained: bool) -> nn.Module:
    """Build a network of timm that gives its maps, dilated where it can be."""
    timm = import_timm(name)
    arguments: dict[str, Any] = {"features_only": True, "in_chans": in_channels, "pretrained": pretrained}
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output stride {output_stride} is not available; give 8, 16 or 32")
    errors = (AssertionError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)
    if output_stride < 32:
        try:
            return cast(nn.Module, timm.create_model(name, output_stride=output_stride, **arguments))
        except errors:
            pass  # timm dilates convolutional networks alone; others keep their stride
    try:
        return cast(nn.Module, timm.create_model(name, **arguments))
    except (*errors, AttributeError, LookupError) as error:
        raise ValueError(f"timm cannot build {name!r} as a backbone: {' '.join(str(error).split())[:300]}") from error
