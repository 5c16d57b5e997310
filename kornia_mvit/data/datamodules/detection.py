"""Images with boxes."""

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info

from kornia_mvit.data.datamodules.base import ImageData
from kornia_mvit.data.datasets import DataError, VOCFiles, find_images, read_voc

__all__ = ["VOCData"]


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
