"""Whether the two threads that everything depends on come on: the loop's, and the event loop's.

the loop's thread ── beat() ── call_soon_threadsafe ──> the event loop answers
"""

from __future__ import annotations

import asyncio
import time


class Pulse:
    """When each of them was last seen to come on; times in seconds of the monotonic clock."""

    def __init__(self) -> None:
        """Neither has begun: nothing is owed."""
        self._events: asyncio.AbstractEventLoop | None = None
        self._beat_s = self._asked_s = self._answered_s = time.monotonic()
        self._is_owed = False

    def watch(self, events: asyncio.AbstractEventLoop) -> None:
        """Ask this event loop from now on; it is not closed while the other thread beats."""
        self._events = events

    def beat(self) -> None:
        """The loop's thread comes on; ask the event loop whether it does, too."""
        self._beat_s = time.monotonic()
        if self._events is not None and not self._is_owed:
            self._asked_s, self._is_owed = self._beat_s, True
            self._events.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._answered_s, self._is_owed = time.monotonic(), False

    @property
    def owed_s(self) -> float:
        """So long the event loop has not answered what it was asked."""
        # Asked first: whoever answers in between makes it shorter, never negative.
        asked_s = self._asked_s
        return time.monotonic() - asked_s if self._is_owed else 0.0

    def silent_s(self) -> dict[str, float]:
        """Since each of them was last seen to come on."""
        now_s = time.monotonic()
        ages_s = {"loop": now_s - self._beat_s, "socket": now_s - self._answered_s}
        return {name: round(max(0.0, age_s), 3) for name, age_s in ages_s.items()}
