"""Crops that keep boxes whole."""

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.augmentation.crops import RandomCropKeepingBoxes


def painted(seed, count=4):
    """Images of an odd size, with other numbers of boxes, each of which fills its instance mask."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (2 * int(torch.randint(8, 20, (1,), generator=generator)) + 1 for _ in range(2))
    mask = torch.zeros(3, count, height, width, dtype=torch.bool)
    boxes, labels = torch.zeros(3, count, 4), torch.full((3, count), -1)
    for b in range(3):
        for i in range(int(torch.randint(0, count + 1, (1,), generator=generator))):
            x, right = torch.randint(0, width + 1, (2,), generator=generator).sort().values.tolist()
            y, below = torch.randint(0, height + 1, (2,), generator=generator).sort().values.tolist()
            if right > x and below > y:
                boxes[b, i], labels[b, i] = torch.tensor([x, y, right, below]), i
                mask[b, i, y:below, x:right] = True
    image = torch.rand(3, 3, height, width, generator=generator)
    return Batch(image, boxes=boxes, box_label=labels, instance_masks=mask)


def check(seed, keep):
    """Count, of the windows, the boxes that they hold, and whether some other window would have held more."""
    batch = painted(seed)
    height, width = batch.image.shape[2:]
    crop = RandomCropKeepingBoxes((23, 31), keep=keep, scale=(0.3, 0.8), ratio=(0.7, 1.4))
    out, params = AugmentationPipeline([crop], min_box_area=0.0).augment(batch, seed=seed)
    windows = params["steps"][0]["data"]["window"]
    smaller = 0
    for boxes, labels, window in zip(batch.boxes.double(), batch.box_label, windows, strict=True):
        assert bool((window[:2] >= -1e-9).all()) and window[2] <= width + 1e-9 and window[3] <= height + 1e-9
        live = boxes[labels >= 0]
        held = (live[:, :2] >= window[:2] - 1e-6) & (live[:, 2:] <= window[2:] + 1e-6)
        assert held.all(1).sum() >= keep * len(live) - 1e-9
        side = window[2:] - window[:2]
        whole = bool(torch.allclose(side, torch.tensor([width, height]).double()))
        assert whole or 0.7 - 1e-9 <= side[0] / side[1] <= 1.4 + 1e-9
        if not whole:
            smaller += 1
        elif keep == 1:  # then there is no room for another window: the boxes ask for more than the ratio allows
            needed = live[:, 2:].amax(0) - live[:, :2].amin(0) if len(live) else torch.zeros(2).double()
            least = torch.maximum(needed, 0.3 * torch.tensor([width, height]))
            most = torch.maximum(least, 0.8 * torch.tensor([width, height]))
            grown = bool((needed >= torch.tensor([width, height])).any())
            assert grown or least[0] / most[1] > 1.4 or most[0] / least[1] < 0.7
    kept = out.box_label >= 0
    for i, k in kept.nonzero().tolist():  # the painted pixels of a box fill it
        left, top, right, below = out.boxes[i, k].tolist()
        rows, columns = torch.where(out.instance_masks[i, k])
        if len(rows):
            assert columns.min() >= left - 1 and rows.min() >= top - 1
            assert columns.max() + 1 <= right + 1 and rows.max() + 1 <= below + 1
    if keep == 1:
        assert torch.equal(kept.sum(1), (batch.box_label >= 0).sum(1))
    return smaller


class TestRandomCropKeepingBoxes:
    @pytest.mark.parametrize("keep", [1.0, 0.5, 0.1])
    def test_boxes_stay_whole(self, keep):
        assert sum(check(seed, keep) for seed in range(20)) > 10

    @pytest.mark.long
    @pytest.mark.parametrize("keep", [1.0, 0.5, 0.1])
    def test_boxes_stay_whole_in_200_cases(self, keep):
        assert sum(check(seed, keep) for seed in range(200)) > 100

    def test_windows_differ_and_all_places_are_met(self):
        boxes = torch.tensor([[[10.0, 10, 12, 12]]]).expand(400, 1, 4)
        batch = Batch(torch.zeros(400, 1, 21, 21), boxes=boxes, box_label=torch.zeros(400, 1).long())
        _, params = AugmentationPipeline([RandomCropKeepingBoxes()]).augment(batch, seed=1)
        window = params["steps"][0]["data"]["window"]
        side = window[:, 2:] - window[:, :2]
        assert side.amin() < 0.35 * 21 and side.amax() > 0.95 * 21
        share = (window[:, :2] - (12 - side).clamp_min(0)) / (
            torch.minimum(21 - side, torch.tensor(10.0)) - (12 - side).clamp_min(0)
        )
        share = share[side > 3].clamp(0, 1)
        assert 0.45 < share.mean() < 0.55 and share.std() > 0.25

    def test_a_share_is_drawn_anew(self):
        boxes = torch.tensor([[[0.0, 0, 3, 3], [18, 18, 21, 21], [0, 18, 3, 21]]]).expand(300, 3, 4)
        batch = Batch(torch.zeros(300, 1, 21, 21), boxes=boxes, box_label=torch.zeros(300, 3).long())
        crop = RandomCropKeepingBoxes(keep=0.1, scale=(0.3, 0.4))
        out, _ = AugmentationPipeline([crop]).augment(batch, seed=1)
        counts = out.box_index[:, 0].bincount(minlength=3)
        assert bool(((out.box_label >= 0).sum(1) == 1).all()) and bool((counts > 70).all())

    def test_replay_and_the_way_back(self):
        batch = painted(3)
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip(), RandomCropKeepingBoxes((23, 31))])
        out, params = pipeline.augment(batch, seed=1)
        again = pipeline.replay(batch, params)
        assert torch.equal(again.image, out.image) and torch.equal(again.boxes, out.boxes)
        back = pipeline.inverse_boxes(out.boxes, params)
        for i, k in (out.box_label >= 0).nonzero().tolist():
            torch.testing.assert_close(back[i, k], batch.boxes[i, out.box_index[i, k]], rtol=0, atol=1e-3)

    def test_keeps_to_the_image_on_a_canvas(self):
        batch = painted(4).replace(size=torch.tensor([[9, 11]] * 3), boxes=torch.tensor([[[1.0, 1, 4, 4]] * 4] * 3))
        _, params = AugmentationPipeline([RandomCropKeepingBoxes((23, 31))]).augment(batch, seed=1)
        window = params["steps"][0]["data"]["window"]
        assert bool((window[:, 2] <= 11 + 1e-9).all()) and bool((window[:, 3] <= 9 + 1e-9).all())

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"keep": 0.0}, r"keep 0.0 is not in \(0, 1\]"),
            ({"scale": (0.5, 1.5)}, "scale"),
            ({"ratio": (2.0, 1.0)}, "ratio"),
        ],
    )
    def test_exception(self, arguments, text):
        with pytest.raises(ValueError, match=text):
            RandomCropKeepingBoxes((8, 8), **arguments)
