"""RandAugment and TrivialAugment that draw for each image."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.augmentation.auto import PerImageRandAugment, PerImageTrivialAugment, apply_to_rows, choose_rows

POLICIES = {"rand": lambda: PerImageRandAugment(2, 9), "trivial": PerImageTrivialAugment}


def chosen(params):
    """Which operations each image drew, in one row a drawn operation."""
    return torch.stack([step["data"]["batch_prob"] > 0.5 for step in params["steps"]])


@pytest.mark.parametrize("name", POLICIES)
class TestPerImage:
    @given(count=st.integers(1, 12), seed=st.integers(0, 2**20))
    def test_each_image_draws_as_many_as_it_should(self, name, count, seed):
        pipeline = AugmentationPipeline([POLICIES[name]()])
        batch = Batch(torch.rand(count, 3, 32, 40), mask=torch.randint(0, 3, (count, 32, 40)))
        out, params = pipeline.augment(batch, seed=seed)
        assert bool((chosen(params).sum(0) == (2 if name == "rand" else 1)).all())
        assert bool(torch.isfinite(out.image).all())
        assert torch.equal(pipeline.replay(batch, params).image, out.image)

    def test_images_of_a_batch_differ_in_what_they_draw(self, name):
        _, params = AugmentationPipeline([POLICIES[name]()]).augment(Batch(torch.rand(32, 3, 16, 16)), seed=0)
        assert len({tuple(column.tolist()) for column in chosen(params).unbind(1)}) > 8

    def test_feature(self, name):
        """An image comes out as Kornia's own operations, applied to it alone with what it drew, would have it."""
        policy = POLICIES[name]()
        image = torch.rand(6, 3, 24, 24)
        out, params = AugmentationPipeline([policy], fuse=False).augment(Batch(image), seed=3)
        for i in range(len(image)):
            expected = image[i : i + 1]
            for step in params["steps"]:
                if step["data"]["batch_prob"][i] > 0.5:
                    operation = policy.get_submodule(step["path"].partition(".")[2])
                    own = {
                        key: value[i : i + 1] if len(value) == 6 else value
                        for key, value in step["data"].items()
                        if key != "forward_input_shape"
                    }
                    own["forward_input_shape"] = torch.tensor(expected.shape)
                    expected = operation(expected, params=own)
            torch.testing.assert_close(out.image[i : i + 1], expected)

    def test_alone_as_any_kornia_module(self, name):
        image = torch.rand(4, 3, 16, 16)
        assert POLICIES[name]()(image).shape == image.shape


class TestApplyToRows:
    def test_leaves_the_others_as_they_are(self):
        seen = []

        class Invert(torch.nn.Module):
            def forward(self, image, params):
                seen.append((image.shape, params["strength"].tolist()))
                return 1 - image

        image = torch.rand(3, 1, 4, 4)
        draw = {"batch_prob": torch.tensor([0.0, 1.0, 0.0]), "strength": torch.tensor([1, 2, 3])}
        out = apply_to_rows(Invert(), image, choose_rows(draw, image.shape))
        assert torch.equal(out, torch.stack([image[0], 1 - image[1], image[2]]))
        assert seen == [((1, 1, 4, 4), [2])]
