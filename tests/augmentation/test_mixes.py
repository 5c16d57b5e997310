"""Mosaic, MixUp and CutMix."""

import io

import kornia.augmentation as K
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, CutMix, Mix, MixUp, Mosaic, Preprocess, policies
from tests.augmentation.scenes import scene
from tests.tester import BaseTester, cases

SEEDS = st.integers(0, 2**20)
SIDES = st.integers(11, 60)
CASES = 200  # batches of five images
MIXES = {"mosaic": Mosaic, "mixup": MixUp, "cutmix": CutMix}
ROWS = 4  # of the boxes of a painted image
STEP = 4 / 255  # between the values of two painted boxes


def painted(seed, height, width, *, count=5, padded=False):
    """Images with up to three boxes that lie apart, painted with a number of their own in the image and in the mask."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    image, mask = torch.zeros(count, 3, height, width), torch.zeros(count, height, width, dtype=torch.long)
    boxes, labels = torch.zeros(count, ROWS, 4), torch.full((count, ROWS), -1)
    size = torch.tensor([[height, width]]).repeat(count, 1)
    for i in range(count):
        h, w = (number(height // 2, height), number(width // 2, width)) if padded else (height, width)
        size[i] = torch.tensor([h, w])
        mask[i, h:], mask[i, :, w:] = 255, 255
        for j in range(number(0, 3)):
            x, y = number(0, w - 3), number(0, h - 3)
            right, below = number(x + 3, w), number(y + 3, h)
            if bool(mask[i, y:below, x:right].any()):
                continue
            k = 1 + i * ROWS + j
            image[i, :, y:below, x:right], mask[i, y:below, x:right] = STEP * k, k
            boxes[i, j], labels[i, j] = torch.tensor([x, y, right, below]), j
    order = (labels < 0).int().argsort(dim=1, stable=True)
    boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
    return Batch(image, boxes=boxes, box_label=labels, mask=mask, size=size if padded else None)


def only(kind, **arguments):
    return MIXES[kind](1.0, **arguments)


def bounds(inside):
    """Edges of the box around the pixels of a mask (H, W)."""
    row, column = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    return torch.tensor([column[0], row[0], column[-1] + 1, row[-1] + 1], dtype=torch.float32)


def found_boxes(batch):
    """The boxes of each image by the number that they are painted with."""
    return [
        {
            1 + int(batch.box_source[i, n]) * ROWS + int(label): batch.boxes[i, n]
            for n, label in enumerate(batch.box_label[i].tolist())
            if label >= 0
        }
        for i in range(len(batch))
    ]


def check_against_paint(out, given, whole=1.0):
    """Each box lies around the pixels of its number, and each number of which a pixel is seen has a box."""
    for i, boxes in enumerate(found_boxes(out)):
        shown = out.mask[i]
        assert len(boxes) == int((out.box_label[i] >= 0).sum())  # none twice
        for number, box in boxes.items():
            if bool((shown == number).any()):
                assert (box - bounds(shown == number)).abs().max() <= whole
            else:  # less than a pixel wide, between the centres of two
                assert (box[2:] - box[:2]).min() < 1
        for number in set(shown.unique().tolist()) - {0, 255} - set(boxes):
            edges = bounds(shown == number)
            assert (edges[2:] - edges[:2]).min() <= 2  # below min_box_area
    live = out.box_label >= 0
    assert torch.equal(live.int().sort(1, descending=True).values.bool(), live)  # padding is last
    assert (out.boxes[~live] == 0).all()
    assert (out.box_source[~live] == -1).all()
    assert given.boxes.dtype == out.boxes.dtype


def equal(a, b):
    tensors = {name for one in (a, b) for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


class TestMosaic(BaseTester):
    def test_smoke(self, device, dtype):
        batch = painted(0, 20, 24)
        batch = batch.replace(image=batch.image.to(dtype)).to(device)
        out = Mosaic(1.0)(batch)
        assert out.image.dtype == dtype
        assert out.boxes.device.type == out.mask.device.type == device.type

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"p": 1.5}, r"p 1\.5 is not in \[0, 1\]"),
            ({"scale": (0.0, 1.0)}, r"scale \(0\.0, 1\.0\)"),
            ({"scale": (1.0, 0.5)}, r"scale \(1\.0, 0\.5\)"),
            ({"centre": (0.2, 1.2)}, r"centre \(0\.2, 1\.2\)"),
            ({"num_classes": 1}, "num_classes 1 is not at least 2"),
            ({"max_boxes": 0}, "max_boxes 0 is not at least 1"),
        ],
    )
    def test_exception_of_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Mosaic(**arguments)

    def test_exception(self):
        batch = painted(0, 20, 24)
        for wrong, message in [
            (scene(0), "Mosaic cannot carry keypoints along"),
            (batch.replace(label=torch.arange(5)), r"give Mosaic\(num_classes=\.\.\.\)"),
        ]:
            for refuse in (Mosaic(), AugmentationPipeline(mix=Mosaic())):
                with pytest.raises(ValueError, match=message):
                    refuse(wrong)
        with pytest.raises(ValueError, match="labels go from 0 to 4, but num_classes 3"):
            Mosaic(num_classes=3)(batch.replace(label=torch.arange(5)))
        with pytest.raises(TypeError, match=r"got torch\.uint8"):
            Mosaic()(batch.replace(image=torch.zeros(5, 3, 20, 24, dtype=torch.uint8)))

    def test_cardinality(self):
        for count, rows in ((1, 4), (2, 16), (3, 16), (5, 16)):
            out = Mosaic(1.0)(painted(1, 20, 24, count=count))
            assert out.image.shape == (count, 3, 20, 24)
            assert out.boxes.shape == (count, rows, 4)
            assert out.box_label.shape == out.box_source.shape == (count, rows)
        none = Batch(torch.rand(4, 3, 8, 9), boxes=torch.zeros(4, 0, 4), box_label=torch.zeros(4, 0).long())
        assert Mosaic(1.0)(none).boxes.shape == (4, 0, 4)
        assert Mosaic(1.0)(Batch(torch.rand(4, 3, 8, 9))).boxes is None
        assert Mosaic(1.0)(Batch(torch.rand(4, 3, 1, 1))).image.shape == (4, 3, 1, 1)

    @cases(CASES)
    @given(seed=SEEDS, height=SIDES, width=SIDES, padded=st.booleans())
    def test_feature(self, seed, height, width, padded):
        """Boxes lie around what is painted, within a pixel, and the image shows what the mask says."""
        given = painted(seed, height, width, padded=padded)
        pipeline = AugmentationPipeline(mix=Mosaic(1.0))
        out, params = pipeline.augment(given, seed=seed)
        check_against_paint(out, given)
        assert equal(pipeline.replay(given, params), out)
        assert bool((out.mask != 255).all())  # no padding is shown
        if padded:
            assert torch.equal(out.size, torch.tensor([[height, width]]).expand(5, 2))
        # Inside a patch of one number, bilinear reading gives that number.
        edge = torch.nn.functional.unfold(out.mask[:, None].float(), 5, padding=2).view(5, 25, height, width)
        inner = (edge == edge[:, :1]).all(1) & (out.mask > 0)
        torch.testing.assert_close(out.image[:, 0][inner], STEP * out.mask[inner].float())

    @given(seed=SEEDS, height=SIDES, width=SIDES)
    def test_quarters_and_labels(self, seed, height, width):
        """Four images of one value each fill the quarters, and labels are the shares of the pixels."""
        level = torch.arange(5) / 5
        batch = Batch(level.view(5, 1, 1, 1).repeat(1, 3, height, width), torch.arange(5))
        out, params = AugmentationPipeline(mix=Mosaic(1.0, num_classes=5)).augment(batch, seed=seed)
        shown = out.image[:, :1].round(decimals=4)
        shares = torch.stack([(shown == value).float().mean((1, 2, 3)) for value in level.round(decimals=4)], 1)
        torch.testing.assert_close(out.label, shares)
        middle = params["mix"]["steps"][0]["middle"]
        for i, (row, column) in enumerate(middle.tolist()):
            for part in (shown[i, 0, :row], shown[i, 0, row:]):
                for quarter in (part[:, :column], part[:, column:]):
                    assert quarter.numel() == 0 or bool((quarter == quarter[0, 0]).all())
        sources = params["mix"]["steps"][0]
        assert bool((sources["others"] != sources["rows"][:, None]).all())
        assert all(len(set(others)) == 3 for others in sources["others"].tolist())

    def test_scale_and_visibility(self):
        """At half the scale whole images are seen in equal quarters; boxes that are cut too far are dropped."""
        batch = painted(3, 24, 32, count=4)
        live = int((batch.box_label >= 0).sum())
        out = Mosaic(1.0, scale=(0.5, 0.5), centre=(0.5, 0.5))(batch)
        assert (out.box_label >= 0).sum(1).tolist() == [live] * 4
        pipeline = AugmentationPipeline(mix=Mosaic(1.0, scale=(1.0, 1.0)), min_box_visibility=0.999)
        given = batch.boxes[batch.box_label >= 0]
        sides = {tuple(side) for side in (given[:, 2:] - given[:, :2]).tolist()}
        for seed in range(5):
            out = pipeline.augment(batch, seed=seed)[0]
            left = out.boxes[out.box_label >= 0]
            assert {tuple(side) for side in (left[:, 2:] - left[:, :2]).round(decimals=3).tolist()} <= sides

    def test_max_boxes(self):
        """The largest stay, in their order; an image that has more keeps its own."""
        batch = painted(3, 40, 40, count=4)
        every = AugmentationPipeline(mix=Mosaic(1.0)).augment(batch, seed=2)[0]
        some = AugmentationPipeline(mix=Mosaic(1.0, max_boxes=5)).augment(batch, seed=2)[0]
        assert some.boxes.shape == (4, 5, 4)
        for i in range(4):
            area = (every.boxes[i, :, 2] - every.boxes[i, :, 0]) * (every.boxes[i, :, 3] - every.boxes[i, :, 1])
            kept = area.argsort(descending=True, stable=True)[: min(5, int((every.box_label[i] >= 0).sum()))]
            assert torch.equal(some.boxes[i, : len(kept)], every.boxes[i, kept.sort().values])
        assert Mosaic(1.0, max_boxes=1)(batch).boxes.shape == (4, ROWS, 4)

    def test_gradcheck(self):
        image = torch.rand(3, 1, 4, 5, dtype=torch.float64, requires_grad=True)

        def mosaic(x):
            torch.manual_seed(0)
            return Mosaic(1.0)(Batch(x)).image

        assert torch.autograd.gradcheck(mosaic, image)

    @pytest.mark.long
    def test_dynamo(self):
        """Sampling is not compiled; a compiled pipeline gives what it gives uncompiled."""
        batch = painted(0, 20, 24)
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip()], mix=Mosaic(1.0))
        compiled = torch.compile(pipeline, backend="eager")
        self.assert_close(compiled(batch, seed=1).image, pipeline(batch, seed=1).image)


class TestMixUp(BaseTester):
    def test_smoke(self, device, dtype):
        image = torch.rand(4, 3, 8, 8, device=device).to(dtype)
        out = MixUp(1.0, num_classes=5)(Batch(image, torch.arange(4, device=device)))
        assert out.image.dtype == dtype
        assert out.label.device.type == device.type

    def test_exception(self):
        with pytest.raises(ValueError, match=r"alpha 0\.0 is not above 0"):
            MixUp(alpha=0.0)
        with pytest.raises(ValueError, match=r"MixUp cannot carry mask along: .*CutMix"):
            MixUp()(painted(0, 20, 24))

    def test_cardinality(self):
        out = MixUp(1.0)(painted(0, 20, 24).replace(mask=None))
        assert out.boxes.shape == (5, 2 * ROWS, 4)
        assert out.box_weight.shape == (5, 2 * ROWS)

    @cases(CASES)
    @given(seed=SEEDS, height=SIDES, width=SIDES, padded=st.booleans(), p=st.floats(0, 1))
    def test_feature(self, seed, height, width, padded, p):
        """Blends have all boxes of both images, and pixels, weights and labels have the same shares."""
        given = painted(seed, height, width, padded=padded).replace(mask=None, label=torch.arange(5))
        pipeline = AugmentationPipeline(mix=MixUp(p, num_classes=5))
        out, params = pipeline.augment(given, seed=seed)
        assert equal(pipeline.replay(given, params), out)
        expected = torch.einsum("bk,kchw->bchw", out.label, given.image)
        torch.testing.assert_close(out.image, expected)
        for i, boxes in enumerate(found_boxes(out)):
            images = out.label[i].nonzero()[:, 0].tolist()
            before = {
                1 + k * ROWS + int(given.box_label[k, n]): given.boxes[k, n]
                for k in images
                for n in range(ROWS)
                if given.box_label[k, n] >= 0
            }
            assert boxes.keys() == before.keys()
            assert all(torch.equal(boxes[number], before[number]) for number in boxes)
            if out.box_weight is not None:
                live = out.box_label[i] >= 0
                shares = out.label[i, out.box_source[i, live]]
                torch.testing.assert_close(out.box_weight[i, live], shares)
                assert (out.box_weight[i, ~live] == 0).all()
            if padded:
                assert torch.equal(out.size[i], given.size[images].amax(0))

    def test_weights_multiply(self):
        """A box that had a weight keeps its share of it, through the augmentation too."""
        batch = painted(5, 30, 30).replace(mask=None)
        weight = torch.where(batch.box_label >= 0, 0.5, 0.0)
        batch = batch.replace(box_weight=weight)
        out = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)], mix=[MixUp(1.0), MixUp(1.0)]).augment(batch, seed=3)
        plain = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)], mix=[MixUp(1.0), MixUp(1.0)]).augment(
            batch.replace(box_weight=None), seed=3
        )
        torch.testing.assert_close(out[0].box_weight, plain[0].box_weight / 2)
        assert out[0].boxes.shape[1] == 4 * ROWS

    def test_gradcheck(self):
        image = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)

        def blend(x):
            torch.manual_seed(0)
            return MixUp(1.0)(Batch(x)).image

        assert torch.autograd.gradcheck(blend, image)

    def test_dynamo(self):
        """It is carried out uncompiled, as in TestMosaic."""


class TestCutMix(BaseTester):
    def test_smoke(self, device, dtype):
        batch = painted(0, 20, 24)
        batch = batch.replace(image=batch.image.to(dtype)).to(device)
        out = CutMix(1.0)(batch)
        assert out.image.dtype == dtype
        assert out.mask.device.type == device.type

    def test_exception(self):
        with pytest.raises(ValueError, match=r"alpha -1 is not above 0"):
            CutMix(alpha=-1)
        with pytest.raises(ValueError, match="CutMix cannot carry keypoints along"):
            CutMix()(scene(0))

    def test_cardinality(self):
        assert CutMix(1.0)(painted(0, 20, 24)).boxes.shape == (5, 2 * ROWS, 4)

    @cases(CASES)
    @given(seed=SEEDS, height=SIDES, width=SIDES, padded=st.booleans(), p=st.floats(0.1, 1))
    def test_feature(self, seed, height, width, padded, p):
        """Boxes lie around what is left of the painted ones, to the pixel; images, masks and labels go together."""
        given = painted(seed, height, width, padded=padded)
        pipeline = AugmentationPipeline(mix=CutMix(p, num_classes=5), min_box_area=0.0)
        out, params = pipeline.augment(given.replace(label=torch.arange(5)), seed=seed)
        assert equal(pipeline.replay(given.replace(label=torch.arange(5)), params), out)
        check_against_paint(out, given, whole=0.0)
        known = out.mask != 255
        torch.testing.assert_close(out.image[:, 0][known], STEP * out.mask[known].float())
        assert torch.isin(out.image, given.image.unique()).all()
        step = params["mix"]["steps"][0]
        own = torch.ones(5)
        for row, other, patch in zip(
            *(step.get(name, torch.zeros(0)) for name in ("rows", "others", "patch")), strict=True
        ):
            left, top, right, below = patch.tolist()
            for field in ("image", "mask"):
                a, b, c = (getattr(batch, field)[int(k)] for batch, k in ((out, row), (given, other[0]), (given, row)))
                assert torch.equal(a[..., top:below, left:right], b[..., top:below, left:right])
                assert torch.equal(a[..., :top, :], c[..., :top, :])
                assert torch.equal(a[..., :, right:], c[..., :, right:])
            inside = (given.mask[int(other[0]), top:below, left:right] != 255).sum()
            own[int(row)] = 1 - inside / (out.mask[int(row)] != 255).sum()
        torch.testing.assert_close(out.label.diagonal(), own)
        torch.testing.assert_close(out.label.sum(1), torch.ones(5))

    @pytest.mark.parametrize(
        ("patch", "left"),
        [
            ((0, 0, 5, 20), (5, 2, 8, 8)),  # covers the left part
            ((5, 0, 20, 20), (2, 2, 5, 8)),
            ((0, 0, 20, 5), (2, 5, 8, 8)),
            ((2, 6, 8, 9), (2, 2, 8, 6)),
            ((0, 0, 5, 5), (2, 2, 8, 8)),  # a corner
            ((4, 4, 6, 6), (2, 2, 8, 8)),  # the middle
            ((4, 0, 6, 20), (2, 2, 8, 8)),  # a stripe
            ((8, 0, 20, 20), (2, 2, 8, 8)),  # touches it
            ((2, 2, 8, 8), None),
        ],
    )
    def test_what_is_left_of_a_box(self, patch, left):
        from kornia_mvit.augmentation.layers import cover_boxes

        cut = cover_boxes(torch.tensor([[[2.0, 2.0, 8.0, 8.0]]]), torch.tensor([patch]))
        covered = max(0, min(8, patch[2]) - max(2, patch[0])) * max(0, min(8, patch[3]) - max(2, patch[1]))
        assert cut.area.item() == 36 - covered
        assert cut.share.item() == pytest.approx(1 - covered / 36)
        if left is not None:
            assert cut.boxes[0, 0].tolist() == list(left)

    def test_gradcheck(self):
        image = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)

        def mix(x):
            torch.manual_seed(0)
            return CutMix(1.0)(Batch(x)).image

        assert torch.autograd.gradcheck(mix, image)

    def test_dynamo(self):
        """It is carried out uncompiled, as in TestMosaic."""


class TestMixesInPipelines:
    @pytest.mark.parametrize("kind", MIXES)
    def test_images_that_are_not_chosen_stay(self, kind):
        batch = painted(2, 20, 24).replace(mask=None)
        pipeline = AugmentationPipeline(mix=MIXES[kind](0.5))
        for seed in range(4):
            out, params = pipeline.augment(batch, seed=seed)
            step = params["mix"]["steps"][0]
            rest = sorted(set(range(5)) - set(step["rows"].tolist()))
            assert torch.equal(out.image[rest], batch.image[rest])
            assert torch.equal(out.boxes[rest, :ROWS], batch.boxes[rest])
            assert (out.box_label[rest, ROWS:] == -1).all()
        out = AugmentationPipeline(mix=MIXES[kind](0.0)).augment(batch, seed=0)[0]
        assert torch.equal(out.box_source, torch.where(batch.box_label >= 0, torch.arange(5)[:, None], -1))

    @pytest.mark.parametrize("kind", MIXES)
    def test_inverse_refuses_what_was_mixed_by_name(self, kind):
        batch = painted(2, 20, 24).replace(mask=None)
        maps = torch.rand(5, 2, 20, 24)
        params = AugmentationPipeline(mix=MIXES[kind](1.0)).augment(batch, seed=0)[1]
        points = batch.boxes[..., :2]
        for refuse, back in (("inverse", maps), ("inverse_boxes", batch.boxes), ("inverse_keypoints", points)):
            with pytest.raises(ValueError, match=f"mixed by {kind} has no inverse"):
                getattr(AugmentationPipeline(), refuse)(back, params)
        params = AugmentationPipeline(mix=MIXES[kind](0.0)).augment(batch, seed=0)[1]
        torch.testing.assert_close(AugmentationPipeline().inverse(maps, params)[0], maps)

    def test_several_in_order(self):
        batch = painted(2, 30, 34).replace(mask=None)
        pipeline = AugmentationPipeline(
            policies.detection_train(24), [Mosaic(0.7), MixUp(0.7)], Preprocess((24, 24)), min_box_visibility=0.3
        )
        out, params = pipeline.augment(batch, seed=5)
        assert out.boxes.shape == (5, 8 * ROWS, 4)
        assert params["mix"]["kind"] == "mosaic and mixup"
        file = io.BytesIO()
        torch.save(params, file)
        file.seek(0)
        assert equal(pipeline.replay(batch, torch.load(file, weights_only=True)), out)
        assert equal(pipeline.augment(batch, seed=5)[0], out)
        with pytest.raises(ValueError, match="another pipeline: this one mixes by mixup"):
            AugmentationPipeline(policies.detection_train(24), MixUp(), Preprocess((24, 24))).replay(batch, params)
        with pytest.raises(ValueError, match="mosaic and mixup has no inverse"):
            pipeline.inverse(torch.rand(4, 1, 24, 24), params)
        for mosaic in (Mosaic(0.7), [Mosaic(0.7)]):
            alone = AugmentationPipeline(policies.detection_train(24), mosaic, Preprocess((24, 24)))
            first = alone.augment(batch, seed=5)[1]["mix"]["steps"][0]
            assert torch.equal(first["window"], params["mix"]["steps"][0]["window"])

    def test_exception(self):
        with pytest.raises(TypeError, match="got str"):
            AugmentationPipeline(mix="mosaic")
        with pytest.raises(TypeError, match=r"Mix mixes images and labels alone.*CutMix\(num_classes"):
            AugmentationPipeline(mix=[Mix(3), Mosaic()])
        params = AugmentationPipeline().augment(painted(0, 20, 24), seed=0)[1]
        with pytest.raises(ValueError, match=r"another pipeline: this one has the mixes .Mosaic"):
            AugmentationPipeline(mix=Mosaic()).replay(painted(0, 20, 24), params)

    def test_policies_have_them_as_options(self):
        assert AugmentationPipeline(policies.detection_train(32)).mix is None
        assert AugmentationPipeline(policies.segmentation_train(32)).mix is None
        both = AugmentationPipeline(policies.detection_train(32, mosaic=0.5, mixup=0.1))
        assert [(type(mix), mix.p) for mix in both.mix] == [(Mosaic, 0.5), (MixUp, 0.1)]
        assert isinstance(AugmentationPipeline(policies.segmentation_train(32, cutmix=0.3)).mix, CutMix)
        assert "then Mosaic(p=0.5" in repr(policies.detection_train(32, mosaic=0.5))
        assert AugmentationPipeline(policies.detection_train(32, mosaic=0.5), []).mix is None
        for policy, arguments in (
            (policies.detection_train, {"mosaic": 1.5}),
            (policies.detection_train, {"mixup": -0.5}),
            (policies.segmentation_train, {"cutmix": 2.0}),
        ):
            ((name, value),) = arguments.items()
            with pytest.raises(ValueError, match=rf"{name} {value} is not in \[0, 1\]"):
                policy(32, **arguments)

    def test_no_images(self):
        batch = painted(0, 20, 24)[:0]
        out, params = AugmentationPipeline(mix=[Mosaic(1.0), CutMix(1.0)]).augment(batch, seed=0)
        assert len(out) == 0
        assert params["mix"]["kind"] == "none"

    @given(seed=SEEDS)
    def test_padding_has_no_share(self, seed):
        """Labels are shares of the pixels that show an image, with masks and without."""
        batch = Batch(
            torch.tensor([1.0, 0.5, 0.75]).view(3, 1, 1, 1).repeat(1, 3, 21, 30),
            torch.arange(3),
            mask=torch.zeros(3, 21, 30, dtype=torch.long),
        )
        steps = [K.RandomAffine(0.0, scale=(0.4, 0.7), p=1.0, resample="nearest")]
        mixes = [CutMix(1.0, num_classes=3), Mosaic(1.0, num_classes=3, scale=(1.0, 1.0))]
        for one in (batch, batch.replace(mask=None)):
            for mix in mixes:
                out = AugmentationPipeline(steps, mix).augment(one, seed=seed)[0]
                shown = out.image[:, 0].flatten(1)
                near = torch.stack([(shown - value).abs() < 0.02 for value in (1.0, 0.5, 0.75)], 2).sum(1).float()
                share = near / near.sum(1, keepdim=True).clamp_min(1)
                blurred = 0.1 if isinstance(mix, Mosaic) else 0.0
                full = near.sum(1) > 50
                torch.testing.assert_close(out.label[full], share[full], atol=blurred + 1e-5, rtol=0)
