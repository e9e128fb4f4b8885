"""GET /openapi.json: the HTTP interface as OpenAPI 3.1, from the types of its bodies.

It says what is accepted (what is ignored or refused too) and what is answered, with every status.
docs/schema/openapi.json is the same. OpenAPI has no WebSockets: of /v1/realtime it has the
handshake, and its events as schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from edge.serve.access import Role
from edge.serve.bodies import (
    ChooseMode,
    Completion,
    CompletionChunk,
    ErrorReply,
    Health,
    Model,
    Models,
    PressButton,
    Readiness,
    ResponseDeleted,
    ResponseEvent,
    ResponseReply,
    TriggerDeleted,
    Triggers,
    TriggerState,
    TurnMode,
)
from edge.serve.chat import ChatBody
from edge.serve.fields import HEADER
from edge.serve.protocol import Json
from edge.serve.responses import ResponsesBody
from edge.serve.schema import AnyClientEvent, AnyServerEvent, without_margins
from edge.serve.watching import Wish

API_VERSION = "1"
"""Of the interface, not of the program."""
SCHEMA = "#/components/schemas/{name}"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered with one status."""

    says: str
    kind: Any = None
    """Of a JSON body."""
    streams: Any = None
    """Of the events of a stream, where the request may ask for one."""
    text: str = ""
    """Content type of a body that is neither."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a route."""

    method: str
    path: str
    name: str
    """For generated clients."""
    tag: str
    summary: str
    replies: dict[int, Reply]
    says: str = ""
    role: Role = "observer"
    takes: tuple[Any, ...] = ()
    """Types of its body."""
    examples: dict[str, tuple[str, Json]] | None = None
    """Name -> summary and body."""
    parameters: tuple[Json, ...] = ()
    fails: tuple[int, ...] = ()
    """Statuses with an error object that every route does not have anyway."""


def _in_path(name: str, says: str) -> Json:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": says, "schema": schema}


def _in_query(name: str, says: str, example: str) -> Json:
    return {
        "name": name,
        "in": "query",
        "description": says,
        "schema": {"type": "string"},
        "example": example,
    }


def _asked(text: str, **more: Any) -> Json:
    return {"messages": [{"role": "user", "content": text}], **more}


