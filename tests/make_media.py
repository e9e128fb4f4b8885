"""Small media files made on the spot, for tests."""

from __future__ import annotations

import re
import struct
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

MILLISECONDS = Fraction(1, 1000)


def write_wav(path: Path, samples: NDArray[np.integer], rate_hz: int = 16_000) -> Path:
    """Integer PCM [n] or [n, channels]; its dtype gives the sample width."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate_hz)
        file.writeframes(samples.tobytes())
    return path


def write_float_wav(path: Path, samples: NDArray[np.float32], rate_hz: int = 16_000) -> Path:
    """float32 PCM [n], which the standard library does not write."""
    data = samples.astype("<f4").tobytes()
    layout = struct.pack("<IHHIIHH", 16, 3, 1, rate_hz, 4 * rate_hz, 4, 32)
    header = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + layout
    path.write_bytes(header + b"data" + struct.pack("<I", len(data)) + data)
    return path


def write_video(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    times_ms: Sequence[int],
    pixel_format: str = "bgr0",
    codec: str = "ffv1",
) -> Path:
    """RGB frames [H, W, 3] shown at the given times."""
    height, width, _ = frames[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.time_base = stream.codec_context.time_base = MILLISECONDS
        for pixels, time_ms in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time_ms, MILLISECONDS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(
    path: Path,
    blocks: Sequence[tuple[int, NDArray[np.int16]]],
    rate_hz: int,
    codec: str = "pcm_s16le",
    sample_format: str = "s16",
) -> Path:
    """Mono blocks, each with the index of its first sample."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono", format=sample_format)
        to_format = av.AudioResampler(format=sample_format, layout="mono", rate=rate_hz)
        for start, samples in blocks:
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate_hz, start
            frame.time_base = Fraction(1, rate_hz)
            for converted in to_format.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def write_film(
    path: Path, frames: Sequence[NDArray[np.uint8]], samples: NDArray[np.int16], late_s: Fraction
) -> Path:
    """Ten RGB frames [H, W, 3] a second, and 16 kHz sound that begins later than they do."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=10)
        video.height, video.width, _ = frames[0].shape
        video.pix_fmt = "bgr0"
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(video.encode(frame))
        heard = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        heard.sample_rate, heard.time_base = 16_000, Fraction(1, 16_000)
        heard.pts = round(16_000 * late_s)
        container.mux(sound.encode(heard))
        container.mux([*video.encode(None), *sound.encode(None)])
    return path


def damage_avi(path: Path, number: int) -> Path:
    """A file of `write_video` whose frame of this number is zeros, in JPEG and AVI."""
    data = bytearray(path.read_bytes())
    frame = list(re.finditer(rb"00dc(?!\0{4})(....)", data, re.DOTALL))[number]
    n_bytes = int.from_bytes(frame[1], "little")
    data[frame.end() : frame.end() + n_bytes] = bytes(n_bytes)
    path.write_bytes(data)
    return path


def copy_streams(source: Path, target: Path, kinds: Sequence[str], **options: str) -> Path:
    """Some streams of a file, as they are, in another file."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        chosen = [stream for stream in old.streams if stream.type in kinds]
        copies = {stream.index: new.add_stream_from_template(stream) for stream in chosen}
        for packet in old.demux(chosen):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    return target


QUARTER_TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
"""Clockwise, as a track header's matrix has them."""


def turn_mp4(source: Path, target: Path, turn: tuple[int, int, int, int]) -> Path:
    """An MP4 that says how it is to be shown: x' = a x + c y and y' = b x + d y, in the matrix of
    its track header."""
    a, b, c, d = (factor * (1 << 16) for factor in turn)
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd")
    at = header + (44 if data[header + 4] == 0 else 56)  # by the header's version
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target
