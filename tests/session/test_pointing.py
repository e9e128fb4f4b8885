"""Answers that point at a place name a frame that was perceived, and no other."""

from __future__ import annotations

import json

import jsonschema
import pytest
from test_loop import chunk, drive, frame, make, put
from test_priorities import Journal
from write_schemas import FOLDER

from edge.clock import NS_PER_S
from edge.errors import CapacityError
from edge.model.constrain import fill_frames, grammar_of_schema, names_frames
from edge.model.sampling import Sampling
from edge.session.turn import Done, Failed, Message, Question

__all__ = ["make"]
POINT, BOX = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("point", "box"))


def asked(loop, schema, abstention=None, seed=0, **settings):
    """The answer, drawn at random so that it would name any frame that it may, and its end."""
    journal = Journal(loop)
    sampling = Sampling(temperature=1.0, seed=seed)
    grammar = grammar_of_schema(schema, abstention)
    question = Question((Message("user", "Where?"),), sampling, 80, grammar=grammar, **settings)
    loop.ask(question, lambda event: journal.events.append(("asked", event)))
    drive(loop)
    return journal.text("asked"), journal.of("asked")[-1]


def seen(loop, *numbers):
    for first in numbers:
        put(loop, [frame(first), frame(first + 1)])
        drive(loop)


@pytest.mark.parametrize("schema", [POINT, BOX])
def test_only_the_newest_frame_of_a_camera_can_be_named(make, schema):
    loop = make()
    seen(loop, 0, 2, 4)
    for seed in range(5):
        text, done = asked(loop, schema, seed=seed)
        assert done.finish_reason == "stop"
        answer = json.loads(text)
        jsonschema.validate(answer, schema)
        source, number = answer["frame"].split(":")
        assert (source, int(number)) == ("camera", 5)
        assert any(
            e.source == source and int(number) in e.frame_ids for e in done.timeline.evidence
        )
    seen(loop, 6)
    assert json.loads(asked(loop, schema)[0])["frame"] == "camera:7"


def test_of_a_recalled_past_it_is_the_newest_of_then(make):
    loop = make()
    seen(loop, 0, 2, 4)
    loop._clock.sleep_until(5 * NS_PER_S)
    text, done = asked(loop, BOX, recall_s=(4.0, 3.5))
    assert json.loads(text)["frame"] == "camera:3"
    assert [evidence.frame_ids for evidence in done.timeline.evidence] == [(2, 3)]


def test_a_frame_that_may_be_named_is_evidence_however_much_was_heard_since(make):
    loop = make()
    seen(loop, 0)
    for first in range(0, 18, 3):
        put(loop, chunks=[chunk(first + i) for i in range(3)])
        drive(loop)
    _, plain = asked(loop, {"type": "boolean"})
    assert {evidence.source for evidence in plain.timeline.evidence} == {"microphone"}
    text, done = asked(loop, BOX)
    assert json.loads(text)["frame"] == "camera:1"
    assert done.timeline.evidence[0].frame_ids == (0, 1)
    assert done.timeline.evidence[1:] == plain.timeline.evidence


def test_the_frames_are_those_of_the_answers_beginning(make):
    """Another frame arrives while the answer gives way: what was said so far must stay true."""
    loop = make()
    seen(loop, 0)
    journal = Journal(loop)
    grammar = grammar_of_schema(BOX)
    question = Question((Message("user", "Where?"),), Sampling(), 80, grammar=grammar)
    loop.ask(question, lambda event: journal.events.append(("asked", event)))
    while not journal.text("asked"):
        assert loop.step()
    loop._answers.give_way()
    for one in (frame(2), frame(3)):
        loop._senses[1].put(one)
    while loop._context.newest_looks()[-1].frame_ids != (2, 3):
        assert loop._perception.step()
    drive(loop)
    assert json.loads(journal.text("asked"))["frame"] == "camera:1"
    assert any(1 in e.frame_ids for e in journal.of("asked")[-1].timeline.evidence)


def test_where_nothing_was_seen_an_answer_abstains_or_is_refused(make):
    loop = make()
    text, done = asked(loop, BOX, "unknown")
    assert (json.loads(text), done.finish_reason) == ("unknown", "stop")
    _, refused = asked(loop, BOX)
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, CapacityError)
    assert "allow the answer to abstain" in str(refused.error)
    # An answer that need not name one is free to say so.
    text, done = asked(loop, {"type": "array", "items": BOX["$defs"]["Box"]})
    assert isinstance(done, Done)
    assert json.loads(text) == []


def test_it_may_abstain_though_something_was_seen(make):
    loop = make()
    seen(loop, 0)
    said = {asked(loop, BOX, "u", seed=seed)[0] == '"u"' for seed in range(12)}
    assert True in said


def test_any_name_of_a_camera_can_be_named():
    names = ['a "b" \\ é:1', "front:22"]
    grammar = fill_frames(grammar_of_schema({"type": "string", "format": "edge.frame"}), names)
    assert not names_frames(grammar)
    schema = grammar.partition("%json ")[2]
    assert json.loads(schema)["enum"] == names
    untouched = grammar_of_schema({"type": "string"})
    assert not names_frames(untouched)
