"""One turn: fork the live context, prefill the question, decode, leave no trace."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from edge.clock import Clock
from edge.engines.engine import MAX_PREFILL_TOKENS, AnyEngine
from edge.errors import CapacityError, ProtocolError, TurnError
from edge.model.constrain import Constraint, fill_frames, names_frames
from edge.model.grammars import Vocabulary, vocabulary
from edge.model.sampling import Sampler, Sampling
from edge.session.attached import Attached, Steps, encode_attached
from edge.session.confidence import Certainty, chance, confidence
from edge.session.consistency import SENSES, Check, check
from edge.session.context import LiveContext
from edge.session.freshness import FreshnessOf
from edge.session.live_prompt import LivePrompt
from edge.session.perceive import place_media
from edge.session.question_prompt import QuestionPrompt, check_room
from edge.session.slot import Perceived
from edge.session.speech import Speech
from edge.session.turn import (
    ChoiceDone,
    Consistency,
    Done,
    FinishReason,
    Freshness,
    Question,
    Timeline,
    Turn,
)
from edge.types import Evidence, Float32, Int32

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
        self._question_prompt = turn.prompt or QuestionPrompt(prompt, turn.question)
        self._n_choices_done = self._n_tokens_before = 0  # of several answers
        self._n_reasoning = 0
        self._behind_prompt: tuple[Any, Float32] | None = None  # a snapshot and the logits there
        self._prompt_ids: list[int] = []
        self._begin_choice()
        self._check: Check | None = None
        self._ended: FinishReason = "stop"
        self._grammar = ""
        self._constraint: Constraint | None = None
        self._nameable: tuple[Evidence, ...] = ()  # frames that the answer may name
        self._encoding: Steps | None = None
        self._attached: Attached | None = None
        self._about: LiveContext | None = None  # what it is to stand on
        self.past: tuple[Perceived, ...] = ()
        """What a question about the past stands on, once that was found: it stays the same when the
        answer gives way and the context forgets it meanwhile."""
        self._budget = _budget(turn.question)
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

    def _begin_choice(self) -> None:
        """The next answer, mostly the only one, has said nothing yet.

        Source: vLLM 0.20, `vllm/v1/engine/parallel_sampling.py`, for the seeds.
        """
        sampling = self.turn.question.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self._n_choices_done)
        self._certainty = Certainty()
        self._sampler = Sampler(sampling)
        self._sampler.read(self._prompt_ids)
        self._speech = Speech(self._prompt.tokenizer, self.turn)
        self._said: list[int] = []
        self._forced: list[int] = []  # what ends a thought whose budget is spent

    @property
    def has_begun(self) -> bool:
        """Whether a token has been said."""
        return bool(self._said or self._n_choices_done)

    @property
    def is_between_tokens(self) -> bool:
        """Whether it has begun, and nothing of it waits to be prefilled."""
        return self.has_begun and not len(self._waiting)

    def is_late(self, within_s: float = 0.0) -> bool:
        """Whether its next token waits for what its format allows; `within_s` is looked for it."""
        if self._constraint is None or not self._logits.size or self._check is not None:
            return False
        return not self._speech.is_thinking and self._constraint.is_late(within_s)

    def is_overdue(self) -> bool:
        """Whether it has waited for that for too long."""
        return self.is_late() and self._constraint is not None and self._constraint.is_overdue

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
        self._about = context
        if self._encoding is None:
            self._prepare(context)
        if self._attached is not None:
            self._ask(context, self._attached)

    def _prepare(self, context: LiveContext) -> None:
        """What the question needs once, wherever it stands then."""
        question, engine = self.turn.question, context.engine
        _check_bias(question.sampling, engine.spec.decoder.vocab_size)
        self._grammar = question.grammar
        if names_frames(question.grammar):
            self._nameable = context.newest_looks()
            names = [f"{look.source}:{look.frame_ids[-1]}" for look in self._nameable]
            self._grammar = fill_frames(question.grammar, names)
        self._constraint = self._constrain(engine)
        media = [one for message in question.messages for one in message.media]
        n_free = engine.spec.decoder.max_tokens - context.max_tokens - question.max_tokens
        self._encoding = encode_attached(engine, media, n_free)
        if not media:
            self._encode()

    def _encode(self) -> None:
        """Encode one more of what the question brings along."""
        assert self._encoding is not None
        try:
            next(self._encoding)
        except StopIteration as encoded:
            self._attached = encoded.value

    def _ask(self, context: LiveContext, attached: Attached) -> None:
        """Let the question wait to be put behind the context."""
        question, engine = self.turn.question, context.engine
        ids = self._ids(context.ends_with_media, attached)
        self._n_context, self._n_question = context.n_tokens + context.n_waiting, len(ids)
        check_room(len(ids), self._n_context, engine.spec.decoder.max_tokens, question)
        asked = self._asked(engine, ids, attached)
        said = engine.embed(np.array(self._said, np.int32))
        self._waiting = np.concatenate([asked, said])
        newest = context.evidence()
        self._evidence = (*(one for one in self._nameable if one not in newest), *newest)
        self._captured_ns = context.newest_capture_ns()
        self._freshness = self._freshness_of(context, self._clock.now_ns())
        # A recalled one has a state, which is one of few.
        self._context, self._about = context, None

    def _ids(self, after_media: bool, attached: Attached) -> Int32:
        """The question's tokens [n]."""
        ids = self._question_prompt.ids(after_media=after_media, attached=attached.texts)
        if self.turn.question.sampling.penalizes and not self._prompt_ids:
            self._prompt_ids = [*self._prompt.anchor().tolist(), *ids.tolist()]
            self._sampler.read(self._prompt_ids)
        return ids

    def _asked(self, engine: AnyEngine, ids: Int32, attached: Attached) -> Float32:
        """The question's rows [n, H]."""
        return place_media(engine, self._prompt.tokenizer, ids, attached.rows)

    def _constrain(self, engine: AnyEngine) -> Constraint | None:
        """What the answer's format allows, from its beginning."""
        return Constraint(self._tokens(engine), self._grammar) if self._grammar else None

    def _tokens(self, engine: AnyEngine) -> Vocabulary:
        tokenizer = self._prompt.tokenizer
        # The model's own end of a turn ends what a grammar describes too.
        stops = (tokenizer.special.turn_end,)
        return vocabulary(tokenizer, engine.spec.decoder.vocab_size, stops)

    def give_way(self) -> None:
        """Leave the context as it was."""
        self._behind_prompt = self._about = None  # what it is about may be a state of the past
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
            except (CapacityError, ProtocolError, TurnError, OSError) as error:
                # All is said: where it comes from is not known, then.
                log.warning("consistency=unknown error=%s", error)
                return self.end(self._ended)
            return None
        if self._context is None:  # until all is encoded it stands nowhere, and hinders nobody
            self._encode()
            if self._attached is not None and self._about is not None:
                self._ask(self._about, self._attached)
            return None
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
                self._keep_prompt(engine)
            return None
        if question.yes_no is not None:
            return replace(self.end("stop"), confidence=confidence(self._logits, question.yes_no))
        token = self._choose(engine)
        self._said.append(token)
        self._n_reasoning += self._speech.is_thinking
        self._first_token_ns = self._first_token_ns or self._clock.now_ns()
        if token in engine.spec.sampling.stop_ids or self._speech.push(token):
            return self._finish("stop")
        if len(self._said) == question.max_tokens:
            return self._finish("length")
        self._logits = engine.decode(state, token)
        return None

    def _choose(self, engine: AnyEngine) -> int:
        """The next token: thinking is free but for its length, the answer follows its grammar."""
        constraint, allowed = self._constraint, self._logits
        if self._speech.is_thinking:
            token = self._think()
            if constraint is not None and self._speech.calls(token):
                constraint.take(token)
            return token
        if constraint is not None:
            allowed = constraint.allow(allowed)
        token = self._sampler.choose(allowed)
        if constraint is not None:
            constraint.take(token)
        self._certainty.add(allowed, token)
        n_others = self.turn.question.n_alternatives
        if n_others is not None and self._speech.says(token):
            spell = self._tokens(engine).spell
            self.turn.deliver(chance(allowed, token, n_others, spell))
        return token

    def _think(self) -> int:
        """The thought's next token, or what ends it."""
        tokenizer, speech, n_said = self._prompt.tokenizer, self._speech, len(self._said)
        soft, hard = self._budget
        if not self._forced and (n_said >= hard or (n_said >= soft and speech.begins_line)):
            line_end = () if speech.begins_line else tokenizer.encode("\n").tolist()
            self._forced = [*line_end, tokenizer.special.think_end]
        if self._forced:
            return self._forced.pop(0)
        assert self._context is not None
        token = self._sampler.choose(self._logits)
        if token in self._context.engine.spec.sampling.stop_ids and self._constraint is not None:
            return tokenizer.special.think_end  # the format is still owed
        return token

    def _keep_prompt(self, engine: AnyEngine) -> None:
        """Let the answers that are still to come begin here, if there is room to remember it."""
        is_last = self._n_choices_done + 1 >= self.turn.question.n_choices
        if is_last or self._said or self._context is None:
            return
        with contextlib.suppress(CapacityError):
            self._behind_prompt = (engine.snapshot(self._context.state), self._logits)

    def _next_choice(self, context: LiveContext, reason: FinishReason) -> None:
        """An answer is complete; another one begins behind the same prompt."""
        self._speech.finish(reason)
        self.turn.deliver(ChoiceDone(reason, self._certainty.value))
        self._n_choices_done += 1
        self._n_tokens_before += len(self._said)
        self._begin_choice()
        self._constraint = self._constrain(context.engine)
        if self._behind_prompt is None:
            self.give_way()
            self._begin(context)
            return
        snapshot, self._logits = self._behind_prompt
        context.engine.restore(context.state, snapshot)
        if self._n_choices_done + 1 == self.turn.question.n_choices:
            self._behind_prompt = None

    def _finish(self, reason: FinishReason) -> Done | None:
        """All is said."""
        context = self._context
        assert context is not None
        if self._n_choices_done + 1 < self.turn.question.n_choices:
            self._next_choice(context, reason)
            return None
        if not self.turn.question.consistency:
            return self.end(reason)
        self._leave(reason)
        self._ended = reason
        # Not the context itself: a recalled one has a state, which others need now.
        slots, engine, attached = context.slots, context.engine, self._attached
        assert attached is not None
        self._check = check(
            slots,
            {sense: context.kept(sense) for sense in SENSES},
            lambda after_media: self._asked(engine, self._ids(after_media, attached), attached),
            self._said,
            lambda: self._constrain(engine),
        )
        return None

    def _leave(self, reason: FinishReason) -> None:
        """Leave the context, and let it remember what the question wants so."""
        self._speech.finish(reason)
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
            n_completion_tokens=self._n_tokens_before + len(self._said),
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
            n_reasoning_tokens=self._n_reasoning,
        )


