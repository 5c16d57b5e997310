"""Image datasets: decoded to uint8, brought to a storage size, nothing random."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kornia_mvit.data.storage import StorageResize
from kornia_mvit.files import FileError, check_local
from kornia_mvit.parsing import brief, cut, is_folder, other_kind, reason_of
from kornia_mvit.pictures import ORIENTATION, picture_to_tensor, rgb_to_tensor, to_rgb

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "SUFFIXES_TOLD",
    "DataError",
    "FileSamples",
    "ImageFiles",
    "decode_pixels",
    "decode_reduced",
    "find_classes",
    "find_images",
    "from_picture",
    "is_hidden",
    "load",
    "opened",
    "read_image",
    "read_size",
    "unknown_label",
]

Transform = Callable[[dict[str, Any]], Mapping[str, Any]]

_WIDTH, _HEIGHT = 256, 257  # tags of TIFF
_START = b"\xff\xd8"  # of a JPEG
_APP1, _SCAN = 0xE1, 0xDA  # markers of JPEG: of EXIF and XMP, which may tell how to turn an image; of its pixels
_BARE = frozenset({*range(0xC0), *range(0xD0, 0xDA), 0xFF})  # markers of JPEG that no length follows, and none at all

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
    return decode_pixels(source, name).contiguous()


def decode_pixels(source: str | Path | IO[bytes], name: str | None = None) -> Tensor:
    """Return what :func:`read_image` does, the values of a pixel together in memory, which takes less time."""
    pixels = _decode_plain(source, None)
    if pixels is None:
        with opened(source, name) as image:
            pixels = _load_rgb(image)
    return pixels


def decode_reduced(
    source: str | Path | IO[bytes], least: Callable[[int, int], tuple[int, int]], name: str | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Decode an image, of a JPEG as few pixels as are needed: a half, a quarter or an eighth of each side.

    Args:
        source: as of :func:`decode_pixels`.
        least: from the height and width of the image to those that are needed.
        name: what errors call it; its path when None.

    Returns:
        The pixels, (3, H, W) uint8, and height and width of the whole image.

    Raises:
        DataError: naming the file, as :func:`read_image`.
    """
    if (pixels := _decode_plain(source, least)) is not None:
        return pixels, (int(pixels.shape[1]), int(pixels.shape[2]))
    with opened(source, name) as image:
        height, width = _upright_size(image)
        rows, columns = least(height, width)
        image.draft(None, (columns, rows) if image.size == (width, height) else (rows, columns))  # it is turned later
        return _load_rgb(image), (height, width)


def _load_rgb(image: "Image.Image") -> Tensor:
    """Decode an opened image of any format by Pillow: (3, H, W)."""
    load(image)
    return rgb_to_tensor(to_rgb(image))


def _decode_plain(source: str | Path | IO[bytes], least: Callable[[int, int], tuple[int, int]] | None) -> Tensor | None:
    """Decode a JPEG of three colours, which nothing says is to be turned, by simplejpeg: (3, H, W); others give None.

    Its pixels are Pillow's, both being libjpeg-turbo's. Where it finds anything amiss, such as a file that was cut off,
    it is Pillow's to decode the image or to refuse it; so are images that Pillow warns of for their size, and those of
    which half of each side is at least what is needed.
    """
    try:
        import simplejpeg
        from PIL import Image
    except ImportError:
        return None
    try:
        data = _read_jpeg(source)
        if data is None or _may_be_turned(data):
            return None
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        rows, columns = (height, width) if least is None else least(height, width)
        if height >= 2 * rows and width >= 2 * columns:
            return None
        return torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
    except (OSError, ValueError):
        return None


def _may_be_turned(data: bytes) -> bool:
    """Look through the segments before a JPEG's pixels for one that may say how it is to be turned."""
    place = len(_START)
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == _SCAN:
            return False
        if marker == _APP1 or marker in _BARE:
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return True  # not as a JPEG should be: for Pillow to read or to refuse


