"""Images that the output stride does not divide: DeepLabV3 pads them and crops its logits, whoever runs it."""

import copy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.export import Dim

from kornia_mvit import DeepLabV3, Preprocess, SlidingWindow, TestTimeAugmentation, fuse, predict
from kornia_mvit.exporters import load_onnx, load_torchexport, to_onnx, to_torchexport
from kornia_mvit.inference.tta import TestTimeTransform
from kornia_mvit.models.graph import pad_to
from kornia_mvit.testing.strategies import image_sizes
from tests.models.networks import DEEP, randomize


def padded_by_hand(x, stride):
    """Rows and columns beyond the image are its last."""
    height, width = x.shape[-2:]
    down, across = -height % stride, -width % stride
    x = torch.cat([x, x[..., -1:, :].expand(-1, -1, down, -1)], -2)
    return torch.cat([x, x[..., -1:].expand(-1, -1, -1, across)], -1)


def small(output_stride=16, **arguments):
    torch.manual_seed(output_stride)
    model = DeepLabV3(DEEP, 3, aspp_channels=6, aux_channels=4, output_stride=output_stride, **arguments)
    return randomize(model).eval()


@pytest.fixture(scope="module")
def models():
    """Models by stride and by how corners are aligned."""
    return {(stride, align): small(stride, align_corners=align) for stride in (8, 16, 32) for align in (False, True)}


class TestPadTo:
    @given(size=image_sizes(min_side=1, max_side=40), multiple=st.sampled_from([1, 2, 8, 16, 32]))
    def test_feature(self, size, multiple):
        x = torch.rand(2, 3, *size)
        assert torch.equal(pad_to(x, multiple), padded_by_hand(x, multiple))

    def test_what_fits_is_not_copied(self):
        x = torch.rand(1, 3, 32, 48)
        assert pad_to(x, 16) is x

    def test_gradcheck(self):
        x = torch.rand(1, 1, 3, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: pad_to(x, 4), (x,))


class TestDeepLabV3:
    @given(size=image_sizes(), stride=st.sampled_from([8, 16, 32]), align=st.booleans())
    @example((84, 84), 16, False)
    @example((33, 127), 8, True)
    def test_logits_are_those_of_the_image_padded_by_hand(self, models, size, stride, align):
        model, x = models[stride, align], torch.rand(1, 3, *size)
        with torch.no_grad():
            found = model.forward_with_aux(x)
            whole = model.forward_with_aux(padded_by_hand(x, stride))
            logits = model(x)
        for one, other in zip(found, whole, strict=True):
            assert one.shape == (1, 3, *size)
            assert torch.equal(one, other[..., : size[0], : size[1]])
        assert torch.equal(logits, found[0])

    @given(size=image_sizes(divisible_by=16))
    def test_what_the_stride_divides_is_as_without(self, models, size):
        model = models[16, False]
        plain = copy.copy(model)
        plain.pad = False
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(plain(x), model(x))

    def test_without(self):
        """The map's logits are stretched over the image, as transformers does."""
        model, x = small(pad=False), torch.rand(1, 3, 84, 100)
        with torch.no_grad():
            low = model.head(model.backbone(x))
            expected = torch.nn.functional.interpolate(low, (84, 100), mode="bilinear", align_corners=False)
            assert torch.equal(model(x), expected)
            model.pad = True
            assert not torch.allclose(model(x), expected)

    def test_refuses_before_it_pads(self):
        for image, message in ((torch.rand(1, 3, 31, 40), "31x40"), (torch.rand(1, 2, 40, 40), "of 3 channels")):
            with pytest.raises(ValueError, match=message):
                small()(image)


