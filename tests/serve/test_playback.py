"""The robot's own voice, told over the socket as it is played."""

from __future__ import annotations

import base64
import contextlib
import time

import numpy as np
import pytest
import soxr
import websockets.sync.client
from bench_turns import bounds, heard
from serve.scripted import MS, TIMEOUT_S, ScriptedSession, answer, served
from serve.traffic import Recorded
from turn_scenes import SAMPLE_RATE_HZ, chunks, conversations

from edge.errors import ProtocolError
from edge.features.resample import Resampler
from edge.senses.turn_events import Played
from edge.senses.turns import TurnDetector
from edge.serve.playback import Playback
from edge.serve.protocol import SoundFormat

pytest_plugins = ["media"]
RATE_HZ = 24_000


@contextlib.contextmanager
def connected(path):
    url = "ws://edge/v1/realtime"
    with websockets.sync.client.unix_connect(str(path), url, max_size=None) as ws:
        yield Recorded(ws, TIMEOUT_S)


def pcm(samples):
    return (np.clip(samples, -1, 1) * 32767).astype("<i2")


def play(client, samples, delay_ms=0.0):
    audio = base64.b64encode(pcm(samples)).decode()
    client.send("edge.playback.append", audio=audio, delay_ms=delay_ms)


def taken(client):
    """All before this has been taken."""
    client.send("input_audio_buffer.clear")
    client.until("input_audio_buffer.cleared")


def test_pieces_that_follow_one_another_are_one_sound():
    tone = pcm(np.sin(np.arange(9600) / 9))
    stored = tone.astype(np.float32)[:, None] / np.float32(1 << 15)
    starts_ms, playback = (5000, 5090, 5220, 6000), Playback()
    pieces = [
        playback.push(tone[i * 2400 : i * 2400 + 2400].tobytes(), start_ms * MS)
        for i, start_ms in enumerate(starts_ms)
    ]
    assert [piece.capture_ns for piece in pieces] == [start_ms * MS for start_ms in starts_ms]
    first, later = Resampler(RATE_HZ, 1), Resampler(RATE_HZ, 1)
    for i, piece in enumerate(pieces):
        stream = first if i < 3 else later
        wanted = stream.push(stored[i * 2400 : i * 2400 + 2400])
        np.testing.assert_array_equal(piece.samples, wanted)


def test_another_format_is_another_sound():
    """Also where it follows without a gap: nothing of the one before is in it."""
    loud = pcm(np.full(2400, 0.9)).tobytes()
    quiet, form = b"\xff" * 800, SoundFormat(type="audio/pcmu")
    playback = Playback()
    playback.push(loud, 5000 * MS)
    piece = playback.push(quiet, 5100 * MS, form)
    assert np.array_equal(piece.samples, Playback().push(quiet, 5100 * MS, form).samples)
    assert not piece.samples.any()
    assert (piece.capture_ns, piece.source) == (5100 * MS, "loudspeaker")


def test_its_time_is_when_it_leaves_the_loudspeaker(tmp_path):
    session, before_ns = ScriptedSession(answer("x")), time.monotonic_ns()
    with served(tmp_path / "s", session), connected(tmp_path / "s") as client:
        play(client, np.zeros(2400))
        play(client, np.zeros(2400), 1000.0)
        taken(client)
    after_ns = time.monotonic_ns()
    first, second = session.controls
    assert isinstance(first, Played)
    assert before_ns <= first.chunk.capture_ns <= second.chunk.capture_ns - 1000 * MS <= after_ns


def test_what_the_robot_says_of_its_own_voice_keeps_it_from_taking_its_turn(tmp_path, sentences):
    (talk,) = conversations(sentences, 1, np.random.default_rng(3))
    session = ScriptedSession(answer("x"))
    with served(tmp_path / "s", session), connected(tmp_path / "s") as client:
        play(client, soxr.resample(talk.played, SAMPLE_RATE_HZ, RATE_HZ))
        taken(client)
    (control,) = session.controls
    detector, events = TurnDetector("open"), []
    assert detector.control(control) == []
    for chunk in chunks(talk.echo, SAMPLE_RATE_HZ // 10, control.chunk.capture_ns):
        events += detector.push(chunk)
    assert not events
    assert bounds(heard(talk.echo))[0]  # it would take it


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"audio": "AA=="}, "whole samples"),
        ({"audio": "AAAA", "delay_ms": -1.0}, "delay_ms"),
        ({"audio": "AAAA", "delay_ms": 1001.0}, "delay_ms"),
        ({"audio": "?"}, "base64"),
        ({"audio": base64.b64encode(bytes(2 * 30 * RATE_HZ + 2)).decode()}, "30 s"),
    ],
)
def test_a_piece_that_cannot_be_used_is_refused(tmp_path, fields, said):
    session = ScriptedSession(answer("x"))
    with served(tmp_path / "s", session), connected(tmp_path / "s") as client:
        client.send("edge.playback.append", event_id="mine", **fields)
        error = client.until("error")["error"]
        assert said in error["message"]
    assert not session.controls


def test_without_a_microphone_that_takes_turns_it_is_refused(tmp_path):
    refusal = ProtocolError("turns", "are only typed", "run with a microphone")
    session = ScriptedSession(answer("x"), refusal)
    with served(tmp_path / "s", session), connected(tmp_path / "s") as client:
        play(client, np.zeros(240))
        assert "are only typed" in client.until("error")["error"]["message"]
