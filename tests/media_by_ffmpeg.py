"""Media files that ffmpeg makes (`make` in media.py), and what is seen and heard of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.clock import VirtualClock
from edge.senses.recording import Recording
from edge.types import AudioChunk, Frame

FPS, SECONDS = 30, 2
N_FRAMES = FPS * SECONDS
X264 = "-c:v libx264 -bf 2 -g 15"
AAC = "-c:a aac"

Make = Callable[[str, str], Path]


def ffmpeg(words: str, folder: Path) -> None:
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *words.split()],
        cwd=folder,
        check=True,
        stdin=subprocess.DEVNULL,
    )


def seen(path: Path, fps: float = FPS) -> tuple[list[Frame], int]:
    video = Recording.open(path).video(VirtualClock(), 0, fps)
    assert video is not None
    return list(video.frames()), video.damage.n


def heard(path: Path) -> tuple[list[AudioChunk], int]:
    sound = Recording.open(path).sound(VirtualClock(), 0)
    assert sound is not None
    return list(sound.chunks()), sound.damage.n


def sound_s(chunks: list[AudioChunk]) -> float:
    return sum(len(chunk.samples) for chunk in chunks) / 16_000


def must_sound(chunks: list[AudioChunk], seconds: float = SECONDS) -> None:
    """A tone of that length, give or take what an encoder puts around it."""
    assert sound_s(chunks) == pytest.approx(seconds, abs=0.15)
    samples = np.concatenate([chunk.samples for chunk in chunks])
    spectrum = np.abs(np.fft.rfft(samples[2000:18_000]))
    assert np.argmax(spectrum) == pytest.approx(440, abs=2)
