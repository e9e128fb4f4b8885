"""The loop: takes what the senses deliver, keeps the live context, answers questions.

One thread owns the engine and runs `run`. Others put: each sense into its ring, the socket its
turns. A step does one thing and looks again: a waiting question first, then the senses in their
order, then a chunk of a rebase; a rebase that must not wait longer goes before the senses. What
arrives meanwhile waits in a bounded ring; a full ring drops its oldest and counts it.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from edge.clock import NS_PER_MS, NS_PER_S, Clock
from edge.config import Config
from edge.engines.engine import AnyEngine
from edge.errors import CapacityError, EngineError, MediaError, ProtocolError
from edge.session.answer import LivePrompt, answer
from edge.session.budget import Budget, Degraded, Load
from edge.session.context import LiveContext
from edge.session.perceive import Seen
from edge.session.sense import Sense
from edge.session.turn import AnswerEvent, Done, Failed, Question, Status, Turn
from edge.types import Stages

if TYPE_CHECKING:
    from edge.session.record import Recorder
    from edge.session.replay import Observed

log = logging.getLogger(__name__)

TURN = "turn"
"""What a step takes when it takes a question."""

N_RECENT_STAGES = 32
FEED_JOIN_S = 2.0
"""A source may sleep until its next frame; its thread does not outlive the process."""


@dataclass(frozen=True, slots=True)
class Rebased:
    """A shorter state has taken the live one's place."""

    at_ns: int
    n_tokens: int


