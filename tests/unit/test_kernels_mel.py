"""The log-mel kernel and the stream on it, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from features import clip_bounds, raw_log_mel
from features import log_mel as reference_log_mel
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import _kernels
from edge.errors import MediaError
from edge.features import mel
from edge.features.mel import LogMelStream, log_mel
from edge.types import Float32

HOUR_PUSHES = 36_000


def noise(n_samples: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)


def tone(n_samples: int) -> Float32:
    return np.sin(np.arange(n_samples) * 0.3).astype(np.float32)


SOUNDS = {
    "noise": noise(20_001),
    "tone": tone(17_000),
    "loud": np.sign(noise(9_000)),
    "far too loud": noise(4_000) * np.float32(1e15),
    "denormal": noise(4_000) * np.float32(1e-40),
    "quiet": noise(4_000) * np.float32(1e-5),
    "click": np.eye(1, 5_000, 2_345, dtype=np.float32)[0],
    "constant": np.ones(5_000, np.float32),
    "silence": np.zeros(3_000, np.float32),
    "shortest": noise(1_600),
    "30 s": noise(480_000),
}


def raw(samples: Float32, n_mels: int = 128, *, portable: bool = False) -> np.ndarray:
    bank, bounds = mel._bounded_filter_bank(n_mels)
    out = np.full((len(samples) // 160, n_mels), np.nan)
    _kernels.log_mel_frames(samples, -200, bank, bounds, out, 1, portable)
    return out


@pytest.mark.parametrize("name", SOUNDS)
def test_frames_equal_float64(name: str) -> None:
    samples = SOUNDS[name]
    frames = raw(samples)
    expected = raw_log_mel(samples, 128)
    # Measured: 1.5e-12, where a pure tone's neighbours cancel to nothing; 4e-13 elsewhere.
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(raw(samples, portable=True), frames)


@pytest.mark.parametrize("name", SOUNDS)
def test_features_equal_float64(name: str) -> None:
    samples = SOUNDS[name]
    expected = reference_log_mel(samples, 128)
    # Nothing but the rounding to float32, and what a constant column's mean leaves.
    np.testing.assert_allclose(log_mel(samples, 128), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("n_mels", [1, 3, 64, 80, 128, 257])
def test_any_number_of_mels(n_mels: int) -> None:
    """Many: some filters are narrower than a bin, and empty."""
    samples = noise(4_000)
    np.testing.assert_allclose(
        raw(samples, n_mels), raw_log_mel(samples, n_mels), rtol=0, atol=1e-11
    )


def test_threads_change_nothing() -> None:
    samples = noise(50_123)
    one = log_mel(samples, 128, n_threads=1)
    for n_threads in (0, 2, 3, 64):
        np.testing.assert_array_equal(log_mel(samples, 128, n_threads=n_threads), one)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (10, 128), (333, 7)])
def test_normalize(n: int, m: int) -> None:
    log = np.random.default_rng(0).normal(-9, 3, (n, m))
    log[:, 0] = -16.6  # a constant column becomes exactly 0
    out, plain = np.empty((2, n, m), np.float32)
    _kernels.normalize_columns(log, out)
    _kernels.normalize_columns(log, plain, portable=True)
    expected = (log - log.mean(axis=0)) / (log.std(axis=0, ddof=1) + 1e-5)
    np.testing.assert_allclose(out[:, 1:], expected[:, 1:], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out[:, 0], 0)
    np.testing.assert_array_equal(out, plain)


def whole(samples: Float32) -> list[Float32]:
    bounds = clip_bounds(len(samples))
    padded = np.pad(samples, (0, bounds[-1][1] - len(samples)))
    return [log_mel(padded[start:end], 128) for start, end in bounds]


def equal(got: list[Float32], expected: list[Float32]) -> None:
    assert [clip.shape for clip in got] == [clip.shape for clip in expected]
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.integers(0, 900) | st.sampled_from([1, 159, 160, 161, 200, 400, 401, 1600, 9999]),
        min_size=1, max_size=40,
    ),
    st.integers(0, 99),
)  # fmt: skip
def test_blocks_of_any_size_give_the_same_bits(sizes: list[int], seed: int) -> None:
    samples = noise(sum(sizes), seed)
    stream = LogMelStream(128)
    got: list[Float32] = []
    for block in np.split(samples, np.cumsum(sizes[:-1])):
        got += stream.push(block)
    equal(got + stream.flush(), whole(samples) if len(samples) else [])
    equal(stream.push(samples) + stream.flush(), whole(samples) if len(samples) else [])


@pytest.mark.parametrize("n_samples", [1, 1599, 1600, 479_999, 480_000, 480_001, 1_000_000])
@pytest.mark.parametrize("block", [1600, 7_777, 2_000_000])
def test_clips_of_a_long_stream(n_samples: int, block: int) -> None:
    samples = noise(n_samples)
    stream = LogMelStream(128)
    got = [c for at in range(0, n_samples, block) for c in stream.push(samples[at : at + block])]
    equal(got + stream.flush(), whole(samples))


def test_silence_and_nothing() -> None:
    stream = LogMelStream(128)
    assert stream.flush() == []
    assert stream.push(np.zeros(0, np.float32)) == []
    assert stream.flush() == []
    assert stream.push(np.zeros(4_000, np.float32)) == []
    np.testing.assert_array_equal(stream.flush()[0], np.zeros((25, 128)))


def test_a_refused_block_is_not_taken() -> None:
    samples, bad = noise(5_000), noise(800)
    bad[3] = np.nan
    stream = LogMelStream(128)
    stream.push(samples[:3_000])
    with pytest.raises(MediaError, match="the value nan at sample 3"):
        stream.push(bad)
    with pytest.raises(MediaError, match=r"has shape \(800, 1\); give mono"):
        stream.push(noise(800)[:, None])
    equal(stream.push(samples[3_000:]) + stream.flush(), whole(samples))


def test_after_an_hour_a_push_does_what_it_did_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: frames that each push computes, samples that it looks at, bytes that are kept."""
    compute, work = mel._compute_frames, []

    def counted(samples: Float32, start: int, frames: np.ndarray, n_threads: int) -> None:
        work[-1].append((len(frames), len(samples)))
        compute(samples, start, frames, n_threads)

    monkeypatch.setattr(mel, "_compute_frames", counted)
    stream, block, kept = LogMelStream(128), noise(1600), []
    for _ in range(HOUR_PUSHES):
        work.append([])
        stream.push(block)
        kept.append(sum(v.nbytes for v in vars(stream).values() if isinstance(v, np.ndarray)))
    assert {len(value) for value in vars(stream).values() if isinstance(value, list)} == set()
    a_clip = 300
    for start in range(0, HOUR_PUSHES, a_clip):
        assert work[start : start + a_clip] == work[:a_clip]
        assert kept[start : start + a_clip] == kept[:a_clip]
    assert max(sum(n for n, _ in calls) for calls in work) <= 12  # 10, and 2 more at a clip's end
    assert max(kept) <= 3000 * 128 * 8 + 4 * 3000


def test_what_does_not_belong_together_is_refused() -> None:
    bank, bounds = mel._bounded_filter_bank(128)
    samples, out = noise(1600), np.empty((10, 128))
    for arguments, message in (
        ((bank[:, :256].copy(), bounds, out), "257"),
        ((bank, bounds[:9].copy(), out), "bounds are not"),
        ((bank, bounds + np.int32(3), out), "0..257"),
        ((bank, bounds, out[:, :9].copy()), "frames, filters"),
    ):
        with pytest.raises(ValueError, match=message):
            _kernels.log_mel_frames(samples, 0, *arguments, 1)
    with pytest.raises(ValueError, match="fewer than 2 rows"):
        _kernels.normalize_columns(out[:1], np.empty((1, 128), np.float32))
