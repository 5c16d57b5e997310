"""Targets go where their pixels go: properties over policies, operations, boxes, masks and keypoints."""

import io
from itertools import product

import kornia
import kornia.augmentation as K
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kornia.augmentation.auto import AutoAugment, RandAugment, TrivialAugment
from kornia.color import GrayscaleToRgb, RgbToGrayscale
from kornia.enhance import AdjustBrightness
from kornia.filters import Canny, GaussianBlur2d, MaxBlurPool2D
from torch import nn

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from kornia_mvit.augmentation.auto import PerImageRandAugment, PerImageTrivialAugment
from kornia_mvit.augmentation.color import RandomColorTwist
from kornia_mvit.augmentation.crops import RandomIoUCrop, RandomScaledCrop, RandomZoomOut
from tests.augmentation.scenes import GEOMETRIC, IGNORE, POLICIES, STACKS, scene, stack
from tests.tester import cases

SEEDS = st.integers(0, 2**20)
FIELDS = ("image", "label", "boxes", "box_label", "box_ignore", "mask", "keypoints", "keypoint_visible", "size")


def assert_same(a: Batch, b: Batch) -> None:
    for name in FIELDS:
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "step by step"])
@pytest.mark.parametrize("name", STACKS)
class TestEveryStack:
    @cases(16, quick=3)
    @given(seed=SEEDS, padded=st.booleans())
    def test_painted_boxes_cover_their_pixels(self, name, fuse, seed, padded):
        """Within 1.5 px; no class is made up, a label stays with its own box, and a dropped box has no pixels left."""
        batch = scene(seed, padded=padded)
        out, _ = AugmentationPipeline(STACKS[name](), fuse=fuse).augment(batch, seed=seed)
        height, width = out.image.shape[-2:]
        assert set(out.mask.unique().tolist()) <= set(batch.mask.unique().tolist()) | {IGNORE}
        assert bool((out.boxes >= 0).all())
        assert bool((out.boxes <= torch.tensor([width, height] * 2)).all())
        for boxes, labels, mask in zip(out.boxes, out.box_label, out.mask, strict=True):
            kept = labels[labels >= 0]
            assert torch.equal(kept, kept.sort().values), "the order changed"
            assert bool((labels[len(kept) :] == -1).all())
            for box, label in zip(boxes, kept.tolist(), strict=False):
                rows, columns = torch.where(mask == label + 1)
                if len(rows):
                    assert columns.min() >= box[0] - 1.5
                    assert rows.min() >= box[1] - 1.5
                    assert columns.max() + 1 <= box[2] + 1.5
                    assert rows.max() + 1 <= box[3] + 1.5
        for before, labels, mask in zip(batch.box_label, out.box_label, out.mask, strict=True):
            for label in set(before.tolist()) - set(labels.tolist()) - {-1}:
                assert int((mask == label + 1).sum()) <= 30, "at most a line, which holds less than a pixel's area"

    @cases(16, quick=3)
    @given(seed=SEEDS, padded=st.booleans())
    def test_what_was_not_in_view_is_ignored_and_nothing_else(self, name, fuse, seed, padded):
        """An image of ones shows where it was in view: ones inside, zeros outside, between only at the edge."""
        batch = scene(seed, padded=padded)
        batch = batch.replace(mask=torch.where(batch.mask == IGNORE, IGNORE, 7))
        if name in ("affine, border", "affine, filled", "crop, reflected", "pad with a value") or "strong" in name:
            return  # what lies outside is not zero there, and automatic policies change values
        ones = torch.ones_like(batch.image)
        if padded:
            ones = ones * (batch.mask != IGNORE)[:, None]
        out, _ = AugmentationPipeline(_without_colour(STACKS[name]()), fuse=fuse).augment(
            batch.replace(image=ones), seed=seed
        )
        shown = out.image[:, 0]
        sure = (shown > 0.999) | (shown < 0.001)
        wrong = sure & ((out.mask == 7) != (shown > 0.5))
        assert wrong.float().mean() < 0.02
        assert sure.float().mean() > 0.5

    @cases(16, quick=2)
    @given(seed=SEEDS)
    def test_replay_is_equal_bit_for_bit(self, name, fuse, seed):
        batch = scene(seed)
        pipeline = AugmentationPipeline(STACKS[name](), preprocess=Preprocess((40, 40), mean=(0.5,) * 3), fuse=fuse)
        out, params = pipeline.augment(batch, seed=seed)
        file = io.BytesIO()
        torch.save(params, file)
        file.seek(0)
        other = AugmentationPipeline(STACKS[name](), preprocess=pipeline.preprocess, fuse=fuse)
        assert_same(other.replay(batch, torch.load(file, weights_only=True)), out)
        assert_same(pipeline.augment(batch, seed=seed)[0], out)

    def test_global_generator_is_left_alone(self, name, fuse):
        pipeline = AugmentationPipeline(STACKS[name](), fuse=fuse)
        before = torch.get_rng_state()
        first = pipeline.augment(scene(0), seed=1)[0]
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(100)
        assert_same(pipeline.augment(scene(0), seed=1)[0], first)


