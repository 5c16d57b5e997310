"""What is predicted for images, in the pixels of the images themselves."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

import torch
from torch import Tensor

from kornia_mvit.files import write_whole
from kornia_mvit.inference.sources import stem_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ClassificationResult", "DetectionResult", "Result", "Results", "SegmentationResult", "to_uint8"]

Colours = Sequence[tuple[int, int, int]]

_CHUNK = 2**22  # pixels whose classes are counted at a time
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CELL = 320  # side in pixels of the pictures of classifiers


@dataclass(eq=False, kw_only=True)
class Result(ABC):
    """What is predicted for one image.

    Args:
        index: place of the image in the source, from 0; images that cannot be read count too.
        path: of the image's file or video, or its address; None for an image in memory.
        frame: number of a video's frame, from 0.
        size: height and width of the image in pixels.
        class_names: names of all classes, or their numbers where the names are not known.
        load: returns the image, (C, H, W), for drawing.
    """

    task: ClassVar[str]

    index: int
    path: str | None
    frame: int | None = None
    size: tuple[int, int]
    class_names: tuple[str, ...] = field(repr=False)
    load: Callable[[], Tensor] = field(repr=False)

    @abstractmethod
    def draw(self) -> "Image.Image":
        """Return a picture of the image and what is predicted for it.

        Raises:
            ImportError: if Pillow is missing.
        """

    @abstractmethod
    def answer(self) -> dict[str, Any]:
        """Return what is predicted as numbers, texts and lists, see :meth:`to_dict`."""

    @abstractmethod
    def to_supervision(self) -> Any:
        """Return what is predicted as the package supervision has it.

        Raises:
            ImportError: if supervision is missing.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the result as numbers, texts and lists: the line that ``kornia-mvit predict`` prints."""
        where = {"path": self.path} if self.frame is None else {"path": self.path, "frame": self.frame}
        return where | self.answer()

    def json(self) -> str:
        """Return :meth:`to_dict` as a line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def to_coco(self, image_id: int | None = None, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return boxes as COCO has results.

        Args:
            image_id: number of the image; its place in the source when None.
            category_ids: number of each class; 1, 2, ... when None.

        Raises:
            TypeError: for other results than boxes.
        """
        raise TypeError(f"COCO's results are boxes, and this is a result of {self.task}")

    def save(self, folder: str | Path) -> Path:
        """Write the picture of :meth:`draw`, and return its path.

        Args:
            folder: made if missing. The file is named after the place in the source and the image's own name, such as
                ``0003_photo.png``. Or the file itself, of a name that ends in .png, .jpg, .jpeg, .webp or .bmp.

        Raises:
            ImportError: if Pillow is missing.
            OSError: if it cannot be written, naming the file.
        """
        stem = "image" if self.path is None else stem_of(self.path)
        path = Path(folder)
        if path.suffix.lower() not in _PICTURES or path.is_dir():
            path /= f"{self.index:04d}_{stem}.png"
        picture = self.draw()
        with write_whole(path) as beside:
            picture.save(beside)
        return path


@dataclass(eq=False, kw_only=True)
class ClassificationResult(Result):
    """The classes of an image.

    Args:
        probabilities: (K,) of the classes, summing to one.
    """

    task = "classification"

    probabilities: Tensor = field(repr=False)

    @property
    def top(self) -> list[tuple[str, float]]:
        """Names and probabilities of the three likeliest classes, highest first."""
        return self.best(3)

    def best(self, count: int) -> list[tuple[str, float]]:
        """Return names and probabilities of the likeliest classes, highest first.

        Args:
            count: number of classes, if there are so many.
        """
        values, classes = self.probabilities.topk(min(count, len(self.probabilities)))
        return [(self.class_names[k], p) for k, p in zip(classes.tolist(), values.tolist(), strict=True)]

    def answer(self) -> dict[str, Any]:
        """Return the likeliest class, and the three likeliest with their probabilities."""
        return self.ranking(3)

    def ranking(self, count: int) -> dict[str, Any]:
        """Return the likeliest class, and a list of the likeliest ``count`` with their probabilities."""
        ranked = [{"class": name, "probability": round(p, 6)} for name, p in self.best(count)]
        return {**ranked[0], "top": ranked}

    def draw(self) -> "Image.Image":
        """Return the image, 320 pixels wide or high, with the likeliest class and its probability below it."""
        from kornia_mvit.draw.images import draw_predictions, fit_image

        image = to_uint8(self.load())
        image = fit_image(image.expand(3, -1, -1) if len(image) == 1 else image[:3], _CELL)
        return draw_predictions(image[None], self.probabilities[None], class_names=self.class_names, cell=_CELL)

    def to_supervision(self) -> Any:
        """Return ``supervision.Classifications``."""
        numbers = torch.arange(len(self.probabilities))
        return _supervision().Classifications(class_id=numbers.numpy(), confidence=self.probabilities.numpy())


@dataclass(eq=False, kw_only=True)
class SegmentationResult(Result):
    """The class of each pixel of an image.

    Args:
        label_map: (H, W), uint8, or int32 where there are more than 256 classes.
        class_colours: red, green and blue of each class, from 0 to 255, where they are known.
    """

    task = "segmentation"

    label_map: Tensor = field(repr=False)
    class_colours: Colours | None = field(default=None, repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels that each class has."""
        strips = torch.split(self.label_map.flatten(), _CHUNK)  # counting makes them int64
        counts = torch.stack([torch.bincount(strip, minlength=len(self.class_names)) for strip in strips]).sum(0)
        return {
            name: round(n / self.label_map.numel(), 6)
            for name, n in zip(self.class_names, counts.tolist(), strict=True)
        }

    def answer(self) -> dict[str, Any]:
        """Return height and width, and the share of the pixels that each class has."""
        return {"height": self.size[0], "width": self.size[1], "share": self.shares}

    def draw(self) -> "Image.Image":
        """Return the image under the colours of the classes, with a legend below."""
        from kornia_mvit.draw.images import draw_overlay

        return draw_overlay(self.load(), self.label_map, self.class_names, self.class_colours)

    def label_image(self) -> "Image.Image":
        """Return the label map as a palette image, whose indices are the classes."""
        from kornia_mvit.draw.images import label_image

        return label_image(self.label_map, self.class_colours)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections`` with a mask for each class that is in the image."""
        classes = torch.unique(self.label_map)
        masks = self.label_map == classes[:, None, None]
        boxes = []
        for mask in masks:
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            boxes.append([int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)])
        return _supervision().Detections(
            xyxy=torch.tensor(boxes, dtype=torch.float32).numpy(),
            mask=masks.numpy(),
            class_id=classes.long().numpy(),
            data={"class_name": [self.class_names[k] for k in classes.tolist()]},
        )


@dataclass(eq=False, kw_only=True)
class DetectionResult(Result):
    """The objects in an image, highest score first.

    Args:
        boxes: (n, 4) left, top, right and bottom edges in pixels of the image.
        scores: (n,) in [0, 1].
        labels: (n,) classes from 0.
    """

    task = "detection"

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @property
    def names(self) -> list[str]:
        """Names of the boxes' classes."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def above(self, score: float) -> Self:
        """Return the result with the boxes alone whose score is at least so high."""
        kept = self.scores >= score
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept])

    def answer(self) -> dict[str, Any]:
        """Return height and width, and the boxes with their classes and scores."""
        boxes = [
            {"class": name, "score": round(score, 6), "box": [round(edge, 2) for edge in box]}
            for name, score, box in zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        ]
        return {"height": self.size[0], "width": self.size[1], "boxes": boxes}

    def draw(self) -> "Image.Image":
        """Return the image with the boxes, and their classes and scores."""
        from kornia_mvit.draw.images import draw_detections

        return draw_detections(self.load(), self.boxes, self.labels, self.scores, self.class_names)

    def to_coco(self, image_id: int | None = None, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return the boxes as COCO has results: left, top, width and height, rounded to thousandths of a pixel."""
        rows = []
        for box, label, score in zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True):
            left, top, right, bottom = box
            rows.append(
                {
                    "image_id": self.index if image_id is None else image_id,
                    "category_id": label + 1 if category_ids is None else category_ids[label],
                    "bbox": [round(v, 3) for v in (left, top, right - left, bottom - top)],
                    "score": round(score, 6),
                }
            )
        return rows

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``."""
        return _supervision().Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": self.names},
        )


