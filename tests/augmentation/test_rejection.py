"""Images whose result does not meet a condition are augmented again, and counted."""

import io

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, CutMix, Extra, LearnedRanges, Preprocess
from kornia_mvit.augmentation.rejection import by_tries

SIZE = (29, 37)


def painted(count, seed=0):
    """Black images with a white square each, and its box."""
    generator = torch.Generator().manual_seed(seed)
    image, boxes = torch.zeros(count, 3, *SIZE), torch.zeros(count, 1, 4)
    for i in range(count):
        x, y = (
            int(torch.randint(0, 30, (1,), generator=generator)),
            int(torch.randint(0, 22, (1,), generator=generator)),
        )
        image[i, :, y : y + 7, x : x + 7] = 1.0
        boxes[i, 0] = torch.tensor([x, y, x + 7, y + 7])
    return Batch(
        image,
        boxes=boxes,
        box_label=torch.zeros(count, 1).long(),
        fields={"number": torch.arange(count)[:, None]},
        mask=(image[:, 0] > 0).long(),
        keypoints=(boxes[..., :2] + boxes[..., 2:]) / 2,
        keypoint_visible=torch.ones(count, 1, dtype=torch.bool),
        meta=[{"path": f"{i}.png"} for i in range(count)],
        extra={"twin": Extra(image, kind="image"), "flow": Extra(image[:, :2], kind="vectors")},
    )


def shows(batch):
    return (batch.box_label >= 0).any(1)


def crops(**arguments):
    steps = [K.RandomHorizontalFlip(), K.RandomCrop((15, 17)), K.RandomAffine(20.0, p=0.5)]
    return AugmentationPipeline(steps, min_box_visibility=0.6, **arguments)


def check(seed, count=8, tries=4):
    batch = painted(count, seed)
    out, params = crops(until=shows, tries=tries).augment(batch, seed=seed)
    told = params["until"]
    assert torch.equal(told["met"], shows(out))
    assert told["unmet"] == int((~told["met"]).sum())
    assert bool((told["tried"] >= 1).all()) and bool((told["tried"][~told["met"]] == tries).all())
    assert len(told["again"]) == int(told["tried"].max()) - 1
    for number, one in enumerate(told["again"]):
        assert one["rows"].tolist() == (told["tried"] > number + 1).nonzero().flatten().tolist()
    first, _ = crops().augment(batch, seed=seed)  # what needs no second try is what it is without
    assert torch.equal(told["tried"] == 1, shows(first) | torch.tensor(tries == 1))
    once = (told["tried"] == 1).nonzero().flatten()
    assert torch.equal(out.image[once], first.image[once])
    assert torch.equal(out.extra["twin"].tensor, out.image)
    assert torch.equal(out.fields["number"][shows(out)][:, 0], torch.arange(count)[shows(out)])
    return told


class TestUntil:
    def test_counts(self):
        assert sum(check(seed)["again"] != [] for seed in range(3)) == 3

    @pytest.mark.long
    def test_counts_in_200_cases(self):
        found = [check(seed, count=3, tries=1 + 2 * (seed % 5)) for seed in range(200)]
        assert sum(one["unmet"] for one in found) > 20 and sum(bool(one["met"].all()) for one in found) > 20

    def test_more_tries_leave_fewer(self):
        batch = painted(64)
        unmet = [crops(until=shows, tries=n).augment(batch, seed=1)[1]["until"]["unmet"] for n in (1, 3, 20)]
        assert unmet[0] > unmet[1] > unmet[2]

    def test_replay(self):
        batch = painted(8)
        pipeline = crops(until=shows, preprocess=Preprocess((21, 23), mean=(0.5,) * 3))
        out, params = pipeline.augment(batch, seed=3)
        file = io.BytesIO()
        torch.save(params, file)
        file.seek(0)
        again = pipeline.replay(batch, torch.load(file, weights_only=True))
        for name in ("image", "boxes", "box_label", "mask", "keypoints", "keypoint_visible"):
            assert torch.equal(getattr(again, name), getattr(out, name)), name
        assert again.meta == out.meta == batch.meta
        assert torch.equal(crops(preprocess=pipeline.preprocess).replay(batch, params).image, out.image)

    def test_the_way_back(self):
        batch = painted(8)
        pipeline = crops(until=shows)
        out, params = pipeline.augment(batch, seed=3)
        assert len(params["until"]["again"]) > 0
        keypoints = pipeline.inverse_keypoints(out.keypoints, params)
        torch.testing.assert_close(keypoints, batch.keypoints, rtol=0, atol=1e-3)
        maps, seen = pipeline.inverse(out.image, params)
        assert ((maps - batch.image).abs() * seen).mean() < 0.02 and seen.float().mean() > 0.1
        back, valid = pipeline.inverse_extra(out.extra, params)
        assert torch.equal(back["twin"].tensor, maps) and torch.equal(valid, seen)
        assert pipeline.inverse_boxes(out.boxes, params).shape == batch.boxes.shape
        assert torch.equal(pipeline.inverse_keypoint_order(out.keypoint_visible, params), out.keypoint_visible)

    def test_called_in_train_mode(self):
        batch = painted(8)
        assert bool(shows(crops(until=shows, tries=100, seed=1).train()(batch)).all())

    def test_nothing_to_try(self):
        asked = []
        pipeline = crops(until=lambda batch: asked.append(len(batch)) or torch.ones(len(batch), dtype=torch.bool))
        _, params = pipeline.augment(painted(5))
        assert asked == [5] and params["until"]["again"] == [] and params["until"]["unmet"] == 0
        assert len(pipeline(painted(0))) == 0

    def test_without_it_nothing_is_said(self):
        assert "until" not in crops().augment(painted(2))[1]

    @pytest.mark.parametrize(
        ("answer", "text"),
        [
            (lambda batch: True, r"until returned torch.bool \(\) for 2 images"),
            (lambda batch: batch.box_label, r"torch.int64 \(2, 1\)"),
            (lambda batch: [1.0, 0.0], r"torch.float32 \(2,\)"),
        ],
    )
    def test_other_answers_are_refused(self, answer, text):
        with pytest.raises(ValueError, match=text):
            crops(until=answer)(painted(2))

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"until": shows, "tries": 0}, ValueError, "tries 0"),
            ({"until": "boxes"}, TypeError, "until is a str"),
            ({"until": shows, "mix": CutMix()}, ValueError, "another pipeline"),
            ({"until": shows, "ranges": LearnedRanges(target_psnr=20)}, ValueError, "another pipeline"),
        ],
    )
    def test_exception(self, arguments, error, text):
        with pytest.raises(error, match=text):
            AugmentationPipeline(**arguments)

    def test_results_of_several_sizes_are_refused(self):
        stack = K.AugmentationSequential(
            K.Resize((8, 8)), K.Resize((9, 9)), K.Resize((10, 10)), data_keys=["input"], random_apply=1
        )
        pipeline = AugmentationPipeline(stack, until=lambda batch: torch.zeros(len(batch), dtype=torch.bool))
        with pytest.raises(ValueError, match="one size: give preprocess"):
            pipeline(torch.rand(2, 3, 20, 20))


def test_by_tries_takes_each_image_from_its_last_try():
    params = {"n": 0, "until": {"again": [{"rows": torch.tensor([0, 2]), "params": {"n": 1}},
                                          {"rows": torch.tensor([2]), "params": {"n": 2}}]}}  # fmt: skip
    assert by_tries(lambda values, own: values + own["n"], torch.zeros(4), params).tolist() == [1, 0, 2, 0]
