"""Notes: written before a rebase, behind the anchor after it, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from test_context import ANCHOR, SEPARATOR, decoded, perceived
from test_loop import drive, frame, make, put

from edge.errors import CapacityError, ConfigurationError
from edge.model.sampling import Sampling
from edge.session.context import LiveContext
from edge.session.notes import Noted
from edge.session.slot import Perceived
from edge.session.turn import Done, Message, Question
from edge.types import Evidence

__all__ = ["make"]
SETTINGS = {"max_tokens": 400, "keep_tokens": 120, "notes_tokens": 24}


class Seen:
    """Stands where a recorder stands."""

    problem = ""

    def __init__(self):
        self.events, self.counters = [], {}

    def begin(self):
        pass

    end = begin

    def took(self, *_):
        pass

    def outside(self, _name, read):
        return read()

    def saw(self, event):
        self.events.append(event)


def session(make, n_tubelets=16, ask_at=()):
    loop, seen = make(context=SETTINGS, answer={"max_tokens": 20}), Seen()
    loop._recorder = seen
    context, done = loop._context, []
    for i in range(n_tubelets):
        put(loop, [frame(2 * i), frame(2 * i + 1)])
        if i in ask_at:
            loop.ask(Question((Message("user", "Hello"),), Sampling(), 20), done.append)
        while loop.step():
            assert sum(segment.n_tokens for segment in context.ledger) == context.n_tokens
            assert context.n_tokens <= context.max_tokens
    return loop, [event for event in seen.events if isinstance(event, Noted)], done


def test_notes_stand_behind_the_anchor_after_a_rebase(make):
    loop, noted, _ = session(make)
    assert loop._context.n_rebases > 1
    assert len(noted) >= loop._context.n_rebases
    assert all(0 < notes.n_tokens <= SETTINGS["notes_tokens"] for notes in noted)
    anchor, notes, *rest = loop._context.ledger
    assert (anchor.evidence, notes.modality, notes.evidence.source) == (None, "text", "notes")
    assert {segment.modality for segment in rest} == {"video"}
    assert all(evidence.source != "notes" for evidence in loop._context.evidence())
    assert loop.status().counters["notes"] == len(noted)


def test_notes_are_the_same_every_time_and_whoever_asks_between(make):
    first, second = (session(make)[1] for _ in range(2))
    assert [notes.text for notes in first] == [notes.text for notes in second]
    asked, noted, done = session(make, ask_at=range(16))
    assert noted[0].text == first[0].text
    assert sum(isinstance(event, Done) for event in done) == 16
    assert asked._context.n_rebases > 1


def test_without_notes_nothing_is_written(make):
    loop = make(context={**SETTINGS, "notes_tokens": 0}, answer={"max_tokens": 20})
    for i in range(16):
        put(loop, [frame(2 * i), frame(2 * i + 1)])
        drive(loop)
    assert loop._context.n_rebases > 1
    assert "notes" not in loop.status().counters
    assert loop._context.ledger[1].modality == "video"


def test_a_state_rebased_with_notes_equals_a_fresh_prefill(engine):
    one = engine("wide")
    context = LiveContext(one, ANCHOR, SEPARATOR, max_tokens=300, keep_tokens=80, notes_tokens=10)
    rows = one.embed(np.arange(20, 28, dtype=np.int32))
    notes = Perceived("text", rows, Evidence("notes", 0, 0))
    context.note(notes)
    segments = [perceived(one, 25, seed) for seed in range(14)]
    for segment in segments:
        context.append(segment)
    assert context.n_rebases > 0
    fresh = LiveContext(one, ANCHOR, SEPARATOR, max_tokens=3000, keep_tokens=1000, notes_tokens=10)
    inside = [s.evidence for s in context.ledger[2:]]
    fresh.append(notes, *(s for s in segments if s.evidence in inside))
    assert fresh.ledger == context.ledger
    wanted = decoded(fresh)
    np.testing.assert_allclose(decoded(context), wanted, atol=2e-5 * abs(wanted).max())


def test_notes_have_a_bound(engine):
    one = engine("base")
    context = LiveContext(one, ANCHOR, SEPARATOR, max_tokens=300, keep_tokens=80, notes_tokens=4)
    rows = one.embed(np.arange(20, 28, dtype=np.int32))
    with pytest.raises(CapacityError, match="notes: have 8 tokens"):
        context.note(Perceived("text", rows, Evidence("notes", 0, 0)))
    with pytest.raises(ConfigurationError, match="and notes of 30"):
        LiveContext(one, ANCHOR, SEPARATOR, max_tokens=110, keep_tokens=80, notes_tokens=30)


def test_notes_are_written_one_at_a_time(make):
    """An append that finds no room forces a rebase while they are being written, after which others
    are wanted: begun at once, they would share their text."""
    loop = make(context=SETTINGS)
    loop._context.takes_notes = lambda: True
    loop._notes.write_if_wanted()
    loop._answers.step([])
    loop._notes.write_if_wanted()
    assert len(loop._answers) == 1
    while len(loop._answers):
        loop._answers.step([])
    loop._notes.write_if_wanted()
    assert len(loop._answers) == 1
