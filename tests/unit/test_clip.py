"""Films and sounds in memory, as the model sees and hears them."""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from make_media import (
    QUARTER_TURNS,
    copy_streams,
    damage_avi,
    turn_mp4,
    write_film,
    write_video,
)
from numpy.typing import NDArray

from edge.clock import VirtualClock
from edge.errors import MediaError
from edge.features.pixels import sample_frames
from edge.model.prompt import frame_times_s
from edge.senses import clip
from edge.senses.clip import decode_audio, decode_video
from edge.senses.recording import Recording

pytest_plugins = ["media"]


def test_frames_are_those_that_the_model_is_served_with(clips: Path) -> None:
    """250 frames at 25 a second: two a second, evenly from the first to the last."""
    film = decode_video((clips / "bikes.mp4").read_bytes())
    indices = sample_frames(250, 10.0, 2, 256).tolist()
    assert len(film.frames) == 20
    assert list(film.times_s) == frame_times_s(indices, 25)
    every = Recording.open(clips / "bikes.mp4").video(VirtualClock(), 0, 1000)
    assert every is not None
    shown = list(every.frames())
    for taken, index in zip(film.frames, indices, strict=True):
        np.testing.assert_array_equal(taken, shown[index].pixels)
    assert len(film.sound) == 0
    assert film.n_damaged == 0


@pytest.mark.parametrize(("fps", "max_frames", "n"), [(0, 4, 4), (1, 256, 10), (2, 7, 7)])
def test_rate_and_number_bound_the_frames(clips: Path, fps: float, max_frames: int, n: int) -> None:
    film = decode_video((clips / "bikes.mp4").read_bytes(), fps, max_frames)
    assert len(film.frames) == n


def test_the_sound_track_comes_along(clips: Path) -> None:
    data = (clips / "bigbuckbunny.mp4").read_bytes()
    heard = decode_video(data).sound
    assert len(heard) == 84_992  # 5.312 s
    np.testing.assert_array_equal(decode_audio(data, 30), heard)
    assert len(decode_video(data, with_sound=False).sound) == 0


