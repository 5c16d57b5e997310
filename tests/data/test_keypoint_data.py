"""Keypoints as COCO and YOLO write them: read where they were painted, carried to batches, drawn."""

import json

import pytest
import torch
from kornia.augmentation import RandomHorizontalFlip

from kornia_mvit import AugmentationPipeline
from kornia_mvit.data.formats.coco import read_coco
from kornia_mvit.data.formats.yolo import read_yolo
from kornia_mvit.data.reading import DataError
from kornia_mvit.training.datamodules import COCOData, YOLOData
from tests.data.people import FLIP_IDX, NAMES, RED, SKELETON, draw_people, make_coco_people, make_yolo_people

TRAIN = "annotations/person_keypoints_train2017.json"
FILES = {"train_file": TRAIN, "val_file": "annotations/person_keypoints_val2017.json"}
PAIRS = tuple((k, k + 1) for k in range(1, 17, 2))


def coco(root, **arguments):
    return COCOData(str(root), num_workers=0, keypoints=True, **(FILES | arguments))


def yolo(root, **arguments):
    return YOLOData(str(root), num_workers=0, keypoints=True, **arguments)


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def check_samples(data, first):
    """Every labelled keypoint lies in the middle of its pixel, in the state that was written; the others at 0, 0."""
    data.setup()
    seen = 0
    for number, sample in enumerate(data.splits["train" if first == 0 else "val"]):
        _, people = draw_people(number + first)
        points, states = sample["keypoints"], sample["keypoint_visible"]
        assert points.shape == (len(people), 17, 2)
        assert states.dtype == torch.uint8
        assert points.shape[0] == len(sample["boxes"])
        for place, person in enumerate(people):
            written = torch.tensor(person["keypoints"]).view(17, 3)
            assert states[place].tolist() == written[:, 2].tolist()
            for k, (x, y) in enumerate(points[place].tolist()):
                if not states[place, k]:
                    assert (x, y) == (0, 0)
                    continue
                assert sample["image"][:, int(y), int(x)].tolist() == [RED, 10 * k, 10 * place]
                assert (x % 1, y % 1) == pytest.approx((0.5, 0.5), abs=1e-3)
                seen += 1
    assert seen > 20


