"""The TCP listener, for clients that know no Unix sockets; it exists only where it is configured.

The kernel does not say who is at the other end, so a token does. Without one only this machine
is served, and no web page: a browser would connect to it for anybody.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import socket
from pathlib import Path

from aiohttp import web

from edge import config
from edge.config import LOOPBACK
from edge.errors import AccessError, ConfigurationError, SocketError
from edge.serve.access import Role

MIN_TOKEN_LENGTH = 16
_BACKLOG = 128
_MAX_TOKEN_CHARACTERS = 4096
_HOST = re.compile(r"(\[[0-9a-f:]+\]|[^:\[\]]+)(:[0-9]*)?", re.IGNORECASE)
_NO_PAGE = ("none", "same-origin")
"""What a browser says in Sec-Fetch-Site where no other page has sent it."""

log = logging.getLogger(__name__)


def bind(address: str) -> socket.socket:
    """Listen.

    Args:
        address: HOST:PORT; of an IPv6 address [HOST]:PORT.
    Raises:
        SocketError: it cannot be had.
    """
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    if host not in LOOPBACK:
        log.warning(
            "socket=%s event=not_encrypted problem=%s remedy=%s",
            *(
                address,
                "whoever sees the traffic reads token and answers",
                "a tunnel, such as ssh -L",
            ),
        )
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
        ConfigurationError: its file cannot be read, or others can, or it is too short to be one.
    """
    if limits.token_file is None:
        return None
    path = Path(limits.token_file)
    try:
        with path.open(encoding="ascii") as file:
            others = os.fstat(file.fileno()).st_mode & 0o077
            token = file.read(_MAX_TOKEN_CHARACTERS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            path, f"cannot be read ({error})", "write a token into it, mode 0600"
        ) from error
    if others:
        raise ConfigurationError(
            path, "is open to more than its owner", f"chmod 600 {path}, and write another token"
        )
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
    named = _HOST.fullmatch(request.headers.get("Host", ""))
    is_here = named is not None and named[1].lower() in LOOPBACK
    is_page = "Origin" in request.headers
    is_page |= request.headers.get("Sec-Fetch-Site", "none") not in _NO_PAGE
    if is_page or not is_here:
        raise AccessError("client", "is a web page", "set socket.token_file to let it in")
    return "operator"
