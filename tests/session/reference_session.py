"""What a live session must do, said once more: plainly, and without its code.

The reference is told what the world does (`Reference.put`, `ask`, `cancel`, ...), and after each
step of the loop what was seen of it: calls of the engine, events, how the session stands. It says
what is due, in the order of ARCHITECTURE.md ("a step is the smallest thing that can give way"), and
compares: another call, another word of an answer, another time or counter is a `Difference`. It
takes nothing of `edge.session` but the types of questions, events and settings. A state is a value
here, so that a fork, a snapshot and a rebase need no undoing.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from chained_engine import (
    NO,
    YES,
    Call,
    Chained,
    embedded,
    heard_rows,
    logits_after,
    seen_rows,
)

from edge.clock import NS_PER_S
from edge.config import Config
from edge.engines.tensorrt import MAX_STATES
from edge.errors import (
    CapacityError,
    DeadlineError,
    EdgeError,
    MediaError,
    ProtocolError,
    TurnError,
)
from edge.features.evs import CausalPruner
from edge.features.mel import LogMelStream
from edge.features.pixels import image_grids, image_patches, tubelet_patches, video_grid
from edge.model.constrain import Constraint, fill_frames, names_frames
from edge.model.grammars import vocabulary
from edge.model.prompt import LIVE, ChatTemplate
from edge.model.sampling import Sampler, Sampling
from edge.model.spec import ModelSpec, VisionSpec
from edge.model.tokenizer import TOOL_CALL, TOOL_CALL_END, Detokenizer, Tokenizer
from edge.model.tool_calls import begun_tool_call, is_closed, parse_tool_call
from edge.senses.turn_events import (
    Button,
    Choose,
    Cut,
    Ended,
    Overheard,
    Played,
    Resumed,
    Silence,
    SoftEnd,
    SpeechStarted,
    Utterance,
    Withdrawn,
)
from edge.session.budget import Degraded, Rung
from edge.session.health import BoardHealth
from edge.session.intake import Refused
from edge.session.notes import Noted
from edge.session.perception import Rebased
from edge.session.triggers import Trigger, TriggerBegan, TriggerEnded, TriggerStatus
from edge.session.turn import (
    Channel,
    Consistency,
    Done,
    Failed,
    Freshness,
    Message,
    Question,
    SpeechStopped,
    Spoken,
    Status,
    TextDelta,
    Timeline,
    ToolCall,
    Verdict,
    YesNo,
)
from edge.types import AudioChunk, Evidence, Float32, Frame, Picture, Sound, Stages

LADDER = (
    Rung("full"),
    Rung("fewer tokens", 1, 0.5),
    Rung("fewer frames", 2, 0.5),
    Rung("lower resolution", 2, 0.5, 0.5),
    Rung("sound only", 0),
    Rung("answers only", 0, sound=False),
)
"""One frame in so many, a share of the tokens, a share of the patches."""
CALL_TOKENS, WORTHWHILE_TOKENS = 256, 128
"""The longest prefill; what makes one worth its floor."""
CLIPS_WAITING, SOUND_WAITING = 8, 30 * 16_000
MANY_PROCESSES = 1 << 10
"""That follow formats: the session's, and as many for what is compared with it."""
PATIENCE_NS, TENTATIVE_NS, UNSEEN_NS = 5 * NS_PER_S, NS_PER_S, NS_PER_S
LONG_GAP_NS, JITTER_NS = 2 * NS_PER_S, 50_000_000
HELD_NS, GONE_NS = 60 * NS_PER_S, 30 * NS_PER_S
"""A button is held; nothing has come of what a trigger is about."""
RANKS = {"operator": 0, "trigger": 1, "notes": 2}
URGENCIES = {"high": 0, "normal": 1, "low": 2}
NEXT = "\u27e6next\u27e7"
YES_NO = YesNo((YES, 505), (NO, 395))
STOPPING = CapacityError("service", "is stopping", "ask again later")
Out = Callable[[Any], None]


class Difference(AssertionError):  # noqa: N818 - it is one, not an error
    """The session and the reference do not agree."""


def same(what: str, found: object, due: object) -> None:
    """Compare.

    Raises:
        Difference: they are not equal.
    """
    if found != due:
        raise Difference(f"{what}: the session has {found!r}, due is {due!r}")


def plain(event: object) -> object:
    """An event that can be compared: an error by its words."""
    if isinstance(event, Failed):
        return "Failed", type(event.error), str(event.error)
    if isinstance(event, TriggerBegan | TriggerEnded | TriggerStatus):
        confidence = 0.0 if event.confidence is None else round(event.confidence, 5)
        return replace(event, confidence=confidence), event.confidence is None  # float32 there
    return event


@dataclass(eq=False)
class Piece:
    """Something perceived or said that has its place in the context."""

    modality: Any
    rows: Float32
    evidence: Evidence


@dataclass(eq=False)
class Line:
    """What is in one state, in order, and what of it waits to be prefilled."""

    anchor: Float32
    separator: Float32
    pieces: list[Piece] = field(default_factory=list)
    state: Chained = field(default_factory=Chained)

    def __post_init__(self) -> None:
        pieces, self.pieces = self.pieces, []
        self.n_tokens = [len(self.anchor)]
        self.waiting = self.anchor
        for piece in pieces:
            self.add(piece)

    def add(self, piece: Piece) -> None:
        """Two that were perceived have a separator between them."""
        rows = piece.rows
        if self.ends_with_media and piece.modality != "text":
            rows = np.concatenate([self.separator, rows])
        self.pieces.append(piece)
        self.n_tokens.append(len(rows))
        self.waiting = np.concatenate([self.waiting, rows])

    @property
    def ends_with_media(self) -> bool:
        return bool(self.pieces) and self.pieces[-1].modality != "text"

    @property
    def media(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.modality != "text"]

    def prolong(self, still: Piece) -> None:
        """Nothing new: the newest of that source and sense is still so."""
        prolong(self.pieces, still)

    def newest_ns(self, source: str | None = None, modality: str | None = None) -> int | None:
        return max(
            (
                piece.evidence.end_ns
                for piece in self.media
                if source in (None, piece.evidence.source) and modality in (None, piece.modality)
            ),
            default=None,
        )


def prolong(pieces: list[Piece], still: Piece) -> None:
    for i in range(len(pieces) - 1, -1, -1):
        piece, evidence = pieces[i], pieces[i].evidence
        if (piece.modality, evidence.source) == (still.modality, still.evidence.source):
            longer = replace(evidence, end_ns=still.evidence.end_ns)
            pieces[i] = Piece(piece.modality, piece.rows, longer)
            return


@dataclass(eq=False)
class Turn:
    """A question, and all that has come of it."""

    question: Question
    asked_ns: int
    out: Out
    number: int = -1
    known_ns: int | None = None
    cancelled: bool = False
    # the answer so far
    said: list[int] = field(default_factory=list)
    line: Line | None = None
    past: list[Piece] | None = None
    state: Chained | None = None
    waiting: Float32 = field(default_factory=lambda: np.empty((0, 2), np.float32))
    logits: Float32 | None = None
    n_context: int = 0
    n_question: int = 0
    started_ns: int | None = None
    prefilled_ns: int | None = None
    first_ns: int | None = None
    worked_ns: int = 0
    at_work_ns: int | None = None
    captured_ns: int | None = None
    evidence: tuple[Evidence, ...] = ()
    freshness: tuple[Freshness, ...] = ()
    surprise: list[float] = field(default_factory=list)
    n_thought: int = 0
    forced: list[int] = field(default_factory=list)
    """What ends a thought that has been long enough."""
    encoding: Generator[None, None, None] | None = None
    is_encoded: bool = False
    attached: list[Float32] = field(default_factory=list)
    """Rows of its pictures and sounds, as far as they are encoded."""
    about: Line | None = None
    """What it is to stand on when all of them are."""
    asked: dict[tuple[bool, str | None], Float32] = field(default_factory=dict)
    """Its rows, as they were once asked for."""
    grammar: str = ""
    constraint: Constraint | None = None
    nameable: tuple[Evidence, ...] = ()
    check: Generator[None, None, Consistency] | None = None
    is_followed: bool = False
    """Whether a state that its check needs is in use."""
    ended: Any = None

    @property
    def deadline_ns(self) -> int | None:
        seconds = self.question.deadline_s
        since_ns = self.asked_ns if self.known_ns is None else self.known_ns
        return None if seconds is None else since_ns + int(seconds * NS_PER_S)

    @property
    def is_between_tokens(self) -> bool:
        return bool(self.said) and not len(self.waiting)


