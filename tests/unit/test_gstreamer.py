"""Pipelines without GStreamer: what is asked of it, whose pictures are whose, and how they end."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from edge.clock import NS_PER_MS, NS_PER_S, VirtualClock
from edge.errors import ConfigurationError, MediaError
from edge.senses.camera import Camera

SOURCE = "rtspsrc location=rtsp://door user-pw=hunter2 ! nvvidconv"
NONE, ERROR, EOS = 2**64 - 1, 2, 1
NOW_NS = 100 * NS_PER_S


class LibraryError(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.message = message


def sample(pts, width, height, data=b""):
    """A picture as a sink gives it."""
    caps = SimpleNamespace(get_value={"width": width, "height": height}.__getitem__)
    buffer = SimpleNamespace(
        pts=pts,
        get_size=lambda: len(data),
        extract_dup=lambda start, n: data[start : start + n],
    )
    every = SimpleNamespace(get_structure=[caps].__getitem__)
    return SimpleNamespace(get_buffer=lambda: buffer, get_caps=lambda: every)


class Pipeline:
    """Gives its samples, then ends as it was told to."""

    def __init__(self, samples, message):
        self.samples, self.message = list(samples), message
        self.states, self.waited_ns, self.looked_for = [], [], None

    def set_state(self, state):
        self.states.append(state)

    def get_by_name(self, name):
        return self if name == "edge" else None

    def try_pull_sample(self, timeout_ns):
        self.waited_ns.append(timeout_ns)
        return self.samples.pop(0) if self.samples else None

    def get_base_time(self):
        return 90 * NS_PER_S

    def get_bus(self):
        return self

    def timed_pop_filtered(self, timeout_ns, kinds):
        self.looked_for = timeout_ns, kinds
        return self.message


@pytest.fixture
def gstreamer(monkeypatch):
    """The module, over a library that is not there; `launch` makes its pipelines."""
    gi, repository = ModuleType("gi"), ModuleType("gi.repository")
    asked = SimpleNamespace(versions=[], pipelines=[], launch=None)
    gi.require_version = lambda *name: asked.versions.append(name)

    def launch(text):
        asked.pipelines.append(text)
        return asked.launch(text)

    repository.GLib = SimpleNamespace(Error=LibraryError)
    repository.GstApp = SimpleNamespace()
    repository.Gst = SimpleNamespace(
        init=lambda _: None,
        parse_launch=launch,
        State=SimpleNamespace(PLAYING="playing", NULL="null"),
        CLOCK_TIME_NONE=NONE,
        MessageType=SimpleNamespace(ERROR=ERROR, EOS=EOS),
    )
    monkeypatch.setitem(sys.modules, "gi", gi)
    monkeypatch.setitem(sys.modules, "gi.repository", repository)
    monkeypatch.delitem(sys.modules, "edge.senses.gstreamer", raising=False)
    module = importlib.import_module("edge.senses.gstreamer")
    yield SimpleNamespace(opened=module.opened_pipeline, asked=asked)
    del sys.modules["edge.senses.gstreamer"]


def test_its_interfaces_are_asked_for_by_version(gstreamer):
    assert gstreamer.asked.versions == [("Gst", "1.0"), ("GstApp", "1.0")]


@pytest.mark.parametrize("width", [9, 8, 11])
def test_pictures_are_the_buffer_s_without_its_padding(gstreamer, width):
    rng = np.random.default_rng(width)
    stored = rng.integers(0, 256, (8, -(-3 * width // 4) * 4), np.uint8)
    pipeline = Pipeline([sample(NONE, width, 8, stored.tobytes())], None)
    gstreamer.asked.launch = lambda _: pipeline
    with gstreamer.opened(SOURCE, VirtualClock(NOW_NS)) as captures:
        captured_ns, pixels = next(captures)
        assert captured_ns == NOW_NS  # it does not say
        expected = stored[:, : 3 * width].reshape(8, width, 3)
        np.testing.assert_array_equal(pixels(), expected)
        assert pixels().flags.owndata
        assert pipeline.states == ["playing"]
    assert pipeline.states == ["playing", "null"]


def test_the_newest_picture_is_kept_and_none_waits_for_its_time(gstreamer):
    gstreamer.asked.launch = lambda _: Pipeline([], None)
    with gstreamer.opened(SOURCE, VirtualClock(NOW_NS)):
        pass
    (text,) = gstreamer.asked.pipelines
    source, *elements = text.split(" ! ")[-4:]
    assert text.startswith(f"{SOURCE} ! ")
    assert (source, elements[0]) == ("nvvidconv", "videoconvert")
    assert elements[1] == "video/x-raw,format=RGB"
    assert set(elements[2].split()) == {
        "appsink", "name=edge", "max-buffers=1", "drop=true", "sync=false"
    }  # fmt: skip


def test_its_times_count_from_when_it_was_started(gstreamer):
    seen_ns = [9_900 * NS_PER_MS, 9_950 * NS_PER_MS]
    gstreamer.asked.launch = lambda _: Pipeline([sample(ns, 8, 8) for ns in seen_ns], None)
    with gstreamer.opened(SOURCE, VirtualClock(NOW_NS)) as captures:
        given_ns = [next(captures)[0], next(captures)[0]]
    assert given_ns == [90 * NS_PER_S + ns for ns in seen_ns]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (None, "no pictures came"),
        (SimpleNamespace(type=EOS), "it ended"),
        (
            SimpleNamespace(
                type=ERROR, parse_error=lambda: (LibraryError("bad user-pw=hunter2 here"), "more")
            ),
            r"bad user-pw=\*\*\* here",
        ),
    ],
)
def test_it_stops_and_says_why(gstreamer, message, why):
    pipeline = Pipeline([sample(NONE, 8, 8)], message)
    gstreamer.asked.launch = lambda _: pipeline
    stopped = rf"door user-pw=\*\*\* ! nvvidconv: stopped \({why}\); check camera and pipeline"
    with (
        pytest.raises(MediaError, match=stopped),
        gstreamer.opened(SOURCE, VirtualClock()) as captures,
    ):
        list(captures)
    assert pipeline.states == ["playing", "null"]
    assert pipeline.waited_ns == [10 * NS_PER_S, 2 * NS_PER_S]
    assert pipeline.looked_for == (NS_PER_S // 5, ERROR | EOS)


def test_what_is_no_pipeline_is_refused_without_its_password(gstreamer):
    def refuse(_text):
        raise LibraryError("no element user-pw=hunter2 here")

    gstreamer.asked.launch = refuse
    with (
        pytest.raises(
            MediaError, match=r": is no pipeline \(no element user-pw=\*\*\* here\); correct it"
        ) as refused,
        gstreamer.opened(SOURCE, VirtualClock()),
    ):
        pass
    assert "hunter2" not in str(refused.value)


def test_a_picture_of_an_unusable_size_ends_it(gstreamer):
    gstreamer.asked.launch = lambda _: Pipeline([sample(NONE, 1 << 20, 1 << 20)], None)
    with (
        pytest.raises(MediaError),
        gstreamer.opened(SOURCE, VirtualClock()) as captures,
    ):
        next(captures)


def test_a_camera_plays_it(gstreamer):
    gstreamer.asked.launch = lambda _: Pipeline([sample(NONE, 8, 8, bytes(192))], None)
    camera = Camera("csi", SOURCE, VirtualClock(NOW_NS), 2.0)
    frames = camera.frames()
    frame = next(frames)
    camera.close()
    assert list(frames) == []
    assert (frame.source, frame.pixels.shape, frame.capture_ns) == ("csi", (8, 8, 3), NOW_NS)


@pytest.mark.parametrize("missing", ["gi", "version"])
def test_without_it_it_is_said_what_to_install(monkeypatch, missing):
    gi = ModuleType("gi")

    def refuse(*_):
        raise ValueError("Namespace Gst not available")

    gi.require_version = refuse
    monkeypatch.setitem(sys.modules, "gi", None if missing == "gi" else gi)
    monkeypatch.delitem(sys.modules, "edge.senses.gstreamer", raising=False)
    with pytest.raises(ConfigurationError, match=r"cannot be used from Python .*apt install"):
        Camera("csi", SOURCE, VirtualClock(), 2.0)