_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEXIHh4AAAA3yixZAAAA"
    "DElEQVR42mNgIA0AAAAwAAEodEl9AAAAAElFTkSuQmCC"
)
_COLOR: Json = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
}
_DRIVE: Json = {
    "name": "drive",
    "description": "Drive on.",
    "parameters": {
        "type": "object",
        "properties": {"metres": {"type": "number"}},
        "required": ["metres"],
    },
}
_CHATS: dict[str, tuple[str, Json]] = {
    "now": ("About what is seen and heard now", _asked("What do you see?")),
    "streamed": ("Streamed, with its usage", _asked("What do you hear?", stream=True)),
    "recalled": (
        "From what was perceived 30 to 10 seconds ago",
        _asked("What happened?", edge={"recall_s": [30, 10]}),
    ),
    "picture": (
        "With a picture of the client's own",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Is this it?"},
                        {"type": "image_url", "image_url": {"url": _PICTURE}},
                    ],
                }
            ]
        },
    ),
    "schema": (
        "JSON that follows a schema",
        _asked(
            "What color is the square?",
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "color", "schema": _COLOR},
            },
        ),
    ),
    "tools": (
        "With a function that the model may propose to call",
        _asked("Go on.", tools=[{"type": "function", "function": _DRIVE}]),
    ),
}
_RESPONSES: dict[str, tuple[str, Json]] = {
    "now": ("About what is seen and heard now", {"input": "What do you see?"}),
    "streamed": ("Streamed", {"input": "What do you hear?", "stream": True}),
    "schema": (
        "JSON that follows a schema",
        {
            "input": "What color is the square?",
            "text": {"format": {"type": "json_schema", "name": "color", "schema": _COLOR}},
        },
    ),
    "tools": (
        "With a function that the model may propose to call",
        {"input": "Go on.", "tools": [{"type": "function", **_DRIVE}]},
    ),
}
_WISHES: dict[str, tuple[str, Json]] = {
    "kept": ("It stays until it is deleted", {"condition": "Is there a person?"}),
    "streamed": (
        "It goes with its client",
        {"condition": "somebody is lying on the floor", "debounce_s": 2, "stream": True},
    ),
}
_RESPONSE_ID = _in_path("id", "Of a response that is kept for this client.")
_TRIGGER_ID = _in_path("id", "Of a trigger.")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        *("post", "/v1/chat/completions", "createChatCompletion", "answers"),
        "Ask, as chat completions",
        {200: Reply("The answer; with `stream` its chunks.", Completion, CompletionChunk)},
        "What the robot sees and hears is known already: a request need not bring any of it. "
        "A streamed answer whose chunks do not end with `data: [DONE]` is not whole: an error "
        "object stands in its place.",
        "operator",
        (ChatBody,),
        _CHATS,
        fails=(404, 500),
    ),
    Operation(
        *("post", "/v1/responses", "createResponse", "answers"),
        "Ask, as responses",
        {200: Reply("The response; with `stream` its events.", ResponseReply, ResponseEvent)},
        "A streamed response that fails ends with `response.failed`.",
        "operator",
        (ResponsesBody,),
        _RESPONSES,
        fails=(404, 500),
    ),
    Operation(
        *("get", "/v1/responses/{id}", "getResponse", "answers"),
        "A response that is kept",
        {200: Reply("The response.", ResponseReply)},
        "Each client has its own: a user of this machine, or all who know the token together.",
        parameters=(_RESPONSE_ID,),
        fails=(404,),
    ),
    Operation(
        *("delete", "/v1/responses/{id}", "deleteResponse", "answers"),
        "Keep a response no longer",
        {200: Reply("It is gone.", ResponseDeleted)},
        role="operator",
        parameters=(_RESPONSE_ID,),
        fails=(404,),
    ),
    Operation(
        *("get", "/v1/realtime", "connectRealtime", "answers"),
        "Talk, as Realtime over a WebSocket",
        {101: Reply("Events follow, one a message: ClientEvent and ServerEvent.")},
        "The handshake of RFC 6455. Observers may choose which events they hear, and nothing else.",
        parameters=(_in_query("model", "The served one, or left out.", "tiny_omni"),),
        fails=(404,),
    ),
    Operation(
        *("get", "/v1/edge/events", "streamEvents", "perception"),
        "Hear of what the session notices",
        {200: Reply("Events without end.", streams=AnyServerEvent)},
        parameters=(
            _in_query(
                "types",
                "Only events whose type begins with one of these, separated by commas.",
                "edge.trigger,edge.degraded",
            ),
        ),
    ),
    Operation(
        *("get", "/v1/edge/triggers", "listTriggers", "perception"),
        "All triggers",
        {200: Reply("They are set.", Triggers)},
    ),
    Operation(
        *("post", "/v1/edge/triggers", "createTrigger", "perception"),
        "Watch for something",
        {200: Reply("It is watched for; with `stream` its events.", TriggerState, AnyServerEvent)},
        role="operator",
        takes=(Wish,),
        examples=_WISHES,
    ),
    Operation(
        *("delete", "/v1/edge/triggers/{id}", "deleteTrigger", "perception"),
        "Watch for it no longer",
        {200: Reply("It is gone.", TriggerDeleted)},
        role="operator",
        parameters=(_TRIGGER_ID,),
        fails=(404,),
    ),
    Operation(
        *("post", "/v1/edge/turns", "controlTurns", "perception"),
        "Press the button, or choose whose speech takes the turn",
        {200: Reply("So it is now.", TurnMode)},
        "The button is an operator's, the mode an admin's.",
        "operator",
        (PressButton, ChooseMode),
        {
            "begin": ("The button is pressed", {"button": "begin"}),
            "open": ("Speech is answered from now on", {"mode": "open"}),
        },
    ),
    Operation(
        *("get", "/v1/models", "listModels", "service"),
        "The served model, in a list",
        {200: Reply("One model.", Models)},
    ),
    Operation(
        *("get", "/v1/models/{name}", "getModel", "service"),
        "The served model",
        {200: Reply("The model.", Model)},
        parameters=(_in_path("name", "The model's; it may hold slashes."),),
        fails=(404,),
    ),
    Operation(
        *("get", "/healthz", "getHealth", "service"),
        "How the service is",
        {200: Reply("As long as anybody can answer at all.", Health)},
    ),
    Operation(
        *("get", "/readyz", "getReadiness", "service"),
        "Whether it can answer now",
        {200: Reply("It can.", Readiness), 503: Reply("It cannot, or is full.", Readiness)},
    ),
    Operation(
        *("get", "/metrics", "getMetrics", "service"),
        "What is counted, for Prometheus",
        {200: Reply("Prometheus' text format.", text="text/plain")},
    ),
    Operation(
        *("get", "/openapi.json", "getDescription", "service"),
        "This description",
        {200: Reply("OpenAPI 3.1.", kind=dict[str, Any])},
    ),
)
_TAGS = {
    "answers": "Questions, and answers from what is perceived.",
    "perception": "What the session notices by itself, and whose turn it is.",
    "service": "The service.",
}
_ERRORS: dict[int, str] = {
    400: "It cannot be served as it stands: `param` says which field, `message` what would help.",
    403: "The client's role, or token, does not allow it.",
    404: "It names something that is not here.",
    408: "Its body did not arrive in time.",
    413: "Its body is too large.",
    415: "Its body is encoded.",
    500: "This request failed within the service, which goes on.",
    503: "There is no room for it now: try again after `Retry-After` seconds.",
}
_ALWAYS, _OF_BODIES = (400, 403, 415, 503), (408, 413)
_INFO = {
    "title": "Omni Edge",
    "version": API_VERSION,
    "summary": "A robot's eyes and ears: ask about what it sees and hears.",
    "description": (
        "OpenAI's chat completions, responses and Realtime over one live context, and our own "
        "routes under `/v1/edge`. Any OpenAI client works.\n\n"
        "Fields that are marked `x-edge-policy: ignored` cannot change an answer, as any that is "
        f"not described: the reply names them in the header `{HEADER}`. Those marked `refused` are "
        "answered with 400 unless they have one of the values that ask for nothing. `null` asks "
        "for nothing anywhere. Within `edge` an unknown field is refused."
    ),
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}


