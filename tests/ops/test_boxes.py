"""Anchors, matching and targets: against Apple's, against a plain loop, and by their properties."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.ops import boxes as ops_boxes
from kornia_mvit.ops import geometry
from kornia_mvit.ops.boxes import (
    VARIANCES,
    Anchors,
    assign_targets,
    assign_weighted_targets,
    center_boxes,
    corner_boxes,
    decode_boxes,
    encode_boxes,
    fit_anchors,
    have_pixels,
    make_anchors,
    masks_to_boxes,
    match_anchors,
    pairwise_iou,
)
from tests.device.pretended import Pretended
from tests.models.networks import DETECTION

RATIOS = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,))
STRIDES = (16, 32, 64, 128, 256)
IDS = [f"{case['shape'][2]}x{case['shape'][3]}" for case in DETECTION["cases"]]


def anchors_of(height, width, dtype=torch.float64):
    return make_anchors([*((-(-height // s), -(-width // s)) for s in STRIDES), (1, 1)], RATIOS, dtype=dtype)


SMALL = make_anchors([(4, 5), (2, 3), (1, 1)], [(2,), (2,), ()], (0.2, 0.8), dtype=torch.float64)


def check_golden(values, golden):
    assert list(values.shape) == golden["shape"]
    sample = values.flatten()[golden["sample_index"]]
    assert (sample - torch.tensor(golden["sample"], dtype=values.dtype)).abs().max() < 2e-5
    assert abs(values.mean().item() - golden["mean"]) < 2e-5
    assert abs(values.std(correction=0).item() - golden["std"]) < 2e-5


def truth(case):
    """The boxes and classes of a golden case, as a batch of one."""
    match = case["match"]
    return torch.tensor(match["gt_boxes_xyxy"], dtype=torch.float64)[None], torch.tensor(match["gt_labels"])[None]


def draw_boxes(batch, count, seed, *, grid=None, share=0.7):
    """Boxes with classes, some of them padding or to be ignored; on a grid, overlaps tie and boxes repeat."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64)
    size = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64) ** 2
    boxes = torch.cat([low * (1 - size), low * (1 - size) + size], -1)
    if grid:
        boxes = (boxes * grid).round() / grid
        boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 1 / grid)
    labels = torch.randint(1, 4, (batch, count), generator=generator)
    labels[torch.rand(batch, count, generator=generator) > share] = -1
    return boxes, labels, torch.rand(batch, count, generator=generator) < 0.2


def plain_match(anchors, boxes, labels, ignore, threshold=0.5):
    """Match the anchors of one image in a loop: the largest overlap of all is granted first, then the next."""
    iou = geometry.box_iou(corner_boxes(anchors), boxes).tolist()
    rows = sorted(
        (m for m in range(len(boxes)) if labels[m] > 0 and (boxes[m, 2:] > boxes[m, :2]).all()),
        key=lambda m: (labels[m].item(), ignore[m].item(), *boxes[m].flip(0).tolist()),
    )
    found = []
    for row in iou:
        best = max(rows, key=lambda m: row[m], default=None)
        hit = best is not None and row[best] >= threshold
        found.append((0 if not hit else -1 if ignore[best] else labels[best].item(), best))
    wishes = [(iou[a][m], -rows.index(m), -a, m) for m in rows if not ignore[m] for a in range(len(iou))]
    granted = {}
    for overlap, _, place, m in sorted(wishes, reverse=True):
        if overlap > 0 and m not in granted.values() and -place not in granted:
            granted[-place] = m
    for a, m in granted.items():
        found[a] = (labels[m].item(), m)
    return found


def claim_asking(iou, claiming):
    """Deferred acceptance as it was: the losers alone go on to their next best, until there are none."""
    batch, rows, count = iou.shape
    number = torch.arange(rows).expand(batch, rows)
    best, anchor = iou.max(2)
    while True:
        active = claiming & (best > 0)
        bid = torch.where(active, best, 0)
        highest = bid.new_zeros(batch, count).scatter_reduce(1, anchor, bid, "amax")
        wins = active & (bid == highest.gather(1, anchor))
        holder = number.new_full((batch, count), rows)
        holder = holder.scatter_reduce(1, anchor, torch.where(wins, number, rows), "amin")
        image, box = (active & (holder.gather(1, anchor) != number)).nonzero(as_tuple=True)
        if not len(image):
            return torch.where(holder < rows, holder, -1)
        iou[image, box, anchor[image, box]] = 0
        best[image, box], anchor[image, box] = iou[image, box].max(1)


