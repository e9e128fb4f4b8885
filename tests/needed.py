"""What a test needs and a user's machine may lack."""

from __future__ import annotations

import os

import pytest


def must_be(there: bool, what: str) -> None:
    """Else a skip with the reason, or in CI a failure."""
    if there:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