@cache
def description() -> bytes:
    """The description, as JSON."""
    return msgspec.json.encode(describe())


def describe() -> Json:
    """The description."""
    kinds: list[Any] = [AnyClientEvent, AnyServerEvent, ErrorReply]
    for operation in OPERATIONS:
        kinds += operation.takes
        for reply in operation.replies.values():
            kinds += [kind for kind in (reply.kind, reply.streams) if kind is not None]
    schemas, components = _named_schemas(kinds)
    of_kind = dict(zip(kinds, schemas, strict=True))
    components |= {"ClientEvent": of_kind[AnyClientEvent], "ServerEvent": of_kind[AnyServerEvent]}
    of_kind |= {
        AnyClientEvent: {"$ref": SCHEMA.format(name="ClientEvent")},
        AnyServerEvent: {"$ref": SCHEMA.format(name="ServerEvent")},
    }
    _let_types_be_left_out(components, of_kind[ResponsesBody])
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, of_kind)
    paths["/v1/realtime"]["get"] |= {
        "x-client-events": of_kind[AnyClientEvent],
        "x-server-events": of_kind[AnyServerEvent],
    }
    description = {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [
            {"url": "http://localhost", "description": "Through the service's Unix socket."},
            {"url": "http://127.0.0.1:8321", "description": "Where `socket.tcp` says so."},
        ],
        # The kernel says who is at the other end of a Unix socket.
        "security": [{}, {"token": []}],
        "tags": [{"name": name, "description": says} for name, says in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "responses": {_named(status): _error(status, of_kind) for status in _ERRORS},
            "headers": {
                "Ignored": {
                    "description": "The request's fields that had no effect.",
                    "schema": {"type": "string"},
                    "example": "user, messages[].name",
                }
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "What is in `socket.token_file`: over TCP, if it is set.",
                }
            },
        },
    }
    whole: Json = without_margins(description)
    return whole


def _named_schemas(kinds: list[Any]) -> tuple[list[Json], dict[str, Json]]:
    """msgspec's schemas; types of one name in several modules are told apart by what uses them."""
    made = msgspec.json.schema_components(kinds, ref_template=SCHEMA)
    names = {name: _told_apart(name) for name in made[1]}
    assert len({*names.values()}) == len(names), names
    refs = {SCHEMA.format(name=old): SCHEMA.format(name=new) for old, new in names.items()}
    schemas, components = _with_refs([*made], refs)
    return schemas, {names[old]: schema for old, schema in components.items()}


