"""Record and replay: what the loop took, when its clock said so, and what followed.

A step of the loop depends on four things only: what it takes (a question, a frame, a chunk, a
client's wish, the end of a source, or nothing), what its clock says, what it learns from outside
besides (which client has gone, how warm the board is, other settings), and what came before. So
these are recorded, and a replay gives them to the same loop again: its events are then the same, to
the nanosecond. The file is MCAP, the robotics log format; pictures are foxglove.RawImage, so that
viewers show them.
"""

from __future__ import annotations

import base64
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import numpy as np
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.writer import Writer

from edge.clock import NS_PER_S, Clock
from edge.errors import MediaError
from edge.senses.turn_events import Button, Choose, Control, Played
from edge.session.turn import Failed, Question
from edge.types import AudioChunk, Frame

T = TypeVar("T")
FORMAT = 4
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
    """Writes a session to a file, from the loop's thread."""

    path: Path
    clock: RecordedClock
    _took: str = ""
    _item: object = None
    _asked_ns: int = 0
    _outside: dict[str, Any] = field(default_factory=dict)
    _events: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Recorder:
        self._file = self.path.open("wb")
        self._writer = Writer(self._file)
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
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.close()

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
            "settings": settings,
            "microphones": list(microphones),
            "cameras": list(cameras),
        }
        self._write("session", start_ns, about)

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
            self._outside[name] = value
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
        self._writer.add_message(
            self._channels[topic],
            log_time=at_ns,
            publish_time=at_ns,
            sequence=next(self._sequence),
            data=msgspec.json.encode(content),
        )


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


def read(path: Path) -> tuple[dict[str, Any], Iterator[Step]]:
    """A recorded session: what it is, and its steps.

    Raises:
        MediaError: the file is no recording of ours, or is damaged; also while iterating.
    """
    messages = _messages(path)
    topic, about = next(messages, ("", {}))
    found = about.get("format") if topic == "session" and isinstance(about, dict) else None
    if type(found) is not int:
        raise MediaError(path, "is not a recorded session", "record one with `edge run --record`")
    if found != FORMAT:
        other = "an older" if found < FORMAT else "a newer"
        raise MediaError(
            path,
            f"is a recorded session of format {found}, and this version reads {FORMAT}",
            f"replay it with {other} Omni Edge, or record it again with `edge run --record`",
        )
    return about, _steps(messages)


def _messages(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for _, channel, message in make_reader(file).iter_messages(log_time_order=False):
                yield channel.topic.removeprefix("/"), msgspec.json.decode(message.data)
    except (OSError, McapError, msgspec.DecodeError) as error:
        raise MediaError(path, f"cannot be read ({error})", "copy it again") from None


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
