"""Utterances: where speech begins and ends, exact to the block of 32 ms."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.clock import VirtualClock
from edge.errors import MediaError
from edge.senses.recording import Recording
from edge.senses.sound import BLOCK_SAMPLES, end_ns
from edge.senses.turn_events import Ended, SpeechStarted
from edge.senses.turns import (
    MAX_BLOCKS,
    MIN_SILENCE_BLOCKS,
    MIN_SPEECH_BLOCKS,
    POST_ROLL_BLOCKS,
    PRE_ROLL_BLOCKS,
    TurnDetector,
    UtteranceDetector,
)
from edge.types import AudioChunk, Float32

pytest_plugins = ["media"]

START_NS = 5_000_000_000
NS_PER_SAMPLE = 62_500
RATE_HZ = 16_000


def scripted(samples: Float32) -> float:
    """The stream is its own script: a block's first sample is its probability."""
    return float(samples[0])


def stream(*runs: tuple[int, float], odd: int = 0) -> Float32:
    """Runs of blocks, (how many, probability), and `odd` samples of the last run after them.
    The samples that are not a block's first one number the stream."""
    n_samples = sum(n for n, _ in runs) * BLOCK_SAMPLES + odd
    samples = np.arange(n_samples, dtype=np.float32)
    probabilities = np.repeat([p for _, p in runs], [n for n, _ in runs])
    starts = samples[::BLOCK_SAMPLES]
    starts[: len(probabilities)] = probabilities
    return samples


def cut(samples: Float32, lengths: Sequence[int] = (1600,), start_ns: int = START_NS):
    """The stream in chunks of these lengths, again and again."""
    at, turn = 0, 0
    while at < len(samples):
        n = lengths[turn % len(lengths)]
        yield AudioChunk(samples[at : at + n], start_ns + at * NS_PER_SAMPLE, "microphone")
        at, turn = at + n, turn + 1


def heard(
    chunks, probability: Callable[[Float32], float] | None = scripted, flush: bool = True
) -> list[AudioChunk]:
    detector = UtteranceDetector(probability)
    utterances = [utterance for chunk in chunks for utterance in detector.push(chunk)]
    return utterances + (detector.flush() if flush else [])


def bounds(samples: Float32, utterances: list[AudioChunk]) -> list[tuple[float, float]]:
    """First and last block of each utterance, after checking its samples, times and source."""
    found = []
    for utterance in utterances:
        first, odd = divmod(utterance.capture_ns - START_NS, NS_PER_SAMPLE)
        assert odd == 0
        end = first + len(utterance.samples)
        np.testing.assert_array_equal(utterance.samples, samples[first:end])
        assert end_ns(utterance) == START_NS + end * NS_PER_SAMPLE
        assert utterance.source == "microphone"
        found.append((first / BLOCK_SAMPLES, end / BLOCK_SAMPLES))
    return found


def spoken(*runs: tuple[int, float], odd: int = 0, flush: bool = True) -> list[tuple[float, float]]:
    samples = stream(*runs, odd=odd)
    return bounds(samples, heard(cut(samples), flush=flush))


def test_the_clip_goes_from_the_pre_roll_to_the_post_roll():
    assert spoken((40, 0.0), (20, 0.9), (40, 0.0), flush=False) == [
        (40 - PRE_ROLL_BLOCKS, 60 + POST_ROLL_BLOCKS)
    ]


def test_speech_at_once_has_what_pre_roll_there_is():
    assert spoken((2, 0.0), (20, 0.9), (40, 0.0)) == [(0, 22 + POST_ROLL_BLOCKS)]


