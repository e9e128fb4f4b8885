"""An answer's tokens become events: thinking, text, proposed tool calls."""

from __future__ import annotations

import re

from edge.model.tokenizer import TOOL_CALL, TOOL_CALL_END, Detokenizer, Tokenizer
from edge.model.tool_calls import begun_tool_call, is_closed, parse_tool_call
from edge.session.turn import FinishReason, TextDelta, ToolCall, Turn


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
                for n in range(1, min(len(stop), len(self._held) + 1))
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


class Speech:
    """Tokens become events: thinking first if asked for, then text and proposed tool calls."""

    def __init__(self, tokenizer: Tokenizer, turn: Turn) -> None:
        self._tokenizer, self._turn = tokenizer, turn
        self._tools = turn.question.callable_tools
        self.is_thinking = turn.question.thinking
        """Whether the next token is still part of the thinking."""
        self._thought = self._held_space = ""
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopTexts(turn.question.stop)
        self._call: list[int] | None = None  # tokens of the tool call that is being written
        self.reply = ""
        """The answer so far, without its thinking and its tool calls."""

    @property
    def begins_line(self) -> bool:
        """Whether the next token is the first of a line of the thought."""
        return not self._thought or self._thought.endswith("\n")

    def calls(self, token: int) -> bool:
        """Whether a token begins a call, which ends the thinking too."""
        return token == self._tokenizer.special.tool_call and bool(self._tools)

    def says(self, token: int) -> bool:
        """Whether the next token would be text of the answer."""
        if self.is_thinking or self._call is not None:
            return False
        # A special one stands for no text.
        return not self.calls(token) and self._tokenizer.decode([token]) != ""

    def push(self, token: int) -> bool:
        """Say what `token` completes; True when a stop text ends the answer."""
        special = self._tokenizer.special
        if self._call is not None:
            is_edge = token in (special.tool_call, special.tool_call_end)
            if not is_edge or not is_closed(self._written(), self._tools):
                self._call.append(token)  # a tag may be part of a text
                return False
            self._end_call()
            if token == special.tool_call_end:
                return False
        if self.calls(token):
            self._end_thought()
            self._deliver(TextDelta(self._stops.flush()))  # no stop text goes on in a call
            self._call = []
        elif token == special.think_end:
            self._end_thought()
        elif token != special.think_start:
            self._say(self._detokenizer.push(token))
        return self._stops.reached

    def finish(self, reason: FinishReason) -> None:
        """Say what was held back.

        Args:
            reason: `stop` is the model's own end, where it has ended its turn.
        """
        self._say(self._detokenizer.flush())
        self._detokenizer = Detokenizer(self._tokenizer)
        if self.is_thinking and reason == "stop":
            self.is_thinking = False
            said = self._stops.push(self._thought.strip()) + self._stops.flush()
            self._deliver(TextDelta(said, restated=True))
        elif not self.is_thinking:
            self._deliver(TextDelta(self._stops.flush()))
        if self._call is not None:
            self._finish_call(self._written(), is_cut=reason != "stop")
            self._call = None

    def _written(self) -> str:
        return self._tokenizer.decode(self._call or [], special=True)

    def _end_thought(self) -> None:
        self._say(self._detokenizer.flush())
        self.is_thinking, self._detokenizer = False, Detokenizer(self._tokenizer)

    def _end_call(self) -> None:
        text, self._call = self._written(), None
        self._propose(text, TOOL_CALL_END)

    def _finish_call(self, text: str, *, is_cut: bool) -> None:
        """The answer ends in a call: its closing tags were left out, or it was cut."""
        end = _end_of_call(text, is_cut=is_cut)
        if end is not None:
            self._propose(text[:end], TOOL_CALL_END)
            before, begins, after = text[end + len(TOOL_CALL_END) :].partition(TOOL_CALL)
            self._deliver(TextDelta(before.strip()))
            if begins:
                self._finish_call(after, is_cut=is_cut)
            return
        begun = begun_tool_call(text, self._tools)
        if not is_cut or (begun is not None and is_closed(text, self._tools)):
            self._propose(text, "")
        elif begun is not None:
            self._turn.deliver(ToolCall(*begun, is_whole=False))

    def _propose(self, text: str, end: str) -> None:
        found = parse_tool_call(text, self._tools)
        if found is None:
            self._deliver(TextDelta(f"{TOOL_CALL}{text}{end}"))
        else:
            self._turn.deliver(ToolCall(*found))

    def _say(self, text: str) -> None:
        if not self.is_thinking:
            self._deliver(TextDelta(self._stops.push(text)))
            return
        self._thought += text
        # The space before the end of a thought is the template's, not its.
        told = (self._held_space + text).rstrip() if text.strip() else ""
        self._held_space = (self._held_space + text)[len(told) :]
        self._deliver(TextDelta(told, reasoning=True))

    def _deliver(self, delta: TextDelta) -> None:
        if delta.text:
            self.reply += "" if delta.reasoning else delta.text
            self._turn.deliver(delta)


def _end_of_call(text: str, *, is_cut: bool) -> int | None:
    """Where a call ends whose own closing tags are missing: where the answer does, or another call
    begins; else at the first mark of an end, behind which an answer goes on."""
    marks = [found.start() for found in re.finditer(re.escape(TOOL_CALL_END), text)]
    for at in marks:
        after = text[at + len(TOOL_CALL_END) :].lstrip()
        if not after or after.startswith(TOOL_CALL):
            return at
    return marks[0] if marks and not is_cut else None
