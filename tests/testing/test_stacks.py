"""Stacks of augmentations: what they carry, and what holds for all that are drawn."""

import kornia.augmentation as K
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from kornia_mvit.testing.stacks import all_operations
from kornia_mvit.testing.strategies import TASKS, augmentations, batches, image_sizes, images, mixes
from tests.testing.draws import QUIET, SEEDS, assert_same, drawable, least, printed

OPERATIONS = all_operations((32, 40))


class TestAugmentations:
    @pytest.mark.parametrize("task", TASKS)
    @given(data=st.data(), seed=SEEDS, fuse=st.booleans())
    @settings(suppress_health_check=[HealthCheck.too_slow])
    def test_run_and_replay_with_every_target(self, task, data, seed, fuse):
        """Bit for bit; targets keep to their image, and the global generator is left alone."""
        batch, steps = data.draw(batches(task)), data.draw(augmentations(task))
        pipeline = AugmentationPipeline(steps, preprocess=Preprocess((24, 32)), fuse=fuse)
        before = torch.get_rng_state()
        out, params = pipeline.augment(batch, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert_same(pipeline.replay(batch, params), out)
        assert out.image.shape == (*batch.image.shape[:2], 24, 32)
        assert out.image.isfinite().all()
        if batch.label is not None:
            assert torch.equal(out.label, batch.label)
        if batch.mask is not None:
            assert out.mask.shape == (len(batch), 24, 32)
            assert set(out.mask.unique().tolist()) <= {*batch.mask.unique().tolist(), 255}
        if batch.boxes is not None:
            assert bool((out.boxes >= 0).all())
            assert bool((out.boxes <= torch.tensor([32, 24, 32, 24])).all())
            assert bool((out.boxes[out.box_label < 0] == 0).all())
            for i in range(len(batch)):
                kept, given_labels = (set(b.box_label[i].tolist()) for b in (out, batch))
                assert kept <= given_labels | {-1}
        if batch.keypoints is not None:
            assert out.keypoints.shape == batch.keypoints.shape
            assert not (out.keypoint_visible & ~batch.keypoint_visible).any()
            inside = (out.keypoints >= 0) & (out.keypoints <= torch.tensor([32, 24]))
            assert bool(inside.all(-1)[out.keypoint_visible].all())

    @given(batch=batches("detection"), steps=augmentations("detection"), seed=SEEDS, more=st.integers(1, 3))
    @settings(suppress_health_check=[HealthCheck.too_slow])
    def test_padding_boxes_are_inert(self, batch, steps, seed, more):
        pipeline = AugmentationPipeline(steps)
        out, _ = pipeline.augment(batch, seed=seed)
        n = len(batch)
        longer = batch.replace(
            boxes=torch.cat([batch.boxes, torch.zeros(n, more, 4)], 1),
            box_label=torch.cat([batch.box_label, torch.full((n, more), -1)], 1),
            box_ignore=None
            if batch.box_ignore is None
            else torch.cat([batch.box_ignore, torch.zeros(n, more, dtype=torch.bool)], 1),
        )
        other, _ = pipeline.augment(longer, seed=seed)
        rows = batch.boxes.shape[1]
        assert torch.equal(other.image, out.image)
        assert torch.equal(other.boxes[:, :rows], out.boxes)
        assert torch.equal(other.box_label[:, :rows], out.box_label)
        assert bool((other.box_label[:, rows:] == -1).all())

    @given(steps=augmentations("classification", channels=1), image=images(channels=1, batch=2), seed=SEEDS)
    def test_of_grey_images_take_them(self, steps, image, seed):
        out, _ = AugmentationPipeline(steps).augment(Batch(image), seed=seed)
        assert out.image.shape[:2] == (2, 1)

    @given(image=images(image_sizes(min_side=8, max_side=64), batch=2), seed=SEEDS, data=st.data())
    def test_go_into_a_container_of_kornia(self, image, seed, data):
        steps = data.draw(augmentations(operations=["RandomHorizontalFlip", "RandomAffine", "Resize"]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            out = K.ImageSequential(*steps)(image) if steps else image
        assert out.shape[:2] == image.shape[:2]

    @pytest.mark.long
    def test_all_carry_the_targets_of_every_task(self):
        """As the pipeline says, operation by operation."""
        for task in TASKS:
            assert set(drawable(task)) == set(OPERATIONS)
            batch = least(batches(task))
            for entry in OPERATIONS.values():
                AugmentationPipeline([entry.simplest()]).augment(batch, seed=0)

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_every_operation_is_drawn_by_its_name(self, name):
        (step,) = least(augmentations(operations=[name], min_steps=1, max_steps=1))
        assert type(step).__name__ == name

    def test_many_operations_occur(self):
        found = set()

        @settings(QUIET, suppress_health_check=list(HealthCheck))
        @given(augmentations(min_steps=4))
        def test(steps):
            found.update(type(step).__name__ for step in steps)

        test()
        assert len(found) > 20

    @pytest.mark.long
    def test_shrink_to_none_and_to_flips(self):
        assert least(augmentations("detection")) == []
        steps = least(augmentations("detection"), lambda steps: len(steps) == 2)
        assert [(type(step).__name__, step.p) for step in steps] == [("RandomHorizontalFlip", 1.0)] * 2
        text = printed(augmentations(), lambda steps: any(isinstance(step, K.RandomAffine) for step in steps))
        assert "[RandomAffine(" in text

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: augmentations("pose"), "unknown task 'pose'"),
            (lambda: augmentations(["masks"]), "unknown targets masks; available: label, mask"),
            (lambda: augmentations(min_steps=3, max_steps=2), "min_steps 3 and max_steps 2 are not ascending from 0"),
            (lambda: augmentations(operations=["Flip"]), "unknown operations Flip; available: RandomHorizontalFlip"),
            (lambda: augmentations(operations=[]), "operations is empty"),
            (
                lambda: augmentations(channels=4, operations=["ColorJitter", "RandomInvert"]),
                "unsupported operations: ColorJitter (4 channels); leave them out",
            ),
            (lambda: augmentations(size=(4, 8)), "size (4, 8) is below 8 pixels"),
        ],
    )
    def test_exception(self, make, message):
        with pytest.raises(ValueError) as raised:
            make()
        assert message in str(raised.value)


