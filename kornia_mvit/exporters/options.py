"""What is in an exported graph beside the network: one record, which all formats share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from kornia_mvit.exporters.graph import Deployed, Suppression, deployable
from kornia_mvit.weights.cards import Model

__all__ = ["Options", "Size", "sides", "takes_options"]

Size = str | int | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What stands around the network in an exported file.

    Args:
        size: of the images that go in: ``'dynamic'``, height and width in pixels, or one number for both.
        with_preprocess: see :func:`~kornia_mvit.exporters.deployable`.
        with_decode: see :func:`~kornia_mvit.exporters.deployable`.
        layout: see :func:`~kornia_mvit.exporters.deployable`.
        nms: see :func:`~kornia_mvit.exporters.deployable`.
        fp16: keep weights and compute in half precision, half the file; what goes in and out stays as it is.
        resample: see :class:`~kornia_mvit.exporters.DeployPreprocess`.
    """

    size: Size = "dynamic"
    with_preprocess: bool = False
    with_decode: bool = False
    layout: str = "nchw"
    nms: bool | Suppression = False
    fp16: bool = False
    resample: str = "native"

    def build_graph(self, model: Model, *, fused: bool = True) -> Deployed:
        """Return the module that is exported; see :func:`~kornia_mvit.exporters.deployable`."""
        return deployable(
            model,
            with_preprocess=self.with_preprocess,
            with_decode=self.with_decode,
            layout=self.layout,
            nms=self.nms,
            resample=self.resample,
            dtype=torch.float16 if self.fp16 else torch.float32,
            fused=fused,
        )


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def takes_options(*names: str, **defaults: Any) -> Callable[[Callable[..., Path]], Callable[..., Path]]:
    """Let a function that takes ``options``, an :class:`Options`, take some of its fields by name in their place.

    Args:
        names: the fields that the function's format has; others raise a TypeError, as unknown arguments do.
        defaults: defaults that differ from the record's.
    """

    def decorate(write: Callable[..., Path]) -> Callable[..., Path]:
        @wraps(write)
        def write_with(*args: Any, **kwargs: Any) -> Path:
            given = {name: kwargs.pop(name) for name in names if name in kwargs}
            return write(*args, options=Options(**{**defaults, **given}), **kwargs)

        keyword = inspect.Parameter.KEYWORD_ONLY
        known = [
            inspect.Parameter(one.name, keyword, default=defaults.get(one.name, one.default), annotation=one.type)
            for one in fields(Options)
            if one.name in names
        ]
        own = [one for one in inspect.signature(write).parameters.values() if one.name != "options"]
        own = [one for one in own if one.kind is not keyword] + known + [one for one in own if one.kind is keyword]
        del write_with.__wrapped__  # tools would look for the defaults in its source, which has none
        write_with.__signature__ = inspect.Signature(own, return_annotation=Path)  # type: ignore[attr-defined]  # read by inspect
        return write_with

    return decorate
