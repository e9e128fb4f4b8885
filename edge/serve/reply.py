"""One response on /v1/realtime: the session's answer as Realtime events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from edge.errors import EdgeError
from edge.serve import replies
from edge.serve.protocol import (
    ErrorBody,
    FunctionCallItem,
    Item,
    ItemStatus,
    Json,
    MessageItem,
    OutputText,
    Response,
    StatusDetails,
    TokenDetails,
    Usage,
)
from edge.serve.report import AnswerReport, report_of
from edge.serve.server_events import (
    CallDelta,
    CallDone,
    ContentPartAdded,
    ContentPartDone,
    EdgeReasoning,
    OutputItemAdded,
    OutputItemDone,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    TextDone,
    TextPart,
    new_id,
)
from edge.serve.server_events import TextDelta as TextDeltaEvent
from edge.session.turn import AnswerEvent, Done, Failed, TextDelta, ToolCall, Turn

CancelReason = Literal["turn_detected", "client_cancelled"]


@dataclass(frozen=True, slots=True)
class Begun:
    """The session has accepted the question."""


@dataclass
class Reply:
    """Turns the events of one answer into those of one response, in order."""

    conversation_id: str | None
    """None: it leaves no item in the conversation."""
    metadata: Json | None
    turn: Turn | None = None
    """What the session calls it, once it is asked."""
    id: str = field(default_factory=lambda: new_id("resp"))
    output: list[Item] = field(default_factory=list)
    cancelled_by: CancelReason | None = None
    may_call: bool = False
    """The model may propose tool calls in it."""
    one_call: bool = False
    """No more than one is told."""
    remembers: bool = False
    """Question and answer will be in the live context."""
    reasoning: str = ""
    """What was thought before its first item: a tool's answer continues that thought."""
    _is_created: bool = False
    _text: str | None = None
    _item_id: str = ""

    def cancel(self, reason: CancelReason) -> None:
        """Stop it at the next token."""
        self.cancelled_by = self.cancelled_by or reason
        if self.turn is not None:
            self.turn.cancel()

    def events(self, event: AnswerEvent | Begun) -> Iterator[ServerEvent]:
        """What the client hears of one event of the answer."""
        if not self._is_created:  # the answer may be faster than who has asked for it
            self._is_created = True
            yield ResponseCreated(response=self._response("in_progress"))
            if not self.may_call:  # else its first item may be a call
                yield from self._open()
        if isinstance(event, Begun):
            return
        if isinstance(event, TextDelta) and event.reasoning:
            self.reasoning += event.text
            yield EdgeReasoning(response_id=self.id, delta=event.text)
        elif isinstance(event, TextDelta):
            self.reasoning = "" if event.restated else self.reasoning
            if self._text is None:
                yield from self._open()
            self._text = (self._text or "") + event.text
            yield TextDeltaEvent(**self._place(), delta=event.text)
        elif isinstance(event, ToolCall):
            if self.one_call and any(isinstance(one, FunctionCallItem) for one in self.output):
                return
            yield from self._close("completed")
            yield from self._call(event)
        elif isinstance(event, Done | Failed):
            is_whole = isinstance(event, Done) and event.finish_reason == "stop"
            yield from self._close("completed" if is_whole else "incomplete")
            yield ResponseDone(response=self._ended(event))

    def _place(self) -> dict[str, Any]:  # of the item that is being written
        return {
            "response_id": self.id,
            "item_id": self._item_id,
            "output_index": len(self.output),
        }

    def _open(self) -> Iterator[ServerEvent]:
        self._item_id, self._text = new_id("item"), ""
        item = MessageItem(role="assistant", content=[], id=self._item_id, status="in_progress")
        yield OutputItemAdded(response_id=self.id, output_index=len(self.output), item=item)
        yield ContentPartAdded(**self._place(), part=TextPart(text=""))

    def _close(self, status: Literal["completed", "incomplete"]) -> Iterator[ServerEvent]:
        if self._text is None:
            return
        text, self._text = self._text, None
        yield TextDone(**self._place(), text=text)
        yield ContentPartDone(**self._place(), part=TextPart(text=text))
        content = [OutputText(text=text)]
        item = MessageItem(role="assistant", content=[*content], id=self._item_id, status=status)
        yield OutputItemDone(response_id=self.id, output_index=len(self.output), item=item)
        self.output.append(item)

    def _call(self, call: ToolCall) -> Iterator[ServerEvent]:
        self._item_id = new_id("item")
        arguments = call.written
        begun = FunctionCallItem(
            name=call.name,
            arguments="",  # the delta brings them, and some clients add the two up
            call_id=new_id("call"),
            id=self._item_id,
            status="in_progress",
        )
        status: ItemStatus = "completed" if call.is_whole else "incomplete"
        item = msgspec.structs.replace(begun, arguments=arguments, status=status)
        n_before, place = len(self.output), self._place()
        yield OutputItemAdded(response_id=self.id, output_index=n_before, item=begun)
        yield CallDelta(**place, call_id=item.call_id, delta=arguments)
        yield CallDone(**place, call_id=item.call_id, name=call.name, arguments=arguments)
        yield OutputItemDone(response_id=self.id, output_index=n_before, item=item)
        self.output.append(item)

    def _ended(self, event: Done | Failed) -> Response:
        if isinstance(event, Failed):
            details = StatusDetails(type="failed", error=error_body(event.error))
            return self._response("failed", details)
        cached, total = event.timeline.n_context_tokens, event.n_prompt_tokens
        usage = Usage(
            input_tokens=total,
            output_tokens=event.n_completion_tokens,
            total_tokens=total + event.n_completion_tokens,
            input_token_details=TokenDetails(cached_tokens=cached),
        )
        report = report_of(event)
        if event.finish_reason == "stop":
            return self._response("completed", None, usage, report)
        if event.finish_reason == "cancelled":
            details = StatusDetails(type="cancelled", reason=self.cancelled_by)
            return self._response("cancelled", details, usage, report)
        reason: Literal["max_output_tokens", "deadline"]
        reason = "max_output_tokens" if event.finish_reason == "length" else "deadline"
        details = StatusDetails(type="incomplete", reason=reason)
        return self._response("incomplete", details, usage, report)

    def _response(
        self,
        status: Literal["in_progress", "completed", "cancelled", "incomplete", "failed"],
        details: StatusDetails | None = None,
        usage: Usage | None = None,
        report: AnswerReport | None = None,
    ) -> Response:
        return Response(
            id=self.id,
            status=status,
            status_details=details,
            output=[*self.output],
            conversation_id=self.conversation_id,
            metadata=self.metadata,
            usage=usage,
            edge=report,
        )


def error_body(error: EdgeError, event_id: str | None = None) -> ErrorBody:
    """An error as Realtime's clients know it."""
    fields = replies.error_body(error)["error"]
    return ErrorBody(**fields, event_id=event_id)
