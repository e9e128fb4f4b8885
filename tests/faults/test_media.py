"""Files that cannot be played are refused at once, in one line that says what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import av
import numpy as np
import pytest
from make_media import copy_streams, write_float_wav, write_sound, write_video, write_wav
from numpy.typing import NDArray

from edge.clock import VirtualClock
from edge.errors import MediaError
from edge.features.pixels import check_size, image_grid
from edge.senses.media import Track
from edge.senses.recording import Recording

pytest_plugins = ["media"]


def refusal(path: Path, need: Collection[Track] = ()) -> str:
    with pytest.raises(MediaError) as caught:
        Recording.open(path, need)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert caught.value.remedy
    return message


def cut(path: Path, target: Path, share: float) -> Path:
    data = path.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def noise(n_samples: int = 48_000) -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-9999, 9999, n_samples).astype(np.int16)


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "none.mp4")


def test_folder(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in refusal(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.touch()
    assert "is an empty file" in refusal(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.wav", "a.txt", "a"])
def test_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("No film, only words.\n" * 99)
    assert "is not a media file" in refusal(path)


def test_noise(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(50_000))
    assert "is not a media file" in refusal(path)


def test_a_playlist_does_not_reach_the_network(tmp_path: Path) -> None:
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n")
    assert "is not a media file" in refusal(path)


def test_mp4_without_its_index(clips: Path, tmp_path: Path) -> None:
    path = cut(clips / "bikes.mp4", tmp_path / "cut.mp4", 0.5)
    assert "is cut short: its index (moov) is missing; copy it again" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.97])
def test_mp4_cut_in_the_middle(clips: Path, tmp_path: Path, share: float) -> None:
    film = clips / "bigbuckbunny.mp4"
    fast = copy_streams(film, tmp_path / "fast.mp4", ["video", "audio"], movflags="faststart")
    assert Recording.open(fast).duration_ns == 5_312_000_000
    message = refusal(cut(fast, tmp_path / "cut.mp4", share))
    assert "is cut short after" in message
    assert "of 5.31 s" in message


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_cut_recording_of_a_recorder_that_writes_as_it_goes(
    clips: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    options = {"movflags": "frag_keyframe+empty_moov"} if name == "a.mp4" else {}
    copy_streams(clips / "bigbuckbunny.mp4", path, ["video", "audio"], **options)
    assert "is cut short after" in refusal(cut(path, tmp_path / f"cut-{name}", 0.6))


def test_cut_wav(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise())
    assert "is cut short after" in refusal(cut(path, tmp_path / "cut.wav", 0.6))


def test_cut_flac(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.flac", [(0, noise())], 16_000, "flac")
    assert "is cut short after" in refusal(cut(path, tmp_path / "cut.flac", 0.6))


def test_no_video(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise())
    assert "has no video track; give a file with video" in refusal(path, ["video"])


def test_no_sound(clips: Path) -> None:
    assert "has no sound track; give a file with sound" in refusal(
        clips / "bikes.mp4", ["video", "sound"]
    )


def test_neither_video_nor_sound(tmp_path: Path) -> None:
    words = tmp_path / "a.srt"
    words.write_text("1\n00:00:01,000 --> 00:00:02,000\nwords\n\n" * 9)
    path = copy_streams(words, tmp_path / "a.mkv", ["subtitle"])
    assert "has neither video nor sound" in refusal(path)


def test_empty_wav(tmp_path: Path) -> None:
    assert "has 0 samples" in refusal(write_wav(tmp_path / "a.wav", noise(0)))


def test_silent_wav(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(3200, np.int16))
    assert "is silent: all 3200 samples are 0" in refusal(path)


def test_nearly_silent_wav_is_played(tmp_path: Path) -> None:
    samples = np.zeros(3200, np.int16)
    samples[3199] = 1
    assert Recording.open(write_wav(tmp_path / "a.wav", samples)).tracks == {"sound"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_wav_with_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    samples = np.full(3200, 0.1, np.float32)
    samples[1234] = value
    path = write_float_wav(tmp_path / "a.wav", samples)
    assert "has a value at sample 1234 that is not a finite number" in refusal(path)


def test_silent_sound_track_of_a_film_is_played(clips: Path, tmp_path: Path) -> None:
    """A muted camera is still a camera: sound is only checked where there is nothing else."""
    path = tmp_path / "muted.mkv"
    with av.open(str(clips / "bikes.mp4")) as film, av.open(str(path), "w") as muted:
        copy = muted.add_stream_from_template(film.streams.video[0])
        track = muted.add_stream("pcm_s16le", rate=16_000, layout="mono")
        silence = np.zeros((1, 160_000), np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        muted.mux([*track.encode(frame), *track.encode(None)])
        for packet in film.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                muted.mux(packet)
    assert "sound" in Recording.open(path).tracks


def played(path: Path) -> tuple[NDArray[np.float32], int]:
    """The sound of a file, and what was left out of it."""
    sound = Recording.open(path).sound(VirtualClock(), start_ns=0)
    assert sound is not None
    return np.concatenate([chunk.samples for chunk in sound.chunks()]), sound.damage.n


def overwritten(path: Path, n_bytes: int) -> Path:
    """Zeros in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + n_bytes] = bytes(n_bytes)
    path.write_bytes(data)
    return path


