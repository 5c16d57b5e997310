"""Masks of single objects from COCO's outlines."""

import json

import numpy
import pytest
import torch
from faster_coco_eval.core import mask as api
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit.data.instances import Outlines, encode_outlines
from kornia_mvit.data.reading import DataError
from kornia_mvit.training.datamodules import COCOData
from tests.tester import cases
from tests.training.shapes import make_coco

SIZE = (11, 14)
SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]


def decode(outline, size=SIZE):
    """The mask that an outline becomes."""
    encoded, faults = encode_outlines([outline], [size])
    assert not faults
    return Outlines.pack(encoded).masks(slice(0, 1), size)[0]


class TestEncodeOutlines:
    @cases(200)
    @given(st.integers(0, 2**20), st.integers(1, 20), st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    def test_run_lengths_give_the_painted_mask(self, seed, height, width, share):
        mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share
        text = api.encode(numpy.asfortranarray(mask.numpy().astype(numpy.uint8)))["counts"]
        column = torch.cat([torch.zeros(1), mask.T.flatten().float()])  # column by column, from what is not the object
        changes = (column.diff() != 0).nonzero().flatten().tolist()
        counts = [b - a for a, b in zip([0, *changes], [*changes, height * width], strict=True)]
        for form in (text.decode() if isinstance(text, bytes) else text, counts):
            found = decode({"size": [height, width], "counts": form}, (height, width))
            assert found.equal(mask)

    def test_polygons(self):
        expected = torch.zeros(SIZE, dtype=torch.bool)
        expected[3:9, 2:8] = True
        assert decode([SQUARE]).equal(expected)
        assert decode(SQUARE).equal(expected), "one polygon without a list around it"
        other = [9.0, 0.0, 13.0, 0.0, 13.0, 2.0, 9.0, 2.0]
        expected[0:2, 9:13] = True
        assert decode([SQUARE, other, [1.0, 1.0]]).equal(expected), "what has no area is left"
        assert not decode(None).any() and not decode([]).any()

    @pytest.mark.parametrize(
        ("outline", "message"),
        [
            ([[1.0, 2.0, 3.0, 4.0]], "fewer than three points"),
            ([[1.0, 2.0, 3.0, 4.0, 5.0]], "no list of x, y"),
            ([[1.0, 2.0, 3.0, "4", 5.0, 6.0]], "no list of x, y"),
            ([[1e9, 2.0, 3.0, 4.0, 5.0, 6.0]], "far out of the image"),
            ([[float("nan"), 2.0, 3.0, 4.0, 5.0, 6.0]], "far out of the image"),
            ("word", "neither polygons nor run lengths"),
            ({"size": [9, 9], "counts": [81]}, "its image is 11x14"),
            ({"size": [11, 14], "counts": [100]}, "outline of 100 pixels, but its image has 154"),
            ({"size": [11, 14], "counts": [-1, 155]}, "no whole numbers from 0"),
            ({"size": [11, 14], "counts": "zz"}, "not COCO's"),
            ({"size": [11, 14], "counts": "P"}, "end in a number"),
            ({"size": [11, 14]}, "run lengths None"),
        ],
    )
    def test_faults(self, outline, message):
        encoded, faults = encode_outlines([[SQUARE], outline], [SIZE, SIZE])
        assert encoded[1] == b"" and message in faults[1]
        assert len(encoded[0]) > 0 and 0 not in faults


class TestOutlines:
    def test_select(self):
        masks = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
        found = [api.encode(numpy.asfortranarray(m.numpy().astype(numpy.uint8)))["counts"] for m in masks]
        outlines = Outlines.pack([*found[:2], b"", *found[2:]])
        assert outlines.masks(slice(0, 2), (5, 6)).equal(masks[:2])
        part = outlines.select(torch.tensor([4, 2, 0]))
        assert part.masks(slice(0, 3), (5, 6)).equal(torch.stack([masks[3], torch.zeros(5, 6) > 0, masks[0]]))
        assert Outlines.pack([]).masks(slice(0, 0), (5, 6)).shape == (0, 5, 6)


class TestCOCOData:
    def write(self, root, change=lambda items: None):
        """Outline each box by its corners."""
        for split in ("train", "val"):
            file = root / f"annotations/instances_{split}2017.json"
            data = json.loads(file.read_text())
            for item in data["annotations"]:
                x, y, w, h = item["bbox"]
                item["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            change(data["annotations"])
            file.write_text(json.dumps(data))

    def test_masks_fill_their_boxes_through_storage_and_batch(self, tmp_path):
        self.write(make_coco(tmp_path))
        data = COCOData(str(tmp_path), num_workers=0, batch_size=3, storage_size=30, instance_masks=True)
        data.setup()
        batch = next(iter(data.val_dataloader()))
        assert batch.instance_masks.shape == (*batch.boxes.shape[:2], *batch.image.shape[2:])
        for masks, boxes, labels in zip(batch.instance_masks, batch.boxes, batch.box_label, strict=True):
            for mask, (left, top, right, bottom), label in zip(masks, boxes.tolist(), labels.tolist(), strict=True):
                area = (right - left) * (bottom - top) * (label >= 0)
                assert abs(float(mask.sum()) - area) <= 2 * (right - left + bottom - top) + 4
        data = COCOData(str(tmp_path), num_workers=0)
        data.setup()
        assert "instance_masks" not in data.splits["val"][0], "off by default"

    def test_an_outline_that_cannot_be_read_leaves_its_box_out(self, tmp_path):
        def change(items):
            items[0]["segmentation"] = [[1, 2, 3]]
            del items[1]["segmentation"]

        self.write(make_coco(tmp_path), change)
        data = COCOData(str(tmp_path), num_workers=0, instance_masks=True)
        assert len(data.bad_boxes) == 2, "one of train and one of val"
        assert "which is no list of x, y" in data.bad_boxes[0]
        with pytest.raises(DataError, match="no list of x, y"):
            COCOData(str(tmp_path), num_workers=0, instance_masks=True, on_bad_box="raise")
