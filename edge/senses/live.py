"""A device that comes and goes: what opens it is tried again, with longer and longer pauses.

A fault ends nothing but the stream it happened in; it is said once, and once more when it is over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from edge.clock import NS_PER_S, Clock
from edge.errors import MediaError

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 4.0
"""Between two attempts; doubled after each one that gave nothing."""
SAME_CLOCK_NS = NS_PER_S
"""A source's time that is so near to ours is on our clock."""
STEP_SMOOTHING = 1 / 8
MIN_LATE_NS, MIN_LATE_ITEMS = 2 * NS_PER_S, 8
"""When all items are late for so long, and so many are, they are not: the source's clock was set
back, or drifts."""


def again_and_again(
    name: str,
    opened: Callable[[], AbstractContextManager[Iterator[T]]],
    closed: threading.Event,
) -> Iterator[T]:
    """The items of a stream that is opened again whenever it ends or fails.

    Args:
        name: of the sense, in the log.
        opened: opens it; MediaError there or while iterating: it is not there now.
        closed: ends the iterator.
    """
    pause_s, is_lost = FIRST_PAUSE_S, False
    while not closed.is_set():
        cause = "it ended"
        try:
            with opened() as items:
                for item in items:
                    if is_lost:
                        log.info("sense=%s event=back", name)
                    pause_s, is_lost = FIRST_PAUSE_S, False
                    yield item
                    if closed.is_set():
                        return
        except MediaError as error:
            cause = str(error)
        if not is_lost and not closed.is_set():
            log.warning("sense=%s event=lost error=%s", name, cause)
            is_lost = True
        closed.wait(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


class CaptureTimes:
    """Puts a source's own times onto our clock.

    A driver's times are on our clock already. Others count from anywhere: there the item that took
    least time to arrive says how they lie, so that a late arrival moves nothing, but many in a row.
    """

    def __init__(self, clock: Clock, n_held: int = 0) -> None:
        """Begin with a new stream.

        Args:
            n_held: items that have to follow before one arrives.
        """
        self._clock, self._n_held = clock, n_held
        self._offset_ns: int | None = None
        self._late_since_ns = self._n_late = 0  # 0 items: the newest was not late
        self._least_late_ns = 0  # of these
        self._last_ns = 0
        self._source_ns: int | None = None
        self._step_ns = 0.0

    def of(self, source_ns: int | None, arrived_ns: int | None = None) -> int:
        """When an item was captured; never earlier than the one before.

        Args:
            source_ns: by the source's own clock; None if it does not say.
            arrived_ns: when it came; None is now.
        """
        now_ns = self._clock.now_ns() if arrived_ns is None else arrived_ns
        capture_ns = now_ns
        if source_ns is not None and abs(now_ns - source_ns) < SAME_CLOCK_NS:
            capture_ns = source_ns
        elif source_ns is not None:
            offset_ns = now_ns - source_ns
            known_ns = self._offset_ns
            if known_ns is None or not 0 < offset_ns - known_ns <= SAME_CLOCK_NS:
                known_ns = offset_ns  # the first item, none came faster, or the source began anew
                self._n_late = 0
            else:
                known_ns += self._always_late_ns(offset_ns - known_ns, now_ns)
            self._offset_ns = known_ns
            capture_ns = source_ns + known_ns - self._held_ns(source_ns)
        self._last_ns = max(self._last_ns, min(capture_ns, now_ns))
        return self._last_ns

    def _always_late_ns(self, late_ns: int, now_ns: int) -> int:
        """How late all items have been for a while, once that is sure; then it is their time."""
        if not self._n_late:
            self._late_since_ns, self._least_late_ns = now_ns, late_ns
        self._n_late += 1
        self._least_late_ns = min(self._least_late_ns, late_ns)
        if now_ns - self._late_since_ns < MIN_LATE_NS or self._n_late < MIN_LATE_ITEMS:
            return 0
        self._n_late = 0
        return self._least_late_ns

    def _held_ns(self, source_ns: int) -> int:
        """How long an item waits for those that have to follow it."""
        if self._source_ns is not None and 0 < source_ns - self._source_ns < SAME_CLOCK_NS:
            step_ns = source_ns - self._source_ns
            self._step_ns += (
                STEP_SMOOTHING * (step_ns - self._step_ns) if self._step_ns else step_ns
            )
        self._source_ns = source_ns
        return round(self._n_held * self._step_ns)
