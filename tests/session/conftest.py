"""Sessions are tried on an engine that has a device's bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bounded_engine import BoundedEngine

from edge.engines.cpu import CpuEngine


@pytest.fixture
def engine(engine: Callable[[str], CpuEngine]) -> Callable[[str], BoundedEngine]:
    """preset -> an engine, each call another one with bounds of its own."""
    return lambda preset: BoundedEngine(engine(preset))
