"""What FFmpeg finds in a media file: its tracks, whether it is whole, its frames and its sound.

Times here are on the file's own axis, in exact seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from edge.errors import MediaError
from edge.features.pixels import check_size
from edge.features.resample import Resampler
from edge.types import Float32, UInt8

Track = Literal["video", "sound"]

_US_PER_S = 1_000_000
_MISSING_END_S = Fraction(1, 2)  # how much of its stated length a whole file may lack
_HOLE_S = Fraction(1, 10)  # a longer hole in the sound is filled with silence
# Containers whose header states their length; elsewhere FFmpeg only guesses it from the bit rate.
_FORMATS_WITH_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flac"}
# Containers that FFmpeg may take a file for. Its others include playlists that lead it to the
# network, and plain text that it draws as a film.
_CONTAINERS = "mov,matroska,avi,flv,asf,mpegts,mpeg,wav,w64,aiff,flac,mp3,aac,ogg"
_EIGHT_BIT_CODECS = {"pcm_u8", "pcm_s8"}
_PCM_SCALES = {"uint8": (128, 1 << 7), "int16": (0, 1 << 15), "int32": (0, 1 << 31)}
_COPY_AGAIN = "copy it again from where it was recorded"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds."""

    tracks: frozenset[Track]
    zero_s: Fraction
    """When its first frame or sample is due."""
    end_s: Fraction
    """When its last packet ends."""


def check(path: Path, need: Collection[Track]) -> Contents:
    """Look through a whole file.

    Args:
        path: any media file that FFmpeg decodes.
        need: tracks that the file must have.
    Raises:
        MediaError: the file cannot be read, is no media file, is cut short, lacks a needed
            track, or has pictures of an unusable size or, as a sound file, no usable sound.
    """
    with _opened(path) as container:
        tracks: set[Track] = set()
        film = _film(container)
        if film is not None:
            tracks.add("video")
            _check_picture(path, film)
        if container.streams.audio:
            tracks.add("sound")
        if not tracks:
            raise MediaError(path, "has neither video nor sound", "give a video or sound file")
        for track in need:
            if track not in tracks:
                raise MediaError(path, f"has no {track} track", f"give a file with {track}")
        zero_s = Fraction(container.start_time or 0, _US_PER_S)
        end_s = _checked_end_s(path, container)
    if "video" not in tracks:
        _check_sound(path)
    return Contents(frozenset(tracks), zero_s, end_s)


def video_frames(path: Path) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """All frames in presentation order, with their times on the file's own axis."""
    with _opened(path) as container:
        stream = _film(container)
        if stream is None:
            return
        stream.thread_type = "AUTO"
        period_s = 1 / (stream.average_rate or Fraction(25))
        next_s = Fraction(0)
        try:
            for frame in container.decode(stream):
                time_s = _time_s(frame, next_s)
                yield time_s, frame
                next_s = time_s + period_s
        except av.FFmpegError as error:
            raise _broken(path, next_s, error) from None


def upright_rgb(frame: av.VideoFrame) -> UInt8:
    """A frame as [H, W, 3] RGB, turned as the camera was held: phones store the picture lying
    and say how to turn it."""
    pixels = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90)  # counterclockwise, as in rot90
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def mono_blocks(path: Path) -> Iterator[tuple[Fraction, Float32]]:
    """16 kHz mono in blocks of any length, each with the time of the very first sample."""
    resampler: Resampler | None = None
    first_s = Fraction(0)
    for block in _unbroken_blocks(path):
        if resampler is None:
            resampler = Resampler(block.rate_hz, block.samples.shape[1])
            first_s = block.time_s
        yield first_s, resampler.push(block.samples)
    if resampler is not None:
        yield first_s, resampler.flush()


def _opened(path: Path) -> AbstractContextManager[InputContainer]:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise MediaError(
            path, f"cannot be read ({error.strerror})", "check the path and its permissions"
        ) from None
    if not head:
        raise MediaError(path, "is an empty file", _COPY_AGAIN)
    try:
        return av.open(
            str(path.resolve()),
            metadata_errors="ignore",  # tags in old encodings are no reason to refuse a file
            options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
        )
    except av.FFmpegError as error:
        if head[4:8] == b"ftyp":
            raise MediaError(
                path, "is cut short: its index (moov) is missing", _COPY_AGAIN
            ) from None
        raise MediaError(
            path, f"is not a media file ({error.strerror})", "give a video or sound file"
        ) from None


