"""Notes: what the model writes down for itself before a rebase forgets it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge.clock import Clock
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.session.answers import Answers
from edge.session.context import LiveContext
from edge.session.slot import Perceived
from edge.session.turn import AnswerEvent, Done, Failed, Message, Question, TextDelta, Turn
from edge.types import Evidence

log = logging.getLogger(__name__)

ASKED = "Note in a few words what has happened so far."
NOTES = "Earlier: {}\n"


@dataclass(frozen=True, slots=True)
class Noted:
    """The model has written what the next rebase will put behind the anchor."""

    at_ns: int
    text: str
    n_tokens: int


class Notes:
    """Writes notes when the context wants some, as a turn that gives way to all others."""

    def __init__(
        self,
        context: LiveContext,
        answers: Answers,
        tokenizer: Tokenizer,
        clock: Clock,
        saw: Callable[[object], None],
        counters: Counter[str],
    ) -> None:
        self._context, self._answers, self._tokenizer = context, answers, tokenizer
        self._clock, self._saw, self._counters = clock, saw, counters
        self._n_around = len(tokenizer.encode(NOTES.format("")))
        self._text: list[str] = []
        self._is_writing = False

    def write_if_wanted(self) -> None:
        """Open the turn; once before each rebase, and one at a time: a rebase that an append forces
        does not wait for the notes that are being written."""
        if self._is_writing or not self._context.takes_notes():
            return
        self._is_writing = True
        n_tokens = max(1, self._context.notes_tokens - self._n_around)
        question = Question((Message("user", ASKED),), Sampling(), n_tokens, priority="notes")
        self._text = []
        self._answers.open(Turn(question, self._clock.now_ns(), self._deliver))

    def _deliver(self, event: AnswerEvent) -> None:
        self._is_writing = not isinstance(event, Done | Failed)
        if isinstance(event, TextDelta):
            self._text.append(event.text)
        elif isinstance(event, Done):
            self._keep(" ".join("".join(self._text).split()), event)
        elif isinstance(event, Failed):
            self._counters["notes_refused"] += 1
            log.warning("notes=refused error=%s", event.error)

    def _keep(self, text: str, done: Done) -> None:
        ids = self._tokenizer.encode_as_text(NOTES.format(text))[: self._context.notes_tokens]
        times = done.timeline
        evidence = Evidence("notes", times.started_ns, times.captured_ns or times.started_ns)
        rows = self._context.engine.embed(np.asarray(ids, np.int32))
        self._context.note(Perceived("text", rows, evidence))
        self._counters["notes"] += 1
        self._saw(Noted(self._clock.now_ns(), text, len(ids)))
        log.info("event=noted tokens=%d", len(ids))  # what was seen is not for the log
