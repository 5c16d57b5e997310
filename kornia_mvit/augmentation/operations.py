"""How Kornia's augmentations act on targets: which kind each one is, what it draws, and where it moves pixels."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ParamSpec, TypeVar

import kornia.augmentation as K
import torch
from kornia.constants import DataKey, Resample, SamplePadding
from kornia.core.exceptions import BaseError
from torch import Tensor, nn

from kornia_mvit.augmentation.auto import apply_to_rows, as_first, choose_rows
from kornia_mvit.augmentation.channels import apply_to_channels, keeps_grey
from kornia_mvit.augmentation.choices import SomeOf
from kornia_mvit.augmentation.color import RandomColorTwist, jitter_colors
from kornia_mvit.augmentation.footprints import find_reach
from kornia_mvit.augmentation.free_warps import DRAWN, FREE_WARPS, is_plain_warp, sampled_places, warp_rim
from kornia_mvit.augmentation.geometry import Step
from kornia_mvit.augmentation.kornia_adapter import (
    AugmentationBase,
    BasicAugmentationBase,
    ImageSequentialBase,
    OperationBase,
    ParamItem,
    PolicyAugmentBase,
    PolicySequential,
    SequentialBase,
    color_order,
)
from kornia_mvit.augmentation.locks import lock_of
from kornia_mvit.augmentation.mix import Mix
from kornia_mvit.augmentation.randomness import OwnGenerators
from kornia_mvit.augmentation.sampling import Draw, keep_before_horizon
from kornia_mvit.augmentation.slices import are_sliced
from kornia_mvit.augmentation.target_mix import TargetMix
from kornia_mvit.ops.geometry import edge_matrix

__all__ = [
    "Draw",
    "Kind",
    "Operation",
    "carry_out",
    "check_stack",
    "exclusive",
    "find_operation",
    "is_known",
    "keeps_pixels",
    "lost_targets",
    "sample",
    "sample_parameters",
    "unable",
    "walk",
]

Size = tuple[int, int]
P = ParamSpec("P")
T = TypeVar("T")


class Kind(Enum):
    """What an operation does to targets."""

    VALUES = "changes values alone"
    MATRIX = "moves pixels by a matrix"
    GRID = "moves pixels by a grid of places"
    DENSE = "moves pixels freely"
    OPAQUE = "is unknown"


_FLIPS = (K.RandomHorizontalFlip, K.RandomVerticalFlip)
_WARPS = (
    K.RandomAffine, K.RandomRotation, K.RandomRotation90, K.RandomPerspective, K.RandomShear, K.RandomTranslate,
)  # fmt: skip
_CONTAINERS = (K.ImageSequential, PolicyAugmentBase, PolicySequential, OperationBase)
_RESIZES = (K.Resize, K.LongestMaxSize, K.SmallestMaxSize)
_CROPS = (K.RandomResizedCrop, K.RandomCrop, K.CenterCrop)
_RECOLOURS = (K.ColorJiggle, K.ColorJitter, RandomColorTwist)
# Kornia's code on the host reads what they drew.
_READS = (K.ColorJiggle, K.ColorJitter, K.RandomGaussianBlur, K.RandomJPEG, K.RandomMotionBlur, K.RandomRain)
_FREE = ("mask", "extra")  # targets that go where pixels move freely
# What would do where Kornia fails.
_REMEDIES: dict[type[nn.Module], str] = {
    K.CenterCrop: "take a smaller size, or pad the images first, with PadTo",
    K.Resize: "take a larger size, or a height and a width",
    K.RandomCrop: "padding_mode='constant' takes any padding, and a fill of one value or one for each channel; the "
    "other modes take less padding than the image is long, and no fill",
    K.PadTo: "pad_mode='constant' takes any size and pad_value; the other modes take less padding than the image is "
    "long, and no pad_value",
}
_MIXES: dict[type[nn.Module], str] = {
    K.RandomMixUpV2: "give mix=Mix(num_classes, cutmix=0.0), or MixUp() for boxes",
    K.RandomCutMixV2: "give mix=Mix(num_classes, mixup=0.0), or CutMix() for boxes and masks",
    K.RandomMosaic: "give mix=Mosaic()",
    K.RandomJigsaw: "apply it to the images of batches that have labels alone, before the pipeline",
}


@dataclass(frozen=True)
class Operation:
    """One of Kornia's augmentations and what is known of it before anything is drawn.

    Args:
        path: names of the modules that lead to it inside the stack, with dots between.
        module: the augmentation.
        kind: what it does to targets.
        fusable: it moves pixels bilinearly and leaves zeros outside, so that its matrix or its grid says all.
        resamples: it interpolates, unlike a flip, a pad or a crop.
        covers: see :class:`~kornia_mvit.augmentation.geometry.Step`.
        aligned: see :class:`~kornia_mvit.augmentation.geometry.Step`.
        gate: (B,) bool, the images that containers drew it for; None for all.
    """

    path: str
    module: nn.Module
    kind: Kind
    fusable: bool = False
    resamples: bool = False
    covers: bool = False
    aligned: bool = False
    gate: Tensor | None = None

    @property
    def name(self) -> str:
        """Name of the augmentation's class."""
        return type(self.module).__name__

    @property
    def rim(self) -> float:
        """How far from the edges of an image Kornia mixes its pixels with what lies outside; see ``Step``."""
        if self.kind is Kind.GRID:
            return warp_rim(self.module)
        mirrored = ("replicate", "reflect", SamplePadding.BORDER, SamplePadding.REFLECTION)
        if not self.resamples or not isinstance(self.module, (*_WARPS, *_RESIZES, K.RandomCrop)):
            return 0.0
        if self.module.flags.get("padding_mode") in mirrored:
            return 0.0
        return {Resample.NEAREST: 0.0, Resample.BILINEAR: 0.5, Resample.BICUBIC: 1.5}[self.module.flags["resample"]]

    @property
    def recolours(self) -> bool:
        """Whether it changes the colours of each image by itself, by what was drawn for that one."""
        return type(self.module) in _RECOLOURS and is_known(self.module)

    def rows(self, draw: Draw, rows: slice) -> Draw:
        """Return, of what was drawn for the images of a batch, what concerns some of them, where it recolours."""
        whole = ("order", "forward_input_shape")
        return {name: value if name in whole else value[rows] for name, value in draw.items()}

    def apply(self, image: Tensor, draw: Draw, random: OwnGenerators) -> Tensor:
        """Let Kornia augment images with what was drawn, and others draw meanwhile."""
        return carry_out(self.module, random, self._apply, image, draw)

    def _apply(self, image: Tensor, draw: Draw) -> Tensor:
        if keeps_grey(self.module, image.shape[1]):
            return image
        if type(self.module) is K.ColorJitter and image.shape[1] == 3 and are_sliced(image):
            return jitter_colors(image, draw, color_order(self.module, draw))
        with _named(self.module, image.shape):
            out = apply_to_channels(self.module, image, draw, lambda part: self._call(part, draw))
        if not isinstance(out, Tensor) or out.ndim != 4:
            what = f"a tensor of {out.ndim} dimensions" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise TypeError(f"{self.name} gives {what}, not images (B, C, H, W); remove it from augment")
        return out

    def _call(self, image: Tensor, draw: Draw) -> Tensor:
        """Let Kornia augment images of channels that it takes."""
        if getattr(self.module, "by_rows", False):
            return apply_to_rows(self.module, image, draw)
        drawn = isinstance(self.module, BasicAugmentationBase)
        out: Tensor = self.module(image, params=draw) if drawn else self.module(image)
        return out

    def select(self, draw: Draw, shape: tuple[int, ...]) -> Draw:
        """Return, of what was drawn on the CPU for images of a shape, what :meth:`apply` takes."""
        return choose_rows(draw, shape) if getattr(self.module, "by_rows", False) else draw

    def movable(self, draw: Draw) -> list[str]:
        """Return the names of the parameters that :meth:`apply` takes on the images' device as well as on the CPU."""
        if self.kind is Kind.GRID:
            return [name for name in DRAWN if name in draw]
        if self.kind is not Kind.VALUES or not is_known(self.module):
            return []
        if isinstance(self.module, _READS) or (isinstance(self.module, K.RandomErasing) and self.module.same_on_batch):
            return []
        return [name for name, value in draw.items() if isinstance(value, Tensor) and name != "forward_input_shape"]

    def output_size(self, draw: Draw, size: Size) -> Size:
        """Return height and width of the result for an input of the given ones."""
        if isinstance(self.module, K.PadTo):
            target = self.module.flags["size"]
            if self.module.flags.get("crop_if_exceeds", True):
                return int(target[0]), int(target[1])
            return max(size[0], int(target[0])), max(size[1], int(target[1]))
        if "output_size" not in draw or not bool(draw["batch_prob"][0] > 0.5):
            return size
        height, width = draw["output_size"][0].tolist()
        return int(height), int(width)

    def step(self, draw: Draw, shape: tuple[int, ...], size: Size, device: torch.device | None = None) -> Step:
        """Say where the operation moves pixels.

        Args:
            draw: what was drawn.
            shape: of the images before, (B, C, H, W).
            size: height and width of the images after.
            device: of the images, for what moves them by a grid.
        """
        if self.kind is Kind.GRID:
            places = sampled_places(self.module, draw, shape, device or torch.device("cpu"))
            return Step(self.name, None, size, places=places)
        if self.kind is not Kind.MATRIX:
            return Step(self.name, None, size)
        assert isinstance(self.module, K.RigidAffineAugmentationBase2D)
        # Kornia asks for an image's shape, dtype and device; windows drawn in view lie on the batch's device.
        like = torch.zeros((), dtype=torch.float64, device=draw.get("src", torch.empty(0)).device).expand(shape)
        matrix = edge_matrix(self.module.generate_transformation_matrix(like, draw, self.module.flags))
        if isinstance(self.module, (*_RESIZES, K.RandomResizedCrop)):
            matrix = _with_thin_windows(matrix, draw, self.module.flags)
        reach = find_reach(self.module, (shape[-2], shape[-1]), size)
        return Step(self.name, matrix, size, self.covers, self.aligned, reach=reach)

    def joins(self, draw: Draw, shape: tuple[int, ...], fuse: bool) -> bool:
        """Tell whether the operation is carried out by its matrix, with others in one step, and not by its module.

        Args:
            draw: what was drawn.
            shape: of the images before, (B, C, H, W).
            fuse: Kornia's operations are to join where they can.
        """
        if self.kind is Kind.GRID:
            return self.fusable and fuse
        warped = isinstance(self.module, K.RandomCrop) and self.module.flags["cropping_mode"] == "resample"
        if (warped or type(self.module) in _WARPS) and 1 in shape[-2:]:
            return True  # on a side of one pixel, Kornia finds that pixel anywhere
        if isinstance(self.module, (*_RESIZES, K.RandomResizedCrop)) and draw["src"].device.type == "cpu":
            # A window of one pixel, enlarged, shows that pixel and none beside it.
            fuse = fuse and not bool((_window_size(draw["src"]) == 1).any())
        return self.fusable and (fuse or getattr(self.module, "fusable", False))


