"""An engine with a device's bounds, which the cpu engine does not have: what needs more is seen."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.engines.cpu import CpuEngine
from edge.engines.state import DecoderState
from edge.engines.tensorrt import MAX_SNAPSHOTS, MAX_STATES
from edge.errors import CapacityError, EngineError
from edge.types import Float32


class BoundedState(DecoderState):
    """One of few."""


@dataclass(eq=False)
class BoundedSnapshot:
    """One of few."""

    inner: Any
    state: BoundedState


def _give_back(n_used: dict[str, int], what: str) -> None:
    n_used[what] -= 1


class BoundedEngine:
    """Has so many states and snapshots at a time, and refuses a sequence beyond the model's."""

    def __init__(
        self,
        inner: CpuEngine,
        max_states: int = MAX_STATES,
        max_snapshots: int = MAX_SNAPSHOTS,
        *,
        half: bool = False,
    ) -> None:
        """Bound a cpu engine.

        Args:
            half: keys and values are kept in FP16, as on a device.
        """
        self._inner, self._half = inner, half
        self._max = {"states": max_states, "snapshots": max_snapshots}
        self.n_used = {"states": 0, "snapshots": 0}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _use(self, what: str) -> None:
        if self.n_used[what] == self._max[what]:
            gc.collect()
        if self.n_used[what] == self._max[what]:
            raise CapacityError(what, f"all {self._max[what]} are in use", "ask again later")

    def _count(self, what: str, one: Any) -> None:
        self.n_used[what] += 1
        weakref.finalize(one, _give_back, self.n_used, what).atexit = False

    def new_state(self) -> Any:
        self._use("states")
        new = self._inner.new_state()
        state = BoundedState(new.n_tokens, new.kv, new.conv, new.ssm, new.shared)
        self._count("states", state)
        return state

    def prefill(self, state: Any, embeddings: Float32) -> Float32:
        n_past = self._inner.n_tokens(state)
        n, most = n_past + len(embeddings), self._inner.spec.decoder.max_tokens
        if n > most:
            raise CapacityError("context", f"would reach {n} of {most} tokens", "lower it")
        logits: Float32 = self._inner.prefill(state, embeddings)
        self._round(state, n_past)
        return logits

    def decode(self, state: Any, token: int) -> Float32:
        n_past = self._inner.n_tokens(state)
        logits: Float32 = self._inner.decode(state, token)
        self._round(state, n_past)
        return logits

    def _round(self, state: Any, n_past: int) -> None:
        for cache in state.kv.values() if self._half else ():
            for rows in (cache.keys[n_past:], cache.values[n_past:]):
                rows[: state.n_tokens - n_past] = rows[: state.n_tokens - n_past].astype(np.float16)

    def snapshot(self, state: Any) -> BoundedSnapshot:
        self._use("snapshots")
        snapshot = BoundedSnapshot(self._inner.snapshot(state), state)
        self._count("snapshots", snapshot)
        return snapshot

    def restore(self, state: Any, snapshot: BoundedSnapshot) -> None:
        if snapshot.state is not state:
            raise EngineError("snapshot", "is of another state", "call it right")
        self._inner.restore(state, snapshot.inner)
