"""A live session in random worlds does what the reference says, step by step."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from chained_engine import ChainedEngine, Speed, small
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import (
    TEXTS,
    Happening,
    Play,
    World,
    cut,
    fails,
    model,
    play,
    random_world,
    replayed,
    replayed_by_itself,
)

from edge.clock import VirtualClock
from edge.model.sampling import Sampling
from edge.senses.turn_events import SpeechStarted
from edge.session.answer import answer
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.perception import Perception
from edge.session.triggers import TriggerEnded
from edge.session.turn import Message, Question, SpeechStopped, TextDelta, Turn

N_WORLDS = 60
QUIET = {
    "perception": {"fps": 2.0},
    "context": {"max_tokens": 240, "keep_tokens": 100},
    "answer": {"max_tokens": 12},
    "turns": {},
    "socket": {"max_waiting": 8},
}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def test_worlds_go_as_the_reference_says_and_show_all_that_there_is():
    count = sum((play(random_world(seed)) for seed in range(1, N_WORLDS)), play(random_world(0)))
    seen = ("Stages", "Refused", "Rebased", "Degraded", "Noted", "TriggerBegan", "TriggerEnded")
    seen += ("TextDelta", "ToolCall", "Done", "Failed", SpeechStarted.__name__, "Spoken")
    assert {kind for kind in seen if not count[kind]} == set()
    refused = ("ask", "wish", "trigger", "delete")
    assert {what for what in refused if not count[f"{what} refused"]} == set()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_world_goes_as_the_reference_says(seed):
    play(random_world(seed))


@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_world_can_be_recorded_and_run_again(seed):
    world = random_world(seed)
    kept = [happening for happening in world.happenings if happening.what != "break"]
    world = replace(world, happenings=tuple(kept), for_ms=min(world.for_ms, 12_000))
    with tempfile.TemporaryDirectory() as folder:
        for step in replayed(world, Path(folder) / "world.mcap"):
            assert step.events == step.step.events, step.number


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), n_steps=st.integers(5, 400))
def test_any_file_of_a_recorded_world_runs_again_by_itself(seed, n_steps):
    """Wherever it begins: what the session remembers stands at its beginning."""
    world = random_world(seed)
    kept = [happening for happening in world.happenings if happening.what != "break"]
    world = replace(world, happenings=tuple(kept), for_ms=min(world.for_ms, 12_000))
    with tempfile.TemporaryDirectory() as folder:
        for n, steps in enumerate(replayed_by_itself(world, Path(folder), n_steps)):
            for step in steps:
                assert step.events == step.step.events, (n, step.number)


EXAMPLES = {
    "half a character before a check": World(
        ("front",),
        (),
        QUIET,
        tuple(
            Happening(100 + 300 * n, "ask", ("Hello", n, {"consistency": True, "seed": n}))
            for n in range(1, 20)
        ),
    ),
    "a forced rebase while notes are written": World(
        ("front",),
        ("near", "far"),
        {
            "perception": {"fps": 4.0, "listen": "windows", "audio_window_s": 1.0},
            "context": {
                "max_tokens": 240,
                "keep_tokens": 60,
                "notes_tokens": 30,
                "system": "Be brief.",
            },
            "answer": {"max_tokens": 12},
            "turns": {},
            "socket": {"max_waiting": 1},
        },
        (
            Happening(163, "jump", ("front", -177, 708)),
            Happening(617, "ask", (TEXTS[-1], 40, {"consistency": True, "stop": ("the", "a")})),
            Happening(3551, "stall", (1369,)),
        ),
        8111,
        4.0,
        speed=Speed((26.2, 6.55), (32.7, 0.2), (78.6, 0.05), (52.4, 0.0)),
        room_tokens=700,
    ),
    "a question that the cuts of its sound hold": World(
        ("front",),
        ("near",),
        {
            **QUIET,
            "perception": {"fps": 2.0, "listen": "utterances"},
            "context": {"max_tokens": 640, "keep_tokens": 300},
            "turns": {"mode": "open"},
        },
        (Happening(40, "speak", ("near", 14_800)), Happening(14_400, "stall", (2000,))),
        for_ms=17_500,
    ),
}


def test_sources_that_go_end_what_is_said_and_what_is_watched():
    """The button is held for a minute without sound; for half of one nothing is seen."""
    talk = {"perception": {"fps": 2.0, "listen": "utterances"}, "turns": {"mode": "push_to_talk"}}
    watched = [{"condition": f"Is it {i}?", "modality": "video"} for i in range(12)]
    world = World(
        *(("front",), ("near",), {**QUIET, **talk}),
        (
            *(Happening(100 + i, "trigger", (watched[i],)) for i in range(12)),
            Happening(5000, "button", ("begin",)),
            Happening(5500, "speak", ("near", 2000)),
            Happening(7000, "away", ("near", 70_000)),
            Happening(8000, "away", ("front", 40_000)),
        ),
        90_000,
    )
    played = Play(world)
    played.run()
    causes = [event.cause for event in played.all if isinstance(event, TriggerEnded)]
    assert causes.count("unseen") > 0
    stops = [event for event in played.spoken if isinstance(event, SpeechStopped)]
    assert [event.is_asked for event in stops] == [False]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_world_that_is_seldom_drawn_goes_as_the_reference_says(name):
    play(EXAMPLES[name])


def test_a_session_that_decides_otherwise_is_noticed_and_its_world_made_small(monkeypatch):
    """The first camera always first, as it once was."""

    world = World(
        *(("front", "rear"), (), QUIET),
        tuple(Happening(150 * n, "ask", ("Hello", 20, {})) for n in range(30)),
        speed=Speed(see=(40.0, 10.0)),
    )
    assert not fails(world)
    step = Perception.step

    def unfair(self):
        self._senses = sorted(self._senses, key=lambda sense: (not sense.hears, sense.name))
        return step(self)

    monkeypatch.setattr(Perception, "step", unfair)
    assert fails(world)
    smaller = cut(world, fails)
    assert fails(smaller)
    assert len(smaller.happenings) < len(world.happenings) / 4


def test_what_is_told_is_the_same_whether_its_origin_is_looked_for_or_not():
    spec, tokenizer, template = model()
    prompt, clock = LivePrompt(tokenizer, template, ""), VirtualClock(1)
    engine = ChainedEngine(clock, small(spec, 1200))
    context = LiveContext(
        engine, prompt.anchor(), prompt.separator(), max_tokens=400, keep_tokens=200
    )
    ends = []
    for n in range(40):
        told = []
        question = Question((Message("user", f"Tell me {n}"),), Sampling(), 1 + n % 5)
        for asked in (question, replace(question, consistency=True)):
            events = []
            done = answer(context, prompt, Turn(asked, 1, events.append), clock)
            assert (done.consistency is None) is not asked.consistency
            told.append("".join(e.text for e in events if isinstance(e, TextDelta)))
        assert told[0] == told[1]
        ends.append(told[0][-1:])
    assert "\N{REPLACEMENT CHARACTER}" in ends  # half a character
