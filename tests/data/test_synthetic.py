"""Shapes: that labels, boxes and masks say the same."""

import pytest
import torch

from kornia_mvit.data.synthetic import Shapes


class TestShapes:
    def test_labels_boxes_and_masks_agree(self):
        data = Shapes(12, (48, 64), seed=3)
        kinds = set()
        for sample in (data[i] for i in range(len(data))):
            mask, boxes = sample["mask"], sample["boxes"].long().tolist()
            assert 1 <= len(boxes) <= 4
            inside = torch.zeros_like(mask, dtype=torch.bool)
            for (left, top, right, bottom), kind in zip(boxes, sample["box_label"].tolist(), strict=True):
                part = mask[top:bottom, left:right] == kind + 1
                assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
                inside[top:bottom, left:right] |= part
                kinds.add(kind)
            assert torch.equal(inside, mask > 0)
            counts = torch.bincount(mask.flatten(), minlength=4)[1:]
            assert counts[sample["label"]] > 0
        assert kinds == {0, 1, 2}

    def test_depend_on_seed_and_number_alone(self):
        a, b = Shapes(3, seed=1), Shapes(8, seed=1)
        assert torch.equal(a[2]["image"], b[2]["image"])
        assert not torch.equal(a[2]["image"], Shapes(3, seed=2)[2]["image"])
        assert len(a.batch()) == 3

    def test_exception(self):
        with pytest.raises(ValueError, match="count 0 and size"):
            Shapes(0)
        with pytest.raises(ValueError, match=r"shapes \(3, 2\)"):
            Shapes(shapes=(3, 2))
        with pytest.raises(IndexError, match="no image 5; there are 5"):
            Shapes(5)[5]
