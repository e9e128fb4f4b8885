"""The real loop in scripted worlds, on a virtual clock, with and without faults."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import DEADLINE_S, FAULTS, HOT, TEXT_TOKENS, WARM, World, check, report

from edge.clock import NS_PER_S
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.session.budget import LADDER, Budget, Load
from edge.session.health import BoardHealth, linux_health


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_goes_wrong_the_invariants_hold(seed):
    world = World("thor", 2.0, seed, faults=True)
    world.run(90, check)
    assert not world.waiting
    assert world.glass_to_state_s


def test_a_seed_gives_the_same_world_again():
    first, second = (World("agx-orin-64", 4.0, 11, faults=True) for _ in range(2))
    for world in (first, second):
        world.run(60)
    assert report(first, 60, 0) == report(second, 60, 0)
    assert first.first_token_s == second.first_token_s


def test_a_turn_never_waits_for_a_rebase():
    """Its first token waits at most for one segment, and the question's own prefill."""
    world = World("thor", 2.0, 3, faults=False)
    world.run(1800)
    assert world.n_rebases > 50
    costs = world.engine._costs
    n_chunks = -(-(256 + TEXT_TOKENS + 1) // MAX_PREFILL_TOKENS)
    bound = world.config.context.max_tokens
    one_chunk = costs.prefill.ms(256) + bound * costs.past.ms(256)
    one_step = max(costs.see.ms(256), n_chunks * one_chunk)
    own = costs.prefill.ms(30) + bound * costs.past.ms(30) + costs.snapshot.ms(0)
    assert max(s for _, s in world.first_token_s) <= (one_step + own) / 1000
    assert world.n_dropped == 0


def test_a_call_costs_more_the_more_context_it_attends_to():
    """Else "flat in the history" would hold by construction."""
    world = World("thor", 2.0, 0, faults=False)
    past, state = world.engine._costs.past, world.engine.new_state()
    seconds = []
    for n_past in (0, 8192):
        state.n_tokens = n_past
        began_ns = world.clock.now_ns()
        world.engine.prefill(state, world.engine.embed(np.zeros(20, np.int32)))
        seconds.append((world.clock.now_ns() - began_ns) / NS_PER_S)
    assert seconds[1] - seconds[0] == pytest.approx(8192 * past.ms(20) / 1000, rel=1e-6)
    assert past.ms(20) > 0


def test_turns_stay_in_time_under_overload_on_the_slower_board_too():
    """An answer of another turn, 1.8 s long there, does not hold them up."""
    world = World("agx-orin-64", 7.0, 0, faults=False)
    for at_s in range(30, 600, 30):
        for since_ms in (0, 300, 600):
            world._schedule(at_s * NS_PER_S + since_ms * 1_000_000, asked(world))
    world.run(640)
    assert world.steps
    assert len(world.first_token_s) > 57
    assert max(s for _, s in world.first_token_s) < 0.6
    assert world.n_refused == 0


def asked(world):
    world.ask(world.clock.now_ns(), 60)
    yield 1 << 62


def test_overload_is_answered_by_the_budget_and_turns_stay_in_time():
    world = World("thor", 16.0, 5, faults=False)
    world.run(600)
    assert world.steps
    assert world.steps[-1].rung != LADDER[0]
    assert all(s <= DEADLINE_S for _, s in world.first_token_s)
    assert world.busy_ms / 1000 < 600


def test_memory_is_bounded_whatever_comes():
    world = World("thor", 10.0, 6, faults=True)
    world.run(600)
    assert world.most_tokens <= world.config.context.max_tokens


def test_every_fault_is_one_that_the_world_knows():
    assert all(callable(getattr(World, f"_{kind}")) for kind in FAULTS)


def step(budget, at_s, **load):
    found = budget.look(int(at_s * NS_PER_S), Load(**{"lateness_s": 0, "busy_share": 0, **load}))
    return found.rung.name if found else None


def test_the_budget_goes_down_when_it_is_too_much_and_up_after_a_calm():
    budget = Budget(0)
    assert step(budget, 1, lateness_s=3) is None  # a change is awaited first
    assert step(budget, 4, lateness_s=3) == "fewer tokens"
    assert step(budget, 5, lateness_s=3) is None
    assert step(budget, 8, lateness_s=3) == "fewer frames"
    assert step(budget, 20) is None
    assert step(budget, 28) == "fewer tokens"
    assert step(budget, 48) == "full"


def test_one_slow_step_is_no_overload():
    budget = Budget(0)
    assert step(budget, 5, busy_share=1.0) is None
    assert step(budget, 6, busy_share=0.2) is None
    assert step(budget, 7, busy_share=1.0) is None
    while budget.rung is LADDER[0]:
        step(budget, 8, busy_share=1.0)


def test_a_rung_that_did_not_hold_waits_longer_the_next_time():
    budget, up = Budget(0), []
    at_s, loaded = 0, True
    while at_s < 600:
        at_s += 1
        name = step(budget, at_s, busy_share=0.95 if loaded else 0.3)
        if name == "full":
            up.append(at_s)
        if name:
            loaded = name == "full"
    waits = [later - earlier for earlier, later in pairwise(up)]
    assert waits == sorted(waits)
    assert waits[-1] > 3 * waits[0]


def test_the_last_rung_is_the_last():
    budget = Budget(0)
    for at_s in range(4, 60, 4):
        step(budget, at_s, lateness_s=9)
    assert budget.rung is LADDER[-1]


WELL = BoardHealth(60.0, 95.0, memory_share=0.5, power_w=20.0, max_power_w=40.0)


@pytest.mark.parametrize(
    ("unwell", "better", "cause"),
    [
        ({"temperature_c": 94.0}, {"temperature_c": 90.0}, "94 °C of 95 °C"),
        (
            {"temperature_c": 99.0, "is_throttled": True},
            {"temperature_c": 90.0},
            "the board throttles at 99 °C",
        ),
        ({"memory_share": 0.97}, {"memory_share": 0.92}, "97% of the memory in use"),
        ({"power_w": 44.0}, {"power_w": 38.0}, "110% of the power that the board may take"),
    ],
    ids=["heat", "throttling", "memory", "power"],
)
def test_a_board_that_is_unwell_pushes_down_and_comes_back_only_when_it_is_clearly_better(
    unwell, better, cause
):
    budget = Budget(0)
    found = []
    for at_s in range(1, 240):
        state = unwell if at_s < 40 else better if at_s < 120 else {}
        health = replace(WELL, **state)
        degraded = budget.look(at_s * NS_PER_S, Load(0, 0, health))
        if degraded:
            found.append((at_s, degraded.cause, degraded.rung))
    down = [(at_s, why) for at_s, why, _ in found if not why.startswith("calm")]
    assert {why for _, why in down} == {cause}
    assert [at_s for at_s, _ in down] == [3, 18, 33]  # its effect is awaited
    up = [at_s for at_s, why, _ in found if why.startswith("calm")]
    assert min(up) >= 120 + Budget.CALM_S - 1  # a little better is not well
    assert budget.rung is LADDER[0]


def test_what_is_not_well_but_pushed_nothing_keeps_nobody_down():
    """A board that always has 92 % of its memory in use, and is late once."""
    budget, found = Budget(0), []
    for at_s in range(1, 60):
        health = replace(WELL, memory_share=0.92, temperature_c=90.0, power_w=39.0)
        load = Load(2.5 if at_s == 5 else 0.0, 0.0, health)
        if degraded := budget.look(at_s * NS_PER_S, load):
            found.append(degraded.cause)
    assert found == ["2.5 s late", "calm for 20 s"]


def test_heat_in_a_world_is_an_event_with_its_cause():
    world = World("thor", 2.0, 1, faults=False)
    world.run(30)
    world._heat(5.0)
    world.run(30)
    assert "the board throttles at 97 °C" in {step.cause for step in world.steps}
    assert world.sight._perceiver.rung != LADDER[0]


def test_a_board_that_is_well_again_is_told_so_although_nothing_comes_any_more():
    """The sources have gone: nothing wakes the loop but what it waits for."""
    world = World("thor", 2.0, 1, faults=False)
    world.health = HOT
    world.run(30)
    assert world.steps[-1].rung != LADDER[0]
    world.health, loop, clock = WARM, world.loop, world.clock
    while (wait_s := loop._wait_s()) is not None:
        clock.sleep_until(clock.now_ns() + int(wait_s * NS_PER_S) + 1)
        loop.step()
    assert world.steps[-1].rung == LADDER[0]


def test_linux_says_how_warm_it_is_and_how_full(tmp_path):
    assert linux_health(tmp_path) == BoardHealth()
    (tmp_path / "proc").mkdir()
    text = "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:  250 kB\nHugePages_Total: 0\n"
    (tmp_path / "proc/meminfo").write_text(text)
    for n, (now, kind, limit) in enumerate(
        [(50_000, "passive", 90_000), (80_000, "passive", 95_000), (99_000, "critical", 99_500)]
    ):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{n}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(f"{now}\n")
        (zone / "trip_point_0_type").write_text(f"{kind}\n")
        (zone / "trip_point_0_temp").write_text(f"{limit}\n")
    assert linux_health(tmp_path) == BoardHealth(80.0, 95.0, memory_share=0.75)
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").unlink()
    assert linux_health(tmp_path).temperature_c == 50.0
