"""Writing datasets of files into shards: the same bytes each time, by several processes, resumed where one stopped."""

import copy
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from kornia_mvit.data.boxes import BoxFiles
from kornia_mvit.data.loading.index import ShardEntry
from kornia_mvit.data.masks import MaskFiles
from kornia_mvit.data.reading import IMAGE_SUFFIXES, SUFFIXES_TOLD, DataError, FileSamples, ImageFiles, read_size
from kornia_mvit.data.storage import StorageResize
from kornia_mvit.files import write_whole

__all__ = ["PROGRESS", "SampleEncoder", "ShardPlan", "write_planned"]

_BLOCK = 512  # bytes, of which a file in a tar takes some, and one for its header
_RECORD = 20 * _BLOCK  # of which a tar takes some
_LOOK = 32  # samples that are encoded to tell how large all will be
_QUALITY = 90
PROGRESS = "progress.jsonl"


@dataclass(frozen=True)
class SampleEncoder:
    """The files of each sample of a dataset, as they stand in a shard.

    Images are copied as they are, or decoded, resized and encoded as JPEG where a size or a quality is given.

    Args:
        samples: the dataset.
        size: length in pixels that the shorter side is brought to; as it is when None.
        quality: of JPEG, from 1 to 100; 90 when None and images are encoded.

    Raises:
        ValueError: for a quality that JPEG has not, a dataset of another kind, or boxes with keypoints or outlines.
    """

    samples: FileSamples
    size: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality {self.quality} is not between 1 and 100")
        self.targets  # noqa: B018  # which raises
        table = getattr(self.samples, "table", None)
        for name in ("keypoints", "outlines"):
            if getattr(table, name, None) is not None:
                raise ValueError(f"shards hold boxes without {name}; read the dataset without them")

    @property
    def encodes(self) -> bool:
        """Whether images are encoded anew."""
        return self.size is not None or self.quality is not None

    @property
    def targets(self) -> str:
        """What stands beside an image."""
        for kind, targets in ((MaskFiles, "mask"), (BoxFiles, "boxes"), (ImageFiles, "label")):
            if isinstance(self.samples, kind):
                return targets
        raise ValueError(f"{type(self.samples).__name__} has no image files with labels, label images or boxes")

    def files(self, index: int) -> dict[str, bytes]:
        """Return the content of a sample's files, by the ends of their names.

        Raises:
            DataError: naming the file, if one cannot be read, or has no suffix of an image.
        """
        path = self.samples.files[index]
        if not self.encodes:
            return {self._suffix(path): _read(path), **self._target(index, path)}
        whole = copy.copy(self.samples)  # a transform may have fewer pixels decoded
        whole.transform = None
        sample = whole.read(index)
        height, width = sample["image"].shape[1:]
        if self.size is not None:
            try:
                sample = dict(StorageResize(self.size)(sample))
            except ValueError as error:
                raise DataError(f"cannot take image {path}: {error}") from error
        new_height, new_width = sample["image"].shape[1:]
        files = {"jpg": _jpeg(sample["image"], self.quality or _QUALITY)}
        if isinstance(self.samples, MaskFiles):
            return {**files, "mask.png": _png(sample["mask"])}
        if isinstance(self.samples, BoxFiles):
            ratio = new_height * new_width / (height * width)
            areas = [area * ratio for area in sample["meta"]["box_area"]]
            columns = (sample["boxes"], sample["box_label"], sample["box_ignore"])
            meta = sample["meta"]
            return {**files, "json": _boxes(columns, meta["box_crowd"], areas, meta["image_id"])}
        return {**files, "cls": str(int(sample["label"])).encode()}

    def _target(self, index: int, path: Path) -> dict[str, bytes]:
        if isinstance(self.samples, MaskFiles):
            return {"mask.png": _png(self.samples.read_label(index))}
        if isinstance(self.samples, BoxFiles):
            table = self.samples.table
            rows = slice(int(table.starts[index]), int(table.starts[index + 1]))
            boxes, areas = table.boxes[rows], table.areas[rows]
            if table.relative:
                height, width = read_size(path)
                boxes, areas = boxes * torch.tensor([width, height]).repeat(2), areas * (height * width)
            columns = (boxes, table.labels[rows], table.ignore[rows])
            number = int(self.samples.image_ids[index])
            return {"json": _boxes(columns, table.crowd[rows].tolist(), areas.tolist(), number)}
        assert isinstance(self.samples, ImageFiles)
        return {"cls": str(self.samples.labels[index]).encode()}

    def _suffix(self, path: Path) -> str:
        suffix = path.suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            raise DataError(f"{path} has no suffix of an image: {SUFFIXES_TOLD}")
        return suffix[1:]

    def estimate(self, count: int) -> int:
        """Return about how many bytes a number of the samples take in shards; exactly where nothing is encoded."""
        if count == 0:
            return 0
        if not self.encodes and not isinstance(self.samples, MaskFiles):
            files = self.samples.files[:count]
            return sum(_room([_size(path), *map(len, self._target(i, path).values())]) for i, path in enumerate(files))
        step = max(1, count // _LOOK)
        looked = [_room([len(content) for content in self.files(i).values()]) for i in range(0, count, step)]
        return sum(looked) * count // len(looked)

    def fingerprint(self) -> str:
        """Return a checksum of what tells this dataset and its encoding from others, without reading the images."""
        found = hashlib.sha256(repr((self.targets, self.size, self.quality)).encode())
        for path in self.samples.files:
            found.update(f"{path}\0{_size(path)}\0".encode("utf-8", "surrogateescape"))
        if isinstance(self.samples, ImageFiles):
            found.update(repr(self.samples.labels).encode())
        elif isinstance(self.samples, MaskFiles):
            for path in self.samples.masks:
                found.update(f"{path}\0{_size(path)}\0".encode("utf-8", "surrogateescape"))
        elif isinstance(self.samples, BoxFiles):
            table = self.samples.table
            for column in (table.boxes, table.labels, table.ignore, table.crowd, table.areas, table.starts):
                found.update(column.contiguous().numpy().tobytes())
        return found.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _room(sizes: Iterable[int]) -> int:
    """Return how many bytes files take in a tar."""
    return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)


