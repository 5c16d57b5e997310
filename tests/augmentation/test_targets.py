"""What targets hold after a pipeline: dtypes, memory of their own, boxes that are left, batches of no images."""

import warnings

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from torch import Tensor

from kornia_mvit import AugmentationPipeline, Batch, Mix, Preprocess, policies
from kornia_mvit.augmentation.crops import RandomIoUCrop

BOXES = torch.tensor([[[0.0, 0, 4, 4], [20, 12, 36, 20]]])


def whole(count=2, **fields):
    """A batch of every field, each image a part of its canvas."""
    values = {
        "image": torch.rand(count, 3, 30, 40),
        "boxes": BOXES.repeat(count, 1, 1),
        "box_label": torch.tensor([[3, 1]]).repeat(count, 1),
        "box_ignore": torch.tensor([[True, False]]).repeat(count, 1),
        "mask": torch.ones(count, 30, 40, dtype=torch.long),
        "keypoints": torch.full((count, 1, 2), 9.0, dtype=torch.float64),
        "keypoint_visible": torch.ones(count, 1, dtype=torch.bool),
        "size": torch.full((count, 2), 24),
        "original_size": torch.full((count, 2), 99),
        "meta": [{"path": "a.png"} for _ in range(count)],
    }
    return Batch(**(values | fields))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_dropped_boxes_are_padding_in_each_dtype(dtype):
    batch = whole(box_label=torch.tensor([[3, 1]] * 2, dtype=dtype), size=None)
    out = AugmentationPipeline([K.CenterCrop((10, 20))])(batch, seed=0)
    assert out.box_label.tolist() == [[1, -1]] * 2


class Bent(K.RandomElasticTransform):
    """One of which it is not known where it moves pixels."""


FREE = {"alpha": (9.0, 9.0), "p": 1.0}
MASKED = {
    "affine": ([K.RandomAffine((45.0, 45.0), p=1.0)], {}),
    "stepwise": ([K.RandomAffine((45.0, 45.0), p=1.0)], {"fuse": False}),
    "free": ([K.RandomAffine((45.0, 45.0), p=1.0), K.RandomElasticTransform(**FREE)], {}),
    "erased": ([K.RandomErasing((0.3, 0.4), p=1.0)], {"erase_masks": True}),
    "nothing": ([], {}),
    "letterbox": ([], {"preprocess": Preprocess((20, 40), letterbox=True)}),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("dtype", "ignore_index"), [(torch.uint8, -100), (torch.int8, 255), (torch.uint16, 255), (torch.uint8, 255)]
)
def test_masks_hold_ignore_index(name, dtype, ignore_index):
    steps, options = MASKED[name]
    pipeline = AugmentationPipeline(steps, ignore_index=ignore_index, **options)
    batch = Batch(torch.rand(1, 3, 30, 40), mask=torch.ones(1, 30, 40, dtype=dtype))
    for train in (True, False):
        out = pipeline.train(train)(batch, seed=0)
        found = set(out.mask.unique().tolist())
        assert found == {1, ignore_index} if train and steps else found <= {1, ignore_index}
        assert out.mask.dtype == (torch.uint8 if (dtype, ignore_index) == (torch.uint8, 255) else torch.int64)


@pytest.mark.parametrize("steps", [[], [K.RandomHorizontalFlip(p=0.0)], [K.RandomHorizontalFlip(p=1.0)]])
def test_results_share_no_memory_with_what_was_put_in(steps):
    pipeline = AugmentationPipeline(steps)
    for batch in (whole(), whole(label=torch.tensor([1, 0]))):
        before = {name: value.clone() for name, value in vars(batch).items() if isinstance(value, Tensor)}
        for out in (pipeline.augment(batch, seed=0)[0], pipeline.prepare(batch)[0], pipeline.views(batch)[1][0]):
            for value in vars(out).values():
                if isinstance(value, Tensor):
                    value.zero_()
            out.meta[0]["path"] = ""
        assert all(torch.equal(getattr(batch, name), value) for name, value in before.items())
        assert batch.meta[0] == {"path": "a.png"}


def test_parameters_share_no_memory_with_the_batch():
    batch, pipeline = whole(), AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)], preprocess=Preprocess((16, 16)))
    for out, params in (pipeline.augment(batch, seed=0), pipeline.prepare(batch)):
        seen = pipeline.inverse(out.image, params)[1]
        batch.size.fill_(30)
        assert torch.equal(pipeline.inverse(out.image, params)[1], seen)
        batch.size.fill_(24)


@pytest.mark.parametrize("step", [K.CenterCrop((10, 10)), K.RandomRotation((45.0, 45.0), p=1.0)])
def test_boxes_wholly_outside_are_dropped_whatever_the_least_area(step):
    pipeline = AugmentationPipeline([K.CenterCrop((10, 20)), step], min_box_area=0.0)
    boxes = torch.tensor([[[0.0, 0, 4, 4], [12, 0, 14, 10], [19.5, 12, 20.5, 20]]])
    out = pipeline(Batch(torch.rand(1, 3, 30, 40), boxes=boxes, box_label=torch.tensor([[0, 1, 2]])), seed=0)
    assert out.box_label.tolist() == [[2, -1, -1]]


