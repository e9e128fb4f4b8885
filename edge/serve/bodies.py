"""Bodies of requests and replies that are written nowhere else as types: for /openapi.json.

What the service answers is built as it is told (`completion`, `response_events`, `watching`); the
tests hold it to these types. Times in ms and s are as in those.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from edge.senses.turn_events import Mode
from edge.serve.protocol import Json
from edge.serve.report import AnswerReport
from edge.session.triggers import Trigger
from edge.types import Modality


class ChooseMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose speech takes the turn from now on: for an admin."""

    mode: Mode


class PressButton(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Push-to-talk: for an operator."""

    button: Literal["begin", "commit", "cancel"]


class ErrorObject(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    """What is wrong, and what to do about it."""
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    """The field that is meant, where it is one."""
    code: str | None
    """What programs tell errors apart by."""


class ErrorReply(msgspec.Struct, frozen=True):
    """Why a request was not served."""

    error: ErrorObject


class Model(msgspec.Struct, frozen=True):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    """Tokens that its live context may hold."""


class Models(msgspec.Struct, frozen=True):
    """All that are served: one."""

    object: Literal["list"]
    data: list[Model]


class Segment(msgspec.Struct, frozen=True):
    """One segment's way into the live context, ms from stage to stage."""

    modality: Modality
    n_tokens: int
    n_pruned: int
    captured_s: float
    late_ms: float
    features_ms: float
    encode_ms: float
    prefill_ms: float


class PastAnswer(msgspec.Struct, frozen=True):
    """How an answer went, without what it said."""

    asked_s: float
    finish_reason: str
    n_prompt_tokens: int
    n_completion_tokens: int
    first_token_ms: float
    finished_ms: float


class Clients(msgspec.Struct, frozen=True):
    """Open connections, and since the start who was not let in or had to go."""

    connected: int
    refused: int
    dropped: int


class Health(msgspec.Struct, frozen=True):
    """How the service is."""

    status: str
    ready: bool
    model: str
    n_context_tokens: int
    max_context_tokens: int
    uptime_s: float
    counters: dict[str, int]
    mode: Mode
    recent: list[Segment]
    clients: Clients
    answers: list[PastAnswer]


class Readiness(msgspec.Struct, frozen=True):
    """Whether the service can answer now: 503 where it cannot."""

    ready: bool


class TurnMode(msgspec.Struct, frozen=True):
    """Whose speech takes the turn."""

    mode: Mode


class Likely(msgspec.Struct, frozen=True):
    """A token and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


class Chance(Likely, frozen=True):
    """A token that was said, and others that were likely."""

    top_logprobs: list[Likely]


class Chances(msgspec.Struct, frozen=True):
    """Of the tokens of an answer's text."""

    content: list[Chance] | None
    refusal: None


class ProposedFunction(msgspec.Struct, frozen=True):
    """A proposed call; nothing has been executed."""

    name: str
    arguments: str
    """JSON."""


class ProposedCall(msgspec.Struct, frozen=True):
    """A call of one of the request's tools."""

    id: str
    type: Literal["function"]
    function: ProposedFunction


class ProposedCallDelta(ProposedCall, frozen=True):
    """A call, whole, at its place among the others."""

    index: int


class Said(msgspec.Struct, frozen=True):
    """An answer's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    """The same by the name that it had."""
    tool_calls: list[ProposedCall] | UnsetType = UNSET
    function_call: ProposedFunction | UnsetType = UNSET
    """Where the request has `functions`."""


FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class Choice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: Said
    finish_reason: FinishReason
    logprobs: Chances | None


class PromptDetails(msgspec.Struct, frozen=True):
    """cached: those of the live context, which cost this answer nothing."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """Of an answer's tokens those of its thinking."""

    reasoning_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Completion(msgspec.Struct, frozen=True):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    edge: AnswerReport


class Delta(msgspec.Struct, frozen=True):
    """What a chunk adds."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ProposedCallDelta] | UnsetType = UNSET
    function_call: ProposedFunction | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """More of one answer."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: Chances | None


class CompletionChunk(msgspec.Struct, frozen=True):
    """A piece of a streamed chat completion; `data: [DONE]` follows the last one."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    """Empty in the chunk that tells the usage."""
    usage: CompletionUsage | UnsetType = UNSET
    edge: AnswerReport | UnsetType = UNSET
    """In the last chunk with a choice."""


class InputDetails(msgspec.Struct, frozen=True):
    """cached: those of the live context, which cost this response nothing."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """Of a response's tokens those of its thinking."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response has failed."""

    code: str
    message: str


class Incomplete(msgspec.Struct, frozen=True):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseReply(msgspec.Struct, frozen=True):
    """A response; further fields repeat the request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: Incomplete | None
    model: str
    output: list[Json]
    """Messages, proposed calls and thinking, as OpenAI's items."""
    metadata: Json
    previous_response_id: str | None
    store: bool
    usage: ResponseUsage | None
    completed_at: int | UnsetType = UNSET
    edge: AnswerReport | UnsetType = UNSET


class ResponseEvent(msgspec.Struct, frozen=True):
    """An event of a streamed response, named by its type; further fields are OpenAI's."""

    type: str
    sequence_number: int


class ResponseDeleted(msgspec.Struct, frozen=True):
    """It is kept no longer."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class TriggerState(Trigger, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A trigger as it stands."""

    id: str
    is_on: bool
    confidence: float | None
    """P(yes) / (P(yes) + P(no)) of the last judgement, 0..1; null before the first."""
    n_judged: int


class Triggers(msgspec.Struct, frozen=True):
    """All that are set."""

    data: list[TriggerState]


class TriggerDeleted(msgspec.Struct, frozen=True):
    """It is watched for no longer."""

    id: str
    deleted: Literal[True]
