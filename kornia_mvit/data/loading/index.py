"""The index of a set of shards: what they hold, how large they are, and their checksums."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kornia_mvit.data.loading.shards import count_samples
from kornia_mvit.data.loading.sources import is_address, read_address
from kornia_mvit.data.loading.targets import TARGETS
from kornia_mvit.data.reading import DataError
from kornia_mvit.files import write_whole
from kornia_mvit.parsing import is_file, parse_json

__all__ = ["INDEX", "ShardEntry", "ShardIndex", "check_shards", "count_indexed", "find_index"]

INDEX = "index.json"
_FORMAT = "kornia_mvit shards 1"
_CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class ShardEntry:
    """A shard of a set.

    Args:
        name: of its file, in the folder of the index.
        samples: their number.
        bytes: size of the file.
        sha256: its checksum.
    """

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What a set of shards holds; as a file, ``index.json`` beside them.

    Args:
        targets: what stands beside an image, ``'label'``, ``'mask'`` or ``'boxes'``.
        class_names: names of the classes, in the order of their labels.
        splits: the shards of each split.

    Example:
        >>> index = ShardIndex("label", ("cat", "dog"), {"train": [ShardEntry("train-00000.tar", 2, 10240, "ab")]})
        >>> ShardIndex.parse(index.text(), "index.json") == index
        True
    """

    targets: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[ShardEntry]]

    @classmethod
    def read(cls, path: str | Path) -> "ShardIndex":
        """Read the file, from its path or its address.

        Raises:
            DataError: if it is missing, or something else.
        """
        if is_address(str(path)):
            return cls.parse(read_address(str(path)), str(path))
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the index of shards {path}: {error.strerror}") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: str | bytes, name: str) -> "ShardIndex":
        """Read the content of the file.

        Args:
            content: the text.
            name: what errors call it.

        Raises:
            DataError: if it is something else.
        """
        found = parse_json(content if isinstance(content, bytes) else content.encode(), name, DataError)
        try:
            if found["format"] != _FORMAT or found["targets"] not in TARGETS:
                raise ValueError(found["format"])
            splits = {str(split): [_entry(row) for row in rows] for split, rows in found["splits"].items()}
            names = tuple(map(str, found["class_names"]))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise DataError(f"{name} is not the index of shards as kornia-mvit shards writes it") from None
        return cls(found["targets"], names, splits)

    def text(self) -> str:
        """Return the content of the file."""
        splits = {split: [asdict(entry) for entry in entries] for split, entries in self.splits.items()}
        head = {"format": _FORMAT, "targets": self.targets, "class_names": list(self.class_names), "splits": splits}
        return json.dumps(head, indent=1, ensure_ascii=False) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write the file into a folder, and ``sizes.json`` beside it, for programs that know that one alone."""
        sizes = {entry.name: entry.samples for entries in self.splits.values() for entry in entries}
        path = Path(folder) / INDEX
        with write_whole(path) as beside:
            beside.write_text(self.text(), encoding="utf-8")
            beside.with_name("sizes.json").write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
        return path


def find_index(place: str | Sequence[str]) -> tuple[str, ShardIndex] | None:
    """Return the folder of shards and their index, for a folder with an index or the path of one; None for others.

    Raises:
        DataError: if the index cannot be read.
    """
    if not isinstance(place, str):
        return None
    if place.endswith(".json"):
        return place.rpartition("/")[0] or ".", ShardIndex.read(place)
    file = Path(place) / INDEX
    return (place.rstrip("/"), ShardIndex.read(file)) if is_file(file) else None


def count_indexed(folder: str, index: ShardIndex, split: str) -> tuple[dict[str, int], list[str]]:
    """Return the number of samples of each shard of a split, by its path, and why others cannot be read.

    Raises:
        DataError: if the index has no such split.
    """
    if split not in index.splits:
        raise DataError(f"the index in {folder} has no split {split!r}; it has {', '.join(index.splits)}")
    counts, errors = {}, []
    for entry in index.splits[split]:
        path = f"{folder}/{entry.name}"
        if is_address(path):
            counts[path] = entry.samples
            continue
        try:
            size = os.path.getsize(path)
        except OSError as error:
            errors.append(f"cannot read shard {path}: {error.strerror}")
        else:
            if size == entry.bytes:
                counts[path] = entry.samples
            else:
                errors.append(f"shard {path} has {size} bytes, but {entry.bytes} by its {INDEX}")
    return counts, errors


def _entry(row: Any) -> ShardEntry:
    entry = ShardEntry(**row)
    counts = (entry.samples, entry.bytes)
    texts = (entry.name, entry.sha256)
    if not all(type(count) is int and count >= 0 for count in counts) or not all(type(text) is str for text in texts):
        raise ValueError(row)
    if not entry.name or "/" in entry.name or "\\" in entry.name:
        raise ValueError(entry.name)
    return entry


def check_shards(folder: str | Path, processes: int | None = None) -> ShardIndex:
    """Compare shards with their index: that they are there, their sizes, checksums and numbers of samples.

    Args:
        folder: of the shards and their ``index.json``, or the path of that.
        processes: threads that read at the same time; the number of cores when None.

    Returns:
        The index.

    Raises:
        DataError: naming the shards that are missing or damaged.
    """
    path = Path(folder) if Path(folder).suffix == ".json" else Path(folder) / INDEX
    index = ShardIndex.read(path)
    entries = [entry for entries in index.splits.values() for entry in entries]
    with ThreadPoolExecutor(processes or os.cpu_count()) as pool:
        faults = [fault for fault in pool.map(lambda entry: _fault(path.parent, entry), entries) if fault]
    if faults:
        raise DataError(f"{len(faults)} of {len(entries)} shards are not as {path} says: {'; '.join(faults)}")
    return index


def _fault(folder: Path, entry: ShardEntry) -> str | None:
    path = folder / entry.name
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{entry.name} has {size} bytes, not {entry.bytes}"
        if _checksum(path) != entry.sha256:
            return f"{entry.name} has another checksum"
        count = count_samples(path)
    except (OSError, DataError) as error:
        return f"{entry.name}: {getattr(error, 'strerror', None) or error}"
    return None if count == entry.samples else f"{entry.name} has {count} samples, not {entry.samples}"


def _checksum(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
