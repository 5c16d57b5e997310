"""Pascal VOC's layout: lists of images, and an XML file with the boxes of each image."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kornia_mvit.data.boxes import Annotation, parse_number
from kornia_mvit.data.reading import DataError, find_images
from kornia_mvit.data.splits import read_list, target_file
from kornia_mvit.parsing import brief, either_case, is_folder, reason_of

__all__ = ["VOCFolder", "annotation_file", "read_voc"]

_LONGEST = 2**31 - 1  # side of an image, in pixels


@dataclass(frozen=True)
class VOCFolder:
    """The lists of a folder in Pascal VOC's layout, and the images that they name.

    Args:
        root: the folder, with ``ImageSets`` and ``JPEGImages``.
        lists: the folder of the lists, below ``ImageSets``.
        targets: the folder of annotations or label images, which errors name.
    """

    root: Path
    lists: str
    targets: str

    @cached_property
    def images(self) -> dict[str, Path]:
        """The images by their names without suffix."""
        return {path.stem: path for path in find_images(self.root / "JPEGImages")}

    def has_lists(self) -> bool:
        """Return whether there is a folder of lists."""
        return is_folder(self.root / "ImageSets")

    def list_file(self, name: str) -> Path:
        """Return the path of a list."""
        return self.root / "ImageSets" / self.lists / f"{name.removesuffix('.txt')}.txt"

    def read_names(self, name: str) -> list[str]:
        """Return the names in a list.

        Raises:
            DataError: if there is no such list, or it cannot be read.
        """
        file = self.list_file(name)
        if not file.is_file():
            there = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
            raise DataError(
                f"no such list: {file}; lists there: {there}. root (--data.root) has ImageSets, JPEGImages and "
                f"{self.targets}"
            )
        return read_list(file, self.images)

    def find_listed(self, name: str) -> dict[str, Path]:
        """Return the images of a list by their names.

        Raises:
            DataError: if there is no such list, or it names no image, or images that are missing.
        """
        names = self.read_names(name)
        if not names:
            raise DataError(f"{self.list_file(name)} names no image")
        if missing := [stem for stem in names if stem not in self.images]:
            raise DataError(
                f"{self.list_file(name)} names {len(missing)} images that are not in JPEGImages, such as "
                f"{brief(missing[0])}"
            )
        return {stem: self.images[stem] for stem in names}

    def annotation(self, name: str) -> Path:
        """Return the path of an image's boxes."""
        return either_case(self.root / self.targets / f"{name}.xml")


def annotation_file(image: Path) -> Path:
    """Return the path of an image's XML file, in a folder of annotations or beside the image."""
    return target_file(image, ".xml", ("Annotations", "annotations", "labels"))


def read_voc(path: str | Path, *, origin: int = 1) -> Annotation:
    """Read a Pascal VOC annotation.

    VOC counts pixels from 1 and names the last one of a box: one of the first two pixels of the first two rows is
    (1, 1, 2, 2), and (0, 0, 2, 2) in edges. Where the last pixel is the first, nothing was boxed.

    Args:
        path: an XML file.
        origin: number of the first pixel; 0 for files that count from there. Either way the last one is named.

    Returns:
        The objects, boxes in pixels, neither clipped nor left out.

    Raises:
        DataError: naming the file, if it is missing or not such a file, or has entities, which could expand.
        ImportError: if defusedxml is missing.
    """
    try:
        from defusedxml import ElementTree  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as error:
        raise ImportError("reading VOC annotations needs defusedxml; install kornia-mvit[train]") from error
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"no such annotation: {path}") from None
    except Exception as error:  # of the parser's, of defusedxml's, and of decoders'
        raise DataError(f"cannot read annotation {path}: {reason_of(error)}") from None
    height, width = (parse_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    told = all(math.isfinite(side) and 1 <= side <= _LONGEST for side in (height, width))
    out = Annotation(size=(round(height), round(width)) if told else (0, 0))
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        low_x, low_y, high_x, high_y = (
            parse_number(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        given = f"{name or 'an object without a name'} ({low_x:g}, {low_y:g}, {high_x:g}, {high_y:g})"
        fault = "has no area" if high_x <= low_x or high_y <= low_y else None if name else "is incomplete"
        box = (low_x - origin, low_y - origin, high_x + 1 - origin, high_y + 1 - origin)
        out.add(box, name, given, fault, parse_number(item.findtext("difficult")) == 1)
    return out
