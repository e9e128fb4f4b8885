"""What clients send and read: requests as bytes, answers and events as values."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge.errors import (
    AccessError,
    CapacityError,
    EdgeError,
    EngineError,
    ProtocolError,
    SocketError,
)

DEFAULT_SOCKET = "/run/edge/edge.sock"
SEE_LOG = "see the service's log (journalctl -u edge)"
DONE: dict[str, Any] = {}
"""The end of an answer's stream."""
MAX_LINE_BYTES = 2 << 20
"""Of a stream of events; one of a service has some kB."""
MAX_BODY_BYTES = 16 << 20

# What clients rely on in what a service sends, as `fits` reads it.
MODELS = {"data": [{"id": str}]}
TRIGGERS = {"data": [{"id": str}]}
CREATED = {"id": str}
TOLD = {"type": str}
_EVIDENCE = [{"source": str, "start_s": float, "end_s": float, "frame_ids": [int]}]
_TRIGGERED: dict[str, Any] = {"id": str, "condition": str, "at_s": float, "began_s": float}
_TRIGGERED |= {"confidence": float, "evidence": _EVIDENCE}
_STAGES = {"modality": str, "n_tokens": int, "late_ms": float, "features_ms": float}
_STAGES |= {"encode_ms": float, "prefill_ms": float}
_ANSWERED = {"asked_s": float, "finish_reason": str, "first_token_ms": float, "finished_ms": float}
_ANSWERED |= {"n_prompt_tokens": int, "n_completion_tokens": int}
HEALTH: dict[str, Any] = {
    "problems": [str],
    "ready": bool,
    "model": str,
    "mode": str,
    "n_context_tokens": int,
    "max_context_tokens": int,
    "uptime_s": float,
    "counters": {str: int},
    "clients": {str: int},
    "recent": [_STAGES],
    "answers": [_ANSWERED],
}
_USAGE = {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int}
_REPORT: dict[str, Any] = {
    "newest_capture_age_ms": (float, None),
    "confidence": (float, None),
    "consistency": ({"verdict": str}, None),
    "sources": [{"source": str, "modality": str, "age_s": (float, None), "stale": bool}],
    "evidence": _EVIDENCE,
}
_DELTA = {"content": (str, None), "reasoning_content": (str, None)}
_CHOICE = {"delta": _DELTA, "finish_reason": (str, None)}
_CHUNK = {"choices": [_CHOICE], "usage": (_USAGE, None)}


class UnreadableError(ValueError):
    """What came is nothing that a service sends."""


def fits(value: Any, shape: Any) -> bool:
    """Whether a value of JSON is what is relied on.

    Args:
        shape: a type (float: any number that can be shown as one), None, a tuple of shapes of which
            one fits, a list with the shape of each of its items, or a dict with those of its keys'
            values; a key that is missing reads as None, and others may be there. `{str: shape}` is
            of all its values.
    """
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(fits(one, shape[str]) for one in value.values())
        return all(fits(value.get(key), one) for key, one in shape.items())
    if shape is float:
        return type(value) in (int, float) and -1e300 < value < 1e300
    return value is None if shape is None else type(value) is shape


def checked(value: Any, shape: Any) -> Any:
    """A value that fits.

    Raises:
        UnreadableError: it does not.
    """
    if not fits(value, shape):
        raise UnreadableError(_shortened(json.dumps(value)))
    return value


def read(body: bytes, shape: Any) -> Any:
    """The value of a text of JSON.

    Raises:
        UnreadableError: it is none, or not of the shape.
    """
    try:
        value = json.loads(body)
        if b"\\u" in body:  # half a surrogate pair is JSON, and no text: it cannot be shown
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise UnreadableError(_shortened(body.decode(errors="replace"))) from None
    return checked(value, shape)


def bounded(body: bytes) -> bytes:
    """A body that is not too long.

    Raises:
        UnreadableError: it is.
    """
    if len(body) > MAX_BODY_BYTES:
        raise UnreadableError(f"more than {MAX_BODY_BYTES} bytes")
    return body


