"""What a source has lost on the way: packets that are not whole, frames that do not decode."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Damage:
    """Counts; says so in the log the first time, the second, the fourth, the eighth and so on."""

    def __init__(self, source: str) -> None:
        """Begin with none.

        Args:
            source: what the log calls it; nothing is logged where it has no name.
        """
        self._source = source
        self.n = 0
        self.last = ""
        """What was wrong with the newest."""

    def add(self, problem: str) -> None:
        """Something was skipped."""
        self.n, self.last = self.n + 1, problem
        if self._source and self.n & (self.n - 1) == 0:
            log.warning("source=%s event=damaged n=%d problem=%s", self._source, self.n, problem)
