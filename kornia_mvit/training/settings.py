"""The settings of a task: those that all three share, and how they become the arguments of a constructor."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast

from torch import nn

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.parsing import check_truths
from kornia_mvit.training.optimization import SHAPES
from kornia_mvit.weights.settings import constructor_types

__all__ = ["Size", "TaskSettings", "accepts", "present_settings"]

Size = int | tuple[int, int]

Task = TypeVar("Task")
Record = TypeVar("Record")
P = ParamSpec("P")


@dataclass
class TaskSettings:
    """The settings that all tasks have. :class:`~kornia_mvit.training.base.ImageTask` documents them.

    The record of a task adds settings of its own, and may have other defaults.

    Raises:
        ValueError: without ``num_classes``; for an unknown schedule; if ``network`` and ``weights`` are both given.
    """

    # The former names of settings, which go in 0.3, and the present ones.
    renamed: ClassVar[Mapping[str, str]] = {"head_factor": "head_lr_multiplier", "raw_weights": "use_ema_weights"}
    # Settings that checkpoints of earlier versions lack, and what these versions did.
    added: ClassVar[Mapping[str, Any]] = {}
    # What no checkpoint carries.
    unsaved: ClassVar[tuple[str, ...]] = ("network", "backbone", "pipeline")

    mode: str = "xxs"
    num_classes: int | None = None
    _: KW_ONLY
    network: nn.Module | str | None = None
    weights: str | None = None
    pipeline: AugmentationPipeline | None = None
    image_size: Size = 256
    policy: str = "classification_train"
    policy_args: dict[str, Any] | None = None
    variant: str = "apple"
    backbone: nn.Module | str | None = None
    pretrained: bool = False
    backbone_dropout: float = 0.0
    drop_path: float = 0.0
    learning_rate: float = 9e-4
    warmup_steps: int = 500
    warmup_factor: float = 0.1
    final_factor: float = 0.01
    schedule: str = "cosine"
    weight_decay: float = 0.01
    decay_norms: bool = True
    head_lr_multiplier: float = 1.0
    layer_decay: float = 1.0
    train_backbone: bool = True
    freeze_epochs: int = 0
    freeze_norms: bool = False
    statistics_images: int = 0
    antialias: bool = False
    label_smoothing: float = 0.0
    tta: str | None = None
    use_ema_weights: bool = True
    per_class: bool = False
    compile: bool | str = False
    channels_last: bool = True
    gradient_checkpointing: bool | str = False
    dropout: float | None = None
    head_factor: float | None = None
    raw_weights: bool | None = None

    def __post_init__(self) -> None:
        """Translate former names, and check what all tasks ask for."""
        self._translate()
        check_truths(**{field.name: getattr(self, field.name) for field in fields(self) if field.type is bool})
        if self.num_classes is None:
            raise ValueError("num_classes is missing; give the number of classes, such as data.num_classes")
        if self.network is not None and self.weights is not None:
            raise ValueError("weights go into the network built from mode; give network or weights, not both")
        if self.network is not None and self.backbone is not None:
            raise ValueError("backbone is for the network that the task builds; give network or backbone, not both")
        if self.pretrained and not isinstance(self.backbone, str):
            raise ValueError("pretrained is for a backbone of timm by its name, such as backbone='timm:resnet18'")
        if self.pretrained and self.weights is not None:
            raise ValueError("weights are those of the backbone too; give weights or pretrained, not both")
        if self.schedule not in SHAPES:
            raise ValueError(f"unknown schedule {self.schedule!r}; available: {', '.join(map(repr, SHAPES))}")
        if self.compile not in (True, False, "blocks"):
            raise ValueError(f"compile={self.compile!r} is not true, false or 'blocks'")
        if self.statistics_images < 0:
            raise ValueError(f"statistics_images {self.statistics_images} is negative; 0 estimates nothing anew")

    def _translate(self) -> None:
        """Set the present names to the values of former ones, unless they are set too."""
        defaults = {field.name: field.default for field in fields(self)}
        for old, new in self.renamed.items():
            value = getattr(self, old)
            if value is None:
                continue
            warnings.warn(f"{old} is now {new}; the old name is removed in 0.3", DeprecationWarning, stacklevel=6)
            setattr(self, old, None)
            if getattr(self, new) == defaults[new]:
                setattr(self, new, present_value(old, value))

    def plain(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the settings: plain data, so that tuples become lists."""
        values = {name: value for name, value in vars(self).items() if name not in (*self.unsaved, *self.renamed)}
        values |= {"backbone": None, "pretrained": False}  # the network says which it is, and has the weights
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def present_value(old: str, value: Any) -> Any:
    """Return what a value under a former name is under the present one."""
    return not value if old == "raw_weights" and isinstance(value, bool) else value


def present_settings(owner: type, saved: Any) -> Any:
    """Return the settings of a checkpoint under their present names, and those that its version did not have yet.

    What is no dictionary is returned as it is.

    Args:
        owner: the class of the task.
        saved: the settings, which nobody has checked yet.
    """
    renamed = getattr(owner, "renamed", {})
    if not isinstance(saved, dict):
        return saved
    translated = {renamed[name]: present_value(name, value) for name, value in saved.items() if name in renamed}
    known = constructor_types(owner)
    added = {name: value for name, value in getattr(owner, "added", {}).items() if name in known}
    return added | translated | {name: value for name, value in saved.items() if name not in renamed}


def accepts(
    record: Callable[P, Record],
) -> Callable[[Callable[[Task, Record], None]], Callable[Concatenate[Task, P], None]]:
    """Turn a constructor that takes a record into one that takes the record's fields.

    Type checkers, ``inspect.signature`` and the command line see the fields as the constructor's arguments.

    Args:
        record: a dataclass, whose ``__post_init__`` checks the values.
    """
    arguments = list(signature(record).parameters.values())

    def decorate(build: Callable[[Task, Record], None]) -> Callable[Concatenate[Task, P], None]:
        @wraps(build)
        def construct(self: Task, *args: P.args, **kwargs: P.kwargs) -> None:
            build(self, record(*args, **kwargs))

        this = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        described: Any = construct
        described.__signature__ = Signature([this, *arguments], return_annotation=None)
        described.__annotations__ = {argument.name: argument.annotation for argument in arguments} | {"return": None}
        vars(record)["__init__"].__qualname__ = build.__qualname__  # which errors about arguments name
        return cast(Callable[Concatenate[Task, P], None], construct)

    return decorate
