"""Requests in, questions out, without a server."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve.scripted import DONE, MODEL, REPORT, TIMELINE
from serve.traffic import validator

from edge.config import Answer, Config, for_model
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.serve.chat import ChatRequest, parse_request
from edge.serve.completion import Response, stages_of
from edge.serve.report import report_of
from edge.serve.request import ModelNotFoundError
from edge.session.turn import Message, TextDelta, ThinkingBudget
from edge.types import Stages

OWN = Sampling(0.6, 0.95, 20)
USER = {"role": "user", "content": "What is on the table?"}


def parsed(config: Config | None = None, **fields: object) -> ChatRequest:
    body = {"messages": [USER], **fields}
    config = for_model(config or Config(), 131_072, 262_144)
    return parse_request(json.dumps(body).encode(), MODEL, config, OWN)


def refused(**fields: object) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        parsed(**fields)
    return caught.value


def test_what_a_request_leaves_open_comes_from_the_configuration():
    config = Config(answer=Answer(thinking=True, temperature=0.7, top_p=0.9, max_tokens=99))
    request = parsed(config, temperature=None, stop=None, stream=None)
    assert request.question.sampling == Sampling(0.7, 0.9, OWN.top_k, None)
    assert (request.question.max_tokens, request.question.thinking) == (99, True)
    assert request.question.messages == (Message("user", "What is on the table?"),)
    assert (request.question.stop, request.stream, request.include_usage) == ((), False, False)


@pytest.mark.parametrize("thinking", [False, True])
def test_an_answer_is_greedy_but_thinking_samples_as_the_checkpoint_says(thinking):
    request = parsed(chat_template_kwargs={"enable_thinking": thinking})
    assert request.question.sampling == (OWN if thinking else Sampling())


def test_every_setting_of_a_request():
    request = parsed(
        model=MODEL,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        seed=11,
        max_tokens=5,
        stop=["a", "b"],
        n=1,
        user="robot-1",
        chat_template_kwargs={"enable_thinking": True},
        edge={"recall_s": [30, 2.5]},
    )
    assert parsed(edge={"remember": True}).question.remember
    assert not request.question.remember
    assert not parsed().question.remember
    assert request.question.recall_s == (30, 2.5)
    assert request.question.sampling == Sampling(0.5, 0.25, 3, 11)
    assert (request.question.max_tokens, request.question.thinking) == (5, True)
    assert (request.question.stop, request.include_usage) == (("a", "b"), True)
    assert parsed(max_completion_tokens=6, max_tokens=5).question.max_tokens == 6
    assert parsed(stop="end").question.stop == ("end",)


def test_zero_overrides_a_default():
    config = Config(answer=Answer(thinking=True, temperature=0.7))
    template = {"enable_thinking": False}
    question = parsed(config, temperature=0, chat_template_kwargs=template).question
    assert (question.sampling.temperature, question.thinking) == (0.0, False)


def test_a_conversation():
    parts = [{"type": "text", "text": "Where"}, {"type": "text", "text": "now?"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "A cup.", "reasoning_content": "I see it."},
        {"role": "user", "content": parts},
    ]
    assert parsed(messages=messages).question.messages == (
        Message("system", "Be brief."),
        Message("user", "What is on the table?"),
        Message("assistant", "A cup.", reasoning="I see it."),
        Message("user", "Where\nnow?"),
    )


UNKNOWN = {"type": "film_url", "film_url": {"url": "data:video/mp4;base64,AA=="}}


@pytest.mark.parametrize(
    ("fields", "thing", "said"),
    [
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": None}, "messages", "got `null`"),
        ({"messages": [{**USER, "role": "robot"}]}, "messages[0].role", "'robot'"),
        ({"messages": [{**USER, "content": [3]}]}, "messages[0].content[0]", "got `int`"),
        ({"messages": [{**USER, "content": [{}]}]}, "messages[0].content[0].type", "is missing"),
        (
            {"messages": [{**USER, "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
            "got `int`",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "text", "text": "a"}, UNKNOWN]}]},
            "messages[0].content[1].type",
            "'film_url'",
        ),
        ({"temperature": 2.5}, "temperature", "<= 2.0"),
        ({"temperature": True}, "temperature", "got `bool`"),
        ({"top_p": 0}, "top_p", "> 0.0"),
        ({"top_k": -2}, "top_k", ">= -1"),
        ({"n": 9}, "n", "<= 8"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "length <= 4"),
        ({"stop": ""}, "stop", "length >= 1"),
        ({"stop": "x" * 257}, "stop", "length <= 256"),
        ({"stop": ["a", "x" * 257]}, "stop[1]", "length <= 256"),
        ({"edge": {"recall_s": [1, 2]}}, "edge.recall_s", "[1.0, 2.0]"),
        ({"edge": {"recall_s": [2, 1], "remember": True}}, "edge.remember", "edge.recall_s"),
        ({"edge": {"recall_s": [-1, 2]}}, "edge.recall_s[0]", ">= 0"),
        ({"edge": {"recal_s": [2, 1]}}, "edge.recal_s", "not a known field"),
    ],
)
def test_what_cannot_be_served_is_named(fields, thing, said):
    error = refused(**fields)
    assert error.thing == thing
    assert said in error.problem


def test_a_wrong_model_is_told_the_right_one():
    error = refused(model="gpt-4o")
    assert isinstance(error, ModelNotFoundError)
    assert str(error) == f"model: 'gpt-4o' is not served here; ask for '{MODEL}'"
    assert parsed(model="").question == parsed(model=None).question == parsed().question


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"nonsense", b"\xff\xfe", b'{"user": "\xed\xa0\x80"}', b"[" * 99999]
)
def test_what_is_not_json_is_refused(body):
    with pytest.raises(ProtocolError, match="body"):
        parse_request(body, MODEL, Config(), OWN)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=3))
def test_no_value_of_any_field_escapes(value):
    for name in ("messages", "model", "stop", "temperature", "seed", "max_tokens", "stream"):
        body = json.dumps({"messages": [USER], name: value}).encode()
        with contextlib.suppress(ProtocolError):
            assert isinstance(parse_request(body, MODEL, Config(), OWN), ChatRequest)


def test_a_completion():
    deltas = [TextDelta("Hm", reasoning=True), TextDelta("A c"), TextDelta("up ☕")]
    response = Response(MODEL)
    completion = response.completion(deltas, DONE)
    assert completion["id"] == response.id
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", response.id)  # as OpenAI's begin
    assert completion["object"] == "chat.completion"
    assert completion["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "A cup ☕",
                "reasoning": "Hm",
                "reasoning_content": "Hm",
                "refusal": None,
            },
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert completion["usage"] == {
        "prompt_tokens": 330,
        "completion_tokens": 5,
        "total_tokens": 335,
        "prompt_tokens_details": {"cached_tokens": 321},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_an_answer_says_how_sure_how_fresh_and_on_what_it_stands():
    closing, completion = (
        msgspec.json.decode(msgspec.json.encode(whole))
        for whole in (*Response(MODEL).closing(DONE), Response(MODEL).completion([], DONE))
    )
    assert closing["edge"] == completion["edge"] == REPORT
    validator("edge_answer").validate(REPORT)
    alone = replace(DONE, timeline=replace(TIMELINE, captured_ns=None), confidence=None)
    report = msgspec.to_builtins(report_of(alone))
    validator("edge_answer").validate(report)
    assert (report["newest_capture_age_ms"], report["confidence"]) == (None, None)


def test_our_own_message_can_be_sent_back():
    message = Response(MODEL).completion([TextDelta("A cup.")], DONE)["choices"][0]["message"]
    assert parsed(messages=[USER, message, USER]).question.messages[1].content == "A cup."


def test_the_stages_of_a_segment_follow_each_other():
    at_ms = {"captured": 1000, "taken": 1010, "features": 1030, "encoded": 1060, "prefilled": 1100}
    times = {f"{stage}_ns": ms * 1_000_000 for stage, ms in at_ms.items()}
    told = stages_of(Stages("video", **times, n_tokens=7, n_pruned=3), 500_000_000)
    assert told == {
        "modality": "video",
        "n_tokens": 7,
        "n_pruned": 3,
        "captured_s": 0.5,
        "late_ms": 10.0,
        "features_ms": 20.0,
        "encode_ms": 30.0,
        "prefill_ms": 40.0,
    }


def test_a_thought_that_was_the_answer_is_no_reasoning():
    deltas = [TextDelta("Red.", reasoning=True), TextDelta("Red.", restated=True)]
    (choice,) = Response(MODEL).completion(deltas, DONE)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Red.", "refusal": None}


def test_reasoning_is_told_and_taken_by_both_its_names():
    (chunk,) = Response(MODEL).chunks(TextDelta("Hm", reasoning=True))
    (choice,) = chunk["choices"]
    assert choice["delta"] == {"reasoning": "Hm", "reasoning_content": "Hm"}
    for name in ("reasoning", "reasoning_content"):
        messages = [USER, {"role": "assistant", "content": "A", name: "Hm"}, USER]
        question = parsed(messages=messages).question
        assert question.messages[1] == Message("assistant", "A", reasoning="Hm")


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({}, None),
        ({"reasoning_budget": 100}, ThinkingBudget(100, 1024)),
        ({"chat_template_kwargs": {"reasoning_budget": 100}}, ThinkingBudget(100, 1024)),
        ({"thinking_token_budget": 100}, ThinkingBudget(100)),
        ({"thinking_token_budget": 150, "reasoning_budget": 100}, ThinkingBudget(100, 50)),
        ({"thinking_token_budget": 50, "reasoning_budget": 100}, ThinkingBudget(50)),
        ({"reasoning_budget": 0}, ThinkingBudget(0)),
        ({"reasoning_budget": -1}, ThinkingBudget(-1)),
        ({"thinking_token_budget": -1}, ThinkingBudget(-1)),
        ({"thinking_token_budget": -1, "reasoning_budget": 5}, ThinkingBudget(5, 1024)),
        ({"thinking_token_budget": 5, "reasoning_budget": -1}, ThinkingBudget(5)),
    ],
)
def test_a_thought_may_be_given_a_budget(body, budget):
    assert parsed(**body).question.thinking_budget == budget


@pytest.mark.parametrize("value", [-2, "many", 1.5])
def test_a_budget_is_a_number_of_tokens(value):
    for name in ("reasoning_budget", "thinking_token_budget"):
        with pytest.raises(ProtocolError, match=name):
            parsed(**{name: value})
