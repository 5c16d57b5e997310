"""Layouts of folders that data modules find by themselves, and the val split that they split off."""

import json

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from kornia_mvit.data.masks import mask_values
from kornia_mvit.data.reading import DataError
from kornia_mvit.data.splits import split_off
from kornia_mvit.training import datamodules
from kornia_mvit.training.datamodules import (
    COCOData,
    FolderData,
    SegmentationFolderData,
    VOCData,
    VOCSegmentationData,
    YOLOData,
)

OBJECT = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object>"
BINARY = np.array([[0, 0, 255], [0, 255, 255]], dtype=np.uint8)


def save(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8))).save(path)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files_of(data):
    return {split: [str(path.relative_to(data.root)) for path in part.files] for split, part in data.splits.items()}


def built(kind, root, **arguments):
    data = kind(str(root), num_workers=0, **arguments)
    data.setup()
    return data


# ------------------------------------------------------------------------------------- a val split that is split off


def make_voc(root, count=10):
    for i in range(count):
        save(root / "JPEGImages" / f"{i}.png")
        write(root / "Annotations" / f"{i}.xml", f"<annotation>{OBJECT.format('cat') if i % 2 else ''}</annotation>")
    write(root / "ImageSets/Main/train.txt", "".join(f"{i}\n" for i in range(count)))


def make_yolo(root, count=10):
    for i in range(count):
        save(root / "images/train" / f"{i}.png")
        write(root / "labels/train" / f"{i}.txt", "0 0.5 0.5 0.5 0.5\n" if i % 2 else "")
    write(root / "data.yml", "names: [cat]\ntrain: images/train\n")


def make_coco(root, count=10):
    images = [{"id": i, "file_name": f"{save(root / 'train2017' / f'{i}.png').name}"} for i in range(count)]
    boxes = [{"id": i, "image_id": i, "category_id": 3, "bbox": [0, 0, 4, 4]} for i in range(1, count, 2)]
    data = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}
    write(root / "annotations/instances_train2017.json", json.dumps(data))


def make_masks(root, count=10):
    for i in range(count):
        save(root / "train" / f"{i}.jpg")
        save(root / "train_labels" / f"{i}.png", Image.new("L", (8, 8), i % 2))


def make_voc_masks(root, count=10):
    for i in range(count):
        save(root / "JPEGImages" / f"{i}.png")
        save(root / "SegmentationClass" / f"{i}.png", Image.new("L", (8, 8), i % 2))
    write(root / "ImageSets/Segmentation/train.txt", "".join(f"{i}\n" for i in range(count)))


def make_classes(root, count=5):
    for i in range(count):
        save(root / "cat" / f"{i}.png")
        save(root / "dog" / f"{i}.png")


MAKERS = [
    (FolderData, make_classes, {"storage_size": 8}),
    (VOCData, make_voc, {}),
    (YOLOData, make_yolo, {}),
    (COCOData, make_coco, {}),
    (SegmentationFolderData, make_masks, {"num_classes": 2}),
    (VOCSegmentationData, make_voc_masks, {}),
]


