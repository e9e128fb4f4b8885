"""What clients send is decoded in a process that is bounded, whatever the file is."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import media_bombs as bombs
import pytest

from edge.errors import CapacityError, MediaError
from edge.senses import decoder, sent
from edge.senses.clip import decode_audio
from edge.senses.decoder import Decoder
from edge.senses.sent import MAX_OF_KIND, Budget, Job, Kind, decode
from edge.types import Film, Medium, Picture, Sound

pytest_plugins = ["media"]

PNG = bombs.png(16, 16)
IDLE_MB = 110
"""What such a process takes before, its libraries in it."""


@pytest.fixture(scope="module")
def process() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


def pid_of(process: Decoder) -> int:
    assert process._process is not None
    return process._process._process.pid


def most_mb(process: Decoder) -> int:
    """That it has taken at once."""
    lines = Path(f"/proc/{pid_of(process)}/status").read_text().splitlines()
    (kb,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kb) // 1024


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("picture", lambda: bombs.png(40, 30)),
        ("sound", lambda: bombs.wav(2, 48_000, 1.0)),
        ("film", lambda: bombs.film("matroska", "mpeg4", 25, (64, 48))),
    ],
)
def test_what_comes_is_what_this_process_would_make(process: Decoder, kind: Kind, make) -> None:
    data, job = make(), Job(kind, with_sound=True)
    found = process(job, data)
    assert found == decode(job, data)
    assert isinstance(found, {"picture": Picture, "sound": Sound, "film": Film}[kind])


REFUSED: dict[str, tuple[Kind, dict[str, bombs.Make], str, int]] = {
    # its problem, and how much more memory it may take, MB
    "16000x16000 pixels, one row": ("picture", bombs.PICTURES, "is 16000x16000 pixels", 5),
    "8192x8192 pixels": ("picture", bombs.PICTURES, "is 8192x8192 pixels", 5),
    "PNG: a text of 64 MB": ("picture", bombs.PICTURES, "too large", 20),
    "PNG: a text of 64 MB behind the pixels": ("picture", bombs.PICTURES, "too large", 70),
    "PNG: an international text of 64 MB": ("picture", bombs.PICTURES, "too large", 20),
    "PNG: a colour profile of 64 MB": ("picture", bombs.PICTURES, "too large", 20),
    "PNG: texts of 400 MB together": ("picture", bombs.PICTURES, "Too much memory", 90),
    "WebP with a canvas of 16383x16383": ("picture", bombs.PICTURES, "16383|cannot be", 20),
    "64 channels": ("sound", bombs.SOUNDS, "64 channels; send at most 16", 40),
    "255 channels": ("sound", bombs.SOUNDS, "255 channels", 40),
    "384 kHz": ("sound", bombs.SOUNDS, "sound of 384000 Hz", 40),
    "1 Hz": ("sound", bombs.SOUNDS, "sound of 1 Hz", 5),
    "FLAC: hours of silence": ("sound", bombs.SOUNDS, "has more packets than 30 s need", 60),
    "tables of 170 million samples": ("sound", bombs.SOUNDS, "has 0 samples|cannot be", 20),
    "samples in another file": ("sound", bombs.SOUNDS, "has 0 samples", 20),
    "ALAC: frames of 16 million samples": ("sound", bombs.SOUNDS, "nothing can be decoded", 40),
    "Matroska: packets that unpack to 9 MB": ("sound", bombs.SOUNDS, "unpacks to more", 60),
    "Matroska: subtitles that unpack to 9 MB": ("sound", bombs.SOUNDS, "unpacks to more", 60),
    "33,000 frames in a second": ("film", bombs.FILMS, "at most 32768 of this size", 40),
    "hours": ("film", bombs.FILMS, "lasts more than 120 s", 40),
    "pictures that grow": ("film", bombs.FILMS, "changes its size", 90),
    "a playlist": ("film", bombs.FILMS, "is not a media file", 5),
    "a list to join": ("film", bombs.FILMS, "is not a media file", 5),
    "a session description": ("film", bombs.FILMS, "is not a media file", 5),
    "DASH": ("film", bombs.FILMS, "is not a media file", 5),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_by_name_and_takes_no_memory(process: Decoder, name: str) -> None:
    kind, table, problem, more_mb = REFUSED[name]
    process(Job("picture"), PNG)
    Path(f"/proc/{pid_of(process)}/clear_refs").write_text("5")  # VmHWM begins anew
    before_mb, before = most_mb(process), pid_of(process)
    data = table[name]()
    with pytest.raises(MediaError, match=problem) as caught:
        process(Job(kind), data)
    assert "\n" not in str(caught.value)
    taken_mb = most_mb(process) - before_mb
    print(f"{name}: {len(data) / 1e3:.1f} kB, {taken_mb} MB more for a moment")
    assert taken_mb <= more_mb + 2 * len(data) // 1_000_000
    assert pid_of(process) == before


def test_a_hundred_tracks_are_too_much_and_the_next_film_is_decoded(process: Decoder) -> None:
    with pytest.raises(MediaError, match=r"too much memory|is not a media file"):
        process(Job("film"), bombs.FILMS["a hundred tracks"]())
    assert isinstance(process(Job("picture"), PNG), Picture)


def test_what_takes_too_long_ends_the_process_and_the_next_one_is_decoded(
    process: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "MAX_CPU_S", {"picture": 1, "sound": 1, "film": 1})
    with pytest.raises(MediaError, match="takes more than 1 s to decode"):
        process(Job("picture"), bombs.PICTURES["GIF: a comment of 11 MB"]())
    assert process(Job("picture"), PNG) == decode(Job("picture"), PNG)


def test_what_takes_too_much_memory_is_refused_and_the_next_one_has_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tags that share eight megabytes, thirty thousand times."""
    monkeypatch.setattr(decoder, "MAX_BYTES", 1 << 26)
    process = Decoder()
    try:
        process(Job("picture"), PNG)
        for name in ("TIFF whose tags share 8 MB", "JPEG: EXIF whose tags share 4 MB"):
            before = pid_of(process)
            with pytest.raises(MediaError, match="picture: takes too much memory to decode"):
                process(Job("picture"), bombs.PICTURES[name]())
            assert process(Job("picture"), PNG) == decode(Job("picture"), PNG)
            assert pid_of(process) != before
    finally:
        process.close()


