"""The loop: takes what the senses deliver, keeps the live context, answers questions.

One thread owns the engine and runs `run`. Others put: each sense into its ring, the socket its
turns. A step does one thing and looks again, the most urgent first: take a question, listen, bring
an answer on by a token, encode what was seen and heard, prefill it, do a chunk of a rebase; a
rebase that must not wait longer goes before perception. So whatever is going on, a question is
taken up after one call of the engine. Perception that answers keep waiting gets a share of the
engine between their tokens, so that the robot goes on seeing however many ask. What arrives
meanwhile waits in a bounded ring; a full ring drops its oldest and counts it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edge.clock import NS_PER_S, Clock
from edge.config import Config, for_model
from edge.engines.engine import AnyEngine
from edge.errors import CapacityError, MediaError, ProtocolError
from edge.senses.turn_events import Button, Choose, Control, Mode
from edge.session.answer import Answering
from edge.session.answers import Answers
from edge.session.budget import Degraded
from edge.session.context import LiveContext
from edge.session.conversation import Conversation
from edge.session.freshness import freshness
from edge.session.health import BoardHealth
from edge.session.live_prompt import LivePrompt
from edge.session.moment import moment_of
from edge.session.notes import Notes
from edge.session.perception import Perception
from edge.session.question_prompt import PromptWriter, QuestionPrompt, is_long
from edge.session.sense import Sense
from edge.session.triggers import TriggerBook, Triggers
from edge.session.turn import (
    AnswerEvent,
    Audience,
    Done,
    Failed,
    Question,
    SpokenEvent,
    Status,
    Turn,
    log_turn,
)

if TYPE_CHECKING:
    from edge.session.record import Recorder
    from edge.session.replay import Observed

log = logging.getLogger(__name__)

T = TypeVar("T")
TURN = "turn"
"""What a step takes when it takes a question."""

KEPT = 4
"""One place in so many of those that wait is kept from each user, for others."""
IDLE_S = 1.0
"""Without anything to do the loop says so often that it is alive."""
FEED_JOIN_S = 2.0
"""All sources together: one may sleep until its next frame; its thread does not outlive the
process."""


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
        health: Callable[[], BoardHealth] | None = None,
        alive: Callable[[], None] = lambda: None,
        counts_beside: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Prefill the anchor; nothing plays before `run`.

        Args:
            config: the context's bound, where left open, is the model's.
            model: the name that clients see.
            senses: the most urgent first.
            start_ns: the session's time 0, from which the prompt counts.
            recorder: is told what every step takes and what follows.
            health: what the board says of itself; read once a second.
            alive: called from the loop's thread after each step, and while there is nothing to do;
                not while the engine hangs.
            counts_beside: counters of what works for the session in other processes.
        """
        self._counts_beside = counts_beside
        decoder = engine.spec.decoder
        config = for_model(config, decoder.trained_tokens, decoder.max_tokens)
        self._alive = alive
        self._recorder, self._health = recorder, health
        self._clock, self._model, self._prompt, self._config = clock, model, prompt, config
        self._start_ns = start_ns
        self._context = LiveContext(
            engine,
            prompt.anchor(),
            prompt.separator(),
            max_tokens=config.context.max_tokens,
            keep_tokens=config.context.keep_tokens,
            notes_tokens=config.context.notes_tokens,
            can_be_described=recorder is not None,
        )
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._draining = False
        self._senses = senses
        for sense in senses:
            sense.woken = self._wake.set
            if recorder is not None:
                sense.taken = recorder.took
        self._turns: deque[Turn] = deque()
        self._changed: deque[dict[str, Any]] = deque(maxlen=1)  # settings that no step has taken
        self._turns_lock = threading.RLock()
        self._writer = PromptWriter(self._turns_lock, decoder.max_tokens, self._prompt_written)
        self._runs = False
        self._counters: Counter[str] = Counter()
        stale_ns = int(config.perception.stale_s * NS_PER_S)
        fresh = partial(freshness, senses, stale_ns)
        self._answers = Answers(prompt, clock, self._context_of, fresh)
        into = (self._context, self._answers, clock, self._saw, self._counters, start_ns)
        self._perception = Perception(senses, *into)
        self._intake = self._perception.intake
        parts = (self._context, self._intake, self._answers)
        self._conversation = Conversation(*parts, clock, config, self._tell, self._counters)
        of_notes = (prompt.tokenizer, clock, self._saw, self._counters)
        self._notes = Notes(self._context, self._answers, *of_notes)
        self._book = TriggerBook(self._wake.set)
        self._triggers = Triggers(self._book, self._context, self._answers, *of_notes, senses)
        self._spoken = Audience[SpokenEvent]()
        self._events = Audience[object]()
        self._microphone = next((sense for sense in senses if sense.hears), None)
        self._wanted_mode: Mode = config.turns.mode
        self._mode_of_settings = self._wanted_mode  # a client may have chosen another one since

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
        turn = Turn(question.seeded(), asked_ns or self._clock.now_ns(), deliver)
        if self._runs and is_long(question):
            turn = replace(turn, prompt=QuestionPrompt(self._prompt, turn.question))
        self.take(turn)
        return turn

    def take(self, turn: Turn) -> None:
        """Queue a turn.

        Raises:
            CapacityError: socket.max_waiting questions wait already.
        """
        with self._turns_lock:
            if self._draining or self._stopped.is_set():
                raise _stopping()
            limit, user = self._config.socket.max_waiting, turn.question.user
            queued = [*self._turns, *self._writer.turns()]
            if len(queued) + max(0, len(self._answers) - 1) >= limit:
                raise CapacityError(
                    "question", f"{limit} others are waiting already", "ask again later"
                )
            own_limit = limit - limit // KEPT
            own = [other for other in queued if other.question.user == user]
            if user and len(own) + max(0, self._answers.n_of(user) - 1) >= own_limit:
                problem = f"{own_limit} of {user} are waiting already"
                raise CapacityError("question", problem, "ask again later")
            if turn.prompt is not None:
                self._writer.write(turn)
                return
            self._turns.append(turn)
        self._wake.set()

    def _prompt_written(self, turn: Turn) -> None:
        """A long question can be taken up now."""
        self._turns.append(turn)
        self._wake.set()

    def take_again(self, turn: Turn) -> None:
        """Queue a recorded turn: it was taken, whatever the limits say."""
        self._turns.append(turn)

    @property
    def triggers(self) -> TriggerBook:
        """What clients want to be told of."""
        return self._book

    def watch(self, deliver: Callable[[SpokenEvent], None]) -> Callable[[], None]:
        """Hear of spoken turns from now on: called from the loop's thread.

        Returns:
            What ends it.
        """
        return self._spoken.join(deliver)

    def observe(self, deliver: Callable[[object], None]) -> Callable[[], None]:
        """Hear of all events from now on, those of clients' turns too, as `watch`."""
        return self._events.join(deliver)

    def control(self, control: Control) -> None:
        """Say something to the turn-taking of the first microphone, in order with its sound.

        Raises:
            ProtocolError: nothing takes turns, or not in this mode.
            CapacityError: too many other wishes wait.
        """
        if self._microphone is None or self._config.perception.listen != "utterances":
            raise ProtocolError(
                "turns",
                "are only typed: no microphone's sound is cut into utterances",
                'run with a microphone and perception.listen = "utterances"',
            )
        wanted = self._wanted_mode
        if isinstance(control, Button) and wanted != "push_to_talk":
            raise ProtocolError(control.do, f"the mode is {wanted}", "choose push_to_talk")
        self._microphone.control(control)
        if isinstance(control, Choose):
            self._wanted_mode = control.mode

    def status(self) -> Status:
        """The session as it stands."""
        counters = dict(self._counters)
        senses = {sense.name: sense.counts for sense in self._senses}
        for name, counts in senses.items():
            counters |= {f"{name}_{what}": n for what, n in counts.items()}
        counters["rebases"] = self._context.n_rebases
        recorder = self._recorder
        if recorder is not None:
            counters |= recorder.counters
        counters |= self._counts_beside()
        return Status(
            ready=not self._stopped.is_set(),
            model=self._model,
            n_context_tokens=self._context.n_tokens,
            max_context_tokens=self._context.max_tokens,
            counters=counters,
            senses=senses,
            uptime_ns=self._clock.now_ns() - self._start_ns,
            start_ns=self._start_ns,
            recent=tuple(self._intake.recent),
            mode="typed" if self._microphone is None else self._microphone.mode,
            problems=(f"recording: {recorder.problem}",) if recorder and recorder.problem else (),
        )

    @property
    def degraded(self) -> Sequence[Degraded]:
        """The newest steps on the budget's ladder, oldest first."""
        return self._perception.degraded

    def change(self, config: Config) -> None:
        """Go on with other settings from the next step on, as far as `config.without_restart` lets
        them differ.

        Raises:
            ProtocolError, CapacityError: as `control`, where the mode differs; nothing changes.
        """
        mode = config.turns.mode
        if mode != self._mode_of_settings and self._microphone is not None:
            self.control(Choose(mode))
        self._mode_of_settings = mode
        self._changed.append(msgspec.to_builtins(config))
        self._wake.set()

    def drain(self) -> None:
        """Take no more questions; those that were asked are still answered."""
        with self._turns_lock:
            self._draining = True

    @property
    def n_turns(self) -> int:
        """Questions that are not answered yet."""
        with self._turns_lock:  # one that is just handed on is counted, too
            return len(self._turns) + len(self._writer) + len(self._answers)

    def stop(self) -> None:
        """End `run` after the step it is in."""
        with self._turns_lock:  # whoever is let in before is told in `run`, nobody after
            self._stopped.set()
            for turn in (*self._turns, *self._writer.turns()):
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
        self._writer.begin()
        feeds = [thread for sense in self._senses if (thread := sense.start())]
        self._runs = True
        try:
            while not self._stopped.is_set():
                self._wake.clear()
                is_idle = not self.step()
                self._alive()
                due_s = self._wait_s()
                left_s = math.inf if due_s is None else due_s
                while is_idle and left_s > 0 and not self._wake.wait(min(IDLE_S, left_s)):
                    self._alive()
                    left_s -= IDLE_S
                for sense in self._senses:
                    if sense.defect is not None:
                        raise sense.defect
        finally:
            self.stop()
            self._end_all()
            join_by_s = time.monotonic() + FEED_JOIN_S
            for feed in feeds:
                feed.join(max(0.0, join_by_s - time.monotonic()))
        self._answers.give_way()

    def _end_all(self) -> None:
        """Nobody answers those who still wait, and what was told to have begun is over."""
        with self._turns_lock:
            waiting, self._turns = [*self._turns, *self._writer.end()], deque()
        for turn in waiting:
            self._deliver(turn.deliver, Failed(_stopping()))
        self._conversation.close(_stopping())
        self._triggers.close()
        self._answers.fail_all(_stopping())

    def step(self) -> bool:
        """Do the most urgent thing; False when there is nothing to do."""
        if self._recorder is None:
            return self._step()
        if self._recorder.begin() and (moment := moment_of(self)) is not None:
            self._recorder.begin_file(msgspec.to_builtins(self._config), moment)
        try:
            return self._step()
        finally:
            self._recorder.end()

    def _saw(self, event: object) -> None:
        if self._recorder is not None:
            self._recorder.saw(event)
        self._events.tell(event)

    def _outside(self, name: str, read: Callable[[], T]) -> T | None:
        """What a step learns besides what it takes and what its clock says: recorded."""
        return read() if self._recorder is None else self._recorder.outside(name, read)

    def _step(self) -> bool:
        self._take_settings()
        self._perception.look_at_the_load(self._board_health)
        self._perception.notice_rebase()
        if self._take_turn() or self._listen() or self._conversation.end_if_silent():
            return True
        self._triggers.take(self._outside("triggers", self._book.changes) or ())
        if self._answers.is_tentative:  # only its own turn comes on
            is_busy = self._conversation.give_up_if_overdue() or self._answer()
            return is_busy or len(self._answers) > 0
        self._notes.write_if_wanted()
        self._triggers.judge_if_due()
        if not len(self._answers):
            is_busy = self._perception.step() or self._context.rebase()
            return is_busy or self._triggers.end_unseen()
        return (
            self._perception.step_if_kept_waiting()
            or self._answer()
            or self._perception.step()
            or len(self._answers) > 0
        )

    def _answer(self) -> bool:
        """Bring an answer on; False if there is none, or none can go on."""
        if not len(self._answers):
            return False
        cancelled = self._outside("cancelled", self._answers.cancelled) or ()
        late = self._outside("late", self._answers.late) or ()
        overdue = self._outside("overdue", self._answers.overdue) or ()
        return self._answers.step(cancelled, late, overdue)

    def _wait_s(self) -> float | None:
        """How long the loop may sleep after an idle step if nothing wakes it; None: for ever."""
        left_s = [self._conversation.wait_s()]
        if not self._answers.is_tentative:
            left_s += [self._triggers.wait_s(), self._perception.wait_s()]
        return min((one_s for one_s in left_s if one_s is not None), default=None)

    def _take_settings(self) -> None:
        def changed() -> dict[str, Any] | None:
            return self._changed.popleft() if self._changed else None

        settings = self._outside("settings", changed)
        if settings is not None:
            self._config = self._conversation.config = msgspec.convert(settings, Config)

    def _take_turn(self) -> bool:
        with self._turns_lock:
            if not self._turns:
                return False
            self._conversation.give_up()
            turn = self._turns.popleft()
            if self._recorder is not None:
                self._recorder.took(TURN, turn.question, turn.asked_ns)
            self._answers.open(replace(turn, deliver=partial(self._deliver, turn.deliver)))
        return True

    def _listen(self) -> bool:
        """Take a chunk of sound, or a client's wish, and hear whose turn it is."""
        for sense in self._senses:
            if not sense.hears:
                continue
            try:
                events = sense.take()
            except (MediaError, ProtocolError) as error:
                self._intake.refuse(sense.name, error)
                return True
            if events is not None:
                self._conversation.hear(sense, events)
                return True
        return False

    def _board_health(self) -> BoardHealth:
        reading = self._outside("health", self._read_health)
        return BoardHealth(**reading) if reading else BoardHealth()

    def _read_health(self) -> dict[str, Any] | None:
        if self._health is None:
            return None
        try:
            return asdict(self._health())
        except OSError as error:  # such as too many open files: no reason to end the session
            self._counters["health_unread"] += 1
            log.log(
                logging.WARNING if self._counters["health_unread"] == 1 else logging.DEBUG,
                *("health=unread error=%s", error),
            )
            return None

    def _context_of(self, answering: Answering) -> LiveContext:
        """The live context, or the part of the past that the question is about."""
        turn = answering.turn
        if turn.question.recall_s is None:
            return self._context
        if not answering.past:
            start_ns, end_ns = (turn.asked_ns - int(s * NS_PER_S) for s in turn.question.recall_s)
            if end_ns < self._start_ns:
                since_s = (turn.asked_ns - self._start_ns) / NS_PER_S
                problem = (
                    f"the session began {since_s:.1f} s ago, after the time that it asks about"
                )
                raise CapacityError("recall", problem, "ask about a later time")
            answering.past = self._context.kept_of(start_ns, end_ns)
        return self._context.recalled(answering.past)

    def _deliver(self, deliver: Callable[[AnswerEvent], None], event: AnswerEvent) -> None:
        self._count(event)
        self._saw(event)
        deliver(event)

    def _tell(self, event: SpokenEvent) -> None:
        self._count(event)
        self._saw(event)
        self._spoken.tell(event)

    def _count(self, event: object) -> None:
        if isinstance(event, Done):
            self._counters["answers"] += 1
        elif isinstance(event, Failed):
            self._counters["answers_refused"] += 1
        else:
            return
        log_turn(event)


def _stopping() -> CapacityError:
    """Made anew for each: one that is raised again and again keeps the frames of all."""
    return CapacityError("service", "is stopping", "ask again later")
