"""Undoing what a pipeline did: dense maps, boxes and keypoints."""

import kornia.augmentation as K
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, Mix, Preprocess
from kornia_mvit.augmentation.crops import RandomZoomOut
from kornia_mvit.inference.sliding_window import predict_labels, predict_maps
from tests.augmentation.scenes import POLICIES, STACKS, scene, smooth_maps, stack

SEEDS = st.integers(0, 2**20)
OPERATIONS = {
    "flip": lambda: K.RandomHorizontalFlip(p=1.0),
    "rotation": lambda: K.RandomRotation(30.0, p=1.0),
    "affine": lambda: K.RandomAffine(20.0, (0.1, 0.1), (0.8, 1.2), p=1.0),
    "perspective": lambda: K.RandomPerspective(0.4, p=1.0),
    "resized crop": lambda: K.RandomResizedCrop((192, 192), align_corners=False),
}

WHITE = {
    "perspective": lambda: [K.RandomPerspective(0.6, p=1.0)],
    "affine": lambda: [K.RandomAffine(30.0, (0.1, 0.2), (0.5, 1.5), p=1.0)],
    "translation": lambda: [K.RandomTranslate((0.1, 0.3), (0.1, 0.3), p=1.0)],
    "warped twice": lambda: [K.RandomRotation(40.0, p=1.0), K.RandomAffine(30.0, scale=(0.5, 1.5), p=1.0)],
    "zoom out": lambda: [RandomZoomOut(4.0, p=1.0)],
    "with values between": lambda: [
        K.RandomRotation(40.0, p=1.0),
        K.RandomBrightness((1.0, 1.0), p=1.0),
        K.RandomAffine(30.0, scale=(0.4, 1.0), p=1.0),
        K.CenterCrop(30),
    ],
}


def at_stride(image, stride):
    """Maps of another resolution, as a network gives them."""
    size = (image.shape[-2] // stride, image.shape[-1] // stride)
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)


