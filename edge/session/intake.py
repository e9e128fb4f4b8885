"""From the senses into the context: encode what is complete, prefill several segments at once."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edge.clock import NS_PER_MS, Clock
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.errors import CapacityError, EdgeError, MediaError
from edge.session.context import LiveContext
from edge.session.journal import SEGMENTS
from edge.session.perceive import Seen
from edge.session.sense import Sense
from edge.types import Stages

log = logging.getLogger(__name__)
segments = logging.getLogger(SEGMENTS)

N_RECENT_STAGES = 32
BATCH_TOKENS = 128
"""A prefill has a floor cost, so smaller segments wait for others as long as there are any."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that was captured could not be used, or had no room."""

    at_ns: int
    source: str
    """As in evidence; what was not even encoded has the name of its sense."""
    reason: str


class Intake:
    """Segments on their way into one context, and what that costs."""

    def __init__(
        self,
        context: LiveContext,
        clock: Clock,
        saw: Callable[[object], None],
        counters: Counter[str],
    ) -> None:
        """Begin with nothing.

        Args:
            saw: is told the stages of every segment that has entered, and what was refused.
            counters: where to count.
        """
        self._context, self._clock, self._saw, self._counters = context, clock, saw, counters
        self._pending: deque[Seen] = deque()
        self.recent: deque[Stages] = deque(maxlen=N_RECENT_STAGES)
        self.worked_ns = self.lateness_ns = 0
        """Since somebody last set them to 0: time spent, longest time that a segment which could
        have been taken had to wait."""

    @property
    def n_pending(self) -> int:
        """Segments that are encoded and not in the context."""
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether what is encoded makes a prefill worth its cost."""
        return sum(len(seen.perceived.embeddings) for seen in self._pending) >= BATCH_TOKENS

    def encode(self, sense: Sense[Any]) -> bool:
        """Encode what has waited longest in a sense; False if it cannot be used, and is dropped."""
        began_ns = self._clock.now_ns()
        try:
            seen = sense.encode()
        except MediaError as error:
            self.refuse(sense.name, error)
            return False
        self.lateness_ns = max(self.lateness_ns, seen.stages.taken_ns - seen.due_ns)
        self.worked_ns += self._clock.now_ns() - began_ns
        self._pending.append(seen)
        return True

    def append_all(self) -> None:
        """Bring all that is encoded into the context."""
        while self._pending:
            self.append()

    def append(self) -> None:
        """Bring one segment, or as many as one prefill takes, into the context; drop what has no
        room there."""
        began_ns, n_before = self._clock.now_ns(), self._context.n_tokens
        entered: list[Seen] = []
        n_left = MAX_PREFILL_TOKENS
        while self._pending:
            seen = self._pending[0]
            n_left -= self._context.n_rows(seen.perceived)
            if entered and n_left < 0:
                break
            self._pending.popleft()
            try:
                self._context.enter(seen.perceived)
            except CapacityError as error:
                self.refuse(seen.perceived.evidence.source, error)
            else:
                entered.append(seen)
        self._context.finish()
        now_ns = self._clock.now_ns()
        self.worked_ns += now_ns - began_ns
        for seen in entered:
            self._entered(seen, n_before, now_ns)

    def append_tentatively(self) -> bool:
        """Bring what is encoded into the context, the last of it so that it can be taken back.

        Returns:
            False: it has no room, or could not be encoded; the rest is in.
        """
        last = self._pending.pop() if self._pending else None
        self.append_all()
        if last is None:
            return False
        n_before = self._context.n_tokens
        try:
            self._context.append_tentatively(last.perceived)
        except CapacityError as error:
            self.refuse(last.perceived.evidence.source, error)
            return False
        self._tentative = last, n_before, self._clock.now_ns()
        return True

    def settle(self) -> None:
        """The tentative segment stays."""
        self._context.settle()
        self._entered(*self._tentative)

    def refuse(self, source: str, error: EdgeError) -> None:
        """Count what could not be used, and tell those who watch."""
        self._counters["segments_refused"] += 1
        self._saw(Refused(self._clock.now_ns(), source, str(error)))
        log.warning("segment=refused source=%s error=%s", source, error)

    def _entered(self, seen: Seen, n_before: int, now_ns: int) -> None:
        n_tokens = len(seen.perceived.embeddings)
        stages = replace(seen.stages, prefilled_ns=now_ns, n_tokens=n_tokens)
        self.recent.append(stages)
        self._saw(stages)
        self._counters[f"{stages.modality}_segments"] += 1
        if stages.modality == "video":
            self._counters["video_tokens_kept"] += stages.n_kept
            self._counters["video_tokens_pruned"] += stages.n_pruned
        segments.info(
            "segment=%s tokens=%d pruned=%d context=%d->%d late_ms=%.1f features_ms=%.1f "
            "encode_ms=%.1f prefill_ms=%.1f",
            *(stages.modality, stages.n_tokens, stages.n_pruned),
            *(n_before, self._context.n_tokens),
            (stages.taken_ns - seen.due_ns) / NS_PER_MS,
            (stages.features_ns - stages.taken_ns) / NS_PER_MS,
            (stages.encoded_ns - stages.features_ns) / NS_PER_MS,
            (stages.prefilled_ns - stages.encoded_ns) / NS_PER_MS,
        )
