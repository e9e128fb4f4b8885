"""What goes wrong with one question ends that turn alone; the engine's failure ends all."""

from __future__ import annotations

import json
import logging
import re

import pytest
from test_loop import drive, make
from test_priorities import Journal

from edge.clock import NS_PER_S
from edge.errors import EngineError, TurnError
from edge.model import constrain
from edge.model.sampling import Sampling
from edge.model.tool_calls import tool_call_lark
from edge.session.turn import Done, Failed, Message, Question, TextDelta, ToolCall

__all__ = ["make"]
pytest_plugins = ["media"]

SPELLED = ["<s>bold</s>", "a<|im_end|>b", "<think>", "</tool_call>", "[INST]", "<image>", "<unk>"]


def said_in(make, grammar, **settings):
    events = []
    question = Question(
        (Message("user", "Which?"),), Sampling(1.5, seed=3), 60, grammar=grammar, **settings
    )
    loop = make()
    loop.ask(question, events.append)
    drive(loop)
    assert isinstance(events[-1], Done), events[-1]
    assert events[-1].finish_reason == "stop"
    return "".join(event.text for event in events if isinstance(event, TextDelta)), events


@pytest.mark.parametrize("text", SPELLED)
def test_what_spells_a_special_token_in_a_format_is_text(make, text):
    assert said_in(make, constrain.grammar_of_choice([text]))[0] == text
    assert said_in(make, constrain.grammar_of_regex(re.escape(text)))[0] == text
    assert json.loads(said_in(make, constrain.grammar_of_schema({"const": text}))[0]) == text
    properties = {"properties": {text: {"type": "boolean"}}, "required": [text]}
    named = {"type": "object", "additionalProperties": False, **properties}
    assert [*json.loads(said_in(make, constrain.grammar_of_schema(named))[0])] == [text]
    absent = constrain.grammar_of_regex("[ab]", text)
    assert said_in(make, absent)[0] in ("a", "b", text)


@pytest.mark.parametrize("text", ["<s>bold</s>", "</think>"])
def test_what_spells_a_special_token_in_a_tool_is_text(make, text):
    parameters = {"properties": {"t": {"enum": [text]}}, "required": ["t"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    grammar = constrain.grammar_of_lark("tools", tool_call_lark([tool]))
    text_of, events = said_in(make, grammar)
    assert text in text_of  # nobody but an operator calls: it is text
    assert not any(isinstance(event, ToolCall) for event in events)


def test_a_reply_that_spells_a_special_token_is_remembered_as_text(make, caplog):
    caplog.set_level(logging.WARNING)
    loop, events = make(), []
    n_before = loop._context.n_tokens
    grammar = constrain.grammar_of_choice(["a<|im_end|>b"])
    question = Question((Message("user", "?"),), Sampling(), 60, grammar=grammar, remember=True)
    loop.ask(question, events.append)
    drive(loop)
    assert isinstance(events[-1], Done)
    prompt = loop._answers._prompt
    ids = prompt.dialogue(question, "a<|im_end|>b", after_media=False)
    assert loop._context.n_tokens == n_before + len(ids)
    assert "dialogue=forgotten" not in caplog.text


class OddError(Exception):
    """Nobody expects it."""


def fail(*_, **__):
    raise OddError("of some\nkind")


@pytest.mark.parametrize(
    "place",
    [
        "edge.session.answer.Sampler.__init__",
        "edge.session.answer.encode_attached",
        "edge.session.answer.vocabulary",
        "edge.session.live_prompt.ChatTemplate.around_live",
        "edge.session.live_prompt.Tokenizer.encode",
        "edge.session.answer.Sampler.choose",
        "edge.session.answer.Constraint.allow",
        "edge.session.answer.Constraint.take",
        "edge.session.speech.Detokenizer.push",
        "edge.session.speech.StopTexts.push",
        "edge.session.speech.Detokenizer.flush",
    ],
)
def test_a_defect_met_by_one_question_ends_that_turn_alone(make, place, monkeypatch, caplog):
    loop = make()
    journal = Journal(loop)
    grammar = constrain.grammar_of_choice(["yes"])
    with monkeypatch.context() as patched:
        patched.setattr(place, fail)
        journal.ask("bad", grammar=grammar)
        drive(loop)
    error = journal.of("bad")[-1].error
    assert isinstance(error, TurnError)
    assert "(OddError: of some kind)" in str(error)
    assert "Traceback" in caplog.text
    journal.ask("good", grammar=grammar)
    drive(loop)
    assert journal.text("good") == "yes"


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_defect_in_the_end_of_an_answer_ends_that_turn_alone(make, how, monkeypatch):
    loop = make()
    journal = Journal(loop)
    turn = journal.ask("bad", 200, deadline_s=5.0)
    while not journal.of("bad"):
        loop.step()
    with monkeypatch.context() as patched:
        patched.setattr("edge.session.speech.Detokenizer.flush", fail)
        if how == "cancelled":
            turn.cancel()
        else:
            loop._clock.sleep_until(6 * NS_PER_S)
        drive(loop)
    assert isinstance(journal.of("bad")[-1], Failed)
    assert isinstance(journal.of("bad")[-1].error, TurnError)
    journal.ask("good")
    drive(loop)
    assert journal.done("good")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RuntimeError, ["Resource temporarily unavailable"]),
        (EngineError, ["logits", "hold a NaN", "verify"]),
    ],
)
def test_the_engines_own_failure_ends_the_service(make, kind, words, monkeypatch):
    def broken(*_):
        raise kind(*words)

    loop = make()
    journal = Journal(loop)
    monkeypatch.setattr("edge.engines.cpu.advance", broken)
    journal.ask("bad")
    with pytest.raises(kind, match=words[0]):
        drive(loop)
