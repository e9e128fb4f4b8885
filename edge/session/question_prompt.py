"""Long questions: their prompts are written in a thread of their own, before they are taken up.

What a client has sent may be megabytes, or a hundred thousand small values. The template and the
tokenizer take seconds for that, in which the loop's thread would answer nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from edge.errors import CapacityError
from edge.model.grammars import CHARGE
from edge.model.outside import Outside
from edge.session.live_prompt import LivePrompt, filled
from edge.session.turn import Question, Turn
from edge.types import Int32

LONG = 1 << 12
"""Letters and values of a question that takes more than about a millisecond."""


class QuestionPrompt:
    """One question's prompt; what takes long is done once. One thread at a time."""

    def __init__(self, prompt: LivePrompt, question: Question) -> None:
        """Nothing is written yet."""
        self._prompt, self._question = prompt, question
        self._texts: dict[bool, tuple[Outside, str]] = {}
        self._ids: dict[tuple[bool, tuple[str, ...]], Int32] = {}
        self._problem: Exception | None = None

    def prepare(self, n_room: int) -> None:
        """Do what takes long, whatever the question will stand behind; `ids` raises what it did.

        Several may wait for their answers: what is not needed again is not kept, and nothing of one
        that has more than `n_room` tokens.
        """
        nothing = ("",) * sum(len(message.media) for message in self._question.messages)
        try:
            for after_media in (False, True):
                check_room(
                    len(self.ids(after_media=after_media, attached=nothing)),
                    0,
                    n_room,
                    self._question,
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this question's
            self._problem = error
        if self._problem is not None or not nothing:
            self._texts.clear()
        if self._problem is not None or nothing:
            self._ids.clear()

    def ids(self, *, after_media: bool, attached: tuple[str, ...] = ()) -> Int32:
        """As `LivePrompt.question`."""
        problem, self._problem = self._problem, None
        if problem is not None:  # it ends the turn, and would keep all that it met
            raise problem
        found = self._ids.get((after_media, attached))
        if found is None:
            if after_media not in self._texts:
                self._texts[after_media] = self._prompt.text(
                    self._question, after_media=after_media
                )
            outside, text = self._texts[after_media]
            found = self._ids[after_media, attached] = outside.encode(filled(text, attached))
        return found


def check_room(n_tokens: int, n_context: int, n_room: int, question: Question) -> None:
    """Refuse a question of so many tokens that does not fit with its answer behind the context.

    Raises:
        CapacityError: that is more than the model's `n_room`.
    """
    if n_context + n_tokens + question.max_tokens > n_room:
        raise CapacityError(
            "question",
            f"of {n_tokens} tokens and an answer of up to {question.max_tokens} do not fit "
            f"behind {n_context} tokens of live context into the model's {n_room}",
            "ask for fewer max_tokens or lower context.max_tokens",
        )


def is_long(question: Question) -> bool:
    """Whether its prompt takes so long that others would notice."""
    left: list[Any] = [question.callable_tools]
    for message in question.messages:
        left += [message.content, message.reasoning, [call.arguments for call in message.calls]]
    n = 0
    while left and n < LONG:
        value = left.pop()
        if isinstance(value, str):
            n += len(value)
        elif isinstance(value, dict):
            left += [*value.keys(), *value.values()]
            n += len(value)
        elif isinstance(value, list | tuple):
            left += value
            n += len(value)
    return n >= LONG


class PromptWriter:
    """Writes the prompts of turns, one after the other; whose user was served longest ago first."""

    def __init__(self, lock: threading.RLock, n_room: int, written: Callable[[Turn], None]) -> None:
        """None waits, and `begin` has to be called before any is written.

        Args:
            lock: of the queue that turns come from and go to: none is in both, or in neither.
            n_room: tokens that the model has room for.
            written: is given each turn afterwards, from the writer's thread, which holds the lock.
        """
        self._written: Callable[[Turn], None] | None = written
        """None when it has ended: a thread that still writes keeps nothing of the session."""
        self._n_room = n_room
        self._waiting: list[tuple[Turn, Callable[[float], None] | None]] = []
        self._at_work: Turn | None = None
        self._taken: dict[str, int] = {}
        """User -> which of the turns that were written was its last, while others wait."""
        self._some = threading.Condition(lock)

    def __len__(self) -> int:
        """Turns that wait or are written."""
        return len(self.turns())

    def turns(self) -> list[Turn]:
        """These turns."""
        with self._some:
            turns = [turn for turn, _ in self._waiting]
            return turns if self._at_work is None else [self._at_work, *turns]

    def begin(self) -> None:
        """Start the thread: before there are questions, as there may be no room for it later."""
        threading.Thread(target=self._run, name="prompts", daemon=True).start()

    def write(self, turn: Turn) -> None:
        """Write this turn's prompt; whoever is served in this context is charged for it."""
        with self._some:
            self._waiting.append((turn, CHARGE.get(None)))
            self._some.notify()

    def end(self) -> list[Turn]:
        """Write no more; those that now nobody is given."""
        with self._some:
            left = self.turns()
            self._waiting.clear()
            self._at_work = self._written = None
            self._some.notify()
            return left

    def _run(self) -> None:
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        """False when there are no more. What was written is not held while the next is awaited."""
        with self._some:
            if not self._waiting:
                self._taken.clear()
            self._some.wait_for(lambda: self._waiting or self._written is None)
            if self._written is None:
                return False
            place = min(range(len(self._waiting)), key=self._since)
            turn, charge = self._waiting.pop(place)
            self._taken[turn.question.user] = 1 + max(self._taken.values(), default=0)
            self._at_work = turn
        began_s = time.thread_time()
        if turn.prompt is not None and not turn.cancelled.is_set():
            turn.prompt.prepare(self._n_room)
        if charge is not None:
            charge(time.thread_time() - began_s)
        with self._some:
            if self._written is not None:
                self._at_work = None
                self._written(turn)
        return True

    def _since(self, place: int) -> int:
        return self._taken.get(self._waiting[place][0].question.user, 0)
