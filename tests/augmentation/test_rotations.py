"""A rotation that cuts nothing: canvas, sizes, targets, replay and inverse."""

import random

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from kornia_mvit.augmentation.rotations import RandomExpandedRotation
from tests.augmentation.scenes import scene, smooth_maps


def drawn_batch(case: int, *, padded: bool) -> Batch:
    pick = random.Random(case)
    return scene(case, height=2 * pick.randint(16, 36) + 1, width=2 * pick.randint(16, 36) + 1, padded=padded)


def kept(batch: Batch) -> list[torch.Tensor]:
    return [batch.boxes[i][batch.box_label[i] >= 0] for i in range(len(batch))]


@pytest.mark.parametrize("cases", [range(12), pytest.param(range(200), marks=pytest.mark.long, id="200 cases")])
class TestRandomExpandedRotation:
    def test_nothing_is_cut(self, cases):
        """Every box and keypoint stays; each image ends where its size says; every inner pixel comes back."""
        for case in cases:
            batch = drawn_batch(case, padded=case % 2 == 0)
            height, width = batch.image.shape[-2:]
            maps = smooth_maps(2, height, width)
            pipeline = AugmentationPipeline([RandomExpandedRotation(180.0, p=0.8)], min_box_area=0.0)
            out, params = pipeline.augment(batch.replace(image=maps), seed=case)
            assert torch.equal(out.keypoint_visible.sum(1), batch.keypoint_visible.sum(1))
            assert [len(v) for v in kept(out)] == [len(v) for v in kept(batch)]
            for i in range(2):
                h, w = (height, width) if batch.size is None else batch.size[i].tolist()
                angle = params["steps"][0]["data"]["degrees"][i].deg2rad()
                cosine, sine = angle.cos().abs(), angle.sin().abs()
                wanted = torch.stack([h * cosine + w * sine, w * cosine + h * sine])
                assert (out.size[i] - wanted).abs().max() < 1.01
                if case % 2:
                    assert out.mask[i, : int(out.size[i, 0]), : int(out.size[i, 1])].ne(255).sum() >= 0.9 * h * w
                assert (out.mask[i, int(out.size[i, 0]) :] == 255).all()
                assert (out.mask[i, :, int(out.size[i, 1]) :] == 255).all()
                back, valid = pipeline.inverse(out.image, params)
                inner = (slice(2, h - 2), slice(2, w - 2))
                assert valid[i, 0][inner].all()
                assert (back - maps)[i][:, *inner].abs().max() < 0.05
            assert (out.size.amax(0) - torch.tensor(out.image.shape[-2:])).abs().max() <= 1
            back = pipeline.inverse_keypoints(out.keypoints, params)
            torch.testing.assert_close(
                back[out.keypoint_visible], batch.keypoints[out.keypoint_visible], atol=1e-3, rtol=0
            )
            again = pipeline.replay(batch.replace(image=maps), params)
            for field in ("image", "boxes", "mask", "keypoints", "size"):
                assert torch.equal(getattr(again, field), getattr(out, field)), field

    def test_boxes_are_around_what_was_painted(self, cases):
        for case in cases:
            batch = drawn_batch(case, padded=case % 2 == 0)
            pipeline = AugmentationPipeline([RandomExpandedRotation(180.0, p=0.8), K.RandomHorizontalFlip()])
            out, _ = pipeline.augment(batch, seed=case)
            for i in range(2):
                for box, label in zip(out.boxes[i], out.box_label[i], strict=True):
                    rows, columns = (out.mask[i] == label + 1).nonzero(as_tuple=True)
                    if label >= 0 and len(rows):
                        painted = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                        assert (box[:2] < painted[:2] + 1).all()
                        assert (box[2:] > painted[2:] - 1).all()


class TestItsPlace:
    def test_a_resize_takes_each_image_alone(self):
        """Quarter turns of images of several sizes, resized, are those of each image without its canvas."""
        torch.manual_seed(0)
        images = [torch.rand(3, 20, 31), torch.rand(3, 27, 24)]
        batch = Batch.collate([{"image": image} for image in images])
        pipeline = AugmentationPipeline([RandomExpandedRotation((90.0, 90.0), p=1.0)], preprocess=Preprocess((16, 16)))
        out, _ = pipeline.augment(batch, seed=0)
        for row, image in zip(out.image, images, strict=True):
            wanted = Preprocess((16, 16)).module()(image.rot90(1, (1, 2))[None])[0]
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-4)
        assert out.size.tolist() == [[16, 16]] * 2

    def test_without_a_turn_nothing_changes(self):
        batch = scene(3)
        out, _ = AugmentationPipeline([RandomExpandedRotation(45.0, p=0.0)], min_box_area=0.0).augment(batch, seed=0)
        torch.testing.assert_close(out.image, batch.image, rtol=0, atol=1e-5)
        assert torch.equal(out.boxes, batch.boxes)
        assert out.size.tolist() == [[64, 72]] * 2

    def test_in_a_container_of_kornias(self):
        """Alone it gives what the pipeline gives."""
        image = torch.rand(2, 3, 21, 30)
        step = RandomExpandedRotation(60.0, p=1.0)
        out, params = AugmentationPipeline([step]).augment(Batch(image), seed=1)
        torch.testing.assert_close(step(image, params=params["steps"][0]["data"]), out.image, rtol=0, atol=1e-5)

    def test_two_of_them_and_no_images(self):
        pipeline = AugmentationPipeline([RandomExpandedRotation((90.0, 90.0), p=1.0) for _ in range(2)])
        image = torch.rand(1, 3, 12, 17)
        torch.testing.assert_close(pipeline(image, seed=0), image.flip(2, 3), rtol=0, atol=1e-5)
        assert pipeline(image[:0], seed=0).shape == (0, 3, 12, 17)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (((10.0, -10.0),), "not an ascending range"),
            ((400.0,), "not an ascending range"),
            ((9.0, 1.5), "probability"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            RandomExpandedRotation(*arguments)
