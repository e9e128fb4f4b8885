"""JSON Schema of what goes over the socket, generated from the types."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.serve.playback import PlaybackAppend
from edge.serve.pointing import Box, Point
from edge.serve.protocol import ClientEvent, EdgeAnswer
from edge.serve.report import AnswerReport
from edge.serve.server_events import ServerEvent
from edge.serve.trigger_events import ClientTriggerEvent, ServerTriggerEvent

AnyClientEvent = ClientEvent | ClientTriggerEvent | PlaybackAppend
AnyServerEvent = ServerEvent | ServerTriggerEvent


def event_schemas() -> dict[str, dict[str, Any]]:
    """File name -> JSON Schema.

    Of all events that a client or the service may send, and of the key `edge` of a chat
    completion's request and of an answer; and two for requests that want a place.
    """
    return {
        name: {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema(kind)}
        for name, kind in (
            ("client_events", AnyClientEvent),
            ("server_events", AnyServerEvent),
            ("edge_wishes", EdgeAnswer),
            ("edge_answer", AnswerReport),
            ("point", Point),
            ("box", Box),
        )
    }


def _schema(kind: Any) -> dict[str, Any]:
    schema: dict[str, Any] = msgspec.json.schema(kind)
    return schema
