"""What images come from: files, folders, patterns, addresses, videos, and images in memory."""

import glob
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from kornia_mvit.data.reading import (
    IMAGE_SUFFIXES,
    SUFFIXES_TOLD,
    DataError,
    decode_pixels,
    find_images,
    from_picture,
    read_image,
)
from kornia_mvit.extras import needing
from kornia_mvit.files import check_local
from kornia_mvit.parsing import is_file, is_folder, reason_of
from kornia_mvit.pictures import array_to_tensor, is_array, is_picture

__all__ = ["VIDEO_SUFFIXES", "Item", "count_items", "read_source"]

VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in "mp4 m4v mov avi mkv webm mpg mpeg wmv flv".split())

_LARGEST = 256 * 2**20  # bytes of an image behind an address
_TIMEOUT = 30.0  # seconds without an answer
_CHUNK = 2**20
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_PATTERN = re.compile(r"[*?]|\[[^]]+]")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Args:
        name: what errors call it: its path or address, or its place among images in memory.
        load: returns it: (C, H, W), uint8 or floating point in [0, 1].
        path: of the file or address, or None for an image in memory.
        frame: its number in a video, from 0.
    """

    name: str
    load: Callable[[], Tensor]
    path: str | None = None
    frame: int | None = None


def read_source(source: Any) -> Iterator[Item]:
    """Return the images of a source, one after another, not yet read.

    Args:
        source: the path of an image, a video or a folder; a pattern of paths, such as ``'photos/*.jpg'``; an
            ``http(s)`` address; a PIL image; a NumPy array (H, W, 3), (H, W, 4) or (H, W), uint8; a tensor (C, H, W)
            or (B, C, H, W), uint8 or floating point in [0, 1]; or a list or an iterator of these.

    Yields:
        An item an image. Of a video that is damaged, the last item raises when it is loaded.

    Raises:
        DataError: for a folder or a pattern without images, and for a path of another kind.
        TypeError: for anything else.
        ValueError: for arrays and tensors whose dtype or shape is not that of an image.
    """
    yield from _items(source, _Counter())


def count_items(source: Any) -> int | None:
    """Return the number of images of a source, or None where that is not known beforehand."""
    if isinstance(source, str | Path):
        if _ADDRESS.match(str(source)):
            return 1
        try:
            files = _find(source)
        except DataError:
            return 1  # which is told when it is read
        return None if any(map(_is_video, files)) else len(files)
    if isinstance(source, list | tuple):
        counts = [count_items(part) for part in source]
        return None if None in counts else sum(filter(None, counts))
    if isinstance(source, Tensor):
        return len(source) if source.ndim == 4 else 1
    return 1 if is_array(source) or is_picture(source) else None


class _Counter:
    """Numbers the images in memory, which have no path to be called by."""

    def __init__(self) -> None:
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"number {self.count - 1}"


def _items(source: Any, counter: _Counter) -> Iterator[Item]:
    if isinstance(source, str | Path):
        yield from _of_path(source)
    elif isinstance(source, Tensor):
        for image in source if source.ndim == 4 else (source,):
            yield _in_memory(counter.name(), _check_tensor, image)
    elif is_array(source):
        yield _in_memory(counter.name(), lambda array, _: array_to_tensor(array), source)
    elif is_picture(source):
        yield _in_memory(counter.name(), from_picture, source)
    elif isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        for part in source:
            yield from _items(part, counter)
    else:
        raise TypeError(
            f"cannot predict a {type(source).__name__}; expected a path, an address, a PIL image, a NumPy array, "
            "a tensor, or a list or an iterator of these"
        )


# -------------------------------------------------------------------------------------------------------------- paths


def _of_path(source: str | Path) -> Iterator[Item]:
    if _ADDRESS.match(text := str(source)):
        yield Item(text, lambda: download_image(text), text)
        return
    try:
        files = _find(source)
    except DataError as error:  # among other sources these go on
        yield Item(text, _raising(error), text)
        return
    for file in files:
        if _is_video(file):
            yield from _frames(file)
        else:
            yield _of_file(file)


def _of_file(file: Path) -> Item:
    return Item(str(file), lambda: decode_pixels(file), str(file))


def _find(source: str | Path) -> list[Path]:
    """List the files of a path: those of a folder or a pattern, or the path itself; a Path is no pattern."""
    if not str(source):
        raise DataError("the path of an image is empty; pass a file or a folder")
    check_local(source)
    path = Path(source)
    if is_folder(path):
        return find_images(path)
    if isinstance(source, Path) or is_file(path) or not _PATTERN.search(source):
        return [path]
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found = [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]
    found = [file for file in found if file.suffix.lower() in known and is_file(file)]
    if not found:
        raise DataError(f"no image matches {source}; looked for {SUFFIXES_TOLD}")
    return found


def download_image(address: str) -> Tensor:
    """Fetch and decode an image.

    Args:
        address: its ``http`` or ``https`` address.

    Returns:
        (3, H, W), uint8.

    Raises:
        DataError: naming the address, if it cannot be fetched, is larger than 256 MiB, or is no image.
    """
    parts = bytearray()
    try:
        with urlopen(Request(address, headers={"User-Agent": "kornia-mvit"}), timeout=_TIMEOUT) as answer:
            while part := answer.read(_CHUNK):
                parts += part
                if len(parts) > _LARGEST:
                    raise DataError(f"{address} is larger than {_LARGEST // 2**20} MiB; download it and pass its path")
    except DataError:
        raise
    except Exception as error:  # of the address, the connection or its protocol
        if isinstance(error, HTTPError):
            error.close()
        reason = getattr(error, "reason", None)
        told = reason_of(reason) if isinstance(reason, BaseException) else reason_of(error)
        raise DataError(f"cannot fetch {address}: {told}") from None
    return read_image(io.BytesIO(parts), address)


def is_address(source: str) -> bool:
    """Return whether a source is an ``http`` or ``https`` address."""
    return _ADDRESS.match(source) is not None


def file_name(path: str) -> str:
    """Return the name of a file, or of what an address ends with."""
    return Path(unquote(urlsplit(path).path) if is_address(path) else path).name


def stem_of(path: str) -> str:
    """Return the name of a file or an address without its suffix."""
    return Path(file_name(path)).stem


# ------------------------------------------------------------------------------------------------------------- videos


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _frames(file: Path) -> Iterator[Item]:
    """Return the frames of a video, decoded one after another as they are asked for."""
    again = _Video(file)
    reader = _decode(file)
    number = 0
    while True:
        try:
            image = next(reader, None)
        except DataError as error:
            yield Item(str(file), _raising(error), str(file), number)
            return
        if image is None:
            return
        yield _frame(again, image, number)
        number += 1


def _frame(video: "_Video", image: Tensor, number: int) -> Item:
    held = [image]  # until it is loaded for the first time

    def load() -> Tensor:
        return held.pop() if held else video.frame(number)

    return Item(f"frame {number} of {video.file}", load, str(video.file), number)


def _raising(error: DataError) -> Callable[[], Tensor]:
    def load() -> Tensor:
        raise error

    return load


class _Video:
    """Decodes frames of a video again, such as for drawing; fastest in their order."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.place = 0
        self.reader: Iterator[Tensor] = iter(())

    def frame(self, number: int) -> Tensor:
        if number < self.place or self.place == 0:
            self.reader, self.place = _decode(self.file), 0
        for image in self.reader:
            self.place += 1
            if self.place == number + 1:
                return image
        raise DataError(f"{self.file} has no frame {number} any more")


