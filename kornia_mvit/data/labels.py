"""A look at the label images of a split before training: what they hold, and what they should not."""

import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from kornia_mvit.data.masks import MaskFiles, mask_values
from kornia_mvit.data.reading import DataError
from kornia_mvit.parsing import cut

__all__ = ["find_values", "look_at_labels"]

_LOOK = 50  # label images that are read before a run
_MOST = 0.5  # share of pixels to ignore, above which a warning is due


def find_values(files: Sequence[Path], expected: AbstractSet[int] | None = None) -> set[int]:
    """Return the values that label images hold.

    Args:
        files: all label images.
        expected: no more of them are read once there is another value.

    Raises:
        DataError: naming the file, as :func:`~kornia_mvit.data.masks.mask_values`.
    """
    found: set[int] = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _LOOK):
            found.update(*pool.map(mask_values, files[start : start + _LOOK]))
            if expected is not None and not found <= expected:
                break
    return found


def look_at_labels(data: MaskFiles, split: str, class_names: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Read some label images, evenly spread, and tell of classes that are missing and of pixels to ignore.

    Where these hold no more than one class, and pixels to ignore, the others are read until there is another class.

    Args:
        data: the images.
        split: what messages call them.
        class_names: names of the classes.

    Returns:
        What was found, and whether it is likely to be a mistake.

    Raises:
        DataError: if no pixel is labelled, or, in train, all that are labelled are of one class beside those to ignore.
    """
    count, k = len(data), len(class_names)
    order = list(dict.fromkeys(round(n * (count - 1) / (_LOOK - 1)) for n in range(_LOOK)))
    order += sorted({*range(count)} - {*order})
    pixels, ignored, seen = torch.zeros(k, dtype=torch.long), 0, 0
    for place, index in enumerate(order):
        if place >= _LOOK and (int((pixels > 0).sum()) > 1 or not ignored):
            break
        try:
            mask = data.read_label(index)
        except DataError:  # which is raised when the sample is fetched
            continue
        known = mask[mask != data.ignore_index]
        pixels += torch.bincount(known, minlength=k)
        ignored += mask.numel() - len(known)
        seen += 1
    there = pixels.nonzero().flatten().tolist()
    if not seen or (not there and not ignored):
        return
    ignoring = " and ".join(map(str, data.ignored))
    looked = f"the {seen} label images of {split} that were looked at"
    remedy = "if that is a class, give its value (--data.values '[0, 255]') or its colour (--data.classes FILE)"
    if not there:
        raise DataError(f"{looked} have no labelled pixel, all are {ignoring}, to ignore; {remedy}")
    if len(there) == 1 and ignored and k > 1:
        told = f"{looked} hold the class {cut(class_names[there[0]])} and pixels of {ignoring}, to ignore, and no other"
        if split == "train" and seen == count:
            raise DataError(f"{told} of the {k} classes; {remedy}")
        yield True, f"{told} of the {k} classes, so that scores say nothing; {remedy}"
    elif len(there) < k:
        missing = [class_names[n] for n in range(k) if n not in there]
        yield False, f"{looked} do not have {len(missing)} of the {k} classes: {cut(', '.join(missing))}"
    if ignored > _MOST * (ignored + int(pixels.sum())):
        share = ignored / (ignored + int(pixels.sum()))
        yield True, f"{share:.0%} of the pixels in {looked} are {ignoring}, to ignore; {remedy}"
