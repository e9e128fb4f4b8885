"""Sound with known truth, for the tests and the benchmark of turn-taking.

Speech is recorded (alsa-utils) and synthesized (flite), cut to where it is loud, and placed into
silence, white noise or the babble of many talkers, or played by a robot in a room.
"""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from edge.model.spec import SAMPLE_RATE_HZ
from edge.types import AudioChunk, Float32

Noise = Literal["clean", "white", "babble"]
NOISES: tuple[Noise, ...] = ("clean", "white", "babble")
SNR_DB = 10.0
RECORDED = Path("/usr/share/sounds/alsa")
SENTENCES = (
    "What color is the triangle?",
    "Please bring me the red cup from the kitchen.",
    "Turn left at the door and wait.",
    "How many people are in the room?",
    "She sells fish and chips.",
)
VOICES = ("slt", "awb", "rms", "kal16")
ROBOT, PEOPLE = ("slt", "rms"), ("awb", "kal16")
_QUIET_DB = -40.0
_LEVEL = 0.1
_ROOM_NOISE = 1e-4


def recorded(folder: Path = RECORDED) -> dict[str, Float32]:
    """Name -> speech of a person, without silence around it, of power 0.01."""
    return {file.stem: _trimmed(_read(file)) for file in sorted(folder.glob("[FRS]*_*.wav"))}


def synthesized(folder: Path) -> dict[str, Float32]:
    """`voice-i` -> the i-th sentence, likewise; the files are written into `folder`.

    Raises:
        FileNotFoundError: flite is not installed.
    """
    clips = {}
    for voice in VOICES:
        for i, text in enumerate(SENTENCES):
            clips[f"{voice}-{i}"] = _trimmed(synthesize(text, folder / f"{voice}-{i}.wav", voice))
    return clips


def synthesize(text: str, file: Path, voice: str = VOICES[0]) -> Float32:
    """What a voice says, written into `file` too; [n] at 16 kHz.

    Raises:
        FileNotFoundError: flite is not installed.
    """
    subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(file)], check=True)
    return _read(file)


def _read(file: Path) -> Float32:
    with wave.open(str(file)) as sound:
        raw = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        mono = raw.reshape(-1, sound.getnchannels()).mean(axis=1) / 32768
        resampled = soxr.resample(mono, sound.getframerate(), SAMPLE_RATE_HZ)
    return np.asarray(resampled, np.float32)


def _trimmed(samples: Float32) -> Float32:
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    loudness = np.sqrt(np.square(frames).mean(axis=1))
    loud = np.flatnonzero(loudness > loudness.max() * 10 ** (_QUIET_DB / 20))
    kept = samples[loud[0] * 160 : (loud[-1] + 1) * 160]
    return kept * np.float32(_LEVEL / np.sqrt(np.square(kept).mean()))


def chunks(samples: Float32, n: int = 1600, start_ns: int = 0) -> Iterator[AudioChunk]:
    """The sound as a microphone gives it."""
    for at in range(0, len(samples), n):
        capture_ns = start_ns + at * 1_000_000_000 // SAMPLE_RATE_HZ
        yield AudioChunk(samples[at : at + n], capture_ns, "microphone")


@dataclass(frozen=True, eq=False)
class Placement:
    """Speech somewhere in a longer sound."""

    name: str
    samples: Float32
    onset_s: float
    end_s: float


def placements(
    clips: Mapping[str, Float32], noise: Noise, n: int, rng: np.random.Generator
) -> Iterator[Placement]:
    """Each clip in turn, at any level and moment, 10 dB above the noise."""
    crowd = babble(clips, 20 * SAMPLE_RATE_HZ, rng)
    names = list(clips)
    for i in range(n):
        name = names[i % len(names)]
        level = 10 ** rng.uniform(-1.0, 0.3)
        before, after = (int(rng.uniform(1.0, 1.4) * SAMPLE_RATE_HZ) for _ in range(2))
        speech = np.pad(clips[name], (before, after))
        background: NDArray[Any] = rng.standard_normal(len(speech)) * _ROOM_NOISE
        if noise == "white":
            background = rng.standard_normal(len(speech)) * _LEVEL * 10 ** (-SNR_DB / 20)
        elif noise == "babble":
            start = rng.integers(len(crowd) - len(speech))
            background = crowd[start : start + len(speech)] * _LEVEL * 10 ** (-SNR_DB / 20)
        samples = (level * (speech + background)).astype(np.float32)
        end = before + len(clips[name])
        yield Placement(name, samples, before / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ)


