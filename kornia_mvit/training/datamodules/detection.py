"""Images with boxes, of Pascal VOC and COCO."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kornia_mvit.data.boxes import Annotation, BoxFiles, BoxTable, build_table, collect_rows
from kornia_mvit.data.formats.coco import CocoFile, read_coco
from kornia_mvit.data.formats.voc import VOCFolder, annotation_file, read_voc
from kornia_mvit.data.instances import encode_outlines
from kornia_mvit.data.reading import DataError, find_images, read_size
from kornia_mvit.data.splits import find_places
from kornia_mvit.data.storage import StorageResize
from kornia_mvit.files import printable
from kornia_mvit.ops.keypoints import Pairs, pairs_of_names
from kornia_mvit.parsing import brief, count_of, cut, is_file, repeated
from kornia_mvit.training.datamodules.base import STAGES, ImageData, Samples
from kornia_mvit.training.datamodules.settings import RootSettings, check_choice
from kornia_mvit.training.lightning_names import rank_zero_info
from kornia_mvit.training.settings import accepts

__all__ = ["BoxData", "BoxSettings", "COCOData", "COCOSettings", "VOCData", "VOCSettings"]

_LISTED = 20  # faults that a message lists


@dataclass
class _Part:
    """The images of a split, with their boxes."""

    files: list[Path]
    table: BoxTable
    image_ids: Sequence[int] | None = None
    bad: Sequence[str] = ()

    def select(self, numbers: Sequence[int]) -> "_Part":
        """Return the part of the chosen images."""
        ids = None if self.image_ids is None else [self.image_ids[n] for n in numbers]
        return replace(self, files=[self.files[n] for n in numbers], table=self.table.select(numbers), image_ids=ids)


@dataclass
class BoxSettings(RootSettings):
    """The settings of data modules of images with boxes."""

    _: KW_ONLY
    on_bad_box: str = "drop"


class BoxData(ImageData):
    """What data modules of images with boxes share.

    Boxes are scaled with their images, and ``original_size`` leads back.

    Attributes:
        bad_boxes: boxes that were left out, each with its file and what is wrong with it.
        clipped_boxes: number of boxes that reached out of their image.
        keypoint_names: names of the keypoints of each box, where they are read and the data name them.
        keypoint_flip_pairs: keypoints that are swapped in mirrored images, which a task hands to its pipeline; None
            where none are known.
        keypoint_skeleton: keypoints between which lines are drawn.
    """

    def _begin_boxes(self, settings: BoxSettings) -> None:
        self._begin(settings)
        check_choice("on_bad_box", settings.on_bad_box, ("drop", "raise"))
        self._on_bad_box = settings.on_bad_box
        self.bad_boxes: list[str] = []
        self.clipped_boxes: int = 0
        self.keypoint_names: tuple[str, ...] = ()
        self.keypoint_flip_pairs: Pairs | None = None
        self.keypoint_skeleton: Pairs = ()
        self.root: Path = Path(settings.root)
        self._place = str(settings.root)
        self._parts: dict[str, _Part] = {}

    def _set_keypoints(self, names: tuple[str, ...], flip_pairs: Pairs | None, skeleton: Pairs) -> None:
        self.keypoint_names, self.keypoint_flip_pairs, self.keypoint_skeleton = names, flip_pairs, skeleton

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
            self._place,
            (
                f"{count_of(len(p.files), 'image')} with {count_of(len(p.table.labels), 'box', 'boxes')} in {split}"
                for split, p in parts
            ),
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
        keypoints: int = 0,
    ) -> None:
        """Make the parts from the objects of all images, each image read once.

        Args:
            splits: the images of each.
            found: the objects of each image.
            places: what messages call the annotation of each image.
            relative: whether boxes are shares of width and height.
            keypoints: number of keypoints of each box, where they are read.
        """
        rows = collect_rows([*found.values()], self.class_names, keypoints)
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
        self._finish()

    def _note(self, faults: Mapping[int, str], clipped: int, given: Mapping[int, str] | Sequence[str]) -> list[str]:
        """Count bad boxes, and return what is wrong with each, as messages show it."""
        bad = [f"{given[row]} {fault}" for row, fault in faults.items()]
        self.bad_boxes += bad
        self.clipped_boxes += clipped
        return bad

    def _finish(self) -> None:
        """Split val off train where there is none; raise a DataError for bad boxes where the user wants none."""
        if "train" in self._parts and "val" not in self._parts:
            part = self._parts["train"]
            counts = part.table.count()
            groups = ((counts > 0).nonzero().flatten().tolist(), (counts == 0).nonzero().flatten().tolist())
            for split, numbers in zip(("train", "val"), self._split_off(self._place, *groups), strict=True):
                self._parts[split] = part.select(sorted(numbers))
        if self.bad_boxes and self._on_bad_box == "raise":
            raise DataError(
                f"{len(self.bad_boxes)} boxes in {self._place} cannot be used:\n{_list(self.bad_boxes, indent='')}"
            )


def _list(faults: Sequence[str], indent: str = "  ") -> str:
    more = len(faults) - _LISTED
    lines = [*faults[:_LISTED], *([f"and {more} more, all in the data module's bad_boxes"] if more > 0 else [])]
    return "\n".join(indent + printable(line) for line in lines)


def shorten(path: Path, *folders: Path) -> str:
    """Return a path as it is below the first of some folders that it is in."""
    return str(next((path.relative_to(folder) for folder in folders if path.is_relative_to(folder)), path))


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Raise a ValueError if a name of a class occurs twice, by which its boxes could not be told apart."""
    if again := repeated(names):
        raise ValueError(f"class_names has {brief(again[0])} twice; give each class a name of its own")
    return tuple(names)


