"""Preprocess batches whose images do not fill their canvas, each by its own size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.augmentation.geometry import Geometry, Step
from kornia_mvit.augmentation.preprocess import PreprocessModule, to_float
from kornia_mvit.data.batch import Batch
from kornia_mvit.ops.geometry import window_matrix

__all__ = ["prepare_images"]


def prepare_images(batch: Batch, module: PreprocessModule) -> tuple[Tensor, Geometry, Tensor | None]:
    """Apply a Preprocess to each image without the canvas beside it.

    Results of several sizes, which a Preprocess of one number without crop gives, are laid on one canvas.

    Returns:
        The images, where their pixels went, and (B, 2) the sizes of the results if they do not fill the canvas.
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
        if not boxed:
            return out, geometry, None
        filled = torch.tensor(module.preprocess.resized_size(*given), device=image.device)
        geometry.filled = filled.expand(len(batch), 2).clone()
        return out, geometry, geometry.filled.clone()

    raw = image if image.dtype == torch.uint8 and image.device.type == "cpu" else to_float(image)
    sizes = [(int(height), int(width)) for height, width in batch.size.tolist()]
    rows: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        rows.setdefault(size, []).append(number)
    parts = {}
    for (h, w), chosen in rows.items():
        with _named(batch, chosen):
            parts[h, w] = module.geometry(raw[torch.tensor(chosen, device=raw.device), :, :h, :w])
    height, width = (max(part.shape[k] for part in parts.values()) for k in (-2, -1))
    out = raw.new_zeros(len(batch), raw.shape[1], height, width)
    matrices = torch.empty(len(batch), 3, 3, dtype=torch.float64)
    results = torch.empty(len(batch), 2, dtype=batch.size.dtype)
    for size, chosen in rows.items():
        part = parts[size]
        out[torch.tensor(chosen, device=raw.device)] = F.pad(
            part, (0, width - part.shape[-1], 0, height - part.shape[-2])
        )
        window, result = _window(module, size)
        matrices[chosen] = window_matrix(torch.tensor([window], dtype=torch.float64), result)
        if module.preprocess.letterbox:
            result = module.preprocess.resized_size(*size)
        results[chosen] = torch.tensor(result, dtype=results.dtype)
    uneven = module.preprocess.letterbox or len({tuple(part.shape[-2:]) for part in parts.values()}) > 1
    geometry.append(Step("preprocess", matrices, (height, width), covers=not uneven, aligned=True))
    out = module.values(to_float(out))
    results = results.to(image.device)
    geometry.filled = results.clone() if uneven else None
    return out.to(image.dtype) if image.is_floating_point() else out, geometry, results


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
    """Give the part of an image that a Preprocess shows, in the image's own pixels, and the size it is shown at.

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
