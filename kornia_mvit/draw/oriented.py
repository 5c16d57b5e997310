"""Oriented boxes on a picture."""

from typing import TYPE_CHECKING

from kornia_mvit.batch import Batch
from kornia_mvit.draw.keypoints import line_width
from kornia_mvit.draw.sheets import pillow
from kornia_mvit.ops.oriented import oriented_corners

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_oriented"]


def draw_oriented(picture: "Image.Image", batch: Batch, index: int, row: int, colour: tuple[int, int, int]) -> None:
    """Draw an oriented box of one image of a batch onto its picture, with a dot where its side w starts, at the top.

    Args:
        picture: what is drawn on, of any size.
        batch: images with oriented boxes.
        index: number of the image.
        row: number of the box.
        colour: red, green and blue, from 0 to 255.
    """
    assert batch.oriented_boxes is not None
    pen = pillow()[1].Draw(picture)
    height, width = batch.image.shape[-2:]
    corners = oriented_corners(batch.oriented_boxes[index, row].cpu())
    corners = corners * corners.new_tensor([picture.width / width, picture.height / height])
    points, line = [(x, y) for x, y in corners.tolist()], line_width(picture.size)
    pen.line([*points, points[0]], fill=colour, width=line)
    (x, y), r = points[0], line + 1
    pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
