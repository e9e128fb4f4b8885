"""A recording that ends badly is read to where it was cut, and none tells secrets."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType, Writer

from edge.clock import VirtualClock
from edge.config import Access, Camera, Config, Microphone
from edge.errors import MediaError
from edge.senses.address import without_secrets
from edge.session import record, record_files
from edge.session.record import FORMAT, RecordedClock, Recorder, Step, read
from edge.session.turn import Failed
from edge.types import AudioChunk, Frame

SETTINGS: dict[str, Any] = msgspec.to_builtins(Config())


def take_steps(recorder: Recorder, n: int) -> None:
    """Pictures, sounds and events, of noise: nothing is compressed away."""
    noise = np.random.default_rng(0)
    clock = recorder.clock
    for i in range(n):
        recorder.begin()
        clock.sleep_until(i * 1000)
        clock.now_ns()
        if i % 3 == 0:
            pixels = noise.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            recorder.took("front", Frame(pixels, i * 1000, i, "front"))
        elif i % 3 == 1:
            samples = noise.normal(0, 0.1, 1600).astype(np.float32)
            recorder.took("mast", AudioChunk(samples, i * 1000, "mast"))
        for k in range(i % 4):
            recorder.saw(Failed(MediaError("front", f"event {i}.{k}", "look")))
        recorder.end()


def session(path: Path, n: int = 60) -> Path:
    with Recorder(path, RecordedClock(VirtualClock())) as recorder:
        recorder.describe("tiny", 0, SETTINGS, ["mast"], ["front"])
        take_steps(recorder, n)
    return path


def told(steps: list[Step]) -> list[object]:
    """Steps, to be compared."""
    return [
        (
            s.took,
            s.clock,
            s.events,
            s.item.pixels.tobytes() if isinstance(s.item, Frame) else None,
            s.item.samples.tobytes() if isinstance(s.item, AudioChunk) else None,
        )
        for s in steps
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return session(tmp_path_factory.mktemp("whole") / "a.mcap").read_bytes()


def read_of(data: bytes, path: Path) -> tuple[list[object], str]:
    path.write_bytes(data)
    recorded = read(path)
    return told(list(recorded.steps())), recorded.cut


def test_a_whole_recording_is_read_to_its_end(whole: bytes, tmp_path: Path) -> None:
    steps, cut = read_of(whole, tmp_path / "a.mcap")
    assert len(steps) == 60
    assert cut == ""


@settings(max_examples=60)
@given(st.data())
def test_any_prefix_is_read_to_its_cut(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("prefix") / "a.mcap"
    n_bytes = data.draw(st.integers(0, len(whole) - 1))
    every, _ = read_of(whole, path)
    if n_bytes < 2 * record_files.CHUNK_BYTES:  # its first chunk may not be whole
        with contextlib.suppress(MediaError):
            steps, _ = read_of(whole[:n_bytes], path)
            assert steps == every[: len(steps)]
        return
    steps, cut = read_of(whole[:n_bytes], path)
    assert steps == every[: len(steps)]
    if len(steps) < len(every):
        assert f"after {len(steps)} steps" in cut
    # Noise cannot be compressed: not much more than a chunk is lost of what is there.
    lost = (n_bytes / len(whole)) * len(every) - len(steps)
    assert lost < 12


@settings(max_examples=60)
@given(st.data())
def test_damage_inside_ends_there(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """What follows a damaged chunk cannot be replayed; what it holds is not taken for a step."""
    path = tmp_path_factory.mktemp("damaged") / "a.mcap"
    at = data.draw(st.integers(0, len(whole) - 9))
    damaged = whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at + 8 :]
    every, _ = read_of(whole, path)
    try:
        steps, _ = read_of(damaged, path)
    except MediaError:
        return
    assert steps == every[: len(steps)]


KILLED = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_recorded_sessions import *
recorder = Recorder(Path({path!r}), RecordedClock(VirtualClock())).__enter__()
recorder.describe("tiny", 0, SETTINGS, ["mast"], ["front"])
take_steps(recorder, 60)
recorder.wait()
print("written", flush=True)
signal.pause()
"""


