"""Each user's part of the time: who takes more than its own waits, so that others need not.

What a request computes keeps everybody else waiting: on the event loop, in a thread, in a process
that decodes its media or compiles its format. So it is measured and charged to its user. While
others are there, a user that has taken more than its part is let in again when its debt is paid
off; alone it takes all there is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.typedefs import Middleware

from edge.model import grammars
from edge.serve.connection import connection_of

T = TypeVar("T")

PART = 0.25
"""Of the time, that all users together may take while there are several; each has as much of it."""
FREE_S = 0.05
"""A debt that nobody waits for."""
PRESENT_S = 1.0
"""Whoever has asked for something within that time is there."""
MAX_DEBT_S = 0.5
"""More is forgiven: of a request that takes longer no user could know."""


class LoopTime:
    """What users have taken of the time. From any thread."""

    def __init__(
        self, held_back: Callable[[float], None], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Nobody has taken any.

        Args:
            held_back: is told how long a request had to wait.
            now_s: the time.
        """
        self._held_back, self._now_s = held_back, now_s
        self._debts_s: dict[str, float] = {}
        self._paid_s = now_s()
        """Until when debts are paid off."""
        self._seen_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def charge(self, user: str, seconds: float) -> None:
        """Somebody has computed for this user for so long."""
        with self._lock:
            self._pay()
            self._debts_s[user] = min(self._debts_s.get(user, 0.0) + seconds, MAX_DEBT_S)

    def wait_s(self, user: str) -> float:
        """How long this user's next request waits now; asking makes it present."""
        with self._lock:
            self._seen_s[user] = self._now_s()
            self._pay()
            over_s = self._debts_s.get(user, 0.0) - FREE_S
            return over_s / self._part() if over_s > 0 and len(self._seen_s) > 1 else 0.0

    def _part(self) -> float:
        return PART / max(1, len(self._seen_s))

    def _pay(self) -> None:
        now_s = self._now_s()
        self._seen_s = {
            user: seen_s for user, seen_s in self._seen_s.items() if now_s - seen_s < PRESENT_S
        }
        paid_s, self._paid_s = (now_s - self._paid_s) * self._part(), now_s
        left = {user: debt_s - paid_s for user, debt_s in self._debts_s.items()}
        self._debts_s = {user: debt_s for user, debt_s in left.items() if debt_s > 0}

    async def turn(self, user: str) -> None:
        """Wait until this user may go on."""
        while wait_s := self.wait_s(user):
            began_s = self._now_s()
            await asyncio.sleep(min(wait_s, PRESENT_S / 2))
            self._held_back(self._now_s() - began_s)

    async def charged(self, user: str, work: Coroutine[Any, Any, T]) -> T:
        """Run it; each of its steps is charged."""
        return await _Steps(work, partial(self.charge, user))

    async def in_thread(self, user: str, work: Callable[..., T], *arguments: Any) -> T:
        """Run it in another thread, which takes its turns with the event loop's; it is charged."""

        def timed() -> T:
            began_s = time.thread_time()
            try:
                return work(*arguments)
            finally:  # here: who asked may have gone, and would have it for nothing
                self.charge(user, time.thread_time() - began_s)

        return await asyncio.to_thread(timed)


def fair(loop_time: LoopTime) -> Middleware:
    """Lets a request in when it is its user's turn, and charges what it takes."""

    @web.middleware
    async def share(
        request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        user = connection_of(request).user
        grammars.USER.set(user)
        grammars.CHARGE.set(partial(loop_time.charge, user))
        await loop_time.turn(user)
        return await loop_time.charged(user, handler(request))

    return share


class _Steps(Awaitable[T]):
    """A coroutine whose steps are measured, in its thread's own time: no other adds to that."""

    def __init__(self, work: Coroutine[Any, Any, T], spent: Callable[[float], None]) -> None:
        self._work, self._spent = work, spent

    def __await__(self) -> Generator[Any, Any, T]:
        goes_on = step = partial(self._work.send, None)
        while True:
            began_s = time.thread_time()
            try:
                waited_for = step()
            except StopIteration as ended:
                value: T = ended.value
                return value
            finally:
                step = goes_on  # a failure would be kept by this frame, which the failure keeps
                self._spent(time.thread_time() - began_s)
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - what the work waited for has failed
                step = partial(self._work.throw, error)