@dataclass
class VOCSettings(BoxSettings):
    """The settings of :class:`VOCData`, which documents them."""

    _: KW_ONLY
    class_names: Sequence[str] | None = None
    origin: int = 1
    train_list: str = "train"
    val_list: str = "val"
    test_list: str = "test"

    def lists(self) -> dict[str, str]:
        """Return the name of each split's list."""
        return {"train": self.train_list, "val": self.val_list, "test": self.test_list}


class VOCData(BoxData):
    """Images with boxes in XML files, in the layout of Pascal VOC, or in that of LabelImg and like tools.

    ``root/JPEGImages/NAME.*``, ``root/Annotations/NAME.xml``, and ``root/ImageSets/Main/{train,val,test}.txt`` with a
    name in each line, which may have spaces. The list of test, its images and its annotations may be missing. Without
    ``ImageSets``, the images of a place :func:`~kornia_mvit.data.splits.find_places` names, each with its XML file
    beside it or in the folder of annotations; images without one are left out. Where there is no val, it is split off
    train. Images without a box stay, as background; difficult objects are left out of loss and score.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Args:
        class_names: names of the classes in the order of their labels; those found in train, sorted, when None.
        origin: number of the first pixel in the annotations.
        train_list: name of the list to train on.
        val_list: name of the list to validate on.
        test_list: name of the list to test on.

    Raises:
        DataError: naming the file or folder, if one is missing or broken.

    References:
        M. Everingham et al.: The Pascal Visual Object Classes Challenge. http://host.robots.ox.ac.uk/pascal/VOC/
    """

    @accepts(VOCSettings)
    def __init__(self, settings: VOCSettings) -> None:
        self._begin_boxes(settings)
        folder = VOCFolder(self.root, "Main", "Annotations")
        listed = folder.has_lists() or settings.lists() != VOCSettings("").lists()
        splits = self._find_listed(folder, settings.lists()) if listed else self._find_all()
        files = {image: file for part in splits.values() for image, file in part.items()}
        annotations = {image: read_voc(file, origin=settings.origin) for image, file in sorted(files.items())}
        for path, annotation in annotations.items():
            if annotation.size == (0, 0):
                annotation.size = read_size(path)
        seen = {name for path in splits["train"] for name in annotations[path].names if name}
        self._class_names = check_names(settings.class_names or sorted(seen))
        if not self._class_names:
            raise DataError(f"no object is annotated in the train images of {self.root}; give class_names")
        places = {image: shorten(file, folder.root / folder.targets, self.root) for image, file in files.items()}
        self._fill({split: [*part] for split, part in splits.items()}, annotations, places)

    def _find_listed(self, folder: VOCFolder, lists: Mapping[str, str]) -> dict[str, dict[Path, Path]]:
        """Return the images of each list, with their annotations."""
        splits: dict[str, dict[Path, Path]] = {}
        for split, name in lists.items():
            file = folder.list_file(name)
            try:
                if (split == "test" or (split, name) == ("val", VOCSettings.val_list)) and not file.is_file():
                    continue
                if split == "test" and not folder.read_names(name):
                    continue
                files = {image: folder.annotation(stem) for stem, image in folder.find_listed(name).items()}
                if split == "test" and (lost := [file for file in files.values() if not is_file(file)]):
                    raise DataError(
                        f"{name}.txt names {len(lost)} images without an annotation, such as {cut(lost[0].stem)}"
                    )
            except DataError as error:
                if split != "test":
                    raise
                self._leave_out_test(error)  # as of VOC 2012, whose test images are not for all
            else:
                splits[split] = files
        return splits

    def _find_all(self) -> dict[str, dict[Path, Path]]:
        """Return the images of each split that have an annotation, with it."""
        splits: dict[str, dict[Path, Path]] = {}
        for split, place in find_places(self.root).items():
            try:
                images = find_images(place)
            except DataError as error:
                raise DataError(f"no ImageSets/Main/train.txt in {self.root} (--data.root), and {error}") from None
            splits[split] = {image: file for image in images if is_file(file := annotation_file(image))}
            if lost := len(images) - len(splits[split]):
                self._notes.append(f"left out {lost} of the {len(images)} images in {place}: they have no .xml file")
            if not splits[split]:
                raise DataError(
                    f"no image of {place} has an annotation; that of {images[0].name} would be "
                    f"{annotation_file(images[0])}"
                )
        return splits


