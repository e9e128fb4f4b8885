"""What every request passes: counted, its errors as JSON, admitted, read in time and in bounds."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from edge.errors import EdgeError, ProtocolError
from edge.serve.access import Role, Roles, peer_of, require
from edge.serve.metrics import Metrics
from edge.serve.replies import RETRY_AFTER_S, TooLateError, error_body, json_reply, status_of
from edge.serve.tcp import tcp_role

MAX_BODY_BYTES = 16 << 20
"""A picture of some megapixels in base64, and a conversation around it."""
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
            response = await handler(request)
            status = response.status
            return response
        finally:
            metrics.answered(route, status, time.monotonic() - began_s)

    return count


def admitted(roles: Roles, idle_s: float, token: str | None) -> Middleware:
    """Reads the request when its client may make it: observers only read.

    Args:
        token: of clients over TCP.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
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
            await asyncio.wait_for(request.read(), idle_s)  # kept for the handler
        except asyncio.TimeoutError:
            raise TooLateError(
                "body", f"did not arrive within {idle_s:g} s", "send all of it at once"
            ) from None
        return await handler(request)

    return admit


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
        )
        return json_reply(error_body(too_large), error.status)
    except web.HTTPException as error:
        remedy = "use GET /v1/models, /healthz or /readyz, or POST /v1/chat/completions"
        refused = ProtocolError(f"{request.method} {request.path}", error.reason, remedy)
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return json_reply(error_body(refused), error.status, kept)
