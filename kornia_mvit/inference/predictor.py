"""Predict classes, label maps or boxes of images, in the images' own pixels."""

import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kornia_mvit.data.reading import DataError
from kornia_mvit.files import printable
from kornia_mvit.inference.network import Network, load_network
from kornia_mvit.inference.results import Result, Results
from kornia_mvit.inference.sources import count_items, read_source
from kornia_mvit.inference.tasks import TASKS, Read

__all__ = ["Predictor", "predict"]

_THREADS = 4  # that read images, at most

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
        engine: ``'eager'``, or an engine of :func:`~kornia_mvit.optimize`: ``'auto'``, ``'compile'``, ``'openvino'``,
            ``'onnxruntime'`` or ``'reduce-overhead'``. What ran is in ``results.engine``.
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
        self._task = TASKS[self.network.task](self.network, batch_size, score, max_pixels)
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
        _check(on_error)

        def skip(error: DataError) -> None:
            skipped.append(str(error))
            progress.clear()
            _report(error, on_error)

        with _Progress(source) as progress:
            results = [progress.count(result) for result in self.stream(source, on_error=skip)]
        return Results(results, skipped, self.network.engine)

    def stream(self, source: Any, *, on_error: OnError = "skip") -> Iterator[Any]:
        """Predict the images of a source one after another, in memory that does not grow; see :func:`predict`.

        Raises:
            DataError: at the end, if none of several images could be read.
        """
        _check(on_error)
        return self._stream(source, "raise" if count_items(source) == 1 else on_error)

    def _stream(self, source: Any, on_error: OnError) -> Iterator[Result]:
        total = skipped = 0
        error = None
        for answer in self._answers(source):
            total += 1
            if isinstance(answer, Result):
                yield answer
                continue
            skipped += 1
            error = answer
            _report(error, on_error)
        if total and skipped == total:
            raise error if error and total == 1 else DataError(f"none of the {total} images could be read")

    def _answers(self, source: Any) -> Iterator[Result | DataError]:
        """Return the result of each image, or why there is none, in order."""
        batch: list[Read] = []
        for read in self._read_ahead(source):
            if batch and not (isinstance(read, Read) and self._task.fits(batch, read)):
                yield from self._task.answer(batch)
                batch = []
            if isinstance(read, Read):
                batch.append(read)
            else:
                yield read
        if batch:
            yield from self._task.answer(batch)

    def _read_ahead(self, source: Any) -> Iterator["Read | DataError"]:
        """Read and prepare images in threads, while the network is at others."""
        threads = min(_THREADS, os.cpu_count() or 1)
        ahead = self._task.batch_size if self._task.fixed_size else 2 * threads
        waiting: deque[Future[Read | DataError]] = deque()
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


def _check(on_error: OnError) -> None:
    if isinstance(on_error, str) and on_error not in ("raise", "skip"):
        raise ValueError(f"on_error {on_error!r} is none of 'raise', 'skip' and a function")


def _report(error: DataError, on_error: OnError) -> None:
    """Do about an image that cannot be read what the caller asked for."""
    if callable(on_error):
        on_error(error)
    elif on_error == "raise":
        raise error
    else:
        warnings.warn(printable(f"skipped: {error}"), stacklevel=2)


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