class LiveLoop:
    """A live session over one engine."""

    def __init__(
        self,
        engine: AnyEngine,
        prompt: LivePrompt,
        config: Config,
        clock: Clock,
        model: str,
        senses: Sequence[Sense[Any]],
        *,
        start_ns: int,
        recorder: Recorder | Observed | None = None,
    ) -> None:
        """Prefill the anchor; nothing plays before `run`.

        Args:
            model: the name that clients see.
            senses: the most urgent first.
            start_ns: the session's time 0, from which the prompt counts.
            recorder: is told what every step takes and what follows.
        """
        self._recorder = recorder
        self._clock, self._model, self._prompt, self._config = clock, model, prompt, config
        self._start_ns = start_ns
        self._context = LiveContext(
            engine,
            prompt.anchor(),
            prompt.separator(),
            max_tokens=config.context.max_tokens,
            keep_tokens=config.context.keep_tokens,
        )
        self._n_rebases = 0
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._senses = senses
        for sense in senses:
            sense.woken = self._wake.set
            if recorder is not None:
                sense.taken = recorder.took
        self._turns: deque[Turn] = deque()
        self._turns_lock = threading.Lock()
        self._counters: Counter[str] = Counter()
        self._recent: deque[Stages] = deque(maxlen=N_RECENT_STAGES)
        self._budget = Budget(start_ns)
        self._looked_ns, self._worked_ns, self._lateness_ns = start_ns, 0, 0
        self.degraded: deque[Degraded] = deque(maxlen=N_RECENT_STAGES)
        """The newest steps on the budget's ladder, oldest first."""

    # What other threads call.

    def ask(
        self,
        question: Question,
        deliver: Callable[[AnswerEvent], None],
        asked_ns: int | None = None,
    ) -> Turn:
        """Queue a question; `deliver` is called from the loop's thread.

        Args:
            asked_ns: when it was asked, if not just now.
        Raises:
            CapacityError: socket.max_waiting questions wait already.
        """
        turn = Turn(_seeded(question), asked_ns or self._clock.now_ns(), deliver)
        self.take(turn)
        return turn

    def take(self, turn: Turn) -> None:
        """Queue a turn.

        Raises:
            CapacityError: socket.max_waiting questions wait already.
        """
        with self._turns_lock:
            limit = self._config.socket.max_waiting
            if len(self._turns) >= limit:
                raise CapacityError(
                    "question", f"{limit} others are waiting already", "ask again later"
                )
            self._turns.append(turn)
        self._wake.set()

    def status(self) -> Status:
        """The session as it stands."""
        counters = dict(self._counters)
        for sense in self._senses:
            counters |= sense.counters
        counters["rebases"] = self._context.n_rebases
        return Status(
            ready=not self._stopped.is_set(),
            model=self._model,
            n_context_tokens=self._context.n_tokens,
            max_context_tokens=self._context.max_tokens,
            counters=counters,
            uptime_ns=self._clock.now_ns() - self._start_ns,
            start_ns=self._start_ns,
            recent=tuple(self._recent),
        )

    def stop(self) -> None:
        """End `run` after the step it is in."""
        self._stopped.set()
        with self._turns_lock:
            for turn in self._turns:
                turn.cancel()
        self._wake.set()
        for sense in self._senses:
            sense.close()

    # What the loop's own thread does.

    def run(self) -> None:
        """Play the sources and step until `stop`.

        Raises:
            EngineError: the engine failed; the service must end.
        """
        feeds = [thread for sense in self._senses if (thread := sense.start())]
        try:
            while not self._stopped.is_set():
                self._wake.clear()
                if not self.step():
                    self._wake.wait()
                for sense in self._senses:
                    if sense.defect is not None:
                        raise sense.defect
        finally:
            self.stop()
            self._refuse_waiting()
            for feed in feeds:
                feed.join(FEED_JOIN_S)

    def _refuse_waiting(self) -> None:
        """Tell those who still wait; nobody will answer them."""
        with self._turns_lock:
            waiting, self._turns = list(self._turns), deque()
        for turn in waiting:
            turn.deliver(Failed(CapacityError("service", "is stopping", "ask again later")))

    def step(self) -> bool:
        """Do the most urgent thing; False when there is nothing to do."""
        if self._recorder is None:
            return self._step()
        self._recorder.begin()
        try:
            return self._step()
        finally:
            self._recorder.end()

    def _saw(self, event: object) -> None:
        if self._recorder is not None:
            self._recorder.saw(event)

    def _step(self) -> bool:
        self._look_at_the_load()
        self._notice_rebase()
        with self._turns_lock:
            turn = self._turns.popleft() if self._turns else None
        if turn is not None:
            self._answer(turn)
            return True
        if self._context.owes_rebase:
            return self._context.rebase()
        if any(map(self._perceive, self._senses)):
            return True
        return self._context.rebase()

    def _notice_rebase(self) -> None:
        """After a rebase, which an append may have forced, the senses start again."""
        if self._context.n_rebases > self._n_rebases:
            self._n_rebases = self._context.n_rebases
            self._saw(Rebased(self._clock.now_ns(), self._context.n_tokens))
            for sense in self._senses:
                sense.start_again()

    def _look_at_the_load(self) -> None:
        """Once a second the budget sees what perception costs."""
        now_ns = self._clock.now_ns()
        since_ns = now_ns - self._looked_ns
        if since_ns < NS_PER_S:
            return
        load = Load(self._lateness_ns / NS_PER_S, self._worked_ns / since_ns)
        self._looked_ns, self._worked_ns, self._lateness_ns = now_ns, 0, 0
        step = self._budget.look(now_ns, load)
        if step is not None:
            self.degraded.append(step)
            self._saw(step)
            self._counters["degraded"] += 1
            log.warning("budget=%s cause=%s", step.rung.name, step.cause)
            for sense in self._senses:
                sense.stand_on(step.rung)

    def _perceive(self, sense: Sense[Any]) -> bool:
        """Take one item of a sense and what it completes into the state; False if none waits."""
        try:
            segments = sense.perceive()
            for seen in segments or ():
                self._append(seen)
        except (MediaError, CapacityError) as error:
            self._counters["segments_refused"] += 1
            log.warning("segment=refused error=%s", error)
            return True
        return segments is not None

    def _append(self, seen: Seen) -> None:
        before, late_ns = self._context.n_tokens, seen.stages.taken_ns - seen.stages.captured_ns
        self._lateness_ns = max(self._lateness_ns, late_ns)
        self._context.append(seen.perceived)
        stages = replace(
            seen.stages,
            prefilled_ns=self._clock.now_ns(),
            n_tokens=len(seen.perceived.embeddings),
        )
        self._worked_ns += stages.prefilled_ns - stages.taken_ns
        self._recent.append(stages)
        self._saw(stages)
        self._counters[f"{stages.modality}_segments"] += 1
        if stages.modality == "video":
            self._counters["video_tokens_kept"] += stages.n_kept
            self._counters["video_tokens_pruned"] += stages.n_pruned
        log.info(
            "segment=%s tokens=%d pruned=%d context=%d->%d late_ms=%.1f features_ms=%.1f "
            "encode_ms=%.1f prefill_ms=%.1f",
            *(stages.modality, stages.n_tokens, stages.n_pruned),
            *(before, self._context.n_tokens),
            late_ns / NS_PER_MS,
            (stages.features_ns - stages.taken_ns) / NS_PER_MS,
            (stages.encoded_ns - stages.features_ns) / NS_PER_MS,
            (stages.prefilled_ns - stages.encoded_ns) / NS_PER_MS,
        )

    def _answer(self, turn: Turn) -> None:
        if self._recorder is not None:
            self._recorder.took(TURN, turn.question, turn.asked_ns)
        turn = replace(turn, deliver=partial(self._deliver, turn.deliver))
        outcome: Done | Failed
        try:
            outcome = answer(self._context_of(turn), self._prompt, turn, self._clock)
            self._counters["answers"] += 1
        except (ProtocolError, CapacityError) as error:
            outcome = Failed(error)
            self._counters["answers_refused"] += 1
        except EngineError as error:
            turn.deliver(Failed(error))
            raise
        turn.deliver(outcome)
        _log_turn(outcome)

    def _context_of(self, turn: Turn) -> LiveContext:
        """The live context, or the part of the past that the question is about."""
        if turn.question.recall_s is None:
            return self._context
        start_ns, end_ns = (turn.asked_ns - int(s * NS_PER_S) for s in turn.question.recall_s)
        return self._context.recall(start_ns, end_ns)

    def _deliver(self, deliver: Callable[[AnswerEvent], None], event: AnswerEvent) -> None:
        self._saw(event)
        deliver(event)


def _seeded(question: Question) -> Question:
    """With the seed that its answer will be drawn by, so that a recording can repeat it."""
    sampling = question.sampling
    if sampling.temperature == 0 or sampling.seed is not None:
        return question
    return replace(question, sampling=replace(sampling, seed=secrets.randbits(32)))


def _log_turn(outcome: Done | Failed) -> None:
    if isinstance(outcome, Failed):
        log.warning("turn=refused error=%s", outcome.error)
        return
    times = outcome.timeline
    log.info(
        "turn=%s prompt_tokens=%d completion_tokens=%d waited_ms=%.1f first_token_ms=%.1f "
        "total_ms=%.1f",
        *(outcome.finish_reason, outcome.n_prompt_tokens, outcome.n_completion_tokens),
        (times.started_ns - times.asked_ns) / NS_PER_MS,
        (times.first_token_ns - times.asked_ns) / NS_PER_MS,
        (times.finished_ns - times.asked_ns) / NS_PER_MS,
    )
