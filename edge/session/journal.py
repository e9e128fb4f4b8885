"""What the service logs: to a person at a terminal, or to systemd's journal.

The journal has a time stamp of its own, and keeps all lines for weeks: it gets a line's priority in
front of it, and of what happens several times a second one line a minute.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping

from edge.clock import NS_PER_S, Clock
from edge.session.turn import Status

log = logging.getLogger(__name__)

SEGMENTS = "edge.segments"
"""The logger that has a line for each segment of perception."""
PERIOD_NS = 60 * NS_PER_S
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class JournalFormatter(logging.Formatter):
    """Each line with its priority. Source: sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines; a traceback has many."""
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def is_journal(environment: Mapping[str, str]) -> bool:
    """Whether standard error goes to systemd's journal.

    Source: systemd.exec(5), $JOURNAL_STREAM.
    """
    try:
        where = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{where.st_dev}:{where.st_ino}"


def begin(level: int, environment: Mapping[str, str]) -> None:
    """Log to standard error from now on.

    Args:
        level: the least that is logged.
    """
    if not is_journal(environment):
        logging.basicConfig(
            level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
        )
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger(SEGMENTS).setLevel(logging.WARNING)


class Summary:
    """One line a minute: what was counted since the one before."""

    def __init__(self, clock: Clock) -> None:
        """The first line comes after a minute."""
        self._clock = clock
        self._next_ns = clock.now_ns() + PERIOD_NS
        self._before: dict[str, int] = {}

    def look(self, status: Callable[[], Status]) -> None:
        """Log a line if it is due."""
        now_ns = self._clock.now_ns()
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + PERIOD_NS
        seen = status()
        counted = {
            name: n - self._before.get(name, 0)
            for name, n in sorted(seen.counters.items())
            if n != self._before.get(name, 0)
        }
        self._before = dict(seen.counters)
        counters = "".join(f" {name}={n}" for name, n in counted.items())
        log.info("minute context=%d/%d%s", seen.n_context_tokens, seen.max_context_tokens, counters)
