"""What goes with boxes: their numbers, fields, the masks of single objects; and how boxes are measured."""

import itertools

import kornia.augmentation as K
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, Mix, Mosaic, Preprocess, policies
from kornia_mvit.augmentation.outlines import read_instances
from kornia_mvit.augmentation.slices import Seen
from kornia_mvit.ops.boxes import masks_to_boxes
from kornia_mvit.ops.geometry import EDGE_TOLERANCE
from tests.augmentation.scenes import IGNORE, STACKS
from tests.tester import cases

SIZES = st.tuples(st.integers(49, 75), st.integers(49, 75))
NAMES = [name for name in STACKS if not name.startswith("classification")]


def painted(seed: int, size: tuple[int, int], *, count: int = 2, objects: int = 5, padded: bool = False) -> Batch:
    """A batch of objects that hide parts of each other: class i + 1 of the mask is what is seen of object i.

    Every object has a mask, its tight box, and two fields that tell its number.
    """
    r = torch.Generator().manual_seed(seed)
    samples = []
    for b in range(count):
        height, width = (max(9, side - 5 * b) for side in size) if padded else size
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        mask = torch.zeros(height, width, dtype=torch.long)
        for i in range(int(torch.randint(objects + 1, (1,), generator=r))):
            u = torch.rand(5, generator=r)
            inside = (
                ((x - u[0] * width) / (2 + u[1] * width / 2)).abs(),
                ((y - u[2] * height) / (2 + u[3] * height / 2)).abs(),
            )
            mask[(inside[0] ** 2 + inside[1] ** 2 <= 1) if u[4] < 0.5 else (torch.maximum(*inside) <= 1)] = i + 1
        numbers = mask.unique()[1:] if (mask == 0).any() else mask.unique()
        mask = torch.searchsorted(numbers, mask) + 1 if len(numbers) and not (mask == 0).any() else mask
        for place, number in enumerate(numbers.tolist()):
            mask[mask == number] = place + 1
        masks = mask == torch.arange(1, len(numbers) + 1)[:, None, None]
        rows = torch.arange(len(numbers))
        samples.append(
            {
                "image": torch.rand(3, height, width, generator=r),
                "boxes": masks_to_boxes(masks),
                "box_label": rows,
                "mask": mask,
                "instance_masks": masks if seed % 2 else masks.to(torch.uint8),
                "fields": {"row": rows, "pair": torch.stack([rows / 2, -rows / 2], 1)},
            }
        )
    return Batch.collate(samples, ignore_index=IGNORE)


def assert_follows(out: Batch, given: Batch) -> None:
    """Compare what is bound to boxes with the boxes' numbers, and the instance masks with the mask of all."""
    live = out.box_label >= 0
    assert (out.box_index >= 0).equal(live)
    for number, label, row in zip(out.box_index[live], out.box_label[live], out.fields["row"][live], strict=True):
        assert number == label == row  # of painted()
    assert out.fields["pair"][live].equal(torch.stack([out.fields["row"][live] / 2, -out.fields["row"][live] / 2], -1))
    assert not out.fields["pair"][~live].any()
    expected = (out.mask[:, None] == out.box_index[..., None, None] + 1) & live[..., None, None]
    assert out.instance_masks.dtype == given.instance_masks.dtype
    assert out.instance_masks.bool().equal(expected)


class Bent(K.RandomElasticTransform):
    """One of which it is not known where it moves pixels."""


