"""Predict classes, label maps or boxes of images, in the images' own pixels."""

import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.augmentation.pipeline import AugmentationPipeline, Params
from kornia_mvit.augmentation.targets import way_back
from kornia_mvit.batch import Batch
from kornia_mvit.data.reading import DataError
from kornia_mvit.files import printable
from kornia_mvit.inference.detection import Found, to_image, without_overlaps
from kornia_mvit.inference.network import Network, load_network
from kornia_mvit.inference.results import ClassificationResult, DetectionResult, Result, Results, SegmentationResult
from kornia_mvit.inference.sliding_window import SlidingWindow, read_labels
from kornia_mvit.inference.sources import Item, count_items, read_source
from kornia_mvit.inference.tta import TestTimeAugmentation
from kornia_mvit.weights.files import CheckpointError

__all__ = ["Predictor", "predict"]

IGNORED = 255  # what label maps hold where nothing is known
_THREADS = 4  # that read images, at most
_PIXELS = 2**20  # of the images of a batch, where they are of any size or their maps are large

AnyModel = nn.Module | str | Path | Network
OnError = str | Callable[[DataError], None]


def predict(
    model: AnyModel,
    source: Any,
    *,
    tta: str | None = None,
    window: int | None = None,
    score: float = 0.3,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    engine: str = "eager",
    stream: bool = False,
    stride: int | None = None,
    max_pixels: int | None = None,
    on_error: OnError = "skip",
) -> Any:
    """Predict the classes of images, the class of each of their pixels, or the objects in them, as the model is for.

    Args:
        model: a model of this package; a checkpoint, a folder or a name that
            :func:`~kornia_mvit.from_pretrained` takes; or a file of ``kornia-mvit export``: ``.onnx``, ``.xml`` or its
            folder, ``.pt2``, ``.pte``. A model in training mode or on another device is copied.
        source: the path of an image, a folder or a video; a pattern such as ``'photos/*.jpg'``; an ``http(s)``
            address; a PIL image; a NumPy array (H, W, 3), uint8; a tensor (C, H, W) or (B, C, H, W), uint8 or floating
            point in [0, 1]; or a list or an iterator of these.
        tta: test-time augmentation, such as ``'flip'`` or ``'flip+scale'``.
        window: side in pixels of the windows that large images are segmented in; None for whole images.
        score: least score of boxes.
        batch_size: most images at a time.
        device: where to compute; where the model is when None.
        engine: ``'eager'``, or a mode of :func:`~kornia_mvit.optimize`: ``'auto'``, ``'compile'`` or
            ``'reduce-overhead'``.
        stream: return an iterator of results, in memory that does not grow with their number.
        stride: pixels from window to window; two thirds of the window when None.
        max_pixels: most pixels that an image may have when it is resized for the network; as the model says when None.
        on_error: what happens with an image that cannot be read, among several: ``'skip'`` names it in a warning,
            ``'raise'`` raises its error, and a function is called with the error.

    Returns:
        A :class:`~kornia_mvit.inference.results.Results`, one result an image, or, for ``stream=True``, an iterator
        of them. Boxes and label maps are in the images' own pixels.

    Raises:
        DataError: for a source without images, or if none of them can be read.
        CheckpointError: if the model cannot be read, or gives numbers that are not finite.
        ImportError: where a package is missing that the source or the file needs.
        ValueError: for options that do not fit the model.

    Example:
        >>> from kornia_mvit import MobileViTClassifier, Preprocess
        >>> model = MobileViTClassifier('xxs', num_classes=2).eval()
        >>> model.class_names, model.preprocess = ('cat', 'dog'), Preprocess((64, 64))
        >>> results = predict(model, torch.rand(3, 3, 90, 120))
        >>> len(results), results[0].size, len(results[0].top)
        (3, (90, 120), 2)
    """
    predictor = Predictor(
        model,
        tta=tta,
        window=window,
        score=score,
        batch_size=batch_size,
        device=device,
        engine=engine,
        stride=stride,
        max_pixels=max_pixels,
    )
    return predictor.stream(source, on_error=on_error) if stream else predictor(source, on_error=on_error)


