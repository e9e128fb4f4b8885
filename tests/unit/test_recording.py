"""Recordings that play at their own pace, on real clips and on files made for the purpose."""

from __future__ import annotations

import errno
import logging
import math
import re
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.container import InputContainer
from make_media import (
    QUARTER_TURNS,
    copy_streams,
    damage_avi,
    turn_mp4,
    write_film,
    write_float_wav,
    write_sound,
    write_video,
    write_wav,
)
from numpy.typing import NDArray

from edge.clock import NS_PER_MS, NS_PER_S, VirtualClock
from edge.errors import MediaError
from edge.senses import media
from edge.senses.recording import RecordedSound, RecordedVideo, Recording, Repeated
from edge.types import AudioChunk, Float32, Frame

pytest_plugins = ["media"]

START_NS = 7_000_000_000


def played_frames(path: Path, fps: float = 1000) -> list[Frame]:
    clock = VirtualClock()
    video = Recording.open(path).video(clock, START_NS, fps)
    assert video is not None
    frames = []
    for frame in video.frames():
        assert clock.now_ns() == frame.capture_ns
        frames.append(frame)
    return frames


def both(path: Path, fps: float) -> tuple[RecordedVideo, RecordedSound]:
    clock, recording = VirtualClock(), Recording.open(path)
    video, sound = recording.video(clock, START_NS, fps), recording.sound(clock, START_NS)
    assert video is not None
    assert sound is not None
    return video, sound


def played_chunks(path: Path) -> list[AudioChunk]:
    clock = VirtualClock()
    sound = Recording.open(path).sound(clock, START_NS)
    assert sound is not None
    chunks = []
    for chunk in sound.chunks():
        assert clock.now_ns() == chunk.capture_ns + len(chunk.samples) * 62_500
        assert chunk.samples.dtype == np.float32
        chunks.append(chunk)
    return chunks


def whole(chunks: list[AudioChunk]) -> Float32:
    return np.concatenate([chunk.samples for chunk in chunks])


