"""Pictures and sounds in memory, as clients send them: decoded by FFmpeg from named formats only.

FFmpeg is told the format, so that nobody can make it open a playlist, and with it other files.
"""

from __future__ import annotations

import base64
import binascii
import io
import re

import av
import numpy as np
from av.container import InputContainer

from edge.errors import MediaError, ProtocolError
from edge.features.pixels import check_size
from edge.features.resample import resample
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses.media import float_samples
from edge.types import Float32, Picture, Sound

MAX_SOUND_S = 30
"""Of one clip: a longer one is no question."""
_PICTURES = {b"\xff\xd8\xff": "jpeg_pipe", b"\x89PNG\r\n": "png_pipe"}
_SOUNDS = {b"RIFF": "wav", b"ID3": "mp3", b"\xff\xfb": "mp3", b"\xff\xf3": "mp3"}


def from_base64(field: str, text: str) -> bytes:
    """What the text encodes.

    Raises:
        ProtocolError: it is not base64; the error's thing is `field`.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # some encoders break lines
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(field, f"is not base64 ({error})", "encode the bytes again") from None


def from_data_url(field: str, url: str, what: str = "picture") -> bytes:
    """What a data: URL holds. Others would be fetched, and nothing here goes to the network.

    Args:
        what: it should hold, for the error.
    Raises:
        ProtocolError: it is no such URL.
    """
    head, found, text = url.partition(",")
    if not found or not re.fullmatch(r"data:[^,]*;base64", head, re.IGNORECASE):
        problem = f"is {url[:40]!r}, not data:...;base64,...: the service fetches nothing"
        remedy = f"send the {what} itself"
        raise ProtocolError(field, problem, remedy)
    return from_base64(field, text)


def decode_picture(data: bytes) -> Picture:
    """A JPEG or PNG file.

    Raises:
        MediaError: it is neither, or damaged, or of an unusable size.
    """
    with _opened("picture", data, _PICTURES, "JPEG or PNG") as container:
        try:
            stream = container.streams.video[0]
            if stream.width:  # else decoding says what is wrong
                check_size(stream.width, stream.height)
            frame = next(container.decode(stream))
        except (av.FFmpegError, StopIteration, IndexError) as error:
            raise _damaged("picture", error) from None
        check_size(frame.width, frame.height)
        pixels = frame.to_ndarray(format="rgb24")
    return Picture(np.ascontiguousarray(pixels).tobytes(), pixels.shape[1], pixels.shape[0])


def decode_sound(data: bytes) -> Sound:
    """A WAV or MP3 file, of at most `MAX_SOUND_S` seconds.

    Raises:
        MediaError: it is neither, or damaged, or too long.
    """
    blocks: list[Float32] = []
    n_samples, rate_hz = 0, SAMPLE_RATE_HZ
    with _opened("sound", data, _SOUNDS, "WAV or MP3") as container:
        try:
            for frame in container.decode(container.streams.audio[0]):
                rate_hz = frame.sample_rate
                blocks.append(float_samples(frame))
                n_samples += len(blocks[-1])
                check_length(n_samples, rate_hz)
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise _damaged("sound", error) from None
    if not n_samples:
        raise MediaError("sound", "is empty", "send one with samples")
    return sound_of(resample(np.concatenate(blocks), rate_hz))


def pcm_samples(data: bytes) -> Float32:
    """PCM of 16 bits, little-endian, as float32 [n, 1], -1..1.

    Raises:
        ProtocolError: half a sample is left.
    """
    if len(data) % 2:
        raise ProtocolError("audio", f"has {len(data)} bytes", "send whole samples of 2 bytes")
    samples = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(1 << 15)
    return samples[:, None]


def sound_of(samples: Float32) -> Sound:
    """Samples [n], 16 kHz, as a message has them.

    Raises:
        MediaError: they are too few or too many, or one of them is not a finite number.
    """
    check_length(len(samples), SAMPLE_RATE_HZ)
    if len(samples) < SAMPLE_RATE_HZ // 10:
        n_ms = len(samples) * 1000 // SAMPLE_RATE_HZ
        raise MediaError("sound", f"lasts {n_ms} ms", "send at least 100 ms")
    if not np.isfinite(samples).all():
        raise MediaError("sound", "has a sample that is not finite", "encode it again")
    return Sound(np.ascontiguousarray(samples, np.float32).tobytes())


def check_length(n_samples: int, rate_hz: int) -> None:
    """Refuse what is too long.

    Raises:
        MediaError: it lasts more than `MAX_SOUND_S` seconds.
    """
    if n_samples > MAX_SOUND_S * rate_hz:
        raise MediaError("sound", f"lasts more than {MAX_SOUND_S} s", "send a shorter clip")


def _opened(what: str, data: bytes, formats: dict[bytes, str], names: str) -> InputContainer:
    name = next((name for magic, name in formats.items() if data.startswith(magic)), None)
    if name is None:
        raise MediaError(what, f"begins with {data[:8]!r}", f"send {names}")
    try:
        return av.open(io.BytesIO(data), "r", format=name, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise _damaged(what, error) from None


def _damaged(what: str, error: Exception) -> MediaError:
    line = " ".join(str(error).split()).replace(";", ",")[:100]
    return MediaError(what, f"cannot be decoded ({line})", "encode it again")
