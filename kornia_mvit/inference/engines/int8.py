"""int8 for OpenVINO by its own toolkit, NNCF, in memory: for :func:`~kornia_mvit.optimize` and for exported files."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.data.reading import DataError, find_images, read_image
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.extras import needing
from kornia_mvit.inference.engines.exported import compile_openvino, quiet, silence
from kornia_mvit.inference.engines.runtimes import OpenVINO, Run, open_request
from kornia_mvit.parsing import brief, is_file

__all__ = [
    "DRAWN",
    "Calibration",
    "Change",
    "Int8",
    "measure_change",
    "prepare_calibration",
    "quantize_graph",
    "read_calibration",
    "resize",
]

Calibration = str | Path | Iterable[Tensor | str | Path]  # a folder, images, or their paths
DRAWN = "shapes"  # in place of a folder of calibration images
_WANTED = "uint8 tensors (C, H, W)"


class Change(NamedTuple):
    """What happens to a model's outputs.

    Args:
        error: root mean square of the outputs' change, as a share of the outputs' own.
        changed: share of the answers that change: classes of images, pixels or anchors.
    """

    error: float
    changed: float


@torch.no_grad()
def measure_change(before: Sequence[Any], after: Sequence[Any]) -> Change:
    """Compare a model's outputs for the same batches: logits, or a detector's logits and box deltas.

    Args:
        before: the outputs for each batch.
        after: the outputs for the same batches.
    """
    old, new = torch.cat([_flat(one) for one in before]), torch.cat([_flat(one) for one in after])
    error = (new - old).square().mean().sqrt() / old.square().mean().sqrt().clamp_min(1e-12)
    return Change(float(error), float((new.argmax(-1) != old.argmax(-1)).float().mean()))


def _flat(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the logits, classes last: (rows, K)."""
    if not isinstance(outputs, Tensor):
        return outputs[0].flatten(0, 1)
    return outputs.movedim(1, -1).flatten(0, -2)


def read_calibration(source: Calibration, most: int | None = None) -> Iterator[Tensor]:
    """Yield calibration images: those of a folder, of paths, or tensors as they are.

    Args:
        source: a folder, images or their paths, or ``'shapes'`` for drawn ones, where there is no such folder.
        most: how many to yield, evenly spread; all when None, and 64 drawn ones.

    Raises:
        DataError: for a folder without images, and images that cannot be read.
        TypeError: for anything else.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if str(source) == DRAWN and not path.exists():
            shapes = Shapes(64, (256, 320))
            yield from (shapes[number]["image"] for number in range(min(64, most or 64)))
            return
        if is_file(path):
            raise DataError(f"{source} is a file; give a folder of images, or a list of files: [{str(source)!r}]")
        source = find_images(path)
    elif not isinstance(source, Iterable):
        raise TypeError(f"{brief(source)} holds no images; give a folder of images, a list of paths, or {_WANTED}")
    if most is not None:
        source = list(source)
        source = source[:: max(1, len(source) // most)][:most]
    for item in source:
        yield read_image(item) if isinstance(item, str | Path) else item


def prepare_calibration(model: Any, images: Calibration) -> Iterator[Tensor]:
    """Yield calibration images as the network takes them, one a batch.

    Args:
        model: of this package; its ``preprocess`` prepares the images.
        images: see :func:`read_calibration`; uint8 RGB (3, H, W).

    Raises:
        DataError: for images that cannot be read.
        TypeError: for what is no image.
        ValueError: without images, and for others than uint8 ones of the model's channels.
    """
    count, record = 0, getattr(model, "preprocess", None)
    channels = getattr(getattr(model, "backbone", model), "in_channels", None)
    for image in read_calibration(images):
        _check_image(image, count, channels)
        yield image[None].float() / 255 if record is None else record.module()(image[None])
        count += 1
    if not count:
        raise ValueError("there are no calibration images; give some that are like those that the model will see")


def _check_image(image: object, number: int, channels: int | None) -> None:
    """Raise for what is no uint8 image of a number of channels; None for any."""
    if not isinstance(image, Tensor):
        raise TypeError(f"calibration image {number} is a {type(image).__name__}; give its path, or {_WANTED}")
    shape = tuple(image.shape)
    if image.dtype == torch.uint8 and image.ndim == 3 and shape[0] == (channels or shape[0]):
        return
    remedy = "; give each as image.permute(2, 0, 1)" if image.ndim == 3 and shape[-1] == channels else ""
    raise ValueError(
        f"calibration images are uint8 of shape ({channels or 3}, H, W); image {number} is {image.dtype} of {shape}"
        f"{remedy}"
    )


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (B, C, H, W) of a height and width."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def quantize_graph(translated: Any, inputs: Sequence[Tensor], *, outside: Sequence[str] = ()) -> Any:
    """Return a model of OpenVINO in int8, as NNCF quantises transformers.

    Args:
        translated: the model in float32, as OpenVINO has it in memory.
        inputs: batches for calibration.
        outside: names of operations that stay in float32.

    Raises:
        ImportError: where nncf is missing.
    """
    with needing("quantising for OpenVINO needs {}", "export"):
        import nncf
    with silence(), quiet():
        return nncf.quantize(
            translated,
            nncf.Dataset([x.contiguous().numpy() for x in inputs]),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=list(outside), validate=False),
        )


class Int8(OpenVINO):
    """OpenVINO in int8: calibrated anew for each size of images, with the same images.

    Args:
        model: a network in eval mode, float32, on the CPU.
        example: images (B, C, H, W) as they will come.
        calibration: prepared images, one a batch, of any size.

    Attributes:
        change: what int8 does to the outputs for the calibration images, of the last size that was translated.

    Raises:
        ImportError: where openvino or nncf is missing, naming what to install.
    """

    name: ClassVar[str] = "openvino int8"

    def __init__(self, model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> None:
        self.calibration: list[Tensor] = list(calibration)
        self.change: Change = Change(math.nan, math.nan)
        super().__init__(model, example)

    def _compared(self, x: Tensor) -> Callable[[], Run]:
        """Translate the network for images of a size, and measure what int8 does to its outputs."""
        self._spec = self._flatten(x)[1]
        maker, _ = next(self.translate(x))
        run, batches = maker(), self._batches(x)
        after = [self._rebuild(run(batch)) for batch in batches]
        with torch.inference_mode():
            self.change = measure_change([self.model(batch) for batch in batches], after)
        return maker

    def _batches(self, x: Tensor) -> list[Tensor]:
        """Return the calibration images in batches of a size; the last one is filled up with the first images."""
        images = torch.cat([resize(one, (x.shape[-2], x.shape[-1])) for one in self.calibration])
        count = math.ceil(len(images) / len(x))
        indices = torch.arange(count * len(x)) % len(images)
        return [part.contiguous() for part in torch.split(images[indices], len(x))]

    def translate(self, x: Tensor) -> Iterator[tuple[Callable[[], Run], float]]:
        """Convert, quantise and compile."""
        quantized = quantize_graph(self.convert(x), self._batches(x))
        yield partial(open_request, compile_openvino(quantized, self.threads, snippets=True)), math.inf
