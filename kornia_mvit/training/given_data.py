"""Data that Python passes to a run: data modules, and pairs of datasets or loaders."""

import os
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate

from kornia_mvit.batch import Batch
from kornia_mvit.training.datamodules import DigitsData, SegmentationFolderData, ShardData, VOCSegmentationData
from kornia_mvit.training.datamodules.detection import BoxData
from kornia_mvit.training.datamodules.labelled import LabelledFiles
from kornia_mvit.training.layouts import RECIPES
from kornia_mvit.training.lightning_names import pl

__all__ = ["PairData", "count_classes", "data_module", "task_of_data"]

_KINDS: dict[str, tuple[type, ...]] = {
    "classification": (LabelledFiles, ShardData, DigitsData),
    "segmentation": (SegmentationFolderData, VOCSegmentationData),
    "detection": (BoxData,),
}
_FIELDS = {"mask": "segmentation", "boxes": "detection", "label": "classification"}


class PairData(pl.LightningDataModule):
    """Datasets or loaders as a data module.

    Args:
        train: to train on: a dataset, or a loader, which is taken as it is.
        val: to validate on.
        batch_size: images in a batch.
        num_workers: processes that load.
        class_names: names of the classes; those that the training data have as ``classes`` or ``class_names`` if None.
        num_classes: their number, where they have no names.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        batch_size: int = 16,
        num_workers: int = 0,
        class_names: Any = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.parts: dict[str, Any] = {"train": train, "val": val}
        self.batch_size = batch_size
        self.num_workers = num_workers
        dataset = train.dataset if isinstance(train, DataLoader) else train
        names = class_names or getattr(dataset, "class_names", None) or getattr(dataset, "classes", None)
        self.class_names: tuple[str, ...] | None = None if names is None else tuple(map(str, names))
        self.num_classes: int | None = num_classes if self.class_names is None else len(self.class_names)

    def train_dataloader(self) -> Any:
        """Shuffled batches, none of a single image."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """Every image, once."""
        return self._loader("val")

    def _loader(self, split: str) -> Any:
        data = self.parts[split]
        if isinstance(data, DataLoader):
            return data
        train = split == "train"
        return DataLoader(
            data,
            self.batch_size,
            shuffle=train,
            drop_last=train and len(data) > self.batch_size,
            num_workers=self.num_workers,
            collate_fn=Batch.collate,
            persistent_workers=self.num_workers > 0,
        )


def data_module(data: Any, options: dict[str, Any]) -> Any:
    """Return data as a data module; a pair's own options are taken out of those of the run.

    Raises:
        TypeError: for what is neither a data module nor a pair.
    """
    if isinstance(data, pl.LightningDataModule):
        return data
    if not isinstance(data, tuple | list) or len(data) != 2 or any(isinstance(one, str | os.PathLike) for one in data):
        raise TypeError(
            f"data is a {type(data).__name__}; give the path of a folder, a data module, or a pair of datasets or "
            "loaders, to train on and to validate on"
        )
    for loader in data:
        _check_loader(loader)
    known = ("batch_size", "num_workers", "class_names", "num_classes")
    return PairData(*data, **{name: options.pop(name) for name in known if name in options})


def _check_loader(loader: Any) -> None:
    """Raise for a loader whose own ``collate_fn`` cannot take its samples, which would tell so in a process of its own.

    Raises:
        TypeError: saying what would do.
    """
    if not isinstance(loader, DataLoader) or loader.collate_fn is not default_collate or not loader.batch_sampler:
        return
    if isinstance(loader.dataset, IterableDataset):
        return
    try:
        default_collate([loader.dataset[0]])
    except TypeError as error:
        raise TypeError(
            f"PyTorch's default collate_fn cannot take the loader's samples ({error}); give the DataLoader "
            "collate_fn=kornia_mvit.Batch.collate, or give the dataset itself"
        ) from None


def task_of_data(module: Any) -> str:
    """Return the task that data are for.

    Raises:
        ValueError: where nothing tells it.
    """
    found = next((task for task, kinds in _KINDS.items() if isinstance(module, kinds)), None)
    if found is None and isinstance(module, PairData):
        data = module.parts["train"]
        sample = data.dataset[0] if isinstance(data, DataLoader) else data[0]
        batch = Batch.collate([sample])
        found = next((task for name, task in _FIELDS.items() if getattr(batch, name) is not None), None)
    if found is None:
        raise ValueError(f"{type(module).__name__} does not tell what it is for; give task: {', '.join(RECIPES)}")
    return found


def count_classes(module: Any) -> int:
    """Return the number of classes of a data module.

    Raises:
        ValueError: where it does not tell it.
    """
    count = getattr(module, "num_classes", None)
    if count is None:
        raise ValueError(f"{type(module).__name__} does not tell its classes; give class_names or num_classes")
    return int(count)
