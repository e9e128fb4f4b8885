"""One turn: fork the live context, prefill the question, decode, leave no trace."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edge.clock import Clock
from edge.engines.engine import MAX_PREFILL_TOKENS, AnyEngine
from edge.errors import CapacityError, ProtocolError
from edge.model.constrain import Constraint, fill_frames, names_frames, vocabulary
from edge.model.sampling import Sampler
from edge.session.attached import Attached, encode_attached
from edge.session.confidence import Certainty, confidence
from edge.session.consistency import SENSES, Check, check
from edge.session.context import LiveContext
from edge.session.freshness import FreshnessOf
from edge.session.live_prompt import LivePrompt
from edge.session.perceive import place_media
from edge.session.slot import Perceived
from edge.session.speech import Speech
from edge.session.turn import (
    Consistency,
    Done,
    FinishReason,
    Freshness,
    Timeline,
    Turn,
)
from edge.types import Evidence, Float32

log = logging.getLogger(__name__)


class Answering:
    """One turn on its way: a step prefills a chunk of the question, or says a token.

    From `begin` on it stands on a fork of the live context, or on a part of the past, whose chunks
    come before those of the question. Where something more urgent comes, it
    gives way: the fork is closed, and the next `begin` prefills the question and what has been said
    again, behind what has been perceived since.
    """

    def __init__(
        self,
        prompt: LivePrompt,
        turn: Turn,
        clock: Clock,
        freshness_of: FreshnessOf = lambda _context, _now_ns: (),
    ) -> None:
        self.turn, self._prompt, self._clock = turn, prompt, clock
        self._freshness_of = freshness_of
        self._certainty = Certainty()
        self._sampler = Sampler(turn.question.sampling)
        self._speech = Speech(prompt.tokenizer, turn)
        self._check: Check | None = None
        self._ended: FinishReason = "stop"
        self._grammar = ""
        self._constraint: Constraint | None = None
        self._nameable: tuple[Evidence, ...] = ()  # frames that the answer may name
        self._attached: Attached | None = None
        self.past: tuple[Perceived, ...] = ()
        """What a question about the past stands on, once that was found: it stays the same when the
        answer gives way and the context forgets it meanwhile."""
        self._said: list[int] = []
        self._context: LiveContext | None = None
        self._n_context = self._n_question = 0
        self._waiting: Float32 = np.empty((0, 0), np.float32)
        self._logits: Float32 = np.empty(0, np.float32)
        self._started_ns = self._prefilled_ns = self._first_token_ns = 0
        self._worked_ns = 0
        self._at_work_since_ns: int | None = None
        self._evidence: tuple[Evidence, ...] = ()
        self._freshness: tuple[Freshness, ...] = ()
        self._captured_ns: int | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a token has been said."""
        return bool(self._said)

    @property
    def is_between_tokens(self) -> bool:
        """Whether it has begun, and nothing of it waits to be prefilled."""
        return self.has_begun and not len(self._waiting)

    def stands_on(self, context: LiveContext) -> bool:
        """Whether it has that context's fork open."""
        return self._context is context

    @property
    def is_checking(self) -> bool:
        """Whether all is said, and where it comes from is being found out, beside the context."""
        return self._check is not None

    @property
    def reply(self) -> str:
        """The answer so far, without its thinking."""
        return self._speech.reply

    def begin(self, context: LiveContext) -> None:
        """Stand on the context; the question waits to be put behind it.

        Raises:
            ProtocolError: the question cannot be put into the prompt.
            MediaError: what it brings along cannot be used.
            CapacityError: question and answer do not fit behind the live context.
        """
        with self._at_work():
            self._begin(context)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Count the time: what passes between two steps is others'."""
        self._at_work_since_ns = since_ns = self._clock.now_ns()
        try:
            yield
        finally:
            self._worked_ns += self._clock.now_ns() - since_ns
            self._at_work_since_ns = None

    def _begin(self, context: LiveContext) -> None:
        self._started_ns = self._started_ns or self._clock.now_ns()
        question, engine = self.turn.question, context.engine
        n_room = engine.spec.decoder.max_tokens
        if self._attached is None:
            media = [one for message in question.messages for one in message.media]
            n_free = n_room - context.max_tokens - question.max_tokens
            self._attached = encode_attached(engine, media, n_free)
            self._grammar = question.grammar
            if names_frames(question.grammar):
                self._nameable = context.newest_looks()
                names = [f"{look.source}:{look.frame_ids[-1]}" for look in self._nameable]
                self._grammar = fill_frames(question.grammar, names)
            self._constraint = self._constrain(engine)
        asked = self._asked(engine, context.ends_with_media)
        self._n_context, self._n_question = context.n_tokens + context.n_waiting, len(asked)
        if self._n_context + len(asked) + question.max_tokens > n_room:
            raise CapacityError(
                "question",
                f"of {len(asked)} tokens and an answer of up to {question.max_tokens} do not fit "
                f"behind {self._n_context} tokens of live context into the model's {n_room}",
                "ask for fewer max_tokens or lower context.max_tokens",
            )
        said = engine.embed(np.array(self._said, np.int32))
        self._waiting = np.concatenate([asked, said])
        newest = context.evidence()
        self._evidence = (*(one for one in self._nameable if one not in newest), *newest)
        self._captured_ns = context.newest_capture_ns()
        self._freshness = self._freshness_of(context, self._clock.now_ns())
        self._context = context

    def _asked(self, engine: AnyEngine, after_media: bool) -> Float32:
        """The question's rows [n, H]."""
        assert self._attached is not None
        texts, media = self._attached.texts, self._attached.rows
        ids = self._prompt.question(self.turn.question, after_media=after_media, attached=texts)
        return place_media(engine, self._prompt.tokenizer, ids, media)

    def _constrain(self, engine: AnyEngine) -> Constraint | None:
        """What the answer's format allows, from its beginning."""
        if not self._grammar:
            return None
        tokenizer = self._prompt.tokenizer
        # The model's own end of a turn ends what a grammar describes too.
        stops = (tokenizer.special.turn_end,)
        tokens = vocabulary(tokenizer, engine.spec.decoder.vocab_size, stops)
        return Constraint(tokens, self._grammar)

    def give_way(self) -> None:
        """Leave the context as it was."""
        if self._context is not None:
            if self._context.is_forked:
                self._context.close_fork()
            self._context = None

    def step(self) -> Done | None:
        """Do the next thing; the turn's end if it was the last, which the caller delivers."""
        with self._at_work():
            return self._step()

    def _step(self) -> Done | None:
        if self._check is not None:
            try:
                next(self._check)
            except StopIteration as found:
                return self.end(self._ended, found.value)
            except CapacityError as error:
                log.warning("consistency=unknown error=%s", error)
                return self.end(self._ended)
            return None
        assert self._context is not None
        if self._context.advance():
            return None
        if not self._context.is_forked:
            self._context.open_fork()
        engine, state, question = self._context.engine, self._context.state, self.turn.question
        if len(self._waiting):
            chunk = self._waiting[:MAX_PREFILL_TOKENS]
            self._waiting = self._waiting[MAX_PREFILL_TOKENS:]
            self._logits = engine.prefill(state, chunk)
            if not len(self._waiting):
                self._prefilled_ns = self._prefilled_ns or self._clock.now_ns()
            return None
        if question.yes_no is not None:
            return replace(self.end("stop"), confidence=confidence(self._logits, question.yes_no))
        token = self._choose()
        self._said.append(token)
        self._first_token_ns = self._first_token_ns or self._clock.now_ns()
        if token in engine.spec.sampling.stop_ids or self._speech.push(token):
            return self._finish("stop")
        if len(self._said) == question.max_tokens:
            return self._finish("length")
        self._logits = engine.decode(state, token)
        return None

    def _choose(self) -> int:
        """The next token: thinking is free, the answer follows its grammar."""
        if self._speech.is_thinking:
            return self._sampler.choose(self._logits)
        constraint, allowed = self._constraint, self._logits
        if constraint is not None:
            allowed = constraint.allow(allowed)
        token = self._sampler.choose(allowed)
        if constraint is not None:
            constraint.take(token)
        self._certainty.add(allowed, token)
        return token

    def _finish(self, reason: FinishReason) -> Done | None:
        """All is said."""
        context = self._context
        assert context is not None
        if not self.turn.question.consistency:
            return self.end(reason)
        self._leave(reason)
        self._ended = reason
        # Not the context itself: a recalled one has a state, which others need now.
        slots, engine = context.slots, context.engine
        self._check = check(
            slots,
            {sense: context.kept(sense) for sense in SENSES},
            lambda after_media: self._asked(engine, after_media),
            self._said,
            lambda: self._constrain(engine),
        )
        return None

    def _leave(self, reason: FinishReason) -> None:
        """Leave the context, and let it remember what the question wants so."""
        self._speech.finish()
        context = self._context
        self.give_way()
        if context is not None and self.turn.question.remember and reason in ("stop", "length"):
            assert self._attached is not None
            _remember(context, self._prompt, self.turn, self.reply, self._attached, self._clock)

    def end(self, reason: FinishReason, consistency: Consistency | None = None) -> Done:
        """The turn is over."""
        if self._check is None:
            self._leave(reason)
        else:  # whatever ends the check, all was said before it; others need its state now
            reason = self._ended
            self._check.close()
        now_ns = self._clock.now_ns()
        worked_ns = self._worked_ns
        if self._at_work_since_ns is not None:
            worked_ns += now_ns - self._at_work_since_ns
        return Done(
            finish_reason=reason,
            n_prompt_tokens=self._n_context + self._n_question,
            n_completion_tokens=len(self._said),
            timeline=Timeline(
                asked_ns=self.turn.asked_ns,
                started_ns=self._started_ns or now_ns,
                captured_ns=self._captured_ns,
                prefilled_ns=self._prefilled_ns or now_ns,
                first_token_ns=self._first_token_ns or now_ns,
                finished_ns=now_ns,
                n_context_tokens=self._n_context,
                evidence=self._evidence,
                freshness=self._freshness,
                worked_ns=worked_ns,
            ),
            confidence=self._certainty.value,
            consistency=consistency,
        )


