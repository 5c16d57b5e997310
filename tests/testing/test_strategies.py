"""The strategies: what they draw, what it shrinks to, what they refuse, and what holds for all that they draw."""

import time

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from kornia_mvit import MobileViT
from kornia_mvit.testing import make_image, make_mask
from kornia_mvit.testing.strategies import (
    TASKS,
    augmentations,
    batches,
    boxes,
    image_sizes,
    images,
    indivisible_sizes,
    keypoints,
    masks,
    mobilevit_configs,
    soft_labels,
)
from tests.testing.draws import QUIET, least, printed


class TestSizes:
    @given(data=st.data(), by=st.tuples(st.integers(1, 40), st.integers(1, 40)), low=st.integers(1, 50))
    def test_lie_in_range_and_are_multiples(self, data, by, low):
        height, width = data.draw(image_sizes(by, min_side=low, max_side=low + 40))
        assert height % by[0] == width % by[1] == 0
        assert low <= min(height, width) <= max(height, width) <= low + 40

    @given(data=st.data(), by=st.integers(2, 40), low=st.integers(1, 50))
    def test_indivisible_ones_are_not(self, data, by, low):
        height, width = data.draw(indivisible_sizes(by, min_side=low, max_side=low + 10))
        assert height % by or width % by
        assert low <= min(height, width) <= max(height, width) <= low + 10

    def test_shrink_to_the_least(self):
        assert least(image_sizes()) == (32, 32)
        assert least(image_sizes((16, 24), min_side=20)) == (32, 24)
        assert least(image_sizes(square=True), lambda size: size[0] > 100) == (101, 101)
        assert least(indivisible_sizes(32)) == (32, 33)
        assert least(indivisible_sizes((32, 1))) == (33, 32)

    def test_divisors_may_differ(self):
        """Only the height can fail to be a multiple of 2 here."""

        @settings(QUIET)
        @given(indivisible_sizes((2, 1)))
        def test(size):
            assert size[0] % 2

        test()

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: image_sizes(min_side=64, max_side=32), "min_side 64 and max_side 32 are not ascending from 1"),
            (lambda: image_sizes(min_side=0), "min_side 0 and max_side 128 are not ascending"),
            (
                lambda: image_sizes(50, min_side=51, max_side=99),
                "no multiple of 50 lies from 51 to 99; the nearest are 50 and 100",
            ),
            (lambda: image_sizes(0), "divisible_by 0 is not at least 1"),
            (lambda: image_sizes((2, 3), square=True), "divisible_by (2, 3) and square contradict each other"),
            (lambda: indivisible_sizes(1), "every side from 32 to 128 is a multiple of (1, 1); give a wider range"),
            (lambda: indivisible_sizes(32, min_side=64, max_side=64), "every side from 64 to 64 is a multiple"),
        ],
    )
    def test_exception(self, make, message):
        with pytest.raises(ValueError) as raised:
            make()
        assert message in str(raised.value)


