"""A model or an exported file, as the predictor runs it."""

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_mvit.data.reading import IMAGE_SUFFIXES
from kornia_mvit.inference.engines.exported import Exported, find_exported, load_exported
from kornia_mvit.inference.engines.optimize import ENGINES, Optimized, optimize
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.weights.cards import Model, task_of
from kornia_mvit.weights.files import CheckpointError
from kornia_mvit.weights.registry import from_pretrained

__all__ = ["Network", "load_network"]

Raw = Callable[[Tensor], Any]


class Network:
    """A network and what it says of itself.

    Args:
        name: what errors call it: its path, or the name of its class.
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``.
        run: takes what ``prepare`` made of images (B, C, h, w) and returns a tensor or a tuple of them.
        source: what names, colours and preprocessing are read from.
        in_channels: channels of the images.
        device: where it computes.

    Attributes:
        exported: the exported file, or None for a model.
        class_names: names of the classes, without a detector's background; their numbers where none are known.
        class_colours: red, green and blue of each class, where they are known.
        preprocess: what images go through.
    """

    def __init__(
        self, name: str, task: str, run: Raw, source: Model | Exported, in_channels: int, device: torch.device
    ) -> None:
        self.name = name
        self.task = task
        self.in_channels = in_channels
        self.device = device
        self.exported: Exported | None = source if isinstance(source, Exported) else None
        classes = source.num_classes - (task == "detection")
        if classes < 1:
            raise ValueError(f"{name} has no classes: it is a backbone, or one whose classifier was taken off")
        self.class_names: tuple[str, ...] = tuple(source.class_names or map(str, range(classes)))
        self.class_colours: tuple[tuple[int, int, int], ...] | None = getattr(source, "class_colours", None)
        self.preprocess: Preprocess = source.preprocess or _PREPROCESS[task]
        self._run = run
        self._decoder = source if isinstance(source, SSDLite) else None

    @property
    def engine(self) -> str:
        """What computed last: ``'eager'``, what :func:`~kornia_mvit.optimize` kept, or the exported file's suffix."""
        if self.exported is not None:
            return self.exported.path.suffix.removeprefix(".")
        run = self._run.optimized if isinstance(self._run, _Engine) else self._run
        return run.engine if isinstance(run, Optimized) else "eager"

    @property
    def takes_images(self) -> bool:
        """Whether images go in as they are, since the preprocessing is inside."""
        return self.exported is not None and self.exported.with_preprocess

    @property
    def gives_answers(self) -> bool:
        """Whether probabilities, label maps or boxes come out instead of logits."""
        return self.exported is not None and self.exported.with_decode

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the network, and check what it returns.

        Raises:
            CheckpointError: for numbers that are not finite.
        """
        out = self._run(x)
        out = (out,) if isinstance(out, Tensor) else tuple(out)
        if not all(bool(torch.isfinite(one).all()) for one in out):
            raise CheckpointError(f"{self.name} gives numbers that are not finite; its weights are damaged")
        return out

    def first(self, x: Tensor) -> Tensor:
        """Run a network of one output."""
        return self(x)[0]

    def detect(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Return the 100 objects of highest score in each prepared image, boxes in its pixels."""
        logits, deltas = self(x)
        return self.decode(logits, deltas, (x.shape[-2], x.shape[-1]))

    def decode(self, logits: Tensor, deltas: Tensor, size: tuple[int, int]) -> list[dict[str, Tensor]]:
        """Return the 100 objects of highest score of raw outputs, for images of a height and width."""
        if self._decoder is None:
            assert self.exported is not None
            with torch.device("meta"):  # its anchors alone are needed
                known = {"mode": "xxs", **self.exported.anchors}
                self._decoder = SSDLite(num_classes=self.exported.num_classes, **known)
        return [one._asdict() for one in self._decoder.decode(logits, deltas, size, max_detections=100)]


