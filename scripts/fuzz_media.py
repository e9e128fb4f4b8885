"""Damage media files of every kind that is supported, and see that each ends in one of two ways.

A picture, a sound or a film whose bits were flipped, whose end or middle is missing or whose header
is another file's ends in pictures and sound, with a count of what was left out, or in one clear
error. It ends no process, hangs none and takes no gigabytes: files are opened in a process of their
own, which is watched. The last line printed is JSON; ends with 1 if anything failed, and keeps the
files that did.

Usage:
    python scripts/fuzz_media.py --n 1000 --seed 1
    python scripts/fuzz_media.py --only failed.mp4  # one again
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from media_bombs import FILMS as FILM_BOMBS
from media_bombs import PICTURES as PICTURE_BOMBS
from media_bombs import SOUNDS as SOUND_BOMBS
from media_bombs import Make
from PIL import Image
from tqdm import tqdm

from edge.clock import NS_PER_S, VirtualClock
from edge.errors import MediaError
from edge.senses.clip import decode_video
from edge.senses.decoder import Decoder
from edge.senses.recording import RecordedVideo, Recording
from edge.senses.sent import Job, Kind
from edge.senses.still import decode_picture, decode_sound
from edge.types import AudioChunk, Frame, UInt8

MAX_S = 60.0
"""Of one file, on a machine that others use, too. Whole ones take 0.1 s."""
MAX_BYTES = 1 << 30
"""Of the process that opens them: its libraries, and the largest picture with its copies."""
MAX_PLAYED_S = 20
FPS, SECONDS, WIDTH, HEIGHT, RATE_HZ = 25, 1, 160, 120, 48_000
KEPT = Path(".cache/fuzz/media")

PICTURES: dict[str, dict[str, object]] = {
    "a.jpg": {"format": "JPEG"},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "a.png": {"format": "PNG"},
    "a.webp": {"format": "WEBP"},
    "lossless.webp": {"format": "WEBP", "lossless": True},
    "a.gif": {"format": "GIF"},
    "a.bmp": {"format": "BMP"},
    "lzw.tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "jpeg.tiff": {"format": "TIFF", "compression": "jpeg"},
}
# codec of pictures, codec and layout of sound, options of the container
MOVING: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "a.mp4": ("libx264", "aac", "stereo", {"movflags": "faststart"}),
    "fragments.mp4": ("libx264", "aac", "mono", {"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mov": ("libx265", "alac", "mono", {}),
    "a.mkv": ("libx264", "ac3", "5.1", {}),
    "a.webm": ("libvpx", "libopus", "mono", {}),
    "vp9.webm": ("libvpx-vp9", "libopus", "stereo", {}),
    "a.avi": ("mpeg4", "libmp3lame", "mono", {}),
    "mjpeg.avi": ("mjpeg", "pcm_s16le", "mono", {}),
    "a.ts": ("libx264", "aac", "stereo", {}),
    "a.mpg": ("mpeg2video", "mp2", "stereo", {}),
    "a.flv": ("flv", "libmp3lame", "mono", {}),
    "a.wav": ("", "pcm_s16le", "stereo", {}),
    "float.wav": ("", "pcm_f32le", "mono", {}),
    "mulaw.wav": ("", "pcm_mulaw", "mono", {}),
    "adpcm.wav": ("", "adpcm_ms", "mono", {}),
    "rf64.wav": ("", "pcm_s24le", "mono", {"rf64": "always"}),
    "a.w64": ("", "pcm_s16le", "mono", {}),
    "a.aiff": ("", "pcm_s16be", "mono", {}),
    "a.caf": ("", "pcm_s16be", "mono", {}),
    "a.flac": ("", "flac", "stereo", {}),
    "a.mp3": ("", "libmp3lame", "stereo", {}),
    "a.aac": ("", "aac", "stereo", {}),
    "a.m4a": ("", "aac", "mono", {}),
    "a.opus": ("", "libopus", "stereo", {}),
    "a.ac3": ("", "ac3", "stereo", {}),
    "a.eac3": ("", "eac3", "5.1", {}),
    "a.mka": ("", "flac", "mono", {}),
}


def originals(folder: Path) -> list[Path]:
    """Whole files of every kind."""
    noise = np.random.default_rng(0)
    still = noise.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
    picture = np.kron(still, np.ones((8, 8, 1), np.uint8))
    for name, options in PICTURES.items():
        Image.fromarray(picture).save(folder / name, **options)  # type: ignore[arg-type]
    for name, kind in MOVING.items():
        _write(folder / name, picture, *kind)
    return sorted(folder.iterdir())


def _write(
    path: Path, picture: UInt8, sees: str, hears: str, layout: str, options: dict[str, str]
) -> None:
    n_channels = av.AudioLayout(layout).nb_channels
    times = np.arange(RATE_HZ * SECONDS) / RATE_HZ
    tone = (8000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
    sound = np.repeat(tone[:, None], n_channels, axis=1).reshape(1, -1)
    with av.open(str(path), "w", options=options) as container:
        film = container.add_stream(sees, rate=FPS) if sees else None
        track = container.add_stream(hears, rate=RATE_HZ, layout=layout)
        assert isinstance(track, AudioStream)
        if isinstance(film, VideoStream):
            film.width, film.height = WIDTH, HEIGHT
            film.pix_fmt = "yuvj420p" if sees == "mjpeg" else "yuv420p"
            for i in range(FPS * SECONDS):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 4 * i, 1), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, FPS)
                container.mux(film.encode(frame))
            container.mux(film.encode(None))
        heard = av.AudioFrame.from_ndarray(sound, format="s16", layout=layout)
        heard.sample_rate, heard.pts, heard.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
        container.mux(track.encode(heard))
        container.mux(track.encode(None))


def damaged(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A file, damaged in one to three ways.

    Args:
        other: a file of another kind.
    """
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(WAYS)(data or b"\0", other, chance)
    return data