@dataclass
class COCOSettings(BoxSettings):
    """The settings of :class:`COCOData`, which documents them."""

    _: KW_ONLY
    train_file: str | None = "annotations/instances_train2017.json"
    train_images: str = "train2017"
    val_file: str | None = "annotations/instances_val2017.json"
    val_images: str = "val2017"
    test_file: str | None = None
    test_images: str | None = None
    keypoints: bool = False
    instance_masks: bool = False


class COCOData(BoxData):
    """Images with boxes in the layout of COCO: a JSON file and a folder of images for each split.

    A category's label is its place in the order of their numbers, which ``category_ids`` has. Images without a box
    stay, as background. Boxes around crowds are left out of the loss, and scored as COCO does; small, medium and large
    objects are told apart by the file's ``area``, that of the outline where there is one.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Args:
        train_file: annotations to train on, below the root; None for data that are only evaluated.
        train_images: folder of their images, below the root.
        val_file: annotations to validate on. When None, and where the file of that default name is missing, val is
            split off train.
        val_images: folder of their images.
        test_file: annotations to test on, if there are some.
        test_images: folder of their images.
        keypoints: read the keypoints of each object too, as ``person_keypoints_train2017.json`` has them: batches have
            ``keypoints`` (B, N, K, 2), and in ``keypoint_visible`` COCO's 0, 1 and 2.
        instance_masks: read the objects' outlines, polygons and run lengths, into ``instance_masks`` of the batches;
            an object without one has an empty mask.

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

    @accepts(COCOSettings)
    def __init__(self, settings: COCOSettings) -> None:
        self._begin_boxes(settings)
        self.category_ids: tuple[int, ...] = ()
        self._with_keypoints = settings.keypoints
        self._instance_masks = settings.instance_masks
        val_file, test = settings.val_file, (settings.test_file, settings.test_images)
        if (test[0] is None) != (test[1] is None):
            raise ValueError(f"test_file {test[0]!r} and test_images {test[1]!r} go together; give both")
        if settings.train_file is not None and val_file == COCOSettings.val_file:
            val_file = val_file if val_file and is_file(self.root / val_file) else None
        train = settings.train_file, settings.train_images
        sources = {"train": train, "val": (val_file, settings.val_images), "test": test}
        parts: dict[tuple[str, str], _Part] = {}
        for split, (file, folder) in sources.items():
            if file is not None and folder is not None:
                if (file, folder) not in parts:
                    parts[file, folder] = self._read(file, folder)
                self._parts[split] = parts[file, folder]
        if not self._parts:
            raise DataError(f"{self.root} has no annotations to read; give train_file or val_file")
        self._finish()

    def _read(self, file: str, folder: str) -> _Part:
        found = read_coco(self.root / file, keypoints=self._with_keypoints, outlines=self._instance_masks)
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
        if self._with_keypoints:
            self._take_keypoints(file, found)
        if found.outlines is not None:
            sizes = [(int(h), int(w)) for h, w in found.sizes[found.rows.image].tolist()]
            found.rows.outlines, faults = encode_outlines(found.outlines, sizes)
            found.rows.faults = faults | found.rows.faults
        table, faults, clipped = build_table(found.rows, found.sizes)
        bad = self._note(faults, clipped, {row: f"{file}: annotation {found.given[row]}" for row in faults})
        return _Part(files, table, found.image_ids, bad)

    def _take_keypoints(self, file: str, found: CocoFile) -> None:
        """Take the names of the keypoints from the first file, and compare those of the others."""
        if self.keypoint_names and self.keypoint_names != found.keypoint_names:
            raise DataError(
                f"{self.root / file} has the keypoints {cut(', '.join(found.keypoint_names))}, the first file "
                f"{cut(', '.join(self.keypoint_names))}; the splits need the same keypoints"
            )
        names = found.keypoint_names
        self._set_keypoints(names, pairs_of_names(names) or None, found.keypoint_skeleton)

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
