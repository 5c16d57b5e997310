"""Pillow images put together: what every picture is drawn with. Needs Pillow, from ``kornia-mvit[train]``.

Each function raises an ImportError if Pillow is missing.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kornia_mvit.extras import needing

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["INK", "PAPER", "pillow", "png", "side_by_side", "stack_rows", "to_picture"]

INK, PAPER = "#222222", "#ffffff"


def pillow() -> Any:
    """Return Pillow's modules Image, ImageDraw and ImageFont."""
    with needing("drawing needs Pillow", "train"):
        from PIL import Image, ImageDraw, ImageFont
    return Image, ImageDraw, ImageFont


def to_picture(image: Tensor) -> "Image.Image":
    """Return an image (3, H, W), uint8, as a Pillow image."""
    picture: Image.Image = pillow()[0].fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return picture


def png(picture: "Image.Image") -> bytes:
    """Return a Pillow image as a PNG file."""
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def side_by_side(pictures: Sequence["Image.Image"], gap: int = 4) -> "Image.Image":
    """Return Pillow images side by side on white, aligned at the top.

    Args:
        pictures: one or more.
        gap: pixels between them.
    """
    width = sum(picture.width + gap for picture in pictures) - gap
    sheet: Image.Image = pillow()[0].new("RGB", (width, max(picture.height for picture in pictures)), PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def stack_rows(rows: Sequence["Image.Image"], titles: Sequence[str]) -> "Image.Image":
    """Put pictures of several columns below each other, with the columns' titles above.

    Args:
        rows: Pillow images, each of as many columns of equal width as there are titles.
        titles: of the columns.
    """
    images, drawing, fonts = pillow()
    gap, head = 8, 22
    height = head + sum(row.height + gap for row in rows) - gap
    sheet: Image.Image = images.new("RGB", (max(row.width for row in rows), height), PAPER)
    pen, font = drawing.Draw(sheet), fonts.load_default(size=14)
    for place, title in enumerate(titles):
        pen.text((place * rows[0].width // len(titles) + 2, 2), title, fill=INK, font=font)
    top = head
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet
