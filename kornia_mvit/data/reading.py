"""Image datasets: decoded to uint8, brought to a storage size, nothing random."""

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kornia_mvit.files import FileError, check_local
from kornia_mvit.parsing import brief, cut, is_folder, reason_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "SUFFIXES_TOLD",
    "DataError",
    "ImageFiles",
    "MaskFiles",
    "find_classes",
    "find_images",
    "from_picture",
    "is_hidden",
    "read_image",
    "read_mask",
    "read_size",
    "transformed",
    "unknown_label",
]

Transform = Callable[[dict[str, Any]], Mapping[str, Any]]

_GREY = ("1", "L", "I", "I;16", "I;16L", "I;16B")  # modes of one channel
_COLOURED = ("P", "RGB", "RGBA", "LA", "PA")
_WIDTH, _HEIGHT, _BITS, _GREATEST = 256, 257, 258, 281  # tags of TIFF
_DARK: list[int] = []  # greatest value of an image that was told of: one is enough
_STRIP = 2**22  # pixels of an image that are at hand in several forms at a time

IMAGE_SUFFIXES = frozenset(
    f".{suffix}" for suffix in "jpg jpeg jpe jfif png bmp gif tif tiff webp avif ppm pgm pbm pnm jp2 tga".split()
)
SUFFIXES_TOLD = ", ".join(sorted(IMAGE_SUFFIXES, key=lambda suffix: (len(suffix), suffix)))  # as errors list them
_NOT_DATA = ("__MACOSX", "@eaDir")  # folders that systems put beside files of one's own


class DataError(FileError):
    """A dataset is not what it should be; the message names the file or folder."""


def unknown_label(place: str, label: object, class_names: Sequence[str]) -> DataError:
    """Make the error for a label that is none of the classes, with the first of these."""
    some = ", ".join(map(brief, class_names[:10])) + (", ..." if len(class_names) > 10 else "")
    return DataError(f"{place}: label {brief(label)} is none of the {len(class_names)} classes {some}")


def read_image(source: str | Path | IO[bytes], name: str | None = None) -> Tensor:
    """Decode an image file to RGB.

    The EXIF orientation is applied. Grey and palette images become RGB, 16 bit ones 8 bit; transparent pixels are
    laid over white, CMYK is converted. What a TIFF says of its bits or its greatest value counts; grey of 16 bits that
    uses twelve or fewer, and turns nearly black, is told of in a warning, once.

    Args:
        source: a file of any format that Pillow reads: its path, or the file, opened for binary reading.
        name: what errors call it; its path when None.

    Returns:
        (3, H, W), uint8.

    Raises:
        DataError: naming the file, if it is missing, not an image, or damaged.
        ImportError: if Pillow is missing.
    """
    name = str(source) if name is None else name
    try:
        from PIL import ImageOps
    except ImportError as error:
        raise ImportError("reading images needs Pillow; install kornia-mvit[train]") from error
    with _decoding(source, name, "image"), _opened(source) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(image)
    return _to_tensor(rgb)


def from_picture(picture: "Image.Image", name: str) -> Tensor:
    """Return a PIL image as :func:`read_image` returns its file: turned upright, in RGB.

    Args:
        picture: of any mode.
        name: what errors call it.

    Returns:
        (3, H, W), uint8.

    Raises:
        DataError: for pixels that cannot be converted.
    """
    from PIL import ImageOps

    with _decoding(picture, name, "image"):
        return _to_tensor(_to_rgb(ImageOps.exif_transpose(picture)))


def _to_tensor(rgb: "Image.Image") -> Tensor:
    out = torch.empty(3, rgb.height, rgb.width, dtype=torch.uint8)
    step = max(1, _STRIP // rgb.width)
    for top in range(0, rgb.height, step):  # so that large images are not in memory several times
        strip = rgb.crop((0, top, rgb.width, min(top + step, rgb.height)))
        pixels = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8)
        out[:, top : top + step] = pixels.view(strip.height, strip.width, 3).permute(2, 0, 1)
    return out


@contextmanager
def _opened(source: str | Path | IO[bytes]) -> Iterator["Image.Image"]:
    """Give Pillow an open file: of a path it maps TIFFs of some modes into memory, and scrambles those it turns."""
    from PIL import Image

    if not isinstance(source, str | Path):
        with Image.open(source) as image:
            yield image
        return
    with open(source, "rb") as file, Image.open(file) as image:
        yield image


def _check_file(source: object, name: str) -> None:
    """Raise for what is no file, such as a named pipe, on which reading would wait for ever."""
    if isinstance(source, str | Path) and Path(source).exists() and not Path(source).is_file():
        raise DataError(f"{name} is {'a folder' if Path(source).is_dir() else 'a pipe or a device'}, not an image file")


