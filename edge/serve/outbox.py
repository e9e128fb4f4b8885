"""What waits to be sent to one client: bounded, and it is the client who pays for being slow."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from edge.session.turn import AnswerEvent, TextDelta

log = logging.getLogger(__name__)

T = TypeVar("T")
HURRY_S = 0.001
"""Whoever delivers something hurried waits no longer for it to be read."""


class Outbox(Generic[T]):
    """Carries events from the loop's thread to one client's; nobody waits for the client, or for a
    millisecond at most (`hurried`).

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
        self._is_read = threading.Event()

    def deliver(self, event: T, hurried: bool = False) -> None:
        """Let an event wait; from any thread.

        Args:
            hurried: leave the interpreter to the client's thread until it has dealt with it. One
                that goes on computing gives the interpreter away for microseconds at a time only,
                and the other would not get it for milliseconds.
        """
        if hurried:
            self._is_read.clear()
        self._deliver(event)
        if hurried:
            self._is_read.wait(HURRY_S)

    def _deliver(self, event: T) -> None:
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
        else:
            self._is_read.set()

    async def next(self) -> T:
        """The next event."""
        while not self._events:
            self._is_read.set()
            self._some.clear()
            self._is_idle = self._is_waited_for = True
            try:
                if not self._events:  # else it came in between, and whoever brought it may not know
                    await self._some.wait()
            finally:
                self._is_idle = False
        return self._events.popleft()


class Deliver(Protocol):
    """Where an answer's events go."""

    def __call__(self, event: AnswerEvent, hurried: bool) -> None:
        """`Outbox.deliver`, or what wraps the event first."""


def first_text_hurried(deliver: Deliver) -> Callable[[AnswerEvent], None]:
    """Deliver an answer's events, and hurry with the first text: somebody waits for it."""
    waits = True

    def delivered(event: AnswerEvent) -> None:
        nonlocal waits
        hurried = waits and isinstance(event, TextDelta)
        waits = waits and not hurried
        deliver(event, hurried)

    return delivered
