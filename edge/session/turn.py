"""A turn as both sides see it: the question that goes in, the events that come out."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from edge.clock import NS_PER_MS, NS_PER_S
from edge.errors import EdgeError
from edge.model.sampling import Sampling
from edge.senses.turn_events import Control, Mode, SpeechStarted
from edge.types import Evidence, Medium, Stages

if TYPE_CHECKING:
    from edge.session.question_prompt import QuestionPrompt
    from edge.session.triggers import TriggerBook

log = logging.getLogger(__name__)

T = TypeVar("T")

Verdict = Literal["seen", "heard", "both", "contradicted", "neither"]
"""Which sense alone gives an answer; contradicted: one of them alone gives another. Neither: it
takes both together, or the model would say it anyway."""
FinishReason = Literal["stop", "length", "cancelled", "deadline"]
Priority = Literal["operator", "trigger", "notes"]
"""The more urgent first: somebody asks · the session watches for something · it notes for itself
what a rebase forgets."""
Channel = Literal["operator", "ambient"]
"""Who asks: a client that may operate the robot, or who holds its button · anybody who can be
heard, or the session itself. What is seen and heard is data: it commands nothing."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model proposes to call a tool; whether that happens is the client's affair."""

    name: str
    arguments: dict[str, Any]
    """By parameter, JSON values."""
    is_whole: bool = True
    """Else the answer was cut in it: these are the arguments that were complete."""

    @property
    def written(self) -> str:
        """Its arguments as JSON; what was cut has no end, so that nobody takes it for a call."""
        text = json.dumps(self.arguments, ensure_ascii=False)
        return text if self.is_whole else text[:-1]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation that a question belongs to."""

    role: Literal["system", "user", "assistant", "tool"]
    """tool: what a call gave, as its client says."""
    content: str
    media: tuple[Medium, ...] = ()
    """Of a user's message, before its text."""
    calls: tuple[ToolCall, ...] = ()
    """Of an assistant's message."""
    reasoning: str = ""
    """Likewise; the template keeps it while the tools that it called are at work."""


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """How long an answer may think; -1 is as long as it likes."""

    n_tokens: int
    """From then on the thought ends where a line of it ends."""
    n_grace: int = 0
    """So many tokens later it ends anyway."""


@dataclass(frozen=True, slots=True)
class YesNo:
    """The ids of the tokens with which each answer may begin."""

    yes: tuple[int, ...]
    no: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks about the live context.

    The first user message continues the live context's own user turn: what was seen and heard
    comes first, then its text.
    """

    messages: tuple[Message, ...]
    """At least one user message; the last message is from the user, or a tool's."""
    sampling: Sampling
    max_tokens: int
    thinking: bool = False
    thinking_budget: ThinkingBudget | None = None
    """None, or more than that: what leaves a part of max_tokens for the answer."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are not part of it."""
    remember: bool = False
    """Question and answer stay in the live context."""
    recall_s: tuple[float, float] | None = None
    """Answer only from what was perceived between so many seconds ago, the longer first."""
    priority: Priority = "operator"
    deadline_s: float | None = None
    """Since it was asked, or a spoken question was over: an answer that has not begun then is
    refused, one that has is cut."""
    channel: Channel = "ambient"
    """Who asks."""
    user: str = ""
    """Whose question it is: users take turns. Empty: the session's own, or of whoever speaks."""
    yes_no: YesNo | None = None
    """The answer is one of two, and only how likely each is: no text, `Done.confidence`."""
    consistency: bool = False
    """Whether to find out where the answer comes from: see `edge.session.consistency`. Not with
    thinking, from which the rest of an answer follows whatever was perceived."""
    tools: tuple[dict[str, Any], ...] = ()
    """What the model may propose to call, as OpenAI describes functions; see `callable_tools`."""
    grammar: str = ""
    """What the answer must look like: see `edge.model.constrain`; empty leaves it free."""
    n_choices: int = 1
    """So many answers, one after the other, each behind the same prompt; not to be remembered."""
    n_alternatives: int | None = None
    """So many likely tokens are told beside each one that is said, with how likely they were."""

    @property
    def may_call_tools(self) -> bool:
        """Whether the answer may propose a tool call."""
        return self.channel == "operator"

    @property
    def callable_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools, if the answer may propose to call them."""
        return self.tools if self.may_call_tools else ()

    def seeded(self) -> Question:
        """With the seed that its answer will be drawn by, so that a recording can repeat it."""
        if self.sampling.temperature == 0 or self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=secrets.randbits(32)))


@dataclass(frozen=True, slots=True)
class Freshness:
    """What an answer stands on of one camera or microphone."""

    source: str
    """As in evidence."""
    modality: Literal["video", "audio"]
    age_ns: int | None
    """Of its newest frame or sound in the state when the answer was begun; None without any."""
    is_stale: bool
    """Nothing younger than perception.stale_s has come from it by then."""


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
    """The newest segments of the live context, oldest first; before them the newest of each camera,
    where the answer may name its frame."""
    freshness: tuple[Freshness, ...] = ()
    """Of every camera and microphone of the session."""
    worked_ns: int = 0
    """Of the time since it was asked: in steps of its own. In the rest others had the engine."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """Where an answer comes from; how likely it is, 0..1, with one sense alone and with none."""

    verdict: Verdict
    seen: float | None
    """None: nothing was seen."""
    heard: float | None
    nothing: float


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer, whole characters only."""

    text: str
    reasoning: bool = False
    """Part of the thinking, not of the answer."""
    restated: bool = False
    """What was told as thinking was the answer, all of it: the model did not say where it ends."""