@dataclass(eq=False)
class Words:
    """What of an answer's tokens may be told: no half character, nothing of a stop text, of a
    thought no space at its end."""

    tokenizer: Tokenizer
    question: Question

    def __post_init__(self) -> None:
        self.tools = self.question.tools if self.question.channel == "operator" else ()
        self.is_thinking = self.question.thinking
        self.tokens = Detokenizer(self.tokenizer)
        self.thought, self.n_thought = "", 0
        self.text, self.n_told, self.reply, self.is_over = "", 0, "", False
        self.call: list[int] | None = None

    def begins_call(self, token: int) -> bool:
        """It ends a thought, too."""
        return token == self.tokenizer.special.tool_call and bool(self.tools)

    def take(self, token: int) -> list[TextDelta | ToolCall]:
        special, told = self.tokenizer.special, list[TextDelta | ToolCall]()
        if self.call is not None:
            is_tag = token in (special.tool_call, special.tool_call_end)
            if not is_tag or not is_closed(self._written(), self.tools):
                self.call.append(token)
                return []
            told += self._proposed(self._written(), TOOL_CALL_END)
            self.call = None
            if token == special.tool_call_end:
                return told
        if self.begins_call(token):
            told += [*self._end_thought(), *self._until(len(self.text))]
            self.call = []
        elif token == special.think_end:
            told += self._end_thought()
        elif token != special.think_start:
            told += self._told(self.tokens.push(token))
        return told

    def finish(self, reason: str) -> list[TextDelta | ToolCall]:
        """What was held back. A thought in which the model itself ends was the answer."""
        told = self._told(self.tokens.flush())
        if self.is_thinking:
            thought = self.thought.strip() if reason == "stop" else ""
            places = [at for stop in self.question.stop if (at := thought.find(stop)) >= 0]
            self.reply = thought[: min(places, default=None)]
            return [*told, *([TextDelta(self.reply, restated=True)] if self.reply else [])]
        if not self.is_over:
            told += self._until(len(self.text))
        ends = [] if self.call is None else self._ended_in_call(self._written(), reason != "stop")
        return [*told, *ends]

    def _written(self) -> str:
        return self.tokenizer.decode(self.call or [], special=True)

    def _ended_in_call(self, text: str, is_cut: bool) -> list[TextDelta | ToolCall]:
        """Its end is the first mark of one that nothing follows, or another call; where the model
        itself has ended, else the first. Of a call that was cut, what is sure is told."""
        marks = [found.start() for found in re.finditer(TOOL_CALL_END, text)]
        after = {at: text[at + len(TOOL_CALL_END) :] for at in marks}
        sure = [
            at for at in marks if after[at].strip().startswith(TOOL_CALL) or not after[at].strip()
        ]
        for at in sure or ([] if is_cut else marks):
            between, is_another, another = after[at].partition(TOOL_CALL)
            told = [*self._proposed(text[:at], TOOL_CALL_END), *self._as_it_is(between.strip())]
            return [*told, *(self._ended_in_call(another, is_cut) if is_another else [])]
        begun = begun_tool_call(text, self.tools)
        if not is_cut or (begun is not None and is_closed(text, self.tools)):
            return self._proposed(text, "")
        return [] if begun is None else [ToolCall(*begun, is_whole=False)]

    def _proposed(self, text: str, end: str) -> list[TextDelta | ToolCall]:
        """What began like a call and is none: nothing is hidden."""
        found = parse_tool_call(text, self.tools)
        return [ToolCall(*found)] if found else self._as_it_is(f"{TOOL_CALL}{text}{end}")

    def _as_it_is(self, text: str) -> list[TextDelta | ToolCall]:
        self.reply += text
        return [TextDelta(text)] if text else []

    def _end_thought(self) -> list[TextDelta | ToolCall]:
        told = self._told(self.tokens.flush())
        self.is_thinking, self.tokens = False, Detokenizer(self.tokenizer)
        return told

    def _told(self, text: str) -> list[TextDelta | ToolCall]:
        if self.is_thinking:
            self.thought += text
            text, self.n_thought = (
                self.thought[self.n_thought :].rstrip(),
                max(self.n_thought, len(self.thought.rstrip())),
            )
            return [TextDelta(text, reasoning=True)] if text else []
        if self.is_over:
            return []
        self.text += text
        places = [
            at for stop in self.question.stop if (at := self.text.find(stop, self.n_told)) >= 0
        ]
        if places:
            told, self.is_over = self._until(min(places)), True
            return told
        n = len(self.text)
        may_begin = [
            at
            for at in range(self.n_told, n)
            if any(stop.startswith(self.text[at:]) for stop in self.question.stop)
        ]
        return self._until(min(may_begin, default=n))

    def _until(self, n: int) -> list[TextDelta | ToolCall]:
        text, self.n_told = self.text[self.n_told : n], n
        return self._as_it_is(text)


@dataclass(eq=False)
class Sense:
    """A camera or a microphone as the session has it."""

    name: str
    hears: bool
    own_name: str
    """What it is called in evidence and, of several, in the prompt; empty leaves it to items."""
    is_named: bool
    pruner: CausalPruner | None = None
    ring: deque[Any] = field(default_factory=deque)
    played: deque[Any] = field(default_factory=deque)
    wishes: deque[Any] = field(default_factory=deque)
    has_ended: bool = False
    newest_ns: int | None = None
    mode: Any = "typed"
    parts: list[Any] = field(default_factory=list)
    """Frames of the tubelet, or chunks of the window, that is not complete."""
    complete: deque[tuple[Any, int]] = field(default_factory=deque)
    """What can be encoded, and since when."""
    n_frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.source = self.own_name or self.name
        self.order = self.served = self.n_taken = 0
        self.mel = LogMelStream(8)


@dataclass(frozen=True, eq=False)
class Seen:
    """A piece that is encoded, with its times."""

    piece: Piece
    stages: Stages
    due_ns: int


@dataclass(eq=False)
class Watch:
    """A trigger."""

    name: str
    trigger: Trigger
    place: tuple[int, int] = (0, 0)
    newest: Evidence | None = None
    news_ns: int | None = None
    next_ns: int = 0
    is_on: bool = False
    since_ns: int | None = None
    began_ns: int = 0
    cool_ns: int = 0
    confidence: float | None = None
    n_judged: int = 0

    @property
    def is_wanted(self) -> bool:
        return self.news_ns is not None or self.since_ns is not None


@dataclass(eq=False)
class Tentative:
    """An answer begun at a pause: nobody hears of it before the turn is over."""

    clip: AudioChunk
    turn: Turn
    until_ns: int
    piece: Piece | None
    seen: Seen
    n_before: int
    entered_ns: int
    state_before: Chained
    held: list[Any] = field(default_factory=list)
    released_ns: int | None = None


@dataclass(frozen=True)
class Observed:
    """What was seen of one step."""

    began_ns: int
    ended_ns: int
    busy: bool
    error: Exception | None
    calls: Sequence[Call]
    events: Sequence[tuple[Any, object]]
    """To whom, and what: "all", "spoken", or a client's number."""
    heard: Sequence[Any]
    """What the turn detectors made of what they were given: events, or an error."""
    taken: Sequence[tuple[str, object]]
    """Which item of which sense, or which question."""
    status: Status | None
    """None after a step that did nothing."""
    triggers: tuple[TriggerStatus, ...]
    ledger: Sequence[tuple[str, int, Evidence | None]] | None
    """None after a step without work of the engine and without events."""
    state: Chained
    """Of the live context, without what an open fork has added."""
    wait_s: float | None


