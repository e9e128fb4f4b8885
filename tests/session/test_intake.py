"""What of the encoded enters a context at once, what has no room, and what is kept of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edge.clock import VirtualClock
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.errors import CapacityError
from edge.session.intake import Intake, Refused
from edge.session.perceive import Seen
from edge.session.slot import Perceived
from edge.types import Evidence, Stages

TOO_MANY = MAX_PREFILL_TOKENS + 100


class Room:
    """A context that has room for segments below `TOO_MANY` tokens."""

    def __init__(self):
        self.n_tokens, self.entered = 0, []

    def n_rows(self, perceived):
        return len(perceived.embeddings)

    def enter(self, perceived):
        if self.n_rows(perceived) >= TOO_MANY:
            raise CapacityError("segment", "is too long", "capture less")
        self.entered.append(self.n_rows(perceived))

    def finish(self):
        self.n_tokens = sum(self.entered)


class Script:
    """A sense whose segments have so many tokens."""

    name = "script"

    def __init__(self, *lengths):
        self.lengths = list(lengths)

    def encode(self):
        rows, at_ns = np.zeros((self.lengths.pop(0), 1), np.float32), len(self.lengths)
        perceived = Perceived("audio", rows, Evidence("microphone", at_ns, at_ns))
        return Seen(perceived, Stages("audio", at_ns, at_ns, at_ns, at_ns), at_ns)


def filled(*lengths):
    """An intake with so many tokens in each segment, its context, and what it tells."""
    context, told = Room(), []
    intake, script = Intake(context, VirtualClock(), told.append, Counter()), Script(*lengths)
    while script.lengths:
        assert intake.encode(script)
    return intake, context, told


@pytest.mark.parametrize(
    ("lengths", "n_entered"),
    [
        ((100, 100, 100), 2),
        ((128, 128, 1), 2),
        ((128, 127, 1, 1), 3),
        ((MAX_PREFILL_TOKENS, 1), 1),
        ((MAX_PREFILL_TOKENS + 1, 1), 1),
        ((1, MAX_PREFILL_TOKENS), 1),
    ],
)
def test_as_many_enter_as_one_prefill_takes(lengths, n_entered):
    intake, context, told = filled(*lengths)
    intake.append()
    assert context.entered == list(lengths[:n_entered])
    assert intake.n_pending == len(lengths) - n_entered
    assert [stages.n_tokens for stages in told] == context.entered
    intake.append_all()
    assert context.entered == list(lengths)


def test_what_has_no_room_is_told_and_what_comes_behind_it_enters():
    intake, context, told = filled(TOO_MANY, 10, TOO_MANY)
    intake.append_all()
    assert context.entered == [10]
    assert [type(one) for one in told] == [Refused, Stages, Refused]


@pytest.mark.parametrize(
    ("lengths", "is_full"), [((), False), ((100, 27), False), ((64, 64), True)]
)
def test_it_is_full_from_half_a_prefill_on(lengths, is_full):
    assert filled(*lengths)[0].is_full is is_full


def test_the_stages_of_the_last_32_segments_are_kept():
    intake, _, told = filled(*range(1, 41))
    intake.append_all()
    assert len(told) == 40
    assert list(intake.recent) == told[-32:]
