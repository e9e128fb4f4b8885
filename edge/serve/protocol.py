"""Events of the WebSocket /v1/realtime: OpenAI's Realtime events, and ours under `edge.`.

Times in ms count sound that the client has sent; times in s are relative to the session's start.
What becomes of each field is said here (`edge.serve.fields`) and listed in docs/fields.md; within
`edge` an unknown field is refused. The JSON Schema of all of them is docs/schema/.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edge.serve.fields import ignored, unless
from edge.serve.report import AnswerReport

Json = dict[str, Any]
Seconds = Annotated[float, Meta(ge=0.0, le=86_400.0)]
Modality = Literal["text", "audio"]
Topic = Literal[
    "session",
    "perceived",
    "degraded",
    "dropped",
    "rebased",
    "noted",
    "trigger",
    "speech",
    "health",
]
"""Which of our events a client wants to hear."""
RATE_HZ = 24_000
"""Of sound on this socket, if the session does not say another: PCM, 16 bits, little-endian, mono.
"""
TELEPHONE_HZ = 8_000
"""Of G.711."""
MAX_TOOLS = 128
"""OpenAI's bound."""
MAX_ITEMS, MAX_PARTS = 4096, 1024
"""Of the input of one response, and of an item."""
_SILENT = "The service does not speak."
_NO_TRANSCRIPT = "The model answers what it hears; nothing is written down."


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an event."""


class _Own(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part that is not OpenAI's."""


# What an answer should be.


class JsonSchema(_Part, frozen=True, kw_only=True):
    """A schema, with the name that OpenAI's clients give it."""

    schema: Json
    name: str = ""
    strict: bool | None = None
    description: str | None = None


class TextFormat(_Part, frozen=True, kw_only=True, tag="text"):
    """Whatever the model says."""


class JsonObjectFormat(_Part, frozen=True, kw_only=True, tag="json_object"):
    """Any JSON object."""

    schema: Json | None = None
    """That it follows, as llama.cpp's clients say it."""


class JsonSchemaFormat(_Part, frozen=True, kw_only=True, tag="json_schema"):
    """JSON that a schema allows."""

    json_schema: JsonSchema


class RegexFormat(_Own, frozen=True, kw_only=True, tag="regex"):
    """Ours: text that a regular expression matches as a whole (Rust's syntax)."""

    regex: str


class ChoiceFormat(_Own, frozen=True, kw_only=True, tag="choice"):
    """Ours: one of some texts."""

    choice: list[str]


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | ChoiceFormat


class EdgeAnswer(_Own, frozen=True, kw_only=True):
    """Our own wishes for an answer; what is left open is as the service is configured."""

    remember: bool | None = None
    """Question and answer stay in the live context."""
    recall_s: tuple[Seconds, Seconds] | None = None
    """Answer only from what was perceived between so many seconds ago, the longer first."""
    deadline_s: Annotated[float, Meta(gt=0.0, le=3600.0)] | None = None
    """Since the request: an answer that has not begun then is refused, one that has is cut."""
    consistency: bool | None = None
    """Find out where the answer comes from, once it is complete: what was seen, heard, or both. Not
    together with thinking."""
    abstain: str | None = None
    """With a response format: this text, as a JSON string in JSON, is always allowed too."""


class EdgeSession(EdgeAnswer, frozen=True, kw_only=True):
    """`session.edge`: our own settings of a client's session."""

    events: tuple[Topic, ...] | None = None
    """Which of our events are sent; none if left open."""
    thinking: bool | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    response_format: ResponseFormat | None = None


class FunctionTool(_Part, frozen=True, kw_only=True):
    """A function that the model may propose to call."""

    name: str
    type: Literal["function"] = "function"
    description: str | None = None
    parameters: Json | None = None
    strict: Annotated[Any, ignored("Demanded calls follow their schema; texts may be any.")] = None


class NamedFunction(_Part, frozen=True, kw_only=True):
    """The function that must be called: by its name here, or as chat completions say it."""

    type: Literal["function"]
    name: str | None = None
    function: Json | None = None


ToolChoice = Literal["auto", "none", "required"] | NamedFunction


class Reasoning(_Part, frozen=True, kw_only=True):
    """Whether the model thinks before it answers: not for `none` and `minimal`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


# Session settings.


class SoundFormat(_Part, frozen=True, kw_only=True):
    """Of the sound that a client sends: PCM of 16 bits, or G.711 with 8 kHz; mono."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Annotated[int, Meta(ge=8_000, le=48_000)] | UnsetType = UNSET
    """Of PCM, in Hz; 24000 if left out."""


_FIXED = "A turn ends after 640 ms without speech; session.updated tells all three."


