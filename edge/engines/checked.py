"""A bundle that a service opens: hashed while the service's packages are imported, or remembered.

Bytes that were checked since the machine started are not read again: a service that was killed is
back sooner by the time that 18 GB take to hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.engines.hashing import MANIFEST, FileEntry, Hashing
from edge.files import read_bounded

if TYPE_CHECKING:  # it needs numpy
    from edge.engines.bundle import Bundle

log = logging.getLogger(__name__)

STAMP = "bundle.checked"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SETTLED_NS = 1_000_000_000
"""A file that changed so recently may change again without its times showing it: the kernel's clock
for files goes in steps of some milliseconds."""


class _Listed(msgspec.Struct):
    """What is read of a manifest before all of it is."""

    files: dict[str, FileEntry]
    plans: msgspec.Raw | None = None


class Checking:
    """A bundle whose bytes are read and hashed from now on, unless that was done since the machine
    started.

    Whatever touched one of its files since, even with their size and modification time put back,
    has all of it hashed again: the kernel alone sets the time of a file's last change.
    """

    def __init__(
        self, path: Path, folder: Path | None, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Begin to hash.

        Args:
            path: of the bundle.
            folder: where it is remembered, writable for nobody else; None: check it always.
            now_ns: the wall clock.
        """
        self.path, self._began_ns = path, now_ns()
        self._before = _state(path)
        self._stamp = folder / STAMP if folder and self._before[0] else None
        self._hashing: Hashing | None = None
        if not self._is_remembered():
            self._hashing = _begun(path)

    def _is_remembered(self) -> bool:
        stamp = self._stamp
        return bool(stamp and stamp.is_file() and stamp.read_bytes() == self._before[0])

    def open(self, trusted_keys: Collection[str] = ()) -> Bundle:
        """The bundle, every byte of which is the manifest's.

        Args:
            trusted_keys: as `Bundle` takes them; a signature is checked always.
        Raises:
            BundleError: as `Bundle` says.
        """
        from edge.engines.bundle import Bundle

        hashing, (before, newest_ns) = self._hashing, self._before
        if hashing is None:
            return Bundle(self.path, check_hashes=False, trusted_keys=trusted_keys)
        bundle = Bundle(self.path, trusted_keys=trusted_keys, hashing=hashing)
        done = hashing.hashed()
        log.info(
            "event=hashed bytes=%d seconds=%.3f gb_per_s=%.3f read_s=%.3f hash_s=%.3f",
            *(done.n_bytes, done.seconds, done.gb_per_s, done.read_s, done.hash_s),
        )
        is_settled = newest_ns + SETTLED_NS < self._began_ns
        if self._stamp and is_settled and _state(self.path)[0] == before:
            try:
                new = self._stamp.with_suffix(".new")
                new.write_bytes(before)
                new.replace(self._stamp)
            except OSError as error:
                log.warning("event=not_remembered file=%s error=%s", self._stamp, error.strerror)
        return bundle

    def __enter__(self) -> Checking:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hashing:
            self._hashing.close()


def _begun(path: Path) -> Hashing:
    """Threads that hash what the manifest lists; nothing, where it cannot be read."""
    try:
        listed = msgspec.json.decode(read_bounded(path / MANIFEST, follow=False), type=_Listed)
    except (OSError, msgspec.DecodeError, RecursionError):
        return Hashing()  # `Bundle` says what is wrong
    hashing = Hashing(give_back=listed.plans is not None)
    hashing.begin(path, listed.files)
    return hashing


def _state(path: Path) -> tuple[bytes, int]:
    """What changes with any file of the bundle or the machine's next start; the newest change.

    Nothing, where there is no manifest.
    """
    files = []
    newest_ns = 0
    with contextlib.suppress(OSError):
        manifest = hashlib.sha256(read_bounded(path / MANIFEST, follow=False)).hexdigest()
        for file in sorted(path.iterdir()):
            about = file.lstat()
            times = about.st_mtime_ns, about.st_ctime_ns
            files.append((file.name, about.st_dev, about.st_ino, about.st_size, *times))
            newest_ns = max(newest_ns, about.st_ctime_ns)
        state = (BOOT_ID.read_text().strip(), os.fspath(path.resolve()), manifest, files)
        return msgspec.json.encode(state), newest_ns
    return b"", newest_ns
