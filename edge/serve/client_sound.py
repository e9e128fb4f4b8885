"""The sound that one client sends: collected until it commits it, or cut into turns for it."""

from __future__ import annotations

from functools import cache

import numpy as np

from edge.clock import NS_PER_MS
from edge.errors import ProtocolError
from edge.features.resample import Resampler
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses.sound import NS_PER_SAMPLE
from edge.senses.still import MAX_SOUND_S, check_length, pcm_samples, sound_of
from edge.senses.turn_events import Cut, Ended, SpeechStarted, TurnEvent
from edge.senses.turns import TurnDetector
from edge.serve.protocol import RATE_HZ, TELEPHONE_HZ, SoundFormat
from edge.types import AudioChunk, Float32, Sound

NAME = "client"
MAX_PIECE_S = 120
"""That a client appends at once: speech is looked for in all of it before others are heard."""
PCM = SoundFormat(rate=RATE_HZ)
"""If a session says nothing else."""


def _mu_law(code: int) -> int:
    """A sample of 16 bits (ITU-T G.711)."""
    code ^= 0xFF
    size = ((((code & 0x0F) << 3) + 0x84) << (code >> 4 & 7)) - 0x84
    return -size if code & 0x80 else size


def _a_law(code: int) -> int:
    """A sample of 16 bits (ITU-T G.711)."""
    code ^= 0x55
    size, segment = (code & 0x0F) << 4, code >> 4 & 7
    size = (size + 0x108) << (segment - 1) if segment else size + 8
    return size if code & 0x80 else -size


_G711 = {"audio/pcmu": _mu_law, "audio/pcma": _a_law}


@cache
def _table(kind: str) -> Float32:
    """The sample of each code of G.711, -1..1."""
    samples = [_G711[kind](code) for code in range(256)]
    return np.array(samples, np.float32) / np.float32(1 << 15)


def rate_of(form: SoundFormat) -> int:
    """In Hz."""
    return TELEPHONE_HZ if form.type in _G711 else form.rate or RATE_HZ


def samples_of(data: bytes, form: SoundFormat) -> Float32:
    """Bytes of a session's sound as float32 [n, 1], -1..1.

    Raises:
        ProtocolError: half a sample is left.
    """
    if form.type in _G711:
        samples: Float32 = _table(form.type)[np.frombuffer(data, np.uint8)]
        return samples[:, None]
    return pcm_samples(data)


class ClientSound:
    """Sound of the session's format in, 16 kHz inside. Bounded: 30 s may wait to be committed, and
    so long is a turn.

    Times count the sound of this client from 0.
    """

    def __init__(self) -> None:
        """Hear nothing yet."""
        self._format = PCM
        self._resampler = Resampler(RATE_HZ, 1)
        self._n_samples = 0  # since the first, 16 kHz
        self._waiting: list[Float32] = []
        self._detects = False
        self._detector: TurnDetector | None = None  # made when there is something to hear
        self._is_told = False  # that somebody speaks, and not yet that it is over

    def detect_turns(self, wanted: bool) -> bool:
        """Whether turns are found here, or end with `commit`. Changing it is as `clear`."""
        if wanted == self._detects:
            return False
        self._detects = wanted
        return self.clear()

    def hear(self, form: SoundFormat) -> None:
        """What comes from now on has this format."""
        if form != self._format:
            if not self._detects:
                self._end_stream()
            self._format = form
            self._resampler = Resampler(rate_of(form), 1)

    def push(self, data: bytes) -> list[SpeechStarted | Ended]:
        """Take more sound; what happened in it. Takes about 1 % of the sound's own time.

        Raises:
            ProtocolError: half a sample is left, or it is too long for one piece.
            MediaError: too much waits to be committed.
        """
        stored = samples_of(data, self._format)
        if len(stored) > MAX_PIECE_S * rate_of(self._format):
            problem = f"lasts more than {MAX_PIECE_S} s"
            raise ProtocolError("audio", problem, "append it in shorter pieces")
        samples = self._resampler.push(stored)
        if not self._detects:
            check_length(sum(map(len, self._waiting)) + len(samples), SAMPLE_RATE_HZ)
            self._waiting.append(samples)
            self._n_samples += len(samples)
            return []
        chunk = AudioChunk(samples, self._n_samples * NS_PER_SAMPLE, NAME)
        self._n_samples += len(samples)
        self._detector = self._detector or TurnDetector("open")
        return self._told(self._detector.push(chunk))

    def commit(self) -> list[SpeechStarted | Ended]:
        """End the turn here.

        Returns:
            Its end, if anything was said in it.
        """
        if self._detects:
            return self._told(self._detector.flush()) if self._detector else []
        self._end_stream()
        return [Ended(None)] if self._waiting else []

    def take(self, ended: Ended) -> Sound | None:
        """All of a turn that has ended; None if it was part of the one before, which is taken.

        Raises:
            MediaError: it is too short.
        """
        if ended.utterance is not None:
            self._waiting.append(ended.utterance.clip.samples)
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return None
        return sound_of(np.concatenate(waiting)[: MAX_SOUND_S * SAMPLE_RATE_HZ])

    def clear(self) -> bool:
        """Forget what waits; whether that ends a turn whose start was told."""
        self._waiting = []
        self._resampler = Resampler(rate_of(self._format), 1)
        self._detector = None
        was_told, self._is_told = self._is_told, False
        return was_told

    @property
    def heard_ms(self) -> int:
        """How much has been heard."""
        return self._n_samples * NS_PER_SAMPLE // NS_PER_MS

    def _end_stream(self) -> None:
        rest = self._resampler.flush()
        self._resampler = Resampler(rate_of(self._format), 1)
        self._n_samples += len(rest)
        if len(rest):
            self._waiting.append(rest)

    def _told(self, events: list[TurnEvent]) -> list[SpeechStarted | Ended]:
        """Parts of a long turn wait here until all of it, or as much as fits, is there."""
        told: list[SpeechStarted | Ended] = []
        for event in events:
            if isinstance(event, Cut):
                self._waiting.append(event.utterance.clip.samples)
                if sum(map(len, self._waiting)) * 3 > MAX_SOUND_S * SAMPLE_RATE_HZ * 2:
                    told += [Ended(None), SpeechStarted(event.utterance.end_ns, 0)]
            elif isinstance(event, SpeechStarted | Ended):
                told.append(event)
        if told:
            self._is_told = isinstance(told[-1], SpeechStarted)
        return told
