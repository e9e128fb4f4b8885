"""What clients hear of a scripted session is what they heard when somebody last looked at it."""

from __future__ import annotations

import pytest
from serve.heard import KEPT, TEXTS, drawn_alike

REMEDY = "if that is meant: python tests/serve/heard.py, and read the difference"


@pytest.mark.parametrize("name", TEXTS)
def test_clients_hear_what_they_heard(name, tmp_path):
    kept = (KEPT / f"{name}.txt").read_text().split("\n")
    found = [*drawn_alike(TEXTS[name](tmp_path)), ""]
    assert "\n".join(found).split("\n") == kept, REMEDY