class ServerVad(_Part, frozen=True, kw_only=True):
    """The service says where speech begins and ends. Its three thresholds are fixed.

    `semantic_vad` is served by the same detector, and told so.
    """

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    create_response: bool = True
    interrupt_response: bool = True
    threshold: Annotated[Any, ignored(_FIXED)] = None
    prefix_padding_ms: Annotated[Any, ignored(_FIXED)] = None
    silence_duration_ms: Annotated[Any, ignored(_FIXED)] = None
    eagerness: Annotated[Any, ignored(_FIXED)] = UNSET
    idle_timeout_ms: Annotated[Any, unless(why="The service says nothing unasked.")] = None


class AudioInput(_Part, frozen=True, kw_only=True):
    """How sound comes in."""

    format: SoundFormat | UnsetType = UNSET
    turn_detection: ServerVad | UnsetType | None = UNSET
    """null: turns end with input_audio_buffer.commit."""
    noise_reduction: Annotated[Any, ignored("The model hears what was sent.")] = UNSET
    transcription: Annotated[Any, unless(why=_NO_TRANSCRIPT)] = UNSET


class Audio(_Part, frozen=True, kw_only=True):
    """Sound of a session."""

    input: AudioInput | UnsetType = UNSET
    output: Annotated[Any, ignored(_SILENT)] = UNSET


_TOLD = ignored("The service says it.")


class Session(_Part, frozen=True, kw_only=True):
    """Settings of one client's session; session.update changes those that it has.

    Each by itself: what cannot be had is told, with the field's name, and the others are changed.
    """

    type: Literal["realtime"] = "realtime"
    object: Annotated[str | UnsetType, _TOLD] = UNSET
    id: Annotated[str | UnsetType, _TOLD] = UNSET
    expires_at: Annotated[Any, _TOLD] = UNSET
    client_secret: Annotated[Any, _TOLD] = UNSET
    model: str | UnsetType = UNSET
    output_modalities: Annotated[list[Modality], Meta(min_length=1)] | UnsetType = UNSET
    """["text"]: the service does not speak."""
    instructions: str | UnsetType = UNSET
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | UnsetType = UNSET
    tool_choice: ToolChoice | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    """false: one call an answer."""
    max_output_tokens: Annotated[int, Meta(ge=1)] | Literal["inf"] | UnsetType = UNSET
    reasoning: Reasoning | UnsetType = UNSET
    audio: Audio | UnsetType = UNSET
    include: Annotated[Any, unless([], why=_NO_TRANSCRIPT)] = UNSET
    prompt: Annotated[Any, unless(why="The service keeps no prompts: send instructions.")] = UNSET
    tracing: Annotated[Any, ignored("Nothing leaves the machine.")] = UNSET
    truncation: Annotated[Any, unless("auto", why="The oldest items make room for the newest.")] = (
        UNSET
    )
    speed: Annotated[Any, ignored(_SILENT)] = UNSET
    voice: Annotated[Any, ignored(_SILENT)] = UNSET
    output_audio_format: Annotated[Any, ignored(_SILENT)] = UNSET
    edge: EdgeSession | UnsetType = UNSET


# Conversation items.


class InputText(_Part, frozen=True, kw_only=True, tag="input_text"):
    """What a user or the system writes."""

    text: str


class InputAudio(_Part, frozen=True, kw_only=True, tag="input_audio"):
    """What a user says."""

    audio: str | None = None
    """Base64 of PCM; not sent back."""
    transcript: str | None = None


class InputImage(_Part, frozen=True, kw_only=True, tag="input_image"):
    """What a user shows."""

    image_url: str | None = None
    """data:image/jpeg;base64,... or another kind of picture; not sent back."""
    detail: Annotated[
        Any, ignored("A picture gets as many tokens as the model's processor gives it.")
    ] = None


class OutputText(_Part, frozen=True, kw_only=True, tag="output_text"):
    """What the model has answered."""

    text: str


class OutputAudio(_Part, frozen=True, kw_only=True, tag="output_audio"):
    """What a model has said: the transcript counts."""

    transcript: str | None = None
    audio: Annotated[Any, ignored("The model sees the transcript.")] = None


class OldText(_Part, frozen=True, kw_only=True, tag="text"):
    """`output_text`, as clients of the beta have it."""

    text: str


class OldAudio(_Part, frozen=True, kw_only=True, tag="audio"):
    """`output_audio`, as clients of the beta have it."""

    transcript: str | None = None
    audio: Annotated[Any, ignored("The model sees the transcript.")] = None


Content = InputText | InputAudio | InputImage | OutputText | OutputAudio | OldText | OldAudio
ItemStatus = Literal["completed", "incomplete", "in_progress"]


