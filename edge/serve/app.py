"""The HTTP application on the Unix socket: models, health, chat completions.

    loop's thread                      asyncio's thread
    turn.deliver(event) ── call_soon_threadsafe ──> the turn's outbox ──> response

The loop's thread never waits for a client: one that leaves too much in its outbox is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from edge.config import Config
from edge.errors import CapacityError, EdgeError, ProtocolError, TurnError
from edge.model.grammars import UncheckedError
from edge.model.sampling import Sampling
from edge.pulse import Pulse
from edge.senses.sent import Decode
from edge.senses.turn_events import Button, Choose, Control
from edge.serve import responses
from edge.serve.access import Roles, require
from edge.serve.bodies import ChooseMode, PressButton
from edge.serve.chat import ChatRequest, parse_request
from edge.serve.completion import Response, Said, answer_of, health_of
from edge.serve.connection import connection_of
from edge.serve.conversation import MAX_ALL_MEDIA_BYTES
from edge.serve.decoding import Decoding, HasMediaError, not_here
from edge.serve.door import Door, drop
from edge.serve.fairness import LoopTime, fair
from edge.serve.fields import told
from edge.serve.limits import (
    MAX_BODY_BYTES,
    MAX_READING_BYTES,
    MAX_SHARE_BYTES,
    ROLE,
    admitted,
    counted,
    errors_as_json,
    http_log,
)
from edge.serve.metrics import CONTENT_TYPE, Metrics
from edge.serve.openapi import description
from edge.serve.outbox import Outbox, first_text_hurried
from edge.serve.protocol import Json
from edge.serve.realtime import Realtime
from edge.serve.replies import (
    error_body,
    json_reply,
    open_stream,
    send,
)
from edge.serve.request import check_model
from edge.serve.response_events import ResponseEvents
from edge.serve.response_items import Kept, KeptResponses
from edge.serve.room import Room, Share, beyond
from edge.serve.tcp import read_token
from edge.serve.watching import Watching
from edge.session.turn import AnswerEvent, Asked, Done, Failed, Question
from edge.types import n_media_bytes

log = logging.getLogger(__name__)

T = TypeVar("T")

CHANGE: web.AppKey[Callable[[Config], None]] = web.AppKey("change")
"""An application's function that lets it go on with other settings."""


LARGE_BODY_BYTES = 1 << 12
"""So much holds no picture; a format in it is either known, or checked elsewhere."""
_KEPT = re.compile(rb'\\u|previous_|"id"')
"""What a small body may hold that refers to a large one; or it is not known to hold nothing."""
_SHUTDOWN_S = 1.0
_LINGERING_S = 1.0
"""So long the rest of a request is read that was refused before it was complete."""
_DOOR = web.AppKey("door", tuple[Config, Roles, Metrics, Room])


def make_app(
    session: Asked,
    config: Config,
    model_name: str,
    thinking_sampling: Sampling,
    pulse: Pulse | None = None,
) -> web.Application:
    """The application that puts a session on HTTP.

    Args:
        session: answers the questions.
        config: what a request leaves open, and the bound on its max_tokens (`config.for_model`).
        model_name: what clients call the model.
        thinking_sampling: the checkpoint's own, for answers that think.
        pulse: of the loop's thread and of this one.
    """
    roles, metrics = Roles(config.access), Metrics(session.status)
    room = Room(MAX_READING_BYTES, max_share_bytes=MAX_SHARE_BYTES)
    loop_time = LoopTime(metrics.held_back)
    decoding = Decoding(loop_time.charge)
    media = Room(MAX_ALL_MEDIA_BYTES, "are held", MAX_ALL_MEDIA_BYTES // 2)
    parts = (session, config, model_name, thinking_sampling, metrics, decoding, media, loop_time)
    api, realtime = _Api(*parts, room, pulse or Pulse()), Realtime(*parts)
    session.observe(metrics.hear)
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[
            fair(loop_time),
            counted(metrics),
            errors_as_json,
            admitted(config.socket.idle_s, read_token(config.socket), room),
        ],
    )
    app[_DOOR] = (config, roles, metrics, room)

    def change(config: Config) -> None:
        api.change(config)
        realtime.change(config)

    app[CHANGE] = change

    async def close(_: web.Application) -> None:
        await asyncio.to_thread(decoding.close)

    app.on_shutdown.append(realtime.close)
    app.on_cleanup.append(close)
    app.add_routes(
        [
            web.get("/v1/models", api.models),
            web.get("/v1/models/{name:.+}", api.model),
            web.get("/healthz", api.health),
            web.get("/readyz", api.readiness),
            web.get("/metrics", api.metrics),
            web.get("/openapi.json", api.description),
            web.post("/v1/chat/completions", api.chat),
            web.post("/v1/responses", api.respond),
            web.get("/v1/responses/{id}", api.response),
            web.delete("/v1/responses/{id}", api.forget),
            web.post("/v1/edge/turns", api.turns),
            web.get("/v1/realtime", realtime.connect),
            *Watching(session, config, metrics).routes(),
        ]
    )
    return app


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, listener: socket.socket, tcp_listener: socket.socket | None = None
) -> AsyncIterator[None]:
    """Serve an application on a listening socket for as long as the block runs.

    Args:
        app: what `make_app` made.
        listener: what `unix_socket.bind` made or systemd handed over; closed at the end.
        tcp_listener: what `tcp.bind` made, if one is configured; likewise.
    """
    config, roles, metrics, room = app[_DOOR]
    # Without handler_cancellation aiohttp lets a handler run on after its client has gone, and the
    # engine would answer nobody. Its keep-alive is also the limit for a request's head to arrive.
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        logger=http_log(metrics),
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=config.socket.idle_s,
        lingering_time=_LINGERING_S,
        auto_decompress=False,  # a compressed body is refused
    )
    await runner.setup()
    assert runner.server is not None
    try:
        door = Door(runner.server, config.socket, roles, metrics, room)
        async with door.open([one for one in (listener, tcp_listener) if one is not None]):
            yield
    finally:
        await runner.cleanup()


