"""Images with boxes: the objects of one image, the boxes of many images in a few tensors, and a dataset."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.data.instances import Outlines
from kornia_mvit.data.reading import DataError, FileSamples, Transform, decode_pixels

__all__ = [
    "Annotation",
    "BoxFiles",
    "BoxRows",
    "BoxTable",
    "build_table",
    "collect_rows",
    "parse_number",
    "read_points",
]

_NUMBERS = 2**63  # from which on a tensor holds none
_LARGEST = torch.finfo(torch.float32).max
_ROUNDING = 1e-3  # of an image's side: formats with few digits put boxes so far beyond it


@dataclass
class Annotation:
    """The objects of one image, right or wrong.

    Args:
        boxes: left, top, right and bottom edges in pixels, or in shares of width and height; NaN for what is no number.
        names: of the objects' classes; their numbers where the file has no names.
        difficult: whether each is marked so.
        given: each as the file has it, for messages.
        faults: what is wrong with some besides their edges, by their place in the lists.
        size: height and width of the image in pixels; zeros where the file does not tell.
        keypoints: x, y and visibility of the keypoints of each object, in pixels or in shares, where they are read.
    """

    boxes: list[list[float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    keypoints: list[list[float]] = field(default_factory=list)

    def add(self, box: Sequence[float], name: str, given: str, fault: str | None, difficult: bool = False) -> None:
        """Append an object."""
        if fault is not None:
            self.faults[len(self.boxes)] = fault
        self.boxes.append(list(box))
        self.names.append(name)
        self.difficult.append(difficult)
        self.given.append(given)


def parse_number(text: str | None) -> float:
    """Return the number that a text of an annotation says; NaN for anything else."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def read_points(values: Sequence[float], limit: float = math.inf) -> tuple[list[float], str | None]:
    """Return keypoints in one form, and what is wrong with them, if anything is.

    Args:
        values: x, y and visibility of each.
        limit: what coordinates of labelled keypoints do not exceed.

    Returns:
        The values, those of keypoints that are not labelled being 0, and a fault or None.
    """
    out = []
    for place in range(0, len(values), 3):
        x, y, state = values[place : place + 3]
        if state not in (0, 1, 2):
            return [0.0] * len(values), f"has keypoint {place // 3} of visibility {state:g}, which is not 0, 1 or 2"
        if state and not (abs(x) <= _LARGEST and abs(y) <= _LARGEST):  # so that NaN fails too
            return [0.0] * len(values), f"has keypoint {place // 3} at ({x:g}, {y:g}), which is not finite"
        if state and max(x, y) > limit:
            return [0.0] * len(values), f"has keypoint {place // 3} at ({x:g}, {y:g}), above 1; points are shares"
        out += [x, y, state] if state else [0.0, 0.0, 0.0]
    return out, None


# N boxes, M images
@dataclass
class BoxRows:
    """Boxes as an annotation tells of them, right or wrong, in any order.

    Args:
        image: (N,) number of the image of each, integer; any number where ``faults`` has the box.
        boxes: (N, 4) left, top, right and bottom edges, float64; NaN for what is no number.
        labels: (N,) classes from 0, integer; any number where ``faults`` has the box.
        difficult: (N,) bool, boxes to leave out of loss and score.
        crowd: (N,) bool, boxes around many objects, to leave out, too.
        areas: (N,) of the objects, float64; NaN for the area of the box.
        faults: what is wrong with a box besides its edges, by its row.
        keypoints: (N, K, 3) x, y and visibility of each box's keypoints, float64; None where they are not read.
        outlines: of each object, as :func:`~kornia_mvit.data.instances.encode_outlines` gives them; None where they are
            not asked for.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor
    areas: Tensor
    faults: dict[int, str] = field(default_factory=dict)
    keypoints: Tensor | None = None
    outlines: list[bytes] | None = None


def collect_rows(annotations: Sequence[Annotation], class_names: Sequence[str], keypoints: int = 0) -> BoxRows:
    """Concatenate the objects of images, those of unknown classes with a fault.

    Args:
        annotations: the objects of each image.
        class_names: names of the classes in the order of their labels.
        keypoints: number of keypoints of each object; 0 where they are not read.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    boxes, names, difficult = (
        list(chain.from_iterable(getattr(found, column) for found in annotations))
        for column in ("boxes", "names", "difficult")
    )
    faults = {row: f"is of the unknown class {name}" for row, name in enumerate(names) if name not in labels}
    starts = accumulate((len(found.names) for found in annotations), initial=0)
    for start, found in zip(starts, annotations, strict=False):  # the last start is the end
        faults |= {start + place: fault for place, fault in found.faults.items()}
    images = [number for number, found in enumerate(annotations) for _ in found.names]
    return BoxRows(
        torch.tensor(images, dtype=torch.long),
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor([labels.get(name, -1) for name in names], dtype=torch.long),
        torch.tensor(difficult, dtype=torch.bool),
        torch.zeros(len(names), dtype=torch.bool),
        torch.full((len(names),), torch.nan, dtype=torch.float64),
        faults,
        _join_keypoints(annotations, keypoints) if keypoints else None,
    )


