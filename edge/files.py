"""Files that others have made: only regular ones are read, and no more of one than is meant."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_JSON_BYTES = 1 << 24
"""Of a configuration, a manifest or a header. The published ones have up to 1 MB."""


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a file to read it.

    Args:
        follow: take what a symbolic link in its place points to.
    Raises:
        OSError: it is absent, closed to this user, or a pipe, which would keep its reader waiting.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "is a symbolic link", os.fspath(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, max_bytes: int = MAX_JSON_BYTES, *, follow: bool = True) -> bytes:
    """All of a file that is not larger than it may be.

    Raises:
        OSError: as `open_regular`, or it is larger.
    """
    with open_regular(path, follow=follow) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        content = file.read(max_bytes + 1) if n_bytes <= max_bytes else b""
    if max(n_bytes, len(content)) > max_bytes:
        problem = f"has more than the {max_bytes} bytes that are read of it"
        raise OSError(errno.EFBIG, problem, os.fspath(path))
    return content
