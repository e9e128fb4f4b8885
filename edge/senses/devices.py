"""Which cameras and microphones this machine has, what each is called in a configuration, and what
it can give."""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.senses.microphone import DEVICE, input_devices

SYSTEM = Path("/")
LISTER = "v4l2-ctl"
LIST_TIMEOUT_S = 5.0
RATES_HZ = (8000, 16000, 22050, 32000, 44100, 48000, 96000)
CHANNELS = (1, 2, 4, 6, 8)
"""Rates and channel counts that a microphone is asked for."""

# `[0]: 'MJPG' (...)`, before version 1.16 `Pixel Format: 'MJPG'`.
_PIXELS = re.compile(r"(?:\[\d+\]|Pixel Format): '(.{4})'")
_SIZE = re.compile(r"Size: (?:Discrete|Stepwise|Continuous) (\d+x\d+(?: - \d+x\d+)?)")
_RATE = re.compile(r"Interval: .*\(([\d.]+)(?:-([\d.]+))? fps\)")


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """Pictures of one kind and size."""

    pixels: str
    """The driver's four letters, such as MJPG."""
    size: str
    """WIDTHxHEIGHT in pixels, or the smallest and the largest: 32x32 - 2592x1944."""
    rates_fps: tuple[float, ...]
    """Frames a second; of a range its two ends; empty where the driver does not say."""


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """Sound of one rate."""

    rate_hz: int
    channels: tuple[int, ...]
    """How many there can be."""


@dataclass(frozen=True, slots=True)
class Device:
    """A camera or a microphone."""

    kind: Literal["camera", "microphone"]
    source: str
    """What `source` says in the configuration."""
    description: str
    formats: tuple[PictureFormat, ...] | tuple[SoundFormat, ...] = ()
    note: str = ""
    """Why there are no formats."""


def cameras(root: Path = SYSTEM) -> list[Device]:
    """The V4L2 devices; a camera may have several, of which some give no pictures.

    Args:
        root: of the file system to look at.
    """
    found = (root / "sys/class/video4linux").glob("video*")
    devices = []
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("video"))):
        source = f"/dev/{path.name}"
        formats, note = _formats_of(source)
        devices.append(Device("camera", source, (path / "name").read_text().strip(), formats, note))
    return devices


def _formats_of(source: str) -> tuple[tuple[PictureFormat, ...], str]:
    """What a V4L2 device gives, or why that is not known."""
    command = [LISTER, "--device", source, "--list-formats-ext"]
    try:
        listed = subprocess.run(
            command, capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return (), "its formats are listed by v4l2-ctl: sudo apt install v4l-utils"
    except subprocess.TimeoutExpired:
        return (), f"{LISTER} had no answer after {LIST_TIMEOUT_S:.0f} s"
    if listed.returncode:
        return (), (listed.stderr or listed.stdout).strip().split("\n")[0]
    formats = tuple(picture_formats(listed.stdout))
    return formats, "" if formats else "gives no pictures"


def picture_formats(listed: str) -> list[PictureFormat]:
    """What `v4l2-ctl --list-formats-ext` has printed; what is listed twice once."""
    found: dict[tuple[str, str], list[float]] = {}
    pixels, rates = "", list[float]()
    for line in listed.splitlines():
        if match := _PIXELS.search(line):
            pixels = match[1].strip()
        elif match := _SIZE.search(line):
            rates = found.setdefault((pixels, match[1]), [])
        elif match := _RATE.search(line):
            rates += [float(rate) for rate in match.groups() if rate]
    return [
        PictureFormat(pixels, size, tuple(sorted(set(rates), reverse=True)))
        for (pixels, size), rates in found.items()
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
                _sound_formats(audio, found, pyaudio.paInt16),
            )
            for found in input_devices(audio)
        ]
    finally:
        audio.terminate()


def _sound_formats(
    audio: Any, found: dict[str, Any], sample_format: int
) -> tuple[SoundFormat, ...]:
    """What PortAudio says that a device can give."""

    def is_supported(rate_hz: int, n_channels: int) -> bool:
        try:
            return bool(
                audio.is_format_supported(
                    rate_hz,
                    input_device=found["index"],
                    input_channels=n_channels,
                    input_format=sample_format,
                )
            )
        except ValueError:
            return False

    formats = []
    for rate_hz in RATES_HZ:
        possible = (n for n in CHANNELS if n <= found["maxInputChannels"])
        if channels := tuple(n for n in possible if is_supported(rate_hz, n)):
            formats.append(SoundFormat(rate_hz, channels))
    return tuple(formats)


def shown(device: Device) -> list[str]:
    """A device's formats for a person: a line for each kind of picture or number of channels."""
    if device.note:
        return [device.note]
    lines = []
    if device.kind == "camera":
        pictures = [f for f in device.formats if isinstance(f, PictureFormat)]
        for pixels, sizes in itertools.groupby(pictures, lambda f: f.pixels):
            each = (f"{f.size}@{max(f.rates_fps):g}" if f.rates_fps else f.size for f in sizes)
            lines.append(f"{pixels}: {', '.join(each)}")
        return lines
    sounds = [f for f in device.formats if isinstance(f, SoundFormat)]
    for channels, rates in itertools.groupby(sounds, lambda f: f.channels):
        said = ", ".join(str(f.rate_hz) for f in rates)
        lines.append(f"{said} Hz with {' or '.join(map(str, channels))} channels")
    return lines