@contextmanager
def _named(module: nn.Module, shape: tuple[int, ...]) -> Iterator[None]:
    """Tell which of Kornia's augmentations failed, on which images, and what would do."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, (AssertionError, ValueError, TypeError, IndexError, BaseError))
        known = known or (type(error) is RuntimeError and "memory" not in str(error))
        if not known or not type(module).__module__.startswith("kornia."):
            raise
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        remedy = next((text for kind, text in _REMEDIES.items() if isinstance(module, kind)), "take it out of augment")
        raise ValueError(
            f"{type(module).__name__} cannot augment images of shape {tuple(shape[1:])}: {said}; {remedy}"
        ) from error


def _window_size(corners: Tensor) -> Tensor:
    """Return width and height of windows (B, 4, 2) in pixels, counted from the centres of their outermost ones."""
    return corners[:, 2].double() - corners[:, 0].double() + 1


def _with_thin_windows(matrix: Tensor, draw: Draw, flags: dict[str, Any]) -> Tensor:
    """Return the matrices of a resize, with those of windows and results that are one pixel wide or high as they act.

    Between corners that coincide, Kornia finds no scale. Its images show a window's only pixel all along the result,
    and of a result's only pixel the window's first one where corners are aligned.
    """
    left_top, source, target = draw["src"][:, 0].double(), _window_size(draw["src"]), _window_size(draw["dst"])
    nearest = flags["resample"] == Resample.NEAREST and flags.get("cropping_mode") != "resample"
    corners = (source > 1) & ((flags["align_corners"] and not nearest) or flags.get("cropping_mode") == "resample")
    between = torch.where(target > 1, (target - 1) / (source - 1).clamp_min(1), 1.0)
    scale = torch.where(corners, between, target / source.clamp_min(1))
    anchor = 0.5 * corners  # of the window and of the result
    thin = torch.diag_embed(torch.cat([scale, torch.ones_like(scale[:, :1])], 1))
    thin[:, :2, 2] = anchor - scale * (left_top + anchor)
    is_thin = ((source <= 1) | (target <= 1)).any(1)[:, None, None]
    return torch.where(is_thin.to(matrix.device), thin.to(matrix.device), matrix)


def is_known(module: nn.Module) -> bool:
    """Tell whether a module is one of Kornia's or this package's that draws nothing while it is applied.

    What such a module keeps between two calls changes no result. Of others, and of those with hooks, nothing is known.
    """
    home = type(module).__module__.partition(".")[0]
    if home not in ("kornia", "kornia_mvit") or isinstance(module, (K.RandomDissolving, K.PatchSequential)):
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks
    return isinstance(module, (BasicAugmentationBase, *_CONTAINERS, Mix, TargetMix)) and not hooked


def exclusive(module: nn.Module) -> AbstractContextManager[object]:
    """Keep other threads from a module that may keep something between two calls."""
    return nullcontext() if is_known(module) else lock_of(module)


def sample(module: nn.Module, random: OwnGenerators, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Let a module sample by a function of its own."""
    if is_known(module):
        return random.sample_plainly(function, *args, **kwargs)
    return random.sample(function, *args, **kwargs)