def _film(container: InputContainer) -> VideoStream | None:
    """The first video track; a cover picture is none."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _checked_end_s(path: Path, container: InputContainer) -> Fraction:
    """Read every packet, which costs no decoding, to see that the file is all there.

    Returns:
        When the last packet ends, on the file's own time axis.
    """
    spans: dict[int, tuple[Fraction, Fraction]] = {}
    damaged = False
    try:
        for packet in container.demux():
            damaged |= packet.is_corrupt  # the file ends inside it
            if packet.pts is not None and packet.size:
                start_s = packet.pts * packet.time_base
                end_s = start_s + (packet.duration or 0) * packet.time_base
                first_s, last_s = spans.get(packet.stream.index, (start_s, end_s))
                spans[packet.stream.index] = min(start_s, first_s), max(end_s, last_s)
    except av.FFmpegError:
        damaged = True
    end_s = max((end for _, end in spans.values()), default=Fraction(0))
    if damaged or _lacks_end(container, spans):
        stated_s = max(Fraction(container.duration or 0, _US_PER_S), end_s)
        raise MediaError(
            path, f"is cut short after {float(end_s):.2f} of {float(stated_s):.2f} s", _COPY_AGAIN
        )
    return end_s


def _lacks_end(container: InputContainer, spans: dict[int, tuple[Fraction, Fraction]]) -> bool:
    """Whether the packets end before the length that the file's header states."""
    if container.format.name not in _FORMATS_WITH_LENGTH:
        return False
    lengths_s = {i: end_s - start_s for i, (start_s, end_s) in spans.items()}
    pairs = [
        (stream.duration * stream.time_base, lengths_s.get(stream.index, Fraction(0)))
        for stream in (*container.streams.video, *container.streams.audio)
        if stream.duration is not None and stream.time_base is not None
    ]
    if not pairs and container.duration is not None:  # Matroska states only the whole file's
        pairs = [
            (Fraction(container.duration, _US_PER_S), max(lengths_s.values(), default=Fraction(0)))
        ]
    return any(stated_s - found_s > _MISSING_END_S for stated_s, found_s in pairs)


def _check_picture(path: Path, film: VideoStream) -> None:
    try:
        check_size(film.codec_context.width, film.codec_context.height)
    except MediaError as error:
        raise MediaError(path, error.problem, error.remedy) from None


def _check_sound(path: Path) -> None:
    """Decode a whole sound file, which recordings are short enough for: a file without usable
    sound would otherwise play to its end and leave everyone wondering."""
    with _opened(path) as container:
        codec = container.streams.audio[0].codec_context.name
    if codec in _EIGHT_BIT_CODECS:
        raise MediaError(
            path, "has 8-bit samples", f"convert it: ffmpeg -i {path} -c:a pcm_s16le 16bit.wav"
        )
    n_samples, heard = 0, False
    for block in _sound_blocks(path):
        samples = block.samples
        if not np.isfinite(samples).all():
            at = n_samples + int(np.argmin(np.isfinite(samples).all(axis=1)))
            raise MediaError(
                path, f"has a value at sample {at} that is not a finite number", "export it again"
            )
        n_samples += len(samples)
        heard = heard or bool(samples.any())
    if n_samples == 0:
        raise MediaError(path, "has 0 samples", "record it again")
    if not heard:
        raise MediaError(
            path, f"is silent: all {n_samples} samples are 0", "check the microphone; record again"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    samples: Float32  # [n, channels]
    rate_hz: int
    time_s: Fraction  # of the first sample, on the file's own axis


def _unbroken_blocks(path: Path) -> Iterator[_Block]:
    """The sound as it is stored, with silence in its holes, so that it keeps the pace."""
    end_s: Fraction | None = None
    kind = (0, 0)
    for block in _sound_blocks(path):
        n_samples, n_channels = block.samples.shape
        if end_s is None:
            end_s, kind = block.time_s, (block.rate_hz, n_channels)
        if (block.rate_hz, n_channels) != kind:
            raise MediaError(
                path,
                f"changes from {kind[0]} Hz x {kind[1]} to {block.rate_hz} Hz x {n_channels} "
                f"channels after {float(end_s):.2f} s",
                "convert it to one format with ffmpeg",
            )
        if block.time_s - end_s > _HOLE_S:
            hole = round((block.time_s - end_s) * block.rate_hz)
            for start in range(0, hole, block.rate_hz):  # by the second: a hole may be hours
                n_silent = min(block.rate_hz, hole - start)
                silence = np.zeros((n_silent, n_channels), np.float32)
                yield _Block(silence, block.rate_hz, end_s + Fraction(start, block.rate_hz))
            end_s += Fraction(hole, block.rate_hz)
        yield block
        end_s += Fraction(n_samples, block.rate_hz)


def _sound_blocks(path: Path) -> Iterator[_Block]:
    """The sound as it is stored. The rate is each frame's own: AAC may double its header's."""
    time_s = Fraction(0)
    with _opened(path) as container:
        try:
            for frame in container.decode(container.streams.audio[0]):
                time_s = _time_s(frame, time_s)
                block = _Block(float_samples(frame), frame.sample_rate, time_s)
                time_s += Fraction(len(block.samples), block.rate_hz)
                yield block
        except av.FFmpegError as error:
            raise _broken(path, time_s, error) from None


def float_samples(frame: av.AudioFrame) -> Float32:
    """[n, channels], full scale is -1..1."""
    stored = frame.to_ndarray()  # [channels, n], or [1, n * channels] where interleaved
    stored = stored.T if frame.format.is_planar else stored.reshape(-1, frame.layout.nb_channels)
    zero, full_scale = _PCM_SCALES.get(stored.dtype.name, (0, 1))
    return (stored.astype(np.float32) - np.float32(zero)) / np.float32(full_scale)


def _time_s(frame: av.VideoFrame | av.AudioFrame, otherwise_s: Fraction) -> Fraction:
    """Presentation time on the file's own axis; raw streams have none."""
    if frame.pts is None or frame.time_base is None:
        return otherwise_s
    return frame.pts * frame.time_base


def _broken(path: Path, time_s: Fraction, error: av.FFmpegError) -> MediaError:
    return MediaError(
        path, f"cannot be decoded after {float(time_s):.2f} s ({error.strerror})", _COPY_AGAIN
    )
