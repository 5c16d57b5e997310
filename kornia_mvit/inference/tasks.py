"""How the images of each task are prepared for a network, and what is made of its outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.augmentation.pipeline import AugmentationPipeline, Params
from kornia_mvit.augmentation.targets import way_back
from kornia_mvit.batch import Batch
from kornia_mvit.data.reading import DataError
from kornia_mvit.inference.detection import Found, to_image, without_overlaps
from kornia_mvit.inference.network import Network
from kornia_mvit.inference.results import ClassificationResult, DetectionResult, Result, SegmentationResult, to_uint8
from kornia_mvit.inference.sliding_window import SlidingWindow, read_labels
from kornia_mvit.inference.sources import Item
from kornia_mvit.inference.tta import TestTimeAugmentation
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.weights.files import CheckpointError

__all__ = ["TASKS", "Read", "Task"]

IGNORED = 255  # what label maps hold where nothing is known
_PIXELS = 2**20  # of the images of a batch, where they are of any size or their maps are large


@dataclass
class Read:
    """An image that was read and prepared: what goes into the network, and the way back."""

    index: int
    item: Item
    size: tuple[int, int]
    x: Tensor
    params: Params | None


class Task(ABC):
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
        self.record: Preprocess = self.shown(record)
        self.fixed_size: bool = self.record.output_size is not None and not network.takes_images
        self.look: Callable[[Tensor], Any] = self.raw()

    def shown(self, record: Preprocess) -> Preprocess:
        """Return the preprocessing that images go through."""
        return record

    @abstractmethod
    def raw(self) -> Callable[[Tensor], Any]:
        """Return what test-time augmentation looks through."""

    @abstractmethod
    def prepare(self, image: Tensor) -> tuple[Tensor, Params | None]:
        """Return the network's input (1, C, h, w) for an image, and the way back."""

    @abstractmethod
    def fields(self, x: Tensor, images: list[Read]) -> list[dict[str, Any]]:
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

    def fits(self, batch: list[Read], read: Read) -> bool:
        """Whether an image can go with others."""
        x = read.x
        count = self.batch_size if self.fixed_size else min(self.batch_size, _PIXELS // (x.shape[-2] * x.shape[-1]))
        return len(batch) < count and x.shape == batch[0].x.shape and x.dtype == batch[0].x.dtype

    @torch.no_grad()
    def read(self, index: int, item: Item) -> "Read | DataError":
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
            return Read(index, item, size, x, params)
        except DataError as error:
            return error
        except (ValueError, TypeError) as error:
            return _refusal(item, error)

    def answer(self, batch: list[Read]) -> Iterator[Result | DataError]:
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
    def _results(self, batch: list[Read]) -> Iterator[Result]:
        x = torch.cat([read.x for read in batch]).to(self.network.device)
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


class Classify(Task):
    result: type[Result] = ClassificationResult

    def raw(self) -> Callable[[Tensor], Any]:
        self._module = self.record.module()
        return self.network.first

    def prepare(self, image: Tensor) -> tuple[Tensor, Params | None]:
        return (to_uint8(image) if self.network.takes_images else self._module(image))[None], None

    def fields(self, x: Tensor, images: list[Read]) -> list[dict[str, Any]]:
        out = self.look(x).float().cpu()
        return [{"probabilities": row} for row in (out if self.network.gives_answers else out.softmax(-1))]


class _Locating(Task):
    """A task whose answers have places in the image."""

    def raw(self) -> Callable[[Tensor], Any]:
        self.pipeline: AugmentationPipeline = AugmentationPipeline(preprocess=self.record, ignore_index=IGNORED)
        return self.network.first

    def prepare(self, image: Tensor) -> tuple[Tensor, Params | None]:
        if not self.network.takes_images:
            prepared, params = self.pipeline.prepare(Batch(image[None]))
            return prepared.image, params
        if self.network.gives_answers:
            return to_uint8(image)[None], None
        return to_uint8(image)[None], self.pipeline.prepare(Batch(image[None]))[1]


class Segment(_Locating):
    result: type[Result] = SegmentationResult

    def shown(self, record: Preprocess) -> Preprocess:
        """Return the preprocessing without its crop, which would leave pixels without a class."""
        return replace(record, crop=None)

    def use_windows(self, window: int, stride: int | None) -> None:
        self.need_raw("window")
        self.look: Callable[[Tensor], Any] = SlidingWindow(self.look, window, stride)

    def fits(self, batch: list[Read], read: Read) -> bool:
        few = len(batch) < _PIXELS // (read.x.shape[-2] * read.x.shape[-1])  # as maps have many channels
        return few and super().fits(batch, read)

    def fields(self, x: Tensor, images: list[Read]) -> list[dict[str, Any]]:
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

    def _label_map(self, labels: Tensor, read: Read) -> Tensor:
        """Return the label map of an image from that of what the network saw."""
        if read.params is None:
            return labels
        classes = len(self.network.class_names)
        return read_labels(F.one_hot(labels.long(), classes).permute(2, 0, 1)[None].float(), read.params)


class Detect(_Locating):
    result: type[Result] = DetectionResult

    def raw(self) -> Callable[[Tensor], Any]:
        super().raw()
        if self.network.takes_images:
            return self.network
        return self._decoded if self.network.gives_answers else self.network.detect

    def fields(self, x: Tensor, images: list[Read]) -> list[dict[str, Any]]:
        if self.network.takes_images:
            found = self._of_images(x, images)
        else:
            found = [
                to_image(one, read.params, read.size)
                for one, read in zip(self.look(x), images, strict=True)
                if read.params
            ]
        return [{name: value[one["scores"] >= self.score].cpu() for name, value in one.items()} for one in found]

    def _of_images(self, x: Tensor, images: list[Read]) -> list[Found]:
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


TASKS: dict[str, type[Task]] = {"classification": Classify, "segmentation": Segment, "detection": Detect}


def _smallest(labels: Tensor) -> Tensor:
    """Return a label map in the smallest integer type that holds its classes."""
    most = int(labels.max()) if labels.numel() else 0
    return labels.to(torch.uint8 if most < 256 else torch.int16 if most < 2**15 else torch.int32)
