"""A copy of a trained model that infers fast: fewer passes over memory, and the same results."""

import copy
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kornia_mvit.models.base import Shareable
from kornia_mvit.models.graph import is_traced
from kornia_mvit.models.layers import ConvNormAct, DropPath
from kornia_mvit.parsing import brief
from kornia_mvit.weights.cards import Model
from kornia_mvit.weights.registry import from_pretrained

__all__ = ["FusedConv2d", "fuse", "load_module"]

M = TypeVar("M", bound=nn.Module)

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.SiLU: "swish", nn.ReLU: "relu", nn.Identity: "none"}  # oneDNN's names
_SMALL = 8_000_000  # multiplications


@overload
def fuse(model: M) -> M: ...
@overload
def fuse(model: str | Path) -> Model: ...
def fuse(model: nn.Module | str | Path) -> nn.Module:
    """Return a copy of a model for inference, equal to it in eval mode to 1e-4 in float32.

    Batch normalisation is folded into the convolutions before it, in the heads of every task too, and activations
    into the pass that convolves. Dropout and stochastic depth are gone. Weights lie in ``channels_last``, and so do
    the maps, whatever the layout of the image. The copy runs under ``torch.compile`` and ``torch.export``.

    Args:
        model: any of this package's, or a module that holds some, or what :func:`~kornia_mvit.from_pretrained` takes.
            Give it its weights before: the copy has other names for them, so that it loads no checkpoint and is saved
            as none.

    Returns:
        The copy, in eval mode, on the same device, its parameters without gradients. Gradients for the image pass
        through it.

    Raises:
        TypeError: for what is no module.

    Example:
        >>> from kornia_mvit import MobileViTClassifier
        >>> model, image = MobileViTClassifier('xxs', 5).eval(), torch.rand(1, 3, 64, 96)
        >>> with torch.inference_mode():
        ...     torch.allclose(fuse(model)(image), model(image), atol=1e-5)
        True
    """
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode tell nobody when they change
        out = copy.deepcopy(load_module(model))
        for module in list(out.modules()):
            if isinstance(module, ConvNormAct):
                _fold(module)
            elif isinstance(module, Shareable):
                module.fused = True
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv2d) and _is_plain(child):
                    setattr(module, name, FusedConv2d.of(child))
                elif isinstance(child, nn.SiLU):
                    child.inplace = True
                elif isinstance(child, nn.modules.dropout._DropoutNd | DropPath):
                    setattr(module, name, nn.Identity())
        for parameter in out.parameters():
            parameter.grad = None
        return out.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def load_module(model: nn.Module | str | Path) -> nn.Module:
    """Return a module as it is, or the model of a checkpoint.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(model, str | Path):
        return from_pretrained(model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model is {brief(model)}; pass a module, a checkpoint, a run's folder or a name of weights"
        )
    return model


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution is PyTorch's own, of the settings that this package uses."""
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros"


def _fold(module: ConvNormAct) -> None:
    """Move normalisation and activation into the convolution."""
    conv = module.conv
    norm: nn.Module = module.norm  # whatever a user put there
    if not _is_plain(conv):
        return
    act = _ACTIVATIONS.get(type(module.act))
    fused = FusedConv2d.of(conv, "none" if act is None else act)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        if norm.running_mean is None or norm.running_var is None:  # statistics of the batch cannot be folded
            return
        fused.weight, fused.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    elif not isinstance(norm, nn.Identity):
        return
    module.conv, module.norm = fused, nn.Identity()
    if act is not None:
        module.act = nn.Identity()
        if type(module) is ConvNormAct:
            module.__class__ = _Fused


class _Fused(ConvNormAct):
    """A block of which the convolution does everything; two calls fewer, which small images feel."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class FusedConv2d(nn.Conv2d):
    r"""Convolution and activation in one pass over memory, for inference.

    On a CPU, float32 and bfloat16 go through oneDNN's fused kernels, with weights in the order that oneDNN wants for
    the size at hand. Everything else, traced and differentiated code among it, takes PyTorch's own convolution and its
    activation.

    Args:
        act: ``'swish'`` for SiLU, ``'relu'`` or ``'none'``.

    Shape:
        - Input and output: as for :class:`torch.nn.Conv2d`; the output lies in ``channels_last``
    """

    def __init__(self, *args: Any, act: str = "none", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.act = act
        self._ready: tuple[Any, Tensor] | None = None

    @classmethod
    def of(cls, conv: nn.Conv2d, act: str = "none") -> "FusedConv2d":
        """Take over a convolution's settings and a copy of its weights."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            act=act,
            device="meta",
        )
        new.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        if conv.bias is not None:
            new.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        return new

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and activate: (B, C_in, H, W) -> (B, C_out, H', W')."""
        if not is_traced() and self._has_kernel(x):
            return self._run_kernel(x)
        return self._activate(super().forward(x))

    def _has_kernel(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and type(x) is Tensor
            and x.ndim == 4
            and x.dtype == self.weight.dtype
            and x.shape[1] == self.in_channels  # else PyTorch says what is wrong
            and not isinstance(self.padding, str)
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.is_autocast_enabled("cpu")
            and _runs(x.dtype)
        )

    def _run_kernel(self, x: Tensor) -> Tensor:
        ops, weight = torch.ops.mkldnn, self.weight
        if self._is_small(x):
            y = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), self.bias).permute(0, 3, 1, 2)
            return self._activate(y)
        version = None if weight.is_inference() else weight._version
        key = (weight.data_ptr(), version, weight.dtype, x.shape)
        settings = (self.padding, self.stride, self.dilation, self.groups)
        ready = self._ready
        if ready is None or ready[0] != key:
            order = ops._reorder_convolution_weight(weight.detach(), *settings, x.shape)
            self._ready = ready = (key, order)  # in one step, as other threads may run the model too
        z: Tensor = ops._convolution_pointwise.default(x, ready[1], self.bias, *settings, self.act, [], "")
        return z

    def _is_small(self, x: Tensor) -> bool:
        """Whether it is one product of small matrices, for which oneDNN takes longer to get ready than to compute."""
        return (
            self.kernel_size == (1, 1)
            and self.stride == (1, 1)
            and self.padding == (0, 0)
            and self.groups == 1
            and x.shape[0] * x.shape[2] * x.shape[3] * self.weight.numel() < _SMALL
        )

    def _activate(self, y: Tensor) -> Tensor:
        if self.act == "swish":
            return F.silu(y, inplace=True)
        return F.relu(y, inplace=True) if self.act == "relu" else y

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's tensors can be neither copied nor pickled
        return self.__dict__ | {"_ready": None}

    def extra_repr(self) -> str:
        """Show the activation beside the convolution's settings."""
        return f"{super().extra_repr()}, act={self.act}"  # type: ignore[no-untyped-call]  # torch's has no types


@cache
def _runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused kernels work here, tried on a pixel's worth of numbers."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # as above
        return False
    with torch.inference_mode(False), torch.no_grad():
        x, weight, bias = torch.ones(1, 8, 2, 2), torch.ones(8, 8, 1, 1), torch.ones(8)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        ops, settings = torch.ops.mkldnn, ([0, 0], [1, 1], [1, 1], 1)
        try:
            order = ops._reorder_convolution_weight(weight, *settings, x.shape)
            y = ops._convolution_pointwise(x, order, bias, *settings, "relu", [], "")
            z = ops._convolution_pointwise(x, order, bias, *settings, "swish", [], "")
        except (AttributeError, RuntimeError, TypeError):  # another release's operators, or another processor's
            return False
        return bool((y == 9).all()) and torch.allclose(z.float(), torch.tensor(9.0), rtol=0.01)
