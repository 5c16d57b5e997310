"""RandomColorTwist."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.augmentation.color import RandomColorTwist
from tests.augmentation.scenes import stack
from tests.tester import BaseTester


def twist(image, **drawn):
    """Apply given factors to every image."""
    params = RandomColorTwist().forward_parameters(image.shape)
    params |= {name: torch.full((len(image),), value) for name, value in drawn.items()}
    return RandomColorTwist()(image, params=params)


class TestRandomColorTwist(BaseTester):
    def test_smoke(self, device, dtype):
        image = torch.rand(2, 3, 8, 8, device=device).to(dtype)
        out = RandomColorTwist(0.4, 0.4, 0.4, 0.1)(image)
        assert out.dtype == dtype
        assert out.device.type == device.type

    def test_exception(self):
        for arguments, message in [
            ((-0.1,), "brightness -0.1 is negative"),
            ((0, 0, 0, 0.6), "hue 0.6 is negative, or more than half a turn"),
            ((0, 0, 0, 0, 2), r"p 2 is not a probability in \[0, 1\]"),
        ]:
            with pytest.raises(ValueError, match=message):
                RandomColorTwist(*arguments)
        with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
            RandomColorTwist(hue=0.1)(torch.rand(1, 4, 8, 8))

    def test_cardinality(self):
        for shape in ((2, 3, 8, 9), (1, 1, 4, 4)):
            assert RandomColorTwist(0.4, 0.4, 0.4, 0.1)(torch.rand(shape)).shape == shape
        assert repr(RandomColorTwist(0.4, hue=0.1, p=0.8)) == "RandomColorTwist(brightness=0.4, hue=0.1, p=0.8)"

    @pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.3])
    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
    def test_feature(self, name, factor):
        """Each factor alone does what torchvision's function of its name does."""
        image = torch.rand(1, 3, 16, 16)  # contrast is about the mean of one image at a time
        expected = getattr(tv, f"adjust_{name}")(image, factor)
        self.assert_close(twist(image, **{name: factor}), expected, atol=1e-3)

    @given(hue=st.floats(-0.5, 0.5), seed=st.integers(0, 2**16))
    def test_hue_keeps_luma_and_greys(self, hue, seed):
        image = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 0.2 + 0.4
        luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        out = twist(image, hue=hue)
        torch.testing.assert_close((out * luma).sum(1), (image * luma).sum(1), rtol=0, atol=1e-4)
        grey = image[:, :1].expand(-1, 3, -1, -1)
        torch.testing.assert_close(twist(grey, hue=hue), grey, rtol=0, atol=1e-4)
        torch.testing.assert_close(twist(out, hue=-hue), image, rtol=0, atol=1e-3)

    def test_a_third_of_a_turn_takes_red_to_green(self):
        """As hue in HSV does; the circle is somewhat out of round in between."""
        red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1)
        assert twist(red, hue=1 / 3).flatten().argmax() == 1
        assert twist(red, hue=-1 / 3).flatten().argmax() == 2

    def test_images_that_are_not_chosen_stay_as_they_are(self):
        image = torch.rand(64, 3, 4, 4)
        out = RandomColorTwist(0.4, 0.4, 0.4, 0.1, p=0.5)(image)
        same = (out == image).flatten(1).all(1)
        assert 15 < int(same.sum()) < 49
        assert torch.equal(RandomColorTwist(0.4, 0.4, 0.4, 0.1, p=0.0)(image), image)

    @given(seed=st.integers(0, 2**16))
    def test_stays_in_range_and_replays(self, seed):
        image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        pipeline = AugmentationPipeline(stack(RandomColorTwist(0.9, 0.9, 0.9, 0.5)))
        out, params = pipeline.augment(Batch(image), seed=seed)
        assert out.image.min() >= 0
        assert out.image.max() <= 1
        assert torch.equal(pipeline.replay(Batch(image), params).image, out.image)

    def test_gradcheck(self):
        image = torch.rand(1, 3, 3, 3, dtype=torch.float64) * 0.2 + 0.4
        step = RandomColorTwist(0.1, 0.1, 0.1, 0.05)
        params = step.forward_parameters(image.shape)
        assert torch.autograd.gradcheck(
            lambda x: step.apply_transform(x, params, {}), image.requires_grad_(), eps=1e-7, atol=1e-5
        )

    def test_dynamo(self):
        step, image = RandomColorTwist(0.4, 0.4, 0.4, 0.1), torch.rand(2, 3, 8, 8)
        params = step.forward_parameters(image.shape)
        compiled = torch.compile(lambda x: step.apply_transform(x, params, {}), fullgraph=True, backend="aot_eager")
        self.assert_close(compiled(image), step.apply_transform(image, params, {}))
