"""What clients say, show and let hear, as the session's messages."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.errors import ProtocolError
from edge.senses.still import (
    decode_picture,
    decode_sound,
    from_base64,
    from_data_url,
)
from edge.serve.protocol import Json
from edge.session.turn import Message, ToolCall
from edge.types import Picture, Sound


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a request."""


class _Text(_Strict, frozen=True, kw_only=True, tag="text"):
    text: str


class _Url(_Strict, frozen=True, kw_only=True):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class _Image(_Strict, frozen=True, kw_only=True, tag="image_url"):
    image_url: _Url


class _Clip(_Strict, frozen=True, kw_only=True):
    data: str
    format: Literal["wav", "mp3"]


class _Audio(_Strict, frozen=True, kw_only=True, tag="input_audio"):
    input_audio: _Clip


_Part = _Text | _Image | _Audio


class _Function(_Strict, frozen=True, kw_only=True):
    name: str
    arguments: str


class _Call(_Strict, frozen=True, kw_only=True):
    id: str
    function: _Function
    type: Literal["function"] = "function"
    index: int | None = None


class ChatMessage(_Strict, frozen=True, kw_only=True):
    """One message of a request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Json] | None = None
    reasoning_content: str | None = None
    """Comes back when a client appends our own message to its history; what is kept of it is the
    template's affair."""
    reasoning: str | None = None
    """The same by another name."""
    tool_calls: Annotated[list[_Call], Meta(max_length=64)] | None = None
    tool_call_id: str | None = None
    """Of a tool's message; the order says which call is meant."""


def to_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The session's messages, with pictures and sounds decoded.

    Raises:
        ProtocolError: one cannot be used; the error's thing is the field.
        MediaError: a picture or a sound cannot be decoded.
    """
    said = []
    for place, message in enumerate(messages):
        field_name = f"messages[{place}]"
        if message.role in ("system", "developer") and place > 0:
            raise ProtocolError(
                f"{field_name}.role",
                f"is {message.role!r} after the first message",
                "send at most one system message, as the first",
            )
        said.append(_message(message, field_name))
    last = messages[-1].role
    if last not in ("user", "tool"):
        raise ProtocolError(
            f"messages[{len(said) - 1}].role",
            f"is {last!r} in the last message",
            "end with a user message",
        )
    if not any(message.role == "user" for message in said):
        raise ProtocolError("messages", "have no user message", "send one")
    return tuple(said)


def _message(message: ChatMessage, field_name: str) -> Message:
    content = message.content
    calls = tuple(_called(call, field_name) for call in message.tool_calls or ())
    if content is None and not calls:
        raise ProtocolError(f"{field_name}.content", "is missing", "send it")
    parts: list[str | Picture | Sound] = [content] if isinstance(content, str) else []
    if isinstance(content, list):
        parts = [_part(part, f"{field_name}.content[{k}]") for k, part in enumerate(content)]
    media = tuple(part for part in parts if not isinstance(part, str))
    if media and message.role != "user":
        problem = f"holds pictures or sounds of the {message.role}"
        raise ProtocolError(f"{field_name}.content", problem, "let the user send them")
    role: Literal["system", "user", "assistant", "tool"] = (
        "system" if message.role in ("system", "developer") else message.role  # type: ignore[assignment]
    )
    text = "\n".join(part for part in parts if isinstance(part, str))
    reasoning = message.reasoning_content or message.reasoning or ""
    return Message(role, text, media, calls, reasoning if role == "assistant" else "")


def _part(part: Json, field_name: str) -> str | Picture | Sound:
    kind = part.get("type")
    known = {"text": _Text, "image_url": _Image, "input_audio": _Audio}
    if isinstance(kind, str) and kind not in known:
        raise ProtocolError(f"{field_name}.type", f"is {kind!r}", f"send one of {[*known]}")
    try:
        read: _Part = msgspec.convert(part, _Part)
    except msgspec.ValidationError as error:
        fields = known[kind].__struct_fields__ if isinstance(kind, str) else ("type",)
        raise wrong_field(error, fields, field_name) from error
    if isinstance(read, _Text):
        return read.text
    if isinstance(read, _Image):
        return decode_picture(from_data_url(f"{field_name}.image_url.url", read.image_url.url))
    return decode_sound(from_base64(f"{field_name}.input_audio.data", read.input_audio.data))


def _called(call: _Call, field_name: str) -> ToolCall:
    return ToolCall(
        call.function.name, arguments_of(call.function.arguments, f"{field_name}.tool_calls")
    )


def arguments_of(text: str, field_name: str) -> dict[str, Any]:
    """The arguments of a call; of one that was cut, those that are complete.

    Raises:
        ProtocolError: they are no JSON object.
    """
    arguments = None
    for end in ("", "}"):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads((text or "{}") + end)
            break
    if not isinstance(arguments, dict):
        raise ProtocolError(field_name, f"has arguments {text[:40]!r}", "send a JSON object")
    return arguments


def wrong_field(
    error: msgspec.ValidationError, known: tuple[str, ...], inside: str = ""
) -> ProtocolError:
    """msgspec's `problem - at `$.path``, as our error."""
    problem, _, path = str(error).partition(" - at `$")
    place = inside + path.removesuffix("`")
    named = re.fullmatch(r"Object (contains|missing) \w+ field `(.*)`", problem, re.DOTALL)
    if named:
        name = f"{place}.{named[2]}".lstrip(".")
        if named[1] == "missing":
            return ProtocolError(name, "is missing", "send it")
        remedy = "leave it out" if path else f"leave it out, known are {', '.join(known)}"
        return ProtocolError(name, "is not a known field", remedy)
    return ProtocolError(
        place.lstrip(".") or "body", problem[0].lower() + problem[1:], "correct the field"
    )
