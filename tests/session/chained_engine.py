"""An engine whose state is a number that every row has changed: cheap, exact, and bounded.

Whoever knows the rows of a state knows the number, and so what the engine says next. Two states are
equal only where the same rows are in them in the same order, however they were prefilled. Each
encoding, prefill and decode costs time of a virtual clock, and all calls are logged.
"""

from __future__ import annotations

import gc
import weakref
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edge.clock import NS_PER_MS, VirtualClock
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.tensorrt import MAX_SNAPSHOTS, MAX_STATES
from edge.errors import CapacityError, EngineError
from edge.model.spec import ModelSpec
from edge.types import Float32, Int32

HIDDEN, VOCABULARY, MEL_FRAMES_PER_TOKEN, N_MELS = 2, 512, 8, 8
TURN_END, THINK_END, TOOL_CALL, TOOL_CALL_END = 11, 13, 14, 15
YES, NO = 483, 365
"""Of the small model's tokenizer."""
_MASK = 2**64 - 1
_FACTOR = 0x9E3779B97F4A7C15
_POWERS = np.cumprod(np.full(MAX_PREFILL_TOKENS * 16, _FACTOR, np.uint64))
_UNLIKELY = np.linspace(-6.0, -5.0, VOCABULARY, dtype=np.float32)
_FIRST_TEXT, _N_TEXT = 32, 448
"""Tokens of text; those of single bytes are among them, so characters may be incomplete."""


class Chained(NamedTuple):
    """What is in a state."""

    number: int = 0
    n_tokens: int = 0
    last: int = 0
    """The newest row's first value."""

    def then(self, rows: Float32) -> Chained:
        """With more rows [n, 2]."""
        n = len(rows)
        if not n:
            return self
        whole = rows.astype(np.uint64)
        values = whole[:, 0] * np.uint64(4099) + whole[:, 1] + np.uint64(1)
        weights = np.concatenate([_POWERS[: n - 1][::-1], np.ones(1, np.uint64)])
        number = self.number * int(_POWERS[n - 1]) + int((values * weights).sum())
        return Chained(number & _MASK, self.n_tokens + n, int(whole[-1, 0]))


def _mixed(number: int) -> int:
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & _MASK
    return number ^ number >> 31


def logits_after(state: Chained) -> Float32:
    """What comes next [512]: often what the last row alone suggests, so contexts may agree."""
    chance = _mixed(state.number)
    suggested = _mixed(state.last + 1) if chance & 3 else chance >> 8
    logits = _UNLIKELY.copy()
    logits[_FIRST_TEXT + suggested % _N_TEXT] = 2.0 + (chance >> 12) % 16 / 4
    logits[_FIRST_TEXT + (chance >> 20) % _N_TEXT] = 2.0
    if (chance >> 30) % 9 == 0:
        logits[TURN_END] = 7.0
    if (chance >> 36) % 6 == 0:
        logits[THINK_END] = 6.5
    if (chance >> 44) % 8 == 0:
        logits[(TOOL_CALL, TOOL_CALL_END)[chance >> 50 & 1]] = 6.0
    mood = 1.5 if state.n_tokens // 96 % 2 else -1.5  # some things last
    logits[YES], logits[NO] = mood + ((chance >> 40) % 17 - 8) / 3, 0.0
    return logits


def media_rows(content: bytes, n: int) -> Float32:
    """Rows [n, 2] of something seen or heard."""
    rows = np.empty((n, HIDDEN), np.float32)
    rows[:, 0], rows[:, 1] = zlib.crc32(content) & 0xFFFFFF, np.arange(1, n + 1)
    return rows


def seen_rows(patches: Float32) -> Float32:
    """Rows [n_tubelets, n, 2] of patches [n_tubelets, 4 n, values]."""
    n = patches.shape[1] // 4
    return np.stack([media_rows(one.tobytes(), n) for one in patches])


