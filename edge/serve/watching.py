"""What the session notices by itself, over HTTP: triggers, and a stream of its events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from aiohttp import web

from edge.config import Config
from edge.errors import ProtocolError
from edge.serve.connection import ALIVE
from edge.serve.door import drop
from edge.serve.metrics import Metrics
from edge.serve.outbox import Outbox
from edge.serve.replies import NotFoundError, json_reply, open_stream, send
from edge.serve.schema import AnyServerEvent
from edge.serve.session_events import TOPICS, told_event
from edge.serve.trigger_events import EdgeTriggerCreated
from edge.session.triggers import Trigger, TriggerStatus
from edge.session.turn import Asked

ALIVE_S = 15.0
"""A stream that has nothing to tell says so that often."""
Json = dict[str, Any]


class Wish(Trigger, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/edge/triggers."""

    stream: bool = False
    """Answer with the trigger's events; it is deleted when the connection ends."""


def parse_trigger(body: bytes) -> Wish:
    """A client's trigger.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return msgspec.json.decode(body, type=Wish)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        known = ", ".join(Wish.__struct_fields__)
        raise ProtocolError(
            "body", f"is not understood ({error})", f"send an object with some of {known}"
        ) from None


def trigger_json(status: TriggerStatus) -> Json:
    """A trigger as clients see it."""
    confidence = None if status.confidence is None else round(status.confidence, 4)
    state = {"is_on": status.is_on, "confidence": confidence, "n_judged": status.n_judged}
    return {"id": status.id, **asdict_of(status.trigger), **state}


def asdict_of(trigger: Trigger) -> Json:
    """Its own fields."""
    return {name: getattr(trigger, name) for name in Trigger.__struct_fields__}


class Watching:
    """The routes."""

    def __init__(self, session: Asked, config: Config, metrics: Metrics) -> None:
        self._session, self._config, self._metrics = session, config, metrics

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/v1/edge/events", self.events, allow_head=False),
            web.get("/v1/edge/triggers", self.triggers),
            web.post("/v1/edge/triggers", self.create),
            web.delete("/v1/edge/triggers/{id}", self.delete),
        ]

    async def triggers(self, _: web.Request) -> web.Response:
        """All triggers."""
        entries = self._session.triggers.entries()
        return json_reply({"data": [trigger_json(status) for status in entries]})

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Watch for something."""
        wish = parse_trigger(await request.read())
        trigger = Trigger(**asdict_of(wish))
        if not wish.stream:
            name = self._session.triggers.create(trigger)
            return json_reply(trigger_json(TriggerStatus(name, trigger)))
        with self._heard(request) as outbox:  # before there is something to hear
            name = self._session.triggers.create(trigger)
            try:
                stream = await open_stream(request)
                await send(stream, EdgeTriggerCreated(trigger_id=name, trigger=trigger))
                await self._tell(
                    request, stream, outbox, lambda event: getattr(event, "id", "") == name
                )
            finally:
                with contextlib.suppress(ProtocolError):  # somebody else has deleted it
                    self._session.triggers.delete(name)
        return stream

    async def delete(self, request: web.Request) -> web.Response:
        """Watch for it no longer."""
        name = request.match_info["id"]
        try:
            self._session.triggers.delete(name)
        except ProtocolError as error:
            raise NotFoundError(error.thing, error.problem, error.remedy) from None
        return json_reply({"id": name, "deleted": True})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """All events, or with ?types=edge.trigger,edge.degraded those that begin so."""
        wanted = tuple(part for part in request.query.get("types", "").split(",") if part)
        with self._heard(request) as outbox:
            stream = await open_stream(request)
            await self._tell(
                request, stream, outbox, lambda event: not wanted or _is_one(event, wanted)
            )
        return stream

    @contextlib.contextmanager
    def _heard(self, request: web.Request) -> Iterator[Outbox[object]]:
        """The session's events, for as long as the block runs."""

        def overflow() -> None:
            drop(request.transport, "outbox full", self._metrics)

        outbox: Outbox[object] = Outbox(self._config.socket.max_outbox_events, overflow)

        def deliver(event: object) -> None:
            if type(event) in TOPICS:
                outbox.deliver(event)

        leave, unwatch = self._session.observe(deliver), self._session.watch(outbox.deliver)
        try:
            yield outbox
        finally:
            leave()
            unwatch()

    async def _tell(
        self,
        request: web.Request,
        stream: web.StreamResponse,
        outbox: Outbox[object],
        wants: Callable[[AnyServerEvent], bool],
    ) -> None:
        """Until the client goes: aiohttp then cancels this, and the request has no transport."""
        start_ns = self._session.status().start_ns
        # Before Python 3.12 wait_for loses a cancellation that comes together with an event.
        while request.transport is not None:
            try:
                event = await asyncio.wait_for(outbox.next(), ALIVE_S)
            except asyncio.TimeoutError:
                await stream.write(ALIVE)
                continue
            payload = told_event(event, start_ns)
            if payload is not None and wants(payload):
                await send(stream, payload)


def _is_one(event: AnyServerEvent, types: tuple[str, ...]) -> bool:
    return str(type(event).__struct_config__.tag).startswith(types)
