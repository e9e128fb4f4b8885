"""What waits to be sent to one client: bounded, and it is the client who pays for being slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outbox(Generic[T]):
    """Carries events from the loop's thread to one client's; nobody ever waits for the client."""

    def __init__(self, max_events: int, overflow: Callable[[], None]) -> None:
        """An empty outbox of the running event loop.

        Args:
            max_events: that may wait; with one more the client is too slow.
            overflow: drops the client; called once.
        """
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[T] = asyncio.Queue(max_events)
        self._overflow: Callable[[], None] | None = overflow

    def deliver(self, event: T) -> None:
        """Let an event wait; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:
            # The socket's event loop has closed, so nobody is left to read; the engine goes on.
            log.debug("event=undelivered kind=%s", type(event).__name__)

    def _put(self, event: T) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            if self._overflow is not None:
                overflow, self._overflow = self._overflow, None
                overflow()

    async def next(self) -> T:
        """The next event."""
        return await self._events.get()