EMPTY = {
    "crop": (lambda: [K.RandomResizedCrop((8, 8))], {}),
    "own": (lambda: policies.detection_train((16, 16)), {"preprocess": Preprocess((16, 16), letterbox=True)}),
    "values": (lambda: [K.ColorJiggle(0.1, 0.1, 0.1, 0.1), K.Resize((9, 7))], {}),
    "sizes": (lambda: [K.RandomHorizontalFlip()], {"multi_scale": [(12, 16)], "preprocess": Preprocess(8, crop=6)}),
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_images_get_the_size_of_others(name):
    steps, options = EMPTY[name]
    pipeline = AugmentationPipeline(steps(), **options)
    some, none = whole(), whole()[:0]
    for run in (lambda b: pipeline.augment(b, seed=1), pipeline.prepare):
        (out, params), (other, _) = run(none), run(some)
        for field, value in vars(other).items():
            if isinstance(value, Tensor) and not (field in ("image", "mask") and run == pipeline.prepare):
                assert getattr(out, field).shape == (0, *value.shape[1:]), field
                assert getattr(out, field).dtype == value.dtype, field
        assert out.meta == []
        assert pipeline.inverse(out.image, params)[0].shape == (0, 3, 30, 40)
        assert pipeline.inverse_boxes(out.boxes, params).shape == (0, 2, 4)
    out, params = pipeline.augment(none, seed=1)
    assert pipeline.replay(none, params).image.shape == out.image.shape
    assert pipeline.train()(none.image).shape == out.image.shape


def test_no_images_are_mixed_and_refused_as_others():
    images, labels = torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)
    assert AugmentationPipeline(mix=Mix(3))(images, labels)[1].shape == (0, 3)
    with pytest.raises(ValueError, match="Bent"):
        AugmentationPipeline([Bent()])(whole()[:0])


@pytest.mark.parametrize("seed", [np.int64(5), np.uint8(5), torch.tensor(5)])
def test_seeds_of_other_libraries(seed):
    pipeline, image = AugmentationPipeline([K.RandomAffine(30.0, p=1.0)]), torch.rand(2, 3, 16, 16)
    assert torch.equal(pipeline(image, seed=seed), pipeline(image, seed=5))
    own = [AugmentationPipeline([K.RandomAffine(30.0, p=1.0)], seed=s)(image) for s in (seed, 5)]
    assert torch.equal(*own)
    with pytest.raises(TypeError, match=r"seed 1\.5 is a float"):
        pipeline(image, seed=1.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16])
def test_sizes_of_few_bits(dtype):
    pipeline = AugmentationPipeline([K.RandomCrop((10, 10))], preprocess=Preprocess((300, 310)))
    batch = Batch(torch.rand(1, 3, 30, 40), size=torch.tensor([[24, 24]], dtype=dtype))
    assert pipeline(batch, seed=0).size.dtype == torch.int64
    assert torch.equal(pipeline(batch, seed=0).image, pipeline(batch.replace(size=batch.size.long()), seed=0).image)
    assert pipeline.eval()(batch).size.tolist() == [[300, 310]]


def test_values_on_a_device_are_looked_at_when_asked():
    """The meta device stands in for an accelerator; boxes on the CPU beside it can be looked at."""
    wrong = torch.tensor([[[30.0, 20, 10, 10]]])
    batch = Batch(
        torch.zeros(1, 1, 30, 40, dtype=torch.uint8, device="meta"), boxes=wrong, box_label=torch.ones(1, 1).int()
    )
    with pytest.raises(ValueError, match="ends before it starts"):
        AugmentationPipeline(check_values=True)(batch)


def test_boxes_changed_after_the_batch_was_made_are_looked_at():
    batch = whole()
    batch.boxes[1, 1, 2] = torch.nan
    for train in (True, False):
        with pytest.raises(ValueError, match=r"boxes\[1, 1\] is .*nan.*finite"):
            AugmentationPipeline().train(train)(batch)


def test_boxes_that_seem_to_be_shares_are_told_once():
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.9]]])
    batch, pipeline = (
        Batch(torch.rand(1, 3, 30, 40), boxes=boxes, box_label=torch.tensor([[1]])),
        AugmentationPipeline(),
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipeline(batch)
        pipeline(batch)
    assert [str(entry.message)[:40] for entry in told] == ["all boxes of a batch lie within [0, 1]; "]


def test_boxes_wholly_outside_the_image_are_told_once(monkeypatch):
    """As boxes of a photo that was made smaller; those at its rim, padding, and those without area are not."""
    monkeypatch.setattr("kornia_mvit.batch_checks._TOLD", [])
    boxes = [[1.0, 1.0, 5.0, 9.0], [300.0, 200.0, 400.0, 250.0], [39.0, 29.0, 41.0, 31.0], [50.0, 3.0, 50.0, 3.0]]
    sample = {"image": torch.rand(3, 30, 40), "boxes": boxes, "box_label": [0, 0, 1, 1], "meta": {"path": "a.jpg"}}
    samples = [{**sample, "boxes": boxes[:1], "box_label": [0]}, sample]
    with pytest.warns(UserWarning, match=r"^1 of 5 boxes .* boxes\[1, 1\] of a.jpg, \(300, 200, 400, 250\).*30x40"):
        batch = Batch.collate(samples)
    pipeline = AugmentationPipeline()
    monkeypatch.setattr("kornia_mvit.batch_checks._TOLD", [])
    with pytest.warns(UserWarning, match="^1 of 5 boxes .* wholly outside"):
        pipeline(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Batch.collate(samples)
        pipeline(batch)
        Batch.collate([{**sample, "boxes": boxes[2:], "box_label": [0, 0]}])


def test_crops_that_look_at_boxes_pass_over_what_padding_holds():
    batch = whole(size=None, box_label=torch.tensor([[-1, 1]] * 2))
    other = batch.replace(boxes=batch.boxes.masked_fill(batch.box_label[..., None] < 0, torch.nan))
    pipeline = AugmentationPipeline([RandomIoUCrop((16, 16), overlaps=(0.1,))])
    for seed in range(3):
        assert torch.equal(pipeline(batch, seed=seed).image, pipeline(other, seed=seed).image)
