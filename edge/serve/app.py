"""The HTTP application on the Unix socket: models, health, chat completions.

    loop's thread                      asyncio's thread
    turn.deliver(event) ── call_soon_threadsafe ──> the turn's queue ──> response

The loop's thread never waits for a client. What a slow client has not read yet stays in its turn's
queue, which a turn's max_tokens bounds: there is at most one event a token, and one at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import msgspec
from aiohttp import web

from edge.clock import NS_PER_S
from edge.config import Config
from edge.errors import CapacityError, EdgeError, ProtocolError
from edge.model.sampling import Sampling
from edge.senses.turn_events import Button, Choose, Control, Mode
from edge.serve.chat import (
    ChatRequest,
    ModelNotFoundError,
    Response,
    parse_request,
    stages_of,
)
from edge.session.turn import AnswerEvent, Asked, Done, Failed, TextDelta

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
CHANGE: web.AppKey[Callable[[Config], None]] = web.AppKey("change")
"""An application's function that lets it go on with other settings."""


class _Mode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose speech takes the turn from now on."""

    mode: Mode


class _Button(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Push-to-talk."""

    button: Literal["begin", "commit", "cancel"]


RETRY_AFTER_S = 1
_SHUTDOWN_S = 1.0


def make_app(
    session: Asked, config: Config, model_name: str, thinking_sampling: Sampling
) -> web.Application:
    """The application that puts a session on HTTP.

    Args:
        session: answers the questions.
        config: what a request leaves open, and the bound on its max_tokens.
        model_name: what clients call the model.
        thinking_sampling: the checkpoint's own, for answers that think.
    """
    api = _Api(session, config, model_name, thinking_sampling)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
    app[CHANGE] = api.change
    app.add_routes(
        [
            web.get("/v1/models", api.models),
            web.get("/healthz", api.health),
            web.get("/readyz", api.readiness),
            web.post("/v1/chat/completions", api.chat),
            web.post("/v1/edge/turns", api.turns),
        ]
    )
    return app


