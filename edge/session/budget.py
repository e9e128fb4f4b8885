"""The budget: how much of the world is perceived, decided before work is done.

A ladder of rungs, from all that was asked for to answers only. Lateness, load and memory push one
rung down; a long calm lets one rung up again, and a rung that did not hold waits longer the next
time. Every step is an event with its cause.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.clock import NS_PER_S


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
    """Longest time from capture to the loop."""
    busy_share: float
    """Of the time in which the engine worked for perception, 0..1."""
    hot: bool = False
    """The board says that it throttles."""
    memory_share: float = 0.0
    """Of the memory that is in use, 0..1."""


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
    MAX_MEMORY_SHARE = 0.95
    HOLD_S = 3.0
    """After a step down its effect is awaited."""
    CALM_S = 20.0
    MAX_CALM_S = 1280.0

    def __init__(self, now_ns: int) -> None:
        """Begin at the top."""
        self._rung, self._changed_ns, self._calm_since_ns = 0, now_ns, now_ns
        self._calm_s = self.CALM_S
        self._went_up = False
        self._busy_share = 0.0

    @property
    def rung(self) -> Rung:
        """Where the session stands."""
        return LADDER[self._rung]

    def look(self, now_ns: int, load: Load) -> Degraded | None:
        """Take a measurement; a step if one follows from it."""
        self._busy_share += self.SMOOTHING * (load.busy_share - self._busy_share)
        cause = self._too_much(load)
        since_s = (now_ns - self._changed_ns) / NS_PER_S
        if cause:
            self._calm_since_ns = now_ns
            if since_s < self.HOLD_S or self._rung == len(LADDER) - 1:
                return None
            if self._went_up:  # that did not hold
                self._calm_s = min(2 * self._calm_s, self.MAX_CALM_S)
            return self._step(now_ns, 1, cause)
        if self._busy_share > self.CALM_BUSY_SHARE or load.hot:
            self._calm_since_ns = now_ns
        calm_s = (now_ns - self._calm_since_ns) / NS_PER_S
        if self._rung and min(calm_s, since_s) >= self._calm_s:
            return self._step(now_ns, -1, f"calm for {calm_s:.0f} s")
        if self._went_up and since_s > self._calm_s:  # it held
            self._went_up, self._calm_s = False, self.CALM_S
        return None

    def _too_much(self, load: Load) -> str:
        if load.lateness_s > self.MAX_LATENESS_S:
            return f"{load.lateness_s:.1f} s late"
        if self._busy_share > self.MAX_BUSY_SHARE:
            return f"busy for {self._busy_share:.0%} of the time"
        if load.memory_share > self.MAX_MEMORY_SHARE:
            return f"{load.memory_share:.0%} of the memory in use"
        return ""

    def _step(self, now_ns: int, n: int, cause: str) -> Degraded:
        self._rung += n
        self._went_up = n < 0
        self._changed_ns = self._calm_since_ns = now_ns
        return Degraded(now_ns, self.rung, cause)
