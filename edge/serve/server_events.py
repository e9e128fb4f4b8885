"""What the service says on /v1/realtime: the other half of `edge.serve.protocol`.

Times in our own events, `*_s`, count from the session's start.
"""

from __future__ import annotations

import uuid

import msgspec

from edge.serve.protocol import ErrorBody, Item, Json, Response, Session
from edge.serve.report import AnswerReport


def new_id(kind: str) -> str:
    """An id that nobody else has."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    event_id: str = msgspec.field(default_factory=lambda: new_id("event"))


class Error(_Event, frozen=True, kw_only=True, tag="error"):
    """An event of the client could not be served; the session goes on."""

    error: ErrorBody


class SessionCreated(_Event, frozen=True, kw_only=True, tag="session.created"):
    """The first event."""

    session: Session


class SessionUpdated(_Event, frozen=True, kw_only=True, tag="session.updated"):
    """The settings as they are now."""

    session: Session


class AudioCommitted(_Event, frozen=True, kw_only=True, tag="input_audio_buffer.committed"):
    """The sound has become an item."""

    item_id: str
    previous_item_id: str | None = None


class AudioCleared(_Event, frozen=True, kw_only=True, tag="input_audio_buffer.cleared"):
    """The sound is forgotten."""


class SpeechStarted(_Event, frozen=True, kw_only=True, tag="input_audio_buffer.speech_started"):
    """Somebody speaks in the client's sound."""

    audio_start_ms: int
    item_id: str
    """Of the item that it will become."""


class SpeechStopped(_Event, frozen=True, kw_only=True, tag="input_audio_buffer.speech_stopped"):
    """Nobody speaks any more."""

    audio_end_ms: int
    item_id: str


class ItemAdded(_Event, frozen=True, kw_only=True, tag="conversation.item.added"):
    """An item is in the conversation."""

    item: Item
    previous_item_id: str | None = None


class ItemDone(_Event, frozen=True, kw_only=True, tag="conversation.item.done"):
    """It is complete."""

    item: Item
    previous_item_id: str | None = None


class ItemDeleted(_Event, frozen=True, kw_only=True, tag="conversation.item.deleted"):
    """It is forgotten."""

    item_id: str


class ItemRetrieved(_Event, frozen=True, kw_only=True, tag="conversation.item.retrieved"):
    """It was asked for."""

    item: Item


class ResponseCreated(_Event, frozen=True, kw_only=True, tag="response.created"):
    """An answer is on its way."""

    response: Response


class ResponseDone(_Event, frozen=True, kw_only=True, tag="response.done"):
    """It has ended, one way or other."""

    response: Response


class _OfItem(_Event, frozen=True, kw_only=True):
    response_id: str
    item_id: str
    output_index: int


class _OfPart(_OfItem, frozen=True, kw_only=True):
    content_index: int = 0


class OutputItemAdded(_Event, frozen=True, kw_only=True, tag="response.output_item.added"):
    """The answer has another item."""

    response_id: str
    output_index: int
    item: Item


