"""What a moment of a session holds: everything that its parts remember."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from edge.clock import VirtualClock
from edge.features.evs import CausalPruner
from edge.senses.echo import Echo
from edge.senses.turns import TurnDetector
from edge.session.budget import Budget
from edge.session.moment import PARTS, _restore, _state_of
from edge.session.perceive import Watcher, WindowCollector
from edge.types import AudioChunk

MADE_OF = {
    "Watcher": {"name", "_prefix", "_engine", "_tokenizer", "_clock", "_start_ns", "_period_ns"}
    | {"rung"},  # the budget's
    "CausalPruner": {"_whole_pictures", "_shared_tokens"},
    "WindowCollector": {"_window_samples"},
    "TurnDetector": set(),
    "Silero": {"_convolutions", "_recurrent", "_bias", "_head", "_head_bias"},
    "Blocks": set(),
    "Echo": set(),
    "_Played": set(),
    "_Filter": set(),
    "Budget": set(),
}
"""What they are made of, which no step changes."""


def parts():
    detector = TurnDetector()
    detector._echo = Echo()
    echo = detector._echo
    return [
        Watcher(None, None, VirtualClock(), 0),
        CausalPruner(64, 2),
        WindowCollector(1.0),
        *(detector, detector._probability, detector._sound, echo, echo._played, echo._filter),
        Budget(0),
    ]


@pytest.mark.parametrize("part", parts(), ids=lambda part: type(part).__name__)
def test_nothing_that_a_part_remembers_is_left_out(part):
    kind = type(part).__name__
    assert vars(part).keys() == PARTS[kind].keys() | MADE_OF[kind]


def test_a_detector_with_an_echo_goes_on_from_a_moment():
    """Speech network, echo filter, blocks and counts: the same sound is heard alike."""
    draws = np.random.default_rng(0)

    def sound(n):
        samples = draws.normal(0, 0.1, 800).astype(np.float32)
        return AudioChunk(samples, n * 50_000_000, "mast")

    first = TurnDetector("open")
    for n in range(20):
        first.play(sound(n))
        first.push(sound(n))
    second = TurnDetector("typed")
    _restore(second, json.loads(msgspec.json.encode(_state_of(first))))
    for n in range(20, 40):
        played, heard = sound(n), sound(n)
        for one in (first, second):
            one.play(played)
        assert str(first.push(heard)) == str(second.push(heard))
    assert msgspec.json.encode(_state_of(first)) == msgspec.json.encode(_state_of(second))
