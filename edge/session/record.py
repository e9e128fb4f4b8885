"""Record and replay: what the loop took, when its clock said so, and what followed.

A step of the loop depends on four things only: what it takes (a question, a frame, a chunk, a
client's wish, the end of a source, or nothing), what its clock says, what it learns from outside
besides (which client has gone, how warm the board is, other settings), and what came before. So
these are recorded, and a replay gives them to the same loop again: its events are then the same, to
the nanosecond. The file is MCAP, the robotics log format; pictures are foxglove.RawImage, so that
viewers show them.

A recording is wanted most where the session ended badly. So it is written in small chunks, each of
which can be read without what follows, and the reader goes as far as there are whole ones. A disk
that is full ends a file, and not the session. Each file begins with all that a replay needs: the
settings, and the moment of the session at which it begins (`edge.session.moment`).
"""

from __future__ import annotations

import base64
import itertools
import logging
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, McapRecord
from mcap.records import Message as McapMessage
from mcap.stream_reader import StreamReader, breakup_chunk
from zstandard import ZstdError, frame_content_size

from edge.clock import NS_PER_S, Clock
from edge.errors import MediaError
from edge.senses.address import without_secrets
from edge.senses.turn_events import Button, Choose, Control, Played
from edge.session.moment import Moment, array_of, plain_array
from edge.session.perception import Rebased
from edge.session.record_files import MAX_WAITING_BYTES, Batch, Bounds, Message, RecordFiles
from edge.session.turn import Failed, Question
from edge.types import AudioChunk, Float32, Frame, n_media_bytes

log = logging.getLogger(__name__)

T = TypeVar("T")
FORMAT = 6
MAX_CHUNK_BYTES = 300 << 20
"""The largest picture takes 270 MB."""
LONG_ENOUGH = 0.75
"""Of a file's bound: from then on a rebase is a reason for the next file."""
STEP_BYTES = 4096
"""What a step takes in memory besides pictures and sounds, about."""
SLOW = "the disk is too slow, and steps were left out"
TOPICS = {
    "session": "omni_edge.Session",
    "moment": "omni_edge.Moment",
    "rows": "omni_edge.Rows",
    "camera": "foxglove.RawImage",
    "sound": "omni_edge.Sound",
    "playback": "omni_edge.Sound",
    "control": "omni_edge.Control",
    "question": "omni_edge.Question",
    "step": "omni_edge.Step",
    "event": "omni_edge.Event",
    "end": "omni_edge.End",
}


