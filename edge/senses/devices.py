"""Which cameras and microphones this machine has, and what each is called in a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.senses.microphone import DEVICE, input_devices

SYSTEM = Path("/")


@dataclass(frozen=True, slots=True)
class Device:
    """A camera or a microphone."""

    kind: Literal["camera", "microphone"]
    source: str
    """What `source` says in the configuration."""
    description: str


def cameras(root: Path = SYSTEM) -> list[Device]:
    """The V4L2 devices; a camera may have several, of which some give no pictures.

    Args:
        root: of the file system to look at.
    """
    found = (root / "sys/class/video4linux").glob("video*")
    return [
        Device("camera", f"/dev/{path.name}", (path / "name").read_text().strip())
        for path in sorted(found, key=lambda path: int(path.name.removeprefix("video")))
    ]


def microphones() -> list[Device]:
    """PortAudio's input devices; none where PyAudio is not installed."""
    try:
        import pyaudio
    except ImportError:
        return []
    audio = pyaudio.PyAudio()
    try:
        return [
            Device(
                "microphone",
                f"{DEVICE}{found['name']}",
                f"{found['defaultSampleRate']:.0f} Hz, up to {found['maxInputChannels']} channels",
            )
            for found in input_devices(audio)
        ]
    finally:
        audio.terminate()