_PREPROCESS = {
    "classification": Preprocess(),
    "segmentation": Preprocess(size=None),
    "detection": Preprocess((320, 320)),
}


def load_network(
    model: "nn.Module | str | Path | Network", device: str | torch.device | None = None, engine: str = "eager"
) -> Network:
    """Return a model, a checkpoint or an exported file as a network.

    Args:
        model: see :func:`~kornia_mvit.predict`.
        device: see :func:`~kornia_mvit.predict`.
        engine: see :func:`~kornia_mvit.predict`.

    Raises:
        TypeError: for a module that is none of this package's models for a task.
        ValueError: for an unknown engine, a device that cannot be used, and an exported file with another of these.
    """
    if isinstance(model, Network):
        return model
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; available: {', '.join(map(repr, ENGINES))}")
    if isinstance(model, str | os.PathLike):
        if Path(model).suffix.lower() in IMAGE_SUFFIXES:
            raise TypeError(f"{model} is an image; the model comes first: predict('best.ckpt', 'photos')")
        if str(model) and find_exported(model) is not None:
            return _from_exported(load_exported(model), device, engine)
        return _from_model(from_pretrained(model), str(model), device, engine)
    return _from_model(model, type(model).__name__, device, engine)


def _from_exported(exported: Exported, device: str | torch.device | None, engine: str) -> Network:
    if engine != "eager" or str(device or "cpu") != "cpu":
        raise ValueError(f"{exported.path} runs on the CPU by its own engine; leave out device and engine")
    network = Network(str(exported.path), exported.task, exported, exported, 3, torch.device("cpu"))
    size, record = exported.size, network.preprocess
    # a file of one size gets images of that size, even where the preprocessing alone would keep their aspect
    if size is not None and not exported.with_preprocess and _output_size(record, exported.task) != size:
        network.preprocess = replace(record, size=size, crop=None, letterbox=False)
    return network


def _output_size(record: Preprocess, task: str) -> tuple[int, int] | None:
    """Return the size of what images become, for segmentation without the crop, which would cut pixels off."""
    if task != "segmentation":
        return record.output_size
    return record.size if isinstance(record.size, tuple) else None


def _from_model(model: Any, name: str, device: str | torch.device | None, engine: str) -> Network:
    if hasattr(model, "network") and hasattr(model, "configure_optimizers"):
        model = _network_of(model)
    known: Any = model.model if isinstance(model, Optimized) else model
    task = task_of(known) if isinstance(known, nn.Module) else None
    if task is None:
        raise TypeError(
            f"{name} is none of this package's models for a task; pass a MobileViTClassifier, "
            "MobileViTV2Classifier, DeepLabV3 or SSDLite, or the path of a checkpoint or an exported file"
        )
    here = next(known.parameters()).device
    try:
        there = here if device is None else torch.empty(0, device=device).device
        moves = there != here or known.training
        if moves:  # the caller's own stays as it is
            model = known = copy.deepcopy(known).to(there).eval()
    except (RuntimeError, AssertionError) as error:  # unknown, or not compiled in, or no driver
        raise ValueError(f"device {device!r} cannot be used here: {error}") from None
    run = model if engine == "eager" else _Engine(known, engine)
    return Network(name, task, run, known, known.backbone.in_channels, there)


def _network_of(task: Any) -> Any:
    """Return the network of a task of training, which says what the task knows."""
    network = copy.copy(task.network)  # shares its weights; the task's own stays as it is
    for name in ("class_names", "preprocess"):
        if getattr(network, name, None) is None and getattr(task, name, None) is not None:
            setattr(network, name, getattr(task, name))
    return network


class _Engine:
    """A model that is optimised for the first images that come."""

    def __init__(self, model: nn.Module, engine: str) -> None:
        self.model = model
        self.engine = engine
        self.optimized: Optimized | None = None

    def __call__(self, x: Tensor) -> Any:
        if self.optimized is None:
            self.optimized = optimize(self.model, x, engine=self.engine)
        return self.optimized(x)
