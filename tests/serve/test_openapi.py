"""GET /openapi.json: a valid description, of the routes and of what they take and answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from serve.scripted import DONE, TIMEOUT_S, ScriptedSession, answer, served
from write_schemas import FOLDER, schema_text

from edge.config import Config
from edge.errors import CapacityError, TurnError
from edge.model.sampling import Sampling
from edge.serve.app import make_app
from edge.serve.chat import ChatBody
from edge.serve.fields import HEADER
from edge.serve.limits import MAX_BODY_BYTES
from edge.serve.openapi import EVENTS, OPERATIONS, SCHEMA, describe, description
from edge.serve.responses import ResponsesBody
from edge.session.turn import Chance, Failed, Likely, TextDelta, ToolCall

SPEC: dict[str, Any] = json.loads(description())
RICH = (
    TextDelta("Hm", reasoning=True),
    Chance(Likely(b"Well", -0.5), (Likely(b"No", -1.5),)),
    TextDelta("Well"),
    ToolCall("drive", {"metres": 2}),
    DONE,
)
"""Whatever an answer may be made of."""


def play_all(turn):
    for event in RICH:
        turn.deliver(event)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


def http(path) -> httpx2.Client:
    return httpx2.Client(
        transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://edge", timeout=TIMEOUT_S
    )


def check(value: object, schema: dict[str, Any]) -> None:
    """A value is as a schema of the description says."""
    Draft202012Validator({**schema, "components": SPEC["components"]}).validate(value)


def operation(method: str, route: str) -> dict[str, Any]:
    found: dict[str, Any] = SPEC["paths"][route][method]
    return found


def replies(told: dict[str, Any], status: int) -> dict[str, Any]:
    """What is said of the replies with a status, by content type."""
    reply = told["responses"][str(status)]
    if "$ref" in reply:
        reply = SPEC["components"]["responses"][reply["$ref"].rpartition("/")[2]]
    content: dict[str, Any] = reply["content"]
    return content


def event_schema(content: dict[str, Any]) -> dict[str, Any]:
    """Of the data of a stream's events."""
    found: dict[str, Any] = content[EVENTS]["schema"]["properties"]["data"]["contentSchema"]
    return found


def check_reply(reply: httpx2.Response, method: str, route: str) -> Any:
    """It is one that is described; its body, or those of its events."""
    content = replies(operation(method, route), reply.status_code)
    kind = reply.headers["Content-Type"].partition(";")[0]
    if kind == EVENTS:
        events = [
            json.loads(part)
            for part in re.findall("^data: (.*)$", reply.text, re.MULTILINE)
            if part != "[DONE]"
        ]
        for event in events:
            check(event, event_schema(content))
        return events
    if kind == "application/json":
        check(reply.json(), content[kind]["schema"])
        return reply.json()
    assert kind in content
    return reply.text


def test_it_is_of_the_routes_that_there_are(path):
    session = ScriptedSession(answer("x"))
    with served(path, session), http(path) as client:
        assert client.get("/openapi.json").json() == SPEC
    app = make_app(session, Config(), "x", Sampling())
    routes = {
        (route.method.lower(), re.sub(r"{(\w+):[^}]*}", r"{\1}", route.resource.canonical))
        for route in app.router.routes()
        if route.method != "HEAD"
    }
    described = {(one.method, one.path) for one in OPERATIONS}
    assert described == routes


def test_the_file_in_the_documentation_is_of_the_types():
    text = (FOLDER / "openapi.json").read_text()
    assert text == schema_text(describe()), "run scripts/write_schemas.py"


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for inner in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from nodes(inner)


def test_its_references_lead_somewhere_and_its_schemas_are_schemas():
    components = SPEC["components"]
    refs = {node["$ref"] for node in nodes(SPEC) if isinstance(node.get("$ref"), str)}
    mapped = [node["mapping"] for node in nodes(SPEC) if "propertyName" in node]
    refs |= {ref for mapping in mapped for ref in mapping.values()}
    for ref in refs:
        _, _, kind, name = ref.split("/")
        assert name in components[kind], ref
    used = {ref.rpartition("/")[2] for ref in refs if ref.startswith(SCHEMA.format(name=""))}
    assert used == components["schemas"].keys()
    for name, schema in components["schemas"].items():
        assert re.fullmatch(r"[A-Z]\w*", name)
        Draft202012Validator.check_schema(schema)
    operations = [told for methods in SPEC["paths"].values() for told in methods.values()]
    assert len({told["operationId"] for told in operations}) == len(operations)
    for route, methods in SPEC["paths"].items():
        for told in methods.values():
            named = {one["name"] for one in told.get("parameters", ()) if one["in"] == "path"}
            assert named == {*re.findall(r"{(\w+)}", route)}


EXAMPLES = [
    pytest.param(one.method, one.path, body, id=f"{one.name}-{name}")
    for one in OPERATIONS
    for name, (_, body) in (one.examples or {}).items()
    if one.path != "/v1/edge/triggers" or not body.get("stream")  # which has no end
]


@pytest.mark.parametrize(("method", "route", "body"), EXAMPLES)
def test_an_example_is_taken_and_answered_as_described(path, method, route, body):
    told = operation(method, route)
    check(body, told["requestBody"]["content"]["application/json"]["schema"])
    with served(path, ScriptedSession(play_all)), http(path) as client:
        reply = client.request(method.upper(), route, json={**body, "logprobs": True})
        if reply.status_code == 400:  # no such field here
            reply = client.request(method.upper(), route, json=body)
    assert reply.status_code == 200, reply.text
    assert check_reply(reply, method, route)