class TestInstances:
    @cases(200)
    @given(st.sampled_from(NAMES), st.integers(0, 2**20), SIZES, st.booleans(), st.booleans())
    def test_rows_follow_their_boxes(self, name, seed, size, padded, fuse):
        batch = painted(seed, size, padded=padded)
        pipeline = AugmentationPipeline(STACKS[name](), preprocess=Preprocess((33, 47)), fuse=fuse, min_box_area=4.0)
        out, params = pipeline.augment(batch, seed=seed)
        assert_follows(out, batch)
        again = pipeline.replay(batch, params)
        assert again.instance_masks.equal(out.instance_masks) and again.box_index.equal(out.box_index)
        assert all(again.fields[key].equal(value) for key, value in out.fields.items())

    @cases(40)
    @given(st.integers(0, 2**20), SIZES, st.booleans(), st.booleans())
    def test_rows_follow_in_evaluation(self, seed, size, padded, letterbox):
        batch = painted(seed, size, padded=padded)
        pipeline = AugmentationPipeline(preprocess=Preprocess((33, 47), letterbox=letterbox), min_box_area=9.0)
        assert_follows(pipeline.prepare(batch)[0], batch)

    @cases(30)
    @given(st.integers(0, 2**20), SIZES)
    def test_erased_pixels_leave_the_masks(self, seed, size):
        batch = painted(seed, size)
        for erase_masks in (True, False):
            pipeline = AugmentationPipeline(
                [K.RandomRotation(30.0, p=1.0), K.RandomErasing(p=1.0, scale=(0.2, 0.5)), K.RandomHorizontalFlip()],
                erase_masks=erase_masks,
            )
            assert_follows(pipeline.augment(batch, seed=seed)[0], batch)

    def test_nothing_is_shared_with_what_was_given(self):
        batch = painted(7, (51, 63))
        before = {name: value.clone() for name, value in batch.fields.items()}, batch.instance_masks.clone()
        out = AugmentationPipeline().augment(batch)[0]
        for value in (*out.fields.values(), out.instance_masks, out.box_index):
            value.zero_()
        assert all(batch.fields[name].equal(value) for name, value in before[0].items())
        assert batch.instance_masks.equal(before[1])

    @pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.bfloat16, torch.complex64])
    def test_fields_of_any_dtype(self, dtype):
        """Also of those in which PyTorch computes little, through a crop and a mix."""
        batch = painted(7, (51, 63))
        batch = batch.replace(fields={"row": batch.fields["row"].to(dtype)}, mask=None)
        out = AugmentationPipeline([K.RandomCrop((31, 33))], Mosaic(1.0)).augment(batch, seed=1)[0]
        live = out.box_label >= 0
        assert out.fields["row"].dtype == dtype and 0 < int(live.sum()) < live.numel()
        rows = out.fields["row"].to(torch.complex64).real
        assert rows[live].equal(out.box_index[live].float()) and not rows[~live].any()

    def test_a_batch_of_no_images(self):
        batch = painted(7, (51, 63))[:0]
        out = AugmentationPipeline(policies.detection_train(32)).augment(batch, seed=0)[0]
        assert out.instance_masks.shape == (0, *batch.boxes.shape[1:2], 32, 32)
        assert out.fields["pair"].shape == batch.fields["pair"].shape

    def test_rows_without_boxes(self):
        """N may be 0, with fields and masks of as many rows."""
        empty = {"boxes": [], "box_label": [], "instance_masks": [], "fields": {"track": []}}
        batch = Batch.collate([{"image": torch.rand(3, 40, 50), **empty}])
        out = AugmentationPipeline(policies.detection_train(32)).augment(batch, seed=0)[0]
        assert out.instance_masks.shape == (1, 0, 32, 32)
        assert out.fields["track"].shape == out.box_index.shape == (1, 0)

    def test_index_is_of_the_call(self):
        """It gathers what belongs to the batch that was put in, also after a second pipeline."""
        first = AugmentationPipeline([K.RandomCrop((31, 33))]).augment(painted(3, (61, 53)), seed=1)[0]
        second = AugmentationPipeline([K.CenterCrop((13, 15))]).augment(first)[0]
        live = second.box_label >= 0
        assert 0 < int(live.sum()) < int((first.box_label >= 0).sum())
        taken = first.box_label.gather(1, second.box_index.clamp_min(0))
        assert taken[live].equal(second.box_label[live])

    def test_keypoints_keep_their_places(self):
        batch = Batch(
            torch.rand(2, 3, 20, 30), keypoints=torch.rand(2, 4, 2) * 20, keypoint_visible=torch.ones(2, 4) > 0
        )
        out = AugmentationPipeline([K.RandomAffine(40.0, p=1.0)]).augment(batch, seed=0)[0]
        assert out.keypoint_index.tolist() == [[0, 1, 2, 3]] * 2
        assert AugmentationPipeline().augment(out)[0].keypoint_index.tolist() == [[0, 1, 2, 3]] * 2

    def test_exception(self):
        batch = painted(7, (51, 63))
        with pytest.raises(ValueError, match="Bent cannot carry boxes along"):
            AugmentationPipeline([Bent()])(batch.replace(mask=None))
        with pytest.raises(ValueError, match="cannot carry boxes and mask along"):
            AugmentationPipeline(mix=Mix(3))(batch.replace(label=torch.zeros(2).long()))


