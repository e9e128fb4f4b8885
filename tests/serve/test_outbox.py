"""What waits for one client, put there by other threads."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import deque

import pytest
from serve.scripted import DONE, TIMEOUT_S

from edge.serve.outbox import Outbox, first_text_hurried
from edge.session.turn import TextDelta, ToolCall

N_THREADS, N_EVENTS = 3, 5000


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class CountingLoop(asyncio.SelectorEventLoop):
    """Knows how often other threads called it: each call writes to a pipe and wakes it."""

    n_calls = 0

    def call_soon_threadsafe(self, *arguments, **keywords):
        self.n_calls += 1
        return super().call_soon_threadsafe(*arguments, **keywords)


def counted(main):
    """What `main` returns, given a loop that counts."""
    with contextlib.closing(CountingLoop()) as loop:
        return loop.run_until_complete(main(loop))


def test_whoever_took_everything_at_once_hears_of_what_comes_next():
    """Each time, though the reader never goes on in between; together come at the cost of one."""

    async def main(loop):
        outbox = Outbox(16, lambda: pytest.fail("there are two at a time"))
        taken = []

        def at_once(waiting):
            taken.append([*waiting])
            waiting.clear()

        outbox.at_once = at_once
        reader = asyncio.create_task(outbox.next())
        await asyncio.sleep(0)  # now it waits
        for number in range(0, 6, 2):
            outbox.deliver(number)
            outbox.deliver(number + 1)
            await asyncio.sleep(0)
            assert taken[-1] == [number, number + 1]
        assert not reader.done()
        outbox.at_once = None
        outbox.deliver(6)
        assert await asyncio.wait_for(reader, TIMEOUT_S) == 6
        return len(taken), loop.n_calls

    assert counted(main) == (3, 4)


@pytest.mark.parametrize("n_taken", [0, 1])
def test_what_comes_while_the_reader_is_on_its_way_wakes_nobody(n_taken):
    """It was woken for what was left, and finds the rest as well."""

    async def main(loop):
        outbox = Outbox(16, lambda: pytest.fail("there are six"))
        offered = []

        def at_once(waiting):
            offered.append([*waiting])
            for _ in range(n_taken):
                waiting.popleft()

        async def read():
            return [await outbox.next() for _ in range(6 - n_taken)]

        outbox.at_once = at_once
        reader = asyncio.create_task(read())
        await asyncio.sleep(0)  # now it waits
        outbox.deliver(0)
        outbox.deliver(1)
        await asyncio.sleep(0)  # some was left, and the reader's turn is the next
        for number in range(2, 6):
            outbox.deliver(number)
        assert await asyncio.wait_for(reader, TIMEOUT_S) == [*range(n_taken, 6)]
        return offered, loop.n_calls

    assert counted(main) == ([[0, 1]], 1)


@pytest.mark.parametrize("most", [0, 1, N_THREADS * N_EVENTS])
def test_nothing_is_lost_or_forgotten_however_threads_take_turns(hasty, most):
    """Nor overtaken: whatever share of it is taken at once."""

    async def main():
        outbox = Outbox(N_THREADS * N_EVENTS, lambda: pytest.fail("it is large enough"))
        heard = [[] for _ in range(N_THREADS)]
        n_at_once = 0

        def at_once(waiting):
            nonlocal n_at_once
            for _ in range(min(most, len(waiting))):
                who, number = waiting.popleft()
                heard[who].append(number)
                n_at_once += 1

        async def others():
            while True:
                who, number = await outbox.next()
                heard[who].append(number)

        if most:
            outbox.at_once = at_once

        def bring(who):
            for number in range(N_EVENTS):
                outbox.deliver((who, number))

        threads = [threading.Thread(target=bring, args=(k,)) for k in range(N_THREADS)]
        reader = asyncio.create_task(others())
        await asyncio.sleep(0)  # now it waits
        for thread in threads:
            thread.start()
        end_s = time.monotonic() + TIMEOUT_S
        while sum(map(len, heard)) < N_THREADS * N_EVENTS:
            assert time.monotonic() < end_s
            await asyncio.sleep(0.001)
        reader.cancel()
        for thread in threads:
            thread.join()
        assert bool(n_at_once) == bool(most)
        return heard

    assert asyncio.run(main()) == [list(range(N_EVENTS))] * N_THREADS


def test_one_event_at_a_time_wakes_who_waits_for_it(hasty):
    """The other thread answers each: neither can go on unless it was woken."""

    async def main():
        outbox = Outbox(16, lambda: pytest.fail("one at a time"))
        go = threading.Semaphore(1)

        def bring():
            for number in range(N_EVENTS):
                assert go.acquire(timeout=TIMEOUT_S)
                outbox.deliver(number)

        thread = threading.Thread(target=bring)
        thread.start()
        for number in range(N_EVENTS):
            assert await asyncio.wait_for(outbox.next(), TIMEOUT_S) == number
            go.release()
        thread.join()

    asyncio.run(main())


def test_what_is_not_taken_at_once_is_next():
    async def main():
        outbox = Outbox(16, lambda: pytest.fail("there are three"))
        taken = []
        outbox.at_once = lambda waiting: taken.append(waiting.popleft())
        reader = asyncio.create_task(outbox.next())
        await asyncio.sleep(0)  # now it waits
        for number in range(3):
            outbox.deliver(number)
        assert await asyncio.wait_for(reader, TIMEOUT_S) == 1
        assert taken == [0]
        outbox.deliver(3)  # nobody waits: it is for who comes
        await asyncio.sleep(0.01)
        assert taken == [0]
        assert [await outbox.next(), await outbox.next()] == [2, 3]

    asyncio.run(main())


def test_nothing_is_taken_at_once_when_the_reader_has_gone():
    async def main():
        outbox = Outbox(16, lambda: pytest.fail("there is one"))
        offered = []
        outbox.at_once = offered.append
        reader = asyncio.create_task(outbox.next())
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        outbox.deliver("x")
        await asyncio.sleep(0.01)
        assert not offered
        assert await outbox.next() == "x"

    asyncio.run(main())


def test_an_event_is_seen_that_comes_just_before_its_reader_would_wait():
    async def main():
        outbox = Outbox(2, lambda: pytest.fail("there is one"))

        class Looked(deque):
            """Is found to be empty once, and is not any more."""

            def __len__(self):
                n_before = super().__len__()
                if not n_before:
                    self.append("x")
                return n_before

        outbox._events = Looked()
        assert await asyncio.wait_for(outbox.next(), TIMEOUT_S) == "x"

    asyncio.run(main())


def test_one_more_than_may_wait_is_the_clients_end_once():
    async def main():
        ends = []
        outbox = Outbox(2, lambda: ends.append(True))
        for number in range(5):
            outbox.deliver(number)
        assert ends == []  # it happens in the client's thread
        await asyncio.sleep(0)
        assert ends == [True]
        assert [await outbox.next(), await outbox.next()] == [0, 1]
        outbox.deliver(5)
        assert await outbox.next() == 5  # those between had no room

    asyncio.run(main())


@pytest.mark.parametrize("at_once", [False, True])
def test_whoever_hurries_goes_on_when_it_has_been_dealt_with(monkeypatch, at_once):
    monkeypatch.setattr("edge.serve.outbox.HURRY_S", TIMEOUT_S)

    async def main():
        outbox, dealt_with = Outbox(16, lambda: pytest.fail("there is one at a time")), []

        def take(waiting):
            time.sleep(0.001)  # the other thread could go on meanwhile
            dealt_with.append(waiting.popleft())

        async def read():
            while True:
                event = await outbox.next()
                await asyncio.sleep(0.001)
                dealt_with.append(event)

        def hurry():
            seen = []
            for number in range(20):
                outbox.deliver(number, hurried=True)
                seen.append(len(dealt_with))
            return seen

        outbox.at_once = take if at_once else None
        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        seen = await asyncio.to_thread(hurry)
        reader.cancel()
        return seen

    assert asyncio.run(main()) == [*range(1, 21)]


def test_whoever_hurries_does_not_wait_for_a_client_that_has_gone():
    async def main():
        outbox = Outbox(16, lambda: pytest.fail("there is one"))
        began_s = time.monotonic()
        await asyncio.to_thread(outbox.deliver, "x", True)
        return time.monotonic() - began_s

    assert asyncio.run(main()) < TIMEOUT_S / 2


def test_only_the_first_text_is_hurried():
    delivered = []
    deliver = first_text_hurried(lambda event, hurried: delivered.append((event, hurried)))
    events = [ToolCall("look", {}), TextDelta("a"), TextDelta("b"), DONE]
    for event in events:
        deliver(event)
    assert delivered == [(event, i == 1) for i, event in enumerate(events)]
