"""Images with boxes, of Pascal VOC and COCO."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kornia_mvit.data.boxes import Annotation, BoxFiles, BoxTable, build_table, collect_rows
from kornia_mvit.data.formats.coco import CocoFile, read_coco
from kornia_mvit.data.formats.voc import VOCFolder, read_voc
from kornia_mvit.data.reading import DataError, read_size
from kornia_mvit.data.storage import StorageResize
from kornia_mvit.files import printable
from kornia_mvit.parsing import brief, cut, is_file, repeated
from kornia_mvit.training.datamodules.base import STAGES, ImageData, Samples, check_choice
from kornia_mvit.training.lightning_names import rank_zero_info

__all__ = ["BoxData", "COCOData", "VOCData"]

_LISTED = 20  # faults that a message lists


@dataclass
class _Part:
    """The images of a split, with their boxes."""

    files: list[Path]
    table: BoxTable
    image_ids: Sequence[int] | None = None
    bad: Sequence[str] = ()


class BoxData(ImageData):
    """What data modules of images with boxes share.

    Training images are brought to the storage size. Those of other splits keep the file's, at which they are scored,
    unless ``storage_size`` is given; their boxes are scaled with them, and ``original_size`` leads back.

    Attributes:
        bad_boxes: boxes that were left out, each with its file and what is wrong with it.
        clipped_boxes: number of boxes that reached out of their image.
    """

    def __init__(self, root: str, batch_size: int, num_workers: int, storage_size: int | None, on_bad_box: str) -> None:
        super().__init__(batch_size, num_workers, storage_size)
        check_choice("on_bad_box", on_bad_box, ("drop", "raise"))
        self._on_bad_box = on_bad_box
        self.bad_boxes: list[str] = []
        self.clipped_boxes: int = 0
        self.root: Path = Path(root)
        self._place = str(root)
        self._parts: dict[str, _Part] = {}

    def count_boxes(self, split: str) -> dict[str, int]:
        """Return the number of boxes of each class in a split, without those that loss and score leave out."""
        table = self._parts[split].table
        counts = torch.bincount(table.labels[~table.ignore], minlength=self.num_classes)
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def setup(self, stage: str | None = None) -> None:
        """Make the splits, and tell of boxes that were left out or clipped.

        Raises:
            DataError: if a split that is to be used has no box to learn from or to find.
        """
        for split in STAGES.get(str(stage), ("train", "val")):
            self._check_split(split)
        for split, part in self._parts.items():
            if split == "train":
                transform = self.storage_if_told()
            else:
                transform = None if self.storage_size is None else StorageResize(self.storage_size)
            self.splits[split] = BoxFiles(part.files, part.table, transform, image_ids=part.image_ids)
        parts = self._parts.items()
        self._tell(
            self._place, (f"{len(p.files)} images with {len(p.table.labels)} boxes in {split}" for split, p in parts)
        )
        if self.bad_boxes:
            rank_zero_info(f"left out {len(self.bad_boxes)} boxes:\n{_list(self.bad_boxes)}")
        if self.clipped_boxes:
            rank_zero_info(f"clipped {self.clipped_boxes} boxes to their images")

    def _check_split(self, split: str) -> None:
        """Raise a DataError if nothing is left of a split's boxes."""
        if split not in self._parts or not (part := self._parts[split]).files or not part.table.ignore.all():
            return
        if part.bad:
            why = f"all {len(part.bad)} are left out, such as {part.bad[0]}"
        elif len(part.table.ignore):
            why = f"all {len(part.table.ignore)} are difficult or around crowds, which do not count"
        else:
            why = f"no object is annotated in its {len(part.files)} images"
        raise DataError(f"{self._place} has no box for {split}: {printable(why)}")

    def _samples(self, name: str) -> Samples:
        if name not in self.splits:
            raise DataError(f"{self._place} has no {name} split; it has {', '.join(self.splits)}")
        return super()._samples(name)

    def _fill(
        self,
        splits: Mapping[str, Sequence[Path]],
        found: Mapping[Path, Annotation],
        places: Mapping[Path, str],
        *,
        relative: bool = False,
    ) -> None:
        """Make the parts from the objects of all images, each image read once.

        Args:
            splits: the images of each.
            found: the objects of each image.
            places: what messages call the annotation of each image.
            relative: whether boxes are shares of width and height.
        """
        rows = collect_rows([*found.values()], self.class_names)
        sizes = torch.tensor([annotation.size for annotation in found.values()]).reshape(-1, 2)
        table, faults, clipped = build_table(rows, sizes, relative=relative)
        bad = self._note(faults, clipped, [f"{places[path]}: {given}" for path in found for given in found[path].given])
        numbers = {path: number for number, path in enumerate(found)}
        images = rows.image[list(faults)].tolist()
        for split, files in splits.items():
            chosen = [numbers[path] for path in files]
            its = {*chosen}
            own = [text for text, image in zip(bad, images, strict=True) if image in its]
            self._parts[split] = _Part([*files], table.select(chosen), bad=own)
        self._check_boxes()

    def _note(self, faults: Mapping[int, str], clipped: int, given: Mapping[int, str] | Sequence[str]) -> list[str]:
        """Count bad boxes, and return what is wrong with each, as messages show it."""
        bad = [f"{given[row]} {fault}" for row, fault in faults.items()]
        self.bad_boxes += bad
        self.clipped_boxes += clipped
        return bad

    def _check_boxes(self) -> None:
        """Raise a DataError if a box is bad and the user wants no such data."""
        if self.bad_boxes and self._on_bad_box == "raise":
            raise DataError(
                f"{len(self.bad_boxes)} boxes in {self._place} cannot be used:\n{_list(self.bad_boxes, indent='')}"
            )