class Reference:
    """A session that is compared with another one, step by step."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        config: Config,
        senses: Sequence[Sense],
        start_ns: int,
        calls: Sequence[Call],
    ) -> None:
        """Begin.

        Args:
            config: with all bounds set.
            senses: microphones first.
            calls: of the engine, by which the anchor was prefilled.
        """
        self.spec, self.tokenizer, self.template, self.config = spec, tokenizer, template, config
        self.senses, self.start_ns, self.now = list(senses), start_ns, start_ns
        for sense in self.senses:
            sense.mode = config.turns.mode if sense is self._first_microphone else "typed"
        self.counts: Counter[str] = Counter()
        self.calls, self.events = deque(calls), list[tuple[Any, object]]()
        self.heard: deque[Any] = deque()
        self.taken: list[tuple[str, object]] = []
        self.settings: Config | None = None
        self.health = BoardHealth()
        self.wanted_mode = self.mode_of_settings = config.turns.mode
        # the context
        context = config.context
        self.anchor, self.separator = embedded(self._anchor()), embedded(tokenizer.encode("\n"))
        n_least = len(self.anchor) + context.notes_tokens + context.keep_tokens
        self.rebase_room = (context.max_tokens - n_least) // 4
        self.kept: list[Piece] = []
        self.notes: Piece | None = None
        self.next: Line | None = None
        self.n_next_at_start = self.n_rebases = self.n_noticed = self.n_noted = 0
        self.owes_start = False
        self.live = self._new_line([])
        while len(self.live.waiting):
            self._advance(self.live)
        # perception
        self.pending: deque[Seen] = deque()
        self.recent: deque[Stages] = deque(maxlen=32)
        self.worked_ns = self.late_ns = 0
        self.looked_ns = self.caught_up_ns = start_ns
        self.share_ns = 0
        self.n_encoded = 0
        self.rung, self.changed_ns, self.calm_since_ns = 0, start_ns, start_ns
        self.calm_s, self.went_up, self.has_stepped, self.busy_share = 20.0, False, False, 0.0
        self.pushed: set[str] = set()
        # turns
        self.queue: deque[Turn] = deque()
        self.open: list[Turn] = []
        self.words: dict[Turn, Words] = {}
        self.samplers: dict[Turn, Sampler] = {}
        self.current: Turn | None = None
        self.answers_since_ns = self.answers_worked_ns = 0
        self.tentative: Tentative | None = None
        self.spoken: Turn | None = None
        self.speaker: Sense | None = None
        self.speech_newest_ns: int | None = None
        self.speech_heard_ns = self.speech_until_ns = 0
        self.is_entering = False
        self.is_draining = self.is_stopped = False
        # triggers
        self.book: dict[str, TriggerStatus] = {}
        self.changes: list[tuple[str, Trigger | None]] = []
        self.watches: dict[str, Watch] = {}
        self.n_made = 0
        self.is_judging, self.rest_since_ns, self.rest_until_ns = False, 0, 0
        self.judged_in_ns = self.rested_ns = 0
        self.came: dict[str, tuple[int, int]] = {}
        self.is_noting = False

    # What the world does.

    @property
    def _first_microphone(self) -> Sense | None:
        return next((sense for sense in self.senses if sense.hears), None)

    def put(self, sense: Sense, item: Frame | AudioChunk) -> None:
        """A frame or a chunk arrives."""
        n, rung = sense.counts["received"], LADDER[self.rung]
        sense.counts["received"] += 1
        is_wanted = rung.sound if sense.hears else bool(rung.one_frame_in)
        if not is_wanted or (not sense.hears and n % rung.one_frame_in):
            sense.counts["skipped"] += 1
            return
        sense.ring.append((self._order(sense), item))
        bound = SOUND_WAITING if sense.hears else self.spec.vision.tubelet_frames
        self._drop(sense, sense.ring, bound, lambda one: _size(one) if sense.hears else 1)

    def _order(self, sense: Sense) -> int:
        sense.order += 1
        return sense.order

    def _drop(self, sense: Sense, ring: deque[Any], bound: int, size: Callable[[Any], int]) -> None:
        while len(ring) > 1 and sum(size(item) for _, item in ring) > bound:
            ring.popleft()
            sense.counts["dropped"] += 1

    def end(self, sense: Sense) -> None:
        """Its source has come to its end."""
        sense.has_ended = True

    def control(self, wish: Choose | Button | Played) -> type[EdgeError] | None:
        """A client wants something of the turn-taking; how it is refused, if so."""
        sense = self._first_microphone
        if sense is None or self.config.perception.listen != "utterances":
            return ProtocolError
        if isinstance(wish, Button) and self.wanted_mode != "push_to_talk":
            return ProtocolError
        if isinstance(wish, Played):
            sense.played.append((self._order(sense), wish))
            self._drop(sense, sense.played, SOUND_WAITING, lambda one: _size(one.chunk))
            return None
        if len(sense.wishes) >= 64:
            return CapacityError
        sense.wishes.append((self._order(sense), wish))
        if isinstance(wish, Choose):
            self.wanted_mode = wish.mode
        return None

    def change(self, config: Config) -> type[EdgeError] | None:
        """Settings are read anew; how they are refused, if so."""
        if config.turns.mode != self.mode_of_settings and self._first_microphone is not None:
            refused = self.control(Choose(config.turns.mode))
            if refused is not None:
                return refused
        self.mode_of_settings, self.settings = config.turns.mode, config
        return None

    def ask(self, question: Question, number: int, asked_ns: int) -> type[EdgeError] | None:
        """A client asks; how it is refused, if so."""
        n_waiting = len(self.queue) + max(0, len(self.open) - 1)
        limit, user = self.config.socket.max_waiting, question.user
        own = [[one.question.user for one in part].count(user) for part in (self.queue, self.open)]
        own_full = user and own[0] + max(0, own[1] - 1) >= limit - limit // 4
        if self.is_draining or self.is_stopped or n_waiting >= limit or own_full:
            return CapacityError
        turn = Turn(question, asked_ns, partial(self._tell_client, number), number)
        self.queue.append(turn)
        return None

    def cancel(self, number: int) -> None:
        """A client has gone, or wants no answer any more."""
        for turn in [*self.queue, *self.open]:
            if turn.number == number:
                turn.cancelled = True

    def make(self, trigger: Trigger) -> str | type[EdgeError]:
        """A client wants to be told of something; its name."""
        if len(self.book) >= 16:
            return CapacityError
        self.n_made += 1
        name = f"trigger_{self.n_made}"
        self.book[name] = TriggerStatus(name, trigger)
        self.changes.append((name, trigger))
        return name

    def delete(self, name: str) -> type[EdgeError] | None:
        """And no longer."""
        if self.book.pop(name, None) is None:
            return ProtocolError
        self.changes.append((name, None))
        return None

    # What the session must do.

    def step(self, seen: Observed) -> None:
        """Compare one step.

        Raises:
            Difference: it is not what was due.
        """
        self.now, self.calls, self.events = seen.began_ns, deque(seen.calls), []
        self.heard, self.taken = deque(seen.heard), []
        error, busy = None, False
        try:
            busy = self._step()
        except Difference:
            raise
        except EdgeError as raised:
            error = raised
        self._compare(seen, error)
        if error is None:
            same("busy", seen.busy, busy)
            same("ends at", seen.ended_ns, self.now)
            same("taken", list(seen.taken), self.taken)
            self._compare_standing(seen)

    def stop(self, seen: Observed) -> None:
        """The session ends: those who wait are told."""
        self.now, self.calls, self.events = seen.began_ns, deque(seen.calls), []
        self.heard, self.is_stopped = deque(seen.heard), True
        for turn in self.queue:
            turn.out(Failed(STOPPING))
        self.queue.clear()
        if self.speaker is not None:
            self._speech_stops(self.now, is_asked=False)
        if self.is_entering:
            self._tell_spoken(Failed(STOPPING))
        for watch in self.watches.values():
            if watch.is_on:
                self._end_watch(watch, "stopped")
        for turn in list(self.open):
            self._end(turn, Failed(STOPPING))
        self._compare(seen, None)

    def _compare(self, seen: Observed, error: Exception | None) -> None:
        if seen.events or self.events:
            found = [(to, plain(event)) for to, event in seen.events]
            due = [(to, plain(event)) for to, event in self.events]
            for pair in zip(found, due, strict=False):
                same("event", *pair)
            same("further events", found[len(due) :], due[len(found) :])
        if self.calls:
            call = self.calls[0]
            raise Difference(f"{call.what}({call.content!r}) on {call.before} was not due")
        if self.heard:
            raise Difference(f"sound was taken that was not due: {self.heard[0]!r}")
        same("raised", repr(seen.error), repr(error))

    def _compare_standing(self, seen: Observed) -> None:
        same("live state", seen.state, self.live.state)
        if seen.ledger is not None:
            self._compare_ledger(seen.ledger)
        if seen.status is not None:
            self._compare_status(seen.status)
        if seen.triggers or self.book:
            same("triggers", [*map(plain, seen.triggers)], [*map(plain, self.book.values())])
        same("may sleep for", seen.wait_s, self._wait_s())

    def _compare_ledger(self, found: Sequence[tuple[str, int, Evidence | None]]) -> None:
        ledger: list[tuple[str, int, Evidence | None]] = [("text", self.live.n_tokens[0], None)]
        for piece, n in zip(self.live.pieces, self.live.n_tokens[1:], strict=True):
            ledger.append((piece.modality, n, piece.evidence))
        same("ledger", list(found), ledger)
        same("tokens of the ledger", sum(n for _, n, _ in ledger), self.live.state.n_tokens)

    def _compare_status(self, status: Status) -> None:
        same("context tokens", status.n_context_tokens, self.live.state.n_tokens)
        if status.n_context_tokens > self.config.context.max_tokens:
            raise Difference(f"{status.n_context_tokens} tokens are above the bound")
        counters = {name: n for name, n in status.counters.items() if n}
        same("counters", counters, self._counters())
        same("recent", status.recent, tuple(self.recent))
        microphone = self._first_microphone
        same("mode", status.mode, "typed" if microphone is None else microphone.mode)
        same("uptime", status.uptime_ns, self.now - self.start_ns)

    def _counters(self) -> dict[str, int]:
        counts = dict(self.counts)
        for sense in self.senses:
            counts |= {f"{sense.name}_{what}": n for what, n in sense.counts.items()}
        counts["rebases"] = self.n_rebases
        return {name: n for name, n in counts.items() if n}

    def _wait_s(self) -> float | None:
        """Until something is due by the clock alone."""
        due = [] if self.speaker is None else [self.speech_until_ns + 1]
        if self.tentative is not None:
            due.append(self.tentative.until_ns)
        else:
            for watch in self.watches.values():
                if watch.is_wanted:
                    due.append(max(watch.next_ns, self.rest_until_ns))
                elif watch.is_on:
                    due.append(self._gone_ns(watch) + 1)
            if self.rung:
                due.append(self.looked_ns + NS_PER_S)
        return max(0.0, (min(due) - self.now) / NS_PER_S) if due else None

    # The engine: what is due is what was called.

    def _called(self, what: str, before: Chained | None, content: Any) -> None:
        if not self.calls:
            raise Difference(f"{what} on {before} is due, and was not done")
        call = self.calls.popleft()
        is_same = (
            np.array_equal(call.content, content)
            if isinstance(content, np.ndarray)
            else call.content == content
        )
        if (call.what, call.before) != (what, before) or not is_same:
            raise Difference(
                f"{what}({_short(content)}) on {before} is due, and {call.what}"
                f"({_short(call.content)}) on {call.before} was done"
            )
        self.now = call.after_ns
        if call.error is not None:
            raise call.error

    def _prefill(self, state: Chained, rows: Float32) -> Chained:
        self._called("prefill", state, rows)
        return state.then(rows)

    def _decode(self, state: Chained, token: int) -> Chained:
        self._called("decode", state, token)
        return state.then(embedded(np.array([token], np.int32)))

    def _new_line(self, pieces: Sequence[Piece]) -> Line:
        try:
            self._called("new_state", None, None)
        except CapacityError:
            if self._n_states < MAX_STATES:
                raise Difference(f"a state is refused, and {self._n_states} are in use") from None
            raise
        return Line(self.anchor, self.separator, list(pieces))

    @property
    def _n_states(self) -> int:
        """The live one, the next one, a recalled one, and one on which an answer is followed."""
        recalled = [t for t in self.open if {t.line, t.about} - {None, self.live}]
        followed = [turn for turn in self.open if turn.is_followed]
        return 1 + (self.next is not None) + len(recalled) + len(followed)

    def _advance(self, line: Line) -> None:
        chunk, line.waiting = line.waiting[:CALL_TOKENS], line.waiting[CALL_TOKENS:]
        line.state = self._prefill(line.state, chunk)

    # Events.

    def _saw(self, event: object) -> None:
        self.events.append(("all", event))

    def _count(self, event: object) -> None:
        self.counts["answers"] += isinstance(event, Done)
        self.counts["answers_refused"] += isinstance(event, Failed)

    def _tell_client(self, number: int, event: object) -> None:
        self._count(event)
        self._saw(event)
        self.events.append((number, event))

    def _tell_spoken(self, event: object) -> None:
        self._count(event)
        self._saw(event)
        self.events.append(("spoken", event))

    # A step.

    def _step(self) -> bool:
        if self.settings is not None:
            self.config, self.settings = self.settings, None
        self._look_at_the_load()
        if self.n_rebases > self.n_noticed:
            self.n_noticed = self.n_rebases
            self._saw(Rebased(self.now, self.live.state.n_tokens))
            for sense in self.senses:
                if sense.pruner is not None:
                    sense.pruner.start_again()
        if self.queue:
            self._give_up()
            turn = self.queue.popleft()
            self.taken.append(("turn", turn.question))
            self._open(turn)
            return True
        if self._listen() or self._misses_the_speaker():
            return True
        self._take_changes()
        if self.tentative is not None:
            if self.now >= self.tentative.until_ns:
                self._give_up()
                return True
            return self._answer()
        self._write_notes()
        self._judge()
        if not self.open:
            return self._perceive() or self._rebase() or self._misses_what_is_watched()
        return self._perceive_between() or self._answer()

    # Perception.

    def _listen(self) -> bool:
        for sense in self.senses:
            if not sense.hears or len(sense.complete) >= CLIPS_WAITING:
                continue
            rings = [ring for ring in (sense.ring, sense.played, sense.wishes) if ring]
            if not rings and not sense.has_ended:
                continue
            try:
                events = self._take_sound(sense, min(rings, key=_place) if rings else None)
            except (MediaError, ProtocolError) as error:
                self._refuse(sense.name, error)
            else:
                self._hear(sense, events)
            return True
        return False

    def _take_sound(self, sense: Sense, ring: deque[Any] | None) -> list[Any]:
        """What an item says about turns; clips that take none wait."""
        item = None
        if ring is None:
            sense.has_ended, due_ns = False, self.now
        else:
            _, item = ring.popleft()
            due_ns = self.now
        self.taken.append((sense.name, item))
        if isinstance(item, AudioChunk):
            due_ns = sense.newest_ns = _end_ns(item)
            sense.n_taken += 1
            sense.source = sense.own_name or item.source
        return self._sorted(sense, self._found(sense, item), due_ns)

    def _sorted(self, sense: Sense, found: Sequence[Any], due_ns: int) -> list[Any]:
        events = []
        for one in found:
            if isinstance(one, AudioChunk):
                sense.complete.append((one, due_ns))
            elif isinstance(one, Cut | Overheard):
                sense.complete.append((one.utterance.clip, due_ns))
            else:
                events.append(one)
        return events

    def _found(self, sense: Sense, item: Any) -> Sequence[Any]:
        if self.config.perception.listen == "utterances":
            if not self.heard:
                raise Difference(f"{sense.name}: sound was due, and was not taken")
            whose, given, made, mode = self.heard.popleft()
            same("whose sound", (whose, given), (sense.name, item))
            if isinstance(made, Exception):
                raise made
            sense.mode = mode
            return list(made)
        if item is None:
            return self._window(sense)
        if not isinstance(item, AudioChunk):
            return []
        windows: list[AudioChunk] = []
        if sense.parts:
            gap_ns = abs(item.capture_ns - _end_ns(sense.parts[-1]))
            if gap_ns > JITTER_NS or _length(sense.parts) + _size(item) > SOUND_WAITING:
                windows += self._window(sense)
        sense.parts.append(item)
        if _length(sense.parts) >= round(self.config.perception.audio_window_s * 16_000):
            windows += self._window(sense)
        return windows

    def _window(self, sense: Sense) -> list[AudioChunk]:
        chunks, sense.parts = sense.parts, []
        if not chunks:
            return []
        samples = np.concatenate([chunk.samples for chunk in chunks])
        return [AudioChunk(samples, chunks[0].capture_ns, chunks[0].source)]

    def _take_frame(self, sense: Sense) -> bool:
        if not sense.ring:
            if not sense.has_ended:
                return False
            sense.has_ended = False
            self.taken.append((sense.name, None))
            if sense.parts:
                self._complete(sense, self.now)
            return True
        _, frame = sense.ring.popleft()
        self.taken.append((sense.name, frame))
        sense.newest_ns, sense.source = frame.capture_ns, sense.own_name or frame.source
        sense.n_taken += 1
        if sense.parts:
            last, rung = sense.parts[-1], LADDER[self.rung]
            period_ns = NS_PER_S / self.config.perception.fps * max(1, rung.one_frame_in)
            apart_ns = abs(frame.capture_ns - last.capture_ns)
            is_far = apart_ns > max(2.5 * period_ns, LONG_GAP_NS)
            if is_far or frame.pixels.shape != last.pixels.shape:
                self._complete(sense, frame.capture_ns)
        sense.parts.append(frame)
        if len(sense.parts) == self.spec.vision.tubelet_frames:
            self._complete(sense, frame.capture_ns)
        return True

    def _complete(self, sense: Sense, due_ns: int) -> None:
        sense.complete.append((sense.parts, due_ns))
        sense.parts = []

    def _encode(self, sense: Sense) -> bool:
        began_ns = self.now
        what, due_ns = sense.complete.popleft()
        try:
            seen = (self._clip if sense.hears else self._tubelet)(sense, what, due_ns)
        except MediaError as error:
            self._refuse(sense.name, error)
            return False
        self.late_ns = max(self.late_ns, began_ns - due_ns)
        self.worked_ns += self.now - began_ns
        self.pending.append(seen)
        return True

    def _rows(self, text: str, media: Float32) -> Float32:
        ids = self.tokenizer.encode(text)
        rows = embedded(ids)
        special = self.tokenizer.special
        rows[np.isin(ids, (special.image, special.audio))] = media
        return rows

    def _named(self, sense: Sense, text: str) -> str:
        return f"{sense.own_name}: {text}" if sense.is_named else text

    def _clip(self, sense: Sense, clip: AudioChunk, due_ns: int) -> Seen:
        taken_ns = self.now
        mels = sense.mel.push(clip.samples) + sense.mel.flush()
        parts = [heard_rows(mel) for mel in mels]
        for part in parts:
            self._called("hear", None, len(part))
        media = np.concatenate(parts)
        text = self._named(sense, f"<so_start>{'<so_embedding>' * len(media)}<so_end>")
        evidence = Evidence(sense.own_name or clip.source, clip.capture_ns, _end_ns(clip))
        stages = Stages("audio", evidence.end_ns, taken_ns, taken_ns, self.now)
        return Seen(Piece("audio", self._rows(text, media), evidence), stages, due_ns)

    def _tubelet(self, sense: Sense, frames: Sequence[Frame], due_ns: int) -> Seen:
        taken_ns, rung, vision = self.now, LADDER[self.rung], self.spec.vision
        height, width = frames[0].pixels.shape[:2]
        grid = video_grid(width, height, int(vision.video_target_patches * rung.patch_share))
        shape = frames[0].pixels.shape
        whole = _looks(vision, grid, shape, *(frame.pixels.tobytes() for frame in frames))
        self._called("see", None, len(whole))
        media = whole
        if sense.pruner is not None:
            shaped = whole.reshape(grid[0] // 2, grid[1] // 2, -1)
            media = shaped[sense.pruner.keep(shaped, frames[-1].capture_ns, rung.token_share)]
        stamps = " and ".join(
            f"{'frame' if i else 'Frame'} {sense.n_frames + 1 + i} sampled at "
            f"{(frame.capture_ns - self.start_ns) / NS_PER_S:.2f} seconds"
            for i, frame in enumerate(frames)
        )
        sense.n_frames += len(frames)
        text = self._named(sense, f"{stamps}: <img>{'<image>' * len(media)}</img>")
        evidence = Evidence(
            sense.own_name or frames[0].source,
            frames[0].capture_ns,
            frames[-1].capture_ns,
            tuple(frame.frame_id for frame in frames),
        )
        stages = Stages(
            *("video", evidence.end_ns, taken_ns, taken_ns, self.now),
            n_kept=len(media),
            n_pruned=len(whole) - len(media),
        )
        rows = self._rows(text, media) if len(media) else media
        return Seen(Piece("video", rows, evidence), stages, due_ns)

    def _refuse(self, source: str, error: EdgeError) -> None:
        self.counts["segments_refused"] += 1
        self._saw(Refused(self.now, source, str(error)))

    @property
    def _is_full(self) -> bool:
        return sum(len(seen.piece.rows) for seen in self.pending) >= WORTHWHILE_TOKENS

    def _perceive(self) -> bool:
        """Encode one thing, or bring what is encoded into the context, or do what a rebase owes."""
        if not self._is_full and not self._owes_rebase:
            for sense in self._by_turns():
                if sense.complete:
                    self._encode(sense)
                    self.n_encoded += 1
                    sense.served = self.n_encoded
                    return True
                if not sense.hears and self._take_frame(sense):
                    return True
            if not self.pending:
                return False
        self._leave_live()
        if self._owes_rebase and not self._is_full:
            return self._rebase()
        self._append()
        return True

    def _by_turns(self) -> list[Sense]:
        """Microphones first; among like senses that which was served longest ago."""
        return sorted(self.senses, key=lambda sense: (not sense.hears, sense.served))

    def _append(self) -> None:
        """As many as one prefill takes, at least one; what has no room is refused."""
        began_ns, entered = self.now, list[Seen]()
        n_left = CALL_TOKENS
        while self.pending:
            seen = self.pending[0]
            n_left -= self._n_rows(seen.piece)
            if entered and n_left < 0:
                break
            self.pending.popleft()
            try:
                self._enter(seen.piece)
            except CapacityError as error:
                self._refuse(seen.piece.evidence.source, error)
            else:
                entered.append(seen)
        self._finish_live()
        self.worked_ns += self.now - began_ns
        for seen in entered:
            self._entered(seen, self.now)

    def _entered(self, seen: Seen, at_ns: int) -> None:
        stages = replace(seen.stages, prefilled_ns=at_ns, n_tokens=len(seen.piece.rows))
        self.recent.append(stages)
        self._saw(stages)
        self.counts[f"{stages.modality}_segments"] += 1
        if stages.modality == "video":
            self.counts["video_tokens_kept"] += stages.n_kept
            self.counts["video_tokens_pruned"] += stages.n_pruned

    def _perceive_between(self) -> bool:
        """Answers that have kept perception waiting for a second leave it one part in four."""
        turn = self.current
        loses_nothing = turn is None or turn.line is not self.live or turn.is_between_tokens
        waits_ns = self.now - max(self.answers_since_ns, self.caught_up_ns)
        its_turn = self.answers_worked_ns >= 3 * self.share_ns
        if not (loses_nothing and its_turn and waits_ns > UNSEEN_NS):
            return False
        began_ns = self.now
        did = self._perceive()
        self.share_ns, self.answers_worked_ns = self.now - began_ns, 0
        if not did:
            self.caught_up_ns = self.now
        return did

    # The budget.

    def _look_at_the_load(self) -> None:
        since_ns = self.now - self.looked_ns
        if since_ns < NS_PER_S:
            return
        late_s, busy = self.late_ns / NS_PER_S, self.worked_ns / since_ns
        self.looked_ns, self.late_ns, self.worked_ns = self.now, 0, 0
        self.busy_share += 0.5 * (busy - self.busy_share)
        found = self._strain(late_s)
        since_s = (self.now - self.changed_ns) / NS_PER_S
        if found is not None:
            kind, cause = found
            self.calm_since_ns = self.now
            hold_s = 15.0 if kind != "load" and self.has_stepped else 3.0
            if since_s >= hold_s and self.rung < len(LADDER) - 1:
                if self.went_up:
                    self.calm_s = min(2 * self.calm_s, 1280.0)
                self.pushed.add(kind)
                self._stand_on(self.rung + 1, cause)
            return
        if self.busy_share > 0.55 or not self._is_well():
            self.calm_since_ns = self.now
        calm_s = (self.now - self.calm_since_ns) / NS_PER_S
        if self.rung and min(calm_s, since_s) >= self.calm_s:
            self._stand_on(self.rung - 1, f"calm for {calm_s:.0f} s")
        elif self.went_up and since_s > self.calm_s:
            self.went_up, self.calm_s = False, 20.0

    def _strain(self, late_s: float) -> tuple[str, str] | None:
        health = self.health
        now_c, limit_c = health.temperature_c, health.max_temperature_c
        if late_s > 2.0:
            return "load", f"{late_s:.1f} s late"
        if self.busy_share > 0.9:
            return "load", f"busy for {self.busy_share:.0%} of the time"
        if health.memory_share > 0.95:
            return "memory", f"{health.memory_share:.0%} of the memory in use"
        if health.is_throttled:
            return "heat", "the board throttles" + (f" at {now_c:.0f} °C" if now_c else "")
        if now_c is not None and limit_c is not None and now_c > limit_c - 2:
            return "heat", f"{now_c:.0f} °C of {limit_c:.0f} °C"
        if _power(health) > 1.0:
            return "power", f"{_power(health):.0%} of the power that the board may take"
        return None

    def _is_well(self) -> bool:
        """Whether what has pushed down since the top is clearly better."""
        health = self.health
        now_c, limit_c = health.temperature_c, health.max_temperature_c
        return not (
            ("memory" in self.pushed and health.memory_share >= 0.9)
            or ("power" in self.pushed and _power(health) >= 0.9)
            or ("heat" in self.pushed and now_c and limit_c and now_c >= limit_c - 8)
        )

    def _stand_on(self, rung: int, cause: str) -> None:
        self.went_up, self.has_stepped = rung < self.rung, True
        self.rung = rung
        if rung == 0:
            self.pushed.clear()
        self.changed_ns = self.calm_since_ns = self.now
        self.counts["degraded"] += 1
        self._saw(Degraded(self.now, LADDER[rung], cause))

    # The context.

    def _n_rows(self, piece: Piece) -> int:
        return len(piece.rows) + len(self.separator)

    @property
    def _room(self) -> int:
        live = self.live
        return self.config.context.max_tokens - live.state.n_tokens - len(live.waiting)

    def _enter(self, piece: Piece) -> None:
        if not len(piece.rows):
            prolong(self.kept, piece)
            for line in (self.live, self.next):
                if line is not None:
                    line.prolong(piece)
            return
        self._make_room(piece)
        self.live.add(piece)
        self._keep(piece)

    def _make_room(self, piece: Piece) -> None:
        context, n = self.config.context, self._n_rows(piece)
        if n > context.keep_tokens:
            raise CapacityError(
                f"{piece.modality} segment",
                f"has {n} tokens, the context keeps {context.keep_tokens}",
                "raise context.keep_tokens or lower the frame size",
            )
        if self._room < n:
            self._rebase_now()
        if self._room < n:
            n_anchor = len(self.anchor)
            self._forget_beyond(context.max_tokens - n_anchor - context.notes_tokens - n)
            self._rebase_now()

    def _keep(self, piece: Piece) -> None:
        self.kept.append(piece)
        self._forget_beyond(self.config.context.keep_tokens)
        if self.next is not None:
            self.next.add(piece)
        elif self._room < self.rebase_room:
            self._begin_rebase_if_free()

    def _forget_beyond(self, n_tokens: int) -> None:
        while self.kept and sum(map(self._n_rows, self.kept)) > n_tokens:
            self.kept.pop(0)

    def _begin_rebase(self) -> None:
        notes = [] if self.notes is None else [self.notes]
        self.next = self._new_line([*notes, *self.kept])
        self.owes_start, self.n_next_at_start = False, len(self.next.waiting)

    def _begin_rebase_if_free(self) -> None:
        try:
            self._begin_rebase()
        except CapacityError:
            self.owes_start = True

    @property
    def _owes_rebase(self) -> bool:
        """What waits for the second state may shrink no slower than the room in the first."""
        if self.next is None:
            return False
        return len(self.next.waiting) * self.rebase_room > self.n_next_at_start * self._room

    def _rebase(self) -> bool:
        if self.next is None and self.owes_start:
            self._begin_rebase_if_free()
        if self.next is None:
            return False
        self._advance(self.next)
        if not len(self.next.waiting):
            self.live, self.next = self.next, None
            self.n_rebases += 1
        return True

    def _rebase_now(self) -> None:
        if self.next is None:
            self._begin_rebase()
        while self._rebase():
            pass

    def _finish_live(self) -> None:
        while len(self.live.waiting):
            self._advance(self.live)

    # Turns.

    def _open(self, turn: Turn) -> None:
        if not self.open:
            self.answers_since_ns = self.now
            self.taken_up = []
        self.open.append(turn)
        self.words[turn] = Words(self.tokenizer, turn.question)
        self.samplers[turn] = Sampler(turn.question.sampling)

    def _answer(self) -> bool:
        """Bring the most urgent answer on by one call of the engine."""
        if not self.open:
            return False
        for turn in [turn for turn in self.open if turn.cancelled]:
            self._end(turn, self._done(turn, "cancelled"))
        now_ns = self.now
        for turn in list(self.open):
            if turn.deadline_ns is not None and now_ns > turn.deadline_ns:
                self._end(turn, self._late(turn, now_ns))
        if not self.open:
            return True
        chosen = min(self.open, key=lambda turn: self._urgency(turn, now_ns))
        try:
            if chosen is not self.current:
                self._give_way()
                self.taken_up.append(chosen.question.user)
                if chosen.check is None:
                    began_ns = chosen.at_work_ns = self.now
                    try:
                        self._begin(chosen)
                    finally:
                        chosen.worked_ns += self.now - began_ns
                        chosen.at_work_ns = None
                self.current = chosen
            comes_on = not chosen.said or not len(chosen.waiting)
            done = self._come_on(chosen)
        except (CapacityError, ProtocolError, MediaError, TurnError) as error:
            self._end(chosen, Failed(error))
            return True
        except EdgeError as error:
            chosen.out(Failed(error))
            self.open.remove(chosen)
            raise
        if comes_on:
            self.answers_worked_ns += self.now - now_ns
        if done is not None:
            self._end(chosen, done)
        return True

    def _urgency(self, turn: Turn, now_ns: int) -> tuple[Any, ...]:
        """Rank; who has said nothing; who has waited longer than patience allows; who is at it;
        whose user was taken up longest ago."""
        patient_ns = turn.asked_ns + PATIENCE_NS if turn.said else 0
        has_begun = bool(turn.said)
        rank = RANKS[turn.question.priority]
        users = self.taken_up[::-1]
        ago = users.index(turn.question.user) if turn.question.user in users else len(users)
        after = 0 if has_begun else -ago
        return rank, has_begun, min(patient_ns, now_ns), turn is not self.current, after

    def _late(self, turn: Turn, now_ns: int) -> Done | Failed:
        if turn.said:
            return self._done(turn, "deadline")
        assert turn.deadline_ns is not None
        late_s = (now_ns - turn.deadline_ns) / NS_PER_S
        problem = f"was not answered within {turn.question.deadline_s:g} s (it is {late_s:.3f} s"
        remedy = "ask for less, allow it more time, or lower what is perceived"
        return Failed(DeadlineError("question", f"{problem} late)", remedy))

    def _give_way(self) -> None:
        if self.current is not None:
            self.current.line = self.current.about = self.current.state = None
            self.current = None

    def _leave_live(self) -> None:
        """Something is about to enter: nobody stands on the live context."""
        if self.current is not None and self.current.line is self.live:
            self._give_way()

    def _end(self, turn: Turn, outcome: Done | Failed) -> None:
        if turn is self.current:
            self._give_way()
        self.open.remove(turn)
        turn.out(outcome)

    def _begin(self, turn: Turn) -> None:
        """Stand on the live context, or on a part of the past; the question waits behind it."""
        question = turn.question
        line = self.live if question.recall_s is None else self._recalled(turn)
        if turn.started_ns is None:
            turn.started_ns = self.now
        turn.about = line
        if turn.encoding is None:
            turn.grammar = question.grammar
            if names_frames(question.grammar):
                looks = {p.evidence.source: p.evidence for p in line.media if p.modality == "video"}
                turn.nameable = tuple(sorted(looks.values(), key=lambda look: look.end_ns))
                names = [f"{look.source}:{look.frame_ids[-1]}" for look in turn.nameable]
                turn.grammar = fill_frames(question.grammar, names)
            turn.constraint = self._constraint(turn)
            turn.encoding = self._attach(turn)
            turn.is_encoded = not any(message.media for message in question.messages)
        if turn.is_encoded:
            self._stand(turn)

    def _stand(self, turn: Turn) -> None:
        """Until all that it brings along is encoded it stands nowhere, and hinders nobody."""
        line, question, turn.about = turn.about, turn.question, None
        assert line is not None
        if question.recall_s is None:
            line = self.live  # it may have been rebased meanwhile
        asked = self._asked(turn, line.ends_with_media)
        turn.n_context = line.state.n_tokens + len(line.waiting)
        turn.n_question = len(asked)
        most = self.spec.decoder.max_tokens
        if turn.n_context + len(asked) + question.max_tokens > most:
            raise CapacityError(
                "question",
                f"of {len(asked)} tokens and an answer of up to {question.max_tokens} do not fit "
                f"behind {turn.n_context} tokens of live context into the model's {most}",
                "ask for fewer max_tokens or lower context.max_tokens",
            )
        turn.waiting = np.concatenate([asked, embedded(np.array(turn.said, np.int32))])
        newest = [piece.evidence for piece in line.media[-4:]]
        turn.evidence = (*(one for one in turn.nameable if one not in newest), *newest)
        turn.captured_ns = line.newest_ns()
        turn.freshness = tuple(self._freshness(sense, line) for sense in self.senses)
        turn.line, turn.state = line, None

    def _attach(self, turn: Turn) -> Generator[None, None, None]:
        """Encode what a question brings along; pictures share what it leaves of the room."""
        vision, context, question = self.spec.vision, self.config.context, turn.question
        media = [one for message in question.messages for one in message.media]
        n_free = self.spec.decoder.max_tokens - context.max_tokens - question.max_tokens
        sizes = [(one.width, one.height) for one in media if isinstance(one, Picture)]
        grids = iter(image_grids(sizes, vision, max(0, n_free), 0) if sizes else ())
        for one in media:
            if isinstance(one, Picture):
                grid, shape = next(grids), (one.height, one.width, 3)
                pixels = np.frombuffer(one.rgb, np.uint8).reshape(shape)
                turn.attached.append(seen_rows(image_patches(pixels, grid, vision)[None])[0])
                self._called("see", None, len(turn.attached[-1]))
                yield
                continue
            assert isinstance(one, Sound)
            stream, parts = LogMelStream(self.spec.audio.n_mels), list[Float32]()
            for mel in stream.push(np.frombuffer(one.samples, np.float32)) + stream.flush():
                parts.append(heard_rows(mel))
                self._called("hear", None, len(parts[-1]))
                yield
            turn.attached.append(np.concatenate(parts))
        turn.is_encoded = True

    def _constraint(self, turn: Turn) -> Constraint | None:
        if not turn.grammar:
            return None
        size, stops = self.spec.decoder.vocab_size, (self.tokenizer.special.turn_end,)
        tokens = vocabulary(self.tokenizer, size, stops)
        tokens._max_lines = MANY_PROCESSES
        return Constraint(tokens, turn.grammar)

    def _freshness(self, sense: Sense, line: Line) -> Freshness:
        modality: Any = "audio" if sense.hears else "video"
        newest_ns = line.newest_ns(sense.source, modality)
        stale_ns = int(self.config.perception.stale_s * NS_PER_S)
        return Freshness(
            sense.source,
            modality,
            None if newest_ns is None else self.now - newest_ns,
            sense.newest_ns is None or self.now - sense.newest_ns > stale_ns,
        )

    def _recalled(self, turn: Turn) -> Line:
        """What is kept of a time, the same however often the answer gives way."""
        assert turn.question.recall_s is not None
        if turn.past is None:
            start_ns, end_ns = (turn.asked_ns - int(s * NS_PER_S) for s in turn.question.recall_s)
            if end_ns < self.start_ns:
                ago_s = (turn.asked_ns - self.start_ns) / NS_PER_S
                problem = f"the session began {ago_s:.1f} s ago, after the time that it asks about"
                raise CapacityError("recall", problem, "ask about a later time")
            if not self.kept:
                problem = "nothing has been perceived yet"
                raise CapacityError("recall", problem, "wait, or see status")
            turn.past = [
                piece
                for piece in self.kept
                if piece.evidence.end_ns >= start_ns and piece.evidence.start_ns <= end_ns
            ] or None
            if turn.past is None:
                kept_ns = end_ns - self.kept[0].evidence.start_ns
                raise CapacityError(
                    "recall",
                    "nothing is kept of that time; what is kept reaches "
                    f"{kept_ns / NS_PER_S:.1f} s before its end",
                    "ask about a later time or raise context.keep_tokens",
                )
        return self._new_line(turn.past)

    def _come_on(self, turn: Turn) -> Done | None:
        began_ns = turn.at_work_ns = self.now
        try:
            return self._come_on_by_one(turn)
        finally:
            turn.worked_ns += self.now - began_ns
            turn.at_work_ns = None

    def _come_on_by_one(self, turn: Turn) -> Done | None:
        if turn.check is not None:
            try:
                next(turn.check)
            except StopIteration as found:
                return self._done(turn, turn.ended, found.value)
            except CapacityError:
                return self._done(turn, turn.ended)
            return None
        line, question = turn.line, turn.question
        if line is None:
            assert turn.encoding is not None
            next(turn.encoding, None)
            if turn.is_encoded:
                self._stand(turn)
            return None
        if len(line.waiting):
            self._advance(line)
            return None
        if turn.state is None:
            turn.state = line.state
        if len(turn.waiting):
            chunk, turn.waiting = turn.waiting[:CALL_TOKENS], turn.waiting[CALL_TOKENS:]
            turn.state = self._prefill(turn.state, chunk)
            turn.logits = logits_after(turn.state)
            if not len(turn.waiting) and turn.prefilled_ns is None:
                turn.prefilled_ns = self.now
            return None
        assert turn.logits is not None
        if question.yes_no is not None:
            return replace(self._done(turn, "stop"), confidence=_likely(turn.logits))
        words = self.words[turn]
        token = self._thought(turn, words) if words.is_thinking else self._said(turn)
        turn.said.append(token)
        turn.n_thought += words.is_thinking
        if turn.first_ns is None:
            turn.first_ns = self.now
        if token in self.spec.sampling.stop_ids:
            return self._finished(turn, "stop")
        for delta in words.take(token):
            turn.out(delta)
        if words.is_over:
            return self._finished(turn, "stop")
        if len(turn.said) == question.max_tokens:
            return self._finished(turn, "length")
        turn.state = self._decode(turn.state, token)
        turn.logits = logits_after(turn.state)
        return None

    def _said(self, turn: Turn) -> int:
        """The next token, which follows its format."""
        allowed, constraint = turn.logits, turn.constraint
        assert allowed is not None
        if constraint is not None:
            allowed = constraint.allow(allowed)
        token = self.samplers[turn].choose(allowed)
        if constraint is not None:
            constraint.take(token)
        turn.surprise += _surprise(allowed, token)
        return token

    def _thought(self, turn: Turn, words: Words) -> int:
        """The next token of a thought: from four parts in five on it ends with its line, at 17 in
        20 anyway, so that an answer follows."""
        n, most, special = len(turn.said), turn.question.max_tokens, self.tokenizer.special
        begins_line = words.thought[-1:] in ("", "\n")
        is_long = n >= most * 4 // 5 and begins_line
        if not turn.forced and (is_long or n >= max(0, most * 17 // 20 - 1)):
            newline = [] if begins_line else self.tokenizer.encode("\n").tolist()
            turn.forced = [*newline, special.think_end]
        if turn.forced:
            token = turn.forced.pop(0)
        else:
            assert turn.logits is not None
            token = self.samplers[turn].choose(turn.logits)
            if turn.constraint is not None and token in self.spec.sampling.stop_ids:
                token = special.think_end  # the answer is still owed
        if turn.constraint is not None and words.begins_call(token):
            turn.constraint.take(token)
        return token

    def _finished(self, turn: Turn, reason: Any) -> Done | None:
        if not turn.question.consistency:
            return self._done(turn, reason)
        self._say_the_rest(turn, reason)
        turn.ended = reason
        pieces = self.kept if turn.past is None else turn.past
        seen = [piece for piece in pieces if piece.modality == "video"]
        heard = [piece for piece in pieces if piece.modality == "audio"]
        turn.check = self._followed(turn, seen, heard)
        return None

    def _say_the_rest(self, turn: Turn, reason: Any) -> None:
        """Once: whatever comes after, nothing of the answer is said again."""
        if turn.ended is not None:
            return
        for delta in self.words[turn].finish(reason):
            turn.out(delta)
        has_begun, turn.line, turn.state = turn.line is not None, None, None
        if has_begun and turn.question.remember and reason in ("stop", "length"):
            self._remember(turn)

    def _remember(self, turn: Turn) -> None:
        rows = self._asked(turn, self.live.ends_with_media, self.words[turn].reply)
        evidence = Evidence("dialogue", turn.asked_ns, self.now)
        try:
            self._enter(Piece("text", rows, evidence))
        except CapacityError:
            return
        finally:
            self._finish_live()

    def _done(self, turn: Turn, reason: Any, consistency: Consistency | None = None) -> Done:
        self._say_the_rest(turn, reason)
        if turn.check is not None:
            reason = turn.ended
        worked_ns = turn.worked_ns
        if turn.at_work_ns is not None:
            worked_ns += self.now - turn.at_work_ns
        mean = sum(turn.surprise) / len(turn.surprise) if turn.surprise else None
        return Done(
            reason,
            turn.n_context + turn.n_question,
            len(turn.said),
            Timeline(
                turn.asked_ns,
                self.now if turn.started_ns is None else turn.started_ns,
                turn.captured_ns,
                self.now if turn.prefilled_ns is None else turn.prefilled_ns,
                self.now if turn.first_ns is None else turn.first_ns,
                self.now,
                turn.n_context,
                turn.evidence,
                turn.freshness,
                worked_ns,
            ),
            None if mean is None else round(math.exp(mean), 3),
            consistency,
            turn.n_thought,
        )

    # Where an answer comes from.

    def _followed(
        self, turn: Turn, seen: Sequence[Piece], heard: Sequence[Piece]
    ) -> Generator[None, None, Consistency]:
        """With what was kept when the answer was complete: nothing of it, one sense, the other."""
        said = turn.said[:64]
        nothing = yield from self._follow(turn, [], said)
        by_seen = (yield from self._follow(turn, seen, said)) if seen else None
        by_heard = (yield from self._follow(turn, heard, said)) if heard else None
        return _verdict(nothing, by_seen, by_heard)

    def _follow(
        self, turn: Turn, pieces: Sequence[Piece], said: Sequence[int]
    ) -> Generator[None, None, list[tuple[Float32, int]]]:
        """What was allowed and what was said, token by token, had only these been perceived."""
        line, turn.is_followed = self._new_line(pieces), True
        while len(line.waiting):
            self._advance(line)
            yield
        rows, state, constraint = (
            self._asked(turn, bool(pieces)),
            line.state,
            self._constraint(turn),
        )
        for start in range(0, len(rows), CALL_TOKENS):
            state = self._prefill(state, rows[start : start + CALL_TOKENS])
            yield
        steps = []
        for n, token in enumerate(said):
            logits = logits_after(state)
            steps.append((logits if constraint is None else constraint.allow(logits), token))
            if constraint is not None:
                constraint.take(token)
            if n + 1 < len(said):
                state = self._decode(state, token)
                yield
        turn.is_followed = False
        return steps

    # The words around what is perceived.

    def _anchor(self) -> Any:
        chat = [*self._system(), {"role": "user", "content": LIVE}]
        return self.tokenizer.encode(self.template.around_live(chat, thinking=False)[0])

    def _system(self) -> list[dict[str, str]]:
        system = self.config.context.system
        return [{"role": "system", "content": system}] if system else []

    def _asked(self, turn: Turn, after_media: bool, reply: str | None = None) -> Float32:
        """Rows behind the live context: a question, and where it is remembered its answer too."""
        rows = turn.asked.get((after_media, reply))
        if rows is None:
            n_attached = tuple(map(len, turn.attached))
            system, question = self.config.context.system, turn.question
            ids = _asked_ids(
                *(self.tokenizer, self.template, system, question),
                *(after_media, reply, n_attached),
            )
            rows, special = embedded(ids), self.tokenizer.special
            if turn.attached:
                rows[np.isin(ids, (special.image, special.audio))] = np.concatenate(turn.attached)
            turn.asked[after_media, reply] = rows
        return rows

    # Speech.

    def _hear(self, sense: Sense, events: Sequence[Any]) -> None:
        for event in events:
            if isinstance(event, SpeechStarted):
                if self.spoken is not None:
                    self.spoken.cancelled = True
                self.speaker, self.speech_newest_ns = sense, None
                self._tell_spoken(event)
            elif isinstance(event, Withdrawn):
                self._give_up()
                self._speech_stops(event.at_ns, is_asked=False)
            elif isinstance(event, SoftEnd):
                self._soft_end(sense, event.utterance)
            elif isinstance(event, Resumed):
                self._give_up()
            elif isinstance(event, Ended):
                self._turn_ends(sense, event)
        if self.speaker is sense and self.speech_newest_ns != sense.newest_ns:
            self.speech_newest_ns, self.speech_heard_ns = sense.newest_ns, self.now
            self.speech_until_ns = self.now + LONG_GAP_NS

    def _speech_stops(self, end_ns: int, *, is_asked: bool) -> None:
        self.speaker, self.is_entering = None, is_asked
        self._tell_spoken(SpeechStopped(end_ns, is_asked))

    def _misses_the_speaker(self) -> bool:
        """Somebody speaks, and no sound has come since for too long."""
        sense = self.speaker
        if sense is None or self.now <= self.speech_until_ns:
            return False
        if len(sense.complete) >= CLIPS_WAITING:
            self.speech_until_ns = self.now + LONG_GAP_NS
            return False
        self.speech_until_ns = self.now + HELD_NS
        missing = Silence(self.now - self.speech_heard_ns)
        self._hear(sense, self._sorted(sense, self._found(sense, missing), self.now))
        return True

    def _give_up(self) -> None:
        tentative, self.tentative = self.tentative, None
        if tentative is None:
            return
        if tentative.turn in self.open:
            if tentative.turn is self.current:
                self._give_way()
            self.open.remove(tentative.turn)
        self.live.pieces.pop()
        self.live.n_tokens.pop()
        self.live.state = tentative.state_before
        self.counts["speculations_given_up"] += 1

    def _soft_end(self, sense: Sense, utterance: Utterance | None) -> None:
        """Somebody pauses: an answer is begun if there is no other, and held back."""
        if utterance is None or self.open or self.config.answer.remember:
            return
        entered = self._enter_clip(sense, utterance.clip)
        if entered is None:
            return
        self.counts["speculations"] += 1
        piece, seen, n_before, state_before = entered
        turn = self._spoken_turn(utterance, "ambient", self._hold)
        until_ns = self.now + TENTATIVE_NS
        self.tentative = Tentative(
            utterance.clip, turn, until_ns, piece, seen, n_before, self.now, state_before
        )
        self._open(turn)

    def _hold(self, event: object) -> None:
        assert self.tentative is not None
        self.tentative.held.append(event)

    def _turn_ends(self, sense: Sense, ended: Ended) -> None:
        tentative, utterance = self.tentative, ended.utterance
        end_ns = self.now if utterance is None else utterance.end_ns
        self._speech_stops(end_ns, is_asked=True)
        if tentative is not None and utterance is not None:
            first, clip = tentative.clip, utterance.clip
            if (first.capture_ns, _size(first)) == (clip.capture_ns, _size(clip)):
                self._settle(tentative)
                return
        self._give_up()
        self._leave_live()
        if utterance is None:
            self._encode_all(sense)
            while self.pending:
                self._append()
        else:
            entered = self._enter_clip(sense, utterance.clip)
            if entered is None:
                problem = "did not enter the context"
                remedy = "see why in edge.refused, or speak for less long"
                self.is_entering = False
                self._tell_spoken(Failed(CapacityError("spoken question", problem, remedy)))
                return
            self._keep(entered[0])
            self._entered(entered[1], self.now_of_entering)
        channel: Channel = "operator" if ended.held else "ambient"
        turn = self._spoken_turn(utterance, channel, self._tell_spoken)
        self._announce(turn)
        self._open(turn)

    def _settle(self, tentative: Tentative) -> None:
        """It was all: what was said of the answer until now is told at once."""
        self.tentative = None
        assert tentative.piece is not None
        self._keep(tentative.piece)
        self._entered(tentative.seen, tentative.entered_ns)
        self._announce(tentative.turn)
        released_ns = self.now

        def tell(event: object) -> None:
            if isinstance(event, Done):  # nobody could have had a token before
                timeline = replace(
                    event.timeline,
                    first_token_ns=max(event.timeline.first_token_ns, released_ns),
                    finished_ns=max(event.timeline.finished_ns, released_ns),
                )
                event = replace(event, timeline=timeline)
            self._tell_spoken(event)

        tentative.turn.out = tell
        for event in tentative.held:
            tell(event)

    def _announce(self, turn: Turn) -> None:
        self.spoken, self.is_entering = turn, False
        media = self.live.media
        where = media[-1].evidence if media else Evidence("", turn.asked_ns, turn.asked_ns)
        self._tell_spoken(Spoken(turn.asked_ns, where))

    def _encode_all(self, sense: Sense) -> bool:
        could = False
        while sense.complete:
            could = self._encode(sense)
        return could

    def _enter_clip(
        self, sense: Sense, clip: AudioChunk
    ) -> tuple[Piece, Seen, int, Chained] | None:
        """A question, behind all that was perceived before; it may be taken back."""
        sense.complete.append((clip, self.now))
        if not self._encode_all(sense):
            return None
        seen = self.pending.pop()
        while self.pending:
            self._append()
        n_before = self.live.state.n_tokens
        try:
            self._make_room(seen.piece)
        except CapacityError as error:
            self._refuse(seen.piece.evidence.source, error)
            return None
        state_before = self.live.state
        self.live.add(seen.piece)
        self._finish_live()
        self.now_of_entering = self.now
        return seen.piece, seen, n_before, state_before

    def _spoken_turn(self, utterance: Utterance | None, channel: Channel, out: Out) -> Turn:
        answer, own = self.config.answer, self.spec.sampling
        asked_ns = self.now if utterance is None else utterance.end_ns
        temperature, top_p = answer.temperature, answer.top_p
        if temperature is None:
            temperature = own.temperature if answer.thinking else 0.0
        if top_p is None:
            top_p = own.top_p if answer.thinking else 1.0
        question = Question(
            (Message("user", self.config.turns.text),),
            Sampling(temperature, top_p, seed=asked_ns),
            answer.max_tokens,
            thinking=answer.thinking,
            remember=answer.remember,
            deadline_s=answer.deadline_s,
            channel=channel,
        )
        return Turn(question, asked_ns, out, known_ns=self.now)

    # Notes.

    def _write_notes(self) -> None:
        """Before a rebase forgets it the model writes down what was: once, and one at a time."""
        n_tokens = self.config.context.notes_tokens
        if not n_tokens or self.is_noting or self.next is not None or self.n_noted > self.n_rebases:
            return
        if self._room >= 2 * self.rebase_room:
            return
        self.n_noted, self.is_noting = self.n_rebases + 1, True
        n_around = len(self.tokenizer.encode("Earlier: \n"))
        asked = Message("user", "Note in a few words what has happened so far.")
        question = Question((asked,), Sampling(), max(1, n_tokens - n_around), priority="notes")
        text: list[str] = []

        def take(event: object) -> None:
            self.is_noting = not isinstance(event, Done | Failed)
            if isinstance(event, TextDelta):
                text.append(event.text)
            elif isinstance(event, Done):
                self._note(" ".join("".join(text).split()), event)
            elif isinstance(event, Failed):
                self.counts["notes_refused"] += 1

        self._open(Turn(question, self.now, take))

    def _note(self, text: str, done: Done) -> None:
        ids = np.array(self.tokenizer.encode_as_text(f"Earlier: {text}\n"), np.int32)
        ids = ids[: self.config.context.notes_tokens]
        times = done.timeline
        captured_ns = times.started_ns if times.captured_ns is None else times.captured_ns
        evidence = Evidence("notes", times.started_ns, captured_ns)
        self.notes = Piece("text", embedded(ids), evidence)
        self.counts["notes"] += 1
        self._saw(Noted(self.now, text, len(ids)))

    # Triggers.

    def _take_changes(self) -> None:
        changes, self.changes = self.changes, []
        for name, trigger in changes:
            if trigger is not None:
                self.watches[name] = Watch(name, trigger)
            else:
                watch = self.watches.pop(name)
                if watch.is_on:
                    self._end_watch(watch, "deleted")

    def _end_watch(self, watch: Watch, cause: Any) -> None:
        self.counts["trigger_changes"] += 1
        self._saw(self._over(watch, self.now, cause))
        self._show(watch)

    def _show(self, watch: Watch) -> None:
        if watch.name in self.book:
            self.book[watch.name] = TriggerStatus(
                watch.name, watch.trigger, watch.is_on, watch.confidence, watch.n_judged
            )

    def _gone_ns(self, watch: Watch) -> int:
        """When nothing has come for too long of what it is about."""
        about = [s for s in self.senses if watch.trigger.modality in ("any", _modality(s))]
        return GONE_NS + max((self.came.get(s.name, (0, 0))[1] for s in about), default=0)

    def _misses_what_is_watched(self) -> bool:
        """Nothing waits, and has not for too long: what is on cannot be known any more."""
        on = [watch for watch in self.watches.values() if watch.is_on and not watch.is_wanted]
        gone = [watch for watch in on if self.now > self._gone_ns(watch)]
        for watch in gone:
            self._end_watch(watch, "unseen")
        return bool(gone)

    def _judge(self) -> None:
        """One trigger at a time is judged, the most urgent that is due and has news."""
        if self.is_judging or not self.watches:
            return
        for sense in self.senses:
            if self.came.get(sense.name, (0, 0))[0] != sense.n_taken:
                self.came[sense.name] = sense.n_taken, self.now
        for watch in self.watches.values():
            self._look(watch)
        if self.now < self.rest_until_ns:
            return
        due = [w for w in self.watches.values() if w.is_wanted and w.next_ns <= self.now]
        if not due:
            return
        waited_ns = min(max(watch.next_ns, watch.news_ns or 0) for watch in due)
        held_up_ns = self.rest_until_ns - max(self.rest_since_ns, waited_ns)
        self.rested_ns += max(0, held_up_ns)
        self.rest_since_ns = self.rest_until_ns
        self.counts["triggers_rested_ms"] = self.rested_ns // 1_000_000
        chosen = min(due, key=lambda watch: (URGENCIES[watch.trigger.priority], watch.next_ns))
        chosen.news_ns = None
        chosen.next_ns = self.now + int(chosen.trigger.period_s * NS_PER_S)
        self.is_judging = True
        text = " ".join(chosen.trigger.condition.split())
        if not text.endswith("?"):
            text = f"Is this true now: {text.rstrip('.')}? Answer yes or no."
        message = Message("user", text)
        question = Question((message,), Sampling(), 1, priority="trigger", yes_no=YES_NO)
        self._open(Turn(question, self.now, lambda event: self._judged(chosen, event)))

    def _look(self, watch: Watch) -> None:
        """Whether something of its sense is new in the context."""
        place = (self.n_rebases, len(self.live.pieces) + 1)
        if place == watch.place:
            return
        watch.place = place
        of_its = [p for p in self.live.media if watch.trigger.modality in ("any", p.modality)]
        if of_its and of_its[-1].evidence != watch.newest:
            watch.newest = of_its[-1].evidence
            watch.news_ns = watch.news_ns or self.now

    def _judged(self, watch: Watch, event: object) -> None:
        self.is_judging = False
        if isinstance(event, Failed):
            self.counts["judgements_refused"] += 1
            return
        assert isinstance(event, Done)
        if event.confidence is None:
            return
        at_ns = event.timeline.finished_ns
        worked_ns = event.timeline.worked_ns
        if self.judged_in_ns:
            worked_ns = min(worked_ns, 2 * self.judged_in_ns)
        self.judged_in_ns, self.rest_since_ns = worked_ns, at_ns
        self.rest_until_ns = at_ns + 3 * worked_ns
        self.counts["judgements"] += 1
        if watch.name not in self.watches:
            return
        changed = self._follows(watch, event.confidence, at_ns)
        self._show(watch)
        if changed is not None:
            self.counts["trigger_changes"] += 1
            self._saw(changed)

    def _follows(
        self, watch: Watch, confidence: float, at_ns: int
    ) -> TriggerBegan | TriggerEnded | None:
        """A change that has been likely for the debounce time, and for one to begin is allowed."""
        watch.confidence, watch.n_judged = confidence, watch.n_judged + 1
        is_other = confidence <= 0.4 if watch.is_on else confidence >= 0.6
        if not is_other:
            watch.since_ns = None
            return None
        if watch.since_ns is None:
            watch.since_ns = at_ns
        if at_ns - watch.since_ns < watch.trigger.debounce_s * NS_PER_S:
            return None
        if watch.is_on:
            watch.cool_ns = at_ns + int(watch.trigger.cooldown_s * NS_PER_S)
            return self._over(watch, at_ns, "judged")
        if at_ns < watch.cool_ns:
            return None
        watch.is_on, watch.began_ns, watch.since_ns = True, watch.since_ns, None
        return TriggerBegan(*self._told(watch, at_ns))

    def _over(self, watch: Watch, at_ns: int, cause: Any) -> TriggerEnded:
        watch.is_on, watch.since_ns = False, None
        return replace(TriggerEnded(*self._told(watch, at_ns)), cause=cause)

    def _told(self, watch: Watch, at_ns: int) -> tuple[Any, ...]:
        evidence = () if watch.newest is None else (watch.newest,)
        condition, confidence = watch.trigger.condition, watch.confidence or 0.0
        return watch.name, condition, at_ns, watch.began_ns, confidence, evidence


def _modality(sense: Sense) -> str:
    return "audio" if sense.hears else "video"


def _size(chunk: AudioChunk) -> int:
    return len(chunk.samples)


def _length(chunks: Sequence[AudioChunk]) -> int:
    return sum(map(_size, chunks))


def _end_ns(chunk: AudioChunk) -> int:
    return chunk.capture_ns + _size(chunk) * 62_500


def _place(ring: deque[Any]) -> int:
    place: int = ring[0][0]
    return place


def _power(health: BoardHealth) -> float:
    return (health.power_w or 0.0) / health.max_power_w if health.max_power_w else 0.0


def _short(content: Any) -> str:
    return f"{len(content)} rows" if isinstance(content, np.ndarray) else repr(content)


def _asked_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    system: str,
    question: Question,
    after_media: bool,
    reply: str | None,
    n_attached: tuple[int, ...],
) -> Any:
    """Instructions come before the first user message's text, which goes on with what was seen.
    What spells a control token in it stays text."""
    chat, instructions, control = list[dict[str, Any]](), list[str](), tokenizer.control_tokens
    spelled = {name: f"q{n}\ue001" for n, name in enumerate(control)}

    def hidden(text: str) -> str:
        return control.pattern.sub(lambda found: spelled[found[0]], text)

    for message in question.messages:
        if message.role == "system":
            instructions.append(hidden(message.content))
            continue
        markers = ["<image>" if isinstance(m, Picture) else "<so_embedding>" for m in message.media]
        content = "\n".join(
            [*markers, *([hidden(message.content)] if message.content or not markers else [])]
        )
        chat.append({"role": message.role, "content": content})
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.calls]
        if calls:
            chat[-1]["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    if question.tools and question.channel == "operator":
        instructions.append(template.tools_text(question.tools))
    first = next(message for message in chat if message["role"] == "user")
    text = "\n".join([*instructions, first["content"]])
    first["content"] = f"{LIVE}\n{text}" if after_media and text else f"{LIVE}{text}"
    if system:
        chat.insert(0, {"role": "system", "content": system})
    if reply is None:
        after = template.around_live(chat, thinking=question.thinking)[1]
    else:
        chat += [{"role": "assistant", "content": hidden(reply)}, {"role": "user", "content": NEXT}]
        after = template.around_live(chat, thinking=False)[1].partition(NEXT)[0]
    kinds = [isinstance(one, Sound) for message in question.messages for one in message.media]
    for is_sound, n in zip(kinds, n_attached, strict=True):
        marker, whole = ("<so_embedding>", f"<so_start>{'<hear>' * n}<so_end>") if is_sound else (
            "<image>", f"<img>{'<see>' * n}</img>")  # fmt: skip
        after = after.replace(marker, whole, 1)
    after = after.replace("<hear>", "<so_embedding>").replace("<see>", "<image>")
    ids, names = list[int](), {hidden: name for name, hidden in spelled.items()}
    for text, name in zip(
        control.pattern.split(after), [*control.pattern.findall(after), None], strict=True
    ):
        ids += tokenizer.encode_as_text(re.sub("q[0-9]+\ue001", lambda one: names[one[0]], text))
        ids += [] if name is None else [control.id_of(name)]
    return np.array(ids, np.int32)


def _surprise(allowed: Float32, token: int) -> list[float]:
    """Of a token that had alternatives."""
    return [_log_probability(allowed, token)] if np.isfinite(allowed).sum() > 1 else []


def _log_probability(logits: Float32, token: int) -> float:
    most = logits.max()
    return float(logits[token] - most - np.log(np.exp(logits - most).sum()))


def _likely(logits: Float32) -> float:
    """P(yes) / (P(yes) + P(no))."""
    yes, no = (
        np.exp(logits[list(ids)].astype(np.float64)).sum() for ids in (YES_NO.yes, YES_NO.no)
    )
    return float(yes / (yes + no))


@lru_cache(maxsize=4096)
def _looks(vision: VisionSpec, grid: Any, shape: tuple[int, ...], *pictures: bytes) -> Float32:
    """Rows of a tubelet: the same pictures are seen often."""
    frames = [np.frombuffer(picture, np.uint8).reshape(shape) for picture in pictures]
    rows: Float32 = seen_rows(tubelet_patches(frames, grid, vision, 1))[0]
    return rows


Steps = Sequence[tuple[Float32, int]]


def _verdict(nothing: Steps, seen: Steps | None, heard: Steps | None) -> Consistency:
    """A sense gives an answer that is likely with it alone, and would not be with nothing."""

    def likelihood(steps: Steps | None) -> float | None:
        if steps is None:
            return None
        found = [one for step in steps for one in _surprise(*step)]
        return round(math.exp(sum(found) / len(found)), 3) if found else 1.0

    def objects(steps: Steps | None) -> bool:
        """Its first other word is likely, and not what would be said with nothing."""
        for (allowed, token), (usual, _) in zip(steps or (), nothing, strict=False):
            favourite = int(allowed.argmax())
            if favourite != token:
                is_likely = math.exp(_log_probability(allowed, favourite)) >= 0.5
                return is_likely and favourite != int(usual.argmax())
        return False

    by_seen, by_heard, by_nothing = likelihood(seen), likelihood(heard), likelihood(nothing)
    assert by_nothing is not None
    gives = [one is not None and one >= 0.5 > by_nothing for one in (by_seen, by_heard)]
    verdict: Verdict = "neither"
    if objects(seen) or objects(heard):
        verdict = "contradicted"
    elif all(gives):
        verdict = "both"
    elif any(gives):
        verdict = "seen" if gives[0] else "heard"
    return Consistency(verdict, by_seen, by_heard, by_nothing)