class TestImages:
    @given(
        data=st.data(),
        dtype=st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        batch=st.sampled_from([None, 0, 2]),
        channels=st.integers(1, 4),
    )
    def test_are_as_asked(self, data, dtype, batch, channels):
        size = data.draw(image_sizes(min_side=1, max_side=40))
        image = data.draw(images(size, dtype=dtype, batch=batch, channels=channels))
        assert image.shape == (*(() if batch is None else (batch,)), channels, *size)
        assert image.dtype == dtype
        assert image.is_contiguous()
        if image.numel():
            assert image.min() >= 0
            assert image.max() <= (255 if dtype == torch.uint8 else 1)

    def test_shrink_to_small_ones_of_the_least_value(self):
        image = least(images(st.just((3, 4))))
        assert image.tolist() == torch.zeros(3, 3, 4).tolist()
        assert least(images(), lambda x: x.shape[1] > 60).shape == (3, 61, 32)
        assert least(images((2, 2), value_range=(-3.0, 3.0))).unique().tolist() == [-3.0]

    def test_every_content_occurs_and_fills_the_range(self):
        drawn = [make_image((1, 9, 9), content=c, seed=3) for c in ("low", "high", "constant", "gradient", "noise")]
        assert len({tuple(image.flatten().tolist()) for image in drawn}) == 5
        assert drawn[3].aminmax() == (0.0, 1.0)
        assert make_image((1, 1, 1), content="gradient").tolist() == [[[0.0]]]
        assert make_image((1, 64, 64), content="noise", dtype=torch.uint8).unique().numel() > 200
        found = set()

        @settings(QUIET, max_examples=100)
        @given(images((4, 4), channels=1))
        def test(image):
            found.add(tuple(image.flatten().tolist()))

        test()
        assert len(found) > 10

    def test_is_quick_and_costs_few_choices(self):
        """A photograph's size takes milliseconds of a core, and no health check objects."""

        @settings(QUIET, max_examples=50)
        @given(images((224, 224)))
        def test(image):
            assert image.shape == (3, 224, 224)

        times = []
        for _ in range(3):
            start = time.process_time()
            test()
            times.append((time.process_time() - start) / 50)
        assert min(times) < 0.03

    def test_prints_as_a_call(self):
        text = printed(images(contents=["low", "noise"]), lambda image: image.max() > 0.5)
        assert "make_image(" in text
        assert "content='noise'" in text
        assert "tensor(" not in text

    def test_draws_nothing_from_the_global_generators(self):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        for seed in (1, 2):
            make_image((3, 8, 8), content="noise", seed=seed)
            make_mask((8, 8), content="noise", seed=seed)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]

    @pytest.mark.long
    def test_derandomized_draws_come_again(self):
        runs = [[], []]
        for found in runs:
            torch.rand(10)

            @settings(QUIET)
            @given(batches("everything", padded=True), augmentations("everything"), st.just(found))
            def test(batch, steps, run):
                run.append((batch.image.sum().item(), batch.boxes.sum().item(), [type(s).__name__ for s in steps]))

            test()
        assert runs[0] == runs[1]

    def test_goes_to_a_device(self):
        assert least(images((4, 4), device="meta")).is_meta
        assert least(batches("everything", device="meta")).mask.is_meta

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: images(contents=["cat"]), "contents 'cat' are not among 'low', 'high', 'constant'"),
            (lambda: images(contents="noise"), "contents 'noise' are not among"),
            (lambda: images(contents=[]), "contents [] are not among"),
            (lambda: images(value_range=(1.0, 0.0)), "value_range (1.0, 0.0) is not ascending"),
            (lambda: images(dtype=torch.int64), "images are uint8 or floating point, not torch.int64"),
            (lambda: images(channels=0), "channels 0 is not at least 1"),
            (lambda: images((0, 3)), "size (0, 3) is not a height and a width of at least 1 pixel"),
            (lambda: masks(classes=0), "classes 0 is not at least 1"),
            (lambda: masks(dtype=torch.float32), "masks are integers, not torch.float32"),
            (lambda: masks(contents=["noisy"]), "contents 'noisy' are not among 'background'"),
            (lambda: make_image((1, 2, 2), content="cat"), "unknown content 'cat'; available: 'low'"),
            (lambda: make_mask((2, 2), content="cat"), "unknown content 'cat'; available: 'background'"),
        ],
    )
    def test_exception(self, make, message):
        with pytest.raises(ValueError) as raised:
            make()
        assert message in str(raised.value)