def answer(context: LiveContext, prompt: LivePrompt, turn: Turn, clock: Clock) -> Done:
    """Answer one turn at once, delivering its text as it comes.

    The live context is left as it was, unless the question wants to be remembered.

    Returns:
        The turn's end; the caller delivers it.
    Raises:
        ProtocolError: the question cannot be put into the prompt.
        CapacityError: question and answer do not fit behind the live context.
    """
    answering = Answering(prompt, turn, clock)
    answering.begin(context)
    try:
        while not turn.cancelled.is_set():
            if (done := answering.step()) is not None:
                return done
        return answering.end("cancelled")
    finally:
        answering.give_way()


def _remember(
    context: LiveContext,
    prompt: LivePrompt,
    turn: Turn,
    reply: str,
    attached: Attached,
    clock: Clock,
) -> None:
    """Let question and reply stand in the live context; what is perceived next follows them."""
    after_media, texts = context.ends_with_media, attached.texts
    try:
        prompt.tokenizer.refuse_special_tokens(reply)  # a format may let it spell one, as text
    except ProtocolError as error:
        log.warning("dialogue=forgotten error=%s", error)
        return
    ids = prompt.dialogue(turn.question, reply, after_media=after_media, attached=texts)
    rows = place_media(context.engine, prompt.tokenizer, ids, attached.rows)
    evidence = Evidence("dialogue", turn.asked_ns, clock.now_ns())
    try:
        context.append(Perceived("text", rows, evidence))
    except CapacityError as error:
        log.warning("dialogue=forgotten error=%s", error)