def _without_colour(augment):
    return stack(*(step for step in augment.children() if not isinstance(step, K.IntensityAugmentationBase2D)))


@pytest.mark.parametrize("name", [*GEOMETRIC, *POLICIES])
@given(seed=SEEDS)
def test_fused_and_stepwise_images_agree(name, seed):
    """One bilinear step instead of several gives the same picture, sharper: a smooth one hardly differs."""
    from tests.augmentation.scenes import smooth_maps

    batch = Batch(smooth_maps(2, 64, 72))
    fused, _ = AugmentationPipeline(STACKS[name](), fuse=True).augment(batch, seed=seed)
    steps, _ = AugmentationPipeline(STACKS[name](), fuse=False).augment(batch, seed=seed)
    assert fused.image.shape == steps.image.shape
    assert (fused.image - steps.image).abs().median() < 5e-3


@pytest.mark.parametrize("name", GEOMETRIC)
@given(seed=SEEDS)
def test_unfused_images_are_kornias_own(name, seed):
    """A single operation, carried out step by step, is Kornia's own with the same parameters."""
    batch = scene(seed)
    pipeline = AugmentationPipeline(STACKS[name](), fuse=False)
    out, params = pipeline.augment(batch, seed=seed)
    expected = batch.image
    for entry in params["steps"]:
        expected = pipeline.stack.get_submodule(entry["path"])(expected, params=entry["data"])
    torch.testing.assert_close(out.image, expected, rtol=0, atol=0)


@given(seed=SEEDS, padded=st.booleans())
@example(seed=0, padded=True)
def test_eval_fits_targets_and_draws_nothing(seed, padded):
    batch = scene(seed, padded=padded)
    pipeline = AugmentationPipeline(STACKS["chain"](), preprocess=Preprocess(48, crop=40)).eval()
    before = torch.get_rng_state()
    out = pipeline(batch)
    assert_same(pipeline(batch), out)
    assert torch.equal(torch.get_rng_state(), before)
    assert out.image.shape[-2:] == out.mask.shape[-2:] == (40, 40)
    for boxes, labels, mask in zip(out.boxes, out.box_label, out.mask, strict=True):
        for box, label in zip(boxes, labels.tolist(), strict=True):
            rows, columns = torch.where(mask == label + 1)
            if label >= 0 and len(rows):
                found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert bool((found[:2] >= box[:2] - 1.5).all())
                assert bool((found[2:] <= box[2:] + 1.5).all())


@given(seed=SEEDS)
def test_eval_of_padded_batches_is_that_of_the_images_alone(seed):
    batch = scene(seed, count=4, padded=True)
    whole = AugmentationPipeline(preprocess=Preprocess(48, crop=40, mean=(0.4,) * 3)).eval()
    out = whole(batch)
    for i, (height, width) in enumerate(batch.size.tolist()):
        alone = whole(batch.image[i : i + 1, :, :height, :width])
        torch.testing.assert_close(out.image[i : i + 1], alone, rtol=0, atol=0)
    fitted = AugmentationPipeline(preprocess=Preprocess(48)).eval()(batch)
    for i, (height, width) in enumerate(batch.size.tolist()):
        alone = Preprocess(48).module()(batch.image[i : i + 1, :, :height, :width])
        assert fitted.size[i].tolist() == list(alone.shape[-2:])
        shown = fitted.image[i : i + 1, :, : alone.shape[-2], : alone.shape[-1]]
        torch.testing.assert_close(shown, alone, rtol=0, atol=0)


