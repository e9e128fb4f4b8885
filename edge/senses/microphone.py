"""Microphones by PortAudio: a callback stream of any rate and channel count, as 16 kHz mono."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge import advice
from edge.clock import NS_PER_S, Clock
from edge.errors import ConfigurationError, MediaError
from edge.features.resample import Resampler
from edge.senses.live import CaptureTimes, again_and_again
from edge.senses.sound import NS_PER_SAMPLE
from edge.types import AudioChunk, Float32

log = logging.getLogger(__name__)

DEVICE = "device:"
"""How a microphone's source begins that is no recording."""
BLOCK_S = 0.032
FIRST_SILENCE_S, SILENCE_S = 4.0, 1.0
"""A stream that gives nothing for so long, not even zeros, has gone; a new one may take longer."""
MAX_BLOCKS = 300
"""About 10 s may wait for a reader that is held up."""
_FULL_SCALE = 32768.0


class Microphone:
    """An `AudioSource` that goes on when its microphone comes back."""

    def __init__(self, name: str, source: str, clock: Clock) -> None:
        """Open nothing yet.

        Args:
            name: of the sense.
            source: `device:` and a part of the device's name as `edge devices` shows it, or
                nothing for the machine's default; `?rate=48000&channels=2` where the device's own
                are not wanted.
        Raises:
            ConfigurationError: PyAudio is not installed.
        """
        try:
            import pyaudio
        except ImportError:
            raise ConfigurationError(
                f"microphone {name}",
                "needs PyAudio",
                f"sudo apt install portaudio19-dev, then {advice.install('microphone')}",
            ) from None
        self._audio = pyaudio
        self._name, self._clock = name, clock
        self._device, _, query = source.removeprefix(DEVICE).partition("?")
        options = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
        self._rate_hz, self._n_channels = (int(options.get(k, 0)) for k in ("rate", "channels"))
        self._closed = threading.Event()
        self.n_lost = 0
        """Times that sound was lost, by the device or by a reader that was held up."""

    def chunks(self) -> Iterator[AudioChunk]:
        """Sound as it is heard, about 30 ms at a time."""
        return again_and_again(self._name, self._opened, self._closed)

    def close(self) -> None:
        """Let the iterator end soon."""
        self._closed.set()

    @contextmanager
    def _opened(self) -> Iterator[Iterator[AudioChunk]]:
        blocks: queue.Queue[tuple[bytes, int, int]] = queue.Queue(MAX_BLOCKS)
        now_ns, overflow = self._clock.now_ns, self._audio.paInputOverflow
        lost = 0  # `overflow`, where the block before found no room

        def hear(data: bytes, _n: int, when: Any, flags: int) -> tuple[None, int]:
            nonlocal lost
            delay_s = max(0.0, when["current_time"] - when["input_buffer_adc_time"])
            # Some hosts do not know when the first sample was heard, and say 0.
            if when["input_buffer_adc_time"] <= 0 or delay_s > SILENCE_S:
                delay_s = BLOCK_S
            try:
                blocks.put_nowait((data, now_ns() - round(delay_s * NS_PER_S), flags | lost))
                lost = 0
            except queue.Full:
                lost = overflow
            return None, self._audio.paContinue

        audio = self._audio.PyAudio()  # looks at the devices anew
        try:
            found = self._find(audio)
            rate_hz = self._rate_hz or int(found["defaultSampleRate"])
            n_channels = self._n_channels or min(2, int(found["maxInputChannels"]))
            try:
                stream = audio.open(
                    rate_hz,
                    n_channels,
                    self._audio.paInt16,
                    input=True,
                    input_device_index=found["index"],
                    frames_per_buffer=round(rate_hz * BLOCK_S),
                    stream_callback=hear,
                )
            except (OSError, ValueError) as error:
                problem = f"cannot be opened with {rate_hz} Hz x {n_channels} ({error})"
                raise MediaError(found["name"], problem, "run `edge devices`") from None
            try:
                yield self._heard(blocks, rate_hz, n_channels)
            finally:
                stream.close()
        finally:
            audio.terminate()

    def _find(self, audio: Any) -> dict[str, Any]:
        try:
            if not self._device:
                return dict(audio.get_default_input_device_info())
            for found in input_devices(audio):
                if self._device.lower() in found["name"].lower():
                    return found
        except OSError as error:
            raise MediaError("microphone", f"there is none ({error})", "plug one in") from None
        raise MediaError(
            f"microphone {self._device!r}", "is not there", "plug it in, or see `edge devices`"
        )

    def _heard(
        self, blocks: queue.Queue[tuple[bytes, int, int]], rate_hz: int, n_channels: int
    ) -> Iterator[AudioChunk]:
        """What the callback puts, resampled. A callback that comes late moves no time."""
        resampler, times = Resampler(rate_hz, n_channels), CaptureTimes(self._clock)
        n_heard = n_given = first_ns = (
            0  # of this resampler: samples in and out, its first one's time
        )
        patience_s = FIRST_SILENCE_S

        def chunk(samples: Float32) -> AudioChunk:
            """What comes out next, when it went in: the resampler holds some back."""
            owned = np.ascontiguousarray(samples, np.float32)
            return AudioChunk(owned, first_ns + n_given * NS_PER_SAMPLE, self._name)

        while not self._closed.is_set():
            try:
                data, heard_ns, flags = blocks.get(timeout=patience_s)
            except queue.Empty:
                raise MediaError(
                    f"microphone {self._device!r}", "has fallen silent", "plug it in again"
                ) from None
            patience_s = SILENCE_S
            stored = np.frombuffer(data, np.int16).reshape(-1, n_channels)
            if flags & self._audio.paInputOverflow:
                self.n_lost += 1
                if len(rest := resampler.flush()):
                    yield chunk(rest)
                # Sound is missing: nothing goes over the hole, neither times nor a filter.
                resampler, times = Resampler(rate_hz, n_channels), CaptureTimes(self._clock)
                n_heard = n_given = 0
            since_first_ns = round(n_heard * NS_PER_S / rate_hz)
            first_ns = times.of(since_first_ns, heard_ns) - since_first_ns
            n_heard += len(stored)
            samples = resampler.push(stored.astype(np.float32) / np.float32(_FULL_SCALE))
            if len(samples):
                yield chunk(samples)
                n_given += len(samples)


def input_devices(audio: Any) -> list[dict[str, Any]]:
    """The devices that hear, as PortAudio describes them.

    Args:
        audio: a `pyaudio.PyAudio`.
    """
    every = (audio.get_device_info_by_index(n) for n in range(audio.get_device_count()))
    return [dict(found) for found in every if found["maxInputChannels"] > 0]
