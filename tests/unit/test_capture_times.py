"""The times of a source with a clock of its own, which jitters, drifts and is set back."""

from __future__ import annotations

import numpy as np
import pytest

from edge.clock import NS_PER_S, VirtualClock
from edge.senses.live import CaptureTimes


def errors_s(source_s, late_s, fps, seconds):
    """How far the time of each frame is off, given what its source's clock says and its delay."""
    clock, found = VirtualClock(1000 * NS_PER_S), []
    times = CaptureTimes(clock)
    for n in range(round(seconds * fps)):
        at_s = n / fps
        clock.sleep_until(round((1000 + at_s + late_s(n)) * NS_PER_S))
        given_ns = times.of(round(source_s(at_s) * NS_PER_S))
        found.append(given_ns / NS_PER_S - 1000 - at_s)
    return np.array(found)


@pytest.mark.parametrize("fps", [2.0, 30.0])
@pytest.mark.parametrize("back_s", [0.1, 0.5, 0.9])
def test_a_clock_that_is_set_back_is_followed(fps, back_s):
    found = errors_s(lambda at_s: at_s - (back_s if at_s >= 10 else 0), lambda _: 0.02, fps, 30)
    n_after = round((10 + max(3, 10 / fps)) * fps)
    assert abs(found[n_after:] - 0.02).max() < 0.001


def test_late_frames_move_nothing_and_drift_is_followed():
    rng = np.random.default_rng(0)
    late_s = rng.exponential(0.02, 9000)
    late_s[3000:3050] += 0.8  # a network that is held up for 1.7 s
    found = errors_s(lambda at_s: at_s * (1 - 1e-4), lambda n: late_s[n], 30.0, 300)
    assert abs(found[300:]).max() < 0.015
