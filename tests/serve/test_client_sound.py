"""A client's sound: its formats, what waits, and what of it is a turn."""

from __future__ import annotations

import av
import numpy as np
import pytest

from edge.clock import NS_PER_S
from edge.errors import MediaError, ProtocolError
from edge.senses.sound import NS_PER_SAMPLE
from edge.senses.turn_events import Cut, Ended, SoftEnd, SpeechStarted, Utterance
from edge.serve import client_sound
from edge.serve.client_sound import PCM, ClientSound, rate_of, samples_of
from edge.serve.playback import Playback
from edge.serve.protocol import SoundFormat
from edge.types import AudioChunk

MU_LAW, A_LAW = SoundFormat(type="audio/pcmu"), SoundFormat(type="audio/pcma")
SECOND = 16_000


@pytest.mark.parametrize(("form", "codec"), [(MU_LAW, "pcm_mulaw"), (A_LAW, "pcm_alaw")])
def test_g711_is_what_ffmpeg_makes_of_it(form, codec):
    codes = bytes(range(256))
    decoder = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    (frame,) = decoder.decode(av.Packet(codes))
    expected = frame.to_ndarray().reshape(-1, 1).astype(np.float32) / (1 << 15)
    np.testing.assert_array_equal(samples_of(codes, form), expected)


def test_pcm_is_little_endian_and_whole():
    samples = samples_of(b"\x00\x40\x00\x80", PCM)
    assert samples.tolist() == [[0.5], [-1.0]]
    with pytest.raises(ProtocolError, match="audio: has 3 bytes"):
        samples_of(b"\x00\x40\x00", PCM)


def test_rates():
    assert [rate_of(form) for form in (PCM, SoundFormat(), MU_LAW, A_LAW)] == [
        24_000, 24_000, 8_000, 8_000
    ]  # fmt: skip
    assert rate_of(SoundFormat(rate=44_100)) == 44_100


def pcm(seconds, rate_hz=24_000, level=8192):
    return np.full(round(seconds * rate_hz), level, "<i2").tobytes()


def taken(sound):
    """What a client committed, samples."""
    (ended,) = sound.commit()
    return np.frombuffer(sound.take(ended).samples, np.float32)


def test_what_is_committed_is_all_that_was_sent():
    sound = ClientSound()
    assert sound.commit() == []
    for _ in range(4):
        assert sound.push(pcm(0.25)) == []
    assert len(taken(sound)) == SECOND
    assert sound.heard_ms == 1000
    assert sound.commit() == []
    sound.push(pcm(0.5))
    assert len(taken(sound)) == SECOND // 2
    assert sound.heard_ms == 1500


def test_a_turn_that_is_taken_already_holds_nothing():
    assert ClientSound().take(Ended(None)) is None


def test_formats_that_follow_one_another_are_one_sound():
    sound = ClientSound()
    sound.push(pcm(0.5))
    sound.hear(PCM)
    sound.hear(MU_LAW)
    sound.push(bytes([0x10] * 4000))
    sound.hear(SoundFormat(rate=16_000))
    sound.push(pcm(0.25, 16_000))
    samples = taken(sound)
    assert len(samples) == SECOND * 5 // 4
    assert sound.heard_ms == 1250
    level = samples_of(b"\x10", MU_LAW)[0, 0]
    for at, expected in ((4_000, 0.25), (12_000, level), (18_000, 0.25)):
        assert samples[at] == pytest.approx(expected, abs=0.01)


def test_what_is_cleared_is_forgotten_but_for_its_time():
    sound = ClientSound()
    sound.push(pcm(1.0))
    assert sound.clear() is False
    assert sound.commit() == []
    before_ms = sound.heard_ms
    sound.push(pcm(0.5, level=0))
    samples = taken(sound)
    assert len(samples) == SECOND // 2
    assert not samples.any()  # nothing of before comes out of a filter
    assert sound.heard_ms - before_ms == 500


def test_no_more_than_thirty_seconds_wait():
    sound = ClientSound()
    for _ in range(30):
        sound.push(pcm(1.0))
    with pytest.raises(MediaError, match="lasts more than 30 s"):
        sound.push(pcm(0.1))
    assert len(taken(sound)) <= 30 * SECOND


class Detector:
    """Says what it is told to say; `made` are all of a test."""

    def __init__(self, mode):
        self.mode, self.heard, self.events, self.rest = mode, [], [], []
        Detector.made.append(self)

    def push(self, chunk):
        self.heard.append(chunk)
        events, self.events = self.events, []
        return events

    def flush(self):
        return self.rest


