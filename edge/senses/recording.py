"""A media file as a camera and a microphone: it plays at its own pace.

`Recording.open` looks through the whole file, so that whatever is wrong with it is said before
anything starts. Video and sound are then two sources for two threads; each opens the file for
itself and shares nothing with the other but the clock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np

from edge.clock import NS_PER_MS, NS_PER_S, Clock
from edge.errors import MediaError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses import media
from edge.senses.damage import Damage
from edge.senses.live import FIRST_PAUSE_S, MAX_PAUSE_S
from edge.types import AudioChunk, Float32, Frame

log = logging.getLogger(__name__)

T = TypeVar("T")
CHUNK_SAMPLES = 1600
"""100 ms: what one chunk of sound holds."""

_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ
_GRAIN_NS = NS_PER_MS  # Matroska rounds times to 1 ms: a frame that much early is on time


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that has been found playable."""

    path: Path
    contents: media.Contents

    @classmethod
    def open(cls, path: Path, need: Collection[media.Track] = ()) -> Recording:
        """Check a file.

        Args:
            path: any media file that FFmpeg decodes: MP4, Matroska, WAV, FLAC and others.
            need: tracks that the file must have.
        Raises:
            MediaError: the file cannot be read or decoded, is cut short, lacks a needed track,
                or is a sound file without usable sound.
        """
        contents = media.check(path, need)
        media.refuse_silence(contents)
        return cls(path, contents)

    @property
    def tracks(self) -> frozenset[media.Track]:
        """What can be played of it."""
        return self.contents.tracks

    @property
    def duration_ns(self) -> int:
        """From the first frame or sample to the end of the last."""
        return round((self.contents.end_s - self.contents.zero_s) * NS_PER_S)

    def video(self, clock: Clock, start_ns: int, fps: float) -> RecordedVideo | None:
        """Its pictures as a source, None where it has none.

        Args:
            clock: what the source sleeps on.
            start_ns: the file's time 0 on the clock, ns.
            fps: most frames to give a second, above 0.
        Raises:
            ValueError: `fps` is not above 0.
        """
        if not fps > 0:
            raise ValueError(f"fps is {fps}; it must be above 0")
        if "video" not in self.tracks:
            return None
        return RecordedVideo(self, clock, start_ns, fps)

    def sound(self, clock: Clock, start_ns: int) -> RecordedSound | None:
        """Its sound as a source, None where it has none; arguments as for `video`."""
        if "sound" not in self.tracks:
            return None
        return RecordedSound(self, clock, start_ns)


class RecordedVideo:
    """The frames of a file: a `FrameSource`. Made by `Recording.video`."""

    def __init__(self, recording: Recording, clock: Clock, start_ns: int, fps: float) -> None:
        self._recording, self._clock, self._start_ns, self._fps = recording, clock, start_ns, fps
        self._closed = threading.Event()
        self.damage = Damage(recording.path.name)

    @property
    def n_lost(self) -> int:
        """Damaged packets and frames that were left out."""
        return self.damage.n

    def frames(self) -> Iterator[Frame]:
        """Frames at their capture times, upright, at most `fps` a second: the first at or after
        each 1/fps instant. Frame ids count all whole frames of the file.
        """
        next_instant = 0
        name, contents = self._recording.path.name, self._recording.contents
        for frame_id, (time_s, frame) in enumerate(media.video_frames(contents, self.damage)):
            since_zero_ns = round((time_s - contents.zero_s) * NS_PER_S)
            instant = (since_zero_ns + _GRAIN_NS) * self._fps / NS_PER_S
            taken = instant >= next_instant
            # Converted before the wait, to be ready on time. Frames that are not taken are waited
            # for too: that spreads the decoding, and lets `close` act within one frame.
            pixels = media.upright_rgb(frame) if taken else None
            capture_ns = self._start_ns + since_zero_ns
            self._clock.sleep_until(capture_ns)
            if self._closed.is_set():
                return
            if pixels is not None:
                next_instant = int(instant) + 1
                yield Frame(pixels, capture_ns, frame_id, name)

    def close(self) -> None:
        """Let the iterator end at the file's next frame."""
        self._closed.set()


