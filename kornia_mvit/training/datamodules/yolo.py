"""Images with boxes, as YOLO's tools lay them out."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from kornia_mvit.data.boxes import Annotation
from kornia_mvit.data.formats import yolo
from kornia_mvit.data.reading import DataError
from kornia_mvit.ops.keypoints import check_lines
from kornia_mvit.parsing import is_file
from kornia_mvit.training.datamodules.detection import BoxData, BoxSettings, check_names, shorten
from kornia_mvit.training.settings import accepts

__all__ = ["YOLOData", "YOLOSettings"]


@dataclass
class YOLOSettings(BoxSettings):
    """The settings of :class:`YOLOData`, which documents them."""

    _: KW_ONLY
    file: str | None = None
    class_names: Sequence[str] | None = None
    kpt_shape: tuple[int, int] | None = None
    keypoints: bool = False
    keypoint_skeleton: Sequence[tuple[int, int]] = ()


class YOLOData(BoxData):
    """Images with boxes in YOLO's layout, as Ultralytics, LabelImg and many tools write it.

    ``root/images/{train,val}/NAME.*`` with ``root/labels/{train,val}/NAME.txt``, and test if there is one, or whatever
    places ``root/data.yaml`` tells: ``train``, ``val`` and ``test`` are folders, files that list images, or lists of
    either, relative to ``path``. Without it, also the other places of :func:`~kornia_mvit.data.splits.find_places`,
    such as the images of the root itself. The labels of ``.../images/NAME.jpg`` are in ``.../labels/NAME.txt``, or
    beside the image. Each line has a class number, centre, width and height, as shares of the image's sides, or the
    class and an outline, whose box is taken. Where ``data.yaml`` has a ``kpt_shape``, keypoints follow the box, and are
    read with ``keypoints``; its ``flip_idx`` says which keypoint takes the place of each in a mirrored image, and where
    it is missing, left and right in its ``kpt_names``. Images without a label file, or with an empty one, stay as
    background. ``valid`` and ``validation`` stand for val, ``training`` for train and ``testing`` for test. Where there
    is no val, it is split off train. Test images that ``data.yaml`` names and that are not there matter to ``test``
    alone.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Args:
        file: the file with ``names``, and perhaps ``path``, ``train``, ``val`` and ``test``, below the root;
            ``data.yaml`` or ``data.yml`` when None, if there is one.
        class_names: names of the classes in the order of their numbers; when None those of the file, or the lines of
            a ``classes.txt`` in the root or with the labels.
        kpt_shape: number of keypoints behind each box, and of the values of each, 2 or 3; what the file says when None.
        keypoints: read the keypoints too: batches have ``keypoints`` (B, N, K, 2), and ``keypoint_visible`` of 0 for
            what is not labelled, 1 for what is hidden and 2 for what is visible.
        keypoint_skeleton: pairs of keypoints, from 0, between which lines are drawn.

    Raises:
        DataError: naming the file or folder, if one is missing or broken, or if there are no labels at all.

    References:
        https://docs.ultralytics.com/datasets/detect
    """

    _TEST = "add images/test, or name test in data.yaml"

    @accepts(YOLOSettings)
    def __init__(self, settings: YOLOSettings) -> None:
        self._begin_boxes(settings)
        layout = yolo.find_layout(self.root, settings.file, named=bool(settings.class_names))
        self._class_names = check_names(settings.class_names or layout.names)
        if settings.kpt_shape is not None:
            layout.kpt_shape = yolo.check_keypoints("kpt_shape", settings.kpt_shape)
        if not self._class_names:
            raise DataError(
                f"{self.root} does not tell the names of its classes; give class_names (--data.class_names), a "
                f"data.yaml or a classes.txt{_hint(self.root)}"
            )
        count = self._find_keypoints(settings, layout) if settings.keypoints else 0
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
            path: yolo.read_yolo(label, kpt_shape=layout.kpt_shape, keypoints=count > 0)
            if is_file(label)
            else Annotation()
            for path, label in labels.items()
        }
        for split, files in splits.items():
            if files and split != "test" and not any(is_file(labels[path]) for path in files):
                raise DataError(f"no {split} image has labels; those of {files[0]} would be in {labels[files[0]]}")
        if bare := sum(not is_file(label) for label in labels.values()):
            self._notes.append(f"{bare} of the {len(labels)} images have no label file, and stay as background")
        for annotation in found.values():
            yolo.name_classes(annotation, self._class_names)
        named = {path: shorten(label, self.root) for path, label in labels.items()}
        self._fill(splits, found, named, relative=True, keypoints=count)

    def _find_keypoints(self, settings: YOLOSettings, layout: yolo.YOLOLayout) -> int:
        """Take names and pairs of the keypoints, and return their number."""
        if layout.kpt_shape is None:
            raise DataError(
                f"{layout.described or self.root} does not tell the number of keypoints; give kpt_shape "
                "(--data.kpt_shape), such as [17, 3], or leave keypoints out"
            )
        count = layout.kpt_shape[0]
        skeleton = check_lines(settings.keypoint_skeleton, count, "keypoint_skeleton")
        self._set_keypoints(layout.keypoint_names(count), layout.flip_pairs(count), skeleton)
        return count


def _hint(root: Path) -> str:
    """Return what names another layout that is there."""
    for place, name in (("annotations", "COCOData"), ("Annotations", "VOCData")):
        if (root / place).is_dir():
            return f"; the folder {place} is of another layout: --data kornia_mvit.training.datamodules.{name}"
    return ""
