"""JSON Schema of what goes over the socket, and what becomes of each field, from the types."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import msgspec

from edge.serve.chat import ChatBody
from edge.serve.fields import table
from edge.serve.playback import PlaybackAppend
from edge.serve.pointing import Box, Point
from edge.serve.protocol import ClientEvent, EdgeAnswer, ItemCreate, ResponseSettings, Session
from edge.serve.report import AnswerReport
from edge.serve.request import Wanted
from edge.serve.responses import ResponsesBody
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


def policy_page() -> str:
    """docs/fields.md: what becomes of every field of a request."""
    tables = [f"## Every request\n\n{table(Wanted)}"]
    tables += [f"## {title}\n\n{table(kind, Wanted)}" for title, kind in REQUESTS.items()]
    return "\n".join([f"# What becomes of every field\n\n{_POLICY}\n", *tables])


REQUESTS: dict[str, type] = {
    "POST /v1/chat/completions": ChatBody,
    "POST /v1/responses": ResponsesBody,
    "/v1/realtime: `session` of session.update": Session,
    "/v1/realtime: `response` of response.create": ResponseSettings,
    "/v1/realtime: conversation.item.create": ItemCreate,
}
_POLICY = """\
Written by scripts/write_schemas.py from the types of edge/serve.

- **honoured**: it does what its protocol says.
- **ignored**: it cannot change the answer. The reply names it in the header `X-Edge-Ignored`, and
  the log once.
- **refused**: it would change the answer and is not done here. HTTP 400 names it, unless its value
  asks for nothing.

On /v1/realtime every refused field of `session.update` is an `error` of its own, and the others are
changed; an answer in another form than text is told in the same way, and is text. What is ignored
is in the log alone. Names of the beta are read as those that the fields have since.

`null` asks for nothing anywhere. A field that is not in a table is ignored and named as well; only
within `edge` it is refused. `[]` stands for every place of a list, `<...>` for a part's `type`."""


def _schema(kind: Any) -> dict[str, Any]:
    schema: dict[str, Any] = without_margins(msgspec.json.schema(kind))
    return schema


def without_margins(node: Any) -> Any:
    """The same on every day: descriptions are docstrings, whose margins Python 3.13 and msgspec
    0.23 take away and others leave."""
    if isinstance(node, dict):
        return {
            key: cleandoc(value)
            if key == "description" and isinstance(value, str)
            else without_margins(value)
            for key, value in node.items()
        }
    return [without_margins(item) for item in node] if isinstance(node, list) else node
