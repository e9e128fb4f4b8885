"""One policy for every field of a request: honoured, ignored because neutral, or refused."""

from __future__ import annotations

import json
import re
import typing
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import chat
from openai.types.chat import completion_create_params as creation
from serve.scripted import MODEL, TIMEOUT_S, ScriptedSession, answer, served
from write_schemas import POLICY

from edge.config import Config, for_model
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.serve import fields
from edge.serve.chat import ChatBody, ChatRequest, parse_request
from edge.serve.fields import HEADER, MAX_LOGGED, MAX_TOLD, ignored, settle, table, told, unless
from edge.serve.schema import policy_page
from edge.session.turn import Message, ToolCall

USER = {"role": "user", "content": "What is on the table?"}
CONFIG = for_model(Config(), 131_072, 262_144)


def parsed(**fields: object) -> ChatRequest:
    body = json.dumps({"messages": [USER], **fields}).encode()
    return parse_request(body, MODEL, CONFIG, Sampling(0.6, 0.95))


def refused(**fields: object) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        parsed(**fields)
    return caught.value


PLAIN = parsed()


def policies(kind: type) -> dict[str, str]:
    """Path of a field -> what becomes of it, as the page says."""
    return dict(re.findall(r"^\| `([^`]+)` \| (\w+) \|", table(kind), re.MULTILINE))


CHAT = policies(ChatBody)


# The table.


def test_the_page_says_what_the_types_say():
    assert POLICY.read_text() == policy_page()
    assert set(CHAT.values()) == {"honoured", "ignored", "refused"}


def fields_of(kind: Any) -> set[str]:
    return set(typing.get_type_hints(kind))


def test_every_field_of_openais_request_has_a_policy():
    asked = fields_of(creation.CompletionCreateParamsBase) | {"stream"}
    assert asked <= CHAT.keys()
    options = chat.ChatCompletionStreamOptionsParam
    assert {f"stream_options.{name}" for name in fields_of(options)} <= CHAT.keys()


@pytest.mark.parametrize(
    "kind",
    [
        chat.ChatCompletionUserMessageParam,
        chat.ChatCompletionSystemMessageParam,
        chat.ChatCompletionDeveloperMessageParam,
        chat.ChatCompletionAssistantMessageParam,
        chat.ChatCompletionToolMessageParam,
        chat.ChatCompletionFunctionMessageParam,
    ],
)
def test_every_field_of_openais_messages_has_a_policy(kind):
    assert {f"messages[].{name}" for name in fields_of(kind)} <= CHAT.keys()


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        ("text", chat.ChatCompletionContentPartTextParam),
        ("image_url", chat.ChatCompletionContentPartImageParam),
        ("input_audio", chat.ChatCompletionContentPartInputAudioParam),
        ("refusal", chat.ChatCompletionContentPartRefusalParam),
    ],
)
def test_every_field_of_openais_parts_has_a_policy(tag, kind):
    path = f"messages[].content[]<{tag}>"
    assert {f"{path}.{name}" for name in fields_of(kind) - {"type"}} <= CHAT.keys()


def test_every_field_of_openais_tools_has_a_policy():
    assert {"tools[].function", "tools[].type"} <= CHAT.keys()
    function = chat.ChatCompletionToolParam.__annotations__["function"]
    assert "FunctionDefinition" in str(function)
    names = ("name", "description", "parameters", "strict")  # of FunctionDefinition
    assert {f"tools[].function.{name}" for name in names} <= CHAT.keys()


VLLM = """thinking_token_budget
use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words
echo add_generation_prompt continue_final_message add_special_tokens documents chat_template
chat_template_kwargs structured_outputs priority request_id session_id return_tokens_as_token_ids
return_token_ids routed_experts_prompt_start return_token_offsets return_prompt_text
return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
stream_interval include_reasoning"""
"""Of vLLM's ChatCompletionRequest at commit 002032e (entrypoints/openai/chat_completion), what
OpenAI's lacks."""


