"""What Kornia's operations cannot do, told by name."""

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, policies


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (K.CenterCrop((50, 8)), r"CenterCrop.*\(3, 20, 30\).*PadTo"),
        (K.CenterCrop(50, cropping_mode="resample"), r"CenterCrop.*\(3, 20, 30\).*PadTo"),
        (K.LongestMaxSize(1), r"LongestMaxSize.*\(3, 20, 30\).*\(0, 1\).*larger size"),
        (K.Resize(1, side="horz"), r"Resize.*\(3, 20, 30\).*\(0, 1\).*larger size"),
        (K.PadTo((22, 50), pad_mode="replicate", pad_value=0.5), r"PadTo.*\(3, 20, 30\).*replicate.*'constant'"),
        (K.PadTo((50, 50), pad_mode="reflect"), r"PadTo.*\(3, 20, 30\).*'constant'"),
        (K.RandomCrop((8, 8), 3, padding_mode="reflect", fill=0.5), r"RandomCrop.*\(3, 20, 30\).*reflect.*'constant'"),
        (K.RandomCrop((8, 8), 3, padding_mode="replicate", fill=(0.1, 0.2, 0.3)), r"RandomCrop.*'constant'"),
        (K.RandomCrop((8, 8), 3, fill=(0.1, 0.2)), r"RandomCrop.*got 2 for 3.*one for each channel"),
        (K.Normalize(torch.zeros(1, 2), torch.ones(1, 2)), r"Normalize takes images of 2 channels, got 3"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_fails_in_kornia_is_named(step, message, nested):
    pipeline = AugmentationPipeline([K.ImageSequential(step) if nested else step])
    with pytest.raises(ValueError, match=message):
        pipeline(Batch(torch.rand(1, 3, 20, 30)), seed=0)


class TestMixes:
    """Operations that mix are no steps; the error says what takes their place."""

    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize(
        ("step", "message"),
        [
            (K.RandomMixUpV2, r"RandomMixUpV2.*mix=Mix\(num_classes, cutmix=0\.0\)"),
            (lambda: K.RandomCutMixV2(use_correct_lambda=True), r"RandomCutMixV2.*mix=Mix\(num_classes, mixup=0\.0\)"),
            (lambda: K.RandomMosaic((16, 16)), r"RandomMosaic.*mix=Mosaic\(\)"),
            (K.RandomTransplantation, r"RandomTransplantation .*mix=CopyPaste\(\)"),
            (lambda: K.RandomJigsaw((2, 2)), r"RandomJigsaw.*before the pipeline"),
        ],
    )
    def test_exception(self, step, message, nested):
        steps = [K.RandomHorizontalFlip(), step()]
        with pytest.raises(TypeError, match=message):
            AugmentationPipeline(K.AugmentationSequential(*steps, data_keys=["input"]) if nested else steps)


class TestChannels:
    @pytest.mark.parametrize("auto", ["randaugment", "trivialaugment", None])
    def test_policies_take_grey_images(self, auto):
        pipeline = AugmentationPipeline(policies.classification_strong(16, auto=auto, operations=6))
        for seed in range(5):
            out = pipeline(Batch(torch.rand(4, 1, 20, 20)), seed=seed)
            assert out.image.shape == (4, 1, 16, 16)

    @pytest.mark.parametrize("step", [K.RandomSaturation((0.2, 0.3), p=1.0), K.RandomHue((0.2, 0.3), p=1.0)])
    def test_grey_has_neither_saturation_nor_hue(self, step):
        image = torch.rand(2, 1, 8, 8)
        assert torch.equal(AugmentationPipeline([step])(image, seed=0), image)

    @pytest.mark.parametrize(
        ("channels", "augment", "message"),
        [
            (1, [K.RandomRGBShift(p=0.0), K.RandomPlanckianJitter()], r"PlanckianJitter, RandomRGB.*3 channels, got 1"),
            (2, [K.ImageSequential(K.RandomHue())], r"RandomHue.*3 channels, got 2"),
            (4, policies.classification_strong(16), r"RandomSaturation.*3 channels, got 4"),
        ],
    )
    def test_operations_of_colour_are_refused_whether_drawn_or_not(self, channels, augment, message):
        pipeline = AugmentationPipeline(augment)
        for seed in range(3):
            with pytest.raises(ValueError, match=message):
                pipeline(Batch(torch.rand(2, channels, 20, 20)), seed=seed)
