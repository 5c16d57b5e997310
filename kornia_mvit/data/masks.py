"""Label images: a class for each pixel."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from kornia_mvit.data.reading import DataError, FileSamples, Transform, decode_pixels, load, opened

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MaskFiles", "check_mask", "mask_values", "read_mask"]

Colours = Mapping[tuple[int, int, int], int]  # the number of each colour, red, green and blue from 0 to 255

_GREY = ("1", "L", "I", "I;16", "I;16L", "I;16B")  # modes of one channel
_COLOURED = ("P", "RGB", "RGBA", "LA", "PA")


def read_mask(
    path: str | Path | IO[bytes],
    colours: Colours | None = None,
    *,
    reserved: Collection[int] = (),
    name: str | None = None,
) -> Tensor:
    """Read a label image: a class number for each pixel.

    Those of grey images are their values, those of palette images the indices, not the colours. With ``colours``
    those of colour and palette images are what stands for their colours, and so are those of grey images, unless their
    values are numbers of classes while some class has a colour that is no grey.

    Args:
        path: a PNG or another lossless file, or one opened for binary reading: of one channel, 8 or 16 bit; with
            ``colours`` also of three.
        colours: the number of each colour, red, green and blue from 0 to 255.
        reserved: indices of a palette that are numbers whatever their colours, such as that of pixels to ignore.
        name: what errors call it; its path when None.

    Returns:
        (H, W), int64.

    Raises:
        DataError: naming the file, if it is missing, damaged or lossy, has a colour that is not known, or has
            colours where none are known.
        ImportError: if Pillow is missing.
    """
    with opened(path, name, what="label image") as image:
        path = str(path) if name is None else name
        _load(image, path)
        if colours is not None and (image.mode in _COLOURED or _greys_are_colours(image, colours, reserved)):
            return _mask_of_colours(image, path, colours, reserved)
        if image.mode not in (*_GREY, "P"):
            raise DataError(
                f"{path} is a colour image ({image.mode}), {image.getpixel((0, 0))} at its upper left; label "
                "images hold a class number a pixel, in one channel or a palette, unless a file of classes tells "
                "their colours"
            )
        numbers = image.convert("I") if image.mode.startswith("I") else image
        dtype = torch.int32 if numbers.mode == "I" else torch.uint8
        data = torch.frombuffer(
            bytearray(numbers.convert("L" if image.mode == "1" else numbers.mode).tobytes()), dtype=dtype
        )
        mask = data.view(image.height, image.width).long()
    return (mask > 0).long() if image.mode == "1" else mask


def _load(image: "Image.Image", path: str | Path) -> None:
    load(image)
    if image.format == "JPEG":
        raise DataError(f"{path} is a JPEG, which changes values; label images are PNGs or other lossless files")


def mask_values(path: str | Path) -> set[int]:
    """Return the values that a label image holds; of a black and white one of any mode, 0 and 255.

    Raises:
        DataError: as :func:`read_mask` without colours.
    """
    with opened(path, what="label image") as image:
        _load(image, path)
        if image.mode in (*_COLOURED, "1"):
            values: Mapping[Any, int] = {(0, 0, 0): 0, (255, 255, 255): 255}
            there = {values.get(colour, -1) for _, colour in image.convert("RGB").getcolors(2) or [(0, None)]}
            if -1 not in there:
                return there
        ignored = {255} if image.mode == "P" else set()  # of a palette, unless it is white
    return {*torch.unique(read_mask(path)).tolist()} - ignored


def _greys_are_colours(image: "Image.Image", colours: Colours, reserved: Collection[int]) -> bool:
    """Return whether the values of a grey image are colours, not numbers of classes."""
    if image.mode not in ("1", "L"):
        return False  # 16 bit, which no colours have
    classes = {number for number in colours.values() if number not in reserved}
    greys = {red: number for (red, green, blue), number in colours.items() if red == green == blue}
    there = {int(value) for value, count in enumerate(image.convert("L").histogram()) if count}
    numbers = {value // 255 for value in there} if image.mode == "1" else there
    are_numbers = all(n in classes or (n in reserved and greys.get(n, -1) not in classes) for n in numbers)
    if classes <= {*greys.values()}:
        return not are_numbers or there <= greys.keys()
    return not are_numbers and there <= greys.keys() | {*reserved}


def _mask_of_colours(
    image: "Image.Image",
    path: str | Path,
    colours: Colours,
    reserved: Collection[int],
) -> Tensor:
    """Look up the number of each pixel's colour."""
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).long()
    codes = pixels.view(image.height, image.width, 3) @ torch.tensor([1 << 16, 1 << 8, 1])
    table = sorted((red << 16 | green << 8 | blue, number) for (red, green, blue), number in colours.items())
    known, numbers = torch.tensor(table).T.contiguous().unbind()
    places = torch.searchsorted(known, codes).clamp_max(len(known) - 1)
    mask, missing = numbers[places], known[places] != codes
    if image.mode in ("P", "L"):
        indices = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view_as(mask).long()
        kept = torch.isin(indices, torch.tensor([*reserved], dtype=torch.long))
        kept &= missing | (codes != indices * 0x010101)  # a grey that is a class's colour stays one
        mask, missing = torch.where(kept, indices, mask), missing & ~kept
    if missing.any():
        row, column = missing.nonzero()[0].tolist()
        code = int(codes[row, column])
        raise DataError(
            f"{path} has the colour {(code >> 16, code >> 8 & 255, code & 255)}, at row {row} and column {column}, "
            f"which is none of the {len(colours)} of the classes; add it to their file, as a class, or beside "
            "'classes:' as 'ignore: [[R, G, B]]'"
        )
    return mask


