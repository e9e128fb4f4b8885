"""Triggers: when they are judged, when they begin and end, and that they take little."""

from __future__ import annotations

import contextlib
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulate import Item, World
from test_conversation import SILENCE, SPEECH, Robot, Ticking
from test_loop import TIMEOUT_S, chunk, drive, frame, make, put
from test_priorities import Journal, until_begun
from test_pruning import HEIGHT, WIDTH, a_loop, folder, trained

from edge.clock import NS_PER_S, MonotonicClock, VirtualClock
from edge.errors import CapacityError, MediaError, ProtocolError
from edge.model.sampling import Sampling
from edge.senses.turns import MIN_SILENCE_BLOCKS
from edge.session.confidence import confidence
from edge.session.record import RecordedClock, Recorder, read
from edge.session.replay import replay
from edge.session.slot import Perceived
from edge.session.triggers import (
    BEGINS,
    ENDS,
    MAX_TRIGGERS,
    REST,
    UNSEEN_NS,
    Trigger,
    TriggerBegan,
    TriggerBook,
    TriggerEnded,
    Watched,
    asked,
)
from edge.session.turn import Done, Message, Question, YesNo
from edge.types import Evidence, Frame, Stages

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "tiny_omni"))
import scenes

__all__ = ["folder", "make", "trained"]
pytest_plugins = ["media"]

UNSURE = (BEGINS + ENDS) / 2


def changes(trigger, judged):
    """Times in s of begins (+) and ends (-)."""
    watched = Watched("trigger_1", trigger)
    found = []
    for at_s, likely in judged:
        event = watched.judge(likely, int(at_s * NS_PER_S))
        if event is not None:
            found.append(at_s if isinstance(event, TriggerBegan) else -at_s)
    return found


def test_between_the_thresholds_nothing_changes():
    trigger = Trigger("x", cooldown_s=0)
    judged = [(1, UNSURE), (2, 0.9), (3, UNSURE), (4, ENDS + 0.01), (5, 0.1), (6, BEGINS - 0.01)]
    assert changes(trigger, judged) == [2, -5]


def test_debounce_wants_it_to_hold():
    trigger = Trigger("x", cooldown_s=0, debounce_s=2)
    flicker = [(t, 0.9 if t % 2 else 0.1) for t in range(1, 9)]
    assert changes(trigger, flicker) == []
    assert changes(trigger, [(1, 0.9), (2, 0.9), (3, 0.9), (4, 0.1), (5, 0.9)]) == [3]
    assert changes(trigger, [(t, 0.9) for t in (1, 2, 3)] + [(4, 0), (5, 0), (6, 0)]) == [3, -6]


def test_an_unsure_judgement_ends_the_wait():
    trigger = Trigger("x", debounce_s=2)
    assert changes(trigger, [(1, 0.9), (2, UNSURE), (3, 0.9), (4, 0.9), (5, 0.9)]) == [5]


def test_after_its_end_it_is_quiet_for_the_cooldown():
    trigger = Trigger("x", cooldown_s=5)
    judged = [(1, 0.9), (2, 0.1), (3, 0.9), (4, 0.1), (6, 0.9), (7, 0.9), (8, 0.9)]
    assert changes(trigger, judged) == [1, -2, 7]


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0, 4), st.floats(0, 9))
def test_begins_and_ends_take_turns_and_keep_their_distance(likely, debounce_s, cooldown_s):
    trigger = Trigger("x", debounce_s=debounce_s, cooldown_s=cooldown_s)
    found = changes(trigger, list(enumerate(likely, 1)))
    assert all((at_s > 0) == (i % 2 == 0) for i, at_s in enumerate(found))
    for ended, began in zip(found[1::2], found[2::2], strict=False):
        assert began + ended >= cooldown_s  # `ended` is negative


@given(st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4))
def test_confidence_is_the_share_of_yes_among_yes_and_no(values):
    logits = np.array([9.0, *values], np.float32)  # the first is neither
    found = confidence(logits, YesNo((1, 2), (3, 4)))
    likely = np.exp(logits.astype(np.float64))
    assert found == pytest.approx((likely[1] + likely[2]) / likely[1:].sum(), rel=1e-4, abs=1e-9)


def test_a_condition_that_is_no_question_becomes_one():
    assert asked("Is there a dog?") == "Is there a dog?"
    assert asked("a dog\nis there. ") == "Is this true now: a dog is there? Answer yes or no."


