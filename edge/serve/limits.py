"""What every request passes: counted, its errors as JSON, admitted, read in time and in bounds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from edge.errors import AccessError, EdgeError, ProtocolError
from edge.model import grammars
from edge.serve.access import Role, require
from edge.serve.connection import connection_of, patience_s
from edge.serve.metrics import Metrics
from edge.serve.replies import (
    RETRY_AFTER_S,
    EncodedError,
    TooLateError,
    error_body,
    json_reply,
    status_of,
)
from edge.serve.room import Room, beyond
from edge.serve.tcp import tcp_role

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
"""A picture of some megapixels in base64, and a conversation around it."""
MAX_READING_BYTES = 64 << 20
"""Of all bodies and messages that are arriving."""
MAX_SHARE_BYTES = MAX_READING_BYTES // 2
"""Likewise, of one user: then there is room for others."""
BODILESS = ("GET", "HEAD", "DELETE")
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


async def _read(request: web.Request, room: Room, idle_s: float) -> bytes:
    """A request's body, counted as it arrives.

    Raises:
        HTTPRequestEntityTooLarge: it is too long.
        CapacityError: there is no room for it now.
        TooLateError: it arrives too slowly.
    """
    user, announced = connection_of(request).user, request.content_length
    if announced is not None:
        if announced > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, announced)
        room.check("body", beyond(announced), user)
    content, now_s = request.content, asyncio.get_running_loop().time
    began_s, body, n_counted = now_s(), bytearray(), 0
    try:
        while not content.at_eof():
            if not (data := content.read_nowait()):
                left_s = began_s + patience_s(len(body), idle_s) - now_s()
                data = await asyncio.wait_for(content.readany(), left_s)
            body += data
            if len(body) > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(body))
            n_more = beyond(len(body)) - n_counted
            room.take("body", n_more, user)
            n_counted += n_more
    except asyncio.TimeoutError:
        problem = f"arrives too slowly: {len(body)} bytes within {now_s() - began_s:.1f} s"
        raise TooLateError("body", problem, "send all of it at once") from None
    finally:
        room.give(n_counted, user)
    return bytes(body)


def admitted(idle_s: float, token: str | None, room: Room) -> Middleware:
    """Reads the request when its client may make it: observers only read.

    Args:
        token: of clients over TCP.
        room: for all bodies that are arriving.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = connection_of(request)
        grammars.USER.set(connection.user)
        for name, value in request.headers.items():
            if not value.isascii():  # not everything behind this can read others
                raise ProtocolError(f"header {name}", "is not ASCII", "encode it")
        if not connection.is_local:
            connection.role = tcp_role(request, token)
        assert connection.role is not None  # the door has asked who it is
        request[ROLE] = connection.role
        _check_form(request)
        if request.method not in ("GET", "HEAD"):
            require(request[ROLE], "operator", f"{request.method} {request.path}")
        if request.match_info.http_exception is not None:  # nobody would take its body
            raise request.match_info.http_exception
        # Where aiohttp's own `read` keeps it for the handler.
        request._read_bytes = await _read(request, room, idle_s)
        if connection.is_cut:
            remedy = "send all that Content-Length announces before you shut your side"
            raise ProtocolError("body", "ended before it was whole", remedy)
        return await handler(request)

    return admit


def _check_form(request: web.Request) -> None:
    """Whether the body, if there is one, may be read at all.

    Raises:
        EncodedError: it is compressed.
        ProtocolError: there must be none.
    """
    if (encoding := request.headers.get("Content-Encoding")) is not None:
        raise EncodedError("header Content-Encoding", f"is {encoding[:40]!r}", "send it as it is")
    if request.method in BODILESS and (
        request.content_length or "Transfer-Encoding" in request.headers
    ):
        raise ProtocolError("body", f"comes behind {request.method}", "send none")


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
        reply = json_reply(error_body(error), status, headers)
        if isinstance(error, AccessError) and not connection_of(request).is_local:
            reply.force_close()  # whoever has no token keeps no place
        return reply
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