class TestMakeAnchors:
    @pytest.mark.parametrize("case", DETECTION["cases"], ids=IDS)
    def test_feature(self, case):
        check_golden(anchors_of(*case["shape"][2:])[None], case["anchors"])

    def test_order_and_form(self):
        anchors = make_anchors([(2, 1), (1, 1)], [(4,), ()], (0.2, 1.2))
        assert anchors.shape == (2 * 4 + 2, 4)
        between = math.sqrt(0.2 * 0.7)
        shapes = [(0.2, 0.2), (between, between), (0.4, 0.1), (0.1, 0.4)]
        expected = [(0.5, y, *shape) for y in (0.25, 0.75) for shape in shapes]
        expected += [(0.5, 0.5, 0.7, 0.7), (0.5, 0.5, math.sqrt(0.7 * 1.2), math.sqrt(0.7 * 1.2))]
        torch.testing.assert_close(anchors, torch.tensor(expected))
        assert make_anchors([(1, 1)], [(9,)], (0.5, 1.0))[2, 2] == 1, "no side is longer than the image's"

    def test_exception(self):
        with pytest.raises(ValueError, match=r"2 maps and 1 lists.*give one for each map"):
            make_anchors([(1, 1), (2, 2)], [(2,)])


MAPS = [(6, 5), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)]
START = Anchors((0.1, 1.05), tuple(tuple(map(float, ratios)) for ratios in RATIOS))


def mean_overlap(boxes, anchors, maps):
    """The mean over the boxes of the largest overlap with an anchor, by way of all anchors in their places."""
    placed = make_anchors(maps, anchors.aspect_ratios, anchors.scales, dtype=torch.float64)
    return pairwise_iou(boxes.double(), corner_boxes(placed)).amax(1).mean()


class TestFitAnchors:
    @given(seed=st.integers(0, 10**6), count=st.integers(1, 8))
    @settings(max_examples=5)
    def test_are_no_worse(self, seed, count):
        """They overlap more than those that the search starts from, or are those; a mirror changes nothing."""
        boxes = draw_boxes(1, count, seed)[0][0]
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        if not len(boxes):
            return
        found = fit_anchors(boxes, MAPS)
        before, after = mean_overlap(boxes, START, MAPS), mean_overlap(boxes, found, MAPS)
        assert after > before or found == START
        assert [len(ratios) for ratios in found.aspect_ratios] == [2, 2, 2, 2, 2, 1]
        mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
        assert torch.allclose(mean_overlap(mirrored, fit_anchors(mirrored, MAPS), MAPS), after, atol=2e-3)

    def test_feature(self):
        """Boxes that anchors of known scales and ratios cover are covered again, wholly."""
        known = Anchors((0.248, 0.9), ((1.5, 3.0),) * 3)
        maps = [(4, 4), (2, 2), (1, 1)]
        placed = corner_boxes(make_anchors(maps, known.aspect_ratios, known.scales, dtype=torch.float64))
        boxes = placed[(placed >= 0).all(1) & (placed <= 1).all(1)]
        start = Anchors((0.1, 1.05), ((2.0, 3.0),) * 3)
        assert mean_overlap(boxes, start, maps) < 0.85
        found = fit_anchors(boxes, maps, start)
        assert mean_overlap(boxes, found, maps) > 0.97
        assert found.aspect_ratios == known.aspect_ratios

    def test_shapes(self):
        """Of the synthetic shapes few boxes have an anchor of Apple's by the threshold, and most one of these."""
        data = Shapes(64, (96, 96))
        boxes = torch.cat([data[n]["boxes"] for n in range(64)]).double() / 96
        maps = [(6, 6), *MAPS[1:]]
        shares = []
        for anchors in (START, fit_anchors(boxes, maps)):
            placed = corner_boxes(make_anchors(maps, anchors.aspect_ratios, anchors.scales, dtype=torch.float64))
            shares.append((pairwise_iou(boxes, placed).amax(1) >= 0.5).double().mean().item())
        assert shares[0] < 0.4
        assert shares[1] > 0.6

    def test_good_ones_stay(self):
        placed = corner_boxes(make_anchors(MAPS, RATIOS, dtype=torch.float64))
        boxes = placed[(placed >= 0).all(1) & (placed <= 1).all(1)]
        assert fit_anchors(boxes, MAPS) == START

    @pytest.mark.long
    def test_many_boxes(self):
        """Of as many as no search needs, some are taken, evenly: the same result as of one copy."""
        boxes = draw_boxes(1, 1000, 0)[0][0]
        assert fit_anchors(boxes.repeat_interleave(4, 0), MAPS) == fit_anchors(boxes.repeat_interleave(2, 0), MAPS)

    @pytest.mark.parametrize(
        ("boxes", "maps", "message"),
        [
            (torch.rand(4), MAPS, r"shape \(4,\); give \(N, 4\)"),
            (torch.rand(2, 5), MAPS, r"shape \(2, 5\)"),
            (torch.tensor([[0.0, 0.0, 0.5, 0.5]]), MAPS[:2], "2 maps and 6 lists"),
            (torch.zeros(0, 4), MAPS, "none of the boxes has an area"),
            (torch.tensor([[0.5, 0.1, 0.5, 0.9]]), MAPS, "none of the boxes has an area"),
            (torch.tensor([[10.0, 10.0, 50.0, 60.0]]), MAPS, "10 to 60; give shares"),
            (torch.tensor([[0.1, 0.1, 0.5, float("nan")]]), MAPS, "none of the boxes has an area"),
        ],
    )
    def test_exception(self, boxes, maps, message):
        with pytest.raises(ValueError, match=message):
            fit_anchors(boxes, maps)


