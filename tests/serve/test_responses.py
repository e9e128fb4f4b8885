"""POST /v1/responses, asked by OpenAI's own SDKs; their types check every event."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pydantic
import pytest
from needed import must_be
from openai.types import responses as theirs
from openai.types.responses import response_create_params as creation
from openai.types.responses import response_input_param as inputs
from serve.scripted import (
    DONE,
    MODEL,
    REPORT,
    TIMEOUT_S,
    ScriptedSession,
    answer,
    served,
    speak_until_cancelled,
)
from serve.test_fields import policies
from serve.test_realtime import png

from edge.config import Config, for_model
from edge.errors import CapacityError, EngineError, ProtocolError
from edge.model.sampling import Sampling
from edge.serve.fields import HEADER
from edge.serve.response_items import MAX_KEPT, Kept, KeptOf, KeptResponses
from edge.serve.responses import ResponseRequest, ResponsesBody, parse_request
from edge.session.turn import Chance, ChoiceDone, Failed, Likely, Message, TextDelta, ToolCall

CONFIG = for_model(Config(), 131_072, 262_144)
ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = {
    "type": "function",
    "name": "drive",
    "description": "Drive.",
    "parameters": {"type": "object", "properties": {"fast": {"type": "boolean"}}},
    "strict": True,
}


def parsed(kept: KeptOf | None = None, **fields: object) -> ResponseRequest:
    body = json.dumps({"input": "Hello", **fields}).encode()
    return parse_request(body, MODEL, CONFIG, Sampling(0.6, 0.95), kept or KeptOf())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


def http(path) -> httpx2.Client:
    transport = httpx2.HTTPTransport(uds=str(path))
    return httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S)


def sdk(path) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://edge/v1", api_key="none", http_client=http(path), max_retries=0
    )


def strict(value: Any, kind: Any) -> None:
    """Every field that OpenAI's type knows as one is of its type; none is missing."""
    pydantic.TypeAdapter(kind).validate_json(json.dumps(value))


def events_of(text: str) -> list[dict[str, Any]]:
    """Server-sent events; each is named by its type and valid by OpenAI's types."""
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        strict(event, theirs.ResponseStreamEvent)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


# Policies.

RESPONSES = policies(ResponsesBody)


def test_every_field_of_openais_request_has_a_policy():
    asked = set(typing.get_type_hints(creation.ResponseCreateParamsBase)) | {"stream"}
    assert asked <= RESPONSES.keys()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("input[]<message>", theirs.EasyInputMessageParam),
        ("input[]<message>", theirs.ResponseOutputMessageParam),
        ("input[]<message>", inputs.Message),
        ("input[]<function_call>", theirs.ResponseFunctionToolCallParam),
        ("input[]<function_call_output>", inputs.FunctionCallOutput),
        ("input[]<reasoning>", theirs.ResponseReasoningItemParam),
        ("input[]<item_reference>", inputs.ItemReference),
        ("input[]<message>.content[]<input_text>", theirs.ResponseInputTextParam),
        ("input[]<message>.content[]<input_image>", theirs.ResponseInputImageParam),
        ("input[]<message>.content[]<output_text>", theirs.ResponseOutputTextParam),
        ("tools[]", theirs.FunctionToolParam),
        ("text", theirs.ResponseTextConfigParam),
        ("text.format<json_schema>", theirs.ResponseFormatTextJSONSchemaConfigParam),
    ],
)
def test_every_field_of_openais_items_has_a_policy(path, kind):
    names = set(typing.get_type_hints(kind)) - {"type"}
    assert {f"{path}.{name}" for name in names} <= RESPONSES.keys()


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False},
        {"background": False},
        {"parallel_tool_calls": True},
        {"truncation": "auto"},
        {"truncation": "disabled"},
        {"service_tier": "auto"},
        {"include": ["reasoning.encrypted_content"]},
        {"include": []},
        {"reasoning": {}},
        {"reasoning": {"effort": None, "summary": "auto"}},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        {"tools": [], "tool_choice": "auto"},
        {"max_tool_calls": 3},
        {"stream_options": {"include_obfuscation": False}},
        {"prompt_cache_key": "k", "safety_identifier": "u", "user": "u"},
        {"input": [{"role": "user", "content": "Hello"}]},
        {"input": [{"type": "message", "role": "user", "content": "Hello", "id": "m"}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]},
        {"of_tomorrow": 1},
    ],
)
def test_what_asks_for_nothing_changes_nothing(fields):
    assert parsed(**fields).question == parsed().question