class OutputItemDone(_Event, frozen=True, kw_only=True, tag="response.output_item.done"):
    """The item is complete."""

    response_id: str
    output_index: int
    item: Item


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Text of an answer."""

    text: str


class ContentPartAdded(_OfPart, frozen=True, kw_only=True, tag="response.content_part.added"):
    """The item has another part."""

    part: TextPart


class ContentPartDone(_OfPart, frozen=True, kw_only=True, tag="response.content_part.done"):
    """The part is complete."""

    part: TextPart


class TextDelta(_OfPart, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """More text."""

    delta: str


class TextDone(_OfPart, frozen=True, kw_only=True, tag="response.output_text.done"):
    """All of the text."""

    text: str


class CallDelta(_OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """Arguments of a proposed call; all at once."""

    call_id: str
    delta: str


class CallDone(_OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """The model proposes a call. Nothing has been executed."""

    call_id: str
    name: str
    arguments: str


# Ours.


class EdgeSessionStarted(_Event, frozen=True, kw_only=True, tag="edge.session.started"):
    """Which run of the service this is: another one knows nothing of what was seen before, and has
    no triggers."""

    run_id: str


class EdgeReasoning(_Event, frozen=True, kw_only=True, tag="edge.reasoning.delta"):
    """More of the thinking before an answer."""

    response_id: str
    delta: str


class EdgePerceived(_Event, frozen=True, kw_only=True, tag="edge.perceived"):
    """Something seen or heard is in the live context: `edge.serve.completion.stages_of`."""

    segment: Json


class EdgeDegraded(_Event, frozen=True, kw_only=True, tag="edge.degraded"):
    """The session perceives more or less than before."""

    at_s: float
    rung: str
    """From `full` to `answers only`."""
    cause: str


class EdgeDropped(_Event, frozen=True, kw_only=True, tag="edge.dropped"):
    """Frames or chunks did not reach the model since the last look."""

    sense: str
    n_dropped: int
    """There was no time for them."""
    n_skipped: int
    """The budget left them out."""


class EdgeRefused(_Event, frozen=True, kw_only=True, tag="edge.refused"):
    """Something seen or heard cannot be used, or has no room: it is not in the live context."""

    at_s: float
    source: str
    """As in evidence; what was not even encoded has the name of its sense."""
    reason: str


class EdgeRebased(_Event, frozen=True, kw_only=True, tag="edge.rebased"):
    """A shorter state has taken the live one's place."""

    at_s: float
    n_tokens: int


class EdgeNoted(_Event, frozen=True, kw_only=True, tag="edge.noted"):
    """The model has noted what the next rebase will forget."""

    at_s: float
    text: str


class EdgeSpeechStarted(_Event, frozen=True, kw_only=True, tag="edge.speech.started"):
    """Somebody speaks to the robot's own microphone."""

    onset_s: float


class EdgeSpeechStopped(_Event, frozen=True, kw_only=True, tag="edge.speech.stopped"):
    """Nobody speaks any more: one for each `edge.speech.started`, whatever happens."""

    end_s: float
    is_asked: bool
    """Whether it is a question: then `edge.speech.asked` follows, or `edge.speech.done` where there
    was no room for it. Else it was taken back, or its microphone has gone."""


class EdgeSpeechAsked(_Event, frozen=True, kw_only=True, tag="edge.speech.asked"):
    """That was a question; it is being answered."""

    asked_s: float


class EdgeSpeechDelta(_Event, frozen=True, kw_only=True, tag="edge.speech.delta"):
    """More of the answer to it."""

    delta: str
    reasoning: bool = False


class EdgeSpeechDone(_Event, frozen=True, kw_only=True, tag="edge.speech.done"):
    """The answer to it has ended."""

    finish_reason: str
    """stop, length, deadline, cancelled (somebody spoke) or failed."""
    error: str | None = None
    edge: AnswerReport | None = None


class EdgeHealth(_Event, frozen=True, kw_only=True, tag="edge.health"):
    """Once a second, how the service is: as GET /healthz, without clients and answers."""

    health: Json


ServerEvent = (
    Error
    | SessionCreated
    | SessionUpdated
    | AudioCommitted
    | AudioCleared
    | SpeechStarted
    | SpeechStopped
    | ItemAdded
    | ItemDone
    | ItemDeleted
    | ItemRetrieved
    | ResponseCreated
    | ResponseDone
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | TextDelta
    | TextDone
    | CallDelta
    | CallDone
    | EdgeSessionStarted
    | EdgeReasoning
    | EdgePerceived
    | EdgeDegraded
    | EdgeDropped
    | EdgeRefused
    | EdgeRebased
    | EdgeNoted
    | EdgeSpeechStarted
    | EdgeSpeechStopped
    | EdgeSpeechAsked
    | EdgeSpeechDelta
    | EdgeSpeechDone
    | EdgeHealth
)