class TestInverse:
    @pytest.mark.parametrize("stride", [1, 4, 8, 16])
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_feature(self, name, stride):
        """Smooth maps come back within 0.05 on average over what was in view, whatever the stride."""
        maps = smooth_maps(4, 192, 256)
        pipeline = AugmentationPipeline([OPERATIONS[name]()])
        errors = []
        for seed in range(4):
            out, params = pipeline.augment(Batch(maps), seed=seed)
            back, valid = pipeline.inverse(at_stride(out.image, stride), params)
            assert back.shape == maps.shape
            assert valid.shape == (4, 1, 192, 256)
            assert valid.dtype == torch.bool
            assert bool((back.masked_select(~valid) == 0).all())
            errors.append((back - maps).abs().mean(1, keepdim=True)[valid].mean())
        assert torch.stack(errors).mean() <= 0.05

    @example(name="affine, filled", seed=0)
    @given(
        name=st.sampled_from(sorted(set(STACKS) - {"classification_strong", "classification_strong, trivial"})),
        seed=SEEDS,
    )
    def test_valid_pixels_are_those_that_the_mask_saw(self, name, seed):
        """Numbering each pixel in the mask tells which of them reached the result: these are valid, all but the rim.

        A pixel is valid where all that it is made from was seen, which leaves out up to two along an edge.
        """
        height, width = 56, 60
        numbers = torch.arange(height * width).view(1, height, width) + 1000
        pipeline = AugmentationPipeline(STACKS[name](), ignore_index=0)
        out, params = pipeline.augment(Batch(torch.rand(1, 3, height, width), mask=numbers), seed=seed)
        _, valid = pipeline.inverse(torch.rand(1, 1, *out.image.shape[-2:]), params)
        seen = torch.zeros(height * width, dtype=torch.bool)
        seen[out.mask[out.mask > 0] - 1000] = True
        unseen = (~seen).float().view(1, 1, height, width)
        well_inside = F.max_pool2d(F.pad(unseen, (2, 2, 2, 2), value=1.0), 5, 1) == 0
        assert not (well_inside & ~valid).any()

    @pytest.mark.parametrize("padded", [False, True])
    @pytest.mark.parametrize("fuse", [True, False])
    @pytest.mark.parametrize("name", WHITE)
    def test_valid_pixels_are_made_from_the_image_alone(self, name, fuse, padded):
        """A white image comes back white, whatever was black around it; so it does at another stride's validity."""
        image = torch.ones(2, 1, 40, 48)
        size = torch.tensor([[30, 35], [40, 21]]) if padded else None
        for b, (height, width) in enumerate(size.tolist() if padded else []):
            image[b, :, height:], image[b, :, :, width:] = 0.0, 0.0
        pipeline = AugmentationPipeline(WHITE[name](), fuse=fuse)
        for seed in range(4):
            out, params = pipeline.augment(Batch(image, size=size), seed=seed)
            back, valid = pipeline.inverse(out.image, params)
            assert (back[valid] > 0.998).all()
            assert valid.sum() > 100
            assert torch.equal(pipeline.inverse(out.image[..., ::4, ::4], params)[1], valid)

    def test_whole_pixels_lose_nothing(self):
        """Where pixels land on pixels, all that are in view are valid."""
        steps = [
            K.RandomHorizontalFlip(p=1.0),
            K.PadTo((50, 60)),
            K.RandomRotation90((2, 2), p=1.0),
            K.CenterCrop((44, 44)),
        ]
        for fuse in (True, False):
            pipeline = AugmentationPipeline(steps, fuse=fuse)
            out, params = pipeline.augment(Batch(torch.ones(1, 1, 40, 48)), seed=0)
            _, valid = pipeline.inverse(out.image, params)
            assert valid.sum() == out.image.sum()

    @pytest.mark.parametrize("preprocess", [Preprocess((32, 32), letterbox=True), Preprocess(30)], ids=str)
    @pytest.mark.parametrize("sizes", [[(40, 50)], [(50, 41), (33, 21)]])
    def test_bars_beside_an_image_are_not_read(self, preprocess, sizes):
        """Every pixel of the images comes back, those at the edge of a letterbox too."""
        batch = Batch.collate([{"image": torch.ones(1, *size)} for size in sizes])
        pipeline = AugmentationPipeline(preprocess=preprocess)
        out, params = pipeline.prepare(batch)
        back, valid = pipeline.inverse(out.image, params)
        assert torch.equal(valid, batch.image > 0)
        assert (back[valid] > 0.999).all()

    @given(seed=SEEDS)
    def test_of_padded_batches_and_preprocessing(self, seed):
        """Resize and crop in eval mode are undone, each image's by its own size, and padding is not valid."""
        batch = scene(seed, padded=True)
        batch = batch.replace(image=smooth_maps(2, *batch.image.shape[-2:]))
        pipeline = AugmentationPipeline(preprocess=Preprocess(48, crop=40, mean=(0.5,) * 3))
        out, params = pipeline.prepare(batch)
        back, valid = pipeline.inverse(pipeline.preprocess.module().undo_values(out.image), params)
        for i, (h, w) in enumerate(batch.size.tolist()):
            assert not valid[i, :, h:].any()
            assert not valid[i, :, :, w:].any()
            short = min(h, w)
            share = min(1.0, 40 / 48 * short / h) * min(1.0, 40 / 48 * short / w)
            assert abs(valid[i].sum().item() / (h * w) - share) < 0.08
        error = (back - batch.image).abs().mean(1, keepdim=True)[valid]
        assert error.mean() < 0.02

    @given(name=st.sampled_from(sorted(STACKS)), seed=SEEDS)
    def test_boxes_and_keypoints_come_back(self, name, seed):
        batch = scene(seed)
        pipeline = AugmentationPipeline(STACKS[name](), min_box_area=0.0)
        out, params = pipeline.augment(batch, seed=seed)
        points = pipeline.inverse_keypoints(out.keypoints, params)
        torch.testing.assert_close(points, batch.keypoints, rtol=0, atol=1e-2)
        boxes = pipeline.inverse_boxes(out.boxes, params)
        for i in range(len(batch)):
            for box, label in zip(boxes[i], out.box_label[i].tolist(), strict=True):
                if label >= 0:
                    middle = (out.boxes[i][out.box_label[i] == label][0].view(2, 2)).mean(0)
                    source = pipeline.inverse_keypoints(middle.expand(len(batch), 1, 2), params)[i, 0]
                    assert bool((source >= box[:2] - 1e-2).all())
                    assert bool((source <= box[2:] + 1e-2).all())

    def test_of_half_precision(self):
        pipeline = AugmentationPipeline([K.RandomRotation(20.0, p=1.0)])
        _, params = pipeline.augment(Batch(torch.rand(2, 3, 32, 32)))
        assert pipeline.inverse(torch.rand(2, 1, 8, 8).half(), params)[0].dtype == torch.float16

    def test_exception(self):
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip()], mix=Mix(3))
        batch = Batch(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 1]))
        _, params = pipeline.augment(batch, seed=0)
        with pytest.raises(ValueError, match=r"mixed by (mixup|cutmix)"):
            pipeline.inverse(torch.rand(4, 1, 8, 8), params)
        plain = AugmentationPipeline([K.RandomHorizontalFlip()])
        _, params = plain.augment(batch)
        with pytest.raises(ValueError, match=r"for 4 images.*2"):
            plain.inverse(torch.rand(2, 1, 8, 8), params)
        with pytest.raises(ValueError, match=r"maps are \(B, C, h, w\)"):
            plain.inverse(torch.rand(4, 8, 8), params)
        unknown = AugmentationPipeline(stack(K.RandomHorizontalFlip(), torch.nn.Dropout2d()))
        _, params = unknown.augment(batch)
        with pytest.raises(ValueError, match=r"Dropout2d.*inverted"):
            unknown.inverse(torch.rand(4, 1, 8, 8), params)
        with pytest.raises(ValueError, match=r"Dropout2d.*boxes and keypoints and mask.*unknown"):
            unknown.augment(scene(0))


