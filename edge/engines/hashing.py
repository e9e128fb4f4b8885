"""The bytes of a bundle's files: read and hashed by threads, while others do something else.

Nothing here needs numpy, so that hashing begins before the runtime's packages are imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edge.files import open_regular

MANIFEST = "manifest.json"
"""Of a bundle: it lists its files."""
PART_BYTES: Literal[67_108_864] = 67_108_864
"""18 GB are 269 parts, so that all threads end at much the same time."""
BLOCK_BYTES = 1 << 22
"""What is read at once. The next block is on its way meanwhile."""


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a file of the bundle must be."""

    n_bytes: int
    sha256: str
    part_bytes: Literal[0, 67_108_864] = 0
    """0: `sha256` is that of the file. Else it is of its parts' SHA-256 digests, 32 bytes each, one
    behind another: one file's parts can be hashed side by side."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """What was hashed, and how long it took."""

    n_bytes: int
    seconds: float
    """From the beginning to the end of the last part."""
    read_s: float
    hash_s: float
    """Both of all threads together."""

    @property
    def gb_per_s(self) -> float:
        """The speed of all threads together."""
        return self.n_bytes / 1e9 / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class _Part:
    """What became of one part."""

    digest: bytes
    n_bytes: int
    read_s: float
    hash_s: float
    ended_s: float


class Hashing:
    """Threads, one a core, that hash files in the order in which they are told of them."""

    def __init__(self, *, give_back: bool = False) -> None:
        """Hash nothing yet.

        Args:
            give_back: leave nothing of what is hashed in the page cache.
        """
        self._give_back = give_back
        self._pool = ThreadPoolExecutor(os.cpu_count(), "hash")
        self._is_closed = threading.Event()
        self._parts: dict[tuple[Path, int, int], list[Future[_Part]]] = {}
        self._began_s = time.monotonic()

    def begin(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        """Hash these files of a folder, but those of another size: they are wrong anyway."""
        for name, expected in files.items():
            path = folder / name
            with contextlib.suppress(OSError, ValueError):  # the latter for a name that none is
                if Path(name).name == name and path.lstat().st_size == expected.n_bytes:
                    self._begin(path, expected)

    def _begin(self, path: Path, expected: FileEntry) -> list[Future[_Part]]:
        """Hash a file, unless that was begun before."""
        key = path, expected.n_bytes, expected.part_bytes
        if key not in self._parts:
            n_bytes = max(expected.n_bytes, 1)
            step: int = expected.part_bytes or n_bytes
            starts = range(0, n_bytes, step)
            self._parts[key] = [self._pool.submit(self._hash, path, at, step) for at in starts]
        return self._parts[key]

    def sha256(self, path: Path, expected: FileEntry) -> str:
        """What `expected.sha256` should be, by the bytes that the file has.

        Raises:
            OSError: it cannot be read, or is a symbolic link.
        """
        digests = [part.result().digest for part in self._begin(path, expected)]
        if self._give_back:  # what the kernel read ahead behind the end of a part
            with open_regular(path, follow=False) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if expected.part_bytes:
            return hashlib.sha256(b"".join(digests)).hexdigest()
        return digests[0].hex()

    def hashed(self) -> Hashed:
        """The figures of all that is hashed by now."""
        begun = [part for parts in self._parts.values() for part in parts]
        ended = [part for part in begun if part.done() and not part.cancelled()]
        done = [part.result() for part in ended if part.exception() is None]
        return Hashed(
            sum(part.n_bytes for part in done),
            max((part.ended_s for part in done), default=self._began_s) - self._began_s,
            sum(part.read_s for part in done),
            sum(part.hash_s for part in done),
        )

    def _hash(self, path: Path, start: int, max_bytes: int) -> _Part:
        digest, at, read_s, started_s = hashlib.sha256(), start, 0.0, time.monotonic()
        with open_regular(path, follow=False) as file:
            descriptor = file.fileno()
            end = min(start + max_bytes, os.fstat(descriptor).st_size)
            block = memoryview(bytearray(max(0, min(end - start, BLOCK_BYTES))))
            while at < end and not self._is_closed.is_set():
                began_s = time.monotonic()
                n_read = os.preadv(descriptor, [block[: end - at]], at)
                read_s += time.monotonic() - began_s
                if not n_read:
                    break
                at += n_read
                n_ahead = min(end - at, BLOCK_BYTES)
                if n_ahead:
                    os.posix_fadvise(descriptor, at, n_ahead, os.POSIX_FADV_WILLNEED)
                digest.update(block[:n_read])
                if self._give_back:
                    os.posix_fadvise(descriptor, start, at - start, os.POSIX_FADV_DONTNEED)
        ended_s = time.monotonic()
        return _Part(digest.digest(), at - start, read_s, ended_s - started_s - read_s, ended_s)

    def close(self) -> None:
        """Leave what is not hashed yet."""
        self._is_closed.set()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def file_entry(path: Path, *, give_back: bool = False) -> FileEntry:
    """Measure a file, which is no symbolic link.

    Args:
        give_back: leave nothing of it in the page cache.
    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path, follow=False) as file:
        n_bytes = os.fstat(file.fileno()).st_size
    found = FileEntry(n_bytes, "", PART_BYTES if n_bytes > PART_BYTES else 0)
    with Hashing(give_back=give_back) as hashing:
        return msgspec.structs.replace(found, sha256=hashing.sha256(path, found))
