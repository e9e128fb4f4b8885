"""Triggers: conditions in plain language that the session watches for.

A trigger is judged when there is something new to see or hear: on a fork of the live context, by
one step that may only say yes or no. It begins when yes has been likely for its debounce time and
ends when no has, or nobody watches any more; between the two thresholds nothing changes. One is
judged at a time, below every question, and they take at most one part in four of the engine's time.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from edge.clock import NS_PER_MS, NS_PER_S, Clock
from edge.errors import CapacityError, ProtocolError
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.session.answers import Answers
from edge.session.context import LiveContext
from edge.session.sense import Sense
from edge.session.turn import AnswerEvent, Done, Failed, Message, Question, Turn, YesNo
from edge.types import Evidence

log = logging.getLogger(__name__)

MAX_TRIGGERS = 16
BEGINS, ENDS = 0.6, 0.4
"""How likely yes must be at least for a trigger to begin, and at most for it to end."""
REST = 3
"""After a judgement the engine is left alone for so many times as long as it worked for it: time in
which a question went before it is no part of that."""
MAX_GROWTH = 2
"""A judgement counts as so many times as long as the one before at most: a board that stood still
in the middle of one, for once, is no reason to be blind for three times as long."""
UNSEEN_NS = 30 * NS_PER_S
"""A trigger that is on ends when nothing has come from its cameras and microphones for so long.
Answers keep perception waiting for much less."""
ASKED = "Is this true now: {}? Answer yes or no."
"""How a condition is asked that is no question itself."""

Rank = Literal["high", "normal", "low"]
RANKS: tuple[str, ...] = get_args(Rank)
Cause = Literal["judged", "unseen", "deleted", "stopped"]
"""Why a trigger ended: it no longer is the case · its sources have gone, so nobody knows · a client
watches for it no longer · the session ends."""
Seconds = Annotated[float, Meta(ge=0.0, le=3600.0)]


class Trigger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client wants to be told of."""

    condition: Annotated[str, Meta(min_length=1, max_length=500)]
    """In plain language: "Is there a person?" or "somebody is lying on the floor"."""
    modality: Literal["video", "audio", "any"] = "any"
    """What must be new for the condition to be judged again."""
    period_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 1.0
    """Shortest time between two judgements."""
    debounce_s: Seconds = 0.0
    """It begins, and ends, when that has been likely for so long."""
    cooldown_s: Seconds = 5.0
    """After it has ended it does not begin again for so long."""
    priority: Rank = "normal"
    """Which of several is judged first."""


@dataclass(frozen=True, slots=True)
class TriggerBegan:
    """What a trigger watches for is the case."""

    id: str
    condition: str
    at_ns: int
    began_ns: int
    """When it was first likely: the debounce time ago."""
    confidence: float
    """P(yes) / (P(yes) + P(no)), 0..1."""
    evidence: tuple[Evidence, ...]
    """The newest segment of its modality."""


@dataclass(frozen=True, slots=True)
class TriggerEnded:
    """It no longer is, or nobody watches for it any more."""

    id: str
    condition: str
    at_ns: int
    began_ns: int
    confidence: float
    evidence: tuple[Evidence, ...]
    cause: Cause = "judged"


TriggerEvent = TriggerBegan | TriggerEnded


@dataclass(frozen=True, slots=True)
class TriggerStatus:
    """A trigger as it stands."""

    id: str
    trigger: Trigger
    is_on: bool = False
    confidence: float | None = None
    """None before the first judgement."""
    n_judged: int = 0


class TriggerBook:
    """The triggers as clients see them; may be used from any thread."""

    def __init__(self, woken: Callable[[], None] = lambda: None) -> None:
        """An empty book.

        Args:
            woken: called when the loop has something to take.
        """
        self._woken = woken
        self._lock = threading.Lock()
        self._entries: dict[str, TriggerStatus] = {}
        self._changes: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)

    def create(self, trigger: Trigger) -> str:
        """Watch for something; the trigger's id.

        Raises:
            CapacityError: there are too many.
        """
        with self._lock:
            if len(self._entries) >= MAX_TRIGGERS:
                raise CapacityError(
                    "trigger", f"there are {MAX_TRIGGERS} already", "delete one that is not needed"
                )
            name = f"trigger_{next(self._numbers)}"
            self._entries[name] = TriggerStatus(name, trigger)
            self._changes.append({"id": name, "trigger": msgspec.to_builtins(trigger)})
        self._woken()
        return name

    def delete(self, name: str) -> None:
        """Watch for it no longer.

        Raises:
            ProtocolError: there is no such trigger.
        """
        with self._lock:
            if self._entries.pop(name, None) is None:
                raise ProtocolError("trigger", f"{name!r} does not exist", "list the triggers")
            self._changes.append({"id": name, "trigger": None})
        self._woken()

    def entries(self) -> tuple[TriggerStatus, ...]:
        """All triggers, oldest first."""
        with self._lock:
            return tuple(self._entries.values())

    def changes(self) -> list[dict[str, Any]]:
        """What clients have changed since the last call: id, and the trigger or None."""
        with self._lock:
            changes, self._changes = self._changes, []
            return changes

    def judged(self, status: TriggerStatus) -> None:
        """Show how a trigger stands now."""
        with self._lock:
            if status.id in self._entries:
                self._entries[status.id] = status