def _check_bias(sampling: Sampling, n_vocab: int) -> None:
    for token, _ in sampling.logit_bias:
        if token >= n_vocab:
            problem = f"names token {token}, and there are {n_vocab}"
            raise ProtocolError("logit_bias", problem, "name others")


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


def _budget(question: Question) -> tuple[int, int]:
    """After how many tokens a thought ends with its line, and in any case.

    NVIDIA's settings for this model are 16,384 and 1,024 more of 20,480: the same shares hold for
    less, so that an answer follows.
    """
    budget, most = question.thinking_budget, question.max_tokens
    if budget is not None and budget.n_tokens < 0:
        return most, most
    soft, hard = most * 4 // 5, max(0, most * 17 // 20 - 1)
    if budget is not None:
        soft, hard = min(soft, budget.n_tokens), min(hard, budget.n_tokens + budget.n_grace)
    return soft, hard


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
    ids = prompt.dialogue(turn.question, reply, after_media=after_media, attached=texts)
    rows = place_media(context.engine, prompt.tokenizer, ids, attached.rows)
    evidence = Evidence("dialogue", turn.asked_ns, clock.now_ns())
    try:
        context.append(Perceived("text", rows, evidence))
    except CapacityError as error:
        log.warning("dialogue=forgotten error=%s", error)
