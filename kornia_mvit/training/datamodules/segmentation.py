"""Images with label images."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from kornia_mvit.data.class_lists import class_names as published_names
from kornia_mvit.data.classes import Colour, LabelClasses, grey_colours, read_classes, voc_colours
from kornia_mvit.data.formats.pairs import find_folders, pair_images
from kornia_mvit.data.formats.voc import VOCFolder
from kornia_mvit.data.labels import find_values, look_at_labels
from kornia_mvit.data.masks import MaskFiles
from kornia_mvit.data.reading import DataError
from kornia_mvit.files import printable
from kornia_mvit.parsing import count_of, cut, is_file
from kornia_mvit.training.datamodules.base import STAGES, ImageData
from kornia_mvit.training.datamodules.settings import RootSettings
from kornia_mvit.training.lightning_names import rank_zero_info, rank_zero_warn
from kornia_mvit.training.settings import accepts

__all__ = ["MaskSettings", "SegmentationFolderData", "SegmentationSettings", "VOCMaskSettings", "VOCSegmentationData"]

Pairs = Mapping[Path, Path]  # images and their label images


@dataclass
class MaskSettings(RootSettings):
    """The settings of data modules of images with label images, which document them."""

    _: KW_ONLY
    class_names: Sequence[str] | None = None
    values: Sequence[int] | None = None
    ignore_index: int = 255


class _MaskData(ImageData):
    """What data modules of pairs of images and label images share."""

    def _begin_masks(self, settings: MaskSettings, ignore_label: int | None) -> None:
        self._begin(settings)
        self.root: Path = Path(settings.root)
        self.ignore_index: int = settings.ignore_index
        self.ignore_label: int | None = ignore_label
        self._pairs: dict[str, Pairs] = {}

    def _take_classes(self, classes: LabelClasses) -> None:
        count = len(classes.names)
        for name, value in (("ignore_index", self.ignore_index), ("ignore_label", self.ignore_label)):
            if value is not None and 0 <= value < count:
                raise ValueError(f"{name} {value} is one of the {count} classes, from 0 to {count - 1}")
        self._classes = classes
        self._class_names = classes.names

    def _take_pairs(self, pairs: Mapping[str, Pairs]) -> None:
        """Keep the images of each split, val split off train where there is none."""
        self._pairs = dict(pairs)
        if "val" not in pairs:
            train = pairs["train"]
            for split, files in zip(("train", "val"), self._split_off(self.root, [*train]), strict=True):
                self._pairs[split] = {path: train[path] for path in files}

    @property
    def class_colours(self) -> tuple[Colour, ...] | None:
        """Red, green and blue of each class, from 0 to 255, where they are known."""
        return self._classes.colours

    def _make_splits(self, colours: Mapping[Colour, int] | None, stage: str | None) -> None:
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
            for wrong, message in look_at_labels(data, split, self.class_names) if pairs and split in used else ():
                (rank_zero_warn if wrong else rank_zero_info)(printable(message))
        self._tell(self.root, (f"{count_of(len(pairs), 'image')} in {name}" for name, pairs in self._pairs.items()))


@dataclass
class SegmentationSettings(MaskSettings):
    """The settings of :class:`SegmentationFolderData`, which documents them."""

    _: KW_ONLY
    classes: str | None = None
    num_classes: int | None = None
    ignore_label: int | None = None

    def find_classes(self) -> LabelClasses | None:
        """Return the classes that the settings tell; None where they tell none.

        Raises:
            ValueError: where they are told in two ways that differ.
        """
        count, names, values = self.num_classes, self.class_names, self.values
        if values is not None and (ignored := self.ignore_label) in values:
            raise ValueError(f"ignore_label {ignored} is one of the values {list(values)}; leave one of them out")
        if self.classes is not None:
            if names is not None:
                raise ValueError("class_names and a file of classes are both given; one is enough")
            found = read_classes(self.classes)
        elif names is not None or count is not None or values is not None:
            found = LabelClasses(tuple(map(str, names or (values if count is None else range(count)) or ())))
        else:
            return None
        if count not in (None, len(found.names)):
            raise ValueError(f"num_classes is {count}, but there are {len(found.names)} names")
        return found if values is None else _with_values(found, values)


class SegmentationFolderData(_MaskData):
    """Images with label images.

    ``root/train/NAME.*`` with ``root/train_labels/NAME.png``, ``root/val`` with ``root/val_labels``, and test if there
    is one; ``valid`` and ``validation`` stand for val, and so on. Or ``images/train`` with ``labels/train``, or
    ``images`` with ``labels``, which may be named ``masks``; or the images of ``train`` or of the root, with label
    images named ``NAME_mask.png``, ``NAME_label.png`` or the like beside them or in their folder. Where there is no
    val, it is split off train. All may have subfolders, the same on both sides.

    Label images are PNGs of class numbers, or of a palette, whose colours do not matter. Where a file of classes tells
    colours, colour and palette images are read by them. Where no classes are given, or two, and all label images hold
    0 and 255 alone, 255 is the second class, not ignored; where none are given, classes are else counted, if all
    numbers from 0 occur. Either is told at the start.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Args:
        classes: a YAML or JSON file with the names of the classes, and perhaps their colours; see
            :func:`~kornia_mvit.data.classes.read_classes`.
        num_classes: number of classes, where their names are not given.
        class_names: their names, in the order of their numbers.
        values: the value of each class in grey label images, where it is not the class's number, such as ``[0, 255]``.
        ignore_index: number of the pixels to ignore.
        ignore_label: another number in the files that is to be ignored.

    Raises:
        DataError: naming the file or folder, if one is missing or wrong, or an image lacks its label image.
        ValueError: where the number of classes is told in two ways that differ, or label images do not tell it.
    """

    @accepts(SegmentationSettings)
    def __init__(self, settings: SegmentationSettings) -> None:
        self._begin_masks(settings, settings.ignore_label)
        known = settings.find_classes()
        if known is not None:
            self._take_classes(known)
        found: dict[str, Pairs] = {}
        for split, (images, labels) in find_folders(self.root).items():
            if split == "test" and not labels.is_dir():
                self._leave_out_test(f"{images} has no {labels.name} beside it")  # as that of competitions
                continue
            found[split] = pairs = pair_images(images, labels)
            if others := [f"{b.name} for {a.name}" for a, b in pairs.items() if a.stem != b.stem]:
                told = f"{len(others)} label images of {split} have names of their own"
                self._notes.append(f"{told}, such as {others[0]}")
        self._take_pairs(found)
        two = known is not None and len(known.names) == 2 and known.colours is None and settings.ignore_label is None
        if known is None or two:
            self._take_classes(self._look(known))

    def _look(self, known: LabelClasses | None) -> LabelClasses:
        """Return the classes that the label images tell where the user names none, or two without their values."""
        files = [label for pairs in self._pairs.values() for label in pairs.values()]
        missing = (
            "the number of classes is missing; give num_classes (--data.num_classes), class_names, or a file of them "
            "(--data.classes)"
        )
        try:
            values = find_values(files, None if known is None else {0, 255})
        except DataError as error:
            if known is not None:
                return known  # what is wrong is raised when the sample is fetched
            raise DataError(f"{missing}: {error}") from None
        if values == {0, 255} and self.ignore_label is None:
            names = ("0", "255") if known is None else known.names
            self._notes.append(
                f"all {len(files)} label images hold 0 and 255 alone: 255 is taken for the class {names[1]}, as by "
                "--data.values '[0, 255]'; if it is to be ignored, give --data.ignore_label 255"
            )
            return LabelClasses(names, grey_colours((0, 255)))
        if known is not None:
            return known
        numbers = sorted(values - {self.ignore_index, self.ignore_label})
        if numbers != [*range(max(2, len(numbers)))]:
            raise DataError(f"{missing}: label images hold {cut(', '.join(map(str, sorted(values))))}")
        self._notes.append(f"label images hold 0 to {numbers[-1]}, which are taken for the classes; see --data.classes")
        return LabelClasses(tuple(map(str, numbers)))

    def setup(self, stage: str | None = None) -> None:
        """Make the splits."""
        self._make_splits(self._classes.numbers(self.ignore_index), stage)


def _with_values(classes: LabelClasses, values: Sequence[int]) -> LabelClasses:
    if classes.colours is not None:
        raise ValueError("values and the colours of a file of classes are both given; one is enough")
    if len(values) != len(classes.names):
        raise ValueError(f"values {list(values)} are {len(values)}, but there are {len(classes.names)} classes")
    return LabelClasses(classes.names, grey_colours(values))


@dataclass
class VOCMaskSettings(MaskSettings):
    """The settings of :class:`VOCSegmentationData`, which documents them."""

    _: KW_ONLY
    train_list: str = "train"


class VOCSegmentationData(_MaskData):
    """Images with label images in the layout of Pascal VOC 2012.

    ``root/JPEGImages/NAME.*``, ``root/SegmentationClass/NAME.png``, and lists with a name in each line,
    ``root/ImageSets/Segmentation/{train,val,trainval,test}.txt``; VOC's own test images have no labels, so that test
    is there only if label images are. Label images have a palette whose index is the class, and 255 at the outlines
    of objects, to be ignored.

    The larger set of labels by Hariharan et al. is ``train_list='train_aug'``: a list of that name beside the others,
    and ``root/SegmentationClassAug``, whose label images are taken before those of SegmentationClass. Where there is
    no list of val, it is split off train.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Args:
        root: the folder, such as ``VOCdevkit/VOC2012``.
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

    @accepts(VOCMaskSettings)
    def __init__(self, settings: VOCMaskSettings) -> None:
        self._begin_masks(settings, 255)
        names, values, train_list = settings.class_names, settings.values, settings.train_list
        names = tuple(names or published_names("voc"))
        classes = LabelClasses(names, voc_colours(len(names)))
        if values is not None:
            classes = _with_values(LabelClasses(names), values)
        self._take_classes(classes)
        self._colours = None if values is None else classes.numbers(self.ignore_index)  # else a palette's indices count
        folder = VOCFolder(self.root, "Segmentation", "SegmentationClass")
        folder.images  # noqa: B018  # which raises before any list is read
        augmented = train_list.removesuffix(".txt") in ("train_aug", "trainaug")
        labels = ("SegmentationClassAug", "SegmentationClass") if augmented else ("SegmentationClass",)
        pairs = {"train": _pair_listed(folder, train_list, labels)}
        for split in ("val", "test"):
            if folder.list_file(split).is_file() if split == "val" else _has_test_labels(folder):
                pairs[split] = _pair_listed(folder, split, ("SegmentationClass",))
        self._take_pairs(pairs)

    def setup(self, stage: str | None = None) -> None:
        """Make the splits, and tell of images that are in two of them."""
        self._make_splits(self._colours, stage)
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