def times_ms(frames: list[Frame]) -> list[int]:
    return [(frame.capture_ns - START_NS) // 1_000_000 for frame in frames]


def shades(n: int) -> list[NDArray[np.uint8]]:
    """Flat pictures, each of its own shade."""
    return [np.full((32, 48, 3), 40 * i, np.uint8) for i in range(n)]


def tone(n_samples: int, rate_hz: int) -> NDArray[np.int16]:
    wave = np.sin(2 * np.pi * 440 * np.arange(n_samples) / rate_hz)
    return np.round(16_384 * wave).astype(np.int16)


# --- frames


def test_every_frame_comes_at_its_own_time(clips: Path) -> None:
    frames = played_frames(clips / "carphone_pristine.mp4", fps=30)
    assert [frame.frame_id for frame in frames] == list(range(120))
    assert [frame.capture_ns for frame in frames] == [
        START_NS + round(Fraction(1001, 30_000) * i * 1_000_000_000) for i in range(120)
    ]
    assert {frame.source for frame in frames} == {"carphone_pristine.mp4"}
    assert {frame.pixels.shape for frame in frames} == {(144, 176, 3)}
    assert {frame.pixels.dtype for frame in frames} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("fps", [2, 1, 0.3, 12.5, 25, 60])
def test_frames_are_thinned_to_the_first_at_or_after_each_instant(clips: Path, fps: float) -> None:
    """The clip has a frame each 40 ms, 250 in all."""
    wanted = {math.ceil(Fraction(k) / Fraction(fps) * 25) for k in range(int(10 * fps) + 1)}
    frames = played_frames(clips / "bikes.mp4", fps)
    assert [frame.frame_id for frame in frames] == sorted(i for i in wanted if i < 250)


def test_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", shades(6), [0, 40, 50, 400, 1000, 1040])
    frames = played_frames(path)
    assert times_ms(frames) == [0, 40, 50, 400, 1000, 1040]
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [0, 40, 80, 120, 160, 200]
    assert times_ms(played_frames(path, fps=10)) == [0, 400, 1000]
    assert [frame.frame_id for frame in played_frames(path, fps=10)] == [0, 3, 4]


def test_times_that_the_container_rounds_lose_no_frames(tmp_path: Path) -> None:
    """30 a second in Matroska's whole milliseconds: 33 is a little early for 1/30 s."""
    times = [1000 * i // 30 for i in range(6)]
    assert times_ms(played_frames(write_video(tmp_path / "v.mkv", shades(6), times), 30)) == times


def test_a_late_first_frame_is_time_zero(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", shades(3), [500, 600, 700])
    assert times_ms(played_frames(path)) == [0, 100, 200]


@pytest.mark.parametrize(
    ("quarter_turns", "shape"), [(1, (176, 144)), (2, (144, 176)), (3, (176, 144))]
)
def test_pictures_are_turned_upright(
    clips: Path, tmp_path: Path, quarter_turns: int, shape: tuple[int, int]
) -> None:
    lying = clips / "carphone_pristine.mp4"
    turned = played_frames(
        turn_mp4(lying, tmp_path / "turned.mp4", QUARTER_TURNS[quarter_turns]), fps=1
    )[0]
    assert turned.pixels.shape == (*shape, 3)
    expected = np.rot90(played_frames(lying, fps=1)[0].pixels, -quarter_turns)  # clockwise
    np.testing.assert_array_equal(turned.pixels, expected)


@pytest.mark.parametrize(
    ("pixel_format", "codec", "container"),
    [
        ("yuv420p", "ffv1", "mkv"),
        ("yuv444p10le", "ffv1", "mkv"),
        ("gray", "ffv1", "mkv"),
        ("bgra", "ffv1", "mkv"),
        ("yuv420p", "mpeg4", "mp4"),
        ("yuvj422p", "mjpeg", "avi"),
    ],
)
def test_any_pixel_format_becomes_rgb(
    tmp_path: Path, pixel_format: str, codec: str, container: str
) -> None:
    colour = (120, 120, 120) if pixel_format == "gray" else (200, 120, 40)
    picture = np.full((32, 48, 3), colour, np.uint8)
    path = tmp_path / f"v.{container}"
    write_video(path, [picture] * 3, [0, 100, 200], pixel_format, codec)
    for frame in played_frames(path):
        np.testing.assert_allclose(frame.pixels.astype(int), picture, rtol=0, atol=6)


# --- sound


def test_the_sound_of_a_film(clips: Path) -> None:
    """AAC 5.1 at 48 kHz becomes 16 kHz mono of the same length, in chunks of 100 ms."""
    path = clips / "bigbuckbunny.mp4"
    chunks = played_chunks(path)
    assert [len(chunk.samples) for chunk in chunks] == [1600] * 53 + [192]
    assert [chunk.capture_ns for chunk in chunks] == [START_NS + i * 10**8 for i in range(54)]
    assert {chunk.source for chunk in chunks} == {"bigbuckbunny.mp4"}
    assert 0.01 < np.abs(whole(chunks)).max() < 1
    assert Recording.open(path).duration_ns == 5_312_000_000


def test_video_and_sound_share_a_clock_and_nothing_else(clips: Path) -> None:
    recording, clock = Recording.open(clips / "bigbuckbunny.mp4"), VirtualClock()
    video, sound = recording.video(clock, START_NS, fps=2), recording.sound(clock, START_NS)
    assert isinstance(video, RecordedVideo)
    assert isinstance(sound, RecordedSound)
    frames, chunks = video.frames(), sound.chunks()
    assert next(frames).capture_ns == next(chunks).capture_ns == START_NS
    assert len(list(frames)) == 10
    assert len(list(chunks)) == 53


def test_recorded_speech(speech: Path) -> None:
    path = speech / "Front_Center.wav"
    recording = Recording.open(path)
    assert recording.video(VirtualClock(), START_NS, fps=1) is None
    assert recording.duration_ns == round(68_545 / 48_000 * 1e9)
    sound = whole(played_chunks(path))
    assert len(sound) == round(68_545 / 3)
    assert 0.1 < np.abs(sound).max() < 1


def test_a_silent_film_has_no_sound(clips: Path) -> None:
    assert Recording.open(clips / "bikes.mp4").sound(VirtualClock(), START_NS) is None


def test_16_khz_wav_passes_bit_by_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32_768, 32_768, 4000).astype(np.int16)
    path = write_wav(tmp_path / "a.wav", samples)
    chunks = played_chunks(path)
    assert [len(chunk.samples) for chunk in chunks] == [1600, 1600, 800]
    np.testing.assert_array_equal(whole(chunks), samples.astype(np.float32) / 32_768)


def test_float_wav_passes_bit_by_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.2, 1600).astype(np.float32)
    path = write_float_wav(tmp_path / "a.wav", samples)
    np.testing.assert_array_equal(whole(played_chunks(path)), samples)


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_any_rate_and_width_becomes_16_khz(
    tmp_path: Path, rate_hz: int, dtype: type[np.integer]
) -> None:
    mono = tone(rate_hz, rate_hz).astype(dtype) << (8 * np.dtype(dtype).itemsize - 16)
    stereo = np.stack([mono, np.zeros_like(mono)], axis=1)
    sound = whole(played_chunks(write_wav(tmp_path / "a.wav", stereo, rate_hz)))
    assert len(sound) == 16_000
    expected = tone(16_000, 16_000) / 32_768 / 2  # one of two channels is silent
    np.testing.assert_allclose(sound[1000:15_000], expected[1000:15_000], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "codec", "sample_format"),
    [("a.flac", "flac", "s16"), ("a.mkv", "pcm_f64le", "dbl"), ("a.m4a", "aac", "fltp")],
)
def test_any_codec_is_decoded(tmp_path: Path, name: str, codec: str, sample_format: str) -> None:
    path = tmp_path / name
    write_sound(path, [(0, tone(48_000, 48_000))], 48_000, codec, sample_format)
    sound = whole(played_chunks(path))
    assert abs(len(sound) - 16_000) <= 1024  # AAC counts in frames of 1024 at 48 kHz
    assert np.abs(sound[2000:14_000]).max() == pytest.approx(0.5, abs=0.05)


