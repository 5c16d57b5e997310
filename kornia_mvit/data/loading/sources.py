"""Shards from addresses, by way of a cache on the disk that several processes share."""

import contextlib
import hashlib
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from kornia_mvit.data.reading import DataError
from kornia_mvit.files import fcntl, printable
from kornia_mvit.parsing import reason_of

__all__ = ["ShardCache", "is_address", "read_address"]

_CHUNK = 2**20  # bytes read at once
_WAIT = 0.02  # seconds between looks at what another process does
_PATIENCE = 10.0  # seconds to wait for room that other processes hold
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs"}
# Which another attempt does not change; of botocore's by their names.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError")

_log = logging.getLogger(__name__)


def is_address(name: str) -> bool:
    """Return whether a name is an address, as ``s3://bucket/a.tar``, not a path or a command.

    Example:
        >>> is_address("s3://bucket/a.tar"), is_address("pipe:cat a.tar"), is_address("a.tar")
        (True, False, False)
    """
    return "://" in name and not name.startswith("pipe:")


def read_address(address: str, attempts: int = 6, stall: float = 60.0) -> bytes:
    """Return the content of a small file at an address, such as an index.

    Args:
        address: of any kind that fsspec knows, such as ``https://``, ``s3://``, ``gs://`` or ``hf://``.
        attempts: how often to try.
        stall: seconds without a byte after which an attempt has failed.

    Raises:
        DataError: naming it, if it cannot be read.
        ImportError: naming the package that is missing.
    """
    fetch = _Fetch(attempts, 0.5, stall)

    def read() -> bytes:
        with fetch.opened(address) as file:
            content: bytes = file.read()
        return content

    return fetch.tried(address, read)  # type: ignore[no-any-return]  # what read returns


