"""Crops that look at what they crop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.augmentation.crops import RandomIoUCrop, RandomScaledCrop, RandomZoomOut, View, WindowCrop
from kornia_mvit.ops.geometry import box_iou
from tests.augmentation.scenes import scene, smooth_maps, stack

SEEDS = st.integers(0, 2**20)


def view(batch, look_at=True):
    sizes = torch.tensor(batch.image.shape[-2:]).expand(len(batch), 2) if batch.size is None else batch.size
    targets = {"boxes": batch.boxes, "box_valid": batch.box_label >= 0, "mask": batch.mask} if look_at else {}
    return View(tuple(batch.image.shape[-2:]), sizes, **targets)


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        (lambda: RandomZoomOut(0.5), "max_scale 0.5 is below 1, which would zoom in"),
        (lambda: RandomZoomOut(2.0, p=2), "p 2 is not a probability in [0, 1]"),
        (lambda: RandomIoUCrop((8, 8), scale=(0.5, 0.2)), "scale (0.5, 0.2) is not an ascending range"),
        (lambda: RandomIoUCrop((8, 8), scale=(0.5, 1.2)), "scale (0.5, 1.2) is not"),
        (lambda: RandomIoUCrop((8, 8), ratio=(0.0, 2.0)), "ratio (0.0, 2.0) is not"),
        (lambda: RandomIoUCrop((8, 8), overlaps=()), "give at least one of each"),
        (lambda: RandomScaledCrop((8, 8), short_side=(9, 3)), "short_side (9, 3) is not an ascending range of pixels"),
        (lambda: RandomScaledCrop((8, 8), max_class_share=0.0), "max_class_share 0.0 is not in (0, 1]"),
    ],
)
def test_exception(crop, message):
    with pytest.raises(ValueError) as error:
        crop()
    assert message in str(error.value)


def test_they_are_kornia_augmentations():
    """In a container of Kornia they crop without looking, and Kornia's own matrix, inverse included, is right."""
    image = smooth_maps(2, 60, 80)
    for crop, size in (
        (RandomZoomOut(2.0), (60, 80)),
        (RandomIoUCrop((32, 48)), (32, 48)),
        (RandomScaledCrop((48, 48), short_side=(48, 70)), (48, 48)),
    ):
        assert stack(crop)(image).shape == (2, 3, *size)
        for fuse in (True, False):
            out, params = AugmentationPipeline([crop], fuse=fuse).augment(Batch(image), seed=1)
            assert out.image.shape == (2, 3, *size)
            direct = crop(image, params=params["steps"][0]["data"])
            torch.testing.assert_close(out.image, direct)
        assert str(crop).startswith(type(crop).__name__)


class Corner(WindowCrop):
    """A crop of a user's own, which draws where it looks."""

    def windows(self, view):
        side = 8 + 8 * torch.rand(len(view.size), 1).expand(-1, 2)
        return torch.cat([torch.zeros_like(side), side], -1)


class TestWindowCrop:
    def test_of_ones_own(self):
        batch = scene(0)
        pipeline = AugmentationPipeline(stack(RandomZoomOut(p=1.0), Corner((16, 16)), RandomZoomOut(p=1.0)))
        out, params = pipeline.augment(batch, seed=1)
        window = params["steps"][1]["data"]["window"]
        assert out.image.shape[-2:] == (16, 16)
        assert (window[:, 2:] >= 8).all()
        assert len(window.unique()) > 2
        assert torch.equal(pipeline.augment(batch, seed=1)[0].image, out.image)
        assert torch.equal(pipeline.replay(batch, params).image, out.image)


class TestRandomZoomOut:
    @given(seed=SEEDS, scale=st.floats(1, 5))
    def test_feature(self, seed, scale):
        """The image stays whole on the canvas, at most so much smaller."""
        torch.manual_seed(seed)
        window = RandomZoomOut(scale, p=1.0).windows(view(scene(seed, padded=True)))
        sizes = scene(seed, padded=True).size.flip(-1)
        assert bool((window[:, :2] <= 1e-6).all())
        assert bool((window[:, 2:] >= sizes - 1e-6).all())
        assert bool(((window[:, 2:] - window[:, :2]) / sizes <= scale + 1e-6).all())

    def test_images_that_are_not_chosen_fill_the_canvas(self):
        image = smooth_maps(2, 40, 50)
        out = AugmentationPipeline([RandomZoomOut(3.0, p=0.0)]).augment(Batch(image))[0].image
        torch.testing.assert_close(out, image)