def test_every_field_of_vllms_request_has_a_policy():
    assert set(VLLM.split()) <= CHAT.keys()


# What asks for nothing.

NEUTRAL: dict[str, list[object]] = {
    "frequency_penalty": [0, 0.0, None],
    "presence_penalty": [0, -0.0],
    "logprobs": [False, None],
    "top_logprobs": [None, 0],
    "parallel_tool_calls": [True, None],
    "store": [True, False],
    "metadata": [{}, {"a": "b"}],
    "service_tier": ["auto", "default", "flex"],
    "logit_bias": [{}, {"5": 0}],
    "modalities": [["text"], None],
    "prompt_cache_key": ["k"],
    "prompt_cache_retention": ["24h"],
    "safety_identifier": ["u"],
    "user": ["u"],
    "verbosity": ["low", "medium"],
    "audio": [None],
    "prediction": [None, {"type": "content", "content": "x"}],
    "function_call": [None, "auto", "none"],
    "functions": [None, []],
    "tools": [None, []],
    "tool_choice": [None, "auto", "none"],
    "stream_options": [None, {}, {"include_usage": True}],
    "top_k": [-1, 0, None],
    "top_p": [None],
    "min_p": [0, 0.0],
    "repetition_penalty": [1, 1.0],
    "length_penalty": [1, 1.0],
    "n": [1, None],
    "best_of": [1],
    "skip_special_tokens": [True, False],
    "spaces_between_special_tokens": [True],
    "ignore_eos": [False],
    "min_tokens": [0],
    "stop": [None, []],
    "stop_token_ids": [None, []],
    "bad_words": [[]],
    "echo": [False],
    "add_generation_prompt": [True],
    "continue_final_message": [False],
    "include_reasoning": [True],
    "chat_template_kwargs": [None, {}, {"truncate_history_thinking": True}, {"of_tomorrow": 1}],
    "response_format": [None, {"type": "text"}],
    "structured_outputs": [None, {}],
    "guided_json": [None],
    "vllm_xargs": [{}],
    "moderation": [None],
    "web_search_options": [None],
    "a_field_of_tomorrow": [None, 1, {"deep": [1]}],
    "keep_alive": ["5m"],
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_asks_for_nothing_changes_nothing(name):
    for value in NEUTRAL[name]:
        found = parsed(**{name: value})
        assert found.question == PLAIN.question, value


ROBOT = {"role": "assistant", "content": "A cup."}


@pytest.mark.parametrize(
    ("role", "more"),
    [
        ("user", {"name": "ann"}),
        ("user", {"cache_control": {"type": "ephemeral"}}),
        ("user", {"a_field_of_tomorrow": [1]}),
        ("assistant", {"refusal": None, "annotations": [], "audio": None, "function_call": None}),
        ("assistant", {"tool_calls": None}),
        ("assistant", {"tool_calls": []}),
    ],
)
def test_what_a_message_has_besides_changes_nothing(role, more):
    messages = [USER, ROBOT, USER]
    k = 0 if role == "user" else 1
    said = [*messages[:k], {**messages[k], **more}, *messages[k + 1 :]]
    assert parsed(messages=said).question == parsed(messages=messages).question


def test_what_was_ignored_is_named_once_and_without_what_a_client_wrote():
    found = parsed(
        store=True,
        messages=[{**USER, "name": "a"}, {**USER, "name": "b"}],
        **{"evil\r\nSet-Cookie: x": 1, "user": None},
    )
    assert found.unheard == ["messages[].name", "store", "evil\r\nSet-Cookie: x"]
    assert told(found.unheard) == {HEADER: "messages[].name, store, evil??Set-Cookie??x"}
    assert told([]) == {}
    many = told([f"f{k}" for k in range(99)])[HEADER]
    assert many.startswith("f0, f1, ")
    assert many.endswith(", ...")
    assert len(told(["x" * 100_000])[HEADER]) < 100


def test_what_was_ignored_is_logged_once_and_not_without_end(monkeypatch, caplog):
    monkeypatch.setattr("edge.serve.fields._logged", set())
    caplog.set_level("INFO", logger="edge.serve.fields")
    told(["store", "messages[].name", "store"])
    told(["store"])
    assert caplog.messages == [
        "request=field_ignored field=store",
        "request=field_ignored field=messages[].name",
    ]
    told([f"f{k}" for k in range(MAX_LOGGED)])
    told(["one_more"])
    assert len(caplog.messages) == MAX_LOGGED
    assert caplog.messages[-1] == f"request=field_ignored field=f{MAX_LOGGED - 3}"


def test_the_header_tells_of_so_many_and_of_so_much():
    names = [f"f{k}" for k in range(MAX_TOLD)]
    assert told(names)[HEADER] == ", ".join(names)
    assert told([*names, "more"])[HEADER] == ", ".join([*names, "..."])
    assert told(["x" * 99])[HEADER] == "x" * 64


# What would change the answer.


@pytest.mark.parametrize(
    ("fields", "thing", "code"),
    [
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"ignore_eos": True}, "ignore_eos", "unsupported_value"),
        ({"min_tokens": 3}, "min_tokens", "unsupported_value"),
        ({"min_tokens": False}, "min_tokens", "unsupported_value"),
        ({"use_beam_search": True}, "use_beam_search", "unsupported_value"),
        ({"length_penalty": 1.5}, "length_penalty", "unsupported_value"),
        ({"echo": True}, "echo", "unsupported_value"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "unsupported_value"),
        ({"chat_template": "x"}, "chat_template", "unsupported_parameter"),
        (
            {"chat_template_kwargs": {"truncate_history_thinking": False}},
            "chat_template_kwargs.truncate_history_thinking",
            "unsupported_value",
        ),
        ({"messages": [USER, {**ROBOT, "audio": {"id": "a"}}, USER]}, "messages[1].audio", None),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", None),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]", None),
        ({"edge": {"remembr": True}}, "edge.remembr", "unknown_parameter"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"frequency_penalty": "1"}, "frequency_penalty", "invalid_type"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"min_p": 1.5}, "min_p", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 2, "edge": {"remember": True}}, "edge.remember", "invalid_value"),
        ({"n": 2, "edge": {"consistency": True}}, "edge.consistency", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{**USER, "content": [{"type": "file", "file": {}}]}]}, None, None),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(fields, thing, code):
    error = refused(**fields)
    if thing is not None:
        assert error.thing.startswith(thing)
    if code is not None:
        assert error.code == code
    assert error.remedy


