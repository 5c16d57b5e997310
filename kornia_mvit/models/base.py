"""What the models for a task have in common."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor, nn

from kornia_mvit.models.layers import ConvNormAct
from kornia_mvit.preprocess import Preprocess

if TYPE_CHECKING:
    from kornia_mvit.models.backbones import TimmBackbone
    from kornia_mvit.models.staged import StagedBackbone

__all__ = ["Recomputing", "Shareable", "TaskModel", "renamed_arguments"]

S = TypeVar("S")
P = ParamSpec("P")


class Recomputing(nn.Module):
    """A network of maps that can keep fewer activations for the backward pass.

    Attributes:
        gradient_checkpointing: ``'stages'``, ``'activations'``, or an empty string where all activations are kept.
    """

    gradient_checkpointing: str = ""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """Run forward, with the hooks."""

    def set_gradient_checkpointing(self, enabled: bool | str = True) -> None:
        """Keep fewer activations for the backward pass, and compute the others again: less memory, more time.

        Args:
            enabled: True or ``'stages'``: keep each stage's input alone (the least memory). ``'activations'``: keep
                everything but what normalisation and SiLU give (nearly as fast as keeping all). False: keep all.

        Raises:
            ValueError: for anything else.
        """
        kinds = {True: "stages", False: "", "stages": "stages", "activations": "activations"}
        if enabled not in kinds:
            raise ValueError(
                f"gradient checkpointing {enabled!r} is unknown; give True, False, 'stages', 'activations'"
            )
        self.gradient_checkpointing = kinds[enabled]
        for module in self.modules():
            if isinstance(module, ConvNormAct):
                module.recompute_act = kinds[enabled] == "activations"


class Shareable(nn.Module):
    """A network that is written into a folder, or uploaded to the Hugging Face hub.

    Attributes:
        fused: whether it is a copy that :func:`~kornia_mvit.fuse` made, whose weights no checkpoint can hold.
    """

    fused: bool = False

    def save_pretrained(self, folder: str | Path, **about: Any) -> None:
        """Write the network into a folder, with a model card; :func:`~kornia_mvit.from_pretrained` reads it.

        Needs ``kornia-mvit[hub]``.

        Args:
            folder: where the files go; made if missing.
            about: what the model card says: ``score``, ``score_source`` and ``licence``, see
                :func:`kornia_mvit.save_pretrained`.
        """
        import kornia_mvit  # the root imports the rest when it is used; a model's file imports none

        kornia_mvit.save_pretrained(self, folder, **about)  # type: ignore[arg-type]  # the classes below are models

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the network to the Hugging Face hub, with a model card. Needs ``kornia-mvit[hub]``.

        Args:
            repo_id: id of the repository, as ``'owner/name'``; made if missing.
            options: those of :func:`kornia_mvit.push_to_hub`, such as ``private``, ``token`` or ``licence``.

        Returns:
            The address of the commit.
        """
        import kornia_mvit

        return kornia_mvit.push_to_hub(self, repo_id, **options)  # type: ignore[arg-type]  # as above


class TaskModel(Shareable):
    """A backbone with a head, and what a checkpoint says of it.

    Attributes:
        backbone: the network under the head.
        class_names: names of the classes in the order of the logits, where a checkpoint has them.
    """

    backbone: "StagedBackbone | TimmBackbone"
    class_names: tuple[str, ...] | None = None

    @property
    def preprocess(self) -> Any:
        """What images go through before the network: a :class:`~kornia_mvit.Preprocess`, or None where not known.

        ``model.preprocess(image)`` returns the model's input on its device, see :meth:`Preprocess.__call__`. A model
        that was built by hand has none until one is given: ``model.preprocess = Preprocess(256)``.
        """
        record = self.__dict__.get("preprocess")
        weight = next(self.parameters(), None)
        if weight is None or not isinstance(record, Preprocess):
            return record
        return record.bound_to(weight.device, self.backbone.in_channels)

    @preprocess.setter
    def preprocess(self, record: Any) -> None:
        self.__dict__["preprocess"] = record

    def forward_features(self, x: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return the backbone's maps; see :meth:`MobileViT.forward_features`."""
        return self.backbone.forward_features(x, out_indices)

    def set_gradient_checkpointing(self, enabled: bool | str = True) -> None:
        """Trade time for memory in the backbone; see :meth:`MobileViT.set_gradient_checkpointing`.

        Raises:
            ValueError: for a backbone that cannot.
        """
        switch = getattr(self.backbone, "set_gradient_checkpointing", None)
        if switch is not None:
            switch(enabled)
        elif enabled:
            raise ValueError(f"{type(self.backbone).__name__} has no gradient checkpointing; leave it off")

    def to_onnx(self, path: str | Path, **options: Any) -> Path:
        """Write the model as an ONNX file. Needs ``kornia-mvit[export]``.

        Args:
            path: the file.
            options: those of :func:`kornia_mvit.exporters.to_onnx`, such as ``with_preprocess=True``.

        Returns:
            The path.
        """
        import kornia_mvit  # the root imports the exporters when they are used; a model's file imports none

        return kornia_mvit.exporters.to_onnx(self, path, **options)


def renamed_arguments(
    positions: Mapping[int, str] | None = None, names: Mapping[str, str] | None = None, mode: str | None = None
) -> Callable[[Callable[Concatenate[S, P], None]], Callable[Concatenate[S, P], None]]:
    """Let a constructor take the arguments of 0.1.0 until 0.3, each with a DeprecationWarning that says the new way.

    Args:
        positions: arguments that 0.1.0 took by position and that are taken by name now.
        names: old names and their new ones.
        mode: the default of ``mode`` in 0.1.0, where it is another now.
    """

    def decorate(build: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
        @functools.wraps(build)
        def build_either(self: S, *args: Any, **kwargs: Any) -> None:
            given = {name: args[at] for at, name in (positions or {}).items() if at < len(args)}
            kept = args[: min(positions or {}, default=len(args))] if given else args
            advice = [f"{name}= by name" for name in given]
            for old in [name for name in kwargs if name in (names or {})]:
                given[(names or {})[old]] = kwargs.pop(old)
                advice.append(f"{(names or {})[old]}= in place of {old}=")
            if mode is not None and not args and not {"mode", "backbone"} & kwargs.keys():
                given["mode"] = mode
                advice.append(f"mode={mode!r}, as the default becomes 'xxs'")
            if advice:
                text = f"{type(self).__name__}: give {', '.join(advice)}; the old way goes in 0.3"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
            if twice := sorted(given.keys() & kwargs.keys()):
                raise TypeError(f"{type(self).__name__} got {twice[0]} twice")
            build(self, *kept, **given, **kwargs)

        return build_either  # type: ignore[return-value]  # it takes more than the signature that it shows

    return decorate