def read_size(path: str | Path) -> tuple[int, int]:
    """Give height and width of the image that :func:`read_image` gives, without decoding it.

    Raises:
        DataError: naming the file, if it is missing or not an image.
        ImportError: if Pillow is missing.
    """
    try:
        from PIL import ExifTags
    except ImportError as error:
        raise ImportError("reading images needs Pillow; install kornia-mvit[train]") from error
    with _decoding(path, str(path), "image"), _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        # Pillow turns TIFFs by itself, and some of its versions have their size turned before that
        tags: Mapping[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
        width, height = (tags[_WIDTH], tags[_HEIGHT]) if tags else (image.width, image.height)
        return (width, height) if turned else (height, width)


@contextmanager
def _decoding(source: object, name: str, what: str) -> Iterator[None]:
    """Raise a DataError that names the file for whatever Pillow raises on it."""
    from PIL import UnidentifiedImageError

    try:
        _check_file(source, name)
        yield
    except DataError:
        raise
    except FileNotFoundError:
        check_local(name)
        raise DataError(f"no such {what}: {name}") from None
    except UnidentifiedImageError:
        raise DataError(f"not an image, or of a format that Pillow cannot read: {name}") from None
    except Exception as error:  # decoders raise struct.error, IndexError, TypeError and others on damaged bytes
        raise DataError(f"cannot read {what} {name}: {reason_of(error)}") from None


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):
        return _grey_to_rgb(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the file to 8 or 16 bit")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_rgb(image: "Image.Image") -> "Image.Image":
    """Scale grey of 16 bits, or as many as the file says, to 8; Pillow's own conversion clips instead of scaling."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, 16)
    bits = bits[0] if isinstance(bits, tuple) else bits
    greatest = tags.get(_GREATEST, 0)
    greatest = greatest[0] if isinstance(greatest, tuple) else greatest
    numbers = image.convert("I")
    low, high = cast(tuple[int, int], numbers.getextrema())
    if low < 0 or high >= 2**16:
        raise ValueError(f"grey values from {low} to {high} are none of 16 bits; convert the file to 8 or 16 bit")
    used = max(8, min(bits, int(greatest).bit_length() or 16, 16))
    if high >= 2**used:
        used = 16
    if used == 16 and 0 < high < 2**12 and not _DARK:
        _DARK.append(high)
        warnings.warn(
            f"a grey image of 16 bits has no value above {high:,} and turns nearly black; if its data have fewer bits, "
            "scale them to 16, or save as TIFF with MaxSampleValue",
            stacklevel=2,
        )
    return numbers.point([min(v >> (used - 8), 255) for v in range(65536)], "L").convert("RGB")


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder of that name is none of the data: hidden, or put there by a system."""
    return name.startswith(".") or name in _NOT_DATA


def _find_files(folder: Path) -> Iterator[Path]:
    """Give the files below a folder, also where links lead, without those that are hidden."""
    root = os.path.realpath(folder)
    folders = [(folder, frozenset(map(str, Path(root).parents)))]
    while folders:
        place, above = folders.pop()
        real = os.path.realpath(place)
        if real in above:  # a link to a folder that it is in
            continue
        with os.scandir(place) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.append((Path(entry.path), above | {real}))
                elif entry.is_file():
                    yield Path(entry.path)


def find_images(folder: str | Path, left_out: list[Path] | None = None) -> list[Path]:
    """List the image files below a folder, by their suffix, in the order of their names.

    Links to folders are followed; hidden files and folders are left out.

    Args:
        folder: the folder.
        left_out: a list that takes in the other files.

    Raises:
        DataError: if the folder is missing or has no image.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise DataError(f"no such folder: {cut(folder)}")
    if folder.resolve() == Path(folder.resolve().anchor):
        raise DataError(f"{cut(folder)} is a whole disk, not a folder of images")
    try:
        found = sorted(_find_files(folder))
    except OSError as error:
        raise DataError(f"cannot list the images in {cut(folder)}: {reason_of(error)}") from None
    files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if left_out is not None:
        left_out += [path for path in found if path.suffix.lower() not in IMAGE_SUFFIXES]
    if not files:
        raise DataError(f"no image in {cut(folder)}; looked for {SUFFIXES_TOLD}")
    return files


def find_classes(root: str | Path, left_out: list[Path] | None = None) -> dict[str, list[Path]]:
    """List the classes of a folder with one subfolder a class, with their images, in the order of their names.

    Hidden folders are left out.

    Args:
        root: the folder.
        left_out: a list that takes in the files beside the classes' folders, and those in them that are no images.

    Raises:
        DataError: if the folder is missing, has no subfolder, or a class has no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no such folder: {root}")
    entries = sorted(p for p in root.iterdir() if not is_hidden(p.name))
    folders = [p for p in entries if p.is_dir()]
    if not folders:
        images = sum(p.suffix.lower() in IMAGE_SUFFIXES for p in root.iterdir())
        found = f"has {images} images but no folders" if images else "is empty"
        raise DataError(f"{root} {found}: it needs a folder for each class, with that class's images in it")
    if left_out is not None:
        left_out += [p for p in entries if not p.is_dir()]
    return {folder.name: find_images(folder, left_out) for folder in folders}


def read_mask(
    path: str | Path,
    colours: Mapping[tuple[int, int, int], int] | None = None,
    *,
    reserved: Collection[int] = (),
) -> Tensor:
    """Read a label image: a class number for each pixel.

    Those of grey images are their values, those of palette images the indices, not the colours. With ``colours``
    those of colour and palette images are what stands for their colours, and so are those of grey images, unless their
    values are numbers of classes while some class has a colour that is no grey.

    Args:
        path: a PNG or another lossless file: of one channel, 8 or 16 bit; with ``colours`` also of three.
        colours: the number of each colour, red, green and blue from 0 to 255.
        reserved: indices of a palette that are numbers whatever their colours, such as that of pixels to ignore.

    Returns:
        (H, W), int64.

    Raises:
        DataError: naming the file, if it is missing, damaged or lossy, has a colour that is not known, or has
            colours where none are known.
        ImportError: if Pillow is missing.
    """
    try:
        from PIL import ImageOps
    except ImportError as error:
        raise ImportError("reading label images needs Pillow; install kornia-mvit[train]") from error
    with _decoding(path, str(path), "label image"), _opened(path) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # as images are turned
        if image.format == "JPEG":
            raise DataError(f"{path} is a JPEG, which changes values; label images are PNGs or other lossless files")
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


def _greys_are_colours(
    image: "Image.Image", colours: Mapping[tuple[int, int, int], int], reserved: Collection[int]
) -> bool:
    """Tell whether the values of a grey image stand for colours, or are numbers of classes."""
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
    colours: Mapping[tuple[int, int, int], int],
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


def transformed(sample: dict[str, Any], transform: Transform | None) -> dict[str, Any]:
    """Return what a transform gives for a sample.

    Raises:
        DataError: naming the image, where the transform refuses it, as for its size.
    """
    try:
        return sample if transform is None else dict(transform(sample))
    except ValueError as error:
        raise DataError(f"cannot take image {sample['meta']['path']}: {error}") from error


class ImageFiles(Dataset[dict[str, Any]]):
    """Image files with their classes.

    Args:
        files: paths of the images.
        labels: class of each image, from 0.
        transform: what a sample goes through, such as a resize to the storage size.

    Raises:
        DataError: when an image is fetched that cannot be read, naming the file.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], transform: Transform | None = None) -> None:
        if len(files) != len(labels):
            raise ValueError(f"{len(files)} files, but {len(labels)} labels")
        self.files: list[Path] = list(files)
        self.labels: list[int] = list(labels)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give a sample as :meth:`Batch.collate` takes it."""
        path = self.files[index]
        sample = {"image": read_image(path), "label": self.labels[index], "meta": {"path": str(path)}}
        return transformed(sample, self.transform)


class MaskFiles(Dataset[dict[str, Any]]):
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
        colours: Mapping[tuple[int, int, int], int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        if len(files) != len(masks):
            raise ValueError(f"{len(files)} files, but {len(masks)} masks")
        self.files: list[Path] = list(files)
        self.masks: list[Path] = list(masks)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.ignored: list[int] = [ignore_index] if ignore_label is None else [ignore_index, ignore_label]
        self.colours = colours
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give a sample as :meth:`Batch.collate` takes it."""
        path, label = self.files[index], self.masks[index]
        image, mask = read_image(path), self.read_label(index)
        if image.shape[1:] != mask.shape:
            raise DataError(
                f"{path} is {image.shape[1]}x{image.shape[2]}, but its label image {label} is "
                f"{mask.shape[0]}x{mask.shape[1]}"
            )
        return transformed({"image": image, "mask": mask, "meta": {"path": str(path)}}, self.transform)

    def read_label(self, index: int) -> Tensor:
        """Give the classes of an image's pixels (H, W), int64, ``ignore_index`` for those to ignore."""
        label = self.masks[index]
        mask = read_mask(label, self.colours, reserved=self.ignored)
        ignored = torch.isin(mask, torch.tensor(self.ignored))
        wrong = ((mask < 0) | (mask >= self.num_classes)) & ~ignored
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise DataError(
                f"{label} has class {int(mask[row, column])}, but there are {self.num_classes} classes, from 0; it is "
                f"at row {row} and column {column}. Ignored: {', '.join(map(str, self.ignored))}"
            )
        return mask.masked_fill(ignored, self.ignore_index)
