"""The objects that answer a chat completion request, and what they say about timing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from edge.clock import NS_PER_MS, NS_PER_S
from edge.serve.protocol import Json
from edge.serve.report import report_of
from edge.session.turn import Chance, ChoiceDone, Done, Likely, Status, TextDelta, ToolCall
from edge.types import Stages

Said = TextDelta | Chance | ToolCall | ChoiceDone
"""What comes of an answer before its end."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How a client wants to see an answer."""

    reasoning: bool = True
    """Its thinking too."""
    one_call: bool = False
    """The first tool call only, as vLLM has it where parallel_tool_calls is false."""
    as_function: bool = False
    """A call as OpenAI had it before there were tools."""


@dataclass
class Response:
    """Builds the objects that answer one request; they share its id, time and model."""

    model: str
    show: Shown = Shown()
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created_s: int = field(default_factory=lambda: int(time.time()))
    """Wall clock, s since 1970: OpenAI's objects say when in this way."""
    _index: int = 0  # of the answer that is being told
    _n_calls: int = 0  # in it
    _chances: list[Chance] = field(default_factory=list)  # of tokens whose text is to come

    def completion(self, said: Sequence[Said], done: Done) -> Json:
        """The whole answer, or all of them, as one object."""
        choices, ends = [], [at for at, one in enumerate(said) if isinstance(one, ChoiceDone)]
        for index, (start, end) in enumerate(pairwise([-1, *ends, len(said)])):
            last = done if end == len(said) else said[end]
            choices.append(self._choice(index, said[start + 1 : end], last))
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage_of(done),
            "edge": report_of(done),
        }

    def _choice(self, index: int, said: Sequence[Said], end: Any) -> Json:
        deltas = [one for one in said if isinstance(one, TextDelta)]
        calls = [one for one in said if isinstance(one, ToolCall)]
        calls = calls[:1] if self.show.one_call else calls
        text = "".join(delta.text for delta in deltas if not delta.reasoning)
        message: Json = {"role": "assistant", "content": text if text or not calls else None}
        reasoning = "".join(delta.text for delta in deltas if delta.reasoning)
        is_restated = any(delta.restated for delta in deltas)
        if reasoning and self.show.reasoning and not is_restated:
            message |= _reasoning(reasoning)
        if calls and self.show.as_function:
            message["function_call"] = _function(calls[0])
        elif calls:
            message["tool_calls"] = [_call(call) for call in calls]
        chances = [one for one in said if isinstance(one, Chance)]
        return {
            "index": index,
            "message": {**message, "refusal": None},
            "finish_reason": self._finish_reason(end, bool(calls)),
            "logprobs": _logprobs(chances),
        }

    def opening(self) -> Json:
        """The first chunk of an answer, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunks(self, event: Said) -> Iterator[Json]:
        """What one event adds: more text, a proposed call, the end of one of several answers."""
        if isinstance(event, Chance):
            self._chances.append(event)
        elif isinstance(event, TextDelta):
            if not event.reasoning:
                yield self._chunk({"content": event.text})
            elif self.show.reasoning:
                yield self._chunk(_reasoning(event.text))
        elif isinstance(event, ToolCall):
            self._n_calls += 1
            if self._n_calls == 1 or not self.show.one_call:
                delta = {"tool_calls": [{"index": self._n_calls - 1, **_call(event)}]}
                yield self._chunk(
                    {"function_call": _function(event)} if self.show.as_function else delta
                )
        else:
            yield from self._ended(event)
            self._index, self._n_calls = self._index + 1, 0
            yield self.opening()

    def closing(self, done: Done) -> Iterator[Json]:
        """The last chunks with a choice: why the answer ended and what it stood on."""
        *others, last = self._ended(done)
        yield from others
        yield {**last, "edge": report_of(done)}

    def _ended(self, end: Done | ChoiceDone) -> Iterator[Json]:
        if self._chances:  # of tokens without a text of their own
            yield self._chunk({"content": ""})
        yield self._chunk({}, self._finish_reason(end, self._n_calls > 0))

    def usage(self, done: Done) -> Json:
        """The chunk without a choice that a client asks for by include_usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(done)}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        chances: list[Chance] = []
        if "content" in delta:
            chances, self._chances = self._chances, []
        choice = {
            "index": self._index,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": _logprobs(chances),
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}

    def _finish_reason(self, end: Done | ChoiceDone, has_calls: bool) -> str:
        """In OpenAI's words, which know no deadline."""
        if has_calls and end.finish_reason == "stop":
            return "function_call" if self.show.as_function else "tool_calls"
        return "length" if end.finish_reason == "deadline" else end.finish_reason


def _reasoning(text: str) -> Json:
    """By vLLM's present name, and by the one that it had and others have."""
    return {"reasoning": text, "reasoning_content": text}


def _call(call: ToolCall) -> Json:
    """As OpenAI writes a call."""
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": _function(call)}


def _function(call: ToolCall) -> Json:
    """Its arguments are a text."""
    return {"name": call.name, "arguments": call.written}


def _logprobs(chances: Sequence[Chance]) -> Json | None:
    """None where they were not asked for, or nothing was said."""
    if not chances:
        return None
    content = [
        {**likely_of(one.said), "top_logprobs": [likely_of(other) for other in one.others]}
        for one in chances
    ]
    return {"content": content, "refusal": None}


def likely_of(one: Likely) -> Json:
    """A token and its probability, as OpenAI writes them."""
    text = one.token.decode("utf-8", "replace")
    return {"token": text, "logprob": one.logprob, "bytes": list(one.token)}


def usage_of(done: Done) -> Json:
    """Tokens of a turn as OpenAI counts them."""
    return {
        "prompt_tokens": done.n_prompt_tokens,
        "completion_tokens": done.n_completion_tokens,
        "total_tokens": done.n_prompt_tokens + done.n_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.timeline.n_context_tokens},
        "completion_tokens_details": {"reasoning_tokens": done.n_reasoning_tokens},
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


def answer_of(done: Done, start_ns: int) -> Json:
    """How an answer went. What it says is for who asked.

    Args:
        start_ns: the session's beginning, from which `asked_s` counts.
    """
    times = done.timeline

    def since_asked(at_ns: int) -> float:
        return round((at_ns - times.asked_ns) / NS_PER_MS, 3)

    return {
        "asked_s": round((times.asked_ns - start_ns) / NS_PER_S, 3),
        "finish_reason": done.finish_reason,
        "n_prompt_tokens": done.n_prompt_tokens,
        "n_completion_tokens": done.n_completion_tokens,
        "first_token_ms": since_asked(times.first_token_ns),
        "finished_ms": since_asked(times.finished_ns),
    }


def health_of(status: Status) -> Json:
    """What GET /healthz and edge.health have in common."""
    return {
        "status": "degraded" if status.problems else "ok",
        "problems": list(status.problems),
        "ready": status.ready,
        "model": status.model,
        "n_context_tokens": status.n_context_tokens,
        "max_context_tokens": status.max_context_tokens,
        "uptime_s": round(status.uptime_ns / NS_PER_S, 3),
        "counters": status.counters,
        "mode": status.mode,
        "recent": [stages_of(stages, status.start_ns) for stages in status.recent],
    }
