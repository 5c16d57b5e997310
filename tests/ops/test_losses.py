"""The loss of a detector: against Apple's, against a plain loop, and by its properties."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit.ops.boxes import assign_targets, assign_weighted_targets
from kornia_mvit.ops.losses import MultiboxLoss, multibox_loss, pixel_cross_entropy
from tests.ops.test_boxes import SMALL, draw_boxes
from tests.tester import BaseTester


def outputs(batch, seed=0):
    """Logits and deltas."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, len(SMALL), n, generator=generator, dtype=torch.float64) for n in (4, 4))


def plain_loss(logits, deltas, labels, targets, ratio=3, smoothing=0.0):
    classes = places = count = 0.0
    for row in zip(logits, deltas, labels, targets, strict=True):
        scores, moves, wanted, goals = row
        each = F.cross_entropy(scores, wanted.clamp_min(0), reduction="none", label_smoothing=smoothing)
        hardness = -F.log_softmax(scores, -1)[:, 0]
        positive = [a for a in range(len(wanted)) if wanted[a] > 0]
        background = sorted((a for a in range(len(wanted)) if wanted[a] == 0), key=lambda a: -hardness[a].item())
        share = max(1, len(positive))
        classes += sum(each[a] for a in [*positive, *background[: ratio * share]])
        places += sum(F.smooth_l1_loss(moves[a], goals[a], reduction="sum") for a in positive)
        count += share
    return (classes + places) / count, classes / count, places / count


