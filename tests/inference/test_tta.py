"""TestTimeAugmentation."""

import kornia.augmentation as K
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kornia_mvit import AugmentationPipeline, MobileViTClassifier, TestTimeAugmentation
from kornia_mvit.inference.tta import TestTimeTransform, find_transforms
from kornia_mvit.ops.geometry import transform_points
from tests.augmentation.scenes import smooth_maps
from tests.tester import BaseTester

NAMES = ["flip", "scale", "rotation", "five-crop", "ten-crop", "flip+scale", "flip+rotation"]


def equivariant(stride):
    """A segmentation that says of each pixel what stands there, at a stride."""

    def predict(image):
        size = (max(1, image.shape[-2] // stride), max(1, image.shape[-1] // stride))
        return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)

    return predict


def brightest(image):
    """A detector that boxes what is bright."""
    found = []
    for channel in image[:, 0]:
        rows, columns = torch.where(channel > 0.5)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        found.append({"boxes": box[None], "scores": torch.tensor([0.8]), "labels": torch.tensor([3])})
    return found


class TestTestTimeAugmentation(BaseTester):
    def test_smoke(self, device, dtype):
        tta = TestTimeAugmentation(lambda image: image.mean((2, 3)), "flip+scale")
        out = tta(torch.rand(2, 3, 64, 96, device=device).to(dtype))
        assert out.dtype == dtype
        assert out.device.type == device.type

    def test_exception(self):
        with pytest.raises(ValueError, match="mirror; available: none, flip, scale"):
            TestTimeAugmentation(nn.Identity(), "mirror")
        with pytest.raises(ValueError, match="'median'; available: 'mean', 'max', 'vote'"):
            TestTimeAugmentation(nn.Identity(), merge="median")
        with pytest.raises(ValueError, match="no transforms"):
            TestTimeAugmentation(nn.Identity(), [])
        with pytest.raises(ValueError, match=r"TestTimeTransform.*AugmentationPipeline.*RandomHorizontalFlip"):
            TestTimeAugmentation(nn.Identity(), [K.RandomHorizontalFlip()])
        with pytest.raises(ValueError, match=r"\(2,\)"):
            TestTimeAugmentation(lambda image: image.mean((1, 2, 3)))(torch.rand(2, 3, 8, 8))
        with pytest.raises(ValueError, match=r"got torch\.uint8"):
            TestTimeAugmentation(nn.Identity())(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
        with pytest.raises(ValueError, match="flip='no' is neither true nor false"):
            TestTimeTransform(flip="no")
        with pytest.raises(ValueError, match="unknown crop 'left'"):
            TestTimeTransform(crop="left")
        with pytest.raises(ValueError, match="scale -1"):
            TestTimeTransform(scale=-1.0)

    def test_cardinality(self):
        assert [len(find_transforms(name)) for name in NAMES] == [2, 3, 3, 5, 10, 6, 6]
        image = torch.rand(2, 3, 64, 96)
        assert TestTimeAugmentation(equivariant(8), "five-crop")(image).shape == (2, 3, 64, 96)
        assert TestTimeAugmentation(lambda image: image.mean((2, 3)), "ten-crop")(image).shape == (2, 3)

    def test_feature(self):
        """With a classifier, flips give the mean of the two passes."""
        model = MobileViTClassifier("xxs", 5).eval()
        image = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            expected = (model(image) + model(image.flip(-1))) / 2
            largest = torch.maximum(model(image), model(image.flip(-1)))
        assert torch.equal(TestTimeAugmentation(model, "flip")(image), expected)
        assert torch.equal(TestTimeAugmentation(model, "flip", "max")(image), largest)

    @pytest.mark.parametrize("merge", ["mean", "max"])
    @pytest.mark.parametrize("stride", [1, 4])
    @pytest.mark.parametrize("name", NAMES)
    def test_an_equivariant_function_gives_its_own_output(self, name, stride, merge):
        image = smooth_maps(2, 96, 128)
        out, valid = TestTimeAugmentation(equivariant(stride), name, merge).predict_valid(image)
        expected = F.interpolate(equivariant(stride)(image), (96, 128), mode="bilinear", align_corners=False)
        error = (out - expected).abs().mean(1, keepdim=True)[valid]
        assert error.mean() < 0.02
        assert valid.float().mean() > 0.7
        assert bool((out.masked_select(~valid) == 0).all())

    def test_votes(self):
        """Each transform has one vote, for a class or for a pixel's class."""
        answers = iter([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
        tta = TestTimeAugmentation(lambda image: torch.tensor([next(answers)]), "scale", "vote")
        torch.testing.assert_close(tta(torch.rand(1, 3, 64, 64)), torch.tensor([[1 / 3, 2 / 3]]))
        image = smooth_maps(1, 64, 64)
        votes = TestTimeAugmentation(equivariant(1), "flip", "vote")(image)
        torch.testing.assert_close(votes.sum(1), torch.ones(1, 64, 64))
        assert torch.equal(votes.argmax(1), image.argmax(1))

    @pytest.mark.parametrize("merge", ["mean", "max", "vote"])
    @pytest.mark.parametrize("name", ["flip", "scale", "flip+scale"])
    def test_boxes_come_back(self, name, merge):
        image = torch.zeros(2, 3, 96, 128)
        image[0, :, 20:50, 30:70], image[1, :, 60:90, 5:25] = 1.0, 1.0
        expected = torch.tensor([[30.0, 20, 70, 50], [5, 60, 25, 90]])
        out = TestTimeAugmentation(brightest, name, merge)(image)
        for detections, box in zip(out, expected, strict=True):
            assert detections["labels"].tolist() == [3]
            torch.testing.assert_close(detections["boxes"][0], box, rtol=0, atol=1.0)
            torch.testing.assert_close(detections["scores"], torch.tensor([0.8]))

    def test_fusion_lowers_the_score_of_what_few_transforms_found(self):
        found = iter(
            [
                {"boxes": torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60]]), "scores": torch.tensor([0.9, 0.6])},
                {"boxes": torch.tensor([[53.0, 0, 64, 10]]), "scores": torch.tensor([0.3])},
            ]
        )

        def predict(image):
            detections = next(found)
            return [detections | {"labels": torch.zeros(len(detections["scores"]), dtype=torch.long)}]

        out = TestTimeAugmentation(predict, "flip")(torch.rand(1, 3, 64, 64))[0]
        torch.testing.assert_close(out["scores"], torch.tensor([0.6, 0.3]))
        weighted = torch.tensor([0.0, 0, (0.9 * 10 + 0.3 * 11) / 1.2, 10])
        torch.testing.assert_close(out["boxes"][0], weighted)

    @pytest.mark.parametrize("merge", ["mean", "max", "vote"])
    @pytest.mark.parametrize("name", ["flip", "rotation", "ten-crop", "flip+scale"])
    def test_keypoints_of_boxes_come_back_in_pairs(self, name, merge):
        """A detector that takes for left what looks so in a mirrored picture; a third number of each goes along."""
        hands = torch.tensor([[[41.0, 31], [61, 33], [55, 41]], [[70.0, 61], [90, 60], [82, 69]]])

        def predict(image):
            geometry = next(looks)
            points = transform_points(geometry.matrix(0, len(geometry)).expand(2, 3, 3), hands)
            mirrored = bool(torch.linalg.det(geometry.matrix(0, len(geometry)))[0] < 0)
            points = points[:, [1, 0, 2]] if mirrored else points
            boxes = torch.cat([points.amin(1) - 9, points.amax(1) + 9], 1).float()
            scores = torch.tensor([0.5, 0.7, 0.9])[[1, 0, 2] if mirrored else [0, 1, 2]]
            keypoints = torch.cat([points.float(), scores.expand(2, 3)[..., None]], -1)
            found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.zeros(2).long()}
            return [found | {"keypoints": keypoints}]

        transforms = find_transforms(name)
        image = torch.rand(1, 3, 96, 128)
        looks = iter([transform(image)[1] for transform in transforms])
        (out,) = TestTimeAugmentation(predict, transforms, merge, keypoint_flip_pairs=[(0, 1)])(image)
        found = out["keypoints"][out["boxes"][:, 0].argsort()]
        assert found.shape == (2, 3, 3)
        torch.testing.assert_close(found[..., :2], hands, rtol=0, atol=0.6)
        torch.testing.assert_close(found[..., 2], torch.tensor([[0.5, 0.7, 0.9]] * 2))

    def test_heatmaps_of_keypoints(self):
        """A network that finds the left dot by its side of the picture: without pairs its maps of two looks cancel."""
        image = torch.zeros(1, 3, 32, 48)
        image[..., 8, 10], image[..., 20, 40] = 1.0, 1.0

        def predict(seen):  # channel 0 is the dot on the right, which is the left one of who looks out of the picture
            columns = torch.arange(seen.shape[-1])
            right = (columns >= seen.shape[-1] // 2).float()
            return torch.stack([seen[:, 0] * right, seen[:, 0] * (1 - right)], 1)

        paired = TestTimeAugmentation(predict, "flip", keypoint_flip_pairs=[(0, 1)])(image)
        torch.testing.assert_close(paired, predict(image))
        plain = TestTimeAugmentation(predict, "flip")(image)
        assert plain[0, 0, 20, 40] == 0.5

    def test_keypoints_alone(self):
        image = torch.zeros(1, 3, 32, 48)
        image[..., 8, 10], image[..., 20, 40] = 1.0, 1.0

        def predict(seen):
            rows, columns = torch.where(seen[0, 0] > 0.5)
            order = columns.argsort(descending=True)
            return (torch.stack([columns, rows], 1)[order].float() + 0.5)[None]

        out = TestTimeAugmentation(predict, "flip", keypoint_flip_pairs=[(0, 1)])(image)
        torch.testing.assert_close(out, torch.tensor([[[40.5, 20.5], [10.5, 8.5]]]))
        with pytest.raises(ValueError, match=r"gave \(1, 2, 2\); .*merge='mean'"):
            TestTimeAugmentation(predict, "flip", "max")(image)

    def test_exception_of_keypoints(self):
        found = {"boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
        image = torch.rand(2, 3, 8, 8)
        given = [found | {"keypoints": torch.zeros(1, 3, 2)}, found]
        with pytest.raises(ValueError, match=r"keypoints \(1, 3, 2\), none; expected \(n, K, 2\)"):
            TestTimeAugmentation(lambda seen: given, "flip")(image)
        with pytest.raises(ValueError, match=r"\(0, 3\), but there are 3 keypoints"):
            TestTimeAugmentation(lambda seen: given[:1] * 2, "flip", keypoint_flip_pairs=[(0, 3)])(image)
        with pytest.raises(ValueError, match="keypoint 0 twice"):
            TestTimeAugmentation(nn.Identity(), keypoint_flip_pairs=[(0, 1), (0, 2)])

    def test_images_without_boxes(self):
        nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
        for merge in ("mean", "max", "vote"):
            out = TestTimeAugmentation(lambda image: [dict(nothing)] * len(image), "flip", merge)(
                torch.rand(2, 3, 8, 8)
            )
            assert [len(d["boxes"]) for d in out] == [0, 0]

    def test_takes_pipelines(self):
        """Any augmentation that has an inverse."""
        image = smooth_maps(2, 96, 128)
        looks = [AugmentationPipeline(), AugmentationPipeline([K.RandomAffine(20.0, (0.1, 0.1), p=1.0)])]
        out, valid = TestTimeAugmentation(equivariant(4), looks).predict_valid(image)
        assert (out - image).abs().mean(1, keepdim=True)[valid].mean() < 0.02

    def test_gradcheck(self):
        """It predicts, without gradients."""
        image = torch.rand(1, 3, 32, 32, requires_grad=True)
        assert not TestTimeAugmentation(lambda image: image.mean((2, 3)))(image).requires_grad

    def test_dynamo(self):
        """The model inside may be compiled; the sizes around it are Python's."""
        model = torch.compile(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), backend="aot_eager")
        image = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(TestTimeAugmentation(model, "flip")(image), image.mean((2, 3)))


class TestBoxesOfCrops:
    """A detector that finds the same objects wherever it looks, as far as it sees them."""

    objects = torch.tensor([[10.0, 12, 40, 50], [70, 20, 96, 64], [30, 30, 60, 60], [2, 50, 20, 63]])

    def predict(self, size):
        def find(image):
            scale = (image[:, 0].amax(), image[:, 1].amax(), image[:, 0].amin(), image[:, 1].amin())
            right, bottom, left, top = (float(v) for v in scale)
            view = torch.tensor([left * size[1], top * size[0], right * size[1], bottom * size[0]])
            boxes = torch.maximum(torch.minimum(self.objects, view[2:].repeat(2)), view[:2].repeat(2))
            keep = ((boxes[:, 2:] - boxes[:, :2]) > 4).all(1)
            factor = torch.tensor([image.shape[-1], image.shape[-2]]) / (view[2:] - view[:2])
            boxes = (boxes[keep] - view[:2].repeat(2)) * factor.repeat(2)
            if image[0, 0, 0, 0] > image[0, 0, 0, -1]:  # mirrored
                boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
            labels = keep.nonzero().flatten()
            return [{"boxes": boxes, "scores": torch.full((len(boxes),), 0.8), "labels": labels}]

        return find

    @pytest.mark.parametrize("transforms", ["flip", "scale", "five-crop", "ten-crop", "flip+scale"])
    @pytest.mark.parametrize("merge", ["mean", "max", "vote"])
    def test_come_back_whole(self, transforms, merge):
        size = (64, 96)
        x = (torch.arange(size[1]) + 0.5) / size[1]
        y = (torch.arange(size[0]) + 0.5) / size[0]
        # what a view shows is read off its values, edges and not centres of pixels
        image = torch.stack([x.expand(*size), y[:, None].expand(*size), torch.zeros(size)])[None]
        half = torch.tensor([0.5 / size[1], 0.5 / size[0], 0.0]).view(1, 3, 1, 1)

        def find(seen):
            low, high = seen.amin((2, 3), keepdim=True), seen.amax((2, 3), keepdim=True)
            stretched = (seen - low) / (high - low).clamp_min(1e-6) * (high - low + 2 * half) + low - half
            return self.predict(size)(stretched)

        (found,) = TestTimeAugmentation(find, transforms, merge)(image)
        assert sorted(found["labels"].tolist()) == [0, 1, 2, 3]
        order = found["labels"].argsort()
        torch.testing.assert_close(found["boxes"][order], self.objects, atol=1.5, rtol=0)
        torch.testing.assert_close(found["scores"], torch.full((4,), 0.8), atol=1e-3, rtol=0)
