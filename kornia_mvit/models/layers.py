"""Blocks that more than one model is built from."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from kornia_mvit.models.tracing import is_traced

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

    def forward(self, x: Tensor) -> Tensor:
        """Apply convolution, normalisation and activation."""
        if type(self.norm) is nn.BatchNorm2d and self.norm.affine and not is_traced():
            if self.norm.training:
                if self.recompute_act and type(self.act) is nn.SiLU and torch.is_grad_enabled():
                    return _BatchNormSiLU.run(self.conv(x), self.norm)
            elif not torch.is_grad_enabled() and self._is_plain(x):
                return self._infer(x, self.norm)
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y

    def _is_plain(self, x: Tensor) -> bool:
        """Whether nothing can tell a convolution with folded weights from the three layers, but for its speed."""
        layers = (self.conv, self.norm, self.act)
        return (
            type(self.conv) is nn.Conv2d
            and self.conv.bias is None
            and self.conv.padding_mode == "zeros"
            and x.dtype == self.conv.weight.dtype == self.norm.weight.dtype
            and x.dtype in (torch.float32, torch.float64)
            and self.norm.running_mean is not None
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
            and not x.is_meta  # of which PyTorch cannot tell autocast
            and not torch.is_autocast_enabled(x.device.type)
        )

    def _infer(self, x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """Fold the normalisation into the weights: they are few beside the pixels that it spares a pass."""
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = torch.addcmul(norm.bias, mean, scale, value=-1)
        conv = self.conv
        y = F.conv2d(
            x, conv.weight * scale.view(-1, 1, 1, 1), shift, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        if type(self.act) is nn.SiLU:
            return F.silu(y, inplace=True)
        z: Tensor = self.act(y)
        return z


class _BatchNormSiLU(torch.autograd.Function):
    """Batch normalisation by the batch's own statistics, then SiLU, of which the backward pass needs the input alone.

    Autograd by itself keeps the normalised map beside the input.
    """

    @staticmethod
    def run(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / float(norm.num_batches_tracked) if momentum is None else momentum
        settings = norm.running_mean, norm.running_var, True, momentum or 0.0, norm.eps
        y: Tensor = _BatchNormSiLU.apply(x, norm.weight, norm.bias, settings)
        return y

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, settings: tuple[Any, ...]) -> Tensor:
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, *settings)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = settings[-1]
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        scale = weight * rstd
        shift = torch.addcmul(bias, mean, scale, value=-1)
        # in single precision where the normalisation's weights are, of maps in half precision too
        y = torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1)).to(grad.dtype)
        grad = torch.ops.aten.silu_backward.grad_input(grad, y, grad_input=y)  # the normalised map is done with
        wanted = list(ctx.needs_input_grad[:3])
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, rstd, True, ctx.eps, wanted
        )
        return (*grads, None)


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