@pytest.mark.parametrize(
    "step",
    [
        lambda: RandomZoomOut(p=0.7),
        lambda: RandomIoUCrop((20, 24)),
        lambda: RandomScaledCrop((20, 24), short_side=(20, 60), max_class_share=0.5),
        lambda: RandomColorTwist(0.4, 0.4, 0.4, 0.2, p=0.7),
        lambda: PerImageRandAugment(2, 15),
        PerImageTrivialAugment,
        lambda: RandAugment(2, 15),
        AutoAugment,
        lambda: K.ImageSequential(TrivialAugment(), K.RandomAffine(20.0)),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_same_on_batch_of_a_container_holds_for_all_that_it_holds(step, padded):
    """One image many times: all the results are alike, and so are their targets, which the crops look at."""
    batch = scene(0, padded=padded)[[0] * 6]
    stack = K.AugmentationSequential(step(), data_keys=["input"], same_on_batch=True)
    pipeline = AugmentationPipeline(stack)
    changed = 0
    for seed in range(6):
        out, params = pipeline.augment(batch, seed=seed)
        for name in ("image", "boxes", "box_label", "mask"):
            value = getattr(out, name)
            assert all(torch.equal(value[0], other) for other in value[1:]), name
        assert torch.equal(pipeline.replay(batch, params).image, out.image)
        changed += out.image.shape != batch.image.shape or not torch.equal(out.image[0], batch.image[0] / 255)
    assert changed
    other = batch.replace(boxes=batch.boxes * torch.linspace(0.2, 1, 6)[:, None, None])
    if isinstance(stack[0], RandomIoUCrop):
        windows = torch.stack([pipeline.augment(other, seed=s)[1]["steps"][0]["data"]["window"] for s in range(6)])
        assert torch.equal(windows, windows[:, :1].expand_as(windows))


@pytest.mark.parametrize(
    ("step", "module"),
    [
        (nn.Identity(), nn.Identity()),
        (K.ImageSequential(GaussianBlur2d((3, 3), (1.0, 1.0))), GaussianBlur2d((3, 3), (1.0, 1.0))),
        (nn.Sequential(AdjustBrightness(0.1), nn.Identity()), AdjustBrightness(0.1)),
        (K.ImageSequential(RgbToGrayscale(), GrayscaleToRgb()), nn.Sequential(RgbToGrayscale(), GrayscaleToRgb())),
        (
            K.PatchSequential(K.ImageSequential(K.RandomInvert(p=1.0)), grid_size=(5, 3), patchwise_apply=False),
            lambda image: 1 - image,
        ),
    ],
)
def test_modules_that_change_values_alone_leave_targets_alone(step, module):
    """Also beside operations that move pixels, and in a replay."""
    batch = scene(0)
    pipeline = AugmentationPipeline([step, K.RandomHorizontalFlip(p=1.0)])
    out, params = pipeline.augment(batch, seed=0)
    assert_same(pipeline.replay(batch, params), out)
    expected = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)]).augment(batch, seed=0)[0]
    torch.testing.assert_close(out.image, module(batch.image).flip(-1))
    assert_same(out.replace(image=expected.image), expected)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (MaxBlurPool2D(3), "MaxBlurPool2D .*boxes and keypoints and mask"),
        (
            K.PatchSequential(K.RandomInvert(), grid_size=(5, 7), padding="valid", patchwise_apply=False),
            "PatchSeq.*boxes",
        ),
        (K.PatchSequential(K.RandomHorizontalFlip(), grid_size=(2, 2), patchwise_apply=False), "PatchSeq.*boxes"),
        (K.ImageSequential(kornia.geometry.Hflip()), "Hflip .*boxes"),
    ],
)
def test_modules_that_move_pixels_are_refused_beside_targets_alone(step, message):
    batch, pipeline = scene(0), AugmentationPipeline([K.ImageSequential(step)])
    with pytest.raises(ValueError, match=message):
        pipeline.augment(batch, seed=0)
    assert pipeline.augment(Batch(batch.image, batch.label), seed=0)[0].image.ndim == 4