@pytest.mark.parametrize(
    ("fields", "thing", "among"),
    [
        ({"reasoning_effort": "very"}, "reasoning_effort", "'xhigh'"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "['function']"),
        ({"messages": [{**USER, "content": [{"type": "image"}]}]}, None, "'image_url'"),
        ({"messages": [{**USER, "role": "critic"}]}, "messages[0].role", "'user'"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    ],
)
def test_what_may_be_sent_instead_is_said(fields, thing, among):
    error = refused(**fields)
    assert thing is None or error.thing == thing
    assert error.remedy.startswith("send one of [")
    assert among in error.remedy


URLS = ("http://x/a.png", "https://x/a.png", "file:///etc/passwd", "ftp://x", "/etc/passwd", "")


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "part",
    [
        lambda url: {"type": "image_url", "image_url": {"url": url}},
        lambda url: {"type": "image_url", "image_url": url},
        lambda url: {"type": "input_image", "image_url": url},
        lambda url: {"type": "audio_url", "audio_url": {"url": url}},
    ],
)
def test_nothing_is_fetched(part, url):
    error = refused(messages=[{"role": "user", "content": [part(url)]}])
    assert "the service fetches nothing" in error.problem
    assert "itself" in error.remedy


# What is honoured.


def test_settings_of_sampling():
    found = parsed(
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        repetition_penalty=1.5,
        min_p=0.125,
        logit_bias={"7": -100, "9": 2.5},
        seed=-1,
        top_k=-1,
        temperature=1,
        logprobs=True,
        top_logprobs=2,
        n=3,
    ).question
    assert found.sampling == Sampling(
        temperature=1.0,
        seed=(1 << 64) - 1,
        min_p=0.125,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        repetition_penalty=1.5,
        logit_bias=((7, -100.0), (9, 2.5)),
    )
    assert (found.n_alternatives, found.n_choices) == (2, 3)
    assert parsed(logprobs=True).question.n_alternatives == 0
    assert PLAIN.question.n_alternatives is None


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_an_effort_turns_thinking_on_and_the_template_has_the_last_word(effort):
    assert parsed(reasoning_effort=effort).question.thinking == (effort != "none")
    off = parsed(reasoning_effort=effort, chat_template_kwargs={"enable_thinking": False})
    assert not off.question.thinking
    assert parsed(enable_thinking=True).question.thinking
    assert not parsed(enable_thinking=False, reasoning_effort=effort).question.thinking


