"""Networks by name, the weights they start from, teachers, and the order of a network's layers."""

import inspect
from collections.abc import Iterator, MutableMapping
from copy import copy
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kornia_mvit.models.backbones import TIMM, TimmBackbone, as_backbone, backbone_name, check_timm_name, import_timm
from kornia_mvit.models.layers import MIN_SIDE
from kornia_mvit.models.mobilevit import TransformerLayer
from kornia_mvit.models.mobilevitv2 import SeparableLayer
from kornia_mvit.models.modes import find_mode
from kornia_mvit.models.staged import StagedBackbone
from kornia_mvit.preprocess import Preprocess, PreprocessModule
from kornia_mvit.weights.cards import Model, read_card
from kornia_mvit.weights.files import CheckpointError, checkpoint_in, read_checkpoint
from kornia_mvit.weights.registry import from_pretrained
from kornia_mvit.weights.settings import check_counts, constructor_types, plain_settings

__all__ = [
    "Teacher",
    "check_image_size",
    "compile_network",
    "find_backbone",
    "find_layers",
    "find_start",
    "find_teacher",
    "timm_network",
]

_GRAPHS = 64  # of all transformer layers in a process, by shape and mode; PyTorch's limit is 8


def check_image_size(network: nn.Module, size: int | tuple[int, int]) -> None:
    """Check that images of a side, or of a height and width, are not smaller than the network takes.

    Raises:
        ValueError: if they are.
    """
    if not isinstance(network, Model) or not isinstance(network.backbone, StagedBackbone):
        return
    least = min((size,) if isinstance(size, int) else size)
    if least < MIN_SIDE:
        raise ValueError(f"image_size {size} is smaller than the network takes; give at least {MIN_SIDE}")


