"""Turn events by script: which come, in which order, with which clips, in each mode."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_turns import BLOCK_SAMPLES, START_NS, cut, scripted, stream

from edge.errors import MediaError, ProtocolError
from edge.senses.sound import BLOCK_NS, end_ns
from edge.senses.turn_events import (
    Button,
    Choose,
    Cut,
    Ended,
    Overheard,
    Resumed,
    Silence,
    SoftEnd,
    SpeechStarted,
    Withdrawn,
)
from edge.senses.turns import (
    MAX_BLOCKS,
    MIN_SILENCE_BLOCKS,
    MIN_SPEECH_BLOCKS,
    ONSET_LAG_NS,
    POST_ROLL_BLOCKS,
    PRE_ROLL_BLOCKS,
    SOFT_END_BLOCKS,
    TurnDetector,
)
from edge.types import AudioChunk


def told(detector, *runs, odd=0):
    """Events of a whole stream in chunks of a block, so that each is told with its block."""
    samples = stream(*runs, odd=odd)
    return [event for chunk in cut(samples, [BLOCK_SAMPLES]) for event in detector.push(chunk)]


def kinds(events):
    return [type(event) for event in events]


def blocks(clip: AudioChunk) -> tuple[float, float]:
    first = (clip.capture_ns - START_NS) / BLOCK_NS
    return first, first + len(clip.samples) / BLOCK_SAMPLES


def test_a_turn_is_started_softly_ended_and_ended():
    detector = TurnDetector("open", scripted)
    started, soft, ended = told(detector, (40, 0.0), (20, 0.9), (40, 0.0))
    onset_ns = START_NS + 40 * BLOCK_NS
    noticed_ns = onset_ns + MIN_SPEECH_BLOCKS * BLOCK_NS
    assert started == SpeechStarted(onset_ns - ONSET_LAG_NS, noticed_ns)
    assert isinstance(soft, SoftEnd)
    assert isinstance(ended, Ended)
    assert ended.utterance.onset_ns == started.onset_ns
    assert ended.utterance.end_ns == START_NS + 60 * BLOCK_NS
    assert blocks(ended.utterance.clip) == (40 - PRE_ROLL_BLOCKS, 60 + POST_ROLL_BLOCKS)


def test_the_clip_of_a_soft_end_is_the_final_one():
    soft, ended = told(TurnDetector("open", scripted), (10, 0.0), (20, 0.9), (40, 0.0))[1:]
    np.testing.assert_array_equal(soft.utterance.clip.samples, ended.utterance.clip.samples)
    assert soft.utterance.clip.capture_ns == ended.utterance.clip.capture_ns
    assert soft.utterance.end_ns == ended.utterance.end_ns


def test_each_is_told_with_the_block_that_decides_it():
    detector = TurnDetector("open", scripted)
    runs = (20, 0.0), (20, 0.9), (40, 0.0)
    at = []
    for i, chunk in enumerate(cut(stream(*runs), [BLOCK_SAMPLES])):
        at += [(i + 1 - 20, kind) for kind in kinds(detector.push(chunk))]
    assert at == [
        (MIN_SPEECH_BLOCKS, SpeechStarted),
        (20 + SOFT_END_BLOCKS, SoftEnd),
        (20 + MIN_SILENCE_BLOCKS, Ended),
    ]


@pytest.mark.parametrize("pause", [SOFT_END_BLOCKS, 13, MIN_SILENCE_BLOCKS - 1])
def test_speech_that_is_resumed_is_one_utterance(pause):
    runs = (10, 0.0), (20, 0.9), (pause, 0.0), (5, 0.9), (40, 0.0)
    events = told(TurnDetector("open", scripted), *runs)
    assert kinds(events) == [SpeechStarted, SoftEnd, Resumed, SoftEnd, Ended]
    assert events[2].at_ns == START_NS + (30 + pause) * BLOCK_NS
    assert blocks(events[-1].utterance.clip)[1] == 35 + pause + POST_ROLL_BLOCKS


def test_a_shorter_pause_is_not_worth_telling():
    runs = (10, 0.0), (20, 0.9), (SOFT_END_BLOCKS - 1, 0.0), (5, 0.9), (40, 0.0)
    assert kinds(told(TurnDetector("open", scripted), *runs)) == [SpeechStarted, SoftEnd, Ended]


def test_noise_that_is_hardly_speech_does_not_delay_the_reported_end():
    runs = (10, 0.0), (20, 0.9), (6, 0.5), (40, 0.0)
    *_, ended = told(TurnDetector("open", scripted), *runs)
    assert ended.utterance.end_ns == START_NS + 30 * BLOCK_NS
    assert blocks(ended.utterance.clip)[1] == 36 + POST_ROLL_BLOCKS


def test_a_click_is_nothing():
    runs = (10, 0.0), (MIN_SPEECH_BLOCKS - 1, 0.9), (40, 0.0)
    assert told(TurnDetector("open", scripted), *runs) == []


def test_what_is_too_long_is_cut_and_goes_on():
    runs = (10, 0.0), (MAX_BLOCKS + 50, 0.9), (40, 0.0)
    events = told(TurnDetector("open", scripted), *runs)
    assert kinds(events) == [SpeechStarted, Cut, SoftEnd, Ended]
    _, first, _, last = events
    assert len(first.utterance.clip.samples) == MAX_BLOCKS * BLOCK_SAMPLES
    assert end_ns(first.utterance.clip) == last.utterance.clip.capture_ns
    assert last.utterance.onset_ns == first.utterance.end_ns


def test_the_end_after_a_cut_in_a_pause_has_nothing_to_add():
    runs = (10, 0.0), (MAX_BLOCKS - 10 - 3, 0.9), (40, 0.0)
    events = told(TurnDetector("open", scripted), *runs)
    assert kinds(events) == [SpeechStarted, Cut, SoftEnd, Ended]
    assert events[2].utterance is events[3].utterance is None


def test_what_is_too_long_ends_at_a_soft_end():
    runs = (10, 0.0), (MAX_BLOCKS - 10 - SOFT_END_BLOCKS - 1, 0.9), (12, 0.0), (9, 0.9), (40, 0.0)
    events = told(TurnDetector("open", scripted), *runs)
    turn = [SpeechStarted, SoftEnd, Ended]
    assert kinds(events) == turn + turn
    assert blocks(events[2].utterance.clip) == (0, MAX_BLOCKS - 1)


def test_typed_only_starts_no_turn_and_overhears():
    runs = (10, 0.0), (20, 0.9), (10, 0.0), (20, 0.9), (40, 0.0)
    (heard,) = told(TurnDetector("typed", scripted), *runs)
    assert isinstance(heard, Overheard)
    assert blocks(heard.utterance.clip) == (0, 60 + POST_ROLL_BLOCKS)
    long = told(TurnDetector("typed", scripted), (10, 0.0), (MAX_BLOCKS, 0.9), (40, 0.0))
    assert kinds(long) == [Overheard, Overheard]


def pressed(*before, after, detector=None):
    """Chunks before the button is pressed, and those until it is released."""
    detector = detector or TurnDetector("push_to_talk", scripted)
    chunks = list(cut(stream(*before, *after), [BLOCK_SAMPLES]))
    n = sum(n for n, _ in before)
    events = [event for chunk in chunks[:n] for event in detector.push(chunk)]
    events += detector.begin()
    events += [event for chunk in chunks[n:] for event in detector.push(chunk)]
    return events + detector.commit()


def test_push_to_talk_takes_what_is_said_pauses_and_all():
    events = pressed((30, 0.0), after=[(20, 0.9), (60, 0.0), (3, 0.9)])
    assert kinds(events) == [SpeechStarted, Ended]
    assert blocks(events[-1].utterance.clip) == (30 - PRE_ROLL_BLOCKS, 113)


def test_a_held_button_needs_no_long_word_and_leaves_silence_out():
    events = pressed((30, 0.0), after=[(25, 0.0), (2, 0.9), (25, 0.0)])
    assert kinds(events) == [SpeechStarted, Ended]
    assert blocks(events[-1].utterance.clip) == (55 - PRE_ROLL_BLOCKS, 57 + POST_ROLL_BLOCKS)


def test_a_button_pressed_in_silence_says_nothing():
    assert pressed((30, 0.0), after=[(60, 0.0)]) == []


def test_what_is_said_before_the_button_is_overheard():
    events = pressed((30, 0.0), (20, 0.9), after=[(20, 0.9)])
    assert kinds(events) == [Overheard, SpeechStarted, Ended]
    assert end_ns(events[0].utterance.clip) == events[2].utterance.clip.capture_ns


def test_a_word_that_began_just_before_the_button_is_not_lost():
    events = pressed((30, 0.0), (5, 0.9), after=[(20, 0.9)])
    assert blocks(events[-1].utterance.clip)[0] == 35 - PRE_ROLL_BLOCKS


def test_after_the_button_it_overhears_again():
    detector = TurnDetector("push_to_talk", scripted)
    pressed((30, 0.0), after=[(20, 0.9)], detector=detector)
    assert kinds(told(detector, (20, 0.0), (20, 0.9), (40, 0.0))) == [Overheard]


def test_sound_lost_while_the_button_is_held_does_not_end_the_turn():
    detector = TurnDetector("push_to_talk", scripted)
    detector.begin()
    chunks = list(cut(stream((60, 0.9)), [BLOCK_SAMPLES]))
    events = [event for chunk in chunks[:20] + chunks[40:] for event in detector.push(chunk)]
    events += detector.commit()
    assert kinds(events) == [SpeechStarted, Cut, Ended]
    assert [blocks(event.utterance.clip) for event in events[1:]] == [(0, 20), (40, 60)]


def test_cancel_forgets():
    detector = TurnDetector("open", scripted)
    assert kinds(told(detector, (10, 0.0), (20, 0.9))) == [SpeechStarted]
    assert kinds(detector.cancel()) == [Withdrawn]
    assert detector.flush() == []
    assert kinds(told(detector, (20, 0.0), (20, 0.9), (40, 0.0))) == [SpeechStarted, SoftEnd, Ended]


def test_commit_ends_an_open_turn_at_once():
    detector = TurnDetector("open", scripted)
    told(detector, (10, 0.0), (20, 0.9), (2, 0.0))
    (ended,) = detector.commit()
    assert blocks(ended.utterance.clip) == (0, 32)


@pytest.mark.parametrize("mode", ["open", "typed"])
def test_only_push_to_talk_has_a_button(mode):
    with pytest.raises(ProtocolError, match=f"begin: the mode is {mode}; choose push_to_talk"):
        TurnDetector(mode, scripted).begin()


def test_a_voice_that_is_not_finite_is_refused():
    with pytest.raises(MediaError, match="not finite"):
        TurnDetector().play(AudioChunk(np.full(9, np.inf, np.float32), 0, "loudspeaker"))


def facts(event):
    """What may be compared of an event."""
    said = getattr(event, "utterance", None)
    if said is None:
        return event if isinstance(event, SpeechStarted | Resumed) else type(event)
    clip = said.clip
    return type(event), clip.samples.tobytes(), clip.capture_ns, said.onset_ns, said.end_ns


RUN = st.tuples(st.sampled_from([1, 3, 7, 8, 19, 20, 40, 200]), st.sampled_from([0.0, 0.4, 0.9]))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(RUN, max_size=12),
    st.integers(0, 511),
    st.lists(st.integers(0, 5000), max_size=8),
    st.sampled_from(["open", "typed", "push_to_talk"]),
)
def test_any_cutting_of_a_stream_gives_the_same_events(runs, odd, lengths, mode):
    samples = stream(*runs, odd=odd)

    def events(lengths):
        detector = TurnDetector(mode, scripted)
        if mode == "push_to_talk":
            detector.begin()
        found = [event for chunk in cut(samples, lengths) for event in detector.push(chunk)]
        return [facts(event) for event in found + detector.flush()]

    assert events([*lengths, 1600]) == events([max(len(samples), 1)])


WISH = st.one_of(
    st.sampled_from(["begin", "commit", "cancel"]).map(Button),
    st.sampled_from(["open", "typed", "push_to_talk"]).map(Choose),
    st.sampled_from([BLOCK_NS, 3_000_000_000, 61_000_000_000]).map(Silence),
)
HAPPENING = st.one_of(RUN, WISH, st.sampled_from([0.5, 3.0, 70.0]), st.just("end"))


@settings(deadline=None, max_examples=300)
@given(st.lists(HAPPENING, max_size=20), st.sampled_from(["open", "push_to_talk"]))
def test_each_start_of_speech_has_one_end_whatever_happens(happenings, mode):
    """Runs of blocks, wishes, sound that is missing for so many seconds, the end of the source."""
    detector, at_ns, is_on = TurnDetector(mode, scripted), START_NS, False
    for one in [*happenings, Choose("typed")]:
        events = []
        if isinstance(one, float):
            at_ns += int(one * 1e9)
        elif one == "end":
            events = detector.flush()
        elif isinstance(one, tuple):
            for chunk in cut(stream(one), [BLOCK_SAMPLES]):
                events += detector.push(AudioChunk(chunk.samples, at_ns, chunk.source))
                at_ns += BLOCK_NS
        elif not (isinstance(one, Button) and detector.mode != "push_to_talk"):
            events = detector.control(one)
        for event in events:
            if isinstance(event, SpeechStarted):
                assert not is_on
                is_on = True
            elif isinstance(event, Ended | Withdrawn):
                assert is_on
                is_on = False
            elif isinstance(event, SoftEnd | Resumed):
                assert is_on
        assert not is_on or detector._held or detector.mode == "open"  # else it takes no turn
    assert not is_on
