"""What waits for one client, put there by other threads."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque

import pytest
from serve.scripted import TIMEOUT_S

from edge.serve.outbox import Outbox

N_THREADS, N_EVENTS = 3, 5000


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_nothing_is_lost_or_forgotten_however_threads_take_turns(hasty):
    async def main():
        outbox = Outbox(N_THREADS * N_EVENTS, lambda: pytest.fail("it is large enough"))
        heard = [[] for _ in range(N_THREADS)]

        def bring(who):
            for number in range(N_EVENTS):
                outbox.deliver((who, number))

        threads = [threading.Thread(target=bring, args=(k,)) for k in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for _ in range(N_THREADS * N_EVENTS):
            who, number = await asyncio.wait_for(outbox.next(), TIMEOUT_S)
            heard[who].append(number)
        for thread in threads:
            thread.join()
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

    asyncio.run(main())
