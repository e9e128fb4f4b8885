"""The service's Unix socket in the file system: taken once, given back if it is still ours."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
from pathlib import Path

from edge.errors import SocketError

log = logging.getLogger(__name__)

MODE = 0o666
"""As in edge.socket: the door asks the kernel who comes, and lets in whom [access] names."""
MAX_PATH_BYTES = 107
"""sockaddr_un holds 108 bytes, the last of which is the terminating zero."""
_BACKLOG = 128
_PROBE_TIMEOUT_S = 1.0
_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
}


class Listener(socket.socket):
    """A listening Unix socket that knows which file it made."""

    file_identity: tuple[int, int] = (0, 0)
    """Device and inode; the socket's own descriptor has an inode of another kind."""


def bind(path: Path) -> Listener:
    """Make a listening Unix stream socket that everybody may reach: roles decide who is let in.

    A socket file that a dead process left is replaced.

    Args:
        path: where; its folder exists.

    Raises:
        SocketError: the path is too long or taken, or its folder is missing or closed to us.
    """
    n_bytes = len(os.fsencode(path))
    if n_bytes > MAX_PATH_BYTES:
        raise SocketError(
            path,
            f"is {n_bytes} bytes long and a Unix socket's path holds {MAX_PATH_BYTES}",
            "choose a shorter path",
        )
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SocketError(
            path.parent,
            f"cannot be opened as a folder ({error.strerror})",
            "create the folder or choose another path",
        ) from error
    try:
        # Two services that start together must not both find the same stale file and then
        # remove each other's new one.
        fcntl.flock(folder, fcntl.LOCK_EX)
        _clear(path)
        return _listen(path)
    finally:
        os.close(folder)


def release(path: Path, sock: socket.socket) -> None:
    """Remove the socket's file, unless another process has put its own there.

    Call it while the socket is open, before the server stops: until it is closed its inode cannot
    be given to another file. Closing is the server's.

    Args:
        path: what `bind` was given.
        sock: what `bind` returned.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        log.warning("socket=%s event=gone_before_release", path)
        return
    if isinstance(sock, Listener) and sock.file_identity == (found.st_dev, found.st_ino):
        path.unlink(missing_ok=True)
    else:
        log.warning("socket=%s event=kept reason=not_ours", path)


def _listen(path: Path) -> Listener:
    sock = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        # Until it listens nobody can connect, so there is no moment with a wider mode.
        os.chmod(path, MODE)
        sock.listen(_BACKLOG)
        made = os.lstat(path)
    except OSError as error:
        sock.close()
        raise SocketError(
            path, f"cannot be bound ({error.strerror})", "choose a path that this user may write"
        ) from error
    sock.file_identity = (made.st_dev, made.st_ino)
    return sock


def _clear(path: Path) -> None:
    """Remove a stale socket.

    Raises:
        SocketError: something else is there.
    """
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFSOCK:
        raise SocketError(
            path,
            f"exists and is {_KINDS.get(kind, 'a device')}",
            "move it away or choose another path",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            log.warning("socket=%s event=removed reason=stale", path)
            return
        except FileNotFoundError:
            return  # its owner has just released it
        except OSError as error:
            # A full backlog answers EAGAIN: somebody serves there, only too busy to say so.
            if error.errno != errno.EAGAIN:
                raise SocketError(
                    path,
                    f"exists and cannot be probed ({error.strerror})",
                    "choose another path, or stop what owns it",
                ) from error
    raise SocketError(
        path,
        "another edge run is serving there",
        "stop it (systemctl stop edge) or choose another path",
    )