class _Api:
    """The routes of one session."""

    def __init__(
        self,
        session: Asked,
        config: Config,
        model_name: str,
        thinking_sampling: Sampling,
        metrics: Metrics,
        decoding: Decoding,
        media: Room,
        loop_time: LoopTime,
        room: Room,
        pulse: Pulse,
    ) -> None:
        self._session, self._config, self._model_name = session, config, model_name
        self._room, self._pulse = room, pulse
        self._thinking_sampling, self._metrics = thinking_sampling, metrics
        self._decoding, self._media, self._loop_time = decoding, media, loop_time
        self._created_s = int(time.time())
        self._kept = KeptResponses()

    def change(self, config: Config) -> None:
        """Take what a request leaves open from other settings."""
        self._config = config

    async def models(self, _: web.Request) -> web.Response:
        return json_reply({"object": "list", "data": [self._model()]})

    async def model(self, request: web.Request) -> web.Response:
        """One model, by its name: the served one."""
        check_model(request.match_info["name"], self._model_name)
        return json_reply(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "edge",
            "max_model_len": self._session.status().max_context_tokens,
        }

    async def health(self, _: web.Request) -> web.Response:
        """200 as long as anybody can answer at all."""
        status, metrics = self._session.status(), self._metrics
        answers = [answer_of(done, status.start_ns) for done in metrics.answers.copy()]
        told = {"clients": metrics.clients(), "silent_s": self._pulse.silent_s()}
        return json_reply({**health_of(status), **told, "answers": answers})

    async def readiness(self, _: web.Request) -> web.Response:
        ready = self._session.status().ready
        return json_reply({"ready": ready}, 200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """What is counted, for Prometheus."""
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def description(self, _: web.Request) -> web.Response:
        """What all of this is, as OpenAPI."""
        body = await asyncio.to_thread(description)  # it takes 0.1 s, once
        return web.Response(body=body, content_type="application/json")

    async def turns(self, request: web.Request) -> web.Response:
        """`{"mode": "open"}`, for an admin, or `{"button": "begin"}`."""
        body = await request.read()
        control: Control
        try:
            if b'"button"' in body:
                control = Button(msgspec.json.decode(body, type=PressButton).button)
            else:
                control = Choose(msgspec.json.decode(body, type=ChooseMode).mode)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            remedy = 'send {"mode": "open" | "push_to_talk" | "typed"} or {"button": "begin" | ...}'
            raise ProtocolError("body", f"is not understood ({error})", remedy) from None
        if isinstance(control, Choose):
            require(request[ROLE], "admin", "changing whose speech takes the turn")
        self._session.control(control)
        if isinstance(control, Choose):  # so it is once the sound before it has been heard
            return json_reply({"mode": control.mode})
        return json_reply({"mode": self._session.status().mode})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A chat completion."""
        asked = await self._read(request, parse_request)
        response = Response(self._model_name, asked.show)
        with self._turn(request, asked.question) as events:
            if asked.stream:
                return await _stream(request, asked, events, response)
            return await _answer(events, response, told(asked.unheard))

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """A response."""
        kept = self._kept.of(connection_of(request).user)

        def parse(
            body: bytes, model: str, config: Config, thinking: Sampling, decode: Decode
        ) -> responses.ResponseRequest:
            return responses.parse_request(body, model, config, thinking, kept, decode)

        asked = await self._read(request, parse)
        response = ResponseEvents(asked, self._model_name)
        with self._turn(request, asked.question) as events:
            if asked.body.stream:
                reply, whole = await _stream_response(request, response, events)
            else:
                whole = await _whole_response(response, events)
                reply = json_reply(whole, headers=told(asked.unheard))
        if asked.body.store is not False and whole["status"] in ("completed", "incomplete"):
            n_bytes = asked.n_bytes + len(msgspec.json.encode(response.output))
            kept.keep(Kept(whole, response.kept_items(), n_bytes))
        return reply

    async def response(self, request: web.Request) -> web.Response:
        """A response that is kept for this client."""
        kept = self._kept.of(connection_of(request).user)
        return json_reply(kept.response(request.match_info["id"]).response)

    async def forget(self, request: web.Request) -> web.Response:
        """It is kept no longer."""
        response_id = request.match_info["id"]
        self._kept.of(connection_of(request).user).forget(response_id)
        return json_reply({"id": response_id, "object": "response", "deleted": True})

    async def _read(
        self, request: web.Request, parse: Callable[[bytes, str, Config, Sampling, Decode], T]
    ) -> T:
        """What a request asks."""
        body, user = await request.read(), connection_of(request).user
        parts = (body, self._model_name, self._config, self._thinking_sampling)
        is_large = len(body) > LARGE_BODY_BYTES or _KEPT.search(body) is not None
        n_bytes = beyond(len(body))
        self._room.take("body", n_bytes, user)  # as it has arrived, a moment ago
        try:
            with contextlib.suppress(HasMediaError):
                if not is_large:
                    with contextlib.suppress(UncheckedError):
                        return parse(*parts, not_here)
                # large ones take their time; others are served meanwhile
                return await self._loop_time.in_thread(user, parse, *parts, not_here)
            return await self._decoding.read(user, lambda decode: parse(*parts, decode))
        except EdgeError:
            raise
        except Exception as error:
            raise TurnError.of(error) from error
        finally:
            self._room.give(n_bytes, user)

    @contextlib.contextmanager
    def _turn(self, request: web.Request, question: Question) -> Iterator[Outbox[AnswerEvent]]:
        """Ask; what comes of it."""
        events: Outbox[AnswerEvent] = Outbox(
            self._config.socket.max_outbox_events,
            lambda: drop(request.transport, "outbox full", self._metrics),
        )
        n_bytes = sum(n_media_bytes(message.media) for message in question.messages)
        share = Share(self._media, connection_of(request).user)
        question = replace(question, user=share.user)
        share.take("pictures and sounds", n_bytes)
        try:
            turn = self._session.ask(question, first_text_hurried(events.deliver))
            try:
                yield events
            finally:
                # However this ends: the client may have gone. A turn that is done does not mind.
                turn.cancel()
        finally:
            share.give(n_bytes)


async def _next(events: Outbox[AnswerEvent]) -> Said | Done:
    """The turn's next event.

    Raises:
        EdgeError: the turn ended without an answer.
    """
    event = await events.next()
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, Done) and event.finish_reason == "cancelled":
        # The client is still here, so it was the service that ended the turn.
        raise CapacityError("turn", "was cancelled by the service", "ask again")
    return event


async def _answer(
    events: Outbox[AnswerEvent], response: Response, headers: dict[str, str]
) -> web.Response:
    said = []
    while not isinstance(event := await _next(events), Done):
        said.append(event)
    return json_reply(response.completion(said, event), headers=headers)


async def _stream(
    request: web.Request,
    asked: ChatRequest,
    events: Outbox[AnswerEvent],
    response: Response,
) -> web.StreamResponse:
    # The status line waits for the first event: a turn that fails before has its proper status.
    event = await _next(events)
    stream = await open_stream(request, told(asked.unheard))
    await send(stream, response.opening())
    try:
        while not isinstance(event, Done):
            for chunk in response.chunks(event):
                await send(stream, chunk)
            event = await _next(events)
    except EdgeError as error:
        # Too late for a status; no [DONE] follows, so the answer cannot be taken for complete.
        await send(stream, error_body(error))
        return stream
    for chunk in response.closing(event):
        await send(stream, chunk)
    if asked.include_usage:
        await send(stream, response.usage(event))
    await stream.write(b"data: [DONE]\n\n")
    return stream


async def _whole_response(response: ResponseEvents, events: Outbox[AnswerEvent]) -> Json:
    """The response, when all of it is there."""
    while True:
        event = await _next(events)
        said = [*response.events(event)]
        if isinstance(event, Done):
            whole: Json = said[-1]["response"]
            return whole


async def _stream_response(
    request: web.Request, response: ResponseEvents, events: Outbox[AnswerEvent]
) -> tuple[web.StreamResponse, Json]:
    """The stream, and the response that it has told."""
    # The status line waits for the first event, as with a chat completion.
    event = await _next(events)
    stream = await open_stream(request, told(response.request.unheard))
    for one in response.opening():
        await send(stream, one, one["type"])
    try:
        while True:
            for one in response.events(event):
                await send(stream, one, one["type"])
            if isinstance(event, Done):
                break
            event = await _next(events)
    except EdgeError as error:
        for one in response.failed(error):
            await send(stream, one, one["type"])
    return stream, one["response"]
