"""Chat completions as OpenAI's clients speak them: a request in, response objects out.

What the model sees and hears is the live context; a request carries text only.
"""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.clock import NS_PER_MS, NS_PER_S
from edge.config import Config
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.session.turn import Done, Message, Question, TextDelta, Timeline
from edge.types import Stages

Seconds = Annotated[float, Meta(ge=0.0, le=86_400.0)]
StopText = Annotated[str, Meta(min_length=1)]
Json = dict[str, Any]


class ModelNotFoundError(ProtocolError):
    """A request names a model that is not served here: HTTP 404."""


class _TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Json]
    reasoning_content: str | None = None
    """Comes back when a client appends our own message to its history; past thinking is dropped."""


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None


class _TemplateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enable_thinking: bool | None = None


class _Edge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our own additions."""

    remember: bool | None = None
    """Question and answer stay in the live context."""
    recall_s: tuple[Seconds, Seconds] | None = None
    """Answer only from what was perceived between so many seconds ago, the longer first."""
    deadline_s: Annotated[float, Meta(gt=0.0, le=3600.0)] | None = None
    """Since the request: an answer that has not begun then is refused, one that has is cut."""


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body. Clients send null for what they leave open, so None is the default throughout."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    n: int | None = None
    user: str | None = None
    chat_template_kwargs: _TemplateSettings | None = None
    edge: _Edge | None = None


_DECODER = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a client asks, and how it wants the answer."""

    question: Question
    stream: bool
    include_usage: bool


def parse_request(
    body: bytes, model_name: str, config: Config, thinking_sampling: Sampling
) -> ChatRequest:
    """Read the body of a chat completion request.

    Args:
        body: JSON.
        model_name: the served model; a request may name it or leave the model open.
        config: gives what the request leaves open, and the bound on max_tokens.
        thinking_sampling: the checkpoint's own, where request and config leave it open.

    Returns:
        The question with every setting filled in.

    Raises:
        ModelNotFoundError: the request names another model.
        ProtocolError: the request cannot be served as it stands; the error's thing is the field.
    """
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_field(error, _Request.__struct_fields__) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("body", f"is not JSON ({error})", "send a JSON object") from error
    if request.model and request.model != model_name:
        raise ModelNotFoundError(
            "model", f"{request.model!r} is not served here", f"ask for {model_name!r}"
        )
    if request.n not in (None, 1):
        raise ProtocolError("n", f"is {request.n}", "ask for 1 answer at a time")
    stream, options = bool(request.stream), request.stream_options
    if options is not None and not stream:
        raise ProtocolError("stream_options", "is given without stream", "set stream to true")
    return ChatRequest(
        _question(request, config, thinking_sampling),
        stream,
        bool(options is not None and options.include_usage),
    )


def _question(request: _Request, config: Config, thinking_sampling: Sampling) -> Question:
    answer = config.answer
    stop = request.stop or ()
    template = request.chat_template_kwargs or _TemplateSettings()
    thinking = _first(template.enable_thinking, answer.thinking)
    default = thinking_sampling if thinking else Sampling()
    return Question(
        messages=_messages(request.messages),
        sampling=Sampling(
            temperature=_first(request.temperature, answer.temperature, default.temperature),
            top_p=_first(request.top_p, answer.top_p, default.top_p),
            top_k=request.top_k or 0,
            seed=request.seed,
        ),
        max_tokens=_max_tokens(request, config),
        thinking=thinking,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        remember=_first(request.edge.remember if request.edge else None, answer.remember),
        recall_s=_recall_s(request),
        deadline_s=(request.edge.deadline_s if request.edge else None) or answer.deadline_s,
    )


def _recall_s(request: _Request) -> tuple[float, float] | None:
    recall_s = request.edge.recall_s if request.edge else None
    if recall_s is not None and recall_s[0] <= recall_s[1]:
        raise ProtocolError(
            "edge.recall_s", f"is {list(recall_s)}", "give the longer time ago first: [30, 10]"
        )
    return recall_s


def _max_tokens(request: _Request, config: Config) -> int:
    # OpenAI renamed the field; its newer name wins where a client sends both.
    for name in ("max_completion_tokens", "max_tokens"):
        asked: int | None = getattr(request, name)
        if asked is not None:
            most = config.context.max_tokens
            if asked > most:
                raise ProtocolError(
                    name, f"is {asked}, above the context's {most}", f"ask for at most {most}"
                )
            return asked
    return config.answer.max_tokens


def _messages(messages: list[_Message]) -> tuple[Message, ...]:
    said = []
    for place, message in enumerate(messages):
        system = message.role in ("system", "developer")
        if system and place > 0:
            raise ProtocolError(
                f"messages[{place}].role",
                f"is {message.role!r} after the first message",
                "send at most one system message, as the first",
            )
        content = message.content
        if not isinstance(content, str):
            field_name = f"messages[{place}].content"
            parts = [_text(part, f"{field_name}[{k}]") for k, part in enumerate(content)]
            content = "\n".join(parts)
        role: Literal["system", "user", "assistant"] = (
            message.role if message.role in ("user", "assistant") else "system"
        )
        said.append(Message(role, content))
    if said[-1].role != "user":
        raise ProtocolError(
            f"messages[{len(said) - 1}].role",
            f"is {messages[-1].role!r} in the last message",
            "end with a user message",
        )
    return tuple(said)


