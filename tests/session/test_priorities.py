"""Who goes first, who gives way, and what happens to those who cannot be answered in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_loop import drive, frame, make, modalities, put

from edge.clock import NS_PER_S
from edge.errors import CapacityError, DeadlineError
from edge.model.constrain import Constraint, grammar_of_choice
from edge.model.sampling import Sampling
from edge.session.turn import Done, Failed, Message, Question, TextDelta

__all__ = ["make"]
pytest_plugins = ["media"]


class Journal:
    """What is delivered to whom, in order."""

    def __init__(self, loop):
        self.loop, self.events = loop, []

    def ask(self, name, max_tokens=12, text="Hello", **settings):
        question = Question((Message("user", text),), Sampling(), max_tokens, **settings)
        return self.loop.ask(question, lambda event: self.events.append((name, event)))

    def of(self, name):
        return [event for asked, event in self.events if asked == name]

    def text(self, name):
        return "".join(event.text for event in self.of(name) if isinstance(event, TextDelta))

    def done(self, name):
        return isinstance(self.of(name)[-1], Done) if self.of(name) else False

    def order_of_ends(self):
        return [name for name, event in self.events if isinstance(event, Done | Failed)]


def until_begun(loop, journal, name, n=2):
    while len(journal.of(name)) < n:
        assert loop.step()


def alone(make, text, max_tokens=12):
    loop = make()
    journal = Journal(loop)
    journal.ask("alone", max_tokens, text)
    drive(loop)
    return journal.text("alone")


def test_a_new_question_does_not_wait_for_another_answers_end(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("first", 30, "Hello")
    until_begun(loop, journal, "first", 4)
    journal.ask("second", 6, "And you?")
    drive(loop)
    assert journal.order_of_ends() == ["second", "first"]
    names = [name for name, _ in journal.events]
    at = names.index("second")
    assert set(names[:at]) == {"first"}
    # Both answers are what they would have been alone: the one that gave way was resumed exactly.
    assert journal.text("first") == alone(make, "Hello", 30)
    assert journal.text("second") == alone(make, "And you?", 6)
    assert sum(s.n_tokens for s in loop._context.ledger) == loop._context.n_tokens


def test_an_operator_goes_before_a_trigger_that_has_waited_longer(make):
    loop = make()
    journal = Journal(loop)
    for name in ("watch", "watch too"):
        journal.ask(name, 8, priority="trigger")
    journal.ask("operator", 8)
    drive(loop)
    assert journal.order_of_ends()[0] == "operator"


def test_a_triggers_answer_gives_way_to_an_operator_between_tokens(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("trigger", 30, priority="trigger")
    until_begun(loop, journal, "trigger", 3)
    n_before = len(journal.of("trigger"))
    journal.ask("operator", 6)
    while not journal.done("operator"):
        loop.step()
    assert len(journal.of("trigger")) == n_before
    drive(loop)
    assert journal.text("trigger") == alone(make, "Hello", 30)


def test_a_trigger_waits_while_an_operator_is_answered(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("operator", 10)
    until_begun(loop, journal, "operator")
    journal.ask("trigger", 4, priority="trigger")
    drive(loop)
    assert journal.order_of_ends() == ["operator", "trigger"]


def test_answers_go_before_perception_and_perception_enters_whole(make):
    loop = make()
    journal = Journal(loop)
    put(loop, [frame(0), frame(1)])
    for _ in range(3):  # two frames and their encoding
        loop.step()
    assert loop._intake.n_pending == 1
    journal.ask("operator", 8)
    while not journal.done("operator"):
        loop.step()
        assert modalities(loop) == []
    drive(loop)
    assert modalities(loop) == ["video"]


def test_a_question_that_cannot_be_answered_in_time_is_refused_and_says_so(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("late", deadline_s=0.5)
    loop._clock.sleep_until(NS_PER_S)
    journal.ask("in time", deadline_s=0.5)
    drive(loop)
    (failed,) = journal.of("late")
    assert isinstance(failed.error, DeadlineError)
    assert "was not answered within 0.5 s (it is 0.500 s late)" in str(failed.error)
    assert journal.done("in time")
    assert loop.status().counters["answers_refused"] == 1


def test_an_answer_that_has_begun_is_cut_at_its_deadline(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("slow", 100, deadline_s=1.0)
    until_begun(loop, journal, "slow", 5)
    loop._clock.sleep_until(2 * NS_PER_S)
    drive(loop)
    done = journal.of("slow")[-1]
    assert done.finish_reason == "deadline"
    assert 0 < done.n_completion_tokens < 100
    assert not len(loop._answers)


def test_a_client_that_goes_while_it_waits_is_not_answered(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("first", 20)
    until_begun(loop, journal, "first")
    waiting = journal.ask("second", 20, priority="trigger")
    loop.step()
    waiting.cancel()
    while not journal.of("second"):
        loop.step()
    (done,) = journal.of("second")
    assert (done.finish_reason, done.n_completion_tokens) == ("cancelled", 0)
    assert not journal.done("first")
    drive(loop)
    assert journal.done("first")


def test_a_recalled_part_of_the_past_is_kept_by_nobody_who_waits(make):
    """An answer about the past that gives way gives its state back, and recalls it again."""
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    journal = Journal(loop)
    ask = {"recall_s": (5.0, 0.0)}
    journal.ask("past", 20, **ask)
    until_begun(loop, journal, "past", 3)
    journal.ask("now", 5)
    while not journal.done("now"):
        loop.step()
    (waiting,) = loop._answers._open
    assert waiting._context is None
    drive(loop)
    assert journal.done("past")


@pytest.mark.parametrize("n_others", [0, 3])
def test_a_live_state_is_bit_identical_after_answers_in_any_order(make, n_others):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    context = loop._context

    def decoded():
        with context.fork() as fork:
            return context.engine.decode(fork.state, 5)

    before = decoded()
    journal = Journal(loop)
    for i in range(n_others + 1):
        journal.ask(str(i), 20, priority="operator" if i % 2 else "trigger")
        until_begun(loop, journal, str(i)) if i % 2 else loop.step()
    drive(loop)
    assert len(journal.order_of_ends()) == n_others + 1
    np.testing.assert_array_equal(decoded(), before)


def test_what_waits_is_bounded(make):
    loop = make(socket={"max_waiting": 3})
    journal = Journal(loop)
    for i in range(4):
        journal.ask(str(i), 30)
        until_begun(loop, journal, str(i))  # each gives way to the next
    with pytest.raises(Exception, match="3 others are waiting"):
        journal.ask("one more")
    drive(loop)
    assert len(journal.order_of_ends()) == 4


def test_users_take_turns_whoever_asks_more(make):
    loop = make()
    journal = Journal(loop)
    for name in ("a0", "a1", "a2"):
        journal.ask(name, 4, user="a")
    until_begun(loop, journal, "a0", 1)
    for name in ("b0", "b1", "c0"):
        journal.ask(name, 4, user=name[0])
    drive(loop)
    begun = list(dict.fromkeys(name for name, _ in journal.events))
    assert begun == ["a0", "b0", "c0", "a1", "b1", "a2"]


def test_a_question_that_is_being_prefilled_is_not_left_for_another_users(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("long", 2, "Hello " * 400, user="a")
    while loop._answers._current is None:
        loop.step()
    journal.ask("short", 2, user="b")
    while not journal.events:
        loop.step()
    assert journal.events[0][0] == "long"


def test_who_took_turns_is_forgotten_when_all_are_answered(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("before", 2, user="b")
    drive(loop)
    journal.ask("of b", 2, user="b")
    journal.ask("of a", 2, user="a")
    drive(loop)
    assert [*dict.fromkeys(name for name, _ in journal.events)] == ["before", "of b", "of a"]


def test_one_user_leaves_places_for_others(make):
    loop = make(socket={"max_waiting": 8})
    journal = Journal(loop)
    for i in range(6):
        journal.ask(f"a{i}", 2, user="a")
    with pytest.raises(CapacityError, match="6 of a are waiting already"):
        journal.ask("one more", 2, user="a")
    for i in range(2):
        journal.ask(f"b{i}", 2, user="b")
    with pytest.raises(CapacityError, match="8 others are waiting already"):
        journal.ask("one more", 2, user="b")
    drive(loop)
    assert len(journal.order_of_ends()) == 8
    for i in range(6):  # none of them counts any more
        journal.ask(f"c{i}", 2, user="a")
    drive(loop)


def test_what_the_session_asks_itself_is_nobodys_share(make):
    loop = make(socket={"max_waiting": 4})
    journal = Journal(loop)
    for i in range(4):
        journal.ask(str(i), 2)
    drive(loop)
    assert len(journal.order_of_ends()) == 4


@pytest.fixture
def late(monkeypatch):
    """Formats whose next mask is to come, for as long as this holds something."""
    waiting = ["a mask"]
    monkeypatch.setattr(Constraint, "is_late", lambda _self, _within_s=0.0: bool(waiting))
    monkeypatch.setattr(Constraint, "is_overdue", False)
    return waiting


def test_a_format_that_takes_its_time_hinders_nobody(make, late):
    loop = make()
    journal = Journal(loop)
    journal.ask("held", 4, grammar=grammar_of_choice(["red"]))
    for _ in range(20):
        assert loop.step(), journal.events
    assert journal.of("held") == []
    put(loop, [frame(0), frame(1)])
    journal.ask("free", 4)
    while not journal.done("free"):
        loop.step()
    for _ in range(30):
        loop.step()
    assert "video" in modalities(loop)
    assert journal.of("held") == []
    late.clear()
    drive(loop)
    assert journal.text("held") == "red"


def test_a_format_that_is_only_being_thought_about_is_not_waited_for(make, late):
    loop = make()
    journal = Journal(loop)
    journal.ask("thinks", 4, thinking=True, grammar=grammar_of_choice(["red"]))
    until_begun(loop, journal, "thinks", 1)
    late.clear()
    drive(loop)


def test_a_format_that_is_not_waited_for_is_not_overdue(make, late, monkeypatch):
    loop = make()
    journal = Journal(loop)
    journal.ask("held", 4, grammar=grammar_of_choice(["red"]))
    for _ in range(20):
        assert loop.step()
    monkeypatch.setattr(Constraint, "is_overdue", True)
    assert loop._answers.overdue() == [0]
    late.clear()
    assert loop._answers.overdue() == []


def test_a_format_that_never_goes_on_fails_its_turn(make, late, monkeypatch):
    loop = make()
    journal = Journal(loop)
    journal.ask("held", 4, grammar=grammar_of_choice(["red"]))
    for _ in range(20):
        assert loop.step()
    monkeypatch.setattr(Constraint, "is_overdue", True)
    loop.step()
    (failed,) = journal.of("held")
    assert isinstance(failed.error, CapacityError)
    assert "was not followed in time" in str(failed.error)
    assert not loop.step() or not len(loop._answers)


def test_the_end_of_the_service_is_told_to_all(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("begun", 30)
    until_begun(loop, journal, "begun")
    journal.ask("waits", 30)
    loop.stop()
    loop.run()
    assert [type(journal.of(name)[-1]) for name in ("begun", "waits")] == [Failed, Failed]
    turn = replace(journal.of("begun")[-1])
    assert "is stopping" in str(turn.error)


def test_a_deadline_is_the_last_moment_that_is_in_time(make):
    loop = make()
    journal = Journal(loop)
    journal.ask("in time", deadline_s=1.0)
    loop._clock.sleep_until(NS_PER_S)
    drive(loop)
    assert journal.of("in time")[-1].finish_reason != "deadline"
    journal.ask("late", deadline_s=1.0)
    loop._clock.sleep_until(2 * NS_PER_S + 1)
    drive(loop)
    assert isinstance(journal.of("late")[-1].error, DeadlineError)


def test_a_question_that_is_being_prefilled_goes_on_before_one_that_was_asked_earlier(make):
    """One that was spoken is taken up later than it was asked."""
    loop = make()
    loop._clock.sleep_until(20 * NS_PER_S)
    journal = Journal(loop)
    journal.ask("typed", 4, text="word " * 900)
    loop.step()
    loop.step()
    question = Question((Message("user", "Hello"),), Sampling(), 4)
    loop.ask(question, lambda event: journal.events.append(("spoken", event)), asked_ns=NS_PER_S)
    while not journal.events:
        assert loop.step()
    assert journal.events[0][0] == "typed"
    drive(loop)
    assert journal.done("spoken")


def test_a_clients_own_seed_is_kept_and_others_are_drawn(make):
    loop = make()

    def seed_of(sampling):
        question = Question((Message("user", "Hello"),), sampling, 4)
        return loop.ask(question, lambda _event: None).question.sampling.seed

    assert seed_of(Sampling(temperature=1.0, seed=5)) == 5
    assert seed_of(Sampling(temperature=1.0, seed=0)) == 0
    drawn = [seed_of(Sampling(temperature=1.0)) for _ in range(2)]
    assert None not in drawn
    assert drawn[0] != drawn[1]
    assert seed_of(Sampling()) is None