def _list(faults: Sequence[str], indent: str = "  ") -> str:
    more = len(faults) - _LISTED
    lines = [*faults[:_LISTED], *([f"and {more} more, all in the data module's bad_boxes"] if more > 0 else [])]
    return "\n".join(indent + printable(line) for line in lines)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Raise a ValueError if a name of a class occurs twice, by which its boxes could not be told apart."""
    if again := repeated(names):
        raise ValueError(f"class_names has {brief(again[0])} twice; give each class a name of its own")
    return tuple(names)


class VOCData(BoxData):
    """Images with boxes in the layout of Pascal VOC.

    ``root/JPEGImages/NAME.*``, ``root/Annotations/NAME.xml``, and ``root/ImageSets/Main/{train,val,test}.txt`` with a
    name in each line, which may have spaces. The list of test, its images and its annotations may be missing. Images
    without a box stay, as background; difficult objects are left out of loss and score.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: of training images, see :class:`FolderData`. Others keep their size, at which they are scored,
            unless it is given.
        class_names: names of the classes in the order of their labels; those found in train, sorted, when None.
        on_bad_box: boxes without an area, outside their image, incomplete, or of an unknown class: ``'drop'`` counts
            and lists them with their files, ``'raise'`` refuses the dataset.
        origin: number of the first pixel in the annotations.
        train_list: name of the list to train on.
        val_list: name of the list to validate on.
        test_list: name of the list to test on.

    Raises:
        DataError: naming the file or folder, if one is missing or broken.

    References:
        M. Everingham et al.: The Pascal Visual Object Classes Challenge. http://host.robots.ox.ac.uk/pascal/VOC/
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 2,
        storage_size: int | None = None,
        *,
        class_names: Sequence[str] | None = None,
        on_bad_box: str = "drop",
        origin: int = 1,
        train_list: str = "train",
        val_list: str = "val",
        test_list: str = "test",
    ) -> None:
        super().__init__(root, batch_size, num_workers, storage_size, on_bad_box)
        folder = VOCFolder(self.root, "Main", "Annotations")
        found = {split: folder.find_listed(name) for split, name in (("train", train_list), ("val", val_list))}
        found["test"] = {}
        try:
            if folder.list_file(test_list).is_file() and folder.read_names(test_list):
                test = folder.find_listed(test_list)
                if lost := [stem for stem in test if not is_file(folder.annotation(stem))]:
                    raise DataError(
                        f"{test_list}.txt names {len(lost)} images without an annotation, such as {cut(lost[0])}"
                    )
                found["test"] = test
        except DataError as error:  # as of VOC 2012, whose test images are not for all
            self._leave_out_test(error)
        splits = {split: files for split, files in found.items() if files}
        images = {path: stem for files in splits.values() for stem, path in files.items()}
        annotations = {path: read_voc(folder.annotation(stem), origin=origin) for path, stem in sorted(images.items())}
        for path, annotation in annotations.items():
            if annotation.size == (0, 0):
                annotation.size = read_size(path)
        seen = {name for path in splits["train"].values() for name in annotations[path].names if name}
        self._class_names = check_names(class_names or sorted(seen))
        if not self._class_names:
            raise DataError(f"no object is annotated in the train images of {self.root}; give class_names")
        self._fill(
            {split: [*files.values()] for split, files in splits.items()},
            annotations,
            {path: f"{stem}.xml" for path, stem in images.items()},
        )


