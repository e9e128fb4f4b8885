"""What the builder says and counts is what it was when somebody last looked at it."""

from __future__ import annotations

import pytest
from unit.builder_texts import KEPT, TEXTS

REMEDY = "if that is meant: python tests/unit/builder_texts.py, and read the difference"


@pytest.mark.parametrize("name", TEXTS)
def test_the_builder_says_what_it_said(name):
    assert f"{TEXTS[name]()}\n".splitlines() == (KEPT / f"{name}.txt").read_text().splitlines(), (
        REMEDY
    )


def test_every_kept_text_is_compared():
    assert {path.stem for path in KEPT.glob("*.txt")} == set(TEXTS)