class TestReadInstances:
    @cases(100)
    @given(
        st.integers(0, 2**20),
        st.integers(0, 19),
        st.sampled_from([(9, 7), (8, 16), (12, 4), (6, 24)]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )
    def test_as_one_by_one(self, seed, count, size, upright, hidden, chosen):
        """At points of any order, objects that are seen in part, and sides of eight pixels, which are read as one."""
        height, width = size
        r = torch.Generator().manual_seed(seed)
        masks = torch.rand(2, count, *size, generator=r) < torch.rand(2, count, 1, 1, generator=r) / 2
        masks = masks.to(torch.uint8) if seed % 2 else masks
        shapes = ((2, 1, 11), (2, 5, 1)) if upright else ((2, 5, 11), (2, 5, 11))
        x, y = (torch.rand(shape, generator=r) * (n + 4) - 2 for shape, n in zip(shapes, (width, height), strict=True))
        if upright:
            x, y = x.sort(2, descending=seed % 3 == 0).values, y.sort(1).values
        seen = None
        if hidden:
            seen = Seen((x > 0) & (x < width), (y > 0) & (y < height))
        expected = torch.zeros(2, count, 5, 11, dtype=masks.dtype)
        for b, n, i, j in itertools.product(range(2), range(count), range(5), range(11)):
            at = [float(v.expand(2, 5, 11)[b, i, j]) for v in (x, y)]
            within = 0 < at[0] < width and 0 < at[1] < height
            column, row = (
                min(max(int((v + EDGE_TOLERANCE) // 1), 0), k - 1) for v, k in zip(at, (width, height), strict=True)
            )
            expected[b, n, i, j] = masks[b, n, row, column] * (within or not hidden)
        rows = [torch.randperm(count, generator=r)[: count // 2].tolist() for _ in range(2)] if chosen else None
        found = read_instances(masks, x, y, seen, rows)
        for b in range(2):
            wanted = list(range(count)) if rows is None else rows[b]
            assert found[b, : len(wanted)].equal(expected[b, wanted])
            assert not found[b, len(wanted) :].any()


class TestBoxMethod:
    @cases(200)
    @given(st.sampled_from(NAMES), st.integers(0, 2**20), SIZES, st.booleans())
    def test_mask_is_the_tight_box_of_what_is_left(self, name, seed, size, padded):
        batch = painted(seed, size, padded=padded)
        given_as = {"boxes_from_masks": True} if seed % 3 else {"box_method": "mask"}
        pipeline = AugmentationPipeline(STACKS[name](), preprocess=Preprocess((33, 47)), **given_as)
        out, params = pipeline.augment(batch, seed=seed)
        assert_follows(out, batch)
        kept = set()
        for b, n in (out.box_label >= 0).nonzero().tolist():
            rows, columns = out.instance_masks[b, n].nonzero().unbind(1)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert out.boxes[b, n].tolist() == [float(edge) for edge in expected]
            kept.add((b, int(out.box_index[b, n])))
        seen = {(b, int(k) - 1) for b in range(len(batch)) for k in out.mask[b].unique() if 0 < k < IGNORE}
        assert kept <= seen
        assert out.boxes.equal(pipeline.replay(batch, params).boxes)

    @cases(200)
    @given(st.integers(0, 2**20), SIZES, st.sampled_from(["affine", "perspective", "rotations"]))
    def test_ellipse_is_around_the_ellipse(self, seed, size, kind):
        """Against many points of its outline, taken along as keypoints."""
        r = torch.Generator().manual_seed(seed)
        height, width = size
        centre = torch.tensor([width / 2, height / 2]) + torch.rand(2, generator=r) * 4 - 2
        half = 1 + torch.rand(2, generator=r) * (min(size) / 6)
        angle = torch.linspace(0, 2 * torch.pi, 721)[:-1]
        points = centre + half * torch.stack([angle.cos(), angle.sin()], -1)
        batch = Batch(
            torch.zeros(1, 3, height, width),
            boxes=torch.cat([centre - half, centre + half])[None, None],
            box_label=torch.zeros(1, 1).long(),
            keypoints=points[None],
            keypoint_visible=torch.ones(1, 720) > 0,
        )
        steps = {
            "affine": [K.RandomAffine(180.0, scale=(0.5, 0.9), shear=(-20.0, 20.0, -20.0, 20.0), p=1.0)],
            "perspective": [K.RandomPerspective(0.4, p=1.0)],
            "rotations": [K.RandomRotation(90.0, p=1.0), K.RandomHorizontalFlip(), K.RandomRotation(90.0, p=1.0)],
        }[kind]
        pipeline = AugmentationPipeline(steps, box_method="ellipse", min_box_area=0.0)
        out = pipeline.augment(batch, seed=seed)[0]
        if not bool(out.keypoint_visible.all()):
            return  # cut by the edge
        found = torch.cat([out.keypoints[0].amin(0), out.keypoints[0].amax(0)])
        torch.testing.assert_close(out.boxes[0, 0], found, atol=2e-3, rtol=1e-3)
        corners = AugmentationPipeline(steps, min_box_area=0.0).augment(batch, seed=seed)[0].boxes[0, 0]
        assert bool(
            (corners[:2] <= out.boxes[0, 0, :2] + 1e-3).all() & (corners[2:] >= out.boxes[0, 0, 2:] - 1e-3).all()
        )

    def test_a_circle_keeps_its_box(self):
        """Whatever the angle, and back by inverse; around its corners, it grows."""
        batch = Batch(
            torch.zeros(1, 3, 101, 101), boxes=torch.tensor([[[30.0, 30, 70, 70]]]), box_label=torch.zeros(1, 1).long()
        )
        turn = [K.RandomRotation((45.0, 45.0), p=1.0)]
        out, params = (pipeline := AugmentationPipeline(turn, box_method="ellipse")).augment(batch)
        half = torch.tensor([20.0, 20.0])
        moved = (out.boxes[0, 0, :2] + out.boxes[0, 0, 2:]) / 2
        torch.testing.assert_close(out.boxes[0, 0], torch.cat([moved - half, moved + half]))
        torch.testing.assert_close(pipeline.inverse_boxes(out.boxes, params), batch.boxes)
        wide = AugmentationPipeline(turn).augment(batch)[0].boxes[0, 0]
        assert (wide[2:] - wide[:2]).tolist() == pytest.approx([40 * 2**0.5] * 2, abs=1e-4)

    @cases(40)
    @given(st.sampled_from(["horizontal flip", "resize", "crop by overlap", "zoom out"]), st.integers(0, 2**20), SIZES)
    def test_upright_steps_have_one_answer(self, name, seed, size):
        """Where nothing turns, boxes around corners and ellipses are the same, cut or not."""
        batch = painted(seed, size)
        one, other = (
            AugmentationPipeline(STACKS[name](), box_method=method, min_box_visibility=0.3).augment(batch, seed=seed)[0]
            for method in ("corners", "ellipse")
        )
        torch.testing.assert_close(one.boxes, other.boxes)
        assert one.box_index.equal(other.box_index)

    def test_an_empty_mask_leaves_the_corners(self):
        """Of an object without a mask from the start, there is nothing else to go by."""
        batch = painted(7, (51, 63))
        batch.instance_masks[:, 0] = 0
        flip = [K.RandomHorizontalFlip(p=1.0)]
        out = AugmentationPipeline(flip, boxes_from_masks=True).augment(batch)[0]
        assert out.boxes.equal(AugmentationPipeline(flip).augment(batch)[0].boxes)

    def test_exception(self):
        with pytest.raises(ValueError, match="unknown box_method 'tight'; available: 'corners', 'ellipse', 'mask'"):
            AugmentationPipeline(box_method="tight")
        with pytest.raises(ValueError, match="'ellipse' and boxes_from_masks=True contradict"):
            AugmentationPipeline(box_method="ellipse", boxes_from_masks=True)
        batch = painted(7, (51, 63)).replace(instance_masks=None)
        with pytest.raises(ValueError, match="without instance_masks; give them, or take 'corners' or 'ellipse'"):
            AugmentationPipeline(boxes_from_masks=True)(batch)
        with pytest.raises(ValueError, match="without instance_masks"):
            AugmentationPipeline(boxes_from_masks=True).eval()(batch)
