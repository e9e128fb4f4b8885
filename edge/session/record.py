"""Record and replay: what the loop took, when its clock said so, and what followed.

A step of the loop depends on four things only: what it takes (a question, a frame, a chunk, a
client's wish, the end of a source, or nothing), what its clock says, what it learns from outside
besides (which client has gone, how warm the board is, other settings), and what came before. So
these are recorded, and a replay gives them to the same loop again: its events are then the same, to
the nanosecond. The file is MCAP, the robotics log format; pictures are foxglove.RawImage, so that
viewers show them.

A recording is wanted most where the session ended badly. So it is written in small chunks, each of
which can be read without what follows, and the reader goes as far as there are whole ones. A disk
that is full ends the recording, and not the session.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, McapRecord, Message
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import Writer
from zstandard import ZstdError, frame_content_size

from edge.clock import NS_PER_S, Clock
from edge.errors import MediaError
from edge.senses.address import without_secrets
from edge.senses.turn_events import Button, Choose, Control, Played
from edge.session.turn import Failed, Question
from edge.types import AudioChunk, Frame

log = logging.getLogger(__name__)

T = TypeVar("T")
FORMAT = 5
CHUNK_BYTES = 1 << 16
"""What is lost of a session that is killed: about so much, or one picture."""
MAX_CHUNK_BYTES = 1 << 29
"""The largest picture takes 270 MB."""
SYNC_S = 1.0
LIBRARY = "omni-edge"
TOPICS = {
    "session": "omni_edge.Session",
    "camera": "foxglove.RawImage",
    "sound": "omni_edge.Sound",
    "playback": "omni_edge.Sound",
    "control": "omni_edge.Control",
    "question": "omni_edge.Question",
    "step": "omni_edge.Step",
    "event": "omni_edge.Event",
}


class RecordedClock:
    """A clock that remembers what it said to the loop's thread since the last `take`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: list[int] = []
        self._thread: int | None = None

    def now_ns(self) -> int:
        now_ns = self._clock.now_ns()
        if threading.get_ident() == self._thread:
            self._said.append(now_ns)
        return now_ns

    def sleep_until(self, deadline_ns: int) -> None:
        self._clock.sleep_until(deadline_ns)

    def begin(self) -> None:
        """The calling thread is the loop's, and begins a step."""
        self._thread, self._said = threading.get_ident(), []

    def take(self) -> list[int]:
        """What it said since `begin`."""
        said, self._said = self._said, []
        return said


class ReplayedClock:
    """Says again what a recorded clock said."""

    def __init__(self, start_ns: int) -> None:
        self._last_ns = start_ns
        self._left: Iterator[int] = iter(())

    def give(self, said: list[int]) -> None:
        """Let it say this next."""
        self._left = iter(said)

    def now_ns(self) -> int:
        self._last_ns = next(self._left, self._last_ns)
        return self._last_ns

    def sleep_until(self, _deadline_ns: int) -> None:
        """Time does not pass by waiting."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the loop."""

    took: str
    """A sense's name, `turn`, or nothing."""
    item: Frame | AudioChunk | Control | Question | None
    """None with a sense's name: its source has ended."""
    asked_ns: int
    outside: dict[str, Any]
    """What it learned besides, by name."""
    clock: list[int]
    events: list[dict[str, Any]]


def event_of(event: object) -> dict[str, Any]:
    """An event of the loop as JSON has it; its type by name."""
    if isinstance(event, Failed):
        return {"type": "Failed", "error": str(event.error)}
    if not is_dataclass(event) or isinstance(event, type):
        raise TypeError(f"{event!r} is no event")
    values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(asdict(event)))
    return {"type": type(event).__name__, **values}


