"""The chat around the live context, in the model's own template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge.errors import CheckpointError, ProtocolError
from edge.model.prompt import LIVE, ChatTemplate, flatten
from edge.model.tokenizer import AUDIO, IMAGE, Tokenizer
from edge.session.turn import Message, Question
from edge.types import Int32, Picture


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

    def question(
        self, question: Question, *, after_media: bool, attached: tuple[str, ...] = ()
    ) -> Int32:
        """Ids after everything perceived, up to the start of the answer.

        A request's own system message and its tools cannot precede the live context, which is
        already in the state: they become the first lines of the question.

        Args:
            attached: what stands for the media of its messages, in order.
        Raises:
            ProtocolError: a message spells a special token.
        """
        for text in _texts(question):
            self.tokenizer.refuse_special_tokens(text)
        try:
            chat = self._chat(question, after_media)
            _, after = self.template.around_live(chat, thinking=question.thinking)
        except CheckpointError as error:
            raise ProtocolError("messages or tools", error.problem, error.remedy) from None
        return self.tokenizer.encode(_filled(after, attached))

    def dialogue(
        self,
        question: Question,
        reply: str,
        *,
        after_media: bool,
        attached: tuple[str, ...] = (),
    ) -> Int32:
        """Ids after everything perceived, up to where the next user turn's content begins."""
        chat = self._chat(question, after_media)
        chat += [{"role": "assistant", "content": reply}, {"role": "user", "content": NEXT}]
        _, after = self.template.around_live(chat, thinking=False)
        return self.tokenizer.encode(_filled(after.partition(NEXT)[0], attached))

    def _chat(self, question: Question, after_media: bool) -> list[dict[str, Any]]:
        """The messages, with the live context in the first user message."""
        chat = [_as_template_has_it(message) for message in question.messages]
        instructions = [m["content"] for m in chat if m["role"] == "system"]
        if question.callable_tools:
            instructions.append(self.template.tools_text(question.callable_tools))
        chat = [m for m in chat if m["role"] != "system"]
        asked = next(m for m in chat if m["role"] == "user")
        text = "\n".join([*instructions, asked["content"]])
        asked["content"] = f"{LIVE}\n{text}" if after_media and text else f"{LIVE}{text}"
        return [*self._system(), *chat]

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []


NEXT = "\u27e6next\u27e7"
"""Stands for the content of the next user turn."""


def _texts(question: Question) -> Iterator[str]:
    """All that a client has written."""
    for message in question.messages:
        yield message.content
        for call in message.calls:
            yield f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}"
    for tool in question.callable_tools:
        yield json.dumps(tool, ensure_ascii=False)


def _as_template_has_it(message: Message) -> dict[str, Any]:
    markers = [IMAGE if isinstance(one, Picture) else AUDIO for one in message.media]
    chat: dict[str, Any] = {"role": message.role, "content": flatten(message.content, markers)}
    if message.calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.calls]
        chat["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return chat


def _filled(text: str, attached: tuple[str, ...]) -> str:
    """With what stands for each medium at its marker; clients cannot write markers."""
    pieces = re.split(f"{IMAGE}|{AUDIO}", text)
    between = zip(pieces, [*attached, ""], strict=True)
    return "".join(text + medium for text, medium in between)