def _jpeg(image: Tensor, quality: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _png(mask: Tensor) -> bytes:
    from PIL import Image

    numbers = mask.to(torch.uint8) if int(mask.max()) < 256 else mask.to(torch.uint16)
    file = io.BytesIO()
    Image.fromarray(numbers.contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def _boxes(
    columns: tuple[Tensor, Tensor, Tensor], crowd: Sequence[bool], areas: Sequence[float], image_id: int
) -> bytes:
    boxes, labels, ignore = (column.tolist() for column in columns)
    found = {
        "boxes": [[round(edge, 3) for edge in box] for box in boxes],
        "labels": labels,
        "ignore": ignore,
        "crowd": list(crowd),
        "areas": [round(area, 3) for area in areas],
        "image_id": image_id,
    }
    return json.dumps(found).encode()


@dataclass(frozen=True)
class ShardPlan:
    """Which samples of a split go into which shard.

    Args:
        split: its name, which those of the shards begin with.
        encoder: the samples.
        order: their numbers, in the order in which they stand in the shards.
        max_count: samples in a shard; the last has the rest.
    """

    split: str
    encoder: SampleEncoder
    order: Sequence[int]
    max_count: int

    def shards(self) -> Iterator[tuple[str, list[int], int]]:
        """Return the name of each shard, its samples, and the number of the first in the split."""
        for number, first in enumerate(range(0, len(self.order), self.max_count)):
            yield f"{self.split}-{number:05d}.tar", list(self.order[first : first + self.max_count]), first

    def estimate(self) -> int:
        """Return about how many bytes the shards take."""
        count = len(self.order)
        shards = -(-count // self.max_count)
        return self.encoder.estimate(count) + shards * (2 * _BLOCK + _RECORD // 2)

    def fingerprint(self) -> str:
        """Return a checksum of what tells this plan from others."""
        order = hashlib.sha256(json.dumps(list(self.order)).encode()).hexdigest()
        return json.dumps([self.split, self.encoder.fingerprint(), order, self.max_count])


def write_planned(
    plans: Sequence[ShardPlan], folder: str | Path, processes: int = 1, report: Callable[[str], None] | None = None
) -> dict[str, list[ShardEntry]]:
    """Write shards that are planned, less those that an interrupted call has written already.

    A shard is moved into its place when it is whole. What is done stands in ``progress.jsonl`` in the folder until its
    caller removes that.

    Args:
        plans: those of all splits.
        folder: where they go.
        processes: that write at the same time.
        report: takes a line for each tenth of the work.

    Returns:
        What was written, in the order of the plans.

    Raises:
        DataError: if an image cannot be read, or the folder has the beginning of another set.
        OSError: if a shard cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256("\n".join(plan.fingerprint() for plan in plans).encode()).hexdigest()
    done = _read_progress(folder, mark)
    jobs = [(plan.encoder, str(folder), *shard) for plan in plans for shard in plan.shards()]
    left = [job for job in jobs if job[2] not in done]
    step = max(1, len(left) // 10)
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        if not done and file.tell() == 0:
            _note(file, {"set": mark})
        for count, entry in enumerate(_write_all(left, processes), 1):
            done[entry.name] = entry
            _note(file, asdict(entry))
            if report is not None and (count % step == 0 or count == len(left)):
                report(f"wrote {count} of {len(left)} shards")
    return {plan.split: [done[name] for name, _, _ in plan.shards()] for plan in plans}


def _read_progress(folder: Path, mark: str) -> dict[str, ShardEntry]:
    path = folder / PROGRESS
    if not path.exists():
        return {}
    rows: list[Any] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the process ended while it wrote the last line
            break
    if rows and rows[0] != {"set": mark}:
        raise DataError(
            f"{folder} has the beginning of another set of shards, from other files or with other options; remove it, "
            "or give another folder"
        )
    entries = [ShardEntry(**row) for row in rows[1:]]
    kept = [e for e in entries if (folder / e.name).is_file() and (folder / e.name).stat().st_size == e.bytes]
    lines = [{"set": mark}, *map(asdict, kept)]
    with write_whole(path) as beside:
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {entry.name: entry for entry in kept}


def _note(file: IO[str], row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()
    os.fsync(file.fileno())


_Job = tuple[SampleEncoder, str, str, list[int], int]


def _write_all(jobs: Sequence[_Job], processes: int) -> Iterator[ShardEntry]:
    if processes == 1 or len(jobs) < 2:
        yield from map(_write_shard, jobs)
        return
    encoders = {id(job[0]): job[0] for job in jobs}
    rest = iter(jobs)
    with ProcessPoolExecutor(processes, initializer=_keep_encoders, initargs=(encoders,)) as pool:
        running: set[Future[ShardEntry]] = set()
        try:
            while True:
                for job in islice(rest, 2 * processes - len(running)):
                    running.add(pool.submit(_write_kept, id(job[0]), job[1:]))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


_ENCODERS: dict[int, SampleEncoder] = {}  # of a process that writes, so that each job need not bring its own


def _keep_encoders(encoders: dict[int, SampleEncoder]) -> None:
    torch.set_num_threads(1)
    _ENCODERS.update(encoders)


def _write_kept(encoder: int, job: tuple[str, str, list[int], int]) -> ShardEntry:
    return _write_shard((_ENCODERS[encoder], *job))


class _Sum:
    """A file to write to, whose size and checksum are known at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.count += len(data)
        return self.file.write(data)


def _write_shard(job: _Job) -> ShardEntry:
    encoder, folder, name, numbers, first = job
    with write_whole(Path(folder) / name) as beside, beside.open("wb") as file:
        target = _Sum(file)
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]  # it writes alone
            for key, number in enumerate(numbers, first):
                for suffix, content in encoder.files(number).items():
                    info = tarfile.TarInfo(f"{key:09d}.{suffix}")  # of no user, at no time
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return ShardEntry(name, len(numbers), target.count, target.sha256.hexdigest())