def watching(loop, *conditions, **settings):
    events = []
    loop.observe(events.append)
    names = [loop.triggers.create(Trigger(c, **settings)) for c in conditions]
    return events, names


def n_judged(loop):
    return [status.n_judged for status in loop.triggers.entries()]


def test_a_trigger_is_judged_when_its_modality_has_something_new_and_not_before_its_period(make):
    loop = make()
    watching(loop, "one?", modality="video", period_s=1.0)
    watching(loop, "two?", modality="audio", period_s=1.0)
    drive(loop)
    assert n_judged(loop) == [0, 0]
    put(loop, [frame(0), frame(1)])
    drive(loop)
    assert n_judged(loop) == [1, 0]
    assert loop._triggers.wait_s() is None  # nothing is new: sleep until something is
    put(loop, [frame(2), frame(3)])
    drive(loop)
    assert n_judged(loop) == [1, 0]
    assert loop._triggers.wait_s() == pytest.approx(1.0)
    loop._clock.sleep_until(NS_PER_S)
    drive(loop)
    assert n_judged(loop) == [2, 0]
    put(loop, chunks=[chunk(i) for i in range(3)])
    drive(loop)
    assert n_judged(loop) == [2, 1]


def test_judging_leaves_the_live_state_as_it_was(make):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)

    def decoded():
        with loop._context.fork() as fork:
            return loop._context.engine.decode(fork.state, 5)

    before = decoded()
    watching(loop, "one?", "two?")
    drive(loop)
    assert n_judged(loop) == [1, 1]
    assert loop.status().counters["judgements"] == 2
    assert "answers" not in loop.status().counters  # nobody has asked
    np.testing.assert_array_equal(decoded(), before)


def test_operator_before_trigger_before_perception(make):
    loop = make()
    journal = Journal(loop)
    put(loop, [frame(0), frame(1)])
    drive(loop)
    watching(loop, "one?", "two?")
    journal.ask("operator", 6)
    put(loop, [frame(2), frame(3)])
    while not journal.done("operator"):
        assert n_judged(loop) == [0, 0]
        loop.step()
    for _ in range(3):
        loop.step()
    assert n_judged(loop) == [1, 0]
    assert loop.status().counters["video_segments"] == 1
    until_begun(loop, journal, "operator")
    journal.ask("another", 6)  # while the second one is judged
    loop.step()
    drive(loop)
    assert journal.done("another")
    assert min(n_judged(loop)) >= 1


def test_the_more_urgent_of_two_triggers_is_judged_first(make):
    loop = make()
    low = loop.triggers.create(Trigger("one?", priority="low"))
    high = loop.triggers.create(Trigger("two?", priority="high"))
    put(loop, [frame(0), frame(1)])
    order = []
    while loop.step():
        judged = {s.id for s in loop.triggers.entries() if s.n_judged}
        order += sorted(judged - set(order))
    assert order == [high, low]


def test_a_deleted_trigger_ends_and_one_that_is_being_judged_is_forgotten(make):
    loop = make()
    events, (name,) = watching(loop, "one?")
    put(loop, [frame(0), frame(1)])
    while not len(loop._answers):
        loop.step()
    loop.triggers.delete(name)
    drive(loop)
    assert loop.triggers.entries() == ()
    _, (name,) = watching(loop, "two?")
    loop.step()
    watched = loop._triggers._watched[name]
    assert isinstance(watched.judge(0.9, 0), TriggerBegan)
    loop.triggers.delete(name)
    drive(loop)
    ended = [event for event in events if isinstance(event, TriggerEnded)]
    assert [(event.id, event.cause) for event in ended] == [(name, "deleted")]
    with pytest.raises(ProtocolError, match="does not exist"):
        loop.triggers.delete(name)


def let_begin(loop, *conditions, **settings):
    """Triggers that are on, and what clients are told from now on."""
    loop._triggers._yes_no = YesNo(tuple(range(2, 200)), (1,))  # nearly always yes
    events, names = watching(loop, *conditions, cooldown_s=3600, **settings)
    put(loop, [frame(0), frame(1)])
    drive(loop)
    while any(not status.is_on for status in loop.triggers.entries()):
        loop._clock.sleep_until(loop._triggers._rest_until_ns)
        drive(loop)
    assert [event.id for event in events if isinstance(event, TriggerBegan)] == names
    return events, names


