"""Images with a label each."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.data.datamodules.base import ImageData
from kornia_mvit.data.datasets import DataError, ImageFiles, find_classes, read_image

__all__ = ["DigitsData", "FolderData"]

_Classes = dict[str, list[Path]]  # the files of each class


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
