"""The objects that answer a chat completion request, and what they say about timing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from edge.clock import NS_PER_MS, NS_PER_S
from edge.serve.protocol import Json
from edge.serve.report import report_of
from edge.session.turn import Done, Status, TextDelta, ToolCall
from edge.types import Stages


@dataclass(frozen=True, slots=True)
class Response:
    """Builds the objects that answer one request; they share its id, time and model."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created_s: int = field(default_factory=lambda: int(time.time()))
    """Wall clock, s since 1970: OpenAI's objects say when in this way."""

    def completion(self, said: Sequence[TextDelta | ToolCall], done: Done) -> Json:
        """The whole answer as one object."""
        deltas = [one for one in said if isinstance(one, TextDelta)]
        calls = [one for one in said if isinstance(one, ToolCall)]
        message: Json = {
            "role": "assistant",
            "content": "".join(delta.text for delta in deltas if not delta.reasoning),
        }
        reasoning = "".join(delta.text for delta in deltas if delta.reasoning)
        if reasoning and not any(delta.restated for delta in deltas):
            message |= _reasoning(reasoning)
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _finish_reason(done, bool(calls)),
            "logprobs": None,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of(done),
            "edge": report_of(done),
        }

    def opening(self) -> Json:
        """The first chunk, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: TextDelta | ToolCall, n_calls: int) -> Json:
        """More text, or a proposed call.

        Args:
            n_calls: proposed before.
        """
        if isinstance(delta, ToolCall):
            return self._chunk({"tool_calls": [{"index": n_calls, **_call(delta)}]})
        return self._chunk(_reasoning(delta.text) if delta.reasoning else {"content": delta.text})

    def closing(self, done: Done, has_calls: bool) -> Json:
        """The last chunk with a choice: why the answer ended and what it stood on."""
        return {
            **self._chunk({}, _finish_reason(done, has_calls)),
            "edge": report_of(done),
        }

    def usage(self, done: Done) -> Json:
        """The chunk without a choice that a client asks for by include_usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(done)}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}


def _reasoning(text: str) -> Json:
    """By vLLM's present name, and by the one that it had and others have."""
    return {"reasoning": text, "reasoning_content": text}


def _call(call: ToolCall) -> Json:
    """As OpenAI writes a call: its arguments are a text."""
    function = {"name": call.name, "arguments": call.written}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _finish_reason(done: Done, has_calls: bool) -> str:
    """In OpenAI's words, which know no deadline."""
    if has_calls and done.finish_reason == "stop":
        return "tool_calls"
    return "length" if done.finish_reason == "deadline" else done.finish_reason


def usage_of(done: Done) -> Json:
    """Tokens of a turn as OpenAI counts them."""
    return {
        "prompt_tokens": done.n_prompt_tokens,
        "completion_tokens": done.n_completion_tokens,
        "total_tokens": done.n_prompt_tokens + done.n_completion_tokens,
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
        "status": "ok",
        "ready": status.ready,
        "model": status.model,
        "n_context_tokens": status.n_context_tokens,
        "max_context_tokens": status.max_context_tokens,
        "uptime_s": round(status.uptime_ns / NS_PER_S, 3),
        "counters": status.counters,
        "mode": status.mode,
        "recent": [stages_of(stages, status.start_ns) for stages in status.recent],
    }