@pytest.fixture
def detected(monkeypatch):
    """A sound in which turns are found, and what finds them."""
    monkeypatch.setattr(client_sound, "TurnDetector", Detector)
    Detector.made = []
    sound = ClientSound()
    assert sound.detect_turns(True) is False
    sound.push(pcm(0.1))
    (detector,) = Detector.made
    return sound, detector


def utterance(n_samples, end_ns=0):
    clip = AudioChunk(np.full(n_samples, n_samples, np.float32), 0, "client")
    return Utterance(clip, 0, end_ns)


def test_turns_are_told_and_hold_what_was_said(detected):
    sound, detector = detected
    assert detector.mode == "open"
    started, ended = SpeechStarted(1, 2), Ended(utterance(SECOND))
    detector.events = [started, SoftEnd(None)]
    assert sound.push(pcm(0.1)) == [started]
    detector.events = [ended]
    assert sound.push(pcm(0.1)) == [ended]
    assert len(np.frombuffer(sound.take(ended).samples, np.float32)) == SECOND
    times_ns = [chunk.capture_ns for chunk in detector.heard]
    lengths = [len(chunk.samples) for chunk in detector.heard]
    assert times_ns == [sum(lengths[:n]) * NS_PER_SAMPLE for n in range(3)]
    assert {chunk.source for chunk in detector.heard} == {"client"}
    assert Detector.made == [detector]


def test_a_turn_that_is_committed_ends_where_it_does(detected):
    sound, detector = detected
    detector.rest = [Ended(utterance(SECOND))]
    assert sound.commit() == detector.rest
    sound.clear()
    assert sound.commit() == []  # nothing to be heard yet


def test_parts_of_a_long_turn_are_one_until_two_thirds_of_what_fits(detected):
    sound, detector = detected
    most = 20 * SECOND
    detector.events = [SpeechStarted(0, 0), Cut(utterance(most // 2)), Cut(utterance(most // 2))]
    assert [type(one) for one in sound.push(pcm(0.1))] == [SpeechStarted]
    detector.events = [Cut(utterance(1, end_ns=7 * NS_PER_S))]
    ended, started = sound.push(pcm(0.1))
    assert (ended.utterance, started) == (None, SpeechStarted(7 * NS_PER_S, 0))
    assert len(np.frombuffer(sound.take(ended).samples, np.float32)) == most + 1
    rest = Ended(utterance(SECOND))
    detector.events = [rest]
    assert sound.push(pcm(0.1)) == [rest]
    assert len(np.frombuffer(sound.take(rest).samples, np.float32)) == SECOND


def test_a_turn_is_cut_to_what_a_message_holds(detected):
    sound, _ = detected
    taken = sound.take(Ended(utterance(30 * SECOND + 5)))
    assert len(np.frombuffer(taken.samples, np.float32)) == 30 * SECOND


def test_what_ends_the_finding_of_turns_ends_one_that_was_told(detected):
    sound, detector = detected
    detector.events = [SpeechStarted(0, 0)]
    sound.push(pcm(0.1))
    assert sound.detect_turns(True) is False  # no change
    assert sound.detect_turns(False) is True
    assert sound.detect_turns(True) is False
    sound.push(pcm(0.1))
    _, again = Detector.made
    again.events = [SpeechStarted(0, 0), Ended(utterance(SECOND))]
    sound.push(pcm(0.1))
    assert sound.clear() is False  # it is over
    sound.push(pcm(0.1))
    assert len(Detector.made) == 3


def test_a_piece_of_another_format_is_another_sound():
    """What is in the filter of the one does not come out in the other."""
    playback = Playback()
    loud = playback.push(pcm(1.0, level=30_000), NS_PER_S)
    silent = playback.push(bytes([0xFF] * 8000), 2 * NS_PER_S, MU_LAW)
    assert np.abs(loud.samples).max() > 0.8
    assert len(silent.samples) > 12_000  # of 8 kHz, not of 24
    assert not silent.samples.any()
    again = playback.push(bytes([0xFF] * 8000), 3 * NS_PER_S, MU_LAW)
    assert len(again.samples) >= SECOND  # what the filter held back, too
    assert (again.capture_ns, again.source) == (3 * NS_PER_S, "loudspeaker")