def babble(clips: Mapping[str, Float32], n: int, rng: np.random.Generator) -> Float32:
    """[n] of all clips over one another, four times each, of power 1."""
    voices = [np.roll(np.resize(clip, n), rng.integers(n)) for clip in clips.values()] * 4
    crowd = np.sum([np.roll(voice, rng.integers(n)) for voice in voices], axis=0)
    return np.asarray(crowd / crowd.std(), np.float32)


@dataclass(frozen=True, eq=False)
class Conversation:
    """A robot that speaks, its echo in the microphone, and a person who speaks over it."""

    played: Float32
    echo: Float32
    person: Float32
    """As loud as the echo."""
    onset_s: float
    end_s: float

    def heard(self, person_db: float | None) -> Float32:
        """The microphone, with a person so much louder than the echo, or none."""
        gain = 0.0 if person_db is None else 10 ** (person_db / 20)
        return self.echo + np.float32(gain) * self.person


def conversations(
    clips: Mapping[str, Float32], n: int, rng: np.random.Generator, level_db: float = 10.0
) -> Iterator[Conversation]:
    """A robot speaks for 10 s; the person comes in after 4 to 6 s.

    Args:
        level_db: the echo's level, beside a person's usual one.
    """
    names: dict[tuple[str, ...], list[str]] = {
        voices: [name for name in clips if name.split("-")[0] in voices]
        for voices in (ROBOT, PEOPLE)
    }

    def said(voices: tuple[str, ...], seconds: float) -> Float32:
        pieces: list[Float32] = []
        while sum(map(len, pieces)) < seconds * SAMPLE_RATE_HZ:
            pause = np.zeros(int(rng.uniform(0.15, 0.3) * SAMPLE_RATE_HZ), np.float32)
            pieces += [clips[str(rng.choice(names[voices]))], pause]
        return np.concatenate(pieces)[: int(seconds * SAMPLE_RATE_HZ)]

    scale = np.float32(0.3 * 10 ** (level_db / 20))
    for _ in range(n):
        voice = np.pad(said(ROBOT, 10.0), (SAMPLE_RATE_HZ // 2, SAMPLE_RATE_HZ))
        response = _room(rng)
        length = len(voice) + len(response)
        echo = np.fft.irfft(np.fft.rfft(voice, length) * np.fft.rfft(response, length), length)
        echo = echo[: len(voice)] * scale
        echo += _ROOM_NOISE * rng.standard_normal(len(voice))
        onset = int(rng.uniform(4.5, 6.5) * SAMPLE_RATE_HZ)
        words = said(PEOPLE, 2.0)
        person = np.zeros(len(voice), np.float32)
        person[onset : onset + len(words)] = words * scale
        end_s = (onset + len(words)) / SAMPLE_RATE_HZ
        played = voice * np.float32(10 ** rng.uniform(-0.5, 0.5))
        onset_s = onset / SAMPLE_RATE_HZ
        yield Conversation(played, echo.astype(np.float32), person, onset_s, end_s)


def _room(rng: np.random.Generator) -> Float32:
    """A delay of at most 0.25 s, the direct sound, and reflections that decay by 60 dB in 0.2 to
    0.4 s; of power 1."""
    n = int(0.4 * SAMPLE_RATE_HZ)
    seconds = np.arange(n) / SAMPLE_RATE_HZ
    reflections = rng.standard_normal(n) * 10 ** (-3 * seconds / rng.uniform(0.2, 0.4))
    reflections *= rng.random(n) < 0.15
    reflections *= 0.7 / np.sqrt(np.square(reflections).sum())
    reflections[0] = 1.0
    response = np.pad(reflections, (int(rng.uniform(0, 0.25) * SAMPLE_RATE_HZ), 0))
    return np.asarray(response / np.sqrt(np.square(response).sum()), np.float32)
