"""The nouns that travel between the parts: frames, chunks, evidence, segments.

All are immutable values. Times are monotonic nanoseconds of the runtime's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]

Modality = Literal["text", "video", "audio"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image with its capture time."""

    pixels: UInt8
    """RGB, shape (height, width, 3)."""
    capture_ns: int
    """When the world looked like this."""
    frame_id: int
    """Counts the source's frames from 0; a gap is a frame that was not taken."""
    source: str
    """Which camera or file."""


@dataclass(frozen=True, slots=True, eq=False)
class AudioChunk:
    """A short run of sound, already 16 kHz mono."""

    samples: Float32
    """Shape (n,), -1..1, 16 kHz."""
    capture_ns: int
    """When the first sample was heard."""
    source: str
    """Which microphone or file."""


class Picture(msgspec.Struct, frozen=True, tag=True):
    """A still picture that belongs to a message; bytes, so that a recording holds it as it is."""

    rgb: bytes
    """height * width * 3 bytes, row by row."""
    width: int
    height: int


class Sound(msgspec.Struct, frozen=True, tag=True):
    """A clip of sound that belongs to a message."""

    samples: bytes
    """float32, 16 kHz mono, -1..1."""


class Film(msgspec.Struct, frozen=True, tag=True):
    """A film that belongs to a message: the frames that the model sees of it, and its sound."""

    rgb: bytes
    """Of each frame height * width * 3 bytes, row by row, one frame after the other."""
    width: int
    height: int
    times_s: tuple[float, ...]
    """Of each frame, since the film's beginning."""
    sound: Sound | None = None
    pruning_rate: float = 0.0
    """Share of its tokens that may go: those that are most like what stood there before."""


Medium = Picture | Sound | Film
"""What belongs to a message besides its text."""


def n_media_bytes(media: Iterable[Medium]) -> int:
    """What media take in memory."""
    total = 0
    for one in media:
        total += len(one.samples) if isinstance(one, Sound) else len(one.rgb)
        if isinstance(one, Film) and one.sound is not None:
            total += len(one.sound.samples)
    return total


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a segment came from."""

    source: str
    start_ns: int
    """Capture time of its first sample or frame."""
    end_ns: int
    """Capture time of its last sample or frame; of a picture, of the newest that was still the same
    where those are not kept (`perception.evs_tokens_per_s`)."""
    frame_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of one modality, as the ledger keeps it."""

    modality: Modality
    n_tokens: int
    evidence: Evidence | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Stages:
    """When one segment passed each stage, monotonic ns."""

    modality: Modality
    captured_ns: int
    """Its last frame or sample."""
    taken_ns: int
    """The loop took it up."""
    features_ns: int
    encoded_ns: int
    prefilled_ns: int = 0
    n_tokens: int = 0
    """Of the segment, its text included."""
    n_kept: int = 0
    """Of a tubelet: tokens of the picture that are in the segment."""
    n_pruned: int = 0
    """Of a tubelet: tokens of the picture that were left out."""
