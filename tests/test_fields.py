"""Samples: each field against its image, and what is taken as what."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from kornia_mvit import Batch
from kornia_mvit.data.storage import StorageResize

IMAGE = torch.rand(3, 40, 60)
ONE_BOX = {"boxes": [[1, 2, 3, 4]], "box_label": [0]}
TWO_POINTS = {"keypoints": [[1, 2], [3, 4]], "keypoint_visible": [True, True]}


def whole(*shape, dtype=torch.int64):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"mask": whole(60, 40)}, ValueError, "mask is 60x40, but its image is 40x60"),
        ({"mask": whole(20, 30)}, ValueError, "mask is 20x30"),
        ({"mask": np.zeros((80, 120), np.uint8)}, ValueError, "mask is 80x120"),
        ({"mask": whole(2, 40, 60)}, ValueError, "mask is (2, 40, 60)"),
        ({"mask": torch.zeros(40, 60)}, TypeError, "mask.long()"),
        ({"mask": torch.rand(1, 40, 60)}, TypeError, "PILToTensor"),
        ({"mask": Image.new("RGB", (60, 40))}, ValueError, "mask is RGB"),
        ({"boxes": [[1, 2, 3, 4, 5]], "box_label": [0]}, ValueError, "boxes are (1, 5)"),
        ({"boxes": [1, 2, 3, 4], "box_label": [0]}, ValueError, "boxes are (4,)"),
        ({"boxes": np.zeros((4, 8)), "box_label": [0] * 8}, ValueError, "boxes are (4, 8)"),
        ({**ONE_BOX, "box_label": [0, 1]}, ValueError, "1 boxes, but box_label has 2"),
        ({**ONE_BOX, "box_ignore": []}, ValueError, "1 boxes, but box_ignore has 0"),
        ({**ONE_BOX, "box_label": [1.7]}, ValueError, "box_label has 1.7"),
        ({**ONE_BOX, "box_label": [True]}, TypeError, "box_label"),
        ({**ONE_BOX, "box_label": [10**30]}, TypeError, "box_label is a list"),
        ({**ONE_BOX, "box_label": np.array([2**64 - 1], np.uint64)}, ValueError, "box_label has 1.84"),
        ({**ONE_BOX, "box_ignore": [0.5]}, ValueError, "box_ignore has 0.5"),
        ({**ONE_BOX, "box_ignore": [2]}, ValueError, "True and False"),
        ({**TWO_POINTS, "keypoints": np.zeros((2, 3))}, ValueError, "goes into keypoint_visible"),
        ({**TWO_POINTS, "keypoint_visible": [True]}, ValueError, "2 keypoints, but keypoint_visible has 1"),
        ({"label": 1.7}, ValueError, "label is torch.float32 ()"),
        ({"label": "cat"}, TypeError, "label is a str, 'cat'"),
        ({"label": True}, TypeError, "got torch.bool"),
        ({"size": [41, 60]}, ValueError, "size (41, 60) is larger than the image, which is 40x60"),
        ({"image": whole(40, 60, 3, dtype=torch.uint8)}, ValueError, "image.permute(2, 0, 1)"),
        ({"image": np.zeros((3, 40, 3), np.uint8)}, ValueError, "first or last"),
        ({"image": np.zeros((40, 60, 5), np.uint8)}, ValueError, "first or last"),
        ({"image": torch.rand(40, 60, 1)}, ValueError, "1 channels last"),
        ({"image": np.zeros((40, 60), np.uint8)}, ValueError, "(1, H, W)"),
        ({"image": Image.new("F", (60, 40))}, ValueError, "no known range"),
        ({"image": "a.png"}, TypeError, "read_image"),
        ({"image": torch.zeros(3, 0, 60)}, ValueError, "no pixels"),
    ],
)
def test_refused_by_name_before_anything_is_padded(fields, error, message):
    right = {"image": IMAGE, "meta": {"path": "a.png"}}
    other = {name: {"image": torch.rand(3, 80, 90)}.get(name, value) for name, value in fields.items()}
    with pytest.raises(error) as raised:
        Batch.collate([{**right, **fields}, {**right, "image": torch.rand(3, 80, 90), **other}])
    assert message in str(raised.value)
    assert "sample 0 (a.png): " in str(raised.value)
    if "size" not in fields:
        with pytest.raises(error):
            StorageResize(20)({**right, **fields})


@pytest.mark.parametrize(
    ("form", "numbers"),
    [("XYXY", [10.0, 4, 30, 12]), ("XYWH", [10.0, 4, 20, 8]), ("CXCYWH", [20.0, 8, 20, 8])],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_of_torchvision_by_their_format_and_canvas(form, numbers, scale):
    boxes = tv_tensors.BoundingBoxes(torch.tensor([numbers]) * scale, format=form, canvas_size=(40 * scale, 60 * scale))
    sample = {"image": tv_tensors.Image(IMAGE), "boxes": boxes, "box_label": [1]}
    points = tv_tensors.KeyPoints(torch.tensor([[6.0, 4.0]]) * scale, canvas_size=(40 * scale, 60 * scale))
    sample |= {"keypoints": points, "keypoint_visible": [True], "mask": tv_tensors.Mask(whole(40, 60))}
    batch = Batch.collate([sample])
    assert batch.boxes.tolist() == [[[10.0, 4.0, 30.0, 12.0]]]
    assert batch.keypoints.tolist() == [[[6.0, 4.0]]]
    assert {type(getattr(batch, name)) for name in ("image", "boxes", "keypoints", "mask")} == {torch.Tensor}
    assert StorageResize((20, 30))(sample)["boxes"].tolist() == [[5.0, 2.0, 15.0, 6.0]]
    assert type(Batch(tv_tensors.Image(IMAGE[None])).image) is torch.Tensor


@pytest.mark.parametrize(
    ("form", "numbers", "canvas", "message"),
    [
        ("CXCYWHR", [20.0, 8, 20, 8, 30], (40, 60), "CXCYWHR"),
        ("XYXYXYXY", [10.0, 4, 30, 4, 30, 12, 10, 12], (40, 60), "XYXYXYXY"),
        ("XYXY", [10.0, 4, 30, 12], (60, 40), "60x40, but the image is 40x60"),
    ],
)
def test_boxes_of_torchvision_that_are_refused(form, numbers, canvas, message):
    boxes = tv_tensors.BoundingBoxes(torch.tensor([numbers]), format=form, canvas_size=canvas)
    with pytest.raises(ValueError, match=message):
        Batch.collate([{"image": IMAGE, "boxes": boxes, "box_label": [1]}])


def test_what_goes_on_working():
    """Whole numbers in whatever form, COCO's flags, and arrays that are read-only, backwards or without sign."""
    mask = np.arange(2400, dtype=np.uint16).reshape(40, 60)
    image = np.zeros((3, 40, 60), np.uint8)
    image.setflags(write=False)
    sample = {
        "image": image[:, ::-1],
        "label": np.uint16(3),
        "boxes": np.array([[1, 2, 3, 4]]),
        "box_label": np.array([2.0]),
        "box_ignore": np.array([1]),
        "mask": mask,
        "keypoints": [[1, 2], [3, 4], [5, 6]],
        "keypoint_visible": [0, 1, 2],
    }
    batch = Batch.collate([sample, sample | {"label": 1, "mask": np.asarray(Image.new("L", (60, 40)))}])
    assert batch.label.tolist() == [3, 1]
    assert batch.box_label.tolist() == [[2], [2]]
    assert batch.box_ignore.tolist() == [[True], [True]]
    assert batch.mask[0].tolist() == mask.tolist()
    assert batch.keypoint_visible[0].tolist() == [0, 1, 2]
    assert batch.keypoint_visible.dtype == torch.uint8


