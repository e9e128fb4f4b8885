"""Tiny checkpoints, bundles and engines, each made once a test run."""

from __future__ import annotations

import functools
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from make_tiny_checkpoint import make_checkpoint

from build_engine.bundle import build_bundle
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine

collect_ignore = ["clients"]
"""`make test-clients` runs them in an environment of their own."""

EXAMPLES = Path(__file__).resolve().parents[1] / ".cache" / "fuzz" / "examples"
"""What random examples found; `--hypothesis-profile fuzz` tries these first."""

settings.register_profile(
    "gate",
    derandomize=True,
    database=None,
    print_blob=True,
    # A busy machine is no failure.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "fuzz",
    settings.get_profile("gate"),
    derandomize=False,
    database=DirectoryBasedExampleDatabase(EXAMPLES),
)
settings.load_profile("gate")

# A shell's background job ignores Ctrl-C, and so would the commands that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Which examples the properties are tried on."""
    if settings.default is not None and settings.default.derandomize:
        return "hypothesis: the same examples in every run of this source"
    return f"hypothesis: random examples, what fails is kept in {EXAMPLES}"


@pytest.fixture(autouse=True)
def fixed_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are asked for without a seed draw the same in every run.

    Services in processes of their own do not: what is tested of them holds for any seed.
    """
    numbers = SimpleNamespace(randbits=random.Random(0).getrandbits)
    monkeypatch.setattr("edge.session.turn.secrets", numbers)


def no_progress(stage: str, done: int, total: int) -> None:
    """Builds in tests are silent."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """preset -> its checkpoint's folder; do not change it."""

    @functools.cache
    def make(preset: str) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / preset
        make_checkpoint(folder, preset)
        return folder

    return make


@pytest.fixture(scope="session")
def bundle(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """preset -> its bundle's folder; do not change it."""

    @functools.cache
    def make(preset: str) -> Path:
        folder = tmp_path_factory.mktemp("bundle") / preset
        build_bundle(checkpoint(preset), folder, "cpu", no_progress)
        return folder

    return make


@pytest.fixture(scope="session")
def engine(bundle: Callable[[str], Path]) -> Callable[[str], CpuEngine]:
    """preset -> its engine."""

    @functools.cache
    def load(preset: str) -> CpuEngine:
        return CpuEngine(Bundle(bundle(preset)), n_threads=2)

    return load
