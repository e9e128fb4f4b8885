"""A moment of a session: all that its later steps depend on, so that a replay can begin there.

It is taken between two steps while nothing is being answered. What parts of a session remember is
listed here by class, with its types; whatever else they hold is what they are made of, and the same
in a session that is made of the same settings. Restored is only what these types allow.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.senses.echo import Echo
from edge.senses.sound import Blocks
from edge.senses.turn_events import Mode
from edge.session.budget import LADDER, Kind
from edge.session.context import Described
from edge.session.conversation import Speaker
from edge.session.slot import Perceived
from edge.session.triggers import Watched
from edge.types import AudioChunk, Evidence, Float32, Frame, Modality, Segment

if TYPE_CHECKING:
    from edge.session.loop import LiveLoop

Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]
Int64 = NDArray[np.int64]
PART = object()
"""Stands for another of these parts, or None."""
PARTS: dict[str, dict[str, Any]] = {
    "Watcher": {
        "_frames": list[Frame],
        "_whole": list[Frame],
        "_due_ns": int,
        "_n_frames": int,
        "_pruner": PART,
    },
    "CausalPruner": {
        "_spent": list[tuple[int, int]],
        "_before": Float32 | None,
        "_was_changing": bool,
        "_whole_ns": int | None,
        "_owed": Float32,
        "_kept_ns": Int64,
    },
    "Listener": {"_clips": list[tuple[AudioChunk, int]], "_collector": PART},
    "WindowCollector": {"_chunks": list[AudioChunk]},
    "TurnDetector": {
        "_mode": Mode,
        "_probability": PART,
        "_echo": PART,
        "_sound": PART,
        "_blocks": list[AudioChunk],
        "_held": bool,
        "_held_since_ns": int | None,
        "_is_told": bool,
        "_voiced": bool,
        "_n_voiced": int,
        "_n_quiet": int,
        "_onset_ns": int,
        "_end_ns": int,
    },
    "Silero": {"_hidden": Float32, "_cell": Float32},
    "Blocks": {"rest": AudioChunk | None},
    "Echo": {
        "_played": PART,
        "_filter": PART,
        "_place": int | None,
        "_n_since_voice": int,
        "_n_blocks": int,
        "_heard_power": float,
        "_played_power": float,
        "_residue_db": Float64,
        "_left": Float64,
        "_expected": Float64,
    },
    "_Played": {"_pieces": list[tuple[int, Float32]], "_end": int | None},
    "_Filter": {
        "_path": Complex64,
        "_variance": Float32,
        "_voice": Complex64,
        "_last": Float32,
        "_noise": Float32,
    },
    "Sense": {"n_taken": int, "source": str, "newest_ns": int | None, "_perceiver": PART},
    "Budget": {
        "_rung": Annotated[int, Meta(ge=0, lt=len(LADDER))],
        "_changed_ns": int,
        "_calm_since_ns": int,
        "_calm_s": float,
        "_went_up": bool,
        "_has_stepped": bool,
        "_busy_share": float,
        "_pushed": set[Kind],
    },
    "Perception": {
        "_n_rebases": int,
        "_budget": PART,
        "_looked_ns": int,
        "_caught_up_ns": int,
        "_step_ns": int,
        "intake": PART,
    },
    "Intake": {"worked_ns": int, "lateness_ns": int},
    "Answers": {"since_ns": int, "worked_ns": int},
    "Triggers": {
        "_rest_since_ns": int,
        "_rest_until_ns": int,
        "_rested_ns": int,
        "_worked_ns": int,
        "_taken": dict[str, tuple[int, int]],
        "_watched": dict[str, Watched],
    },
    "LiveLoop": {
        "_perception": PART,
        "_answers": PART,
        "_triggers": PART,
        "_wanted_mode": Mode,
        "_mode_of_settings": Mode,
    },
}
"""What each of them remembers."""
MADE: dict[str, type] = {"Blocks": Blocks, "Echo": Echo}
"""Those that may be absent in a new session."""


class _Speaking(msgspec.Struct, frozen=True):
    sense: str
    newest_ns: int | None
    heard_ns: int
    overdue_ns: int


class _Kept(msgspec.Struct, frozen=True):
    modality: Modality
    evidence: Evidence


class _Context(msgspec.Struct, frozen=True):
    """As `Described`, without embeddings: these follow."""

    n_calls: int
    ledger: tuple[Segment, ...]
    kept: tuple[_Kept, ...]
    notes: _Kept | None
    n_noted: int
    n_rebases: int
    owes_start: bool


class _Moment(msgspec.Struct, frozen=True):
    context: _Context
    order: tuple[str, ...]
    """Of the senses, in perception."""
    senses: dict[str, Any]
    loop: dict[str, Any]
    speaking: _Speaking | None


@dataclass(frozen=True, slots=True)
class Moment:
    """All that later steps of a session depend on."""

    content: dict[str, Any]
    """JSON, but for embeddings."""
    rows: tuple[Float32, ...]
    """Embeddings of the live context, [n, H] each."""


def moment_of(loop: LiveLoop) -> Moment | None:
    """The moment, from the loop's thread between two steps; None while something is under way that
    cannot be told: an answer, a rebase, what is encoded and not in the context."""
    conversation, context = loop._conversation, loop._context.description()
    is_at_work = len(loop._answers) or loop._answers.is_tentative or conversation.is_speculating
    if context is None or is_at_work or loop._perception.intake.n_pending:
        return None
    speaker = conversation.speaker
    notes = context.notes
    content = _Moment(
        context=_Context(
            len(context.calls),
            context.ledger,
            tuple(_Kept(kept.modality, kept.evidence) for kept in context.kept),
            None if notes is None else _Kept(notes.modality, notes.evidence),
            context.n_noted,
            context.n_rebases,
            context.owes_start,
        ),
        order=tuple(sense.name for sense in loop._perception.senses),
        senses={sense.name: _state_of(sense) for sense in loop._senses},
        loop=_state_of(loop),
        speaking=None
        if speaker is None
        else _Speaking(speaker.sense.name, speaker.newest_ns, speaker.heard_ns, speaker.overdue_ns),
    )
    rows = [*context.calls, *(kept.embeddings for kept in context.kept)]
    rows += [] if notes is None else [notes.embeddings]
    return Moment(_plain(content), tuple(rows))


def begin_at(loop: LiveLoop, moment: Moment) -> None:
    """Let a new loop of the same settings and senses go on from a moment.

    Raises:
        LookupError, TypeError, ValueError: it is no moment of such a loop.
        CapacityError: its context is larger than this one's bound.
    """
    told = msgspec.convert(moment.content, _Moment, dec_hook=_array)
    rows = iter(moment.rows)
    n_hidden = loop._context.slots.anchor.shape[1]
    for one in moment.rows:
        if one.ndim != 2 or one.shape[1] != n_hidden or one.dtype != np.float32:
            raise ValueError(f"embeddings are {one.dtype} {one.shape}, not float32 [n, {n_hidden}]")
    if any(not 0 < len(one) <= MAX_PREFILL_TOKENS for one in moment.rows[: told.context.n_calls]):
        raise ValueError(f"a prefill is longer than {MAX_PREFILL_TOKENS} tokens, or empty")
    calls = tuple(next(rows, None) for _ in range(told.context.n_calls))
    n_tokens = sum(segment.n_tokens for segment in told.context.ledger)
    if n_tokens != sum(0 if call is None else len(call) for call in calls):
        raise ValueError(f"its ledger has {n_tokens} tokens, its prefills have others")
    described = Described(
        calls=tuple(call for call in calls if call is not None),
        ledger=told.context.ledger,
        kept=tuple(_perceived(kept, rows) for kept in told.context.kept),
        notes=None if told.context.notes is None else _perceived(told.context.notes, rows),
        n_noted=told.context.n_noted,
        n_rebases=told.context.n_rebases,
        owes_start=told.context.owes_start,
    )
    senses = {sense.name: sense for sense in loop._senses}
    if set(told.senses) != set(senses) or sorted(told.order) != sorted(senses):
        raise ValueError(f"its senses are {', '.join(told.senses) or 'none'}")
    for name, sense in senses.items():
        _restore(sense, told.senses[name])
    _restore(loop, told.loop)
    loop._perception.begin_as([senses[name] for name in told.order])
    loop._context.begin_as(described)
    said = told.speaking
    if said is not None:
        speaker = Speaker(senses[said.sense], said.newest_ns, said.heard_ns, said.overdue_ns)
        loop._conversation.speaker = speaker


def _perceived(kept: _Kept, rows: Iterator[Float32]) -> Perceived:
    return Perceived(kept.modality, next(rows), kept.evidence)


def _state_of(part: Any) -> dict[str, Any]:
    kind = type(part).__name__
    state: dict[str, Any] = {"is": kind}
    for name, declared in PARTS[kind].items():
        value = getattr(part, name)
        is_part = declared is PART and value is not None
        state[name] = _state_of(value) if is_part else _plain(value)
    return state


def _restore(part: Any, state: dict[str, Any]) -> None:
    kind = type(part).__name__
    if state.pop("is") != kind:
        raise ValueError(f"it holds no {kind}")
    if state.keys() != PARTS[kind].keys():
        raise ValueError(f"of a {kind} it holds {', '.join(state)}")
    for name, declared in PARTS[kind].items():
        value, now = state[name], getattr(part, name)
        if declared is not PART:
            value = msgspec.convert(value, declared, dec_hook=_array)
            if isinstance(now, deque):
                value = deque(value)
            elif isinstance(now, np.ndarray) and now.size and now.shape != value.shape:
                raise ValueError(f"{kind}.{name} has the shape {value.shape}, not {now.shape}")
        elif value is not None:
            now = MADE[value["is"]]() if now is None and value["is"] in MADE else now
            _restore(now, value)
            value = now
        elif now is not None:
            raise ValueError(f"it holds no {kind}.{name}")
        setattr(part, name, value)


def _plain(value: object) -> Any:
    """A JSON value, but with bytes in it."""
    return msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=plain_array)


def plain_array(value: object) -> object:
    """An array as JSON: dtype, shape, bytes."""
    if isinstance(value, deque):
        return list(value)
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "shape": value.shape, "data": value.tobytes()}
    raise TypeError(f"{type(value).__name__} is nothing that a recording holds")


def array_of(content: dict[str, Any], dtype: str) -> NDArray[Any]:
    """The inverse, where the bytes are base64.

    Raises:
        LookupError, TypeError, ValueError: it is none, or of another dtype.
    """
    shape: Sequence[int] = content["shape"]
    data = content["data"]
    data = data if isinstance(data, bytes) else base64.b64decode(data)
    n_bytes = np.dtype(dtype).itemsize * prod(shape)
    if content["dtype"] != dtype or any(n < 0 for n in shape) or n_bytes != len(data):
        raise ValueError(f"{content['dtype']} {shape} of {len(data)} bytes is no {dtype}")
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _array(kind: Any, content: Any) -> NDArray[Any]:
    """What msgspec asks for where an array is declared."""
    _, of = get_args(kind)
    (scalar,) = get_args(of)
    return array_of(content, np.dtype(scalar).name)
