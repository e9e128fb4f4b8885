"""The bounded queue between a sense and the loop: full means the oldest goes, and is counted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """One writer, one reader, never blocking the writer."""

    def __init__(self, capacity: int, on_put: Callable[[], None]) -> None:
        """Make an empty ring.

        Args:
            capacity: items that may wait; one more drops the oldest.
            on_put: called after each item, from the writer's thread.
        """
        self._items: deque[T] = deque()
        self._capacity, self._on_put = capacity, on_put
        self._lock = threading.Lock()
        self.n_dropped = 0

    def put(self, item: T) -> None:
        """Add the newest item."""
        with self._lock:
            if len(self._items) == self._capacity:
                self._items.popleft()
                self.n_dropped += 1
            self._items.append(item)
        self._on_put()

    def take(self) -> T | None:
        """Remove the oldest item, None when there is none."""
        with self._lock:
            return self._items.popleft() if self._items else None
