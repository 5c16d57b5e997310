"""Synthetic shapes as files, in the layouts that data modules read, and as a data module."""

from pathlib import Path

import torch
from PIL import Image

from kornia_mvit.data.datamodules.base import ImageData
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.visualize import label_image


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