class RecordedClock:
    """A clock that remembers what it said to the loop's thread since the last `take`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: list[int] = []
        self.last_ns = 0
        """What it said to the loop last."""
        self._thread: int | None = None

    def now_ns(self) -> int:
        now_ns = self._clock.now_ns()
        if threading.get_ident() == self._thread:
            self._said.append(now_ns)
            self.last_ns = now_ns
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
    """Writes a session to files, from the loop's thread, which never waits for them.

    Where they fail, or are too slow, whole steps are left out; when there is room again the next
    file begins at the next quiet moment of the session, and replays by itself. With bounds another
    one begins in time, where there is a rebase if possible, as the context is short then.
    """

    path: Path
    """A file; with bounds, a folder."""
    clock: RecordedClock
    bounds: Bounds | None = None
    max_waiting_bytes: int = MAX_WAITING_BYTES
    """Of steps that are not written yet."""
    _about: dict[str, Any] = field(default_factory=dict)
    _is_recording: bool = False
    _n_begun: int = 0
    _began_s: float = 0.0
    _was_rebased: bool = False
    _n_left_out: int = 0
    _n_gaps: int = 0
    _took: str = ""
    _item: object = None
    _asked_ns: int = 0
    _outside: dict[str, Any] = field(default_factory=dict)
    _events: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Recorder:
        bounds = {"max_waiting_bytes": self.max_waiting_bytes}
        self._files = RecordFiles(self.path, TOPICS, self.bounds, **bounds)
        self._files.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_recording:
            self._end_file("")
        self._files.close()

    @property
    def problem(self) -> str:
        """Why nothing is recorded now; empty while it is."""
        if self._files.problem:
            return self._files.problem
        return "" if self._is_recording or not self._about else SLOW

    @property
    def counters(self) -> dict[str, int]:
        """What has been counted."""
        return {
            "recording_failed": int(bool(self.problem)),
            "recording_files": self._files.n_files,
            "recording_gaps": self._n_gaps,
            "recording_steps_dropped": self._n_left_out + self._files.n_lost,
        }

    def wait(self) -> None:
        """Until all that was recorded is in the file, or was lost: for who has stopped the loop."""
        self._files.wait()

    def describe(
        self,
        model: str,
        start_ns: int,
        settings: dict[str, Any],
        microphones: Sequence[str] = (),
        cameras: Sequence[str] = (),
    ) -> None:
        """What the session is; once, at its start."""
        self._about = {
            "format": FORMAT,
            "model": model,
            "start_ns": start_ns,
            "microphones": list(microphones),
            "cameras": list(cameras),
        }
        self._begin_file(settings, start_ns, None)

    def begin(self) -> bool:
        """A step begins; whether a file should begin before it: then `begin_file`."""
        self.clock.begin()
        self._took, self._item, self._asked_ns = "", None, 0
        self._outside, self._events = {}, []
        was_rebased, self._was_rebased = self._was_rebased, False
        if not self._is_recording:
            is_free = bool(self._about) and not self._files.is_blocked and self._files.is_idle
            if is_free:  # some may have been lost before they were begun
                self._n_begun = self._files.n_files
            return is_free
        if self.bounds is None or self._files.n_files != self._n_begun:
            return False
        n_bytes = self._files.n_bytes - self._files.n_head_bytes
        age_s = time.monotonic() - self._began_s
        share = max(n_bytes / self.bounds.file_bytes, age_s / self.bounds.file_s)
        return share >= (LONG_ENOUGH if was_rebased else 1.0)

    def begin_file(self, settings: dict[str, Any], moment: Moment) -> None:
        """What follows belongs to another file, which begins at this moment.

        Args:
            settings: as they are now.
        """
        if self._is_recording:
            self._end_file("")
        self._begin_file(settings, self.clock.last_ns, moment)

    def _begin_file(self, settings: dict[str, Any], at_ns: int, moment: Moment | None) -> None:
        about = {
            **self._about,
            "settings": _public(settings),
            "at_ns": at_ns,
            "wall_ns": time.time_ns(),
            "n_rows": None if moment is None else len(moment.rows),
        }

        def encode() -> Iterator[Message]:
            yield "session", at_ns, _json(about)
            if moment is not None:
                yield "moment", at_ns, _json(moment.content)
                for rows in moment.rows:
                    yield "rows", at_ns, _json(plain_array(rows))

        # It waits as nothing: its rows are the live context's own, and may be more than the queue.
        self._is_recording = self._files.put(Batch(encode, 0, begins=True))
        self._n_begun += self._is_recording
        self._began_s = time.monotonic()

    def _end_file(self, reason: str) -> None:
        at_ns = self.clock.last_ns
        ended = Batch(lambda: [("end", at_ns, _json({"reason": reason}))], 0, ends=True)
        self._files.put(ended)
        self._is_recording = False

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
        self._was_rebased = self._was_rebased or isinstance(event, Rebased)

    def end(self) -> None:
        """The step is over: let it be written, or leave it out whole."""
        said = self.clock.take()
        if not self._is_recording:
            self._n_left_out += bool(self._about)
            return
        item, events, self._events = self._item, self._events, []
        step = {
            "took": self._took,
            "item": _topic(item),
            "asked_ns": self._asked_ns,
            "outside": self._outside,
            "clock": said,
        }
        at_ns = said[-1] if said else self.clock.last_ns

        def encode() -> Iterator[Message]:
            topic, content = _content(item)
            if topic:
                yield topic, at_ns, _json(content)
            yield "step", at_ns, _json(step)
            for event in events:
                yield "event", at_ns, _json(event)

        if not self._files.put(Batch(encode, STEP_BYTES + _n_bytes(item))):
            self._n_left_out += 1
            self._n_gaps += 1
            if not self._files.problem:
                log.error(
                    "recording=%s event=gap problem=%s remedy=%s",
                    *(self.path, SLOW, "a faster disk, or fewer frames"),
                )
            self._end_file(SLOW)


def _json(content: object) -> bytes:
    return msgspec.json.encode(content)


def _n_bytes(item: object) -> int:
    """About what it takes in memory."""
    if isinstance(item, Frame):
        return item.pixels.nbytes
    if isinstance(item, Played):
        item = item.chunk
    if isinstance(item, AudioChunk):
        return item.samples.nbytes
    if isinstance(item, Question):
        return sum(len(m.content) + n_media_bytes(m.media) for m in item.messages)
    return 0


NOT_SHOWN = ("socket", "access", "record")


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without passwords, and without who may connect where: recordings are handed on."""
    shown = {name: section for name, section in settings.items() if name not in NOT_SHOWN}
    for kind in ("camera", "microphone"):
        shown[kind] = [
            {**sense, "source": without_secrets(sense["source"])}
            for sense in settings.get(kind, ())
        ]
    return shown


