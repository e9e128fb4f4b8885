"""What clients send, as media: pictures, sounds and films, each within bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from edge.errors import MediaError
from edge.senses.clip import FPS, MAX_FRAMES, decode_video
from edge.senses.still import decode_picture, decode_sound
from edge.types import Film, Medium, Sound, n_media_bytes

MAX_MEDIA_BYTES = 1 << 28
"""Of the pictures, sounds and films of one request, decoded."""
MAX_OF_KIND = {"picture": 64, "sound": 16, "film": 4}
"""Of one request. The shortest prompts of 64 pictures fill a context of 16,384 tokens."""

Kind = Literal["picture", "sound", "film"]


class Job(msgspec.Struct, frozen=True):
    """What is to be made of a file."""

    kind: Kind
    max_bytes: int = MAX_MEDIA_BYTES
    """It may take, decoded: of a picture known before it is decoded; films are made smaller."""
    fps: float = FPS
    max_frames: int = MAX_FRAMES
    with_sound: bool = False
    pruning_rate: float = 0.0


Decode = Callable[[Job, bytes], Medium]
"""Makes it, and takes its time: MediaError says why it cannot."""


def decode(job: Job, data: bytes) -> Medium:
    """Decode a file in this process.

    Raises:
        MediaError: it cannot be decoded, or not within its bounds.
    """
    if job.kind == "picture":
        return decode_picture(data, job.max_bytes)
    if job.kind == "sound":
        return decode_sound(data)
    clip = decode_video(
        data, job.fps, job.max_frames, with_sound=job.with_sound, max_bytes=job.max_bytes
    )
    height, width = clip.frames[0].shape[:2]
    rgb = b"".join(frame.tobytes() for frame in clip.frames)
    sound = Sound(clip.sound.tobytes()) if len(clip.sound) else None
    return Film(rgb, width, height, clip.times_s, sound, job.pruning_rate)


class Budget:
    """Decodes what belongs to one request, whose media are bounded together."""

    def __init__(self, decode: Decode) -> None:
        """Nothing is decoded."""
        self._decode, self._n_bytes = decode, 0
        self._n_of_kind: Counter[Kind] = Counter()

    def decoded(self, kind: Kind, data: bytes, **settings: Any) -> Medium:
        """One more.

        Args:
            settings: as `Job` has them.
        Raises:
            MediaError: it cannot be decoded, there are too many, or all of them are too large.
        """
        self.count(kind)
        job = Job(kind, MAX_MEDIA_BYTES - self._n_bytes, **settings)
        medium = self._decode(job, data)
        self._n_bytes += n_media_bytes([medium])
        if self._n_bytes > MAX_MEDIA_BYTES:
            problem = f"take more than {MAX_MEDIA_BYTES} bytes when they are decoded"
            raise MediaError("pictures and sounds", problem, "send fewer, or smaller ones")
        return medium

    def count(self, kind: Kind) -> None:
        """There is one more.

        Raises:
            MediaError: there are too many.
        """
        self._n_of_kind[kind] += 1
        if self._n_of_kind[kind] > MAX_OF_KIND[kind]:
            problem = f"are more than {MAX_OF_KIND[kind]} in one request"
            raise MediaError(f"{kind}s", problem, "send fewer")