class TestOthers:
    """What holds a model: its logits are the model's, at any size."""

    @given(size=image_sizes())
    @example((84, 84))
    def test_fuse(self, models, size):
        model, x = models[16, False], torch.rand(1, 3, *size)
        fused = getattr(self, "_fused", None) or fuse(model)
        type(self)._fused = fused
        with torch.no_grad():
            assert (fused(x) - model(x)).abs().max() < 1e-4

    def test_predict(self, models):
        model = copy.copy(models[16, False])
        model.preprocess = Preprocess(size=None)
        image = torch.rand(3, 84, 100)
        with torch.no_grad():
            expected = model(padded_by_hand(image[None], 16))[..., :84, :100].argmax(1)[0]
        assert torch.equal(predict(model, image)[0].label_map.long(), expected)

    def test_windows(self, models):
        """A window of a size that the stride does not divide is padded as an image of its own."""
        model, x = models[16, False], torch.rand(1, 3, 84, 84)
        with torch.no_grad():
            found = SlidingWindow(model, 42, 42)(x)
            expected = model(padded_by_hand(x[..., :42, 42:], 16))[..., :42, :42]
        assert torch.allclose(found[..., :42, 42:], expected, atol=1e-6)

    @pytest.mark.parametrize("size", [(84, 100), pytest.param("dynamic", marks=pytest.mark.long)])
    def test_exported(self, models, size, tmp_path):
        model = models[16, False]
        run = load_torchexport(to_torchexport(model, tmp_path / "m.pt2", size=size))
        for side in [(84, 100), (64, 96), (80, 33)] if size == "dynamic" else [size]:
            x = torch.rand(1, 3, *side)
            with torch.no_grad():
                expected = model(padded_by_hand(x, 16))[..., : side[0], : side[1]]
            assert (run(x)[0] - expected).abs().max() < 1e-4, side

    @pytest.mark.long
    def test_onnx(self, models, tmp_path):
        model = models[16, False]
        run = load_onnx(to_onnx(model, tmp_path / "m.onnx", size="dynamic"))
        for side in ((84, 100), (64, 96), (33, 127)):
            x = torch.rand(2, 3, *side)
            with torch.no_grad():
                expected = model(padded_by_hand(x, 16))[..., : side[0], : side[1]]
            assert (run(x)[0] - expected).abs().max() < 1e-4, side

    @pytest.mark.long
    @pytest.mark.parametrize("stride", [8, 32])
    def test_one_graph_for_all_sizes(self, models, stride):
        model = models[stride, True]
        dynamic = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
        run = torch.export.export(model, (torch.rand(2, 3, 96, 128),), dynamic_shapes=dynamic).module()
        for batch, height, width in ((2, 96, 128), (1, 84, 84), (1, 64, 33), (3, 127, 130)):
            x = torch.rand(batch, 3, height, width)
            with torch.no_grad():
                expected = model(padded_by_hand(x, stride))[..., :height, :width]
                assert (run(x) - expected).abs().max() < 1e-5, (batch, height, width)


class TestCropsOfTestTimeAugmentation:
    @given(size=image_sizes(max_side=400), share=st.floats(0.3, 0.99))
    @example((84, 64), 0.875)
    @example((32, 32), 0.984375)
    def test_are_whole_steps(self, size, share):
        """Of 32 px, or of less where that would be all of the image; near the share that was asked for.

        All of the image is taken where it is the nearest to the share in whole pixels.
        """
        _, geometry = TestTimeTransform(crop="center", crop_share=share)(torch.rand(1, 1, *size))
        for side, length in zip(size, geometry.sizes[-1], strict=True):
            step = next((s for s in (32, 16, 8, 4, 2) if length % s == 0), 1)
            assert 0 < length < side or length == side == round(share * side)
            assert abs(length - share * side) <= step / 2 + 1e-6

    @pytest.mark.parametrize(
        ("side", "length"), [(256, 224), (320, 288), (224, 192), (128, 112), (96, 80), (84, 64), (64, 56), (40, 32)]
    )
    def test_feature(self, side, length):
        seen, _ = TestTimeTransform(crop="top-left")(torch.rand(1, 3, side, side))
        assert seen.shape[-2:] == (length, length)

    def test_switched_off(self):
        assert TestTimeTransform(crop="center", multiple=1)(torch.rand(1, 3, 84, 90))[0].shape == (1, 3, 74, 79)
        assert TestTimeTransform(crop="center", crop_share=1.0)(torch.rand(1, 3, 84, 90))[0].shape == (1, 3, 84, 90)

    def test_segmentation(self, models):
        """Crops of 64 px of an image of 84: the stride divides what the network sees."""
        seen = []

        def look(image):
            seen.append(tuple(image.shape[-2:]))
            return models[16, False](image)

        assert TestTimeAugmentation(look, "five-crop")(torch.rand(1, 3, 84, 84)).shape == (1, 3, 84, 84)
        assert seen == [(64, 64)] * 5
