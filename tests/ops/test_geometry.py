"""Points, boxes and pixels under matrices."""

import kornia.augmentation as K
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou as torchvision_iou

from kornia_mvit.ops import geometry as g

SEEDS = st.integers(0, 2**20)


def homographies(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(3, dtype=torch.float64) + 0.2 * torch.randn(count, 3, 3, generator=generator).double()
    matrix[:, 2] = torch.tensor([1e-3, -1e-3, 1.0])
    matrix[:, :2, 2] *= 10
    return matrix


def boxes(seed, count=2, n=6):
    corner = torch.rand(count, n, 2, generator=torch.Generator().manual_seed(seed)) * 50
    return torch.cat([corner, corner + torch.rand(count, n, 2) * 30 + 0.5], -1)


@given(seed=SEEDS)
def test_matrices_and_their_inverses(seed):
    matrix = homographies(seed)
    points = torch.rand(2, 7, 2) * 20
    there = g.transform_points(matrix, points)
    torch.testing.assert_close(g.transform_points(g.invert(matrix), there), points.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(matrix @ g.invert(matrix), torch.eye(3).double().expand(2, 3, 3), rtol=0, atol=1e-8)
    nested = g.transform_points(matrix, points.view(2, 7, 1, 2).expand(-1, -1, 4, -1))
    torch.testing.assert_close(nested[:, :, 2], there)


def test_edge_matrix_of_kornias_flip():
    """A flip takes x to W - x in edges, where Kornia says W - 1 - x of centres."""
    flip = K.RandomHorizontalFlip(p=1.0)
    flip(torch.rand(1, 3, 8, 20))
    matrix = g.edge_matrix(flip.transform_matrix)
    points = torch.tensor([[[0.0, 3.0], [20.0, 8.0], [0.5, 0.5]]])
    expected = torch.tensor([[[20.0, 3.0], [0.0, 8.0], [19.5, 0.5]]]).double()
    torch.testing.assert_close(g.transform_points(matrix, points), expected)


@given(seed=SEEDS, height=st.integers(1, 90), width=st.integers(1, 90))
def test_windows_fill_the_canvas(seed, height, width):
    window = boxes(seed, n=1)[:, 0]
    matrix = g.window_matrix(window, (height, width))
    corners = g.transform_points(matrix, g.box_corners(window[:, None]))
    expected = torch.tensor([0, 0, width, height]).double().expand(2, 1, 4)
    torch.testing.assert_close(g.corner_bounds(corners), expected, rtol=0, atol=1e-6)
    resize = g.scale_matrix(2, (10, 30), (height, width))
    whole = g.window_matrix(torch.tensor([[0.0, 0, 30, 10]]).expand(2, 4), (height, width))
    torch.testing.assert_close(resize, whole)


@given(seed=SEEDS)
def test_boxes_and_their_corners(seed):
    some = boxes(seed)
    torch.testing.assert_close(g.corner_bounds(g.box_corners(some)), some)
    torch.testing.assert_close(g.box_area(some), (some[..., 2] - some[..., 0]) * (some[..., 3] - some[..., 1]))
    assert torch.equal(g.box_area(some.flip(-1)), torch.zeros(2, 6)), "inside out"
    iou = g.box_iou(some, some[:, :4])
    for i in range(2):
        torch.testing.assert_close(iou[i], torchvision_iou(some[i], some[i, :4]))
    assert g.box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


@given(seed=SEEDS, height=st.integers(1, 20), width=st.integers(1, 20))
def test_pixels_are_read_at_their_centres(seed, height, width):
    """The identity gives every pixel back, as it is, by either way of reading."""
    image = torch.rand(2, 3, height, width)
    identity = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    for aligned in (True, False):
        x, y, depth = g.source_points(identity, (height, width), torch.float32, aligned=aligned)
        assert (depth is None) == aligned
        torch.testing.assert_close(g.sample_bilinear(image, x, y), image)
        assert torch.equal(g.gather_pixels(image[:, 0], x, y), image[:, 0])


@given(seed=SEEDS)
def test_aligned_and_general_points_agree(seed):
    inverse = g.invert(g.window_matrix(boxes(seed, n=1)[:, 0], (9, 13)))
    x, y, _ = g.source_points(inverse, (9, 13), torch.float64, aligned=True)
    u, v, depth = g.source_points(inverse, (9, 13), torch.float64)
    assert x.shape == (2, 1, 13)
    assert y.shape == (2, 9, 1)
    torch.testing.assert_close(x.expand_as(u), u)
    torch.testing.assert_close(y.expand_as(v), v)
    assert bool((depth == 1).all())


@given(seed=SEEDS)
def test_points_agree_with_the_matrix(seed):
    inverse = homographies(seed)
    x, y, _ = g.source_points(inverse, (5, 7), torch.float64)
    row, column = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    expected = g.transform_points(inverse, torch.stack([column, row], -1).flatten(0, 1).expand(2, -1, -1))
    torch.testing.assert_close(torch.stack([x, y], -1).flatten(1, 2), expected)


def test_a_resize_is_that_of_interpolate():
    image = torch.rand(2, 3, 10, 14)
    x, y, _ = g.source_points(g.invert(g.scale_matrix(2, (10, 14), (24, 22))), (24, 22), torch.float32, aligned=True)
    expected = F.interpolate(image, (24, 22), mode="bilinear", align_corners=False)
    torch.testing.assert_close(g.sample_bilinear(image, x, y), expected)
    expected = F.interpolate(image, (24, 22), mode="nearest-exact")
    assert torch.equal(g.gather_pixels(image[:, 1], x, y), expected[:, 1])


def test_points_outside_read_the_edge():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    x, y = torch.tensor([[[-5.0, 1.5, 99.0]]]), torch.tensor([[[-1.0], [9.0]]])
    expected = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]])
    assert torch.equal(g.gather_pixels(image[:, 0], x, y), expected)
    torch.testing.assert_close(g.sample_bilinear(image, x, y)[:, 0], expected)


@pytest.mark.long
def test_warp_compiles_into_one_graph():
    """The geometric step of a pipeline, for a canvas of any size."""

    def warp(image, inverse, size):
        x, y, depth = g.source_points(inverse, size, image.dtype)
        return g.sample_bilinear(image, x, y) * (depth > 0)[:, None]

    compiled = torch.compile(warp, fullgraph=True, backend="aot_eager")
    for size in ((8, 9), (12, 7)):
        image, inverse = torch.rand(2, 3, *size), homographies(1)
        torch.testing.assert_close(compiled(image, inverse, size), warp(image, inverse, size))