def _join_keypoints(annotations: Sequence[Annotation], count: int) -> Tensor:
    rows = list(chain.from_iterable(found.keypoints for found in annotations))
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), count, 3)


@dataclass
class BoxTable:
    """The boxes of many images. Few tensors take little memory, and the processes that load images share it.

    Args:
        boxes: (N, 4) left, top, right and bottom edges, float32, in pixels; those of an image stand together.
        labels: (N,) classes from 0, int64.
        ignore: (N,) bool, boxes to leave out of loss and score.
        crowd: (N,) bool, those of them that surround many objects.
        areas: (N,) of the objects in square pixels, float32.
        starts: (M + 1,) row of the first box of each image, and the number of boxes, int64.
        sizes: (M, 2) height and width of each image in pixels, int64; 0 where they are not known.
        relative: whether boxes, keypoints and areas are shares of width and height, not pixels.
        keypoints: (N, K, 3) x, y and visibility (0 not labelled, 1 hidden, 2 visible) of each box's keypoints, float32;
            None where they are not read.
        outlines: the masks of the objects; None where they were not read.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    crowd: Tensor
    areas: Tensor
    starts: Tensor
    sizes: Tensor
    relative: bool = False
    keypoints: Tensor | None = None
    outlines: Outlines | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.starts) - 1

    def count(self) -> Tensor:
        """Return the number of boxes of each image (M,), int64, without those to ignore."""
        images = torch.arange(len(self)).repeat_interleave(self.starts.diff())
        return torch.bincount(images[~self.ignore], minlength=len(self))

    def select(self, images: Sequence[int]) -> "BoxTable":
        """Return the table of the chosen images, in their order."""
        chosen = torch.tensor(images, dtype=torch.long)
        counts = self.starts.diff()[chosen]
        starts = _starts(counts)
        shift = (self.starts[chosen] - starts[:-1]).repeat_interleave(counts)
        rows = torch.arange(len(shift)) + shift
        return BoxTable(
            self.boxes[rows],
            self.labels[rows],
            self.ignore[rows],
            self.crowd[rows],
            self.areas[rows],
            starts,
            self.sizes[chosen],
            self.relative,
            None if self.keypoints is None else self.keypoints[rows],
            None if self.outlines is None else self.outlines.select(rows),
        )


def build_table(rows: BoxRows, sizes: Tensor, *, relative: bool = False) -> tuple[BoxTable, dict[int, str], int]:
    """Clip boxes to their images, leave out those that cannot be used, and put those of an image together.

    Args:
        rows: the boxes.
        sizes: (M, 2) height and width of each image in pixels; not looked at for relative boxes.
        relative: whether boxes and areas are shares of width and height, not pixels.

    Returns:
        The table; what is wrong with the boxes that it leaves out, by their rows; and the number of those in it that
        reached out of their image by more than a thousandth of its side.
    """
    count = len(rows.boxes)
    image = rows.image.clamp(0, max(0, len(sizes) - 1))
    limits = torch.ones(count, 4, dtype=torch.float64)
    if not relative and count:
        limits = sizes.double().flip(-1).repeat(1, 2)[image]
    boxes, clipped = rows.boxes.float(), rows.boxes.clamp_min(0).minimum(limits).float()
    faults: dict[int, str] = {}
    for reason, right in (
        ("lies outside the image", _has_area(clipped)),
        ("has no area", _has_area(boxes)),
        ("is incomplete", boxes.isfinite().all(-1)),  # what is too large for float32, too
    ):
        faults |= dict.fromkeys((~right).nonzero().flatten().tolist(), reason)
    faults |= rows.faults
    kept = torch.ones(count, dtype=torch.bool)
    kept[torch.tensor(sorted(faults), dtype=torch.long)] = False
    beyond = ((clipped.double() - rows.boxes).abs() > _ROUNDING * limits).any(-1)
    order = kept.nonzero().flatten()
    order = order[torch.argsort(image[order], stable=True)]
    sides = clipped[:, 2:] - clipped[:, :2]
    areas = torch.where(rows.areas.isfinite() & (rows.areas >= 0), rows.areas.float(), sides.prod(-1))
    table = BoxTable(
        clipped[order],
        rows.labels[order].long(),
        (rows.difficult | rows.crowd)[order],
        rows.crowd[order],
        areas[order],
        _starts(torch.bincount(image[order], minlength=len(sizes))),
        torch.zeros_like(sizes) if relative else sizes,
        relative,
        None if rows.keypoints is None else rows.keypoints[order].float(),
        None if rows.outlines is None else Outlines.pack([rows.outlines[row] for row in order.tolist()]),
    )
    return table, dict(sorted(faults.items())), int((beyond & kept).sum())


def _starts(counts: Tensor) -> Tensor:
    """Return the first row of each image, and the number of rows, from the number of boxes of each image."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(-1)


