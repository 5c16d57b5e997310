"""Image files with a label each, however they are listed."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from kornia_mvit.data.reading import DataError, ImageFiles, read_image
from kornia_mvit.files import printable
from kornia_mvit.training.datamodules.base import ImageData, check_on_error
from kornia_mvit.training.lightning_names import rank_zero_info

__all__ = ["Classes", "LabelledFiles"]

Classes = dict[str, list[Path]]  # the files of each class


class LabelledFiles(ImageData):
    """What data modules of labelled image files share: a val split where none is given, and unreadable images.

    The arguments are those of :class:`FolderData`.
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        storage_size: int | None,
        *,
        val_fraction: float,
        seed: int,
        on_error: str,
    ) -> None:
        super().__init__(batch_size, num_workers, storage_size)
        check_on_error(on_error)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction {val_fraction} is not between 0 and 1")
        self.val_fraction = val_fraction
        self.seed = seed
        self.on_error = on_error
        self.skipped: list[Path] = []
        self._looked = False

    def _list(self, files: dict[str, Classes], source: str | Path) -> None:
        """Keep the files of every split and where they were found; raise early for classes that are too small."""
        self._files = files
        self._source = source
        self._class_names = tuple(files["train"])
        self._split(files)

    def setup(self, stage: str | None = None) -> None:
        """Leave out images that cannot be read, if asked to, and split the rest."""
        if self.on_error == "skip" and not self._looked:
            self._leave_out_unreadable()
            self._looked = True
        counts = []
        for split, classes in self._split(self._files).items():
            files = [file for images in classes.values() for file in images]
            labels = [label for label, images in enumerate(classes.values()) for _ in images]
            self.splits[split] = ImageFiles(files, labels, self.storage(split))
            counts.append(f"{len(files)} images in {split}")
        self._tell(self._source, counts)

    def _split(self, splits: dict[str, Classes]) -> dict[str, Classes]:
        """Split val off train where there is none."""
        if "val" in splits:
            return splits
        train: Classes = {}
        val: Classes = {}
        for name, files in splits["train"].items():
            if len(files) == 1:
                raise DataError(f"class {name!r} in {self._source} has one image, too few for a train and a val split")
            count = max(0, min(max(round(len(files) * self.val_fraction), 1), len(files) - 1))
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
            kept = {name: [file for file in images if file not in bad] for name, images in classes.items()}
            if gone := [name for name, images in kept.items() if classes[name] and not images]:
                raise DataError(f"class {gone[0]!r} of {split} in {self._source} has no image that can be read")
            self._files[split] = kept
        if errors:
            lines = "\n".join(f"  {printable(message)}" for _, message in errors)
            rank_zero_info(f"skipped {len(errors)} of {len(files)} images:\n{lines}")


def _read_error(path: Path) -> tuple[Path, str] | None:
    try:
        read_image(path)
    except DataError as error:
        return path, str(error)
    return None