def test_more_tokens_than_there_can_be_are_cut_to_those():
    most = CONFIG.context.max_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        assert parsed(**{name: 10**9}).question.max_tokens == most
        assert parsed(**{name: 7}).question.max_tokens == 7


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("messages", "roles"),
    [
        ([SYSTEM, USER, SYSTEM], ["system", "user", "system"]),
        ([USER, ROBOT, {**SYSTEM, "role": "developer"}, USER], None),
        ([SYSTEM, SYSTEM, USER], ["system", "system", "user"]),
        ([SYSTEM], ["system", "user"]),
        ([USER, ROBOT], ["user", "assistant"]),
        ([ROBOT, USER], ["assistant", "user"]),
        ([USER, {"role": "assistant"}, USER], ["user", "assistant", "user"]),
        ([USER, {"role": "assistant", "content": None}, USER], ["user", "assistant", "user"]),
    ],
)
def test_messages_in_any_order(messages, roles):
    found = [message.role for message in parsed(messages=messages).question.messages]
    assert found == (roles or ["user", "assistant", "system", "user"])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        (["a", {"type": "input_text", "text": "b"}], "a\nb"),
        ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "a"),
        ([], ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("role", ["user", "system", "developer", "tool", "assistant"])
def test_content_in_parts(role, content, text):
    call = {"id": "1", "type": "function", "function": {"name": "x", "arguments": "{}"}}
    before = {"role": "assistant", "content": None, "tool_calls": [call]}
    found = parsed(messages=[USER, before, {"role": role, "content": content}, USER])
    assert found.question.messages[2].content == text


@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "go"}}]},
        {"tool_calls": [{"id": "1", "function": {"name": "go", "arguments": ""}, "index": 0}]},
        {"tool_calls": [{"function": {"name": "go", "arguments": {}}}], "content": None},
        {"function_call": {"name": "go", "arguments": "{}"}, "content": None},
    ],
)
def test_calls_in_a_history(call):
    result = {"role": "tool", "tool_call_id": "1", "content": "done", "name": "go"}
    found = parsed(messages=[USER, {"role": "assistant", **call}, result]).question.messages
    assert found[1] == Message("assistant", "", (), (ToolCall("go", {}),))
    assert found[2] == Message("tool", "done")


def test_half_an_emoji_in_a_call_does_not_end_a_conversation():
    call = {"name": "say", "arguments": '{"text": "hi \\ud83d", "\\ude00": 1}'}
    said = {"role": "assistant", "tool_calls": [{"id": "1", "function": call}]}
    arguments = parsed(messages=[USER, said, USER]).question.messages[1].calls[0].arguments
    assert arguments == {"text": "hi \ufffd", "\ufffd": 1}


def test_functions_are_tools_of_old():
    function = {"name": "go", "description": "Go.", "parameters": {"type": "object"}}
    old = parsed(functions=[function], function_call={"name": "go"})
    tools = [{"type": "function", "function": function}]
    choice = {"type": "function", "function": {"name": "go"}}
    assert old.question == parsed(tools=tools, tool_choice=choice).question
    assert old.question.grammar
    assert old.show.as_function
    result = {"role": "function", "name": "go", "content": "done"}
    said = {"role": "assistant", "content": None, "function_call": {"name": "go"}}
    assert parsed(messages=[USER, said, result]).question.messages[2] == Message("tool", "done")


