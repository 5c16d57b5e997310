"""Preprocess batches whose images do not fill their canvas, each by its own size."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.augmentation.geometry import Geometry, Step
from kornia_mvit.augmentation.targets import filled_size
from kornia_mvit.batch import Batch
from kornia_mvit.ops.geometry import constant, window_matrix
from kornia_mvit.ops.uploads import upload
from kornia_mvit.preprocess import Preprocess, PreprocessModule, round_ratio, to_float

__all__ = ["fit_frames", "no_autocast", "prepare_images"]


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which nothing is computed in half precision that was not given in it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def prepare_images(batch: Batch, module: PreprocessModule) -> tuple[Tensor, Geometry]:
    """Apply a Preprocess to each image without the canvas beside it.

    Results of several sizes, which a Preprocess of one number without crop gives, are laid on one canvas.

    Returns:
        The images, and where their pixels went.
    """
    image = batch.image
    geometry = Geometry((int(image.shape[-2]), int(image.shape[-1])), batch.size, len(batch), image.device)
    if batch.size is None:
        with _named(batch, range(len(batch))):
            out = module(image)
        given = (int(image.shape[-2]), int(image.shape[-1]))
        window, size = _window(module, given)
        boxed = module.preprocess.letterbox
        if size != geometry.sizes[0] or window != (0.0, 0.0, float(size[1]), float(size[0])):
            matrix = window_matrix(torch.tensor([window], dtype=torch.float64), size)
            geometry.append(Step("preprocess", matrix, size, covers=not boxed, aligned=True))
        geometry.filled = filled_size(geometry) if boxed else None
        return out, geometry

    raw = image if image.dtype == torch.uint8 and image.device.type == "cpu" else to_float(image)
    on_host = batch.host_size()
    sizes = [(int(height), int(width)) for height, width in (batch.size if on_host is None else on_host).tolist()]
    rows: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        rows.setdefault(size, []).append(number)
    places = dict(zip(rows, upload([torch.tensor(chosen) for chosen in rows.values()], raw.device), strict=True))
    parts = {}
    for (h, w), chosen in rows.items():
        with _named(batch, chosen):
            parts[h, w] = module.geometry(raw[:, :, :h, :w].index_select(0, places[h, w]))
    height, width = (max(part.shape[k] for part in parts.values()) for k in (-2, -1))
    out = raw.new_zeros(len(batch), raw.shape[1], height, width)
    matrices = torch.empty(len(batch), 3, 3, dtype=torch.float64)
    for size, chosen in rows.items():
        part = parts[size]
        out.index_copy_(0, places[size], F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2])))
        window, result = _window(module, size)
        matrices[chosen] = window_matrix(torch.tensor([window], dtype=torch.float64), result)
    uneven = module.preprocess.letterbox or len({tuple(part.shape[-2:]) for part in parts.values()}) > 1
    geometry.append(Step("preprocess", matrices, (height, width), covers=not uneven, aligned=True))
    out = module.values(to_float(out))
    geometry.filled = filled_size(geometry) if uneven else None
    return out.to(image.dtype) if image.is_floating_point() else out, geometry


def fit_frames(image: Tensor, frames: Tensor, record: Preprocess) -> tuple[Tensor, Tensor]:
    """Resize a part of each image to one height and width, or into a letterbox of them, without waiting for the device.

    What :meth:`PreprocessModule.geometry` gives for each part alone is reckoned by two matrix products for all.

    Args:
        image: (B, C, H, W), floating point.
        frames: (B, 4) left, top, right and bottom edges of the parts; brought to whole pixels inside the image.
        record: with a height and a width as its size, and no crop.

    Returns:
        The parts (B, C, h, w), and the matrices (B, 3, 3) from the images to them.
    """
    assert isinstance(record.size, tuple)
    canvas, full = (
        constant((int(size[1]), int(size[0])), image.device, torch.int64) for size in (image.shape[-2:], record.size)
    )
    side = (frames[:, 2:] - frames[:, :2]).round().long().clamp_min(1).minimum(canvas)
    low = frames[:, :2].round().long().clamp_min(0).minimum(canvas - side)
    result = full.expand_as(side)
    if record.letterbox:
        result = round_ratio(side * full.flip(0), side.flip(1)).clamp_min(1).minimum(full)
    shown = torch.cat([low, low + side * full / result], 1)
    across, down = (
        _weights(low[:, k], side[:, k], result[:, k], (image.shape[-1 - k], record.size[1 - k]), record.interpolation)
        for k in (0, 1)
    )
    out = image @ across.to(image.dtype)[:, None].mT
    out = out.clamp(0.0, 1.0) if record.interpolation == "bicubic" else out
    out = down.to(image.dtype)[:, None] @ out
    out = out.clamp(0.0, 1.0) if record.interpolation == "bicubic" else out
    return out, window_matrix(shown, record.size)


def _weights(low: Tensor, side: Tensor, result: Tensor, lengths: tuple[int, int], interpolation: str) -> Tensor:
    """Return what each pixel of an antialiased resize along one axis takes from each pixel of the image: (B, h, H).

    Args:
        low: (B,) where the part begins.
        side: (B,) its length.
        result: (B,) length that it is resized to; what lies beyond takes nothing.
        lengths: of the image and of the result with what lies beyond.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
    """
    taken, given = (torch.arange(n, dtype=torch.float64, device=low.device) for n in lengths)
    ratio = (side / result.double())[:, None]
    centre = (low[:, None] + (given + 0.5) * ratio)[..., None]
    distance = (taken + 0.5 - centre).abs() / ratio.clamp_min(1)[..., None]
    weight = (1 - distance).clamp_min(0)
    if interpolation == "bicubic":
        near = 1 + distance.square() * (1.5 * distance - 2.5)
        far = 2 + distance * (distance * (2.5 - 0.5 * distance) - 4)
        weight = torch.where(distance < 1, near, far).masked_fill(distance >= 2, 0.0)
    inside = (taken >= low[:, None]) & (taken < (low + side)[:, None])
    weight = weight * (inside[:, None] & (given < result[:, None])[..., None])
    total = weight.sum(-1, keepdim=True)
    return weight / total.where(total != 0, 1.0)


@contextmanager
def _named(batch: Batch, rows: Sequence[int]) -> Iterator[None]:
    """Name the file of images that cannot be resized or cropped, where it is known."""
    try:
        yield
    except ValueError as error:
        path = None if batch.meta is None else batch.meta[rows[0]].get("path")
        raise error if path is None else ValueError(f"{path}: {error}") from None


def _window(
    module: PreprocessModule, size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Return the part of an image that a Preprocess shows, in the image's own pixels, and the size it is shown at.

    That of a letterbox is larger than the image.
    """
    record = module.preprocess
    h, w = record.resized_size(*size)
    if record.letterbox and record.output_size is not None:
        height, width = record.output_size
        return (0.0, 0.0, width * size[1] / w, height * size[0] / h), (height, width)
    top, left, height, width = record.crop_box(h, w)
    sy, sx = size[0] / h, size[1] / w
    return (left * sx, top * sy, (left + width) * sx, (top + height) * sy), (height, width)