def _flip(data: bytes, _: bytes, chance: random.Random) -> bytes:
    flipped = bytearray(data)
    for _n in range(chance.choice((1, 4, 64))):
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _flip_head(data: bytes, _: bytes, chance: random.Random) -> bytes:
    """Where sizes, rates and counts are."""
    at = chance.randrange(min(len(data), 400))
    value = chance.choice((b"\0", b"\xff", b"\x7f", bytes([chance.randrange(256)])))
    n = chance.choice((1, 2, 4, 8))
    return data[:at] + value * n + data[at + n :]


def _cut(data: bytes, _: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _lose(data: bytes, _: bytes, chance: random.Random) -> bytes:
    """Packets of a transport stream, or as many bytes."""
    at = chance.randrange(len(data)) // 188 * 188
    return data[:at] + data[at + 188 * chance.choice((1, 3, 20)) :]


def _overwrite(data: bytes, _: bytes, chance: random.Random) -> bytes:
    at, n = chance.randrange(len(data)), chance.choice((16, 300, 4000))
    return data[:at] + chance.choice((bytes(n), chance.randbytes(n))) + data[at + n :]


def _twice(data: bytes, _: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at // 2 :]


def _swap_head(data: bytes, other: bytes, chance: random.Random) -> bytes:
    n = chance.choice((12, 64, 512, 4096))
    return other[:n] + data[n:]


Use = Callable[[Path], dict[str, object]]
Run = Callable[[int, int, Path], dict[str, object]]
Way = Callable[[bytes, bytes, random.Random], bytes]
WAYS: tuple[Way, ...] = (_flip, _flip, _flip_head, _cut, _lose, _overwrite, _twice, _swap_head)


def opened(path: Path) -> dict[str, object]:
    """How a file ends: `{"end": "decoded" | "refused"}`, and what was left out.

    Raises:
        Exception: anything that is no clear error.
    """
    ends, n_damaged = [], 0
    uses: tuple[Callable[[Path], int], ...] = (_as_picture,)
    if path.name.split("-", 1)[-1] not in PICTURES:
        uses = (_as_sound, _as_film, _as_recording)
    for use in uses:
        try:
            n_damaged += use(path)
            ends.append("decoded")
        except MediaError as error:
            if "\n" in str(error) or not error.remedy:
                raise AssertionError(f"no clear error: {error}") from error
            ends.append("refused")
    return {"end": "decoded" if "decoded" in ends else "refused", "n_damaged": n_damaged}


def _as_picture(path: Path) -> int:
    picture = decode_picture(path.read_bytes())
    assert len(picture.rgb) == 3 * picture.width * picture.height
    return 0


def _as_sound(path: Path) -> int:
    sound = decode_sound(path.read_bytes())
    assert np.isfinite(np.frombuffer(sound.samples, np.float32)).all()
    return 0


def _as_film(path: Path) -> int:
    film = decode_video(path.read_bytes(), max_frames=8)
    assert len(film.frames) == len(film.times_s) > 0
    return film.n_damaged


def _as_recording(path: Path) -> int:
    recording = Recording.open(path)
    n_damaged = 0
    video, sound = recording.video(VirtualClock(), 0, FPS), recording.sound(VirtualClock(), 0)
    for source in (video, sound):
        if source is not None:
            _play(source.frames() if isinstance(source, RecordedVideo) else source.chunks())
            n_damaged += source.n_lost
    return n_damaged


def _play(items: Iterator[Frame] | Iterator[AudioChunk]) -> None:
    last_ns: int | None = None
    for item in items:
        assert last_ns is None or item.capture_ns >= last_ns, "time goes back"
        last_ns = item.capture_ns
        if last_ns > MAX_PLAYED_S * NS_PER_S:  # a hole may be hours
            return


def _work(link: Connection, use: Use) -> None:
    """Opens files for as long as it is told of some."""
    warnings.simplefilter("ignore")  # Pillow's, of notes beside a picture
    logging.disable()
    while path := link.recv():
        began_s = time.monotonic()
        try:
            found = use(path)
        except Exception as error:  # noqa: BLE001  what is no clear error is a failure
            found = {"end": "unclear", "error": f"{type(error).__name__}: {error}"}
        found["seconds"] = time.monotonic() - began_s
        found["n_bytes"] = most_bytes()
        link.send(found)


def most_bytes() -> int:
    """That this process has held at once. `ru_maxrss` has what the process that started it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (most_kb,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(most_kb)


class Worker:
    """A process that opens files, and is replaced when it dies or hangs."""

    def __init__(self, use: Use = opened, max_s: float = MAX_S) -> None:
        """Begin with one."""
        self._use, self._max_s = use, max_s
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._use), daemon=True)
        self._process.start()
        theirs.close()

    def open(self, path: Path) -> dict[str, object]:
        """What `opened` found, or how the process ended."""
        self._link.send(path)
        try:
            if self._link.poll(self._max_s):
                found: dict[str, object] = self._link.recv()
                if int(str(found["n_bytes"])) > MAX_BYTES:
                    found["end"] = "large"
                    self.close()
                    self._start()
                return found
            end = {"end": "hung"}
        except EOFError:
            self._process.join()
            end = {"end": "died", "error": f"exit code {self._process.exitcode}"}
        self.close()
        self._start()
        return dict(end)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._link.close()


def fuzz(n: int, seed: int, folder: Path, *, bombs_too: bool = False) -> dict[str, object]:
    """Open `n` damaged files.

    Args:
        folder: for the files; those that fail stay there.
        bombs_too: whether to open files that take much to decode, too.
    """
    whole = folder / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    files = originals(whole)
    ends: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    failures: list[str] = []
    n_damaged, slowest, n_bytes = 0, (0.0, ""), 0
    worker = Worker()
    n_bombs = 0
    bombs: tuple[tuple[Kind, dict[str, Make]], ...] = (
        ("picture", PICTURE_BOMBS),
        ("sound", SOUND_BOMBS),
        ("film", FILM_BOMBS),
    )
    for kind, table in bombs if bombs_too else ():
        for name, make in table.items():
            n_bombs += 1
            if problem := bombed(kind, make()):
                failures.append(f"{name}: {problem}")
    for path in files:
        if (found := worker.open(path))["end"] != "decoded":
            failures.append(f"{path}: whole and {found}")
    for number in tqdm(range(n), disable=None):
        chance = random.Random(f"{seed} {number}")
        path, other = files[number % len(files)], chance.choice(files)
        broken = folder / f"{seed}_{number}-{path.name}"
        broken.write_bytes(damaged(path.read_bytes(), other.read_bytes(), chance))
        found = worker.open(broken)
        end = str(found["end"])
        ends[end] += 1
        kinds.setdefault(path.name, Counter())[end] += 1
        n_damaged += int(str(found.get("n_damaged", 0))) > 0
        slowest = max(slowest, (round(float(str(found.get("seconds", MAX_S))), 2), broken.name))
        n_bytes = max(n_bytes, int(str(found.get("n_bytes", 0))))
        if end in ("decoded", "refused"):
            broken.unlink()
        else:
            failures.append(f"{broken}: {found}")
    worker.close()
    return {
        "n": n,
        "seed": seed,
        "n_kinds": len(kinds),
        "n_bombs": n_bombs,
        **{f"n_{end}": ends[end] for end in ("decoded", "refused")},
        "n_with_damage_counted": n_damaged,
        **{f"n_{end}": ends[end] for end in ("unclear", "died", "hung", "large")},
        "slowest": slowest,
        "max_mb": round(n_bytes / 1e6),
        "failures": failures,
    }


def bombed(kind: Kind, data: bytes) -> str:
    """What was wrong with the end of a file that takes much to decode; empty if nothing."""
    decoder = Decoder()
    try:
        decoder(Job(kind, with_sound=True), data)
    except MediaError as error:
        return "" if error.remedy and "status" not in str(error) else str(error)
    finally:
        decoder.close()
    return ""


def main(about: str, use: Use, run: Run, kept: Path, n: int) -> int:
    """What the command line asks for.

    Args:
        about: the script's own description.
        use: opens one file, or folder.
        run: opens many, of a number and a seed, in a folder.
        kept: where that folder is made.
        n: how many, if it is not said.
    """
    parser = argparse.ArgumentParser(description=about.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=n, help="how many are damaged at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=Path, help="open this one alone, in this process")
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(use(arguments.only)))
        return 0
    kept.mkdir(parents=True, exist_ok=True)
    report = run(arguments.n, arguments.seed, Path(tempfile.mkdtemp(dir=kept)))
    print(json.dumps(report))
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", opened, partial(fuzz, bombs_too=True), KEPT, 1000))