class _Fetch:
    """Attempts with growing pauses."""

    def __init__(self, attempts: int, pause: float, stall: float) -> None:
        self.attempts = attempts
        self.pause = pause
        self.stall = stall

    def system(self, address: str) -> tuple[Any, str]:
        """Return fsspec's file system of an address, and the path in it."""
        protocol = address.partition("://")[0].lower()
        try:
            import fsspec  # type: ignore[import-untyped]  # it marks no types

            options = self._options(protocol)
            system, path = fsspec.core.url_to_fs(address, **options)
        except ImportError as error:
            package = _PACKAGES.get(protocol, "fsspec[http]")
            beside = "" if package in ("fsspec[http]", "s3fs") else f", and {package}"
            raise ImportError(
                f"shards at {protocol}:// addresses need {package}; install kornia-mvit[stream]{beside}"
            ) from error
        except ValueError as error:
            raise DataError(f"cannot open {address}: {reason_of(error)}") from None
        if protocol == "s3":
            system.retries = 1  # it would try again without a word
        return system, path

    def _options(self, protocol: str) -> dict[str, Any]:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=self.stall, sock_read=self.stall)
            return {"client_kwargs": {"timeout": timeout}}
        if protocol == "s3":
            times = {"connect_timeout": self.stall, "read_timeout": self.stall, "retries": {"total_max_attempts": 1}}
            return {"config_kwargs": times}
        return {}

    @contextmanager
    def opened(self, address: str) -> Iterator[Any]:
        """Open what is at an address, to be read from start to end."""
        system, path = self.system(address)
        how = {"block_size": 0} if address.lower().startswith("http") else {"block_size": 8 * _CHUNK}
        with system.open(path, "rb", **how) as file:
            yield file

    def size(self, address: str) -> int | None:
        """Return the size of what is at an address in bytes; None where that is not told."""
        system, path = self.system(address)
        size = system.info(path).get("size")
        return None if size is None else int(size)

    def tried(self, address: str, action: Any) -> Any:
        """Call an action until it succeeds, and tell of each time that it does not.

        Raises:
            DataError: naming the address, after the last attempt.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except (DataError, ImportError):
                raise
            except Exception as error:  # of fsspec's, of its clients', and of the system's
                reason = printable(reason_of(error) or type(error).__name__)
                final = isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES
                if final or attempt == self.attempts:
                    raise DataError(f"cannot read {printable(address)}: {reason}, after {attempt} attempts") from None
                pause = self.pause * 2 ** (attempt - 1)
                _log.warning("%s: %s; attempt %d follows in %g s", printable(address), reason, attempt + 1, pause)
                time.sleep(pause)
        raise AssertionError


class ShardCache:
    """Files from addresses, kept in a folder of a bounded size, which several processes share.

    Each file is fetched by one process, whichever needs it first. Those that were not used for longest are removed for
    others, never one that is read. What is fetched has to have the size and the checksum that are known of it; each
    failed attempt is logged, by the logger of this module, and followed by another after a pause that grows.

    Where there is no room, since processes read all that is kept, a file is read into memory after ten seconds.

    Args:
        folder: where the files are kept; one in the folder for temporary files when None.
        limit: bytes that they take at most.
        attempts: how often a file is tried to be fetched.
        pause: seconds before the second attempt; each further pause is twice as long.
        stall: seconds without a byte after which an attempt has failed.
        known: size in bytes and SHA-256 of files, by their addresses; the latter may be empty.

    Raises:
        ValueError: for a limit or a number of attempts below one.
        OSError: where the system has no locks.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        limit: int = 20_000_000_000,
        *,
        attempts: int = 6,
        pause: float = 0.5,
        stall: float = 60.0,
        known: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        if limit < 1 or attempts < 1:
            raise ValueError(f"limit {limit} and attempts {attempts} are not at least one")
        if fcntl is None:
            raise OSError("a cache of shards needs locks of files, which this system lacks")
        if folder is None:
            folder = Path(tempfile.gettempdir()) / f"kornia_mvit-shards-{os.getuid()}"
        self.folder: Path = Path(folder)
        self.limit = limit
        self.known: dict[str, tuple[int, str]] = dict(known or {})
        self._fetch = _Fetch(attempts, pause, stall)
        self._ahead: tuple[int, queue.Queue[str]] | None = None  # of this process

    def open(self, address: str) -> IO[bytes]:
        """Open a file for reading, once it is there.

        Raises:
            DataError: naming the address, if it cannot be fetched, or is damaged.
            ImportError: naming the package that the address needs.
        """
        return self._have(address, _PATIENCE) or BytesIO(self._into_memory(address))

    def fetch_ahead(self, addresses: Iterable[str]) -> None:
        """Begin to fetch files that are needed soon, in the background."""
        if self._ahead is None or self._ahead[0] != os.getpid():  # a fork has no threads
            self._ahead = (os.getpid(), queue.Queue())
            threading.Thread(target=self._work, args=(self._ahead[1],), daemon=True).start()
        for address in addresses:
            self._ahead[1].put(address)

    def _work(self, wanted: "queue.Queue[str]") -> None:
        while True:
            address = wanted.get()
            with contextlib.suppress(Exception):  # who needs it tries again, and tells
                if (file := self._have(address, 0.0)) is not None:
                    file.close()

    def _have(self, address: str, patience: float) -> IO[bytes] | None:
        """Return a file that is kept, after fetching it if need be; None where there is no room for it."""
        path, end = self.folder / _name_of(address, self.known.get(address)), time.monotonic() + patience
        size = None
        while True:
            kept, part = self._look(path, size)
            if kept is not None:
                return kept
            if size is None:
                size = self._size(address)
                if size > self.limit:
                    _log.warning("%s has %d bytes, more than the cache's %d", printable(address), size, self.limit)
                    return None
            elif part is not None:
                return self._fill(address, path, part)
            elif not path.with_name(f"{path.name}.part").exists() and time.monotonic() >= end:
                return None
            else:
                time.sleep(_WAIT)

    def _size(self, address: str) -> int:
        if address in self.known:
            return self.known[address][0]
        size = self._fetch.tried(address, lambda: self._fetch.size(address))
        if size is None:
            raise DataError(f"{printable(address)} does not tell its size; give an index.json with it")
        return int(size)

    def _look(self, path: Path, size: int | None) -> tuple[IO[bytes] | None, IO[bytes] | None]:
        """Return the file, if it is there; or one to fill, of the size, if there is room and nobody else fills it."""
        with self._locked():
            with contextlib.suppress(FileNotFoundError):
                file = path.open("rb")
                fcntl.flock(file, fcntl.LOCK_SH)
                os.utime(path)
                return file, None
            if size is None:
                return None, None
            place = path.with_name(f"{path.name}.part")
            part = open(place, "r+b", opener=_create)  # closed by who fills it
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                part.close()
                return None, None
            part.truncate(0)
            if self._make_room(size, place):
                part.truncate(size)
                return None, part
            place.unlink()
            part.close()
            return None, None

    def _make_room(self, size: int, own: Path) -> bool:
        """Remove what was not used for longest, until a file of a size fits in."""
        found = [(entry, entry.stat()) for entry in os.scandir(self.folder) if entry.name != ".lock"]
        total = sum(stat.st_size for _, stat in found)
        for entry, stat in sorted(found, key=lambda pair: pair[1].st_mtime_ns):
            if total + size <= self.limit:
                break
            if entry.path == str(own):
                continue
            with open(entry.path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # it is read, or filled
                    continue
                os.unlink(entry.path)
                total -= stat.st_size
        return total + size <= self.limit

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes and threads from looking at what is kept, or changing it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _fill(self, address: str, path: Path, part: IO[bytes]) -> IO[bytes]:
        """Fetch a file into the place that is kept for it."""
        try:
            self._fetch.tried(address, lambda: self._read_into(address, part))
            with self._locked():
                os.replace(part.name, path)
                fcntl.flock(part, fcntl.LOCK_SH)
        except BaseException:
            with self._locked():
                Path(part.name).unlink(missing_ok=True)
                part.close()
            raise
        part.seek(0)
        return part

    def _read_into(self, address: str, target: IO[bytes]) -> None:
        """Read a file, and check its size and its checksum."""
        size, expected = self.known.get(address, (None, ""))
        room, place, found = os.fstat(target.fileno()).st_size, 0, hashlib.sha256()
        with self._fetch.opened(address) as source:
            while chunk := source.read(_CHUNK):
                if place + len(chunk) > room:
                    raise OSError(f"it has more than {room} bytes")
                os.pwrite(target.fileno(), chunk, place)
                found.update(chunk)
                place += len(chunk)
        if place != (room if size is None else size):
            raise OSError(f"{place} of {room} bytes came")
        if expected and found.hexdigest() != expected:
            raise OSError("its checksum is another one")

    def _into_memory(self, address: str) -> bytes:
        size, expected = self.known.get(address, (None, ""))
        _log.warning("%s is read into memory: there is no room for it in %s", printable(address), self.folder)

        def read() -> bytes:
            with self._fetch.opened(address) as source:
                content: bytes = source.read()
            if size is not None and len(content) != size:
                raise OSError(f"{len(content)} of {size} bytes came")
            if expected and hashlib.sha256(content).hexdigest() != expected:
                raise OSError("its checksum is another one")
            return content

        return self._fetch.tried(address, read)  # type: ignore[no-any-return]  # what read returns


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT)


def _name_of(address: str, known: tuple[int, str] | None) -> str:
    """Return the name under which a file is kept: another one where its content is known to be another."""
    told = hashlib.sha256(f"{address}\n{known}".encode()).hexdigest()
    return f"{told[:20]}-{address.rpartition('/')[2][-100:]}"
