"""scripts/fuzz.py: what it finds is said, ends it with 1 and is tried first by the next run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"
CONFTEST = """
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

database = DirectoryBasedExampleDatabase("examples")
settings.register_profile(
    "fuzz", derandomize=False, deadline=None, print_blob=True, database=database
)
"""
PROPERTY = """
from hypothesis import given, strategies as st

@given(st.integers(0, 1 << 60))
def test_of_numbers(number):
    assert number % 100 != 7

def test_that_is_no_property():
    assert False
"""


@pytest.fixture
def fuzz(tmp_path):
    """Run it on one property."""

    def run(source: str, seconds: float) -> subprocess.CompletedProcess[str]:
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_it.py").write_text(source)
        words = [sys.executable, str(SCRIPT), "--seconds", str(seconds), "test_it.py"]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_what_fails_is_said_and_tried_first_the_next_time(fuzz):
    first, again = (fuzz(PROPERTY, 200) for _ in range(2))  # ends when every test has failed
    for done in (first, again):
        assert done.returncode == 1, done.stdout
        assert done.stderr.endswith("fuzz: 1 failed: test_it.py::test_of_numbers\n")
        assert re.search(r"test_of_numbers\(\n    number=[\d_]*7,\n\)", done.stdout)
        assert "@reproduce_failure(" in done.stdout
    assert "1 tests, 1 runs," in again.stdout


def test_where_nothing_fails_it_ends_with_the_time(fuzz):
    done = fuzz(PROPERTY.replace("!= 7", "!= 100"), 1)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("fuzz: nothing failed\n")


def test_what_cannot_be_collected_is_a_failure(fuzz):
    done = fuzz("import nowhere", 1)
    assert done.returncode == 1
    assert "No module named 'nowhere'" in done.stdout
