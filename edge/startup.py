"""From the process's start to readiness: what took how long, told while it goes on."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from edge.notify import Notifier

log = logging.getLogger(__name__)

_START_FIELD = 19
"""Of /proc/self/stat behind the command's name: the start, in ticks since boot."""


SWITCH_INTERVAL_S = 0.0002
"""A thread that computes in Python lets another in after so long: the socket's sends a token while
the loop's goes on, and those that hash take the next block while others import. Python's own 5 ms
would be most of the time between two tokens, and as long as a block takes."""


class Startup:
    """The stages of one start. The first, `imports`, began with the process."""

    def __init__(self, notifier: Notifier) -> None:
        """Tell `notifier` of each stage as it begins."""
        self._notifier = notifier
        self._began_s = self._stage_s = _process_start_s()
        self._name = "imports"
        self.seconds: dict[str, float] = {}
        """By stage, of those that are over."""

    def stage(self, name: str, doing: str) -> None:
        """A stage begins, and so the one before is over.

        Args:
            name: one word, for the log.
            doing: for a person who waits.
        """
        self._end_stage()
        self._name = name
        self._notifier.say(f"STATUS=starting: {doing}")

    def ready(self, socket_path: str, model: str) -> None:
        """All stages are over: say it to the supervisor and to the log."""
        self._end_stage()
        stages = " ".join(f"{name}_s={seconds:.3f}" for name, seconds in self.seconds.items())
        total_s = self._stage_s - self._began_s
        log.info(
            "event=ready socket=%s model=%s startup_s=%.3f %s",
            *(socket_path, model, total_s, stages),
        )
        self._notifier.say("READY=1", f"STATUS=ready after {total_s:.1f} s")

    def _end_stage(self) -> None:
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.seconds[self._name] = now_s - self._stage_s
        self._stage_s = now_s


def _process_start_s() -> float:
    """When this process was started, on CLOCK_BOOTTIME."""
    # The command's name is in brackets and may hold blanks and brackets.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