def _topic(item: object) -> str:
    """Topic of what a step took."""
    for topic, kinds in (
        ("camera", Frame),
        ("sound", AudioChunk),
        ("playback", Played),
        ("control", Choose | Button),
        ("question", Question),
    ):
        if isinstance(item, kinds):
            return topic
    return ""


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
    moment: Moment | None
    """Where it begins; None: where the session did."""
    _messages: Generator[tuple[str, dict[str, Any]], None, None]
    cut: str = ""
    """Why there are no more steps, once they are over; empty if they were recorded to the end."""

    @property
    def began(self) -> str:
        """When, for a person."""
        return datetime.fromtimestamp(self.about["wall_ns"] / NS_PER_S, timezone.utc).isoformat()

    def steps(self) -> Iterator[Step]:
        """Its steps, once. The last one before a cut is left out: some of it may be missing.

        Raises:
            MediaError: a step is none of ours.
        """
        number = 0
        try:
            for step in self._steps():
                yield step
                number += 1
        except _CutError as cut:
            self.cut = f"{cut} after {number} steps"
        except NOT_OURS as error:
            problem = f"has no usable step {number} ({type(error).__name__}: {error})"
            raise MediaError(self.path, problem, "record the session again") from None
        finally:
            self._messages.close()  # the file is open for as long as there may be more

    def _steps(self) -> Iterator[Step]:
        item: Frame | AudioChunk | Control | Question | None = None
        step: dict[str, Any] | None = None
        events: list[dict[str, Any]] = []
        for topic, content in self._messages:
            if topic == "event":
                events.append(content)
                continue
            if step is not None:
                yield _step(step, events)
                step, events = None, []
            if topic == "step":
                step = {**content, "item": item if content["item"] else None}
                item = None
            elif topic == "end":
                if content["reason"]:
                    raise _CutError(f"ends early, as {content['reason']},")
                return
            else:
                item = _item(topic, content)
        if step is not None:
            yield _step(step, events)


def _step(content: dict[str, Any], events: list[dict[str, Any]]) -> Step:
    step = Step(events=events, **content)
    if not isinstance(step.outside, dict) or not all(type(said) is int for said in step.clock):
        raise TypeError("its clock says what is no time, or it learns what has no name")
    return step


class _CutError(Exception):
    """Nothing more can be read."""


NOT_OURS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(MemoryError, RuntimeError, TypeError, ValueError),
)
"""What comes of a recording that does not hold what it should."""


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
    found = about.get("format") if topic == "session" and isinstance(about, dict) else None
    if found != FORMAT:
        messages.close()
    if type(found) is not int:
        raise MediaError(path, "is not a recorded session", "record one with `edge run --record`")
    if found != FORMAT:
        other = "an older" if found < FORMAT else "a newer"
        raise MediaError(
            path,
            f"is a recorded session of format {found}, and this version reads {FORMAT}",
            f"replay it with {other} Omni Edge, or record it again with `edge run --record`",
        )
    try:
        return Recorded(path, about, _moment(about, messages), messages)
    except (_CutError, *NOT_OURS) as error:
        messages.close()
        problem = f"describes no session ({type(error).__name__}: {error})"
        raise MediaError(path, problem, "record one with `edge run --record`") from None


def _moment(about: dict[str, Any], messages: Iterator[tuple[str, dict[str, Any]]]) -> Moment | None:
    """What the first messages tell of the moment at which a file begins."""
    if about["n_rows"] is None:
        return None
    topic, content = next(messages, ("", {}))
    rows: list[Float32] = []
    for topic_of_rows, one in itertools.islice(messages, int(about["n_rows"])):
        rows += [array_of(one, "float32")] if topic_of_rows == "rows" else []
    if topic != "moment" or len(rows) != about["n_rows"]:
        raise ValueError("it does not begin with a moment of a session")
    return Moment(content, tuple(rows))


def _messages(file: BinaryIO) -> Generator[tuple[str, dict[str, Any]], None, None]:
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
                    elif isinstance(inner, McapMessage):
                        yield topics[inner.channel_id], msgspec.json.decode(inner.data)
        except (
            McapError,
            ZstdError,
            struct.error,
            ValueError,
            LookupError,
            RecursionError,
            OSError,
            EOFError,
        ) as error:
            cause = " ".join(str(error).split())[:100]
            raise _CutError(f"is cut short or damaged ({type(error).__name__}: {cause})") from None


def _unpacked(chunk: Chunk) -> list[McapRecord]:
    n_bytes = chunk.uncompressed_size
    if chunk.compression not in ("", "zstd"):  # another one may unpack to any size
        raise ValueError(f"a chunk packed by {chunk.compression[:20]!r}")
    if chunk.compression == "zstd":
        n_bytes = max(n_bytes, frame_content_size(chunk.data))
    if n_bytes > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk of {n_bytes} bytes")
    return breakup_chunk(chunk, validate_crc=True)
