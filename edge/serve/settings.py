"""The settings of one client's realtime session, and the question that they make of a turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from edge.config import Config
from edge.errors import ProtocolError
from edge.model.sampling import Sampling
from edge.serve.client_sound import PCM
from edge.serve.fields import settle
from edge.serve.protocol import (
    RATE_HZ,
    TELEPHONE_HZ,
    Audio,
    AudioInput,
    EdgeSession,
    FunctionTool,
    Json,
    NamedFunction,
    Reasoning,
    ResponseSettings,
    ServerVad,
    Session,
    SoundFormat,
)
from edge.serve.wishes import (
    ChatFunction,
    ChatTool,
    NamedTool,
    abstention_of,
    checked,
    chosen_tools,
    grammar_of,
    must_call,
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
BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
NO_TURNS = {"type": "none"}
"""What Azure's clients send for null."""
NO_THINKING = ("none", "minimal")
SETTABLE = (
    *("output_modalities", "instructions", "tools", "tool_choice", "parallel_tool_calls"),
    *("max_output_tokens", "reasoning", "audio", "edge"),
)
"""Of a session; all else is the service's."""


def first_settings(session_id: str, model: str, config: Config) -> Session:
    """What a session begins with."""
    sound = AudioInput(format=PCM, turn_detection=ServerVad(**THRESHOLDS))
    return Session(
        object="realtime.session",
        id=session_id,
        model=model,
        output_modalities=["text"],
        instructions="",
        tools=[],
        tool_choice="auto",
        max_output_tokens=config.answer.max_tokens,
        audio=Audio(input=sound),
        edge=EdgeSession(),
    )


def changed(
    settings: Session, wanted: Json, config: Config
) -> tuple[Session, list[ProtocolError], list[str]]:
    """The settings with what a client wants of them changed, as far as it can be had.

    Args:
        wanted: `session` of the client's event, as it came.

    Returns:
        The settings; of each field that could not be had, why; the fields that have no effect.
    Raises:
        ProtocolError: it is no session of this kind at all.
    """
    given, unheard, refused = _read_each(_as_today(wanted), Session, "session")
    try:
        return _with(settings, given, config), refused, unheard
    except ProtocolError:  # some of it cannot be had: which?
        pass
    if given.model not in (UNSET, settings.model):
        refused.append(_of("session", _other_model(given.model, settings.model)))
    for name, alone in _each(given):
        try:
            settings = _with(settings, alone, config)
        except ProtocolError as error:
            refused.append(_of("session", error, name))
    return settings, refused, unheard


def response_settings(wanted: Json) -> tuple[ResponseSettings, list[ProtocolError], list[str]]:
    """What a client wants of one response; another modality is told, and it is text nevertheless.

    Raises:
        ProtocolError: something wanted cannot be had.
    """
    try:
        given, unheard = settle(_as_today(wanted), ResponseSettings)
    except ProtocolError as error:
        raise _of("response", error) from error
    if given.output_modalities in (None, ["text"]):
        return given, [], unheard
    refused = _no_sound("response.output_modalities", given.output_modalities)
    return msgspec.structs.replace(given, output_modalities=None), [refused], unheard


def _as_today(wanted: Json) -> Json:
    """The fields of the beta by the names that they have since."""
    new = dict(wanted)
    sound: Json = {}
    if isinstance(modalities := new.pop("modalities", None), list):
        new.setdefault("output_modalities", ["text"] if "text" in modalities else modalities)
    if (limit := new.pop("max_response_output_tokens", None)) is not None:
        new.setdefault("max_output_tokens", limit)
    if (kind := new.pop("input_audio_format", None)) is not None:
        sound["format"] = {"type": BETA_FORMATS.get(kind, kind) if isinstance(kind, str) else kind}
    for name in ("transcription", "noise_reduction"):
        if (value := new.pop(f"input_audio_{name}", None)) is not None:
            sound[name] = value
    if "turn_detection" in new:
        sound["turn_detection"] = new.pop("turn_detection")
    audio = new.get("audio") or {}
    if sound and isinstance(audio, dict) and isinstance(audio.get("input", {}), dict):
        new["audio"] = {**audio, "input": {**sound, **audio.get("input", {})}}
    heard = new["audio"].get("input") if isinstance(new.get("audio"), dict) else None
    if isinstance(heard, dict) and heard.get("turn_detection") == NO_TURNS:
        new["audio"] = {**new["audio"], "input": {**heard, "turn_detection": None}}
    edge = new.get("edge") or {}
    if (temperature := new.pop("temperature", None)) is not None and isinstance(edge, dict):
        new["edge"] = {"temperature": temperature, **edge}
    return new