def test_damage_inside_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file may be whole and yet undecodable in the middle: what follows is played, on time."""
    samples = noise()
    path = write_sound(tmp_path / "a.flac", [(0, samples)], 16_000, "flac")
    heard, n_damaged = played(overwritten(path, 20_000))
    assert abs(len(heard) - len(samples)) <= 1600
    np.testing.assert_array_equal(heard[-8000:], samples[-8000:].astype(np.float32) / 32_768)
    assert 1 <= n_damaged <= 9
    assert "source=a.flac event=damaged n=1 problem=" in caplog.text


def test_what_cannot_be_read_behind_damage_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A Matroska file of one cluster: FFmpeg finds nothing behind a damaged place in it."""
    samples = noise()
    path = write_sound(tmp_path / "a.mka", [(0, samples)], 16_000, "flac")
    heard, n_damaged = played(overwritten(path, 20_000))
    np.testing.assert_array_equal(heard, samples[: len(heard)].astype(np.float32) / 32_768)
    assert len(heard) > 20_000
    assert n_damaged >= 1
    assert re.search(
        r"source=a.mka event=damaged n=\d problem=ends after 1\.\d\d of 3\.0", caplog.text
    )


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1, 1, "is 1x1 pixels; give one of at least 8 pixels on each side"),
        (20_000, 10, "is 20000x10 pixels, an aspect ratio of 2000; crop it"),
    ],
)
def test_pictures_of_an_impossible_size(
    tmp_path: Path, width: int, height: int, expected: str
) -> None:
    """A single picture and a film are refused alike, before anything plays."""
    pixels = np.zeros((height, width, 3), np.uint8)
    with pytest.raises(MediaError, match=re.escape(expected)):
        image_grid(width, height, 13_312, 1024, 16)
    with pytest.raises(MediaError, match=re.escape(expected)):
        check_size(width, height)
    path = write_video(tmp_path / "a.mkv", [pixels] * 2, [0, 500])
    assert f"{path}: {expected}" in refusal(path)


WITHOUT_MEMORY = """
import resource, sys
from pathlib import Path
import edge.senses.recording
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20),) * 2)  # less than a thread's stack
edge.senses.recording.Recording.open(Path(sys.argv[1]))
"""


def test_a_film_is_not_called_wrong_where_there_is_no_memory_to_decode_it(clips: Path) -> None:
    """Nor are its pictures left out: its sound alone could be decoded."""
    command = [sys.executable, "-c", WITHOUT_MEMORY, clips / "bigbuckbunny.mp4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.rstrip().endswith("MemoryError"), done.stderr