class TestForms:
    @pytest.mark.parametrize("case", DETECTION["cases"], ids=IDS)
    def test_targets(self, case):
        """Of all anchors, those of the background among them."""
        boxes, labels = truth(case)
        anchors = anchors_of(*case["shape"][2:])
        index = match_anchors(anchors, boxes, labels).box
        check_golden(encode_boxes(boxes[0, index[0]], anchors), case["match"]["targets"])

    @given(seed=st.integers(0, 2**31), batch=st.integers(1, 3))
    def test_decode_undoes_encode(self, seed, batch):
        boxes, *_ = draw_boxes(batch, len(SMALL), seed)
        boxes[..., 2:] += 1e-3
        again = decode_boxes(encode_boxes(boxes, SMALL), SMALL)
        torch.testing.assert_close(again, boxes, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(corner_boxes(center_boxes(boxes)), boxes)

    @given(seed=st.integers(0, 2**31))
    def test_encode_undoes_decode(self, seed):
        generator = torch.Generator().manual_seed(seed)
        deltas = torch.randn(2, len(SMALL), 4, generator=generator, dtype=torch.float64) * 3
        again = encode_boxes(decode_boxes(deltas, SMALL), SMALL)
        torch.testing.assert_close(again, deltas, rtol=1e-6, atol=1e-9)

    def test_variances(self):
        """An offset of a tenth of the anchor's side is one; so is a side that is exp(0.2) of the anchor's."""
        assert VARIANCES == (0.1, 0.2)
        anchor = torch.tensor([[0.5, 0.5, 0.4, 0.2]])
        moved = corner_boxes(torch.tensor([[0.54, 0.52, 0.4 * math.exp(0.2), 0.2 * math.exp(0.2)]]))
        torch.testing.assert_close(encode_boxes(moved, anchor), torch.ones(1, 4), rtol=1e-4, atol=1e-5)

    @given(seed=st.integers(0, 2**31), grid=st.sampled_from([None, 4]))
    def test_pairwise_iou(self, seed, grid):
        a, b = (draw_boxes(2, count, seed + count, grid=grid)[0] for count in (5, 7))
        torch.testing.assert_close(pairwise_iou(a, b), geometry.box_iou(a, b), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(pairwise_iou(a, b[0]), geometry.box_iou(a, b[0]), rtol=1e-9, atol=1e-12)


class TestMatchAnchors:
    @pytest.mark.parametrize("case", DETECTION["cases"], ids=IDS)
    def test_feature(self, case):
        labels = match_anchors(anchors_of(*case["shape"][2:]), *truth(case)).labels[0]
        index = labels.nonzero().flatten()
        assert len(index) == case["match"]["num_matched"]
        assert index.tolist() == case["match"]["matched_index"]
        assert labels[index].tolist() == case["match"]["matched_label"]

    @given(
        seed=st.integers(0, 2**31),
        batch=st.integers(1, 3),
        count=st.integers(0, 12),
        grid=st.sampled_from([None, 3, 20]),
    )
    @example(seed=0, batch=2, count=12, grid=2)
    @example(seed=1, batch=1, count=40, grid=2)
    def test_as_a_plain_loop(self, seed, batch, count, grid):
        boxes, labels, ignore = draw_boxes(batch, count, seed, grid=grid)
        found = match_anchors(SMALL, boxes, labels, ignore)
        for b in range(batch):
            expected = plain_match(SMALL, boxes[b], labels[b], ignore[b])
            assert found.labels[b].tolist() == [label for label, _ in expected]
            for m, (label, best) in zip(found.box[b].tolist(), expected, strict=True):
                assert label <= 0 or torch.equal(boxes[b, m], boxes[b, best])  # of two that are equal either will do

    @given(
        seed=st.integers(0, 2**31),
        batch=st.integers(0, 3),
        count=st.integers(0, 12),
        grid=st.sampled_from([None, 3, 20]),
    )
    @example(seed=0, batch=2, count=12, grid=2)
    @example(seed=1, batch=1, count=40, grid=2)
    def test_without_asking(self, seed, batch, count, grid):
        """Bit for bit as it was when it asked whether all boxes have an anchor, on an accelerator too, unasked."""
        given = (SMALL, *draw_boxes(batch, count, seed, grid=grid))
        with mock.patch.object(ops_boxes, "_claim", claim_asking):
            expected = match_anchors(*given)
        with Pretended() as device:
            far = device.get(match_anchors(*device.put(given)))
        for found in (match_anchors(*given), far):
            assert torch.equal(found.labels, expected.labels)
            assert torch.equal(found.box, expected.box)
        assert not device.waits
        assert not device.uploads

    @given(
        seed=st.integers(0, 2**31), size=st.tuples(st.integers(32, 400), st.integers(32, 400)), count=st.integers(1, 30)
    )
    @example(seed=19026358, size=(32, 32), count=15)  # fewer anchors there than boxes
    def test_box_without_an_anchor_lost_them_all(self, seed, size, count):
        """A box has an anchor unless others hold all that it overlaps, each overlapping that anchor as much or more."""
        boxes, labels, _ = draw_boxes(2, count, seed)
        boxes[..., 2:] += 1e-4
        boxes[:, count // 2 :] = boxes[:, :1]  # many in one place
        anchors = anchors_of(*size)
        found, overlaps = match_anchors(anchors, boxes, labels), geometry.box_iou(corner_boxes(anchors), boxes)
        for iou, box, label, wanted in zip(overlaps, found.box, labels, found.labels, strict=True):
            positive = wanted > 0
            held = set(box[positive].tolist())
            of_holder = torch.where(positive, iou.gather(1, box[:, None])[:, 0], -1)
            valid = (label > 0).nonzero().flatten().tolist()
            assert held <= set(valid)
            for m in set(valid) - held:
                mine = iou[:, m]
                assert (mine > 0).sum() < len(valid), "rivals hold one each, so that one would be left"
                assert (of_holder >= mine - 1e-12)[mine > 0].all()

    @given(
        seed=st.integers(0, 2**31),
        count=st.integers(0, 8),
        extra=st.integers(0, 5),
        grid=st.sampled_from([None, 3]),
    )
    @example(seed=0, count=0, extra=0, grid=None)
    @example(seed=0, count=0, extra=2, grid=None)
    def test_order_and_padding(self, seed, count, extra, grid):
        """Bit for bit the same targets, whatever stands in the rows of padding."""
        boxes, labels, ignore = draw_boxes(2, count, seed, grid=grid)
        more = torch.full((2, extra, 4), math.nan, dtype=torch.float64)
        shuffle = torch.randperm(count + extra, generator=torch.Generator().manual_seed(seed))
        other = (
            torch.cat([boxes, more], 1)[:, shuffle],
            torch.cat([labels, labels.new_full((2, extra), -1)], 1)[:, shuffle],
            torch.cat([ignore, torch.ones(2, extra, dtype=torch.bool)], 1)[:, shuffle],
        )
        for one, two in zip(assign_targets(SMALL, boxes, labels, ignore), assign_targets(SMALL, *other), strict=True):
            assert torch.equal(one, two)

    def test_the_better_overlap_has_the_anchor(self):
        anchors = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0]])
        near, far = [0.45, 0.45, 0.55, 0.55], [0.4, 0.4, 0.6, 0.6]
        for rows, labels in (((near, far), (1, 2)), ((far, near), (2, 1))):
            found = match_anchors(anchors, torch.tensor([rows]), torch.tensor([labels]))
            assert found.labels.tolist() == [[2, 1]]

    def test_ignored(self):
        """Anchors on an ignored box do not count, unless another box claims them; it claims none itself."""
        anchors = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0], [0.5, 0.5, 0.1, 0.1]])
        left, small = [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.1, 0.1]
        boxes, labels = torch.tensor([[left, small]]), torch.tensor([[1, 2]])
        ignored = torch.tensor([[True, False]])
        assert match_anchors(anchors, boxes[:, :1], labels[:, :1], ignored[:, :1]).labels.tolist() == [[-1, 0, 0]]
        assert match_anchors(anchors, boxes, labels, ignored).labels.tolist() == [[2, 0, 0]]
        tiny = torch.tensor([[[0.7, 0.0, 0.8, 0.1]]])
        assert match_anchors(anchors, tiny, labels[:, :1], ignored[:, :1]).labels.tolist() == [[0, 0, 0]]

    def test_threshold(self):
        """An overlap of just that much is enough."""
        anchors = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
        boxes, labels = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), torch.tensor([[3]])
        assert match_anchors(anchors, boxes, labels).labels.tolist() == [[3, 3, 0]]
        assert match_anchors(anchors, boxes, labels, iou_threshold=0.51).labels.tolist() == [[0, 3, 0]]

    def test_boxes_without_extent_are_padding(self):
        rows = [[0.2, 0.2, 0.2, 0.9], [0.5, 0.5, 0.4, 0.6], [math.nan, 0.1, 0.5, 0.6]]
        boxes = torch.tensor([rows], dtype=torch.float64)
        labels, deltas = assign_targets(SMALL, boxes, torch.tensor([[1, 2, 3]]))
        assert not labels.any()
        assert not deltas.any()
        good = torch.tensor([[[0.1, 0.1, 0.6, 0.6]]], dtype=torch.float64)
        beside = assign_targets(SMALL, torch.cat([boxes, good], 1), torch.tensor([[1, 2, 3, 4]]))
        for one, two in zip(beside, assign_targets(SMALL, good, torch.tensor([[4]])), strict=True):
            assert torch.equal(one, two)


