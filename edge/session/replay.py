"""Give a recorded session to the loop again, step by step, and compare what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edge.errors import CapacityError, MediaError
from edge.session.loop import TURN, LiveLoop
from edge.session.moment import Moment, begin_at
from edge.session.record import NOT_OURS, Recorded, ReplayedClock, Step, event_of
from edge.session.sense import Sense
from edge.session.turn import Question, Turn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Replayed:
    """One step: what was recorded, and what followed now."""

    number: int
    step: Step
    events: list[dict[str, Any]]

    @property
    def is_same(self) -> bool:
        """Whether both agree in everything, times included."""
        return self.events == self.step.events


@dataclass
class Observed:
    """Stands where a recorder stands, and keeps the events of the step."""

    events: list[dict[str, Any]] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    """What the step learned from outside when it was recorded."""
    problem: str = ""
    counters: dict[str, int] = field(default_factory=dict)

    def begin(self) -> bool:
        self.events = []
        return False

    def begin_file(self, settings: dict[str, Any], moment: Moment) -> None:
        """There is none."""

    def took(self, name: str, item: object, asked_ns: int = 0) -> None:
        """The step takes what it was given."""

    def outside(self, name: str, _read: Callable[[], T]) -> T | None:
        return self.given.get(name)

    def saw(self, event: object) -> None:
        self.events.append(event_of(event))

    def end(self) -> None:
        """Nothing is written."""


Build = Callable[[dict[str, Any], ReplayedClock, Observed], tuple[LiveLoop, Sequence[Sense[Any]]]]
"""Makes the loop of a session that is described so, with senses that nothing plays."""


def replay(recorded: Recorded, build: Build) -> Iterator[Replayed]:
    """Run a recorded session again; `recorded.cut` then says whether it ends before its end.

    Raises:
        MediaError: the file describes no session, or holds a step of another one.
    """
    about, observed = recorded.about, Observed()
    try:
        clock = ReplayedClock(about["at_ns"])
        loop, senses = build(about, clock, observed)
        if recorded.moment is not None:
            begin_at(loop, recorded.moment)
    except (CapacityError, *NOT_OURS) as error:
        problem = f"describes no session ({type(error).__name__}: {error})"
        raise MediaError(recorded.path, problem, "record one with `edge run --record`") from None
    by_name = {sense.name: sense for sense in senses}
    for number, step in enumerate(recorded.steps()):
        clock.give(step.clock)
        observed.given = step.outside
        if step.took not in ("", TURN, *by_name):
            problem = f"takes something of {step.took!r} in step {number}, which is no sense of it"
            raise MediaError(recorded.path, problem, "record the session again")
        try:
            _give(step, loop, by_name)
            loop.step()
        except NOT_OURS as error:
            problem = f"has a step {number} that cannot be run ({type(error).__name__}: {error})"
            raise MediaError(recorded.path, problem, "record the session again") from error
        yield Replayed(number, step, observed.events)


def _give(step: Step, loop: LiveLoop, senses: Mapping[str, Sense[Any]]) -> None:
    """Let what a step took wait where it takes it."""
    if step.took == TURN:
        if not isinstance(step.item, Question):
            raise TypeError("a turn without a question")
        loop.take_again(Turn(step.item, step.asked_ns, lambda _: None))
    elif step.took and step.item is None:
        senses[step.took].end()
    elif step.took:
        senses[step.took].put_again(step.item)