class MaskFiles(FileSamples):
    """Image files with label images.

    Args:
        files: paths of the images.
        masks: path of the label image of each.
        num_classes: classes count from 0 to below this.
        ignore_index: number of the pixels to ignore.
        ignore_label: another number in the files that is to be ignored.
        colours: see :func:`read_mask`.
        transform: what a sample goes through, such as a resize to the storage size.

    Raises:
        DataError: when a sample is fetched whose files cannot be read, differ in size, or hold other classes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        masks: Sequence[Path],
        num_classes: int,
        *,
        ignore_index: int = 255,
        ignore_label: int | None = None,
        colours: Colours | None = None,
        transform: Transform | None = None,
    ) -> None:
        if len(files) != len(masks):
            raise ValueError(f"{len(files)} files, but {len(masks)} masks")
        super().__init__(files, transform)
        self.masks: list[Path] = list(masks)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        label = ignore_index if ignore_label is None else ignore_label
        self.ignored: list[int] = [*dict.fromkeys((ignore_index, label))]
        self.colours = colours

    def read(self, index: int) -> dict[str, Any]:
        """Read an image and its label image."""
        path, label = self.files[index], self.masks[index]
        image, mask = decode_pixels(path), self.read_label(index)
        if image.shape[1:] != mask.shape:
            raise DataError(
                f"{path} is {image.shape[1]}x{image.shape[2]}, but its label image {label} is "
                f"{mask.shape[0]}x{mask.shape[1]}"
            )
        return {"image": image, "mask": mask, "meta": {"path": str(path)}}

    def read_label(self, index: int) -> Tensor:
        """Return the classes of an image's pixels (H, W), int64, ``ignore_index`` for those to ignore."""
        label = self.masks[index]
        mask = read_mask(label, self.colours, reserved=self.ignored)
        check_mask(mask, str(label), self.num_classes, self.ignored)
        return mask.masked_fill(torch.isin(mask, torch.tensor(self.ignored)), self.ignore_index)


def check_mask(mask: Tensor, place: str, num_classes: int, ignored: Sequence[int]) -> Tensor:
    """Return a mask (H, W) whose numbers are classes, or numbers of pixels to ignore.

    Raises:
        DataError: naming the file and a place in it, if it has others.
    """
    wrong = ((mask < 0) | (mask >= num_classes)) & ~torch.isin(mask, torch.tensor(ignored))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise DataError(
            f"{place} has class {int(mask[row, column])}, but there are {num_classes} classes, from 0; it is at row "
            f"{row} and column {column}. Ignored: {', '.join(map(str, ignored))}"
        )
    return mask
