"""Data modules of images with boxes: COCO and YOLO."""

import json
import math

import pytest
import torch

from kornia_mvit.data.reading import DataError
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.evaluation.coco import truths_of
from kornia_mvit.training.datamodules import COCOData, YOLOData
from tests.training.shapes import make_coco, make_yolo

VAL = "annotations/instances_val2017.json"


def edit(file, change):
    """Change a JSON file."""
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def coco(root, **arguments):
    return COCOData(str(root), num_workers=0, **arguments)


class TestCOCOData:
    def test_feature(self, tmp_path):
        """Labels by the order of the categories' numbers, crowds to be ignored, areas of the file, its own ids."""
        data = coco(make_coco(tmp_path), batch_size=3)
        assert data.class_names == Shapes.class_names
        assert data.category_ids == (3, 5, 9)
        data.setup()
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 3}
        annotations = json.loads((tmp_path / VAL).read_text())["annotations"]
        scenes = Shapes(3, (60, 80))
        for number, sample in enumerate(data.splits["val"]):
            assert torch.equal(sample["image"], scenes[number]["image"])
            torch.testing.assert_close(sample["boxes"], scenes[number]["boxes"])
            assert torch.equal(sample["box_label"], scenes[number]["box_label"])
            mine = [item for item in annotations if item["image_id"] == 100 + number]
            assert sample["meta"]["image_id"] == 100 + number
            assert sample["meta"]["box_area"] == pytest.approx([item["area"] for item in mine])
            crowd = [bool(item["iscrowd"]) for item in mine]
            assert sample["meta"]["box_crowd"] == sample["box_ignore"].tolist() == crowd
        assert sum(item["iscrowd"] for item in annotations) == 1
        assert data.bad_boxes == []
        counts = data.count_boxes("val")
        assert sum(counts.values()) == len(annotations) - 1, "the crowd does not count"

    def test_a_batch_tells_the_truth(self, tmp_path):
        """Through storage and collation, boxes and areas are those of the file."""
        data = coco(make_coco(tmp_path), batch_size=3, storage_size=30)
        data.setup()
        batch = next(iter(data.val_dataloader()))
        assert batch.image.shape == (3, 3, 30, 40)
        for truth, sample in zip(truths_of(batch), Shapes(3, (60, 80)), strict=False):
            torch.testing.assert_close(truth["boxes"], sample["boxes"])
            assert truth["area"].tolist() == pytest.approx([a / 2 for a in _areas(sample["boxes"])])

    def test_an_image_without_boxes_stays(self, tmp_path):
        def change(found):
            found["annotations"] = [item for item in found["annotations"] if item["image_id"] != 101]

        edit(make_coco(tmp_path) / VAL, change)
        data = coco(tmp_path)
        data.setup()
        assert len(data.splits["val"]) == 3
        assert data.splits["val"][1]["boxes"].shape == (0, 4)

    def test_sizes_that_the_file_does_not_tell_are_the_images(self, tmp_path):
        def change(found):
            for image in found["images"]:
                del image["width"]
            found["annotations"][0]["bbox"] = [70, 50, 30, 30]

        edit(make_coco(tmp_path) / VAL, change)
        data = coco(tmp_path)
        data.setup()
        assert data.clipped_boxes == 1
        assert data.splits["val"][0]["boxes"][0].tolist() == [70, 50, 80, 60]

    def test_categories_of_one_name(self, tmp_path):
        """They stay apart by their number, in all that goes by names."""

        def change(found):
            for category in found["categories"][:2]:
                category["name"] = "cat"

        make_coco(tmp_path)
        for split in ("train", "val"):
            edit(tmp_path / VAL.replace("val", split), change)
        data = coco(tmp_path)
        assert data.class_names == ("cat (3)", "cat (5)", "triangle")
        boxes = sum(len(Shapes(3, (60, 80))[n]["boxes"]) for n in range(3))
        assert (len(data.count_boxes("val")), sum(data.count_boxes("val").values())) == (3, boxes - 1)

    def test_a_split_that_keeps_no_box(self, tmp_path):
        root = make_coco(tmp_path)
        edit(root / VAL, lambda found: [item.update(category_id=77) for item in found["annotations"]])
        with pytest.raises(DataError, match=r"no box for val: all \d+ are left out, such as .*names category 77"):
            coco(root).setup("fit")
        edit(root / VAL, lambda found: [item.update(category_id=3, iscrowd=1) for item in found["annotations"]])
        with pytest.raises(DataError, match=r"no box for val: .*crowds"):
            coco(root).setup("fit")

    def test_numbers_beyond_64_bits(self, tmp_path):
        """Images and categories keep theirs."""
        root, large = make_coco(tmp_path), 2**70

        def change(found):
            for entry in [*found["images"], *found["categories"]]:
                entry["id"] += large
            for item in found["annotations"]:
                item["image_id"] += large
                item["category_id"] += large

        for split in ("train", "val"):
            edit(root / VAL.replace("val", split), change)
        data = coco(root)
        data.setup()
        assert data.category_ids == (large + 3, large + 5, large + 9)
        assert [sample["meta"]["image_id"] - large for sample in data.splits["val"]] == [100, 101, 102]
        assert len(data.splits["val"][0]["boxes"]) > 0

    def test_bad_boxes_are_listed(self, tmp_path, caplog):
        faults = [
            ({"image_id": 999}, "names image 999, which the file does not have"),
            ({"category_id": 4}, "names category 4, which the file does not have"),
            ({"bbox": [5, 5, 0, 9]}, "has no area"),
            ({"bbox": [90, 5, 5, 9]}, "lies outside the image"),
            ({"bbox": [5, 5, 9]}, "is incomplete"),
            ({"bbox": [5, 5, math.nan, 9]}, "is incomplete"),
        ]
        root = make_coco(tmp_path)

        def change(found):
            good = {"image_id": 100, "category_id": 3, "bbox": [1, 1, 5, 5]}
            found["annotations"] = [good | {"id": 50 + n} | fault for n, (fault, _) in enumerate(faults)]
            found["annotations"].append(good | {"id": 90})

        edit(root / VAL, change)
        data = coco(root)
        listed = [f"{VAL}: annotation {50 + n} {reason}" for n, (_, reason) in enumerate(faults)]
        assert data.bad_boxes == listed
        with caplog.at_level("INFO"):
            data.setup()
        assert "left out 6 boxes:\n  " + "\n  ".join(listed) in caplog.text
        assert data.splits["val"][0]["boxes"].tolist() == [[1, 1, 6, 6]]
        with pytest.raises(DataError) as error:
            coco(root, on_bad_box="raise")
        assert str(error.value) == f"6 boxes in {root} cannot be used:\n" + "\n".join(listed)

    def test_a_message_lists_twenty(self, tmp_path):
        def change(found):
            bad = {"image_id": 100, "category_id": 3, "bbox": [1, 1, 0, 0]}
            found["annotations"] = [bad | {"id": n} for n in range(25)]

        edit(make_coco(tmp_path) / VAL, change)
        with pytest.raises(DataError) as error:
            coco(tmp_path, on_bad_box="raise")
        lines = str(error.value).splitlines()
        assert len(lines) == 22
        assert lines[-1] == "and 5 more, all in the data module's bad_boxes"
        assert len(coco(tmp_path).bad_boxes) == 25

    def test_evaluation_alone(self, tmp_path):
        data = coco(make_coco(tmp_path), train_file=None, test_file=VAL, test_images="val2017")
        data.setup()
        assert sorted(data.splits) == ["test", "val"]
        with pytest.raises(DataError, match="train split; it has val, test"):
            data.train_dataloader()
        other = coco(tmp_path)
        other.setup()
        with pytest.raises(DataError, match="test split; give test_file and test_images, or run validate"):
            other.test_dataloader()

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"file of annotations.*instances_train2017.json"):
            coco(tmp_path)
        make_coco(tmp_path)
        with pytest.raises(ValueError, match=r"test_file 'a\.json'.*test_images None"):
            coco(tmp_path, test_file="a.json")
        with pytest.raises(DataError, match=r"folder.*elsewhere.*annotations/inst"):
            coco(tmp_path, val_images="elsewhere")
        good = (tmp_path / VAL).read_text()
        for change, message in (
            (lambda found: found["categories"].pop(), None),
            (lambda found: found["images"].clear(), "has 0 images and 3 categories"),
            (lambda found: found["categories"].clear(), "has 3 images and 0 categories"),
            (
                lambda found: found["categories"][1].update(name="disc"),
                f"calls category 5 'disc', the first file {Shapes.class_names[1]!r}; the splits need the same",
            ),
        ):
            edit(tmp_path / VAL, change)
            if message is None:  # a file may lack categories that it has no boxes of
                assert all("names category 9" in fault for fault in coco(tmp_path).bad_boxes)
            else:
                with pytest.raises(DataError) as error:
                    coco(tmp_path)
                assert str(tmp_path / VAL) in str(error.value)
                assert message in str(error.value)
            (tmp_path / VAL).write_text(good)
        (tmp_path / "val2017" / f"{1:012d}.png").unlink()
        with pytest.raises(DataError, match=r"val2017.json.*1 images.*0001.png"):
            coco(tmp_path)
        (tmp_path / VAL).write_text(good[:-5])
        with pytest.raises(DataError, match=r"val2017.json is not JSON"):
            coco(tmp_path)


