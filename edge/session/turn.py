"""A turn as both sides see it: the question that goes in, the events that come out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edge.clock import NS_PER_S
from edge.errors import EdgeError
from edge.model.sampling import Sampling
from edge.senses.turn_events import Control, Mode, SpeechStarted
from edge.types import Evidence, Stages

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
Priority = Literal["operator", "trigger", "notes"]
"""The more urgent first: somebody asks · the session watches for something · it notes for itself
what a rebase forgets."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation that a question belongs to."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks about the live context.

    The first user message continues the live context's own user turn: what was seen and heard
    comes first, then its text.
    """

    messages: tuple[Message, ...]
    """At least one user message; the last message is from the user."""
    sampling: Sampling
    max_tokens: int
    thinking: bool = False
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are not part of it."""
    remember: bool = False
    """Question and answer stay in the live context."""
    recall_s: tuple[float, float] | None = None
    """Answer only from what was perceived between so many seconds ago, the longer first."""
    priority: Priority = "operator"
    deadline_s: float | None = None
    """Since it was asked: an answer that has not begun then is refused, one that has is cut."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the stages of one turn happened, monotonic ns, and what it stood on."""

    asked_ns: int
    """The request reached the session."""
    started_ns: int
    """The loop took it up."""
    captured_ns: int | None
    """Capture time of the newest frame or sound in the state, None if there is none."""
    prefilled_ns: int
    """The question was in the state."""
    first_token_ns: int
    finished_ns: int
    n_context_tokens: int
    """Tokens of the live context that the answer stood on."""
    evidence: tuple[Evidence, ...] = ()
    """The newest segments of the live context, oldest first."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer, whole characters only."""

    text: str
    reasoning: bool = False
    """Part of the thinking, not of the answer."""


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""

    finish_reason: FinishReason
    n_prompt_tokens: int
    """Tokens of the live context plus those of the question."""
    n_completion_tokens: int
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn ended without an answer."""

    error: EdgeError


AnswerEvent = TextDelta | Done | Failed


@dataclass(frozen=True, slots=True)
class Turn:
    """A question on its way: who asked keeps it to be able to cancel."""

    question: Question
    asked_ns: int
    deliver: Callable[[AnswerEvent], None]
    """Called from the loop's thread, in order; the last event is Done or Failed."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def deadline_ns(self) -> int | None:
        """When the answer must be complete, None if it may take its time."""
        seconds = self.question.deadline_s
        return None if seconds is None else self.asked_ns + int(seconds * NS_PER_S)

    def cancel(self) -> None:
        """End the answer at the next token."""
        self.cancelled.set()


@dataclass(frozen=True, slots=True)
class Spoken:
    """Somebody has asked aloud: what is delivered next, up to Done or Failed, is the answer."""

    asked_ns: int
    """When the last word ended, estimated."""
    evidence: Evidence
    """Where the question is in the live context."""


SpokenEvent = SpeechStarted | Spoken | AnswerEvent
"""What those hear who watch spoken turns, in order. Speech that starts interrupts the answer to
an earlier one: its Done says `cancelled`, and who plays it should stop."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a session tells of itself."""

    ready: bool
    """The engine is loaded and the anchor is in the state."""
    model: str
    n_context_tokens: int
    max_context_tokens: int
    counters: dict[str, int]
    """Frames, segments, answers, drops: see loop.py for the names."""
    uptime_ns: int = 0
    start_ns: int = 0
    """When the session began, on the clock of all its other times."""
    recent: tuple[Stages, ...] = ()
    """Stage times of the newest segments, oldest first."""
    mode: Mode = "typed"
    """Whose speech takes the turn."""


class Asked(Protocol):
    """What the socket needs of a session."""

    def ask(self, question: Question, deliver: Callable[[AnswerEvent], None]) -> Turn:
        """Queue a question.

        Raises:
            CapacityError: too many questions are waiting.
        """

    def control(self, control: Control) -> None:
        """Say something to the turn-taking of the first microphone.

        Raises:
            ProtocolError: there is no microphone whose sound is cut into utterances.
        """

    def status(self) -> Status:
        """The session as it stands; callable from any thread."""
