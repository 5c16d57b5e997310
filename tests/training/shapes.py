"""Synthetic shapes as files, in the layouts that data modules read, and as a data module."""

import json
from pathlib import Path

import torch
from PIL import Image

from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.images import label_image
from kornia_mvit.training.datamodules.base import ImageData


def write(sample: dict, image: Path, label: Path) -> None:
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample["image"].permute(1, 2, 0).contiguous().numpy()).save(image)
    label_image(sample["mask"]).save(label)


def make_pairs(folder: Path, count: int = 4, size: tuple[int, int] = (64, 64), **arguments) -> Path:
    """The same images in train and val, with their label images."""
    for number, sample in enumerate(Shapes(count, size, **arguments)[i] for i in range(count)):
        for split in ("train", "val"):
            write(sample, folder / split / f"{number}.png", folder / f"{split}_labels" / f"{number}.png")
    return folder


def make_voc_masks(folder: Path) -> Path:
    """Shapes in the layout of VOC 2012."""
    data = Shapes(2, (40, 50))
    for number in range(2):
        write(data[number], folder / "JPEGImages" / f"{number}.png", folder / "SegmentationClass" / f"{number}.png")
    for name in ("train", "val"):
        lists = folder / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{name}.txt").write_text("0\n1\n")
    return folder


class ShapeData(ImageData):
    """Shapes of several sizes, whose outermost rows are to be ignored; nothing is read from files."""

    def __init__(self, sizes=((40, 40), (40, 40), (48, 56), (40, 40)), batch_size: int = 4, ignore_index: int = 255):
        super().__init__(batch_size, 0, None)
        self.sizes, self.ignore_index = sizes, ignore_index

    @property
    def class_names(self):
        return Shapes.mask_names

    def setup(self, stage=None):
        samples = []
        for number, size in enumerate(self.sizes):
            sample = Shapes(1, size, seed=number)[0]
            mask = sample["mask"].clone()
            mask[0] = self.ignore_index
            samples.append({"image": sample["image"], "mask": mask, "meta": {"id": number}})
        self.splits = {"train": samples, "val": samples, "test": samples[:3]}


def all_ignored(batch):
    return batch.replace(mask=torch.full_like(batch.mask, 255))


def make_yolo(folder: Path, count: int = 4, size: tuple[int, int] = (96, 96), **arguments) -> Path:
    """The same images in train and val, with their boxes as YOLO has them."""
    data = Shapes(count, size, **arguments)
    for number in range(count):
        sample = data[number]
        scale = torch.tensor([size[1], size[0]] * 2)
        rows = []
        for label, box in zip(sample["box_label"].tolist(), sample["boxes"] / scale, strict=True):
            left, top, right, bottom = box.tolist()
            rows.append(f"{label} {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}")
        for split in ("train", "val"):
            image, label = folder / "images" / split / f"{number}.png", folder / "labels" / split / f"{number}.txt"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample["image"].permute(1, 2, 0).contiguous().numpy()).save(image)
            label.write_text("\n".join(rows))
    (folder / "data.yaml").write_text(f"names: {list(Shapes.class_names)}\n")
    return folder


def make_coco(folder: Path) -> Path:
    """Shapes as COCO 2017 lays them out, one of them a crowd; categories are numbered 3, 5 and 9."""
    data = Shapes(3, (60, 80))
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(3):
            sample = data[number]
            path = folder / f"{split}2017" / f"{number:012d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample["image"].permute(1, 2, 0).contiguous().numpy()).save(path)
            images.append({"id": 100 + number, "file_name": path.name, "height": 60, "width": 80})
            for box, label in zip(sample["boxes"].tolist(), sample["box_label"].tolist(), strict=True):
                left, top, right, bottom = box
                sides = [left, top, right - left, bottom - top]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 + number,
                        "category_id": (3, 5, 9)[label],
                        "bbox": sides,
                        "area": sides[2] * sides[3] / 2,
                        "iscrowd": int(len(annotations) == 1),
                    }
                )
        categories = [{"id": k, "name": name} for k, name in zip((3, 5, 9), Shapes.class_names, strict=True)]
        file = folder / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


def make_voc_boxes(folder: Path) -> Path:
    """Shapes in the layout of VOC, train and val the same."""
    data = Shapes(2, (60, 80))
    for number in range(2):
        sample = data[number]
        path = folder / "JPEGImages" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample["image"].permute(1, 2, 0).contiguous().numpy()).save(path)
        objects = ""
        for box, label in zip(sample["boxes"].int().tolist(), sample["box_label"].tolist(), strict=True):
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True)
            inner = "".join(f"<{name}>{value}</{name}>" for name, value in sides)
            objects += f"<object><name>{Shapes.class_names[label]}</name><bndbox>{inner}</bndbox></object>"
        xml = folder / "Annotations" / f"{number}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(f"<annotation><size><width>80</width><height>60</height></size>{objects}</annotation>")
    for name in ("train", "val"):
        lists = folder / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{name}.txt").write_text("0\n1\n")
    return folder


class BoxShapeData(ImageData):
    """Shapes of several sizes with boxes, one of them to be ignored and one image without any; read from nowhere."""

    def __init__(self, sizes=((64, 64), (64, 64), (48, 80), (64, 64)), batch_size: int = 4):
        super().__init__(batch_size, 0, None)
        self.sizes = sizes

    @property
    def class_names(self):
        return Shapes.class_names

    def setup(self, stage=None):
        samples = []
        for number, size in enumerate(self.sizes):
            sample = Shapes(1, size, seed=number)[0]
            some = slice(0, 0) if number == 1 else slice(None)
            boxes = sample["boxes"][some]
            ignore = torch.zeros(len(boxes), dtype=torch.bool)
            ignore[: number // 3] = True
            samples.append(
                {
                    "image": sample["image"],
                    "boxes": boxes,
                    "box_label": sample["box_label"][some],
                    "box_ignore": ignore,
                    "meta": {"id": number},
                }
            )
        self.splits = {"train": samples, "val": samples, "test": samples[:3]}
