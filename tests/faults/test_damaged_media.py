"""What is damaged in a recording is left out, counted and said; what follows is played on time."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import av
import numpy as np
import pytest
from media_by_ffmpeg import FPS, N_FRAMES, SECONDS, Make, heard, must_sound, seen, sound_s

from edge.clock import VirtualClock
from edge.errors import MediaError
from edge.senses import camera
from edge.senses.damage import Damage
from edge.senses.live import CaptureTimes
from edge.senses.recording import Recording

pytest_plugins = ["media"]

TS_PACKET = 188


def without(path: Path, first: int, n_packets: int) -> Path:
    """An MPEG-TS from which some packets are lost."""
    data = path.read_bytes()
    path.write_bytes(data[: first * TS_PACKET] + data[(first + n_packets) * TS_PACKET :])
    return path


@pytest.mark.parametrize("codec", ["libx264 -bf 2 -g 15", "mpeg2video -g 15"])
@pytest.mark.parametrize("n_lost", [1, 40])
def test_lost_packets_of_a_transport_stream(
    make: Make, n_lost: int, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = make("a.ts", f"-i film.mp4 -c:v {codec} -c:a copy -b:v 2M")
    n_packets = path.stat().st_size // TS_PACKET
    frames, n_damaged = seen(without(path, n_packets // 2, n_lost))
    assert 1 <= n_damaged < 25
    assert N_FRAMES - 25 < len(frames) <= N_FRAMES
    assert frames[-1].capture_ns / 1e9 == pytest.approx(SECONDS, abs=0.1)
    assert "source=a.ts event=damaged n=1" in caplog.text
    assert sound_s(heard(path)[0]) == pytest.approx(SECONDS, abs=0.15)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.ac3", "ac3"),
        ("a.mkv", "ac3 -cluster_time_limit 500"),
        ("a.ts", "ac3"),
        ("a.aac", "aac"),
        ("a.mka", "aac -cluster_time_limit 500"),
        ("a.opus", "libopus -page_duration 200000"),
        ("a.webm", "libopus -cluster_time_limit 500"),
        ("a.mp3", "libmp3lame"),
        ("a.ogg", "libvorbis -page_duration 200000"),
        ("a.flac", "flac"),
        ("a.m4a", "alac"),
        ("a.m4a", "aac"),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_damaged_sound(make: Make, name: str, codec: str, seed: int) -> None:
    """300 bytes in the middle are other ones."""
    path = make(name, f"-stream_loop 3 -i tone.wav -c:a {codec}")
    data = bytearray(path.read_bytes())
    at = len(data) // 2 + 50 * seed
    data[at : at + 300] = random.Random(seed).randbytes(300)
    path.write_bytes(data)
    chunks, n_damaged = heard(path)
    must_sound(chunks, 4 * SECONDS)
    assert n_damaged >= 1 or codec == "alac"  # which has no checksums


def test_damage_is_not_truncation(make: Make) -> None:
    """Of a damaged cluster FFmpeg finds the next one: the file has all of its bytes, and plays."""
    path = make("a.mkv", "-i film.mp4 -c copy")
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 2000] = bytes(2000)
    path.write_bytes(data)
    assert N_FRAMES // 2 < len(seen(path)[0]) < N_FRAMES
    chunks, n_damaged = heard(path)
    must_sound(chunks)
    assert n_damaged >= 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.mp4", "-i film.mp4 -c copy -movflags faststart"),
        ("a.mkv", "-i film.mp4 -c copy"),
        ("a.mkv", "-i film.mp4 -c copy -output_ts_offset 100"),
        ("a.webm", "-i film.mp4 -c:v libvpx -deadline realtime -c:a libopus"),
        ("a.avi", "-i film.mp4 -c:v mpeg4 -c:a ac3"),
        ("a.wav", "-i tone.wav -c copy"),
        ("a.wav", "-i tone.wav -c copy -rf64 always"),
        ("a.aiff", "-i tone.wav"),
        ("a.flac", "-i tone.wav"),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncation_is_told(make: Make, name: str, words: str, share: float) -> None:
    path = make(name, words)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match="is cut short after"):
        Recording.open(path)


@pytest.mark.parametrize(("xing", "says"), [(1, True), (0, False)])
def test_an_mp3_that_says_how_long_it_is_tells_what_it_lacks(
    make: Make, caplog: pytest.LogCaptureFixture, xing: int, says: bool
) -> None:
    """It is heard as far as it goes: tools that cut one leave the number of frames as it was."""
    path = make("a.mp3", f"-i tone.wav -b:a 64k -write_xing {xing}")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    recording = Recording.open(path)
    assert recording.duration_ns > 0
    assert any("ends after" in record.getMessage() for record in caplog.records) == says


def test_a_transport_stream_may_be_cut_anywhere(make: Make) -> None:
    """It has no end: recorders cut it where they like."""
    path = make("a.ts", "-i film.mp4 -c copy")
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 3 : len(data) * 2 // 3])
    frames, _ = seen(path)
    assert 3 < len(frames) < N_FRAMES // 2
    assert 0.3 < sound_s(heard(path)[0]) < 1.2


def test_a_smeared_picture_is_better_than_none(make: Make) -> None:
    """Where nothing whole comes for a second, what there is is shown."""
    path = make("a.ts", f"-i film.mp4 -c:v mpeg2video -g {FPS * SECONDS} -an -b:v 4M")
    data = bytearray(path.read_bytes())
    generator = random.Random(0)
    for packet in range(200, len(data) // TS_PACKET - 20, 3):
        at = packet * TS_PACKET + 60
        data[at : at + 40] = generator.randbytes(40)
    path.write_bytes(data)
    frames, n_damaged = seen(path)
    assert n_damaged > 20
    assert np.diff([frame.capture_ns for frame in frames]).max() < 1.2e9


@pytest.mark.parametrize("codec", ["libx264 -bf 0 -g 15", "mpeg2video -g 15"])
def test_a_live_stream_goes_on_over_lost_packets(make: Make, tmp_path: Path, codec: str) -> None:
    """A camera that would be opened again for each one would be blind for a second each time."""
    path = make("a.ts", f"-i film.mp4 -an -c:v {codec} -b:v 2M")
    sent = without(path, path.stat().st_size // TS_PACKET // 2, 20).read_bytes()
    (tmp_path / "sent.ts").write_bytes(sent)
    damage = Damage("front")
    with av.open(str(tmp_path / "sent.ts")) as stream:
        captures = [
            pixels().shape
            for _, pixels in camera._captures(
                "udp://", stream, CaptureTimes(VirtualClock()), damage
            )
        ]
    assert N_FRAMES - 25 < len(captures) <= N_FRAMES
    assert set(captures) == {(144, 192, 3)}
    assert damage.n >= 1


def test_counting_is_said_at_powers_of_two(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    damage = Damage("front")
    for _ in range(1000):
        damage.add("lost")
    assert damage.n == 1000
    assert [record.args[1] for record in caplog.records] == [1 << n for n in range(10)]
