"""The further images and maps of a batch, taken along with its images and brought back."""

# B images of a batch, C channels, H W their canvas, h w another

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.augmentation.preparation import prepare_images
from kornia_mvit.augmentation.slices import in_slices
from kornia_mvit.augmentation.targets import MapsBack
from kornia_mvit.batch import Batch, replace_checked
from kornia_mvit.extra_images import Extra, fill_unknown
from kornia_mvit.ops.geometry import pixel_index, sample_bilinear
from kornia_mvit.preprocess import PreprocessModule, to_float

__all__ = ["further_images", "further_maps", "inverse_extra", "prepare_extra", "read_at", "warp_maps", "with_images"]

Extras = dict[str, Extra]


def further_images(batch: Batch) -> dict[str, Tensor]:
    """Return the images beside the image of a batch, by name: uint8, or floating point of single precision or more."""
    found = {name: one.tensor for name, one in (batch.extra or {}).items() if one.kind == "image"}
    return {name: one if one.dtype == torch.uint8 else to_float(one) for name, one in found.items()}


def further_maps(batch: Batch) -> Extras:
    """Return the maps of values and fields of vectors of a batch, by name."""
    return {name: one for name, one in (batch.extra or {}).items() if one.kind != "image"}


def with_images(given: Batch, out: Batch, values: Callable[[Tensor], Tensor] | None = None) -> Extras:
    """Return the extra of a result, its images in the dtypes of the batch that was given, as its image is.

    Args:
        given: to a pipeline.
        out: what became of it.
        values: brings images to the values that a network takes.
    """
    assert given.extra is not None and out.extra is not None
    extra = dict(out.extra)
    for name, one in extra.items():
        if one.kind == "image":
            image, before = one.tensor if values is None else values(one.tensor), given.extra[name].tensor
            extra[name] = one.replace(image.to(before.dtype) if before.is_floating_point() else image)
    return extra


def read_at(one: Extra, x: Tensor, y: Tensor, rows: slice = slice(None)) -> Tensor:
    """Read a map between its pixels, as it says: (b, C, h, w) of its dtype; the outermost pixels go on beyond the edge.

    Args:
        one: (B, C, H, W).
        x: (B, 1, w) or (B, h, w), in pixels.
        y: (B, h, 1) or (B, h, w), in pixels.
        rows: images of the batch.
    """
    part, x, y = one.tensor[rows], x[rows], y[rows]
    if one.mode == "nearest":
        index = pixel_index(x, y, (int(part.shape[-2]), int(part.shape[-1])))
        places = index.flatten(1)[:, None].expand(-1, part.shape[1], -1)
        return part.flatten(2).gather(2, places).view(*part.shape[:2], *index.shape[1:])
    wide = to_float(part)
    return sample_bilinear(wide, x.to(wide.dtype), y.to(wide.dtype)).to(part.dtype)