@dataclass
class Recorder:
    """Writes a session to a file that only its owner reads, from the loop's thread."""

    path: Path
    clock: RecordedClock
    _took: str = ""
    _item: object = None
    _asked_ns: int = 0
    _outside: dict[str, Any] = field(default_factory=dict)
    _events: list[dict[str, Any]] = field(default_factory=list)

    has_failed: bool = False
    """The disk is full, or gone: nothing more is written."""

    def __enter__(self) -> Recorder:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)  # it may have been there
        self._file = open(descriptor, "wb")
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES)
        self._writer.start(library=LIBRARY)
        self._channels = {
            topic: self._writer.register_channel(
                f"/{topic}",
                "json",
                self._writer.register_schema(name, "jsonschema", b'{"type": "object"}'),
            )
            for topic, name in TOPICS.items()
        }
        self._sequence = itertools.count()
        self._closing = threading.Event()
        self._syncing = threading.Thread(target=self._sync, name="recorder", daemon=True)
        self._syncing.start()
        return self

    def _sync(self) -> None:
        """Give the disk what is written, at its own pace: after a power cut that counts."""
        while not self._closing.wait(SYNC_S):
            with contextlib.suppress(OSError):  # a pipe; or the disk is full, which writing tells
                os.fdatasync(self._file.fileno())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._syncing.join()
        if not self.has_failed:
            self._try(self._writer.finish)
        with contextlib.suppress(OSError):
            self._file.close()

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
            self._file.flush()
        except OSError as error:
            self.has_failed = True
            log.error(
                "recording=%s event=stopped error=%s: %s",
                *(self.path, error.strerror, "the session goes on without; make room"),
            )

    def describe(
        self,
        model: str,
        start_ns: int,
        settings: dict[str, Any],
        microphones: Sequence[str] = (),
        cameras: Sequence[str] = (),
    ) -> None:
        """What the session is; once, at its start."""
        about = {
            "format": FORMAT,
            "model": model,
            "start_ns": start_ns,
            "settings": _public(settings),
            "microphones": list(microphones),
            "cameras": list(cameras),
        }
        self._write("session", start_ns, about)
        if not self.has_failed:
            self._try(self._writer.flush)  # nothing can be replayed without it

    def begin(self) -> None:
        """A step begins."""
        self.clock.begin()
        self._took, self._item, self._asked_ns = "", None, 0
        self._outside, self._events = {}, []

    def took(self, name: str, item: object, asked_ns: int = 0) -> None:
        """The step takes an item of a sense (None: its end), or a question."""
        self._took, self._item, self._asked_ns = name, item, asked_ns

    def outside(self, name: str, read: Callable[[], T]) -> T | None:
        """What the step learns besides: a JSON value, or nothing."""
        value = read()
        if value:
            shown: Any = value
            self._outside[name] = _public(shown) if name == "settings" else shown
        return value

    def saw(self, event: object) -> None:
        """The step has led to an event."""
        self._events.append(event_of(event))

    def end(self) -> None:
        """The step is over: write it."""
        said = self.clock.take()
        at_ns = said[-1] if said else 0
        topic, content = _content(self._item)
        if topic:
            self._write(topic, at_ns, content)
        step = {
            "took": self._took,
            "item": topic,
            "asked_ns": self._asked_ns,
            "outside": self._outside,
            "clock": said,
        }
        self._write("step", at_ns, step)
        for event in self._events:
            self._write("event", at_ns, event)

    def _write(self, topic: str, at_ns: int, content: dict[str, Any]) -> None:
        if not self.has_failed:
            add = partial(self._writer.add_message, self._channels[topic], at_ns)
            data = msgspec.json.encode(content)
            self._try(partial(add, data, publish_time=at_ns, sequence=next(self._sequence)))


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without passwords, and without who may connect: recordings are handed on."""
    shown = {name: section for name, section in settings.items() if name != "access"}
    for kind in ("camera", "microphone"):
        shown[kind] = [
            {**sense, "source": without_secrets(sense["source"])}
            for sense in settings.get(kind, ())
        ]
    return shown


def _content(item: object) -> tuple[str, dict[str, Any]]:
    """Topic and content of what a step took."""
    if isinstance(item, Frame):
        height, width = item.pixels.shape[:2]
        seconds, nanoseconds = divmod(item.capture_ns, NS_PER_S)
        return "camera", {
            "timestamp": {"sec": seconds, "nsec": nanoseconds},
            "frame_id": item.source,
            "width": width,
            "height": height,
            "encoding": "rgb8",
            "step": 3 * width,
            "data": np.ascontiguousarray(item.pixels).tobytes(),
            "number": item.frame_id,
        }
    if isinstance(item, AudioChunk):
        samples = np.ascontiguousarray(item.samples, np.float32).tobytes()
        return "sound", {"capture_ns": item.capture_ns, "source": item.source, "data": samples}
    if isinstance(item, Played):
        return "playback", _content(item.chunk)[1]
    if isinstance(item, Choose | Button):
        return "control", asdict(item)
    if isinstance(item, Question):
        return "question", asdict(item)
    return "", {}


def _item(topic: str, content: dict[str, Any]) -> Frame | AudioChunk | Control | Question:
    """The inverse of `_content`."""
    if topic == "question":
        return msgspec.convert(content, Question)
    if topic == "control":
        return Choose(**content) if "mode" in content else Button(**content)
    data = base64.b64decode(content["data"])
    if topic in ("sound", "playback"):
        samples = np.frombuffer(data, np.float32)
        chunk = AudioChunk(samples, content["capture_ns"], content["source"])
        return chunk if topic == "sound" else Played(chunk)
    shape = (content["height"], content["width"], 3)
    capture_ns = content["timestamp"]["sec"] * NS_PER_S + content["timestamp"]["nsec"]
    pixels = np.frombuffer(data, np.uint8).reshape(shape)
    return Frame(pixels, capture_ns, content["number"], content["frame_id"])


@dataclass
class Recorded:
    """A recorded session, as far as it can be read."""

    path: Path
    about: dict[str, Any]
    """What `Recorder.describe` was told."""
    _messages: Iterator[tuple[str, dict[str, Any]]]
    cut: str = ""
    """Why there are no more steps, once they are over; empty if they were recorded to the end."""

    def steps(self) -> Iterator[Step]:
        """Its steps, once. The last one before a cut is left out: some of it may be missing.

        Raises:
            MediaError: a step is none of ours.
        """
        number = 0
        try:
            for step in _steps(self._messages):
                yield step
                number += 1
        except _CutError as cut:
            self.cut = f"{cut} after {number} steps"
        except _NOT_OURS as error:
            problem = f"has no usable step {number} ({type(error).__name__}: {error})"
            raise MediaError(self.path, problem, "record the session again") from None


class _CutError(Exception):
    """Nothing more can be read."""


_NOT_OURS = (LookupError, TypeError, ValueError, AttributeError)
"""What a step raises that does not hold what it should."""


def read(path: Path) -> Recorded:
    """A recorded session.

    Raises:
        MediaError: the file cannot be read, or is no recording of ours.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror})", "check the path") from None
    messages = _messages(file)
    try:
        topic, about = next(messages, ("", {}))
    except _CutError as cut:
        topic, about = str(cut), {}
    if topic != "session" or not isinstance(about, dict) or about.get("format") != FORMAT:
        raise MediaError(path, "is not a recorded session", "record one with `edge run --record`")
    return Recorded(path, about, messages)