def test_a_killed_process_leaves_what_it_has_written(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "killed.mcap"
    here = Path(__file__).parent
    program = KILLED.format(paths=[str(here), str(here.parent)], path=str(path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    recorded = read(path)
    steps = told(list(recorded.steps()))
    every, _ = read_of(whole, tmp_path / "whole.mcap")
    assert len(steps) == 59  # of the last one some events may be missing
    assert steps == every[: len(steps)]
    assert "is cut short or damaged" in recorded.cut


def test_a_full_disk_ends_the_recording_and_not_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(io.BufferedWriter):
        """Takes 200 kB."""

        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 200_000:
                super().write(data[: max(0, 200_000 - self.tell())])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    path = tmp_path / "a.mcap"
    opened = partial(monkeypatch.setattr, record_files, "open", raising=False)
    opened(lambda fd, _: Full(io.FileIO(fd, "w")))
    with Recorder(path, RecordedClock(VirtualClock())) as recorder:
        recorder.describe("tiny", 0, SETTINGS, ["mast"], ["front"])
        take_steps(recorder, 60)
        recorder.wait()
        assert recorder.problem == "No space left on device"
        assert recorder.counters["recording_failed"] == 1
    assert caplog.text.count("event=stopped error=No space left on device") == 1
    recorded = read(path)
    assert 5 < len(list(recorded.steps())) < 40
    assert recorded.cut


def test_what_the_session_is_stands_before_everything(tmp_path: Path) -> None:
    """A first picture that does not fit on the disk leaves a recording of no steps, not none."""
    path = tmp_path / "a.mcap"
    with Recorder(path, RecordedClock(VirtualClock())) as recorder:
        recorder.describe("tiny", 0, SETTINGS, ["mast"], ["front"])
        recorder.wait()
        described = path.read_bytes()
    path.write_bytes(described)
    recorded = read(path)
    assert recorded.about["model"] == "tiny"
    assert list(recorded.steps()) == []
    assert "after 0 steps" in recorded.cut


@pytest.mark.parametrize("was_there", [False, True])
def test_only_its_owner_reads_it(tmp_path: Path, was_there: bool) -> None:
    path = tmp_path / "a.mcap"
    if was_there:
        path.touch(0o644)
    session(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


SECRETS = {
    "rtsp://robot:hunter2@10.0.0.5:554/live": "rtsp://***@10.0.0.5:554/live",
    "rtsp://robot:hun@ter2@10.0.0.5/live": "rtsp://***@10.0.0.5/live",
    "rtsp://hunter2@camera/live?channel=1": "rtsp://***@camera/live?channel=1",
    "rtsp://camera/live?user=a&password=hunter2&channel=1": (
        "rtsp://camera/live?user=a&password=***&channel=1"
    ),
    "rtspsrc location=rtsp://a:hunter2@b/c user-id=a user-pw=hunter2 ! decodebin": (
        "rtspsrc location=rtsp://***@b/c user-id=a user-pw=*** ! decodebin"
    ),
    'souphttpsrc location="http://c/?token=hunter2" user-pw="hunter2 x" ! jpegdec': (
        'souphttpsrc location="http://c/?token=***" user-pw=*** ! jpegdec'
    ),
    "udp://@:5000": "udp://***@:5000",
    "/dev/video0?video_size=1280x720": "/dev/video0?video_size=1280x720",
    "film.mp4": "film.mp4",
}


@pytest.mark.parametrize("source", SECRETS)
def test_addresses_are_shown_without_secrets(source: str) -> None:
    assert without_secrets(source) == SECRETS[source]


def test_a_recording_holds_no_password(tmp_path: Path) -> None:
    config = Config(
        camera=(Camera(name="front", source="rtsp://robot:hunter2@10.0.0.5/live"),),
        microphone=(Microphone(name="mast", source="device:?password=hunter2"),),
        access=Access(admins=("hunter2",)),
    )
    path = tmp_path / "a.mcap"
    with Recorder(path, RecordedClock(VirtualClock())) as recorder:
        recorder.describe("tiny", 0, msgspec.to_builtins(config), ["mast"], ["front"])
        recorder.begin()
        recorder.outside("settings", lambda: msgspec.to_builtins(config))
        recorder.end()
    recorded = read(path)
    steps = list(recorded.steps())
    assert "hunter2" not in json.dumps([recorded.about, steps[0].outside])
    again = msgspec.convert(recorded.about["settings"], Config)
    assert again.camera[0].source == "rtsp://***@10.0.0.5/live"
    assert "settings" in steps[0].outside


def mcap_of(path: Path, *messages: tuple[str, Any]) -> Path:
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE)
        writer.start()
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channels: dict[str, int] = {}
        for topic, content in messages:
            if topic not in channels:
                channels[topic] = writer.register_channel(f"/{topic}", "json", schema)
            data = json.dumps(content).encode()
            writer.add_message(channels[topic], log_time=0, publish_time=0, data=data)
        writer.finish()
    return path


ABOUT = {
    "format": FORMAT,
    "model": "a",
    "start_ns": 0,
    "settings": {},
    "at_ns": 0,
    "wall_ns": 0,
    "n_rows": None,
}
STEP = {"took": "", "item": "", "asked_ns": 0, "outside": {}, "clock": []}
FRAME = {"timestamp": {"sec": 0, "nsec": 0}, "frame_id": "a", "width": 2, "height": 2, "number": 0}


@pytest.mark.parametrize(
    "messages",
    [
        [("step", {"took": ""})],
        [("step", {**STEP, "more": 1})],
        [("step", [])],
        [("step", None)],
        [("camera", {}), ("step", STEP)],
        [("camera", {**FRAME, "data": base64.b64encode(b"123").decode()}), ("step", STEP)],
        [("camera", {**FRAME, "data": "*"}), ("step", STEP)],
        [("sound", {"data": "", "capture_ns": "x"}), ("step", STEP)],
        [("control", {"mode": 1, "x": 2}), ("step", STEP)],
        [("question", {"messages": 1}), ("step", STEP)],
        [("elsewhere", {}), ("step", STEP)],
    ],
)
def test_steps_of_somebody_else_are_one_clear_error(messages: Any, tmp_path: Path) -> None:
    path = mcap_of(tmp_path / "a.mcap", ("session", ABOUT), *messages)
    with pytest.raises(MediaError, match="has no usable step 0"):
        list(read(path).steps())


@pytest.mark.parametrize("about", [{}, {"format": "3"}, [], None, 7, "x"])
def test_sessions_of_somebody_else_are_refused(about: Any, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is not a recorded session"):
        read(mcap_of(tmp_path / "a.mcap", ("session", about)))


def test_a_chunk_that_would_unpack_to_gigabytes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MAX_CHUNK_BYTES", 1 << 20)
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channel = writer.register_channel("/session", "json", schema)
        data = json.dumps(ABOUT).encode() + b" " * (2 << 20)
        writer.add_message(channel, log_time=0, publish_time=0, data=data)
        writer.finish()
    with pytest.raises(MediaError, match="is not a recorded session"):
        read(path)