def test_policies_without_mix_can_be_inverted():
    for name, make in POLICIES.items():
        pipeline = AugmentationPipeline(make())
        out, params = pipeline.augment(Batch(torch.rand(2, 3, 64, 64), torch.tensor([0, 1])), seed=1)
        back, valid = pipeline.inverse(out.image, params)
        assert back.shape == (2, 3, 64, 64), name
        assert valid.any(), name


class TestPredictLabels:
    """The classes of the pixels, in strips of rows: those of the whole map."""

    @pytest.mark.parametrize("preprocess", [Preprocess(20), Preprocess(None), Preprocess((16, 24), letterbox=True)])
    @pytest.mark.parametrize("strip", [1, 700, 2**24])
    @pytest.mark.parametrize("classes", [5, 300])
    def test_equal_to_the_whole_map(self, preprocess, strip, classes, monkeypatch):
        monkeypatch.setattr("kornia_mvit.inference.sliding_window._STRIP", strip)
        image = torch.rand(3, 37, 53)
        weight = torch.randn(classes, 3, 4, 4, generator=torch.Generator().manual_seed(0))

        def predict(x):
            return F.conv2d(x - 0.5, weight, stride=4)

        pipeline = AugmentationPipeline(preprocess=preprocess)
        ((_, maps, _),) = predict_maps(predict, Batch(image[None]), pipeline)
        labels = predict_labels(predict, image, pipeline)
        assert labels.dtype == (torch.uint8 if classes == 5 else torch.int32)
        assert torch.equal(labels.long(), maps.argmax(1)[0])

    def test_images_that_are_refused_are_named(self):
        pipeline = AugmentationPipeline(preprocess=Preprocess(64))
        batch = Batch.collate([{"image": torch.zeros(3, 1, 20000), "meta": {"path": "wide.png"}}])
        with pytest.raises(ValueError, match=r"wide\.png: an image of 1x20000 pixels"):
            pipeline.prepare(batch)
        small = {"image": torch.zeros(3, 9, 9), "meta": {"path": "small.png"}}
        wide = {"image": torch.zeros(3, 1, 20000), "meta": {"path": "wide.png"}}
        with pytest.raises(ValueError, match=r"wide\.png: an image of 1x20000 pixels"):
            pipeline.prepare(Batch.collate([small, wide]))
