"""One turn: fork the live context, prefill the question, decode, leave no trace."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from edge.clock import Clock
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.errors import CapacityError
from edge.model.prompt import LIVE, ChatTemplate
from edge.model.sampling import Sampler
from edge.model.tokenizer import Detokenizer, Tokenizer
from edge.session.context import LiveContext
from edge.session.slot import Perceived
from edge.session.turn import Done, FinishReason, Question, TextDelta, Timeline, Turn
from edge.types import Evidence, Float32, Int32

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LivePrompt:
    """The chat around the live context: the user's turn holds what is perceived, then asks."""

    tokenizer: Tokenizer
    template: ChatTemplate
    system: str

    def anchor(self) -> Int32:
        """Ids before everything perceived."""
        messages = [*self._system(), {"role": "user", "content": LIVE}]
        return self.tokenizer.encode(self.template.around_live(messages, thinking=False)[0])

    def separator(self) -> Int32:
        """Ids between two segments."""
        return self.tokenizer.encode("\n")

    def question(self, question: Question, *, after_media: bool) -> Int32:
        """Ids after everything perceived, up to the start of the answer.

        A request's own system message cannot precede the live context, which is already in the
        state: it becomes the first lines of the question.

        Raises:
            ProtocolError: a message spells a special token.
        """
        for message in question.messages:
            self.tokenizer.refuse_special_tokens(message.content)
        chat = self._chat(question, after_media)
        _, after = self.template.around_live(chat, thinking=question.thinking)
        return self.tokenizer.encode(after)

    def dialogue(self, question: Question, reply: str, *, after_media: bool) -> Int32:
        """Ids after everything perceived, up to where the next user turn's content begins."""
        chat = self._chat(question, after_media)
        chat += [{"role": "assistant", "content": reply}, {"role": "user", "content": NEXT}]
        _, after = self.template.around_live(chat, thinking=False)
        return self.tokenizer.encode(after.partition(NEXT)[0])

    def _chat(self, question: Question, after_media: bool) -> list[dict[str, str]]:
        """The messages, with the live context in the first user message."""
        chat = [{"role": m.role, "content": m.content} for m in question.messages]
        instructions = [m["content"] for m in chat if m["role"] == "system"]
        chat = [m for m in chat if m["role"] != "system"]
        asked = next(m for m in chat if m["role"] == "user")
        text = "\n".join([*instructions, asked["content"]])
        asked["content"] = f"{LIVE}\n{text}" if after_media and text else f"{LIVE}{text}"
        return [*self._system(), *chat]

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []


NEXT = "\u27e6next\u27e7"
"""Stands for the content of the next user turn."""