def _read_jpeg(source: str | Path | IO[bytes]) -> bytes | None:
    """Read a file that begins as a JPEG does; an opened one is left where it began."""
    if isinstance(source, str | Path):
        if other_kind(source):  # on a named pipe, reading would wait for ever
            return None
        with open(source, "rb") as file:
            return _read_jpeg(file)
    begin = source.tell()
    found = source.read(len(_START)) == _START
    source.seek(begin)
    data = source.read() if found else None
    source.seek(begin)
    return data


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
    try:
        return picture_to_tensor(picture)
    except Exception as error:  # as in opened: a picture decodes when its pixels are first asked for
        raise DataError(f"cannot read image {name}: {reason_of(error)}") from None


def load(image: "Image.Image") -> None:
    """Decode an opened image, and turn it as its EXIF data tell."""
    from PIL import ImageOps

    image.load()
    ImageOps.exif_transpose(image, in_place=True)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of the image that :func:`read_image` returns, without decoding it.

    Raises:
        DataError: naming the file, if it is missing or not an image.
        ImportError: if Pillow is missing.
    """
    with opened(path) as image:
        return _upright_size(image)


def _upright_size(image: "Image.Image") -> tuple[int, int]:
    """Return height and width of an opened image, turned as its EXIF data tell."""
    turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    # Pillow turns TIFFs by itself, and some of its versions have their size turned before that
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    width, height = (tags[_WIDTH], tags[_HEIGHT]) if tags else (image.width, image.height)
    return (width, height) if turned else (height, width)


@contextmanager
def opened(source: str | Path | IO[bytes], name: str | None = None, what: str = "image") -> Iterator["Image.Image"]:
    """Open an image, and raise a DataError that names it for whatever Pillow raises on it.

    Args:
        source: its path, or the file, opened for binary reading.
        name: what errors call it; its path when None.
        what: what it should be.

    Raises:
        DataError: naming the file.
        ImportError: if Pillow is missing.
    """
    name = str(source) if name is None else name
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(f"reading {what}s needs Pillow; install kornia-mvit[train]") from error
    try:
        with ExitStack() as files:
            if isinstance(source, str | Path):
                if kind := other_kind(source):  # on a named pipe, reading would wait for ever
                    raise DataError(f"{name} is {kind}, not an image file")
                # an open file, since Pillow maps TIFFs of some modes into memory by their path, and scrambles those it
                # turns
                source = files.enter_context(open(source, "rb"))
            yield files.enter_context(Image.open(source))
    except DataError:
        raise
    except FileNotFoundError:
        check_local(name)
        raise DataError(f"no such {what}: {name}") from None
    except UnidentifiedImageError:
        raise DataError(f"not an image, or of a format that Pillow cannot read: {name}") from None
    except Exception as error:  # decoders raise struct.error, IndexError, TypeError and others on damaged bytes
        raise DataError(f"cannot read {what} {name}: {reason_of(error)}") from None


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of that name is hidden, or was put there by an operating system."""
    return name.startswith(".") or name in _NOT_DATA


def _find_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, following links to folders, without hidden ones."""
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


class FileSamples(Dataset[dict[str, Any]]):
    """What datasets of files share: each sample is read, and then transformed.

    Args:
        files: paths of the images.
        transform: what a sample goes through, such as a resize to the storage size.
    """

    def __init__(self, files: Sequence[Path], transform: Transform | None = None) -> None:
        self.files: list[Path] = list(files)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample as :meth:`Batch.collate` takes it.

        Raises:
            DataError: naming the image, where it cannot be read, or the transform refuses it, as for its size.
        """
        return self.transformed(self.read(index))

    def read(self, index: int) -> dict[str, Any]:
        """Return a sample as its files hold it."""
        raise NotImplementedError(f"{type(self).__name__} does not read samples")

    def transformed(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return a sample after the transform."""
        try:
            return sample if self.transform is None else dict(self.transform(sample))
        except ValueError as error:
            raise DataError(f"cannot take image {sample['meta']['path']}: {error}") from error


class ImageFiles(FileSamples):
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
        super().__init__(files, transform)
        self.labels: list[int] = list(labels)

    def read(self, index: int) -> dict[str, Any]:
        """Read an image, with fewer pixels than its file has where the transform allows it."""
        path = self.files[index]
        sample = {"label": self.labels[index], "meta": {"path": str(path)}}
        if isinstance(self.transform, StorageResize) and self.transform.reduced:
            image, size = decode_reduced(path, self.transform.needed_size)
            return {"image": image, "original_size": torch.tensor(size), **sample}
        return {"image": decode_pixels(path), **sample}
