"""Images with boxes, as YOLO's tools lay them out."""

from collections.abc import Sequence
from pathlib import Path

from kornia_mvit.data.boxes import Annotation
from kornia_mvit.data.formats import yolo
from kornia_mvit.data.reading import DataError
from kornia_mvit.parsing import is_file
from kornia_mvit.training.datamodules.detection import BoxData, check_names

__all__ = ["YOLOData"]


class YOLOData(BoxData):
    """Images with boxes in YOLO's layout, as Ultralytics and many tools write it.

    ``root/images/{train,val}/NAME.*`` with ``root/labels/{train,val}/NAME.txt``, and test if there is one, or whatever
    places ``root/data.yaml`` tells: ``train``, ``val`` and ``test`` are folders, files that list images, or lists of
    either, relative to ``path``; the labels of ``.../images/NAME.jpg`` are in ``.../labels/NAME.txt``. Each line has a
    class number, centre, width and height, as shares of the image's sides, or the class and an outline, whose box is
    taken. Where ``data.yaml`` has a ``kpt_shape``, keypoints follow the box, and are left. Images without a label file,
    or with an empty one, stay as background. ``valid`` and ``validation`` stand for val, ``training`` for train and
    ``testing`` for test. Test images that ``data.yaml`` names and that are not there matter to ``test`` alone.

    Args:
        root: the folder.
        batch_size: images in a batch.
        num_workers: processes that decode.
        storage_size: of training images, see :class:`FolderData`. Others keep their size, at which they are scored,
            unless it is given.
        file: the file with ``names``, and perhaps ``path``, ``train``, ``val`` and ``test``, below the root;
            ``data.yaml`` when None, if there is one.
        class_names: names of the classes in the order of their numbers; those of the file when None.
        kpt_shape: number of keypoints behind each box, and of the values of each, 2 or 3; what the file says when None.
        on_bad_box: boxes without an area, outside their image, incomplete, with a wrong count of numbers, or of an
            unknown class: ``'drop'`` counts and lists them with file and line, ``'raise'`` refuses the dataset.

    Raises:
        DataError: naming the file or folder, if one is missing or broken, or if there are no labels at all.

    References:
        https://docs.ultralytics.com/datasets/detect
    """

    _TEST = "add images/test, or name test in data.yaml"

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 2,
        storage_size: int | None = None,
        *,
        file: str | None = None,
        class_names: Sequence[str] | None = None,
        kpt_shape: tuple[int, int] | None = None,
        on_bad_box: str = "drop",
    ) -> None:
        super().__init__(root, batch_size, num_workers, storage_size, on_bad_box)
        layout = yolo.find_layout(self.root, file, named=bool(class_names))
        self._class_names = check_names(class_names or layout.names)
        if kpt_shape is not None:
            layout.kpt_shape = yolo.check_keypoints("kpt_shape", kpt_shape)
        if not self._class_names:
            raise DataError(
                f"{self.root} does not tell the names of its classes; give class_names (--data.class_names), or a "
                f"data.yaml{_hint(self.root)}"
            )
        splits: dict[str, list[Path]] = {}
        for split, places in layout.splits.items():
            try:
                images = [path for place in places for path in yolo.list_images(layout.folder, place)]
            except DataError as error:
                if split != "test":
                    raise
                self._leave_out_test(error)
                continue
            splits[split] = list(dict.fromkeys(images))
        labels = {path: yolo.label_file(path) for files in splits.values() for path in files}
        found = {
            path: yolo.read_yolo(label, kpt_shape=layout.kpt_shape) if is_file(label) else Annotation()
            for path, label in labels.items()
        }
        if not any(is_file(label) for label in labels.values()):
            first, label = next(iter(labels.items()))
            raise DataError(f"no image of {self.root} has labels; those of {first} would be in {label}")
        for split, files in splits.items():
            if files and split != "test" and not any(is_file(labels[path]) for path in files):
                raise DataError(f"no {split} image has labels; those of {files[0]} would be in {labels[files[0]]}")
        for annotation in found.values():
            yolo.name_classes(annotation, self._class_names)
        self._fill(splits, found, {path: _below(label, self.root) for path, label in labels.items()}, relative=True)


def _hint(root: Path) -> str:
    """Return what names another layout that is there."""
    for place, name in (("annotations", "COCOData"), ("Annotations", "VOCData")):
        if (root / place).is_dir():
            return f"; the folder {place} is of another layout: --data kornia_mvit.training.datamodules.{name}"
    return ""


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
