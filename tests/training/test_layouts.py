"""What is told from a dataset's layout."""

import json

import pytest
from PIL import Image

from kornia_mvit.data.reading import DataError
from kornia_mvit.training.layouts import find_layout


def fill(root, *files):
    """Write files by their suffix: images, COCO's annotations, or text."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("RGB", (4, 4)).save(path)
        elif path.suffix == ".json":
            path.write_text(json.dumps({"images": [{"file_name": "a.png"}], "annotations": [], "categories": []}))
        else:
            path.write_text(
                "names: [cat]\ntrain: images/train\n" if path.suffix in (".yaml", ".yml") else "0 .5 .5 1 1"
            )
    return root


CLASSES = ("rose/a.png", "tulip/a.png")
LAYOUTS = {
    "classes": (CLASSES, "classification", "FolderData", "class folders (rose, tulip)"),
    "splits": (
        [f"{split}/{file}" for split in ("train", "val") for file in CLASSES],
        "classification",
        "FolderData",
        "class folders in train and val (rose, tulip)",
    ),
    "classes called as parts": (("labels/a.png", "boxes/a.png"), "classification", "FolderData", "(boxes, labels)"),
    "masks": (("train/a.png", "train_labels/a.png"), "segmentation", "SegmentationFolderData", "train, train_labels"),
    "masks below": (
        ("images/train/a.png", "masks/train/a.png"),
        "segmentation",
        "SegmentationFolderData",
        "images/train, masks/train",
    ),
    "masks beside": (("a.png", "a_mask.png"), "segmentation", "SegmentationFolderData", "NAME_mask"),
    "VOC masks": (("JPEGImages/a.png", "SegmentationClass/a.png"), "segmentation", "VOCSegmentationData", "VOC"),
    "VOC": (("JPEGImages/a.png", "Annotations/a.xml", "SegmentationClass/a.png"), "detection", "VOCData", "VOC"),
    "XML beside": (("a.png", "a.xml"), "detection", "VOCData", ".xml"),
    "XML in a folder": (("images/a.png", "annotations/a.xml"), "detection", "VOCData", ".xml"),
    "YOLO": (("images/train/a.png", "labels/train/a.txt"), "detection", "YOLOData", "images and labels"),
    "YOLO described": (("data.yaml", "train/images/a.png", "train/labels/a.txt"), "detection", "YOLOData", "data.yaml"),
    "YOLO beside": (("a.png", "a.txt"), "detection", "YOLOData", ".txt"),
    "COCO": (("annotations/instances_train2017.json", "train2017/a.png"), "detection", "COCOData", "COCO"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_each_layout(case, tmp_path):
    files, task, data, found = LAYOUTS[case]
    layout = find_layout(fill(tmp_path, *files))
    assert (layout.task, layout.data) == (task, data)
    assert found in layout.found
    assert layout.options["root"] == str(tmp_path)
    assert layout.count_images(10) > 0


def test_task_decides_between_two(tmp_path):
    files, *_ = LAYOUTS["VOC"]
    assert find_layout(fill(tmp_path, *files), "segmentation").data == "VOCSegmentationData"


def test_files(tmp_path):
    fill(tmp_path, "labels.csv", "my.yml", "images/a.png")
    assert find_layout(tmp_path / "labels.csv").options == {"train": str(tmp_path / "labels.csv")}
    assert find_layout(tmp_path / "my.yml").options == {"root": str(tmp_path), "file": "my.yml"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            [
                "annotations/instances_train2017.json",
                "annotations/captions_train2017.json",
                "train2017/a.png",
                "annotations/instances_val2017.json",
                "val2017/a.png",
            ],
            {"train_file": "annotations/instances_train2017.json", "train_images": "train2017"},
        ),
        (
            ("train/_annotations.coco.json", "train/a.png", "valid/_annotations.coco.json", "valid/a.png"),
            {"train_images": "train", "val_file": "valid/_annotations.coco.json", "val_images": "valid"},
        ),
        (
            ("train.json", "val.json", "images/train/b.png", "images/a.png"),
            {"train_file": "train.json", "train_images": "images", "val_images": "images"},
        ),
    ],
)
def test_coco_files_and_their_images(files, expected, tmp_path):
    options = find_layout(fill(tmp_path, *files)).options
    assert {name: options[name] for name in expected} == expected


def test_count_leaves_out_what_is_split_off(tmp_path):
    fill(tmp_path, *(f"{name}/{n}.png" for name in ("rose", "tulip") for n in range(5)))
    layout = find_layout(tmp_path)
    assert layout.count_images(100) == 8
    assert layout.count_images(5) == 5  # many images are not taken for few


@pytest.mark.parametrize(
    ("files", "task", "told"),
    [
        (("a.png", "b.png"), None, "2 .png"),
        (("only/a.png",), None, "folders \\(only\\)"),
        (("inner/rose/a.png", "inner/tulip/a.png"), "detection", "inner"),
        (CLASSES, "segmentation", "class folders \\(rose, tulip\\), for classification.*train_labels"),
        (("notes.txt",), None, "1 .txt"),
        (("train_a.json", "train_b.json"), None, "train_a.json, train_b.json"),
    ],
)
def test_other_layouts_are_named(files, task, told, tmp_path):
    with pytest.raises(DataError, match=told):
        find_layout(fill(tmp_path, *files), task)


def test_exception(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        find_layout(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'regression'.*'detection'"):
        find_layout(tmp_path, "regression")
    with pytest.raises(DataError, match=r"pass \S*photos"):
        find_layout(fill(tmp_path, "photos/rose/a.png", "photos/tulip/a.png"))