@dataclass(frozen=True, slots=True)
class Likely:
    """A token and how likely it was."""

    token: bytes
    """UTF-8, or a part of a character."""
    logprob: float
    """The natural logarithm of its probability among all that were allowed, at temperature 1 and
    before any penalty: what vLLM calls raw."""


@dataclass(frozen=True, slots=True)
class Chance:
    """How likely a token of the answer's text was; told before the text that it completes."""

    said: Likely
    others: tuple[Likely, ...]
    """The likeliest ones, the first first, among them perhaps the one that was said."""


@dataclass(frozen=True, slots=True)
class ChoiceDone:
    """One of several answers is complete, and not the last: `Done` ends that."""

    finish_reason: FinishReason
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""

    finish_reason: FinishReason
    n_prompt_tokens: int
    """Tokens of the live context plus those of the question."""
    n_completion_tokens: int
    """Of all answers, if there are several."""
    timeline: Timeline
    confidence: float | None = None
    """0..1. Of a question with `yes_no`: P(yes) / (P(yes) + P(no)). Of any other: how likely the
    answer's tokens were, see `edge.session.confidence`; None without tokens."""
    consistency: Consistency | None = None
    """None: it was not asked for, or there was no time or no room for it."""
    n_reasoning_tokens: int = 0
    """Of the completion's: its thinking."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn ended without an answer."""

    error: EdgeError


AnswerEvent = TextDelta | Chance | ToolCall | ChoiceDone | Done | Failed


@dataclass(frozen=True, slots=True)
class Turn:
    """A question on its way: who asked keeps it to be able to cancel."""

    question: Question
    asked_ns: int
    deliver: Callable[[AnswerEvent], None]
    """Called from the loop's thread, in order; the last event is Done or Failed."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    known_ns: int | None = None
    """When the session could first answer it, where that is later: it takes a pause to know that a
    spoken question is over."""
    prompt: QuestionPrompt | None = None
    """Of a long question, written before it was taken up."""

    @property
    def deadline_ns(self) -> int | None:
        """When the answer must be complete, None if it may take its time."""
        seconds = self.question.deadline_s
        since_ns = self.asked_ns if self.known_ns is None else self.known_ns
        return None if seconds is None else since_ns + int(seconds * NS_PER_S)

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


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Nobody speaks any more: one for each SpeechStarted, whatever happens."""

    end_ns: int
    """When the last word ended, estimated."""
    is_asked: bool
    """Whether it takes the turn: then Spoken follows, or Failed. Else a button was let go without a
    question, the sound has stayed away for too long, or the session ends."""


SpokenEvent = SpeechStarted | SpeechStopped | Spoken | AnswerEvent
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
    senses: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Each camera's and microphone's counters, which are in `counters`, too (`front_lost`)."""
    problems: tuple[str, ...] = ()
    """What the session does without, though it was asked for: each in one line."""


class Audience(Generic[T]):
    """Those who hear of events; joined and left from any thread."""

    def __init__(self) -> None:
        self._all: tuple[Callable[[T], None], ...] = ()

    def join(self, deliver: Callable[[T], None]) -> Callable[[], None]:
        """Hear of all events from now on, in the thread that tells them; what ends it."""
        self._all = (*self._all, deliver)  # another tuple: they may just be told something

        def leave() -> None:
            self._all = tuple(one for one in self._all if one is not deliver)

        return leave

    def tell(self, event: T) -> None:
        """Tell them."""
        for deliver in self._all:
            deliver(event)


class Asked(Protocol):
    """What the socket needs of a session."""

    def ask(self, question: Question, deliver: Callable[[AnswerEvent], None]) -> Turn:
        """Queue a question.

        Raises:
            CapacityError: too many questions are waiting.
        """

    @property
    def triggers(self) -> TriggerBook:
        """What clients want to be told of."""

    def observe(self, deliver: Callable[[object], None]) -> Callable[[], None]:
        """Hear of all events of the session, from its own thread.

        Returns:
            What ends it.
        """

    def watch(self, deliver: Callable[[SpokenEvent], None]) -> Callable[[], None]:
        """Hear of spoken turns, likewise."""

    def control(self, control: Control) -> None:
        """Say something to the turn-taking of the first microphone.

        Raises:
            ProtocolError: there is no microphone whose sound is cut into utterances.
        """

    def status(self) -> Status:
        """The session as it stands; callable from any thread."""


def log_turn(outcome: Done | Failed) -> None:
    """One line in the log for each turn."""
    if isinstance(outcome, Failed):
        log.warning("turn=refused error=%s", outcome.error)
        return
    times = outcome.timeline
    log.info(
        "turn=%s prompt_tokens=%d completion_tokens=%d waited_ms=%.1f first_token_ms=%.1f "
        "total_ms=%.1f",
        *(outcome.finish_reason, outcome.n_prompt_tokens, outcome.n_completion_tokens),
        (times.finished_ns - times.asked_ns - times.worked_ns) / NS_PER_MS,
        (times.first_token_ns - times.asked_ns) / NS_PER_MS,
        (times.finished_ns - times.asked_ns) / NS_PER_MS,
    )
