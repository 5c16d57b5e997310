"""Which parameters learn at which rate: parameter groups, and the schedule."""

import math
import warnings
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kornia_mvit.training.networks import find_layers

__all__ = ["SHAPES", "learning_rate_factor", "parameter_groups", "warmup_schedule"]

SHAPES = ("cosine", "poly")


def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    head_lr_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    decay_norms: bool = True,
    head_factor: float | None = None,
) -> list[dict[str, Any]]:
    """Sort a network's parameters by learning rate and weight decay, as PyTorch's optimisers take them.

    Args:
        network: see :func:`~kornia_mvit.training.networks.find_layers` for what its layers and its head are. Parameters
            that need no gradient are left out.
        learning_rate: of the last layer before the head.
        weight_decay: of what decays.
        head_lr_multiplier: learning-rate multiplier of the head.
        layer_decay: factor on the learning rate from each layer to the one before it.
        decay_norms: whether norms, biases and other parameters of fewer than two dimensions decay too.
        head_factor: the former name of ``head_lr_multiplier``, until 0.3.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``head``, whether it is the head's.

    Raises:
        ValueError: for factors that are not positive, and where nothing is left to learn.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> [group['lr'] for group in parameter_groups(network, 0.1, 0.01, head_lr_multiplier=10.0)]
        [0.1, 1.0]
    """
    if head_factor is not None:
        warnings.warn("head_factor is now head_lr_multiplier; the old name is removed in 0.3", DeprecationWarning, 2)
        head_lr_multiplier = head_factor
    if head_lr_multiplier <= 0:
        raise ValueError(f"head_lr_multiplier {head_lr_multiplier} is not positive")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay {layer_decay} is not in (0, 1]")
    layers = find_layers(network)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for depth, layer in enumerate(layers):
        head = depth == len(layers) - 1
        rate = learning_rate * (head_lr_multiplier if head else layer_decay ** (len(layers) - 2 - depth))
        for parameter in layer.values():
            if not parameter.requires_grad:
                continue
            decay = weight_decay if decay_norms or parameter.ndim > 1 else 0.0
            empty: dict[str, Any] = {"params": [], "lr": rate, "weight_decay": decay, "head": head}
            groups.setdefault((rate, decay, head), empty)["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter of the network needs a gradient; there is nothing to learn")
    return list(groups.values())


def warmup_schedule(
    optimizer: Optimizer,
    total: int,
    *,
    warmup: int,
    first: float,
    last: float,
    frozen: int = 0,
    shape: str = "cosine",
) -> LambdaLR:
    """Return the schedule of :func:`learning_rate_factor`, with a learning rate of 0 for the backbone at first.

    Args:
        optimizer: over :func:`parameter_groups`, and groups with ``constant`` True, whose learning rate stays.
        total: steps of the run.
        warmup: see :func:`learning_rate_factor`.
        first: see :func:`learning_rate_factor`.
        last: see :func:`learning_rate_factor`.
        frozen: steps in which the learning rate is 0 for all but the head.
        shape: see :func:`learning_rate_factor`.

    Raises:
        ValueError: for an unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown schedule {shape!r}; available: {', '.join(map(repr, SHAPES))}")

    def factor(head: bool, constant: bool, step: int) -> float:
        rests = not head and step < frozen
        if constant:
            return 1.0
        return 0.0 if rests else learning_rate_factor(step, total, warmup, first, last, shape)

    kinds = [(bool(group["head"]), bool(group.get("constant", False))) for group in optimizer.param_groups]
    return LambdaLR(optimizer, [partial(factor, *kind) for kind in kinds])


def learning_rate_factor(step: int, total: int, warmup: int, first: float, last: float, shape: str = "cosine") -> float:
    """Rise linearly from ``first`` to 1 in ``warmup`` steps, then fall to ``last``.

    A run shorter than ten warm-ups warms up in a tenth of it. The fall is along half a cosine, or, with the shape
    ``'poly'``, like the 0.9th power of the share of the steps that are left (DeepLab, arXiv 1606.00915).

    Example:
        >>> [round(learning_rate_factor(step, 1000, 100, 0.1, 0.0), 3) for step in (0, 50, 100, 550, 1000)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
        >>> round(learning_rate_factor(550, 1000, 100, 0.1, 0.0, 'poly'), 3)
        0.536
    """
    warmup = min(warmup, total // 10)
    if step < warmup:
        return first + (1 - first) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    fall = (1 - progress) ** 0.9 if shape == "poly" else (1 + math.cos(math.pi * progress)) / 2
    return last + (1 - last) * fall