class TestRandomIoUCrop:
    @given(seed=SEEDS, overlap=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))
    def test_feature(self, seed, overlap):
        """Some box overlaps the window as was asked and has its centre in it, unless the whole image was taken."""
        torch.manual_seed(seed)
        batch = scene(seed)
        windows = RandomIoUCrop((32, 32), overlaps=(overlap,)).windows(view(batch))
        height, width = batch.image.shape[-2:]
        whole = torch.tensor([0, 0, width, height]).double()
        for window, boxes, labels in zip(windows, batch.boxes.double(), batch.box_label, strict=True):
            if torch.equal(window, whole) or not (labels >= 0).any():
                continue
            valid = boxes[labels >= 0]
            centres = (valid[:, :2] + valid[:, 2:]) / 2
            inside = ((centres >= window[:2]) & (centres <= window[2:])).all(-1)
            assert box_iou(window[None], valid)[0].max() >= overlap
            assert inside.any()

    @given(seed=SEEDS, padded=st.booleans())
    def test_windows_lie_within_the_image(self, seed, padded):
        torch.manual_seed(seed)
        batch = scene(seed, padded=padded)
        windows = RandomIoUCrop((32, 32), scale=(0.3, 0.9)).windows(view(batch))
        sizes = view(batch).size.flip(-1)
        assert bool((windows[:, :2] >= -1e-6).all())
        assert bool((windows[:, 2:] <= sizes + 1e-6).all())
        aspect = (windows[:, 2] - windows[:, 0]) / (windows[:, 3] - windows[:, 1])
        whole = (windows[:, 2:] == sizes).all(-1) & (windows[:, :2] == 0).all(-1)
        assert bool((whole | (aspect >= 0.5 - 1e-6) & (aspect <= 2 + 1e-6)).all())

    def test_none_takes_the_whole_image(self):
        batch = scene(3)
        windows = RandomIoUCrop((32, 32), overlaps=(None,)).windows(view(batch))
        assert windows.tolist() == [[0.0, 0.0, 72.0, 64.0]] * 2


class TestRandomScaledCrop:
    @given(seed=SEEDS)
    def test_sizes(self, seed):
        """The window is as large in the image as the result is in the resized one."""
        torch.manual_seed(seed)
        batch = scene(seed, padded=True)
        crop = RandomScaledCrop((40, 48), short_side=(30, 90), max_class_share=1.0)
        windows = crop.windows(view(batch))
        scale = 48 / (windows[:, 2] - windows[:, 0])
        torch.testing.assert_close(40 / (windows[:, 3] - windows[:, 1]), scale)
        short = scale * batch.size.amin(1)
        assert bool(((short >= 30 - 1e-6) & (short <= 90 + 1e-6)).all())

    def test_windows_of_one_class_are_avoided(self):
        """On an image that is mostly sky, most windows would be nothing else."""
        mask = torch.zeros(200, 64, 64, dtype=torch.long)
        mask[:, 44:] = 1
        batch = Batch(torch.zeros(200, 3, 64, 64), mask=mask)

        def share_of_sky(bound):
            crop = RandomScaledCrop((32, 32), short_side=(64, 64), max_class_share=bound)
            out = AugmentationPipeline([crop]).augment(batch, seed=0)[0].mask
            return ((out == 0).float().mean((1, 2)) > 0.8).float().mean()

        assert share_of_sky(1.0) > 0.4
        assert share_of_sky(0.75) < 0.02

    def test_unlabelled_pixels_do_not_count(self):
        mask = torch.full((2, 64, 64), 255)
        mask[:, :, 32:40], mask[:, :, 40:48] = 1, 2
        crop = RandomScaledCrop((48, 48), short_side=(48, 48), max_class_share=0.6)
        out = AugmentationPipeline([crop]).augment(Batch(torch.zeros(2, 3, 64, 64), mask=mask), seed=0)[0].mask
        assert bool((out == 1).any() & (out == 2).any())