def test_8_bit_sound_has_its_zero_at_128(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.array([0, 64, 128, 192, 255], np.uint8))
    assert whole(played_chunks(path)).tolist() == [-1, -0.5, 0, 0.5, 127 / 128]


def test_holes_are_filled_with_silence(tmp_path: Path) -> None:
    second = tone(16_000, 16_000)
    path = write_sound(tmp_path / "a.mkv", [(0, second), (56_000, second)], 16_000)
    sound = whole(played_chunks(path))
    expected = np.concatenate([second, np.zeros(40_000), second]) / 32_768
    np.testing.assert_allclose(sound, expected, rtol=0, atol=1e-6)


def test_sound_that_starts_late_is_stamped_late(tmp_path: Path) -> None:
    sound = tone(1600, 16_000)
    path = write_film(tmp_path / "late.mkv", shades(5), sound, Fraction(1, 4))
    assert [chunk.capture_ns for chunk in played_chunks(path)] == [START_NS + 250_000_000]
    assert times_ms(played_frames(path)) == [0, 100, 200, 300, 400]


def test_sound_alone_of_a_film(clips: Path, tmp_path: Path) -> None:
    path = copy_streams(clips / "bigbuckbunny.mp4", tmp_path / "a.m4a", ["audio"])
    assert Recording.open(path).tracks == {"sound"}
    film = whole(played_chunks(clips / "bigbuckbunny.mp4"))
    np.testing.assert_array_equal(whole(played_chunks(path)), film)


# --- ending


def test_close_ends_both_sources(clips: Path) -> None:
    recording, clock = Recording.open(clips / "bigbuckbunny.mp4"), VirtualClock()
    video, sound = recording.video(clock, START_NS, fps=1000), recording.sound(clock, START_NS)
    assert video is not None
    assert sound is not None
    frames, chunks = video.frames(), sound.chunks()
    next(frames), next(chunks)
    video.close()
    sound.close()
    sound.close()
    assert list(frames) == []
    assert list(chunks) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_impossible_rates_are_refused(clips: Path, fps: float) -> None:
    with pytest.raises(ValueError, match="fps is"):
        Recording.open(clips / "bikes.mp4").video(VirtualClock(), START_NS, fps)


def test_a_repeated_recording_goes_on(clips):
    recording = Recording.open(clips / "bikes.mp4")
    once = list(recording.video(VirtualClock(), START_NS, 2).frames())
    again = Repeated(recording, VirtualClock(), START_NS, 2)
    frames = []
    for frame in again.frames():
        frames.append(frame)
        if len(frames) == 2 * len(once) + 1:
            again.close()
    assert len(frames) == 2 * len(once) + 1
    ids = [frame.frame_id for frame in frames]
    times = [frame.capture_ns for frame in frames]
    assert ids == sorted(set(ids))
    assert times == sorted(set(times))
    first_of_second = frames[len(once)]
    assert first_of_second.capture_ns == once[0].capture_ns + recording.duration_ns
    assert (first_of_second.pixels == once[0].pixels).all()


def test_repeated_sound_goes_on_without_a_gap(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(4000, 16_000))
    clock, once = VirtualClock(), whole(played_chunks(path))
    again = Repeated(Recording.open(path), clock, START_NS)
    chunks = []
    for chunk in again.chunks():
        assert clock.now_ns() == chunk.capture_ns + len(chunk.samples) * 62_500
        chunks.append(chunk)
        if len(chunks) == 7:
            again.close()
    starts = [0, 1600, 3200, 4000, 5600, 7200, 8000]
    assert [chunk.capture_ns for chunk in chunks] == [START_NS + n * 62_500 for n in starts]
    np.testing.assert_array_equal(whole(chunks), np.concatenate([once, once, once[:1600]]))
    assert list(again.chunks()) == []


