"""Images with a label each."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

from kornia_mvit.data.reading import DataError, find_classes, is_hidden
from kornia_mvit.data.splits import find_splits, split_of
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.datamodules.base import ImageData
from kornia_mvit.training.datamodules.labelled import Classes, LabelledFiles
from kornia_mvit.training.datamodules.settings import DataSettings, LabelledSettings, RootSettings
from kornia_mvit.training.settings import accepts

__all__ = ["DigitsData", "DigitsSettings", "FolderData", "FolderSettings"]


@dataclass
class DigitsSettings(DataSettings):
    """The settings of :class:`DigitsData`."""

    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0


class DigitsData(ImageData):
    """Scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, ten classes; no dataset to download.

    Split by class and seed into 70 % train, 10 % val and 20 % test, and resized to the storage size.

    Arguments are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    References:
        E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """

    _class_names = tuple("0123456789")

    @accepts(DigitsSettings)
    def __init__(self, settings: DigitsSettings) -> None:
        self._begin(settings)
        self.seed: int = settings.seed

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
        for name, part in {"train": train, "val": val, "test": test}.items():
            self.splits[name] = cast(
                "Dataset[dict[str, Any]]",
                [{"image": images[n], "label": labels[n], "meta": {"id": n}} for n in part],
            )


@dataclass
class FolderSettings(LabelledSettings, RootSettings):
    """The settings of :class:`FolderData`, also by place."""

    val_fraction: float = 0.2
    seed: int = 0
    on_error: str = "raise"


class FolderData(LabelledFiles):
    """Images in a folder for each class.

    Either ``root/train/CLASS/*`` and ``root/val/CLASS/*`` (and ``root/test/CLASS/*`` if there is one), or
    ``root/CLASS/*``, which is split by class and seed into train and val. ``training`` stands for train, ``valid`` and
    ``validation`` for val, ``testing`` for test, in upper or lower case. Links to folders are followed; hidden files
    and folders are left out. What was taken for what, and what else was left out, is told at the start.

    Arguments are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Raises:
        DataError: if a folder is missing or empty, a class has no image, or train and val differ in their classes.
    """

    @accepts(FolderSettings)
    def __init__(self, settings: FolderSettings) -> None:
        self._begin_labelled(settings)
        self.root: Path = Path(settings.root)
        self._list(self._find(), self.root)

    def _find(self) -> dict[str, Classes]:
        if not self.root.is_dir():
            raise DataError(f"no such folder: {self.root}; root (--data.root) is the folder with your images")
        folders = self._find_splits()
        left_out: list[Path] = []
        splits = {name: find_classes(folder, left_out) for name, folder in folders.items()}
        if left_out:
            kinds = Counter(path.suffix.lower() or "without a suffix" for path in left_out)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(10))
            self._notes.append(f"{len(left_out)} files are left out, no images or not in a class's folder: {told}")
        if len(splits["train"]) < 2:
            name = next(iter(splits["train"]))
            raise DataError(f"{folders['train']} has one class folder, {name!r}; classification needs two or more")
        for name, classes in splits.items():
            if set(classes) != set(splits["train"]):
                only = sorted(set(classes) ^ set(splits["train"]))
                raise DataError(f"train and {name} in {self.root} differ in the classes {', '.join(only)}")
        return splits

    def _find_splits(self) -> dict[str, Path]:
        """Return the folder of each split; where there are none, the root is train's.

        A folder of a split has folders in it; one with images alone that is called as a split is a class beside others.
        """
        folders = [path for path in self.root.iterdir() if path.is_dir() and not is_hidden(path.name)]
        named = [path.name for path in folders if split_of(path.name)]
        deep = {name for name in named if _has_folders(self.root / name)}
        found = {name: self.root / folder for name, folder in find_splits(deep, str(self.root)).items()}
        flat = {split_of(name): name for name in named if name not in deep}
        if "train" not in found:
            if found or len(flat) > 1 or len(named) == len(folders) > 0:
                what = ", ".join(sorted(named))
                raise DataError(
                    f"{self.root} has {what}, but no train folder with a folder for each class in it; splits need one"
                )
            if flat:
                self._notes.append(f"the folder {named[0]} is taken for a class: it has images and no folders")
            return {"train": self.root}
        if "val" in flat and "val" not in found:
            find_classes(self.root / flat["val"])  # which says what it lacks
        used = {path.name for path in found.values()}
        if renamed := [f"{path.name} for {split}" for split, path in found.items() if path.name != split]:
            self._notes.append(f"taken: {', '.join(renamed)}")
        if others := sorted(path.name for path in folders if path.name not in used):
            self._notes.append(f"folders left out: {', '.join(others)}")
        if "test" in flat:
            self._TEST = f"{self.root / flat['test']} has no folder for each class"
        return found


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not is_hidden(entry.name) for entry in entries)
