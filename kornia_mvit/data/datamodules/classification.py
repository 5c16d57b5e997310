"""Images with a label each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.data.datamodules.base import ImageData
from kornia_mvit.data.datamodules.labelled import Classes, LabelledFiles
from kornia_mvit.data.datasets import DataError, find_classes

__all__ = ["DigitsData", "FolderData"]


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
        for name, part in {"train": train, "val": val, "test": test}.items():
            self.splits[name] = _Split(images[part], labels[part], part)


class FolderData(LabelledFiles):
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
        super().__init__(batch_size, num_workers, storage_size, val_fraction=val_fraction, seed=seed, on_error=on_error)
        self.root: Path = Path(root)
        self._list(self._find(), self.root)

    def _find(self) -> dict[str, Classes]:
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
