"""A robot's whole life in scripted worlds: what clients are told is what happens, whatever does."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import COSTS, HOT, MAX_RATIO, Life, World, check, problems, report_life
from worlds import World as Worlds
from worlds import random_world

from edge.clock import NS_PER_S
from edge.senses.turn_events import SpeechStarted
from edge.session.budget import Degraded
from edge.session.notes import Noted
from edge.session.perception import Rebased
from edge.session.triggers import TriggerBegan, TriggerEnded
from edge.session.turn import Done, SpeechStopped, Spoken
from edge.types import Stages

LIFE = Life(n_cameras=2, n_triggers=4, notes_tokens=64, is_open=True, reloads=True)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def lived(board, seed, seconds, *, faults):
    world = World(board, 2.0, seed, faults, life=LIFE)
    world.run(seconds, check)
    return world


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), board=st.sampled_from([*COSTS]))
def test_whatever_goes_wrong_clients_are_told_what_is_so(seed, board):
    world = lived(board, seed, 120, faults=True)
    assert problems(world) == []
    assert not world.waiting


def test_in_half_an_hour_everything_happens_and_all_of_it_is_told():
    world = lived("thor", 0, 1800, faults=True)
    assert problems(world) == []
    assert world.n_restarts > 3
    assert world.n_reloads > 0
    assert set(world.wire) == {
        *("edge.perceived", "edge.rebased", "edge.noted", "edge.degraded", "edge.dropped"),
        *("edge.speech.started", "edge.speech.stopped", "edge.speech.asked", "edge.speech.done"),
        *("edge.trigger.began", "edge.trigger.ended"),
    }
    assert world.wire["edge.speech.started"] == world.wire["edge.speech.stopped"] > 10
    assert world.wire["edge.trigger.began"] == world.wire["edge.trigger.ended"] > 10


def test_without_faults_a_trigger_waits_for_no_more_than_answers_and_their_rest():
    world = lived("agx-orin-64", 4, 900, faults=False)
    assert problems(world) == []
    found = report_life(world)
    assert found["judgements"] > 300
    made_of = found["made_of_s"]
    assert found["longest_without_judgement_s"] == pytest.approx(sum(made_of.values()), abs=0.02)
    assert "other" not in made_of
    assert found["served_ratio"] < 1.05


@pytest.mark.parametrize(
    ("where", "kind", "told"),
    [
        ("_events", Stages, "segments"),
        ("_events", Degraded, "rung"),
        ("_events", Rebased, "rebases"),
        ("_events", Noted, "notes"),
        ("_events", TriggerBegan, "triggers that are on"),
        ("_events", TriggerEnded, "triggers that are on"),
        ("_events", Done, "answers"),
        ("_spoken", SpeechStarted, "somebody speaks"),
        ("_spoken", SpeechStopped, "somebody speaks"),
        ("_spoken", Spoken, "a question that was never taken"),
        ("_spoken", Done, "ends of spoken turns"),
    ],
)
def test_one_event_that_is_lost_is_a_difference(where, kind, told):
    world = World("thor", 2.0, 0, False, life=LIFE)
    audience = getattr(world.loop, where)
    tell, lost = audience.tell, []

    def all_but_the_second(event):
        if isinstance(event, kind):
            lost.append(event)
        if not isinstance(event, kind) or len(lost) != 2:
            tell(event)

    audience.tell = all_but_the_second
    if kind is Degraded:
        world.health = HOT
    world.run(300)
    assert len(lost) > 1
    assert any(told in difference for difference in problems(world))


def test_an_answer_without_an_end_is_a_difference():
    world = World("thor", 2.0, 0, False, life=LIFE)
    deliver = world.loop._deliver
    world.loop._deliver = lambda to, event: deliver(
        (lambda _event: None) if isinstance(event, Done) else to, event
    )
    world.run(120)
    assert any("questions without an end" in difference for difference in problems(world))


@pytest.mark.parametrize("blind_s", [(60, 64), (60, 1 << 20)])
def test_a_trigger_that_nobody_judges_is_found(blind_s):
    """For some seconds, or for ever."""
    world = World("thor", 2.0, 0, False, life=LIFE)
    judge, (from_s, to_s) = world.loop._triggers.judge_if_due, blind_s

    def judge_but_then():
        if not from_s * NS_PER_S < world.clock.now_ns() < to_s * NS_PER_S:
            judge()

    world.loop._triggers.judge_if_due = judge_but_then
    world.loop._triggers.wait_s = lambda: None
    world.run(120)
    assert any("for nobody who goes first" in problem for problem in problems(world))


def test_cameras_that_are_not_served_alike_are_found():
    world = World("thor", 2.0, 0, False, life=LIFE)
    world.served = Counter(camera_1=100, camera_2=100 * MAX_RATIO)
    assert problems(world, is_long=True) == []
    world.served["camera_1"] -= 1
    assert "not served alike" in problems(world, is_long=True)[0]


def many_worlds(first_seed, n_worlds, each_ms=10_000):
    """What happens in many random worlds, one after the other in one life of a session."""
    happenings = []
    for n in range(n_worlds):
        for happening in random_world(first_seed + n).happenings:
            about = happening.with_[0] if happening.with_ else ""
            if happening.what not in ("break", "drain", "end") and about not in ("arm", "far"):
                happenings.append(replace(happening, at_ms=happening.at_ms % each_ms + n * each_ms))
    settings = {
        "perception": {"fps": 2.0, "listen": "utterances"},
        "context": {"max_tokens": 400, "keep_tokens": 120, "notes_tokens": 24},
        "answer": {"max_tokens": 12},
        "turns": {"mode": "open"},
        "socket": {"max_waiting": 8},
    }
    happenings.sort(key=lambda happening: happening.at_ms)
    return Worlds(*(("front", "rear"), ("near",), settings, tuple(happenings)), n_worlds * each_ms)


@pytest.mark.parametrize("first_seed", [0, 9000])
def test_five_minutes_of_everything_go_step_by_step_as_the_reference_says(first_seed, monkeypatch):
    monkeypatch.setattr(worlds, "MAX_STEPS", 500_000)
    count = worlds.play(many_worlds(first_seed, 30))
    assert count["steps"] > 3000
    for kind in ("Rebased", "Noted", "TriggerEnded", "Spoken", "SpeechStopped", "Done", "reload"):
        assert count[kind] > 5, kind