def compile_network(network: nn.Module, how: bool | str, dynamic: bool | None) -> None:
    """Compile a network, in place.

    Args:
        network: the network; for blocks, one with MobileViT's transformer layers, or those of its second version.
        how: false for nothing, true for the network as a whole, ``'blocks'`` for each transformer layer by itself:
            those of the same shape share what is compiled.
        dynamic: as :func:`torch.compile` takes it.

    Raises:
        ValueError: for blocks, where there are none.
    """
    if how != "blocks":
        if how:
            network.compile(dynamic=dynamic)
        return
    layers = [module for module in network.modules() if isinstance(module, TransformerLayer | SeparableLayer)]
    if not layers:
        kind = type(network).__name__
        raise ValueError(f"compile='blocks' is for MobileViT's transformer layers, and {kind} has none; give true")
    limit = {"recompile_limit": _GRAPHS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    for layer in layers:
        layer.compile(dynamic=dynamic, **limit)


def timm_network(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """Build a network of timm, with fresh weights unless the arguments say otherwise.

    Args:
        name: such as ``'timm:mobilenetv3_small_100'``.
        num_classes: number of classes.
        arguments: of ``timm.create_model``, such as ``img_size`` for networks that are made for one size.

    Raises:
        ValueError: for a name that does not begin with ``timm:`` or that timm does not know, arguments that the network
            does not take, and weights that cannot be fetched.
        ImportError: if timm is missing.
    """
    if not name.startswith(TIMM):
        raise ValueError(f"unknown network {name!r}; give a module, or a name of timm as 'timm:mobilenetv3_small_100'")
    timm = import_timm(name)
    known = name.removeprefix(TIMM)
    if not timm.is_model(known):
        check_timm_name(known, timm.list_models())
    try:
        network: nn.Module = timm.create_model(known, num_classes=num_classes, **arguments)
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"timm cannot build {known!r}{f' with {given}' if given else ''}: {error}") from error
    return network


class Teacher:
    """A trained network whose predictions another one learns from. It is not trained, averaged or saved.

    Args:
        network: returns (B, K) logits.
        preprocess: whose value part (channel order, mean, std) its images go through; sizes are the student's. The
            network's own when None, if it has one.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess | None = None) -> None:
        self.network: nn.Module = network.eval().requires_grad_(False)
        record: Preprocess = preprocess or getattr(network, "preprocess", None) or Preprocess(size=None)
        self.preprocess: PreprocessModule = record.module()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy(self)  # a copy of the student learns from the same teacher

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W) in [0, 1], on the device they are on."""
        self.network.to(image.device)
        logits: Tensor = self.network(self.preprocess.values(image))
        return logits


def find_teacher(teacher: nn.Module | str, num_classes: int) -> Teacher:
    """Return a teacher, from a module or a name.

    Args:
        teacher: a module that takes the images of the student; a checkpoint that ``fit`` wrote, of MobileViT or a
            network of timm; ``'timm:NAME'`` for one of timm with its published weights; or what
            :func:`kornia_mvit.from_pretrained` takes.
        num_classes: number of classes.

    Raises:
        ValueError: if it has another number of classes.
    """
    if isinstance(teacher, str) and teacher.startswith(TIMM):
        found = _published(teacher)
    elif isinstance(teacher, str):
        found = _fitted(Path(teacher)) or Teacher(from_pretrained(teacher))
    else:
        found = Teacher(teacher)
    classes = getattr(found.network, "num_classes", num_classes)
    if classes != num_classes:
        raise ValueError(f"the teacher has {classes} classes, the task {num_classes}; they have to be the same")
    return found


def _published(name: str) -> Teacher:
    """Return a network of timm with its published weights, and with their classes."""
    config = cast(dict[str, Any], timm_network(name, 0).pretrained_cfg)
    network = timm_network(name, int(config["num_classes"]), pretrained=True)
    return Teacher(network, Preprocess(size=None, mean=config["mean"], std=config["std"]))


def _fitted(path: Path) -> Teacher | None:
    """Return the network of timm in a checkpoint that ``fit`` wrote; None where it holds none."""
    path = checkpoint_in(path)
    data = read_checkpoint(path) if path.suffix == ".ckpt" else {}
    saved = data.get("hyper_parameters")
    if not isinstance(saved, dict) or saved.get("network") is None:
        return None
    used = constructor_types(_Named)
    settings = _Named(**plain_settings(_Named, {name: saved[name] for name in saved if name in used}, path))
    if settings.network is None or settings.num_classes is None:
        return None
    state = data.get("state_dict")
    check_counts({"num_classes": settings.num_classes}, state, path)
    assert isinstance(state, dict)
    network = timm_network(settings.network, settings.num_classes, **(settings.network_args or {}))
    weights = {str(name): value for name, value in state.items()}
    try:
        network.load_state_dict(
            {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
        )
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {path} are not those of {settings.network}: {error}") from None
    return Teacher(network, Preprocess.from_dict(read_card(data, path)["preprocess"]))


class _Named:
    """The settings of a checkpoint that name its network of timm."""

    def __init__(
        self,
        network: nn.Module | str | None = None,
        num_classes: int | None = None,
        network_args: dict[str, Any] | None = None,
    ) -> None:
        self.network: str | None = network if isinstance(network, str) else None
        self.num_classes = num_classes
        self.network_args = network_args


def find_backbone(
    backbone: nn.Module | str | None, pretrained: bool, output_stride: int = 32
) -> tuple[nn.Module | str | None, Preprocess | None]:
    """Return what a network stands on, and the Preprocess of its published weights where it starts with these.

    Args:
        backbone: what the task's settings say; returned as it is without published weights.
        pretrained: whether to fetch them.
        output_stride: see :func:`~kornia_mvit.models.backbones.as_backbone`.
    """
    if not pretrained or not isinstance(backbone, str):
        return backbone, None
    built = cast(TimmBackbone, as_backbone(backbone, output_stride=output_stride, pretrained=True))
    config: Any = built.network.pretrained_cfg
    return built, Preprocess(size=None, mean=config["mean"], std=config["std"])


def find_start(
    settings: MutableMapping[str, Any], weights: str | None, backbone: nn.Module | str | None = None
) -> tuple[Model | None, dict[str, Any]]:
    """Load what a network for segmentation or detection starts from, and put its size into the settings.

    So a checkpoint of the task builds the same network without those weights, which the settings then forget.

    Args:
        settings: the task's, of which ``mode``, ``variant`` and ``weights`` are written.
        weights: what :func:`kornia_mvit.from_pretrained` takes; None for nothing.
        backbone: what the network stands on, if not on MobileViT.

    Returns:
        The model, and further arguments of a network of its shape.

    Raises:
        ValueError: for weights of a size that is not in the table.
    """
    settings["weights"] = None
    more: dict[str, Any] = {} if backbone is None else {"backbone": backbone}
    if weights is None:
        return None, more
    start = from_pretrained(weights, **more)
    if not isinstance(start.backbone, StagedBackbone):
        return start, {"in_channels": start.backbone.in_channels, "backbone": backbone or backbone_name(start.backbone)}
    row = find_mode(start.backbone)
    if row is None:
        raise ValueError(f"{weights} is of no size in the table; build the network and pass it as network")
    settings["mode"], settings["variant"] = row
    return start, {"in_channels": start.backbone.in_channels, "patch_size": start.backbone.patch_size}


def find_layers(network: nn.Module) -> list[dict[str, nn.Parameter]]:
    """List a network's layers from the image to the head, each with its parameters by name.

    A layer is a module that the network holds directly or in a list or sequence; of a network within it, such as a
    backbone, the layers are taken. Normalisations belong to the layer before them, parameters that the network holds
    itself to the first. The last layer that has parameters is the head; beside a ``backbone`` all else is, auxiliary
    heads among it.

    Example:
        >>> layers = find_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 2)))
        >>> [list(layer) for layer in layers]
        [['0.weight', '0.bias', '1.weight', '1.bias'], ['3.weight', '3.bias']]
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    layers: list[dict[str, nn.Parameter]] = []
    own = {name: parameter for name, parameter in network.named_parameters(recurse=False)}
    for module in _blocks(network):
        found = {names[id(parameter)]: parameter for parameter in module.parameters()}
        if isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm) and layers:
            layers[-1].update(found)
        elif found:
            layers.append(found)
    if not layers:
        return [own] if own else []
    if isinstance(getattr(network, "backbone", None), nn.Module):
        body: list[dict[str, nn.Parameter]] = []
        head: dict[str, nn.Parameter] = {}
        for layer in layers:
            if any(name.startswith("backbone.") for name in layer):
                body.append(layer)
            else:
                head |= layer
        layers = [*body, head] if head else body
    layers[0] = own | layers[0]
    return layers


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, TimmBackbone):
            yield from _blocks(child.network)
        elif isinstance(child, nn.ModuleList):
            yield from child
        elif any(isinstance(part, nn.ModuleList) for part in child.children()):
            yield from _blocks(child)
        elif isinstance(child, nn.Sequential):
            yield from child
        else:
            yield child
