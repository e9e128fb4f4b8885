"""What clients send is decoded in a process that is bounded, whatever the file is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import media_bombs as bombs
import pytest

from edge.errors import CapacityError, MediaError
from edge.senses import decoder
from edge.senses.decoder import Decoder
from edge.senses.sent import MAX_OF_KIND, Budget, Job, Kind, decode
from edge.types import Film, Medium, Picture, Sound

PNG = bombs.png(16, 16)
IDLE_MB = 110
"""What such a process takes before, its libraries in it."""


@pytest.fixture(scope="module")
def process() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


def pid_of(process: Decoder) -> int:
    assert process._process is not None
    return process._process._process.pid


def most_mb(process: Decoder) -> int:
    """That it has taken at once."""
    lines = Path(f"/proc/{pid_of(process)}/status").read_text().splitlines()
    (kb,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kb) // 1024


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("picture", lambda: bombs.png(40, 30)),
        ("sound", lambda: bombs.wav(2, 48_000, 1.0)),
        ("film", lambda: bombs.film("matroska", "mpeg4", 25, (64, 48))),
    ],
)
def test_what_comes_is_what_this_process_would_make(process: Decoder, kind: Kind, make) -> None:
    data, job = make(), Job(kind, with_sound=True)
    found = process(job, data)
    assert found == decode(job, data)
    assert isinstance(found, {"picture": Picture, "sound": Sound, "film": Film}[kind])


REFUSED: dict[str, tuple[Kind, dict[str, bombs.Make], str, int]] = {
    # its problem, and how much more memory it may take, MB
    "16000x16000 pixels, one row": ("picture", bombs.PICTURES, "is 16000x16000 pixels", 5),
    "8192x8192 pixels": ("picture", bombs.PICTURES, "is 8192x8192 pixels", 5),
    "PNG: a text of 64 MB": ("picture", bombs.PICTURES, "too large", 20),
    "PNG: a text of 64 MB behind the pixels": ("picture", bombs.PICTURES, "too large", 70),
    "PNG: an international text of 64 MB": ("picture", bombs.PICTURES, "too large", 20),
    "PNG: a colour profile of 64 MB": ("picture", bombs.PICTURES, "too large", 20),
    "PNG: texts of 400 MB together": ("picture", bombs.PICTURES, "Too much memory", 90),
    "WebP with a canvas of 16383x16383": ("picture", bombs.PICTURES, "16383|cannot be", 20),
    "64 channels": ("sound", bombs.SOUNDS, "64 channels; send at most 16", 40),
    "255 channels": ("sound", bombs.SOUNDS, "255 channels", 40),
    "384 kHz": ("sound", bombs.SOUNDS, "sound of 384000 Hz", 40),
    "1 Hz": ("sound", bombs.SOUNDS, "sound of 1 Hz", 5),
    "FLAC: hours of silence": ("sound", bombs.SOUNDS, "more than", 60),
    "a playlist": ("film", bombs.FILMS, "is not a media file", 5),
    "a list to join": ("film", bombs.FILMS, "is not a media file", 5),
    "a session description": ("film", bombs.FILMS, "is not a media file", 5),
    "DASH": ("film", bombs.FILMS, "is not a media file", 5),
    "a hundred tracks": ("film", bombs.FILMS, "is not a media file", 80),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_by_name_and_takes_no_memory(process: Decoder, name: str) -> None:
    kind, table, problem, more_mb = REFUSED[name]
    process(Job("picture"), PNG)
    Path(f"/proc/{pid_of(process)}/clear_refs").write_text("5")  # VmHWM begins anew
    before_mb, before = most_mb(process), pid_of(process)
    data = table[name]()
    with pytest.raises(MediaError, match=problem) as caught:
        process(Job(kind), data)
    assert "\n" not in str(caught.value)
    taken_mb = most_mb(process) - before_mb
    print(f"{name}: {len(data) / 1e3:.1f} kB, {taken_mb} MB more for a moment")
    assert taken_mb <= more_mb + 2 * len(data) // 1_000_000
    assert pid_of(process) == before
