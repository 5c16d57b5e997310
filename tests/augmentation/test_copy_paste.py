"""CopyPaste, and masks of single objects in the other mixes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, CopyPaste, CutMix, MixUp, Mosaic, policies
from tests.augmentation.test_mixes import CASES, ROWS, SEEDS, SIDES, bounds, equal, painted
from tests.tester import BaseTester, cases


def objects(seed, height, width, *, padded=False, holes=False):
    """The painted boxes with a mask of each, of which some lack pixels, and a field that numbers them."""
    batch = painted(seed, height, width, padded=padded)
    number = 1 + torch.arange(5)[:, None] * ROWS + batch.box_label
    number = number.masked_fill(batch.box_label < 0, 0)
    generator = torch.Generator().manual_seed(seed)
    masks = (batch.mask[:, None] == number[..., None, None]) & (number > 0)[..., None, None]
    if holes:
        masks &= torch.rand(masks.shape, generator=generator) < 0.7
    shown = masks.any(1)
    image = torch.where(shown[:, None], batch.image, 0.0)
    mask = torch.where(shown | (batch.mask == 255), batch.mask, 0)
    return batch.replace(image=image, mask=mask, instance_masks=masks, fields={"number": number})


class TestCopyPaste(BaseTester):
    def test_smoke(self, device, dtype):
        batch = objects(0, 20, 24)
        out = CopyPaste(1.0)(batch.replace(image=batch.image.to(dtype)).to(device))
        assert out.image.dtype == dtype
        assert out.instance_masks.device.type == out.fields["number"].device.type == device.type

    def test_exception(self):
        with pytest.raises(ValueError, match=r"objects 1\.5 is not in \[0, 1\]"):
            CopyPaste(objects=1.5)
        for refuse in (CopyPaste(), AugmentationPipeline(policies.detection_train(32, copy_paste=0.5))):
            with pytest.raises(ValueError, match=r"CopyPaste .* no instance_masks"):
                refuse(painted(0, 20, 24))
        batch = objects(0, 20, 24)
        pipeline = AugmentationPipeline(mix=CopyPaste(1.0))
        params = pipeline.augment(batch, seed=0)[1]
        with pytest.raises(ValueError, match="4 boxes an image, the batch has 3"):
            pipeline.replay(
                batch.replace(
                    boxes=batch.boxes[:, :3],
                    box_label=batch.box_label[:, :3],
                    instance_masks=batch.instance_masks[:, :3],
                    fields=None,
                ),
                params,
            )

    def test_cardinality(self):
        out = CopyPaste(1.0)(objects(0, 20, 24))
        assert out.boxes.shape == (5, 2 * ROWS, 4)
        assert out.instance_masks.shape == (5, 2 * ROWS, 20, 24)
        assert out.instance_masks.dtype == torch.bool
        none = Batch(
            torch.rand(2, 3, 8, 9),
            boxes=torch.zeros(2, 0, 4),
            box_label=torch.zeros(2, 0).long(),
            instance_masks=torch.zeros(2, 0, 8, 9, dtype=torch.uint8),
        )
        assert torch.equal(CopyPaste(1.0)(none).image, none.image)

    @cases(CASES)
    @given(seed=SEEDS, height=SIDES, width=SIDES, padded=st.booleans(), holes=st.booleans(), p=st.floats(0.3, 1))
    def test_feature(self, seed, height, width, padded, holes, p):
        """Pasted pixels are those of the masks; hidden ones are gone from masks, and boxes lie around what is left."""
        batch = objects(seed, height, width, padded=padded, holes=holes)
        pipeline = AugmentationPipeline(mix=CopyPaste(p), min_box_area=0.0)
        out, params = pipeline.augment(batch, seed=seed)
        assert equal(pipeline.replay(batch, params), out)
        step, number = params["mix"]["steps"][0], out.fields["number"]
        for i in range(5):
            chosen = [k for k, row in enumerate(step.get("rows", [])) if int(row) == i]
            live = out.box_label[i] >= 0
            pasted = live & (out.box_source[i] != i)
            shown = out.instance_masks[i][pasted].any(0)
            if chosen:
                other = int(step["others"][chosen[0], 0])
                assert out.box_source[i][pasted].unique().tolist() in ([], [other])
                assert bool(pasted.any()) == bool(batch.instance_masks[other].any())
                for field in ("image", "mask"):
                    new, over, under = (getattr(b, field)[k] for b, k in ((out, i), (batch, other), (batch, i)))
                    assert torch.equal(new, torch.where(shown, over, under))
                for n in pasted.nonzero()[:, 0].tolist():  # whole, as they were
                    row = int(out.box_index[i, n])
                    assert torch.equal(out.instance_masks[i, n], batch.instance_masks[other, row])
                    assert torch.equal(out.boxes[i, n], batch.boxes[other, row])
                    assert number[i, n] == batch.fields["number"][other, row]
            else:
                assert torch.equal(out.image[i], batch.image[i])
            for n in (live & ~pasted).nonzero()[:, 0].tolist():
                row = int(out.box_index[i, n])
                before, after = batch.instance_masks[i, row], out.instance_masks[i, n]
                assert torch.equal(after, before & ~shown)
                cut = not torch.equal(after, before)
                assert torch.equal(out.boxes[i, n], bounds(after) if cut else batch.boxes[i, row])
                assert torch.equal(out.mask[i] == number[i, n], after)
            gone = set(batch.fields["number"][i].tolist()) - set(number[i][live].tolist()) - {0}
            for hidden in gone:  # nothing of it is left
                assert not bool((out.mask[i] == hidden).any())

    def test_visibility(self):
        """The share is that of the mask, not of the box."""
        masks = torch.zeros(2, 1, 10, 10, dtype=torch.bool)
        masks[0, 0, 0, :], masks[0, 0, :, 0] = True, True  # 19 pixels along two edges
        masks[1, 0, :, 1:] = True  # 9 of them are hidden, and most of the box
        boxes = torch.tensor([[[0.0, 0, 10, 10]], [[1.0, 0, 10, 10]]])
        batch = Batch(torch.rand(2, 3, 10, 10), boxes=boxes, box_label=torch.zeros(2, 1).long(), instance_masks=masks)
        for least, kept in ((0.5, 2), (0.55, 1)):
            out = AugmentationPipeline(mix=CopyPaste(1.0), min_box_visibility=least).augment(batch, seed=0)[0]
            assert int((out.box_label[0] >= 0).sum()) == kept
        none = batch.replace(instance_masks=masks & torch.tensor([False, True])[:, None, None, None])
        out = AugmentationPipeline(mix=CopyPaste(1.0)).augment(none, seed=0)[0]
        assert out.boxes[0, 0].tolist() == [0, 0, 10, 10]  # of a box without a mask, the pixels within it count
        for least, kept in ((0.1, 2), (0.11, 1)):
            out = AugmentationPipeline(mix=CopyPaste(1.0), min_box_visibility=least).augment(none, seed=0)[0]
            assert int((out.box_label[0] >= 0).sum()) == kept

    def test_crowds_are_not_pasted(self):
        batch = objects(4, 30, 30)
        crowd = batch.replace(box_ignore=batch.box_label >= 0)
        out = CopyPaste(1.0, objects=1.0)(crowd)
        assert torch.equal(out.image, batch.image)
        live = out.box_source >= 0
        assert bool((out.box_source == torch.arange(5)[:, None])[live].all())

    def test_share_of_objects(self):
        batch = objects(4, 40, 40)
        whole = CopyPaste(1.0, objects=1.0)
        one = CopyPaste(1.0, objects=0.0)
        for mix, counts in ((whole, (batch.box_label >= 0).sum(1)), (one, (batch.box_label >= 0).any(1))):
            out, params = AugmentationPipeline(mix=mix).augment(batch, seed=1)
            others = params["mix"]["steps"][0]["others"][:, 0]
            pasted = ((out.box_label >= 0) & (out.box_source != torch.arange(5)[:, None])).sum(1)
            assert torch.equal(pasted, counts[others].long())

    def test_gradcheck(self):
        masks = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
        masks[:, :, 1:3] = True
        boxes = torch.tensor([[[0.0, 1, 4, 3]]] * 2)
        image = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)

        def paste(x):
            torch.manual_seed(0)
            labels = torch.zeros(2, 1).long()
            return CopyPaste(1.0)(Batch(x, boxes=boxes, box_label=labels, instance_masks=masks)).image

        assert torch.autograd.gradcheck(paste, image)

    def test_dynamo(self):
        """It is carried out uncompiled, as in TestMosaic."""


class TestInstancesInMixes:
    @cases(CASES)
    @given(seed=SEEDS, height=SIDES, width=SIDES, mosaic=st.booleans(), padded=st.booleans())
    def test_masks_are_what_the_mask_of_all_shows(self, seed, height, width, mosaic, padded):
        batch = objects(seed, height, width, padded=padded)
        mix = Mosaic(1.0) if mosaic else CutMix(1.0)
        for method in ("corners", "mask"):
            out = AugmentationPipeline(mix=mix, box_method=method, min_box_area=0.0).augment(batch, seed=seed)[0]
            for i, n in (out.box_label >= 0).nonzero().tolist():
                expected = out.mask[i] == out.fields["number"][i, n]
                assert torch.equal(out.instance_masks[i, n], expected)
                if method == "mask":
                    assert torch.equal(out.boxes[i, n], bounds(expected))
            assert not out.instance_masks[out.box_label < 0].any()

    def test_blends_keep_them_whole(self):
        batch = objects(3, 30, 34).replace(mask=None)
        out = MixUp(1.0)(batch)
        for i, n in (out.box_label >= 0).nonzero().tolist():
            source, row = int(out.box_source[i, n]), int((out.fields["number"][i, n] - 1) % ROWS)
            rows = (batch.box_label[source] == row).nonzero()[0, 0]
            assert torch.equal(out.instance_masks[i, n], batch.instance_masks[source, rows])

    def test_bytes_stay_bytes(self):
        batch = objects(3, 30, 34)
        bytes_ = batch.replace(instance_masks=batch.instance_masks.to(torch.uint8))
        for mix in (Mosaic(1.0), CutMix(1.0), CopyPaste(1.0)):
            plain, other = (AugmentationPipeline(mix=mix).augment(one, seed=2)[0] for one in (batch, bytes_))
            assert other.instance_masks.dtype == torch.uint8
            assert torch.equal(other.instance_masks.bool(), plain.instance_masks)
