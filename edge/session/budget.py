"""The budget: how much of the world is perceived, decided before work is done.

A ladder of rungs, from all that was asked for to answers only. Lateness, load, heat, memory and
power push one rung down; a long calm, in which none of them is too high and those that have pushed
are clearly lower, lets one rung up again, and a rung that did not hold waits longer the next time.
Every step is an event with its cause.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edge.clock import NS_PER_S
from edge.session.health import BoardHealth

Kind = Literal["load", "memory", "heat", "power"]
"""Of causes."""


@dataclass(frozen=True, slots=True)
class Rung:
    """What is perceived while the session stands on it."""

    name: str
    one_frame_in: int = 1
    """Of the frames that the source gives; 0: none."""
    token_share: float = 1.0
    """Of the video tokens a second that EVS may keep."""
    patch_share: float = 1.0
    """Of the patches of a full frame."""
    sound: bool = True


LADDER = (
    Rung("full"),
    Rung("fewer tokens", token_share=0.5),
    Rung("fewer frames", one_frame_in=2, token_share=0.5),
    Rung("lower resolution", one_frame_in=2, token_share=0.5, patch_share=0.5),
    Rung("sound only", one_frame_in=0),
    Rung("answers only", one_frame_in=0, sound=False),
)


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured since the last look."""

    lateness_s: float
    """Longest time that something which was complete waited for the loop."""
    busy_share: float
    """Of the time in which the engine worked for perception, 0..1."""
    health: BoardHealth = field(default_factory=BoardHealth)


@dataclass(frozen=True, slots=True)
class Degraded:
    """The session went to another rung."""

    at_ns: int
    rung: Rung
    cause: str


class Budget:
    """Stands on a rung; looks at the load once a second."""

    SMOOTHING = 0.5
    """Of the busy share from look to look: one slow step is no overload."""
    MAX_LATENESS_S = 2.0
    MAX_BUSY_SHARE = 0.9
    CALM_BUSY_SHARE = 0.55
    """Going up may double the load of perception and must still fit."""
    MAX_MEMORY_SHARE, CALM_MEMORY_SHARE = 0.95, 0.9
    NEAR_LIMIT_C, CALM_BELOW_LIMIT_C = 2.0, 8.0
    """So near to its limit a zone is too hot; so far below it, cool again."""
    CALM_POWER_SHARE = 0.9
    """Of what the board may take."""
    HOLD_S = 3.0
    """After a step down its effect is awaited."""
    BOARD_HOLD_S = 15.0
    """A board cools slowly, and its memory comes back slowly."""
    CALM_S = 20.0
    MAX_CALM_S = 1280.0

    def __init__(self, now_ns: int) -> None:
        """Begin at the top."""
        self._rung, self._changed_ns, self._calm_since_ns = 0, now_ns, now_ns
        self._calm_s = self.CALM_S
        self._went_up = self._has_stepped = False
        self._busy_share = 0.0
        self._pushed: set[Kind] = set()  # what led down from the top to here

    @property
    def rung(self) -> Rung:
        """Where the session stands."""
        return LADDER[self._rung]

    def look(self, now_ns: int, load: Load) -> Degraded | None:
        """Take a measurement; a step if one follows from it."""
        self._busy_share += self.SMOOTHING * (load.busy_share - self._busy_share)
        kind, cause = self._too_much(load) or self._unwell(load.health) or (None, "")
        hold_s = self.HOLD_S if kind == "load" else self.BOARD_HOLD_S
        since_s = (now_ns - self._changed_ns) / NS_PER_S
        if kind is not None:
            self._calm_since_ns = now_ns
            held = since_s < hold_s and self._has_stepped
            if held or since_s < self.HOLD_S or self._rung == len(LADDER) - 1:
                return None
            if self._went_up:  # that did not hold
                self._calm_s = min(2 * self._calm_s, self.MAX_CALM_S)
            self._pushed.add(kind)
            return self._step(now_ns, 1, cause)
        if self._busy_share > self.CALM_BUSY_SHARE or not self._is_calm(load.health):
            self._calm_since_ns = now_ns
        calm_s = (now_ns - self._calm_since_ns) / NS_PER_S
        if self._rung and min(calm_s, since_s) >= self._calm_s:
            return self._step(now_ns, -1, f"calm for {calm_s:.0f} s")
        if self._went_up and since_s > self._calm_s:  # it held
            self._went_up, self._calm_s = False, self.CALM_S
        return None

    def _too_much(self, load: Load) -> tuple[Kind, str] | None:
        if load.lateness_s > self.MAX_LATENESS_S:
            return "load", f"{load.lateness_s:.1f} s late"
        if self._busy_share > self.MAX_BUSY_SHARE:
            return "load", f"busy for {self._busy_share:.0%} of the time"
        return None

    def _unwell(self, health: BoardHealth) -> tuple[Kind, str] | None:
        if health.memory_share > self.MAX_MEMORY_SHARE:
            return "memory", f"{health.memory_share:.0%} of the memory in use"
        now_c, limit_c = health.temperature_c, health.max_temperature_c
        if health.is_throttled:
            at = f" at {now_c:.0f} °C" if now_c is not None else ""
            return "heat", f"the board throttles{at}"
        if now_c is not None and limit_c is not None and now_c > limit_c - self.NEAR_LIMIT_C:
            return "heat", f"{now_c:.0f} °C of {limit_c:.0f} °C"
        if (taken := _power_share(health)) > 1.0:
            return "power", f"{taken:.0%} of the power that the board may take"
        return None

    def _is_calm(self, health: BoardHealth) -> bool:
        """Whether what has pushed down is clearly better."""
        now_c, limit_c = health.temperature_c, health.max_temperature_c
        cool = now_c is None or limit_c is None or now_c < limit_c - self.CALM_BELOW_LIMIT_C
        better = {
            "heat": cool,
            "memory": health.memory_share < self.CALM_MEMORY_SHARE,
            "power": _power_share(health) < self.CALM_POWER_SHARE,
        }
        return all(better[kind] for kind in self._pushed if kind != "load")

    def _step(self, now_ns: int, n: int, cause: str) -> Degraded:
        self._rung += n
        self._has_stepped = True
        if self._rung == 0:
            self._pushed.clear()
        self._went_up = n < 0
        self._changed_ns = self._calm_since_ns = now_ns
        return Degraded(now_ns, self.rung, cause)


def _power_share(health: BoardHealth) -> float:
    """Of the power that the board may take; 0 where it does not say."""
    return (health.power_w or 0.0) / health.max_power_w if health.max_power_w else 0.0
