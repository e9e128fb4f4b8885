"""A bundle that a service opens again: bytes checked since the machine started are not read again.

A service that was killed is back sooner by the time that 18 GB take to hash.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from edge.engines.bundle import MANIFEST, Bundle

log = logging.getLogger(__name__)

STAMP = "bundle.checked"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SETTLED_NS = 1_000_000_000
"""A file that changed so recently may change again without its times showing it: the kernel's clock
for files goes in steps of some milliseconds."""


def open_bundle(
    path: Path,
    folder: Path | None,
    now_ns: Callable[[], int] = time.time_ns,
    trusted_keys: Collection[str] = (),
) -> Bundle:
    """Open a bundle, and check every byte of it unless that was done since the machine started.

    Whatever touched one of its files since, even with their size and modification time put back,
    has all of it checked again: the kernel alone sets the time of a file's last change.

    Args:
        path: of the bundle.
        folder: where it is remembered, writable for nobody else; None: check it always.
        now_ns: the wall clock.
        trusted_keys: as `Bundle` takes them; a signature is checked always.
    Raises:
        BundleError: as `Bundle` says.
    """
    if folder is None:
        return Bundle(path, trusted_keys=trusted_keys)
    stamp = folder / STAMP
    if not (path / MANIFEST).is_file():
        return Bundle(path, trusted_keys=trusted_keys)  # it says what is wrong
    before, newest_ns = _state(path)
    if stamp.is_file() and stamp.read_bytes() == before:
        return Bundle(path, check_hashes=False, trusted_keys=trusted_keys)
    began_ns = now_ns()
    bundle = Bundle(path, trusted_keys=trusted_keys)
    if _state(path)[0] == before and newest_ns + SETTLED_NS < began_ns:
        try:
            new = stamp.with_suffix(".new")
            new.write_bytes(before)
            new.replace(stamp)
        except OSError as error:
            log.warning("event=not_remembered file=%s error=%s", stamp, error.strerror)
    return bundle


def _state(path: Path) -> tuple[bytes, int]:
    """What changes with any file of the bundle or the machine's next start; the newest change."""
    files = []
    newest_ns = 0
    for file in sorted(path.iterdir()):
        about = file.lstat()
        times = about.st_mtime_ns, about.st_ctime_ns
        files.append((file.name, about.st_dev, about.st_ino, about.st_size, *times))
        newest_ns = max(newest_ns, about.st_ctime_ns)
    manifest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    state = (BOOT_ID.read_text().strip(), os.fspath(path.resolve()), manifest, files)
    return msgspec.json.encode(state), newest_ns