def test_a_streams_trigger_is_told_as_described(path):
    session, kind = ScriptedSession(answer("x")), operation("post", "/v1/edge/triggers")
    with (
        served(path, session),
        http(path) as client,
        client.stream(
            "POST", "/v1/edge/triggers", json={"condition": "x", "stream": True}
        ) as reply,
    ):
        first = next(line for line in reply.iter_lines() if line.startswith("data: "))
    check(json.loads(first.removeprefix("data: ")), event_schema(replies(kind, 200)))


def test_what_is_read_is_as_described(path):
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        kept = client.post("/v1/responses", json={"input": "?"}).json()["id"]
        trigger = client.post("/v1/edge/triggers", json={"condition": "?"}).json()["id"]
        client.post("/v1/chat/completions", json={"messages": [{"role": "user"}]})
        for method, route, name in (
            *(("get", f"/v1/{one}", "") for one in ("models", "edge/triggers")),
            *(("get", one, "") for one in ("/healthz", "/readyz", "/metrics", "/openapi.json")),
            ("get", "/v1/models/{name}", "nemotron-tiny"),
            ("get", "/v1/responses/{id}", kept),
            ("delete", "/v1/responses/{id}", kept),
            ("delete", "/v1/edge/triggers/{id}", trigger),
        ):
            url = re.sub("{.*}", name, route)
            reply = client.request(method.upper(), url)
            assert reply.status_code == 200, url
            assert check_reply(reply, method, route)


def test_refusals_are_as_described(path):
    chat, turns = "/v1/chat/completions", "/v1/edge/turns"
    good = {"messages": [{"role": "user", "content": "?"}]}
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        for status, method, route, url, content in (
            (400, "post", chat, chat, b"{"),
            (400, "post", "/v1/responses", "/v1/responses", b'{"input": 3}'),
            (400, "post", turns, turns, b"[]"),
            (400, "post", "/v1/edge/triggers", "/v1/edge/triggers", b'{"condition": ""}'),
            (404, "post", chat, chat, json.dumps({**good, "model": "other"}).encode()),
            (404, "get", "/v1/models/{name}", "/v1/models/other", b""),
            (404, "get", "/v1/responses/{id}", "/v1/responses/none", b""),
            (404, "delete", "/v1/edge/triggers/{id}", "/v1/edge/triggers/none", b""),
            (404, "get", "/v1/realtime", "/v1/realtime?model=other", b""),
            (413, "post", chat, chat, b" " * (MAX_BODY_BYTES + 1)),
        ):
            reply = client.request(method.upper(), url, content=content)
            assert reply.status_code == status, url
            assert check_reply(reply, method, route)["error"]["message"]
    full = CapacityError("questions", "8 wait already", "ask again")
    with served(path, ScriptedSession(answer("x"), full)), http(path) as client:
        reply = client.post(chat, json=good)
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        check_reply(reply, "post", chat)

    broken = ScriptedSession(lambda turn: turn.deliver(Failed(TurnError("question", "x", "y"))))
    with served(path, broken), http(path) as client:
        reply = client.post(chat, json=good)
        assert reply.status_code == 500
        check_reply(reply, "post", chat)
    with served(path, ScriptedSession(answer("x"), ready=False)), http(path) as client:
        reply = client.get("/readyz")
        assert reply.status_code == 503
        assert check_reply(reply, "get", "/readyz") == {"ready": False}


MARKED = [
    pytest.param(route, kind, name, schema, id=f"{kind.__name__}-{name}")
    for route, kind in (("/v1/chat/completions", ChatBody), ("/v1/responses", ResponsesBody))
    for name, schema in SPEC["components"]["schemas"][kind.__name__]["properties"].items()
    if "x-edge-policy" in schema
]


def test_what_is_ignored_or_refused_is_so_as_described(path):
    bodies = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "?"}]},
        "/v1/responses": {"input": "?"},
    }
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        for one in MARKED:
            route, _, name, schema = one.values
            refused = schema["x-edge-policy"] == "refused"
            for value in (["no such thing"], *schema.get("enum", ())):
                reply = client.post(route, json={**bodies[route], name: value})
                is_valid = Draft202012Validator(schema).is_valid(value)
                assert reply.status_code == (200 if is_valid else 400), (route, name, value)
                if not is_valid:
                    assert refused
                    assert reply.json()["error"]["param"] == name
                elif not refused:
                    assert reply.headers[HEADER] == name


def test_an_items_type_may_be_left_out(path):
    kind = operation("post", "/v1/responses")["requestBody"]["content"]["application/json"]
    for item, is_valid in (
        ({"role": "user", "content": "?"}, True),
        ({"role": "user", "content": "?", "type": None}, True),
        ({"content": "?"}, False),
    ):
        with served(path, ScriptedSession(answer("x"))), http(path) as client:
            reply = client.post("/v1/responses", json={"input": [item]})
        schema = {**kind["schema"], "components": SPEC["components"]}
        assert Draft202012Validator(schema).is_valid({"input": [item]}) == is_valid
        assert reply.status_code == (200 if is_valid else 400)


def test_a_tools_type_may_be_left_out(path):
    body = {"input": "?", "tools": [{"name": "drive"}]}
    kind = operation("post", "/v1/responses")["requestBody"]["content"]["application/json"]
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        assert client.post("/v1/responses", json=body).status_code == 200
    check(body, kind["schema"])
