"""Image datasets: decoded to uint8, brought to a storage size, nothing random."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "DataError", "ImageFiles", "find_classes", "find_images", "read_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class DataError(ValueError):
    """A dataset is not what it should be; the message names the file or folder."""


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to RGB.

    The EXIF orientation is applied. Grey and palette images become RGB, 16 bit ones 8 bit; transparent pixels are
    laid over white, CMYK is converted.

    Args:
        path: a file of any format that Pillow reads.

    Returns:
        (3, H, W), uint8.

    Raises:
        DataError: naming the file, if it is missing, not an image, or damaged.
        ImportError: if Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("reading images needs Pillow; install kornia-mvit[train]") from error
    try:
        with Image.open(path) as image:
            image.load()
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise DataError(f"no such image: {path}") from None
    except UnidentifiedImageError:
        raise DataError(f"not an image, or of a format that Pillow cannot read: {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {path}: {error}") from None
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


class ImageFiles(Dataset[dict[str, Any]]):
    """Image files with their classes.

    Args:
        files: paths of the images.
        labels: class of each image, from 0.
        transform: what a decoded (3, H, W) uint8 image goes through, such as a resize to the storage size.

    Raises:
        DataError: when an image is fetched that cannot be read, naming the file.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
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
        image = read_image(path)
        if self.transform is not None:
            image = self.transform(image)
        return {"image": image, "label": self.labels[index], "meta": {"path": str(path)}}