class TestSplitOff:
    @pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0), (2, 1), (3, 1), (10, 2), (100, 20)])
    def test_cardinality(self, count, expected):
        kept, taken = split_off(count, 0.2, 0)
        assert len(taken) == expected
        assert sorted(kept + taken) == list(range(count))

    @pytest.mark.parametrize(("kind", "make", "arguments"), MAKERS)
    def test_feature(self, kind, make, arguments, tmp_path, caplog):
        """A fifth, the same again, no image in both; of another seed another one; and it is told."""
        make(tmp_path)
        with caplog.at_level("INFO"):
            parts = files_of(built(kind, tmp_path, **arguments))
        assert "2 of the train images are split off" in caplog.text
        assert (len(parts["train"]), len(parts["val"])) == (8, 2)
        assert len({*parts["train"], *parts["val"]}) == 10
        assert files_of(built(kind, tmp_path, **arguments)) == parts
        others = [files_of(built(kind, tmp_path, seed=seed, **arguments))["val"] for seed in range(1, 5)]
        assert any(other != parts["val"] for other in others)
        half = files_of(built(kind, tmp_path, val_fraction=0.4, **arguments))
        assert (len(half["train"]), len(half["val"])) == (6, 4)

    @pytest.mark.parametrize(("kind", "make", "arguments"), MAKERS)
    def test_all_images_may_be_for_evaluation(self, kind, make, arguments, tmp_path):
        make(tmp_path)
        data = built(kind, tmp_path, val_fraction=1, **arguments)
        assert {split: len(files) for split, files in files_of(data).items()} == {"train": 0, "val": 10}
        assert sum(len(batch) for batch in data.val_dataloader()) == 10
        with pytest.raises(DataError, match="val_fraction 1 leaves no image to train on"):
            data.train_dataloader()

    @pytest.mark.parametrize(("kind", "make", "arguments"), MAKERS[1:4])
    def test_images_with_and_without_boxes(self, kind, make, arguments, tmp_path):
        """Both are in val by their share, with the boxes and the numbers of their images."""
        make(tmp_path)
        data = built(kind, tmp_path, **arguments)
        for split, count in (("train", 4), ("val", 1)):
            assert data.count_boxes(split) == {"cat": count}
            for path, sample in zip(data.splits[split].files, data.splits[split], strict=False):
                assert len(sample["boxes"]) == int(path.stem) % 2
        if kind is COCOData:
            ids = [int(path.stem) for path in data.splits["val"].files]
            assert [sample["meta"]["image_id"] for sample in data.splits["val"]] == ids

    @pytest.mark.parametrize(("kind", "make", "arguments"), MAKERS)
    def test_exception(self, kind, make, arguments, tmp_path):
        make(tmp_path, 1)
        if kind is YOLOData:
            write(tmp_path / "labels/train/0.txt", "0 0.5 0.5 0.5 0.5")
        if kind in (VOCData, COCOData):
            arguments = {**arguments} | ({"class_names": ["cat"]} if kind is VOCData else {})
        with pytest.raises(DataError, match=r"1 image|one image"):
            kind(str(tmp_path), **arguments)
        with pytest.raises(ValueError, match=r"val_fraction 1\.5"):
            kind(str(tmp_path), val_fraction=1.5, **arguments)

    def test_a_list_that_is_asked_for_is_not_split_off(self, tmp_path):
        make_voc(tmp_path)
        with pytest.raises(DataError, match=r"dev\.txt"):
            VOCData(str(tmp_path), val_list="dev")
        make_coco(tmp_path)
        with pytest.raises(DataError, match=r"dev\.json"):
            COCOData(str(tmp_path), val_file="dev.json")


# ------------------------------------------------------------------------------------------------------------ boxes


class TestXMLFiles:
    @pytest.mark.parametrize(
        ("image", "label"),
        [("{}.jpg", "{}.xml"), ("images/{}.jpg", "annotations/{}.xml"), ("JPEGImages/{}.png", "Annotations/{}.xml")],
    )
    def test_without_lists(self, image, label, tmp_path, caplog):
        for i in range(6):
            save(tmp_path / image.format(i))
            if i < 5:
                write(tmp_path / label.format(i), f"<annotation>{OBJECT.format('cat')}</annotation>")
        with caplog.at_level("INFO"):
            data = built(VOCData, tmp_path)
        assert "left out 1 of the 6 images" in caplog.text
        assert {split: len(part) for split, part in data.splits.items()} == {"train": 4, "val": 1}
        assert data.class_names == ("cat",)
        assert data.splits["val"][0]["boxes"].tolist() == [[0, 0, 4, 4]]

    def test_folders_of_splits(self, tmp_path):
        for split in ("train", "valid", "test"):
            save(tmp_path / split / "a.jpg")
            write(tmp_path / split / "a.xml", f"<annotation>{OBJECT.format('cat')}</annotation>")
        assert files_of(built(VOCData, tmp_path)) == {
            s: [f"{s.replace('val', 'valid')}/a.jpg"] for s in ("train", "val", "test")
        }

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"train\.txt.*no image"):
            VOCData(str(tmp_path))
        save(tmp_path / "a.jpg")
        with pytest.raises(DataError, match=r"a\.jpg would be .*a\.xml"):
            VOCData(str(tmp_path))
        write(tmp_path / "a.xml", f"<annotation>{OBJECT.format('cat')}</annotation>")
        with pytest.raises(DataError, match=r"mine\.txt"):
            VOCData(str(tmp_path), train_list="mine")