def ends(events):
    return [(event.id, event.cause) for event in events if isinstance(event, TriggerEnded)]


@pytest.mark.parametrize("broken", [False, True])
def test_triggers_that_are_on_end_with_the_session(make, broken):
    loop = make()
    events, names = let_begin(loop, "one?", "two?")
    watching(loop, "never judged?", modality="audio")
    if broken:
        loop._step = partial(next, iter(()))
    else:
        loop.stop()
    with pytest.raises(StopIteration) if broken else contextlib.nullcontext():
        loop.run()
    assert ends(events) == [(name, "stopped") for name in names]


def test_a_trigger_whose_camera_has_gone_ends_as_unseen_and_begins_again_when_it_is_back(make):
    loop = make()
    events, (name,) = let_begin(loop, "one?", modality="video")
    put(loop, chunks=[chunk(i) for i in range(3)])  # what is heard says nothing of it
    drive(loop)
    assert ends(events) == []
    wait_s = loop._wait_s()
    assert 25 < wait_s <= UNSEEN_NS / NS_PER_S + 0.1
    loop._clock.sleep_until(loop._clock.now_ns() + int(wait_s * NS_PER_S))
    drive(loop)
    assert ends(events) == [(name, "unseen")]
    assert not loop.triggers.entries()[0].is_on
    assert loop._wait_s() is None
    put(loop, [frame(2), frame(3)])
    drive(loop)  # at once, however long its cooldown is
    assert [type(e) for e in events if isinstance(e, TriggerBegan | TriggerEnded)] == [
        *(TriggerBegan, TriggerEnded, TriggerBegan)
    ]


def test_a_loop_that_is_held_up_does_not_take_its_camera_for_gone(make):
    """What was seen meanwhile waits in the ring."""
    loop = make()
    events, _ = let_begin(loop, "one?", modality="video")
    loop._clock.sleep_until(loop._clock.now_ns() + 2 * UNSEEN_NS)  # in one step
    put(loop, [frame(2), frame(3)])
    drive(loop)
    assert ends(events) == []


