"""What the robot itself plays, told on /v1/realtime: `edge.playback.append`.

Its microphones hear that too; known beforehand, it starts no turn.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge.clock import NS_PER_MS, NS_PER_S
from edge.features.resample import Resampler
from edge.senses.sound import MAX_JITTER_NS
from edge.senses.still import check_length
from edge.serve.client_sound import PCM, rate_of, samples_of
from edge.serve.protocol import RATE_HZ, SoundFormat
from edge.types import AudioChunk

NAME = "loudspeaker"


class PlaybackAppend(msgspec.Struct, frozen=True, kw_only=True, tag="edge.playback.append"):
    """The robot plays this: send each piece when it is given to the loudspeaker, not much ahead."""

    audio: str
    """Base64 of sound as in input_audio_buffer.append, at most 30 s."""
    delay_ms: Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)] = 0.0
    """Until its first sample leaves the loudspeaker. A little less than the truth is good: the
    microphone may hear it up to 0.3 s later, but never earlier."""
    event_id: str | None = None

    def starts_ns(self, now_ns: int) -> int:
        """When its first sample leaves the loudspeaker."""
        return now_ns + round(self.delay_ms * NS_PER_MS)


class Playback:
    """One client's pieces as the session's: what follows in time is one sound."""

    def __init__(self) -> None:
        """Nothing was played yet."""
        self._format = PCM
        self._resampler = Resampler(RATE_HZ, 1)
        self._end_ns = 0

    def push(self, data: bytes, start_ns: int, form: SoundFormat = PCM) -> AudioChunk:
        """The next piece, at 16 kHz.

        Args:
            data: sound, of the format `form`.
            start_ns: when its first sample leaves the loudspeaker.
        Raises:
            ProtocolError: half a sample is left.
            MediaError: it lasts more than 30 s.
        """
        stored, rate_hz = samples_of(data, form), rate_of(form)
        check_length(len(stored), rate_hz)
        if form != self._format or abs(start_ns - self._end_ns) > MAX_JITTER_NS:
            self._format, self._resampler = form, Resampler(rate_hz, 1)
        self._end_ns = start_ns + len(stored) * NS_PER_S // rate_hz
        return AudioChunk(self._resampler.push(stored), start_ns, NAME)
