"""Log-mel features, against goldens of transformers' ParakeetFeatureExtractor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import MediaError
from edge.features.mel import LogMelStream, log_mel, mel_filter_bank
from edge.types import Float32


def golden_sound(n_samples: int) -> Float32:
    k = np.arange(n_samples)
    return (((7919 * k) % 2001 - 1000) / 4000).astype(np.float32)


def test_log_mel_equals_the_reference() -> None:
    features = log_mel(golden_sound(16_000), 128)
    assert features.shape == (100, 128)
    assert features.dtype == np.float32
    found = [features[i, j] for i, j in ((0, 0), (0, 64), (50, 10), (99, 127))]
    # The reference computes in float32: it is itself 2e-4 away from exact arithmetic.
    np.testing.assert_allclose(found, [3.0033, -0.1429, 0.9689, 1.0323], rtol=0, atol=2e-4)


def test_filter_bank_equals_the_reference() -> None:
    bank = mel_filter_bank.__wrapped__(128)  # made here, whoever has asked for it before
    assert bank.shape == (128, 257)
    assert bank.dtype == np.float32
    assert bank.sum() == pytest.approx(4.090488, abs=1e-6)
    assert bank.max() == pytest.approx(0.042366, abs=1e-6)
    assert (bank.argmax(axis=1)[1:] >= bank.argmax(axis=1)[:-1]).all()
    with pytest.raises(ValueError, match="read-only"):
        bank[0, 0] = 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1600, 40_000), st.integers(0, 1000))
def test_each_bin_is_normalised_over_the_clip(n_samples: int, seed: int) -> None:
    sound = np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)
    features = log_mel(sound, 128)
    assert features.shape == (n_samples // 160, 128)
    np.testing.assert_allclose(features.mean(axis=0), 0, rtol=0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=0, ddof=1), 1, rtol=0, atol=1e-3)


def test_frames_are_centred() -> None:
    """A click at sample 160 t shows most in frame t, which is where its window peaks."""
    clicks = np.zeros(16_000, np.float32)
    clicks[160 * 40] = 1
    assert log_mel(clicks, 128).mean(axis=1).argmax() == 40


def test_silence_is_zero() -> None:
    """Not the rounding of its mean blown up by the guard in the divisor."""
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32), 128), 0, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("n_samples", "n_tokens"),
    [
        (1, 2),
        (1600, 2),
        (15_999, 13),
        (16_000, 13),
        (20_479, 16),
        (20_480, 16),
        (480_000, 375),
        (480_001, 377),
        (490_000, 383),
        (60 * 16_000, 750),
    ],
)
def test_tokens_are_as_many_as_vllm_counts(n_samples: int, n_tokens: int) -> None:
    """The encoder joins 8 mel frames of a clip into one token, and what is left over into one."""
    stream = LogMelStream(8)
    clips = stream.push(np.zeros(n_samples, np.float32)) + stream.flush()
    assert sum(-(-len(clip) // 8) for clip in clips) == n_tokens


def test_the_first_value_that_is_no_number_is_named() -> None:
    sound = golden_sound(3200)
    sound[[700, 900]] = np.nan
    with pytest.raises(MediaError, match="sample 700;"):
        log_mel(sound, 128)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    sound = golden_sound(16_000)
    sound[1234] = value
    with pytest.raises(MediaError, match=f"the value {value} at sample 1234"):
        log_mel(sound, 128)


@pytest.mark.parametrize("shape", [(0,), (1599,), (1600, 1)])
def test_clips_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MediaError, match="at least 1600 samples"):
        log_mel(np.zeros(shape, np.float32), 128)
