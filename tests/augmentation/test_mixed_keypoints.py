"""Keypoints of boxes in Mosaic, MixUp, CutMix and CopyPaste."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, CopyPaste, CutMix, MixUp, Mosaic
from kornia_mvit.ops.geometry import gather_pixels
from tests.tester import cases

SEEDS = st.integers(0, 2**20)
SIDES = st.integers(13, 40)
MIXES = {"mosaic": Mosaic, "cutmix": CutMix, "copy_paste": CopyPaste}


def places(seed, height, width, *, count=4, rows=3, points=2):
    """Images whose channels hold x, y and the image's number, whole boxes with keypoints, and masks of some columns."""
    r = torch.Generator().manual_seed(seed)
    row, column = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    image = torch.stack(
        [
            (column / width).expand(count, height, width),
            (row / height)[:, None].expand(count, height, width),
            (torch.arange(count) / count)[:, None, None].expand(count, height, width),
        ],
        1,
    )
    label = torch.randint(-1, 2, (count, rows), generator=r).sort(1, descending=True).values
    size = torch.tensor([width, height])
    return Batch(
        image.contiguous(),
        boxes=torch.tensor([0.0, 0.0, width, height]).expand(count, rows, 4).clone(),
        box_label=label,
        instance_masks=(torch.rand(count, rows, 1, width, generator=r) < 0.3).expand(-1, -1, height, -1).contiguous(),
        keypoints=torch.rand(count, rows, points, 2, generator=r) * size,
        keypoint_visible=torch.randint(0, 3, (count, rows, points), generator=r) * (label >= 0)[..., None],
    )


@pytest.mark.parametrize("kind", MIXES)
@cases(200)
@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_lie_where_their_pixels_are(kind, seed, height, width):
    """The image shows, at each visible keypoint, the place and the number of the image that it is from."""
    batch = places(seed, height, width)
    pipeline = AugmentationPipeline(mix=MIXES[kind](1.0), min_box_area=0.0)
    out, params = pipeline.augment(batch, seed=seed)
    assert torch.equal(pipeline.replay(batch, params).keypoints, out.keypoints)
    seen = out.keypoint_visible > 0
    assert not out.keypoints[~seen].any()
    assert (out.keypoint_index[out.box_label < 0] == -1).all()
    image, row, _ = seen.nonzero().unbind(1)
    source, number = out.box_source[image, row], out.keypoint_index[seen]
    given_points = batch.keypoints.flatten(1, 2)[source, number]
    assert torch.equal(out.keypoint_visible[seen], batch.keypoint_visible.flatten(1)[source, number])
    x, y = out.keypoints.flatten(1, 2).unbind(-1)
    shown = torch.stack([gather_pixels(plane, x[:, None], y[:, None])[:, 0] for plane in out.image.unbind(1)], -1)
    shown = shown.view(*seen.shape, 3)[seen]
    torch.testing.assert_close(shown[:, 2] * len(batch), source.float(), atol=1e-4, rtol=0)
    apart = (shown[:, :2] * torch.tensor([width, height]) - given_points).abs()
    assert (apart <= (1.26 if kind == "mosaic" else 0.51)).all()  # from a pixel's centre; mosaics show half of them
    for i, j, k in (batch.keypoint_visible > 0).nonzero().tolist():  # one of the image itself that is hidden is covered
        kept = (out.box_source[i] == i) & (out.box_index[i] == j)
        if kind != "mosaic" and bool(kept.any()) and not bool(out.keypoint_visible[i, kept.nonzero()[0, 0], k]):
            x, y = batch.keypoints[i, j, k].view(2, 1, 1, 1).unbind(0)
            assert gather_pixels(out.image[i, 2][None], x, y).item() * len(batch) != pytest.approx(i, abs=1e-4)


def test_blends_keep_all():
    batch = places(3, 20, 24).replace(box_label=torch.zeros(4, 3).long(), keypoint_visible=torch.ones(4, 3, 2) > 0)
    out = AugmentationPipeline(mix=MixUp(1.0)).augment(batch, seed=0)[0]
    assert out.keypoints.shape == (4, 6, 2, 2) and bool(out.keypoint_visible.all())
    source = out.box_source[..., None]
    assert torch.equal(out.keypoints, batch.keypoints.flatten(1, 2)[source, out.keypoint_index])


@pytest.mark.parametrize("mix", [Mosaic(), MixUp(), CutMix(), CopyPaste()], ids=lambda mix: mix.kind)
def test_exception(mix):
    batch = places(0, 16, 16)
    alone = batch.replace(keypoints=batch.keypoints[:, 0], keypoint_visible=batch.keypoint_visible[:, 0])
    with pytest.raises(ValueError, match=r"cannot carry keypoints along .*\(B, N, K, 2\) beside boxes"):
        mix(alone)