class Results(Sequence[Result]):
    """What is predicted for several images: a sequence with one :class:`Result` an image.

    Args:
        results: one an image that could be read.
        skipped: a message for each image that was left out.
        engine: what computed them, see :func:`~kornia_mvit.predict`.
    """

    def __init__(self, results: Sequence[Result], skipped: Sequence[str] = (), engine: str = "eager") -> None:
        self._results = list(results)
        self.skipped: tuple[str, ...] = tuple(skipped)
        self.engine = engine

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> "Results": ...

    def __getitem__(self, index: int | slice) -> Any:
        """Return the result of an image, or the results of some."""
        if isinstance(index, slice):
            return Results(self._results[index], self.skipped, self.engine)
        return self._results[index]

    def __repr__(self) -> str:
        """Show the results, ten at most."""
        shown = [*map(repr, self._results[:10]), *(["..."] if len(self) > 10 else [])]
        return f"Results of {len(self)} images, {len(self.skipped)} skipped" + "".join(f"\n  {line}" for line in shown)

    def draw(self) -> "list[Image.Image]":
        """Return a picture of each image, see :meth:`Result.draw`."""
        return [result.draw() for result in self]

    def save(self, folder: str | Path) -> list[Path]:
        """Write a picture of each image into a folder, see :meth:`Result.save`, and return their paths.

        Raises:
            ValueError: for several images and the name of one file.
        """
        if len(self) > 1 and Path(folder).suffix.lower() in _PICTURES and not Path(folder).is_dir():
            raise ValueError(f"{folder} is one file for {len(self)} pictures; give a folder")
        return [result.save(folder) for result in self]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the results as numbers, texts and lists, see :meth:`Result.to_dict`."""
        return [result.to_dict() for result in self]

    def json(self) -> str:
        """Return :meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def to_supervision(self) -> list[Any]:
        """Return what the package supervision has for each image, see :meth:`Result.to_supervision`."""
        return [result.to_supervision() for result in self]

    def to_coco(self) -> list[dict[str, Any]]:
        """Return the boxes of all images as COCO has results, see :meth:`Result.to_coco`."""
        return [row for result in self for row in result.to_coco()]


def to_uint8(image: Tensor) -> Tensor:
    """Return an image, floating point in [0, 1] or uint8, as uint8."""
    return image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _supervision() -> Any:
    try:
        return import_module("supervision")  # of no extra of this package
    except ImportError as error:
        raise ImportError("to_supervision needs the package supervision; pip install supervision") from error