def test_modules_that_give_no_images_are_named():
    with pytest.raises(TypeError, match=r"Canny .*tuple"):
        AugmentationPipeline([Canny()]).augment(scene(0), seed=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("letterbox", [False, True])
def test_each_image_is_resized_in_training_as_in_evaluation(letterbox, interpolation):
    """Whatever stands beside it in the batch, and wherever a flip put it on the canvas."""
    sides = [(8, 19), (16, 60), (70, 50)]
    rng = torch.Generator().manual_seed(0)
    samples = [
        {"image": torch.rand(3, h, w, generator=rng), "boxes": [[0, 0, w, h]], "box_label": [0]} for h, w in sides
    ]
    batch = Batch.collate(samples)
    record = Preprocess((32, 24), letterbox=letterbox, interpolation=interpolation)
    expected = AugmentationPipeline(preprocess=record).eval()(batch)
    out = AugmentationPipeline(preprocess=record).augment(batch, seed=0)[0]
    torch.testing.assert_close(out.image, expected.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.boxes, expected.boxes)
    assert out.size.tolist() == expected.size.tolist()
    flipped = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)], preprocess=record).augment(batch, seed=0)[0]
    assert flipped.size.tolist() == expected.size.tolist()
    for image, mirrored, (height, width) in zip(expected.image, flipped.image, expected.size.tolist(), strict=True):
        torch.testing.assert_close(mirrored[:, :height, :width].flip(-1), image[:, :height, :width], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("augment", "letterbox"),
    [*product([None, "flip", "resize", "crop"], [None, False, True]), ("turn", None), ("shrink", None)],
)
def test_size_holds_what_shows_an_image(augment, letterbox):
    """In train and eval mode alike; it ends with the last row and column that show it, where rows stay rows."""
    stacks = {
        None: [],
        "flip": [K.RandomVerticalFlip(p=1.0)],
        "turn": [K.RandomAffine((30.0, 30.0), p=1.0)],
        "shrink": [K.RandomAffine(0.0, scale=(0.5, 0.5), p=1.0)],
        "resize": [K.Resize((40, 30), align_corners=False)],
        "crop": [K.RandomCrop((7, 5))],
    }
    record = None if letterbox is None else Preprocess((32, 24), letterbox=letterbox)
    pipeline = AugmentationPipeline(stacks[augment], preprocess=record)
    batch = Batch.collate([{"image": torch.ones(1, *size)} for size in ((8, 9), (16, 16), (13, 5))])
    for whole in (batch, Batch(torch.ones(2, 1, 20, 12))):
        for out in (pipeline.augment(whole, seed=0)[0], pipeline.prepare(whole)[0]):
            size = out.size if out.size is not None else torch.tensor([out.image.shape[-2:]] * len(out))
            assert (out.size is None) == (whole.size is None and not letterbox)
            for image, (height, width) in zip(out.image[:, 0] > 0.6, size.tolist(), strict=True):
                assert not image[height:].any()
                assert not image[:, width:].any()
                if augment != "turn" and not (augment == "shrink" and out.size is None):
                    assert image[height - 1].any()
                    assert image[:, width - 1].any()


def test_letterbox_holds_at_each_of_several_scales():
    pipeline = AugmentationPipeline(preprocess=Preprocess((32, 32), letterbox=True), multi_scale=[(20, 40)])
    out = pipeline.augment(Batch(torch.ones(1, 1, 16, 16)), seed=0)[0]
    assert out.size.tolist() == [[20, 20]]
    assert out.image[0, 0].nonzero().amax(0).tolist() == [19, 19]


@given(seed=SEEDS)
def test_identity_leaves_a_batch_alone(seed):
    batch = scene(seed)
    for augment in (None, [], [K.RandomAffine(30.0, p=0.0), K.RandomHorizontalFlip(p=0.0)]):
        assert_same(AugmentationPipeline(augment).augment(batch)[0], batch)


