"""Give a recorded session to the loop again, step by step, and compare what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edge.session.loop import TURN, LiveLoop
from edge.session.record import ReplayedClock, Step, event_of, read
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

    def begin(self) -> None:
        self.events = []

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


def replay(path: Path, build: Build) -> Iterator[Replayed]:
    """Run a recorded session again.

    Raises:
        MediaError: the file is no recording, or is damaged.
    """
    about, steps = read(path)
    clock, observed = ReplayedClock(about["start_ns"]), Observed()
    loop, senses = build(about, clock, observed)
    by_name = {sense.name: sense for sense in senses}
    for number, step in enumerate(steps):
        clock.give(step.clock)
        observed.given = step.outside
        if step.took == TURN:
            assert isinstance(step.item, Question)
            loop.take_again(Turn(step.item, step.asked_ns, lambda _: None))
        elif step.took and step.item is None:
            by_name[step.took].end()
        elif step.took:
            by_name[step.took].put_again(step.item)
        loop.step()
        yield Replayed(number, step, observed.events)