class RecordedSound:
    """The sound of a file as 16 kHz mono: an `AudioSource`. Made by `Recording.sound`."""

    def __init__(self, recording: Recording, clock: Clock, start_ns: int) -> None:
        self._recording, self._clock, self._start_ns = recording, clock, start_ns
        self._closed = threading.Event()
        self.damage = Damage(recording.path.name)

    @property
    def n_lost(self) -> int:
        """Damaged packets and frames that were left out."""
        return self.damage.n

    def chunks(self) -> Iterator[AudioChunk]:
        """Chunks of `CHUNK_SAMPLES`, the last one shorter, each when its end has been heard."""
        contents = self._recording.contents
        for time_s, samples in _chunked(media.mono_blocks(contents, self.damage)):
            capture_ns = self._start_ns + round((time_s - contents.zero_s) * NS_PER_S)
            self._clock.sleep_until(capture_ns + len(samples) * _NS_PER_SAMPLE)
            if self._closed.is_set():
                return
            yield AudioChunk(samples, capture_ns, self._recording.path.name)

    def close(self) -> None:
        """Let the iterator end at the file's next chunk."""
        self._closed.set()


class Repeated:
    """A recording that begins again whenever it ends: a `FrameSource` or an `AudioSource`.

    The clock goes on, and so do the frames' ids. Where it cannot be played it is tried again, like
    a camera.
    """

    def __init__(self, recording: Recording, clock: Clock, start_ns: int, fps: float = 1.0) -> None:
        """Arguments as for `Recording.video`; the recording has what is asked for."""
        self._recording, self._clock, self._start_ns, self._fps = recording, clock, start_ns, fps
        self._source: RecordedVideo | RecordedSound | None = None
        self._n_frames = 0
        self._closed = threading.Event()
        self.damage = Damage(recording.path.name)

    @property
    def n_lost(self) -> int:
        """Damaged packets and frames that were left out."""
        return self.damage.n

    def frames(self) -> Iterator[Frame]:
        """As `RecordedVideo.frames`, without end."""
        return self._again_and_again(self._frames)

    def chunks(self) -> Iterator[AudioChunk]:
        """As `RecordedSound.chunks`, without end."""
        return self._again_and_again(self._chunks)

    def _frames(self, start_ns: int) -> Iterator[Frame]:
        self._source = video = self._recording.video(self._clock, start_ns, self._fps)
        assert video is not None
        video.damage = self.damage
        if self._closed.is_set():  # by somebody who may not have seen it
            return
        n_before = self._n_frames
        for frame in video.frames():
            frame_id = n_before + frame.frame_id
            self._n_frames = frame_id + 1
            yield replace(frame, frame_id=frame_id)

    def _chunks(self, start_ns: int) -> Iterator[AudioChunk]:
        self._source = sound = self._recording.sound(self._clock, start_ns)
        assert sound is not None
        sound.damage = self.damage
        if self._closed.is_set():
            return
        yield from sound.chunks()

    def _again_and_again(self, played: Callable[[int], Iterator[T]]) -> Iterator[T]:
        """What `played` gives from each start on; what fails, or gives nothing, has a pause."""
        name, start_ns = self._recording.path.name, self._start_ns
        pause_s, is_lost = FIRST_PAUSE_S, False
        while not self._closed.is_set():
            problem = "it gives nothing"
            try:
                for item in played(start_ns):
                    if is_lost:
                        log.info("source=%s event=back", name)
                    pause_s, is_lost, problem = FIRST_PAUSE_S, False, ""
                    yield item
            except (MediaError, MemoryError, OSError) as error:  # such as too many open files
                problem = str(error) or type(error).__name__
            if not problem:
                start_ns += self._recording.duration_ns
                continue
            if not is_lost and not self._closed.is_set():
                log.warning("source=%s event=lost error=%s", name, problem)
                is_lost = True
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            start_ns = max(start_ns, self._clock.now_ns())

    def close(self) -> None:
        """Let the iterator end at the next frame or chunk."""
        self._closed.set()
        if self._source is not None:
            self._source.close()


def _chunked(blocks: Iterator[tuple[Fraction, Float32]]) -> Iterator[tuple[Fraction, Float32]]:
    """`media.mono_blocks` as chunks of `CHUNK_SAMPLES`, each with the time of its first sample."""
    pending: Float32 = np.empty(0, np.float32)
    n_given = 0
    first_s = Fraction(0)
    for first_s, block in blocks:
        pending = np.concatenate([pending, block])
        while len(pending) >= CHUNK_SAMPLES:
            yield first_s + Fraction(n_given, SAMPLE_RATE_HZ), pending[:CHUNK_SAMPLES].copy()
            pending = pending[CHUNK_SAMPLES:]
            n_given += CHUNK_SAMPLES
    if len(pending):
        yield first_s + Fraction(n_given, SAMPLE_RATE_HZ), pending
