"""What the kernel holds of a file in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

libc = ctypes.CDLL(None, use_errno=True)


def n_cached(path: Path) -> int:
    """Pages of a file that the kernel holds in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        found = np.empty(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        content = np.frombuffer(mapped, np.uint8)
        address, n_bytes = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(mapped))
        assert libc.mincore(address, n_bytes, ctypes.c_void_p(found.ctypes.data)) == 0
        del content
    return int((found & 1).sum())


def drop(path: Path) -> int:
    """Write a file out and let go of its pages; how many stay, as in a filesystem in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return n_cached(path)
