"""The turns that are open: the most urgent one is answered, token by token, the others wait.

An operator's turn goes before a trigger's. Among equals one whose answer has not begun goes first,
so that it does not wait for another's answer to end: of those the one that is being prefilled, then
that of the user whose turn is longest ago. Then comes the one that is being answered, so
that the engine does not change between them without need; but an answer that was asked for long ago
goes before those, so that it ends however many others ask.

A turn may be begun on a tentative clip. Until that is settled or undone it is the only one: whoever
would open another asks `is_tentative` first, or undoes it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

from edge.clock import NS_PER_S, Clock
from edge.errors import (
    CapacityError,
    DeadlineError,
    EdgeError,
    EngineError,
    MediaError,
    ProtocolError,
    TurnError,
)
from edge.model.constrain import never_followed
from edge.session.answer import Answering
from edge.session.context import LiveContext
from edge.session.freshness import FreshnessOf
from edge.session.live_prompt import LivePrompt
from edge.session.turn import Done, Failed, FinishReason, Priority, Turn

PRIORITIES: tuple[str, ...] = get_args(Priority)
LOOK_S = 0.005
"""So long the loop looks for what a format allows next before another answer takes its place."""
PATIENCE_NS = 5 * NS_PER_S
"""Since it was asked: then an answer that has begun goes before younger ones."""


class Answers:
    """One engine's answers: at most one of them has its fork of the context open."""

    def __init__(
        self,
        prompt: LivePrompt,
        clock: Clock,
        context_of: Callable[[Answering], LiveContext],
        freshness_of: FreshnessOf,
    ) -> None:
        """Begin with no turn.

        Args:
            context_of: what a turn stands on; may raise CapacityError.
            freshness_of: how fresh that is.
        """
        self._prompt, self._clock, self._context_of = prompt, clock, context_of
        self._freshness_of = freshness_of
        self._open: list[Answering] = []
        self._current: Answering | None = None
        self._tentative: Turn | None = None
        self._taken: dict[str, int] = {}
        """User -> which of the turns that were taken up was its last, while others wait."""
        self.since_ns = 0
        """Since when there has always been one."""
        self.worked_ns = 0
        """Since somebody last set it to 0: time in which answers came on; what is only prefilled
        again does not count."""

    def __len__(self) -> int:
        """Turns that are open."""
        return len(self._open)

    def n_of(self, user: str) -> int:
        """Of these, one user's; for any thread."""
        return sum(answering.turn.question.user == user for answering in self._open.copy())

    @property
    def is_tentative(self) -> bool:
        """Whether a turn stands on a clip that may be taken back: no other may be opened, and
        nothing may enter the context. It may have been answered already."""
        return self._tentative is not None

    def open(self, turn: Turn) -> None:
        """Answer a turn as soon as nothing is more urgent."""
        if self.is_tentative:
            raise RuntimeError("another turn is opened behind a tentative clip")
        try:
            answering = Answering(self._prompt, turn, self._clock, self._freshness_of)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this turn's
            turn.deliver(_failed(error))
            return
        if not self._open:
            self.since_ns = self._clock.now_ns()
            self._taken.clear()
        self._open.append(answering)

    def open_tentatively(self, turn: Turn) -> None:
        """Answer a turn, the only one, until `settle` or `undo`."""
        if self._open:
            raise RuntimeError("a tentative turn is opened beside others")
        self.open(turn)
        self._tentative = turn

    def settle(self) -> None:
        """The tentative turn is one like all others."""
        self._tentative = None

    def undo(self) -> None:
        """Forget the tentative turn, without a word."""
        for answering in [a for a in self._open if a.turn is self._tentative]:
            self._remove(answering)
        self._tentative = None

    def cancelled(self) -> list[int]:
        """Which of the turns their clients have given up."""
        return [i for i, answering in enumerate(self._open) if answering.turn.cancelled.is_set()]

    def late(self) -> list[int]:
        """Which of the turns wait for what their format allows next, and hinder nobody meanwhile.

        It is made elsewhere, while the engine computes, and mostly there in time.
        """
        return [
            i
            for i, answering in enumerate(self._open)
            if answering.is_late(LOOK_S if answering is self._current else 0.0)
        ]

    def overdue(self) -> list[int]:
        """Which of those have waited for too long."""
        return [i for i, answering in enumerate(self._open) if answering.is_overdue()]

    def give_way(self) -> None:
        """No answer is going on: its fork is closed, the context as it was."""
        if self._current is not None:
            self._current.give_way()
            self._current = None

    def can_leave(self, context: LiveContext) -> bool:
        """Whether no answer would lose more by `leave` than one prefill."""
        current = self._current
        return current is None or not current.stands_on(context) or current.is_between_tokens

    def leave(self, context: LiveContext) -> None:
        """Leave this context as it was: it is to be changed."""
        if self._current is not None and self._current.stands_on(context):
            self.give_way()

    def fail_all(self, error: EdgeError) -> None:
        """End all turns without the engine, which may be broken; `give_way` comes afterwards."""
        ended, self._open = self._open, []
        for answering in ended:
            answering.turn.deliver(Failed(error))

    def step(
        self, cancelled: Sequence[int], late: Sequence[int] = (), overdue: Sequence[int] = ()
    ) -> bool:
        """Bring the most urgent answer on by a token or a chunk of its prefill.

        Args:
            cancelled: as `cancelled` says.
            late: as `late` says.
            overdue: as `overdue` says.
        Returns:
            Whether there was something to do: else all of them are late.
        Raises:
            EngineError: the engine failed; who asked has been told.
            Exception: likewise, in its own words. Whatever else goes wrong ends that turn only.
        """
        waiting, given_up = [self._open[i] for i in late], [self._open[i] for i in overdue]
        for answering in [self._open[i] for i in cancelled]:
            self._cut(answering, "cancelled")
        for answering in [one for one in given_up if one in self._open]:
            self._end(answering, Failed(never_followed()))
        now_ns = self._clock.now_ns()
        self._end_late(now_ns)
        ready = [answering for answering in self._open if answering not in waiting]
        if not ready:
            return not self._open
        chosen = min(ready, key=partial(self._urgency, now_ns))
        try:
            if chosen is not self._current:
                self.give_way()
                self._taken[chosen.turn.question.user] = 1 + max(self._taken.values(), default=0)
                if not chosen.is_checking:
                    chosen.begin(self._context_of(chosen))
                self._current = chosen
            comes_on = chosen.is_between_tokens or not chosen.has_begun
            done = chosen.step()
        except EngineError as error:
            chosen.turn.deliver(Failed(error))
            self._open.remove(chosen)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this turn's
            self._end(chosen, _failed(error))
        else:
            if comes_on:
                self.worked_ns += self._clock.now_ns() - now_ns
            if done is not None:
                self._end(chosen, done)
        return True

    def _urgency(self, now_ns: int, answering: Answering) -> tuple[int, bool, int, bool, int]:
        question, has_begun = answering.turn.question, answering.has_begun
        patient_ns = answering.turn.asked_ns + PATIENCE_NS if has_begun else 0
        return (
            *(PRIORITIES.index(question.priority), has_begun),
            *(min(patient_ns, now_ns), answering is not self._current),
            0 if has_begun else self._taken.get(question.user, 0),
        )

    def _end_late(self, now_ns: int) -> None:
        for answering in list(self._open):
            deadline_ns, seconds = answering.turn.deadline_ns, answering.turn.question.deadline_s
            if deadline_ns is None or now_ns <= deadline_ns:
                continue
            if answering.has_begun:
                self._cut(answering, "deadline")
                continue
            late_s = (now_ns - deadline_ns) / NS_PER_S
            problem = f"was not answered within {seconds:g} s (it is {late_s:.3f} s late)"
            remedy = "ask for less, allow it more time, or lower what is perceived"
            self._end(answering, Failed(DeadlineError("question", problem, remedy)))

    def _cut(self, answering: Answering, reason: FinishReason) -> None:
        """End it with what it has said by now."""
        outcome: Done | Failed
        try:
            outcome = answering.end(reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this turn's
            outcome = _failed(error)
        self._end(answering, outcome)

    def _end(self, answering: Answering, outcome: Done | Failed) -> None:
        self._remove(answering)
        answering.turn.deliver(outcome)

    def _remove(self, answering: Answering) -> None:
        if answering is self._current:
            self.give_way()
        self._open.remove(answering)


def _failed(error: Exception) -> Failed:
    """What a turn ends with; the engine's own failure is raised again.

    A question may hold anything, and what reads it may have defects: none of them ends the service.
    """
    if isinstance(error, ProtocolError | CapacityError | MediaError | TurnError):
        # Whoever keeps it would keep what its frames hold, and so a recalled state.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return Failed(error)
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    if isinstance(error, EngineError) or any(name.startswith("edge.engines.") for name in modules):
        raise error
    return Failed(TurnError.of(error))