def test_it_is_given_with_the_block_that_makes_the_pause_long_enough():
    samples = stream((10, 0.0), (20, 0.9), (MIN_SILENCE_BLOCKS, 0.0))
    before = samples[: -BLOCK_SAMPLES // 2]
    assert heard(cut(before), flush=False) == []
    assert len(heard(cut(samples), flush=False)) == 1


@pytest.mark.parametrize(
    ("dip", "n_utterances"), [(0.36, 1), (0.4, 1), (0.49, 1), (0.34, 2), (0.0, 2)]
)
def test_speech_goes_on_at_a_lower_probability_than_it_begins(dip, n_utterances):
    found = spoken((10, 0.0), (10, 0.9), (40, dip), (10, 0.9), (40, 0.0))
    assert len(found) == n_utterances
    assert found[-1][1] == 70 + POST_ROLL_BLOCKS


@pytest.mark.parametrize(("probability", "n_utterances"), [(0.5, 1), (0.49, 0), (0.4, 0)])
def test_speech_begins_at_a_half(probability, n_utterances):
    assert len(spoken((10, 0.0), (30, probability), (40, 0.0))) == n_utterances


def test_after_a_pause_it_takes_the_higher_probability_again():
    """0.4 goes on with speech, and does not take it up again."""
    assert spoken((10, 0.0), (10, 0.9), (1, 0.3), (40, 0.4))[0][1] == 20 + POST_ROLL_BLOCKS


def test_a_pause_below_the_least_silence_stays_inside():
    pause = MIN_SILENCE_BLOCKS - 1
    found = spoken((10, 0.0), (10, 0.9), (pause, 0.0), (10, 0.9), (40, 0.0))
    assert found == [(10 - PRE_ROLL_BLOCKS, 30 + pause + POST_ROLL_BLOCKS)]


def test_two_utterances_share_no_sample():
    found = spoken((10, 0.0), (10, 0.9), (MIN_SILENCE_BLOCKS, 0.0), (10, 0.9), (40, 0.0))
    second = 20 + MIN_SILENCE_BLOCKS
    assert found == [
        (10 - PRE_ROLL_BLOCKS, 20 + POST_ROLL_BLOCKS),
        (max(20 + POST_ROLL_BLOCKS, second - PRE_ROLL_BLOCKS), second + 10 + POST_ROLL_BLOCKS),
    ]


@pytest.mark.parametrize(
    ("n_voiced", "n_utterances"), [(1, 0), (MIN_SPEECH_BLOCKS - 1, 0), (MIN_SPEECH_BLOCKS, 1)]
)
def test_too_short_speech_is_dropped(n_voiced, n_utterances):
    assert len(spoken((10, 0.0), (n_voiced, 0.9), (40, 0.0))) == n_utterances


@pytest.mark.parametrize(("mode", "n_needed"), [("open", MIN_SPEECH_BLOCKS), ("push_to_talk", 1)])
def test_a_button_that_is_held_is_proof_enough_of_speech(mode, n_needed):
    for n_voiced in (n_needed - 1, n_needed):
        detector = TurnDetector(mode, scripted)
        if mode == "push_to_talk":
            detector.begin()
        samples = stream((2, 0.0), (n_voiced, 0.9), (1, 0.0))
        events = [event for chunk in cut(samples) for event in detector.push(chunk)]
        events += detector.commit()
        told = [SpeechStarted, Ended] if n_voiced == n_needed else []
        assert [type(event) for event in events] == told


def test_a_dropped_click_is_pre_roll_again():
    """It is forgotten as speech, and what follows is an utterance of its own."""
    found = spoken((10, 0.0), (1, 0.9), (MIN_SILENCE_BLOCKS, 0.0), (10, 0.9), (40, 0.0))
    onset = 11 + MIN_SILENCE_BLOCKS
    assert found == [(onset - PRE_ROLL_BLOCKS, onset + 10 + POST_ROLL_BLOCKS)]


def test_endless_speech_is_cut_without_loss():
    n_voiced = 2 * MAX_BLOCKS + 50
    found = spoken((10, 0.0), (n_voiced, 0.9), (40, 0.0))
    first = 10 - PRE_ROLL_BLOCKS
    assert found == [
        (first, first + MAX_BLOCKS),
        (first + MAX_BLOCKS, first + 2 * MAX_BLOCKS),
        (first + 2 * MAX_BLOCKS, 10 + n_voiced + POST_ROLL_BLOCKS),
    ]


def test_what_a_cut_leaves_over_is_given_however_short():
    n_voiced = MAX_BLOCKS - PRE_ROLL_BLOCKS + 1
    found = spoken((PRE_ROLL_BLOCKS, 0.0), (n_voiced, 0.9), (40, 0.0))
    assert found == [(0, MAX_BLOCKS), (MAX_BLOCKS, MAX_BLOCKS + 1 + POST_ROLL_BLOCKS)]


def test_a_pause_that_a_cut_leaves_over_is_not_an_utterance():
    n_voiced = MAX_BLOCKS - PRE_ROLL_BLOCKS - 1
    assert spoken((PRE_ROLL_BLOCKS, 0.0), (n_voiced, 0.9), (60, 0.0)) == [(0, MAX_BLOCKS)]


def test_flush_gives_what_is_being_said_to_its_last_sample():
    end = 30 + 100 / BLOCK_SAMPLES
    assert spoken((10, 0.0), (20, 0.9), odd=100) == [(10 - PRE_ROLL_BLOCKS, end)]
    assert spoken((10, 0.0), (20, 0.9), (2, 0.0), odd=100) == [(10 - PRE_ROLL_BLOCKS, 32)]
    assert spoken((10, 0.0), (20, 0.9), (10, 0.0)) == [(10 - PRE_ROLL_BLOCKS, 38)]
    assert spoken((10, 0.0), (3, 0.9)) == []
    assert spoken((10, 0.0)) == []


def test_flush_right_after_a_cut_gives_the_rest():
    runs = (PRE_ROLL_BLOCKS, 0.0), (MAX_BLOCKS - PRE_ROLL_BLOCKS, 0.9)
    assert spoken(*runs) == [(0, MAX_BLOCKS)]
    rest = MAX_BLOCKS + 100 / BLOCK_SAMPLES
    assert spoken(*runs, odd=100) == [(0, MAX_BLOCKS), (MAX_BLOCKS, rest)]


def test_after_a_flush_it_listens_anew():
    detector = UtteranceDetector(scripted)
    samples = stream((10, 0.0), (20, 0.9))
    for start_ns in (0, 9_000_000_000):
        assert all(detector.push(chunk) == [] for chunk in cut(samples, start_ns=start_ns))
        (utterance,) = detector.flush()
        onset = (10 - PRE_ROLL_BLOCKS) * BLOCK_SAMPLES
        assert utterance.capture_ns == start_ns + onset * NS_PER_SAMPLE
    for chunk in cut(stream((30, 0.4))):  # not taken for the speech before the flush
        assert detector.push(chunk) == []
    assert detector.flush() == []


def test_sound_that_was_lost_ends_the_utterance():
    samples = stream((10, 0.0), (60, 0.9), (40, 0.0))
    chunks = list(cut(samples))
    lost = 12  # of chunks of 0.1 s; speech goes from 3.2 to 22.4
    first, second = heard(chunks[:lost] + chunks[lost + 1 :])
    assert end_ns(first) == chunks[lost].capture_ns
    assert second.capture_ns == chunks[lost + 1].capture_ns


def test_a_microphone_that_is_a_little_late_is_followed():
    """Times are the newest chunk's: small differences neither end speech nor add up."""
    drift_ns = 600_000  # a chunk: after 84 of them more than the jitter that is let pass
    samples = stream((400, 0.9), (40, 0.0))
    late = [
        AudioChunk(chunk.samples, chunk.capture_ns + i * drift_ns, chunk.source)
        for i, chunk in enumerate(cut(samples))
    ]
    (utterance,) = heard(late)
    assert utterance.capture_ns == START_NS


def test_sound_that_is_not_finite_is_refused_alone():
    detector = UtteranceDetector(scripted)
    chunks = list(cut(stream((60, 0.9))))
    poisoned = AudioChunk(np.full(1600, np.nan, np.float32), chunks[9].capture_ns, "microphone")
    for chunk in chunks[:9]:
        detector.push(chunk)
    with pytest.raises(MediaError, match="not finite"):
        detector.push(poisoned)
    (before,) = detector.push(chunks[10])
    assert end_ns(before) == chunks[9].capture_ns


RUN = st.tuples(st.sampled_from([1, 3, 6, 7, 15, 16, 40, 200]), st.sampled_from([0.0, 0.4, 0.9]))


@settings(deadline=None, max_examples=60)
@given(st.lists(RUN, max_size=12), st.integers(0, 511), st.lists(st.integers(0, 5000), max_size=8))
def test_any_cutting_of_a_stream_gives_the_same_utterances(runs, odd, lengths):
    samples = stream(*runs, odd=odd)
    found = bounds(samples, heard(cut(samples, [*lengths, 1600])))
    assert found == bounds(samples, heard(cut(samples, [max(len(samples), 1)])))
    assert all(end - start <= MAX_BLOCKS for start, end in found)
    assert all(end <= start for (_, end), (start, _) in pairwise(found))


def test_an_hour_of_silence_or_one_long_chunk_keeps_little():
    detector = UtteranceDetector(lambda samples: 0.0)
    silence = np.zeros(60 * RATE_HZ, np.float32)

    def listen(minutes: range) -> None:
        for minute in minutes:
            assert detector.push(AudioChunk(silence, minute * 60_000_000_000, "microphone")) == []

    tracemalloc.start()
    try:
        listen(range(2))
        before, _ = tracemalloc.get_traced_memory()
        listen(range(2, 60))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after < 100_000
    assert after - before < 10_000


def recorded(path: Path) -> Float32:
    sound = Recording.open(path).sound(VirtualClock(), 0)
    assert sound is not None
    return np.concatenate([chunk.samples for chunk in sound.chunks()])


@pytest.mark.parametrize("name", ["Front_Center", "Rear_Center", "Side_Right", "Front_Left"])
def test_recorded_speech_is_one_utterance(speech, name):
    second = np.zeros(RATE_HZ, np.float32)
    samples = np.concatenate([second, recorded(speech / f"{name}.wav"), second])
    (utterance,) = heard(cut(samples), None, flush=False)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    start = (utterance.capture_ns - START_NS) / NS_PER_SAMPLE
    assert -0.4 * RATE_HZ <= start - loud[0] <= 0
    assert 0 <= start + len(utterance.samples) - loud[-1] <= 0.4 * RATE_HZ


def test_noise_and_silence_are_no_speech(speech):
    rng = np.random.default_rng(0)
    for samples in (
        np.zeros(5 * RATE_HZ, np.float32),
        rng.normal(0, 0.05, 5 * RATE_HZ).astype(np.float32),
        recorded(speech / "Noise.wav"),
    ):
        assert heard(cut(samples), None) == []
