"""What FFmpeg finds in a media file: its tracks, whether it is whole, its frames and its sound.

Files are opened as ffmpeg opens them: what is damaged is left out and counted, and what follows is
played. Times here are on the file's own axis, in exact seconds.
"""

from __future__ import annotations

import io
import logging
import math
import mmap
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from edge.errors import MediaError
from edge.features.pixels import MAX_PIXELS, check_size
from edge.features.resample import Resampler
from edge.senses.damage import Damage
from edge.senses.lengths import lacks_bytes
from edge.types import Float32, UInt8

log = logging.getLogger(__name__)

Track = Literal["video", "sound"]
Source = Path | bytes
"""A file, or what is in one."""
AnyFrame = av.VideoFrame | av.AudioFrame
AnyStream = VideoStream | AudioStream
Packet: TypeAlias = "av.Packet[Any]"

_US_PER_S = 1_000_000
_MISSING_END_S = Fraction(1, 2)  # so much less than was announced is nothing to speak of
_FLAC_FRAME_S = Fraction(1, 8)  # 4608 samples at 44.1 kHz, and some
_HOLE_S = Fraction(1, 10)  # a longer hole in the sound is filled with silence
# A clock that goes back by more than this, or on by more than that, has been set or has wrapped.
# These are ffmpeg's own bounds (dts_delta_threshold, dts_error_threshold).
_MAX_BACK_S, _MAX_AHEAD_S, _MAX_HOLE_S = Fraction(1, 10), Fraction(10), Fraction(30 * 3600)
_MAX_BLIND_S = 1  # for so long nothing is shown rather than a smeared picture
_MAX_TICKS = 1 << 62
_TS_DISCONT = 0x200  # AVFMT_TS_DISCONT, one of a format's flags
_RATE = Fraction(25)  # frames a second, where a file does not say: FFmpeg's own guess
_MAX_RATE_ERROR = Fraction(1, 10)
_MAX_PACKETS_PER_S = 2000  # of pictures and sound together; a chunk of FLAC has 4096 samples
_MAX_BAD_START = 2000  # packets that do not decode: then no other will
_MAX_ERRORS = 64  # reads that fail in a row: there is nothing more to come
# Their headers state their length; elsewhere FFmpeg only guesses it from the bit rate.
_FORMATS_WITH_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flac"}
_MATROSKA = "matroska,webm"
# Here a damaged packet is one that was lost on the air, wherever it is.
_FORMATS_OF_THE_AIR = {"mpegts", "mpeg"}
# Containers that FFmpeg may take a file for. Its others include playlists that lead it to the
# network, and plain text that it draws as a film.
_CONTAINERS = (
    "mov,matroska,avi,flv,asf,mpegts,mpeg,mpegvideo,h264,hevc,ivf,"
    "wav,w64,aiff,caf,au,flac,mp3,aac,ac3,eac3,ogg,amr"
)
# Of what clients send. A film of 8K has twice the pixels; a decoder keeps 16 frames and more.
MAX_FILM_PIXELS = 1 << 24
MAX_CHANNELS, MIN_RATE_HZ, MAX_RATE_HZ = 16, 4000, 192_000
_MAX_TRACKS = 64  # fonts are some, too
_MAX_FRAME_SAMPLES = 1 << 20  # of all channels; Monkey's Audio has half of that
_MAX_UNPACKED = 2  # Matroska may pack each packet: so many times the file's own bytes...
_FREE_UNPACKED_BYTES = 1 << 20  # ...and some
_MAX_DECODER_THREADS = 4  # each holds a frame
_SPARE_BYTES = 128 << 20  # with less, a decoder of large pictures fails for want of memory
_PCM_SCALES = {"uint8": (128, 1 << 7), "int16": (0, 1 << 15), "int32": (0, 1 << 31)}
_COPY_AGAIN = "copy it again from where it was recorded"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds."""

    file: Source
    tracks: frozenset[Track]
    first_s: dict[Track, Fraction]
    """When each track's first frame or sample is due."""
    end_s: Fraction
    """When its last packet ends."""
    n_pictures: int
    """Packets of the video track that hold one."""
    frames_per_s: Fraction
    """Of the video track, on average."""
    size: tuple[int, int]
    """Width and height of its first picture, pixels; (0, 0) where there is none."""
    ends_early: str
    """What its packets lack of the length that its header states, in words; empty if nothing."""

    @property
    def zero_s(self) -> Fraction:
        """When its first frame or sample is due."""
        return min(self.first_s.values())