class TestLabelImg:
    """Text files as LabelImg writes them: beside the images, or in labels, with the names in ``classes.txt``."""

    @pytest.mark.parametrize(
        ("image", "label", "names"),
        [
            ("{}.jpg", "{}.txt", "classes.txt"),
            ("images/{}.jpg", "labels/{}.txt", "classes.txt"),
            ("images/{}.jpg", "labels/{}.txt", "labels/classes.txt"),
            ("train/images/{}.jpg", "train/labels/{}.txt", "train/labels/classes.txt"),
            ("train/{}.jpg", "train/{}.txt", "train/classes.txt"),
        ],
    )
    def test_feature(self, image, label, names, tmp_path, caplog):
        for i in range(5):
            save(tmp_path / image.format(i))
            if i:
                write(tmp_path / label.format(i), "1 0.5 0.5 0.5 0.5")
        write(tmp_path / names, "cat\ndog\n\n")
        with caplog.at_level("INFO"):
            data = built(YOLOData, tmp_path)
        assert "1 of the 5 images have no label file" in caplog.text
        assert data.class_names == ("cat", "dog")
        assert {split: len(part) for split, part in data.splits.items()} == {"train": 4, "val": 1}
        assert data.count_boxes("train")["dog"] + data.count_boxes("val")["dog"] == 4

    def test_exception(self, tmp_path):
        make_yolo(tmp_path)
        (tmp_path / "data.yml").unlink()
        for text, message in (("cat\n\ndog", "classes.txt"), ("cat\ncat", "cat")):
            write(tmp_path / "classes.txt", text)
            with pytest.raises(DataError, match=message):
                YOLOData(str(tmp_path))
        write(tmp_path / "classes.txt", "cat\ndog")
        write(tmp_path / "labels/classes.txt", "dog\ncat")
        with pytest.raises(DataError, match=r"differ; .*class_names"):
            YOLOData(str(tmp_path))
        assert YOLOData(str(tmp_path), class_names=["a"]).class_names == ("a",)

    def test_data_yml_is_read(self, tmp_path):
        make_yolo(tmp_path)
        write(tmp_path / "classes.txt", "other")
        assert YOLOData(str(tmp_path)).class_names == ("cat",)


# ------------------------------------------------------------------------------------------------------ label images


class TestLabelImages:
    @pytest.mark.parametrize(
        ("image", "label"),
        [
            ("train/{}.jpg", "train_labels/{}.png"),
            ("train/{}.jpg", "trainannot/{}.png"),
            ("train/{}.jpg", "train/{}_mask.png"),
            ("images/{}.jpg", "labels/{}.png"),
            ("images/{}.jpg", "masks/{}_mask.png"),
            ("images/train/{}.jpg", "labels/train/{}.png"),
            ("train/images/{}.jpg", "train/masks/{}-label.png"),
            ("{}.jpg", "{}_mask.png"),
            ("{}.png", "{}_L.png"),
            ("{}.jpg", "masks/{}.png"),
        ],
    )
    def test_layouts(self, image, label, tmp_path, caplog):
        for i in range(5):
            save(tmp_path / image.format(f"p{i}"))
            save(tmp_path / label.format(f"p{i}"), Image.new("L", (8, 8), i % 2))
        with caplog.at_level("INFO"):
            data = built(SegmentationFolderData, tmp_path, num_classes=2)
        assert {split: len(part) for split, part in data.splits.items()} == {"train": 4, "val": 1}
        for split in ("train", "val"):
            for path, sample in zip(data.splits[split].files, data.splits[split], strict=False):
                assert sample["mask"].unique().tolist() == [int(path.stem[1:]) % 2]
        other = label.rpartition("/")[2] != "{}.png"
        assert ("have names of their own" in caplog.text) == other

    def test_exception(self, tmp_path):
        save(tmp_path / "a.jpg")
        with pytest.raises(DataError, match=r"no such folder: .*labels.*NAME_mask\.png"):
            SegmentationFolderData(str(tmp_path), num_classes=2)
        save(tmp_path / "a_mask.png", Image.new("L", (8, 8)))
        save(tmp_path / "b.jpg")
        with pytest.raises(DataError, match=r"1 of the 2 images .*such as b\.jpg"):
            SegmentationFolderData(str(tmp_path), num_classes=2)
        save(tmp_path / "a_label.png", Image.new("L", (8, 8)))
        with pytest.raises(DataError, match=r"a_label\.png and .*a_mask\.png"):
            SegmentationFolderData(str(tmp_path), num_classes=2)


