"""An answer's tokens become events: thinking, text, proposed tool calls."""

from __future__ import annotations

from edge.model.tokenizer import TOOL_CALL, TOOL_CALL_END, Detokenizer, Tokenizer
from edge.model.tool_calls import parse_tool_call
from edge.session.turn import TextDelta, ToolCall, Turn


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
        self.is_thinking = turn.question.thinking
        """Whether the next token is still part of the thinking."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopTexts(turn.question.stop)
        self._call: list[int] | None = None  # tokens of the tool call that is being written
        self.reply = ""
        """The answer so far, without its thinking and its tool calls."""

    def push(self, token: int) -> bool:
        """Say what `token` completes; True when a stop text ends the answer."""
        special = self._tokenizer.special
        if self.is_thinking and token == special.think_end:
            self._say(self._detokenizer.flush())
            self.is_thinking, self._detokenizer = False, Detokenizer(self._tokenizer)
            return False
        if self._call is not None:
            if token == special.tool_call_end:
                self._end_call()
            else:
                self._call.append(token)
            return False
        if (
            token == special.tool_call
            and self._turn.question.callable_tools
            and not self.is_thinking
        ):
            self._deliver(self._stops.flush())  # no stop text goes on in a call
            self._call = []
            return False
        self._say(self._detokenizer.push(token))
        return self._stops.reached

    def finish(self) -> None:
        """Say what was held back."""
        self._say(self._detokenizer.flush())
        if not self.is_thinking:
            self._deliver(self._stops.flush())
        if self._call is not None:  # cut short: no call, but nothing is hidden
            self._deliver(TOOL_CALL + self._tokenizer.decode(self._call))
            self._call = None

    def _end_call(self) -> None:
        assert self._call is not None
        text, self._call = self._tokenizer.decode(self._call), None
        found = parse_tool_call(text, self._turn.question.callable_tools)
        if found is None:
            self._deliver(f"{TOOL_CALL}{text}{TOOL_CALL_END}")
        else:
            self._turn.deliver(ToolCall(*found))

    def _say(self, text: str) -> None:
        self._deliver(text if self.is_thinking else self._stops.push(text))

    def _deliver(self, text: str) -> None:
        if text:
            self.reply += "" if self.is_thinking else text
            self._turn.deliver(TextDelta(text, reasoning=self.is_thinking))