@dataclass
class Watched:
    """One trigger as the loop sees it."""

    id: str
    trigger: Trigger
    next_ns: int = 0
    """Not to be judged before."""
    looked: tuple[int, int] = (0, 0)
    """Rebases and segments when it was last looked for something new."""
    newest: Evidence | None = None
    news_ns: int | None = None
    """Since when there is something new."""
    is_on: bool = False
    since_ns: int | None = None
    """Since when the other state has been likely."""
    began_ns: int = 0
    cool_until_ns: int = 0
    confidence: float | None = None
    n_judged: int = field(default=0)

    @property
    def is_wanted(self) -> bool:
        """Whether it is to be judged: there was something new, or a change is awaited."""
        return self.news_ns is not None or self.since_ns is not None

    @property
    def due_ns(self) -> int:
        """Since when it is to be judged, if it is wanted."""
        return max(self.next_ns, self.news_ns or 0)

    def look(self, context: LiveContext, now_ns: int) -> None:
        """Whether there is something new."""
        place = (context.n_rebases, len(context.ledger))
        if place != self.looked:
            self.looked = place
            newest = next(
                (
                    segment.evidence
                    for segment in reversed(context.ledger)
                    if segment.evidence is not None
                    and segment.modality != "text"
                    and self.trigger.modality in ("any", segment.modality)
                ),
                None,
            )
            if newest is not None and newest != self.newest:
                self.newest, self.news_ns = newest, self.news_ns or now_ns

    def judge(self, confidence: float, now_ns: int) -> TriggerEvent | None:
        """Take a judgement; an event if it changes something."""
        self.confidence, self.n_judged = confidence, self.n_judged + 1
        if confidence > ENDS if self.is_on else confidence < BEGINS:
            self.since_ns = None
            return None
        if self.since_ns is None:
            self.since_ns = now_ns
        held_ns = now_ns - self.since_ns
        if held_ns < self.trigger.debounce_s * NS_PER_S:
            return None
        if self.is_on:
            self.cool_until_ns = now_ns + int(self.trigger.cooldown_s * NS_PER_S)
            return self.end(now_ns, "judged")
        if now_ns < self.cool_until_ns:
            return None
        self.is_on, self.began_ns, self.since_ns = True, self.since_ns, None
        return TriggerBegan(*self._event(now_ns))

    def end(self, now_ns: int, cause: Cause) -> TriggerEnded:
        """It is over."""
        self.is_on, self.since_ns = False, None
        return TriggerEnded(*self._event(now_ns), cause)

    def _event(self, now_ns: int) -> tuple[str, str, int, int, float, tuple[Evidence, ...]]:
        evidence = () if self.newest is None else (self.newest,)
        condition, confidence = self.trigger.condition, self.confidence or 0.0
        return self.id, condition, now_ns, self.began_ns, confidence, evidence


