"""Perception: what is seen and heard enters the live context, as much as there is time for.

A step encodes one thing, or prefills what is encoded, or does what a rebase owes. Answers go first,
but they may not blind the robot: perception that they keep waiting has its share between two of
their tokens. Microphones go before cameras, and among either the one that was encoded longest ago.
The budget sees what perception costs, and says how much of the world is perceived.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge.clock import NS_PER_S, Clock
from edge.session.answers import Answers
from edge.session.budget import LADDER, Budget, Degraded, Load
from edge.session.context import LiveContext
from edge.session.health import BoardHealth
from edge.session.intake import N_RECENT_STAGES, Intake
from edge.session.sense import Sense

log = logging.getLogger(__name__)

LOOK_NS = NS_PER_S
"""From one look at the load to the next."""
MAX_KEPT_WAITING_NS = NS_PER_S
"""Answers may keep perception waiting for so long; from then on, until it has caught up, it has its
share."""
ANSWERS_SHARE = 3
"""After a step of perception answers have the engine for so many times as long as it took."""


@dataclass(frozen=True, slots=True)
class Rebased:
    """A shorter state has taken the live one's place."""

    at_ns: int
    n_tokens: int


class Perception:
    """The senses of one session on their way into its context, in the loop's own thread."""

    def __init__(
        self,
        senses: Sequence[Sense[Any]],
        context: LiveContext,
        answers: Answers,
        clock: Clock,
        saw: Callable[[object], None],
        counters: Counter[str],
        start_ns: int,
    ) -> None:
        """Begin with nothing.

        Args:
            senses: those that hear first.
            answers: leave the context when something enters it.
            saw: is told what has entered, what was refused, rebases and steps of the budget.
            counters: where to count.
            start_ns: when the session begins.
        """
        self._context, self._answers = context, answers
        self._senses = sorted(senses, key=_sees)  # among like ones those served longest ago first
        self._clock, self._saw, self._counters = clock, saw, counters
        self.intake = Intake(context, clock, saw, counters)
        self._n_rebases = 0
        self._budget = Budget(start_ns)
        self._looked_ns = self._caught_up_ns = start_ns
        self._step_ns = 0  # what the last step between answers took
        self.degraded: deque[Degraded] = deque(maxlen=N_RECENT_STAGES)
        """The newest steps on the budget's ladder, oldest first."""

    @property
    def senses(self) -> Sequence[Sense[Any]]:
        """In the order in which they are served next."""
        return tuple(self._senses)

    def begin_as(self, senses: Sequence[Sense[Any]]) -> None:
        """Serve them in this order, on the budget's rung."""
        self._senses = list(senses)
        for sense in senses:
            sense.stand_on(self._budget.rung)

    def step(self) -> bool:
        """Do the most urgent thing; False if nothing waits."""
        if not self.intake.is_full and not self._context.owes_rebase:
            for sense in self._senses:
                if sense.n_waiting:
                    self.intake.encode(sense)
                    self._senses.remove(sense)
                    self._senses = sorted([*self._senses, sense], key=_sees)
                    return True
                if not sense.hears and sense.take() is not None:
                    return True
            if not self.intake.n_pending:
                return False
        self._answers.leave(self._context)
        if self._context.owes_rebase and not self.intake.is_full:
            return self._context.rebase()
        self.intake.append()
        return True

    def step_if_kept_waiting(self) -> bool:
        """Do it although there is something to answer, if it is perception's turn; whether so."""
        if not self._is_kept_waiting():
            return False
        began_ns = self._clock.now_ns()
        is_behind = self.step()
        now_ns = self._clock.now_ns()
        self._step_ns, self._answers.worked_ns = now_ns - began_ns, 0
        if not is_behind:
            self._caught_up_ns = now_ns
        return is_behind

    def _is_kept_waiting(self) -> bool:
        since_ns = max(self._answers.since_ns, self._caught_up_ns)
        return (
            self._answers.worked_ns >= ANSWERS_SHARE * self._step_ns
            and self._answers.can_leave(self._context)
            and self._clock.now_ns() - since_ns > MAX_KEPT_WAITING_NS
        )

    def notice_rebase(self) -> None:
        """After a rebase, which an append may have forced, the senses start again."""
        if self._context.n_rebases > self._n_rebases:
            self._n_rebases = self._context.n_rebases
            self._saw(Rebased(self._clock.now_ns(), self._context.n_tokens))
            for sense in self._senses:
                sense.start_again()

    def wait_s(self) -> float | None:
        """Until the budget must look again although nothing comes: it may let a rung up."""
        if self._budget.rung is LADDER[0]:
            return None
        return max(0.0, (self._looked_ns + LOOK_NS - self._clock.now_ns()) / NS_PER_S)

    def look_at_the_load(self, read_health: Callable[[], BoardHealth]) -> None:
        """Once a second the budget sees what perception costs, and how the board is."""
        now_ns = self._clock.now_ns()
        since_ns = now_ns - self._looked_ns
        if since_ns < LOOK_NS:
            return
        intake = self.intake
        late_s, busy_share = intake.lateness_ns / NS_PER_S, intake.worked_ns / since_ns
        load = Load(late_s, busy_share, read_health())
        self._looked_ns, intake.worked_ns, intake.lateness_ns = now_ns, 0, 0
        step = self._budget.look(now_ns, load)
        if step is not None:
            self.degraded.append(step)
            self._saw(step)
            self._counters["degraded"] += 1
            log.warning("budget=%s cause=%s", step.rung.name, step.cause)
            for sense in self._senses:
                sense.stand_on(step.rung)


def _sees(sense: Sense[Any]) -> bool:
    return not sense.hears
