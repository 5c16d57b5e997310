"""Batches and predictions as pictures. Needs Pillow, from ``kornia-mvit[train]``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.data.batch import Batch

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_batch", "draw_predictions"]

_INK, _RIGHT, _WRONG, _PAPER = "#222222", "#1a7f37", "#cf222e", "#ffffff"


def draw_batch(
    batch: Batch,
    class_names: Sequence[str] | None = None,
    *,
    preprocess: Preprocess | None = None,
    columns: int = 8,
    cell: int = 128,
) -> "Image.Image":
    """Draw the images of a batch in a grid, with their labels.

    Args:
        batch: images and, if they are to be shown, labels; soft ones appear as percentages.
        class_names: names of the classes; their numbers are shown when None.
        preprocess: what the values of the images went through, to be undone for looking at.
        columns: images in a row.
        cell: side in pixels that each image is drawn with.

    Returns:
        A Pillow image.

    Raises:
        ImportError: if Pillow is missing.
    """
    titles = ["" if batch.label is None else _title(batch.label[i], class_names) for i in range(len(batch))]
    return _grid(_look(batch.image, preprocess), titles, [_INK] * len(titles), columns, cell)


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
        colours.append(_INK)
        if label is not None:
            truth = int(label[i])
            colours[-1] = _RIGHT if truth == best else _WRONG
            titles[-1] += "" if truth == best else f"\nis {_name(truth, class_names)}"
    return _grid(_look(image, preprocess), titles, colours, columns, cell)


def _look(image: Tensor, preprocess: Preprocess | None) -> Tensor:
    """Bring images to uint8 RGB on the CPU."""
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = image.float()
        if preprocess is not None:
            image = preprocess.module().undo_values(image)
        image = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    if image.shape[1] not in (1, 3):
        image = image[:, :1]
    return image.expand(-1, 3, -1, -1)


def _name(index: int, class_names: Sequence[str] | None) -> str:
    return str(index) if class_names is None else class_names[index]


def _title(label: Tensor, class_names: Sequence[str] | None) -> str:
    if not label.is_floating_point():
        return _name(int(label), class_names)
    top = label.topk(min(2, len(label)))
    shares = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return ", ".join(f"{_name(i, class_names)}: {share:.0%}" for share, i in shares if share >= 0.005)


def _grid(images: Tensor, titles: Sequence[str], colours: Sequence[str], columns: int, cell: int) -> "Image.Image":
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("drawing needs Pillow; install kornia-mvit[train]") from error
    columns = max(1, min(columns, len(titles)))
    rows = -(-len(titles) // columns)
    font = ImageFont.load_default(size=max(11, cell // 9))
    line = max(11, cell // 9) + 4
    text = line * max((1 + title.count("\n") for title in titles if title), default=0)
    gap, border = 8, 3
    width, height = cell + gap + 2 * border, cell + text + gap + 2 * border
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (image, title, colour) in enumerate(zip(images, titles, colours, strict=True)):
        x, y = gap + i % columns * width, gap + i // columns * height
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        scale = cell / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        if colour in (_RIGHT, _WRONG):
            pen.rectangle((x, y, x + cell + 2 * border - 1, y + cell + 2 * border - 1), fill=colour)
        sheet.paste(picture.resize(size), (x + border, y + border))
        pen.multiline_text((x + border, y + cell + 2 * border), title, fill=colour, font=font, spacing=2)
    return sheet
