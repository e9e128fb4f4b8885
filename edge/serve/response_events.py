"""One response on /v1/responses: the session's answer as Responses' events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge.errors import EdgeError
from edge.serve.completion import likely_of
from edge.serve.protocol import Json, TextFormat
from edge.serve.replies import error_body
from edge.serve.report import report_of
from edge.serve.response_items import InputItem
from edge.serve.responses import FunctionTool, Reasoning, ResponseRequest, TextSettings
from edge.serve.server_events import new_id
from edge.session.turn import AnswerEvent, Chance, Done, Failed, TextDelta, ToolCall


@dataclass
class ResponseEvents:
    """Turns the events of one answer into those of one response, in OpenAI's order.

    The last one holds the whole response, which is also the answer to who does not stream.
    """

    request: ResponseRequest
    model: str
    id: str = field(default_factory=lambda: new_id("resp"))
    created_s: int = field(default_factory=lambda: int(time.time()))
    """Wall clock, s since 1970."""
    output: list[Json] = field(default_factory=list)
    _n_sent: int = 0
    _n_calls: int = 0
    _text: str | None = None  # of the item that is being written
    _is_thinking: bool = False
    _item_id: str = ""
    _chances: list[Chance] = field(default_factory=list)
    _n_chances_told: int = 0

    def opening(self) -> Iterator[Json]:
        """The response has begun."""
        response = self._response("in_progress")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def events(self, event: AnswerEvent) -> Iterator[Json]:
        """What one event of the answer adds."""
        if isinstance(event, Chance):
            self._chances.append(event)
        elif isinstance(event, TextDelta):
            if not event.reasoning or self.request.show.reasoning:
                yield from self._say(event.text, thinking=event.reasoning)
        elif isinstance(event, ToolCall):
            self._n_calls += 1
            if self._n_calls == 1 or not self.request.show.one_call:
                yield from self._close("completed")
                yield from self._call(event)
        elif isinstance(event, Done):
            is_whole = event.finish_reason == "stop"
            if self._text is None and (self._chances or not self.output):
                yield from self._open(thinking=False)
            yield from self._close("completed" if is_whole else "incomplete")
            status = "completed" if is_whole else "incomplete"
            yield self._event(f"response.{status}", response=self._response(status, event))
        elif isinstance(event, Failed):
            yield from self.failed(event.error)

    def failed(self, error: EdgeError) -> Iterator[Json]:
        """The response has ended without an answer."""
        yield from self._close("incomplete")
        told = error_body(error)["error"]
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": told["message"]}
        yield self._event("response.failed", response=response)

    def kept_items(self) -> tuple[InputItem, ...]:
        """What a next response follows."""
        return (*self.request.items, *msgspec.convert(self.output, list[InputItem]))

    def _say(self, text: str, *, thinking: bool) -> Iterator[Json]:
        if self._text is not None and self._is_thinking != thinking:
            yield from self._close("completed")
        if self._text is None:
            yield from self._open(thinking=thinking)
        self._text = (self._text or "") + text
        if thinking:
            yield self._event("response.reasoning_text.delta", **self._place(), delta=text)
            return
        told = [_logprob(one, with_bytes=False) for one in self._chances[self._n_chances_told :]]
        self._n_chances_told = len(self._chances)
        yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=told)

    def _open(self, *, thinking: bool) -> Iterator[Json]:
        self._is_thinking, self._text = thinking, ""
        self._item_id = new_id("rs" if thinking else "msg")
        yield self._event(
            "response.output_item.added",
            output_index=len(self.output),
            item=self._item("in_progress", []),
        )
        yield self._event("response.content_part.added", **self._place(), part=self._part())

    def _close(self, status: str) -> Iterator[Json]:
        if self._text is None:
            return
        part, place = self._part(), self._place()
        if self._is_thinking:
            yield self._event("response.reasoning_text.done", **place, text=self._text)
        else:
            told = [_logprob(one, with_bytes=False) for one in self._chances]
            yield self._event("response.output_text.done", **place, text=self._text, logprobs=told)
            self._chances, self._n_chances_told = [], 0
        yield self._event("response.content_part.done", **place, part=part)
        yield from self._put(self._item(status, [part]))
        self._text = None

    def _put(self, item: Json) -> Iterator[Json]:
        yield self._event("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)

    def _call(self, call: ToolCall) -> Iterator[Json]:
        arguments, status = call.written, "completed" if call.is_whole else "incomplete"
        item: Json = {
            "type": "function_call",
            "id": new_id("fc"),
            "call_id": new_id("call"),
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        place = {"item_id": item["id"], "output_index": len(self.output)}
        yield self._event("response.output_item.added", output_index=len(self.output), item=item)
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", **place, delta=arguments)
        yield self._event(f"{kind}.done", **place, name=call.name, arguments=arguments)
        yield from self._put({**item, "arguments": arguments, "status": status})

    def _event(self, kind: str, **fields: Any) -> Json:
        self._n_sent += 1
        return {"type": kind, "sequence_number": self._n_sent - 1, **fields}

    def _place(self) -> Json:  # of the part that is being written
        return {"item_id": self._item_id, "output_index": len(self.output), "content_index": 0}

    def _item(self, status: str, content: list[Json]) -> Json:
        item: Json = {"id": self._item_id, "status": status, "content": content}
        if self._is_thinking:
            return {"type": "reasoning", "summary": [], **item}
        return {"type": "message", "role": "assistant", **item}

    def _part(self) -> Json:
        if self._is_thinking:
            return {"type": "reasoning_text", "text": self._text}
        told = [_logprob(one, with_bytes=True) for one in self._chances]
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": told}

    def _response(self, status: str, done: Done | None = None) -> Json:
        body, question = self.request.body, self.request.question
        text = body.text or TextSettings()
        reasoning = body.reasoning or Reasoning()
        response: Json = {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": [*self.output],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": reasoning.effort, "summary": None},
            "store": body.store is not False,
            "temperature": question.sampling.temperature,
            "text": {"format": text.format or TextFormat()},
            "tool_choice": body.tool_choice or "auto",
            "tools": [_tool(tool) for tool in body.tools or []],
            "top_logprobs": question.n_alternatives or 0,
            "top_p": question.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }
        if done is not None:
            response["completed_at"] = int(time.time())
            response["usage"] = _usage(done)
            response["edge"] = report_of(done)
        return response


def _tool(tool: FunctionTool) -> Json:
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", **{name: getattr(tool, name) for name in names}}


def _logprob(one: Chance, *, with_bytes: bool) -> Json:
    said, *others = (likely_of(likely) for likely in (one.said, *one.others))
    for likely in (said, *others) if not with_bytes else ():
        del likely["bytes"]
    return {**said, "top_logprobs": others}


def _usage(done: Done) -> Json:
    cached = done.timeline.n_context_tokens
    return {
        "input_tokens": done.n_prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": done.n_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": done.n_reasoning_tokens},
        "total_tokens": done.n_prompt_tokens + done.n_completion_tokens,
    }
