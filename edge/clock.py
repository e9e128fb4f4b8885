"""Time as the runtime sees it: monotonic nanoseconds, real or virtual."""

from __future__ import annotations

import threading
import time
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    """What the senses and the loop need of a clock."""

    def now_ns(self) -> int:
        """Monotonic time, ns."""

    def sleep_until(self, deadline_ns: int) -> None:
        """Return at `deadline_ns`, at once if that has passed."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        left_ns = deadline_ns - time.monotonic_ns()
        if left_ns > 0:
            time.sleep(left_ns / NS_PER_S)


class VirtualClock:
    """A clock that jumps: sleeping advances it, so hours pass in milliseconds.

    Several threads may sleep on it; time never goes back.
    """

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until(self, deadline_ns: int) -> None:
        with self._lock:
            self._now_ns = max(self._now_ns, deadline_ns)