class StopTexts:
    """Cuts an answer at the first of some texts, holding back what may be the start of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.reached = False

    def push(self, text: str) -> str:
        """The part of the answer that is certain by now."""
        if self.reached:
            return ""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.reached = True
            return self._release(min(found))
        longest = max(
            (
                n
                for stop in self._stops
                for n in range(1, len(stop))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        return self._release(len(self._held) - longest)

    def flush(self) -> str:
        """What was held back, at the end of an answer that did not reach a stop."""
        return "" if self.reached else self._release(len(self._held))

    def _release(self, n: int) -> str:
        text, self._held = self._held[:n], self._held[n:]
        return text


class _Speech:
    """Tokens become text deltas: thinking first if asked for, then the answer."""

    def __init__(self, tokenizer: Tokenizer, turn: Turn) -> None:
        self._tokenizer, self._turn = tokenizer, turn
        self._thinking = turn.question.thinking
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopTexts(turn.question.stop)
        self.reply = ""
        """The answer so far, without its thinking."""

    def push(self, token: int) -> bool:
        """Say what `token` completes; True when a stop text ends the answer."""
        if self._thinking and token == self._tokenizer.special.think_end:
            self._say(self._detokenizer.flush())
            self._thinking, self._detokenizer = False, Detokenizer(self._tokenizer)
            return False
        self._say(self._detokenizer.push(token))
        return self._stops.reached

    def finish(self) -> None:
        """Say what was held back."""
        self._say(self._detokenizer.flush())
        if not self._thinking:
            self._deliver(self._stops.flush())

    def _say(self, text: str) -> None:
        self._deliver(text if self._thinking else self._stops.push(text))

    def _deliver(self, text: str) -> None:
        if text:
            self.reply += "" if self._thinking else text
            self._turn.deliver(TextDelta(text, reasoning=self._thinking))


class Answering:
    """One turn on its way: a step prefills a chunk of the question, or says a token.

    From `begin` on it stands on a fork of the live context. Where something more urgent comes, it
    gives way: the fork is closed, and the next `begin` prefills the question and what has been said
    again, behind what has been perceived since.
    """

    def __init__(self, prompt: LivePrompt, turn: Turn, clock: Clock) -> None:
        self.turn, self._prompt, self._clock = turn, prompt, clock
        self._sampler = Sampler(turn.question.sampling)
        self._speech = _Speech(prompt.tokenizer, turn)
        self._said: list[int] = []
        self._context: LiveContext | None = None
        self._n_context = self._n_question = 0
        self._waiting: Float32 = np.empty((0, 0), np.float32)
        self._logits: Float32 = np.empty(0, np.float32)
        self._started_ns = self._prefilled_ns = self._first_token_ns = 0
        self._evidence: tuple[Evidence, ...] = ()
        self._captured_ns: int | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a token has been said."""
        return bool(self._said)

    @property
    def reply(self) -> str:
        """The answer so far, without its thinking."""
        return self._speech.reply

    def begin(self, context: LiveContext) -> None:
        """Fork the context and put the question behind it.

        Raises:
            ProtocolError: the question cannot be put into the prompt.
            CapacityError: question and answer do not fit behind the live context.
        """
        self._started_ns = self._started_ns or self._clock.now_ns()
        question = self.turn.question
        ids = self._prompt.question(question, after_media=context.ends_with_media)
        self._n_context, self._n_question = context.n_tokens, len(ids)
        n_room = context.engine.spec.decoder.max_tokens
        if self._n_context + len(ids) + question.max_tokens > n_room:
            raise CapacityError(
                "question",
                f"of {len(ids)} tokens and an answer of up to {question.max_tokens} do not fit "
                f"behind {self._n_context} tokens of live context into the model's {n_room}",
                "ask for fewer max_tokens or lower context.max_tokens",
            )
        self._waiting = context.engine.embed(np.concatenate([ids, np.array(self._said, np.int32)]))
        self._evidence, self._captured_ns = context.evidence(), context.newest_capture_ns()
        context.open_fork()
        self._context = context

    def give_way(self) -> None:
        """Leave the context as it was."""
        if self._context is not None:
            self._context.close_fork()
            self._context = None

    def step(self) -> Done | None:
        """Do the next thing; the turn's end if it was the last, which the caller delivers."""
        assert self._context is not None
        engine, state, question = self._context.engine, self._context.state, self.turn.question
        if len(self._waiting):
            chunk = self._waiting[:MAX_PREFILL_TOKENS]
            self._waiting = self._waiting[MAX_PREFILL_TOKENS:]
            self._logits = engine.prefill(state, chunk)
            self._prefilled_ns = self._prefilled_ns or self._clock.now_ns()
            return None
        token = self._sampler.choose(self._logits)
        self._said.append(token)
        self._first_token_ns = self._first_token_ns or self._clock.now_ns()
        if token in engine.spec.sampling.stop_ids or self._speech.push(token):
            return self.end("stop")
        if len(self._said) == question.max_tokens:
            return self.end("length")
        self._logits = engine.decode(state, token)
        return None

    def end(self, reason: FinishReason) -> Done:
        """The turn is over: leave the context, and let it remember what the question wants so."""
        self._speech.finish()
        context = self._context
        self.give_way()
        if context is not None and self.turn.question.remember and reason in ("stop", "length"):
            _remember(context, self._prompt, self.turn, self.reply, self._clock)
        now_ns = self._clock.now_ns()
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
            ),
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
    context: LiveContext, prompt: LivePrompt, turn: Turn, reply: str, clock: Clock
) -> None:
    """Let question and reply stand in the live context; what is perceived next follows them."""
    ids = prompt.dialogue(turn.question, reply, after_media=context.ends_with_media)
    evidence = Evidence("dialogue", turn.asked_ns, clock.now_ns())
    try:
        context.append(Perceived("text", context.engine.embed(ids), evidence))
    except CapacityError as error:
        log.warning("dialogue=forgotten error=%s", error)
