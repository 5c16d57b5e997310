"""Operations that are chosen for each image of a batch."""

import kornia
import kornia.augmentation as K
import pytest
import torch
from torch import nn

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.augmentation.auto import PerImageTrivialAugment
from kornia_mvit.augmentation.choices import OneOf, SomeOf

FLIP, TURN, INVERT = (lambda: K.RandomHorizontalFlip(p=1.0)), (lambda: K.RandomVerticalFlip(p=1.0)), (
    lambda: K.RandomInvert(p=1.0)
)  # fmt: skip


def ramp(count, size=(5, 7)):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    return image.expand(count, -1, -1, -1).contiguous()


def outcomes(image, found):
    """Which of no change, flips and inversion each image shows, as a set of operations."""
    ways = {
        (): image,
        ("flip",): image.flip(-1),
        ("turn",): image.flip(-2),
        ("flip", "turn"): image.flip(-1, -2),
    }
    ways |= {(*names, "invert"): 1 - one for names, one in ways.items()}
    out = []
    for one, like in zip(found, range(len(found)), strict=True):
        out.append(next(names for names, way in ways.items() if torch.allclose(way[like], one, atol=1e-5)))
    return out


class TestOneOf:
    def test_each_image_gets_one_of_its_own(self):
        image = ramp(400)
        pipeline = AugmentationPipeline([OneOf(FLIP(), TURN(), INVERT(), nn.Identity(), weights=[1, 2, 1, 4])])
        out, params = pipeline.augment(Batch(image), seed=1)
        found = outcomes(image, out.image)
        shares = {names: found.count(names) / 400 for names in set(found)}
        assert shares.keys() == {(), ("flip",), ("turn",), ("invert",)}
        for names, share in {(): 0.5, ("flip",): 0.125, ("turn",): 0.25, ("invert",): 0.125}.items():
            assert abs(shares[names] - share) < 0.08, names
        assert torch.equal(pipeline.replay(Batch(image), params).image, out.image)

    def test_targets_follow_their_image(self):
        image = ramp(60)
        points = torch.tensor([[[1.5, 1.5]]]).expand(60, 1, 2)
        mask = torch.zeros(60, 5, 7, dtype=torch.long)
        mask[:, 1, 1] = 1
        batch = Batch(image, mask=mask, keypoints=points, keypoint_visible=torch.ones(60, 1, dtype=torch.bool))
        out, params = AugmentationPipeline([OneOf(FLIP(), TURN(), nn.Identity())]).augment(batch, seed=3)
        places = {(): (1, 1), ("flip",): (1, 5), ("turn",): (3, 1)}
        for names, seen, (x, y) in zip(outcomes(image, out.image), out.mask, out.keypoints[:, 0].tolist(), strict=True):
            assert seen.nonzero().tolist() == [list(places[names])] and (int(y), int(x)) == places[names]
        back, valid = AugmentationPipeline().inverse(out.image, params)
        assert bool(valid.all()) and torch.allclose(back, image, atol=1e-5)

    def test_a_share_alone(self):
        image = ramp(400)
        out = AugmentationPipeline([OneOf(FLIP(), TURN(), p=0.25)], seed=1)(image)
        assert abs(outcomes(image, out).count(()) / 400 - 0.75) < 0.08

    @pytest.mark.parametrize("step", [
        lambda: K.ColorJitter(0.5, 0.5, 0.5, 0.2, p=1.0), lambda: K.RandomGaussianNoise(std=0.3, p=1.0),
        lambda: K.RandomErasing((0.3, 0.4), p=1.0), lambda: K.RandomGaussianBlur(3, (1.0, 2.0), p=1.0),
        lambda: K.RandomAffine(30.0, p=1.0, resample="nearest"), lambda: K.RandomElasticTransform(p=1.0),
        PerImageTrivialAugment,
    ])  # fmt: skip
    def test_others_stay_as_they_are(self, step):
        image = ramp(24, (17, 19))
        pipeline = AugmentationPipeline([OneOf(step(), nn.Identity())])
        out, params = pipeline.augment(Batch(image), seed=2)
        same = [torch.allclose(one, other, atol=1e-5) for one, other in zip(image, out.image, strict=True)]
        assert 3 < sum(same) < 24
        assert torch.equal(pipeline.replay(Batch(image), params).image, out.image)

    def test_same_on_batch_and_nested(self):
        image = ramp(40)
        inner = SomeOf(2, FLIP(), TURN())
        out = AugmentationPipeline([OneOf(K.ImageSequential(FLIP(), INVERT()), inner)], seed=1)(image)
        assert set(outcomes(image, out)) == {("flip", "invert"), ("flip", "turn")}
        alike = K.AugmentationSequential(OneOf(FLIP(), TURN()), data_keys=["input"], same_on_batch=True)
        assert len(set(outcomes(image, AugmentationPipeline(alike, seed=1)(image)))) == 1

    @pytest.mark.parametrize(
        ("step", "error", "text"),
        [
            (lambda: K.RandomCrop((4, 4)), ValueError, "RandomCrop may change the size"),
            (lambda: K.ImageSequential(K.Resize((4, 4))), ValueError, "Resize may change the size"),
            (lambda: kornia.filters.BoxBlur(3), TypeError, "BoxBlur"),
            (lambda: K.PatchSequential(K.RandomGamma(), patchwise_apply=False), TypeError, "PatchSequential"),
            (nn.ReLU, TypeError, "ReLU"),
        ],
    )
    def test_exception(self, step, error, text):
        with pytest.raises(error, match=text):
            OneOf(nn.Identity(), step())

    def test_kornias_own_containers_are_refused(self):
        alone = K.AugmentationSequential(OneOf(FLIP(), TURN()), data_keys=["input"])
        with pytest.raises(TypeError, match="AugmentationPipeline"):
            alone(ramp(2))


class TestSomeOf:
    def test_each_image_gets_a_number_of_its_own(self):
        image = ramp(600)
        out = AugmentationPipeline([SomeOf((0, 2), FLIP(), TURN(), INVERT())], seed=1)(image)
        counts = torch.tensor([len(names) for names in outcomes(image, out)]).bincount(minlength=4) / 600
        assert counts[3] == 0 and bool(((counts[:3] - 1 / 3).abs() < 0.07).all())

    def test_weights(self):
        image = ramp(600)
        out = AugmentationPipeline([SomeOf(2, FLIP(), TURN(), INVERT(), weights=[8, 1, 1])], seed=1)(image)
        found = outcomes(image, out)
        assert all(len(names) == 2 for names in found)
        assert found.count(("turn", "invert")) / 600 < 0.06  # 2 x 0.1 x 1 / 9 = 0.022

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"count": 3}, "2 operations; of these it cannot draw from 3 to 3"),
            ({"count": (2, 1)}, "from 2 to 1"),
            ({"count": 1, "p": 2.0}, "p 2.0"),
            ({"count": 1, "weights": [1.0]}, "2 positive numbers"),
            ({"count": 1, "weights": [1.0, 0.0]}, "2 positive numbers"),
        ],
    )
    def test_exception(self, arguments, text):
        with pytest.raises(ValueError, match=text):
            SomeOf(arguments.pop("count"), FLIP(), TURN(), **arguments)

    def test_repr(self):
        assert repr(SomeOf(1, FLIP(), INVERT())).startswith("SomeOf(count=(1, 1), RandomHorizontalFlip(p=1.0")
        assert "RandomInvert" in repr(OneOf(FLIP(), INVERT(), weights=[1, 2]))
