"""Lightning data modules."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.data.batch import Batch
from kornia_mvit.data.datasets import (
    DataError,
    ImageFiles,
    MaskFiles,
    VOCFiles,
    find_classes,
    find_images,
    read_image,
    read_voc,
)
from kornia_mvit.data.storage import StorageResize

_Classes = dict[str, list[Path]]  # the files of each class

__all__ = ["DigitsData", "FolderData", "SegmentationFolderData", "VOCData"]


class _Split(Dataset[dict[str, Any]]):
    """Tensors of images and labels as samples."""

    def __init__(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> None:
        self._tensors = TensorDataset(images, labels)
        self._numbers = list(numbers)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self._tensors[index]
        return {"image": image, "label": label, "meta": {"id": self._numbers[index]}}


class ImageData(pl.LightningDataModule):
    """What the data modules share: loaders over ``self.splits``, and the storage size that the task asks for."""

    def __init__(self, batch_size: int, num_workers: int, storage_size: int | None) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size {batch_size} and num_workers {num_workers} are not at least 1 and 0")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.storage_size = storage_size
        self.splits: dict[str, Dataset[dict[str, Any]]] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        raise NotImplementedError(f"{type(self).__name__} has no class names")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def storage(self) -> StorageResize:
        """Give what brings samples to the storage size.

        The shorter side of an image gets the length that was given, or else the one that the task's Preprocess
        resizes to (of a height and a width, the larger), and the aspect is kept. So training crops from whole images,
        and evaluation resizes no further.

        Raises:
            DataError: if neither says a size.
        """
        task = None if self.trainer is None else self.trainer.lightning_module
        preprocess = getattr(task, "preprocess", None)
        size = preprocess.size if isinstance(preprocess, Preprocess) else Preprocess().size
        size = self.storage_size or (max(size) if isinstance(size, tuple) else size)
        if size is None:
            raise DataError("images need a storage size; give storage_size, or a Preprocess with a size")
        return StorageResize(size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; an incomplete last one is left out, since normalisation needs company."""
        return self._loader("train", shuffle=True, drop_last=len(self.splits["train"]) >= self.batch_size)  # type: ignore[arg-type]  # a map-style dataset has a length

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every image of the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every image of the test split."""
        if "test" not in self.splits:
            raise DataError("there is no test split; add a folder named test, or run validate")
        return self._loader("test")

    def _loader(self, split: str, *, shuffle: bool = False, drop_last: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            self.splits[split],  # type: ignore[arg-type]  # samples go in, a Batch comes out of collate
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=Batch.collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


class DigitsData(ImageData):
    """Scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, ten classes; nothing is downloaded.

    Split by class and seed into 70 % train, 10 % val and 20 % test, and resized to the storage size.

    Args:
        batch_size: images in a batch.
        num_workers: processes that load.
        storage_size: side in pixels that the digits are enlarged to; what the task's Preprocess says when None.
        seed: seed of the split.

    References:
        E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """

    def __init__(
        self, batch_size: int = 64, num_workers: int = 0, storage_size: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, storage_size)
        self.seed = seed

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    def setup(self, stage: str | None = None) -> None:
        """Load, resize and split the digits."""
        digits = load_digits()
        grey = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
        size = self.storage().resized_size(8, 8)
        images = Preprocess(size).module().geometry(grey[:, None].expand(-1, 3, -1, -1).contiguous())
        labels = torch.from_numpy(digits.target)
        numbers = list(range(len(labels)))
        train, rest = train_test_split(numbers, test_size=0.3, random_state=self.seed, stratify=labels)
        val, test = train_test_split(rest, test_size=2 / 3, random_state=self.seed, stratify=labels[rest])
        self.splits = {
            name: _Split(images[part], labels[part], part)
            for name, part in {"train": train, "val": val, "test": test}.items()
        }


class FolderData(ImageData):
    """Images in a folder for each class.

    Either ``root/train/CLASS/*`` and ``root/val/CLASS/*`` (and ``root/test/CLASS/*`` if there is one), or
    ``root/CLASS/*``, which is split by class and seed into train and val.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: length in pixels that the shorter side of images is brought to; what the task's Preprocess says
            when None. See :class:`~kornia_mvit.data.storage.StorageResize`.
        val_fraction: share of each class that is kept for validation where there is no folder for it.
        seed: seed of that split.
        on_error: ``'raise'`` stops at an image that cannot be read and names it; ``'skip'`` tries every image before
            the start, which takes about as long as an epoch of reading, and counts and lists those that it leaves out.

    Raises:
        DataError: if a folder is missing or empty, a class has no image, or train and val differ in their classes.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        num_workers: int = 2,
        storage_size: int | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        on_error: str = "raise",
    ) -> None:
        super().__init__(batch_size, num_workers, storage_size)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"unknown on_error {on_error!r}; available: 'raise', 'skip'")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction {val_fraction} is not between 0 and 1")
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.seed = seed
        self.on_error = on_error
        self.skipped: list[Path] = []
        self._files = self._find()
        self._split(self._files)  # to tell early of classes that are too small
        self._looked = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the folders, sorted."""
        return tuple(self._files["train"])

    def setup(self, stage: str | None = None) -> None:
        """Leave out images that cannot be read, if asked to, and split the rest."""
        if self.on_error == "skip" and not self._looked:
            self._leave_out_unreadable()
            self._looked = True
        transform = self.storage()
        for split, classes in self._split(self._files).items():
            files = [file for images in classes.values() for file in images]
            labels = [label for label, images in enumerate(classes.values()) for _ in images]
            self.splits[split] = ImageFiles(files, labels, transform)
        counts = ", ".join(f"{len(data.files)} images in {name}" for name, data in self._parts().items())
        rank_zero_info(f"{self.root}: {self.num_classes} classes ({', '.join(self.class_names)}), {counts}")

    def _parts(self) -> dict[str, ImageFiles]:
        return {name: data for name, data in self.splits.items() if isinstance(data, ImageFiles)}

    def _find(self) -> dict[str, _Classes]:
        if not self.root.is_dir():
            raise DataError(f"no such folder: {self.root}; root (--data.root) is the folder with your images")
        given = {name: self.root / name for name in ("train", "val", "test") if (self.root / name).is_dir()}
        folders = given if "train" in given else {"train": self.root}
        splits = {name: find_classes(folder) for name, folder in folders.items()}
        if len(splits["train"]) < 2:
            name = next(iter(splits["train"]))
            raise DataError(f"{folders['train']} has one class folder, {name!r}; classification needs two or more")
        for name, classes in splits.items():
            if set(classes) != set(splits["train"]):
                only = sorted(set(classes) ^ set(splits["train"]))
                raise DataError(f"train and {name} in {self.root} differ in the classes {', '.join(only)}")
        return splits

    def _split(self, splits: dict[str, _Classes]) -> dict[str, _Classes]:
        """Take a val split off train where there is none."""
        if "val" in splits:
            return splits
        train: _Classes = {}
        val: _Classes = {}
        for name, files in splits["train"].items():
            if len(files) < 2:
                raise DataError(f"class {name!r} in {self.root} has one image, too few for a train and a val split")
            count = min(max(round(len(files) * self.val_fraction), 1), len(files) - 1)
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(self.seed)).tolist()
            chosen = set(order[:count])
            val[name] = [file for i, file in enumerate(files) if i in chosen]
            train[name] = [file for i, file in enumerate(files) if i not in chosen]
        return {**splits, "train": train, "val": val}

    def _leave_out_unreadable(self) -> None:
        files = [file for classes in self._files.values() for images in classes.values() for file in images]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            errors = [error for error in pool.map(_read_error, files) if error is not None]
        self.skipped = [path for path, _ in errors]
        bad = set(self.skipped)
        for split, classes in self._files.items():
            self._files[split] = {name: [f for f in images if f not in bad] for name, images in classes.items()}
            for name, images in self._files[split].items():
                if not images:
                    raise DataError(f"class {name!r} of {split} in {self.root} has no image that can be read")
        if errors:
            lines = "\n".join(f"  {message}" for _, message in errors)
            rank_zero_info(f"skipped {len(errors)} of {len(files)} images:\n{lines}")


def _read_error(path: Path) -> tuple[Path, str] | None:
    try:
        read_image(path)
    except DataError as error:
        return path, str(error)
    return None


class VOCData(ImageData):
    """Images with boxes in the layout of Pascal VOC.

    ``root/JPEGImages/NAME.*``, ``root/Annotations/NAME.xml``, and ``root/ImageSets/Main/{train,val,test}.txt`` with a
    name in each line, of which test may be missing. Images without a box stay, as background.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: see :class:`FolderData`.
        class_names: names of the classes in the order of their labels; those found in train, sorted, when None.
        on_bad_box: boxes without an area, outside their image, incomplete, or of an unknown class: ``'drop'`` counts
            and lists them with their files, ``'raise'`` refuses the dataset.
        origin: number of the first pixel in the annotations.

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
    ) -> None:
        super().__init__(batch_size, num_workers, storage_size)
        if on_bad_box not in ("drop", "raise"):
            raise ValueError(f"unknown on_bad_box {on_bad_box!r}; available: 'drop', 'raise'")
        self.root = Path(root)
        self.bad_boxes: list[str] = []
        self._files = {name: self._list(name) for name in ("train", "val", "test")}
        names = {stem for stems in self._files.values() for stem in stems}
        found = {stem: read_voc(self.root / "Annotations" / f"{stem}.xml", origin=origin) for stem in sorted(names)}
        given = class_names or sorted({name for stem in self._files["train"] for name in found[stem].names})
        if not given:
            raise DataError(f"no object is annotated in the train images of {self.root}; give class_names")
        self._class_names = tuple(given)
        for stem, annotation in found.items():
            unknown = [i for i, name in enumerate(annotation.names) if name not in self._class_names]
            annotation.bad += [f"{annotation.names[i]} is not a class" for i in unknown]
            for i in reversed(unknown):
                del annotation.boxes[i], annotation.names[i], annotation.difficult[i]
            self.bad_boxes += [f"{stem}.xml: {reason}" for reason in annotation.bad]
        if self.bad_boxes and on_bad_box == "raise":
            raise DataError(f"{len(self.bad_boxes)} boxes in {self.root} cannot be used:\n" + "\n".join(self.bad_boxes))
        self._annotations = found

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that were given, or found."""
        return self._class_names

    def setup(self, stage: str | None = None) -> None:
        """Make the splits, and tell of boxes that were left out."""
        transform = self.storage()
        for split, stems in self._files.items():
            if stems:
                annotations = [self._annotations[stem] for stem in stems]
                self.splits[split] = VOCFiles(list(stems.values()), annotations, self.class_names, transform)
        counts = ", ".join(f"{len(stems)} images in {name}" for name, stems in self._files.items() if stems)
        rank_zero_info(f"{self.root}: {self.num_classes} classes ({', '.join(self.class_names)}), {counts}")
        if self.bad_boxes:
            rank_zero_info(f"left out {len(self.bad_boxes)} boxes:\n" + "\n".join(f"  {b}" for b in self.bad_boxes))

    def _list(self, split: str) -> dict[str, Path]:
        """Find the images of a split, by their names."""
        file = self.root / "ImageSets" / "Main" / f"{split}.txt"
        if not file.is_file():
            if split == "test":
                return {}
            raise DataError(f"no such list: {file}; root (--data.root) has ImageSets, Annotations and JPEGImages")
        images = {path.stem: path for path in find_images(self.root / "JPEGImages")}
        stems = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
        if missing := [stem for stem in stems if stem not in images]:
            raise DataError(f"{file} names {len(missing)} images that are not in JPEGImages, such as {missing[0]}")
        return {stem: images[stem] for stem in stems}


class SegmentationFolderData(ImageData):
    """Images with label images, in folders of their own.

    ``root/train/NAME.*`` with ``root/train_labels/NAME.png``, ``root/val`` with ``root/val_labels``, and test if there
    is one. Label images are PNGs of class numbers, or of a palette, whose colours do not matter.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: see :class:`FolderData`.
        num_classes: number of classes; needed unless ``class_names`` are given.
        class_names: their names, in the order of their numbers.
        ignore_index: number of the pixels to ignore.
        ignore_label: another number in the files that is to be ignored.

    Raises:
        DataError: naming the file or folder, if one is missing or an image lacks its label image.
        ValueError: without a number of classes.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 2,
        storage_size: int | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        ignore_index: int = 255,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, storage_size)
        if class_names is None:
            if num_classes is None:
                raise ValueError("the number of classes is missing; give num_classes, or class_names")
            class_names = [str(number) for number in range(num_classes)]
        self.root = Path(root)
        self._class_names = tuple(class_names)
        self.ignore_index = ignore_index
        self.ignore_label = ignore_label
        names = [name for name in ("train", "val", "test") if name != "test" or (self.root / name).is_dir()]
        self._pairs = {name: self._pair(name) for name in names}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that were given, or the numbers."""
        return self._class_names

    def setup(self, stage: str | None = None) -> None:
        """Make the splits."""
        transform = self.storage()
        for split, pairs in self._pairs.items():
            self.splits[split] = MaskFiles(
                list(pairs),
                list(pairs.values()),
                self.num_classes,
                ignore_index=self.ignore_index,
                ignore_label=self.ignore_label,
                transform=transform,
            )
        counts = ", ".join(f"{len(pairs)} images in {name}" for name, pairs in self._pairs.items())
        rank_zero_info(f"{self.root}: {self.num_classes} classes, {counts}")

    def _pair(self, split: str) -> dict[Path, Path]:
        labels = {path.stem: path for path in find_images(self.root / f"{split}_labels")}
        images = find_images(self.root / split)
        if missing := [path.name for path in images if path.stem not in labels]:
            raise DataError(
                f"{len(missing)} images in {self.root / split} have no label image in {split}_labels, such as "
                f"{missing[0]}"
            )
        return {path: labels[path.stem] for path in images}
