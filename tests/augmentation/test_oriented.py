"""Oriented boxes against painted oriented rectangles, through geometry and back."""

import math
import pickle

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, CutMix, MixUp, Mosaic, Preprocess, draw_batch
from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.ops.geometry import transform_points
from kornia_mvit.ops.oriented import fit_oriented, oriented_bounds, oriented_corners

SIMILAR = [
    K.RandomHorizontalFlip,
    K.RandomVerticalFlip,
    lambda: K.RandomAffine(180.0, (0.1, 0.1), (0.8, 1.3), p=1.0),
    lambda: K.RandomRotation90((-1, 2), p=1.0),
    lambda: K.RandomTranslate((0.05, 0.1), (0.05, 0.1), p=1.0),
]
OTHER = [
    lambda: K.RandomShear((25.0, 25.0), p=1.0),
    lambda: K.RandomPerspective(0.4, p=1.0),
    lambda: K.Resize((31, 57)),
    lambda: K.RandomAffine(90.0, shear=20.0, p=1.0),
]


def paint(boxes, size):
    """The pixels (..., H, W) whose centres lie in oriented boxes (..., 5)."""
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
    cx, cy, w, h, angle = (v[..., None, None] for v in boxes.unbind(-1))
    along = (x - cx) * angle.cos() + (y - cy) * angle.sin()
    across = (y - cy) * angle.cos() - (x - cx) * angle.sin()
    return (along.abs() <= w / 2) & (across.abs() <= h / 2)