class TestAssignTargets:
    @pytest.mark.parametrize("case", DETECTION["cases"], ids=IDS)
    def test_feature(self, case):
        """Decoded, they are the boxes; where there is none to find, zeros."""
        boxes, classes = truth(case)
        anchors = anchors_of(*case["shape"][2:])
        labels, deltas = assign_targets(anchors, boxes, classes)
        found = match_anchors(anchors, boxes, classes)
        positive = labels[0] > 0
        assert torch.equal(labels, found.labels)
        torch.testing.assert_close(decode_boxes(deltas[0], anchors)[positive], boxes[0, found.box[0, positive]])
        assert not deltas[0, ~positive].any()

    @given(seed=st.integers(0, 2**31), count=st.integers(0, 6))
    def test_weights_are_of_the_boxes_that_anchors_find(self, seed, count):
        boxes, classes, ignore = draw_boxes(2, count, seed)
        weights = torch.rand(2, count, generator=torch.Generator().manual_seed(seed))
        labels, _, found = assign_weighted_targets(SMALL, boxes, classes, weights, ignore)
        matches = match_anchors(SMALL, boxes, classes, ignore)
        for i, a in (labels > 0).nonzero().tolist():
            assert found[i, a] == weights[i, matches.box[i, a]]
        assert (found[labels <= 0] == 1).all()

    def test_keeps_dtype(self):
        boxes, classes = truth(DETECTION["cases"][0])
        labels, deltas = assign_targets(anchors_of(64, 64, torch.float32), boxes.float(), classes)
        assert (labels.dtype, deltas.dtype) == (torch.int64, torch.float32)


