"""Batches and predictions as pictures. Needs Pillow, from ``kornia-mvit[train]``.

Each function that draws returns a Pillow image, and raises an ImportError if Pillow is missing.
"""

import colorsys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kornia_mvit.batch import Batch
from kornia_mvit.draw.instances import paint_instances
from kornia_mvit.draw.keypoints import draw_keypoints, line_width
from kornia_mvit.draw.maps import paint_extra
from kornia_mvit.draw.oriented import draw_oriented
from kornia_mvit.draw.sheets import INK, PAPER, pillow, side_by_side, stack_rows, to_picture
from kornia_mvit.ops.keypoints import check_lines
from kornia_mvit.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Colours",
    "add_legend",
    "classes_in",
    "draw_batch",
    "draw_detections",
    "draw_overlay",
    "draw_predictions",
    "draw_segmentation",
    "fit_image",
    "label_image",
    "stack_rows",
]

Colours = Sequence[tuple[int, int, int]]

_RIGHT, _WRONG = "#1a7f37", "#cf222e"
_SLACK = 0.01  # beyond [0, 1], as bicubic resizing leaves it
_STRIP = 2**21  # pixels that are painted at a time
_IGNORED = (150, 150, 150)


def draw_batch(
    batch: Batch,
    class_names: Sequence[str] | None = None,
    *,
    colours: Colours | None = None,
    preprocess: Preprocess | None = None,
    columns: int = 8,
    cell: int = 128,
    ignore_index: int = 255,
    background: int | None = None,
    legend: bool = True,
    skeleton: Sequence[tuple[int, int]] = (),
) -> "Image.Image":
    """Draw the images of a batch in a grid, with their targets.

    Boxes are framed in the colour of their class, ignored ones in grey, and tell their weight unless that is 1;
    oriented ones are drawn in place of upright ones, with a dot at the first corner. Instance masks are painted in that
    colour. Masks lie over the image in the colours of their classes, hatched where they hold ``ignore_index``, with a
    legend below; visible keypoints are discs, hidden ones rings, with the lines of a skeleton between them; labels
    stand below each image, soft ones as percentages. Further images and maps stand beside each image, with their
    names: values from blue to yellow, vectors in the hue of their direction.

    Args:
        batch: images and targets.
        class_names: names of the classes; their numbers are shown when None.
        colours: red, green and blue of the masks' classes, from 0 to 255; some of each hue when None.
        preprocess: what the values of the images went through, to be undone for looking at.
        columns: images in a row.
        cell: longer side in pixels that each image is drawn with.
        ignore_index: number of the masks' pixels that are of no class.
        background: class of the masks that is not painted over the image; None paints all.
        legend: name the colours of masks below the grid.
        skeleton: numbers, from 0, of the keypoints between which lines are drawn.

    Returns:
        A Pillow image.

    Warns:
        UserWarning: for floating-point values outside [0, 1] without ``preprocess``.

    Raises:
        ImportError: if Pillow is missing.
        ValueError: for a skeleton that names a keypoint that the batch does not have.
    """
    lines = () if batch.keypoints is None else check_lines(skeleton, batch.keypoints.shape[-2])
    titles = ["" if batch.label is None else _title(batch.label[i], class_names) for i in range(len(batch))]
    pictures = []
    for i, image in enumerate(_look(batch.image, preprocess)):
        picture = _enlarge(image, cell)
        if batch.mask is not None:
            picture = _paint_mask(picture, batch.mask[i].cpu(), ignore_index, colours, background)
        picture = _paint_objects(picture, batch, i)
        _draw_boxes(picture, batch, i, class_names)
        draw_keypoints(picture, batch, i, lines)
        pictures.append(picture)
    if batch.extra:
        pictures, titles = _beside(pictures, titles, batch, preprocess, cell)
        columns = max(1, columns // (1 + len(batch.extra))) * (1 + len(batch.extra))
    sheet = _grid(pictures, titles, [INK] * len(titles), columns, cell)
    if batch.mask is not None and legend:
        shown = [k for k in classes_in(batch.mask, ignore_index) if k != background]
        sheet = add_legend(sheet, shown, class_names, colours) if shown else sheet
    return sheet


def _beside(
    pictures: list["Image.Image"], titles: list[str], batch: Batch, preprocess: Preprocess | None, cell: int
) -> tuple[list["Image.Image"], list[str]]:
    """Return pictures of a batch's images, each followed by those of its further images and maps, and their titles."""
    out, names = [], []
    looks = {
        name: _look(one.tensor, preprocess) if one.kind == "image" else paint_extra(one)
        for name, one in (batch.extra or {}).items()
    }
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        out += [picture, *(_enlarge(look[i], cell) for look in looks.values())]
        names += [title, *looks]
    return out, names


def add_legend(
    sheet: "Image.Image",
    classes: Sequence[int],
    class_names: Sequence[str] | None = None,
    colours: Colours | None = None,
) -> "Image.Image":
    """Put the colours and names of masks' classes below a picture.

    Args:
        sheet: a Pillow image.
        classes: their numbers.
        class_names: names of all classes; numbers are shown when None.
        colours: red, green and blue of all classes, from 0 to 255; those of :func:`draw_batch` when None.
    """
    images, drawing, fonts = pillow()
    font, line, gap = fonts.load_default(size=13), 20, 8
    places, x, y = [], gap, 0
    for k in classes:
        wide = 18 + int(font.getlength(_name(k, class_names))) + 14
        if x > gap and x + wide > sheet.width:
            x, y = gap, y + line
        places.append((x, sheet.height + y))
        x += wide
    out: Image.Image = images.new("RGB", (sheet.width, sheet.height + y + line + gap), PAPER)
    out.paste(sheet)
    pen = drawing.Draw(out)
    for k, (left, top) in zip(classes, places, strict=True):
        pen.rectangle((left, top + 2, left + 12, top + 14), fill=_colour(k, colours))
        pen.text((left + 18, top), _name(k, class_names), fill=INK, font=font)
    return out


def draw_predictions(
    image: Tensor,
    probabilities: Tensor,
    label: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    *,
    preprocess: Preprocess | None = None,
    columns: int = 8,
    cell: int = 128,
) -> "Image.Image":
    """Draw images in a grid with what was predicted for them; wrong ones are marked in red with the truth.

    Args:
        image: (B, C, H, W), as :class:`~kornia_mvit.Batch` has them.
        probabilities: (B, K).
        label: (B,), the truth, if known.
        class_names: names of the K classes; their numbers are shown when None.
        preprocess: as for :func:`draw_batch`.
        columns: images in a row.
        cell: side in pixels that each image is drawn with.

    Returns:
        A Pillow image.

    Raises:
        ImportError: if Pillow is missing.
        ValueError: if the numbers of images, predictions and labels differ.
    """
    if len(image) != len(probabilities) or (label is not None and len(label) != len(image)):
        counts = f"{len(image)} images, {len(probabilities)} predictions"
        raise ValueError(counts + ("" if label is None else f" and {len(label)} labels"))
    titles, colours = [], []
    for i, row in enumerate(probabilities):
        best = int(row.argmax())
        titles.append(f"{_name(best, class_names)}: {row[best]:.0%}")
        colours.append(INK)
        if label is not None:
            truth = int(label[i])
            colours[-1] = _RIGHT if truth == best else _WRONG
            titles[-1] += "" if truth == best else f"\nis {_name(truth, class_names)}"
    pictures = [_enlarge(picture, cell) for picture in _look(image, preprocess)]
    return _grid(pictures, titles, colours, columns, cell)


def draw_overlay(
    image: Tensor,
    mask: Tensor,
    class_names: Sequence[str] | None = None,
    colours: Colours | None = None,
    *,
    ignore_index: int = 255,
) -> "Image.Image":
    """Lay the colours of the classes over an image, at the image's own size, with a legend below.

    Args:
        image: (3, H, W), uint8.
        mask: (H, W), class of each pixel, integer.
        class_names: names of the classes; their numbers are shown when None.
        colours: red, green and blue of each class, from 0 to 255; those of :func:`draw_batch` when None.
        ignore_index: number of the pixels that are of no class; they are hatched.

    Raises:
        ValueError: for a mask of another size than the image.
    """
    _check_mask(image, mask)
    picture = to_picture(_look(image[None], None)[0])
    picture = _paint_mask(picture, mask.cpu(), ignore_index, colours)  # lets go of the one from before
    return add_legend(picture, classes_in(mask, ignore_index), class_names, colours)


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    *,
    ignore: Tensor | None = None,
) -> "Image.Image":
    """Draw boxes over an image, at the image's own size, in the colours of their classes.

    Args:
        image: (3, H, W), uint8.
        boxes: (n, 4) left, top, right and bottom edges in pixels of the image.
        labels: (n,) classes from 0.
        scores: (n,) in [0, 1], written beside the names.
        class_names: names of the classes; their numbers are shown when None.
        ignore: (n,) bool, boxes to be framed in grey.
    """
    _, drawing, fonts = pillow()
    picture = to_picture(_look(image[None], None)[0])
    pen = drawing.Draw(picture)
    font = fonts.load_default(size=max(9, max(picture.size) // 30))
    for k in range(len(boxes) - 1, -1, -1):  # the best last, on top
        label = int(labels[k])
        text = _name(label, class_names) + ("" if scores is None else f" {float(scores[k]):.0%}")
        colour = _IGNORED if ignore is not None and bool(ignore[k]) else _colour(label)
        _draw_box(pen, picture.size, boxes[k].tolist(), text, colour, font, above=True)
    return picture


def draw_segmentation(
    image: Tensor, masks: Sequence[Tensor], colours: Colours | None = None, *, ignore_index: int = 255
) -> "Image.Image":
    """Draw an image and beside it the same image under each of several masks, such as its labels and a prediction.

    Args:
        image: (3, H, W), uint8.
        masks: each (H, W), class of each pixel, integer.
        colours: red, green and blue of each class, from 0 to 255; those of :func:`draw_batch` when None.
        ignore_index: number of the pixels that are of no class; they are hatched.

    Raises:
        ValueError: for a mask of another size than the image.
    """
    for mask in masks:
        _check_mask(image, mask)
    picture = to_picture(_look(image[None], None)[0])
    return side_by_side([picture, *(_paint_mask(picture, mask.cpu(), ignore_index, colours) for mask in masks)])


def _check_mask(image: Tensor, mask: Tensor) -> None:
    if mask.shape != image.shape[1:]:
        raise ValueError(f"the image is {tuple(image.shape[1:])}, its mask {tuple(mask.shape)}")


def label_image(mask: Tensor, colours: Colours | None = None) -> "Image.Image":
    """Return a mask as a palette image, whose indices are the classes and whose colours show them.

    Args:
        mask: (H, W), class of each pixel, integer, below 256.
        colours: red, green and blue of each class, from 0 to 255; those of :func:`draw_batch` when None.

    Returns:
        A Pillow image of mode P.

    Raises:
        ValueError: for a class that a palette has no place for.

    Example:
        >>> label_image(torch.tensor([[0, 1]]), [(0, 0, 0), (255, 0, 0)]).convert('RGB').getpixel((1, 0))
        (255, 0, 0)
    """
    if mask.numel() and not 0 <= int(mask.min()) <= int(mask.max()) < 256:
        raise ValueError(f"classes from {int(mask.min())} to {int(mask.max())}; a palette has places from 0 to 255")
    out: Image.Image = pillow()[0].fromarray(mask.cpu().to(torch.uint8).contiguous().numpy())
    out.putpalette([value for k in range(256) for value in _colour(k, colours)])
    return out


def fit_image(image: Tensor, side: int) -> Tensor:
    """Return an image (3, H, W), uint8, with a longer side of so many pixels, as it is drawn with as ``cell``."""
    picture = _enlarge(image, side)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)


def classes_in(mask: Tensor, ignore_index: int) -> list[int]:
    """List the classes that masks hold, but for the one that is none."""
    strips = torch.split(mask.flatten(), _STRIP)  # what sorting takes is many times the mask
    return sorted({number for strip in strips for number in torch.unique(strip).tolist()} - {ignore_index})


def _look(image: Tensor, preprocess: Preprocess | None) -> Tensor:
    """Bring images to uint8 RGB on the CPU."""
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = image.float()
        if preprocess is not None:
            image = preprocess.module().undo_values(image)
        elif image.numel() and (image.min() < -_SLACK or image.max() > 1 + _SLACK):
            low, high = image.min().item(), image.max().item()
            warnings.warn(
                f"images with values from {low:.3g} to {high:.3g} are drawn as if they were in [0, 1]; "
                "give preprocess, what they went through",
                stacklevel=3,
            )
        image = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    if image.shape[1] not in (1, 3):
        image = image[:, :1]
    return image.expand(-1, 3, -1, -1)


def _name(index: int, class_names: Sequence[str] | None) -> str:
    return class_names[index] if class_names is not None and 0 <= index < len(class_names) else str(index)


def _title(label: Tensor, class_names: Sequence[str] | None) -> str:
    if not label.is_floating_point():
        return _name(int(label), class_names)
    top = label.topk(min(2, len(label)))
    shares = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return "\n".join(f"{_name(i, class_names)}: {share:.0%}" for share, i in shares if share >= 0.005)


def _colour(index: int, colours: Colours | None = None) -> tuple[int, int, int]:
    """Return a class its colour: hues a golden section apart, so that neighbours in number differ."""
    if colours is not None and 0 <= index < len(colours):
        return colours[index]
    hue, strength = index * 0.618034 % 1.0, (1.0, 0.55, 0.8)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, strength, (0.9, 0.75, 0.55)[index // 3 % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


def _enlarge(image: Tensor, cell: int) -> "Image.Image":
    """Return a (3, H, W) uint8 image as a picture whose longer side is ``cell`` pixels."""
    picture = to_picture(image)
    scale = cell / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _paint_mask(
    picture: "Image.Image",
    mask: Tensor,
    ignore_index: int,
    palette: Colours | None = None,
    background: int | None = None,
) -> "Image.Image":
    """Return a picture with the colours of a mask over it, painted in strips of rows."""
    images = pillow()[0]
    rows, column = (
        ((torch.arange(n) + 0.5) * (m / n)).long() for n, m in zip(picture.size[::-1], mask.shape, strict=True)
    )
    out: Image.Image = picture.copy()
    step = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, step):
        row = rows[top : top + step]
        large = mask[row[:, None], column].long()
        colours = torch.zeros(*large.shape, 3, dtype=torch.uint8)
        for k in classes_in(large, ignore_index):
            colours[large == k] = torch.tensor(_colour(k, palette), dtype=torch.uint8)
        hatch = (torch.arange(top, top + len(row))[:, None] + torch.arange(large.shape[1])) // 3 % 3 == 0
        ignored = large == ignore_index
        colours[ignored] = torch.where(hatch[ignored, None], 230, 110).to(torch.uint8)
        strip = picture.crop((0, top, picture.width, top + len(row)))
        blended = images.blend(strip, images.fromarray(colours.numpy()), 0.5)
        if background is not None:
            blended.paste(strip, mask=images.fromarray((large == background).numpy()))
        out.paste(blended, (0, top))
    return out


def _paint_objects(picture: "Image.Image", batch: Batch, index: int) -> "Image.Image":
    """Return a picture with an image's instance masks over it, in the colours of their boxes."""
    if batch.instance_masks is None or batch.box_label is None:
        return picture
    live = [k for k, label in enumerate(batch.box_label[index].tolist()) if label >= 0]
    masks = batch.instance_masks[index, live].bool().cpu()
    return paint_instances(picture, masks, [_box_colour(batch, index, k) for k in live], line_width(picture.size))


def _box_colour(batch: Batch, index: int, row: int) -> tuple[int, int, int]:
    assert batch.box_label is not None
    ignored = batch.box_ignore is not None and bool(batch.box_ignore[index, row])
    return _IGNORED if ignored else _colour(int(batch.box_label[index, row]))


def _draw_boxes(picture: "Image.Image", batch: Batch, index: int, class_names: Sequence[str] | None) -> None:
    """Draw an image's boxes."""
    _, drawing, fonts = pillow()
    pen = drawing.Draw(picture)
    height, width = batch.image.shape[-2:]
    across, down = picture.width / width, picture.height / height
    if batch.boxes is not None and batch.box_label is not None:
        font = fonts.load_default(size=max(9, max(picture.size) // 26))
        for k, (box, label) in enumerate(
            zip(batch.boxes[index].tolist(), batch.box_label[index].tolist(), strict=True)
        ):
            if label < 0:
                continue
            if batch.oriented_boxes is not None:
                draw_oriented(picture, batch, index, k, _box_colour(batch, index, k))
                continue
            scaled = [v * s for v, s in zip(box, (across, down) * 2, strict=True)]
            text = _name(label, class_names)
            if batch.box_weight is not None and (weight := float(batch.box_weight[index, k])) != 1:
                text = f"{text} {weight:.2g}"
            _draw_box(pen, picture.size, scaled, text, _box_colour(batch, index, k), font)


def _draw_box(
    pen: Any,
    size: tuple[int, int],
    box: Sequence[float],
    text: str,
    colour: tuple[int, int, int],
    font: Any,
    above: bool = False,
) -> None:
    """Draw a frame, and its name where there is room for it, or else above it or below if that is asked for."""
    line = line_width(size)
    left, top, right, bottom = box
    right, bottom = max(left, min(right, size[0]) - 1), max(top, min(bottom, size[1]) - 1)
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)
    tag = pen.textbbox((left + line, top), text, font=font)
    if tag[2] - tag[0] >= right - left:
        if not above:
            return
        height, width = tag[3] - top + 1, tag[2] - tag[0] + 2 * line
        top = top - height if top >= height else bottom
        left = max(0, min(left, size[0] - width))
        tag = pen.textbbox((left + line, top), text, font=font)
    pen.rectangle((left, top, tag[2] + line, tag[3] + 1), fill=colour)
    pen.text((left + line, top), text, fill=_contrast(colour), font=font)


def _contrast(colour: tuple[int, int, int]) -> str:
    return INK if 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 120 else PAPER


def _grid(
    pictures: Sequence["Image.Image"], titles: Sequence[str], colours: Sequence[str], columns: int, cell: int
) -> "Image.Image":
    images, drawing, fonts = pillow()
    columns = max(1, min(columns, len(titles)))
    rows = -(-len(titles) // columns)
    font = fonts.load_default(size=max(11, cell // 9) if cell < 200 else cell // 16)
    line = int(font.size) + 4
    text = line * max((1 + title.count("\n") for title in titles if title), default=0)
    gap, border = 8, 3
    width, height = cell + gap + 2 * border, cell + text + gap + 2 * border
    sheet: Image.Image = images.new("RGB", (columns * width + gap, rows * height + gap), PAPER)
    pen = drawing.Draw(sheet)
    for i, (picture, title, colour) in enumerate(zip(pictures, titles, colours, strict=True)):
        x, y = gap + i % columns * width, gap + i // columns * height
        if colour in (_RIGHT, _WRONG):
            pen.rectangle((x, y, x + cell + 2 * border - 1, y + cell + 2 * border - 1), fill=colour)
        sheet.paste(picture, (x + border, y + border))
        pen.multiline_text((x + border, y + cell + 2 * border), title, fill=colour, font=font, spacing=2)
    return sheet