def text_of(body: bytes) -> str:
    """A body as text.

    Raises:
        UnreadableError: it is none.
    """
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise UnreadableError(_shortened(body.decode(errors="replace"))) from None


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]} ..")


@dataclass(frozen=True, slots=True)
class Text:
    """More text of the answer."""

    text: str
    reasoning: bool = False
    """Part of the thinking, not of the answer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    finish_reason: str
    """`stop` or `length`."""
    usage: dict[str, int]
    """prompt_tokens, completion_tokens, total_tokens."""
    timeline: dict[str, Any]
    """The response's key `edge`: docs/schema/edge_answer.json."""

    @property
    def confidence(self) -> float | None:
        """How likely the answer's tokens were, 0..1; None if it has none."""
        found: float | None = self.timeline.get("confidence")
        return found

    @property
    def consistency(self) -> dict[str, Any] | None:
        """Where the answer comes from: `verdict` (seen, heard, both, contradicted or neither), and
        how likely the answer is with one sense alone; None if it was not asked for."""
        found: dict[str, Any] | None = self.timeline.get("consistency")
        return found

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Each camera and microphone: `source`, `modality`, `age_s` (None: nothing of it is in the
        context), `stale`."""
        found: list[dict[str, Any]] = self.timeline.get("sources", [])
        return found


Event = Text | Finished


@dataclass(frozen=True, slots=True)
class Triggered:
    """What a trigger watches for has begun or ended to be so."""

    id: str
    condition: str
    began: bool
    """False: it ended."""
    at_s: float
    """Since the session's start, as are all other times."""
    began_s: float
    confidence: float
    """How likely the condition is met, 0..1."""
    evidence: list[dict[str, Any]]
    """source, start_s, end_s and frame_ids of what shows it."""
    cause: str | None = None
    """Of an end: judged (it no longer is), unseen (its cameras and microphones have gone), deleted
    or stopped (the session ends)."""

    @classmethod
    def of(cls, payload: dict[str, Any]) -> Triggered | None:
        """From an event of the service; None if it is another.

        Raises:
            UnreadableError: it is no event.
        """
        kind: str = checked(payload, TOLD)["type"]
        if kind not in ("edge.trigger.began", "edge.trigger.ended"):
            return None
        checked(payload, _TRIGGERED)
        return cls(
            **{name: payload[name] for name in _TRIGGERED},
            began=kind.endswith("began"),
            cause=payload.get("cause"),
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """A question. What is None is as the service is configured."""

    text: str
    thinking: bool | None = None
    """Reason first."""
    max_tokens: int | None = None
    """Of the answer, its reasoning included."""
    temperature: float | None = None
    """0 is greedy, at most 2."""
    seed: int | None = None
    """Same seed, state and question: same answer."""
    remember: bool | None = None
    """Question and answer stay in the live context."""
    recall_s: tuple[float, float] | None = None
    """Answer only from what was perceived between so many seconds ago, the longer first; of the
    past that the service keeps."""
    deadline_s: float | None = None
    """An answer that has not begun by then is refused, one that has is cut."""
    consistency: bool | None = None
    """Find out where the answer comes from: what was seen, heard, or both."""
    sound: bytes | None = None
    """A WAV or MP3 file that is part of the question."""

    def body(self) -> bytes:
        """Of POST /v1/chat/completions."""
        content: str | list[dict[str, Any]] = self.text
        if self.sound is not None:
            kind = "wav" if self.sound.startswith(b"RIFF") else "mp3"
            heard = {"data": base64.b64encode(self.sound).decode(), "format": kind}
            content = [{"type": "input_audio", "input_audio": heard}]
            content += [{"type": "text", "text": self.text}] if self.text else []
        body = {
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"enable_thinking": self.thinking},
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "edge": {
                "remember": self.remember,
                "recall_s": self.recall_s,
                "deadline_s": self.deadline_s,
                "consistency": self.consistency,
            },
        }
        return json.dumps(body).encode()