def make_binary(root, *arrays, mode="L"):
    for i in range(4):
        save(root / "images" / f"{i}.jpg", Image.new("RGB", (3, 2)))
        image = arrays[min(i, len(arrays) - 1)]
        save(root / "masks" / f"{i}.png", Image.fromarray(image).convert(mode))
    return root


class TestBlackAndWhite:
    @pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
    @pytest.mark.parametrize("arguments", [{}, {"num_classes": 2}, {"class_names": ["rest", "thing"]}])
    def test_white_is_a_class(self, mode, arguments, tmp_path, caplog):
        make_binary(tmp_path, BINARY, np.zeros_like(BINARY), mode=mode)
        with caplog.at_level("INFO"):
            data = built(SegmentationFolderData, tmp_path, **arguments)
        assert data.num_classes == 2
        masks = [sample["mask"] for split in ("train", "val") for sample in data.splits[split]]
        assert torch.stack(masks).sum() == 3
        assert torch.stack(masks).unique().tolist() == [0, 1]
        assert "--data.ignore_label 255" in caplog.text

    @pytest.mark.filterwarnings("ignore:the 1 label images of val")
    def test_another_value_anywhere_and_255_is_ignored(self, tmp_path):
        other = BINARY.copy()
        other[0, 0] = 1
        data = built(SegmentationFolderData, make_binary(tmp_path, BINARY, BINARY, BINARY, other), num_classes=2)
        masks = torch.stack([sample["mask"] for split in ("train", "val") for sample in data.splits[split]])
        assert masks.unique().tolist() == [0, 1, 255]
        assert int((masks == 1).sum()) == 1

    def test_who_says_that_255_is_ignored_is_believed(self, tmp_path):
        make_binary(tmp_path, BINARY)
        data = SegmentationFolderData(str(tmp_path), num_workers=0, num_classes=2, ignore_label=255)
        with pytest.raises(DataError, match="pixels of 255, to ignore"):
            data.setup("fit")
        three = SegmentationFolderData(str(tmp_path), num_workers=0, num_classes=3)
        with pytest.raises(DataError, match="pixels of 255, to ignore"):
            three.setup("fit")

    def test_a_palette_tells_what_255_is(self, tmp_path):
        image = Image.fromarray(BINARY)
        for white, expected in ((255, {0, 255}), (224, {0})):
            image.putpalette([0, 0, 0] * 255 + [white] * 3)
            save(tmp_path / "a.png", image)
            assert mask_values(tmp_path / "a.png") == expected

    def test_classes_are_counted(self, tmp_path, caplog):
        make_binary(tmp_path, np.array([[0, 1, 2], [2, 255, 1]], dtype=np.uint8))
        with caplog.at_level("INFO"):
            assert built(SegmentationFolderData, tmp_path).class_names == ("0", "1", "2")
        assert "0 to 2" in caplog.text

    @pytest.mark.parametrize(
        ("array", "message"),
        [([[0, 3]], "number of classes is missing.* 0, 3"), ([[0, 0]], "number of classes is missing.* 0")],
    )
    def test_exception(self, array, message, tmp_path):
        make_binary(tmp_path, np.array(array, dtype=np.uint8))
        with pytest.raises(ValueError, match=message):
            SegmentationFolderData(str(tmp_path))


@pytest.mark.parametrize("name", datamodules.__all__)
def test_every_argument_has_help(name):
    """Those that are stated and documented once, too."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(datamodules, name), "data")
    lacking = [action.dest for action in parser._actions if action.dest.startswith("data.") and not action.help]
    assert lacking == []
