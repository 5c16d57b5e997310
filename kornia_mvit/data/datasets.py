"""Image datasets: decoded to uint8, brought to a storage size, nothing random."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "DataError",
    "ImageFiles",
    "MaskFiles",
    "VOCFiles",
    "find_classes",
    "find_images",
    "read_image",
    "read_mask",
    "read_voc",
    "unknown_label",
]

Transform = Callable[[dict[str, Any]], Mapping[str, Any]]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class DataError(ValueError):
    """A dataset is not what it should be; the message names the file or folder."""


def unknown_label(place: str, label: object, class_names: Sequence[str]) -> DataError:
    """Make the error for a label that is none of the classes, with the first of these."""
    some = ", ".join(map(repr, class_names[:10])) + (", ..." if len(class_names) > 10 else "")
    return DataError(f"{place}: label {label!r} is none of the {len(class_names)} classes {some}")


def read_image(source: str | Path | IO[bytes], name: str | None = None) -> Tensor:
    """Decode an image file to RGB.

    The EXIF orientation is applied. Grey and palette images become RGB, 16 bit ones 8 bit; transparent pixels are
    laid over white, CMYK is converted.

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
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("reading images needs Pillow; install kornia-mvit[train]") from error
    try:
        with Image.open(source) as image:
            image.load()
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise DataError(f"no such image: {name}") from None
    except UnidentifiedImageError:
        raise DataError(f"not an image, or of a format that Pillow cannot read: {name}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {name}: {error}") from None
    data = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return data.view(rgb.height, rgb.width, 3).permute(2, 0, 1).contiguous()


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bit grey: Pillow's own conversion to 8 bit clips instead of scaling
        return image.convert("I").point([v // 256 for v in range(65536)], "L").convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the file to 8 or 16 bit")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def find_images(folder: str | Path) -> list[Path]:
    """List the image files below a folder, by their suffix, in the order of their names.

    Raises:
        DataError: if the folder is missing or has no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"no image in {folder}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def find_classes(root: str | Path) -> dict[str, list[Path]]:
    """List the classes of a folder with one subfolder a class, with their images, in the order of their names.

    Hidden folders are left out.

    Raises:
        DataError: if the folder is missing, has no subfolder, or a class has no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no such folder: {root}")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        images = sum(p.suffix.lower() in IMAGE_SUFFIXES for p in root.iterdir())
        found = f"has {images} images but no folders" if images else "is empty"
        raise DataError(f"{root} {found}: it needs a folder for each class, with that class's images in it")
    return {folder.name: find_images(folder) for folder in folders}


def read_mask(
    path: str | Path,
    colours: Mapping[tuple[int, int, int], int] | None = None,
    *,
    reserved: Collection[int] = (),
) -> Tensor:
    """Read a label image: a class number for each pixel.

    Those of grey images are their values, those of palette images the indices, not the colours. With ``colours``
    those of colour and palette images are what stands for their colours.

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
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading label images needs Pillow; install kornia-mvit[train]") from error
    try:
        with Image.open(path) as image:
            image.load()
            if image.format == "JPEG":
                raise DataError(
                    f"{path} is a JPEG, which changes values; label images are PNGs or other lossless files"
                )
            if colours is not None and image.mode in ("P", "RGB", "RGBA"):
                return _mask_of_colours(image, path, colours, reserved)
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16L", "I;16B"):
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
    except FileNotFoundError:
        raise DataError(f"no such label image: {path}") from None
    except (OSError, SyntaxError) as error:
        raise DataError(f"cannot read label image {path}: {error}") from None
    return (mask > 0).long() if image.mode == "1" else mask


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
    if image.mode == "P":
        indices = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view_as(mask).long()
        kept = torch.isin(indices, torch.tensor([*reserved], dtype=torch.long))
        mask, missing = torch.where(kept, indices, mask), missing & ~kept
    if missing.any():
        row, column = missing.nonzero()[0].tolist()
        code = int(codes[row, column])
        raise DataError(
            f"{path} has the colour {(code >> 16, code >> 8 & 255, code & 255)}, at row {row} and column {column}, "
            f"which is none of the {len(colours)} of the classes; add it to their file, as a class or under ignore"
        )
    return mask


@dataclass
class Annotation:
    """The objects of one image, and what was wrong with others.

    Args:
        boxes: left, top, right and bottom edges in pixels.
        names: of the objects' classes.
        difficult: whether each is marked so.
        bad: why other objects were left out.
    """

    boxes: list[list[float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def read_voc(path: str | Path, *, origin: int = 1) -> Annotation:
    """Read a Pascal VOC annotation.

    VOC counts pixels from 1 and names the last one of a box: one of the first two pixels of the first two rows is
    (1, 1, 2, 2), and (0, 0, 2, 2) in edges. Where the last pixel is the first, nothing was boxed.

    Args:
        path: an XML file.
        origin: number of the first pixel; 0 for files that count from there. Either way the last one is named.

    Returns:
        The objects, boxes clipped to the image where the file tells its size. Those without an area, outside the
        image, or with numbers that are none, are left out and told of.

    Raises:
        DataError: naming the file, if it is missing or not such a file.
        ImportError: if defusedxml is missing.
    """
    try:
        from defusedxml import DefusedXmlException, ElementTree  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as error:
        raise ImportError("reading VOC annotations needs defusedxml; install kornia-mvit[train]") from error
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"no such annotation: {path}") from None
    except (ElementTree.ParseError, DefusedXmlException, OSError) as error:
        raise DataError(f"cannot read annotation {path}: {error}") from None
    width, height = (float(root.findtext(f"size/{side}") or 0) or math.inf for side in ("width", "height"))
    out = Annotation()
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        try:
            low_x, low_y, high_x, high_y = (
                float(item.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            low_x = low_y = high_x = high_y = math.nan
        given = f"{name or 'an object without a name'} ({low_x:g}, {low_y:g}, {high_x:g}, {high_y:g})"
        box = [low_x - origin, low_y - origin, high_x + 1 - origin, high_y + 1 - origin]
        clipped = [max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)]
        if not name or any(math.isnan(v) for v in box):
            out.bad.append(f"{given} is incomplete")
        elif high_x <= low_x or high_y <= low_y:
            out.bad.append(f"{given} has no area")
        elif clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            out.bad.append(f"{given} lies outside the image")
        else:
            out.boxes.append(clipped)
            out.names.append(name)
            out.difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return out


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
        self.files = list(files)
        self.labels = list(labels)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give a sample as :meth:`Batch.collate` takes it."""
        path = self.files[index]
        sample = {"image": read_image(path), "label": self.labels[index], "meta": {"path": str(path)}}
        return sample if self.transform is None else dict(self.transform(sample))


class VOCFiles(Dataset[dict[str, Any]]):
    """Image files with boxes.

    Args:
        files: paths of the images.
        annotations: the objects of each.
        class_names: names of the classes, in the order of their labels.
        transform: what a sample goes through, such as a resize to the storage size.

    Raises:
        DataError: when an image is fetched that cannot be read, naming the file.
    """

    def __init__(
        self,
        files: Sequence[Path],
        annotations: Sequence[Annotation],
        class_names: Sequence[str],
        transform: Transform | None = None,
    ) -> None:
        if len(files) != len(annotations):
            raise ValueError(f"{len(files)} files, but {len(annotations)} annotations")
        self.files = list(files)
        self.annotations = list(annotations)
        self.labels = {name: label for label, name in enumerate(class_names)}
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give a sample as :meth:`Batch.collate` takes it."""
        path, found = self.files[index], self.annotations[index]
        sample = {
            "image": read_image(path),
            "boxes": torch.tensor(found.boxes).reshape(-1, 4),
            "box_label": torch.tensor([self.labels[name] for name in found.names], dtype=torch.long),
            "box_ignore": torch.tensor(found.difficult, dtype=torch.bool),
            "meta": {"path": str(path)},
        }
        return sample if self.transform is None else dict(self.transform(sample))


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
        self.files = list(files)
        self.masks = list(masks)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.ignored = [ignore_index] if ignore_label is None else [ignore_index, ignore_label]
        self.colours = colours
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give a sample as :meth:`Batch.collate` takes it."""
        path, label = self.files[index], self.masks[index]
        image, mask = read_image(path), read_mask(label, self.colours, reserved=self.ignored)
        if image.shape[1:] != mask.shape:
            raise DataError(
                f"{path} is {image.shape[1]}x{image.shape[2]}, but its label image {label} is "
                f"{mask.shape[0]}x{mask.shape[1]}"
            )
        ignored = torch.isin(mask, torch.tensor(self.ignored))
        wrong = ((mask < 0) | (mask >= self.num_classes)) & ~ignored
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise DataError(
                f"{label} has class {int(mask[row, column])}, but there are {self.num_classes} classes, from 0; it is "
                f"at row {row} and column {column}. Ignored: {', '.join(map(str, self.ignored))}"
            )
        sample = {"image": image, "mask": mask.masked_fill(ignored, self.ignore_index), "meta": {"path": str(path)}}
        return sample if self.transform is None else dict(self.transform(sample))