@dataclass(frozen=True, slots=True)
class Watch:
    """Something to be told of; see `edge.session.triggers.Trigger`."""

    condition: str
    modality: Literal["video", "audio", "any"] = "any"
    period_s: float = 1.0
    debounce_s: float = 0.0
    cooldown_s: float = 5.0
    priority: Literal["high", "normal", "low"] = "normal"

    def body(self, *, stream: bool = False) -> bytes:
        """Of POST /v1/edge/triggers."""
        return json.dumps({**asdict(self), "stream": stream}).encode()


@dataclass
class Answer:
    """Reads the objects of one streamed answer."""

    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    timeline: dict[str, Any] = field(default_factory=dict)

    def push(self, payload: dict[str, Any]) -> Iterator[Text]:
        """What one object says.

        Raises:
            EdgeError: the answer failed in the middle.
            UnreadableError: it is none of an answer.
        """
        if "error" in payload:
            is_full = fits(payload, {"error": {"code": str}}) and (
                payload["error"]["code"] == "over_capacity"
            )
            raise refusal(503 if is_full else 500, json.dumps(payload).encode())
        checked(payload, _CHUNK)
        self.usage = payload.get("usage") or self.usage
        for choice in payload["choices"]:
            for key, reasoning in (("reasoning_content", True), ("content", False)):
                if text := choice["delta"].get(key):
                    yield Text(text, reasoning)
            if choice.get("finish_reason"):
                self.timeline = checked(payload.get("edge"), _REPORT)
                self.finish_reason = choice["finish_reason"]

    def finished(self) -> Finished:
        """Its end.

        Raises:
            UnreadableError: it has none.
        """
        if not self.finish_reason or not self.usage:
            raise UnreadableError("an answer without its end")
        return Finished(self.finish_reason, self.usage, self.timeline)


def payload_of(line: bytes) -> dict[str, Any] | None:
    """The object of one line of server-sent events; None where it has none.

    Raises:
        UnreadableError: it is none that a service sends.
    """
    if len(line) > MAX_LINE_BYTES:
        raise UnreadableError(f"a line of more than {MAX_LINE_BYTES} bytes")
    if not line.startswith(b"data:") or not line.endswith(b"\n"):
        return None
    data = line.removeprefix(b"data:").strip()
    if data == b"[DONE]":
        return DONE
    payload: dict[str, Any] = read(data, {})
    return payload


def events_target(types: Sequence[str]) -> str:
    """Where those events are streamed."""
    query = urllib.parse.urlencode({"types": ",".join(types)}) if types else ""
    return f"/v1/edge/events?{query}" if query else "/v1/edge/events"


def trigger_target(trigger_id: str) -> str:
    """Where one trigger is."""
    return f"/v1/edge/triggers/{urllib.parse.quote(trigger_id, safe='')}"


def unreachable(path: Path, error: OSError) -> SocketError:
    """Nobody can be connected to."""
    if isinstance(error, FileNotFoundError):
        return SocketError(path, "is not there", "start `edge run`")
    if isinstance(error, ConnectionRefusedError):
        return SocketError(path, "nobody listens there", "start `edge run`")
    if isinstance(error, PermissionError):
        return SocketError(path, "is closed to this user", "join the group that owns it")
    problem = f"cannot be reached ({error})"
    return SocketError(path, problem, "give the path of the service's socket")


def unreadable(path: Path, error: UnreadableError) -> SocketError:
    """Somebody else serves there, or something came in between."""
    return SocketError(path, f"sent what no service sends ({error})", "ask `edge run` itself")


def refusal(status: int, body: bytes) -> EdgeError:
    """The service's own error again, as it raised it."""
    kind: type[EdgeError] = EngineError if status >= 500 else ProtocolError
    kind = {403: AccessError, 503: CapacityError}.get(status, kind)
    try:
        message = read(body, {"error": {"message": str}})["error"]["message"]
    except UnreadableError:
        return kind("service", f"answered with HTTP {status}", SEE_LOG)
    thing, _, rest = message.partition(": ")
    problem, _, remedy = rest.rpartition("; ")
    if not problem:
        return kind("service", message, SEE_LOG)
    return kind(thing, problem, remedy)
