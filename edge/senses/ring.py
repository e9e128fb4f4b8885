"""The bounded queue between a sense and the loop: full means the oldest goes, and is counted."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """Never blocks who puts; one thread takes."""

    def __init__(
        self,
        capacity: int,
        on_put: Callable[[], None],
        size_of: Callable[[T], int] = lambda _item: 1,
        order: Iterator[int] | None = None,
    ) -> None:
        """Make an empty ring.

        Args:
            capacity: sizes of items that may wait, together; more drops the oldest, but never the
                newest.
            on_put: called after each item, from the thread that puts it.
            size_of: an item, 0 or more.
            order: shared with other rings, so that `oldest_of` can tell what came first.
        """
        self._items: deque[tuple[int, int, T]] = deque()  # place in the order, size, item
        self._capacity, self._on_put, self._size_of = capacity, on_put, size_of
        self._order = itertools.count() if order is None else order
        self._size = 0
        self._lock = threading.Lock()
        self.n_dropped = 0

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Add the newest item."""
        size = self._size_of(item)
        with self._lock:
            while self._items and self._size + size > self._capacity:
                self._size -= self._items.popleft()[1]
                self.n_dropped += 1
            self._items.append((next(self._order), size, item))
            self._size += size
        self._on_put()

    def take(self) -> T | None:
        """Remove the oldest item, None when there is none."""
        with self._lock:
            if not self._items:
                return None
            _, size, item = self._items.popleft()
            self._size -= size
            return item

    @property
    def place(self) -> int | None:
        """Of the oldest item in the order, None when there is none."""
        with self._lock:
            return self._items[0][0] if self._items else None


def oldest_of(rings: Sequence[Ring[Any]]) -> Ring[Any] | None:
    """The ring of one order whose oldest item came first, None when all are empty."""
    places = [(place, ring) for ring in rings if (place := ring.place) is not None]
    return min(places, key=lambda found: found[0])[1] if places else None
