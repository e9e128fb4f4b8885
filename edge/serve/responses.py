"""Requests for a response as OpenAI's clients speak them: a request in, a question out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.config import Config
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.senses.sent import Decode, decode
from edge.serve.completion import Shown
from edge.serve.conversation import as_turns
from edge.serve.fields import decoded, ignored, settle, told_of, unless
from edge.serve.limits import MAX_BODY_BYTES
from edge.serve.messages import ROLES, AudioPart, AudioUrlPart, Part, Reading, arguments_of
from edge.serve.protocol import (
    MAX_ITEMS,
    MAX_TOOLS,
    ChoiceFormat,
    Json,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
    TextFormat,
)
from edge.serve.request import Effort, Wanted, check_model, films_of, question_of
from edge.serve.response_items import (
    FunctionCallItem,
    FunctionOutputItem,
    InputItem,
    ItemReference,
    KeptOf,
    MessageItem,
    ReasoningItem,
)
from edge.serve.wishes import ChatFunction, ChatTool, ToolName, allowed_tools, named_tool
from edge.serve.wishes import ToolChoice as ChatToolChoice
from edge.session.turn import Message, Question, ToolCall

# What a client says.


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """A function that the model may propose to call."""

    name: ToolName
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None
    cache_control: Annotated[Any, ignored("Nothing is cached between requests.")] = None
    defer_loading: Annotated[Any, ignored("All tools stand in the prompt.")] = None
    output_schema: Annotated[Any, ignored("The prompt describes what a tool takes.")] = None
    allowed_callers: Annotated[Any, unless(["direct"], why="The model is the only caller.")] = None
    is_async: Annotated[Any, unless(False, why="A call waits for its output.")] = msgspec.field(
        name="async", default=None
    )


class ChosenTool(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """The tool that must be called."""

    name: str


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True, tag="allowed_tools"):
    """Some of the tools, one of which may or must be called."""

    mode: Literal["auto", "required"]
    tools: list[ChosenTool]


ToolChoice = Literal["auto", "none", "required"] | ChosenTool | AllowedTools


class SchemaFormat(msgspec.Struct, frozen=True, kw_only=True, tag="json_schema"):
    """JSON that a schema allows."""

    schema: Json
    name: str = ""
    strict: bool | None = None
    description: str | None = None


class TextSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer's text should be."""

    format: TextFormat | JsonObjectFormat | SchemaFormat | RegexFormat | ChoiceFormat | None = None
    verbosity: Annotated[Any, ignored("The model knows no such setting: say it in words.")] = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer should think."""

    effort: Annotated[
        Effort | None, told_of("none turns thinking off, all others turn it on, as in vLLM.")
    ] = None
    summary: Annotated[Any, ignored("The thinking itself is told.")] = None
    generate_summary: Annotated[Any, ignored("The thinking itself is told.")] = None
    context: Annotated[Any, ignored("The template says what is kept of past thinking.")] = None


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is streamed."""

    include_obfuscation: Annotated[Any, ignored("Nothing is padded on this machine.")] = None


_STORED = ignored("Nothing is compacted: a prompt is whole, or refused.")
LOGPROBS = "message.output_text.logprobs"


class ResponsesBody(Wanted, frozen=True, kw_only=True):
    """The body of a request for a response."""

    input: Annotated[
        str | Annotated[list[InputItem], Meta(max_length=MAX_ITEMS)] | None,
        told_of("Without it the answer is about what is perceived."),
    ] = None
    instructions: str | None = None
    previous_response_id: Annotated[str | None, told_of("Of a response that is still kept.")] = None
    store: Annotated[
        bool | None, told_of("Kept in memory, for this client, until newer ones need the room.")
    ] = None
    max_output_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None, told_of("More than the context may hold is cut to it.")
    ] = None
    metadata: Annotated[Json | None, told_of("Comes back in the response.")] = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    include: Annotated[
        list[str] | None, told_of(f"{LOGPROBS}; others ask for what there is not.")
    ] = None
    stream_options: StreamSettings | None = None
    background: Annotated[Any, unless(False, why="Who asks waits for the answer.")] = None
    background_options: Annotated[Any, ignored("Who asks waits for the answer.")] = None
    conversation: Annotated[Any, unless(why="Send previous_response_id, or the items.")] = None
    prompt: Annotated[Any, unless(why="The service keeps no templates.")] = None
    max_tool_calls: Annotated[Any, ignored("It bounds tools that the service itself runs.")] = None
    truncation: Annotated[Any, ignored("A prompt is whole, or refused.")] = None
    context_management: Annotated[Any, _STORED] = None
    image: Annotated[Any, _STORED] = None
    access_programs: Annotated[Any, ignored("There is one service.")] = None


# A request becomes a question.


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """What a client asks, and how it wants the answer."""

    question: Question
    body: ResponsesBody
    items: tuple[InputItem, ...]
    """All that the answer follows, the kept ones first."""
    n_bytes: int
    """That they take."""
    show: Shown
    unheard: list[str]
    """Fields of the request that had no effect."""


