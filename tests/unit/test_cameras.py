"""Cameras without a camera: addresses, what is opened, pace, times, and what is lost."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import av
import numpy as np
import pytest
from make_media import damage_avi, write_sound, write_video

from edge.clock import NS_PER_MS, NS_PER_S, VirtualClock
from edge.errors import ConfigurationError, MediaError
from edge.senses import camera as module
from edge.senses.camera import Camera, is_live

PERIOD_MS, START_NS = 40, 100 * NS_PER_S
SAFE = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "1000000"}
SAFE |= {"max_pixels": str(1 << 26), "max_streams": "64"}
RTSP = {"rtsp_transport": "tcp", "format_whitelist": "rtsp"}
RTSP |= {"protocol_whitelist": "rtsp,rtsps,rtp,tcp,tls,udp"}


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("/dev/video0", True),
        ("/dev/video0?video_size=1280x720", True),
        ("rtsp://door/1", True),
        ("rtsps://door/1", True),
        ("udp://0.0.0.0:5000", True),
        ("unix:/run/door.sock", True),
        ("nvarguscamerasrc ! nvvidconv", True),
        ("film.mp4", False),
        ("/data/dev/video0.mp4", False),
        ("http://door/film.mp4", False),
        ("what!ever.mkv", False),
        ("", False),
    ],
)
def test_what_a_camera_is(source, live):
    assert is_live(source) is live
    if not live:
        with pytest.raises(
            ConfigurationError, match=r"camera front: has the source .*edge devices"
        ):
            Camera("front", source, VirtualClock(), 2.0)


def test_a_wrong_source_is_shown_without_its_password():
    with pytest.raises(ConfigurationError) as refused:
        Camera("front", "http://me:hunter2@door/1", VirtualClock(), 2.0)
    assert "hunter2" not in str(refused.value)


def played(monkeypatch, times_ms, fps):
    """Numbers of the frames that a camera gives of those captured at these times."""
    camera = Camera("front", "/dev/video0", VirtualClock(), fps)

    @contextmanager
    def opened():
        yield ((START_NS + ms * NS_PER_MS, lambda n=n: n) for n, ms in enumerate(times_ms))
        camera.close()

    monkeypatch.setattr(camera, "_opened", opened)
    frames = list(camera.frames())
    assert [frame.pixels for frame in frames] == [frame.frame_id for frame in frames]
    assert [frame.capture_ns for frame in frames] == [
        START_NS + times_ms[frame.frame_id] * NS_PER_MS for frame in frames
    ]
    assert {frame.source for frame in frames} == {"front"}
    return [frame.frame_id for frame in frames]


def test_a_fast_camera_gives_no_more_than_was_asked_for(monkeypatch):
    ids = played(monkeypatch, range(0, 10_000, 20), fps=10)
    assert 99 <= len(ids) <= 101
    assert set(np.diff(ids)[2:].tolist()) == {5}


def test_frames_that_are_a_little_early_are_on_time(monkeypatch):
    assert played(monkeypatch, [0, 95, 205, 295, 400], fps=10) == [0, 1, 2, 3, 4]


def test_a_frame_is_due_from_a_moment_on(monkeypatch):
    # After the first one half a period, then a period more.
    assert played(monkeypatch, [0, 49, 50, 149, 150, 249, 251], fps=10) == [0, 2, 4, 6]


def test_after_a_gap_nothing_is_made_up_for(monkeypatch):
    times_ms = [0, 100, 200, *range(1000, 1200, 20)]
    assert played(monkeypatch, times_ms, fps=10) == [0, 1, 2, 3, 6, 11]


class Ticking(VirtualClock):
    """A look at it takes as long as a frame."""

    def now_ns(self):
        now_ns = super().now_ns()
        self.sleep_until(now_ns + PERIOD_MS * NS_PER_MS)
        return now_ns


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """Twelve pictures of 64x48, as MPEG-TS and as a file; and a sound."""
    folder = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(0)
    pictures = [np.full((48, 64, 3), 20 * n, np.uint8) for n in range(12)]
    for picture in pictures:
        picture[16:32, 16:32] = rng.integers(0, 256, (16, 16, 3))
    times_ms = range(0, 12 * PERIOD_MS, PERIOD_MS)
    write_video(folder / "a.ts", pictures, times_ms, "yuv420p", "mpeg4")
    write_video(folder / "a.avi", pictures, times_ms, "yuvj420p", "mjpeg")
    write_sound(folder / "a.wav", [(0, np.ones(1600, np.int16))], 16_000)
    return folder


@pytest.fixture
def opens(monkeypatch):
    """Let `av.open` give a file, whatever it is asked for; what it was asked."""
    asked, real = [], av.open

    def use(path):
        def give(*words, **settings):
            asked.append((words, settings))
            if isinstance(path, Exception):
                raise path
            return real(str(path))

        monkeypatch.setattr(module.av, "open", give)
        return asked

    return use


def taken(source, clock=None):
    """All frames of one opening, and the camera."""
    camera = Camera("front", source, clock or Ticking(START_NS), fps=1000)
    with camera._opened() as captures:
        found = [(capture_ns, pixels()) for capture_ns, pixels in captures]
    return found, camera


def test_a_device_is_opened_with_its_options(opens, streams):
    asked = opens(streams / "a.avi")
    taken("/dev/video2?video_size=1280x720&input_format=mjpeg")
    taken("/dev/video2")
    options = {"video_size": "1280x720", "input_format": "mjpeg"}
    assert asked == [
        (("/dev/video2",), {"format": "v4l2", "options": options}),
        (("/dev/video2",), {"format": "v4l2", "options": {}}),
    ]


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("rtsp://door/1", RTSP),
        ("rtsps://door/1", RTSP),
        ("udp://0.0.0.0:5000", {"format_whitelist": "mpegts", "protocol_whitelist": "udp"}),
        ("unix:/run/door.sock", {"format_whitelist": "mpegts", "protocol_whitelist": "unix"}),
    ],
)
def test_who_sends_chooses_no_format_and_may_not_be_silent(opens, streams, source, own):
    asked = opens(streams / "a.ts")
    taken(source)
    assert asked == [((source,), {"options": SAFE | own, "timeout": (5.0, 2.0)})]


def test_pictures_have_the_times_of_their_capture(opens, streams):
    """FFmpeg gives one of MPEG-TS when two more have begun."""
    for name, held_ms in (("a.avi", 0), ("a.ts", 2 * PERIOD_MS)):
        opens(streams / name)
        found, camera = taken("udp://0.0.0.0:5000")
        assert len(found) == 12
        assert {pixels.shape for _, pixels in found} == {(48, 64, 3)}
        brightness = [int(pixels[0, 0].mean()) for _, pixels in found]
        np.testing.assert_allclose(brightness, range(0, 240, 20), atol=4)
        expected = [max(0, n * PERIOD_MS - held_ms) for n in range(12)]
        given = [(ns - START_NS) / NS_PER_MS for ns, _ in found]
        np.testing.assert_allclose(given, expected, atol=1)
        assert camera.n_lost == 0


def test_a_driver_s_own_times_are_kept(opens, streams):
    opens(streams / "a.avi")
    found, _ = taken("/dev/video0", VirtualClock(NS_PER_S // 2))
    np.testing.assert_allclose([ns / NS_PER_MS for ns, _ in found], range(0, 480, 40), atol=1)


def test_what_is_damaged_is_left_out_and_counted(opens, streams, tmp_path):
    shutil.copy(streams / "a.avi", tmp_path)
    damage_avi(tmp_path / "a.avi", 2)
    opens(tmp_path / "a.avi")
    found, camera = taken("udp://0.0.0.0:5000")
    assert (len(found), camera.n_lost) == (11, 1)


def test_a_sound_is_no_camera(opens, streams):
    opens(streams / "a.wav")
    with pytest.raises(MediaError, match=r"\*\*\*@door/1: has no pictures; check the camera"):
        taken("rtsp://me:hunter2@door/1")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error"), r"gives no pictures \(Input/output error\)"),
        (av.FFmpegError(1094995529, "Invalid data"), r"gives no pictures \(Invalid data\)"),
        (OSError("odd"), r"gives no pictures \(odd\)"),
    ],
)
def test_a_camera_that_cannot_be_opened_or_goes(opens, streams, monkeypatch, error, said):
    opens(error)
    with pytest.raises(MediaError, match=said) as refused:
        taken("rtsp://me:hunter2@door/1")
    assert "hunter2" not in str(refused.value)
    opens(streams / "a.avi")

    def fails(*_):
        raise error

    monkeypatch.setattr(module, "decoded", fails)
    with pytest.raises(MediaError, match=said):
        taken("/dev/video0")
