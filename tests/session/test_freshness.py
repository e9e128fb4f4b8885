"""What answers say of how sure and how fresh they are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_conversation import Robot
from test_loop import Asker, chunk, drive, frame, make, put

from edge.clock import NS_PER_S
from edge.model.constrain import grammar_of_choice
from edge.model.sampling import Sampling
from edge.senses.sound import BLOCK_NS
from edge.session.confidence import DIGITS, Certainty, log_probability
from edge.session.turn import Done, Freshness, Message, Question

__all__ = ["make"]
STALE_S = 5.0


def answered(loop, grammar="", **settings):
    """The end of a question's answer."""
    asker = Asker(loop)
    question = Question((Message("user", "Hello"),), Sampling(), 4, grammar=grammar, **settings)
    loop.ask(question, asker.deliver)
    drive(loop)
    assert isinstance(asker.events[-1], Done), asker.events
    return asker.events[-1]


def test_every_sense_says_how_old_what_the_answer_has_of_it_is(make):
    loop = make(perception={"stale_s": STALE_S, "audio_window_s": 0.3})
    # Before anything has come.
    assert answered(loop).timeline.freshness == (
        Freshness("audio", "audio", None, is_stale=True),
        Freshness("video", "video", None, is_stale=True),
    )
    put(loop, [frame(0), frame(1)], [chunk(i) for i in range(3)])
    loop._clock.sleep_until(NS_PER_S)
    drive(loop)
    assert answered(loop).timeline.freshness == (
        Freshness("microphone", "audio", 700_000_000, is_stale=False),
        Freshness("camera", "video", 500_000_000, is_stale=False),
    )
    # The limit is counted from the capture, and is itself not beyond.
    loop._clock.sleep_until(int((0.3 + STALE_S) * NS_PER_S))
    assert [f.is_stale for f in answered(loop).timeline.freshness] == [False, False]
    loop._clock.sleep_until(int((0.5 + STALE_S) * NS_PER_S))
    assert [f.is_stale for f in answered(loop).timeline.freshness] == [True, False]
    loop._clock.sleep_until(int((0.5 + STALE_S) * NS_PER_S) + 1)
    assert [f.is_stale for f in answered(loop).timeline.freshness] == [True, True]


def test_a_film_and_its_sound_are_told_apart_though_they_are_one_source(make):
    loop = make(perception={"stale_s": STALE_S, "audio_window_s": 0.3})
    film = [replace(frame(i), source="film.mp4") for i in range(2)]
    put(loop, film, [replace(chunk(i), source="film.mp4") for i in range(600, 603)])
    loop._clock.sleep_until(61 * NS_PER_S)
    drive(loop)
    heard, seen = answered(loop).timeline.freshness
    assert (heard.source, heard.age_ns, heard.is_stale) == ("film.mp4", 700_000_000, False)
    assert (seen.source, seen.age_ns, seen.is_stale) == ("film.mp4", 60_500_000_000, True)


def test_a_frame_that_only_waits_for_its_tubelet_makes_nothing_younger(make):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    put(loop, [frame(6)])
    loop._clock.sleep_until(8 * NS_PER_S)
    drive(loop)
    _, sight = answered(loop).timeline.freshness
    assert sight == Freshness("camera", "video", 7_500_000_000, is_stale=False)


def test_a_microphone_that_hears_silence_is_not_stale(bundle, engine):
    robot = Robot(bundle("base"), engine("base"), "typed")
    robot.hears(20, 0.9)
    robot.hears(int(30 * NS_PER_S / BLOCK_NS), 0.0)
    heard, _ = answered(robot.loop).timeline.freshness
    assert heard.age_ns > 25 * NS_PER_S
    assert not heard.is_stale
    robot.clock.sleep_until(robot.clock.now_ns() + 6 * NS_PER_S)
    assert answered(robot.loop).timeline.freshness[0].is_stale


def test_of_a_recalled_past_the_age_is_that_of_what_is_recalled(make):
    loop = make()
    put(loop, [frame(0), frame(1)])
    drive(loop)
    put(loop, [frame(8), frame(9)])
    drive(loop)
    loop._clock.sleep_until(5 * NS_PER_S)
    assert answered(loop).timeline.freshness[1].age_ns == NS_PER_S // 2
    recalled = answered(loop, recall_s=(5.0, 4.5)).timeline.freshness[1]
    assert recalled == Freshness("camera", "video", 4_500_000_000, is_stale=False)


@given(st.lists(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6), max_size=5))
def test_certainty_is_the_geometric_mean_of_what_was_chosen(steps):
    certainty, shares = Certainty(), []
    for values in steps:
        logits = np.array(values, np.float32)
        certainty.add(logits, 1)
        likely = np.exp(logits.astype(np.float64))
        shares.append(likely[1] / likely.sum())
        assert log_probability(logits, 1) == pytest.approx(math.log(shares[-1]), abs=1e-4)
    if not shares:
        assert certainty.value is None
        return
    expected = math.exp(sum(map(math.log, shares)) / len(shares))
    assert certainty.value == pytest.approx(expected, abs=0.6 * 10**-DIGITS)


def test_what_a_format_leaves_no_choice_about_is_no_certainty():
    certainty = Certainty()
    forced = np.array([-np.inf, 2.0, -np.inf], np.float32)
    certainty.add(forced, 1)
    assert certainty.value is None
    certainty.add(np.array([0.0, 0.0, -np.inf], np.float32), 1)
    certainty.add(forced, 1)
    assert certainty.value == 0.5


def test_an_answer_is_as_sure_as_its_tokens_were_likely(make):
    loop = make()
    engine, prompt = loop._context.engine, loop._prompt
    done = answered(loop)
    question = Question((Message("user", "Hello"),), Sampling(), 1)
    state, total = engine.new_state(), 0.0
    ids = np.concatenate([prompt.anchor(), prompt.question(question, after_media=False)])
    logits = engine.prefill(state, engine.embed(ids))
    for _ in range(done.n_completion_tokens):
        likely = np.exp(logits.astype(np.float64) - logits.max())
        total += math.log(likely.max() / likely.sum())
        logits = engine.decode(state, int(logits.argmax()))
    expected = math.exp(total / done.n_completion_tokens)
    assert done.confidence == pytest.approx(expected, abs=10**-DIGITS)
    assert 0 < done.confidence < 1
    assert answered(loop, grammar_of_choice(["yes"])).confidence is None
