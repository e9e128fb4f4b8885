"""The TCP listener, for clients that know no Unix sockets; it exists only where it is configured.

The kernel does not say who is at the other end, so a token does. Without one only this machine
is served, and no web page: a browser would connect to it for anybody.
"""

from __future__ import annotations

import hmac
import socket
from pathlib import Path

from aiohttp import web

from edge import config
from edge.config import LOOPBACK
from edge.errors import AccessError, ConfigurationError, SocketError
from edge.serve.access import Role

MIN_TOKEN_LENGTH = 16
_BACKLOG = 16


def bind(address: str) -> socket.socket:
    """Listen.

    Args:
        address: HOST:PORT; of an IPv6 address [HOST]:PORT.
    Raises:
        SocketError: it cannot be had.
    """
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise SocketError(address, f"cannot be bound ({error})", "choose another port") from error
    return listener


def read_token(limits: config.Socket) -> str | None:
    """The secret of TCP clients, None where none is configured.

    Raises:
        ConfigurationError: its file cannot be read, or it is too short to be one.
    """
    if limits.token_file is None:
        return None
    try:
        token = Path(limits.token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            limits.token_file, f"cannot be read ({error})", "write a token into it, mode 0600"
        ) from error
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigurationError(
            limits.token_file,
            f"holds {len(token)} characters",
            f"write at least {MIN_TOKEN_LENGTH}: openssl rand -hex 32",
        )
    return token


def tcp_role(request: web.Request, token: str | None) -> Role:
    """The role of a TCP client: an operator, never an admin.

    Raises:
        AccessError: it does not know the token, or is a web page.
    """
    if token is not None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise AccessError("token", "is wrong or missing", "send it as the API key")
        return "operator"
    host = request.host.rpartition(":")[0] or request.host
    if "Origin" in request.headers or host not in LOOPBACK:
        raise AccessError("client", "is a web page", "set socket.token_file to let it in")
    return "operator"