def heard_rows(mel: Float32) -> Float32:
    """Rows [n, 2] of a clip."""
    return media_rows(mel.tobytes(), -(-len(mel) // MEL_FRAMES_PER_TOKEN))


def embedded(ids: Int32) -> Float32:
    """Rows [n, 2] of tokens."""
    rows = np.zeros((len(ids), HIDDEN), np.float32)
    rows[:, 0] = ids
    return rows


def small(spec: ModelSpec, max_tokens: int) -> ModelSpec:
    """A model's sizes, with little to compute."""
    replace = msgspec.structs.replace
    return replace(
        spec,
        decoder=replace(
            spec.decoder, hidden_size=HIDDEN, vocab_size=VOCABULARY, max_tokens=max_tokens
        ),
        vision=replace(
            spec.vision, min_patches=4, max_patches=64, video_target_patches=16, patch_size=4
        ),
        audio=replace(spec.audio, n_mels=N_MELS),
    )


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the engine that does something."""

    what: str
    before: Chained | None
    content: Any
    """Rows, a token, or how many tokens come out."""
    after_ns: int
    error: Exception | None = None


@dataclass(frozen=True)
class Speed:
    """What calls cost, ms: a floor, and so much a token."""

    see: tuple[float, float] = (5.0, 1.0)
    hear: tuple[float, float] = (5.0, 0.2)
    prefill: tuple[float, float] = (15.0, 0.05)
    decode: tuple[float, float] = (10.0, 0.0)


@dataclass(eq=False)
class _Held:
    """A state, or the snapshot of one: there are few of either."""

    value: Chained
    of: _Held | None = None


@dataclass
class ChainedEngine:
    """Executes nothing, forgets nothing."""

    clock: VirtualClock
    spec: ModelSpec
    speed: Speed = field(default_factory=Speed)
    max_states: int = MAX_STATES
    max_snapshots: int = MAX_SNAPSHOTS

    def __post_init__(self) -> None:
        self.log: list[Call] = []
        self.slowdown, self.stall_ms = 1.0, 0.0
        self.fails_after: int | None = None
        """So many calls are left before one fails."""
        self._states: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._snapshots: weakref.WeakSet[_Held] = weakref.WeakSet()

    def _charge(self, what: str, before: Chained | None, content: Any, n_tokens: int) -> None:
        floor_ms, per_token_ms = getattr(self.speed, what)
        ms = (floor_ms + n_tokens * per_token_ms) * self.slowdown + self.stall_ms
        self.stall_ms = 0.0
        self.clock.sleep_until(self.clock.now_ns() + round(ms * NS_PER_MS))
        error = None
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                error = EngineError("engine", "gave NaN", "restart")
        self.log.append(Call(what, before, content, self.clock.now_ns(), error))
        if error is not None:
            raise error

    def encode_image(self, patches: Float32, _grid: tuple[int, int]) -> Float32:
        rows: Float32 = self.encode_tubelets(patches[None], _grid)[0]
        return rows

    def encode_tubelets(self, patches: Float32, _grid: tuple[int, int]) -> Float32:
        rows = seen_rows(patches)
        self._charge("see", None, rows.size // HIDDEN, rows.size // HIDDEN)
        return rows

    def encode_audio(self, mel: Float32) -> Float32:
        rows = heard_rows(mel)
        self._charge("hear", None, len(rows), len(rows))
        return rows

    def embed(self, ids: Int32) -> Float32:
        return embedded(ids)

    def _held(self, what: str, held: weakref.WeakSet[_Held], most: int) -> None:
        if len(held) >= most:
            gc.collect()
        if len(held) >= most:
            raise CapacityError(what, f"all {most} are in use", "ask again later")

    def new_state(self) -> _Held:
        error = None
        try:
            self._held("states", self._states, self.max_states)
        except CapacityError as refused:
            error = refused
        self.log.append(Call("new_state", None, None, self.clock.now_ns(), error))
        if error is not None:
            raise error
        state = _Held(Chained())
        self._states.add(state)
        return state

    def n_tokens(self, state: _Held) -> int:
        return state.value.n_tokens

    def prefill(self, state: _Held, embeddings: Float32) -> Float32:
        for start in range(0, len(embeddings), MAX_PREFILL_TOKENS):
            rows = embeddings[start : start + MAX_PREFILL_TOKENS]
            self._must_fit(state, len(rows))
            self._charge("prefill", state.value, rows, len(rows))
            state.value = state.value.then(rows)
        return logits_after(state.value)

    def decode(self, state: _Held, token: int) -> Float32:
        self._must_fit(state, 1)
        self._charge("decode", state.value, token, 1)
        state.value = state.value.then(embedded(np.array([token], np.int32)))
        return logits_after(state.value)

    def _must_fit(self, state: _Held, n: int) -> None:
        reached, most = state.value.n_tokens + n, self.spec.decoder.max_tokens
        if reached > most:
            raise CapacityError("context", f"would reach {reached} of {most} tokens", "lower it")

    def snapshot(self, state: _Held) -> _Held:
        self._held("snapshots", self._snapshots, self.max_snapshots)
        snapshot = _Held(state.value, state)
        self._snapshots.add(snapshot)
        return snapshot

    def restore(self, state: _Held, snapshot: _Held) -> None:
        if snapshot.of is not state:
            raise EngineError("snapshot", "is of another state", "call it right")
        state.value = snapshot.value
