"""One state of the engine with its ledger: what is in it, and what waits to enter."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge.engines.engine import MAX_PREFILL_TOKENS, AnyEngine
from edge.types import Evidence, Float32, Modality, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Perceived:
    """A segment ready to enter a state."""

    modality: Modality
    embeddings: Float32
    """[n, H]: text around the media and the media itself, in order. Without rows it is still what
    the source's segment before shows."""
    evidence: Evidence


def prolong(segments: MutableSequence[Any], still: Perceived) -> None:
    """Let the newest of the segments that is of the same source and modality reach until now."""
    for i in reversed(range(len(segments))):
        evidence = segments[i].evidence
        if segments[i].modality == still.modality and evidence.source == still.evidence.source:
            until_now = replace(evidence, end_ns=still.evidence.end_ns)
            segments[i] = replace(segments[i], evidence=until_now)
            return


class Slot:
    """Anchor, then segments; between two that were perceived stands a separator.

    The ledger names every token that is in the state or waits to enter it, in order.
    """

    def __init__(self, engine: AnyEngine, anchor: Float32, separator: Float32) -> None:
        """An empty state, before which the anchor waits.

        Args:
            anchor: [n, H] embeddings of the text before everything perceived.
            separator: [n, H] embeddings of the text between two segments.
        """
        self._engine, self._separator = engine, separator
        self.state = engine.new_state()
        self.ledger: list[Segment] = [Segment("text", len(anchor))]
        self._waiting = deque([anchor])
        self.n_waiting = len(anchor)
        self.calls: list[Float32] | None = None
        """If wanted, [n, H] of each prefill: what makes the same state again, bit by bit."""

    @property
    def n_tokens(self) -> int:
        """Tokens in the state."""
        return self._engine.n_tokens(self.state)

    def add(self, perceived: Perceived) -> None:
        """Let a segment wait behind all others."""
        rows = perceived.embeddings
        if "text" not in (self.ledger[-1].modality, perceived.modality):
            rows = np.concatenate([self._separator, rows])
        self.ledger.append(Segment(perceived.modality, len(rows), perceived.evidence))
        self._waiting.append(rows)
        self.n_waiting += len(rows)

    def forget_last(self, n_calls: int) -> None:
        """The newest segment is no longer in the state, which is as it was after so many calls."""
        del self.ledger[-1]
        if self.calls is not None:
            del self.calls[n_calls:]

    @property
    def n_calls(self) -> int:
        """Prefills that are known."""
        return len(self.calls or ())

    def advance(self) -> None:
        """Prefill one chunk of what waits, across segments."""
        parts: list[Float32] = []
        n_room = MAX_PREFILL_TOKENS
        while self._waiting and n_room:
            rows = self._waiting.popleft()
            parts.append(rows[:n_room])
            if len(rows) > n_room:
                self._waiting.appendleft(rows[n_room:])
            n_room -= len(parts[-1])
        if parts:
            rows = np.concatenate(parts)
            self._engine.prefill(self.state, rows)
            if self.calls is not None:
                self.calls.append(rows)
            self.n_waiting -= MAX_PREFILL_TOKENS - n_room

    def prefill_again(self, calls: Sequence[Float32], ledger: Sequence[Segment]) -> None:
        """Instead of the anchor, let these calls make the state, and this be its ledger."""
        self._waiting.clear()
        self.n_waiting, self.ledger = 0, list(ledger)
        for rows in calls:
            self._engine.prefill(self.state, rows)
        if self.calls is not None:
            self.calls += calls

    def finish(self) -> None:
        """Prefill all that waits."""
        while self.n_waiting:
            self.advance()


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Makes slots that begin alike."""

    engine: AnyEngine
    anchor: Float32
    """[n, H], before everything perceived."""
    separator: Float32
    """[n, H], between two segments."""
    keeps_calls: bool = False
    """Of the slots that it makes."""

    def of(self, perceived: Sequence[Perceived] = ()) -> Slot:
        """A slot of its own, in which these wait behind the anchor.

        Raises:
            CapacityError: no state is free.
        """
        slot = self._empty()
        for segment in perceived:
            slot.add(segment)
        return slot

    def again(self, calls: Sequence[Float32], ledger: Sequence[Segment]) -> Slot:
        """The slot that had these calls and this ledger, nothing of which waits.

        Raises:
            CapacityError: no state is free.
        """
        slot = self._empty()
        slot.prefill_again(calls, ledger)
        return slot

    def _empty(self) -> Slot:
        slot = Slot(self.engine, self.anchor, self.separator)
        slot.calls = [] if self.keeps_calls else None
        return slot