def _text(part: Json, field_name: str) -> str:
    kind = part.get("type")
    if isinstance(kind, str) and kind != "text":
        raise ProtocolError(
            f"{field_name}.type",
            f"is {kind!r}: the live context is what the model sees and hears",
            "send text, and show pictures and sound to the service's camera and microphone",
        )
    try:
        return msgspec.convert(part, _TextPart).text
    except msgspec.ValidationError as error:
        raise _wrong_field(error, _TextPart.__struct_fields__, field_name) from error


def _wrong_field(
    error: msgspec.ValidationError, known: tuple[str, ...], inside: str = ""
) -> ProtocolError:
    """msgspec's `problem - at `$.path``, as our error."""
    problem, _, path = str(error).partition(" - at `$")
    place = inside + path.removesuffix("`")
    named = re.fullmatch(r"Object (contains|missing) \w+ field `(.*)`", problem, re.DOTALL)
    if named:
        name = f"{place}.{named[2]}".lstrip(".")
        if named[1] == "missing":
            return ProtocolError(name, "is missing", "send it")
        remedy = "leave it out" if path else f"leave it out, known are {', '.join(known)}"
        return ProtocolError(name, "is not a known field", remedy)
    return ProtocolError(
        place.lstrip(".") or "body", problem[0].lower() + problem[1:], "correct the field"
    )


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next(value for value in values if value is not None)


@dataclass(frozen=True, slots=True)
class Response:
    """Builds the objects that answer one request; they share its id, time and model."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created_s: int = field(default_factory=lambda: int(time.time()))
    """Wall clock, s since 1970: OpenAI's objects say when in this way."""

    def completion(self, deltas: list[TextDelta], done: Done) -> Json:
        """The whole answer as one object."""
        message: Json = {
            "role": "assistant",
            "content": "".join(delta.text for delta in deltas if not delta.reasoning),
        }
        reasoning = "".join(delta.text for delta in deltas if delta.reasoning)
        if reasoning:
            message["reasoning_content"] = reasoning
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _finish_reason(done),
            "logprobs": None,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of(done),
            "edge": timing_of(done.timeline),
        }

    def opening(self) -> Json:
        """The first chunk, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: TextDelta) -> Json:
        """More text."""
        key = "reasoning_content" if delta.reasoning else "content"
        return self._chunk({key: delta.text})

    def closing(self, done: Done) -> Json:
        """The last chunk with a choice: why the answer ended and what it stood on."""
        return {**self._chunk({}, _finish_reason(done)), "edge": timing_of(done.timeline)}

    def usage(self, done: Done) -> Json:
        """The chunk without a choice that a client asks for by include_usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(done)}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}


def _finish_reason(done: Done) -> str:
    """In OpenAI's words, which know no deadline."""
    return "length" if done.finish_reason == "deadline" else done.finish_reason


def usage_of(done: Done) -> Json:
    """Tokens of a turn as OpenAI counts them."""
    return {
        "prompt_tokens": done.n_prompt_tokens,
        "completion_tokens": done.n_completion_tokens,
        "total_tokens": done.n_prompt_tokens + done.n_completion_tokens,
    }


def timing_of(timeline: Timeline) -> Json:
    """The key `edge` of a response: a turn's timeline, relative to the moment it was asked.

    Returns:
        `*_ms` since asked; `newest_capture_age_ms`, how old the newest frame or sound in the
        state was when asked (negative if it was captured while the question waited, None without
        any); `evidence` with `start_s` and `end_s` since asked, so mostly negative.
    """
    asked_ns, captured_ns = timeline.asked_ns, timeline.captured_ns

    def since_asked(at_ns: int, unit_ns: int) -> float:
        return round((at_ns - asked_ns) / unit_ns, 3)

    age_ms = None if captured_ns is None else round((asked_ns - captured_ns) / NS_PER_MS, 3)
    return {
        "waited_ms": since_asked(timeline.started_ns, NS_PER_MS),
        "prefilled_ms": since_asked(timeline.prefilled_ns, NS_PER_MS),
        "first_token_ms": since_asked(timeline.first_token_ns, NS_PER_MS),
        "finished_ms": since_asked(timeline.finished_ns, NS_PER_MS),
        "newest_capture_age_ms": age_ms,
        "n_context_tokens": timeline.n_context_tokens,
        "evidence": [
            {
                "source": evidence.source,
                "start_s": since_asked(evidence.start_ns, NS_PER_S),
                "end_s": since_asked(evidence.end_ns, NS_PER_S),
                "frame_ids": list(evidence.frame_ids),
            }
            for evidence in timeline.evidence
        ],
    }


def stages_of(stages: Stages, start_ns: int) -> Json:
    """How long one segment took from stage to stage.

    Args:
        start_ns: the session's beginning, from which `captured_s` counts.
    """

    def between(start_ns: int, end_ns: int) -> float:
        return round((end_ns - start_ns) / NS_PER_MS, 3)

    return {
        "modality": stages.modality,
        "n_tokens": stages.n_tokens,
        "n_pruned": stages.n_pruned,
        "captured_s": round((stages.captured_ns - start_ns) / NS_PER_S, 3),
        "late_ms": between(stages.captured_ns, stages.taken_ns),
        "features_ms": between(stages.taken_ns, stages.features_ns),
        "encode_ms": between(stages.features_ns, stages.encoded_ns),
        "prefill_ms": between(stages.encoded_ns, stages.prefilled_ns),
    }
