"""Batches that go through the CPU's cache slice by slice give what they give as a whole."""

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from kornia_mvit.augmentation import slices
from kornia_mvit.augmentation.color import jitter_colors
from kornia_mvit.augmentation.slices import in_slices
from kornia_mvit.preprocess import to_float
from tests.augmentation.scenes import GEOMETRIC, POLICIES, scene, stack

PREPROCESS = Preprocess((48, 48), mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
FIELDS = ("image", "boxes", "box_label", "mask", "keypoints", "keypoint_visible", "size")


def ran(name: str, batch: Batch, monkeypatch, size: int) -> Batch:
    """Augment a batch by slices of so many bytes."""
    monkeypatch.setattr(slices, "SLICE_BYTES", size)
    augment = POLICIES[name]() if name in POLICIES else stack(GEOMETRIC[name]())
    return AugmentationPipeline(augment, preprocess=PREPROCESS).train()(batch, seed=5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", [*GEOMETRIC, *POLICIES])
def test_equal_to_the_bit(name, padded, monkeypatch):
    """Image by image, by twos and as a whole; of uint8, of which windows are read, and of floating point."""
    batch = scene(3, count=5, padded=padded)
    image = (batch.image * 255).to(torch.uint8) if batch.image.is_floating_point() else batch.image
    batch = batch.replace(image=image)
    whole = ran(name, batch.replace(image=to_float(image)), monkeypatch, 1 << 40)
    two = 2 * 4 * image[0].numel()
    for size in (1, two, 1 << 40):
        out = ran(name, batch, monkeypatch, size)
        for field in FIELDS:
            found, wanted = getattr(out, field), getattr(whole, field)
            assert (found is None) == (wanted is None)
            if found is not None:
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6 if field == "image" else 0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_rows_and_places(count, monkeypatch):
    """Each image is taken once, in order, whether the function writes its result or gives it."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)
    batch = torch.arange(count * 6.0).view(count, 2, 3)

    def double(part, rows, out):
        assert torch.equal(part, batch[rows])
        return torch.mul(part, 2, out=out) if rows.start % 2 else part * 2

    assert torch.equal(in_slices(batch, double), 2 * batch)


@pytest.mark.parametrize("order", [None, (3, 0), (2, 1, 3, 0)])
def test_jitter_is_that_of_kornia(order):
    """On colours of all kinds: grey, black, white, one channel alone, channels that are equal."""
    image = torch.rand(8, 3, 12, 10)
    image[0], image[1], image[2] = image[0, :1], 0.0, 1.0
    image[3, :2], image[4] = 0.0, (image[4] * 3).round() / 3
    for seed in range(20):
        torch.manual_seed(seed)
        jitter = K.ColorJitter(0.4, 0.9, (0.0, 2.0), 0.5, p=0.8, order=order)
        wanted, params = jitter(image), jitter._params
        before = image.clone()
        out = jitter_colors(image, params, list(order or params["order"].tolist()))
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)
        assert torch.equal(image, before)


def test_jitter_of_a_pipeline(monkeypatch):
    """A fixed order is kept, other images are left alone, and replay gives the same to the bit."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)
    jitter = K.ColorJitter(0.4, 0.4, 0.4, 0.2, p=0.5, order=(1, 3))
    pipeline = AugmentationPipeline([jitter]).train()
    batch = Batch(torch.rand(12, 3, 16, 16))
    out, params = pipeline.augment(batch, seed=1)
    assert torch.equal(pipeline.replay(batch, params).image, out.image)
    drawn = params["steps"][0]["data"]
    torch.testing.assert_close(out.image, jitter(batch.image, params=drawn), rtol=0, atol=1e-5)
    kept = drawn["batch_prob"] < 0.5
    assert 0 < kept.sum() < 12
    assert torch.equal(out.image[kept], batch.image[kept])