def carry_out(
    module: nn.Module, random: OwnGenerators, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Let a module do by a function of its own what was drawn; one of which nothing is known may draw meanwhile."""
    return function(*args, **kwargs) if is_known(module) else random.sample(function, *args, **kwargs)


def find_operation(path: str, module: nn.Module) -> Operation:
    """Tell what an augmentation does to targets."""
    if keeps_pixels(module):
        return Operation(path, module, Kind.VALUES)
    if isinstance(module, K.RigidAffineAugmentationBase2D):
        flags = module.flags
        own = getattr(module, "fusable", False)  # the package's own crops
        plain = own or (
            flags.get("resample", Resample.BILINEAR) == Resample.BILINEAR
            and flags.get("padding_mode", "zeros") in ("zeros", "constant", SamplePadding.ZEROS)
            and _is_zero(flags.get("fill_value"))
            and _is_zero(flags.get("fill"))
            and _is_zero(flags.get("pad_value"))
            and flags.get("pad_mode", "constant") == "constant"
            and not flags.get("antialias", False)
        )
        known = (*_FLIPS, *_WARPS, *_RESIZES, *_CROPS, K.PadTo)
        # By warping, Kornia shows what lies beside an image that is smaller than the crop.
        warped = isinstance(module, K.RandomCrop) and flags["cropping_mode"] == "resample"
        padded = warped or (
            isinstance(module, K.RandomCrop) and (flags["padding"] is not None or flags["pad_if_needed"])
        )
        return Operation(
            path,
            module,
            Kind.MATRIX,
            fusable=own or (type(module) in known and plain and not _tiny(module)),
            resamples=own or isinstance(module, (*_WARPS, *_RESIZES, K.RandomResizedCrop)) or warped,
            covers=getattr(module, "covers", False) or (type(module) in (*_FLIPS, *_RESIZES, *_CROPS) and not padded),
            aligned=getattr(module, "aligned", False)
            or type(module) in (*_FLIPS, *_RESIZES, *_CROPS, K.PadTo, K.RandomTranslate),
        )
    if type(module) in FREE_WARPS:
        return Operation(path, module, Kind.GRID, fusable=is_plain_warp(module), resamples=True)
    if isinstance(module, AugmentationBase):
        return Operation(path, module, Kind.DENSE)
    return Operation(path, module, Kind.OPAQUE)


def keeps_pixels(module: nn.Module) -> bool:
    """Tell whether a module changes values and leaves pixels where they are, as far as its kind says.

    So do Kornia's filters, enhancements and colour spaces, and containers of such modules alone, patches included.
    """
    if isinstance(module, (K.IntensityAugmentationBase2D, nn.Identity)):
        return True
    if isinstance(module, (nn.Sequential, K.ImageSequential)):
        return all(keeps_pixels(child) for child in module.children())
    return type(module).__module__.startswith(("kornia.color.", "kornia.enhance.", "kornia.filters."))


def _is_zero(fill: Any) -> bool:
    return fill is None or float(torch.as_tensor(fill, dtype=torch.float64).abs().max()) == 0.0


def _tiny(module: nn.Module) -> bool:
    """Tell targets of one pixel apart, which corner-aligned resizing treats as a case of its own."""
    size = getattr(module, "flags", {}).get("size", 2)
    return any(side < 2 for side in (size if isinstance(size, (tuple, list)) else (size,)))


def check_stack(stack: K.AugmentationSequential, *, erases: bool = False) -> None:
    """Refuse what the pipeline cannot carry out, by name.

    Raises:
        TypeError: for augmentations of videos and volumes, and mixes.
        ValueError: for arguments of a container that the pipeline would ignore.
    """
    for module in stack.modules():
        name = type(module).__name__
        if isinstance(module, K.ImageSequential) and len(module._modules) > len(list(module.children())):
            raise ValueError(
                f"{name} has the same augmentation object more than once, and would apply it once; make one for "
                "each place"
            )
        inside = isinstance(module, K.PatchSequential) and any(isinstance(m, K.RandomErasing) for m in module.modules())
        if inside and erases:
            raise ValueError(
                "RandomErasing erases in patches, where targets cannot follow; take it out of PatchSequential, or "
                "leave erase_targets and erase_masks away"
            )
        if isinstance(module, K.MixAugmentationBaseV2):
            instead = _MIXES.get(
                type(module),
                "of those that mix, the pipeline has Mix, Mosaic, MixUp, CutMix and CopyPaste: mix=CopyPaste()",
            )
            raise TypeError(f"{name} mixes images, and targets would not follow; take it out of augment; {instead}")
        if isinstance(module, (K.AugmentationBase3D, K.VideoSequential)):
            raise TypeError(f"{name} is for videos or volumes; the pipeline takes images (B, C, H, W)")
        extra = getattr(module, "extra_args", None)
        if extra and extra != {DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": None}}:
            raise ValueError(
                f"extra_args {extra} of {name} would be ignored: masks are resampled nearest and filled with the "
                "pipeline's ignore_index; leave extra_args away"
            )


def unable(stack: nn.Module) -> dict[Kind, list[str]]:
    """List the operations of a stack that cannot carry every target, by their kind: dense ones and unknown ones."""
    out: dict[Kind, list[str]] = {Kind.DENSE: [], Kind.OPAQUE: []}

    def visit(module: nn.Module) -> None:
        if isinstance(module, _CONTAINERS) and not isinstance(module, K.PatchSequential):
            for child in module.children():
                visit(child)
            return
        operation = find_operation("", module)
        if operation.kind in out and operation.name not in out[operation.kind]:
            out[operation.kind].append(operation.name)

    visit(stack)
    return out


def lost_targets(kind: Kind, targets: Iterable[str]) -> list[str]:
    """Return those of the targets that an operation of a kind in :func:`unable` cannot carry along."""
    return [name for name in targets if name != "label" and (kind is Kind.OPAQUE or name not in _FREE)]


def walk(
    module: nn.Module,
    shape: Callable[[], tuple[int, ...]],
    random: OwnGenerators,
    path: str = "",
    same: bool | None = None,
) -> Iterator[tuple[Operation, Draw | None]]:
    """Choose which operations of a stack run, in order; those of automatic policies come with what they drew.

    Samples where a container applies its children at random. For the others, the caller samples when it gets there,
    since only then the size of the images is known. ``same`` is what the outermost container that says so has as
    ``same_on_batch``; Kornia's policies and their operations do not hear of it.
    """
    same = getattr(module, "same_on_batch", None) if same is None and isinstance(module, SequentialBase) else same
    if isinstance(module, PolicyAugmentBase):
        with exclusive(module):
            params = sample(module, random, module.forward_parameters, torch.Size(shape()))
        for operation, draw in _read_policy(module, params, path):
            yield operation, as_first(draw) if same else draw
    elif isinstance(module, SomeOf):
        with exclusive(module):
            gates = sample(module, random, module.choose, shape()[0])
        gates = gates[:1].expand_as(gates) if same else gates
        for (name, child), gate in zip(module.named_children(), gates.unbind(1), strict=True):
            if bool(gate.any()):
                for operation, given in walk(child, shape, random, f"{path}.{name}" if path else name, same):
                    both = gate if operation.gate is None else gate & operation.gate
                    yield replace(operation, gate=both), given
    elif isinstance(module, K.ImageSequential) and not isinstance(module, K.PatchSequential):
        with exclusive(module):
            chosen = sample(module, random, _choose, module)
        for name, child in chosen:
            yield from walk(child, shape, random, f"{path}.{name}" if path else name, same)
    elif isinstance(module, OperationBase):
        with exclusive(module):
            drawn = sample(module, random, module.forward_parameters, torch.Size(shape()))
        yield find_operation(f"{path}.op", module.op), as_first(drawn) if same else drawn
    else:
        yield find_operation(path, module), None


def _choose(container: K.ImageSequential) -> list[tuple[str, nn.Module]]:
    return list(container.get_forward_sequence())


def _read_policy(module: nn.Module, params: list[ParamItem], path: str) -> Iterator[tuple[Operation, Draw]]:
    for item in params:
        child = module.get_submodule(item.name)
        inner = f"{path}.{item.name}" if path else item.name
        if isinstance(child, OperationBase):
            assert isinstance(item.data, dict)
            yield find_operation(f"{inner}.op", child.op), item.data
        elif isinstance(item.data, list):
            assert isinstance(child, ImageSequentialBase)
            yield from _read_policy(child, item.data, inner)


def sample_parameters(operation: Operation, shape: tuple[int, ...], random: OwnGenerators) -> Draw:
    """Draw an operation's parameters."""
    module = operation.module
    if not isinstance(module, BasicAugmentationBase):
        return {}
    with _named(module, shape):
        drawn = dict(sample(module, random, module.forward_parameters, torch.Size(shape)))
    return keep_before_horizon(drawn, shape) if isinstance(module, K.RandomPerspective) else drawn