@given(seed=SEEDS)
def test_two_flips_restore(seed):
    batch = scene(seed)
    flips = [flip(p=1.0) for flip in (K.RandomHorizontalFlip, K.RandomVerticalFlip) for _ in range(2)]
    assert_same(AugmentationPipeline(flips).augment(batch)[0], batch)


@given(seed=SEEDS, share=st.floats(0.05, 1.0))
def test_boxes_of_which_little_is_seen_are_dropped(seed, share):
    batch = scene(seed)
    everything = AugmentationPipeline([K.RandomCrop((32, 36))], min_box_area=0.0)
    out, _ = everything.augment(batch, seed=seed)
    strict, _ = AugmentationPipeline([K.RandomCrop((32, 36))], min_box_area=9.0, min_box_visibility=share).augment(
        batch, seed=seed
    )
    for i in range(len(batch)):
        kept = set(strict.box_label[i].tolist()) - {-1}
        for box, label in zip(out.boxes[i], out.box_label[i].tolist(), strict=True):
            if label < 0:
                continue
            before = batch.boxes[i, label]
            area, whole = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, before))
            assert (label in kept) == bool(area >= 9.0 and area / whole >= share)


def test_boxes_of_which_just_enough_is_seen_stay():
    """Half of a box on the edge of a crop, beside one that lacks a pixel of it."""
    boxes = torch.tensor([[[0.0, 4, 8, 12], [0, 4, 7, 12]]])
    batch = Batch(torch.rand(1, 3, 16, 16), boxes=boxes, box_label=torch.tensor([[5, 6]]))
    pipeline = AugmentationPipeline([K.CenterCrop((8, 8))], min_box_visibility=0.5)
    out, _ = pipeline.augment(batch, seed=0)
    assert out.box_label.tolist() == [[5, -1]]
    assert out.boxes[0, 0].tolist() == [0, 0, 4, 8]


@given(seed=SEEDS)
def test_keypoints_move_with_their_pixels(seed):
    """A keypoint in a painted box lands on the box's colour, unless another box lies over it or it left the view."""
    batch = scene(seed)
    out, _ = AugmentationPipeline(STACKS["chain"]()).augment(batch, seed=seed)
    height, width = out.image.shape[-2:]
    for i in range(len(batch)):
        for k in range(batch.keypoints.shape[1]):
            x, y = batch.keypoints[i, k].long().tolist()
            if not batch.keypoint_visible[i, k] or batch.mask[i, y, x] != k + 1:
                continue
            u, v = out.keypoints[i, k].tolist()
            inside = 0 <= u <= width and 0 <= v <= height
            if out.keypoint_visible[i, k]:
                assert inside
                near = out.mask[i, max(0, int(v) - 1) : int(v) + 2, max(0, int(u) - 1) : int(u) + 2]
                assert k + 1 in near


@pytest.mark.parametrize(
    "operation",
    [
        lambda: K.RandomElasticTransform(kernel_size=(9, 9), sigma=(4.0, 4.0), p=1.0),
        lambda: K.RandomThinPlateSpline(p=1.0),
        lambda: K.RandomFisheye(torch.tensor([-0.3, 0.3]), torch.tensor([-0.3, 0.3]), torch.tensor([0.9, 1.0]), p=1.0),
    ],
    ids=["elastic", "spline", "fisheye"],
)
class TestFreeOperations:
    """Operations without a matrix, of which ``test_free_warps.py`` has more."""

    @given(seed=SEEDS)
    def test_masks_follow(self, operation, seed):
        """An image painted like its mask stays so."""
        mask = scene(seed).mask
        image = (mask.float() / 8)[:, None].expand(-1, 3, -1, -1).contiguous()
        out, _ = AugmentationPipeline([operation(), K.RandomHorizontalFlip(p=0.5)]).augment(
            Batch(image, mask=mask), seed=seed
        )
        known = out.mask != IGNORE
        assert set(out.mask.unique().tolist()) <= {0, 1, 2, 3, IGNORE}
        differs = ((out.image[:, 0] * 8 - out.mask).abs() > 0.51) & known
        assert differs.float().mean() < 0.06, "only along the edges of boxes, where bilinear and nearest part"