class Triggers:
    """Judges them, in the loop's own thread."""

    def __init__(
        self,
        book: TriggerBook,
        context: LiveContext,
        answers: Answers,
        tokenizer: Tokenizer,
        clock: Clock,
        saw: Callable[[object], None],
        counters: Counter[str],
        senses: Sequence[Sense[Any]],
    ) -> None:
        """Begin with none.

        Args:
            saw: is told when one begins and ends.
            counters: where to count.
            senses: without which there is nothing to watch.
        """
        self._book, self._context, self._answers, self._clock = book, context, answers, clock
        self._saw, self._counters = saw, counters
        self._yes_no = yes_no(tokenizer)
        self._watched: dict[str, Watched] = {}
        self._is_judging = False
        self._rest_since_ns = self._rest_until_ns = self._rested_ns = 0
        self._worked_ns = 0  # for the newest judgement, as it counts
        self._senses = senses
        self._taken: dict[str, tuple[int, int]] = {}  # items of a sense, and when that was seen

    def take(self, changes: Sequence[dict[str, Any]]) -> None:
        """Do what clients want: `TriggerBook.changes`."""
        for change in changes:
            name = change["id"]
            if change["trigger"] is not None:
                self._watched[name] = Watched(name, msgspec.convert(change["trigger"], Trigger))
            elif (gone := self._watched.pop(name)).is_on:
                self._tell(gone.end(self._clock.now_ns(), "deleted"))

    def close(self) -> None:
        """The session ends: nobody watches any more."""
        for watched in self._watched.values():
            if watched.is_on:
                self._tell(watched.end(self._clock.now_ns(), "stopped"))
                self._show(watched)

    def judge_if_due(self) -> None:
        """Open the turn that judges the most urgent trigger, if the time has come."""
        if not self._watched or self._is_judging:
            return
        now_ns = self._clock.now_ns()
        self._look(now_ns)
        if now_ns < self._rest_until_ns:
            return
        due = [w for w in self._watched.values() if w.is_wanted and w.next_ns <= now_ns]
        if not due:
            return
        self._count_rest(min(w.due_ns for w in due))
        chosen = min(due, key=lambda w: (RANKS.index(w.trigger.priority), w.next_ns))
        chosen.news_ns = None
        chosen.next_ns = now_ns + int(chosen.trigger.period_s * NS_PER_S)
        self._is_judging = True
        message = Message("user", asked(chosen.trigger.condition))
        question = Question((message,), Sampling(), 1, priority="trigger", yes_no=self._yes_no)
        self._answers.open(Turn(question, now_ns, partial(self._judged, chosen)))

    def _look(self, now_ns: int) -> None:
        for sense in self._senses:
            if sense.n_taken != self._taken.get(sense.name, (0, 0))[0]:
                self._taken[sense.name] = sense.n_taken, now_ns
        for watched in self._watched.values():
            watched.look(self._context, now_ns)

    def end_unseen(self) -> bool:
        """End those that are on and whose sources have gone; whether there are any. To be called
        when all that has come was taken, so that a loop that was held up is not blind for that."""
        on = [w for w in self._watched.values() if w.is_on and not w.is_wanted]
        if not on:
            return False
        now_ns = self._clock.now_ns()
        unseen = [watched for watched in on if now_ns > self._unseen_ns(watched)]
        for watched in unseen:
            self._tell(watched.end(now_ns, "unseen"))
            self._show(watched)
        return bool(unseen)

    def _unseen_ns(self, watched: Watched) -> int:
        """When it ends, if nothing comes of what it is about."""
        about = watched.trigger.modality
        senses = [s for s in self._senses if about in ("any", "audio" if s.hears else "video")]
        return UNSEEN_NS + max((self._taken.get(s.name, (0, 0))[1] for s in senses), default=0)

    def _count_rest(self, due_ns: int) -> None:
        """Count how long triggers rested although one was due."""
        self._rested_ns += max(0, self._rest_until_ns - max(self._rest_since_ns, due_ns))
        self._rest_since_ns = self._rest_until_ns
        self._counters["triggers_rested_ms"] = self._rested_ns // NS_PER_MS

    def wait_s(self) -> float | None:
        """Until one is due or ends, if nothing else happens; None if none will be. Changes
        nothing."""
        watched = self._watched.values()
        waiting = [max(w.next_ns, self._rest_until_ns) for w in watched if w.is_wanted]
        waiting += [self._unseen_ns(w) + 1 for w in watched if w.is_on and not w.is_wanted]
        if not waiting:
            return None
        return max(0.0, (min(waiting) - self._clock.now_ns()) / NS_PER_S)

    def _tell(self, event: TriggerEvent) -> None:
        self._counters["trigger_changes"] += 1
        self._saw(event)
        what = "began" if isinstance(event, TriggerBegan) else f"ended cause={event.cause}"
        log.debug("trigger=%s event=%s confidence=%.3f", event.id, what, event.confidence)

    def _show(self, watched: Watched) -> None:
        self._book.judged(
            TriggerStatus(
                *(watched.id, watched.trigger, watched.is_on),
                *(watched.confidence, watched.n_judged),
            )
        )

    def _judged(self, watched: Watched, event: AnswerEvent) -> None:
        self._is_judging = False
        if isinstance(event, Failed):
            self._counters["judgements_refused"] += 1
            log.warning("trigger=%s event=refused error=%s", watched.id, event.error)
            return
        if not isinstance(event, Done) or event.confidence is None:
            return
        times = event.timeline
        most_ns = MAX_GROWTH * self._worked_ns or times.worked_ns
        self._worked_ns = min(times.worked_ns, most_ns)
        self._rest_since_ns = times.finished_ns
        self._rest_until_ns = times.finished_ns + REST * self._worked_ns
        self._counters["judgements"] += 1
        if watched.id not in self._watched:
            return
        changed = watched.judge(event.confidence, times.finished_ns)
        self._show(watched)
        if changed is not None:
            self._tell(changed)


def asked(condition: str) -> str:
    """A condition as the model is asked it."""
    text = " ".join(condition.split())
    return text if text.endswith("?") else ASKED.format(text.rstrip("."))


def yes_no(tokenizer: Tokenizer) -> YesNo:
    """The tokens with which an answer of yes or no begins."""
    return YesNo(*(_first_tokens(tokenizer, word) for word in ("yes", "no")))


def _first_tokens(tokenizer: Tokenizer, word: str) -> tuple[int, ...]:
    spelled = [word, word.capitalize(), f" {word}", f" {word.capitalize()}"]
    ids = [tokenizer.encode(text) for text in spelled]
    whole = {int(found[0]) for found in ids if len(found) == 1}
    return tuple(sorted(whole or {int(ids[0][0])}))
