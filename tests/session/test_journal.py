"""What is logged, to a terminal and to the journal."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile

import pytest

from edge.clock import NS_PER_S, MonotonicClock
from edge.session.journal import JournalFormatter, Summary, is_journal
from edge.session.turn import Status


class Clock(MonotonicClock):
    now = 7 * NS_PER_S

    def now_ns(self) -> int:
        return self.now


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.CRITICAL, 3)],
)
def test_each_line_has_its_priority(level, priority):
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        record = logging.LogRecord("x", level, "", 0, "it %s", ("failed",), sys.exc_info())
    lines = JournalFormatter("%(message)s").format(record).splitlines()
    assert lines[0] == f"<{priority}>it failed"
    assert len(lines) > 3
    assert all(line.startswith(f"<{priority}>") for line in lines)


def test_a_journal_is_known_by_what_systemd_says_of_it(monkeypatch):
    with tempfile.TemporaryFile("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        where = os.fstat(stderr.fileno())
        assert is_journal({"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino}"})
        assert not is_journal({"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino + 1}"})
        assert not is_journal({})


SAYS = """
import logging, os
from edge.session import journal
where = os.fstat(2)
journal.begin(logging.INFO, {"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino}"} if %r else {})
logging.getLogger(journal.SEGMENTS).info("segment=video")
logging.getLogger("x").info("event=ready")
"""


def test_segments_are_for_who_looks_on():
    def said(to_journal: bool) -> str:
        command = [sys.executable, "-c", SAYS % to_journal]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert said(True) == "<6>event=ready\n"
    stamp = r"\d+-\d+-\d+ [\d:,]+ INFO "
    assert re.fullmatch(f"{stamp}segment=video\n{stamp}event=ready\n", said(False))


def test_one_line_a_minute_says_what_was_counted_in_it(caplog):
    caplog.set_level("INFO")
    clock, counters = Clock(), {"answers": 2, "frames": 100, "rebases": 0}
    summary = Summary(clock)

    def look(after_s: float) -> list[str]:
        caplog.clear()
        clock.now += round(after_s * NS_PER_S)
        summary.look(lambda: Status(True, "tiny", 40, 100, dict(counters)))
        return caplog.messages

    assert look(59) == []
    assert look(1) == ["minute context=40/100 answers=2 frames=100"]
    counters["frames"] += 120
    assert look(1) == []
    assert look(300) == ["minute context=40/100 frames=120"]
    assert look(60) == ["minute context=40/100"]