def _told_apart(name: str) -> str:
    module, _, plain = name.rpartition(".")
    return _USERS.get(module, "") + plain.removeprefix("_")


_USERS = {
    "edge.serve.messages": "Chat",
    "edge.serve.wishes": "Chat",
    "edge.serve.protocol": "Realtime",
    "edge.serve.server_events": "RealtimeServer",
    "edge.serve.responses": "Responses",
    "edge.serve.response_items": "Responses",
}


def _with_refs(node: Any, refs: dict[str, str]) -> Any:
    """The same with other references."""
    if isinstance(node, dict):
        return {key: _with_refs(value, refs) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_with_refs(item, refs) for item in node]
    return refs.get(node, node) if isinstance(node, str) else node


def _operation(operation: Operation, of_kind: dict[Any, Json]) -> Json:
    said = f"{operation.says}\n\nFor the role {operation.role}.".strip()
    told: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": said,
    }
    if operation.parameters:
        told["parameters"] = [*operation.parameters]
    fails = [*_ALWAYS, *operation.fails]
    if operation.takes:
        told["requestBody"] = _body(operation, of_kind)
        fails += _OF_BODIES
    replies = {
        status: _reply(reply, operation, of_kind) for status, reply in operation.replies.items()
    }
    for status in fails:
        replies.setdefault(status, {"$ref": f"#/components/responses/{_named(status)}"})
    if 503 in operation.replies:  # another body than an error's, where it is not full
        one = replies[503]["content"]["application/json"]
        one["schema"] = {"anyOf": [one["schema"], of_kind[ErrorReply]]}
    told["responses"] = {str(status): replies[status] for status in sorted(replies)}
    return told


def _body(operation: Operation, of_kind: dict[Any, Json]) -> Json:
    kinds = [of_kind[kind] for kind in operation.takes]
    content: Json = {"schema": kinds[0] if len(kinds) == 1 else {"oneOf": kinds}}
    if operation.examples:
        content["examples"] = {
            name: {"summary": summary, "value": value}
            for name, (summary, value) in operation.examples.items()
        }
    return {"required": True, "content": {"application/json": content}}


def _reply(reply: Reply, operation: Operation, of_kind: dict[Any, Json]) -> Json:
    told: Json = {"description": reply.says}
    content: Json = {}
    if reply.kind is not None:
        content["application/json"] = {"schema": of_kind[reply.kind]}
    if reply.streams is not None:
        # Each event as an object, as OpenAPI 3.2 has it in `itemSchema`.
        data = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": of_kind[reply.streams],
        }
        event = {"type": "string", "description": "Its name, if it has one."}
        content[EVENTS] = {
            "schema": {
                "type": "object",
                "description": "Of server-sent events each one; its data is JSON, or `[DONE]`.",
                "properties": {"data": data, "event": event},
                "required": ["data"],
            }
        }
    if reply.text:
        content[reply.text] = {"schema": {"type": "string"}}
    if content:
        told["content"] = content
    if any(kind in (ChatBody, ResponsesBody) for kind in operation.takes):
        told["headers"] = {HEADER: {"$ref": "#/components/headers/Ignored"}}
    return told


def _named(status: int) -> str:
    """`Bad Request` as a component's name."""
    return HTTPStatus(status).phrase.title().replace(" ", "")


def _error(status: int, of_kind: dict[Any, Json]) -> Json:
    told: Json = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": of_kind[ErrorReply]}},
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        after = {"description": "Seconds.", "schema": {"type": "integer"}}
        told["headers"] = {"Retry-After": after}
    return told


def _let_types_be_left_out(components: dict[str, Json], body: Json) -> None:
    """As `responses` reads them: what has a role is a message, what has none a reference."""
    items = components[body["$ref"].rpartition("/")[2]]["properties"]["input"]
    (listed,) = (one for one in items["anyOf"] if one.get("type") == "array")
    kinds = listed["items"]["discriminator"]["mapping"]
    for name in ("message", "item_reference"):
        item = components[kinds[name].rpartition("/")[2]]
        item["required"].remove("type")
        item["properties"]["type"] = {"enum": [name, None]}
    del listed["items"]["discriminator"]
    # Where there is one kind only, nobody needs to say which.
    components["ResponsesFunctionTool"]["required"].remove("type")
