"""Operations of colour on images of 1, 3, 4 and 6 channels."""

import kornia.augmentation as K
import pytest
import torch
from kornia.augmentation.auto import RandAugment, TrivialAugment

from kornia_mvit import AugmentationPipeline, Batch, policies
from kornia_mvit.augmentation.auto import PerImageRandAugment, PerImageTrivialAugment
from kornia_mvit.augmentation.color import RandomColorTwist

WIDE = (0.6, 1.4)
# Each channel by itself, by the same numbers.
APART = {
    "RandomAutoContrast": lambda: K.RandomAutoContrast(p=1.0),
    "RandomBoxBlur": lambda: K.RandomBoxBlur((3, 3), p=1.0),
    "RandomBrightness": lambda: K.RandomBrightness(WIDE, p=1.0),
    "RandomClahe": lambda: K.RandomClahe(grid_size=(2, 2), p=1.0),
    "RandomContrast": lambda: K.RandomContrast(WIDE, p=1.0),
    "RandomEqualize": lambda: K.RandomEqualize(p=1.0),
    "RandomGamma": lambda: K.RandomGamma(WIDE, p=1.0),
    "RandomGaussianBlur": lambda: K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=1.0),
    "RandomInvert": lambda: K.RandomInvert(p=1.0),
    "RandomMedianBlur": lambda: K.RandomMedianBlur((3, 3), p=1.0),
    "RandomMotionBlur": lambda: K.RandomMotionBlur(3, 35.0, 0.5, p=1.0),
    "RandomPosterize": lambda: K.RandomPosterize((3, 5), p=1.0),
    "RandomSaltAndPepperNoise": lambda: K.RandomSaltAndPepperNoise(0.2, p=1.0),
    "RandomSharpness": lambda: K.RandomSharpness(2.0, p=1.0),
    "RandomSolarize": lambda: K.RandomSolarize(p=1.0),
    "Normalize": lambda: K.Normalize(0.5, 0.5),
    "Denormalize": lambda: K.Denormalize(0.5, 0.5),
}
# Of any number of channels, but not each alone.
TOGETHER = {
    "RandomChannelDropout": lambda: K.RandomChannelDropout(p=1.0),
    "RandomChannelShuffle": lambda: K.RandomChannelShuffle(p=1.0),
    "RandomErasing": lambda: K.RandomErasing(p=1.0),
    "RandomGaussianIllumination": lambda: K.RandomGaussianIllumination(p=1.0),
    "RandomGaussianNoise": lambda: K.RandomGaussianNoise(std=0.1, p=1.0),
    "RandomGrayscale": lambda: K.RandomGrayscale(p=1.0),
    "RandomLinearCornerIllumination": lambda: K.RandomLinearCornerIllumination(p=1.0),
    "RandomLinearIllumination": lambda: K.RandomLinearIllumination(p=1.0),
    "RandomPlasmaBrightness": lambda: K.RandomPlasmaBrightness(p=1.0),
    "RandomPlasmaContrast": lambda: K.RandomPlasmaContrast(p=1.0),
    "RandomPlasmaShadow": lambda: K.RandomPlasmaShadow(p=1.0),
    "RandomColorTwist": lambda: RandomColorTwist(0.4, 0.4),
    "TrivialAugment": TrivialAugment,
    "PerImageTrivialAugment": PerImageTrivialAugment,
}
# Of three channels, and of one by what they mean for it.
GREY_TOO = {
    "ColorJiggle": lambda: K.ColorJiggle(0.3, 0.3, 0.3, 0.1, p=1.0),
    "ColorJitter": lambda: K.ColorJitter(0.3, 0.3, 0.3, 0.1, p=1.0),
    "RandomHue": lambda: K.RandomHue((-0.3, 0.3), p=1.0),
    "RandomJPEG": lambda: K.RandomJPEG((20.0, 40.0), p=1.0),
    "RandomRain": lambda: K.RandomRain((3, 5), (3, 5), (1, 3), p=1.0),
    "RandomSaturation": lambda: K.RandomSaturation(WIDE, p=1.0),
    "RandomSnow": lambda: K.RandomSnow((0.3, 0.6), (1.5, 2.0), p=1.0),
}
COLOURS = {
    "RandomPlanckianJitter": lambda: K.RandomPlanckianJitter(p=1.0),
    "RandomRGBShift": lambda: K.RandomRGBShift(p=1.0),
}