@pytest.mark.parametrize("ignore_index", [-100, -1, 255, 300])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64, torch.uint16])
def test_masks_hold_what_they_are_padded_with(ignore_index, dtype):
    masks = [whole(4, 5, dtype=dtype), whole(6, 3, dtype=dtype)]
    samples = [{"image": torch.rand(1, *mask.shape), "mask": mask} for mask in masks]
    assert Batch.collate(samples, ignore_index=ignore_index).mask.unique().tolist() == sorted([0, ignore_index])


def test_boxes_that_seem_to_be_shares_are_told():
    with pytest.warns(UserWarning, match=r"all boxes .*\[0, 1\].*pixels"):
        Batch.collate([{"image": IMAGE, "boxes": [[0.1, 0.2, 0.5, 0.9]], "box_label": [0]}])
    points = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.5], [1.0, 0.0]]
    with pytest.warns(UserWarning, match=r"all keypoints .*\[0, 1\]"):
        Batch.collate([{"image": IMAGE, "keypoints": points, "keypoint_visible": [True] * 4}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for boxes in ([[0, 0, 1, 1]], [[0.1, 0.2, 0.5, 0.9], [0, 0, 9, 9]], []):
            Batch.collate([{"image": IMAGE, "boxes": boxes, "box_label": [0] * len(boxes)}])


class TestKeypoints:
    """Of an image, of instances, and visibility as True and False or as COCO's three states."""

    @pytest.mark.parametrize("boxed", [True, False])
    def test_instances(self, boxed):
        sample = {
            "image": IMAGE,
            "keypoints": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
            "keypoint_visible": [[2, 1], [0, 2]],
        }
        empty = {"image": IMAGE, "keypoints": [], "keypoint_visible": []}
        if boxed:
            sample |= {"boxes": [[0, 0, 9, 9]] * 2, "box_label": [0, 1]}
            empty |= {"boxes": [], "box_label": []}
        for samples in ([sample, empty], [empty, sample]):
            batch = Batch.collate(samples)
            row = samples.index(sample)
            assert batch.keypoints.shape == (2, 2, 2, 2)
            assert batch.keypoint_visible[row].tolist() == [[2, 1], [0, 2]]
            assert batch.keypoint_visible[1 - row].tolist() == [[0, 0], [0, 0]]
            again = Batch.collate([batch.sample(0), batch.sample(1)])
            assert torch.equal(again.keypoints, batch.keypoints)
            assert torch.equal(again.keypoint_visible, batch.keypoint_visible)

    def test_of_torchvision(self):
        """Rows of x, y and visibility are two fields."""
        rows = torch.tensor([[[1.0, 2, 2], [0, 0, 0]]])
        target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([1]), "keypoints": rows}
        batch = Batch.collate([(IMAGE, target)])
        assert batch.keypoints.tolist() == [[[[1.0, 2.0], [0.0, 0.0]]]]
        assert batch.keypoint_visible.tolist() == [[[2, 0]]]

    def test_numbers_of_none(self):
        """A sample without instances fits others that have numbers of their keypoints."""
        image = torch.zeros(3, 8, 8)
        some = {"keypoints": [[[1, 2], [3, 4]]], "keypoint_visible": [[1, 2]], "keypoint_index": [[5, 6]]}
        batch = Batch.collate([{"image": image, **some}, {"image": image, **{key: [] for key in some}}])
        assert batch.keypoint_index.tolist() == [[[5, 6]], [[-1, -1]]]

    def test_true_beside_numbers_is_visible(self):
        samples = [TWO_POINTS | {"image": IMAGE}, TWO_POINTS | {"image": IMAGE, "keypoint_visible": [1, 0]}]
        assert Batch.collate(samples).keypoint_visible.tolist() == [[2, 2], [1, 0]]

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            ([{"keypoint_visible": [3, 0]}], "from 0 to 3; expected .*0 not labelled"),
            ([{"keypoint_visible": [-1, 0]}], "from -1 to 0"),
            ([{"keypoint_visible": [[2, 2]]}], "2 keypoints, but keypoint_visible has 1 x 2"),
            ([{}, {"keypoints": [[[1, 2]]], "keypoint_visible": [[2]]}], r"\(n, 1, 2\) and \(n, 2\)"),
            (
                [{"keypoints": [[[1, 2]] * k], "keypoint_visible": [[2] * k]} for k in (1, 3)],
                r"\(n, 1, 2\) and \(n, 3, 2\); give each instance as many",
            ),
            (
                [{"keypoints": [[[1, 2]]], "keypoint_visible": [[2]], "boxes": [], "box_label": []}],
                r"keypoints are \(1, 1, 2\), but boxes \(0, 4\); .*row by row",
            ),
            (
                [
                    {"keypoints": rows, "keypoint_visible": states, "boxes": [[0, 0, 9, 9]], "box_label": [0]}
                    for rows, states in (([[[1, 2]]], [[2]]), ([], []))
                ],
                "sample 1 has 1 boxes, but keypoints of 0 instances",
            ),
        ],
    )
    def test_exception(self, samples, message):
        with pytest.raises(ValueError, match=message):
            Batch.collate([TWO_POINTS | {"image": IMAGE} | sample for sample in samples])

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ({"keypoints": torch.zeros(1, 2, 3, 3)}, ValueError, r"\(B, K, 2\) or \(B, N, K, 2\), got \(1, 2, 3, 3\)"),
            (
                {"keypoint_visible": torch.zeros(1, 2, 4)},
                ValueError,
                r"\(1, 2, 3, 2\), but keypoint_visible is \(1, 2, 4\)",
            ),
            ({"keypoint_visible": torch.zeros(1, 2, 3)}, TypeError, "bool or, .* integer, got torch.float32"),
            ({"keypoint_visible": torch.full((1, 2, 3), 3)}, ValueError, "goes from 3 to 3; expected 0 not labelled"),
            ({"keypoint_visible": None}, ValueError, r"keypoint_visible of shape \(B, N, K\)"),
            (
                {"keypoints": torch.full((1, 2, 3, 2), torch.nan)},
                ValueError,
                r"keypoints\[0, 0, 0\] is not finite.* is 0 ",
            ),
            (
                {"boxes": torch.zeros(1, 3, 4), "box_label": torch.zeros(1, 3).long()},
                ValueError,
                r"keypoints are \(1, 2, 3, 2\), but boxes \(1, 3, 4\)",
            ),
        ],
    )
    def test_exception_of_batch(self, fields, error, message):
        given = {"keypoints": torch.zeros(1, 2, 3, 2), "keypoint_visible": torch.ones(1, 2, 3).long()} | fields
        with pytest.raises(error, match=message):
            Batch(IMAGE[None], **given)


class TestInstanceMasks:
    def test_dtypes_side_by_side(self):
        """Masks of a list, and those of several samples, may be bool and integers of 0 and 1."""
        image, mask = torch.zeros(3, 4, 4), torch.eye(4)
        boxes = {"boxes": [[0, 0, 4, 4]] * 2, "box_label": [1, 1]}
        samples = [
            {"image": image, **boxes, "instance_masks": [mask.to(one), mask.to(other)]}
            for one, other in ((torch.int8, torch.uint64), (torch.bool, torch.uint8), (torch.bool, torch.int64))
        ]
        batch = Batch.collate(samples)
        assert batch.instance_masks.dtype == torch.uint8
        assert batch.instance_masks.equal(mask.to(torch.uint8).expand(3, 2, 4, 4))
        assert Batch.collate(samples[2:]).instance_masks.dtype == torch.bool
