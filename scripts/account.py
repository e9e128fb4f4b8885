"""What clients of a session are told, held against what happened in it.

An `Account` listens as clients do: to all events, to spoken turns, to answers, and each event is
put in the words of the wire. What it is held against comes from elsewhere: what was put into the
rings and taken out of them, what was encoded, how the session's counters, triggers, budget and
context stand. Each difference is a sentence.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.clock import NS_PER_S
from edge.errors import MediaError
from edge.senses.turn_events import SpeechStarted
from edge.serve.session_events import TOPICS, dropped_events, told_event
from edge.session.budget import LADDER, Degraded, Rung
from edge.session.loop import LiveLoop
from edge.session.sense import Sense
from edge.session.triggers import TriggerBegan, TriggerEnded
from edge.session.turn import (
    AnswerEvent,
    Done,
    Failed,
    SpeechStopped,
    Spoken,
    SpokenEvent,
    TextDelta,
)
from edge.types import Stages

MAX_DIFFERENCES = 100
MODALITIES = ("video", "audio")
MAX_SPANS = 4096
"""Of the loop's time are remembered."""


class Account:
    """Of one life of a session, from its start to its end."""

    def __init__(self, loop: LiveLoop) -> None:
        """Listen from now on."""
        self._loop = loop
        self.differences: list[str] = []
        self.wire: Counter[str] = Counter()
        """Events by their type on the wire; of answers to typed questions: ends only."""
        self.encoded: Counter[str] = Counter()
        """By sense."""
        self._told: Counter[str] = Counter()
        self._ends: dict[int, int] = {}  # of the typed questions
        self._on: set[str] = set()
        self._rung: Rung = LADDER[0]
        self._is_speaking = False
        self._is_owed: SpeechStopped | None = None  # a question that is told, and not yet taken
        self._is_answering = self._is_broken = False
        self._lost: Counter[str] = Counter()
        self._before: dict[str, int] = {}
        for sense in loop._senses:
            sense.encode = self._counted(sense, sense.encode)  # type: ignore[method-assign]
        self._leave = loop.observe(self._observed), loop.watch(self._heard)

    def _counted(self, sense: Sense[Any], encode: Callable[[], Any]) -> Callable[[], Any]:
        def counted() -> Any:
            try:
                seen = encode()
            except MediaError:
                self.encoded[f"{sense.name} cannot"] += 1
                raise
            self.encoded[sense.name] += 1
            return seen

        return counted

    def _differs(self, what: str) -> None:
        if len(self.differences) < MAX_DIFFERENCES:
            at_s = (self._loop._clock.now_ns() - self._loop._start_ns) / NS_PER_S
            self.differences.append(f"{at_s:.3f} s: {what}")

    def _same(self, what: str, told: object, is_so: object) -> None:
        if told != is_so:
            self._differs(f"{what}: clients were told {told}, and it is {is_so}")

    # What clients hear.

    def _say(self, event: object) -> None:
        told = told_event(event, self._loop._start_ns)
        if told is None:
            self._differs(f"{event} has no words on the wire")
        else:
            self.wire[str(type(told).__struct_config__.tag)] += 1

    def _observed(self, event: object) -> None:
        self._told[type(event).__name__] += 1
        if type(event) not in TOPICS:
            return  # of an answer: for who has asked
        self._say(event)
        if isinstance(event, Stages):
            self._told[event.modality] += 1
        elif isinstance(event, Degraded):
            self._same("a step on the ladder", self._is_near(event.rung), True)
            self._rung = event.rung
        elif isinstance(event, TriggerBegan):
            self._same(f"{event.id} began, on before", event.id in self._on, False)
            self._on.add(event.id)
        elif isinstance(event, TriggerEnded):
            self._same(f"{event.id} ended, on before", event.id in self._on, True)
            self._on.discard(event.id)

    def _is_near(self, rung: Rung) -> bool:
        return abs(LADDER.index(rung) - LADDER.index(self._rung)) == 1

    def _heard(self, event: SpokenEvent) -> None:
        self._say(event)
        if isinstance(event, SpeechStarted):
            self._same("speech starts, somebody spoke before", self._is_speaking, False)
            self._is_speaking = True
        elif isinstance(event, SpeechStopped):
            self._same("speech stops, somebody spoke before", self._is_speaking, True)
            self._same("a question that was never taken", self._is_owed, None)
            self._is_speaking, self._is_owed = False, event if event.is_asked else None
        elif isinstance(event, Spoken):
            self._same("a question was asked that is taken", self._is_owed is not None, True)
            self._is_owed = None
            self._told["spoken"] += 1
            self._is_answering = True
        elif isinstance(event, Failed) and self._is_owed is not None:
            self._is_owed = None  # there was no room for it
        elif isinstance(event, TextDelta):
            self._same("an answer goes on that had begun", self._is_answering, True)
        elif isinstance(event, Done | Failed):
            self._told["spoken ended"] += 1
            self._is_answering = self._told["spoken"] > self._told["spoken ended"]

    def asked(self) -> Callable[[AnswerEvent], None]:
        """A client asks; what hears of its answer."""
        number = len(self._ends)
        self._ends[number] = 0

        def deliver(event: AnswerEvent) -> None:
            self._same(f"question {number}, ended before", self._ends[number], 0)
            self._ends[number] += isinstance(event, Done | Failed)

        return deliver

    def refused(self) -> None:
        """The last one who asked was told at once that it is too much."""
        del self._ends[len(self._ends) - 1]

    # What is so.

    def look(self) -> None:
        """Compare what stands at any time: once a second is enough."""
        loop, counters = self._loop, self._loop.status().counters
        for event in dropped_events(self._before, counters):
            self.wire["edge.dropped"] += 1
            self._lost[f"{event.sense}_dropped"] += event.n_dropped
            self._lost[f"{event.sense}_skipped"] += event.n_skipped
        self._before = counters
        self._same("the rung", self._rung, loop._perception._budget.rung)
        self._same("rebases", self._told["Rebased"], loop._perception._n_rebases)
        entries = {status.id: status.is_on for status in loop.triggers.entries()}
        known = {name for name in self._on if name in entries}
        self._same("triggers that are on", known, {name for name in entries if entries[name]})
        speaker = loop._conversation.speaker
        self._same("somebody speaks", self._is_speaking, speaker is not None)
        told = self._told
        if not self._is_broken:
            self._look_at_segments(counters)
        self._same("notes", told["Noted"], counters.get("notes", 0))
        self._same("triggers", _n_trigger_events(told), counters.get("trigger_changes", 0))
        self._same("steps of the budget", told["Degraded"], counters.get("degraded", 0))
        self._same("answers", told["Done"], counters.get("answers", 0))
        self._same("failed answers", told["Failed"], counters.get("answers_refused", 0))

    def _look_at_segments(self, counters: Mapping[str, int]) -> None:
        """What was encoded has entered, waits, was taken back, or was refused; nothing else."""
        loop, told, without_room = self._loop, self._told, 0
        for modality, senses in _by_modality(loop):
            pending = loop._perception.intake._pending
            n_left = sum(self.encoded[sense.name] for sense in senses) - told[modality]
            n_left -= sum(seen.perceived.modality == modality for seen in pending)
            if modality == "audio":
                n_left -= counters.get("speculations_given_up", 0)
                n_left -= loop._context.is_tentative
            without_room += n_left
            entered = counters.get(f"{modality}_segments", 0)
            self._same(f"{modality} segments", told[modality], entered)
        refused = without_room + sum(n for w, n in self.encoded.items() if w.endswith(" cannot"))
        self._same("refused", told["Refused"], refused)
        self._same("refused segments", told["Refused"], counters.get("segments_refused", 0))

    def close(self, *, broken: bool = False) -> None:
        """The session has ended: everything that began is over, and every client knows.

        Args:
            broken: its engine has failed in mid-work, so what it was at is neither here nor there.
        """
        self._is_broken = broken
        self.look()
        counters = self._loop.status().counters
        for sense in self._loop._senses:
            for what in ("dropped", "skipped"):
                name = f"{sense.name}_{what}"
                self._same(name, self._lost[name], counters[name])
        self._same("speech that goes on", self._is_speaking, False)
        self._same("a question that was never taken", self._is_owed, None)
        self._same("triggers that are on", self._on, set())
        self._same("ends of spoken turns", self._told["spoken ended"], self._told["spoken"])
        open_ = [number for number, n_ends in self._ends.items() if n_ends != 1]
        self._same("questions without an end", open_, [])
        for leave in self._leave:
            leave()


