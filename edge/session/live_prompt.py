"""The chat around the live context, in the model's own template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edge.errors import CheckpointError, ProtocolError
from edge.model.outside import Outside
from edge.model.prompt import LIVE, NEXT, ChatTemplate, flatten
from edge.model.tokenizer import AUDIO, IMAGE, THINK_END, THINK_START, Tokenizer
from edge.session.turn import Message, Question
from edge.types import Int32, Sound


@dataclass(frozen=True, slots=True)
class LivePrompt:
    """The chat around the live context: the user's turn holds what is perceived, then asks."""

    tokenizer: Tokenizer
    template: ChatTemplate
    system: str

    def anchor(self) -> Int32:
        """Ids before everything perceived."""
        outside = Outside(self.tokenizer)
        messages = [*self._system(outside), {"role": "user", "content": LIVE}]
        return outside.encode(self.template.around_live(messages, thinking=False)[0])

    def separator(self) -> Int32:
        """Ids between two segments."""
        return self.tokenizer.encode("\n")

    def question(
        self, question: Question, *, after_media: bool, attached: tuple[str, ...] = ()
    ) -> Int32:
        """Ids after everything perceived, up to the start of the answer.

        A request's own system message and its tools cannot precede the live context, which is
        already in the state: they become the first lines of the question.

        Args:
            attached: what stands for the media of its messages, in order.
        Raises:
            ProtocolError: the template cannot write the messages or the tools.
        """
        outside, text = self.text(question, after_media=after_media)
        return outside.encode(filled(text, attached))

    def text(self, question: Question, *, after_media: bool) -> tuple[Outside, str]:
        """Likewise as the template writes it, with markers for media, and what encodes it.

        Raises:
            ProtocolError: the template cannot write the messages or the tools.
        """
        outside = Outside(self.tokenizer)
        try:
            chat = self._chat(question, after_media, outside)
            _, after = self.template.around_live(chat, thinking=question.thinking)
        except CheckpointError as error:
            raise ProtocolError("messages or tools", error.problem, error.remedy) from None
        return outside, after

    def dialogue(
        self,
        question: Question,
        reply: str,
        *,
        after_media: bool,
        attached: tuple[str, ...] = (),
    ) -> Int32:
        """Ids after everything perceived, up to where the next user turn's content begins."""
        outside = Outside(self.tokenizer)
        chat = self._chat(question, after_media, outside)
        chat.append({"role": "assistant", "content": outside.hide(reply)})
        chat.append({"role": "user", "content": NEXT})
        _, after = self.template.around_live(chat, thinking=False)
        return outside.encode(filled(after.partition(NEXT)[0], attached))

    def _chat(
        self, question: Question, after_media: bool, outside: Outside
    ) -> list[dict[str, Any]]:
        """The messages, with the live context in the first user message."""
        chat = [_as_template_has_it(message, outside) for message in question.messages]
        instructions = [m["content"] for m in chat if m["role"] == "system"]
        if question.callable_tools:
            tools = outside.hide(question.callable_tools)
            instructions.append(self.template.tools_text(tools))
        chat = [m for m in chat if m["role"] != "system"]
        asked = next(m for m in chat if m["role"] == "user")
        text = "\n".join([*instructions, asked["content"]])
        asked["content"] = f"{LIVE}\n{text}" if after_media and text else f"{LIVE}{text}"
        return [*self._system(outside), *chat]

    def _system(self, outside: Outside) -> list[dict[str, str]]:
        return [{"role": "system", "content": outside.hide(self.system)}] if self.system else []


def _as_template_has_it(message: Message, outside: Outside) -> dict[str, Any]:
    markers = [AUDIO if isinstance(one, Sound) else IMAGE for one in message.media]
    said, reasoning = message.content, message.reasoning
    if message.role == "assistant" and not reasoning:
        reasoning, said = _thought_apart(said)
    content = flatten(outside.hide(said), markers)
    chat: dict[str, Any] = {"role": message.role, "content": content}
    if reasoning:
        # transformers gives it to templates by both names.
        chat |= dict.fromkeys(("reasoning_content", "thinking"), outside.hide(reasoning))
    if message.calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.calls]
        chat["tool_calls"] = [
            {"type": "function", "function": outside.hide(call)} for call in calls
        ]
    return chat


def _thought_apart(said: str) -> tuple[str, str]:
    """Reasoning and answer where a client keeps them in one text, as some servers send them."""
    found = re.fullmatch(rf"\s*{THINK_START}(.*?){THINK_END}(.*)", said, re.DOTALL)
    return (found[1].strip(), found[2].lstrip("\n")) if found else ("", said)


def filled(text: str, attached: tuple[str, ...]) -> str:
    """With what stands for each medium at its marker; no text from outside holds one."""
    pieces = re.split(f"{IMAGE}|{AUDIO}", text)
    between = zip(pieces, [*attached, ""], strict=True)
    return "".join(text + medium for text, medium in between)
