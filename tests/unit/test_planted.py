"""The faults of tests/mutants still have their place in the code, and their tests are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutants import EQUIVALENT, PLANTED, ROOT, load, planted

NAMES = [one["name"] for one in load(PLANTED)["planted"]]


def test_each_planted_fault_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_planted_fault_applies_and_its_tests_are_there(number: int):
    fault, one = planted(load(PLANTED)["planted"][number : number + 1])[0]
    for path, text in {fault.path: fault.text, **fault.more}.items():
        assert text != (ROOT / path).read_text()
        ast.parse(text)
    for test in one["tests"]:
        file, _, name = test.partition("::")
        assert not name or f"def {name.partition('[')[0]}(" in Path(ROOT / file).read_text()


def test_what_is_called_equivalent_says_why():
    for one in load(EQUIVALENT).get("equivalent", []):
        assert set(one) == {"file", "operator", "before", "after", "reason"}
        rows = [row.strip() for row in (ROOT / one["file"]).read_text().splitlines()]
        before = one["before"].splitlines()
        assert any(rows[i : i + len(before)] == before for i in range(len(rows))), one["before"]
        assert one["reason"]