def test_a_process_that_dies_takes_only_its_file_along() -> None:
    process = Decoder()
    process(Job("picture"), PNG)
    os.kill(pid_of(process), signal.SIGSTOP)

    def die() -> None:
        while not process._lock.locked():
            pass
        os.kill(pid_of(process), signal.SIGSEGV)
        os.kill(pid_of(process), signal.SIGCONT)

    thread = threading.Thread(target=die)
    thread.start()
    with pytest.raises(MediaError, match=r"picture: ends its decoder \(status -11\)"):
        process(Job("picture"), PNG)
    thread.join()
    assert process(Job("picture"), PNG) == decode(Job("picture"), PNG)
    process.close()
    with pytest.raises(CapacityError, match="is stopping"):
        process(Job("picture"), PNG)


def test_a_process_that_died_at_rest_takes_no_file_along() -> None:
    """The kernel ends it first where memory is short."""
    process = Decoder()
    process(Job("picture"), PNG)
    os.kill(pid_of(process), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(process), os.WEXITED | os.WNOWAIT)
    assert process(Job("picture"), PNG) == decode(Job("picture"), PNG)
    process.close()


NOT_NOW = {
    "no memory for a process": ("subprocess.Popen", errno.ENOMEM),
    "no more processes": ("subprocess.Popen", errno.EAGAIN),
    "no more files": ("os.memfd_create", errno.EMFILE),
    "no more sockets": ("socket.socketpair", errno.ENFILE),
}


def test_where_there_can_be_no_process_no_file_is_to_blame_and_the_next_one_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, n_open = Decoder(), len(os.listdir("/proc/self/fd"))
    for what, number in NOT_NOW.values():

        def refuse(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(f"edge.senses.decoder.{what}", refuse)
            with pytest.raises(CapacityError, match=f"no decoder .*{os.strerror(number)}"):
                process(Job("picture"), PNG)
        assert len(os.listdir("/proc/self/fd")) == n_open
    assert process(Job("picture"), PNG) == decode(Job("picture"), PNG)
    process.close()


def test_closing_ends_what_is_just_being_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Decoder()
    closing = threading.Thread(target=process.close)
    begin = decoder._Process.__init__

    def begin_and_stop(self: decoder._Process) -> None:
        begin(self)
        os.kill(self._process.pid, signal.SIGSTOP)  # it will never be done
        closing.start()
        while not process._is_closed:
            pass

    monkeypatch.setattr(decoder._Process, "__init__", begin_and_stop)
    monkeypatch.setattr(decoder, "MAX_S", 5.0)
    began_s = time.monotonic()
    with pytest.raises(CapacityError, match="is stopping"):
        process(Job("picture"), PNG)
    closing.join()
    assert time.monotonic() - began_s < decoder.MAX_S


def test_closing_ends_what_is_being_decoded() -> None:
    process, ended = Decoder(), threading.Event()
    process(Job("picture"), PNG)
    os.kill(pid_of(process), signal.SIGSTOP)  # it will never be done

    def wait() -> None:
        with pytest.raises(CapacityError, match="is stopping"):
            process(Job("picture"), PNG)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not process._lock.locked():
        pass
    process.close()
    thread.join()
    assert ended.is_set()


def test_where_no_process_can_begin_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(decoder.subprocess, "Popen", fails)
    process = Decoder()
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CapacityError, match="can have no decoder"):
        process(Job("picture"), PNG)
    assert len(os.listdir("/proc/self/fd")) == n_open
    process.close()
    with pytest.raises(CapacityError) as caught:
        process(Job("picture"), PNG)
    assert str(caught.value) == "service: is stopping; ask again later"