def test_some_tools_are_allowed():
    tools = [{"type": "function", "function": {"name": name}} for name in ("go", "stop")]
    named = [{"type": "function", "function": {"name": "stop"}}]

    def asked(mode: str) -> Any:
        allowed = {"mode": mode, "tools": named}
        return parsed(
            tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}
        ).question

    assert asked("auto") == parsed(tools=tools[1:]).question
    assert asked("required") == parsed(tools=tools[1:], tool_choice="required").question
    named[0]["function"]["name"] = "fly"
    with pytest.raises(ProtocolError, match="not given"):
        asked("auto")


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"structured_outputs": {"regex": "a+"}}, {"type": "regex", "regex": "a+"}),
        ({"guided_regex": "a+"}, {"type": "regex", "regex": "a+"}),
        ({"structured_outputs": {"choice": ["a"]}}, {"type": "choice", "choice": ["a"]}),
        ({"guided_choice": ["a"]}, {"type": "choice", "choice": ["a"]}),
        ({"structured_outputs": {"json_object": True}}, {"type": "json_object"}),
        (
            {"structured_outputs": {"json": {"type": "integer"}}},
            {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
        ),
        (
            {"guided_json": '{"type": "integer"}'},
            {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
        ),
    ],
)
def test_vllms_forms_of_a_format(fields, same):
    assert parsed(**fields).question == parsed(response_format=same).question
    assert refused(**fields, response_format={"type": "json_object"} | same)


def test_a_schema_in_a_text_is_an_object():
    found = refused(guided_json="[1]")
    assert str(found) == "structured_outputs.json: is list; send a JSON object"


# Bodies of clients that exist.

