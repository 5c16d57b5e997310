"""Checkpoint files. They are data: nothing that a file says is ever run."""

import hashlib
import io
import json
import mmap
import pickle
import re
import tarfile
import threading
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.files import FileError, check_local, write_whole
from kornia_mvit.parsing import brief, is_file, is_folder, parse_json, reason_of

__all__ = [
    "CARD_KEY",
    "SUFFIXES",
    "CheckpointError",
    "checkpoint_in",
    "in_folder",
    "read_checkpoint",
    "stored_bytes",
    "write_checkpoint",
]

CARD_KEY = "kornia_mvit"  # where a checkpoint of ours says what it holds
_HASH_KEY = "kornia_mvit.sha256"  # and a safetensors file, which has no checksums of its own, the hash of what it holds
_HEADER = 30  # bytes of a local header, before the name
_INFLATED = 20  # times the file's size that compressed entries may grow to; trained weights hardly shrink
_INFLATED_LEAST = 2**26
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")  # of checkpoints, usually
_EXPORTED = (".onnx", ".xml", ".pt2", ".pte", ".mlpackage")  # endings of what kornia-mvit export writes
_REMEDY = "copy or download it again"


# Plain settings and numbers beside weights. Where a file has such, what is read in their place is empty.
_EMPTIED = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        "numpy.dtype",
        "numpy.ndarray",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"pathlib{part}.{name}Path" for part in ("", "._local") for name in ("", "Pure", "Posix", "Windows")),
        *(f"pathlib{part}.Pure{name}Path" for part in ("", "._local") for name in ("Posix", "Windows")),
    }
)
_EMPTYING = threading.Lock()


class _Empty:
    """What stands in the place of an object that a file has beside its weights; it keeps nothing of it."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class CheckpointError(FileError):
    """A file is not the checkpoint that is asked for; the message names it."""


def read_checkpoint(path: str | Path, *, whole: bool = False) -> dict[str, Any]:
    """Read a checkpoint on the CPU without running code from it.

    Args:
        path: a file that ``torch.save``, Lightning or safetensors wrote, or the folder of a run. Of a safetensors file
            the metadata that we wrote stand beside the tensors, as in our other checkpoints.
        whole: refuse a file with settings or numbers that are objects of argparse, NumPy or pathlib. Else nothing is
            read of these, since weights do not need them.

    Raises:
        CheckpointError: if the file is missing, empty or truncated, is not a checkpoint, or would run code.
        ImportError: for a ``.safetensors`` file where safetensors is missing.
    """
    check_local(path)
    path = checkpoint_in(path)
    if path.suffix in _EXPORTED and path.exists():
        raise CheckpointError(
            f"{path} is an exported file, not a checkpoint; predict takes it, and all else the checkpoint that it was "
            "made of"
        )
    if not is_file(path):
        raise CheckpointError(in_folder(path) if is_folder(path) else f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {reason_of(error)}") from None
    if head == b"PK" and not _is(zipfile.is_zipfile, path):  # its directory is at its end
        raise CheckpointError(f"checkpoint {path} is truncated: its end is missing; {_REMEDY}")
    # neither a zip archive nor a pickle, or an archive of PyTorch before 0.1.12, which its reader would unpack
    if (head != b"PK" and head[:1] != b"\x80") or _is(tarfile.is_tarfile, path):
        raise CheckpointError(f"{path} is not a PyTorch checkpoint")
    data = _load(path, mapped=head == b"PK" and _check_archive(path), whole=whole)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a checkpoint")
    return data


def checkpoint_in(path: str | Path) -> Path:
    """Return the checkpoint to use of a run's folder, the best or else the last; any other path as it is."""
    path = Path(path)
    return next((path / name for name in ("best.ckpt", "last.ckpt") if is_folder(path) and is_file(path / name)), path)


