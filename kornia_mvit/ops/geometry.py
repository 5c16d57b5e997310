"""Points, boxes and pixels under 3x3 matrices.

Coordinates are in pixels, x before y, measured from the upper left corner of a canvas: its first pixel covers 0 to 1
and has its centre at 0.5. A matrix takes points of one canvas to points of another; matrices are float64.
"""

# B batch, C channels, H W source canvas, h w target canvas, N boxes or points

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "EDGE_TOLERANCE",
    "SHARE_TOLERANCE",
    "all_neighbours",
    "box_area",
    "box_corners",
    "box_iou",
    "center_boxes",
    "center_matrix",
    "complex_grid",
    "constant",
    "corner_bounds",
    "corner_boxes",
    "edge_matrix",
    "gather_pixels",
    "invert",
    "is_inside",
    "is_within",
    "pixel_index",
    "sample_bilinear",
    "sample_complex_grid",
    "scale_matrix",
    "source_points",
    "transform_points",
    "window_matrix",
]

# Rounding is not to decide what is in view. A quarter turn moves a point of the edge by 1e-13 pixels beyond it, single
# precision one of a canvas of 4096 pixels by 5e-4.
EDGE_TOLERANCE = 1e-3  # in pixels: what lies that near to an edge lies on it
SHARE_TOLERANCE = 1e-5  # of a share or an area: what falls short of a bound by that reaches it


