"""Log-mel features of one clip, exactly as the audio encoder was trained.

Source: transformers 5.23.0 `models/parakeet/feature_extraction_parakeet.py`; the split into
clips follows vLLM 0.33 `models/parakeet.py`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge import _kernels
from edge.errors import MediaError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.types import Float32

CLIP_SAMPLES = 30 * SAMPLE_RATE_HZ
"""Longer sound is cut into clips of so many samples, each encoded on its own."""
MIN_CLIP_SAMPLES = SAMPLE_RATE_HZ // 10
"""Shorter clips are filled up with zeros."""

_HOP = 160
_WINDOW = 400
_FFT = 512
_N_BINS = _FFT // 2 + 1


def log_mel(samples: Float32, n_mels: int, n_threads: int = 0) -> Float32:
    """Log-mel features of one clip, normalised over the clip.

    Args:
        samples: float32 [n], -1..1, 16 kHz mono, n >= `MIN_CLIP_SAMPLES`.
        n_mels: mel bins.
        n_threads: 0 takes all cores.
    Returns:
        float32 [n // 160, n_mels]: the valid frames only, one each 10 ms.
    Raises:
        MediaError: the clip is too short, or a sample is not a finite number.
    Source: transformers `ParakeetFeatureExtractor`.
    """
    if samples.ndim != 1 or len(samples) < MIN_CLIP_SAMPLES:
        raise MediaError(
            "sound",
            f"has shape {samples.shape}",
            f"give mono of at least {MIN_CLIP_SAMPLES} samples, filled up with zeros",
        )
    samples = _checked(samples)
    frames = np.empty((len(samples) // _HOP, n_mels))
    _compute_frames(samples, -_WINDOW // 2, frames, n_threads)
    return _normalised(frames)


class LogMelStream:
    """The same features of endless sound, cut into clips of 30 s. The last is filled up to 0.1 s.

    Frames are computed as soon as their samples are there, so a push costs what its own samples
    cost, however long the stream is. Its memory is one clip's frames.
    """

    def __init__(self, n_mels: int) -> None:
        """Listen to a new stream.

        Args:
            n_mels: mel bins.
        """
        self._frames = np.empty((CLIP_SAMPLES // _HOP, n_mels))
        self._begin_clip()

    def push(self, samples: Float32) -> list[Float32]:
        """Take the next run of samples.

        Args:
            samples: float32 [n], 16 kHz mono, any n.
        Returns:
            float32 [3000, n_mels] of each clip that became full.
        Raises:
            MediaError: not mono, or a sample is not a finite number. None of this run is taken.
        """
        samples = _checked(samples)
        clips = []
        while len(samples):
            n = min(len(samples), CLIP_SAMPLES - self._n_samples)
            self._append(samples[:n])
            samples = samples[n:]
            if self._n_samples == CLIP_SAMPLES:
                clips += self.flush()
        return clips

    def flush(self) -> list[Float32]:
        """End the clip here; the next sample begins a new one.

        Returns:
            float32 [n // 160, n_mels] of its n samples, filled up with zeros to
            `MIN_CLIP_SAMPLES`. Empty where there are none.
        """
        if self._n_samples == 0:
            return []
        self._append(np.zeros(max(0, MIN_CLIP_SAMPLES - self._n_samples), np.float32))
        self._compute(self._n_samples // _HOP - self._n_frames)
        clip = _normalised(self._frames[: self._n_frames])
        self._begin_clip()
        return [clip]

    def _begin_clip(self) -> None:
        self._n_samples = self._n_frames = 0
        self._rest: Float32 = np.empty(0, np.float32)  # what the next frames still need
        self._start = -_WINDOW // 2  # where the next frame begins in it

    def _append(self, samples: Float32) -> None:
        self._rest = np.concatenate([self._rest, samples])
        self._n_samples += len(samples)
        self._compute(max(0, (len(self._rest) - self._start - _WINDOW) // _HOP + 1))
        n_spent = max(0, self._start - 1)  # a sample's emphasis needs the one before
        self._rest = self._rest[n_spent:].copy()  # a view would keep all of it
        self._start -= n_spent

    def _compute(self, n_frames: int) -> None:
        """The next frames; past the last sample there are zeros."""
        frames = self._frames[self._n_frames : self._n_frames + n_frames]
        _compute_frames(self._rest, self._start, frames, n_threads=1)
        self._n_frames += n_frames
        self._start += n_frames * _HOP


def _checked(samples: Float32) -> Float32:
    if samples.ndim != 1:
        raise MediaError("sound", f"has shape {samples.shape}", "give mono, one value a sample")
    if not np.isfinite(samples).all():
        at = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise MediaError(
            "sound", f"has the value {samples[at]} at sample {at}", "give finite samples in -1..1"
        )
    return np.ascontiguousarray(samples, np.float32)


def _compute_frames(
    samples: Float32, start: int, frames: NDArray[np.float64], n_threads: int
) -> None:
    """Logarithms of mel energies into `frames` [n, n_mels]; the first begins at `start`.

    float32 would round away cells whose energy is far below their neighbours'.
    """
    bank, bounds = _bounded_filter_bank(frames.shape[1])
    _kernels.log_mel_frames(samples, start, bank, bounds, frames, n_threads)


def _normalised(frames: NDArray[np.float64]) -> Float32:
    """Each mel bin to mean 0 and standard deviation 1."""
    features = np.empty(frames.shape, np.float32)
    _kernels.normalize_columns(frames, features)
    return features


@lru_cache(maxsize=2)
def _bounded_filter_bank(n_mels: int) -> tuple[Float32, NDArray[np.int32]]:
    """The filter bank, and the first and last + 1 bin of each filter that is not zero."""
    bank = mel_filter_bank(n_mels)
    used = bank > 0
    first, last = used.argmax(axis=1), _N_BINS - used[:, ::-1].argmax(axis=1)
    bounds = np.stack([first, last], axis=1).astype(np.int32)
    bounds[~used.any(axis=1)] = 0  # narrower than a bin, and between two
    return bank, bounds


@lru_cache(maxsize=2)
def mel_filter_bank(n_mels: int) -> Float32:
    """Triangular filters, 0 to 8000 Hz, on Slaney's scale and with his normalisation of area.

    Args:
        n_mels: filters.
    Returns:
        float32 [n_mels, 257]: the weight of each FFT bin in each filter.
    Source: transformers `audio_utils.mel_filter_bank(norm="slaney", mel_scale="slaney")`,
        which equals librosa `filters.mel`.
    """
    nyquist_hz = SAMPLE_RATE_HZ / 2
    last_mel = _KNEE_MEL + np.log(nyquist_hz / _KNEE_HZ) * _MEL_PER_E
    edges_mel = np.linspace(0, last_mel, n_mels + 2)
    edges_hz = _mel_to_hz(edges_mel.astype(np.float64))
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    bins_hz = np.linspace(0, nyquist_hz, _N_BINS)
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    bank: Float32 = (triangles * (2 / (high - low))).astype(np.float32)
    bank.flags.writeable = False  # shared by all callers
    return bank


# Slaney's scale: 3 mel for each 200 Hz up to 1000 Hz, then 27 mel for each factor of 6.4.
_KNEE_HZ, _KNEE_MEL = 1000.0, 15.0
_MEL_PER_E = 27 / np.log(6.4)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mel * _KNEE_HZ / _KNEE_MEL
    return np.where(mel < _KNEE_MEL, linear, _KNEE_HZ * np.exp((mel - _KNEE_MEL) / _MEL_PER_E))