def painted(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    height, width = (2 * int(torch.randint(25, 36, (1,), generator=generator)) + 1 for _ in range(2))
    u = torch.rand(2, count, 5, generator=generator)
    boxes = torch.stack(
        [
            width * (0.2 + 0.6 * u[..., 0]),
            height * (0.2 + 0.6 * u[..., 1]),
            8 + 18 * u[..., 2],
            6 + 8 * u[..., 3],
            math.pi * (u[..., 4] - 0.5),
        ],
        -1,
    )
    return Batch(
        torch.rand(2, 3, height, width, generator=generator),
        boxes=oriented_bounds(boxes),
        box_label=torch.arange(count).repeat(2, 1),
        oriented_boxes=boxes,
        instance_masks=paint(boxes, (height, width)),
    )


def angle_between(one, other):
    return ((one - other + math.pi / 2).remainder(math.pi) - math.pi / 2).abs()


def check_similar(seed):
    """Compare with what was painted, and with what each similarity does to centre, sides and angle."""
    batch = painted(seed)
    generator = torch.Generator().manual_seed(seed)
    steps = [SIMILAR[k]() for k in torch.randperm(len(SIMILAR), generator=generator)[: 1 + seed % 4].tolist()]
    pipeline = AugmentationPipeline(steps, box_method="oriented")
    out, params = pipeline.augment(batch, seed=seed)
    geometry = Geometry.from_dict(params["geometry"], torch.device("cpu"))
    matrix = geometry.matrix(0, len(geometry))
    scale = torch.linalg.det(matrix[:, :2, :2]).abs().sqrt()
    size = out.image.shape[-2:]
    whole = 0
    for i, k in (out.box_label >= 0).nonzero().tolist():
        given, found = batch.oriented_boxes[i, out.box_index[i, k]].double(), out.oriented_boxes[i, k].double()
        centre = transform_points(matrix[i : i + 1], given[None, None, :2])[0, 0]
        torch.testing.assert_close(found[:2], centre, rtol=0, atol=1e-3)
        torch.testing.assert_close(found[2:4], given[2:4] * scale[i], rtol=1e-5, atol=1e-4)
        turned = matrix[i, :2, :2] @ torch.stack([given[4].cos(), given[4].sin()])
        assert angle_between(found[4], torch.atan2(turned[1], turned[0])) < 1e-4
        assert -math.pi / 2 <= found[4] < math.pi / 2 + 1e-6
        mask = out.instance_masks[i, k]
        inside = oriented_bounds(given)
        view = torch.tensor([batch.image.shape[3], batch.image.shape[2]])
        bounds = oriented_bounds(found)
        if (inside[:2] >= 0).all() and (inside[2:] <= view).all() and len(steps) == 1:
            if (bounds[:2] >= 0).all() and (bounds[2:] <= torch.tensor([size[1], size[0]])).all():
                whole += 1
                assert (paint(found - torch.tensor([0, 0, 3.0, 3.0, 0]), size) & ~mask).sum() == 0
        assert (mask & ~paint(found + torch.tensor([0, 0, 3.0, 3.0, 0]), size)).sum() == 0
        edges = bounds.float().clamp_min(0).minimum(torch.tensor([size[1], size[0]] * 2))
        if len(steps) == 1 and (inside[:2] >= 0).all() and (inside[2:] <= view).all():
            torch.testing.assert_close(out.boxes[i, k], edges, rtol=0, atol=2e-3)
    live = out.box_label >= 0
    back = pipeline.inverse_oriented_boxes(out.oriented_boxes, params)
    there = batch.oriented_boxes.gather(1, out.box_index.clamp_min(0)[..., None].expand(-1, -1, 5))
    torch.testing.assert_close(back[live][:, :4], there[live][:, :4], rtol=0, atol=5e-3)
    assert bool((angle_between(back[live][:, 4], there[live][:, 4]) < 1e-3).all())
    assert bool((out.oriented_boxes[~live] == 0).all())
    return whole


def check_other(seed):
    """The corners are inside, and no rectangle around them is smaller."""
    batch = painted(seed)
    out, params = AugmentationPipeline([OTHER[seed % len(OTHER)]()]).augment(batch, seed=seed)
    geometry = Geometry.from_dict(params["geometry"], torch.device("cpu"))
    corners = transform_points(geometry.matrix(0, len(geometry)), oriented_corners(batch.oriented_boxes.double()))
    for i, k in (out.box_label >= 0).nonzero().tolist():
        own, points = out.oriented_boxes[i, k].double(), corners[i, out.box_index[i, k]]
        axes = torch.stack([own[4].cos(), own[4].sin()]), torch.stack([-own[4].sin(), own[4].cos()])
        for axis, side in zip(axes, own[2:4], strict=True):
            assert ((points - own[:2]) @ axis).abs().max() <= side / 2 + 1e-3
        turns = torch.arange(180) * math.pi / 180
        reach = [
            points @ torch.stack([turns.cos(), turns.sin()]).double(),
            points @ torch.stack([-turns.sin(), turns.cos()]).double(),
        ]
        areas = (reach[0].amax(0) - reach[0].amin(0)) * (reach[1].amax(0) - reach[1].amin(0))
        assert own[2] * own[3] <= areas.min() * (1 + 1e-4)


class TestOrientedBoxes:
    def test_similar(self):
        assert sum(check_similar(seed) for seed in range(20)) > 3

    @pytest.mark.long
    def test_similar_in_200_cases(self):
        assert sum(check_similar(seed) for seed in range(200)) > 50

    def test_smallest_around(self):
        for seed in range(20):
            check_other(seed)

    @pytest.mark.long
    def test_smallest_around_in_200_cases(self):
        for seed in range(200):
            check_other(seed)

    def test_is_dropped_with_its_box(self):
        boxes = torch.tensor([[[5.0, 5, 6, 4, 0.5], [30, 30, 8, 4, -0.3]]])
        batch = Batch(torch.rand(1, 3, 41, 41), boxes=oriented_bounds(boxes), box_label=torch.tensor([[3, 4]]),
                      oriented_boxes=boxes)  # fmt: skip
        out = AugmentationPipeline([K.CenterCrop((25, 25))])(batch)
        assert out.box_label.tolist() == [[4, -1]]
        expected = torch.tensor([[[22.0, 22, 8, 4, -0.3], [0, 0, 0, 0, 0]]])
        torch.testing.assert_close(out.oriented_boxes, expected, rtol=0, atol=1e-5)

    def test_without_geometry_it_stays(self):
        batch = painted(1)
        batch.oriented_boxes[..., 4] = 3.0
        out, params = AugmentationPipeline([K.RandomBrightness()]).augment(batch)
        assert torch.equal(out.oriented_boxes, batch.oriented_boxes)
        assert torch.equal(
            AugmentationPipeline().inverse_oriented_boxes(out.oriented_boxes, params), out.oriented_boxes
        )

    def test_replay_eval_and_canvas(self):
        batch = painted(2)
        pipeline = AugmentationPipeline([K.RandomAffine(30.0)], preprocess=Preprocess((33, 35), letterbox=True))
        out, params = pipeline.augment(batch, seed=1)
        assert torch.equal(pipeline.replay(batch, params).oriented_boxes, out.oriented_boxes)
        ready, params = pipeline.prepare(batch)
        back = pipeline.inverse_oriented_boxes(ready.oriented_boxes, params)
        torch.testing.assert_close(back, batch.oriented_boxes, rtol=0, atol=0.3)  # whole pixels: not quite similar

    def test_boxes_around_oriented_ones_ask_for_them(self):
        batch = painted(1).replace(oriented_boxes=None)
        with pytest.raises(ValueError, match="box_method='oriented'"):
            AugmentationPipeline(box_method="oriented")(batch)
        with pytest.raises(ValueError, match="contradict"):
            AugmentationPipeline(box_method="oriented", boxes_from_masks=True)

    def test_mixes(self):
        batch = painted(3)
        mixed = MixUp(p=1.0)(batch)
        assert torch.equal(mixed.oriented_boxes[0, :3], batch.oriented_boxes[0])
        assert torch.equal(mixed.oriented_boxes[0, 3:], batch.oriented_boxes[1])
        mixed = CutMix(p=1.0)(batch)
        for i, k in (mixed.box_label >= 0).nonzero().tolist():
            given = batch.oriented_boxes[mixed.box_source[i, k]]
            assert bool((given == mixed.oriented_boxes[i, k]).all(-1).any())
        with pytest.raises(ValueError, match="Mosaic cannot carry oriented_boxes along"):
            Mosaic()(batch)

    def test_are_drawn(self):
        batch = painted(4, count=1)
        white = batch.replace(image=torch.ones_like(batch.image), instance_masks=None)
        picture = draw_batch(white, cell=200)
        plain = draw_batch(white.replace(oriented_boxes=None), cell=200)
        assert picture.tobytes() != plain.tobytes()


class TestBatch:
    def test_collate_and_pickle(self):
        batch = painted(5)
        again = Batch.collate([batch.sample(0), batch[[1]].sample(0)])
        assert torch.equal(again.oriented_boxes, batch.oriented_boxes)
        assert torch.equal(pickle.loads(pickle.dumps(batch)).oriented_boxes, batch.oriented_boxes)
        fewer = batch.sample(0)
        for name in ("boxes", "box_label", "oriented_boxes", "instance_masks"):
            fewer[name] = fewer[name][:1]
        laid = Batch.collate([fewer, batch.sample(1)])
        assert bool((laid.oriented_boxes[0, 1:] == 0).all()) and laid.box_label[0].tolist() == [0, -1, -1]

    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({"oriented_boxes": torch.rand(2, 3, 4)}, ValueError, r"oriented_boxes of shape \(B, N, 5\)"),
            ({"oriented_boxes": torch.rand(2, 2, 5)}, ValueError, r"but oriented_boxes is \(2, 2, 5\)"),
            ({"oriented_boxes": torch.ones(2, 3, 5).long()}, TypeError, "floating-point oriented_boxes"),
            ({"oriented_boxes": -torch.ones(2, 3, 5)}, ValueError, r"oriented_boxes\[0, 0\] is \(-1, .*sides from 0"),
            ({"oriented_boxes": torch.full((2, 3, 5), torch.nan)}, ValueError, "finite"),
            ({"boxes": None, "box_label": None, "instance_masks": None}, ValueError, "oriented_bounds makes boxes"),
        ],
    )
    def test_what_does_not_fit_is_named(self, changes, error, text):
        with pytest.raises(error, match=text):
            painted(5).replace(**changes)

    @pytest.mark.parametrize(
        ("rows", "text"),
        [([[1.0, 2, 3, 4]], r"\(n, 5\), cx, cy, w, h and angle"), ([[1.0, 2, 3, 4, 0]] * 2, "2 entries")],
    )
    def test_samples_are_checked(self, rows, text):
        sample = {"image": torch.rand(3, 9, 9), "boxes": [[1, 1, 4, 4]], "box_label": [0], "oriented_boxes": rows}
        with pytest.raises(ValueError, match=text):
            Batch.collate([sample])


class TestFitOriented:
    def test_of_points_and_lines(self):
        line = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
        found = fit_oriented(line)
        torch.testing.assert_close(found, torch.tensor([1.5, 2.0, 5.0, 0.0, math.atan2(4, 3)]))
        assert fit_oriented(torch.ones(4, 2)).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
