"""Answers that are no stream: JSON objects, and errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from edge.errors import AccessError, CapacityError, EdgeError, MediaError, ProtocolError

RETRY_AFTER_S = 1


class NotFoundError(ProtocolError):
    """A request names something that is not here: HTTP 404."""


class TooLateError(ProtocolError):
    """A request did not arrive in time: HTTP 408."""


class EncodedError(ProtocolError):
    """A request's body is compressed: HTTP 415."""


def status_of(error: EdgeError) -> int:
    """The HTTP status that says the same."""
    for kind, status in (
        (NotFoundError, 404),
        (TooLateError, 408),
        (EncodedError, 415),
        (ProtocolError, 400),
        (MediaError, 400),
        (AccessError, 403),
        (CapacityError, 503),
    ):
        if isinstance(error, kind):
            return status
    return 500


def error_body(error: EdgeError) -> dict[str, Any]:
    """An error as OpenAI's clients know it."""
    theirs = isinstance(error, ProtocolError | MediaError | AccessError)
    return {
        "error": {
            "message": str(error),
            "type": "invalid_request_error" if theirs else "server_error",
            "param": error.thing if theirs else None,
            "code": _code(error),
        }
    }


def _code(error: EdgeError) -> str | None:
    """What OpenAI's clients tell errors apart by."""
    if isinstance(error, NotFoundError):
        return "model_not_found" if error.thing == "model" else "not_found"
    status = status_of(error)
    if status == 400:
        return error.code if isinstance(error, ProtocolError) else "invalid_value"
    codes = {403: "access_denied", 408: "timeout", 503: "over_capacity"}
    return {**codes, 415: "unsupported_content_encoding"}.get(status)


def json_reply(
    payload: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A JSON object."""
    return web.Response(
        body=msgspec.json.encode(payload),
        status=status,
        headers=headers,
        content_type="application/json",
    )


async def open_stream(
    request: web.Request, headers: dict[str, str] | None = None
) -> web.StreamResponse:
    """Begin server-sent events."""
    kept = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    stream = web.StreamResponse(headers={**kept, **(headers or {})})
    await stream.prepare(request)
    return stream


async def send(
    stream: web.StreamResponse, payload: dict[str, Any] | msgspec.Struct, name: str = ""
) -> None:
    """One server-sent event, named or not."""
    head = f"event: {name}\n".encode() if name else b""
    await stream.write(head + b"data: " + msgspec.json.encode(payload) + b"\n\n")
