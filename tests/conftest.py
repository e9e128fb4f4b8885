"""Tiny checkpoints, bundles and engines, each made once a test run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from make_tiny_checkpoint import make_checkpoint

from build_engine.bundle import build_bundle
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine

settings.register_profile("project", deadline=None)  # a busy machine is no failure
settings.load_profile("project")


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
