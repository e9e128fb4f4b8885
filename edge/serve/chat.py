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
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.serve.messages import ChatMessage, to_messages, wrong_field
from edge.serve.protocol import EdgeAnswer, ResponseFormat
from edge.serve.replies import NotFoundError
from edge.serve.wishes import (
    ChatTool,
    NamedTool,
    abstention_of,
    checked,
    chosen_tools,
    grammar_of,
    recalled,
    remembered,
)
from edge.session.turn import Question

MAX_STOP_CHARACTERS = 256
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class ModelNotFoundError(NotFoundError):
    """A request names a model that is not served here: HTTP 404."""


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None


class _TemplateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enable_thinking: bool | None = None


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body. Clients send null for what they leave open, so None is the default throughout."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
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
    tools: list[ChatTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    n: int | None = None
    user: str | None = None
    chat_template_kwargs: _TemplateSettings | None = None
    edge: EdgeAnswer | None = None


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
        raise wrong_field(error, _Request.__struct_fields__) from error
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
    edge = request.edge or EdgeAnswer()
    tools = chosen_tools(request.tools or [], request.tool_choice)
    return Question(
        messages=to_messages(request.messages),
        sampling=Sampling(
            temperature=_first(request.temperature, answer.temperature, default.temperature),
            top_p=_first(request.top_p, answer.top_p, default.top_p),
            top_k=_first(request.top_k, default.top_k),
            seed=request.seed,
        ),
        max_tokens=_max_tokens(request, config),
        thinking=thinking,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        remember=remembered(edge, config),
        recall_s=recalled(edge),
        consistency=checked(edge, thinking=thinking),
        deadline_s=edge.deadline_s or answer.deadline_s,
        tools=tools,
        grammar=grammar_of(
            request.response_format,
            abstention_of(edge, config),
            tools,
            calls=request.tool_choice not in (None, "auto", "none"),
        ),
        channel="operator",
    )


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


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next(value for value in values if value is not None)
