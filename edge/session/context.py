"""The live context: an append-only ledger of segments over one state of the engine."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge.clock import NS_PER_S
from edge.engines.engine import AnyEngine
from edge.errors import CapacityError, ConfigurationError
from edge.session.slot import Perceived, Slot, Slots, prolong
from edge.types import Evidence, Float32, Int32, Modality, Segment

N_EVIDENCE = 4
"""An answer names this many of the newest segments."""
REBASE_SHARE = 4
"""A rebase begins when one part in 4 of the room above a rebased state is left..."""
NOTES_ROOMS = 2
"""...and notes are written when twice that is left, so that they are ready by then."""


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """All that a live context is, besides its engine, anchor and bounds."""

    calls: tuple[Float32, ...]
    """[n, H] of each prefill that made its state."""
    ledger: tuple[Segment, ...]
    kept: tuple[Perceived, ...]
    """What a rebase would keep."""
    notes: Perceived | None
    n_noted: int
    n_rebases: int
    owes_start: bool


class LiveContext:
    """Anchor, notes if any, then what was perceived. Every token in the state is in the ledger.

    Memory is bounded: near `max_tokens` a shorter state, of the anchor and the newest segments, is
    rebuilt in a second slot while the first goes on serving, and then takes its place. So the world
    goes on entering for ever. `rebase` does one prefill chunk of that work, when the caller has
    nothing better to do or when `owes_rebase` says that it must not wait longer.
    """

    def __init__(
        self,
        engine: AnyEngine,
        anchor: Int32,
        separator: Int32,
        *,
        max_tokens: int,
        keep_tokens: int,
        notes_tokens: int = 0,
        can_be_described: bool = False,
    ) -> None:
        """Prefill the anchor.

        Args:
            anchor: ids of the text before everything perceived.
            separator: ids of the text between two segments.
            max_tokens: bound of the live state; a turn comes on top for as long as it lasts.
            keep_tokens: how much of the newest past survives a rebase.
            notes_tokens: bound of the notes about the older past that a rebase puts before it; 0
                for none.
            can_be_described: `description` is wanted, which takes the embeddings' memory.
        Raises:
            ConfigurationError: anchor, notes and kept tokens do not fit into the bound.
        """
        n_least = len(anchor) + notes_tokens + keep_tokens
        if n_least > max_tokens:
            notes = f" and notes of {notes_tokens}" if notes_tokens else ""
            raise ConfigurationError(
                "context.keep_tokens",
                f"is {keep_tokens}; with a system prompt of {len(anchor)} tokens{notes} that is "
                f"more than context.max_tokens = {max_tokens}",
                "lower it or raise context.max_tokens",
            )
        self.engine = engine
        parts = (engine, engine.embed(anchor), engine.embed(separator))
        self.slots = Slots(*parts, keeps_calls=can_be_described)
        """Make other states, which stand beside the live one."""
        self.max_tokens, self._keep_tokens = max_tokens, keep_tokens
        self._rebase_room = (max_tokens - n_least) // REBASE_SHARE
        self.notes_tokens = notes_tokens
        self._notes: Perceived | None = None
        self._n_noted = 0
        self._kept: deque[Perceived] = deque()
        self.n_rebases = 0
        self._next: Slot | None = None
        self._owes_start = False  # of a rebase: no state was free when it was due
        self._n_next_at_start = 0
        self._before_fork: Any = None
        self._n_before_fork = 0
        self._tentative: tuple[Perceived, Any, int] | None = None
        self._live = self.slots.of()
        self._live.finish()

    @property
    def state(self) -> Any:
        """The engine's state."""
        return self._live.state

    @property
    def ledger(self) -> list[Segment]:
        """What is in the state, in order."""
        return self._live.ledger

    @property
    def n_tokens(self) -> int:
        """Tokens in the live state; what an open fork has added to them does not count."""
        return self._live.n_tokens if self._before_fork is None else self._n_before_fork

    @property
    def n_waiting(self) -> int:
        """Tokens that were entered and are not in the state yet."""
        return self._live.n_waiting

    @property
    def ends_with_media(self) -> bool:
        """Whether what was perceived last is in the state's last user turn."""
        return self.ledger[-1].modality != "text"

    def append(self, *perceived: Perceived) -> None:
        """Enter segments in the ledger and prefill them, together where they are small.

        Raises:
            CapacityError: a segment alone is larger than what the context may keep; those before
                it are in.
        """
        try:
            for segment in perceived:
                self.enter(segment)
        finally:
            self.finish()

    def enter(self, perceived: Perceived) -> None:
        """Enter one segment in the ledger; `finish`, or `advance` in chunks, prefills it.

        Raises:
            CapacityError: as `append`.
        """
        if not len(perceived.embeddings):
            self._prolong(perceived)
            return
        self._make_room("append", perceived)
        self._live.add(perceived)
        self._keep(perceived)

    def finish(self) -> None:
        """Prefill all that was entered."""
        self._live.finish()

    def advance(self) -> bool:
        """Prefill one chunk of what was entered; False if nothing waits."""
        if not self._live.n_waiting:
            return False
        self._live.advance()
        return True

    def _make_room(self, what: str, perceived: Perceived) -> None:
        self._must_stand_alone(what)
        n_new = self.n_rows(perceived)
        if n_new > self._keep_tokens:
            raise CapacityError(
                f"{perceived.modality} segment",
                f"has {n_new} tokens, the context keeps {self._keep_tokens}",
                "raise context.keep_tokens or lower the frame size",
            )
        if self._room() < n_new:
            self._rebase_now()
        if self._room() < n_new:  # beside all that is kept there is none
            self._forget_beyond(
                self.max_tokens - len(self.slots.anchor) - self.notes_tokens - n_new
            )
            self._rebase_now()

    def _keep(self, perceived: Perceived) -> None:
        """A segment is in the live slot for good."""
        self._kept.append(perceived)
        self._forget_beyond(self._keep_tokens)
        if self._next is not None:
            self._next.add(perceived)
        elif self._room() < self._rebase_room:
            self._begin_rebase_if_free()

    def _prolong(self, still: Perceived) -> None:
        self._must_stand_alone("append")
        prolong(self._kept, still)
        for slot in (self._live, self._next):
            if slot is not None:
                prolong(slot.ledger, still)

    def _must_stand_alone(self, what: str) -> None:
        if self._before_fork is not None:
            raise RuntimeError(f"{what} while a fork is open")
        if self._tentative is not None:
            raise RuntimeError(f"{what} behind a tentative segment")

    @property
    def is_tentative(self) -> bool:
        """Whether the newest segment may be taken back; nothing is appended behind it."""
        return self._tentative is not None

    def append_tentatively(self, perceived: Perceived) -> None:
        """Append a segment that `reopen` may take back, until `settle`.

        Raises:
            CapacityError: as `append`.
        """
        self._make_room("append", perceived)
        self._tentative = perceived, self.engine.snapshot(self.state), self._live.n_calls
        self._live.add(perceived)
        self.finish()

    def settle(self) -> None:
        """The tentative segment stays. A fork may be open on it."""
        assert self._tentative is not None
        perceived, _, _ = self._tentative
        self._tentative = None
        self._keep(perceived)

    def reopen(self) -> None:
        """Take the tentative segment back: the state is as it was before it, bit by bit."""
        if self._before_fork is not None:
            raise RuntimeError("reopen while a fork is open")
        assert self._tentative is not None
        _, before, n_calls = self._tentative
        self.engine.restore(self.state, before)
        self._live.forget_last(n_calls)
        self._tentative = None

    def _room(self) -> int:
        return self.max_tokens - self.n_tokens - self._live.n_waiting

    def _forget_beyond(self, n_tokens: int) -> None:
        n_kept = sum(self.n_rows(kept) for kept in self._kept)
        while n_kept > n_tokens:
            n_kept -= self.n_rows(self._kept.popleft())

    def n_rows(self, perceived: Perceived) -> int:
        """Tokens that a segment adds, its separator included."""
        return len(perceived.embeddings) + len(self.slots.separator)

    @property
    def owes_rebase(self) -> bool:
        """Whether a chunk of the rebase must come before more is perceived.

        The second slot has to be ready when the live one is full, so what waits for it may shrink
        no slower than the room in the live one.
        """
        if self._next is None:
            return False
        return self._next.n_waiting * self._rebase_room > self._n_next_at_start * self._room()

    def rebase(self) -> bool:
        """Do one chunk of the rebase; False if there is none to do."""
        self._must_stand_alone("rebase")
        if self._next is None and self._owes_start:
            self._begin_rebase_if_free()
        if self._next is None:
            return False
        self._next.advance()
        if not self._next.n_waiting:
            self._live, self._next = self._next, None
            self.n_rebases += 1
        return True

    def takes_notes(self) -> bool:
        """Whether notes should be written now: true once before each rebase begins."""
        if not self.notes_tokens or self._next is not None or self._n_noted > self.n_rebases:
            return False
        if self._room() >= NOTES_ROOMS * self._rebase_room:
            return False
        self._n_noted = self.n_rebases + 1
        return True

    def note(self, notes: Perceived) -> None:
        """Let the rebases that begin from now on put these notes behind the anchor.

        Raises:
            CapacityError: they are longer than `notes_tokens`.
        """
        if len(notes.embeddings) > self.notes_tokens:
            raise CapacityError(
                "notes",
                f"have {len(notes.embeddings)} tokens, context.notes_tokens is {self.notes_tokens}",
                "write less",
            )
        self._notes = notes

    def description(self) -> Described | None:
        """What `begin_as` makes the same context of; None while work on it is under way."""
        is_at_work = self._before_fork is not None or self._tentative is not None
        if is_at_work or self._next is not None or self._live.n_waiting or not self._live.n_calls:
            return None
        return Described(
            calls=tuple(self._live.calls or ()),
            ledger=tuple(self.ledger),
            kept=tuple(self._kept),
            notes=self._notes,
            n_noted=self._n_noted,
            n_rebases=self.n_rebases,
            owes_start=self._owes_start,
        )

    def begin_as(self, described: Described) -> None:
        """Be as another context of the same engine, anchor and bounds was.

        Raises:
            CapacityError: that is more than this one's bound.
        """
        n_tokens = sum(len(rows) for rows in described.calls)
        if n_tokens > self.max_tokens:
            problem = f"has {n_tokens} tokens, context.max_tokens is {self.max_tokens}"
            raise CapacityError("context", problem, "raise context.max_tokens")
        self._live = self.slots.again(described.calls, described.ledger)
        self._kept = deque(described.kept)
        self._notes, self._n_noted = described.notes, described.n_noted
        self.n_rebases, self._owes_start = described.n_rebases, described.owes_start

    def _begin_rebase(self) -> None:
        notes = () if self._notes is None else (self._notes,)
        self._next = self.slots.of((*notes, *self._kept))
        self._owes_start = False
        self._n_next_at_start = self._next.n_waiting

    def _begin_rebase_if_free(self) -> None:
        """A device has few states: while others hold them all, the rebase is owed."""
        try:
            self._begin_rebase()
        except CapacityError:
            self._owes_start = True

    def _rebase_now(self) -> None:
        if self._next is None:
            self._begin_rebase()
        while self.rebase():
            pass

    def kept(self, modality: Modality) -> tuple[Perceived, ...]:
        """The segments of one modality that a rebase would keep, oldest first."""
        return tuple(kept for kept in self._kept if kept.modality == modality)

    def kept_of(self, start_ns: int, end_ns: int) -> tuple[Perceived, ...]:
        """The kept segments that were captured in this time, oldest first.

        Raises:
            CapacityError: none is kept of it.
        """
        found = tuple(
            kept
            for kept in self._kept
            if kept.evidence.end_ns >= start_ns and kept.evidence.start_ns <= end_ns
        )
        if not found and not self._kept:
            raise CapacityError("recall", "nothing has been perceived yet", "wait, or see status")
        if not found:
            n_s = (end_ns - self._kept[0].evidence.start_ns) / NS_PER_S
            raise CapacityError(
                "recall",
                f"nothing is kept of that time; what is kept reaches {n_s:.1f} s before its end",
                "ask about a later time or raise context.keep_tokens",
            )
        return found

    def recall(self, start_ns: int, end_ns: int) -> LiveContext:
        """Another context of what `kept_of` gives; raises as it and `recalled`."""
        return self.recalled(self.kept_of(start_ns, end_ns))

    def recalled(self, past: Sequence[Perceived]) -> LiveContext:
        """Another context, in which these segments are entered, and wait to be prefilled.

        Args:
            past: of this context, as `kept_of` gave it.

        Raises:
            CapacityError: no state is free.
        """
        recalled = copy.copy(self)
        recalled._kept, recalled._next, recalled._owes_start = deque(past), None, False
        recalled._before_fork = recalled._tentative = None
        recalled._live = self.slots.of(past)
        return recalled

    @contextlib.contextmanager
    def fork(self) -> Iterator[LiveContext]:
        """Work on the state and leave it as it was, bit by bit."""
        self.open_fork()
        try:
            yield self
        finally:
            self.close_fork()

    @property
    def is_forked(self) -> bool:
        """Whether the state is worked on, and nothing may be appended."""
        return self._before_fork is not None

    def open_fork(self) -> None:
        """From now on the state may be worked on; nothing is appended until `close_fork`."""
        if self._before_fork is not None:
            raise RuntimeError("a fork of a fork")
        self._n_before_fork = self._live.n_tokens
        self._before_fork = self.engine.snapshot(self.state)

    def close_fork(self) -> None:
        """Leave the state as it was before `open_fork`, bit by bit."""
        self.engine.restore(self.state, self._before_fork)
        self._before_fork = None

    def evidence(self) -> tuple[Evidence, ...]:
        """Where the newest segments came from, oldest first."""
        found = [s.evidence for s in self.ledger if s.evidence is not None and s.modality != "text"]
        return tuple(found[-N_EVIDENCE:])

    def newest_looks(self) -> tuple[Evidence, ...]:
        """The newest segment of each camera, oldest first."""
        seen = [s.evidence for s in self.ledger if s.evidence is not None and s.modality == "video"]
        newest = {evidence.source: evidence for evidence in seen}
        return tuple(sorted(newest.values(), key=lambda evidence: evidence.end_ns))

    def newest_capture_ns(
        self, source: str | None = None, modality: Modality | None = None
    ) -> int | None:
        """Capture time of the newest frame or sound in the state.

        Args:
            source: only of this camera or microphone.
            modality: only what was seen, or heard: a film and its sound may be one source.
        """
        ends_ns = (
            segment.evidence.end_ns
            for segment in self.ledger
            if segment.evidence is not None
            and segment.modality != "text"
            and source in (None, segment.evidence.source)
            and modality in (None, segment.modality)
        )
        return max(ends_ns, default=None)
