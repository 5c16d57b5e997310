"""What the data modules share."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.data.batch import Batch
from kornia_mvit.data.datasets import DataError
from kornia_mvit.data.storage import StorageResize

__all__ = ["ImageData"]


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
