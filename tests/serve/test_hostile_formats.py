"""Formats and bodies that are small and take for ever: each is refused by name, to its client only.

A running service, as it is shipped; its neighbour asks for /healthz all the while.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import threading
import time

import httpx2
import pytest
from PIL import Image
from processes import descendants
from serve.test_end_to_end import Service
from websockets.sync.client import unix_connect

TIMEOUT_S = 60.0
TOO_DEEP = "nested more than 64 levels"
USER = {"role": "user", "content": "?"}
H1 = {"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.{{{i}}}x.*"} for i in range(16)]}
FOR_EVER = "((a{100}){100}){100}"
"""One continuation for a million letters: to find it takes minutes, and no bound is met."""
IN_A_TOOL = {"properties": {"a": {"type": "object", "properties": {"b": H1}}}}
LATER = f"[ab]{FOR_EVER}"
"""Harmless until a letter was said."""


def regex(pattern):
    return {"response_format": {"type": "regex", "regex": pattern}}


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def tool(parameters):
    function = {"name": "go", "parameters": parameters}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


def asked(field, text):
    """A body with JSON that no JSON writer makes."""
    return f'{{"messages":[{json.dumps(USER)}],{json.dumps(field)}:{text}}}'.encode()


def nested(n, leaf=1):
    for _ in range(n):
        leaf = {"items": leaf}
    return leaf


@pytest.fixture(scope="module")
def running(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "edge.sock"
    service = Service(bundle("base"), "--socket", path)
    service.wait_for("event=ready")
    yield path, service.process.pid
    assert service.stop() == 0


@pytest.fixture
def service(running):
    return running[0]


@pytest.fixture
def neighbour(service):
    """Counts its answers."""
    answers, begun, stop = [], threading.Event(), threading.Event()

    def ask():
        with http(service) as client:
            while not stop.is_set():
                began_s = time.monotonic()
                assert client.get("/healthz").status_code == 200
                answers.append(time.monotonic() - began_s)
                begun.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(TIMEOUT_S)
    yield answers
    stop.set()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def http(path):
    transport = httpx2.HTTPTransport(uds=str(path))
    return httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S)


def chat(path, **fields):
    with http(path) as client:
        body = {"messages": [USER], "max_tokens": 40, **fields}
        return client.post("/v1/chat/completions", json=body)


def refused(reply):
    """The error object of a refusal."""
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def first_error(path, event):
    with unix_connect(str(path), "ws://edge/v1/realtime") as client:
        client.send(event if isinstance(event, str) else json.dumps(event))
        while (told := json.loads(client.recv(TIMEOUT_S)))["type"] != "error":
            assert told["type"] not in ("response.done", "session.updated"), told
        return told["error"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (schema(H1), "json_schema"),
        (schema({"properties": {"a": H1}, "type": "object"}), "json_schema"),
        ({"guided_json": json.dumps(H1)}, "json_schema"),
        (regex(FOR_EVER), "regex"),
        ({"guided_regex": FOR_EVER}, "regex"),
        (tool(IN_A_TOOL), "tools"),
        (schema({"type": "string", "pattern": f"^{FOR_EVER}$"}), None),
    ],
    ids=["H1", "H1 inside", "guided_json", "regex", "guided_regex", "tool", "pattern"],
)
def test_a_format_that_takes_for_ever_is_refused_by_name(service, neighbour, fields, param):
    n_before = len(neighbour)
    error = refused(chat(service, **fields))
    assert "takes more than" in error["message"]
    assert param is None or error["param"] == param
    assert len(neighbour) > n_before  # it was served meanwhile
    assert refused(chat(service, **fields)) == error


@pytest.mark.parametrize(
    "fields",
    [regex(LATER), regex("(a?){3000}a{3000}")],
    ids=["forced", "K2"],
)
def test_one_that_takes_for_ever_later_fails_its_turn(service, neighbour, fields):
    n_before = len(neighbour)
    error = refused(chat(service, **fields))
    assert "cannot be followed" in error["message"]
    assert len(neighbour) > n_before
    assert chat(service, **regex("red|blue")).status_code == 200


@pytest.mark.parametrize(
    "event",
    [
        {
            "type": "session.update",
            "session": {"type": "realtime", "edge": schema({"allOf": [*H1["allOf"], {}]})},
        },
        {
            "type": "session.update",
            "session": {
                "type": "realtime",
                "tools": [{"type": "function", "name": "go", "parameters": IN_A_TOOL}],
                "tool_choice": "required",
            },
        },
        {"type": "response.create", "response": {"edge": regex(f"b{FOR_EVER}")}},
    ],
    ids=["session", "tools", "response"],
)
def test_so_is_one_on_the_realtime_socket(service, neighbour, event):
    assert "takes more than" in first_error(service, event)["message"]
    assert neighbour


def test_so_is_one_of_a_response(service):
    with http(service) as client:
        text = {"format": {"type": "json_schema", "name": "x", "schema": H1}}
        error = refused(client.post("/v1/responses", json={"input": "?", "text": text}))
    assert error["param"] == "json_schema"


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        (
            schema(
                {
                    "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                    "$ref": "#/$defs/a",
                }
            ),
            False,
        ),
        (schema({"enum": [f"v{n}" for n in range(100_000)]}), False),
        (schema({"type": "object", "properties": {f"p{n}": {} for n in range(20_000)}}), False),
        (schema({"type": "string", "minLength": 10**9}), True),
        (schema({"type": "string", "maxLength": 10**9}), True),
        (schema({"type": "array", "minItems": 10**9}), True),
        (schema({"type": "array", "maxItems": 10**9}), True),
        (schema({"type": "integer", "minimum": -(10**300), "maximum": 10**300}), False),
        (schema({"type": "number", "multipleOf": 1e-300}), False),
        (schema({"allOf": [{"format": f} for f in ("uri", "email", "ipv6", "uuid")]}), True),
        (
            schema({"patternProperties": {f"^.*{chr(97 + i)}.{{{i}}}x": {} for i in range(20)}}),
            True,
        ),
        (schema({"type": "string", "pattern": "\\ud800"}), False),
        (schema({"const": "x" * 60_000}), True),
        (regex("(" * 20_000), False),
        (regex("(a|b)*a(a|b){200}"), True),
        ({"structured_outputs": {"choice": ["a" * n for n in range(1, 400)]}}, False),
        (
            tool(
                {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"$ref": "#/$defs/x"}}}
            ),
            True,
        ),
    ],
)
def test_odd_formats_are_followed_or_refused(service, neighbour, fields, allowed):
    reply = chat(service, **fields, max_completion_tokens=4)
    if reply.status_code != 200 or not allowed:
        refused(reply)


@pytest.mark.parametrize("n", [80, 500, 900, 983, 5_000, 100_000])
@pytest.mark.parametrize("pad", [0, 20_000], ids=["event loop", "thread"])
def test_what_is_nested_deeply_is_refused_wherever_it_stands(service, n, pad):
    deep = '{"items":' * n + "1" + "}" * n
    called = f'{{"function":{{"name":"f","arguments":{json.dumps(deep)}}}}}'
    places = {
        "response_format": f'{{"type":"json_schema","json_schema":{{"schema":{deep}}}}}',
        "tools": f'[{{"type":"function","function":{{"name":"f","parameters":{deep}}}}}]',
        "guided_json": json.dumps(deep),
        "metadata": deep,
        "nobody_knows": deep,
        "messages": f'[{{"role":"assistant","tool_calls":[{called}]}}]',
    }
    with http(service) as client:
        for field, text in places.items():
            content = asked(field, text + " " * pad)
            error = refused(client.post("/v1/chat/completions", content=content))
            assert TOO_DEEP in error["message"], field
        for route in ("/v1/responses", "/v1/edge/triggers", "/v1/edge/turns"):
            refused(client.post(route, content=asked("metadata", deep + " " * pad)))
    error = first_error(
        service, f'{{"type":"session.update","session":{{"type":"realtime","tracing":{deep}}}}}'
    )
    assert TOO_DEEP in error["message"]


def test_what_is_nested_as_deep_as_clients_need_is_served(service):
    deep = nested(25, {"type": "integer"})
    assert chat(service, **schema({"type": "array", **deep}), max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER] * 4097}, "messages"),
        ({"messages": [{"role": "user", "content": ["x"] * 1025}]}, "messages[0].content"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools"),
        ({"functions": [{"name": "f"}] * 129}, "functions"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
    ],
)
def test_the_numbers_of_things_are_bounded(service, fields, param):
    assert refused(chat(service, **fields))["param"] == param


LONE = ['"\\ud800"', '{"\\udfff": 1}', '["a\\ud83d"]']


@pytest.mark.parametrize("lone", LONE)
def test_half_a_pair_of_surrogates_ends_nothing(service, lone):
    """In the arguments of a call it is what a model has made of an emoji; elsewhere no JSON."""
    with http(service) as client:
        arguments = f'{{"a": {lone}}}'
        call = {"function": {"name": "f", "arguments": arguments}}
        history = [USER, {"role": "assistant", "tool_calls": [call]}, USER]
        reply = client.post("/v1/chat/completions", json={"messages": history, "max_tokens": 1})
        assert reply.status_code == 200, reply.text
        item = {
            "type": "function_call",
            "name": "f",
            "call_id": "1",
            "arguments": arguments,
        }
        reply = client.post("/v1/responses", json={"input": [item], "max_output_tokens": 1})
        assert reply.status_code == 200, reply.text
        for field in ("tools", "metadata", "stop", "model", "messages", "response_format"):
            refused(client.post("/v1/chat/completions", content=asked(field, lone)))
        for url in ("/v1/models/%ED%A0%80", "/v1/responses/%ED%A0%80", "/%ED%A0%80"):
            reply = client.get(url)
            assert reply.status_code == 404
            assert reply.json()["error"]


@pytest.mark.parametrize(
    "words",
    [
        "\u27e6next\u27e7",
        "\u27e6live\u27e7",
        "\u27e6next\u27e7\u27e6live\u27e7",
        "<tool_call>",
        "</think>",
        "<think>",
        "<|im_end|>\n<|im_start|>system",
        "<image>",
        "<so_embedding>",
    ],
)
def test_the_prompts_own_marks_are_text_in_what_a_client_says(service, words, png):
    picture = {"type": "image_url", "image_url": {"url": png}}
    said = [
        {"role": "user", "content": words},
        {
            "role": "assistant",
            "content": words,
            "tool_calls": [{"function": {"name": words, "arguments": {words: words}}}],
        },
        {"role": "tool", "content": words},
        {"role": "user", "content": [{"type": "text", "text": words}, picture]},
    ]
    reply = chat(service, messages=said, max_tokens=1, edge={"remember": True})
    assert reply.status_code == 200, reply.text


@pytest.fixture
def png():
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_giant_numbers_are_refused(service):
    with http(service) as client:
        for number in ("1" * 100_000, "-1e400", "1e400", "NaN", str(1 << 70)):
            for field in ("temperature", "seed", "logit_bias", "n", "top_k"):
                refused(client.post("/v1/chat/completions", content=asked(field, number)))


def test_it_serves_on_when_the_processes_of_grammars_are_killed(running):
    service, process = running
    assert chat(service, **regex("red|blue")).status_code == 200
    with http(service) as client:
        before = client.get("/healthz").json()["counters"]
        assert before["grammars_too_costly"] >= 1
        below = descendants(process)
        assert below
        for one in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        for pattern in ("red|blue", "green|blue"):
            assert chat(service, **regex(pattern)).status_code == 200
        after = client.get("/healthz").json()["counters"]
    name = "grammar_processes_restarted"
    assert after[name] == before[name] + 1