OPEN_WEBUI = {
    "stream": True,
    "model": MODEL,
    "messages": [SYSTEM, USER],
    "stream_options": {"include_usage": True},
    "temperature": 0.8,
    "top_p": 0.9,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "max_tokens": 4096,
    "seed": None,
    "stop": None,
    "logit_bias": None,
    "reasoning_effort": None,
    "session_id": "s",
    "chat_id": "c",
    "id": "m",
    "background_tasks": {"title_generation": True},
    "features": {"web_search": False},
    "metadata": {"user_id": "u"},
}
LIBRE_CHAT = {
    "model": MODEL,
    "temperature": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_p": 1,
    "stream": True,
    "user": "66f",
    "messages": [
        {**SYSTEM, "name": "instructions"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        {"role": "user", "content": "and?"},
    ],
    "stop": ["||>", "\nUser:", "<|diff_marker|>"],
}
LANGCHAIN = {
    "model": MODEL,
    "messages": [USER, {**ROBOT, "name": None, "tool_calls": []}, USER],
    "n": 1,
    "stream": False,
    "parallel_tool_calls": True,
    "logprobs": False,
}


@pytest.mark.parametrize("body", [OPEN_WEBUI, LIBRE_CHAT, LANGCHAIN])
def test_bodies_of_clients_that_exist(tmp_path, body):
    path = tmp_path / "edge.sock"
    transport = httpx2.HTTPTransport(uds=str(path))
    with (
        served(path, ScriptedSession(answer("A cup."))),
        httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client,
    ):
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert "A cup." in reply.text
    assert ("user" in body) == ("user" in reply.headers.get(HEADER, ""))


def test_openais_own_message_can_be_sent_back_as_it_dumps_it(tmp_path):
    path = tmp_path / "edge.sock"
    transport = httpx2.HTTPTransport(uds=str(path))
    session = ScriptedSession(answer("A cup.", reasoning="Hm."))
    with (
        served(path, session),
        openai.OpenAI(
            base_url="http://edge/v1", api_key="x", http_client=httpx2.Client(transport=transport)
        ) as client,
    ):
        first = client.chat.completions.create(model=MODEL, messages=[USER])
        dumped = first.choices[0].message.model_dump()
        assert {"refusal", "annotations", "audio", "function_call"} <= dumped.keys()
        client.chat.completions.create(model=MODEL, messages=[USER, dumped, USER])
    assert session.questions[1].messages[1] == Message("assistant", "A cup.", reasoning="Hm.")


# The walk.


class Leaf(msgspec.Struct, tag="leaf"):
    kept: int = 0
    dropped: typing.Annotated[Any, ignored("Why.")] = None


class Other(msgspec.Struct, tag="other"):
    kept: int = 0
    wrong: typing.Annotated[Any, unless(0, [], why="Why.")] = None


class Tree(msgspec.Struct):
    leaves: list[str | Leaf | Other] | None = None
    one: Leaf | None = None


LEAF = st.fixed_dictionaries(
    {"type": st.just("leaf")},
    optional={"kept": st.integers(0, 9), "dropped": st.integers(), "more": st.none() | st.text()},
)


@given(st.lists(LEAF | st.text(max_size=3)), LEAF)
def test_the_walk_names_exactly_what_has_no_effect(leaves, one):
    found, unheard = settle({"leaves": leaves, "one": one}, Tree)
    expected = {
        f"{place}.{name}"
        for place, each in [*(("leaves[]", leaf) for leaf in leaves), ("one", one)]
        if isinstance(each, dict)
        for name in ("dropped", "more")
        if each.get(name) not in (None, "")
    }
    assert set(unheard) == expected
    assert len(unheard) == len(set(unheard))
    assert found.one is not None
    assert found.one.kept == one.get("kept", 0)


def test_false_is_not_zero():
    other = {"type": "other", "wrong": 0}
    assert settle({"leaves": [other]}, Tree)[1] == []
    with pytest.raises(ProtocolError, match=r"leaves\[0\].wrong: is false"):
        settle({"leaves": [{**other, "wrong": False}]}, Tree)


def test_a_crowd_of_wrong_items_is_refused_before_each_is_looked_at(monkeypatch):
    def looked(*_):
        raise AssertionError("each of them was looked at")

    monkeypatch.setattr(fields, "_unheard", looked)
    with pytest.raises(ProtocolError, match="messages"):
        fields.settle({"messages": [[]] * 20_000}, ChatBody)


def test_tools_win_over_what_they_were_before():
    tools = [{"type": "function", "function": {"name": "go"}}]
    functions = [{"name": "stop"}]
    found = parsed(tools=tools, functions=functions, function_call="none")
    assert found.question == parsed(tools=tools).question
    assert not found.show.as_function
    assert found.show.one_call


def test_the_log_has_each_ignored_field_once_and_not_all_that_there_are(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(fields, "_logged", set())
    monkeypatch.setattr(fields, "MAX_LOGGED", 3)
    assert fields.told(["a", "b"]) == {"X-Edge-Ignored": "a, b"}
    assert fields.told(["b", "c", "d"]) == {"X-Edge-Ignored": "b, c, d"}
    assert [record.getMessage()[-1] for record in caplog.records] == ["a", "b", "c"]
    many = [f"f{n}" for n in range(17)]
    assert fields.told(many[:16]) == {"X-Edge-Ignored": ", ".join(many[:16])}
    assert fields.told(many) == {"X-Edge-Ignored": ", ".join([*many[:16], "..."])}
    assert fields.told(["x" * 99 + "é"]) == {"X-Edge-Ignored": "x" * 64}
    assert fields.told(["a\nb é[]"]) == {"X-Edge-Ignored": "a?b??[]"}
    assert fields.told([]) == {}


def test_a_refused_value_is_shown_as_far_as_a_line_goes():
    found = refused(audio={"voice": "x" * 99})
    shown = json.dumps({"voice": "x" * 99})[:40]
    assert str(found).startswith(f"audio: is {shown}: The service does not speak; leave it out")