class TestMixes:
    @pytest.mark.parametrize("task", [task for task in TASKS if task not in ("keypoints", "everything")])
    @given(data=st.data(), seed=SEEDS)
    @settings(suppress_health_check=[HealthCheck.too_slow])
    def test_run_and_replay_with_every_target(self, task, data, seed):
        """Behind any stack: bit for bit, within the canvas, padding last; labels sum to what they did."""
        batch, steps = data.draw(batches(task, count=st.integers(1, 4))), data.draw(augmentations(task))
        chosen = data.draw(mixes(task, classes=4, max_steps=3))
        pipeline = AugmentationPipeline(steps, chosen, Preprocess((24, 32)))
        before = torch.get_rng_state()
        out, params = pipeline.augment(batch, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert_same(pipeline.replay(batch, params), out)
        assert out.image.isfinite().all()
        if batch.label is not None and chosen:
            torch.testing.assert_close(out.label.sum(1), torch.ones(len(batch)), atol=1e-3, rtol=0)
        if batch.mask is not None:
            assert set(out.mask.unique().tolist()) <= {*batch.mask.unique().tolist(), 255}
        if batch.boxes is not None:
            live = out.box_label >= 0
            assert bool((out.boxes >= 0).all())
            assert bool((out.boxes <= torch.tensor([32, 24, 32, 24])).all())
            assert bool((out.boxes[~live] == 0).all())
            assert torch.equal(live.int().sort(1, descending=True).values.bool(), live)
            if chosen:
                assert bool(((out.box_source >= 0) == live).all())
                assert bool((out.box_source < len(batch)).all())
                for i, k in live.nonzero().tolist():
                    assert out.box_label[i, k] in batch.box_label[out.box_source[i, k]]

    def test_they_shrink(self):
        assert least(mixes("detection")) == []
        assert printed(mixes("segmentation"), lambda steps: len(steps) == 1)
        assert least(mixes("everything")) == []  # none carries keypoints

    @pytest.mark.parametrize(
        ("make", "message"),
        [(lambda: mixes("pose"), "unknown task 'pose'"), (lambda: mixes(classes=1), "classes 1 is not at least 2")],
    )
    def test_exception(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