def _messages(file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each message says, of all whole chunks in the file's order.

    Raises:
        _CutError: something cannot be read: there the process was killed, the disk full or damaged.
    """
    topics: dict[int, str] = {}
    with file:
        try:
            for record in StreamReader(
                file, emit_chunks=True, record_size_limit=MAX_CHUNK_BYTES
            ).records:
                for inner in _unpacked(record) if isinstance(record, Chunk) else (record,):
                    if isinstance(inner, Channel):
                        topics[inner.id] = inner.topic.removeprefix("/")
                    elif isinstance(inner, Message):
                        yield topics[inner.channel_id], msgspec.json.decode(inner.data)
        except (
            McapError,
            ZstdError,
            struct.error,
            ValueError,
            LookupError,
            OSError,
            EOFError,
        ) as error:
            cause = " ".join(str(error).split())[:100]
            raise _CutError(f"is cut short or damaged ({type(error).__name__}: {cause})") from None


def _unpacked(chunk: Chunk) -> list[McapRecord]:
    n_bytes = chunk.uncompressed_size
    if chunk.compression == "zstd":
        n_bytes = max(n_bytes, frame_content_size(chunk.data))
    if n_bytes > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk of {n_bytes} bytes")
    return breakup_chunk(chunk, validate_crc=True)


def _steps(messages: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[Step]:
    item: Frame | AudioChunk | Control | Question | None = None
    step: dict[str, Any] | None = None
    events: list[dict[str, Any]] = []
    for topic, content in messages:
        if topic == "event":
            events.append(content)
            continue
        if step is not None:
            yield Step(events=events, **step)
            step, events = None, []
        if topic == "step":
            step = {**content, "item": item if content["item"] else None}
            item = None
        else:
            item = _item(topic, content)
    if step is not None:
        yield Step(events=events, **step)
