"""What clients say, show and let hear, as the session's messages."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.errors import ProtocolError
from edge.senses.clip import FPS, MAX_FRAMES
from edge.senses.sent import Budget, Decode, decode
from edge.senses.still import from_base64, from_data_url
from edge.serve.fields import MISSING, bounded, flat, ignored, unless
from edge.serve.protocol import Json
from edge.session.turn import Message, ToolCall
from edge.types import Medium

MAX_MESSAGES = 4096
MAX_PARTS = 1024
"""Of a message."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message's content."""

    cache_control: Annotated[Any, ignored("Nothing is cached between requests.")] = None
    prompt_cache_breakpoint: Annotated[Any, ignored("Nothing is cached between requests.")] = None
    uuid: Annotated[Any, ignored("vLLM's name of the medium in its cache.")] = None


class TextPart(_Part, frozen=True, kw_only=True, tag="text"):
    """Text."""

    text: str


class InputTextPart(_Part, frozen=True, kw_only=True, tag="input_text"):
    """Text, as Responses have it."""

    text: str


class OutputTextPart(_Part, frozen=True, kw_only=True, tag="output_text"):
    """What the model has answered, as Responses have it."""

    text: str
    annotations: Annotated[Any, ignored("The model sees the text alone.")] = None
    logprobs: Annotated[Any, ignored("The model sees the text alone.")] = None


class RefusalPart(_Part, frozen=True, kw_only=True, tag="refusal"):
    """What the model would not answer."""

    refusal: str


class ThinkingPart(_Part, frozen=True, kw_only=True, tag="thinking"):
    """What the model thought before."""

    thinking: Annotated[Any, ignored("Send it as reasoning_content.")] = None
    signature: Annotated[Any, ignored("Nothing is signed here.")] = None
    closed: Annotated[Any, ignored("Send it as reasoning_content.")] = None


Detail = Annotated[Any, ignored("A picture gets as many tokens as the model's processor gives it.")]


class Url(msgspec.Struct, frozen=True, kw_only=True):
    """A data: URL."""

    url: str
    detail: Detail = None


class ImagePart(_Part, frozen=True, kw_only=True, tag="image_url"):
    """A picture."""

    image_url: str | Url
    detail: Detail = None


class InputImagePart(_Part, frozen=True, kw_only=True, tag="input_image"):
    """A picture, as Responses have it."""

    image_url: str | Url | None = None
    detail: Detail = None
    file_id: Annotated[Any, unless(why="The service keeps no files.")] = None


class Clip(msgspec.Struct, frozen=True, kw_only=True):
    """A file."""

    data: str | None = None
    """Base64, or a data: URL."""
    url: str | None = None
    """A data: URL."""
    format: Annotated[Any, ignored("What the bytes are is read from the bytes.")] = None


class AudioPart(_Part, frozen=True, kw_only=True, tag="input_audio"):
    """A sound."""

    input_audio: Clip


class AudioUrlPart(_Part, frozen=True, kw_only=True, tag="audio_url"):
    """A sound, as vLLM has it."""

    audio_url: str | Url


class VideoPart(_Part, frozen=True, kw_only=True, tag="video_url"):
    """A film, as vLLM has it."""

    video_url: str | Url


class InputVideoPart(_Part, frozen=True, kw_only=True, tag="input_video"):
    """A film, as a sound is sent."""

    input_video: Clip | None = None
    video_url: str | Url | None = None


Part = (
    TextPart
    | InputTextPart
    | OutputTextPart
    | RefusalPart
    | ThinkingPart
    | ImagePart
    | InputImagePart
    | AudioPart
    | AudioUrlPart
    | VideoPart
    | InputVideoPart
)