def images(case: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(case)
    height, width = (int(torch.randint(8, 16, (1,), generator=generator)) * 2 + 1 for _ in range(2))
    return torch.rand(2, channels, height, width, generator=generator)


def test_every_operation_of_colour_is_here():
    """``RandomDissolving``, which downloads a network, is refused like those of three channels."""
    found = {name for name in dir(K) if isinstance(getattr(K, name), type)}
    base = K.IntensityAugmentationBase2D
    found = {name for name in found if issubclass(getattr(K, name), base)} - {base.__name__, "RandomDissolving"}
    assert found <= {*APART, *TOGETHER, *GREY_TOO, *COLOURS}


@pytest.mark.parametrize("name", APART)
def test_channels_apart(name):
    """Four and six channels are what each gives alone."""
    for case in range(6):
        image = images(case, (4, 6)[case % 2])
        pipeline = AugmentationPipeline([APART[name]()])
        out, params = pipeline.augment(Batch(image), seed=case)
        drawn = dict(params["steps"][0]["data"])
        drawn |= {key: drawn[key][:, :1] for key in ("mask_salt", "mask_pepper") if key in drawn}
        alone = torch.cat([APART[name]()(part, params=drawn) for part in image.split(1, 1)], 1)
        torch.testing.assert_close(out.image, alone, rtol=0, atol=1e-5)
        assert not torch.equal(out.image, image)


@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_any_number_of_channels(name):
    make = APART.get(name) or TOGETHER[name]
    for channels in (1, 2, 3, 4, 6):
        image = images(channels, channels)
        pipeline = AugmentationPipeline([make()])
        out, params = pipeline.augment(Batch(image), seed=channels)
        assert out.image.shape == image.shape
        assert out.image.isfinite().all()
        assert torch.equal(pipeline.replay(Batch(image), params).image, out.image)


@pytest.mark.parametrize("name", [*GREY_TOO, "RandomGrayscale"])
def test_grey_images_are_what_grey_ones_of_three_channels_become(name):
    """Saturation, hue and grayscale leave them alone; the others do what they do to grey pixels."""
    make = GREY_TOO.get(name) or TOGETHER[name]
    for case in range(6):
        grey = images(case, 1)
        out, params = AugmentationPipeline([make()]).augment(Batch(grey), seed=case)
        wanted = make()(grey.expand(-1, 3, -1, -1).contiguous(), params=params["steps"][0]["data"])
        atol = 1e-2 if name == "RandomJPEG" else 1e-5  # whose channels Kornia rounds apart
        torch.testing.assert_close(out.image.expand_as(wanted), wanted, rtol=0, atol=atol)
        assert torch.equal(out.image, grey) == (name in ("RandomHue", "RandomSaturation", "RandomGrayscale"))


@pytest.mark.parametrize("name", [*GREY_TOO, *COLOURS])
def test_refused_by_name(name):
    make = GREY_TOO.get(name) or COLOURS[name]
    for channels in (2, 4, 6) if name in GREY_TOO else (1, 2, 4, 6):
        for steps in ([make()], [K.ImageSequential(make())], [K.RandomInvert(), make()]):
            with pytest.raises(ValueError, match=f"^{name} takes images of .*3 channels, got {channels}; take it out"):
                AugmentationPipeline(steps)(images(0, channels))


def test_grey_images_in_patches():
    """Where Kornia applies a container by itself, what takes three channels takes no others."""
    steps = [K.PatchSequential(K.RandomSaturation(WIDE), grid_size=(2, 2), patchwise_apply=False)]
    with pytest.raises(ValueError, match="RandomSaturation takes images of 3 channels, got 1"):
        AugmentationPipeline(steps)(images(0, 1))


@pytest.mark.parametrize("kind", [K.Normalize, K.Denormalize])
def test_means_of_other_channels(kind):
    step = kind(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.5, 0.5]))
    assert AugmentationPipeline([step])(images(0, 3)).shape[1] == 3
    with pytest.raises(ValueError, match=f"{kind.__name__} takes images of 3 channels, got 4"):
        AugmentationPipeline([step])(images(0, 4))


