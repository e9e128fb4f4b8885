"""SECURITY.md's table of bounds says what the code says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from edge.config import Config

PAGE = Path(__file__).resolve().parents[2] / "SECURITY.md"
UNITS = {"": 1, "s": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "Mpixel": 1 << 20}
ROW = re.compile(r"\| (?P<what>[^|]+) \| (?P<n>[\d.]+) ?(?P<unit>\w*) \| `(?P<held>[\w.:]+)` \|")
TABLE = PAGE.read_text().partition("## What is bounded")[2].partition("\n## ")[0]
LINES = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]


def test_every_row_can_be_read():
    assert len(LINES) > 20
    assert [line for line in LINES if not ROW.match(line)] == []


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split(" | ")[0].strip("| "))
def test_a_bound_is_what_holds_it(line):
    row = ROW.match(line)
    assert row is not None
    module, _, name = row["held"].rpartition(":")
    if module:
        held = getattr(importlib.import_module(module), name)
    else:
        section, _, field = row["held"].rpartition(".")
        held = getattr(getattr(Config(), section), field)
    assert float(row["n"]) * UNITS[row["unit"]] == held
