"""What is built gathers in a folder beside its own, and takes its name when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edge.errors import ConfigurationError

LOCKS = Path("/proc/locks")


def refuse_existing(out: Path) -> None:
    """See that nothing is replaced.

    Raises:
        ConfigurationError: there is something of this name.
    """
    if out.exists():
        raise ConfigurationError(out, "exists already", "remove it or name another folder")


def work_folder(out: Path) -> Path:
    """Where `out` is being built."""
    return out.with_name(f".{out.name}.partial")


@contextlib.contextmanager
def building(out: Path) -> Iterator[Path]:
    """Have the work folder of `out` for oneself until the block ends; it is made if need be.

    The lock is the kernel's: it ends with the process, however that ends.

    Raises:
        ConfigurationError: `out` exists, or another process is building it.
    """
    folder = work_folder(out)
    descriptor = _locked(folder)
    try:
        refuse_existing(out)
        yield folder
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """A descriptor that holds the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # renamed or removed by who had it: once more
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"is being built by {_holder(os.fstat(descriptor).st_ino)}"
            os.close(descriptor)
            raise ConfigurationError(
                folder, problem, "wait for it, or name another folder"
            ) from None
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
        os.close(descriptor)


def _holder(inode: int) -> str:
    """Who has the lock, as far as the kernel says."""
    for line in LOCKS.read_text().splitlines() if LOCKS.exists() else ():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return f"process {fields[4]}"
    return "another process"