def test_weights_of_other_channels():
    step = K.RandomGrayscale(rgb_weights=torch.tensor([0.25, 0.25, 0.25, 0.25]), p=1.0)
    assert AugmentationPipeline([step])(images(0, 4)).shape[1] == 4
    with pytest.raises(ValueError, match="RandomGrayscale takes images of 1 or 4 channels, got 6"):
        AugmentationPipeline([step])(images(0, 6))


class TestColorTwist:
    def test_contrast_is_about_the_mean_of_all_channels(self):
        image = images(1, 4)
        out, params = AugmentationPipeline([RandomColorTwist(0.0, 0.2)]).augment(Batch(image), seed=0)
        factor = params["steps"][0]["data"]["contrast"][:, None, None, None]
        mean = image.mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(out.image, (mean + factor * (image - mean)).clamp(0, 1), rtol=0, atol=1e-5)

    def test_colours_of_four_channels_are_refused(self):
        with pytest.raises(ValueError, match=r"RandomColorTwist takes images of 1 or 3 channels, got 4.*saturation=0"):
            AugmentationPipeline([RandomColorTwist(0.2, hue=0.1)])(images(0, 4))
        with pytest.raises(ValueError, match=r"RandomColorTwist turns the colours.*got 4"):
            RandomColorTwist(0.2, hue=0.1)(images(0, 4))


POLICIES = {
    "classification_train": lambda: policies.classification_train(16, jitter=0.3),
    "classification_learned": lambda: policies.classification_learned(16, target_psnr=20),
    "classification_strong": lambda: policies.classification_strong(16),
    "classification_strong, trivial": lambda: policies.classification_strong(16, auto="trivialaugment"),
    "segmentation_train": lambda: policies.segmentation_train(16, jitter=0.3, hue=0.1, rotate=10.0),
    "segmentation_learned": lambda: policies.segmentation_learned(16, target_psnr=20),
    "detection_train": lambda: policies.detection_train(16),
    "detection_learned": lambda: policies.detection_learned(16, target_psnr=20),
    "RandAugment": lambda: [RandAugment(2, 9)],
    "PerImageRandAugment": lambda: [PerImageRandAugment(2, 9)],
}
COLOURED = {
    "classification_train": "RandomColorTwist",
    "classification_strong": "RandomSaturation",
    "segmentation_train": "RandomColorTwist",
    "detection_train": "RandomColorTwist",
    "RandAugment": "RandomSaturation",
    "PerImageRandAugment": "RandomSaturation",
}


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("name", POLICIES)
def test_policies(name, channels):
    """All take grey images; of more channels those that turn colours are refused, with what would do."""
    pipeline = AugmentationPipeline(POLICIES[name]()).train()
    if channels > 3 and name in COLOURED:
        with pytest.raises(ValueError, match=f"{COLOURED[name]} takes images of 1 or 3 channels, got {channels}"):
            pipeline(images(0, channels), seed=0)
        return
    for case in range(8):
        image = images(case, channels)
        out = pipeline(image, seed=case)
        assert out.shape[:2] == image.shape[:2]
        assert out.isfinite().all()


@pytest.mark.long
def test_200_cases():
    """Random operations and channels: carried out and replayed to the bit, or refused by name."""
    table = {**APART, **TOGETHER, **GREY_TOO, **COLOURS}
    generator = torch.Generator().manual_seed(0)
    for case in range(200):
        picks = torch.randint(len(table), (3,), generator=generator).tolist()
        names = [list(table)[pick] for pick in picks]
        channels = (1, 2, 3, 4, 6)[case % 5]
        image = images(case, channels)
        pipeline = AugmentationPipeline([table[name]() for name in names if name not in ("Normalize", "Denormalize")])
        refused = [n for n in names if (n in COLOURS and channels != 3) or (n in GREY_TOO and channels not in (1, 3))]
        if refused:
            with pytest.raises(ValueError, match=f"({'|'.join(refused)}).* takes images of"):
                pipeline.augment(Batch(image), seed=case)
            continue
        out, params = pipeline.augment(Batch(image), seed=case)
        assert out.image.shape == image.shape
        assert torch.equal(pipeline.replay(Batch(image), params).image, out.image)
