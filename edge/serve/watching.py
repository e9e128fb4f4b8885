"""What the session notices by itself, over HTTP: triggers, and a stream of its events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from aiohttp import web

from edge.clock import NS_PER_S
from edge.config import Config
from edge.errors import ProtocolError
from edge.senses.turn_events import SpeechStarted
from edge.serve.completion import stages_of
from edge.serve.door import drop
from edge.serve.metrics import Metrics
from edge.serve.outbox import Outbox
from edge.serve.replies import NotFoundError, json_reply, open_stream, send
from edge.session.budget import Degraded
from edge.session.loop import Rebased
from edge.session.notes import Noted
from edge.session.triggers import Trigger, TriggerBegan, TriggerEnded, TriggerStatus
from edge.session.turn import Asked, Spoken
from edge.types import Evidence, Stages

ALIVE_S = 15.0
"""A stream that has nothing to tell says so that often."""
Json = dict[str, Any]


class Wish(Trigger, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/edge/triggers."""

    stream: bool = False
    """Answer with the trigger's events; it is deleted when the connection ends."""


def edge_event(event: object, start_ns: int) -> Json | None:
    """One of the session's events as clients see it; None for those that are not for them.

    Args:
        start_ns: the session's beginning, from which `*_s` count.
    """

    def at_s(at_ns: int) -> float:
        return round((at_ns - start_ns) / NS_PER_S, 3)

    if isinstance(event, Stages):
        return {"type": "edge.perceived", "segment": stages_of(event, start_ns)}
    if isinstance(event, TriggerBegan | TriggerEnded):
        kind = "began" if isinstance(event, TriggerBegan) else "ended"
        return {
            "type": f"edge.trigger.{kind}",
            "id": event.id,
            "condition": event.condition,
            "at_s": at_s(event.at_ns),
            "began_s": at_s(event.began_ns),
            "confidence": round(event.confidence, 4),
            "evidence": [_evidence(one, at_s) for one in event.evidence],
        }
    if isinstance(event, Degraded):
        rung = {"rung": event.rung.name, "cause": event.cause}
        return {"type": "edge.degraded", "at_s": at_s(event.at_ns), **rung}
    if isinstance(event, Rebased):
        return {"type": "edge.rebased", "at_s": at_s(event.at_ns), "n_tokens": event.n_tokens}
    if isinstance(event, Noted):
        return {"type": "edge.noted", "at_s": at_s(event.at_ns), "text": event.text}
    if isinstance(event, SpeechStarted):
        return {"type": "edge.speech.started", "onset_s": at_s(event.onset_ns)}
    if isinstance(event, Spoken):
        return {"type": "edge.speech.asked", "asked_s": at_s(event.asked_ns)}
    return None


def _evidence(evidence: Evidence, at_s: Callable[[int], float]) -> Json:
    return {
        "source": evidence.source,
        "start_s": at_s(evidence.start_ns),
        "end_s": at_s(evidence.end_ns),
        "frame_ids": list(evidence.frame_ids),
    }


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
            web.get("/v1/edge/events", self.events),
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
                await send(stream, {"type": "edge.trigger.created", "id": name})
                await self._tell(stream, outbox, lambda event: event.get("id") == name)
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
                stream, outbox, lambda event: not wanted or event["type"].startswith(wanted)
            )
        return stream

    @contextlib.contextmanager
    def _heard(self, request: web.Request) -> Iterator[Outbox[object]]:
        """The session's events, for as long as the block runs."""

        def overflow() -> None:
            drop(request.transport, "outbox full", self._metrics)

        outbox: Outbox[object] = Outbox(self._config.socket.max_outbox_events, overflow)

        def deliver(event: object) -> None:
            if edge_event(event, 0) is not None:  # answers to others are no client's business
                outbox.deliver(event)

        leave = self._session.observe(deliver)
        try:
            yield outbox
        finally:
            leave()

    async def _tell(
        self, stream: web.StreamResponse, outbox: Outbox[object], wants: Callable[[Json], bool]
    ) -> None:
        """Until the client goes: aiohttp then cancels this."""
        start_ns = self._session.status().start_ns
        while True:
            try:
                event = await asyncio.wait_for(outbox.next(), ALIVE_S)
            except asyncio.TimeoutError:
                await stream.write(b": alive\n\n")
                continue
            payload = edge_event(event, start_ns)
            if payload is not None and wants(payload):
                await send(stream, payload)
