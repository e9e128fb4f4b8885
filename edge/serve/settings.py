"""The settings of one client's realtime session, and the question that they make of a turn."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from edge.config import Config
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.serve.protocol import (
    Audio,
    AudioInput,
    EdgeSession,
    FunctionTool,
    PcmFormat,
    ResponseSettings,
    ServerVad,
    Session,
)
from edge.serve.wishes import (
    ChatFunction,
    ChatTool,
    abstention_of,
    checked,
    chosen_tools,
    grammar_of,
    recalled,
    remembered,
)
from edge.session.turn import Message, Question

T = TypeVar("T", bound=msgspec.Struct)
THRESHOLDS: dict[str, Any] = {
    "threshold": 0.5,
    "prefix_padding_ms": 320,
    "silence_duration_ms": 640,
}
"""Of `edge.senses.turns`, whose they are: not settable."""


def first_settings(session_id: str, model: str, config: Config) -> Session:
    """What a session begins with."""
    return Session(
        object="realtime.session",
        id=session_id,
        model=model,
        output_modalities=["text"],
        instructions="",
        tools=[],
        tool_choice="auto",
        max_output_tokens=config.answer.max_tokens,
        audio=Audio(input=AudioInput(format=PcmFormat(), turn_detection=ServerVad(**THRESHOLDS))),
        edge=EdgeSession(),
    )


def changed(settings: Session, wanted: Session, config: Config) -> Session:
    """The settings with what a client wants of them changed.

    Raises:
        ProtocolError: something wanted cannot be had.
    """
    if wanted.model not in (UNSET, settings.model):
        raise ProtocolError("session.model", f"is {wanted.model!r}", f"use {settings.model!r}")
    _check_modalities(wanted.output_modalities, "session.output_modalities")
    _check_tokens(wanted.max_output_tokens, config, "session.max_output_tokens")
    audio = _given(settings.audio, wanted.audio)
    if wanted.audio is not UNSET and settings.audio is not UNSET:
        audio = Audio(input=_given(settings.audio.input, wanted.audio.input, nested=True))
    edge = merged(settings.edge or EdgeSession(), wanted.edge or None)
    kept: Session = _given(settings, wanted, nested=True)
    new = msgspec.structs.replace(
        kept, object=settings.object, id=settings.id, audio=_told(audio), edge=edge
    )
    question_of(new, ResponseSettings(), [], config, Sampling())  # what cannot be asked is told now
    return new


def _given(old: Any, new: Any, *, nested: bool = False) -> Any:
    """The new value where it is given; of a struct, field by field."""
    if new is UNSET or old is UNSET or not nested:
        return old if new is UNSET else new
    fields = {name: getattr(new, name) for name in new.__struct_fields__}
    given = {name: value for name, value in fields.items() if value is not UNSET}
    return msgspec.structs.replace(old, **given)


def _told(audio: Audio) -> Audio:
    """With the thresholds that turns are really found by."""
    heard = audio.input
    if heard is UNSET or not isinstance(heard.turn_detection, ServerVad):
        return audio
    vad = msgspec.structs.replace(heard.turn_detection, **THRESHOLDS)
    return Audio(input=msgspec.structs.replace(heard, turn_detection=vad))


def merged(old: EdgeSession, new: EdgeSession | None) -> EdgeSession:
    """Our own settings, with those that are given replaced."""
    if new is None:
        return old
    given = {name: getattr(new, name) for name in new.__struct_fields__}
    given = {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(old, **given)


def vad_of(settings: Session) -> ServerVad | None:
    """Whether and how turns are found in the client's sound."""
    heard = settings.audio.input if settings.audio else UNSET
    found = heard.turn_detection if heard else None
    return found if isinstance(found, ServerVad) else None


def question_of(
    settings: Session,
    wanted: ResponseSettings,
    messages: list[Message],
    config: Config,
    thinking_sampling: Sampling,
) -> Question:
    """The question of one response.

    Raises:
        ProtocolError: it cannot be asked so.
    """
    _check_modalities(wanted.output_modalities, "response.output_modalities")
    edge = merged(settings.edge or EdgeSession(), wanted.edge)
    answer = config.answer
    thinking = _first(edge.thinking, answer.thinking)
    own = thinking_sampling if thinking else Sampling()
    choice = _first(wanted.tool_choice, settings.tool_choice)
    tools = chosen_tools([_as_chat(t) for t in _first(wanted.tools, settings.tools)], choice)
    limit = _first(wanted.max_output_tokens, settings.max_output_tokens)
    _check_tokens(limit, config, "response.max_output_tokens")
    return Question(
        messages=tuple(messages),
        sampling=Sampling(
            temperature=_first(edge.temperature, answer.temperature, own.temperature),
            top_p=_first(answer.top_p, own.top_p),
            top_k=own.top_k,
            seed=edge.seed,
        ),
        max_tokens=answer.max_tokens if limit == "inf" else limit,
        thinking=thinking,
        remember=remembered(edge, config),
        recall_s=recalled(edge),
        consistency=checked(edge, thinking=thinking),
        deadline_s=edge.deadline_s or answer.deadline_s,
        channel="operator",
        tools=tools,
        grammar=grammar_of(
            edge.response_format, abstention_of(edge, config), tools, calls=choice == "required"
        ),
    )


def _as_chat(tool: FunctionTool) -> ChatTool:
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    try:
        return ChatTool(msgspec.convert(described, ChatFunction))
    except msgspec.ValidationError as error:
        raise ProtocolError("tools", f"have a wrong one ({error})", "correct it") from None


def _check_modalities(wanted: Any, field: str) -> None:
    if wanted not in (UNSET, None) and [*wanted] != ["text"]:
        raise ProtocolError(field, f"is {wanted}: the service does not speak", 'ask for ["text"]')


def _check_tokens(wanted: Any, config: Config, field: str) -> None:
    most = config.context.max_tokens
    if isinstance(wanted, int) and wanted > most:
        raise ProtocolError(
            field, f"is {wanted}, above the context's {most}", f"ask for at most {most}"
        )


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next(value for value in values if value is not None and value is not UNSET)