class TestTargets:
    @given(data=st.data(), classes=st.integers(1, 5), dtype=st.sampled_from([torch.uint8, torch.int64]))
    def test_masks_hold_classes(self, data, classes, dtype):
        size = data.draw(image_sizes(min_side=1, max_side=20))
        mask = data.draw(masks(size, classes=classes, dtype=dtype))
        assert mask.shape == size
        assert mask.dtype == dtype
        assert set(mask.unique().tolist()) <= {*range(classes), 255}

    @given(data=st.data(), low=st.integers(0, 2), side=st.sampled_from([0.0, 0.5, 3.0]))
    def test_boxes_lie_within_the_image(self, data, low, side):
        height, width = data.draw(image_sizes(min_side=3, max_side=20))
        found = data.draw(boxes((height, width), min_count=low, max_count=3, min_side=side))
        assert low <= len(found) <= 3
        assert found.shape[1:] == (4,)
        assert bool((found[:, :2] >= 0).all())
        assert bool((found[:, 2:] <= torch.tensor([width, height])).all())
        assert bool((found[:, 2:] - found[:, :2] >= side).all())

    @given(data=st.data())
    def test_keypoints_lie_within_the_image(self, data):
        height, width = data.draw(image_sizes(min_side=1, max_side=20))
        found = data.draw(keypoints((height, width), max_count=3, dtype=torch.float64))
        assert found.dtype == torch.float64
        assert bool(((found >= 0) & (found <= torch.tensor([width, height]))).all())

    @given(data=st.data(), classes=st.integers(1, 1000), batch=st.integers(0, 3))
    def test_soft_labels_are_distributions(self, data, classes, batch):
        rows = data.draw(soft_labels(classes, batch=batch))
        assert rows.shape == (batch, classes)
        assert bool((rows >= 0).all())
        torch.testing.assert_close(rows.sum(1), torch.ones(batch), rtol=0, atol=1e-6)

    def test_shrink(self):
        assert least(masks((2, 3))).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert least(boxes((9, 9))).shape == (0, 4)
        assert least(boxes((9, 9)), lambda b: len(b) > 1).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
        assert least(boxes((9, 9)), lambda b: bool((b[:, 2] > 5).any())).shape == (1, 4)
        assert least(keypoints((9, 9)), lambda p: len(p) == 1).tolist() == [[0, 0]]
        assert least(soft_labels(3, batch=2)).tolist() == [[1, 0, 0], [1, 0, 0]]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: boxes((4, 4), min_side=5), "an image of 4x4 pixels holds no box of side 5; give a smaller one"),
            (lambda: boxes((4, 4), min_count=3, max_count=2), "min_count 3 and max_count 2 are not ascending"),
            (lambda: keypoints((4, 4), min_count=-1), "min_count -1 and max_count 5 are not ascending"),
            (lambda: soft_labels(0), "classes 0 is not at least 1"),
            (lambda: soft_labels(3, smoothing=2), "smoothing 2 is not in [0, 1]"),
        ],
    )
    def test_exception(self, make, message):
        with pytest.raises(ValueError) as raised:
            make()
        assert message in str(raised.value)


class TestBatches:
    @pytest.mark.parametrize("task", TASKS)
    @given(data=st.data())
    def test_have_the_targets_of_their_task_and_no_other(self, task, data):
        batch = data.draw(batches(task))
        targets = ("label", "mask", "boxes", "oriented_boxes", "instance_masks", "fields", "keypoints", "extra")
        assert {name for name in targets if getattr(batch, name) is not None} == set(TASKS[task])
        assert batch.meta is None
        if batch.boxes is not None:
            padding = batch.box_label < 0
            assert bool((batch.boxes[padding] == 0).all())
            if batch.box_ignore is not None:
                assert not batch.box_ignore[padding].any()
        if batch.label is not None and batch.label.is_floating_point():
            torch.testing.assert_close(batch.label.sum(1), torch.ones(len(batch)), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "condition"),
        [
            ({}, lambda batch: batch.size is not None),
            ({}, lambda batch: batch.image.dtype == torch.uint8),
            ({}, lambda batch: len(batch) == 3),
            ({"task": "classification"}, lambda batch: batch.label.is_floating_point()),
            ({"task": "classification"}, lambda batch: not batch.label.is_floating_point()),
            ({"task": "segmentation"}, lambda batch: bool((batch.mask == 255).any())),
            ({"task": "detection"}, lambda batch: batch.boxes.shape[1] == 0),
            ({"task": "detection"}, lambda batch: bool((batch.box_label == -1).any() and (batch.box_label >= 0).any())),
            ({"task": "detection"}, lambda batch: batch.box_ignore is not None and bool(batch.box_ignore.any())),
            ({"task": "keypoints"}, lambda batch: bool(batch.keypoint_visible.any())),
            ({"task": "everything", "meta": True}, lambda batch: batch.meta is not None and batch.size is not None),
        ],
    )
    def test_everything_that_a_batch_may_have_occurs(self, arguments, condition):
        some = settings(QUIET, max_examples=300, phases=[Phase.generate])
        assert condition(find(batches(**arguments), condition, settings=some))

    @pytest.mark.parametrize("task", ["keypoints", ("boxes", "keypoints")])
    def test_keypoints_of_instances(self, task):
        @settings(QUIET)
        @given(batches(task, instance_keypoints=3))
        def test(batch):
            assert batch.keypoints.shape[2:] == (3, 2)
            assert batch.keypoint_visible.dtype == torch.uint8
            assert batch.boxes is None or batch.boxes.shape[1] == batch.keypoints.shape[1]

        test()
        some = settings(QUIET, max_examples=300, phases=[Phase.generate])
        every = batches(task, instance_keypoints=3).map(lambda batch: set(batch.keypoint_visible.unique().tolist()))
        assert find(every, lambda states: states == {0, 1, 2}, settings=some)

    def test_are_as_asked(self):
        @settings(QUIET)
        @given(
            batches(
                ("label", "boxes"), size=(9, 12), count=2, channels=1, dtype=torch.float64, classes=2, soft=False,
                max_objects=1, padded=True, meta=True,
            )
        )  # fmt: skip
        def test(batch):
            assert batch.image.shape == (2, 1, 9, 12)
            assert batch.image.dtype == torch.float64
            assert batch.mask is None
            assert batch.label.max() < 2
            assert batch.boxes.shape[1] <= 2, "one object, and a row of padding"
            assert batch.meta == [{"path": "0.png"}, {"path": "1.png"}]
            assert batch.original_size.tolist() == [[18, 24]] * 2

        test()

    def test_padded_says_whether_images_share_a_canvas(self):
        @settings(QUIET)
        @given(batches(padded=False), batches("segmentation", padded=True, count=3))
        def test(even, padded):
            assert even.size is None
            for mask, size in zip(padded.mask, [] if padded.size is None else padded.size.tolist(), strict=False):
                assert bool((mask[size[0] :] == 255).all())
                assert bool((mask[:, size[1] :] == 255).all())

        test()

    def test_shrink_to_one_small_image_with_nothing_on_it(self):
        batch = least(batches("everything"))
        assert batch.image.tolist() == torch.zeros(1, 3, 8, 8).tolist()
        assert batch.boxes.shape == (1, 0, 4)
        assert batch.keypoints.shape == (1, 0, 2)
        assert batch.label.tolist() == [0]
        assert not batch.mask.any()

    @pytest.mark.long
    def test_prints_as_a_call(self):
        text = printed(batches("detection", dtype=torch.float32), lambda batch: bool((batch.box_label == 1).any()))
        assert "make_batch(" in text
        assert "'boxes': [(0.0, 0.0, 1.0, 1.0)]" in text
        assert "'box_label': [1]" in text
        assert "tensor(" not in text

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: batches("pose"), "unknown task 'pose'; available: 'classification', 'segmentation', 'detection'"),
            (lambda: batches(["box"]), "unknown targets box; available: label, mask, boxes, oriented_boxes, "),
            (lambda: batches(count=0), "count 0 is not at least 1"),
            (lambda: batches(classes=0), "classes 0 is not at least 1"),
            (lambda: batches(max_objects=-1), "max_objects -1 is not at least 0"),
            (lambda: batches(instance_keypoints=-1), "instance_keypoints -1 is not at least 0"),
            (lambda: batches(contents=["cat"]), "contents 'cat' are not among"),
        ],
    )
    def test_exception(self, make, message):
        with pytest.raises(ValueError) as raised:
            make()
        assert message in str(raised.value)


