"""Targets that know where RandomErasing erased."""

import math

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, Extra

HEIGHT, WIDTH = 29, 37


def bright(seed, *, states=False):
    """White images, of which nothing but erased pixels becomes black, with boxes, masks and keypoints."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.tensor([WIDTH, HEIGHT] * 2)
    corners = torch.rand(2, 8, 4, generator=generator) * sides
    low, high = corners[..., :2].minimum(corners[..., 2:]), corners[..., :2].maximum(corners[..., 2:])
    boxes = torch.cat([low, low + (high - low).clamp(1, 12)], -1).minimum(sides)
    boxes[..., :2] = boxes[..., :2].minimum(boxes[..., 2:] - 0.5)
    points = torch.rand(2, 8, 3, 2, generator=generator) * sides[:2]
    visible = torch.randint(0, 3, (2, 8, 3), generator=generator)
    return Batch(
        torch.ones(2, 3, HEIGHT, WIDTH),
        boxes=boxes,
        box_label=torch.arange(8).repeat(2, 1),
        instance_masks=torch.ones(2, 8, HEIGHT, WIDTH, dtype=torch.bool),
        fields={"row": torch.arange(8).repeat(2, 1)},
        mask=torch.ones(2, HEIGHT, WIDTH, dtype=torch.long),
        keypoints=points,
        keypoint_visible=visible if states else visible > 0,
        extra={"depth": Extra(torch.ones(2, 1, HEIGHT, WIDTH), kind="values", mode="nearest", fill=-1.0)},
    )


def check(seed):
    """Compare what is left of the targets with the pixels that are left."""
    batch = bright(seed, states=seed % 2 == 0)
    steps = [
        K.RandomHorizontalFlip(),
        K.RandomErasing((0.1, 0.5), (0.5, 2.0), p=0.8),
        K.RandomCrop((23, 31)),
        K.RandomErasing((0.05, 0.3), p=0.5),
        K.RandomVerticalFlip(),
    ]
    pipeline = AugmentationPipeline(steps, erase_targets=True)
    out, params = pipeline.augment(batch, seed=seed)
    told = AugmentationPipeline(steps).replay(batch, params)  # the same, where targets do not know
    erased = out.image[:, 0] == 0
    assert torch.equal(out.image, told.image) and torch.equal(erased, out.mask == 255)
    assert torch.equal(erased, out.extra["depth"].tensor[:, 0] == -1)
    live = out.box_label >= 0
    assert torch.equal(out.instance_masks[live], ~erased[:, None].expand_as(out.instance_masks)[live])
    found = {(i, k) for i, k in (told.box_label >= 0).nonzero().tolist()}
    count = 0
    for i, k in found:
        row = int(told.box_index[i, k])
        left, top, right, bottom = told.boxes[i, k].tolist()
        rows, columns = (slice(int(a + 1e-3), math.ceil(b - 1e-3)) for a, b in ((top, bottom), (left, right)))
        part = erased[i, rows, columns]
        kept = row in out.box_index[i].tolist()
        assert kept == (not bool(part.all()))
        count += not kept
        if kept:
            place = out.box_index[i].tolist().index(row)
            assert torch.equal(out.boxes[i, place], told.boxes[i, k]) and int(out.fields["row"][i, place]) == row
            for point, before, after in zip(
                told.keypoints[i, k], told.keypoint_visible[i, k], out.keypoint_visible[i, place], strict=True
            ):
                x, y = point.clamp_min(0).long().tolist()
                hidden = bool(before) and bool(erased[i, min(y, 22), min(x, 30)])
                assert int(after) == (0 if hidden else int(before))
    again = pipeline.replay(batch, params)
    assert torch.equal(again.box_label, out.box_label) and torch.equal(again.keypoint_visible, out.keypoint_visible)
    return count


class TestEraseTargets:
    def test_what_is_left_shows(self):
        assert sum(check(seed) for seed in range(12)) > 3

    @pytest.mark.long
    def test_what_is_left_shows_in_200_cases(self):
        assert sum(check(seed) for seed in range(200)) > 50

    @pytest.mark.parametrize("name", ["boxes", "keypoints", "instance_masks", "mask", "extra"])
    def test_one_alone(self, name):
        batch = bright(1)
        steps = [K.RandomErasing((0.6, 0.6), (1.0, 1.0), p=1.0)]
        out, params = AugmentationPipeline(steps, erase_targets=[name]).augment(batch, seed=1)
        same = AugmentationPipeline(steps).replay(batch, params)
        assert changed(out, same) == ({name} if name != "boxes" else {"boxes", "keypoints", "instance_masks"})

    def test_none_without_it_and_masks_by_their_own_name(self):
        batch = bright(1)
        steps = [K.RandomErasing((0.6, 0.6), (1.0, 1.0), p=1.0)]
        out, params = AugmentationPipeline(steps, erase_masks=True).augment(batch, seed=1)
        assert changed(out, AugmentationPipeline(steps).replay(batch, params)) == {"mask", "instance_masks"}

    def test_beside_instances_and_boxes_of_their_masks(self):
        batch = bright(2)
        batch = batch.replace(instance_masks=torch.zeros(2, 8, HEIGHT, WIDTH, dtype=torch.bool))
        batch.instance_masks[:, 0, 10:14, 10:20] = True
        steps = [K.RandomErasing((0.9, 0.9), (1.27, 1.27), p=1.0)]
        out, _ = AugmentationPipeline(steps, erase_targets=True, box_method="mask").augment(batch, seed=1)
        assert 0 not in out.fields["row"][out.box_label >= 0].tolist()

    def test_other_names_are_refused(self):
        with pytest.raises(ValueError, match="erase_targets names labels; available: boxes, keypoints"):
            AugmentationPipeline(erase_targets=["labels"])
        with pytest.raises(ValueError, match="leave erase_targets"):
            AugmentationPipeline(
                [K.PatchSequential(K.RandomErasing(), patchwise_apply=False)], erase_targets=["keypoints"]
            )


def changed(one, other):
    names = {"boxes": "box_index", "keypoints": "keypoint_visible"}
    out = {
        name
        for name in ("boxes", "keypoints", "instance_masks", "mask")
        if not torch.equal(getattr(one, names.get(name, name)), getattr(other, names.get(name, name)))
    }
    return out | ({"extra"} if not torch.equal(one.extra["depth"].tensor, other.extra["depth"].tensor) else set())