def check(file: Source, need: Collection[Track] = (), max_s: float = math.inf) -> Contents:
    """Look through a whole file.

    Args:
        file: any media file that FFmpeg decodes.
        need: tracks that the file must have.
        max_s: its longest duration; it is known before anything is decoded.
    Raises:
        MediaError: the file cannot be read, is no media file, is cut short, lasts too long, lacks
            a needed track or has nothing of it that can be decoded, or has pictures of an
            unusable size.
        MemoryError: nothing is known of the file, as there is no memory to decode it.
    """
    with _opened(file) as container:
        streams = _streams(container)
        if not streams:
            raise _wrong(file, "has neither video nor sound", "give a video or sound file")
        for track in need:
            if track not in streams:
                raise _wrong(file, f"has no {track} track", f"give a file with {track}")
        sound = streams.get("sound")
        if isinstance(file, bytes) and "sound" in need and isinstance(sound, AudioStream):
            heard = sound.codec_context
            _check_sound(file, heard.channels, heard.sample_rate)
        film = streams.get("video")
        if isinstance(film, VideoStream) and film.width:  # else the first picture says
            _check_size(file, film.width, film.height)
        survey = _survey(file, container, streams, max_s)
    if survey.end_s - min(survey.starts_s.values()) > max_s:
        raise _wrong(file, f"lasts more than {max_s:g} s", "send a shorter one")
    first_s: dict[Track, Fraction] = {}
    size = 0, 0
    for track in streams:
        frame = next(_usable_frames(file, track, survey.starts_s[track], Damage("")), None)
        if frame is not None:
            first_s[track] = frame[0]
            if isinstance(frame[1], av.VideoFrame):
                size = _shown_size(file, frame[1])
    for track in streams:
        if track not in first_s:
            _require_memory()
            problem = f"has {track} of which nothing can be decoded"
            if not survey.n_packets[track]:
                problem = f"has 0 {'frames' if track == 'video' else 'samples'}"
            if track in need or not first_s:
                raise _wrong(file, problem, "record it again")
            log.warning("source=%s event=ignored track=%s problem=%s", _name(file), track, problem)
    n_pictures = survey.n_packets.get("video", 0)
    return Contents(
        *(file, frozenset(first_s), first_s, survey.end_s, n_pictures, survey.frames_per_s),
        *(size, survey.ends_early),
    )