class TestMobileViTConfigs:
    @given(
        config=mobilevit_configs(),
        size=image_sizes(max_side=80),
        batch=st.integers(1, 2),
        patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        output_stride=st.sampled_from([8, 16, 32]),
    )
    def test_build_and_give_the_stated_shape(self, config, size, batch, patch, output_stride):
        model = MobileViT(config, patch_size=patch, output_stride=output_stride).eval()
        x = torch.rand(batch, 3, *size)
        with torch.no_grad():
            y, features = model(x), model.forward_features(x)
        stride = model.feature_strides[-1]
        assert stride == min(output_stride, 2 ** (1 + sum(stage.stride == 2 for stage in config.stages)))
        assert y.shape == (batch, config.head_channels, -(-size[0] // stride), -(-size[1] // stride))
        assert y.isfinite().all()
        assert [f.shape[1] for f in features] == [stage.channels for stage in config.stages]

    def test_attention_is_as_asked(self):
        @settings(QUIET)
        @given(mobilevit_configs(attention=True), mobilevit_configs(attention=False))
        def test(some, none):
            assert any(stage.depth for stage in some.stages)
            assert not any(stage.depth for stage in none.stages)

        test()

    def test_shrink_to_one_stage(self):
        config = least(mobilevit_configs())
        assert len(config.stages) == 1
        assert config.stages[0].depth == 0
        assert len(least(mobilevit_configs(), lambda c: sum(stage.depth for stage in c.stages) > 1).stages) == 1

    def test_exception(self):
        with pytest.raises(ValueError, match="max_stages 0"):
            mobilevit_configs(max_stages=0)
        with pytest.raises(ValueError, match="max_channels 1"):
            mobilevit_configs(max_channels=1)
