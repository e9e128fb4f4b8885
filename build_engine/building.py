"""What is built gathers in a folder beside its own, and takes its name when it is whole.

Plans are put into a bundle that is there, and verified in it: one process at a time does either.
"""

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


@contextlib.contextmanager
def kept(bundle: Path, *, changes: bool = True) -> Iterator[None]:
    """Have a bundle for oneself until the block ends, or keep others from changing it.

    A folder that cannot be opened is not locked: whoever reads it says what is wrong with it.

    Args:
        changes: the block writes into it. Blocks that do not may go on at the same time.

    Raises:
        ConfigurationError: another process has it.
    """
    try:
        descriptor = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        _lock(descriptor, bundle, "compiled or verified", "stop it", shared=not changes)
        yield
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
            _lock(descriptor, folder, "built", "name another folder")
        except ConfigurationError:
            os.close(descriptor)
            raise
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
        os.close(descriptor)


def _lock(
    descriptor: int, folder: Path, done: str, otherwise: str, *, shared: bool = False
) -> None:
    """Take the lock of a folder.

    Args:
        done: what whoever has it does with the folder.
        otherwise: what to do but wait.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = f"is being {done} by {_holder(os.fstat(descriptor).st_ino)}"
        raise ConfigurationError(folder, problem, f"wait for it, or {otherwise}") from None


def _holder(inode: int) -> str:
    """Who has the lock, as far as the kernel says."""
    for line in LOCKS.read_text().splitlines() if LOCKS.exists() else ():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return f"process {fields[4]}"
    return "another process"
