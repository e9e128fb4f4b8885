"""Spoken turns: an answer is begun at a soft end, and told when the turn is over.

At a pause the question may be complete: its clip enters the context tentatively and an answer is
made, but held back. If speech is resumed both are undone, bit by bit; if the pause lasts, what has
been said of the answer is delivered at once. Nothing else may stand behind a tentative clip, so
any other turn undoes it too: the answer is then begun when the turn is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from edge.clock import NS_PER_S, Clock
from edge.config import Config
from edge.engines.engine import AnyEngine
from edge.errors import CapacityError, EdgeError
from edge.model.sampling import Sampling
from edge.senses.turn_events import (
    Ended,
    Resumed,
    SoftEnd,
    SpeechStarted,
    TurnEvent,
    Utterance,
    Withdrawn,
)
from edge.senses.turns import MAX_GAP_NS, MAX_HELD_NS
from edge.session.answers import Answers
from edge.session.context import LiveContext
from edge.session.intake import Intake
from edge.session.sense import Sense
from edge.session.turn import (
    AnswerEvent,
    Channel,
    Done,
    Failed,
    Message,
    Question,
    SpeechStopped,
    Spoken,
    SpokenEvent,
    Turn,
)
from edge.types import AudioChunk, Evidence

MAX_TENTATIVE_NS = NS_PER_S
"""A tentative clip holds up what else is perceived. Sound settles or undoes it after 0.38 s; after
so long it is given up, whatever is heard meanwhile, and from whom."""


@dataclass
class _Held:
    """Delivers what it is given, but not before it is released."""

    out: Callable[[AnswerEvent], None]
    released_ns: int | None = None
    events: list[AnswerEvent] = field(default_factory=list)

    def deliver(self, event: AnswerEvent) -> None:
        if self.released_ns is None:
            self.events.append(event)
            return
        if isinstance(event, Done):  # nobody has seen a token before
            timeline, ns = event.timeline, self.released_ns
            timeline = replace(
                timeline,
                first_token_ns=max(timeline.first_token_ns, ns),
                finished_ns=max(timeline.finished_ns, ns),
            )
            event = replace(event, timeline=timeline)
        self.out(event)

    def release(self, now_ns: int) -> None:
        self.released_ns = now_ns
        for event in self.events:
            self.deliver(event)


@dataclass(frozen=True, slots=True, eq=False)
class _Speculation:
    """An answer that is made for a question which may go on."""

    clip: AudioChunk
    turn: Turn
    held: _Held
    until_ns: int
    """Then it is given up."""


@dataclass(slots=True)
class Speaker:
    """Somebody who speaks, as clients were told."""

    sense: Sense[Any]
    newest_ns: int | None
    """Up to here it was heard..."""
    heard_ns: int
    """...which was taken at this time."""
    overdue_ns: int
    """Then the microphone has been silent for too long."""


class Conversation:
    """The spoken turns of one microphone."""

    def __init__(
        self,
        context: LiveContext,
        intake: Intake,
        answers: Answers,
        clock: Clock,
        config: Config,
        deliver: Callable[[SpokenEvent], None],
        counters: Counter[str],
    ) -> None:
        """Wait for speech.

        Args:
            deliver: is told what happens.
            counters: where to count.
        """
        self._context, self._intake, self._answers = context, intake, answers
        self._clock, self._deliver = clock, deliver
        self.config = config
        """May be replaced at any time."""
        self._counters = counters
        self._speculation: _Speculation | None = None
        self._answered: Turn | None = None
        self.speaker: Speaker | None = None
        """Who speaks now."""
        self._is_entering = False  # a question that was told to be one, and is not begun

    @property
    def is_speculating(self) -> bool:
        """Whether an answer was begun that may be undone."""
        return self._speculation is not None

    def hear(self, sense: Sense[Any], events: list[TurnEvent]) -> None:
        """Take what has happened in the microphone's newest sound."""
        for event in events:
            if isinstance(event, SpeechStarted):
                self.interrupt()
                self.speaker = Speaker(sense, None, 0, 0)
                self._deliver(event)
            elif isinstance(event, SoftEnd):
                self._soft_end(sense, event.utterance)
            elif isinstance(event, Resumed):
                self.give_up()
            elif isinstance(event, Withdrawn):
                self.give_up()
                self._stop(event.at_ns)
            elif isinstance(event, Ended):
                self._end(sense, event)
        speaker = self.speaker
        if speaker is not None and speaker.sense is sense and speaker.newest_ns != sense.newest_ns:
            speaker.newest_ns, speaker.heard_ns = sense.newest_ns, self._clock.now_ns()
            speaker.overdue_ns = speaker.heard_ns + MAX_GAP_NS

    def end_if_silent(self) -> bool:
        """End what is being said if its microphone gives no sound any more; whether that was so."""
        speaker = self.speaker
        if speaker is None or (now_ns := self._clock.now_ns()) <= speaker.overdue_ns:
            return False
        if speaker.sense.is_full:  # what it hears is left in its ring
            speaker.overdue_ns = now_ns + MAX_GAP_NS
            return False
        speaker.overdue_ns = now_ns + MAX_HELD_NS  # a button that is held ends later
        self.hear(speaker.sense, speaker.sense.miss(now_ns - speaker.heard_ns))
        return True

    def close(self, error: EdgeError) -> None:
        """The session ends, perhaps while a question enters the context."""
        if self.speaker is not None:
            self._stop(self._clock.now_ns())
        if self._is_entering:
            self._fail(error)

    def _stop(self, end_ns: int, *, is_asked: bool = False) -> None:
        self.speaker, self._is_entering = None, is_asked
        self._deliver(SpeechStopped(end_ns, is_asked))

    def _fail(self, error: EdgeError) -> None:
        self._is_entering = False
        self._deliver(Failed(error))

    def interrupt(self) -> None:
        """Somebody speaks: the answer to the last spoken question ends."""
        if self._answered is not None:
            self._answered.cancel()

    def give_up(self) -> None:
        """Undo what was begun at the soft end."""
        if self._speculation is not None:
            self._answers.undo()
            self._answers.leave(self._context)
            self._context.reopen()
            self._speculation = None
            self._counters["speculations_given_up"] += 1

    def give_up_if_overdue(self) -> bool:
        """Undo it if the turn neither ended nor went on in time; whether that was so."""
        if self._speculation is None or self._clock.now_ns() < self._speculation.until_ns:
            return False
        self.give_up()
        return True

    def wait_s(self) -> float | None:
        """Until something is given up, if nothing is heard; None if nothing was begun."""
        begun, speaker = self._speculation, self.speaker
        until_ns = [] if begun is None else [begun.until_ns]
        until_ns += [] if speaker is None else [speaker.overdue_ns + 1]
        return max(0.0, (min(until_ns) - self._clock.now_ns()) / NS_PER_S) if until_ns else None

    def _soft_end(self, sense: Sense[Any], utterance: Utterance | None) -> None:
        if utterance is None or len(self._answers) or self.config.answer.remember:
            return
        if not self._enter(sense, utterance.clip):
            return
        self._counters["speculations"] += 1
        held = _Held(self._deliver)
        turn = self._turn(utterance, held.deliver, "ambient")
        until_ns = self._clock.now_ns() + MAX_TENTATIVE_NS
        self._speculation = _Speculation(utterance.clip, turn, held, until_ns)
        self._answers.open_tentatively(turn)

    def _end(self, sense: Sense[Any], ended: Ended) -> None:
        begun, utterance = self._speculation, ended.utterance
        self._stop(self._clock.now_ns() if utterance is None else utterance.end_ns, is_asked=True)
        if begun is not None and utterance is not None and _same(begun.clip, utterance.clip):
            self._speculation = None
            self._answers.settle()
            self._intake.settle()
            self._begin(begun.turn)
            begun.held.release(self._clock.now_ns())
            return
        self.give_up()
        self._answers.leave(self._context)
        if utterance is None:  # cuts hold everything
            self._encode(sense)
            self._intake.append_all()
        elif self._enter(sense, utterance.clip):
            self._intake.settle()
        else:  # those who have heard that somebody speaks hear that there is no answer
            remedy = "see why in edge.refused, or speak for less long"
            self._fail(CapacityError("spoken question", "did not enter the context", remedy))
            return
        turn = self._turn(utterance, self._deliver, "operator" if ended.held else "ambient")
        self._begin(turn)
        self._answers.open(turn)

    def _begin(self, turn: Turn) -> None:
        self._answered, self._is_entering = turn, False
        newest = self._context.evidence()[-1:]
        where = newest[0] if newest else Evidence("", turn.asked_ns, turn.asked_ns)
        self._deliver(Spoken(turn.asked_ns, where))

    def _enter(self, sense: Sense[Any], clip: AudioChunk) -> bool:
        """Bring a question into the context, behind what was heard before it."""
        sense.hear(clip, self._clock.now_ns())
        return self._encode(sense) and self._intake.append_tentatively()

    def _encode(self, sense: Sense[Any]) -> bool:
        """Encode all that waits; whether the last of it could be."""
        is_encoded = False
        while sense.n_waiting:
            is_encoded = self._intake.encode(sense)
        return is_encoded

    def _turn(
        self,
        utterance: Utterance | None,
        deliver: Callable[[AnswerEvent], None],
        channel: Channel,
    ) -> Turn:
        now_ns = self._clock.now_ns()
        asked_ns = now_ns if utterance is None else utterance.end_ns
        question = spoken_question(self.config, self._context.engine, asked_ns, channel)
        return Turn(question, asked_ns, deliver, known_ns=now_ns)


def _same(first: AudioChunk, second: AudioChunk) -> bool:
    """Whether two clips of one microphone hold the same sound."""
    return (first.capture_ns, len(first.samples)) == (second.capture_ns, len(second.samples))


def spoken_question(
    config: Config, engine: AnyEngine, seed: int, channel: Channel = "ambient"
) -> Question:
    """What somebody asks who has spoken: the question itself is in the context.

    Args:
        seed: draws the answer, where it is not greedy.
        channel: who has spoken.
    """
    answer, own = config.answer, engine.spec.sampling
    default = Sampling(own.temperature, own.top_p) if answer.thinking else Sampling()
    temperature = default.temperature if answer.temperature is None else answer.temperature
    top_p = default.top_p if answer.top_p is None else answer.top_p
    return Question(
        (Message("user", config.turns.text),),
        Sampling(temperature, top_p, default.top_k, seed),
        answer.max_tokens,
        thinking=answer.thinking,
        remember=answer.remember,
        deadline_s=answer.deadline_s,
        channel=channel,
    )
