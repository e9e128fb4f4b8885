"""What those hear who wait at the socket of a service that cannot start."""

from __future__ import annotations

import contextlib
import socket
import time

import msgspec

from edge.errors import CapacityError, EdgeError
from edge.serve.replies import error_body

MAX_REFUSED = 128
"""As many as the socket's backlog holds."""
READ_S = 0.5
"""So long may all of them together take to send what they ask."""


def tell_waiting(listener: socket.socket, error: EdgeError) -> int:
    """Answer all who wait with HTTP 503 and the reason; how many they were.

    Else systemd would start the service again for them, only to fail in the same way.

    Args:
        listener: has their connections, which nobody has accepted.
        error: why there is no service.
    """
    told = CapacityError(error.thing, error.problem, error.remedy)
    body = msgspec.json.encode(error_body(told))
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    listener.setblocking(False)
    deadline_s, n_told = time.monotonic() + READ_S, 0
    while n_told < MAX_REFUSED:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            break
        n_told += 1
        with connection, contextlib.suppress(OSError):
            # Some clients take an answer that is there before their request for a broken one,
            # and what is unread when it is closed would undo what was sent.
            _read(connection, deadline_s)
            connection.settimeout(READ_S)
            connection.sendall(head.encode() + body)
            connection.shutdown(socket.SHUT_WR)
            while _read(connection, deadline_s):
                pass
    return n_told


def _read(connection: socket.socket, deadline_s: float) -> bytes:
    connection.settimeout(max(0.001, deadline_s - time.monotonic()))
    with contextlib.suppress(TimeoutError):
        return connection.recv(1 << 16)
    return b""
