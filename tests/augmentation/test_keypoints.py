"""Keypoints against painted ones: pairs that mirroring swaps, instances that go with boxes, three states of visibility.

A figure is four dots: foot, head, and two hands. Its left hand is the one on the right of who looks along it from foot
to head, which is what the picture of a person says as well, wherever it is turned; a mirrored figure has its left hand
where the right one was. So the dots alone tell which hand is which, whatever a matrix says.
"""

import kornia.augmentation as K
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from kornia_mvit import AugmentationPipeline, Batch, Preprocess, policies
from kornia_mvit.augmentation.crops import RandomIoUCrop
from tests.augmentation.scenes import figures, stack
from tests.tester import cases

SEEDS = st.integers(0, 2**20)
FOOT, HEAD, LEFT, RIGHT = range(4)
PAIRS = [(LEFT, RIGHT)]

STACKS = {
    "horizontal flip": lambda: [K.RandomHorizontalFlip(p=0.5)],
    "vertical flip": lambda: [K.RandomVerticalFlip(p=0.5)],
    "both flips": lambda: [K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5)],
    "flipped twice": lambda: [K.RandomHorizontalFlip(p=0.8), K.RandomRotation(30.0, p=0.7), K.RandomHorizontalFlip()],
    "stopped between": lambda: [
        K.RandomHorizontalFlip(),
        K.RandomGaussianBlur((3, 3), (0.1, 0.2)),
        K.RandomVerticalFlip(),
    ],
    "turned": lambda: [K.RandomRotation(180.0, p=1.0), K.RandomHorizontalFlip()],
    "quarter turns": lambda: [K.RandomRotation90((-1, 2), p=1.0), K.RandomVerticalFlip()],
    "affine": lambda: [K.RandomAffine(40.0, (0.1, 0.1), (0.7, 1.3), (10.0, 10.0)), K.RandomHorizontalFlip()],
    "perspective": lambda: [K.RandomPerspective(0.3, p=1.0), K.RandomHorizontalFlip(), K.RandomPerspective(0.2)],
    "crops": lambda: [
        K.RandomHorizontalFlip(),
        K.RandomResizedCrop((71, 63)),
        K.RandomVerticalFlip(),
        K.PadTo((81, 77)),
    ],
    "crop by overlap": lambda: [RandomIoUCrop((65, 57)), K.RandomHorizontalFlip()],
    "detection_train": lambda: policies.detection_train((67, 61)),
    "segmentation_train": lambda: policies.segmentation_train((67, 61), short_side=(50, 90)),
    "some": lambda: stack(K.RandomHorizontalFlip(p=1.0), K.RandomVerticalFlip(p=1.0), random_apply=1),
}


def find_dot(mask: Tensor, label: int) -> Tensor | None:
    """The middle of a painted dot, if there is one."""
    rows, columns = (mask == label).nonzero(as_tuple=True)
    return torch.stack([columns.float().mean(), rows.float().mean()]) + 0.5 if len(rows) else None


def true_order(mask: Tensor, figure: int) -> tuple[list[Tensor], list[int]] | None:
    """The dots of a figure, with the true left hand at LEFT, and which dot each was; None if one is out of view."""
    dots = [find_dot(mask, 4 * figure + k + 1) for k in range(4)]
    if any(dot is None for dot in dots):
        return None
    along, across = dots[HEAD] - dots[FOOT], dots[LEFT] - dots[FOOT]
    side = float(along[0] * across[1] - along[1] * across[0])
    order = [FOOT, HEAD, LEFT, RIGHT] if side > 0 else [FOOT, HEAD, RIGHT, LEFT]
    return [dots[k] for k in order], order


def by_instance(values: Tensor) -> Tensor:
    """Values of keypoints with a dimension of instances, whether they have one or not."""
    return values if values.ndim == 4 else values[:, None]


def check_index(batch: Batch, out: Batch, params: dict) -> None:
    """Each keypoint of a result lies where the given one of its number went, and has its state."""
    places = AugmentationPipeline().inverse_keypoints(out.keypoints, params)  # pairs stay as they are
    live = out.keypoint_visible > 0
    assert (out.keypoint_index[live] >= 0).all()
    image, number = live.nonzero()[:, 0], out.keypoint_index[live]
    torch.testing.assert_close(places[live], batch.keypoints.flatten(1, -2)[image, number], rtol=0, atol=2e-2)
    assert torch.equal(out.keypoint_visible[live], batch.keypoint_visible.flatten(1)[image, number])
    if batch.keypoints.ndim == 4 and batch.boxes is not None:
        rows = out.box_index[..., None].expand_as(out.keypoint_index)
        assert torch.equal(out.keypoint_index.div(4, rounding_mode="floor"), rows)