class Predictor:
    """Predicts images, built once and called often.

    Args:
        model: see :func:`predict`, as for the other arguments.
        tta: test-time augmentation.
        window: side in pixels of the windows that large images are segmented in.
        score: least score of boxes.
        batch_size: most images at a time.
        device: where to compute.
        engine: how to run a model.
        stride: pixels from window to window.
        max_pixels: most pixels that an image may have when it is resized for the network.

    Attributes:
        network: what is run.

    Raises:
        CheckpointError: if the model cannot be read.
        ValueError: for options that do not fit the model.
    """

    def __init__(
        self,
        model: AnyModel,
        *,
        tta: str | None = None,
        window: int | None = None,
        score: float = 0.3,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        engine: str = "eager",
        stride: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("window", window), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} is not at least 1")
        if not 0 <= score <= 1:
            raise ValueError(f"score {score} is not in [0, 1]")
        if stride is not None and window is None:
            raise ValueError(f"stride {stride} is from window to window; pass window too")
        self.network: Network = load_network(model, device, engine)
        self._task = _TASKS[self.network.task](self.network, batch_size, score, max_pixels)
        if window is not None:
            self._task.use_windows(window, stride)
        if tta is not None:
            self._task.augment(tta)

    @property
    def task(self) -> str:
        """``'classification'``, ``'segmentation'`` or ``'detection'``."""
        return self.network.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers where the names are not known."""
        return self.network.class_names

    def __call__(self, source: Any, *, on_error: OnError = "skip") -> Results:
        """Predict the images of a source; see :func:`predict`.

        Where standard error is a terminal, it shows how many are done.
        """
        skipped: list[str] = []

        def skip(error: DataError) -> None:
            skipped.append(str(error))
            progress.clear()
            _report(error, on_error)

        with _Progress(source) as progress:
            results = [progress.count(result) for result in self.stream(source, on_error=skip)]
        return Results(results, skipped)

    def stream(self, source: Any, *, on_error: OnError = "skip") -> Iterator[Any]:
        """Predict the images of a source one after another, in memory that does not grow; see :func:`predict`.

        Raises:
            DataError: at the end, if none of several images could be read.
        """
        if isinstance(on_error, str) and on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} is none of 'raise', 'skip' and a function")
        return self._stream(source, "raise" if count_items(source) == 1 else on_error)

    def _stream(self, source: Any, on_error: OnError) -> Iterator[Result]:
        total = skipped = 0
        for answer in self._answers(source):
            total += 1
            if isinstance(answer, Result):
                yield answer
                continue
            skipped += 1
            _report(answer, on_error)
        if total and skipped == total:
            raise DataError(f"none of the {total} images could be read")

    def _answers(self, source: Any) -> Iterator[Result | DataError]:
        """Return the result of each image, or why there is none, in order."""
        batch: list[_Read] = []
        for read in self._read_ahead(source):
            if batch and not (isinstance(read, _Read) and self._task.fits(batch, read)):
                yield from self._task.answer(batch)
                batch = []
            if isinstance(read, _Read):
                batch.append(read)
            else:
                yield read
        if batch:
            yield from self._task.answer(batch)

    def _read_ahead(self, source: Any) -> Iterator["_Read | DataError"]:
        """Read and prepare images in threads, while the network is at others."""
        threads = min(_THREADS, os.cpu_count() or 1)
        ahead = self._task.batch_size if self._task.fixed_size else 2 * threads
        waiting: deque[Future[_Read | DataError]] = deque()
        pool = ThreadPoolExecutor(threads, "kornia_mvit_read")
        try:
            for index, item in enumerate(read_source(source)):
                waiting.append(pool.submit(self._task.read, index, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _report(error: DataError, on_error: OnError) -> None:
    """Do about an image that cannot be read what the caller asked for."""
    if callable(on_error):
        on_error(error)
    elif on_error == "raise":
        raise error
    else:
        warnings.warn(printable(f"skipped: {error}"), stacklevel=2)


# -------------------------------------------------------------------------------------------------------------- tasks


@dataclass
class _Read:
    """An image that was read and prepared: what goes into the network, and the way back."""

    index: int
    item: Item
    size: tuple[int, int]
    x: Tensor
    params: Params | None


class _Task(ABC):
    """How the images of one task are prepared and answered.

    Args:
        network: what is run.
        batch_size: most images at a time.
        score: least score of boxes.
        max_pixels: most pixels of a resized image; as the network says when None.
    """

    result: type[Result]

    def __init__(self, network: Network, batch_size: int, score: float, max_pixels: int | None) -> None:
        record = network.preprocess if max_pixels is None else replace(network.preprocess, max_pixels=max_pixels)
        self.network = network
        self.batch_size = batch_size
        self.score = score
        self.record = self.shown(record)
        self.fixed_size: bool = self.record.output_size is not None and not network.takes_images
        self.look: Callable[[Tensor], Any] = self.raw()

    def shown(self, record: Any) -> Any:
        """Return the preprocessing that images go through."""
        return record

    @abstractmethod
    def raw(self) -> Callable[[Tensor], Any]:
        """Return what test-time augmentation looks through."""

    @abstractmethod
    def prepare(self, image: Tensor) -> tuple[Tensor, Params | None]:
        """Return the network's input (1, C, h, w) for an image, and the way back."""

    @abstractmethod
    def fields(self, x: Tensor, images: list[_Read]) -> list[dict[str, Any]]:
        """Run the network on inputs (B, C, h, w), and return what the result of each image holds."""

    def use_windows(self, window: int, stride: int | None) -> None:
        """See large images in windows."""
        raise ValueError(f"{self.network.name} is for {self.network.task}; window is for segmentation, leave it out")

    def augment(self, transforms: str) -> None:
        """Look several times."""
        self.need_raw("tta")
        self.look = TestTimeAugmentation(self.look, transforms)

    def need_raw(self, option: str) -> None:
        """Raise for an option that needs the network alone, where a file holds more."""
        if self.network.takes_images or self.network.gives_answers:
            raise ValueError(
                f"{self.network.name} was exported with preprocessing or decoding inside; for {option}, export it "
                "without them"
            )

    def fits(self, batch: list[_Read], read: _Read) -> bool:
        """Whether an image can go with others."""
        x = read.x
        count = self.batch_size if self.fixed_size else min(self.batch_size, _PIXELS // (x.shape[-2] * x.shape[-1]))
        return len(batch) < count and x.shape == batch[0].x.shape and x.dtype == batch[0].x.dtype

    @torch.no_grad()
    def read(self, index: int, item: Item) -> "_Read | DataError":
        """Read and prepare an image; return what is wrong with it where that cannot be done."""
        try:
            image = item.load()
            channels = self.network.in_channels
            if len(image) == 1 < channels:
                image = image.expand(channels, -1, -1)
            if len(image) != channels:
                raise ValueError(f"it has {len(image)} channels, and {self.network.name} takes {channels}")
            size = (image.shape[-2], image.shape[-1])
            self.record.crop_box(*self.record.resized_size(*size))
            x, params = self.prepare(image)
            return _Read(index, item, size, x, params)
        except DataError as error:
            return error
        except (ValueError, TypeError) as error:
            return _refusal(item, error)

    def answer(self, batch: list[_Read]) -> Iterator[Result | DataError]:
        """Return the results of images, or why there are none."""
        try:
            results: list[Result | DataError] = list(self._results(batch))
        except CheckpointError:
            raise
        except ValueError as error:
            if len(batch) == 1:
                yield _refusal(batch[0].item, error)
                return
            results = [answer for read in batch for answer in self.answer([read])]
        yield from results

    @torch.no_grad()
    def _results(self, batch: list[_Read]) -> Iterator[Result]:
        x = torch.cat([read.x for read in batch])
        for read, fields in zip(batch, self.fields(x, batch), strict=True):
            yield self.result(
                index=read.index,
                path=read.item.path,
                frame=read.item.frame,
                size=read.size,
                class_names=self.network.class_names,
                load=read.item.load,
                **fields,
            )


def _refusal(item: Item, error: Exception) -> DataError:
    return error if isinstance(error, DataError) else DataError(f"cannot take image {item.name}: {error}")


class _Classify(_Task):
    result = ClassificationResult

    def raw(self) -> Callable[[Tensor], Any]:
        self._module = self.record.module()
        return self.network.first

    def prepare(self, image: Tensor) -> tuple[Tensor, Params | None]:
        return (_to_uint8(image) if self.network.takes_images else self._module(image))[None], None

    def fields(self, x: Tensor, images: list[_Read]) -> list[dict[str, Any]]:
        out = self.look(x).float().cpu()
        return [{"probabilities": row} for row in (out if self.network.gives_answers else out.softmax(-1))]


class _Locating(_Task):
    """A task whose answers have places in the image."""

    def raw(self) -> Callable[[Tensor], Any]:
        self.pipeline = AugmentationPipeline(preprocess=self.record, ignore_index=IGNORED)
        return self.network.first

    def prepare(self, image: Tensor) -> tuple[Tensor, Params | None]:
        if not self.network.takes_images:
            prepared, params = self.pipeline.prepare(Batch(image[None]))
            return prepared.image, params
        if self.network.gives_answers:
            return _to_uint8(image)[None], None
        return _to_uint8(image)[None], self.pipeline.prepare(Batch(image[None]))[1]


class _Segment(_Locating):
    result = SegmentationResult

    def shown(self, record: Any) -> Any:
        """Return the preprocessing without its crop, which would leave pixels without a class."""
        return replace(record, crop=None)

    def use_windows(self, window: int, stride: int | None) -> None:
        self.need_raw("window")
        self.look = SlidingWindow(self.look, window, stride)

    def fits(self, batch: list[_Read], read: _Read) -> bool:
        few = len(batch) < _PIXELS // (read.x.shape[-2] * read.x.shape[-1])  # as maps have many channels
        return few and super().fits(batch, read)

    def fields(self, x: Tensor, images: list[_Read]) -> list[dict[str, Any]]:
        out = self.look(x)
        if self.network.gives_answers:
            labels = [self._label_map(one, read) for one, read in zip(out, images, strict=True)]
        else:
            maps = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
            labels = [
                read_labels(one, read.params)
                for one, read in zip(torch.split(maps, 1), images, strict=True)
                if read.params
            ]
        colours = self.network.class_colours
        return [{"label_map": _smallest(one.cpu()), "class_colours": colours} for one in labels]

    def _label_map(self, labels: Tensor, read: _Read) -> Tensor:
        """Return the label map of an image from that of what the network saw."""
        if read.params is None:
            return labels
        classes = len(self.network.class_names)
        return read_labels(F.one_hot(labels.long(), classes).permute(2, 0, 1)[None].float(), read.params)


class _Detect(_Locating):
    result = DetectionResult

    def raw(self) -> Callable[[Tensor], Any]:
        super().raw()
        if self.network.takes_images:
            return self.network
        return self._decoded if self.network.gives_answers else self.network.detect

    def fields(self, x: Tensor, images: list[_Read]) -> list[dict[str, Any]]:
        if self.network.takes_images:
            found = self._of_images(x, images)
        else:
            found = [
                to_image(one, read.params, read.size)
                for one, read in zip(self.look(x), images, strict=True)
                if read.params
            ]
        return [{name: value[one["scores"] >= self.score].cpu() for name, value in one.items()} for one in found]

    def _of_images(self, x: Tensor, images: list[_Read]) -> list[Found]:
        """Find boxes by a file that prepares images itself."""
        if self.network.gives_answers:
            return self._decoded(x)
        logits, deltas = self.network(x)
        out = []
        for row, read in enumerate(images):
            assert read.params is not None
            given = slice(row, row + 1)
            (one,) = self.network.decode(logits[given], deltas[given], way_back(read.params, logits[given]).sizes[-1])
            out.append(to_image(one, read.params, read.size))
        return out

    def _decoded(self, x: Tensor) -> list[Found]:
        """Find boxes by a file that decodes them: each has its likeliest class alone."""
        rows = zip(*self.network(x), strict=True)
        return [without_overlaps(dict(zip(("boxes", "scores", "labels"), row, strict=True))) for row in rows]


_TASKS: dict[str, type[_Task]] = {"classification": _Classify, "segmentation": _Segment, "detection": _Detect}


def _to_uint8(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _smallest(labels: Tensor) -> Tensor:
    """Return a label map in the smallest integer type that holds its classes."""
    most = int(labels.max()) if labels.numel() else 0
    return labels.to(torch.uint8 if most < 256 else torch.int16 if most < 2**15 else torch.int32)


# ------------------------------------------------------------------------------------------------------------ progress


class _Progress:
    """Shows on a terminal how many images are done, on standard error.

    Args:
        source: the images.
    """

    def __init__(self, source: Any) -> None:
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        self.total = count_items(source) if self.shown else None
        self.done = 0
        self.began = self.last = time.monotonic()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def count(self, result: Result) -> Result:
        """Count a result, and return it."""
        self.done += 1
        now = time.monotonic()
        if self.shown and self.total != 1 and now - self.last > 0.2:
            self.last = now
            of = "" if self.total is None else f" of {self.total:,}"
            sys.stderr.write(f"\r{self.done:,}{of} images, {self.done / (now - self.began):.1f} a second ")
            sys.stderr.flush()
        return result

    def clear(self) -> None:
        """Remove the line, so that another one can be written."""
        if self.shown and self.last > self.began:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
