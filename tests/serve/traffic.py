"""A WebSocket client of the tests whose traffic is checked, both ways, against the JSON Schemas."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import jsonschema

from edge.serve.schema import event_schemas


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    """Of the schema `name`."""
    schema = event_schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


class Recorded:
    """Sends events, keeps those that come."""

    def __init__(self, socket: Any, timeout_s: float) -> None:
        self.socket, self._timeout_s = socket, timeout_s
        self.heard: list[dict[str, Any]] = []

    def send(self, kind: str, **fields: object) -> None:
        """One event."""
        self.socket.send(json.dumps({"type": kind, **fields}))

    def until(self, kind: str, and_send: str | None = None) -> dict[str, Any]:
        """The next event of a kind; what comes before it is kept."""
        if and_send is not None:
            self.send(and_send)
        end_s = time.monotonic() + self._timeout_s
        while True:
            event = json.loads(self.socket.recv(timeout=end_s - time.monotonic()))
            validator("server_events").validate(event)
            self.heard.append(event)
            if event["type"] == kind:
                return event
