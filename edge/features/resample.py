"""Sound of any rate and channel count becomes 16 kHz mono, as a stream or at once."""

from __future__ import annotations

import numpy as np
import soxr

from edge.errors import MediaError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.types import Float32


class Resampler:
    """A stream of sound to 16 kHz mono; the channels are averaged.

    The filter looks ahead, so what comes out trails what goes in until `flush`. Sound that is
    16 kHz already passes unchanged and at once.

    Args:
        rate_hz: of the sound that goes in.
        n_channels: of the sound that goes in.
    Raises:
        MediaError: there is no such rate or channel count.
    """

    def __init__(self, rate_hz: int, n_channels: int) -> None:
        if rate_hz < 1:
            raise MediaError("sound", f"has a rate of {rate_hz} Hz", "give a positive rate")
        if n_channels < 1:
            raise MediaError("sound", f"has {n_channels} channels", "give at least one")
        self._n_channels = n_channels
        self._stream: soxr.ResampleStream | None = None
        if rate_hz != SAMPLE_RATE_HZ:
            self._stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, "float32", "HQ")

    def push(self, samples: Float32) -> Float32:
        """Take the next run of samples and give what is ready of the result.

        Args:
            samples: float32 [n, n_channels], any n.
        Returns:
            float32 [m], 16 kHz mono; m may be 0.
        Raises:
            ValueError: the channel count is not the stream's.
        """
        if samples.ndim != 2 or samples.shape[1] != self._n_channels:
            raise ValueError(f"samples have shape {samples.shape}, not (n, {self._n_channels})")
        return self._run(samples.mean(axis=1, dtype=np.float32), last=False)

    def flush(self) -> Float32:
        """End the stream and give the rest of the result; push nothing after it.

        Returns:
            float32 [m], 16 kHz mono.
        """
        return self._run(np.empty(0, np.float32), last=True)

    def _run(self, mono: Float32, last: bool) -> Float32:
        if self._stream is None:
            return mono
        resampled: Float32 = self._stream.resample_chunk(mono, last=last)
        return resampled


def resample(samples: Float32, rate_hz: int) -> Float32:
    """A whole sound to 16 kHz mono.

    Args:
        samples: float32 [n, channels].
        rate_hz: its rate.
    Returns:
        float32 [round(n * 16000 / rate_hz)], give or take one sample.
    Raises:
        MediaError: there is no such rate or channel count.
    """
    resampler = Resampler(rate_hz, samples.shape[1])
    return np.concatenate([resampler.push(samples), resampler.flush()])
