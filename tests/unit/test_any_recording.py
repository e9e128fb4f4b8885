"""Whatever ffmpeg plays opens, and plays whole and on time: files as recorders write them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from make_media import turn_mp4
from media_by_ffmpeg import FPS, N_FRAMES, SECONDS, Make, heard, must_sound, seen, sound_s

from edge.clock import NS_PER_MS
from edge.senses.recording import Recording

pytest_plugins = ["media"]

FILMS = {
    "time that begins at 100 s": ("a.mkv", "-i film.mp4 -c copy -output_ts_offset 100"),
    "time that begins below 0": (
        "a.mkv",
        "-itsoffset -1 -i film.mp4 -c copy -avoid_negative_ts disabled",
    ),
    "B-frames in AVI": ("a.avi", "-i film.mp4 -c:v copy -c:a ac3"),
    "B-frames in MPEG-TS": ("a.ts", "-i film.mp4 -c copy"),
    "B-frames in FLV": ("a.flv", "-i film.mp4 -c copy"),
    "no length: a pipe": ("a.mkv", "-i film.mp4 -c copy -live 1"),
    "no length: fragments": ("a.mp4", "-i film.mp4 -c copy -movflags frag_keyframe+empty_moov"),
    "a track of time codes": ("a.mov", "-i film.mp4 -c copy -timecode 01:00:00:00"),
    "an odd time scale": ("a.mp4", "-i film.mp4 -c copy -video_track_timescale 90001"),
    "a cover beside the film": (
        "a.mp4",
        "-i cover.png -i film.mp4 -map 0 -map 1 -c copy -disposition:v:0 attached_pic",
    ),
    "MPEG-2 and MP2": ("a.mpg", "-i film.mp4 -c:v mpeg2video -bf 2 -c:a mp2"),
    "MPEG-4 and MP3": ("a.avi", "-i film.mp4 -c:v mpeg4 -bf 2 -c:a libmp3lame"),
    "VP9 and Opus": ("a.webm", "-i film.mp4 -c:v libvpx-vp9 -deadline realtime -c:a libopus"),
    "VP8 and Vorbis": ("a.webm", "-i film.mp4 -c:v libvpx -deadline realtime -c:a libvorbis"),
    "HEVC": ("a.mp4", "-i film.mp4 -c:v libx265 -x265-params log-level=none -c:a copy"),
    "time that wraps": ("a.ts", "-i film.mp4 -c copy -output_ts_offset 95442.5"),
    "sound of six channels": ("a.mkv", "-i film.mp4 -c:v copy -ac 6 -c:a ac3"),
}


@pytest.mark.parametrize("case", FILMS)
def test_films(make: Make, case: str) -> None:
    path = make(*FILMS[case])
    frames, n_damaged = seen(path)
    assert len(frames) == N_FRAMES
    assert n_damaged == 0
    times = [frame.capture_ns / 1e9 for frame in frames]
    steps = np.diff(times) * FPS
    # AVI has no presentation times: its first frame may be shown a frame or two early.
    assert steps[1:].min() > 0.9
    assert steps.max() < 2.1
    must_sound(heard(path)[0])
    assert Recording.open(path).duration_ns / 1e9 == pytest.approx(SECONDS, abs=1.1)


def test_sound_that_begins_where_the_picture_ends(make: Make) -> None:
    path = make("a.mkv", "-i film.mp4 -itsoffset 2 -i tone.wav -map 0:v -map 1:a -c copy")
    assert len(seen(path)[0]) == N_FRAMES
    chunks, _ = heard(path)
    must_sound(chunks)
    assert chunks[0].capture_ns == 2_000_000_000
    assert Recording.open(path).duration_ns == pytest.approx(4e9, abs=5 * NS_PER_MS)


def test_an_edit_list_is_followed(make: Make) -> None:
    """Copied from 0.7 s on: the packets begin at the key frame before, the film does not."""
    path = make("a.mp4", "-ss 0.7 -i film.mp4 -c copy")
    frames, _ = seen(path)
    assert len(frames) == pytest.approx(39, abs=1)
    assert sound_s(heard(path)[0]) == pytest.approx(1.3, abs=0.1)


def test_frames_that_avi_leaves_out_are_no_end(make: Make) -> None:
    """AVI writes an empty packet where a frame is missing, which a decoder takes for the end."""
    chosen = "-vf select=not(mod(n\\,3)) -vsync vfr -an -c:v mpeg4"
    frames, n_damaged = seen(make("a.avi", f"-i film.mp4 {chosen}"))
    assert len(frames) == N_FRAMES // 3
    assert n_damaged == 0


@pytest.mark.parametrize(("offset_s", "between"), [(50_000, "on"), (0, "back"), (95_440, "wrap")])
def test_time_that_jumps_goes_on(make: Make, tmp_path: Path, offset_s: int, between: str) -> None:
    """Two recordings in one file, as a recorder that was started twice leaves them."""
    first = make("a.ts", "-i film.mp4 -c copy")
    second = make("b.ts", f"-i film.mp4 -c copy -output_ts_offset {offset_s}")
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames, _ = seen(path)
    assert len(frames) == pytest.approx(2 * N_FRAMES, abs=2)
    assert Recording.open(path).duration_ns / 1e9 == pytest.approx(2 * SECONDS, abs=0.3)
    assert np.diff([frame.capture_ns for frame in frames]).max() < 300 * NS_PER_MS
    must_sound(heard(path)[0], 2 * SECONDS)


def test_chained_ogg(make: Make, tmp_path: Path) -> None:
    once = make("a.ogg", "-i tone.wav -c:a libvorbis").read_bytes()
    path = tmp_path / "both.ogg"
    path.write_bytes(once + once)
    must_sound(heard(path)[0], 2 * SECONDS)


def test_sound_may_change_its_kind(make: Make, tmp_path: Path) -> None:
    """As on the air between programmes."""
    first = make("a.ts", "-i film.mp4 -c:v copy -c:a aac -ac 2")
    second = make(
        "b.ts", "-i film.mp4 -c:v copy -c:a aac -ac 1 -ar 44100 -output_ts_offset 2.1 -copyts"
    )
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    must_sound(heard(path)[0], 2 * SECONDS)


@pytest.mark.parametrize("turn", ["none", "mirror", "upside down", "quarter", "mirrored quarter"])
def test_how_a_film_is_to_be_shown(make: Make, tmp_path: Path, turn: str) -> None:
    """By the nine numbers of its track header: x' = a x + c y, y' = b x + d y."""
    matrix, shown = {
        "none": ((1, 0, 0, 1), lambda p: p),
        "mirror": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
        "quarter": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        "mirrored quarter": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    }[turn]
    lying = make("lying.mp4", "-i film.mp4 -c copy -an")
    path = turn_mp4(lying, tmp_path / "turned.mp4", matrix)
    expected = shown(seen(lying, 1)[0][0].pixels)
    np.testing.assert_array_equal(seen(path, 1)[0][0].pixels, expected)


SOUNDS = {
    "RF64": ("a.wav", "-i tone.wav -rf64 always"),
    "Wave64": ("a.w64", "-i tone.wav"),
    "AIFF": ("a.aiff", "-i tone.wav"),
    "CAF": ("a.caf", "-i tone.wav -c:a pcm_s16be"),
    "AU": ("a.au", "-i tone.wav"),
    "WAV of 8 bits": ("a.wav", "-i tone.wav -c:a pcm_u8"),
    "WAV of 24 bits": ("a.wav", "-i tone.wav -c:a pcm_s24le"),
    "WAV of doubles": ("a.wav", "-i tone.wav -c:a pcm_f64le"),
    "mu-law": ("a.wav", "-i tone.wav -c:a pcm_mulaw -ar 8000"),
    "ADPCM": ("a.wav", "-i tone.wav -c:a adpcm_ima_wav"),
    "six channels": ("a.wav", "-i tone.wav -ac 6"),
    "MP3 of MPEG 2.5": ("a.mp3", "-i tone.wav -c:a libmp3lame -ar 8000 -b:a 16k"),
    "MP3 of MPEG 2": ("a.mp3", "-i tone.wav -c:a libmp3lame -ar 16000"),
    "MP3 with a cover": (
        "a.mp3",
        "-i tone.wav -i cover.png -map 0 -map 1 -c:a libmp3lame -disposition:v attached_pic",
    ),
    "FLAC with a cover": (
        "a.flac",
        "-i tone.wav -i cover.png -map 0 -map 1 -c:a flac -disposition:v attached_pic",
    ),
    "M4A with a cover": (
        "a.m4a",
        "-i tone.wav -i cover.png -map 0 -map 1 -c:a aac -c:v copy -disposition:v attached_pic",
    ),
    "ADTS": ("a.aac", "-i tone.wav -c:a aac"),
    "Opus": ("a.opus", "-i tone.wav -c:a libopus"),
    "Vorbis": ("a.ogg", "-i tone.wav -c:a libvorbis"),
    "AC-3": ("a.ac3", "-i tone.wav -c:a ac3"),
    "E-AC-3": ("a.eac3", "-i tone.wav -c:a eac3"),
}


@pytest.mark.parametrize("case", SOUNDS)
def test_sounds(make: Make, case: str) -> None:
    path = make(*SOUNDS[case])
    assert Recording.open(path).tracks == {"sound"}
    chunks, n_damaged = heard(path)
    must_sound(chunks)
    assert n_damaged == 0


def test_wav_that_was_written_into_a_pipe(make: Make, tmp_path: Path) -> None:
    """It states the largest length there is."""
    make("a.wav", "-i tone.wav")
    piped = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", "a.wav", "-f", "wav", "-"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    ).stdout
    (tmp_path / "piped.wav").write_bytes(piped)
    must_sound(heard(tmp_path / "piped.wav")[0])


def with_crc(mp3: bytes) -> bytes:
    """An MP3 whose frames say that they hold a checksum, and do: MPEG-1, no reservoir, frames that
    end in stuffing."""
    rates, bit_rates = (44_100, 48_000, 32_000), (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192)
    bit_rates += (224, 256, 320)
    out, at = bytearray(), mp3.index(b"\xff\xfb")
    while at + 4 <= len(mp3) and mp3[at] == 0xFF:
        bits = int.from_bytes(mp3[at : at + 4], "big")
        size = 144_000 * bit_rates[bits >> 12 & 15] // rates[bits >> 10 & 3] + (bits >> 9 & 1)
        frame = mp3[at : at + size]
        n_side = 17 if bits >> 6 & 3 == 3 else 32
        crc = 0xFFFF
        for byte in frame[2:4] + frame[4 : 4 + n_side]:
            for bit in range(7, -1, -1):
                crc = (crc << 1 ^ (0x8005 if (crc >> 15 ^ byte >> bit) & 1 else 0)) & 0xFFFF
        out += frame[:1] + bytes([frame[1] & 0xFE]) + frame[2:4]
        out += crc.to_bytes(2, "big") + frame[4:-2]
        at += size
    return bytes(out)


def test_mp3_with_checksums(make: Make, tmp_path: Path) -> None:
    plain = make(
        "a.mp3", "-i tone.wav -c:a libmp3lame -b:a 320k -reservoir 0 -write_xing 0 -id3v2_version 0"
    )
    path = tmp_path / "crc.mp3"
    path.write_bytes(with_crc(plain.read_bytes()))
    assert path.read_bytes()[:2] == b"\xff\xfa"
    chunks, n_damaged = heard(path)
    must_sound(chunks)
    assert n_damaged == 0


def test_a_track_that_nobody_can_decode_is_left_out(make: Make, tmp_path: Path) -> None:
    data = make("a.mp4", "-i film.mp4 -c:v copy -c:a ac3").read_bytes()
    at = data.rindex(b"ac-3")
    (tmp_path / "b.mp4").write_bytes(data[:at] + b"zzzz" + data[at + 4 :])
    assert Recording.open(tmp_path / "b.mp4").tracks == {"video"}