@dataclass(frozen=True, slots=True)
class FilmSettings:
    """What is taken of the films of a request.

    Source: the model's card, and vLLM's `media_io_kwargs`, `mm_processor_kwargs`.
    """

    fps: float = FPS
    """Frames a second; 0 or less sets no rate."""
    max_frames: int = MAX_FRAMES
    with_sound: bool = False
    pruning_rate: float = 0.0
    """Share of a film's tokens that may go (EVS)."""


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """What was called."""

    name: str
    arguments: str | Json | None = None
    """JSON, or the object itself."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model has proposed."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None
    index: Annotated[Any, ignored("The order of the calls says the same.")] = None
    cache_control: Annotated[Any, ignored("Nothing is cached between requests.")] = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a request: what OpenAI's roles have, and what other servers add."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[str | Part], Meta(max_length=MAX_PARTS)] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    """Comes back when a client appends our own message to its history; what is kept of it is the
    template's affair."""
    reasoning: str | None = None
    """The same by another name."""
    tool_calls: Annotated[list[Call], Meta(max_length=64)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    """Of a tool's message; the order says which call is meant."""
    name: Annotated[Any, ignored("The model's prompt knows roles, not names.")] = None
    annotations: Annotated[Any, ignored("The model sees the text alone.")] = None
    audio: Annotated[
        Any, unless(why="The service does not speak, so it has no sound of an earlier answer.")
    ] = None
    cache_control: Annotated[Any, ignored("Nothing is cached between requests.")] = None


def to_messages(
    messages: Sequence[ChatMessage], films: FilmSettings, decode: Decode = decode
) -> tuple[Message, ...]:
    """The session's messages, with pictures and sounds decoded.

    System messages may stand anywhere: the live prompt puts them before the question. Without a
    user's message the question is empty.

    Raises:
        ProtocolError: one cannot be used; the error's thing is the field.
        MediaError: a picture or a sound cannot be decoded.
    """
    reading = Reading(films, decode)
    said = [_message(message, f"messages[{k}]", reading) for k, message in enumerate(messages)]
    if not any(message.role == "user" for message in said):
        said.append(Message("user", ""))
    return tuple(said)


ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def _message(message: ChatMessage, place: str, reading: Reading) -> Message:
    role = ROLES[message.role]
    content = message.content
    called = [
        (call.function, f"tool_calls[{k}].function")
        for k, call in enumerate(message.tool_calls or ())
    ]
    if message.function_call is not None:
        called.append((message.function_call, "function_call"))
    calls = tuple(
        ToolCall(one.name, arguments_of(one.arguments, f"{place}.{name}.arguments"))
        for one, name in called
    )
    if content is None and role != "assistant":
        raise ProtocolError(f"{place}.content", "is missing", "send it", MISSING)
    parts = [content] if isinstance(content, str) else content or [message.refusal or ""]
    text, media = reading.content(parts, role, f"{place}.content")
    reasoning = message.reasoning_content or message.reasoning or ""
    return Message(role, text, media, calls, reasoning if role == "assistant" else "")


class Reading:
    """Reads the contents of one request's messages, whose media are bounded together."""

    def __init__(self, films: FilmSettings, decode: Decode) -> None:
        """Nothing is read.

        Args:
            films: what is taken of them.
        """
        self._films, self._budget = films, Budget(decode)

    def content(
        self, parts: Sequence[str | Part], role: str, place: str
    ) -> tuple[str, tuple[Medium, ...]]:
        """Text and media of a message.

        Args:
            role: of who says it: media are the user's.
            place: the field, for errors.
        Raises:
            ProtocolError: it cannot be used; the error's thing is the field.
            MediaError: a medium cannot be decoded, or all of them are too large.
        """
        texts: list[str] = []
        media: list[Medium] = []
        for k, part in enumerate(parts):
            one = self._read(part, f"{place}[{k}]")
            if isinstance(one, str):
                texts.append(one)
            elif one is not None:
                media.append(one)
        if media and role != "user":
            problem = f"holds pictures or sounds of the {role}"
            raise ProtocolError(place, problem, "let the user send them")
        return "\n".join(texts), tuple(media)

    def _read(self, part: str | Part, place: str) -> str | Medium | None:
        if isinstance(part, str):
            return part
        if isinstance(part, TextPart | InputTextPart | OutputTextPart):
            return part.text
        if isinstance(part, RefusalPart):
            return part.refusal
        if isinstance(part, ImagePart | InputImagePart):
            data = _bytes_of(part.image_url, f"{place}.image_url", "picture")
            return self._budget.decoded("picture", data)
        if isinstance(part, AudioPart):
            return self._budget.decoded("sound", _data_of(part.input_audio, f"{place}.input_audio"))
        if isinstance(part, AudioUrlPart):
            data = _bytes_of(part.audio_url, f"{place}.audio_url", "sound")
            return self._budget.decoded("sound", data)
        if isinstance(part, VideoPart):
            return self._film(_bytes_of(part.video_url, f"{place}.video_url", "film"))
        if isinstance(part, InputVideoPart):
            if part.input_video is not None:
                return self._film(_data_of(part.input_video, f"{place}.input_video"))
            return self._film(_bytes_of(part.video_url, f"{place}.input_video", "film"))
        return None

    def _film(self, data: bytes) -> Medium:
        films = self._films
        return self._budget.decoded(
            "film",
            data,
            fps=max(films.fps, 0.0),
            max_frames=films.max_frames,
            with_sound=films.with_sound,
            pruning_rate=films.pruning_rate,
        )


def _data_of(clip: Clip, place: str) -> bytes:
    if clip.url is not None:
        return from_data_url(f"{place}.url", clip.url, "file")
    if clip.data is None:
        raise ProtocolError(f"{place}.data", "is missing", "send it", MISSING)
    if clip.data.startswith("data:"):
        return from_data_url(f"{place}.data", clip.data, "file")
    return from_base64(f"{place}.data", clip.data)


def _bytes_of(url: str | Url | None, place: str, what: str) -> bytes:
    if url is None:
        raise ProtocolError(place, "is missing", "send it", MISSING)
    if isinstance(url, Url):
        url, place = url.url, f"{place}.url"
    return from_data_url(place, url, what)


def arguments_of(arguments: str | Json | None, field_name: str) -> dict[str, Any]:
    """The arguments of a call; of one that was cut, those that are complete.

    Args:
        arguments: JSON, or what it says; nothing is no arguments.
    Raises:
        ProtocolError: they are no JSON object.
    """
    if isinstance(arguments, dict):
        return arguments
    found = None
    for end in ("", "}"):
        with contextlib.suppress(ValueError), bounded(field_name):
            found = json.loads((arguments or "{}") + end)
            # Half an emoji in a model's call is an escape that is no text: the rest is kept.
            whole = json.dumps(found, ensure_ascii=False).encode("utf-16", "surrogatepass")
            found = flat(json.loads(whole.decode("utf-16", "replace")), field_name)
            break
    if not isinstance(found, dict):
        problem = f"has arguments {(arguments or '')[:40]!r}"
        raise ProtocolError(field_name, problem, "send a JSON object")
    return found