def _areas(boxes):
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()


def yolo(root, **arguments):
    return YOLOData(str(root), num_workers=0, **arguments)


class TestYOLOData:
    def test_feature(self, tmp_path):
        data = yolo(make_yolo(tmp_path, 3, (60, 80)))
        data.setup()
        assert data.class_names == Shapes.class_names
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 3}
        for number, sample in enumerate(data.splits["val"]):
            scene = Shapes(3, (60, 80))[number]
            torch.testing.assert_close(sample["boxes"], scene["boxes"], atol=1e-3, rtol=0)
            assert torch.equal(sample["box_label"], scene["box_label"])
            assert sample["meta"]["box_area"] == pytest.approx(_areas(scene["boxes"]), rel=1e-3)
            assert not sample["box_ignore"].any()
        assert data.bad_boxes == []

    def test_images_without_labels_stay(self, tmp_path):
        make_yolo(tmp_path, 3)
        (tmp_path / "labels" / "val" / "0.txt").unlink()
        (tmp_path / "labels" / "val" / "1.txt").write_text("\n")
        data = yolo(tmp_path)
        data.setup()
        assert [len(sample["boxes"]) > 0 for sample in data.splits["val"]] == [False, False, True]

    @pytest.mark.parametrize(
        "text",
        [
            "names: [circle, square, triangle]",
            "names: {0: circle, 1: square, 2: triangle}",
            "names: {2: triangle, 0: circle, 1: square}\nnc: 3",
            "names: {'2': triangle, \"0\": circle, 1: square}\nnc: '3'",
            "\ufeffTrain: images/train\nvalid: images/val\ntest: not/here\nnames: [circle, square, triangle]",
            "path: .\ntrain: images/train\nval: images/val\nnames: [circle, square, triangle]",
            "path: {root}\ntrain: images/train\nval: [images/val]\nnames: [circle, square, triangle]",
            "path: /not/here/any/more\ntrain: images/train\nval: images/val\nnames: [circle, square, triangle]",
            "train: ../images/train\nval: ../images/val\ntest: null\nnames: [circle, square, triangle]",
            "train: lists/train.txt\nval: [lists/val.txt]\nnames: [circle, square, triangle]",
        ],
    )
    def test_forms_of_the_file(self, tmp_path, text):
        root = make_yolo(tmp_path / "data", 3)
        (root / "lists").mkdir()
        for split in ("train", "val"):
            lines = [f"../images/{split}/{n}.png\n" for n in range(3)]
            (root / "lists" / f"{split}.txt").write_text("".join(lines) + "\n")
        (root / "data.yaml").write_text(text.replace("{root}", str(root)), encoding="utf-8")
        data = yolo(root)
        data.setup()
        assert data.class_names == Shapes.class_names
        for split in ("train", "val"):
            assert [len(sample["boxes"]) > 0 for sample in data.splits[split]] == [True] * 3

    def test_several_folders_and_a_file_of_another_name(self, tmp_path):
        root = make_yolo(tmp_path / "data", 2)
        (root / "my.json").write_text(
            json.dumps(
                {"train": ["images/train", "images/val"], "val": "images/val", "test": "images/val", "names": ["a"] * 1}
            )
        )
        data = yolo(root, file="my.json", class_names=Shapes.class_names)
        data.setup()
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
        assert data.class_names == Shapes.class_names

    def test_names_without_a_file(self, tmp_path):
        make_yolo(tmp_path, 2)
        (tmp_path / "data.yaml").unlink()
        with pytest.raises(DataError, match=r"give class_names \(--data.class_names\)"):
            yolo(tmp_path)
        assert yolo(tmp_path, class_names=["a", "b", "c"]).class_names == ("a", "b", "c")

    def test_outlines(self, tmp_path):
        make_yolo(tmp_path, 1, (50, 100))
        (tmp_path / "labels" / "val" / "0.txt").write_text("1 0.1 0.2 0.6 0.3 0.3 0.9\n")
        data = yolo(tmp_path)
        data.setup()
        torch.testing.assert_close(data.splits["val"][0]["boxes"], torch.tensor([[10.0, 10, 60, 45]]))

    def test_keypoints(self, tmp_path):
        """The file's kpt_shape, or the argument's, tells keypoints from outlines."""
        make_yolo(tmp_path, 1, (50, 100))
        (tmp_path / "labels" / "val" / "0.txt").write_text("0 0.5 0.5 0.4 0.6" + " 0.45 0.5" * 12)
        expected = torch.tensor([[30.0, 10, 70, 40]])
        data = yolo(tmp_path, kpt_shape=(12, 2))
        data.setup()
        torch.testing.assert_close(data.splits["val"][0]["boxes"], expected)
        (tmp_path / "data.yaml").write_text("names: [a, b, c]\nkpt_shape: [12, 2]")
        data = yolo(tmp_path)
        data.setup()
        torch.testing.assert_close(data.splits["val"][0]["boxes"], expected)

    def test_names_as_they_are_written(self, tmp_path):
        make_yolo(tmp_path, 1)
        (tmp_path / "data.yaml").write_text("names: [yes, no, 010]")
        assert yolo(tmp_path).class_names == ("yes", "no", "010")

    def test_a_name_that_is_given_twice(self, tmp_path):
        with pytest.raises(ValueError, match="'a' twice"):
            yolo(make_yolo(tmp_path, 1), class_names=["a", "b", "a"])

    def test_test_images_that_are_missing(self, tmp_path, caplog):
        make_yolo(tmp_path, 1)
        places = "train: images/train\nval: images/val\ntest: images/test\n"
        (tmp_path / "data.yaml").write_text(places + "names: [circle, square, triangle]")
        data = yolo(tmp_path)
        with caplog.at_level("INFO"):
            data.setup("fit")
        assert "test is left out: no such folder" in caplog.text
        with pytest.raises(DataError, match="images/test"):
            data.test_dataloader()

    @pytest.mark.parametrize("folders", [("Training", "valid"), ("TRAIN", "Validation")])
    def test_other_names_of_splits(self, tmp_path, folders):
        make_yolo(tmp_path, 1)
        for kind in ("images", "labels"):
            for old, new in zip(("train", "val"), folders, strict=True):
                (tmp_path / kind / old).rename(tmp_path / kind / new)
        (tmp_path / "labels" / folders[1] / "0.txt").rename(tmp_path / "labels" / folders[1] / "0.TXT")
        data = yolo(tmp_path)
        data.setup()
        assert [len(data.splits[name][0]["boxes"]) > 0 for name in ("train", "val")] == [True, True]

    def test_a_split_that_keeps_no_box(self, tmp_path):
        """It is told why all were left out; evaluation of another split goes on."""
        make_yolo(tmp_path, 1)
        (tmp_path / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.4 0.6" + " 0.45 0.5 2" * 5)
        data = yolo(tmp_path)
        with pytest.raises(DataError, match=r"no box for train: all 1 .*0.txt: line 1 has 20 numbers.*kpt_shape"):
            data.setup("fit")
        data.setup("validate")
        (tmp_path / "labels" / "val" / "0.txt").write_text("")
        with pytest.raises(DataError, match="no box for val: no object is annotated in its 1 images"):
            yolo(tmp_path).setup("validate")

    def test_bad_boxes_are_listed(self, tmp_path):
        make_yolo(tmp_path, 1)
        lines = [
            ("0 0.5 0.5 0.2 0.2", None),
            ("0 0.5 0.5 0.2", "has 4 numbers; a box has 5, an outline an odd number from 7"),
            ("3 0.5 0.5 0.2 0.2", "is of the unknown class 3"),
            ("-1 0.5 0.5 0.2 0.2", "is of the unknown class -1"),
            ("cat 0.5 0.5 0.2 0.2", "is of the unknown class cat"),
            ("0 0.5 0.5 0 0.2", "has no area"),
            ("0 1.5 0.5 0.2 0.2", "lies outside the image"),
            ("0 50 50 20 20", "has numbers above 1; they are shares of the image's sides, not pixels"),
            ("0 0.5 half 0.2 0.2", "is incomplete"),
            ("0 0.9 0.5 0.4 0.2", None),
        ]
        (tmp_path / "labels" / "val" / "0.txt").write_text("".join(line + "\n" for line, _ in lines))
        data = yolo(tmp_path)
        listed = [f"labels/val/0.txt: line {n} {fault}" for n, (_, fault) in enumerate(lines, 1) if fault]
        assert data.bad_boxes == listed
        assert data.clipped_boxes == 1
        data.setup()
        assert len(data.splits["val"][0]["boxes"]) == 2
        with pytest.raises(DataError) as error:
            yolo(tmp_path, on_bad_box="raise")
        assert str(error.value) == f"8 boxes in {tmp_path} cannot be used:\n" + "\n".join(listed)

    def test_names_that_are_numbers(self, tmp_path):
        """Class 2 of two is unknown, though one of them is called 2."""
        make_yolo(tmp_path, 1)
        (tmp_path / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (tmp_path / "labels" / "val" / "0.txt").write_text("2 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
        data = yolo(tmp_path, class_names=["1", "2"])
        data.setup()
        assert data.bad_boxes == ["labels/val/0.txt: line 1 is of the unknown class 2"]
        assert data.splits["val"][0]["box_label"].tolist() == [1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[a, b]", "data.yaml is not a mapping with names, train and val"),
            ("names: 3", "data.yaml: names is 3, not a list of names"),
            ("names: [a, a, b]", "data.yaml: a name occurs twice among a, a, b"),
            ("names: {1: a, 2: b}", "data.yaml: the classes have the numbers 1, 2, not those from 0"),
            ("names: [a]\nval: images/train", "data.yaml names no train images"),
            (
                "names: [a]\ntrain: {}\nval: images/val\ntraining: {a: 1}",
                "data.yaml: training is {{'a': 1}}, not a folder",
            ),
            ("names: [a, b]\nnc: 3", "data.yaml: nc is 3, but there are 2 names, a, b"),
            ("names: {0: a}\nnc: '2'", "data.yaml: nc is '2', but there are 1 names"),
            ("names: [a]\nval: images/val\nvalid: images/train\ntrain: images/train", "data.yaml has val and valid"),
            ("names: [a, null]", "data.yaml: names is ['a', None], not a list of names"),
            ("names: [a]\nkpt_shape: [17]", "data.yaml: kpt_shape is [17]; give"),
            ("names: [a]\nkpt_shape: [17, 4]", "data.yaml: kpt_shape is [17, 4]; keypoints"),
            ("names: [a]\ntrain: images/train\nval: images/dev", "no such folder: {root}/images/dev"),
            ("names: [a]\ntrain: images/train\nval: empty.txt", "empty.txt names no image"),
            ("names: [a]\ntrain: images/train\nval: none.txt", "no such list: {root}/none.txt"),
            (
                "names: [a]\ntrain: images/train\nval: gone.txt",
                "gone.txt names 1 images that are missing, such as {root}/images/val/9.png",
            ),
            ("names: [a", "data.yaml"),
        ],
    )
    def test_exception_of_the_file(self, tmp_path, text, message):
        make_yolo(tmp_path, 1)
        (tmp_path / "data.yaml").write_text(text)
        (tmp_path / "empty.txt").write_text("\n")
        (tmp_path / "gone.txt").write_text("images/val/9.png\nimages/val/0.png\n")
        with pytest.raises(DataError) as error:
            yolo(tmp_path)
        assert message.format(root=tmp_path) in str(error.value)

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere; root \(--data.root\) has images and labels"):
            yolo(tmp_path / "nowhere")
        make_yolo(tmp_path, 1)
        with pytest.raises(DataError, match=r"file of classes.*other.yaml"):
            yolo(tmp_path, file="other.yaml")
        (tmp_path / "labels" / "val" / "0.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(DataError, match=r"labels.*val/0.txt"):
            yolo(tmp_path)
        for split in ("train", "val"):
            (tmp_path / "labels" / split / "0.txt").unlink()
        with pytest.raises(DataError) as error:
            yolo(tmp_path)
        first = tmp_path / "images" / "train" / "0.png"
        assert f"has labels; those of {first} would be in {tmp_path / 'labels' / 'train' / '0.txt'}" in str(error.value)