def _read_each(value: Json, kind: type[T], name: str) -> tuple[T, list[str], list[ProtocolError]]:
    """`settle`, without the fields that are refused: each once."""
    refused: list[ProtocolError] = []
    while True:
        try:
            return (*settle(value, kind), refused)
        except ProtocolError as error:
            rest = _without(value, _whole(error.thing.partition("[")[0].split(".")))
            if rest is None:
                raise _of(name, error) from error
            refused.append(_of(name, error))
            value = rest


def _whole(path: list[str]) -> list[str]:
    """What is refused with a field: without its type or its rate an object would say another."""
    return path[:-1] if len(path) > 1 and path[-1] in ("type", "rate") else path


def _without(value: Json, path: list[str]) -> Json | None:
    """An object without what is at a path, or at the next above it; None if that is all of it."""
    if not path or not path[0] or path[0] not in value:
        return None
    inner = value[path[0]]
    rest = _without(inner, path[1:]) if isinstance(inner, dict) else None
    if rest is None:
        return {key: other for key, other in value.items() if key != path[0]}
    return {**value, path[0]: rest}


def _of(name: str, error: ProtocolError, field: str = "") -> ProtocolError:
    """An error about a field of something, named as the client names it."""
    thing = error.thing if error.thing.startswith(field) else field
    return ProtocolError(f"{name}.{thing}", error.problem, error.remedy, code=error.code)


def _each(given: Session) -> Iterator[tuple[str, Session]]:
    """The given fields one by one: tools before the choice among them, our own each by itself."""
    fields = _given(given)
    edge = fields.pop("edge", None)
    if "tools" in fields and "tool_choice" in fields:
        yield "tools", Session(tools=fields.pop("tools"), tool_choice="auto")
    for name, value in fields.items():
        yield name, Session(**{name: value})
    for name in EdgeSession.__struct_fields__ if edge else ():
        if (value := getattr(edge, name)) is not None:
            yield f"edge.{name}", Session(edge=EdgeSession(**{name: value}))


def _with(settings: Session, given: Session, config: Config) -> Session:
    """The settings with the given ones in their place.

    Raises:
        ProtocolError: they cannot be had.
    """
    if given.model not in (UNSET, settings.model):
        raise _other_model(given.model, settings.model)
    if given.output_modalities not in (UNSET, ["text"]):
        raise _no_sound("output_modalities", given.output_modalities)
    _check_tokens(given.max_output_tokens, config, "max_output_tokens")
    fields = _given(given)
    if given.audio is not UNSET:
        fields["audio"] = _heard(settings.audio, given.audio)
    if given.edge is not UNSET:
        fields["edge"] = merged(settings.edge or EdgeSession(), given.edge)
    new = msgspec.structs.replace(settings, **fields)
    if {"tools", "tool_choice", "reasoning", "edge"} & fields.keys():
        question_of(new, ResponseSettings(), [], config, Sampling())  # refused now, not when asked
    return new


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """What a struct's fields hold that are not left out, by name, without what has no effect."""
    fields = {name: getattr(struct, name) for name in struct.__struct_fields__}
    shown = {name: value for name, value in fields.items() if value is not UNSET}
    return {name: value for name, value in shown.items() if name in SETTABLE}


