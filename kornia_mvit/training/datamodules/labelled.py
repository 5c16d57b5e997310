"""Image files with a label each, however they are listed."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kornia_mvit.data.reading import DataError, ImageFiles, read_image
from kornia_mvit.data.splits import split_off
from kornia_mvit.files import printable
from kornia_mvit.parsing import count_of
from kornia_mvit.training.datamodules.base import ImageData
from kornia_mvit.training.datamodules.settings import LabelledSettings, check_on_error
from kornia_mvit.training.lightning_names import rank_zero_info

__all__ = ["Classes", "LabelledFiles"]

Classes = dict[str, list[Path]]  # the files of each class


class LabelledFiles(ImageData):
    """What data modules of labelled image files share: a val split where none is given, and unreadable images."""

    def _begin_labelled(self, settings: LabelledSettings) -> None:
        self._begin(settings)
        check_on_error(settings.on_error)
        self.on_error: str = settings.on_error
        self.skipped: list[Path] = []
        self._looked = False

    def _list(self, files: dict[str, Classes], source: str | Path) -> None:
        """Keep the files of every split and where they were found; raise early for classes that are too small."""
        self._files = files
        self._source = source
        self._class_names = tuple(files["train"])
        if "val" not in files:
            self._note_split(sum(map(len, self._split(files)["val"].values())))

    def setup(self, stage: str | None = None) -> None:
        """Leave out images that cannot be read, if asked to, and split the rest."""
        if self.on_error == "skip" and not self._looked:
            self._leave_out_unreadable()
            self._looked = True
        counts = []
        for split, classes in self._split(self._files).items():
            files = [file for images in classes.values() for file in images]
            labels = [label for label, images in enumerate(classes.values()) for _ in images]
            self.splits[split] = _Files(files, labels, self.storage(split))
            counts.append(f"{count_of(len(files), 'image')} in {split}")
        self._tell(self._source, counts)

    def _split(self, splits: dict[str, Classes]) -> dict[str, Classes]:
        """Split val off train where there is none."""
        if "val" in splits:
            return splits
        parts: dict[str, Classes] = {"train": {}, "val": {}}
        for name, files in splits["train"].items():
            if len(files) == 1 and self.val_fraction < 1:
                raise DataError(f"class {name!r} in {self._source} has one image, too few for a train and a val split")
            for part, chosen in zip(parts.values(), split_off(len(files), self.val_fraction, self.seed), strict=True):
                part[name] = [files[n] for n in chosen]
        return splits | parts

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


class _Files(ImageFiles):
    """Image files that tell how to do without those that cannot be read."""

    def read(self, index: int) -> dict[str, Any]:
        """Read an image.

        Raises:
            DataError: naming the file and the option.
        """
        try:
            return super().read(index)
        except DataError as error:
            raise DataError(
                f"{error}; on_error='skip' (--on_error skip) leaves such images out, and names them"
            ) from None


def _read_error(path: Path) -> tuple[Path, str] | None:
    try:
        read_image(path)
    except DataError as error:
        return path, str(error)
    return None