class TestMultiboxLoss(BaseTester):
    def test_smoke(self, device, dtype):
        """In float32 at least, since sums over thousands of anchors are no matter for less."""
        logits, deltas = (x.to(device, dtype) for x in outputs(2))
        boxes, classes, ignore = (x.to(device) for x in draw_boxes(2, 5, 0))
        loss = multibox_loss(logits, deltas, *assign_targets(SMALL.to(device), boxes, classes, ignore))
        assert isinstance(loss, MultiboxLoss)
        for part in loss:
            assert part.shape == ()
            assert part.isfinite()
            assert part.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    def test_exception(self):
        """Takes what is of the shapes it says."""
        logits, deltas = outputs(2)
        with pytest.raises((IndexError, RuntimeError)):
            multibox_loss(logits, deltas, torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, 4))

    def test_cardinality(self):
        total, classification, regression = multibox_loss(
            *outputs(1), torch.ones(1, len(SMALL)).long(), torch.zeros(1, len(SMALL), 4)
        )
        assert total == classification + regression

    @given(
        seed=st.integers(0, 2**31),
        batch=st.integers(1, 4),
        count=st.integers(0, 6),
        ratio=st.integers(1, 4),
        smoothing=st.sampled_from([0.0, 0.1]),
    )
    def test_feature(self, seed, batch, count, ratio, smoothing):
        """The golden values are in the tests of the network; here a loop gives the same."""
        logits, deltas = outputs(batch, seed)
        labels, targets = assign_targets(SMALL, *draw_boxes(batch, count, seed, share=0.5))
        loss = multibox_loss(logits, deltas, labels, targets, negative_ratio=ratio, label_smoothing=smoothing)
        for one, two in zip(loss, plain_loss(logits, deltas, labels, targets, ratio, smoothing), strict=True):
            torch.testing.assert_close(one, torch.as_tensor(two, dtype=torch.float64), rtol=1e-9, atol=1e-9)

    @given(
        seed=st.integers(0, 2**31), count=st.integers(0, 6), extra=st.integers(0, 4), grid=st.sampled_from([None, 3])
    )
    def test_order_and_padding(self, seed, count, extra, grid):
        """Bit for bit the same loss."""
        logits, deltas = outputs(2, seed)
        boxes, classes, ignore = draw_boxes(2, count, seed, grid=grid)
        more, none, flags = draw_boxes(2, extra, seed + 1)
        shuffle = torch.randperm(count + extra, generator=torch.Generator().manual_seed(seed))
        other = [torch.cat(pair, 1)[:, shuffle] for pair in ((boxes, more), (classes, none.fill_(-1)), (ignore, flags))]
        one = multibox_loss(logits, deltas, *assign_targets(SMALL, boxes, classes, ignore))
        two = multibox_loss(logits, deltas, *assign_targets(SMALL, *other))
        assert torch.equal(torch.stack(one), torch.stack(two))

    @pytest.mark.parametrize("count", [0, 3])
    def test_no_box_at_all(self, count):
        """Finite, with a gradient that makes background likelier, no larger than one image's."""
        logits, deltas = (x.requires_grad_() for x in outputs(3))
        boxes, classes = torch.zeros(3, count, 4), torch.full((3, count), -1)
        loss = multibox_loss(logits, deltas, *assign_targets(SMALL.float(), boxes, classes))
        loss.total.backward()
        assert loss.regression == 0
        assert 0 < loss.total < 3 * 8
        assert not deltas.grad.any()
        touched = logits.grad.abs().sum(-1) > 0
        assert touched.sum(1).tolist() == [3, 3, 3]
        assert (logits.grad[..., 0][touched] < 0).all()

    def test_an_empty_image_beside_others(self):
        """It teaches as much as an image with one positive."""
        logits, deltas = (x.requires_grad_() for x in outputs(2))
        labels = torch.zeros(2, len(SMALL), dtype=torch.long)
        labels[0, 5], labels[0, 7] = 2, -1
        logits.data[0, 7, 0] = -50.0  # it would be the hardest
        multibox_loss(logits, deltas, labels, torch.zeros(2, len(SMALL), 4)).total.backward()
        assert ((logits.grad.abs().sum(-1) > 0).sum(1)).tolist() == [4, 3]
        assert not logits.grad[0, 7].any(), "anchors that do not count have no gradient"

    @given(seed=st.integers(0, 2**31), count=st.integers(0, 6), share=st.floats(0, 1))
    def test_weights(self, seed, count, share):
        """Both terms of an anchor are multiplied by the weight of its box; negatives stay."""
        logits, deltas = outputs(2, seed)
        boxes, classes, ignore = draw_boxes(2, count, seed)
        weights = torch.rand(2, count, generator=torch.Generator().manual_seed(seed))
        labels, targets, anchor_weights = assign_weighted_targets(SMALL, boxes, classes, weights, ignore)
        assert all(map(torch.equal, (labels, targets), assign_targets(SMALL, boxes, classes, ignore)))
        plain = multibox_loss(logits, deltas, labels, targets)
        ones = multibox_loss(logits, deltas, labels, targets, weights=torch.ones_like(anchor_weights))
        torch.testing.assert_close(torch.stack(ones), torch.stack(plain))
        none = multibox_loss(logits, deltas, labels, targets, weights=torch.zeros_like(anchor_weights))
        some = multibox_loss(logits, deltas, labels, targets, weights=torch.full_like(anchor_weights, share))
        torch.testing.assert_close(none.regression, torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(some.regression, share * plain.regression)
        mixed = share * plain.classification + (1 - share) * none.classification
        torch.testing.assert_close(some.classification, mixed)
        divisor = (labels > 0).sum(1).clamp_min(1).sum()
        found = multibox_loss(logits, deltas, labels, targets, weights=anchor_weights)
        each = F.smooth_l1_loss(deltas, targets, reduction="none").sum(-1) * (labels > 0) * anchor_weights
        torch.testing.assert_close(found.regression, each.sum() / divisor)

    def test_gradcheck(self):
        labels, targets = assign_targets(SMALL, *draw_boxes(2, 4, 3))
        self.gradcheck(lambda a, b: multibox_loss(a, b, labels, targets, label_smoothing=0.1).total, outputs(2, 5))

    def test_dynamo(self):
        """The number of positives is data: a graph breaks there, and the value stays."""
        labels, targets = assign_targets(SMALL, *draw_boxes(2, 4, 3))
        logits, deltas = outputs(2, 5)
        compiled = torch.compile(multibox_loss, backend="eager")
        assert torch.equal(
            compiled(logits, deltas, labels, targets).total, multibox_loss(logits, deltas, labels, targets).total
        )


class TestPixelCrossEntropy:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 3.0, 1.0])])
    def test_equals_pytorch(self, weight, label_smoothing):
        logits, target = torch.randn(2, 3, 5, 7), torch.randint(0, 3, (2, 5, 7))
        target[:, :2] = 255
        expected = F.cross_entropy(logits, target, weight, ignore_index=255, label_smoothing=label_smoothing)
        found = pixel_cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing)
        torch.testing.assert_close(found, expected)

    def test_without_a_labelled_pixel(self):
        logits = torch.randn(1, 3, 4, 4, requires_grad=True)
        loss = pixel_cross_entropy(logits, torch.full((1, 4, 4), 255))
        loss.backward()
        assert loss == 0
        assert logits.grad.count_nonzero() == 0