class TestFlipPairs:
    @cases(200)
    @example(name="both flips", seed=0, fuse=True, instances=True, states=True)
    @given(
        name=st.sampled_from(sorted(STACKS)),
        seed=SEEDS,
        fuse=st.booleans(),
        instances=st.booleans(),
        states=st.booleans(),
    )
    def test_are_what_the_picture_shows(self, name, seed, fuse, instances, states):
        """Each visible keypoint lies on its dot, the left hand on the left one, with the dot's state; and back."""
        batch = figures(seed, instances=instances, states=states)
        pipeline = AugmentationPipeline(STACKS[name](), fuse=fuse, keypoint_flip_pairs=PAIRS, min_box_area=0.0)
        out, params = pipeline.augment(batch, seed=seed)
        given, states_given = by_instance(batch.keypoints), by_instance(batch.keypoint_visible[..., None])[..., 0]
        points, visible = by_instance(out.keypoints), by_instance(out.keypoint_visible[..., None])[..., 0]
        back = by_instance(pipeline.inverse_keypoints(out.keypoints, params))
        check_index(batch, out, params)
        states_back = pipeline.inverse_keypoint_order(out.keypoint_visible, params)
        states_back = by_instance(states_back[..., None])[..., 0]
        for b in range(2):
            rows = {int(label): row for row, label in enumerate(out.box_label[b].tolist()) if label >= 0}
            for n in range(given.shape[1]):
                row = rows.get(n) if instances else 0
                if row is None:
                    continue
                live = states_back[b, row] > 0
                torch.testing.assert_close(back[b, row][live], given[b, n][live], rtol=0, atol=2e-2)
                assert torch.equal(states_back[b, row][live], states_given[b, n][live])
                if (truth := true_order(out.mask[b], n)) is None:
                    continue
                dots, order = truth
                for k in range(4):
                    if visible[b, row, k]:
                        assert (points[b, row, k] - dots[k]).abs().max() < 2.0
                        assert visible[b, row, k] == states_given[b, n, order[k]]
        again = pipeline.replay(batch, params)
        assert torch.equal(again.keypoints, out.keypoints)
        assert torch.equal(again.keypoint_visible, out.keypoint_visible)

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_swapped_once_and_not_twice(self, steps):
        """Each image by itself: one mirroring operation swaps, a second one swaps back."""
        batch = figures(3)
        kinds = (K.RandomHorizontalFlip, K.RandomVerticalFlip, K.RandomHorizontalFlip)
        pipeline = AugmentationPipeline([kind(p=1.0) for kind in kinds[:steps]], keypoint_flip_pairs=PAIRS)
        plain = AugmentationPipeline([kind(p=1.0) for kind in kinds[:steps]])
        out, other = pipeline(batch, seed=0), plain(batch, seed=0)
        order = [0, 1, 3, 2] if steps % 2 else [0, 1, 2, 3]
        assert torch.equal(out.keypoints, other.keypoints[..., order, :])
        assert torch.equal(out.keypoint_visible, other.keypoint_visible[..., order])
        half = AugmentationPipeline([K.RandomHorizontalFlip(p=0.5)], keypoint_flip_pairs=PAIRS)
        many = figures(3)[[0] * 8]
        out, params = half.augment(many, seed=0)
        gate = params["steps"][0]["data"]["batch_prob"] > 0.5
        assert 0 < int(gate.sum()) < 8
        assert torch.equal(out.keypoint_visible[:, 0, LEFT] == 2, gate)

    def test_nothing_is_swapped_in_eval_mode(self):
        batch = figures(1)
        pipeline = AugmentationPipeline(
            [K.RandomHorizontalFlip(p=1.0)], preprocess=Preprocess((40, 40), crop=32), keypoint_flip_pairs=PAIRS
        ).eval()
        out, params = pipeline.prepare(batch)
        back = pipeline.inverse_keypoints(out.keypoints, params)
        live = out.keypoint_visible > 0
        torch.testing.assert_close(back[live], batch.keypoints[live], rtol=0, atol=1e-3)

    def test_of_heatmaps(self):
        """Heatmaps of a mirrored image come back with the channels of a pair swapped back, too."""
        batch = figures(2, instances=False, boxed=False)
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)], keypoint_flip_pairs=PAIRS)
        out, params = pipeline.augment(batch, seed=0)
        heat = torch.zeros(2, 4, *out.image.shape[-2:])
        columns, rows = out.keypoints.long().unbind(-1)
        heat[torch.arange(2)[:, None], torch.arange(4), rows, columns] = 1.0
        back = pipeline.inverse_keypoint_order(pipeline.inverse(heat, params)[0], params, dim=1)
        columns, rows = batch.keypoints.long().unbind(-1)
        assert (back[torch.arange(2)[:, None], torch.arange(4), rows, columns] > 0.99).all()

    def test_exception(self):
        with pytest.raises(ValueError, match="keypoint_flip_pairs has keypoint 1 twice"):
            AugmentationPipeline(keypoint_flip_pairs=[(0, 1), (1, 2)])
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip()], keypoint_flip_pairs=[(2, 4)])
        with pytest.raises(ValueError, match=r"\(2, 4\), but there are 4 keypoints"):
            pipeline(figures(0), seed=0)
        _, params = pipeline.augment(Batch(torch.rand(2, 3, 9, 9)), seed=0)
        with pytest.raises(ValueError, match=r"\(2, 4\), but there are 3 keypoints"):
            pipeline.inverse_keypoint_order(torch.rand(2, 3), params)
        with pytest.raises(ValueError, match="for 2 images, but 1"):
            pipeline.inverse_keypoint_order(torch.rand(1, 5), params)


