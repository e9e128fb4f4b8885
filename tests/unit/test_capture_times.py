"""The times of a source with a clock of its own, which jitters, drifts and is set back."""

from __future__ import annotations

import numpy as np
import pytest

from edge.clock import NS_PER_MS, NS_PER_S, VirtualClock
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


ORIGIN_S = 7
"""By its own clock, what is second 1000 of ours."""


def given_ms(items, n_held=0):
    """When each item was captured, ms after second 1000.

    Args:
        items: when each was captured by its source's own clock, and when it came; ms.
    """
    clock, found = VirtualClock(1000 * NS_PER_S), []
    times = CaptureTimes(clock, n_held)
    for own_ms, came_ms in items:
        clock.sleep_until(1000 * NS_PER_S + came_ms * NS_PER_MS)
        given_ns = times.of(ORIGIN_S * NS_PER_S + own_ms * NS_PER_MS)
        found.append((given_ns - 1000 * NS_PER_S) / NS_PER_MS)
    return found


def test_what_is_late_moves_nothing_however_the_first_came():
    late_ms = (30, 0, 200, 0, 40)
    given = given_ms([(1000 * i, 1000 * i + late) for i, late in enumerate(late_ms)])
    assert given == [30, 1000, 2000, 3000, 4000]  # of the first nothing better is known


def test_a_time_that_is_near_to_ours_is_ours():
    for late_ns, taken in (
        (0, True),
        (NS_PER_S - 1, True),
        (NS_PER_S, False),
        (1 - NS_PER_S, False),  # nothing is captured later than it comes
    ):
        now_ns = 50 * NS_PER_S
        given_ns = CaptureTimes(VirtualClock(now_ns)).of(now_ns - late_ns)
        assert given_ns == (now_ns - late_ns if taken else now_ns)


def test_no_time_goes_back():
    now_ns = 50 * NS_PER_S
    times = CaptureTimes(VirtualClock(now_ns))
    own_ms = (33, 40, 20, None, 10)
    given = [times.of(None if ms is None else now_ns - ms * NS_PER_MS) for ms in own_ms]
    assert [(now_ns - ns) // NS_PER_MS for ns in given] == [33, 33, 20, 0, 0]
    assert times.of(None, now_ns + 5) == now_ns + 5  # when it came is told


def test_more_than_a_second_late_is_another_beginning():
    for late_ms, given in ((1000, 2000), (1001, 3001)):
        assert given_ms([(0, 0), (2000, 2000 + late_ms)])[1] == given


@pytest.mark.parametrize(("step_ms", "n_late"), [(500, 8), (250, 10), (1000, 8), (2500, 8)])
def test_all_are_late_for_two_seconds_and_eight_are_before_it_is_their_time(step_ms, n_late):
    late_ms = [0, *(300 - n for n in range(12))]  # the least counts
    given = given_ms([(step_ms * i, step_ms * i + late) for i, late in enumerate(late_ms)])
    off_ms = [ms - step_ms * i for i, ms in enumerate(given)]
    assert off_ms[:n_late] == [0] * n_late
    assert off_ms[n_late] == 300 - (n_late - 1)
    assert off_ms[n_late:] == late_ms[n_late:]


def test_two_seconds_are_long_enough():
    given = given_ms([(250 * i, 250 * i + 300 * (i > 0)) for i in range(11)])
    assert [ms - 250 * i for i, ms in enumerate(given)] == [0] * 9 + [300] * 2


def test_one_that_is_on_time_shows_that_the_others_are_late():
    late_ms = [0, *[300] * 7, 0, *[300] * 7, 0]
    given = given_ms([(500 * i, 500 * i + late) for i, late in enumerate(late_ms)])
    assert given == [500 * i for i in range(len(late_ms))]


def test_those_that_must_follow_first_are_taken_off():
    own_ms = [0, 100, 200, 380, 1380, 1280, 1380]
    given = given_ms([(ms, ms + 3000 * (i > 3)) for i, ms in enumerate(own_ms)], n_held=2)
    # Steps of 100 and then 180 ms; one of a second, or back, is none.
    step_ms = 100 + 80 / 8
    assert given[:4] == [0, 0, 0, 380 - 2 * step_ms]
    assert given[4] == 4380 - 2 * step_ms
    assert given[5] == given[4]
    assert given[6] == pytest.approx(4380 - 2 * (step_ms - 10 / 8))


def test_a_first_item_waits_for_nobody_that_is_known():
    """Also where its source has just begun to count."""
    times = CaptureTimes(VirtualClock(50 * NS_PER_S), n_held=2)
    assert times.of(NS_PER_S // 2) == 50 * NS_PER_S