class TestMasksToBoxes:
    @given(
        st.integers(0, 2**16),
        st.integers(1, 9),
        st.integers(1, 9),
        st.sampled_from([torch.bool, torch.uint8, torch.float32]),
    )
    def test_are_tight(self, seed, height, width, dtype):
        r = torch.Generator().manual_seed(seed)
        masks = (torch.rand(2, 3, height, width, generator=r) < 0.2).to(dtype)
        boxes = masks_to_boxes(masks * 200 if dtype == torch.uint8 else -1 * masks if dtype == torch.float32 else masks)
        for mask, box in zip(masks.flatten(0, 1), boxes.flatten(0, 1).tolist(), strict=True):
            places = mask.nonzero()
            expected = [0, 0, 0, 0]
            if len(places):
                (top, left), (bottom, right) = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
                expected = [left, top, right, bottom]
            assert box == expected

    def test_of_many_rows(self):
        """Eight pixels at a time, of which as many rows are added up as a byte can count."""
        masks = torch.zeros(4, 600, 16, dtype=torch.bool)
        masks[0] = True
        masks[1, :256, 3] = True
        masks[2, 511, 9] = True
        expected = [[0, 0, 16, 600], [3, 0, 4, 256], [9, 511, 10, 512], [0, 0, 0, 0]]
        assert masks_to_boxes(masks).tolist() == masks_to_boxes(masks.long()).tolist() == expected
        assert have_pixels(masks[None]).tolist() == [[True, True, True, False]]

    def test_exception(self):
        for shape in ((3,), (2, 0, 4)):
            with pytest.raises(ValueError, match="expected masks of shape"):
                masks_to_boxes(torch.zeros(shape))
