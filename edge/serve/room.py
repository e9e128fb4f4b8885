"""What all clients may hold together, and each of them. From any thread."""

from __future__ import annotations

import threading
from collections import Counter

from edge.errors import CapacityError

FREE_BYTES = 1 << 16
"""Of each body or message, not counted: what is small is let in however much others send."""


class Room:
    """Bytes that are held for clients, bounded together and for each user."""

    def __init__(
        self, max_bytes: int, state: str = "are arriving", max_share_bytes: int | None = None
    ) -> None:
        """All of it is free.

        Args:
            state: what those do that are held, for errors.
            max_share_bytes: of one user; None: no less than all.
        """
        self._max_bytes, self._n_bytes, self._state = max_bytes, 0, state
        self._max_share_bytes = max_bytes if max_share_bytes is None else max_share_bytes
        self._shares: Counter[str] = Counter()
        self._lock = threading.RLock()

    def check(self, thing: str, n_bytes: int, user: str = "") -> None:
        """See whether there is room, and hold nothing.

        Args:
            thing: that arrives, for the error.
            user: whose it is.
        Raises:
            CapacityError: there is no room for it now.
        """
        if n_bytes <= 0:
            return
        problem = f"of {n_bytes} more bytes: "
        if self._n_bytes + n_bytes > self._max_bytes:
            problem += f"{self._n_bytes} {self._state} already"
        elif self._shares[user] + n_bytes > self._max_share_bytes:
            problem += f"{self._shares[user]} of {user} {self._state} already"
        else:
            return
        raise CapacityError(thing, problem, "send it again later")

    def take(self, thing: str, n_bytes: int, user: str = "") -> None:
        """Hold some more.

        Raises:
            CapacityError: as `check`.
        """
        with self._lock:
            self.check(thing, n_bytes, user)
            self._n_bytes += n_bytes
            self._shares[user] += n_bytes
            if not self._shares[user]:
                del self._shares[user]

    def give(self, n_bytes: int, user: str = "") -> None:
        """Hold so much less."""
        self.take("", -n_bytes, user)


class Share:
    """One user's part of a room."""

    def __init__(self, room: Room, user: str) -> None:
        self._room, self.user = room, user

    def take(self, thing: str, n_bytes: int) -> None:
        """Hold some more.

        Raises:
            CapacityError: as `Room.check`.
        """
        self._room.take(thing, n_bytes, self.user)

    def give(self, n_bytes: int) -> None:
        """Hold so much less."""
        self._room.give(n_bytes, self.user)


def beyond(n_bytes: int) -> int:
    """What is counted of so many bytes of one body or message."""
    return max(0, n_bytes - FREE_BYTES)