def _turn(vectors: Tensor, matrix: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors (b, 2, h, w) as they are after matrices (b, 3, 3): from where each starts to where its end goes.

    Args:
        vectors: dx and dy before, at the pixels of the result.
        matrix: from before to after.
        x: where the pixels of the result lie before, broadcasting to (b, h, w).
        y: likewise.

    Returns:
        dx and dy after, and (b, h, w) whether each end lies before the horizon.
    """
    height, width = vectors.shape[-2:]
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    m = matrix.to(dtype)[..., None, None]
    dx, dy = vectors.to(dtype).unbind(1)
    column = torch.arange(width, dtype=dtype, device=vectors.device) + 0.5
    row = torch.arange(height, dtype=dtype, device=vectors.device)[:, None] + 0.5
    tilt = m[:, 2, 0] * dx + m[:, 2, 1] * dy
    depth = m[:, 2, 0] * x + m[:, 2, 1] * y + m[:, 2, 2] + tilt
    turned = [m[:, k, 0] * dx + m[:, k, 1] * dy - place * tilt for k, place in enumerate((column, row))]
    return (torch.stack(turned, 1) / depth[:, None]).to(vectors.dtype), depth > 0


def _follow(
    vectors: Tensor, geometry: Geometry, canvases: tuple[int, int], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Do as :func:`_turn` where a free warp is among the steps from one canvas to another: the ends are followed."""
    height, width = vectors.shape[-2:]
    ends, found = geometry.follow_points(torch.stack([x + vectors[:, 0], y + vectors[:, 1]], -1).double(), *canvases)
    column = torch.arange(width, device=vectors.device) + 0.5
    row = torch.arange(height, device=vectors.device)[:, None] + 0.5
    return torch.stack([ends[..., 0] - column, ends[..., 1] - row], 1).to(vectors.dtype), found


def _without_padding(one: Extra, view: Tensor | None, seen: Tensor | None = None) -> Extra:
    """Return a map with zeros beside what is known, from where rounding lets a trace into what is read: of NaN, NaN.

    Args:
        one: (B, C, H, W).
        view: (B, 2) height and width of what is known, from the upper left corner; None for all.
        seen: (B, H, W) bool, whether each pixel is known, where the former does not say it; None for all.
    """
    if one.mode != "bilinear" or one.kind == "image" or (view is None and seen is None):
        return one
    if view is not None:
        height, width = view.to(one.tensor.device).unbind(1)
        row, column = (torch.arange(n, device=one.tensor.device) for n in one.tensor.shape[-2:])
        seen = (row < height[:, None])[:, :, None] & (column < width[:, None])[:, None, :]
    assert seen is not None
    return one.replace(one.tensor.masked_fill(~seen[:, None], 0))


def warp_maps(maps: Extras, geometry: Geometry, first: int = 0) -> Extras:
    """Bring maps of values and fields of vectors to the last canvas of a geometry, each read once.

    Args:
        maps: on canvas ``first``.
        geometry: where pixels go.
        first: number of a canvas.
    """
    last = len(geometry)
    if not maps or (first == last and not (first == 0 and geometry.view is not None)):
        return maps
    x, y, seen = geometry.source(first, last, torch.float32)
    at_x, at_y = geometry.in_view(x, y, first)
    matrix = geometry.matrix(first, last) if geometry.has_matrix(first, last) else None

    def bring(one: Extra) -> Tensor:
        one = _without_padding(one, geometry.view) if first == 0 else one
        if one.kind == "vectors" and matrix is None:
            value, found = _follow(read_at(one, at_x, at_y), geometry, (first, last), x, y)
            return value.masked_fill(~(found if seen is None else found & seen.all())[:, None], one.fill)

        def read(_: Tensor, rows: slice, __: Tensor | None) -> Tensor:
            part, known = read_at(one, at_x, at_y, rows), None if seen is None else seen.part(rows)
            if one.kind == "vectors" and matrix is not None:
                part, before = _turn(part, matrix[rows], x[rows], y[rows])
                known = before if known is None else known & before
            return part if known is None else fill_unknown(part, ~known[:, None], one.fill)

        return in_slices(one.tensor, read)

    return {name: one.replace(bring(one)) for name, one in maps.items()}


def prepare_extra(batch: Batch, module: PreprocessModule, geometry: Geometry) -> Extras:
    """Return the extra of a batch as a Preprocess brings it to its images, which went through a geometry."""
    maps = warp_maps(further_maps(batch), geometry)
    out = {}
    for name, one in (batch.extra or {}).items():
        if one.kind == "image":
            image, _ = prepare_images(replace_checked(batch, image=one.tensor, extra=None), module)
            out[name] = one.replace(image)
        else:
            out[name] = maps[name]
    return out


def inverse_extra(extra: Mapping[str, Extra], geometry: Geometry) -> tuple[Extras, Tensor]:
    """Bring the extra of augmented images back; see :meth:`kornia_mvit.AugmentationPipeline.inverse_extra`."""
    back = geometry.inverse()
    height, width = geometry.sizes[-1]
    for name, one in extra.items():
        if one.tensor.shape[-2:] != (height, width):
            raise ValueError(
                f"extra[{name!r}] is {tuple(one.tensor.shape)}, but the augmented images are {height}x{width} (height "
                "x width); give the extra of what augment gave"
            )
    blank = torch.zeros(geometry.batch, 1, height, width, device=geometry.device)
    maps = MapsBack(blank, geometry)
    known = maps.read()[1]
    x, y = (places.expand(geometry.batch, *places.shape[1:]) for places in (maps.x, maps.y))
    filled = geometry.view if geometry.filled is None and not len(geometry) else geometry.filled
    seen = geometry.seen(torch.float32) if filled is None else None
    out = {}
    for name, one in extra.items():
        value = read_at(_without_padding(one, filled, seen), x, y)
        if one.kind == "vectors":
            if back.has_matrix(0, len(back)):
                value, before = _turn(value, back.matrix(0, len(back)), x, y)
            else:
                value, before = _follow(value, back, (0, len(back)), x, y)
            value = value.masked_fill(~before[:, None], one.fill)
        out[name] = one.replace(fill_unknown(value, ~known, one.fill))
    return out, known