def _by_modality(loop: LiveLoop) -> Iterator[tuple[str, list[Sense[Any]]]]:
    for modality in MODALITIES:
        yield modality, [s for s in loop._senses if s.hears == (modality == "audio")]


def _n_trigger_events(told: Counter[str]) -> int:
    return told["TriggerBegan"] + told["TriggerEnded"]


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a trigger that was wanted, and whose period was over, went without a judgement."""

    trigger: str = ""
    seconds: float = 0.0
    longest_answer_s: float = 0.0
    """Longest time without a pause in which operators waited for answers, if it was in the way."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of it, s: the step that was under way, answers, rest (after judgements), judging (this one
    and others), other."""

    @property
    def other_s(self) -> float:
        """What nobody who goes first explains."""
        return self.parts.get("other", 0.0)


@dataclass(slots=True)
class _Span:
    kind: str
    start_ns: int
    end_ns: int


class Waits:
    """Of a session's triggers: heard of from outside are what is new and what is judged."""

    def __init__(self, loop: LiveLoop) -> None:
        """Watch from now on."""
        self._loop = loop
        self._spans: deque[_Span] = deque([_Span("", loop._start_ns, loop._start_ns)], MAX_SPANS)
        self._news_ns: dict[str, deque[int]] = {m: deque(maxlen=MAX_SPANS) for m in MODALITIES}
        self._opened_ns: dict[str, int] = {}
        self.n_judged = self._n_begun = 0
        self.longest = self.worst = Wait()
        loop.observe(self._observed)
        judged = loop._triggers._judged

        def watch(watched: Any, event: AnswerEvent) -> None:
            judged(watched, event)
            if isinstance(event, Done):
                self.n_judged += 1
                self._measure(watched, event.timeline.asked_ns)
                self._opened_ns[watched.id] = event.timeline.asked_ns

        loop._triggers._judged = watch  # type: ignore[method-assign]

    def _observed(self, event: object) -> None:
        if isinstance(event, Stages):
            self._news_ns[event.modality].append(self._loop._clock.now_ns())

    def begin(self) -> None:
        """The loop is about to make a step."""
        self._began_ns = now_ns = self._loop._clock.now_ns()
        loop = self._loop
        for name in loop._triggers._watched:
            self._opened_ns.setdefault(name, now_ns)
        self._spans[-1].end_ns = now_ns
        is_resting = now_ns < loop._triggers._rest_until_ns
        kind = self._goes_first() or ("rest" if is_resting else "other")
        if kind != self._spans[-1].kind or kind == "other":
            self._spans.append(_Span(kind, now_ns, now_ns))

    def end(self) -> None:
        """The step is over: it may have been the first of a judgement, or of a spoken turn."""
        last, kind = self._spans[-1], self._goes_first()
        if self._n_begun < self._loop._counters["speculations"]:  # and perhaps given up already
            self._n_begun, kind = self._loop._counters["speculations"], "answers"
        if kind and last.kind in ("rest", "other"):
            last.end_ns = self._began_ns
            self._spans.append(_Span(kind, self._began_ns, self._loop._clock.now_ns()))

    def _goes_first(self) -> str:
        """Before a judgement that might begin now; empty if nothing does."""
        loop = self._loop
        questions = [a.turn.question for a in loop._answers._open]
        is_asked = loop._turns or any(q.priority == "operator" for q in questions)
        if is_asked or loop._answers.is_tentative:
            return "answers"
        return "judging" if loop._triggers._is_judging else ""

    def close(self) -> None:
        """Nobody judges any more: those that wait have waited in vain."""
        for watched in self._loop._triggers._watched.values():
            self._measure(watched, self._loop._clock.now_ns())

    def _measure(self, watched: Any, opened_ns: int) -> None:
        """How long has it been wanted, until now?"""
        trigger, now_ns = watched.trigger, self._loop._clock.now_ns()
        before_ns = self._opened_ns.get(watched.id)
        if before_ns is None:
            return  # it has come with the step that is not over
        about = MODALITIES if trigger.modality == "any" else (trigger.modality,)
        news_ns = []
        for modality in about:
            since = itertools.takewhile(before_ns.__lt__, reversed(self._news_ns[modality]))
            news_ns += [at_ns for at_ns in since if at_ns <= opened_ns]
        if not news_ns:
            return
        due_ns = max(min(news_ns), before_ns + int(trigger.period_s * NS_PER_S))
        self._spans[-1].end_ns = now_ns
        parts: Counter[str] = Counter()
        longest_ns = 0
        for span in itertools.takewhile(lambda s: s.end_ns > due_ns, reversed(self._spans)):
            kind = "step" if span.kind == "other" and span.start_ns < due_ns else span.kind
            parts[kind] += span.end_ns - max(span.start_ns, due_ns)
            if kind == "answers":
                longest_ns = max(longest_ns, span.end_ns - span.start_ns)
        seconds = {kind: n / NS_PER_S for kind, n in parts.items() if n}
        wait = Wait(watched.id, max(0, now_ns - due_ns) / NS_PER_S, longest_ns / NS_PER_S, seconds)
        self.longest = max(self.longest, wait, key=lambda w: w.seconds)
        self.worst = max(self.worst, wait, key=lambda w: w.other_s)