class TestInstances:
    @given(seed=SEEDS, share=st.sampled_from([0.0, 0.5, 1.0]))
    def test_go_with_their_boxes(self, seed, share):
        """Of a box that is dropped no keypoint is left, and that of the others stand in the rows of their boxes."""
        batch = figures(seed)
        pipeline = AugmentationPipeline([K.RandomCrop((41, 43)), K.RandomHorizontalFlip()], min_box_visibility=share)
        out, params = pipeline.augment(batch, seed=seed)
        kept = out.box_label >= 0
        assert not out.keypoint_visible[~kept].any()
        assert not out.keypoints[~kept].any()
        back = pipeline.inverse_keypoints(out.keypoints, params)
        for b, row in kept.nonzero().tolist():
            n = int(out.box_label[b, row])
            live = out.keypoint_visible[b, row] > 0
            torch.testing.assert_close(back[b, row][live], batch.keypoints[b, n][live], rtol=0, atol=1e-2)
            assert torch.equal(out.keypoint_visible[b, row][live], batch.keypoint_visible[b, n][live])

    def test_without_boxes_are_all_kept(self):
        batch = figures(4, boxed=False, states=False)
        out = AugmentationPipeline([K.CenterCrop((9, 9))])(batch, seed=0)
        assert out.keypoints.shape == batch.keypoints.shape
        assert not out.keypoint_visible.any()
        assert out.keypoints.any(), "where they are outside is told, as long as visibility is True and False"


class TestStates:
    def test_what_leaves_and_what_was_not_labelled(self):
        """State 0 has the coordinates 0, 0, as in COCO's files; hidden keypoints move as visible ones do."""
        points = torch.tensor([[[2.0, 3.0], [0.0, 0.0], [25.0, 9.0], [12.0, 8.0]]])
        batch = Batch(torch.rand(1, 3, 17, 27), keypoints=points, keypoint_visible=torch.tensor([[2, 0, 1, 1]]))
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0), K.CenterCrop((17, 21))])
        out = pipeline(batch, seed=0)
        assert out.keypoint_visible.tolist() == [[0, 0, 0, 1]]
        assert out.keypoint_visible.dtype == torch.int64
        assert out.keypoints.tolist() == [[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [12.0, 8.0]]]
        told = pipeline(batch.replace(keypoint_visible=batch.keypoint_visible > 0), seed=0)
        assert told.keypoint_visible.tolist() == [[False, False, False, True]]
        assert told.keypoints[0, 2].tolist() == [-1.0, 9.0]

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool])
    def test_dtypes_stay(self, dtype):
        batch = figures(5)
        batch = batch.replace(keypoint_visible=batch.keypoint_visible.to(dtype))
        out = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)], keypoint_flip_pairs=PAIRS)(batch, seed=0)
        assert out.keypoint_visible.dtype == dtype
        assert torch.equal(out.keypoint_visible > 0, torch.ones(2, 2, 4, dtype=torch.bool))

    def test_not_labelled_ones_may_hold_anything(self):
        points = torch.tensor([[[torch.nan, torch.inf], [3.0, 4.0]]])
        batch = Batch(torch.rand(1, 3, 9, 9), keypoints=points, keypoint_visible=torch.tensor([[0, 2]]))
        out = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0)], keypoint_flip_pairs=[(0, 1)])(batch, seed=0)
        assert out.keypoints.tolist() == [[[6.0, 4.0], [0.0, 0.0]]]
        assert out.keypoint_visible.tolist() == [[2, 0]]