def test_frames_that_would_take_too_much_are_made_smaller(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (clips / "bigbuckbunny.mp4").read_bytes()
    whole = decode_video(data)
    monkeypatch.setattr(clip, "MAX_CLIP_BYTES", sum(f.nbytes for f in whole.frames) // 4)
    small = decode_video(data)
    assert [frame.shape for frame in small.frames] == [(360, 640, 3)] * len(whole.frames)
    for before, after in zip(whole.frames, small.frames, strict=True):
        halved = before.reshape(360, 2, 640, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - after).mean() < 2  # of 255


def test_a_lying_film_is_turned(clips: Path, tmp_path: Path) -> None:
    path = turn_mp4(clips / "carphone_pristine.mp4", tmp_path / "turned.mp4", QUARTER_TURNS[1])
    assert decode_video(path.read_bytes()).frames[0].shape == (176, 144, 3)


def wav(n_samples: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(8000)
        written.writeframes(bytes(2 * n_samples))
    return file.getvalue()


def test_what_is_too_long_is_refused_before_it_is_decoded(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("edge.senses.media.decoded", decode)
    with pytest.raises(MediaError, match="lasts more than 5 s; send a shorter one"):
        decode_video((clips / "bikes.mp4").read_bytes(), max_s=5)
    with pytest.raises(MediaError, match="lasts more than 30 s"):
        decode_audio(wav(31 * 8000), 30)


def test_a_film_that_would_take_too_long_to_decode_is_refused(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "MAX_DECODED_PIXELS", 100 * 640 * 272)
    with pytest.raises(MediaError, match="has 250 frames of 640x272 pixels; send at most 100"):
        decode_video((clips / "bikes.mp4").read_bytes())


def test_sound_without_pictures_is_no_film(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="has no video track"):
        decode_video(wav(8000))


def test_pictures_without_sound_are_none(clips: Path) -> None:
    with pytest.raises(MediaError, match="has no sound track"):
        decode_audio((clips / "bikes.mp4").read_bytes(), 30)


@pytest.mark.parametrize("data", [b"", b"no film", b"#EXTM3U\nfile:///etc/passwd\n"])
def test_what_is_no_film_is_refused(data: bytes) -> None:
    with pytest.raises(MediaError, match=r"media: is (an empty file|not a media file)"):
        decode_video(data)


def test_a_cut_film_is_refused(clips: Path, tmp_path: Path) -> None:
    fast = copy_streams(
        clips / "bigbuckbunny.mp4", tmp_path / "a.mp4", ["video"], movflags="faststart"
    ).read_bytes()
    with pytest.raises(MediaError, match="is cut short after"):
        decode_video(fast[: len(fast) // 2])


def test_one_picture_is_a_film(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", [np.full((32, 48, 3), 200, np.uint8)], [0])
    film = decode_video(path.read_bytes())
    assert film.times_s == (0.0,)
    assert film.frames[0].shape == (32, 48, 3)


def shades(n: int) -> list[NDArray[np.uint8]]:
    """Flat pictures, each of its own shade."""
    return [np.full((32, 48, 3), 20 * i, np.uint8) for i in range(n)]


def test_as_many_frames_as_are_bounded_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.mkv", shades(10), range(0, 1000, 100))
    for name, most in (("MAX_DECODED_FRAMES", 10), ("MAX_DECODED_PIXELS", 10 * 48 * 32)):
        with monkeypatch.context() as bounds:
            bounds.setattr(clip, name, most)
            assert len(decode_video(path.read_bytes(), 0, 4).frames) == 4
            bounds.setattr(clip, name, most - 1)
            with pytest.raises(MediaError, match="10 frames of 48x32 pixels; send at most 9 of"):
                decode_video(path.read_bytes())


def test_frames_are_as_small_as_they_have_to_be_and_no_smaller(tmp_path: Path) -> None:
    data = write_video(tmp_path / "v.mkv", shades(2), [0, 500]).read_bytes()
    n_bytes = 2 * 48 * 32 * 3
    for most, width in ((n_bytes, 48), (n_bytes - 1, 24), (n_bytes // 4, 24), (n_bytes // 9, 16)):
        assert {f.shape[1] for f in decode_video(data, 0, 2, max_bytes=most).frames} == {width}
    assert decode_video(data, max_bytes=0).frames[0].size >= 3  # there is no picture of nothing


def test_a_film_whose_end_is_lost_ends_with_its_last_whole_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", shades(10), range(0, 1000, 100), "yuvj420p", "mjpeg")
    whole = decode_video(path.read_bytes(), 0, 10)
    data = damage_avi(path, 9).read_bytes()
    film = decode_video(data, 0, 3)
    assert [round(frame.mean() / 20) for frame in film.frames] == [0, 4, 8]
    assert film.times_s == whole.times_s[:9:4]
    assert film.n_damaged == 1
    # One that was taken is not taken twice.
    assert len(decode_video(damage_avi(path, 8).read_bytes(), 0, 10).frames) == 8


def test_sound_that_begins_late_does_so_after_silence(tmp_path: Path) -> None:
    samples = np.full(1600, 8192, np.int16)
    data = write_film(tmp_path / "v.mkv", shades(5), samples, Fraction(1, 4)).read_bytes()
    expected = np.concatenate([np.zeros(4000), np.full(1600, 0.25)])
    np.testing.assert_array_equal(decode_video(data).sound, expected)
    np.testing.assert_array_equal(decode_audio(data, 30), expected)
    data = copy_streams(tmp_path / "v.mkv", tmp_path / "a.mka", ["audio"]).read_bytes()
    np.testing.assert_array_equal(decode_audio(data, 30), expected[4000:])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([], "video: has no frame that is whole; send it again"),
        ([(48, 32), (32, 48)], "video: changes its size; encode it again in one size"),
        ([(48, 32), (48, 30)], "video: changes its size; encode it again in one size"),
    ],
)
def test_a_film_has_frames_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]], said: str
) -> None:
    data = write_video(tmp_path / "v.mkv", shades(2), [0, 500]).read_bytes()
    frames = [(Fraction(0), av.VideoFrame(*size, "rgb24")) for size in sizes]
    monkeypatch.setattr("edge.senses.media.video_frames", lambda *_: iter(frames))
    with pytest.raises(MediaError) as caught:
        decode_video(data)
    assert str(caught.value) == said
