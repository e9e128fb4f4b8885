"""Chunks of sound, put together and cut: adjacent or not, and in blocks of one length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.clock import NS_PER_MS, NS_PER_S
from edge.errors import MediaError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.types import AudioChunk

MAX_JITTER_NS = 50 * NS_PER_MS
"""A chunk that is due earlier or later than this does not go on where the last one ended."""
BLOCK_SAMPLES = 512
"""32 ms: what is judged at a time, so that speech is timed in whole blocks."""
NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ
BLOCK_NS = BLOCK_SAMPLES * NS_PER_SAMPLE


def end_ns(chunk: AudioChunk) -> int:
    """When the first sample after it is due."""
    return chunk.capture_ns + len(chunk.samples) * NS_PER_SAMPLE


def goes_on(last: AudioChunk | None, chunk: AudioChunk) -> bool:
    """Whether no sound is missing between the two."""
    return last is None or abs(chunk.capture_ns - end_ns(last)) <= MAX_JITTER_NS


def joined(chunks: Sequence[AudioChunk]) -> AudioChunk:
    """Adjacent chunks as one."""
    samples = np.concatenate([chunk.samples for chunk in chunks])
    return AudioChunk(samples, chunks[0].capture_ns, chunks[0].source)


def must_be_finite(chunk: AudioChunk) -> None:
    """Refuse a chunk that would poison what remembers it.

    Raises:
        MediaError: a sample is not a finite number.
    """
    if not np.isfinite(chunk.samples).all():
        raise MediaError(chunk.source, "gave sound that is not finite", "check the microphone")


class Blocks:
    """Cuts one stream, in chunks of any length, into blocks of `BLOCK_SAMPLES`."""

    def __init__(self) -> None:
        self.rest: AudioChunk | None = None
        """The newest sound, less than a block."""

    def push(self, chunk: AudioChunk) -> list[AudioChunk]:
        """Take a chunk that goes on where the last one ended; the blocks that it completes."""
        before = [] if self.rest is None else [self.rest.samples]
        sound = np.concatenate([*before, chunk.samples])
        first_ns = end_ns(chunk) - len(sound) * NS_PER_SAMPLE
        n_whole = len(sound) // BLOCK_SAMPLES * BLOCK_SAMPLES
        blocks = [
            # A view would keep all of the chunk.
            AudioChunk(
                sound[start : start + BLOCK_SAMPLES].copy(),
                first_ns + start * NS_PER_SAMPLE,
                chunk.source,
            )
            for start in range(0, n_whole, BLOCK_SAMPLES)
        ]
        rest_ns = first_ns + n_whole * NS_PER_SAMPLE
        self.rest = AudioChunk(sound[n_whole:].copy(), rest_ns, chunk.source)
        return blocks