class TestCOCOData:
    @pytest.mark.parametrize("first", [0, 1])
    def test_keypoints_lie_where_they_were_painted(self, tmp_path, first):
        data = coco(make_coco_people(tmp_path))
        check_samples(data, first)
        assert data.keypoint_names == tuple(NAMES)
        assert data.keypoint_flip_pairs == PAIRS
        assert data.keypoint_skeleton == tuple((a - 1, b - 1) for a, b in SKELETON)
        assert data.bad_boxes == []

    def test_the_file_is_one_of_coco(self, tmp_path):
        """COCO's own score of keypoints finds what was read, half a pixel taken off again, without a fault."""
        from faster_coco_eval import COCO, COCOeval_faster

        data = coco(make_coco_people(tmp_path))
        data.setup()
        truth = COCO(str(tmp_path / TRAIN))
        found = []
        for sample in data.splits["train"]:
            for points, states in zip(sample["keypoints"] - 0.5, sample["keypoint_visible"], strict=True):
                rows = torch.cat([points, states[:, None].float()], 1).flatten().tolist()
                image = sample["meta"]["image_id"]
                found.append({"image_id": image, "category_id": 1, "keypoints": rows, "score": 0.9})
        score = COCOeval_faster(truth, truth.loadRes(found), iouType="keypoints", print_function=lambda *_: None)
        score.evaluate()
        score.accumulate()
        score.summarize()
        assert score.stats[0] == pytest.approx(1.0)

    def test_a_batch_that_is_mirrored(self, tmp_path):
        """Through storage, collation and a pipeline: an image without people has rows of padding alone."""
        data = coco(make_coco_people(tmp_path), batch_size=4, storage_size=80)
        data.setup()
        batch = next(iter(data.val_dataloader()))
        assert batch.keypoints.shape == (4, 2, 17, 2)
        pipeline = AugmentationPipeline([RandomHorizontalFlip(p=1.0)], keypoint_flip_pairs=data.keypoint_flip_pairs)
        out = pipeline(batch, seed=0)
        assert torch.equal(out.keypoint_visible, batch.keypoint_visible[..., FLIP_IDX])
        live = out.keypoint_visible > 0
        mirrored = batch.image.shape[-1] - batch.keypoints[..., FLIP_IDX, 0]
        torch.testing.assert_close(out.keypoints[..., 0][live], mirrored[live])
        assert not out.keypoints[~live].any()

    def test_are_left_unless_asked_for(self, tmp_path):
        data = COCOData(str(make_coco_people(tmp_path)), num_workers=0, **FILES)
        data.setup()
        assert "keypoints" not in data.splits["train"][1]
        assert (data.keypoint_names, data.keypoint_flip_pairs, data.keypoint_skeleton) == ((), None, ())

    def test_annotations_without_keypoints(self, tmp_path):
        root = make_coco_people(tmp_path)

        def change(data):
            data["categories"].append({"id": 7, "name": "ball"})
            first, second = data["annotations"][:2]
            del first["keypoints"]
            second.update(keypoints=[], category_id=7)

        for file in FILES.values():
            edit(root / file, change)
        data = coco(root)
        data.setup()
        assert not data.splits["train"][1]["keypoint_visible"].any()
        assert not data.splits["train"][2]["keypoint_visible"][0].any()
        assert data.splits["train"][2]["keypoint_visible"][1].any()
        assert data.class_names == ("person", "ball")

    @pytest.mark.parametrize(
        ("keypoints", "message"),
        [
            ([1, 2, 2] * 16, "annotation 2 has 48 numbers of keypoints; 17 keypoints have 51"),
            ([1, 2, 2] * 16 + [1, 2], "has 50 numbers of keypoints"),
            ([1, 2, 2] * 16 + [1, 2, 3], "annotation 2 has keypoint 16 of visibility 3"),
            ([1, "x", 2] * 17, r"keypoint 0 at \(1, nan\), which is not finite"),
            ([1e300, 1, 2] * 17, r"keypoint 0 at \(1e\+300, 1\), which is not finite"),
            ("none", "annotation 2 has keypoints 'none', not a list"),
        ],
    )
    def test_wrong_rows_are_named(self, tmp_path, keypoints, message):
        root = make_coco_people(tmp_path)
        edit(root / TRAIN, lambda data: data["annotations"][1].update(keypoints=keypoints))
        data = coco(root)
        (bad,) = data.bad_boxes
        assert bad.startswith(f"{TRAIN}: annotation 2 has")
        with pytest.raises(DataError, match=message):
            coco(root, on_bad_box="raise")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda data: data["categories"][0].pop("keypoints"),
                r"none of its categories has keypoints.*--data\.keypoints",
            ),
            (
                lambda data: data["categories"][0].update(skeleton=[[0, 3]]),
                r"skeleton of .*'person' has \[0, 3\].*1 to 17",
            ),
            (lambda data: data["categories"][0].update(skeleton=[[1, 18]]), r"\[1, 18\].*1 to 17"),
            (lambda data: data["categories"][0].update(skeleton=[5]), "has 5; each line is two"),
            (lambda data: data["categories"][0].update(skeleton=7), "has 7; each line is two"),
            (lambda data: data["categories"][0].update(skeleton={"a": 1}), "each line is two"),
            (lambda data: data["categories"][0].update(keypoints="nose"), "is 'nose', not a list of names"),
            (
                lambda data: data["categories"].append({"id": 2, "name": "hand", "keypoints": ["thumb"]}),
                "'person' and 'hand' have other keypoints",
            ),
        ],
    )
    def test_exception(self, tmp_path, change, message):
        root = make_coco_people(tmp_path)
        edit(root / TRAIN, change)
        with pytest.raises(DataError, match=rf"person_keypoints_train2017\.json.*{message}"):
            read_coco(root / TRAIN, keypoints=True)

    def test_splits_of_other_keypoints(self, tmp_path):
        root = make_coco_people(tmp_path)
        edit(root / FILES["val_file"], lambda data: data["categories"][0].update(keypoints=NAMES[::-1]))
        with pytest.raises(DataError, match=r"val2017\.json has the keypoints right_ankle.*need the same keypoints"):
            coco(root)


