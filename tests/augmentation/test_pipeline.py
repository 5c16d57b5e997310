"""AugmentationPipeline and the policies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kornia.augmentation import AugmentationSequential, ColorJitter, RandomHorizontalFlip, RandomRotation
from torch import nn

from kornia_mvit import AugmentationPipeline, Batch, Preprocess, policies
from tests.augmentation.scenes import STACKS, scene
from tests.tester import BaseTester

RECORD = Preprocess(36, crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def photos(count=4, height=40, width=52):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


class TestAugmentationPipeline(BaseTester):
    def test_smoke(self, device, dtype):
        pipeline = AugmentationPipeline(policies.classification_train(32, jitter=0.3), preprocess=RECORD).to(device)
        image = photos().to(device)
        for mode in (True, False):
            pipeline.train(mode)
            assert pipeline(image).dtype == torch.float32
            out = pipeline(image.to(dtype) / 255)
            assert out.dtype == dtype
            assert out.shape == (4, 3, 32, 32)
            assert out.device.type == device.type
            with torch.autocast(device.type, torch.bfloat16):
                assert pipeline(image).dtype == torch.float32

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (torch.full((1, 3, 40, 40), 255.0), ValueError, "values from 255 to 255; divide by 255, or give uint8"),
            (torch.full((1, 3, 40, 40), -1.5), ValueError, "from -1.5 to -1.5; undo the normalisation first"),
            (torch.full((1, 3, 40, 40), torch.nan), ValueError, "an image has NaN values"),
            (torch.rand(3, 40, 40), ValueError, "expected images of shape (B, C, H, W), got (3, 40, 40)"),
            (torch.zeros(1, 3, 40, 40, dtype=torch.int32), TypeError, "got torch.int32"),
            ([1, 2], TypeError, "a list of int, int; give the DataLoader collate_fn=Batch.collate"),
        ],
    )
    @pytest.mark.parametrize("train", [True, False])
    def test_exception_of_image(self, image, error, message, train):
        pipeline = AugmentationPipeline(policies.classification_train(32), preprocess=RECORD).train(train)
        with pytest.raises(error) as raised:
            pipeline(image)
        assert message in str(raised.value)

    def test_exception(self):
        with pytest.raises(TypeError, match="got str"):
            AugmentationPipeline(["flip"])
        with pytest.raises(TypeError, match="got Linear"):
            AugmentationPipeline(nn.Linear(2, 2))
        with pytest.raises(TypeError, match="carries its labels"):
            AugmentationPipeline()(Batch(photos()), torch.zeros(4))
        with pytest.raises(ValueError, match=r"4 images.*label.*3"):
            AugmentationPipeline()(photos(), torch.zeros(3, dtype=torch.long))

    def test_values_on_a_device_are_looked_at_only_when_asked(self):
        """The meta device stands in for an accelerator: to look at a value there raises."""
        image = torch.zeros(1, 3, 40, 40, device="meta")
        assert AugmentationPipeline(preprocess=Preprocess(32))(image).device.type == "meta"
        with pytest.raises(RuntimeError, match="meta"):
            AugmentationPipeline(preprocess=Preprocess(32), check_values=True)(image)

    @pytest.mark.long
    @pytest.mark.parametrize("padded", [False, True])
    @pytest.mark.parametrize("name", STACKS)
    def test_augmenting_waits_for_no_device(self, name, padded):
        """Again the meta device: a copy to the host raises there. Targets and the record stay on the device."""
        pipeline = AugmentationPipeline(STACKS[name](), preprocess=Preprocess((40, 40), mean=(0.5,) * 3)).train()
        batch = scene(0, padded=padded)
        out, params = pipeline.augment(batch.to("meta"), seed=1)
        assert out.image.shape == pipeline.augment(batch, seed=1)[0].image.shape
        for field in ("image", "boxes", "box_label", "mask", "keypoints", "keypoint_visible"):
            assert getattr(out, field).device.type == "meta"
        assert pipeline.replay(batch.to("meta"), params).image.shape == out.image.shape

    def test_moving_it_leaves_the_draws_alone(self):
        """Kornia would draw on the device that its module is on, and then elsewhere differently."""
        pipeline = AugmentationPipeline(policies.classification_train(32), preprocess=RECORD).train()
        image = photos()
        expected = pipeline(image, seed=1)
        assert torch.equal(pipeline.double().float()(image, seed=1), expected)
        assert pipeline.to("meta").stack.get_submodule("RandomResizedCrop_0").device.type == "cpu"
        strong = AugmentationPipeline(policies.classification_strong(32, num_classes=3))
        assert list(strong.parameters()) == []
        assert set(strong.state_dict()) == {"_extra_state"}
        assert "RandAugment(2 operations" in repr(strong)

    def test_cardinality(self):
        """What is put in comes out: a batch, images, or images with labels."""
        pipeline = AugmentationPipeline([RandomHorizontalFlip()], preprocess=RECORD)
        image, label, meta = photos(), torch.arange(4), [{"path": str(i)} for i in range(4)]
        assert isinstance(pipeline(image), torch.Tensor)
        out, kept = pipeline(image, label)
        assert torch.equal(kept, label)
        batch = pipeline(Batch(image, label, meta=meta))
        assert isinstance(batch, Batch)
        assert torch.equal(batch.label, label)
        assert batch.meta == meta
        assert out.shape == batch.image.shape == (4, 3, 32, 32)

    @pytest.mark.parametrize(
        "name", ["fuse", "antialias", "compile", "check_values", "erase_masks", "boxes_from_masks"]
    )
    def test_exception_of_flags(self, name):
        """Any text would count as true."""
        for value in ("no", None, 2):
            with pytest.raises(ValueError, match=f"{name}={value!r} is neither true nor false"):
                AugmentationPipeline([], **{name: value})

    def test_feature(self):
        """Train mode applies the value part alone, eval mode the whole Preprocess and nothing else."""
        image = photos(2, 32, 32)
        pipeline = AugmentationPipeline([RandomHorizontalFlip(p=1.0)], preprocess=RECORD)
        values = RECORD.module().values
        self.assert_close(pipeline.train()(image), values(image.flip(-1) / 255))
        self.assert_close(pipeline.eval()(image), RECORD.module()(image))
        assert torch.equal(pipeline(image), pipeline(image))

    def test_resizes_in_train_mode_only_what_the_policy_leaves_at_another_size(self):
        image = photos(2, 48, 48)
        out = AugmentationPipeline([], preprocess=Preprocess(40, crop=32)).train()(image)
        expected = Preprocess((32, 32)).module()(image)
        self.assert_close(out, expected, atol=1.07 / 255)

    def test_takes_a_container_or_a_list(self):
        steps = [RandomRotation(10.0), ColorJitter(0.1, 0.1, 0.1, 0.1)]
        outs = []
        for augment in (steps, AugmentationSequential(*steps, data_keys=["input", "mask"])):
            torch.manual_seed(3)
            outs.append(AugmentationPipeline(augment).train()(photos(2).float() * 0 + 0.5))
        self.assert_close(*outs)

    def test_gradcheck(self):
        """It works without gradients, also for images that ask for them."""
        pipeline = AugmentationPipeline(policies.classification_train(32), preprocess=RECORD)
        image = (photos() / 255).requires_grad_()
        for mode in (True, False):
            assert not pipeline.train(mode)(image).requires_grad

    def test_dynamo(self):
        """In eval mode, which is what a deployed model needs."""
        pipeline = AugmentationPipeline(preprocess=RECORD).eval()
        compiled = torch.compile(pipeline._preprocess, fullgraph=True, backend="aot_eager")
        image = photos() / 255
        self.assert_close(compiled(image), pipeline(image))

    @given(
        size=st.integers(32, 48) | st.tuples(st.integers(32, 48), st.integers(32, 48)),
        height=st.integers(16, 60),
        width=st.integers(16, 60),
        channels=st.sampled_from([1, 3]),
        seed=st.integers(0, 2**16),
    )
    def test_a_policy_gives_its_size_in_range(self, size, height, width, channels, seed):
        torch.manual_seed(seed)
        jitter = 0.4 if channels == 3 else 0.0
        pipeline = AugmentationPipeline(policies.classification_train(size, jitter=jitter))
        image = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
        out = pipeline.train()(image)
        assert out.shape == (2, channels, *((size, size) if isinstance(size, int) else size))
        assert out.min() >= 0
        assert out.max() <= 1 + 1e-5


class TestClassificationTrain:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"scale": (0.5, 0.2)}, "scale (0.5, 0.2) is not an ascending range in (0, 1]"),
            ({"scale": (0.5, 1.2)}, "scale (0.5, 1.2) is not"),
            ({"ratio": (0.0, 1.0)}, "ratio (0.0, 1.0) is not an ascending range in (0, inf]"),
            ({"flip": 1.5}, "flip 1.5 is not in [0, 1]"),
            ({"jitter": -0.1}, "jitter -0.1 is not in [0, 1]"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError) as error:
            policies.classification_train(32, **arguments)
        assert message in str(error.value)

    def test_feature(self):
        """Crops differ within a batch, and no crop is taken where the whole image is asked for."""
        image = photos(1, 40, 40).expand(8, -1, -1, -1) / 255
        crops = policies.classification_train(32)(image)
        assert len({tuple(crop.flatten().tolist()) for crop in crops}) == 8
        whole = policies.classification_train(40, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)(image)
        torch.testing.assert_close(whole, image)

    def test_flips_half_of_the_images(self):
        image = photos(1, 40, 40).expand(400, -1, -1, -1) / 255
        out = policies.classification_train(40, scale=(1.0, 1.0), ratio=(1.0, 1.0))(image)
        flipped = (out - image.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
        kept = (out - image).abs().amax((1, 2, 3)) < 1e-5
        assert bool((flipped ^ kept).all())
        assert 150 < int(flipped.sum()) < 250
