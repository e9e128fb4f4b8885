"""The sound of one client: its formats by their formulas, what waits, and where a turn is cut."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import MediaError, ProtocolError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses.still import MAX_SOUND_S
from edge.senses.turn_events import Cut, Ended, SpeechStarted, Utterance
from edge.serve import client_sound
from edge.serve.client_sound import MAX_PIECE_S, PCM, ClientSound, rate_of, samples_of
from edge.serve.protocol import SoundFormat
from edge.types import AudioChunk

S = 1_000_000_000
MU_LAW, A_LAW = SoundFormat(type="audio/pcmu"), SoundFormat(type="audio/pcma")


def mu_law(code):
    """ITU-T G.711, table 2: the sign, three bits of segment, four of place; all inverted."""
    sign, segment, place = -1 if code < 128 else 1, 7 - (code >> 4) % 8, 15 - code % 16
    return sign * 4 * ((2 * place + 33) * 2**segment - 33)


def a_law(code):
    """ITU-T G.711, table 1: every other bit is inverted; the first two segments are as steep."""
    sign, code = -1 if code < 128 else 1, code ^ 0b01010101
    segment, place = (code >> 4) % 8, code % 16
    return sign * 8 * (2 * place + 1 if segment == 0 else (2 * place + 33) * 2 ** (segment - 1))


@pytest.mark.parametrize(
    ("form", "law", "most"), [(MU_LAW, mu_law, 32_124), (A_LAW, a_law, 32_256)]
)
def test_what_telephones_send_is_decoded_by_its_law(form, law, most):
    found = samples_of(bytes(range(256)), form)
    assert found.shape == (256, 1)
    assert found.dtype == np.float32
    expected = [law(code) for code in range(256)]
    assert (max(expected), min(expected)) == (most, -most)
    assert (found[:, 0] * 32_768).tolist() == expected


def test_how_fast_a_format_is():
    assert (rate_of(MU_LAW), rate_of(A_LAW)) == (8000, 8000)
    assert rate_of(SoundFormat(type="audio/pcmu", rate=8000)) == 8000
    assert (rate_of(SoundFormat(rate=16_000)), rate_of(PCM), rate_of(SoundFormat())) == (
        *(16_000, 24_000, 24_000),
    )


def pcm(seconds, value=1000, rate_hz=24_000):
    return np.full(round(seconds * rate_hz), value, "<i2").tobytes()


def samples_in(sound):
    return np.frombuffer(sound.samples, np.float32)


def test_what_waits_is_taken_once_and_can_be_forgotten():
    sound = ClientSound()
    assert sound.commit() == []
    assert sound.take(Ended(None)) is None
    assert sound.push(pcm(1.0)) == []
    (ended,) = sound.commit()
    taken = sound.take(ended)
    assert len(samples_in(taken)) == SAMPLE_RATE_HZ
    assert sound.heard_ms == 1000
    assert sound.take(ended) is None
    sound.push(pcm(1.0))
    assert not sound.clear()  # no start of a turn was told
    assert sound.commit() == []
    sound.push(pcm(0.5, value=-1000))
    (ended,) = sound.commit()
    taken = samples_in(sound.take(ended))
    assert len(taken) == SAMPLE_RATE_HZ // 2
    assert (taken[100:-100] < 0).all()


def test_too_much_is_refused_at_its_bound():
    sound = ClientSound()
    sound.push(pcm(MAX_SOUND_S - 1))
    with pytest.raises(MediaError, match=f"{MAX_SOUND_S} s"):
        sound.push(pcm(1.5))
    sound.clear()
    sound.push(pcm(MAX_SOUND_S - 1))
    with pytest.raises(ProtocolError, match=f"lasts more than {MAX_PIECE_S} s; append it in"):
        sound.push(bytes(2 * (MAX_PIECE_S * 24_000 + 1)))


def test_a_format_begins_where_the_one_before_has_ended():
    """What was heard in the old format stays, and the new one has its own rate."""
    sound = ClientSound()
    sound.push(pcm(0.5))
    sound.hear(MU_LAW)
    sound.push(bytes([0x8F]) * 4000)
    sound.hear(MU_LAW)  # the same again
    (ended,) = sound.commit()
    samples = samples_in(sound.take(ended))
    assert len(samples) == SAMPLE_RATE_HZ
    assert samples[4000] == pytest.approx(1000 / 32_768, rel=1e-3)
    assert samples[12_000] == pytest.approx(mu_law(0x8F) / 32_768, rel=1e-3)


class Detector:
    """Tells what it was given to tell, a list for each piece."""

    told: list
    heard: list

    def __init__(self, mode):
        assert mode == "open"

    def push(self, chunk):
        self.heard.append((len(chunk.samples), chunk.capture_ns))
        return self.told.pop(0)

    def flush(self):
        return self.told.pop(0)


@pytest.fixture
def detector(monkeypatch):
    monkeypatch.setattr(client_sound, "TurnDetector", Detector)
    Detector.told, Detector.heard = [], []
    return Detector


def speech(seconds, value=0.1, end_s=0):
    samples = np.full((round(seconds * SAMPLE_RATE_HZ), 1), value, np.float32)
    return Utterance(AudioChunk(samples, 0, "client"), 0, end_s * S)


def test_turns_are_told_and_taken_with_their_parts(detector):
    sound = ClientSound()
    assert not sound.detect_turns(False)
    assert not sound.detect_turns(True)
    assert sound.commit() == []  # nothing was heard
    started = SpeechStarted(2 * S, 3 * S)
    last = Ended(speech(1, 0.3))
    detector.told[:] = [[started], [Cut(speech(9, 0.2, 9))], [Cut(speech(10, 0.2, 19))], [last]]
    assert sound.push(pcm(0.5)) == [started]
    assert sound.push(pcm(0.5)) == []
    assert sound.push(pcm(0.5)) == []
    assert sound.commit() == [last]
    assert [at for _, at in detector.heard] == sorted({at for _, at in detector.heard})
    assert detector.heard[0][1] == 0
    taken = samples_in(sound.take(last))
    assert len(taken) == 20 * SAMPLE_RATE_HZ
    assert taken[-1] == pytest.approx(0.3)
    assert sound.take(Ended(None)) is None


def test_a_turn_that_is_longer_than_fits_is_two(detector):
    """From two thirds of what a question may hold on."""
    sound = ClientSound()
    sound.detect_turns(True)
    detector.told[:] = [[Cut(speech(10, end_s=10))], [Cut(speech(10, end_s=20))], [], []]
    assert sound.push(pcm(0.1)) == []
    assert sound.push(pcm(0.1)) == []  # two thirds, and not more
    detector.told[:] = [[Cut(speech(15, end_s=35))]]
    ended, started = sound.push(pcm(0.1))
    assert isinstance(ended, Ended)
    assert ended.utterance is None
    assert (started.onset_ns, started.noticed_ns) == (35 * S, 0)
    assert len(samples_in(sound.take(ended))) == MAX_SOUND_S * SAMPLE_RATE_HZ  # of 35 s
    assert sound.clear()  # the second had begun
    assert not sound.clear()


def test_changing_how_turns_are_found_forgets(detector):
    sound = ClientSound()
    sound.push(pcm(1.0))
    assert not sound.detect_turns(True)
    detector.told[:] = [[SpeechStarted(0, 0)]]
    sound.push(pcm(0.1))
    assert sound.detect_turns(False)  # somebody was speaking
    assert sound.commit() == []