@contextlib.asynccontextmanager
async def serving(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Serve an application on a listening socket for as long as the block runs.

    Args:
        app: what `make_app` made.
        listener: what `unix_socket.bind` made or systemd handed over; closed at the end.
    """
    # Without handler_cancellation aiohttp lets a handler run on after its client has gone, and the
    # engine would answer nobody.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


class _Api:
    """The routes of one session."""

    def __init__(
        self, session: Asked, config: Config, model_name: str, thinking_sampling: Sampling
    ) -> None:
        self._session, self._config, self._model_name = session, config, model_name
        self._thinking_sampling = thinking_sampling
        self._created_s = int(time.time())

    def change(self, config: Config) -> None:
        """Take what a request leaves open from other settings."""
        self._config = config

    async def models(self, _: web.Request) -> web.Response:
        model = {
            "id": self._model_name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "edge",
        }
        return _json({"object": "list", "data": [model]})

    async def health(self, _: web.Request) -> web.Response:
        """200 as long as anybody can answer at all."""
        status = self._session.status()
        return _json(
            {
                "status": "ok",
                "ready": status.ready,
                "model": self._model_name,
                "n_context_tokens": status.n_context_tokens,
                "max_context_tokens": status.max_context_tokens,
                "uptime_s": round(status.uptime_ns / NS_PER_S, 3),
                "counters": status.counters,
                "mode": status.mode,
                "recent": [stages_of(stages, status.start_ns) for stages in status.recent],
            }
        )

    async def readiness(self, _: web.Request) -> web.Response:
        ready = self._session.status().ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def turns(self, request: web.Request) -> web.Response:
        """`{"mode": "open"}`, or `{"button": "begin"}`."""
        body = await request.read()
        control: Control
        try:
            if b'"button"' in body:
                control = Button(msgspec.json.decode(body, type=_Button).button)
            else:
                control = Choose(msgspec.json.decode(body, type=_Mode).mode)
        except msgspec.DecodeError as error:
            remedy = 'send {"mode": "open" | "push_to_talk" | "typed"} or {"button": "begin" | ...}'
            raise ProtocolError("body", f"is not understood ({error})", remedy) from None
        self._session.control(control)
        return _json({"mode": self._session.status().mode})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = parse_request(body, self._model_name, self._config, self._thinking_sampling)
        events: asyncio.Queue[AnswerEvent] = asyncio.Queue()
        turn = self._session.ask(asked.question, _delivery_to(events))
        try:
            if asked.stream:
                return await _stream(request, asked, events, Response(self._model_name))
            return await _answer(events, Response(self._model_name))
        finally:
            # However this ends: the client may have gone. A turn that is done does not mind.
            turn.cancel()


def _delivery_to(events: asyncio.Queue[AnswerEvent]) -> Callable[[AnswerEvent], None]:
    loop = asyncio.get_running_loop()

    def deliver(event: AnswerEvent) -> None:
        try:
            loop.call_soon_threadsafe(events.put_nowait, event)
        except RuntimeError:
            # The socket's event loop has closed, so nobody is left to read; the engine goes on.
            log.debug("event=undelivered kind=%s", type(event).__name__)

    return deliver


async def _next(events: asyncio.Queue[AnswerEvent]) -> TextDelta | Done:
    """The turn's next event.

    Raises:
        EdgeError: the turn ended without an answer.
    """
    event = await events.get()
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, Done) and event.finish_reason == "cancelled":
        # The client is still here, so it was the service that ended the turn.
        raise CapacityError("turn", "was cancelled by the service", "ask again")
    return event


async def _answer(events: asyncio.Queue[AnswerEvent], response: Response) -> web.Response:
    deltas = []
    while isinstance(event := await _next(events), TextDelta):
        deltas.append(event)
    return _json(response.completion(deltas, event))


async def _stream(
    request: web.Request,
    asked: ChatRequest,
    events: asyncio.Queue[AnswerEvent],
    response: Response,
) -> web.StreamResponse:
    # The status line waits for the first event: a turn that fails before has its proper status.
    event = await _next(events)
    stream = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await stream.prepare(request)
    await _send(stream, response.opening())
    try:
        while isinstance(event, TextDelta):
            await _send(stream, response.delta(event))
            event = await _next(events)
    except EdgeError as error:
        # Too late for a status; no [DONE] follows, so the answer cannot be taken for complete.
        await _send(stream, _error(error))
        return stream
    await _send(stream, response.closing(event))
    if asked.include_usage:
        await _send(stream, response.usage(event))
    await stream.write(b"data: [DONE]\n\n")
    return stream


async def _send(stream: web.StreamResponse, payload: dict[str, Any]) -> None:
    await stream.write(b"data: " + msgspec.json.encode(payload) + b"\n\n")


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every refusal as OpenAI's error object."""
    try:
        return await handler(request)
    except EdgeError as error:
        status = _status_of(error)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
        return _json(_error(error), status, headers)
    except web.HTTPRequestEntityTooLarge as error:
        too_large = ProtocolError(
            "body", f"is larger than {MAX_BODY_BYTES} bytes", "send a shorter conversation"
        )
        return _json(_error(too_large), error.status)
    except web.HTTPException as error:
        remedy = "use GET /v1/models, /healthz or /readyz, or POST /v1/chat/completions"
        refused = ProtocolError(f"{request.method} {request.path}", error.reason, remedy)
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return _json(_error(refused), error.status, kept)


def _status_of(error: EdgeError) -> int:
    if isinstance(error, ModelNotFoundError):
        return 404
    if isinstance(error, ProtocolError):
        return 400
    return 503 if isinstance(error, CapacityError) else 500


def _error(error: EdgeError) -> dict[str, Any]:
    code = {404: "model_not_found", 503: "over_capacity"}.get(_status_of(error))
    theirs = isinstance(error, ProtocolError)
    return {
        "error": {
            "message": str(error),
            "type": "invalid_request_error" if theirs else "server_error",
            "param": error.thing if theirs else None,
            "code": code,
        }
    }


def _json(
    payload: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(payload),
        status=status,
        headers=headers,
        content_type="application/json",
    )
