"""A device has few states: what finds none free is refused or put off, and changes nothing else."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from bounded_engine import BoundedEngine
from test_context import assert_same, context_of, decoded, fresh_of, perceived
from test_conversation import SILENCE, SPEECH, robot
from test_loop import drive, frame, make, put
from test_priorities import Journal, until_begun

from edge.clock import NS_PER_S
from edge.errors import CapacityError
from edge.model.sampling import Sampling
from edge.senses.turns import MIN_SILENCE_BLOCKS
from edge.session.intake import Refused
from edge.session.turn import Done, Message, Question, Spoken, TextDelta
from edge.types import Picture

__all__ = ["make", "robot"]
pytest_plugins = ["media"]
SMALL = {"max_tokens": 400, "keep_tokens": 150}


def taken(engine):
    """All states that are free."""
    states = []
    while True:
        try:
            states.append(engine.new_state())
        except CapacityError:
            return states


def is_whole(context):
    return sum(segment.n_tokens for segment in context.ledger) == context.n_tokens


def test_a_rebase_that_finds_no_state_begins_when_one_is_free(engine):
    context, segments = context_of(engine("wide")), []
    others = taken(context.engine)
    while context.max_tokens - context.n_tokens >= 30:
        segments.append(perceived(context.engine, 25, len(segments)))
        context.append(segments[-1])
        assert is_whole(context)
    assert not context.rebase()
    before, ledger = decoded(context), list(context.ledger)
    refused = perceived(context.engine, 40, 99)
    with pytest.raises(CapacityError, match="states: all 3 are in use"):
        context.append(refused)
    with pytest.raises(CapacityError, match="states: all 3 are in use"):
        context.append_tentatively(refused)
    assert context.ledger == ledger
    assert not context.is_tentative
    assert refused not in context._kept
    np.testing.assert_array_equal(decoded(context), before)
    others.clear()
    while context.rebase():
        pass
    assert context.n_rebases == 1
    assert_same(fresh_of(context, segments), context)
    segments.append(refused)
    context.append(refused)


def test_a_spoken_question_that_fills_the_context_is_answered_though_no_state_is_free(robot):
    robot = robot(context={"max_tokens": 240, "keep_tokens": 80}, answer={"max_tokens": 4})
    others = taken(robot.loop._context.engine)
    told = []
    robot.loop.observe(told.append)
    for n in range(1, 30):
        robot.hears(40, SPEECH, work=False)
        robot.hears(MIN_SILENCE_BLOCKS, SILENCE, work=False)
        drive(robot.loop)
        assert is_whole(robot.loop._context)
        if any(isinstance(event, Refused) for event in told):
            break
        assert robot.kinds().count(Spoken) == robot.kinds().count(Done) == n
    assert robot.loop._context._owes_start
    assert robot.loop.status().counters["rebases"] == 0
    others.clear()
    drive(robot.loop)
    assert robot.loop.status().counters["rebases"] == 1
    robot.hears(40, SPEECH)
    robot.hears(MIN_SILENCE_BLOCKS, SILENCE)
    assert robot.kinds()[-2:] == [Spoken, Done]


def test_what_is_refused_for_want_of_a_state_is_not_in_the_context(make):
    loop = make(context=SMALL)
    told = []
    loop.observe(told.append)
    others = taken(loop._context.engine)
    for i in range(12):
        put(loop, [frame(2 * i), frame(2 * i + 1)])
        drive(loop)
        assert is_whole(loop._context)
    refused = [event for event in told if isinstance(event, Refused)]
    assert {event.reason.partition(";")[0] for event in refused} == {"states: all 3 are in use"}
    n_seen = loop.status().counters["video_segments"]
    assert len(loop._context.ledger) == 1 + n_seen == 1 + 12 - len(refused)
    others.clear()
    put(loop, [frame(24), frame(25)])
    drive(loop)
    assert loop.status().counters["video_segments"] == n_seen + 1


def test_an_answer_about_the_past_knows_where_it_comes_from_while_a_rebase_goes_on(make):
    """The live state, the next one, and one at a time for both the past and the comparison."""
    loop = make(context={**SMALL, "keep_tokens": 200})
    seed = 0
    loop._clock.sleep_until(NS_PER_S)
    while loop._context._next is None:
        seed += 1
        loop._context.append(perceived(loop._context.engine, 20, seed))
    journal = Journal(loop)
    journal.ask("past", 6, consistency=True, recall_s=(3600.0, 0.0))
    drive(loop)
    assert loop._context.n_rebases == 1
    assert journal.of("past")[-1].consistency is not None


def test_an_answer_about_the_past_keeps_it_though_it_gives_way_and_the_context_forgets(make):
    loop = make(context=SMALL)
    put(loop, [frame(0), frame(1)])
    drive(loop)
    alone, journal = Journal(loop), Journal(loop)
    alone.ask("past", 30, recall_s=(3600.0, 0.0))
    drive(loop)
    journal.ask("past", 30, recall_s=(3600.0, 0.0))
    until_begun(loop, journal, "past", 3)
    loop._answers.give_way()
    for i in range(1, 20):
        loop._context.append(perceived(loop._context.engine, 40, i * NS_PER_S))
    assert loop._context.n_rebases > 0
    drive(loop)
    assert isinstance(journal.of("past")[-1], Done)
    assert journal.text("past") == alone.text("past")
    assert [e.frame_ids for e in journal.of("past")[-1].timeline.evidence] == [(0, 1)]
    assert any(isinstance(event, TextDelta) for event in journal.of("past"))


@pytest.mark.parametrize(("max_tokens", "keep_tokens"), [(400, 300), (200, 190), (200, 80)])
def test_the_bound_holds_however_much_is_kept(engine, max_tokens, keep_tokens):
    context = context_of(engine("single"), max_tokens, keep_tokens)
    rng = np.random.default_rng(0)
    for seed in range(120):
        n = int(rng.integers(1, keep_tokens))
        context.append(perceived(context.engine, n, seed))
        assert context.n_tokens <= max_tokens
        assert is_whole(context)
        assert context.ledger[-1].evidence.start_ns == seed
        for _ in range(int(rng.integers(0, 4))):
            context.rebase()
    assert context.n_rebases > 3


def test_what_is_taken_back_leaves_no_trace_in_half_precision_either(engine):
    """As a device keeps keys and values."""
    one = BoundedEngine(engine("wide"), half=True)
    context = context_of(one)
    context.append(perceived(one, 25, 0))
    before = decoded(context)
    context.append_tentatively(perceived(one, 30, 1))
    with context.fork() as fork:
        one.prefill(fork.state, perceived(one, 20, 2).embeddings)
    context.reopen()
    np.testing.assert_array_equal(decoded(context), before)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def test_a_refused_question_about_the_past_holds_no_state(make):
    """Whoever was told of it may keep the error for long."""
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    loop._clock.sleep_until(10 * NS_PER_S)
    journal, engine = Journal(loop), loop._context.engine
    for n in range(4):
        journal.ask(n, 1 << 20, recall_s=(60.0, 0.0))
        drive(loop)
        assert "do not fit" in str(journal.of(n)[-1].error)
        assert engine.n_used["states"] == 1


def test_a_question_about_the_past_that_gives_way_before_its_media_are_encoded_holds_no_state(make):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    loop._clock.sleep_until(10 * NS_PER_S)
    told, engine = [], loop._context.engine
    media = (Picture(bytes(32 * 32 * 3), 32, 32), Picture(bytes(32 * 32 * 3), 32, 32))
    question = Question((Message("user", "Which?", media),), Sampling(), 4, recall_s=(60.0, 0.0))
    loop.ask(question, told.append)
    loop.step()
    loop.step()
    assert engine.n_used["states"] == 2
    loop._answers.give_way()
    assert engine.n_used["states"] == 1
    drive(loop)
    assert isinstance(told[-1], Done)


def test_what_is_told_to_those_who_wait_at_the_end_is_made_for_each(make):
    loop = make()
    journal = Journal(loop)
    for name in ("first", "second"):
        journal.ask(name)
    loop.stop()
    loop.run()
    errors = [journal.of(name)[-1].error for name in ("first", "second")]
    assert len({id(error) for error in errors}) == 2


def test_a_check_that_is_cancelled_gives_its_state_to_the_answer_that_goes_on(make):
    """In the same step: an answer about the past was refused for a state that nobody needed."""
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    loop._clock.sleep_until(10 * NS_PER_S)
    journal, engine = Journal(loop), loop._context.engine
    other = engine.new_state()
    journal.ask("past", 12, recall_s=(60.0, 0.0))
    until_begun(loop, journal, "past")
    checked = journal.ask("checked", 4, consistency=True)
    while not any(turn.is_checking for turn in loop._answers._open):
        loop.step()
    loop.step()
    assert engine.n_used["states"] == 3  # the live one, the other, the check's
    checked.cancel()
    drive(loop)
    assert journal.done("checked")
    assert journal.done("past"), journal.of("past")[-1]
    assert engine.n_tokens(other) == 0
