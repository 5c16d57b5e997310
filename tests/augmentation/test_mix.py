"""Mix."""

import io

import kornia.augmentation as K
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kornia.augmentation import RandomCutMixV2, RandomMixUpV2

from kornia_mvit import AugmentationPipeline, Batch, Mix, Preprocess
from kornia_mvit.augmentation.crops import RandomZoomOut
from tests.augmentation.scenes import scene
from tests.tester import BaseTester

SEEDS = st.integers(0, 2**20)


def levels(count, height=12, width=10):
    """Images of one value each."""
    return (torch.arange(count) / count).view(-1, 1, 1, 1).expand(-1, 3, height, width).contiguous()


def only(kind, classes=5, **arguments):
    return Mix(classes, **({"mixup": 0.8 * (kind == "mixup"), "cutmix": 1.0 * (kind == "cutmix")} | arguments))


class TestMix(BaseTester):
    def test_smoke(self, device, dtype):
        for kind in ("mixup", "cutmix"):
            image, label = torch.rand(4, 3, 8, 8, device=device).to(dtype), torch.arange(4, device=device)
            out = only(kind)(Batch(image, label))
            assert out.image.dtype == dtype
            assert out.image.device.type == out.label.device.type == device.type
            assert out.label.dtype == torch.float32

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_classes": 1}, "num_classes 1 is not at least 2"),
            ({"num_classes": 3, "mixup": -1.0}, "mixup -1.0 or cutmix 1.0 is negative; 0 turns one off"),
            ({"num_classes": 3, "mixup": 0, "cutmix": None}, "both off; turn one on, or leave the mix away"),
            ({"num_classes": 3, "p": 1.5}, "p 1.5 is not in [0, 1]"),
            ({"num_classes": 3, "switch": -0.5}, "switch -0.5 is not in [0, 1]"),
            ({"num_classes": 3, "label_smoothing": 2}, "label_smoothing 2 is not in [0, 1]"),
        ],
    )
    def test_exception_of_arguments(self, arguments, message):
        with pytest.raises(ValueError) as error:
            Mix(**arguments)
        assert message in str(error.value)

    def test_exception(self):
        mix, image = Mix(3), torch.rand(2, 3, 8, 8)
        for batch, message in [
            (scene(0), "cannot carry boxes and mask and keypoints along"),
            (Batch(image), "mixing needs labels, and the batch has none"),
            (Batch(image, torch.tensor([0, 3])), "labels go from 0 to 3, but num_classes 3 allows 0 to 2"),
            (Batch(image, torch.tensor([-1, 2])), "labels go from -1 to 2"),
            (Batch(image, torch.rand(2, 4)), "soft labels have 4 classes, the mix 3"),
        ]:
            for refuse in (mix, AugmentationPipeline(mix=mix).train()):
                with pytest.raises(ValueError, match=message):
                    refuse(batch)
        with pytest.raises(TypeError, match=r"got torch\.uint8"):
            mix(Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])))

    def test_cardinality(self):
        for count in (1, 2, 7):
            out = Mix(5)(Batch(torch.rand(count, 3, 8, 8), torch.arange(count) % 5))
            assert out.image.shape == (count, 3, 8, 8)
            assert out.label.shape == (count, 5)

    @given(seed=SEEDS, kind=st.sampled_from(["mixup", "cutmix"]), p=st.floats(0, 1), smoothing=st.floats(0, 0.5))
    def test_soft_targets_are_distributions(self, seed, kind, p, smoothing):
        torch.manual_seed(seed)
        label = only(kind, p=p, label_smoothing=smoothing)(Batch(levels(6), torch.arange(6) % 5)).label
        torch.testing.assert_close(label.sum(1), torch.ones(6))
        assert label.min() >= smoothing / 5 - 1e-6

    @given(seed=SEEDS, p=st.floats(0.1, 1))
    def test_cutmix_weighs_by_the_pixels_that_stayed(self, seed, p):
        torch.manual_seed(seed)
        image = levels(5)
        out = only("cutmix", p=p, label_smoothing=0)(Batch(image, torch.arange(5)))
        stayed = (out.image == image).all(1).float().mean((1, 2))
        torch.testing.assert_close(out.label.diagonal(), stayed)

    @pytest.mark.parametrize("stack", ["mix alone", "identity", "flip", "shrink", "zoom", "elastic", "letterbox"])
    def test_padding_has_no_share(self, stack):
        """The labels are shares of the pixels that show an image, whatever shows none, and a replay has them too."""
        stacks = {
            "flip": [K.RandomHorizontalFlip(p=1.0)],
            "shrink": [K.RandomAffine(0.0, scale=(0.3, 0.6), p=1.0, resample="nearest")],
            "zoom": [RandomZoomOut(3.0, p=1.0)],
            "elastic": [K.RandomHorizontalFlip(p=1.0), K.RandomElasticTransform(alpha=(0.0, 0.0), p=1.0)],
        }
        mix = only("cutmix", 2, label_smoothing=0)
        letterbox = Preprocess((16, 24), letterbox=True)
        pipeline = AugmentationPipeline(stacks.get(stack), mix, letterbox if stack == "letterbox" else None)
        small, large = torch.full((1, 6, 7), 1.0), torch.full((1, 20, 20), 0.5)
        batch = Batch.collate([{"image": small, "label": 0}, {"image": large, "label": 1}])
        for seed in range(3):
            torch.manual_seed(seed)
            if stack == "mix alone":
                out = mix(batch)
            else:
                out, params = pipeline.augment(batch, seed=seed)
                assert torch.equal(pipeline.replay(batch, params).label, out.label)
            white, seen = ((out.image[:, 0] > level).flatten(1).sum(1) for level in (0.6, 0.1))
            blurred = 0.05 * (stack in ("zoom", "letterbox"))  # pixels at the edges
            torch.testing.assert_close(out.label[:, 0], white / seen, atol=blurred + 1e-5, rtol=0)
            assert (out.size.amax(0) <= torch.tensor(out.image.shape[-2:])).all()

    @given(seed=SEEDS, p=st.floats(0.1, 1))
    def test_mixup_weighs_as_it_blends(self, seed, p):
        torch.manual_seed(seed)
        image = levels(5)
        out = only("mixup", p=p, label_smoothing=0)(Batch(image, torch.arange(5)))
        expected = out.label @ image[:, 0, 0, 0]
        torch.testing.assert_close(out.image, expected.view(-1, 1, 1, 1).expand_as(image))

    @given(seed=SEEDS, kind=st.sampled_from(["mixup", "cutmix"]))
    def test_images_that_are_not_chosen_stay_pure(self, seed, kind):
        torch.manual_seed(seed)
        mix, image, label = only(kind, p=0.5, label_smoothing=0), torch.rand(8, 3, 9, 9), torch.arange(8) % 5
        params = mix.draw(8, 9, 9)
        out, soft = mix.mix(image, label, params)
        pure = (params["own"] == 1) | (params["pairs"] == torch.arange(8))
        one_hot = torch.nn.functional.one_hot(label, 5).float()
        assert torch.equal(out[params["own"] == 1], image[params["own"] == 1])
        torch.testing.assert_close(out[pure], image[pure])
        torch.testing.assert_close(soft[pure], one_hot[pure])

    def test_nothing_is_mixed_at_p_zero(self):
        image, label = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
        out = Mix(3, p=0.0, label_smoothing=0.3)(Batch(image, label))
        assert torch.equal(out.image, image)
        torch.testing.assert_close(out.label, torch.nn.functional.one_hot(label, 3) * 0.7 + 0.1)

    def test_switch_chooses_between_them(self):
        for switch, kinds in ((0.0, {"mixup"}), (1.0, {"cutmix"}), (0.5, {"mixup", "cutmix"})):
            mix = Mix(3, switch=switch)
            assert {mix.draw(4, 8, 8)["kind"] for _ in range(40)} == kinds

    def test_soft_labels_are_mixed_too(self):
        soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
        out = only("mixup", 3, label_smoothing=0)(Batch(torch.rand(2, 3, 8, 8), soft)).label
        torch.testing.assert_close(out.sum(1), torch.ones(2))
        hard = only("mixup", 3)(Batch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))).label
        assert hard.dtype == out.dtype

    @given(seed=SEEDS, kind=st.sampled_from(["mixup", "cutmix"]), smoothing=st.sampled_from([0.0, 0.1, 1.0]))
    def test_multi_hot_labels_keep_their_sums(self, seed, kind, smoothing):
        """Those of both images, weighted as what is seen of them; none stays none, all stays all."""
        torch.manual_seed(seed)
        mix, image = only(kind, 4, label_smoothing=smoothing), torch.rand(5, 3, 8, 8)
        label = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]])
        params = mix.draw(5, 8, 8)
        out = mix.mix(image, label, params)[1]
        sums = params["own"] * label.sum(1) + (1 - params["own"]) * label.sum(1)[params["pairs"]]
        torch.testing.assert_close(out.sum(1), sums)
        assert (out >= 0).all()
        assert (out <= 1 + 1e-6).all()
        if smoothing == 0:
            own = params["own"][:, None]
            torch.testing.assert_close(out, own * label + (1 - own) * label[params["pairs"]])

    @pytest.mark.parametrize("value", [float("nan"), -0.5, 2.0])
    def test_soft_labels_that_are_no_shares_are_refused(self, value):
        with pytest.raises(ValueError, match=rf"{value:g}|NaN"):
            Mix(2)(Batch(torch.rand(2, 3, 8, 8), torch.tensor([[value, 0.0], [1.0, 0.0]])))

    @given(seed=SEEDS)
    def test_feature(self, seed):
        """Pixels are mixed as Kornia mixes them with the same parameters."""
        torch.manual_seed(seed)
        image, label = torch.rand(5, 3, 12, 10), torch.arange(5)
        mix = only("mixup")
        params = mix.draw(5, 12, 10)
        kornia = {"mixup_pairs": params["pairs"], "mixup_lambdas": 1 - params["own"]}
        expected = RandomMixUpV2().apply_transform(image, kornia)
        torch.testing.assert_close(mix.mix(image, label, params)[0], expected)
        mix = only("cutmix")
        params = mix.draw(5, 12, 10)
        kornia = {"mix_pairs": params["pairs"][None], "crop_src": params["boxes"][None]}
        expected = RandomCutMixV2(use_correct_lambda=True).apply_transform(image, kornia)
        assert torch.equal(mix.mix(image, label, params)[0], expected)

    @given(seed=SEEDS, kind=st.sampled_from(["mixup", "cutmix"]))
    def test_parameters_are_plain_data(self, seed, kind):
        torch.manual_seed(seed)
        mix, image, label = only(kind), torch.rand(4, 3, 8, 8), torch.arange(4)
        params, file = mix.draw(4, 8, 8), io.BytesIO()
        torch.save(params, file)
        file.seek(0)
        for a, b in zip(
            mix.mix(image, label, params), mix.mix(image, label, torch.load(file, weights_only=True)), strict=True
        ):
            assert torch.equal(a, b)

    def test_gradcheck(self):
        """Images that ask for gradients keep them."""
        image = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        for kind in ("mixup", "cutmix"):
            mix = only(kind)
            params = mix.draw(3, 4, 4)
            assert torch.autograd.gradcheck(lambda x, m=mix, p=params: m.mix(x, torch.arange(3), p)[0], image)

    def test_dynamo(self):
        """Mixing itself is one graph; drawing is not compiled."""
        image, label = torch.rand(4, 3, 8, 8), torch.arange(4)
        for kind in ("mixup", "cutmix"):
            mix = only(kind)
            params = mix.draw(4, 8, 8)
            compiled = torch.compile(mix.mix, fullgraph=True, backend="aot_eager")
            self.assert_close(compiled(image, label, params)[0], mix.mix(image, label, params)[0])
