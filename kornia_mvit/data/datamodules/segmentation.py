"""Images with label images."""

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info

from kornia_mvit.data.datamodules.base import ImageData
from kornia_mvit.data.datasets import DataError, MaskFiles, find_images

__all__ = ["SegmentationFolderData"]


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