class BoxFiles(FileSamples):
    """Image files with boxes.

    Args:
        files: paths of the images.
        table: their boxes.
        transform: what a sample goes through, such as a resize to the storage size.
        image_ids: number of each image in its annotations; its place in ``files`` when None.

    Raises:
        DataError: when an image is fetched that cannot be read, or has not the size that annotations tell, naming the
            file.
    """

    def __init__(
        self,
        files: Sequence[Path],
        table: BoxTable,
        transform: Transform | None = None,
        *,
        image_ids: Sequence[int] | None = None,
    ) -> None:
        if len(files) != len(table):
            raise ValueError(f"{len(files)} files, but boxes of {len(table)} images")
        super().__init__(files, transform)
        self.table = table
        ids = range(len(files)) if image_ids is None else image_ids
        fit = all(-_NUMBERS <= number < _NUMBERS for number in ids)
        self.image_ids: Tensor | list[int] = torch.tensor(ids, dtype=torch.long) if fit else list(ids)

    def read(self, index: int) -> dict[str, Any]:
        """Read an image and its boxes.

        ``original_size`` is height and width of the file's image, to whose pixels a change of size can be undone.
        ``meta`` has the file's ``path``, its ``image_id`` and, for the score, of each box ``box_area``, that of the
        object in square pixels of the file's image, and ``box_crowd``. Augmentation leaves ``meta`` as it is, also
        where it drops boxes. Where keypoints are read, each box has its own, and where outlines are, its mask, in
        ``instance_masks``.
        """
        path, table = self.files[index], self.table
        image = decode_pixels(path)
        height, width = image.shape[1:]
        told = tuple(table.sizes[index].tolist())
        if told not in ((0, 0), (height, width)):
            raise DataError(
                f"{path} is {height}x{width}, turned as its EXIF data tell, but its annotation says {told[0]}x{told[1]}"
            )
        rows = slice(int(table.starts[index]), int(table.starts[index + 1]))
        boxes, areas = table.boxes[rows].clone(), table.areas[rows]
        if table.relative:
            boxes, areas = boxes * torch.tensor([width, height]).repeat(2), areas * (height * width)
        keypoints: dict[str, Tensor] = {}
        if table.keypoints is not None:
            points = table.keypoints[rows, :, :2] * (torch.tensor([width, height]) if table.relative else 1)
            visible = table.keypoints[rows, :, 2].to(torch.uint8)
            keypoints = {"keypoints": points, "keypoint_visible": visible}
        outlines = table.outlines
        masks = {} if outlines is None else {"instance_masks": outlines.masks(rows, (int(height), int(width)))}
        return masks | {
            "image": image,
            "boxes": boxes,
            "box_label": table.labels[rows].clone(),
            "box_ignore": table.ignore[rows].clone(),
            **keypoints,
            "original_size": torch.tensor([height, width]),
            "meta": {
                "path": str(path),
                "image_id": int(self.image_ids[index]),
                "box_area": areas.tolist(),
                "box_crowd": table.crowd[rows].tolist(),
            },
        }
