"""Any sound to 16 kHz mono."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import MediaError
from edge.features.resample import Resampler, resample
from edge.types import Float32

RATES_HZ = [8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000]


def noise(n_samples: int, n_channels: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(0, 0.2, (n_samples, n_channels)).astype(np.float32)


@settings(deadline=None)
@given(st.sampled_from(RATES_HZ), st.integers(0, 50_000), st.integers(99, 7000), st.integers(1, 6))
def test_a_stream_equals_the_whole(
    rate_hz: int, n_samples: int, block: int, n_channels: int
) -> None:
    sound = noise(n_samples, n_channels)
    whole = resample(sound, rate_hz)
    resampler = Resampler(rate_hz, n_channels)
    parts = [resampler.push(sound[i : i + block]) for i in range(0, n_samples, block)]
    streamed = np.concatenate([*parts, resampler.flush()])
    assert abs(len(whole) - round(n_samples * 16_000 / rate_hz)) <= 1
    assert streamed.dtype == np.float32
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=1e-5)


def test_16_khz_passes_unchanged_and_at_once() -> None:
    sound = noise(1000, 1)
    resampler = Resampler(16_000, 1)
    np.testing.assert_array_equal(resampler.push(sound), sound[:, 0])
    assert len(resampler.flush()) == 0


def test_channels_are_averaged() -> None:
    sound = noise(1000, 6)
    np.testing.assert_allclose(resample(sound, 16_000), sound.mean(axis=1), rtol=0, atol=1e-7)
    left_only = sound * np.array([1, 0, 0, 0, 0, 0], np.float32)
    np.testing.assert_allclose(resample(left_only, 16_000), sound[:, 0] / 6, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rate_hz", [8000, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_time_and_loudness(rate_hz: int) -> None:
    def tone(rate: int) -> Float32:
        return (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)

    resampled = resample(tone(rate_hz)[:, None], rate_hz)
    inner = slice(1000, 15_000)  # the filter rings at the abrupt ends
    np.testing.assert_allclose(resampled[inner], tone(16_000)[inner], rtol=0, atol=1e-3)


def test_what_16_khz_cannot_hold_is_filtered_out() -> None:
    whistle = np.sin(2 * np.pi * 12_000 * np.arange(48_000) / 48_000).astype(np.float32)
    assert np.abs(resample(whistle[:, None], 48_000)[1000:15_000]).max() < 1e-4


def test_impossible_sound_is_refused() -> None:
    with pytest.raises(MediaError, match="a rate of 0 Hz"):
        Resampler(0, 1)
    with pytest.raises(MediaError, match="0 channels"):
        Resampler(48_000, 0)
    with pytest.raises(ValueError, match=r"not \(n, 2\)"):
        Resampler(48_000, 2).push(noise(10, 1))
