"""Images with label images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kornia_mvit.data.class_lists import class_names as published_names
from kornia_mvit.data.classes import Colour, LabelClasses, grey_colours, read_classes, voc_colours
from kornia_mvit.data.formats.voc import VOCFolder
from kornia_mvit.data.labels import look_at_labels
from kornia_mvit.data.masks import MaskFiles
from kornia_mvit.data.reading import DataError, find_images
from kornia_mvit.data.splits import find_splits
from kornia_mvit.files import printable
from kornia_mvit.parsing import cut, is_file
from kornia_mvit.training.datamodules.base import STAGES, ImageData
from kornia_mvit.training.lightning_names import rank_zero_info, rank_zero_warn

__all__ = ["SegmentationFolderData", "VOCSegmentationData"]

Pairs = Mapping[Path, Path]  # images and their label images


class _MaskData(ImageData):
    """What data modules of pairs of images and label images share."""

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        storage_size: int | None,
        classes: LabelClasses,
        ignore_index: int,
        ignore_label: int | None,
    ) -> None:
        super().__init__(batch_size, num_workers, storage_size)
        count = len(classes.names)
        for name, value in (("ignore_index", ignore_index), ("ignore_label", ignore_label)):
            if value is not None and 0 <= value < count:
                raise ValueError(f"{name} {value} is one of the {count} classes, from 0 to {count - 1}")
        self._classes = classes
        self.ignore_index = ignore_index
        self.ignore_label = ignore_label
        self._class_names = classes.names
        self._pairs: dict[str, Pairs] = {}

    @property
    def class_colours(self) -> tuple[Colour, ...] | None:
        """Red, green and blue of each class, from 0 to 255, where they are known."""
        return self._classes.colours

    def _make_splits(self, root: Path, colours: Mapping[Colour, int] | None, stage: str | None) -> None:
        used = STAGES.get(str(stage), ("train", "val"))
        for split, pairs in self._pairs.items():
            data = self.splits[split] = MaskFiles(
                list(pairs),
                list(pairs.values()),
                self.num_classes,
                ignore_index=self.ignore_index,
                ignore_label=self.ignore_label,
                colours=colours,
                transform=self.storage_if_told() if split == "train" else None,  # evaluation is at the images' own size
            )
            for wrong, message in look_at_labels(data, split, self.class_names) if split in used else ():
                (rank_zero_warn if wrong else rank_zero_info)(printable(message))
        self._tell(root, (f"{len(pairs)} images in {name}" for name, pairs in self._pairs.items()))


class SegmentationFolderData(_MaskData):
    """Images with label images, in folders of their own.

    ``root/train/NAME.*`` with ``root/train_labels/NAME.png``, ``root/val`` with ``root/val_labels``, and test if there
    is one; ``valid`` and ``validation`` stand for val, and so on. All may have subfolders, the same on both sides.
    Label images are PNGs of class numbers, or of a palette, whose colours do not matter. Where a file of classes tells
    colours, colour and palette images are read by them.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: of training images, see :class:`FolderData`; others keep their size, at which they are scored.
        classes: a YAML or JSON file with the names of the classes, and perhaps their colours; see
            :func:`~kornia_mvit.data.classes.read_classes`.
        num_classes: number of classes; needed unless their names are given.
        class_names: their names, in the order of their numbers.
        values: the value of each class in grey label images, where it is not the class's number, such as ``[0, 255]``.
        ignore_index: number of the pixels to ignore.
        ignore_label: another number in the files that is to be ignored.

    Raises:
        DataError: naming the file or folder, if one is missing or wrong, or an image lacks its label image.
        ValueError: without a number of classes, or where it is told in two ways that differ.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 2,
        storage_size: int | None = None,
        *,
        classes: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        values: Sequence[int] | None = None,
        ignore_index: int = 255,
        ignore_label: int | None = None,
    ) -> None:
        known = _find_classes(classes, num_classes, class_names, values)
        if values is not None and ignore_label in values:
            raise ValueError(f"ignore_label {ignore_label} is one of the values {list(values)}; leave one of them out")
        super().__init__(batch_size, num_workers, storage_size, known, ignore_index, ignore_label)
        self.root: Path = Path(root)
        there = [path.name for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []
        names = {"train": "train", "val": "val"} | find_splits(there, str(self.root))
        ends = [name.removesuffix("_labels") for name in there if name.endswith("_labels")]
        labels = names | find_splits(ends, str(self.root))
        for split, name in names.items():
            folder = self.root / f"{labels[split]}_labels"
            if split == "test" and not folder.is_dir():
                self._leave_out_test(f"{self.root / name} has no {folder.name} beside it")  # as that of competitions
            else:
                self._pairs[split] = self._pair(self.root / name, folder)

    def setup(self, stage: str | None = None) -> None:
        """Make the splits."""
        self._make_splits(self.root, self._classes.numbers(self.ignore_index), stage)

    def _pair(self, *folders: Path) -> Pairs:
        if lost := [folder for folder in folders if not folder.is_dir()]:
            raise DataError(
                f"no such folder: {lost[0]}; root (--data.root) has train, train_labels, val and val_labels, none of "
                "which is split off another"
            )
        images, files = (find_images(folder) for folder in folders)
        labels: dict[Path, Path] = {}
        for path in files:
            key = path.relative_to(folders[1]).with_suffix("")
            if key in labels:
                raise DataError(f"two label images have the same name: {labels[key]} and {path}")
            labels[key] = path
        keys = {path: path.relative_to(folders[0]).with_suffix("") for path in images}
        if missing := [path for path, key in keys.items() if key not in labels]:
            raise DataError(
                f"{len(missing)} of the {len(images)} images in {folders[0]} without a label image in "
                f"{folders[1].name}, such as {missing[0].relative_to(folders[0])}"
            )
        return {path: labels[key] for path, key in keys.items()}


def _find_classes(
    path: str | None, count: int | None, names: Sequence[str] | None, values: Sequence[int] | None
) -> LabelClasses:
    if path is not None:
        if names is not None:
            raise ValueError("class_names and a file of classes are both given; one is enough")
        found = read_classes(path)
    elif names is not None:
        found = LabelClasses(tuple(names))
    elif count is not None:
        found = LabelClasses(tuple(map(str, range(count))))
    elif values is not None:
        found = LabelClasses(tuple(map(str, values)))
    else:
        raise ValueError(
            "the number of classes is missing; give num_classes (--data.num_classes), class_names, or a file of them "
            "(--data.classes)"
        )
    if count not in (None, len(found.names)):
        raise ValueError(f"num_classes is {count}, but there are {len(found.names)} names")
    return found if values is None else _with_values(found, values)


def _with_values(classes: LabelClasses, values: Sequence[int]) -> LabelClasses:
    if classes.colours is not None:
        raise ValueError("values and the colours of a file of classes are both given; one is enough")
    if len(values) != len(classes.names):
        raise ValueError(f"values {list(values)} are {len(values)}, but there are {len(classes.names)} classes")
    return LabelClasses(classes.names, grey_colours(values))


class VOCSegmentationData(_MaskData):
    """Images with label images in the layout of Pascal VOC 2012.

    ``root/JPEGImages/NAME.*``, ``root/SegmentationClass/NAME.png``, and lists with a name in each line,
    ``root/ImageSets/Segmentation/{train,val,trainval,test}.txt``; VOC's own test images have no labels, so that test
    is there only if label images are. Label images have a palette whose index is the class, and 255 at the outlines
    of objects, to be ignored.

    The larger set of labels by Hariharan et al. is ``train_list='train_aug'``: a list of that name beside the others,
    and ``root/SegmentationClassAug``, whose label images are taken before those of SegmentationClass.

    Args:
        root: the folder, such as ``VOCdevkit/VOC2012``.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: of training images, see :class:`FolderData`; others keep their size, at which they are scored.
        train_list: the list to train on: ``'train'``, ``'trainval'``, ``'train_aug'``, or another that is there.
        class_names: names of the classes, in the order of their numbers; VOC's 21, background first, when None.
        values: see :class:`SegmentationFolderData`.
        ignore_index: number of the pixels to ignore.

    Raises:
        DataError: naming the file or folder, if one is missing.

    References:
        - M. Everingham et al.: The Pascal Visual Object Classes Challenge. http://host.robots.ox.ac.uk/pascal/VOC/
        - B. Hariharan et al.: Semantic contours from inverse detectors. ICCV 2011.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 2,
        storage_size: int | None = None,
        *,
        train_list: str = "train",
        class_names: Sequence[str] | None = None,
        values: Sequence[int] | None = None,
        ignore_index: int = 255,
    ) -> None:
        names = tuple(class_names or published_names("voc"))
        classes = LabelClasses(names, voc_colours(len(names)))
        if values is not None:
            classes = _with_values(LabelClasses(names), values)
        super().__init__(batch_size, num_workers, storage_size, classes, ignore_index, 255)
        self._colours = None if values is None else classes.numbers(ignore_index)  # else a palette's indices count
        self.root: Path = Path(root)
        folder = VOCFolder(self.root, "Segmentation", "SegmentationClass")
        folder.images  # noqa: B018  # which raises before any list is read
        augmented = train_list.removesuffix(".txt") in ("train_aug", "trainaug")
        labels = ("SegmentationClassAug", "SegmentationClass") if augmented else ("SegmentationClass",)
        self._pairs = {
            "train": _pair_listed(folder, train_list, labels),
            "val": _pair_listed(folder, "val", ("SegmentationClass",)),
        }
        if _has_test_labels(folder):
            self._pairs["test"] = _pair_listed(folder, "test", ("SegmentationClass",))

    def setup(self, stage: str | None = None) -> None:
        """Make the splits, and tell of images that are in two of them."""
        self._make_splits(self.root, self._colours, stage)
        if shared := len(self._pairs["train"].keys() & self._pairs["val"].keys()):
            rank_zero_info(f"{shared} of the {len(self._pairs['val'])} val images are in train, too")


def _has_test_labels(folder: VOCFolder) -> bool:
    try:
        names = folder.read_names("test")
    except DataError:
        return False
    return any(is_file(folder.root / "SegmentationClass" / f"{name}.png") for name in names)


def _pair_listed(folder: VOCFolder, name: str, labels: Sequence[str]) -> Pairs:
    """Return the images of a list with the label image of each, from the first folder that has it."""
    pairs, lost = {}, []
    for stem, image in folder.find_listed(name).items():
        files = (folder.root / label / f"{stem}.png" for label in labels)
        found = next((file for file in files if is_file(file)), None)
        if found is None:
            lost.append(stem)
        else:
            pairs[image] = found
    if lost:
        raise DataError(
            f"{len(lost)} images of {folder.list_file(name)} have no label image in {' or '.join(labels)}, such as "
            f"{cut(lost[0])}.png"
        )
    return pairs