@pytest.mark.parametrize(
    ("fields", "thing"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"input": [{"id": "msg_x"}]}, "input[0].id"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "fly"}}, "tool_choice"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "http:"}]}
                ]
            },
            "input[0].content[0].image_url",
        ),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "["}]}, "input[0].argum"),
        ({"input": 3}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_cannot_be_served_is_named(fields, thing):
    with pytest.raises(ProtocolError) as caught:
        parsed(**fields)
    assert caught.value.thing.startswith(thing)


def test_a_whole_conversation():
    picture = "data:image/png;base64," + base64.b64encode(png()).decode()
    items = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": picture, "detail": "auto"},
                {"type": "input_text", "text": "What?"},
            ],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
            "encrypted_content": "x",
        },
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I drive.", "annotations": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "drive",
            "arguments": '{"fast": true}',
            "status": "completed",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
    ]
    question = parsed(input=items, instructions="In French.", tools=[TOOL]).question
    roles = [message.role for message in question.messages]
    assert roles == ["system", "system", "user", "assistant", "tool"]
    assert [message.content for message in question.messages[:2]] == ["In French.", "Be brief."]
    assert (question.messages[2].content, len(question.messages[2].media)) == ("What?", 1)
    calls = (ToolCall("drive", {"fast": True}),)
    assert question.messages[3] == Message("assistant", "I drive.", (), calls, "Hm.")
    assert question.messages[4] == Message("tool", "done")
    function = {name: TOOL[name] for name in ("name", "description", "parameters", "strict")}
    assert question.tools == ({"type": "function", "function": function},)


def test_settings():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    found = parsed(
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.5,
        top_logprobs=3,
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
        reasoning={"effort": "low"},
        include=["message.output_text.logprobs"],
    ).question
    assert (found.max_tokens, found.thinking, found.n_alternatives) == (7, True, 3)
    assert (found.sampling.temperature, found.sampling.top_p) == (0.5, 0.5)
    assert found.grammar
    assert not parsed(reasoning={"effort": "none"}).question.thinking
    forced = parsed(tools=[TOOL], tool_choice={"type": "function", "name": "drive"}).question
    assert forced.grammar == parsed(tools=[TOOL], tool_choice="required").question.grammar != ""
    some = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "drive"}],
    }
    other = {**TOOL, "name": "stop"}
    assert parsed(tools=[TOOL, other], tool_choice=some).question == parsed(tools=[TOOL]).question


# Answers.


def test_the_stock_sdk_gets_an_answer(path):
    session = ScriptedSession(answer("A c", "up ☕", reasoning="Hm."))
    with served(path, session), sdk(path) as client:
        response = client.responses.create(
            model=MODEL, input="What is there?", instructions="Be brief.", metadata={"a": "b"}
        )
    assert response.output_text == "A cup ☕"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "Hm."
    assert (response.status, response.error, response.incomplete_details) == (
        "completed",
        None,
        None,
    )
    assert (response.metadata, response.instructions) == ({"a": "b"}, "Be brief.")
    assert response.usage.total_tokens == 335
    assert response.usage.input_tokens_details.cached_tokens == 321
    assert response.edge == REPORT
    strict(response.model_dump(by_alias=True), theirs.Response)
    assert [m.content for m in session.questions[0].messages] == ["Be brief.", "What is there?"]


