"""Turn-taking on real and synthesized speech with known boundaries."""

from __future__ import annotations

import numpy as np
import pytest
from bench_turns import bounds, false_starts, heard, own_voice, pauses_kept, timing
from turn_scenes import NOISES, SAMPLE_RATE_HZ, chunks, conversations

from edge.clock import NS_PER_S
from edge.senses.echo import MAX_WAITING_SAMPLES, Echo
from edge.senses.turn_events import Ended, SoftEnd, SpeechStarted
from edge.senses.turns import TurnDetector
from edge.types import AudioChunk

pytest_plugins = ["media"]
N_PLACEMENTS = 40
"""In each kind of noise."""


def test_onsets_and_ends_are_told_in_time(spoken):
    rng = np.random.default_rng(0)
    rows = {noise: timing(spoken, noise, N_PLACEMENTS, rng) for noise in NOISES}
    for name in ("onset_share", "end_share", "whole_share"):
        shares = {noise: row[name] for noise, row in rows.items()}
        mean = np.mean(list(shares.values()))
        assert mean >= 0.95, f"{name}: {mean:.1%} of {len(rows) * N_PLACEMENTS}: {shares}"
        assert min(shares.values()) >= 0.9, f"{name}: {shares}"


def test_a_pause_inside_a_sentence_does_not_cut_it(spoken):
    assert pauses_kept(spoken, 25, np.random.default_rng(1)) == 1.0


def test_minutes_of_silence_and_noise_start_nothing():
    assert false_starts(2, np.random.default_rng(2)) == 0


@pytest.fixture(scope="module")
def talks(sentences):
    return list(conversations(sentences, 12, np.random.default_rng(3)))


def test_the_robots_own_voice_starts_no_turn_and_a_person_over_it_does(talks):
    shares = own_voice(talks, (0.0,))
    assert shares["itself"] == 0, shares
    assert shares["person at +0 dB"] >= 0.85, shares


def test_without_the_reference_the_robot_would_interrupt_itself(talks):
    assert all(bounds(heard(talk.heard(None)))[0] for talk in talks[:4])


def test_after_the_robot_has_spoken_a_person_is_heard_as_ever(talks, spoken):
    talk = talks[0]
    quiet = np.zeros(2 * SAMPLE_RATE_HZ, np.float32)
    after = np.concatenate([quiet, spoken["Front_Center"], quiet])
    onsets, _ = bounds(heard(np.concatenate([talk.echo, after]), talk.played))
    (onset,) = onsets
    assert abs(onset - len(talk.echo) / SAMPLE_RATE_HZ - 2.0) < 0.15


def test_sound_is_left_as_it_is_while_the_robot_is_silent(talks, spoken):
    """Bit for bit, once the last echo has died away."""
    talk = talks[0]
    quiet = np.zeros(2 * SAMPLE_RATE_HZ, np.float32)
    samples = np.concatenate([talk.echo, quiet, spoken["Front_Center"], quiet])
    ended = [e for e in heard(samples, talk.played) if isinstance(e, Ended)]
    clip = ended[-1].utterance.clip
    first = clip.capture_ns * SAMPLE_RATE_HZ // NS_PER_S
    np.testing.assert_array_equal(clip.samples, samples[first : first + len(clip.samples)])


def test_the_clip_of_a_person_holds_less_of_the_robot(talks):
    """What the model hears of a question is cleaner than the microphone."""
    gains_db = []
    for talk in talks[:6]:
        samples = talk.heard(5.0)
        for event in heard(samples, talk.played):
            if isinstance(event, Ended) and event.utterance is not None:
                clip = event.utterance.clip
                first = clip.capture_ns * SAMPLE_RATE_HZ // NS_PER_S
                span = slice(first, first + len(clip.samples))
                person = talk.person[span] * np.float32(10 ** (5 / 20))
                before = np.square(samples[span] - person).sum()
                gains_db.append(10 * np.log10(before / np.square(clip.samples - person).sum()))
    assert np.median(gains_db) > 5, gains_db


@pytest.mark.parametrize("length", [160, 512, 1000, 16_000])
def test_any_cutting_of_sound_and_voice_gives_the_same_events(talks, length):
    talk = talks[1]
    samples = talk.heard(5.0)

    def told(n: int) -> list[tuple[object, ...]]:
        detector, events = TurnDetector(), []
        for voice, chunk in zip(chunks(talk.played, n), chunks(samples, n), strict=True):
            detector.play(AudioChunk(voice.samples, voice.capture_ns, "loudspeaker"))
            events += detector.push(chunk)
        facts = []
        for event in events:
            if isinstance(event, SpeechStarted):
                facts.append((event.onset_ns, event.noticed_ns))
            elif isinstance(event, Ended | SoftEnd) and event.utterance is not None:
                clip = event.utterance.clip
                facts.append((type(event), clip.capture_ns, clip.samples.tobytes()))
        return facts

    expected = told(1600)
    assert expected
    assert told(length) == expected


def test_a_voice_that_the_microphone_never_comes_to_is_bounded():
    echo, minute = Echo(), np.ones(60 * SAMPLE_RATE_HZ, np.float32)
    for piece in (np.ones(61 * SAMPLE_RATE_HZ, np.float32), *np.split(minute, 6), minute[:1600]):
        echo.play(AudioChunk(piece, 0, "loudspeaker"))
        waiting = [len(samples) for _, samples in echo._played._pieces]
        assert sum(waiting) <= MAX_WAITING_SAMPLES
    assert waiting == [10 * SAMPLE_RATE_HZ] * 5 + [1600]
