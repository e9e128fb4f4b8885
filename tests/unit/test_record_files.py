"""Recordings within bounds, and on disks that are full, read-only or slow."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from test_recorded_sessions import SETTINGS, take_steps

from edge.clock import VirtualClock
from edge.config import Config
from edge.session import record_files
from edge.session.moment import Moment
from edge.session.record import RecordedClock, Recorder, read
from edge.session.record_files import Bounds, files_of

NOWHERE = Moment({}, (np.zeros((1, 4), np.float32),))


def begun(path: Path, bounds: Bounds | None = None, **how: int) -> Recorder:
    recorder = Recorder(path, RecordedClock(VirtualClock()), bounds, **how)
    recorder.__enter__()
    recorder.describe("tiny", 0, SETTINGS, ["mast"], ["front"])
    return recorder


def record(recorder: Recorder, n: int) -> None:
    """So many steps, and another file wherever one is wanted."""
    for _ in range(n):
        if recorder.begin():
            recorder.begin_file(SETTINGS, NOWHERE)
        take_steps(recorder, 1)
        recorder.wait()


def test_files_give_way_to_newer_ones(tmp_path: Path) -> None:
    folder, bounds = tmp_path / "recorded", Bounds(max_bytes=600_000)
    recorder = begun(folder, bounds)
    largest = 0
    for _ in range(200):
        record(recorder, 1)
        largest = max(largest, sum(path.stat().st_size for path in files_of(folder)))
    recorder.__exit__(None, None, None)
    paths = files_of(folder)
    assert 400_000 < largest <= bounds.max_bytes
    assert 5 < len(paths) < 2 * record_files.N_FILES
    assert not (folder / "edge-000001").exists()
    numbers = [int(path.name.split("-")[1]) for path in paths]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] > 1
    for path in paths:
        recorded = read(path)
        assert len(list(recorded.steps())) > 0
        assert recorded.cut == ""
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_old_files_go_and_others_files_stay(tmp_path: Path) -> None:
    for n in (1, 2):
        recorder = begun(tmp_path, Bounds(1 << 30, max_age_s=3600.0))
        recorder.__exit__(None, None, None)
        if n == 1:
            (old,) = files_of(tmp_path)
            os.utime(old, (0, 0))
            (tmp_path / "mine.mcap").touch()
            os.utime(tmp_path / "mine.mcap", (0, 0))
    assert old not in files_of(tmp_path)
    assert [path.name.split("-")[1] for path in files_of(tmp_path)] == ["000002"]
    assert (tmp_path / "mine.mcap").exists()


def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody reads any more, and then somebody does."""
    pipe, read_all = tmp_path / "a.mcap", threading.Event()
    os.mkfifo(pipe)
    kept: list[bytes] = []

    def read_late() -> None:
        with pipe.open("rb") as source:
            read_all.wait(60)
            kept.append(source.read())

    reader = threading.Thread(target=read_late)
    reader.start()
    recorder = begun(pipe, max_waiting_bytes=200_000)
    n_taken = 0
    while not recorder.problem:  # the pipe and what may wait are full; no call has waited
        n_taken += 1
        recorder.begin()
        take_steps(recorder, 1)
        assert n_taken < 1000
    assert recorder.problem == "the disk is too slow, and steps were left out"
    read_all.set()
    while not recorder.begin():
        pass
    recorder.begin_file(SETTINGS, NOWHERE)
    record(recorder, 3)
    assert recorder.problem == ""
    assert recorder.counters["recording_gaps"] == 1
    assert recorder.counters["recording_steps_dropped"] >= 1
    recorder.__exit__(None, None, None)
    reader.join(60)
    (tmp_path / "kept.mcap").write_bytes(kept[0])
    first, second = read(tmp_path / "kept.mcap"), read(tmp_path / "a-2.mcap")
    assert len(list(first.steps())) == n_taken - 1
    assert first.cut == (
        f"ends early, as the disk is too slow, and steps were left out, after {n_taken - 1} steps"
    )
    assert len(list(second.steps())) == 3
    assert second.cut == ""
    assert second.moment is not None


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EMFILE])
def test_a_folder_that_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    is_broken = True

    def opened(path: Path, flags: int) -> int:
        if is_broken:
            raise OSError(code, os.strerror(code))
        return os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)

    monkeypatch.setattr(record_files, "_opened", opened)
    monkeypatch.setattr(record_files, "RETRY_S", 0.0)
    recorder = begun(tmp_path, Bounds(1 << 30))
    recorder.wait()
    assert recorder.problem == os.strerror(code)
    for _ in range(20):  # it is looked at again and again, and told once
        if recorder.begin():
            recorder.begin_file(SETTINGS, NOWHERE)
        take_steps(recorder, 1)
        recorder.wait()
    assert caplog.text.count("event=stopped") == 1
    assert recorder.counters["recording_steps_dropped"] >= 20
    is_broken = False
    while recorder.problem or not files_of(tmp_path):
        if recorder.begin():
            recorder.begin_file(SETTINGS, NOWHERE)
        take_steps(recorder, 1)
        recorder.wait()
    n_before = recorder.counters["recording_steps_dropped"]
    record(recorder, 2)
    assert recorder.counters["recording_steps_dropped"] == n_before
    assert recorder.counters["recording_failed"] == 0
    recorder.__exit__(None, None, None)
    assert caplog.text.count("event=resumed") == 1
    assert len(list(read(files_of(tmp_path)[-1]).steps())) > 2


def test_files_rotate_on_after_one_that_could_not_be_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused, n_failures = record_files._unused, [1]

    def failing(folder: Path, stem: str) -> tuple[Path, int]:
        if n_failures:
            n_failures.pop()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return unused(folder, stem)

    monkeypatch.setattr(record_files, "_unused", failing)
    monkeypatch.setattr(record_files, "RETRY_S", 0.0)
    recorder = begun(tmp_path, Bounds(max_bytes=600_000))
    recorder.wait()
    assert recorder.problem
    while recorder.problem:
        record(recorder, 1)
    record(recorder, 60)
    assert recorder.counters["recording_failed"] == 0
    recorder.__exit__(None, None, None)
    assert len(files_of(tmp_path)) > 3


def test_a_moment_that_is_more_than_may_wait_keeps_no_step_out(tmp_path: Path) -> None:
    moment = Moment({}, (np.zeros((1000, 1000), np.float32),))
    recorder = begun(tmp_path, Bounds(1 << 30), max_waiting_bytes=1_000_000)
    recorder.wait()
    for _ in range(5):
        recorder.begin()
        recorder.begin_file(SETTINGS, moment)
        take_steps(recorder, 1)
        assert recorder.problem == ""
        recorder.wait()
    recorder.__exit__(None, None, None)
    assert recorder.counters["recording_steps_dropped"] == 0
    assert len(files_of(tmp_path)) == 6


def test_a_recording_does_not_say_where_the_socket_is(tmp_path: Path) -> None:
    begun(tmp_path / "a.mcap").__exit__(None, None, None)
    about = read(tmp_path / "a.mcap").about
    shown = about["settings"]
    assert set(Config.__struct_fields__) - set(shown) == {"socket", "access", "record"}
    assert about["wall_ns"] > 0
