"""Chat completions as OpenAI's clients speak them: a request in, a question out.

What the robot sees and hears is the live context; a request asks about it, and may bring pictures
and sounds of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.config import Config
from edge.model.sampling import Sampling
from edge.senses.sent import Decode, decode
from edge.serve.completion import Shown
from edge.serve.fields import ignored, read, told_of, unless
from edge.serve.messages import MAX_MESSAGES, AudioPart, AudioUrlPart, ChatMessage, to_messages
from edge.serve.protocol import MAX_TOOLS, ResponseFormat
from edge.serve.request import (
    MAX_CHOICES,
    Effort,
    StreamOptions,
    Wanted,
    check_model,
    films_of,
    question_of,
)
from edge.serve.wishes import ChatFunction, ChatTool, ToolChoice, named_tool
from edge.session.turn import Question


class _FunctionName(msgspec.Struct, frozen=True):
    name: str


class ChatBody(Wanted, frozen=True, kw_only=True):
    """The body of a chat completion request."""

    messages: Annotated[
        list[ChatMessage],
        Meta(min_length=1, max_length=MAX_MESSAGES),
        told_of("System messages may stand anywhere; they lead the question."),
    ]
    stream_options: Annotated[
        StreamOptions | None, told_of("Without stream it asks for nothing.")
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None, told_of("More than the context may hold is cut to it.")
    ] = None
    max_completion_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None, told_of("Likewise; it wins over max_tokens.")
    ] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None,
        told_of("One after the other, behind one prompt. Not with edge.remember."),
    ] = None
    logprobs: Annotated[
        bool | None,
        told_of("Of the answer's text, before temperature and penalties, after a format."),
    ] = None
    tools: Annotated[list[ChatTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[
        ToolChoice, told_of("A named tool must be called; allowed_tools are all that there are.")
    ] = None
    functions: Annotated[
        Annotated[list[ChatFunction], Meta(max_length=MAX_TOOLS)] | None,
        told_of("What tools were before; the answer then has a function_call."),
    ] = None
    function_call: Literal["auto", "none"] | _FunctionName | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Annotated[
        Effort | None, told_of("none turns thinking off, all others turn it on, as in vLLM.")
    ] = None
    modalities: Annotated[Any, unless(["text"], [], why="The service does not speak.")] = None
    audio: Annotated[Any, unless(why="The service does not speak.")] = None
    web_search_options: Annotated[Any, unless(why="The service reaches no network.")] = None
    prediction: Annotated[Any, ignored("A guess makes an answer faster, not different.")] = None
    verbosity: Annotated[Any, ignored("The model knows no such setting: say it in words.")] = None
    store: Annotated[Any, ignored("No answer is stored.")] = None
    metadata: Annotated[Any, ignored("No answer is stored.")] = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a client asks, and how it wants the answer."""

    question: Question
    stream: bool
    include_usage: bool
    show: Shown
    unheard: list[str]
    """Fields of the request that had no effect."""


def parse_request(
    body: bytes,
    model_name: str,
    config: Config,
    thinking_sampling: Sampling,
    decode: Decode = decode,
) -> ChatRequest:
    """Read the body of a chat completion request.

    Args:
        body: JSON.
        model_name: the served model; a request may name it or leave the model open.
        config: gives what the request leaves open, and the bound on max_tokens.
        thinking_sampling: the checkpoint's own, where request and config leave it open.
        decode: makes media of files.

    Returns:
        The question with every setting filled in.

    Raises:
        ModelNotFoundError: the request names another model.
        ProtocolError: the request cannot be served as it stands; the error's thing is the field.
    """
    request, unheard = read(body, ChatBody)
    check_model(request.model, model_name)
    options = request.stream_options or StreamOptions()
    tools, choice = _tools(request)
    question = question_of(
        request,
        config,
        thinking_sampling,
        messages=to_messages(
            request.messages, films_of(request, has_sound=_has_sound(request)), decode
        ),
        tools=tools,
        choice=choice,
        wanted=request.response_format,
        effort=request.reasoning_effort,
        # OpenAI renamed the field; its newer name wins where a client sends both.
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=bool(request.logprobs),
        n_choices=request.n or 1,
    )
    return ChatRequest(
        question,
        bool(request.stream),
        bool(options.include_usage),
        Shown(
            reasoning=request.include_reasoning is not False,
            one_call=request.parallel_tool_calls is False or request.functions is not None,
            as_function=request.functions is not None and not request.tools,
        ),
        unheard,
    )


def _has_sound(request: ChatBody) -> bool:
    contents = (message.content for message in request.messages)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return any(isinstance(part, AudioPart | AudioUrlPart) for part in parts)


def _tools(request: ChatBody) -> tuple[list[ChatTool], ToolChoice]:
    """The tools and the choice, also in the form that OpenAI had before tools."""
    if request.tools or request.tool_choice or request.functions is None:
        return request.tools or [], request.tool_choice
    choice = request.function_call
    if isinstance(choice, _FunctionName):
        return [ChatTool(function) for function in request.functions], named_tool(choice.name)
    return [ChatTool(function) for function in request.functions], choice
