"""WebDataset shards: tar files that hold images and their labels one after another."""

import contextlib
import glob
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from kornia_mvit.data.loading.sources import ShardCache, is_address, read_address
from kornia_mvit.data.loading.targets import (
    TARGETS,
    TargetError,
    decode_boxes,
    decode_label,
    decode_mask,
    find_boxes,
    find_mask,
    place_of,
)
from kornia_mvit.data.reading import (
    IMAGE_SUFFIXES,
    SUFFIXES_TOLD,
    DataError,
    FileSamples,
    Transform,
    decode_pixels,
    decode_reduced,
)
from kornia_mvit.data.storage import StorageResize
from kornia_mvit.files import write_whole
from kornia_mvit.parsing import is_file, parse_json, read_json, reason_of, repeated

__all__ = [
    "ShardFiles",
    "count_samples",
    "count_shards",
    "decode_image",
    "decode_label",
    "find_shards",
    "read_shard",
    "shuffle_samples",
    "write_shards",
]

_REMOTE = re.compile(r"[a-z][a-z0-9+]*://|pipe:", re.IGNORECASE)
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset passes over
_SIZES = "sizes.json"
_MOST = 10**9  # samples in a shard
_BLOCK = 512  # bytes, of which a sample in a tar file takes one or more
_PACKED = 2000  # how much smaller a compressed file may be


def _webdataset() -> Any:
    try:
        import webdataset  # type: ignore[import-untyped]  # it marks no types
    except ImportError as error:
        raise ImportError("shards need webdataset; install kornia-mvit[train]") from error
    return webdataset


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """List shards by their names.

    Args:
        patterns: names or globs of ``.tar`` files, in which braces stand for several, as in
            ``'train-{000..127}.tar'``. Those with a scheme, as ``https://``, and ``pipe:`` before a command that writes
            the file to its output, are not looked for.

    Returns:
        The names, in the order of the patterns and sorted within a glob.

    Raises:
        DataError: if there is none, a file is missing, or is named twice.
        ImportError: if webdataset is missing.

    Example:
        >>> find_shards('https://example.org/train-{08..10}.tar')[1:]
        ['https://example.org/train-09.tar', 'https://example.org/train-10.tar']
    """
    expand = _webdataset().shardlists.expand_urls
    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in expand(str(pattern)):
            if _REMOTE.match(name) or is_file(name):
                shards.append(name)
            elif found := sorted(path for path in glob.glob(name, recursive=True) if is_file(path)):
                shards += found
            else:
                raise DataError(f"no such shard: {name}; give .tar files, by names such as 'train-{{000..127}}.tar'")
    if not shards:
        raise DataError("no shards; give names of .tar files")
    if twice := repeated(shards):
        raise DataError(f"{min(twice)} is named twice among the shards")
    return shards


def count_samples(shard: str | Path) -> int:
    """Count the samples of a local shard by the headers in it, without reading the images.

    Files that follow each other and have the same name, up to its first dot, are a sample.

    Raises:
        DataError: if the shard is missing, or damaged.
    """
    split = _webdataset().tariterators.base_plus_ext
    count, last = 0, None
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                if not member.isreg() or _META.match(member.name):
                    continue
                key = split(member.name)[0]
                count += key is not None and key != last
                last = last if key is None else key
    except Exception as error:  # of tarfile's, and of decompressors'
        raise DataError(f"cannot read shard {shard}: {reason_of(error)}") from None
    return count