def test_what_is_lost_is_counted_over_all_repetitions(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", shades(5), range(0, 500, 100), "yuvj420p", "mjpeg")
    damage_avi(path, 2)
    recording = Recording.open(path)
    once = recording.video(VirtualClock(), START_NS, 1000)
    assert once is not None
    assert [frame.frame_id for frame in once.frames()] == [0, 1, 2, 3]  # whole ones are counted
    assert once.n_lost == 1
    again = Repeated(recording, VirtualClock(), START_NS, 1000)
    ids = []
    for frame in again.frames():
        ids.append(frame.frame_id)
        if len(ids) == 8:
            again.close()
    assert ids == list(range(8))
    assert again.n_lost == 2


LACKS = {
    "cannot be opened": OSError(errno.EMFILE, "Too many open files"),
    "is said to be no file": MediaError("a.avi", "is not a media file (Try again)", "give one"),
    "has no memory": MemoryError(),
}


def failing(monkeypatch: pytest.MonkeyPatch, rounds: Collection[int], error: Exception) -> None:
    """In these rounds a file cannot be opened."""
    opened, n_rounds = media._opened, iter(range(100))

    def may_fail(file: media.Source) -> InputContainer:
        if next(n_rounds) in rounds:
            raise error
        return opened(file)

    monkeypatch.setattr(media, "_opened", may_fail)


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("heard", [False, True])
def test_what_cannot_be_opened_for_a_moment_is_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lack: str,
    heard: bool,
) -> None:
    path = write_video(tmp_path / "a.avi", shades(5), range(0, 500, 100), "yuvj420p", "mjpeg")
    if heard:
        path = write_wav(tmp_path / "a.wav", tone(8000, 16_000))
    caplog.set_level(logging.INFO)
    clock, paused_s = VirtualClock(), []
    again = Repeated(Recording.open(path), clock, START_NS, 1000)

    def wait(seconds: float) -> None:
        paused_s.append(seconds)
        clock.sleep_until(clock.now_ns() + round(seconds * NS_PER_S))

    monkeypatch.setattr(again._closed, "wait", wait)
    failing(monkeypatch, {1, 2, 4}, LACKS[lack])
    found: list[Frame | AudioChunk] = []
    for one in again.chunks() if heard else again.frames():
        found.append(one)
        if len(found) == 15:
            again.close()
    assert len(found) == 15
    assert paused_s == [0.25, 0.5, 0.25]
    in_ms = [(one.capture_ns - START_NS) / NS_PER_MS for one in found]
    begins_ms = (0, 1250, 2000) if heard else (0, 1150, 1800)  # a frame is given as it begins
    assert in_ms == [at + k for at in begins_ms for k in range(0, 500, 100)]
    if not heard:
        assert [one.frame_id for one in found if isinstance(one, Frame)] == list(range(15))
    events = re.findall("event=([a-z]+)", caplog.text)
    assert events == ["lost", "back", "lost", "back"]


def test_the_pauses_grow_up_to_a_bound_and_closing_ends_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Repeated(
        Recording.open(write_wav(tmp_path / "a.wav", tone(800, 16_000))), VirtualClock(), START_NS
    )
    paused_s: list[float] = []

    def wait(seconds: float) -> None:
        paused_s.append(seconds)
        if len(paused_s) == 7:
            again.close()

    monkeypatch.setattr(again._closed, "wait", wait)
    failing(monkeypatch, range(100), LACKS["cannot be opened"])
    assert list(again.chunks()) == []
    assert paused_s == [0.25, 0.5, 1, 2, 4, 4, 4]


def test_a_file_that_gives_nothing_any_more_is_not_asked_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_wav(tmp_path / "a.wav", tone(800, 16_000))
    again, paused_s = Repeated(Recording.open(path), VirtualClock(), START_NS), []
    monkeypatch.setattr(media, "mono_blocks", lambda *_: iter([]))

    def wait(seconds: float) -> None:
        paused_s.append(seconds)
        again.close()

    monkeypatch.setattr(again._closed, "wait", wait)
    assert list(again.chunks()) == []
    assert paused_s == [0.25]


@pytest.mark.parametrize("heard", [False, True])
def test_closing_ends_a_round_that_just_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    path = write_video(tmp_path / "a.avi", shades(5), range(0, 500, 100), "yuvj420p", "mjpeg")
    if heard:
        path = write_wav(tmp_path / "a.wav", tone(8000, 16_000))
    again = Repeated(Recording.open(path), VirtualClock(), START_NS)
    name = "sound" if heard else "video"
    begin = getattr(Recording, name)

    def close_and_begin(*arguments: object) -> RecordedVideo | RecordedSound | None:
        again.close()
        return begin(*arguments)

    monkeypatch.setattr(Recording, name, close_and_begin)
    assert list(again.chunks() if heard else again.frames()) == []