class COCOData(BoxData):
    """Images with boxes in the layout of COCO: a JSON file and a folder of images for each split.

    A category's label is its place in the order of their numbers, which ``category_ids`` has. Images without a box
    stay, as background. Boxes around crowds are left out of the loss, and scored as COCO does; small, medium and large
    objects are told apart by the file's ``area``, that of the outline where there is one.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: of training images, see :class:`FolderData`. Others keep their size, at which they are scored,
            unless it is given.
        train_file: annotations to train on, below the root; None for data that are only evaluated.
        train_images: folder of their images, below the root.
        val_file: annotations to validate on.
        val_images: folder of their images.
        test_file: annotations to test on, if there are some.
        test_images: folder of their images.
        on_bad_box: boxes without an area, outside their image, incomplete, or of an image or a category that the file
            does not have: ``'drop'`` counts and lists them with file and number, ``'raise'`` refuses the dataset.

    Attributes:
        category_ids: the file's number of each class, in the order of labels.

    Raises:
        DataError: naming the file, if an image or annotations are missing or broken, or if the splits differ in their
            categories.
        ValueError: for a file of test annotations without a folder.

    References:
        T.-Y. Lin et al.: Microsoft COCO: Common Objects in Context. ECCV 2014. https://cocodataset.org
    """

    _TEST = "give test_file and test_images"

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 2,
        storage_size: int | None = None,
        *,
        train_file: str | None = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_file: str = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        test_file: str | None = None,
        test_images: str | None = None,
        on_bad_box: str = "drop",
    ) -> None:
        super().__init__(root, batch_size, num_workers, storage_size, on_bad_box)
        self.category_ids: tuple[int, ...] = ()
        if (test_file is None) != (test_images is None):
            raise ValueError(f"test_file {test_file!r} and test_images {test_images!r} go together; give both")
        sources = {"train": (train_file, train_images), "val": (val_file, val_images), "test": (test_file, test_images)}
        parts: dict[tuple[str, str], _Part] = {}
        for split, (file, folder) in sources.items():
            if file is not None and folder is not None:
                if (file, folder) not in parts:
                    parts[file, folder] = self._read(file, folder)
                self._parts[split] = parts[file, folder]
        self._check_boxes()

    def _read(self, file: str, folder: str) -> _Part:
        found = read_coco(self.root / file)
        if not found.files or not found.category_ids:
            raise DataError(
                f"{self.root / file} has {len(found.files)} images and {len(found.category_ids)} categories"
            )
        if not (self.root / folder).is_dir():
            raise DataError(f"no such folder: {self.root / folder}, for the images of {file}")
        there = {*os.listdir(self.root / folder)}  # one look, not one for each image
        files = [self.root / folder / name for name in found.files]
        absent = (path for path, name in zip(files, found.files, strict=True) if name not in there)
        if missing := [path for path in absent if not is_file(path)]:
            raise DataError(
                f"{self.root / file} names {len(missing)} images that are missing, such as {cut(missing[0])}"
            )
        for number in (found.sizes == 0).any(-1).nonzero().flatten().tolist():
            found.sizes[number] = torch.tensor(read_size(files[number]))
        found.rows.labels = self._translate(file, found)[found.rows.labels]
        table, faults, clipped = build_table(found.rows, found.sizes)
        bad = self._note(faults, clipped, {row: f"{file}: annotation {found.given[row]}" for row in faults})
        return _Part(files, table, found.image_ids, bad)

    def _translate(self, file: str, found: CocoFile) -> Tensor:
        """Return the label of each of a file's categories; those of the first file are the classes."""
        if not self.category_ids:
            self.category_ids, self._class_names = found.category_ids, found.class_names
        known = dict(zip(self.category_ids, self._class_names, strict=True))
        for number, name in zip(found.category_ids, found.class_names, strict=True):
            if known.get(number) != name:
                raise DataError(
                    f"{self.root / file} calls category {number} {brief(name)}, the first file "
                    f"{brief(known.get(number))}; the splits need the same categories"
                )
        return torch.tensor([self.category_ids.index(number) for number in found.category_ids])