TEXT = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
THOUGHT = [
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


@pytest.mark.parametrize("reasoning", ["", "Hm."])
def test_events_of_a_text(path, reasoning):
    play = answer("A c", "up ☕", reasoning=reasoning)
    with served(path, ScriptedSession(play)), http(path) as client:
        reply = client.post("/v1/responses", json={"input": "What?", "stream": True})
        whole = client.post("/v1/responses", json={"input": "What?"}).json()
    events = events_of(reply.text)
    expected = [*TEXT[:2], *THOUGHT, *TEXT[2:]] if reasoning else TEXT
    assert [event["type"] for event in events] == expected
    last = events[-1]["response"]
    assert last["output"][-1]["content"][0]["text"] == "A cup ☕"
    assert [item["type"] for item in last["output"]] == [item["type"] for item in whole["output"]]
    text = [event for event in events if event["type"].startswith("response.output_text")]
    assert {event["item_id"] for event in text} == {last["output"][-1]["id"]}
    assert {event["output_index"] for event in text} == {len(last["output"]) - 1}


def calling(turn):
    for event in (
        TextDelta("Well."),
        ToolCall("drive", {"fast": True}),
        ToolCall("stop", {}),
        DONE,
    ):
        turn.deliver(event)


def test_a_call_that_was_cut_is_incomplete_and_can_be_sent_back(path):
    def play(turn):
        turn.deliver(ToolCall("drive", {"fast": True}, is_whole=False))
        turn.deliver(replace(DONE, finish_reason="length"))

    session = ScriptedSession(play)
    with served(path, session), http(path) as client:
        first = client.post("/v1/responses", json={"input": "Go.", "tools": [TOOL]}).json()
        (item,) = first["output"]
        body = {"input": "Well?", "previous_response_id": first["id"]}
        assert client.post("/v1/responses", json=body).status_code == 200
    assert (first["status"], item["status"]) == ("incomplete", "incomplete")
    assert item["arguments"] == '{"fast": true'
    assert session.questions[1].messages[1].calls == (ToolCall("drive", {"fast": True}),)


def test_events_of_calls(path):
    with served(path, ScriptedSession(calling)), http(path) as client:
        body = {"input": "Go.", "stream": True, "tools": [TOOL]}
        events = events_of(client.post("/v1/responses", json=body).text)
        one = client.post("/v1/responses", json={**body, "parallel_tool_calls": False})
    kinds = [event["type"] for event in events]
    assert kinds == [*TEXT[:5], *TEXT[6:9], *CALL, *CALL, "response.completed"]
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert (output[1]["name"], output[1]["arguments"]) == ("drive", '{"fast": true}')
    assert output[1]["call_id"] != output[2]["call_id"]
    output = events_of(one.text)[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]


def test_the_stock_sdk_streams_and_answers_a_call(path):
    """As an agent does it: stream, call, send all of it back."""
    session = ScriptedSession(
        lambda turn: (answer("Done.") if len(turn.question.messages) > 1 else calling)(turn)
    )
    items: list[Any] = [{"role": "user", "content": "Go."}]
    with served(path, session), sdk(path) as client:
        with client.responses.stream(model=MODEL, input=items, tools=[TOOL]) as stream:
            kinds = [event.type for event in stream]
            response = stream.get_final_response()
        calls = [item for item in response.output if item.type == "function_call"]
        items += response.output
        items += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "ok"}
            for call in calls
        ]
        last = client.responses.create(model=MODEL, input=items, tools=[TOOL])
    assert "response.function_call_arguments.done" in kinds
    assert last.output_text == "Done."
    said = session.questions[1].messages
    assert [message.role for message in said] == ["user", "assistant", "tool", "tool"]
    assert said[1] == Message(
        "assistant", "Well.", (), (ToolCall("drive", {"fast": True}), ToolCall("stop", {}))
    )


def test_an_object(path):
    class Seen(pydantic.BaseModel):
        colour: str

    with served(path, ScriptedSession(answer('{"colour":"red"}'))), sdk(path) as client:
        response = client.responses.parse(model=MODEL, input="Which?", text_format=Seen)
    assert response.output_parsed == Seen(colour="red")


@pytest.mark.parametrize(
    ("reason", "status"), [("length", "incomplete"), ("deadline", "incomplete")]
)
def test_an_answer_that_was_cut(path, reason, status):
    play = answer("A c", done=replace(DONE, finish_reason=reason))
    with served(path, ScriptedSession(play)), http(path) as client:
        whole = client.post("/v1/responses", json={"input": "x"}).json()
        stream = client.post("/v1/responses", json={"input": "x", "stream": True})
    last = events_of(stream.text)[-1]
    assert last["type"] == f"response.{status}"
    for response in (whole, last["response"]):
        assert response["status"] == status
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["status"] == status


def test_an_empty_answer_is_a_message(path):
    with served(path, ScriptedSession(answer())), http(path) as client:
        events = events_of(client.post("/v1/responses", json={"stream": True}).text)
    assert [event["type"] for event in events] == [*TEXT[:4], *TEXT[6:]]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_probabilities(path):
    chance = Chance(Likely(b"A", -0.5), (Likely(b"A", -0.5), Likely(b"\xc3", -2.0)))

    def play(turn):
        for event in (chance, TextDelta("A"), DONE):
            turn.deliver(event)

    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    with served(path, ScriptedSession(play)), http(path) as client:
        whole = client.post("/v1/responses", json=asked).json()
        events = events_of(client.post("/v1/responses", json={**asked, "stream": True}).text)
    short = {
        "token": "A",
        "logprob": -0.5,
        "top_logprobs": [{"token": "A", "logprob": -0.5}, {"token": "\ufffd", "logprob": -2.0}],
    }
    told = [event["logprobs"] for event in events if "logprobs" in event]
    assert told == [[short], [short]]
    (part,) = whole["output"][0]["content"]
    assert part["logprobs"][0]["bytes"] == [65]
    assert part["logprobs"][0]["top_logprobs"][1]["bytes"] == [195]