def test_what_is_seen_without_a_change_is_still_seen(make):
    """Frames come, and none of them makes a segment: the trigger stays on."""
    loop = make()
    events, _ = let_begin(loop, "one?", modality="video")
    sight = loop._senses[1]
    encode = sight.encode

    def refuse():
        encode()
        raise MediaError("x", "y", "z")

    sight.encode = refuse
    for i in range(1, 8):
        loop._clock.sleep_until(loop._clock.now_ns() + UNSEEN_NS // 2)
        put(loop, [frame(2 * i), frame(2 * i + 1)])
        drive(loop)
    assert ends(events) == []
    assert loop.status().counters["segments_refused"] == 7


def test_the_time_in_which_triggers_rest_although_one_is_due_is_counted():
    """What a judgement costs, three times over: on a board's costs, simulated."""
    world = World("thor", 2.0, 3, faults=False)
    world.loop._triggers._yes_no = YesNo((0,), (1,))
    for i in range(4):
        world.loop.triggers.create(Trigger(f"Is it {i}?", period_s=0.1))
    judge, rested_ns = world.loop._triggers._judged, 0

    def judged(watched, event):
        nonlocal rested_ns
        judge(watched, event)
        rested_ns += REST * event.timeline.worked_ns

    world.loop._triggers._judged = judged
    world.run(60)
    counters = world.loop.status().counters
    assert counters["judgements"] > 40
    last_ms = 1000  # the newest rest is counted when it is over
    assert rested_ns / 1e6 - last_ms < counters["triggers_rested_ms"] <= rested_ns / 1e6


def test_a_rest_in_which_nothing_was_due_holds_up_nobody(make):
    loop = make()
    watching(loop, "one?", period_s=10.0)
    put(loop, [frame(0), frame(1)])
    drive(loop)
    loop._triggers._rest_since_ns, loop._triggers._rest_until_ns = 0, 4 * NS_PER_S
    put(loop, [frame(2), frame(3)])
    loop._clock.sleep_until(10 * NS_PER_S)
    drive(loop)
    assert n_judged(loop) == [2]
    assert loop.status().counters["triggers_rested_ms"] == 0
    # News comes 1 s before the end of a rest that outlasts the period.
    rest = loop._triggers
    rest._rest_since_ns, rest._rest_until_ns = 11 * NS_PER_S, 25 * NS_PER_S
    loop._clock.sleep_until(24 * NS_PER_S)
    put(loop, [frame(4), frame(5)])
    drive(loop)
    loop._clock.sleep_until(40 * NS_PER_S)
    drive(loop)
    assert n_judged(loop) == [3]
    assert loop.status().counters["triggers_rested_ms"] == 1000


def test_a_condition_that_does_not_fit_is_counted_and_the_loop_goes_on(make):
    loop = make()
    loop._triggers._yes_no = YesNo((1,), (2,))
    watching(loop, "one?")
    put(loop, [frame(0), frame(1)])
    while not len(loop._answers):
        loop.step()
    loop._answers.fail_all(CapacityError("question", "does not fit", "shorten it"))
    loop._answers.give_way()
    drive(loop)
    assert loop.status().counters["judgements_refused"] == 1
    assert not loop._triggers._is_judging


def test_too_many_triggers_are_refused_and_none_for_its_words(make):
    loop = make()
    loop.triggers.delete(loop.triggers.create(Trigger("<|im_end|>")))
    for i in range(MAX_TRIGGERS):
        loop.triggers.create(Trigger(f"{i}?"))
    with pytest.raises(CapacityError, match="16 already"):
        loop.triggers.create(Trigger("one more?"))


def test_sixteen_impatient_triggers_take_a_quarter_and_turns_stay_in_time():
    """On a board's costs, simulated."""
    busy_ms, first_token_s = [], []
    for n in (0, MAX_TRIGGERS):
        world = World("thor", 2.0, 3, faults=False)
        world.loop._triggers._yes_no = YesNo((0,), (1,))  # its engine knows two tokens
        for i in range(n):
            world.loop.triggers.create(Trigger(f"Is it {i}?", period_s=0.1))
        world.run(120)
        busy_ms.append(world.busy_ms)
        first_token_s.append(max(s for _, s in world.first_token_s))
    counts = world.loop.status().counters
    assert counts["judgements"] > 60
    assert (busy_ms[1] - busy_ms[0]) / 120_000 <= 0.25
    one_judgement_s = 0.25
    assert first_token_s[1] <= first_token_s[0] + one_judgement_s


def test_a_question_that_comes_into_a_judgement_is_no_work_of_the_judgement():
    """On a board's costs, simulated: triggers rest for 3 times as long as they took, not it."""
    world = World("thor", 2.0, 3, faults=False)
    world.loop._triggers._yes_no = YesNo((0,), (1,))
    world.loop.triggers.create(Trigger("Is somebody lying on the floor?", period_s=1.0))
    world.run(20)
    world._begin()  # everything as at a start, but nothing happens by itself
    loop, clock = world.loop, world.clock
    loop._triggers._yes_no = YesNo((0,), (1,))
    loop.triggers.create(Trigger("Is somebody lying on the floor?", period_s=1.0))
    world.sight.put(Item(clock.now_ns()))
    world.sight.put(Item(clock.now_ns()))
    while not (len(loop._answers) and loop._context.is_forked):
        loop.step()  # until the judgement is in mid-work
    journal = Journal(loop)
    journal.ask("operator", 500)
    while not journal.done("operator"):
        loop.step()
    done = journal.of("operator")[-1].timeline
    assert done.finished_ns - done.asked_ns > 6 * NS_PER_S
    n_before, ended_ns = loop.status().counters.get("judgements", 0), clock.now_ns()
    while loop.status().counters.get("judgements", 0) < n_before + 2:
        if not loop.step():
            clock.sleep_until(clock.now_ns() + NS_PER_S // 20)
            world.sight.put(Item(clock.now_ns()))
    assert clock.now_ns() - ended_ns < 2 * NS_PER_S


def test_a_board_that_stands_still_for_once_in_a_judgement_does_not_blind_for_three_times_as_long():
    """On a board's costs, simulated; one that has become slow is left alone for longer and longer,
    until it has its three parts in four again."""
    world = World("thor", 2.0, 3, faults=False)
    loop, clock = world.loop, world.clock
    loop.triggers.create(Trigger("Is somebody lying on the floor?", period_s=0.1))
    took_s, rests_s = [], []
    judge = loop._triggers._judged

    def judged(watched, event):
        judge(watched, event)
        took_s.append(event.timeline.worked_ns / NS_PER_S)
        rests_s.append((loop._triggers._rest_until_ns - clock.now_ns()) / NS_PER_S)

    loop._triggers._judged = judged
    while len(took_s) < 24:
        if not loop.step():
            clock.sleep_until(clock.now_ns() + NS_PER_S // 20)
            world.sight.put(Item(clock.now_ns()))
        if len(took_s) == 4 and len(loop._answers) and not world.engine.stall_ms:
            world.engine.stall_ms = 30_000.0
        if len(took_s) == 12:
            world.engine.slowdown = 20.0
    assert max(took_s[:6]) > 30
    assert max(rests_s[:12]) < 6 * REST * np.median(took_s[:12])
    slow = slice(18, 24)
    assert rests_s[slow] == pytest.approx([REST * s for s in took_s[slow]], rel=1e-6)


def scene_frames(index, shapes):
    """Two frames with these shapes in them, as the small model has learned to see them."""
    things = [scenes.Thing(shape, 0, 0.4 + 0.5 * i, 0.5, 0.18) for i, shape in enumerate(shapes)]
    shown = scenes.Scene(tuple(things), WIDTH / HEIGHT, 2, 7)
    return [
        Frame(scenes.render(shown, k, HEIGHT, WIDTH), (2 * index + k) * NS_PER_S // 2, k, "camera")
        for k in (0, 1)
    ]


def test_the_trained_model_notices_what_comes_and_goes(folder, trained):
    circle, square = (scenes.SHAPES.index(name) for name in ("circle", "square"))
    clock = VirtualClock()
    changed = {"context": {"max_tokens": 160, "keep_tokens": 60}, "answer": {"max_tokens": 8}}
    loop, _, sight = a_loop(folder, trained, clock, changed)
    events, _ = watching(loop, "Is there a circle?", period_s=0.5, cooldown_s=0)
    shown = [[square]] * 3 + [[circle]] * 3 + [[square]] * 3
    for index, shapes in enumerate(shown):
        clock.sleep_until((index + 1) * NS_PER_S)
        for one in scene_frames(index, shapes):
            sight.put(one)
        drive(loop)
    told = [e for e in events if isinstance(e, TriggerBegan | TriggerEnded)]
    assert [type(event) for event in told] == [TriggerBegan, TriggerEnded]
    began, ended = told
    assert 3 <= began.evidence[0].start_ns / NS_PER_S < 6 <= ended.evidence[0].start_ns / NS_PER_S
    assert began.confidence >= BEGINS
    assert ended.confidence <= ENDS
    assert isinstance(began.evidence[0], Evidence)


def test_triggers_replay_to_the_nanosecond(bundle, engine, tmp_path):
    path = tmp_path / "watched.mcap"
    clock = RecordedClock(Ticking())
    with Recorder(path, clock) as recorder:
        robot = Robot(*(bundle("base"), engine("base"), "typed"), recorder=recorder, clock=clock)
        recorder.describe("base", 0, msgspec.to_builtins(robot.config))
        book = robot.loop.triggers
        names = [book.create(Trigger(f"Is it {i}?", period_s=0.1, cooldown_s=0)) for i in range(3)]
        for i in range(6):
            robot.sees(i)
            drive(robot.loop)
        book.delete(names[0])
        book.create(Trigger("Is it over?", modality="video"))
        robot.sees(6)
        drive(robot.loop)
    assert robot.counts("judgements") >= 5

    def build(about, replayed, observed):
        other = Robot(
            *(bundle("base"), engine("base"), "typed"),
            recorder=observed,
            clock=replayed,
            start_ns=about["start_ns"],
        )
        others.append(other)
        return other.loop, other.senses

    others = []
    assert all(step.is_same for step in replay(read(path), build))
    (other,) = others
    assert other.counts("judgements") == robot.counts("judgements")
    watched, again = (one.loop._triggers._watched for one in (robot, other))
    assert {n: w.confidence for n, w in watched.items()} == {
        n: w.confidence for n, w in again.items()
    }


class Live:
    """A robot whose loop runs in its own thread, as in the service; this thread lets it happen."""

    def __init__(self, robot):
        self.robot, self.loop = robot, robot.loop
        self._happened = threading.Condition()
        self._events = []
        self.loop.observe(self._saw)
        self._thread = threading.Thread(target=self.loop.run)

    def _saw(self, event):
        with self._happened:
            self._events.append(event)
            self._happened.notify()

    def until(self, kind, n=1):
        """Wait until so many more of these have happened."""

        def enough():
            return sum(isinstance(event, kind) for event in self._events) >= n

        with self._happened:
            assert self._happened.wait_for(enough, TIMEOUT_S), self._events
            self._events.clear()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.loop.stop()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


def test_what_the_service_runs_replays_too(bundle, engine, tmp_path):
    """Recorded in `run`, which waits and is woken: watchers that come and go, and a reload."""
    path = tmp_path / "run.mcap"
    clock = RecordedClock(MonotonicClock())
    socket = {"max_waiting": 1}
    question = Question((Message("user", "Hello"),), Sampling(), 40)

    def robot_of(recorder, clock, start_ns):
        robot = Robot(
            *(bundle("base"), engine("base"), "open"),
            recorder=recorder,
            clock=clock,
            start_ns=start_ns,
            socket=socket,
        )
        robot.loop._triggers._yes_no = YesNo(tuple(range(2, 200)), (1,))  # nearly always yes
        return robot

    with Recorder(path, clock) as recorder:
        robot = robot_of(recorder, clock, clock.now_ns())
        loop, book = robot.loop, robot.loop.triggers
        recorder.describe("base", loop._start_ns, msgspec.to_builtins(robot.config))
        with Live(robot) as live:
            once = Trigger("Is it dark?", modality="video", period_s=3600, cooldown_s=0)
            first = book.create(once)
            robot.sees(0)
            live.until(TriggerBegan)
            for i in range(1, 4):  # news that no judgement looks at before the watcher goes
                robot.sees(i)
                live.until(Stages)
            book.delete(first)
            live.until(TriggerEnded)
            second = book.create(once)
            live.until(TriggerBegan)
            settings = msgspec.structs.replace(robot.config.answer, max_tokens=3)
            more = msgspec.structs.replace(robot.config.socket, max_waiting=8)
            loop.change(msgspec.structs.replace(robot.config, answer=settings, socket=more))
            robot.hears(10, SPEECH, work=False)
            robot.hears(MIN_SILENCE_BLOCKS, SILENCE, work=False)
            live.until(Done)
            assert robot.events[-1].n_completion_tokens == 3
            for _ in range(4):  # more than could wait before
                loop.ask(question, lambda _: None)
            live.until(Done, 4)
            robot.sees(5)
            live.until(Stages)
            book.delete(second)
            live.until(TriggerEnded)

    def build(about, replayed, observed):
        other = robot_of(observed, replayed, about["start_ns"])
        return other.loop, other.senses

    steps = list(replay(read(path), build))
    told = [event["type"] for step in steps for event in step.events]
    assert told.count("TriggerEnded") == 2
    assert told.count("Done") == 5
    for step in steps:
        assert step.is_same, f"step {step.number}: {step.events} for {step.step.events}"


def test_waiting_for_the_next_judgement_changes_nothing(make):
    loop = make()
    watching(loop, "one?", period_s=10.0)
    put(loop, [frame(0), frame(1)])
    drive(loop)
    (watched,) = loop._triggers._watched.values()
    loop._context.append(Perceived("video", loop._context.slots.anchor, Evidence("camera", 5, 6)))
    before = replace(watched)
    assert loop._triggers.wait_s() is None  # no step has looked
    assert watched == before
    loop.step()
    assert loop._triggers.wait_s() == pytest.approx(10.0)


def test_a_book_may_be_written_by_many_threads():
    book = TriggerBook()
    names = [book.create(Trigger(f"{i}?")) for i in range(3)]
    book.delete(names[1])
    assert [status.id for status in book.entries()] == [names[0], names[2]]
    assert len(book.changes()) == 4
    assert book.changes() == []


def test_at_a_threshold_it_begins_and_ends():
    assert changes(Trigger("x", cooldown_s=0), [(1, BEGINS), (2, ENDS)]) == [1, -2]


def test_while_it_rests_the_loop_is_told_to_wait_that_long(make):
    loop = make()
    watching(loop, "one?", period_s=0.1)
    loop._triggers._rest_until_ns = 5 * NS_PER_S
    put(loop, [frame(0), frame(1)])
    drive(loop)
    assert n_judged(loop) == [0]
    assert loop._triggers.wait_s() == 5.0
    loop._clock.sleep_until(5 * NS_PER_S)
    assert loop._triggers.wait_s() == 0.0
    drive(loop)
    assert n_judged(loop) == [1]