def in_folder(folder: Path, found: str = "is a folder") -> str:
    """Return what an error says of a folder in place of a checkpoint.

    Args:
        folder: the folder.
        found: what is wrong with it, unless it is that of a run that has written no checkpoint.

    Returns:
        The error, with the newest checkpoint in the folder.
    """
    # as runs have them, and as Lightning's loggers do
    places = ("*.ckpt", "*/*.ckpt", *(f"{'*/' * depth}checkpoints/*.ckpt" for depth in range(4)))
    known = [path for place in places for path in folder.glob(place) if is_file(path)]
    newest = max(known, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None and any(is_file(folder / name) for name in ("config.yaml", "metrics.csv")):
        return f"the run in {folder} has written no checkpoint; start it again, or give another folder"
    return f"{folder} {found}; give a file in it" + (f", such as {newest}" if newest else "")


def stored_bytes(data: Any) -> tuple[int, int]:
    """Return how many tensors are in a checkpoint, and the bytes that they hold together.

    Those that share their memory, or repeat it, count what there is of it.
    """
    waiting, seen, memory, count = [data], set(), {}, 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            count += 1
            if value.layout == torch.strided and value.device.type == "cpu":
                storage = value.untyped_storage()
                memory[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value
    return count, sum(memory.values())


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Return what a look at a file says; False where it fails, as on damaged directories and headers."""
    try:
        return kind(path)
    except Exception:  # of many kinds
        return False


def _load(path: Path, mapped: bool, whole: bool) -> Any:
    """Return what PyTorch reads from a file; whatever it raises on damaged bytes becomes a CheckpointError."""

    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats and names
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    try:
        try:
            return load()
        except pickle.UnpicklingError as error:
            if whole or _refused(error) not in _EMPTIED:
                raise
            places: list[Any] = [(_Empty, name) for name in _EMPTIED]
            with _EMPTYING, torch.serialization.safe_globals(places):
                return load()
    except pickle.UnpicklingError as error:
        found = _refused(error)
        if found is None:
            raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint") from None
        raise CheckpointError(
            f"checkpoint {path} would run code when unpickled ({brief(found)[1:-1]}), and is "
            "refused; save it again with tensors and plain data only"
        ) from None
    except Exception as error:  # its unpickler raises IndexError, AssertionError, struct.error and many others
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({reason_of(error)})") from None


def _refused(error: pickle.UnpicklingError) -> str | None:
    """Return the name of what PyTorch's restricted unpickler refused; None if something else was wrong."""
    found = re.search(r"GLOBAL (\S+)|allowlisted", str(error))
    return None if found is None else found[1] or "an unknown object"


def _check_archive(path: Path) -> bool:
    """Check the directory and the checksums of a zip archive that ``torch.save`` wrote.

    Args:
        path: the file.

    Returns:
        Whether all entries lie in it as they are, and so can be mapped into memory.

    Raises:
        CheckpointError: if it is damaged, would grow beyond measure, or is packed by a method that PyTorch cannot read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_directory(path, entries)
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            # torch.serialization.set_crc32_options(False) leaves all of them at 0
            if any(entry.CRC for entry in entries):
                wrong = _find_stored(path, entries) if stored else archive.testzip()
                if wrong is not None:
                    raise CheckpointError(f"{path} is damaged: the checksum of {wrong} is wrong; {_REMEDY}")
        return stored
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises more than BadZipFile: struct.error, EOFError, NotImplementedError, ...
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({reason_of(error)})") from None


def _check_directory(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raise for entries that are there twice, overlap, are encrypted, or do not fit."""
    size = path.stat().st_size
    name, count = Counter(entry.filename for entry in entries).most_common(1)[0] if entries else ("", 0)
    if count != 1:
        raise CheckpointError(f"{path} is damaged: it has {f'{name!r} {count} times' if count else 'no entries'}")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        stored = entry.compress_type == zipfile.ZIP_STORED
        begin, end = entry.header_offset, max(end, entry.header_offset)
        if begin < end or (stored and entry.file_size != entry.compress_size):
            raise CheckpointError(f"{path} is damaged: {entry.filename!r} does not lie where it should; {_REMEDY}")
        end = begin + _HEADER + entry.compress_size
        if end > size:
            raise CheckpointError(f"{path} is damaged: {entry.filename!r} reaches beyond its end; {_REMEDY}")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{path} is encrypted; save it again without a password")
        if not stored and entry.compress_type != zipfile.ZIP_DEFLATED:
            raise CheckpointError(f"{path} is compressed in a way that PyTorch cannot read; save it with torch.save")
        if entry.filename.rpartition("/")[2] == "constants.pkl":
            raise CheckpointError(
                f"{path} is a TorchScript program, not a checkpoint; save the state dict of its model"
            )
    grown = sum(entry.file_size for entry in entries)
    if grown > max(_INFLATED * size, _INFLATED_LEAST):
        raise CheckpointError(
            f"{path} of {size:,} bytes would grow to {grown:,}, above {_INFLATED} times as many; save it uncompressed, "
            "with torch.save"
        )


def _find_stored(path: Path, entries: list[zipfile.ZipInfo]) -> str | None:
    """Return the first entry whose checksum is wrong; faster than zipfile's own, which copies."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        for entry in entries:
            head = entry.header_offset
            if data[head : head + 4] != b"PK\x03\x04":
                return entry.filename
            names = sum(int.from_bytes(data[head + at : head + at + 2], "little") for at in (26, 28))
            start = head + _HEADER + names
            if start + entry.file_size > len(data):
                return entry.filename
            with view[start : start + entry.file_size] as part:
                if zlib.crc32(part) != entry.CRC:
                    return entry.filename
    return None


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError("reading .safetensors needs safetensors; install kornia-mvit[hub]") from error
    try:
        with safe_open(path, framework="pt") as file:
            data: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # not a dict
            metadata = file.metadata() or {}
    except Exception as error:  # its own, and those of types that PyTorch lacks
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({reason_of(error)})") from None
    card, expected = metadata.get(CARD_KEY), metadata.get(_HASH_KEY)
    if expected is not None and _hash(data, card) != expected:
        raise CheckpointError(f"{path} is damaged: what it holds is not what was written; {_REMEDY}")
    if card is not None:
        data = {"state_dict": data, CARD_KEY: parse_json(card, f"what {path} says of itself", CheckpointError)}
    return data


def _hash(state: Mapping[str, Tensor], card: str | None) -> str:
    """Return the SHA-256 of weights with their names, types and shapes, and of the card."""
    found = hashlib.sha256((card or "").encode("utf-8", "surrogatepass"))
    for name in sorted(state):
        value = state[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode("utf-8", "surrogatepass"))
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_checkpoint(state: dict[str, Tensor], path: str | Path, card: dict[str, Any] | None = None) -> None:
    """Write weights to a file, which appears whole or not at all.

    Args:
        state: names and weights.
        path: the file; one named ``.safetensors`` is such a file, any other is read by ``torch.load``.
        card: what the file is to say of itself; without it the file is the bare state dict.

    Raises:
        ImportError: for a ``.safetensors`` file where safetensors is missing.
        OSError: if it cannot be written, naming the file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise ImportError("writing .safetensors needs safetensors; install kornia-mvit[hub]") from error
        text = None if card is None else json.dumps(card)
        metadata = {"format": "pt", _HASH_KEY: _hash(state, text)} | ({} if text is None else {CARD_KEY: text})
        content = memoryview(save(state, metadata))
    else:  # by way of memory, as its own writer ends the process where a disk is full
        data = io.BytesIO()
        torch.save(state if card is None else {"state_dict": state, CARD_KEY: card}, data)
        content = data.getbuffer()
    with write_whole(path) as beside:
        beside.write_bytes(content)