def parse_request(
    body: bytes,
    model_name: str,
    config: Config,
    thinking_sampling: Sampling,
    kept: KeptOf,
    decode: Decode = decode,
) -> ResponseRequest:
    """Read the body of a request for a response.

    Args:
        body: JSON.
        model_name: the served model; a request may name it or leave the model open.
        config: gives what the request leaves open, and the bound on max_output_tokens.
        thinking_sampling: the checkpoint's own, where request and config leave it open.
        kept: what is kept for this client.
        decode: makes media of files.

    Raises:
        ModelNotFoundError: the request names another model.
        NotFoundError: it names a response or an item that is not kept.
        ProtocolError: the request cannot be served as it stands; the error's thing is the field.
        MediaError: a picture or a sound cannot be decoded.
    """
    request, unheard = settle(_with_types(body), ResponsesBody)
    check_model(request.model, model_name)
    before: tuple[InputItem, ...] = ()
    n_bytes = len(body)
    if request.previous_response_id is not None:
        previous = kept.response(request.previous_response_id, "previous_response_id")
        before, n_bytes = previous.items, n_bytes + previous.n_bytes
    given = request.input
    new = [MessageItem(role="user", content=given)] if isinstance(given, str) else given or []
    if n_bytes > MAX_BODY_BYTES:
        problem = f"leads to a conversation of more than {MAX_BODY_BYTES} bytes"
        raise ProtocolError("previous_response_id", problem, "send the newest items as input")
    items = (*before, *(_resolved(item, k, kept) for k, item in enumerate(new)))
    contents = [item.content for item in items if isinstance(item, MessageItem)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    has_sound = any(isinstance(part, AudioPart | AudioUrlPart) for part in parts)
    reading = Reading(films_of(request, has_sound=has_sound), decode)
    messages = [
        message
        for k, item in enumerate(items)
        for message in _messages(item, f"input[{k - len(before)}]", reading)
    ]
    include = request.include or []
    question = question_of(
        request,
        config,
        thinking_sampling,
        messages=as_turns(messages, request.instructions or ""),
        tools=[ChatTool(_function(tool)) for tool in request.tools or []],
        choice=_choice(request.tool_choice),
        wanted=_format((request.text or TextSettings()).format),
        effort=(request.reasoning or Reasoning()).effort,
        max_tokens=request.max_output_tokens,
        logprobs=LOGPROBS in include or bool(request.top_logprobs),
    )
    show = Shown(
        reasoning=request.include_reasoning is not False,
        one_call=request.parallel_tool_calls is False,
    )
    unheard += [f"include {name}" for name in include if name != LOGPROBS]
    return ResponseRequest(question, request, items, n_bytes, show, unheard)


def _with_types(body: bytes) -> object:
    """What the body says; OpenAI lets a message and a reference go without their types."""
    request = decoded(body)
    items = request.get("input") if isinstance(request, dict) else None
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("type") is None:
            item["type"] = "message" if "role" in item else "item_reference"
    return request


def _resolved(item: InputItem, place: int, kept: KeptOf) -> InputItem:
    return kept.item(item.id, f"input[{place}].id") if isinstance(item, ItemReference) else item


def _messages(item: InputItem, place: str, reading: Reading) -> Iterator[Message]:
    """What an item says to the session."""
    if isinstance(item, FunctionCallItem):
        call = ToolCall(item.name, arguments_of(item.arguments, f"{place}.arguments"))
        yield Message("assistant", "", calls=(call,))
    elif isinstance(item, FunctionOutputItem):
        yield _said("tool", item.output, f"{place}.output", reading)
    elif isinstance(item, ReasoningItem) and item.content:
        yield Message("assistant", "", reasoning="\n".join(one.text for one in item.content))
    elif isinstance(item, MessageItem):
        yield _said(item.role, item.content, f"{place}.content", reading)


def _said(role: str, content: str | list[str | Part], place: str, reading: Reading) -> Message:
    parts = [content] if isinstance(content, str) else content
    text, media = reading.content(parts, ROLES[role], place)
    return Message(ROLES[role], text, media)


def _function(tool: FunctionTool) -> ChatFunction:
    return ChatFunction(tool.name, tool.description, tool.parameters, tool.strict)


def _choice(choice: ToolChoice | None) -> ChatToolChoice:
    """As chat completions have it."""
    if isinstance(choice, ChosenTool):
        return named_tool(choice.name)
    if isinstance(choice, AllowedTools):
        return allowed_tools(choice.mode, [tool.name for tool in choice.tools])
    return choice


def _format(
    wanted: TextFormat | JsonObjectFormat | SchemaFormat | RegexFormat | ChoiceFormat | None,
) -> ResponseFormat | None:
    """As chat completions have it."""
    if isinstance(wanted, SchemaFormat):
        return JsonSchemaFormat(json_schema=JsonSchema(schema=wanted.schema))
    return wanted
