"""The budget's ladder, and what leads down and up on it."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from run_again import run_again

from edge.clock import NS_PER_S
from edge.session.budget import Budget, Load
from edge.session.health import BoardHealth

LATE, CALM = Load(2.1, 0.0), Load(0.0, 0.0)


def look(budget, at_s, load):
    step = budget.look(round(at_s * NS_PER_S), load)
    return step and (step.rung.name, step.cause)


def names(steps):
    return [step and step[0] for step in steps]


def test_the_ladder():
    """Each rung takes something more away, and says what is left."""
    module = run_again("edge.session.budget")
    budget, rungs = module.Budget(0), []
    for at_s in range(3, 21, 3):
        rungs.append(budget.rung)
        budget.look(at_s * NS_PER_S, LATE)
    shown = [astuple(rung) for rung in rungs]
    assert shown == [
        ("full", 1, 1.0, 1.0, True),
        ("fewer tokens", 1, 0.5, 1.0, True),
        ("fewer frames", 2, 0.5, 1.0, True),
        ("lower resolution", 2, 0.5, 0.5, True),
        ("sound only", 0, 1.0, 1.0, True),
        ("answers only", 0, 1.0, 1.0, False),
    ]


def on(temperature_c=None, limit_c=None, **more):
    return Load(0.0, 0.0, BoardHealth(temperature_c, limit_c, **more))


@pytest.mark.parametrize(
    ("load", "cause"),
    [
        (Load(2.0, 0.0), None),
        (Load(2.1, 0.0), "2.1 s late"),
        (on(memory_share=0.95), None),
        (on(memory_share=0.96), "96% of the memory in use"),
        (on(97.0, 99.0), None),
        (on(97.5, 99.0), "98 °C of 99 °C"),
        (on(97.5), None),
        (on(None, 99.0), None),
        (on(is_throttled=True), "the board throttles"),
        (on(80.0, is_throttled=True), "the board throttles at 80 °C"),
        (on(power_w=40.0, max_power_w=40.0), None),
        (on(power_w=50.0, max_power_w=40.0), "125% of the power that the board may take"),
        (on(power_w=50.0), None),
        (on(max_power_w=40.0), None),
        (on(power_w=50.0, max_power_w=0.0), None),
    ],
)
def test_what_leads_down_is_said(load, cause):
    assert look(Budget(0), 3, load) == (cause and ("fewer tokens", cause))


def test_lateness_comes_before_the_board():
    load = Load(2.1, 0.0, BoardHealth(memory_share=0.99))
    assert look(Budget(0), 3, load) == ("fewer tokens", "2.1 s late")


def test_one_busy_second_is_no_overload():
    budget = Budget(0)
    causes = [look(budget, 3 + n, Load(0.0, 1.0)) for n in range(4)]
    # The smoothed share is 0.5, 0.75, 0.875, 0.9375.
    assert causes == [None, None, None, ("fewer tokens", "busy for 94% of the time")]


def test_the_effect_of_a_step_is_awaited():
    budget = Budget(0)
    steps = [look(budget, at_s, LATE) for at_s in (2.9, 3, 5.9, 6, 9, 12, 15, 18, 99)]
    assert names(steps) == [
        None, "fewer tokens", None, "fewer frames", "lower resolution", "sound only",
        "answers only", None, None,
    ]  # fmt: skip


def test_a_board_s_is_awaited_for_longer():
    budget, hot = Budget(0), on(is_throttled=True)
    steps = [look(budget, at_s, hot) for at_s in (3, 6, 17.9, 18)]
    assert names(steps) == ["fewer tokens", None, None, "fewer frames"]
    assert look(budget, 21, LATE)[0] == "lower resolution"


def test_a_calm_of_twenty_seconds_leads_up():
    budget = Budget(0)
    for at_s in (3, 6):
        look(budget, at_s, LATE)
    steps = [look(budget, at_s, CALM) for at_s in range(7, 60)]
    up = {at_s: step for at_s, step in enumerate(steps, 7) if step}
    assert up == {26: ("fewer tokens", "calm for 20 s"), 46: ("full", "calm for 20 s")}


def test_what_is_busy_is_not_calm():
    for share, leads_up in ((0.55, True), (0.56, False)):
        budget = Budget(0)
        look(budget, 3, Load(2.1, share))
        steps = [look(budget, at_s, Load(0.0, share)) for at_s in range(4, 60)]
        assert any(steps) is leads_up


@pytest.mark.parametrize(
    ("too_much", "better", "calm"),
    [
        (on(98.0, 99.0), on(91.0, 99.0), on(90.9, 99.0)),
        (on(memory_share=0.96), on(memory_share=0.9), on(memory_share=0.89)),
        (on(power_w=41.0, max_power_w=40.0), on(power_w=36.0, max_power_w=40.0),
         on(power_w=35.9, max_power_w=40.0)),
    ],
)  # fmt: skip
def test_what_has_pushed_down_must_be_clearly_better(too_much, better, calm):
    budget = Budget(0)
    assert look(budget, 3, too_much)
    assert not any(look(budget, at_s, better) for at_s in range(4, 60))
    steps = [look(budget, at_s, calm) for at_s in range(60, 80)]
    assert names(steps) == [None] * 19 + ["full"]
    # What has not pushed this time does not count.
    assert look(budget, 83, LATE)
    assert any(look(budget, at_s, better) for at_s in range(84, 160))


def up_at_s(budget, from_s):
    return next(at_s for at_s in range(from_s, 9999) if look(budget, at_s, CALM))


def test_a_rung_that_did_not_hold_waits_longer_the_next_time_and_one_that_held_does_not():
    budget = Budget(0)
    look(budget, 3, LATE)
    at_s, waited_s = 3, []
    for _ in range(9):
        up_s = up_at_s(budget, at_s + 1)
        waited_s.append(up_s - at_s)
        at_s = up_s + 4
        assert look(budget, at_s, LATE)
    assert waited_s == [20, 40, 80, 160, 320, 640, 1280, 1280, 1280]
    up_s = up_at_s(budget, at_s + 1)
    for held_s in range(up_s + 1, up_s + 1282):
        look(budget, held_s, CALM)
    down_s = up_s + 1283
    look(budget, down_s, LATE)
    assert up_at_s(budget, down_s + 1) - down_s == 20


def test_a_step_down_that_followed_no_step_up_lengthens_nothing():
    budget = Budget(0)
    for at_s in (3, 6, 9):
        look(budget, at_s, LATE)
    assert up_at_s(budget, 10) == 29