def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return numbers as a tensor that is sent to its device once, and must not be changed.

    The first call waits for the device, since other streams may read the tensor next.

    Args:
        values: numbers, or tuples of them.
        device: where to.
        dtype: of the result.

    Example:
        >>> constant((3.0, 4.0), torch.device("cpu"))
        tensor([3., 4.], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    return _send_constant(values, device, dtype)


@lru_cache(maxsize=256)
def _send_constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # it serves outside of it as well
        return torch.tensor(values, dtype=dtype, device="cpu").to(device)


def edge_matrix(matrix: Tensor) -> Tensor:
    """Bring matrices between pixel centres (the first at 0, as Kornia counts) to pixel edges: (B, 3, 3) -> (B, 3, 3).

    Args:
        matrix: (B, 3, 3) of any dtype; the result is float64.

    Example:
        >>> flip = torch.tensor([[[-1.0, 0.0, 3.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])  # four pixels: 0 <-> 3
        >>> edge_matrix(flip)[0, 0].tolist()
        [-1.0, 0.0, 4.0]
    """
    shift, back = _half_pixel(matrix.device)
    return shift @ matrix.double() @ back


def center_matrix(matrix: Tensor) -> Tensor:
    """Bring matrices between pixel edges to pixel centres, as Kornia counts: the inverse of :func:`edge_matrix`.

    Args:
        matrix: (B, 3, 3) of any dtype; the result is float64.

    Example:
        >>> flip = torch.tensor([[[-1.0, 0.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> center_matrix(flip)[0, 0].tolist()
        [-1.0, 0.0, 3.0]
    """
    shift, back = _half_pixel(matrix.device)
    return back @ matrix.double() @ shift


def _half_pixel(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices from pixel centres to edges and back."""
    shift = torch.eye(3, dtype=torch.float64, device=device)
    shift[:2, 2] = 0.5
    return shift, 2 * torch.eye(3, dtype=torch.float64, device=device) - shift


def window_matrix(window: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the matrices that lay windows of a canvas onto a whole canvas of the given height and width.

    Args:
        window: (B, 4) left, top, right and bottom in pixels; may reach beyond the canvas.
        size: height and width of the target in pixels.

    Returns:
        (B, 3, 3), float64.

    Example:
        >>> matrix = window_matrix(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), (80, 80))
        >>> transform_points(matrix, torch.tensor([[[10.0, 20.0], [30.0, 60.0]]])).tolist()
        [[[0.0, 0.0], [80.0, 80.0]]]
    """
    window = window.double()
    scale = constant((size[1], size[0]), window.device) / (window[:, 2:] - window[:, :2])
    matrix = torch.zeros(len(window), 3, 3, dtype=torch.float64, device=window.device)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = scale[:, 0], scale[:, 1], 1.0
    matrix[:, :2, 2] = -window[:, :2] * scale
    return matrix


def scale_matrix(count: int, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Return the matrices of a resize from one height and width to another: (count, 3, 3), float64, on the CPU.

    Args:
        count: number of matrices.
        source: height and width before, in pixels.
        target: height and width afterwards.

    Example:
        >>> scale_matrix(1, (10, 20), (20, 10))[0].diagonal()
        tensor([0.5000, 2.0000, 1.0000], dtype=torch.float64)
    """
    diagonal = torch.tensor([target[1] / source[1], target[0] / source[0], 1.0], dtype=torch.float64)
    return torch.diag(diagonal).expand(count, 3, 3)


def invert(matrix: Tensor) -> Tensor:
    """Invert (B, 3, 3) matrices without waiting for the device."""
    inverse: Tensor = torch.linalg.inv_ex(matrix.double()).inverse
    return inverse


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply matrices to points: (B, 3, 3), (B, ..., 2) -> (B, ..., 2), float64.

    Args:
        matrix: (B, 3, 3), projective ones too.
        points: (B, ..., 2), x and y.

    Example:
        >>> transform_points(scale_matrix(1, (10, 20), (20, 10)), torch.tensor([[[4.0, 3.0]]]))
        tensor([[[2., 6.]]], dtype=torch.float64)
    """
    flat = points.double().flatten(1, -2)
    out = flat @ matrix[:, :2, :2].mT + matrix[:, None, :2, 2]
    out = out / (flat @ matrix[:, 2, :2, None] + matrix[:, None, 2:, 2])
    return out.view(points.shape)


def is_inside(x: Tensor, y: Tensor, width: int | Tensor, height: int | Tensor, rim: float = 0.0) -> Tensor:
    """Tell which points lie on a canvas, its edges included, as far as ``EDGE_TOLERANCE`` can tell.

    With a ``rim``, those alone that are as many pixels or more from its edges.

    Example:
        >>> is_inside(torch.tensor([-1e-4, 8.0001, 8.1]), torch.zeros(3), 8, 6)
        tensor([ True,  True, False])
    """
    return is_within(x, width, rim) & is_within(y, height, rim)


def is_within(places: Tensor, length: int | Tensor, rim: float = 0.0) -> Tensor:
    """Tell which places lie on a side of a canvas, as :func:`is_inside` does for both sides."""
    beyond = EDGE_TOLERANCE - rim
    return (places >= -beyond) & (places <= length + beyond)


def corner_boxes(boxes: Tensor) -> Tensor:
    """Bring centre x, y, width and height to left, top, right and bottom: (..., 4) -> (..., 4).

    Example:
        >>> corner_boxes(torch.tensor([3.0, 2.0, 4.0, 2.0]))
        tensor([1., 1., 5., 3.])
    """
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def center_boxes(boxes: Tensor) -> Tensor:
    """Bring left, top, right and bottom to centre x, y, width and height: (..., 4) -> (..., 4).

    Example:
        >>> center_boxes(torch.tensor([1.0, 1.0, 5.0, 3.0]))
        tensor([3., 2., 4., 2.])
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def box_corners(boxes: Tensor) -> Tensor:
    """Return the corners of boxes, clockwise from the upper left: (..., 4) -> (..., 4, 2)."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([left, top, right, top, right, bottom, left, bottom], -1).view(*boxes.shape[:-1], 4, 2)


def corner_bounds(corners: Tensor) -> Tensor:
    """Return the boxes around sets of corners: (..., K, 2) -> (..., 4)."""
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of boxes in square pixels: (..., 4) -> (...); boxes without extent have none."""
    side = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return side[..., 0] * side[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return intersection over union of boxes: (..., N, 4), (..., M, 4) -> (..., N, M); 0 where both have no area.

    Args:
        a: (..., N, 4), left, top, right and bottom.
        b: (..., M, 4), likewise.

    Example:
        >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]])).item()
        0.5
    """
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = box_area(a)[..., :, None] + box_area(b)[..., None, :] - shared
    return shared / union.clamp_min(torch.finfo(union.dtype).tiny)


def source_points(
    inverse: Tensor, size: tuple[int, int], dtype: torch.dtype, *, aligned: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Say where the pixels of a target canvas come from.

    Args:
        inverse: (B, 3, 3) matrices from the target to the source.
        size: height and width of the target in pixels.
        dtype: of the result.
        aligned: the matrices only flip, scale and shift, so that columns and rows do not mix.

    Returns:
        x and y of every target pixel's centre in the source, of shapes that broadcast to (B, h, w), and (B, h, w) a
        positive number where the point lies before the projection's horizon, or None if there is none.
    """
    h, w = size
    m = inverse
    column = torch.arange(w, dtype=torch.float64, device=m.device) + 0.5
    row = torch.arange(h, dtype=torch.float64, device=m.device) + 0.5

    def plane(k: int, mixed: bool) -> Tensor:
        across = (m[:, k, 0, None] * column + m[:, k, 2, None]).to(dtype)[:, None, :]
        return across + (m[:, k, 1, None] * row).to(dtype)[:, :, None] if mixed else across

    if aligned:
        y = (m[:, 1, 1, None] * row + m[:, 1, 2, None]).to(dtype)[:, :, None]
        return plane(0, False), y, None
    depth = plane(2, True)
    return plane(0, True) / depth, plane(1, True) / depth, depth


def sample_bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read images at points, bilinearly, the outermost pixels repeated beyond the edge.

    Args:
        image: (B, C, H, W), floating point.
        x: broadcasting to (B, h, w), in pixels.
        y: broadcasting to (B, h, w), in pixels.

    Returns:
        (B, C, h, w).
    """
    height, width = image.shape[-2:]
    grid = torch.empty(*_joint_shape(x, y), 2, dtype=image.dtype, device=image.device)
    grid[..., 0] = x * (2.0 / width) - 1.0
    grid[..., 1] = y * (2.0 / height) - 1.0
    return _sample_grid(image, grid)


def complex_grid(x: Tensor, y: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return two tensors whose sum is the grid of :func:`sample_bilinear`, x and y as one complex number.

    So the pairs of a grid are written in one pass over the memory. Of half precision there are no complex numbers.

    Args:
        x: broadcasting to (B, h, w), in pixels, single precision or more.
        y: broadcasting to (B, h, w), in pixels, single precision or more.
        size: height and width of the images, in pixels.

    Returns:
        Tensors of the shapes of x and y, or where these are one shape, the grid and zeros.
    """
    if x.shape == y.shape:
        grid = torch.complex(x * (2.0 / size[1]), y * (2.0 / size[0])) - complex(1, 1)
        return grid, torch.zeros_like(grid[:, :1, :1])
    x, y = x * (2.0 / size[1]) - 1.0, y * (2.0 / size[0]) - 1.0
    return torch.complex(x, torch.zeros_like(x)), torch.complex(torch.zeros_like(y), y)


def sample_complex_grid(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Do as :func:`sample_bilinear` at what :func:`complex_grid` gave, or at a part of it for a part of the images."""
    return _sample_grid(image, torch.view_as_real(x + y))


def _sample_grid(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def gather_pixels(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read the pixel that each point lies in, the nearest one for points outside: any dtype.

    A point between two pixels, as far as ``EDGE_TOLERANCE`` can tell, lies in the right or lower one.

    Args:
        image: (B, H, W).
        x: broadcasting to (B, h, w), in pixels.
        y: broadcasting to (B, h, w), in pixels.

    Returns:
        (B, h, w), of the image's dtype.
    """
    index = pixel_index(x, y, (int(image.shape[-2]), int(image.shape[-1])))
    return image.flatten(1).gather(1, index.flatten(1)).view(index.shape)


def pixel_index(x: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the number of the pixel that each point lies in, row by row, as :func:`gather_pixels` reads it.

    Args:
        x: broadcasting to (B, h, w), in pixels.
        y: broadcasting to (B, h, w), in pixels.
        size: height and width of the images, in pixels.

    Returns:
        (B, h, w), int64.

    Example:
        >>> pixel_index(torch.tensor([[[0.5, 2.5]]]), torch.tensor([[[1.5]]]), (2, 3))
        tensor([[[3, 5]]])
    """
    height, width = size
    column = (x + EDGE_TOLERANCE).floor().long().clamp(0, width - 1)
    row = (y + EDGE_TOLERANCE).floor().long().clamp(0, height - 1)
    return (row * width + column).expand(_joint_shape(x, y))


def all_neighbours(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Tell for which points all pixels that :func:`sample_bilinear` reads there are set.

    Args:
        mask: (B, H, W), bool.
        x: broadcasting to (B, h, w), in pixels.
        y: broadcasting to (B, h, w), in pixels.

    Returns:
        (B, h, w), bool.

    Example:
        >>> mask = torch.tensor([[[True, True, False]]])
        >>> all_neighbours(mask, torch.tensor([[[0.2, 1.0, 1.5, 1.6]]]), torch.tensor([[[0.5]]]))
        tensor([[[ True,  True,  True, False]]])
    """
    (left, right), (above, below) = (
        ((v + EDGE_TOLERANCE - 0.5).floor() + 0.5, (v - EDGE_TOLERANCE - 0.5).ceil() + 0.5) for v in (x, y)
    )
    out = gather_pixels(mask, left, above)
    for column, row in ((left, below), (right, above), (right, below)):
        out = out & gather_pixels(mask, column, row)
    return out


def _joint_shape(x: Tensor, y: Tensor) -> tuple[int, int, int]:
    """Return (B, h, w) of coordinates that broadcast to it."""
    return max(x.shape[0], y.shape[0]), max(x.shape[1], y.shape[1]), max(x.shape[2], y.shape[2])
