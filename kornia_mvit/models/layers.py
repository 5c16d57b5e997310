"""Blocks that more than one model is built from."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from kornia_mvit.models import fast

__all__ = [
    "MIN_SIDE",
    "ConvNormAct",
    "DropPath",
    "InvertedResidual",
    "SeparableConv",
    "check_image",
    "init_weights",
    "recompute",
]

MIN_SIDE = 32  # pixels; the deepest map of a smaller image would have nothing to attend to


class ConvNormAct(nn.Module):
    r"""Convolution that keeps the map's size at stride 1, then batch normalisation, then an activation.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        kernel_size: side of the square kernel, odd.
        stride: step between two applications of the kernel.
        dilation: spacing of the kernel's taps.
        groups: blocks of channels convolved apart.
        norm: whether a batch normalisation follows; without one the convolution has no bias either.
        act: class of the activation, or None for a linear output.

    Attributes:
        recompute_act: while training, keep only what the convolution gives, and normalise and activate it again in the
            backward pass; set by ``set_gradient_checkpointing`` of the models.

    Shape:
        - Input: :math:`(B, C_{in}, H, W)`
        - Output: :math:`(B, C_{out}, \lceil H / stride \rceil, \lceil W / stride \rceil)`

    Example:
        >>> ConvNormAct(3, 8, stride=2)(torch.rand(1, 3, 32, 20)).shape
        torch.Size([1, 8, 16, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        norm: bool = True,
        act: type[nn.Module] | None = nn.SiLU,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv: nn.Conv2d = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.act: nn.Module = act() if act is not None else nn.Identity()
        self.recompute_act = False

    @fast.folded
    def forward(self, x: Tensor) -> Tensor:
        """Apply convolution, normalisation and activation."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training (stochastic depth, arXiv 1603.09382).

    Args:
        rate: probability that a sample loses the branch; kept samples are scaled by 1 / (1 - rate).

    Shape:
        - Input and output: :math:`(B, *)`
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate {rate} is not in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero the branch of a random share of the samples."""
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * keep.div_(1.0 - self.rate)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate}"


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen with a 1x1, filter each channel with a 3x3, narrow with a linear 1x1."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expand: int, dilation: int = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.expand: ConvNormAct = ConvNormAct(in_channels, hidden, 1)
        self.depthwise: ConvNormAct = ConvNormAct(hidden, hidden, 3, stride, dilation=dilation, groups=hidden)
        self.project: ConvNormAct = ConvNormAct(hidden, out_channels, 1, act=None)
        self.residual: bool = stride == 1 and in_channels == out_channels
        self.drop_path: DropPath = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, filter and narrow; add the input where stride and widths allow."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + self.drop_path(y) if self.residual else y


class SeparableConv(nn.Module):
    """Filter each channel with a 3x3, linearly, then mix them with a 1x1 and an activation.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        stride: of the 3x3.
        act: class of the activation.

    Example:
        >>> SeparableConv(4, 8, stride=2)(torch.rand(1, 4, 5, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, act: type[nn.Module] | None = nn.ReLU
    ) -> None:
        super().__init__()
        self.depthwise: ConvNormAct = ConvNormAct(in_channels, in_channels, 3, stride, groups=in_channels, act=None)
        self.pointwise: ConvNormAct = ConvNormAct(in_channels, out_channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Filter, then mix."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


def check_image(x: Tensor, channels: int) -> None:
    """Raise unless a network can take these images.

    Args:
        x: the images.
        channels: how many channels the network takes.

    Raises:
        ValueError: for another rank or number of channels, or a side under 32 px.
        TypeError: for values that are not floating point.
    """
    if x.ndim != 4:
        raise ValueError(
            f"expected images of shape (B, {channels}, H, W), got {tuple(x.shape)}"
            + ("; add the batch dimension with image[None]" if x.ndim == 3 else "")
        )
    if not x.is_floating_point():
        raise TypeError(
            f"expected floating-point images, got {x.dtype}; a Preprocess turns uint8 into [0, 1], "
            "or write image.float() / 255"
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"expected images of {channels} channels, got {tuple(x.shape)}; "
            f"convert them or build the model with in_channels={x.shape[1]}"
        )
    if x.shape[2] < MIN_SIDE or x.shape[3] < MIN_SIDE:
        raise ValueError(
            f"an image of {x.shape[2]}x{x.shape[3]} pixels is smaller than the network takes; "
            f"resize it so that each side has at least {MIN_SIDE}"
        )


def init_weights(module: nn.Module) -> None:
    """Fill a layer as Apple's training code does; meant for :meth:`torch.nn.Module.apply`.

    Convolutions: Kaiming normal over the fan-out. Linear layers: truncated normal of std 0.02. Biases: zero.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def recompute(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module without keeping its activations: the backward pass runs it again (arXiv 1604.06174).

    The second run leaves the running statistics of batch normalisation alone, so that a step counts its batch once.

    Example:
        >>> layer, x = ConvNormAct(3, 8), torch.rand(2, 3, 16, 16, requires_grad=True)
        >>> recompute(layer, x).sum().backward()
        >>> layer.norm.num_batches_tracked
        tensor(1)
    """
    y: Tensor
    if torch.compiler.is_compiling():  # a traced module has no side effects left when it runs again
        y = checkpoint(module, x, use_reentrant=False)
    else:
        y = checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _without_statistics(module)))
    return y


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation compute as ever, but add nothing to its running statistics."""
    norms = [(m, m.momentum, m.num_batches_tracked) for m in module.modules() if isinstance(m, _BatchNorm)]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count