def _decode(file: Path) -> Iterator[Tensor]:
    """Return the frames of a video: (3, H, W), uint8, turned as the file says.

    Raises:
        DataError: naming the file, if it is missing, damaged, or has no video.
        ImportError: where PyAV is missing.
    """
    with needing("reading videos needs PyAV (av)", "video"):
        import av
    if not file.is_file():
        raise DataError(f"no such video: {file}")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise DataError(f"{file} has no video")
            for frame in container.decode(video=0):
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                turns = round(getattr(frame, "rotation", 0) / 90)
                yield torch.rot90(pixels, turns, (1, 2)).contiguous()
    except DataError:
        raise
    except Exception as error:  # the decoders' own
        raise DataError(f"cannot read video {file}: {reason_of(error)}") from None


# ---------------------------------------------------------------------------------------------------- images in memory


def _in_memory(name: str, convert: Callable[[Any, str], Tensor], image: Any) -> Item:
    return Item(name, lambda: convert(image, name))


def _check_tensor(image: Tensor, _: str) -> Tensor:
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"it has the shape {tuple(image.shape)}; tensors are (C, H, W) or (B, C, H, W)")
    if image.shape[0] not in _CHANNELS and image.shape[2] in _CHANNELS:
        raise ValueError(f"it has the shape {tuple(image.shape)}; pass image.permute(2, 0, 1), which is (C, H, W)")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"it is {image.dtype}; tensors are uint8, or floating point in [0, 1]")
    return image.detach().cpu()
