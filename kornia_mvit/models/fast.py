"""What makes the forward pass fast, with the same results: the models are written as their papers have them.

Two methods of the models are decorated with what stands here:

- :func:`folded`, of a convolution with its normalisation: in inference the normalisation is folded into the
  convolution's weights as it runs; in training with gradient checkpointing the normalised map is not kept.
- :func:`sliced`, of a backbone's stages: on a CPU maps lie in ``channels_last``, and a large batch goes through the
  early stages in slices whose maps fit the cache.
"""

import functools
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kornia_mvit.models.graph import is_traced

if TYPE_CHECKING:
    from kornia_mvit.models.layers import ConvNormAct
    from kornia_mvit.models.staged import StagedBackbone

__all__ = ["folded", "slice_size", "sliced"]

SLICE_BYTES = 4 * 2**20  # of the largest map, for a thread: what second-level caches and their neighbours hold


# ----------------------------------------------------------------------------------------- convolution, normalisation


def folded(forward: "Callable[[ConvNormAct, Tensor], Tensor]") -> "Callable[[ConvNormAct, Tensor], Tensor]":
    """Run a convolution, its normalisation and its activation with fewer passes over memory, where nothing can tell."""

    @functools.wraps(forward)
    def run(block: "ConvNormAct", x: Tensor) -> Tensor:
        norm = block.norm
        if type(norm) is nn.BatchNorm2d and norm.affine and not is_traced():
            if norm.training:
                if block.recompute_act and type(block.act) is nn.SiLU and torch.is_grad_enabled():
                    return _BatchNormSiLU.run(block.conv(x), norm)
            elif not torch.is_grad_enabled() and _is_plain(block, x, norm):
                return _run_folded(block, x, norm)
        return forward(block, x)

    return run


def _is_plain(block: "ConvNormAct", x: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether nothing can tell a convolution with folded weights from the three layers, but for its speed."""
    layers = (block.conv, norm, block.act)
    return (
        type(block.conv) is nn.Conv2d
        and block.conv.bias is None
        and block.conv.padding_mode == "zeros"
        and x.dtype == block.conv.weight.dtype == norm.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and norm.running_mean is not None
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
        and not x.is_meta  # of which PyTorch cannot tell autocast
        and not torch.is_autocast_enabled(x.device.type)
    )


def _run_folded(block: "ConvNormAct", x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Fold the normalisation into the weights: they are few beside the pixels that it spares a pass."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = torch.addcmul(norm.bias, mean, scale, value=-1)
    conv = block.conv
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    y = F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
    if type(block.act) is nn.SiLU:
        return F.silu(y, inplace=True)
    z: Tensor = block.act(y)
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


# -------------------------------------------------------------------------------------------------------------- stages

Run = Callable[["StagedBackbone", Tensor, range, Set[int]], dict[int, Tensor]]


def sliced(run: Run) -> Run:
    """Run the early stages of a backbone on slices of a large batch where that saves time, the others on all of it.

    A CPU takes longest over maps that do not fit its cache. Its convolutions are faster in ``channels_last``.

    Args:
        run: takes a backbone, images, the stages to run and those whose maps are wanted, and returns these maps, and
            that of the last stage, by stage.

    Returns:
        A function of the same arguments and results.
    """

    @functools.wraps(run)
    def run_fast(model: "StagedBackbone", x: Tensor, stages: range, wanted: Set[int]) -> dict[int, Tensor]:
        if x.device.type == "cpu" and not is_traced():
            x = x.contiguous(memory_format=torch.channels_last)
        size = slice_size(model, x)
        if size is None:
            return run(model, x, stages, wanted)
        early = stages[: _count_early(model)]
        parts = [run(model, part, early, wanted) for part in torch.split(x, size)]
        maps = {i: torch.cat([part[i] for part in parts]) for i in parts[0]}
        del parts
        if len(early) < len(stages):
            maps |= run(model, maps[early[-1]], stages[len(early) :], wanted)
        return maps

    return run_fast


def _count_early(model: "StagedBackbone") -> int:
    """Count the stages before the first transformer."""
    return next((i for i, stage in enumerate(model.config.stages) if stage.depth), len(model.config.stages))


def slice_size(model: "StagedBackbone", x: Tensor) -> int | None:
    """Return how many images of a batch go through the early stages at a time, so that their largest map stays cached.

    Args:
        model: the backbone.
        x: the batch, (B, C, H, W).

    Returns:
        The number, or None for all of them: where they fit, on other devices, and where slices could show, which is
        with gradients, in traced code, in training mode, and where hooks look on.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or is_traced() or len(x) == 1:
        return None
    early, config = _count_early(model), model.config
    if not early:
        return None
    widths, strides = [config.stem, *model.feature_channels], [2, *model.feature_strides]
    # channels of the largest map, for a pixel of the image
    width = max(config.expand * widths[i] / strides[i] ** 2 for i in range(early))
    size = max(1, SLICE_BYTES // int(width * x.shape[-2] * x.shape[-1] * x.element_size())) * torch.get_num_threads()
    if size >= len(x):
        return None
    parts = (part for layer in (model.stem, *model.stages[:early]) for part in layer.modules())
    return None if any(p.training or p._forward_hooks or p._forward_pre_hooks for p in parts) else size
