"""Each user's part of the event loop: who takes too much waits while others are there."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from edge.serve.fairness import FREE_S, MAX_DEBT_S, PART, PRESENT_S, LoopTime


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loop_time(clock):
    return LoopTime(lambda _: None, clock)


def test_whoever_is_alone_takes_all_there_is(loop_time):
    loop_time.charge("user 1", 0.4)
    assert loop_time.wait_s("user 1") == 0


def test_whoever_took_more_than_its_part_waits_for_others(loop_time):
    loop_time.charge("user 1", 0.4)
    assert loop_time.wait_s("user 2") == 0
    assert loop_time.wait_s("user 1") == pytest.approx((0.4 - FREE_S) / (PART / 2))


def test_a_small_debt_is_nothing(loop_time):
    assert loop_time.wait_s("user 2") == 0
    loop_time.charge("user 1", FREE_S)
    assert loop_time.wait_s("user 1") == 0
    loop_time.charge("user 1", FREE_S)
    assert loop_time.wait_s("user 1") == pytest.approx(FREE_S / (PART / 2))


def test_a_debt_is_paid_off_as_time_goes_by(loop_time, clock):
    loop_time.wait_s("user 2")
    loop_time.charge("user 1", 0.1)
    before_s = loop_time.wait_s("user 1")
    clock.now_s += before_s / 2
    loop_time.wait_s("user 2")
    assert loop_time.wait_s("user 1") == pytest.approx(before_s / 2)
    clock.now_s += before_s / 2 + 1e-6
    loop_time.wait_s("user 2")
    assert loop_time.wait_s("user 1") == 0


def test_what_is_paid_off_is_forgotten_and_nothing_is_saved_up(loop_time, clock):
    loop_time.wait_s("user 2")
    loop_time.charge("user 1", 0.01)
    clock.now_s += 100
    loop_time.wait_s("user 2")
    loop_time.charge("user 1", 0.4)
    assert loop_time.wait_s("user 1") == pytest.approx((0.4 - FREE_S) / (PART / 2))


def test_others_who_have_asked_for_nothing_lately_are_not_waited_for(loop_time, clock):
    loop_time.wait_s("user 2")
    loop_time.charge("user 1", 0.4)
    clock.now_s += PRESENT_S - 0.01
    assert loop_time.wait_s("user 1") > 0
    clock.now_s += 0.02
    assert loop_time.wait_s("user 1") == 0


def test_the_more_are_there_the_less_has_each(loop_time):
    for k in range(2, 6):
        loop_time.wait_s(f"user {k}")
    loop_time.charge("user 1", 0.1)
    assert loop_time.wait_s("user 1") == pytest.approx((0.1 - FREE_S) / (PART / 5))


def test_no_request_however_costly_is_waited_for_without_end(loop_time):
    loop_time.wait_s("user 2")
    for _ in range(100):
        loop_time.charge("user 1", 10.0)
    assert loop_time.wait_s("user 1") == pytest.approx((MAX_DEBT_S - FREE_S) / (PART / 2))


def compute(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def owed(loop_time: LoopTime, user: str) -> float:
    loop_time.wait_s("user 2")
    return loop_time.wait_s(user) * PART / 2 + FREE_S


def test_steps_are_charged_and_what_is_between_them_is_not(loop_time):
    async def work() -> str:
        compute(0.08)
        await asyncio.sleep(0.1)
        compute(0.08)
        return "done"

    assert asyncio.run(loop_time.charged("user 1", work())) == "done"
    assert 0.16 <= owed(loop_time, "user 1") < 0.2


def test_what_computes_in_another_thread_is_charged_too(loop_time):
    def work(seconds: float) -> str:
        compute(seconds)
        time.sleep(0.1)
        return "done"

    assert asyncio.run(loop_time.in_thread("user 1", work, 0.1)) == "done"
    assert 0.1 <= owed(loop_time, "user 1") < 0.15


def test_whoever_goes_meanwhile_is_charged_all_the_same(loop_time):
    async def gone() -> None:
        asking = asyncio.create_task(loop_time.in_thread("user 1", compute, 0.1))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(gone())  # its end waits for the thread
    assert owed(loop_time, "user 1") >= 0.1


def test_a_failure_is_charged_and_passed_on(loop_time):
    async def work() -> None:
        compute(0.1)
        raise ValueError("no")

    def in_thread() -> None:
        compute(0.1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(loop_time.charged("user 1", work()))
    with pytest.raises(ValueError, match="no"):
        asyncio.run(loop_time.in_thread("user 1", in_thread))
    assert owed(loop_time, "user 1") >= 0.2


def test_what_is_waited_for_may_fail_and_its_work_goes_on(loop_time):
    async def work() -> str:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except asyncio.TimeoutError:
            return "too late"
        return "in time"

    assert asyncio.run(loop_time.charged("user 1", work())) == "too late"


def test_work_can_be_cancelled_and_cleans_up(loop_time):
    left = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append("clean")

    async def cancelled() -> None:
        task = asyncio.create_task(loop_time.charged("user 1", work()))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert left == ["clean"]


def test_what_a_request_held_is_free_once_its_client_has_gone(loop_time):
    class Body:
        """What a client has sent."""

    held = []

    async def work() -> None:
        body = Body()
        held.append(weakref.ref(body))
        await asyncio.Event().wait()

    async def gone() -> bool:
        asking = asyncio.create_task(loop_time.charged("user 1", work()))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        del asking
        await asyncio.sleep(0)
        return held[0]() is None

    gc.disable()  # it may come much later
    try:
        assert asyncio.run(gone())
    finally:
        gc.enable()


def test_a_turn_comes_when_the_debt_is_paid_off():
    held_back: list[float] = []
    loop_time = LoopTime(held_back.append)

    async def turns() -> tuple[float, float]:
        loop_time.wait_s("user 2")
        loop_time.charge("user 1", FREE_S + 0.02)
        began_s = time.monotonic()
        await loop_time.turn("user 2")
        others_s = time.monotonic() - began_s
        await loop_time.turn("user 1")
        return others_s, time.monotonic() - began_s

    others_s, own_s = asyncio.run(turns())
    assert others_s < 0.05
    assert own_s >= 0.02 / (PART / 2) - 0.001
    assert sum(held_back) == pytest.approx(own_s - others_s, abs=0.01)