def _heard(old: Audio | UnsetType, new: Audio) -> Audio:
    """How sound comes in now: what is left out stays, and the thresholds are the true ones."""
    before = (old.input if old else UNSET) or AudioInput()
    wanted = new.input or AudioInput()
    form = before.format if wanted.format is UNSET else wanted.format
    turns = before.turn_detection if wanted.turn_detection is UNSET else wanted.turn_detection
    if isinstance(turns, ServerVad):
        answers = (turns.create_response, turns.interrupt_response)
        turns = ServerVad(create_response=answers[0], interrupt_response=answers[1], **THRESHOLDS)
    if isinstance(form, SoundFormat):
        is_pcm = form.type == "audio/pcm"
        if not is_pcm and form.rate not in (UNSET, TELEPHONE_HZ):
            thing, remedy = "audio.input.format.rate", f"leave it out, or send {TELEPHONE_HZ}"
            raise ProtocolError(thing, f"is {form.rate} for {form.type}", remedy)
        form = SoundFormat(type=form.type, rate=(form.rate or RATE_HZ) if is_pcm else UNSET)
    return Audio(input=AudioInput(format=form, turn_detection=turns))


def format_of(settings: Session) -> SoundFormat:
    """Of the sound that the client sends."""
    heard = settings.audio.input if settings.audio else UNSET
    return (heard.format if heard else UNSET) or PCM


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
    *,
    check: bool = True,
) -> Question:
    """The question of one response.

    Args:
        check: whether to find out that its format can be followed, which takes its time.
    Raises:
        ProtocolError: it cannot be asked so.
        CapacityError: its format cannot be checked now.
    """
    edge = merged(settings.edge or EdgeSession(), wanted.edge)
    answer = config.answer
    effort = (wanted.reasoning or settings.reasoning or Reasoning()).effort
    by_effort = None if effort is None else effort not in NO_THINKING
    thinking = _first(edge.thinking, by_effort, answer.thinking)
    own = thinking_sampling if thinking else Sampling()
    choice = _choice(_first(wanted.tool_choice, settings.tool_choice))
    tools = chosen_tools([_as_chat(t) for t in _first(wanted.tools, settings.tools)], choice)
    limit = _first(wanted.max_output_tokens, settings.max_output_tokens)
    _check_tokens(limit, config, "max_output_tokens")
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
            *(edge.response_format, abstention_of(edge, config), tools),
            calls=must_call(choice),
            check=check,
        ),
    )


def _as_chat(tool: FunctionTool) -> ChatTool:
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    try:
        return ChatTool(msgspec.convert(described, ChatFunction))
    except msgspec.ValidationError as error:
        raise ProtocolError("tools", f"have a wrong one ({error})", "correct it") from None


def _choice(choice: Any) -> Any:
    """Which tool, as chat completions say it."""
    if not isinstance(choice, NamedFunction):
        return choice
    function = choice.function or {"name": choice.name}
    try:
        return msgspec.convert({"type": "function", "function": function}, NamedTool)
    except msgspec.ValidationError as error:
        raise ProtocolError(
            "tool_choice", f"names no function ({error})", "send its name"
        ) from None


def _other_model(wanted: object, served: object) -> ProtocolError:
    return ProtocolError("model", f"is {wanted!r}", f"use {served!r}")


def _no_sound(field: str, wanted: Any) -> ProtocolError:
    problem, remedy = f"is {wanted}: the service does not speak", 'ask for ["text"]'
    return ProtocolError(field, problem, remedy, code="unsupported_value")


def _check_tokens(wanted: Any, config: Config, field: str) -> None:
    most = config.context.max_tokens
    if isinstance(wanted, int) and wanted > most:
        raise ProtocolError(
            field, f"is {wanted}, above the context's {most}", f"ask for at most {most}"
        )


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next(value for value in values if value is not None and value is not UNSET)