class TestYOLOData:
    @pytest.mark.parametrize("first", [0, 1])
    def test_keypoints_lie_where_they_were_painted(self, tmp_path, first):
        data = yolo(make_yolo_people(tmp_path))
        check_samples(data, first)
        assert data.keypoint_flip_pairs == PAIRS
        assert data.bad_boxes == []

    def test_two_values(self, tmp_path):
        """Without visibility, what is at 0, 0 is not labelled, and the rest visible."""
        data = yolo(make_yolo_people(tmp_path, width=2))
        data.setup()
        _, people = draw_people(2)
        written = torch.tensor([person["keypoints"][2::3] for person in people])
        assert torch.equal(data.splits["train"][2]["keypoint_visible"], (2 * (written > 0)).to(torch.uint8))
        file = tmp_path / "a.txt"
        file.write_text("0 0.5 0.5 0.2 0.2 -1 0.5 0.25 0.5")
        found = read_yolo(file, kpt_shape=(2, 2), keypoints=True)
        assert found.keypoints == [[0.0, 0.0, 0.0, 0.25, 0.5, 2]]

    def test_names_tell_pairs_where_flip_idx_is_missing(self, tmp_path):
        data = yolo(make_yolo_people(tmp_path, flip_idx=None, kpt_names={"0": NAMES}), keypoint_skeleton=[(0, 1)])
        assert data.keypoint_names == tuple(NAMES)
        assert data.keypoint_flip_pairs == PAIRS
        assert data.keypoint_skeleton == ((0, 1),)

    def test_without_flip_idx_and_names(self, tmp_path):
        assert yolo(make_yolo_people(tmp_path, flip_idx=None)).keypoint_flip_pairs is None

    def test_boxes_without_keypoints(self, tmp_path):
        root = make_yolo_people(tmp_path)
        (root / "labels/train/1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        data = yolo(root)
        data.setup()
        assert data.splits["train"][1]["keypoint_visible"].tolist() == [[0] * 17]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (" 0.5 0.5 2" * 16, r"line 2 has 53 numbers; .*kpt_shape \[17, 3\] 56"),
            (" 0.5 0.5" * 17, r"line 2 has 39 numbers; .*kpt_shape \[17, 3\] 56"),
            (" 0.5 0.5 2" * 16 + " 0.5 0.5 7", "line 2 has keypoint 16 of visibility 7"),
            (" 0.5 0.5 2" * 16 + " 50 0.5 2", r"line 2 has keypoint 16 at \(50, 0\.5\), above 1"),
            (" 0.5 word 2" * 17, r"line 2 has keypoint 0 at \(0\.5, nan\), which is not finite"),
        ],
    )
    def test_wrong_rows_are_named(self, tmp_path, values, message):
        root = make_yolo_people(tmp_path)
        with (root / "labels/train/1.txt").open("a") as file:
            file.write(f"0 0.5 0.5 0.2 0.2{values}\n")
        data = yolo(root)
        (bad,) = data.bad_boxes
        assert bad.startswith("labels/train/1.txt: line 2 has")
        data.setup()
        assert data.splits["train"][1]["keypoints"].shape == (1, 17, 2)
        with pytest.raises(DataError, match=message):
            yolo(root, on_bad_box="raise")

    @pytest.mark.parametrize(
        ("described", "message"),
        [
            ({"kpt_shape": None, "flip_idx": None}, r"data\.yaml does not tell .*give kpt_shape \(--data\.kpt_shape\)"),
            ({"flip_idx": [1, 2, 0, *range(3, 17)]}, "flip_idx has 1 as the partner of keypoint 0, but 2 as that of 1"),
            ({"flip_idx": FLIP_IDX[:-1]}, "flip_idx has 16 numbers, but there are 17 keypoints"),
            ({"flip_idx": [*FLIP_IDX[:-1], 17]}, r"flip_idx is .*from 0 to 16"),
            ({"flip_idx": "01"}, "flip_idx is '01'"),
            ({"flip_idx": None, "kpt_names": {"0": NAMES[:3]}}, "kpt_names is .*17 names"),
            ({"flip_idx": None, "kpt_names": {"0": NAMES, "1": NAMES[::-1]}}, "kpt_names is .*same 17 names"),
            ({"kpt_shape": [17, 4]}, r"kpt_shape is \[17, 4\]"),
        ],
    )
    def test_exception(self, tmp_path, described, message):
        with pytest.raises(DataError, match=message):
            yolo(make_yolo_people(tmp_path, **described))

    def test_skeleton_of_other_keypoints(self, tmp_path):
        with pytest.raises(ValueError, match=r"keypoint_skeleton has the line \(0, 17\), but there are 17"):
            yolo(make_yolo_people(tmp_path), keypoint_skeleton=[(0, 17)])

    def test_are_left_unless_asked_for(self, tmp_path):
        """A flip_idx that is wrong is not looked at, either."""
        data = YOLOData(str(make_yolo_people(tmp_path, flip_idx=[1, 2, 0])), num_workers=0)
        data.setup()
        assert "keypoints" not in data.splits["train"][1]
        assert data.keypoint_flip_pairs is None
