"""What waits to be sent to one client: bounded, and it is the client who pays for being slow."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outbox(Generic[T]):
    """Carries events from the loop's thread to one client's; nobody ever waits for the client.

    An event is there for the client's thread at once: waking it is needed only where it waits. A
    task that waits goes on one round of its event loop after it was woken, and each round may have
    to wait for the interpreter twice; `at_once` is called before.
    """

    at_once: Callable[[deque[T]], None] | None = None
    """May take events, oldest first, as soon as the event loop hears of them; what it leaves there
    is for `next`. Called only while somebody waits in `next`."""

    def __init__(self, max_events: int, overflow: Callable[[], None]) -> None:
        """An empty outbox of the running event loop.

        Args:
            max_events: that may wait; with one more the client is too slow.
            overflow: drops the client; called once.
        """
        self._loop = asyncio.get_running_loop()
        self._events: deque[T] = deque()
        self._max_events = max_events
        self._overflow: Callable[[], None] | None = overflow
        self._some = asyncio.Event()
        self._is_idle = self._is_waited_for = False

    def deliver(self, event: T) -> None:
        """Let an event wait; from any thread."""
        try:
            if len(self._events) >= self._max_events:
                self._loop.call_soon_threadsafe(self._is_full)
                return
            self._events.append(event)
            if self._is_waited_for:
                self._is_waited_for = False
                self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            # The socket's event loop has closed, so nobody is left to read; the engine goes on.
            log.debug("event=undelivered kind=%s", type(event).__name__)

    def _is_full(self) -> None:
        if self._overflow is not None:
            overflow, self._overflow = self._overflow, None
            overflow()

    def _wake(self) -> None:
        if self._is_idle and self.at_once is not None:
            self.at_once(self._events)
            self._is_waited_for = not self._events
        if self._events:  # also what came in between: whoever brought it may not know
            self._some.set()

    async def next(self) -> T:
        """The next event."""
        while not self._events:
            self._some.clear()
            self._is_idle = self._is_waited_for = True
            try:
                if not self._events:  # else it came in between, and whoever brought it may not know
                    await self._some.wait()
            finally:
                self._is_idle = False
        return self._events.popleft()
