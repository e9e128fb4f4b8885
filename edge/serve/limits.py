"""What every request passes: counted, its errors as JSON, admitted, read in time and in bounds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from edge.errors import EdgeError, ProtocolError
from edge.serve.access import Role, Roles, peer_of, require
from edge.serve.metrics import Metrics
from edge.serve.replies import RETRY_AFTER_S, TooLateError, error_body, json_reply, status_of
from edge.serve.room import Room, connection_of
from edge.serve.tcp import tcp_role

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
"""A picture of some megapixels in base64, and a conversation around it."""
MAX_READING_BYTES = 64 << 20
"""Of all bodies and messages that are arriving."""
CLIENT_GONE = 499
"""Counted where a client did not wait for its answer; as nginx has it."""
ROLE: web.RequestKey[Role] = web.RequestKey("role")
"""A request's key for the role of its client."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def counted(metrics: Metrics) -> Middleware:
    """Counts requests by the route's pattern."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        began_s, status = time.monotonic(), CLIENT_GONE
        try:
            # From Python 3.12 on aiohttp begins the next of a client's requests within this round.
            await asyncio.sleep(0)
            response = await handler(request)
            status = response.status
            return response
        finally:
            metrics.answered(route, status, time.monotonic() - began_s)

    return count


@contextlib.contextmanager
def _arriving(request: web.Request, room: Room) -> Iterator[None]:
    """Let a body arrive.

    Raises:
        CapacityError: there is no room for it now.
    """
    n_bytes = MAX_BODY_BYTES if request.content_length is None else request.content_length
    n_bytes = min(n_bytes, MAX_BODY_BYTES) if request.body_exists else 0
    room.take("body", n_bytes)
    try:
        yield
    finally:
        room.give(n_bytes)


def admitted(roles: Roles, idle_s: float, token: str | None, room: Room) -> Middleware:
    """Reads the request when its client may make it: observers only read.

    Args:
        token: of clients over TCP.
        room: for all bodies that are arriving.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
        for name, value in request.headers.items():
            if not value.isascii():  # not everything behind this can read others
                raise ProtocolError(f"header {name}", "is not ASCII", "encode it")
        connection = request.transport.get_extra_info("socket")
        role: Role
        if connection.family == socket.AF_UNIX:
            role = roles.admit(peer_of(connection))
        else:
            role = tcp_role(request, token)
        request[ROLE] = role
        if request.method not in ("GET", "HEAD"):
            require(role, "operator", f"{request.method} {request.path}")
        try:
            with _arriving(request, room):
                await asyncio.wait_for(request.read(), idle_s)  # kept for the handler
            if connection_of(request).is_cut:
                remedy = "send all that Content-Length announces before you shut your side"
                raise ProtocolError("body", "ended before it was whole", remedy)
        except asyncio.TimeoutError:
            raise TooLateError(
                "body", f"did not arrive within {idle_s:g} s", "send all of it at once"
            ) from None
        return await handler(request)

    return admit


def http_log(metrics: Metrics) -> logging.Logger:
    """aiohttp's log, without a traceback for whatever a client does wrong."""

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            metrics.malformed()
        if isinstance(error, HttpProcessingError | ConnectionError):  # or the client has gone
            return False
        return record.levelno >= logging.WARNING

    logger = logging.Logger("edge.serve.http")
    logger.parent = log
    logger.setLevel(logging.DEBUG)  # one kind of such errors is logged so
    logger.addFilter(keep)
    return logger


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as OpenAI's error object."""
    try:
        return await handler(request)
    except EdgeError as error:
        status = status_of(error)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
        return json_reply(error_body(error), status, headers)
    except web.HTTPRequestEntityTooLarge as error:
        too_large = ProtocolError(
            "body",
            f"is larger than {MAX_BODY_BYTES} bytes",
            "send a shorter conversation, or smaller pictures",
            code="body_too_large",
        )
        return json_reply(error_body(too_large), error.status)
    except web.HTTPException as error:
        refused = ProtocolError(
            "url", f"{request.method} {request.path}: {error.reason}", _known(request)
        )
        body = error_body(refused)
        body["error"] |= {"param": None, "code": _HTTP_CODES.get(error.status)}
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return json_reply(body, error.status, kept)


_HTTP_CODES = {404: "unknown_url", 405: "method_not_supported"}
"""OpenAI's words."""


def _known(request: web.Request) -> str:
    """What to do instead."""
    routes = request.app.router.routes()
    known = sorted(
        f"{route.method} {route.resource.canonical}"
        for route in routes
        if route.resource is not None and route.method != "HEAD"
    )
    return f"use one of {', '.join(known)}"
