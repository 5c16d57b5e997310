"""The masks of single objects in few bytes, from COCO's polygons and run lengths. Needs ``kornia-mvit[train]``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.extras import needing
from kornia_mvit.parsing import brief

__all__ = ["Outlines", "encode_outlines"]

Size = tuple[int, int]

_LEAST = 6  # numbers of a polygon, three points
_LONGEST = 10  # characters of a number in compressed run lengths


@dataclass
class Outlines:
    """The masks of many objects as COCO's compressed run lengths. Two tensors, which processes share.

    Args:
        data: run lengths of all, one after the other, uint8; of an object without a mask, none.
        starts: (N + 1,) where those of each object begin, and the number of all, int64.
    """

    data: Tensor
    starts: Tensor

    @classmethod
    def pack(cls, outlines: Sequence[bytes]) -> "Outlines":
        """Put the run lengths of several objects together."""
        lengths = torch.tensor([0, *map(len, outlines)])
        return cls(
            torch.frombuffer(bytearray(b"".join(outlines)) or bytearray(1), dtype=torch.uint8), lengths.cumsum(0)
        )

    def __getitem__(self, row: int) -> bytes:
        return bytes(self.data[self.starts[row] : self.starts[row + 1]].tolist())

    def select(self, rows: Tensor) -> "Outlines":
        """Return those of the chosen objects, in their order."""
        return Outlines.pack([self[row] for row in rows.tolist()])

    def masks(self, rows: slice, size: Size) -> Tensor:
        """Return the masks (n, H, W) of some objects of an image, bool.

        Args:
            rows: from a first to behind a last one.
            size: height and width of their image.
        """
        api = _mask_api()
        out = torch.zeros(rows.stop - rows.start, *size, dtype=torch.bool)
        for place, row in enumerate(range(rows.start, rows.stop)):
            if counts := self[row]:
                found = api.decode({"size": [*size], "counts": counts})
                out[place] = torch.from_numpy(found).reshape(size).bool()
        return out


def _mask_api() -> Any:
    with needing("masks of objects need faster-coco-eval", "train"):
        from faster_coco_eval.core import mask  # type: ignore[import-untyped]  # it has no stubs
    return mask


def encode_outlines(outlines: Sequence[Any], sizes: Sequence[Size]) -> tuple[list[bytes], dict[int, str]]:
    """Compress outlines as COCO's files have them.

    Args:
        outlines: of each object a list of polygons x, y, x, y and so on in pixels, or a mapping of ``size`` and
            ``counts``, as a list or a text; None or an empty list for no mask.
        sizes: height and width of the image of each.

    Returns:
        The run lengths of each, and what is wrong with some, by their place.
    """
    out, faults = [], {}
    for place, (outline, size) in enumerate(zip(outlines, sizes, strict=True)):
        try:
            out.append(_encode(outline, size))
        except ValueError as error:
            out.append(b"")
            faults[place] = str(error)
    return out, faults


def _encode(outline: Any, size: Size) -> bytes:
    api = _mask_api()
    if outline is None or outline == []:
        return b""
    if isinstance(outline, Mapping):
        runs: dict[str, Any] = api.frPyObjects({"size": [*size], "counts": _run_lengths(outline, size)}, *size)
    elif isinstance(outline, list):
        runs = api.merge(api.frPyObjects(_polygons(outline, size), *size))
    else:
        raise ValueError(f"has the outline {brief(outline)}, which is neither polygons nor run lengths")
    return bytes(runs["counts"])


def _polygons(outline: list[Any], size: Size) -> list[list[float]]:
    """Return the polygons of an outline that have three points or more."""
    polygons = outline if all(isinstance(one, list) for one in outline) else [outline]
    limits = size[1], size[0]
    for polygon in polygons:
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in polygon) or len(polygon) % 2:
            raise ValueError(f"has the outline {brief(polygon)}, which is no list of x, y, x, y and so on")
        if not all(-limits[k % 2] <= v <= 2 * limits[k % 2] for k, v in enumerate(polygon)):
            raise ValueError(f"has the outline {brief(polygon)}, which reaches far out of the image")
    found = [[float(v) for v in polygon] for polygon in polygons if len(polygon) >= _LEAST]
    if not found:
        raise ValueError(f"has the outline {brief(outline)}, of fewer than three points")
    return found


def _run_lengths(outline: Mapping[str, Any], size: Size) -> list[int]:
    """Return the run lengths of a mask, which add up to the pixels of its image."""
    counts = outline.get("counts")
    if outline.get("size") != [*size]:
        raise ValueError(f"has an outline of size {brief(outline.get('size'))}, but its image is {size[0]}x{size[1]}")
    if isinstance(counts, str):
        counts = _read_counts(counts)
    if not isinstance(counts, list) or not all(type(v) is int and v >= 0 for v in counts):
        raise ValueError(f"has an outline of the run lengths {brief(counts)}, which are no whole numbers from 0")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"has an outline of {sum(counts)} pixels, but its image has {size[0] * size[1]}")
    return counts


def _read_counts(text: str) -> list[int]:
    """Read run lengths from COCO's text: numbers of six bits a character, from the third on less the last but one."""
    counts: list[int] = []
    value = length = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or length == _LONGEST:
            raise ValueError(f"has an outline of the run lengths {brief(text)}, which are not COCO's")
        value |= (bits & 31) << 5 * length
        length += 1
        if not bits & 32:
            value -= (bits & 16 and 1) << 5 * length
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = length = 0
    if length:
        raise ValueError(f"has an outline of the run lengths {brief(text)}, which end in a number")
    return counts
