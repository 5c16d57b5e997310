"""Keypoints on a picture, with the lines of a skeleton between them."""

import colorsys
from typing import TYPE_CHECKING

from kornia_mvit.batch import Batch
from kornia_mvit.draw.sheets import PAPER, pillow
from kornia_mvit.ops.keypoints import Pairs

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_keypoints", "line_width"]

_POINT = (255, 60, 60)
_HIDDEN = 1  # COCO's visibility of what is labelled and not seen


def draw_keypoints(picture: "Image.Image", batch: Batch, index: int, lines: Pairs) -> None:
    """Draw the keypoints of one image of a batch onto its picture: visible ones as discs, hidden ones as rings.

    Without a skeleton all are red. With one, each has a colour of its own, so that left and right can be told apart.

    Args:
        picture: what is drawn on, of any size.
        batch: images with keypoints.
        index: number of the image.
        lines: keypoints, from 0, that a line is drawn between where both are labelled.
    """
    if batch.keypoints is None or batch.keypoint_visible is None:
        return
    pen = pillow()[1].Draw(picture)
    height, width = batch.image.shape[-2:]
    scale = batch.keypoints.new_tensor([picture.width / width, picture.height / height])
    rows, told = batch.keypoints[index] * scale, batch.keypoint_visible[index]
    if rows.ndim == 2:
        rows, told = rows[None], told[None]
    thick = line_width(picture.size)
    for points, visible in zip(rows.tolist(), told.tolist(), strict=True):
        for k, (first, second) in enumerate(lines):
            if visible[first] and visible[second]:
                ends = (*points[first], *points[second])
                pen.line(ends, fill=_hue(k), width=thick)
        for k, ((x, y), state) in enumerate(zip(points, visible, strict=True)):
            if not state:
                continue
            colour, r = _hue(k) if lines else _POINT, 1.5 * thick + 1
            place = (x - r, y - r, x + r, y + r)
            if state is not True and state == _HIDDEN:
                pen.ellipse(place, fill=PAPER, outline=colour, width=thick)
            else:
                pen.ellipse(place, fill=colour, outline=PAPER)


def line_width(size: tuple[int, int]) -> int:
    """Return the width of lines on a picture of a width and height, in pixels."""
    return max(1, max(size) // 160)


def _hue(index: int) -> tuple[int, int, int]:
    """Return a colour: hues a golden section apart, so that neighbours in number, such as left and right, differ."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.9, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
