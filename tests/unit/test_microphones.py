"""Microphones without one: which device is taken, how it is opened, and when it has gone."""

from __future__ import annotations

import queue
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from edge.clock import NS_PER_MS, NS_PER_S, VirtualClock
from edge.errors import ConfigurationError, MediaError
from edge.senses import devices, microphone
from edge.senses.microphone import Microphone

INT16, OVERFLOW, CONTINUE = 8, 2, 0
DEVICES = [
    {"name": "HDMI", "index": 0, "maxInputChannels": 0, "defaultSampleRate": 48_000.0},
    {"name": "USB Audio, left", "index": 1, "maxInputChannels": 6, "defaultSampleRate": 44_100.0},
    {"name": "USB Audio, right", "index": 2, "maxInputChannels": 1, "defaultSampleRate": 16_000.0},
]


class PortAudio:
    """Some devices; the default one is the last."""

    def __init__(self):
        self.opened, self.hear, self.n_closed, self.n_terminated = [], None, 0, 0
        self.error = None
        self.supported = set()

    def get_default_input_device_info(self):
        if self.error is not None:
            raise self.error
        return DEVICES[-1]

    def get_device_count(self):
        return len(DEVICES)

    def get_device_info_by_index(self, n):
        return DEVICES[n]

    def open(self, *words, stream_callback, **settings):
        if self.error is not None:
            raise self.error
        self.opened.append((words, settings))
        self.hear = stream_callback
        return self

    def is_format_supported(self, rate_hz, input_device, input_channels, input_format):
        assert input_format == INT16
        if rate_hz > 48_000:
            raise ValueError("Invalid sample rate")
        return (input_device, rate_hz, input_channels) in self.supported

    def close(self):
        self.n_closed += 1

    def terminate(self):
        self.n_terminated += 1


@pytest.fixture
def audio(monkeypatch):
    audio = PortAudio()
    fake = SimpleNamespace(
        PyAudio=lambda: audio, paInt16=INT16, paContinue=CONTINUE, paInputOverflow=OVERFLOW
    )
    monkeypatch.setitem(sys.modules, "pyaudio", fake)
    return audio


@pytest.fixture
def waits(monkeypatch):
    """For how long sound was waited for; nobody does."""
    waited = []

    class Blocks(queue.Queue):
        def get(self, block=True, timeout=None):
            waited.append(timeout)
            return super().get(block=False)

    monkeypatch.setattr(microphone.queue, "Queue", Blocks)
    return waited


@pytest.mark.parametrize(
    ("source", "index", "rate_hz", "n_channels"),
    [
        ("device:", 2, 16_000, 1),  # the machine's own
        ("device:usb audio", 1, 44_100, 2),  # the first of that name, stereo at most
        ("device:RIGHT", 2, 16_000, 1),
        ("device:usb?rate=48000", 1, 48_000, 2),
        ("device:usb?channels=4&rate=8000", 1, 8_000, 4),
        ("device:?rate=8000&", 2, 8_000, 1),
    ],
)
def test_which_device_is_opened_and_how(audio, source, index, rate_hz, n_channels):
    with Microphone("head", source, VirtualClock())._opened():
        assert audio.n_closed == audio.n_terminated == 0
    assert (audio.n_closed, audio.n_terminated) == (1, 1)
    settings = {
        "input": True,
        "input_device_index": index,
        "frames_per_buffer": round(rate_hz * 0.032),
    }
    assert audio.opened == [((rate_hz, n_channels, INT16), settings)]


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("device:hdmi", None, "microphone 'hdmi': is not there; plug it in"),
        ("device:", OSError("no default"), r"there is none \(no default\); plug one in"),
        (
            "device:left?rate=5",
            OSError("bad rate"),
            r"left: cannot be opened with 5 Hz x 2 \(bad rate\); run `edge devices`",
        ),
        ("device:left", ValueError("bad"), r"cannot be opened with 44100 Hz x 2 \(bad\)"),
    ],
)
def test_one_that_cannot_be_opened(audio, source, error, said):
    audio.error = error
    with pytest.raises(MediaError, match=said), Microphone("a", source, VirtualClock())._opened():
        pass
    assert audio.n_terminated == 1


def test_without_portaudio_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyaudio", None)
    with pytest.raises(ConfigurationError, match="microphone head: needs PyAudio; sudo apt"):
        Microphone("head", "device:", VirtualClock())
    assert devices.microphones() == []


def block(audio, n=512, *, now=10.0, heard=9.968, flags=0, level=16_384):
    data = np.full(n, level, np.int16).tobytes()
    when = {"current_time": now, "input_buffer_adc_time": heard}
    assert audio.hear(data, n, when, flags) == (None, CONTINUE)


def test_one_that_falls_silent_has_gone(audio, waits):
    """A new stream may take longer to begin."""
    silent = "microphone '': has fallen silent; plug it in again"
    with Microphone("a", "device:", VirtualClock())._opened() as chunks:
        with pytest.raises(MediaError, match=silent):
            next(chunks)
        assert waits == [4.0]
    waits.clear()
    with Microphone("a", "device:", VirtualClock())._opened() as chunks:
        block(audio)
        block(audio)
        assert sum(len(chunk.samples) for chunk in (next(chunks), next(chunks))) > 900
        with pytest.raises(MediaError, match=silent):
            next(chunks)
    assert waits == [4.0, 1.0, 1.0]
    assert audio.n_closed == 2


def test_it_ends_when_it_is_closed(audio, waits):
    found = Microphone("a", "device:", VirtualClock())
    chunks = found.chunks()
    with found._opened() as blocks:
        block(audio)
        block(audio)
        assert np.abs(next(blocks).samples[-1] - 0.5) < 0.01  # full scale is 1
        found.close()
        assert list(blocks) == []
    assert list(chunks) == []


@pytest.mark.parametrize(
    ("now_s", "heard_s", "before_ms"),
    [
        (10.0, 9.9, 100),
        (10.0, 9.0, 1000),
        (10.0, 8.9, 32),  # longer ago than it would wait: it does not know
        (10.0, 0.0, 32),  # likewise
        (0.01, 0.005, 5),
        (10.0, 10.5, 0),  # not in the future
    ],
)
def test_when_it_was_heard(audio, now_s, heard_s, before_ms):
    clock = VirtualClock(100 * NS_PER_S)
    with Microphone("a", "device:", clock)._opened() as chunks:
        block(audio, now=now_s, heard=heard_s)
        captured_ns = next(chunks).capture_ns
    assert captured_ns == 100 * NS_PER_S - before_ms * NS_PER_MS


def test_what_a_microphone_can_give_is_listed(audio):
    rates_hz = (8000, 16000, 22050, 32000, 44100, 48000)
    audio.supported = {(1, hz, n) for hz in rates_hz for n in (1, 2, 4, 6, 8)} - {(1, 44100, 6)}
    left, right = devices.microphones()
    assert (left.kind, left.source) == ("microphone", "device:USB Audio, left")
    assert left.description == "44100 Hz, up to 6 channels"
    every = [(hz, (1, 2, 4) if hz == 44100 else (1, 2, 4, 6)) for hz in rates_hz]
    assert left.formats == tuple(devices.SoundFormat(*one) for one in every)
    assert devices.shown(left) == [
        "8000, 16000, 22050, 32000 Hz with 1 or 2 or 4 or 6 channels",
        "44100 Hz with 1 or 2 or 4 channels",
        "48000 Hz with 1 or 2 or 4 or 6 channels",
    ]
    assert (right.source, right.formats) == ("device:USB Audio, right", ())
    assert devices.shown(right) == []
    assert audio.n_terminated == 1
