"""A microphone of any rate: what it hears keeps its time, and nothing goes over lost sound."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from edge.clock import NS_PER_S, VirtualClock
from edge.senses.microphone import MAX_BLOCKS, Microphone
from edge.senses.sound import NS_PER_SAMPLE, end_ns

OVERFLOW = 2
BLOCK_MS, START_NS = 32, 100 * NS_PER_S


class PortAudio:
    """One device, whose callback the test calls."""

    def __init__(self, rate_hz):
        self.rate_hz, self.hear = rate_hz, None
        self.stream = SimpleNamespace(close=lambda: None)

    def get_default_input_device_info(self):
        return {"name": "m", "index": 0, "defaultSampleRate": self.rate_hz, "maxInputChannels": 1}

    def open(self, *_, stream_callback, **__):
        self.hear = stream_callback
        return self.stream

    def terminate(self):
        pass


@pytest.fixture
def opened(monkeypatch):
    def make(rate_hz):
        device, clock = PortAudio(rate_hz), VirtualClock(START_NS)
        fake = SimpleNamespace(
            PyAudio=lambda: device, paInt16=8, paContinue=0, paInputOverflow=OVERFLOW
        )
        monkeypatch.setitem(sys.modules, "pyaudio", fake)
        microphone = Microphone("mast", "device:", clock)
        stream = microphone._opened()
        return microphone, stream.__enter__(), device, clock

    return make


def hear(device, clock, samples, flags=0):
    """A block that ends now."""
    block_s = len(samples) / device.rate_hz
    clock.sleep_until(clock.now_ns() + round(block_s * NS_PER_S))
    when = {"current_time": 10.0 + block_s, "input_buffer_adc_time": 10.0}
    device.hear(samples.astype(np.int16).tobytes(), len(samples), when, flags)


def blocks(rate_hz, n, click_s=None):
    samples = np.zeros((n, rate_hz * BLOCK_MS // 1000))
    if click_s is not None:
        samples.reshape(-1)[round(click_s * rate_hz)] = 30_000
    return samples


def heard(chunks, n_samples, before=()):
    found = [*before]
    while sum(len(chunk.samples) for chunk in found) < n_samples:
        found.append(next(chunks))
    return found


@pytest.mark.parametrize("rate_hz", [48_000, 44_100, 32_000, 22_050, 16_000, 8_000])
def test_a_click_is_heard_when_it_was(opened, rate_hz):
    _, chunks, device, clock = opened(rate_hz)
    for block in blocks(rate_hz, 40, click_s=0.656):
        hear(device, clock, block)
    loudest = (0.0, 0)
    for chunk in heard(chunks, 16_000):
        at = int(np.abs(chunk.samples).argmax())
        assert end_ns(chunk) <= clock.now_ns()
        loudest = max(
            loudest, (float(abs(chunk.samples[at])), chunk.capture_ns + at * NS_PER_SAMPLE)
        )
    assert (loudest[1] - START_NS) / NS_PER_S == pytest.approx(0.656, abs=0.001)


@pytest.mark.parametrize("by", ["device", "reader"])
def test_nothing_goes_over_lost_sound(opened, by):
    """All that was heard before it is given, the rest begins anew, at its own time."""
    microphone, chunks, device, clock = opened(48_000)
    n_before = 10 if by == "device" else MAX_BLOCKS
    for block in blocks(48_000, n_before):
        hear(device, clock, block)
    if by == "device":
        clock.sleep_until(clock.now_ns() + NS_PER_S)  # it hears nothing for a second
    else:
        for block in blocks(48_000, 31):  # nobody takes anything
            hear(device, clock, block)
        taken = heard(chunks, 16_000)
    loud = blocks(48_000, 20) + 10_000
    lost_until_ns = clock.now_ns()
    for n, block in enumerate(loud):
        hear(device, clock, block, OVERFLOW if by == "device" and n == 0 else 0)
    n_samples = n_before * BLOCK_MS * 16
    found = heard(chunks, n_samples - 2, () if by == "device" else taken)
    assert sum(len(chunk.samples) for chunk in found) == pytest.approx(n_samples, abs=2)
    assert max(np.abs(chunk.samples).max() for chunk in found) == 0  # no filter joins both sides
    after = next(chunks)
    assert after.capture_ns == pytest.approx(lost_until_ns, abs=NS_PER_S / 1000)
    assert np.abs(after.samples).max() > 0.1
    assert after.capture_ns - end_ns(found[-1]) > 0.9 * NS_PER_S
    assert all(abs(b.capture_ns - end_ns(a)) < NS_PER_S / 1000 for a, b in pairwise(found))
    assert microphone.n_lost == 1
