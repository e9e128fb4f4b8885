"""The objects that answer a chat completion, and what health says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from serve.scripted import DONE, MS

from edge.serve.completion import Response, Shown, answer_of, health_of, stages_of
from edge.session.turn import Chance, ChoiceDone, Likely, Status, TextDelta, ToolCall
from edge.types import Stages

CHANCE = Chance(Likely(b"a", -0.5), (Likely(b"a", -0.5), Likely(b"\xc3", -1.5)))
SHOWN = {
    "content": [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\ufffd", "logprob": -1.5, "bytes": [195]},
        ]},
    ],
    "refusal": None,
}  # fmt: skip
STAGES = Stages("video", 1000 * MS, 1002 * MS, 1005 * MS, 1035 * MS, 1075 * MS, 15, 3)


def choices(chunks):
    return [chunk["choices"][0] for chunk in chunks]


def test_chances_come_with_the_text_that_they_complete_or_at_the_end():
    response = Response("m")
    assert list(response.chunks(CHANCE)) == []
    (told,) = choices(response.chunks(TextDelta("a")))
    assert (told["delta"], told["logprobs"]) == ({"content": "a"}, SHOWN)
    assert list(response.chunks(CHANCE)) == []
    rest, end = choices(response.closing(DONE))
    assert (rest["delta"], rest["logprobs"], rest["finish_reason"]) == (
        {"content": ""},
        SHOWN,
        None,
    )
    assert (end["delta"], end["logprobs"], end["finish_reason"]) == ({}, None, "stop")
    assert [one["finish_reason"] for one in choices(response.closing(DONE))] == ["stop"]


def test_answers_of_several_are_numbered():
    response = Response("m")
    told = choices(
        [
            response.opening(),
            *response.chunks(TextDelta("a")),
            *response.chunks(ChoiceDone("length", None)),
            *response.chunks(ToolCall("go", {})),
            *response.closing(DONE),
        ]
    )
    assert [one["index"] for one in told] == [0, 0, 0, 1, 1, 1]
    assert [one["finish_reason"] for one in told] == [
        None,
        None,
        "length",
        None,
        None,
        "tool_calls",
    ]
    assert told[0]["delta"] == told[3]["delta"] == {"role": "assistant", "content": ""}
    whole = response.completion([TextDelta("a"), ChoiceDone("length", None), TextDelta("b")], DONE)
    assert [one["message"]["content"] for one in whole["choices"]] == ["a", "b"]
    assert [one["finish_reason"] for one in whole["choices"]] == ["length", "stop"]


@pytest.mark.parametrize(
    ("reason", "n_calls", "as_function", "told"),
    [
        ("stop", 0, False, "stop"),
        ("stop", 1, False, "tool_calls"),
        ("stop", 1, True, "function_call"),
        ("length", 1, False, "length"),
        ("deadline", 0, False, "length"),
        ("deadline", 1, True, "length"),
        ("cancelled", 0, False, "cancelled"),
    ],
)
def test_why_an_answer_ended(reason, n_calls, as_function, told):
    calls, done = [ToolCall("go", {"a": 1})] * n_calls, replace(DONE, finish_reason=reason)
    response = Response("m", Shown(as_function=as_function))
    (choice,) = response.completion(calls, done)["choices"]
    assert choice["finish_reason"] == told
    chunks = [chunk for call in calls for chunk in response.chunks(call)]
    assert choices(response.closing(done))[-1]["finish_reason"] == told
    function = {"name": "go", "arguments": '{"a": 1}'}
    for message in (choice["message"], *(one["delta"] for one in choices(chunks))):
        if not n_calls:
            assert message["content"] == ""
        elif as_function:
            assert message["function_call"] == function
        else:
            (call,) = message["tool_calls"]
            assert (call["type"], call["function"]) == ("function", function)


@pytest.mark.parametrize("one_call", [True, False])
def test_one_call_or_all_of_them(one_call):
    calls = [ToolCall("go", {}), ToolCall("stop", {})]
    response = Response("m", Shown(one_call=one_call))
    (choice,) = response.completion(calls, DONE)["choices"]
    told = [c for call in calls for one in choices(response.chunks(call))
            for c in one["delta"]["tool_calls"]]  # fmt: skip
    names = ["go"] if one_call else ["go", "stop"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == names
    assert [(call["index"], call["function"]["name"]) for call in told] == [*enumerate(names)]
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("shown", [True, False])
def test_thinking_is_shown_by_both_of_its_names_or_not(shown):
    response = Response("m", Shown(reasoning=shown))
    said = [TextDelta("hm", reasoning=True), TextDelta("b")]
    (choice,) = response.completion(said, DONE)["choices"]
    named = {"reasoning": "hm", "reasoning_content": "hm"} if shown else {}
    assert choice["message"] == {"role": "assistant", "content": "b", "refusal": None, **named}
    deltas = [one["delta"] for event in said for one in choices(response.chunks(event))]
    assert deltas == [named, {"content": "b"}][not shown :]
    # What was told as thinking was the answer: then it is told once.
    restated = [TextDelta("hm", reasoning=True), TextDelta("hm", restated=True)]
    (choice,) = response.completion(restated, DONE)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hm", "refusal": None}


def test_stages_answers_and_health():
    stages = {
        "modality": "video", "n_tokens": 15, "n_pruned": 3, "captured_s": 0.5, "late_ms": 2.0,
        "features_ms": 3.0, "encode_ms": 30.0, "prefill_ms": 40.0,
    }  # fmt: skip
    stage = replace(STAGES, n_tokens=15, n_pruned=3)
    assert stages_of(stage, 500 * MS) == stages
    times = DONE.timeline
    assert answer_of(DONE, times.asked_ns - 1500 * MS) == {
        "asked_s": 1.5,
        "finish_reason": "stop",
        "n_prompt_tokens": DONE.n_prompt_tokens,
        "n_completion_tokens": DONE.n_completion_tokens,
        "first_token_ms": 40.0,
        "finished_ms": 100.0,
    }
    status = Status(True, "m", 3, 9, {"answers": 1}, 2500 * MS, 500 * MS, (stage,), "open")
    assert health_of(status) == {
        "status": "ok", "problems": [], "ready": True, "model": "m", "n_context_tokens": 3,
        "max_context_tokens": 9, "uptime_s": 2.5, "counters": {"answers": 1}, "mode": "open",
        "recent": [stages],
    }  # fmt: skip
