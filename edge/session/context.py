"""The live context: an append-only ledger of segments over one state of the engine."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge.engines.engine import AnyEngine
from edge.errors import CapacityError, ConfigurationError
from edge.types import Evidence, Float32, Int32, Modality, Segment

N_EVIDENCE = 4
"""An answer names this many of the newest segments."""


@dataclass(frozen=True, slots=True, eq=False)
class Perceived:
    """A segment ready to enter the state."""

    modality: Modality
    embeddings: Float32
    """[n, H]: text around the media and the media itself, in order."""
    evidence: Evidence


class LiveContext:
    """Anchor, then what was perceived. Every token in the state is in the ledger.

    Memory is bounded: past `max_tokens` the state is rebuilt from the anchor and the newest
    segments, so the world goes on entering for ever.
    """

    def __init__(
        self,
        engine: AnyEngine,
        anchor: Int32,
        separator: Int32,
        *,
        max_tokens: int,
        keep_tokens: int,
    ) -> None:
        """Prefill the anchor.

        Args:
            anchor: ids of the text before everything perceived.
            separator: ids of the text between two segments.
            max_tokens: bound of the live state; a turn comes on top for as long as it lasts.
            keep_tokens: how much of the newest past survives a rebuild.
        Raises:
            ConfigurationError: anchor and kept tokens do not fit into the bound.
        """
        if len(anchor) + keep_tokens > max_tokens:
            raise ConfigurationError(
                "context.keep_tokens",
                f"is {keep_tokens}; with a system prompt of {len(anchor)} tokens that is more "
                f"than context.max_tokens = {max_tokens}",
                "lower it or raise context.max_tokens",
            )
        self.engine = engine
        self._anchor = anchor
        self._separator = engine.embed(separator)
        self.max_tokens, self._keep_tokens = max_tokens, keep_tokens
        self._kept: deque[Perceived] = deque()
        self.n_rebuilds = 0
        self._start()

    def _start(self) -> None:
        self.state = self.engine.new_state()
        self.engine.prefill(self.state, self.engine.embed(self._anchor))
        self.ledger: list[Segment] = [Segment("text", len(self._anchor))]
        self._forked = False

    @property
    def n_tokens(self) -> int:
        """Tokens in the live state."""
        return self.engine.n_tokens(self.state)

    @property
    def has_perceived(self) -> bool:
        """Whether anything but the anchor is in the state."""
        return len(self.ledger) > 1

    def append(self, perceived: Perceived) -> None:
        """Prefill one segment and enter it in the ledger, rebuilding first when it is full.

        Raises:
            CapacityError: the segment alone is larger than what the context may keep.
        """
        if self._forked:
            raise RuntimeError("append while a fork is open")
        n_new = self._n_rows(perceived)
        if n_new > self._keep_tokens:
            raise CapacityError(
                f"{perceived.modality} segment",
                f"has {n_new} tokens, the context keeps {self._keep_tokens}",
                "raise context.keep_tokens or lower the frame size",
            )
        self._kept.append(perceived)
        self._forget_beyond(self._keep_tokens)
        if self.n_tokens + n_new > self.max_tokens:
            self.rebuild()
        else:
            self._enter(perceived)

    def _forget_beyond(self, n_tokens: int) -> None:
        n_kept = sum(self._n_rows(kept) for kept in self._kept)
        while n_kept > n_tokens:
            n_kept -= self._n_rows(self._kept.popleft())

    def _n_rows(self, perceived: Perceived) -> int:
        return len(perceived.embeddings) + len(self._separator)

    def rebuild(self) -> None:
        """Start again from the anchor and the kept segments."""
        self.n_rebuilds += 1
        self._start()
        for kept in self._kept:
            self._enter(kept)

    def _enter(self, perceived: Perceived) -> None:
        rows = perceived.embeddings
        if self.has_perceived:
            rows = np.concatenate([self._separator, rows])
        self.engine.prefill(self.state, rows)
        self.ledger.append(Segment(perceived.modality, len(rows), perceived.evidence))

    @contextlib.contextmanager
    def fork(self) -> Iterator[LiveContext]:
        """Work on the state and leave it as it was, bit by bit."""
        before = self.engine.snapshot(self.state)
        self._forked = True
        try:
            yield self
        finally:
            self.engine.restore(self.state, before)
            self._forked = False

    def evidence(self) -> tuple[Evidence, ...]:
        """Where the newest segments came from, oldest first."""
        found = [segment.evidence for segment in self.ledger if segment.evidence is not None]
        return tuple(found[-N_EVIDENCE:])

    def newest_capture_ns(self) -> int | None:
        """Capture time of the newest frame or sound in the state."""
        return max((evidence.end_ns for evidence in self.evidence()), default=None)