def video_frames(
    contents: Contents, damage: Damage | None = None
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """All whole frames in presentation order, with their times on the file's own axis.

    Args:
        contents: of a file, from `check`.
        damage: counts what is left out.
    """
    if "video" in contents.tracks:
        start_s, damage = contents.first_s["video"], damage or Damage("")
        for time_s, frame in _usable_frames(contents.file, "video", start_s, damage, "AUTO"):
            assert isinstance(frame, av.VideoFrame)
            yield time_s, frame
        if contents.ends_early:
            damage.add(contents.ends_early)


def upright_rgb(frame: av.VideoFrame, shrink: int = 1) -> UInt8:
    """A frame as [H, W, 3] RGB, turned as the camera was held: phones store the picture lying
    and say how to turn it, or that it is a mirror's.

    Args:
        shrink: so many pixels of a row or a column become one.
    """
    if shrink > 1:
        size = max(1, frame.width // shrink), max(1, frame.height // shrink)
        frame = frame.reformat(*size, format="rgb24", interpolation=Interpolation.AREA)
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return np.ascontiguousarray(pixels)
    # Where the unit steps along a row and down a column go: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int).tolist()
    along_x, along_y = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):  # nearer to a quarter turn
        pixels, along_x, along_y = pixels.transpose(1, 0, 2), c, b
    if along_x < 0:
        pixels = pixels[:, ::-1]
    if along_y < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def mono_blocks(
    contents: Contents, damage: Damage | None = None
) -> Iterator[tuple[Fraction, Float32]]:
    """16 kHz mono in blocks of any length, each with the time of the very first sample.

    Args:
        contents: of a file, from `check`.
        damage: counts what is left out.
    """
    if "sound" not in contents.tracks:
        return
    first_s, damage = contents.first_s["sound"], damage or Damage("")
    resampler, kind = None, (0, 0)
    for block in _unbroken_blocks(contents.file, first_s, damage):
        if (block.rate_hz, block.samples.shape[1]) != kind:  # at the start, or where it changes
            if resampler is not None:
                yield first_s, resampler.flush()
            kind = block.rate_hz, block.samples.shape[1]
            resampler = Resampler(*kind)
        assert resampler is not None
        yield first_s, resampler.push(block.samples)
    if resampler is not None:
        yield first_s, resampler.flush()
    if contents.ends_early:
        damage.add(contents.ends_early)


def refuse_silence(contents: Contents) -> None:
    """Decode a whole sound file, which recordings are short enough for: a file without usable
    sound would otherwise play to its end and leave everyone wondering. A film may be silent.

    Raises:
        MediaError: all samples are 0, or one is not a finite number.
    """
    if "video" in contents.tracks:
        return
    file, n_samples, heard = contents.file, 0, False
    for block in _sound_blocks(file, contents.first_s["sound"], Damage("")):
        samples = block.samples
        if not np.isfinite(samples).all():
            at = n_samples + int(np.argmin(np.isfinite(samples).all(axis=1)))
            problem = f"has a value at sample {at} that is not a finite number"
            raise _wrong(file, problem, "export it again")
        n_samples += len(samples)
        heard = heard or bool(samples.any())
    if not heard:
        raise _wrong(
            file, f"is silent: all {n_samples} samples are 0", "check the microphone; record again"
        )


def decoded(packet: Packet, damage: Damage) -> list[AnyFrame]:
    """The frames that a packet completes; none where it cannot be decoded.

    Args:
        packet: with data in it.
        damage: counts it if it is damaged.
    """
    try:
        frames = packet.decode()
    except av.FFmpegError as error:
        damage.add(f"a packet cannot be decoded ({error.strerror})")
        return []
    if packet.is_corrupt:
        damage.add("a packet is not whole")
    return frames  # type: ignore[return-value]  # of a video or a sound stream


def _name(file: Source) -> str:
    return "media" if isinstance(file, bytes) else file.name


def _wrong(file: Source, problem: str, remedy: str) -> MediaError:
    return MediaError("media" if isinstance(file, bytes) else file, problem, remedy)


def _require_memory() -> None:
    """Look before a file is called wrong: a decoder without memory says that the file is invalid.

    Raises:
        MemoryError: there is too little.
    """
    try:
        mmap.mmap(-1, _SPARE_BYTES).close()  # none of its pages is made
    except OSError as error:
        raise MemoryError from error


def _opened(file: Source) -> InputContainer:
    head = _head(file)
    if not head:
        raise _wrong(file, "is an empty file", _COPY_AGAIN)
    try:
        return av.open(
            io.BytesIO(file) if isinstance(file, bytes) else str(file.resolve()),
            "r",
            metadata_errors="ignore",  # tags in old encodings are no reason to refuse a file
            options={
                "format_whitelist": _CONTAINERS,
                # What names other files, or addresses, is not followed.
                "protocol_whitelist": "none" if isinstance(file, bytes) else "file",
                **_bounds(file),  # of what is decoded to find out what it is
                **({"max_streams": str(_MAX_TRACKS)} if isinstance(file, bytes) else {}),
            },
        )
    except (av.FFmpegError, ValueError) as error:
        _require_memory()
        if head[4:8] == b"ftyp":
            problem = "is cut short: its index (moov) is missing"
            raise _wrong(file, problem, _COPY_AGAIN) from None
        said = getattr(error, "strerror", None) or error
        raise _wrong(file, f"is not a media file ({said})", "give a video or sound file") from None


def _bounds(file: Source) -> dict[str, str]:
    """Of a decoder."""
    max_pixels = MAX_FILM_PIXELS if isinstance(file, bytes) else MAX_PIXELS
    return {"max_pixels": str(max_pixels), "max_samples": str(_MAX_FRAME_SAMPLES)}


def _counts_frames(file: Source) -> bool:
    """Whether an MP3's first frame says how many follow; else its length is FFmpeg's guess."""
    head = _head(file, 1 << 16)
    return b"Xing" in head or b"Info" in head


def _head(file: Source, n_bytes: int = 12) -> bytes:
    if isinstance(file, bytes):
        return file[:n_bytes]
    try:
        with file.open("rb") as opened:
            return opened.read(n_bytes)
    except OSError as error:
        raise MediaError(
            file, f"cannot be read ({error.strerror})", "check the path and its permissions"
        ) from None


def _streams(container: InputContainer) -> dict[Track, AnyStream]:
    """The first video track and the first of sound that FFmpeg has a decoder for; a cover picture
    or a preview is no video."""
    found: dict[Track, AnyStream] = {}
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    films = (s for s in container.streams.video if not s.disposition & pictures)
    film = next((s for s in films if s.codec_context is not None), None)
    sound = next((s for s in container.streams.audio if s.codec_context is not None), None)
    if film is not None:
        found["video"] = film
    if sound is not None:
        found["sound"] = sound
    return found


def _packets(
    file: Source, container: InputContainer, streams: Collection[AnyStream], damage: Damage
) -> Iterator[Packet]:
    """All packets with data, as they lie in the file, their times straightened.

    Raises:
        MediaError: there is more in them than a file of a client may hold.
    """
    line = _Line(container, streams)
    indices = {stream.index for stream in streams}
    n_errors = n_bytes = 0
    while n_errors < _MAX_ERRORS:
        try:
            for packet in container.demux():  # what is in other tracks is unpacked, too
                n_errors, n_bytes = 0, n_bytes + packet.size
                if (
                    isinstance(file, bytes)
                    and n_bytes > _MAX_UNPACKED * len(file) + _FREE_UNPACKED_BYTES
                ):
                    problem = f"unpacks to more than {_MAX_UNPACKED} times what it has"
                    raise _wrong(file, problem, "encode it again")
                if packet.size and packet.stream_index in indices:  # AVI has empty ones
                    line.straighten(packet)
                    yield packet
            return
        except av.FFmpegError as error:  # reading goes on behind what is damaged
            damage.add(f"cannot be read ({error.strerror})")
            n_errors += 1


class _Line:
    """Makes one line of a file's times: a recorder's clock may have been set, or have wrapped.

    Source: what ffmpeg does by `-dts_delta_threshold` and `-dts_error_threshold`.
    """

    def __init__(self, container: InputContainer, streams: Collection[AnyStream]) -> None:
        ahead_s = _MAX_AHEAD_S if container.format.flags & _TS_DISCONT else _MAX_HOLE_S
        self._shift_s = Fraction(0)
        # By stream, in its own ticks: files have millions of packets.
        self._bases_s = {s.index: s.time_base for s in streams if s.time_base}
        self._bounds = {
            index: (-int(_MAX_BACK_S / base_s), int(ahead_s / base_s), max(1, int(1 / base_s)))
            for index, base_s in self._bases_s.items()
        }
        self._shifts = dict.fromkeys(self._bases_s, 0)
        self._last: dict[int, tuple[int, int]] = {}
        """When its newest packet begins and ends."""

    def straighten(self, packet: Packet) -> None:
        """Shift a packet's times to where they belong."""
        index, dts = packet.stream_index, packet.dts
        if index not in self._bases_s:
            return
        if dts is not None:
            begin = dts + self._shifts[index]
            last, end = self._last.get(index, (begin, begin))
            back, ahead, second = self._bounds[index]
            if not back <= begin - last <= ahead:
                self._shift_s += (end - begin) * self._bases_s[index]
                self._shifts = {i: round(self._shift_s / s) for i, s in self._bases_s.items()}
                begin = end
            self._last[index] = begin, begin + min(packet.duration or 0, second)
        if self._shift_s:
            shift = self._shifts[index]
            packet.pts, packet.dts = _shifted(packet.pts, shift), _shifted(dts, shift)


def _shifted(time: int | None, ticks: int) -> int | None:
    if time is None or abs(time + ticks) > _MAX_TICKS:
        return None
    return time + ticks


def _frames(
    file: Source, track: Track, next_s: Fraction, damage: Damage, threads: str = "SLICE"
) -> Iterator[tuple[Fraction, AnyFrame]]:
    """All frames of a track that decode, with their times.

    Args:
        next_s: the first frame's time, if it has none of its own.
    """
    with _opened(file) as container:
        streams = _streams(container)
        if track not in streams:
            return
        stream = streams[track]
        if isinstance(stream, VideoStream):
            stream.thread_type = threads
        if isinstance(file, bytes):
            n_threads = min(_MAX_DECODER_THREADS, len(os.sched_getaffinity(0)))
            stream.codec_context.thread_count = n_threads
        stream.codec_context.options = _bounds(file)
        times, n_frames = _Times(next_s, stream), 0
        for packet in _packets(file, container, streams.values(), damage):
            if packet.stream_index == stream.index:
                for frame in decoded(packet, damage):
                    n_frames += 1
                    yield times.of(frame), frame
                if not n_frames and damage.n > _MAX_BAD_START:
                    return
        try:
            left = stream.decode(None)
        except av.FFmpegError as error:
            damage.add(f"the end cannot be decoded ({error.strerror})")
            return
        for frame in left:
            yield times.of(frame), frame


class _Times:
    """Tells when a frame is due: by its presentation time, or by its decoding time where those go
    back more often, or where it is missing.

    Source: FFmpeg's `guess_correct_pts` in libavcodec/decode.c.
    """

    def __init__(self, next_s: Fraction, stream: AnyStream) -> None:
        rate = stream.average_rate if isinstance(stream, VideoStream) else None
        self._next_s, self._period_s = next_s, 1 / (rate or _RATE)
        self._base_s = stream.time_base
        self._last_s: Fraction | None = None
        self._last: list[int | None] = [None, None]
        self._n_back = [0, 0]

    def of(self, frame: AnyFrame) -> Fraction:
        """Seconds on the file's axis; never earlier than the frame before."""
        times = (frame.pts, frame.dts)
        for which, time in enumerate(times):
            if time is not None:
                last = self._last[which]
                self._n_back[which] += last is not None and time <= last
                self._last[which] = time
        time = frame.dts if frame.pts is None or self._n_back[0] > self._n_back[1] else frame.pts
        time_s = self._next_s
        if time is not None and self._base_s:  # a frame from the decoder's end has none itself
            time_s = time * self._base_s
        if self._last_s is not None:
            time_s = max(time_s, self._last_s)
            self._period_s = time_s - self._last_s or self._period_s
        self._last_s = time_s
        if isinstance(frame, av.AudioFrame):
            self._period_s = Fraction(frame.samples, frame.sample_rate or 1)
        self._next_s = time_s + self._period_s
        return time_s


def _usable_frames(
    file: Source, track: Track, next_s: Fraction, damage: Damage, threads: str = "SLICE"
) -> Iterator[tuple[Fraction, AnyFrame]]:
    """Frames that nothing is missing of."""
    whole = WholePictures(damage)
    for time_s, frame in _frames(file, track, next_s, damage, threads):
        if isinstance(frame, av.VideoFrame):
            if whole.has(frame, time_s):
                yield time_s, frame
        elif frame.is_corrupt or frame.sample_rate < 1:
            damage.add("a frame is damaged")
        elif frame.samples:
            yield time_s, frame


class WholePictures:
    """Tells frames of a usable size that nothing is missing of. A smeared one is better than none
    where nothing else has come for a while."""

    def __init__(self, damage: Damage) -> None:
        """Count in `damage` what is left out."""
        self._damage = damage
        self._shown_s: Fraction | None = None

    def has(self, frame: av.VideoFrame, time_s: Fraction) -> bool:
        """Whether a frame is to be shown."""
        try:
            check_size(frame.width, frame.height)
        except MediaError as error:
            self._damage.add(f"a frame {error.problem}")
            return False
        if frame.is_corrupt:
            self._damage.add("a frame is damaged")
            if self._shown_s is None:
                self._shown_s = time_s
            if time_s - self._shown_s < _MAX_BLIND_S:
                return False
        self._shown_s = time_s
        return True


def _shown_size(file: Source, frame: av.VideoFrame) -> tuple[int, int]:
    try:
        pixels = upright_rgb(frame)
    except (av.FFmpegError, ValueError) as error:
        _require_memory()
        problem = f"has pictures that cannot be shown ({frame.format.name}: {error})"
        raise _wrong(file, problem, "convert it with ffmpeg to yuv420p") from None
    return pixels.shape[1], pixels.shape[0]


@dataclass(slots=True)
class _Survey:
    """What all packets say."""

    starts_s: dict[Track, Fraction]
    """When each track begins, as well as its packets tell: the first ones may have no times."""
    n_packets: dict[Track, int]
    end_s: Fraction
    frames_per_s: Fraction
    ends_early: str


def _survey(
    file: Source, container: InputContainer, streams: dict[Track, AnyStream], max_s: float
) -> _Survey:
    """Read every packet, which costs no decoding, to see that the file is all there."""
    damage = Damage("")
    tracks = {stream.index: track for track, stream in streams.items()}
    n_packets: dict[Track, int] = dict.fromkeys(streams, 0)
    n_untimed: dict[Track, int] = dict.fromkeys(streams, 0)
    ticks: dict[Track, tuple[int, int]] = {}
    last_is_damaged = False
    for packet in _packets(file, container, streams.values(), damage):
        track = tracks[packet.stream_index]
        n_packets[track] += not packet.is_discard
        if sum(n_packets.values()) > max_s * _MAX_PACKETS_PER_S:
            raise _wrong(file, f"has more packets than {max_s:g} s need", "send a shorter one")
        last_is_damaged = packet.is_corrupt
        if packet.is_corrupt:
            damage.add("a packet is not whole")
        begin = packet.pts if packet.pts is not None else packet.dts
        if begin is None:
            n_untimed[track] += track not in ticks
            continue
        first, last = ticks.get(track, (begin, begin))
        ticks[track] = min(first, begin), max(last, begin + (packet.duration or 0))
    spans = {
        track: (first * base_s, last * base_s)
        for track, (first, last) in ticks.items()
        if (base_s := streams[track].time_base)
    }
    end_s = max((end for _, end in spans.values()), default=Fraction(0))
    begin_s = min((begin for begin, _ in spans.values()), default=Fraction(0))
    stated_s = Fraction(container.duration or 0, _US_PER_S)
    if container.format.name != _MATROSKA or stated_s < begin_s:
        stated_s += begin_s  # Matroska's mostly counts from time 0
    kind = container.format.name
    has_length = kind in _FORMATS_WITH_LENGTH or (kind == "mp3" and _counts_frames(file))
    missing_s = stated_s - end_s if has_length else Fraction(0)
    # Where the bytes do not tell, a packet may that the file ends in; and FLAC has a length. But a
    # file may also lack what its recorder has announced, or be damaged where it ends.
    is_cut = lacks_bytes(file)
    if is_cut is None and container.format.name not in _FORMATS_OF_THE_AIR:
        is_cut = last_is_damaged or (container.format.name == "flac" and missing_s > _FLAC_FRAME_S)
    if is_cut:
        problem = f"is cut short after {float(end_s):.2f} of {float(max(stated_s, end_s)):.2f} s"
        raise _wrong(file, problem, _COPY_AGAIN)
    ends_early = ""
    if missing_s > _MISSING_END_S:
        ends_early = f"ends after {float(end_s):.2f} of {float(stated_s):.2f} s"
        damage.add(ends_early)
    if damage.n:
        log.warning("source=%s event=damaged n=%d problem=%s", _name(file), damage.n, damage.last)
    rate = _rate(
        streams.get("video"),
        n_packets.get("video", 0) - n_untimed.get("video", 0),
        spans.get("video"),
    )
    starts_s = {track: spans[track][0] if track in spans else Fraction(0) for track in streams}
    untimed_s = n_untimed.get("video", 0) / rate
    if "video" in spans:  # the first ones may have no times
        starts_s["video"] -= untimed_s
    return _Survey(starts_s, n_packets, max(end_s, untimed_s), rate, ends_early)


def _rate(film: AnyStream | None, n_timed: int, span: tuple[Fraction, Fraction] | None) -> Fraction:
    """Frames a second: as stated, if about so many were found. H.264 in AVI may state fields."""
    if not isinstance(film, VideoStream):
        return _RATE
    stated = [rate for rate in (film.average_rate, film.guessed_rate) if rate]
    if span is None or span[1] <= span[0] or n_timed < 1:
        return stated[0] if stated else _RATE
    found = n_timed / (span[1] - span[0])
    return next((rate for rate in stated if abs(rate - found) < _MAX_RATE_ERROR * rate), found)


def _check_sound(file: Source, n_channels: int, rate_hz: int) -> None:
    """Refuse sound that nobody sends: a single frame of it may take gigabytes as 16 kHz."""
    if n_channels > MAX_CHANNELS:
        problem = f"has sound of {n_channels} channels"
        raise _wrong(file, problem, f"send at most {MAX_CHANNELS}, best one")
    if rate_hz and not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        problem = f"has sound of {rate_hz} Hz"
        raise _wrong(file, problem, f"send {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")


def _check_size(file: Source, width: int, height: int) -> None:
    try:
        check_size(width, height)
        if isinstance(file, bytes) and width * height > MAX_FILM_PIXELS:
            remedy = f"scale it down to at most {MAX_FILM_PIXELS} pixels"
            raise MediaError("video", f"is {width}x{height} pixels", remedy)
    except MediaError as error:
        raise _wrong(file, error.problem, error.remedy) from None


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    samples: Float32  # [n, channels]
    rate_hz: int
    time_s: Fraction  # of the first sample, on the file's own axis


def _unbroken_blocks(file: Source, first_s: Fraction, damage: Damage) -> Iterator[_Block]:
    """The sound as it is stored, with silence in its holes, so that it keeps the pace."""
    end_s = first_s
    for block in _sound_blocks(file, first_s, damage):
        n_samples, n_channels = block.samples.shape
        if block.time_s - end_s > _HOLE_S:
            damage.add(f"{float(block.time_s - end_s):.2f} s of sound are missing")
            hole = round((block.time_s - end_s) * block.rate_hz)
            for start in range(0, hole, block.rate_hz):  # by the second: a hole may be hours
                n_silent = min(block.rate_hz, hole - start)
                silence = np.zeros((n_silent, n_channels), np.float32)
                yield _Block(silence, block.rate_hz, end_s + Fraction(start, block.rate_hz))
            end_s += Fraction(hole, block.rate_hz)
        yield block
        end_s += Fraction(n_samples, block.rate_hz)


def _sound_blocks(file: Source, first_s: Fraction, damage: Damage) -> Iterator[_Block]:
    """The sound as it is stored. The rate is each frame's own: AAC may double its header's."""
    for time_s, frame in _usable_frames(file, "sound", first_s, damage):
        if isinstance(frame, av.AudioFrame):
            if isinstance(file, bytes):
                _check_sound(file, frame.layout.nb_channels, frame.sample_rate)
            yield _Block(float_samples(frame), frame.sample_rate, time_s)


def float_samples(frame: av.AudioFrame) -> Float32:
    """[n, channels], full scale is -1..1."""
    stored = frame.to_ndarray()  # [channels, n], or [1, n * channels] where interleaved
    stored = stored.T if frame.format.is_planar else stored.reshape(-1, frame.layout.nb_channels)
    zero, full_scale = _PCM_SCALES.get(stored.dtype.name, (0, 1))
    return (stored.astype(np.float32) - np.float32(zero)) / np.float32(full_scale)
