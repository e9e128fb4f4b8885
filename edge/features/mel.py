"""Log-mel features of one clip, exactly as the audio encoder was trained.

Source: transformers 5.23.0 `models/parakeet/feature_extraction_parakeet.py`; the split into
clips follows vLLM 0.33 `models/parakeet.py`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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
_PREEMPHASIS = np.float32(0.97)
_LOG_GUARD = 2.0**-24
_STD_GUARD = 1e-5
_SUBSAMPLING = 8  # mel frames that the encoder's three stride-2 convolutions join into one token


def clip_bounds(n_samples: int) -> list[tuple[int, int]]:
    """Where sound of any length is cut into clips.

    Args:
        n_samples: length of the sound at 16 kHz.
    Returns:
        (start, end) sample indices of each clip, without overlap. The last clip is at least
        `MIN_CLIP_SAMPLES` long, so its end may lie past `n_samples`: pad with zeros up to it.
    """
    starts = range(0, max(n_samples, 1), CLIP_SAMPLES)
    return [
        (start, max(min(start + CLIP_SAMPLES, n_samples), start + MIN_CLIP_SAMPLES))
        for start in starts
    ]


def audio_tokens(n_samples: int) -> int:
    """Tokens that sound of this length becomes, over all its clips.

    Args:
        n_samples: length of the sound at 16 kHz.
    """
    frames = (end // _HOP - start // _HOP for start, end in clip_bounds(n_samples))
    return sum(-(-n // _SUBSAMPLING) for n in frames)


def log_mel(samples: Float32, n_mels: int) -> Float32:
    """Log-mel features of one clip, normalised over the clip.

    Args:
        samples: float32 [n], -1..1, 16 kHz mono, n >= `MIN_CLIP_SAMPLES` (see `clip_bounds`).
        n_mels: mel bins.
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
    if not np.isfinite(samples).all():
        at = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise MediaError(
            "sound", f"has the value {samples[at]} at sample {at}", "give finite samples in -1..1"
        )
    # float32, as the encoder was trained: in the quiet high bins the rounding of this difference
    # is all there is, and what follows in float64 must start from the same rounding.
    emphasised = np.array(samples, np.float32)
    emphasised[1:] -= _PREEMPHASIS * samples[:-1]
    power = _power_spectrum(emphasised, n_frames=len(samples) // _HOP)
    log = np.log(power @ mel_filter_bank(n_mels).T + _LOG_GUARD)
    log -= log.mean(axis=0)
    log /= log.std(axis=0, ddof=1) + _STD_GUARD
    return log.astype(np.float32)


def _power_spectrum(signal: Float32, n_frames: int) -> NDArray[np.float64]:
    """[n_frames, 257]: frame t is centred at sample 160 t, with zeros around the signal."""
    padded = np.pad(signal, _WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:n_frames]
    # Zeros at the end instead of on both sides shift a frame's phase, which power does not see.
    spectrum = np.fft.rfft(frames * _hann(), _FFT)
    power: NDArray[np.float64] = spectrum.real**2 + spectrum.imag**2
    return power


@lru_cache(maxsize=1)
def _hann() -> NDArray[np.float64]:
    """Symmetric: its first and last values are 0."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))


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
    edges_hz = _mel_to_hz(np.linspace(0, _hz_to_mel(nyquist_hz), n_mels + 2))
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


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz * _KNEE_MEL / _KNEE_HZ
    return float(_KNEE_MEL + np.log(hz / _KNEE_HZ) * _MEL_PER_E)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mel * _KNEE_HZ / _KNEE_MEL
    return np.where(mel < _KNEE_MEL, linear, _KNEE_HZ * np.exp((mel - _KNEE_MEL) / _MEL_PER_E))