def test_thinking_is_hidden_from_who_does_not_want_it(path):
    with served(path, ScriptedSession(answer("A.", reasoning="Hm."))), http(path) as client:
        for stream in (False, True):
            body = {"include_reasoning": False, "stream": stream}
            text = client.post("/v1/responses", json=body).text
            assert "A." in text
            assert "Hm." not in text


def test_an_error_before_anything_has_its_status_and_one_after_its_event(path):
    full = CapacityError("turn", "8 questions are waiting", "ask later")

    def play(turn):
        if turn.question.max_tokens == 2:
            turn.deliver(TextDelta("a"))
        turn.deliver(Failed(full if turn.question.max_tokens > 2 else EngineError("x", "y", "z")))

    with served(path, ScriptedSession(play)), http(path) as client:
        for stream in (False, True):
            refused = client.post("/v1/responses", json={"stream": stream})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "over_capacity"
        body = {"stream": True, "max_output_tokens": 2}
        events = events_of(client.post("/v1/responses", json=body).text)
        assert client.post("/v1/responses", json={**body, "stream": False}).status_code == 500
    last = events[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "x: y; z"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_client_that_goes_cancels_its_turn(path):
    started, seen = threading.Event(), threading.Event()
    play = speak_until_cancelled(started, seen)
    with served(path, ScriptedSession(play)), sdk(path) as client:
        stream = client.responses.create(model=MODEL, input="x", stream=True)
        assert next(iter(stream)).type == "response.created"
        stream.close()
        assert seen.wait(TIMEOUT_S)


def test_what_was_ignored_is_told(path):
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        for stream in (False, True):
            reply = client.post("/v1/responses", json={"service_tier": "auto", "stream": stream})
            assert reply.headers[HEADER] == "service_tier"


# What is kept.


def test_a_response_goes_on_from_the_one_before(path):
    session = ScriptedSession(answer("A cup."))
    with served(path, session), sdk(path) as client:
        first = client.responses.create(model=MODEL, input="What?", instructions="Be brief.")
        second = client.responses.create(model=MODEL, input="Whose?", previous_response_id=first.id)
        item = {"type": "item_reference", "id": second.output[0].id}
        client.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": "x"}, item, {"role": "user", "content": "y"}],
        )
        again = client.responses.retrieve(first.id)
        client.responses.delete(first.id)
        for gone in (
            lambda: client.responses.retrieve(first.id),
            lambda: client.responses.delete(first.id),
        ):
            with pytest.raises(openai.NotFoundError):
                gone()
        client.responses.create(model=MODEL, input="z", previous_response_id=second.id)
    assert again.output == first.output
    assert second.previous_response_id == first.id
    said = [[message.content for message in question.messages] for question in session.questions]
    assert said[0] == ["Be brief.", "What?"]
    assert said[1] == ["What?", "A cup.", "Whose?"]  # instructions are not carried over
    assert said[2] == ["x", "A cup.", "y"]
    assert said[3] == ["What?", "A cup.", "Whose?", "A cup.", "z"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_to_be_stored_or_failed_is_not_kept(path, stream):
    def fail(turn):
        turn.deliver(TextDelta("a"))
        turn.deliver(Failed(EngineError("x", "y", "z")))

    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        reply = client.post("/v1/responses", json={"store": False, "stream": stream})
        whole = events_of(reply.text)[-1]["response"] if stream else reply.json()
        assert client.get(f"/v1/responses/{whole['id']}").status_code == 404
        assert whole["store"] is False
    with served(path, ScriptedSession(fail)), http(path) as client:
        reply = client.post("/v1/responses", json={"stream": True})
        failed = events_of(reply.text)[-1]["response"]["id"]
        assert client.get(f"/v1/responses/{failed}").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_kept_response_takes_what_was_sent_and_what_was_answered(path, stream, monkeypatch):
    """All of its conversation: what it follows, its own body and its own output."""
    kept, keep = [], KeptOf.keep
    monkeypatch.setattr(KeptOf, "keep", lambda self, one: kept.append(one) or keep(self, one))

    def said(client, **fields):
        body = json.dumps({"stream": stream, **fields}).encode()
        reply = client.post("/v1/responses", content=body)
        whole = events_of(reply.text)[-1]["response"] if stream else reply.json()
        return whole["id"], len(body) + len(msgspec.json.encode(whole["output"]))

    with served(path, ScriptedSession(answer("A cup. " * 100))), http(path) as client:
        first_id, first_bytes = said(client, input="What? " * 50)
        _, own_bytes = said(client, input="Whose?", previous_response_id=first_id)
    assert first_bytes > 300 + 700
    assert [one.n_bytes for one in kept] == [first_bytes, first_bytes + own_bytes]


@pytest.mark.parametrize("beyond", [0, 1])
def test_what_was_answered_counts_where_a_response_is_too_large_to_keep(path, beyond, monkeypatch):
    with served(path, ScriptedSession(answer("A cup. " * 100))), http(path) as client:
        body = b'{"input": "What?"}'
        reply = client.post("/v1/responses", content=body)
        n_bytes = len(body) + len(msgspec.json.encode(reply.json()["output"]))
        monkeypatch.setattr("edge.serve.response_items.MAX_KEPT_BYTES", n_bytes - beyond)
        reply = client.post("/v1/responses", content=body)
        found = client.get(f"/v1/responses/{reply.json()['id']}")
    assert found.status_code == (404 if beyond else 200)


def test_what_is_kept_is_bounded_and_belongs_to_one_client():
    kept = KeptResponses()
    for n in range(MAX_KEPT + 3):
        kept.of("user 1").keep(Kept({"id": f"resp_{n}"}, (), 10))
    with pytest.raises(ProtocolError):
        kept.of("user 1").response("resp_2")
    assert kept.of("user 1").response("resp_3")
    with pytest.raises(ProtocolError):
        kept.of("user 2").response("resp_3")
    kept.of("user 1").keep(Kept({"id": "huge"}, (), 1 << 30))  # too large alone: the others stay
    assert kept.of("user 1").response("resp_3")
    kept.of("user 1").keep(Kept({"id": "large"}, (), (16 << 20) - 5))
    with pytest.raises(ProtocolError):
        kept.of("user 1").response(f"resp_{MAX_KEPT + 2}")
    for n in range(9):
        kept.of(f"user {n + 10}")
    with pytest.raises(ProtocolError):
        kept.of("user 1").response("large")


def test_a_conversation_that_is_too_large_is_refused():
    kept = KeptOf()
    kept.keep(Kept({"id": "resp_1"}, (), (16 << 20) - 20))
    with pytest.raises(ProtocolError, match="more than 16777216 bytes"):
        parsed(kept, previous_response_id="resp_1")


def test_openais_javascript_sdk(path):
    modules = Path(os.environ.get("EDGE_NODE_MODULES", ROOT / ".venv/js/node_modules"))
    if not (modules / "openai").is_dir():  # of a registry that not every machine reaches
        pytest.skip("needs OpenAI's JavaScript SDK: make test installs it")
    node = shutil.which("node")
    must_be(node is not None, "node is not installed")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with served(path, ScriptedSession(several), tcp_listener=listener):
        ended = subprocess.run(
            [str(node), str(ROOT / "tests/serve/js/asks.js"), url],
            capture_output=True,
            text=True,
            timeout=3 * TIMEOUT_S,
            check=False,
            env={**os.environ, "NODE_PATH": str(modules)},
        )
    assert ended.returncode == 0, ended.stderr
    told = {one["name"]: one["value"] for one in map(json.loads, ended.stdout.splitlines())}
    assert told.pop("kinds") == [*TEXT[:5], *TEXT[6:9], *CALL, "response.completed"]
    assert told == {
        "model": MODEL,
        "missing": [404, "model_not_found"],
        "output": ["message", "function_call"],
        "output_text": "Well.",
        "final": ["message", "function_call"],
        "next": True,
        "choices": ["One.", "Well."],
        "streamed": ["One.", "Well."],
        "refused": [400, "unsupported_value", "background"],
    }


def several(turn):
    """Two answers if they are asked for, and a call."""
    chance = Chance(Likely(b"One.", -0.5), ())
    if turn.question.n_choices == 2:
        for event in (chance, TextDelta("One."), ChoiceDone("stop", 0.5)):
            turn.deliver(event)
    for event in (TextDelta("Well."), ToolCall("drive", {}), DONE):
        turn.deliver(event)