class MessageItem(_Part, frozen=True, kw_only=True, tag="message"):
    """Something said."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Content], Meta(max_length=MAX_PARTS)]
    id: str | None = None
    object: Literal["realtime.item"] = "realtime.item"
    status: ItemStatus = "completed"


class FunctionCallItem(_Part, frozen=True, kw_only=True, tag="function_call"):
    """A call that the model proposes; the client decides."""

    name: str
    arguments: str
    """JSON."""
    call_id: str = ""
    id: str | None = None
    object: Literal["realtime.item"] = "realtime.item"
    status: ItemStatus = "completed"


class FunctionOutputItem(_Part, frozen=True, kw_only=True, tag="function_call_output"):
    """What the call gave."""

    call_id: str
    output: str
    id: str | None = None
    object: Literal["realtime.item"] = "realtime.item"
    status: ItemStatus = "completed"


Item = MessageItem | FunctionCallItem | FunctionOutputItem


class ItemReference(_Part, frozen=True, kw_only=True, tag="item_reference"):
    """An item of the conversation."""

    id: str


# Responses.


class ResponseSettings(_Part, frozen=True, kw_only=True):
    """What one response.create changes of the session's settings."""

    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | Literal["inf"] | None = None
    output_modalities: Annotated[list[Modality], Meta(min_length=1)] | None = None
    """["text"]; another is told, and the answer is text."""
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    conversation: Literal["auto", "none"] | None = None
    """none: it leaves no item in the conversation."""
    input: Annotated[list[Item | ItemReference], Meta(max_length=MAX_ITEMS)] | None = None
    """Instead of the conversation."""
    metadata: Json | None = None
    audio: Annotated[Any, ignored(_SILENT)] = None
    voice: Annotated[Any, ignored(_SILENT)] = None
    output_audio_format: Annotated[Any, ignored(_SILENT)] = None
    prompt: Annotated[Any, unless(why="The service keeps no prompts: send instructions.")] = None
    edge: EdgeSession | None = None


class TokenDetails(_Part, frozen=True, kw_only=True):
    """cached: those of the live context, which cost this response nothing."""

    cached_tokens: int


class Usage(_Part, frozen=True, kw_only=True):
    """Tokens of one response."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: TokenDetails


class ErrorBody(_Part, frozen=True, kw_only=True):
    """What is wrong, and what to do about it."""

    type: str
    message: str
    code: str | None = None
    param: str | None = None
    event_id: str | None = None
    """Of the client's event."""


class StatusDetails(_Part, frozen=True, kw_only=True):
    """Why a response is not complete."""

    type: Literal["completed", "cancelled", "incomplete", "failed"]
    reason: Literal["turn_detected", "client_cancelled", "max_output_tokens", "deadline"] | None = (
        None
    )
    error: ErrorBody | None = None


class Response(_Part, frozen=True, kw_only=True):
    """One answer of the model."""

    id: str
    object: Literal["realtime.response"] = "realtime.response"
    status: Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
    status_details: StatusDetails | None = None
    output: list[Item] = []
    output_modalities: tuple[Modality, ...] = ("text",)
    conversation_id: str | None = None
    metadata: Json | None = None
    usage: Usage | None = None
    edge: AnswerReport | None = None


class _ClientEvent(msgspec.Struct, frozen=True, kw_only=True):
    event_id: str | None = None
    """The client's own; an error names it."""


class SessionUpdate(_ClientEvent, frozen=True, kw_only=True, tag="session.update"):
    """Change settings."""

    session: Session


class AudioAppend(_ClientEvent, frozen=True, kw_only=True, tag="input_audio_buffer.append"):
    """More sound."""

    audio: str
    """Base64 of PCM, any length."""


class AudioCommit(_ClientEvent, frozen=True, kw_only=True, tag="input_audio_buffer.commit"):
    """The sound so far is a user's item."""


class AudioClear(_ClientEvent, frozen=True, kw_only=True, tag="input_audio_buffer.clear"):
    """Forget the sound so far."""


class ItemCreate(_ClientEvent, frozen=True, kw_only=True, tag="conversation.item.create"):
    """Put an item behind the others."""

    item: Item
    previous_item_id: str | None = None
    """Behind this one; "root": before all; left out: behind all."""


class ItemDelete(_ClientEvent, frozen=True, kw_only=True, tag="conversation.item.delete"):
    """Forget an item."""

    item_id: str


class ItemTruncate(_ClientEvent, frozen=True, kw_only=True, tag="conversation.item.truncate"):
    """Cut what was said aloud: the service says nothing aloud, so nothing can be."""

    item_id: str
    content_index: int = 0
    audio_end_ms: int = 0


class ItemRetrieve(_ClientEvent, frozen=True, kw_only=True, tag="conversation.item.retrieve"):
    """Ask for an item."""

    item_id: str


class ResponseCreate(_ClientEvent, frozen=True, kw_only=True, tag="response.create"):
    """Answer now."""

    response: ResponseSettings | None = None


class ResponseCancel(_ClientEvent, frozen=True, kw_only=True, tag="response.cancel"):
    """Stop answering."""

    response_id: str | None = None


ClientEvent = (
    SessionUpdate
    | AudioAppend
    | AudioCommit
    | AudioClear
    | ItemCreate
    | ItemDelete
    | ItemTruncate
    | ItemRetrieve
    | ResponseCreate
    | ResponseCancel
)
