"""What the kinds of annotations share: a case, plausible names and small pictures, and texts as tools write them."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEMS = ("a", "0", "000012", "img 1", "a b  c", "img.v2", "ä-ö", "x_1", "IMG_0007", "photo (3)", "é", "No1")
SUFFIXES = ("png", "PNG", "jpg", "JPG", "jpeg", "bmp", "jfif", "webp", "tif")
NAMES = (
    "cat",
    "dog",
    "yes",
    "no",
    "010",
    "1.0",
    "traffic light",
    "Ünï",
    "off",
    "1e3",
    "3",
    "o'clock",
    "a:b",
    "x#1",
    "~y",
)
SPLIT_NAMES = {
    "train": ("train", "train", "Train", "training", "TRAINING"),
    "val": ("val", "val", "valid", "validation", "Val"),
    "test": ("test", "testing", "TEST"),
}


@dataclass
class Case:
    """A folder of images and annotations.

    Args:
        load: reads it, and gives what is to be compared.
        expected: what it should give.
        errors: parts of the error that it should raise instead; none where it should be read.
        files: what tells the case, for messages.
    """

    load: Callable[[], Any]
    expected: Any = None
    errors: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


@cache
def picture(width: int, height: int) -> bytes:
    """Return the bytes of a picture; formats are told by content, not by suffix."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 80, 70)).save(file, "PPM")
    return file.getvalue()


def put_picture(path: Path, size: tuple[int, int]) -> Path:
    """Write a picture of a width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(*size))
    return path


def put_mask(path: Path, pixels: np.ndarray, mode: str) -> Path:
    """Write a label image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, "PNG")
    return path


def put_text(path: Path, text: str, rng: random.Random) -> Path:
    """Write a text as one tool or another does: with a mark of the byte order, or with carriage returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.2:
        text = text.replace("\n", "\r\n")
    path.write_bytes((b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + text.encode())
    return path


def some(rng: random.Random, pool: tuple[str, ...], least: int, most: int) -> list[str]:
    """Draw names that differ, also in their case."""
    chosen = rng.sample(pool, rng.randint(least, most))
    return list({name.lower(): name for name in chosen}.values())


def size_of(rng: random.Random) -> tuple[int, int]:
    """Draw a width and a height, which differ more often than not."""
    return rng.randint(4, 12), rng.randint(4, 12)


def boxes_of(data: Any) -> dict[str, Any]:
    """Return what a data module of boxes says, as plain numbers."""
    data.setup()
    found: dict[str, Any] = {"names": list(data.class_names), "left out": len(data.bad_boxes)}
    for split, files in data.splits.items():
        found[split] = [
            (
                Path(sample["meta"]["path"]).name,
                [[round(v, 3) for v in box] for box in sample["boxes"].tolist()],
                sample["box_label"].tolist(),
                sample["box_ignore"].tolist(),
            )
            for sample in files
        ]
    return found


class Boxes:
    """The boxes of an image, as they should come out.

    Args:
        size: width and height of the image.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.rows: list[tuple[list[float], int, bool]] = []
        self.left_out = 0

    def add(self, box: list[float], label: int | None, *, ignore: bool = False, known: bool = True) -> None:
        """Take in a box in pixels; it is left out where it has no area in the image, no class, or is not whole."""
        width, height = self.size
        left, top, right, bottom = box
        inside = [max(left, 0), max(top, 0), min(right, width), min(bottom, height)]
        if not known or label is None or left >= right or top >= bottom or inside[0] >= inside[2]:
            self.left_out += 1
        elif inside[1] >= inside[3]:
            self.left_out += 1
        else:
            self.rows.append((inside, label, ignore))

    def told(self, name: str) -> tuple[str, list[list[float]], list[int], list[bool]]:
        """Return an image's boxes as :func:`boxes_of` does."""
        return (
            name,
            [[round(float(v), 3) for v in box] for box, _, _ in self.rows],
            [label for _, label, _ in self.rows],
            [ignore for _, _, ignore in self.rows],
        )

    @property
    def counts(self) -> bool:
        """Whether there is a box that is not ignored."""
        return any(not ignore for _, _, ignore in self.rows)


def draw_box(rng: random.Random, size: tuple[int, int]) -> list[float]:
    """Draw left, top, right and bottom, in halves of pixels: most lie in the image, some reach out or have no area."""
    width, height = size
    left, top = rng.randrange(2 * width - 2) / 2, rng.randrange(2 * height - 2) / 2
    right, bottom = left + rng.randint(1, width) / 2, top + rng.randint(1, height) / 2
    match rng.randrange(12):
        case 0:
            left, right = right, left
        case 1:
            bottom = top
        case 2:
            left, right = left + width, right + 2 * width
        case 3:
            top -= height / 2
        case _:
            pass
    return [left, top, right, bottom]