def count_shards(shards: Sequence[str], sizes: str | Path | None = None) -> tuple[dict[str, int], list[str]]:
    """Return the number of samples of each shard, from files of sizes where there are any, else by counting.

    Args:
        shards: their names.
        sizes: a JSON file, or its address, such as ``{"train-000.tar": 1000, ...}``, with the shards' whole names or
            what stands after the last slash. When None, ``sizes.json`` beside local shards, as ``write_shards`` and
            img2dataset leave it.

    Returns:
        The number of each shard that can be read, and why others cannot.

    Raises:
        DataError: if the file of sizes is missing or something else, or a shard that is not local has no size.
    """
    known: dict[str, dict[str, int]] = {}

    def look(shard: str) -> int | None:
        file = str(Path(shard).with_name(_SIZES)) if sizes is None else str(sizes)
        if sizes is None and (_REMOTE.match(shard) or not os.path.isfile(file)):
            return None
        if file not in known:
            known[file] = _read_sizes(file)
        names = re.findall(r"[^/\s]+\.tar[^/\s]*", shard)
        count = known[file].get(shard, known[file].get(names[-1] if names else shard))
        if count is not None and not _REMOTE.match(shard):
            _check_size(shard, count, file)
        return count

    found = {shard: look(shard) for shard in shards}
    unknown = [shard for shard, count in found.items() if count is None]
    if far := [shard for shard in unknown if _REMOTE.match(shard)]:
        raise DataError(
            f"{len(far)} shards are not local, and their samples not counted, such as {far[0]}; give sizes, a JSON "
            f'file such as {{"train-000.tar": 1000}}'
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counted = dict(zip(unknown, pool.map(_try_to_count, unknown), strict=True))
    errors = [result for result in counted.values() if isinstance(result, str)]
    merged = {shard: counted.get(shard, count) for shard, count in found.items()}
    return {shard: count for shard, count in merged.items() if isinstance(count, int)}, errors


def _try_to_count(shard: str) -> int | str:
    try:
        return count_samples(shard)
    except DataError as error:
        return str(error)


def _read_sizes(file: str) -> dict[str, int]:
    if is_address(file):
        sizes = parse_json(read_address(file), file, DataError)
    else:
        sizes = read_json(file, DataError, "file of sizes")
    if not isinstance(sizes, dict) or not all(type(size) is int and 0 <= size <= _MOST for size in sizes.values()):
        raise DataError(f'{file} does not hold numbers of samples by shard, such as {{"train-000.tar": 1000}}')
    return sizes


def _check_size(shard: str, count: int, sizes: str) -> None:
    """Raise a DataError for a local shard that is too small for the samples that it is said to have."""
    packed = 1 if shard.endswith(".tar") else _PACKED
    room = packed * os.path.getsize(shard) // _BLOCK
    if count > room:
        raise DataError(f"{sizes} says {count} samples in {shard}, which has room for {room}; count them again")


def read_shard(
    shard: str, first: int = 0, last: int | None = None, cache: ShardCache | None = None
) -> Iterator[dict[str, Any]]:
    """Read the samples of a shard one after another, undecoded.

    Args:
        shard: its name.
        first: number of the sample to begin with; those before it are passed over.
        last: number of the sample to end before; all when None.
        cache: what fetches shards from addresses; webdataset reads these when None.

    Yields:
        The contents of a sample's files, by the ends of their names, as ``jpg`` and ``cls``, and its name as
        ``__key__``.

    Raises:
        DataError: naming the shard, if it cannot be opened, is damaged, or has fewer samples than asked for.
    """
    webdataset = _webdataset()
    count = 0
    try:
        stream = webdataset.gopen(shard) if cache is None or not is_address(shard) else cache.open(shard)
    except (DataError, ImportError):
        raise
    except Exception as error:  # of webdataset's, whatever the address
        raise DataError(f"cannot open shard {shard}: {reason_of(error)}") from None
    try:
        files = webdataset.tariterators.tar_file_expander([{"url": shard, "stream": stream}])
        for sample in webdataset.tariterators.group_by_keys(files):
            count += 1
            if count > first:
                yield sample
            if count == last:
                return
    except Exception as error:  # of webdataset's, of tarfile's, and of decompressors'
        reason = reason_of(error).lstrip("('\"").partition(" @ ")[0]  # webdataset adds its stream
        raise DataError(f"cannot read shard {shard} after {count} samples: {reason}") from None
    finally:
        with contextlib.suppress(OSError):  # of a command that was not read to its end
            stream.close()
    if last is not None and count < last:
        raise DataError(f"shard {shard} has {count} samples, but {last} are in its {_SIZES}; count them again")


def shuffle_samples(samples: Iterable[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """Yield samples in random order, from a buffer of a size."""
    shuffled: Iterator[Any] = _webdataset().shuffle(size, rng=rng)(iter(samples))
    return shuffled


def decode_image(
    sample: Mapping[str, Any], label: int, least: Callable[[int, int], tuple[int, int]] | None = None
) -> dict[str, Any]:
    """Decode a sample's image: to ``image`` (3, H, W) uint8, ``label``, and shard and file name in ``meta``.

    With ``least``, of a JPEG as few pixels as are needed, as by :func:`~kornia_mvit.data.reading.decode_reduced`; then
    there is an ``original_size``, too.

    Raises:
        DataError: naming shard and file, if there is no image, or it cannot be read.
    """
    suffixes = [suffix for suffix in sample if f".{suffix}" in IMAGE_SUFFIXES]
    place = place_of(sample)
    if not suffixes:
        found = ", ".join(suffix for suffix in sample if not suffix.startswith("__"))
        raise DataError(f"{place} has no image, but {found}; names are cut at their first dot")
    path = f"{place}.{suffixes[0]}"
    file, decoded = io.BytesIO(sample[suffixes[0]]), {"label": label, "meta": {"path": path}}
    if least is None:
        return {"image": decode_pixels(file, path), **decoded}
    image, size = decode_reduced(file, least, path)
    return {"image": image, "original_size": torch.tensor(size), **decoded}


class ShardFiles(FileSamples):
    """The samples of shards by their numbers, for a look at a few: each is read from the beginning of its shard.

    Args:
        counts: number of samples in each shard.
        class_names: names of the classes, in the order of their labels.
        transform: what a sample goes through, such as a resize to the storage size.
        targets: what stands beside an image: ``'label'``, ``'mask'`` or ``'boxes'``.
        ignore_index: number of the pixels of masks to ignore.
        on_bad_box: ``'drop'`` leaves out boxes without an area or outside their image, and notes them, ``'raise'``
            refuses them.
        cache: what fetches shards from addresses; webdataset reads these when None.

    Attributes:
        notes: boxes that were left out since this was emptied.

    Raises:
        DataError: when a sample is fetched that cannot be read, naming shard and file.
        ValueError: for other targets.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        class_names: Sequence[str],
        transform: Transform | None = None,
        *,
        targets: str = "label",
        ignore_index: int = 255,
        on_bad_box: str = "drop",
        cache: ShardCache | None = None,
    ) -> None:
        super().__init__((), transform)
        if targets not in TARGETS:
            raise ValueError(f"unknown targets {targets!r}; available: {', '.join(map(repr, TARGETS))}")
        self.counts: dict[str, int] = dict(counts)
        self.class_names: tuple[str, ...] = tuple(class_names)
        self.targets = targets
        self.ignore_index = ignore_index
        self.on_bad_box = on_bad_box
        self.cache = cache
        self.notes: list[str] = []

    def __len__(self) -> int:
        return sum(self.counts.values())

    def read(self, index: int) -> dict[str, Any]:
        """Read a sample, from the beginning of its shard."""
        (piece,) = self.cut(index, index + 1)
        (sample,) = read_shard(*piece, self.cache)
        return self._decode(sample, self.target_of(sample))

    def target_of(self, sample: Mapping[str, Any]) -> Any:
        """Return what stands beside the image of what :func:`read_shard` returned.

        Raises:
            TargetError: naming shard and sample, if it is missing, or its classes are not known.
        """
        if self.targets == "mask":
            return find_mask(sample)
        if self.targets == "boxes":
            return find_boxes(sample, self.class_names)
        return decode_label(sample, self.class_names)

    def decode(self, sample: Mapping[str, Any], label: Any) -> dict[str, Any]:
        """Decode what :func:`read_shard` and :meth:`target_of` returned, and transform it."""
        return self.transformed(self._decode(sample, label))

    def _decode(self, sample: Mapping[str, Any], target: Any) -> dict[str, Any]:
        if self.targets == "label":
            resize = self.transform if isinstance(self.transform, StorageResize) and self.transform.reduced else None
            return decode_image(sample, target, None if resize is None else resize.needed_size)
        decoded = decode_image(sample, 0)
        del decoded["label"]
        place, (height, width) = place_of(sample), decoded["image"].shape[1:]
        if self.targets == "mask":
            mask = decode_mask(target, place, len(self.class_names), self.ignore_index)
            if mask.shape != (height, width):
                raise DataError(f"{place} is {height}x{width}, but its label image {mask.shape[0]}x{mask.shape[1]}")
            return {**decoded, "mask": mask}
        boxes, faults = decode_boxes(target, height, width)
        if faults and self.on_bad_box == "raise":
            raise TargetError(f"{place}: {faults[0]}; on_bad_box='drop' leaves such boxes out, and names them")
        self.notes += [f"{place}: {fault}" for fault in faults]
        return {**decoded, **boxes, "meta": {**decoded["meta"], **boxes["meta"]}}

    def cut(self, start: int, stop: int, order: Sequence[int] | None = None) -> list[tuple[str, int, int]]:
        """Return the parts of shards that a run of samples covers, for an order of the shards.

        Returns:
            Shards, and the numbers within them of the first sample and of that after the last.

        Example:
            >>> ShardFiles({'a.tar': 4, 'b.tar': 3}, ['cat', 'dog']).cut(2, 6)
            [('a.tar', 2, 4), ('b.tar', 0, 2)]
        """
        shards = list(self.counts.items())
        pieces, begin = [], 0
        for name, count in shards if order is None else (shards[k] for k in order):
            first, last = max(start - begin, 0), min(stop - begin, count)
            if first < last:
                pieces.append((name, first, last))
            begin += count
        return pieces


def write_shards(
    samples: Iterable[tuple[str | Path, int | str]], pattern: str | Path, max_count: int = 1000
) -> dict[str, int]:
    """Copy image files into shards, undecoded and in the order given, and note their sizes beside them.

    Shuffle the order first: what is trained on together comes from a few shards at a time.

    Args:
        samples: paths of images, and the number or name of each one's class.
        pattern: path of the shards, with a place for their number, such as ``'shards/train-%05d.tar'``.
        max_count: samples in a shard; the last has the rest.

    Returns:
        The number of samples in each shard. It is also in ``sizes.json`` in their folder, with what was there before.

    Raises:
        DataError: if there are no samples, or a file is missing or none of an image by its suffix; no shard is
            written then.
        OSError: if they cannot be written; the shards that were there before stay.
        ValueError: for a pattern without a place for the number, or a count below one.
        ImportError: if webdataset is missing.

    Example:
        >>> from kornia_mvit.training.datamodules import FolderData
        >>> def convert(root: str) -> None:
        ...     data = FolderData(root)
        ...     data.setup()
        ...     for name, split in data.splits.items():
        ...         write_shards(zip(split.files, split.labels), f'shards/{name}-%05d.tar')
    """
    pattern = str(pattern)
    if not re.fullmatch(r"[^%]*%0?\d*d[^%]*", pattern):
        raise ValueError(f"pattern {pattern} has no place for a number, such as in train-%05d.tar")
    if max_count < 1:
        raise ValueError(f"max_count {max_count} is not at least one sample in a shard")
    file = Path(pattern).with_name(_SIZES)
    counts: dict[str, int] = {}
    rows = iter(samples)
    row = next(rows, None)
    if row is None:
        raise DataError("no samples to write into shards")
    shard_writer = _webdataset().ShardWriter
    with write_whole(file) as beside:
        name = str(beside.with_name(Path(pattern).name))
        with shard_writer(name, maxcount=max_count, verbose=0, mtime=0) as writer:
            number = 0
            while row is not None:
                writer.write({"__key__": f"{number:09d}", **_encode(*row)})
                shard = pattern.removesuffix(Path(pattern).name) + Path(writer.fname).name
                counts[shard] = counts.get(shard, 0) + 1
                number, row = number + 1, next(rows, None)
        known = _read_sizes(str(file)) if file.is_file() else {}
        known |= {Path(shard).name: count for shard, count in counts.items()}
        beside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return counts


def _encode(path: str | Path, label: int | str) -> dict[str, Any]:
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path} has no suffix of an image: {SUFFIXES_TOLD}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    target = {"cls": str(label)} if isinstance(label, int) else {"json": json.dumps({"label": label})}
    return {path.suffix.lower()[1:]: content, **target}