@pytest.mark.parametrize("kind", ["picture", "sound", "film"])
def test_a_reply_says_what_lies_in_the_file_and_where(
    kind: Kind, originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *bound: bounds.append(bound))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5, 999))
    monkeypatch.setattr(time, "process_time", lambda: 30.25)
    data = PNG if kind == "picture" else (originals / "film.mp4").read_bytes()
    job = Job(kind, fps=2.0, max_frames=3, with_sound=True)
    file = os.memfd_create("decoded")
    reply = decoder._done(job, data, file, 20)
    assert bounds == [(resource.RLIMIT_CPU, (51, 999))]
    medium = decode(job, data)
    rgb = os.pread(file, reply.n_rgb, 0)
    samples = os.pread(file, reply.n_samples, reply.n_rgb)
    assert os.fstat(file).st_size == len(rgb) + len(samples)
    os.close(file)
    shown = reply.width, reply.height, reply.times_s
    if isinstance(medium, Sound):
        assert (rgb, samples, shown) == (b"", medium.samples, (0, 0, ()))
        return
    assert rgb == medium.rgb
    times_s = medium.times_s if isinstance(medium, Film) else ()
    assert shown == (medium.width, medium.height, times_s)
    if isinstance(medium, Film):
        assert medium.sound == Sound(samples)
        assert len(times_s) == 3


def test_what_the_kernel_counts_as_data_is_known_in_bytes() -> None:
    before = decoder._data_bytes()
    with mmap.mmap(-1, 1 << 26, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
        assert decoder._data_bytes() - before == pytest.approx(1 << 26, abs=1 << 23)


@pytest.mark.parametrize("kind", ["picture", "sound", "film"])
def test_how_many_a_request_may_have_is_bounded(kind: Kind) -> None:
    n_decoded = 0

    def counted(_: Job, __: bytes) -> Medium:
        nonlocal n_decoded
        n_decoded += 1
        return Sound(bytes(4))

    budget = Budget(counted)
    for _ in range(MAX_OF_KIND[kind]):
        budget.decoded(kind, b"")
    with pytest.raises(MediaError, match=f"{kind}s: are more than {MAX_OF_KIND[kind]}"):
        budget.decoded(kind, b"")
    assert n_decoded == MAX_OF_KIND[kind]


def test_pictures_together_are_judged_by_their_headers() -> None:
    """The second of two is known to be too much before a pixel of it is decoded."""
    large = bombs.png(5792, 5792, n_rows=1)  # 2**25 pixels; no more of it is there
    jobs: list[Job] = []

    def kept(job: Job, data: bytes) -> Medium:
        jobs.append(job)
        return Picture(bytes(3 * 5792 * 5792), 5792, 5792) if len(jobs) < 3 else decode(job, data)

    budget = Budget(kept)
    budget.decoded("picture", large)
    budget.decoded("picture", large)
    with pytest.raises(MediaError, match="5792x5792 pixels, and there is room for"):
        budget.decoded("picture", large)


def test_all_of_a_request_share_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent, "MAX_MEDIA_BYTES", 100)
    jobs: list[Job] = []

    def kept(job: Job, data: bytes) -> Medium:
        jobs.append(job)
        return Sound(data)

    budget = Budget(kept)
    assert budget.decoded("sound", bytes(40)) == Sound(bytes(40))
    budget.decoded("film", bytes(60), fps=5.0, max_frames=7, with_sound=True, pruning_rate=0.5)
    assert jobs == [Job("sound", 100), Job("film", 60, 5.0, 7, True, 0.5)]
    said = "pictures and sounds: take more than 100 bytes when they are decoded; send fewer, or"
    with pytest.raises(MediaError, match=said):
        budget.decoded("sound", bytes(4))


def test_a_film_is_its_frames_times_and_sound(originals: Path) -> None:
    data = (originals / "film.mp4").read_bytes()
    film = decode(Job("film", 3 * 96 * 72 * 3, 2.0, 3, True, 0.25), data)
    assert isinstance(film, Film)
    assert (film.width, film.height, len(film.rgb)) == (96, 72, 3 * 96 * 72 * 3)  # to fit
    assert (len(film.times_s), film.pruning_rate) == (3, 0.25)
    assert film.sound == Sound(decode_audio(data, 30).tobytes())
    silent = decode(Job("film"), bombs.film("matroska", "mpeg4", 25, (64, 48)))
    assert isinstance(silent, Film)
    assert (silent.sound, silent.pruning_rate) == (None, 0.0)
