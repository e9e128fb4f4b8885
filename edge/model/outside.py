"""Texts from outside in a prompt: whatever they spell, they stay text.

A chat template joins its own words, among them control tokens, with what clients, tools and the
model itself have said, into one text. So that the tokenizer can tell the two apart, what spells a
control token in a text from outside has another name while the template runs: random letters, new
for each rendering. They are undone where the text is encoded, as text.

Source: transformers 5.23.0, `apply_chat_template(sanitize_control_tokens=True)`, which has the same
aim; here also keys are covered, and tokens of which the template writes a part.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import numpy as np

from edge.model.prompt import LIVE, NEXT
from edge.model.tokenizer import Tokenizer
from edge.types import Int32

LONG = 1 << 13
"""Letters of a text that takes so long that it is encoded once only."""


class Outside:
    """The texts from outside of one rendering."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._nonce = "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(16))
        self._names: dict[str, str] = {}
        self._hidden: list[str] = []
        self._encoded: dict[str, list[int]] = {}
        """What came of long texts: the same stand around media whatever is said for these."""

    def hide(self, value: Any) -> Any:
        """A text, or a JSON value with texts and keys in it, for a template to render."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, dict):
            return {self.hide(key): self.hide(one) for key, one in value.items()}
        return [self.hide(one) for one in value] if isinstance(value, list | tuple) else value

    def _hide_text(self, text: str) -> str:
        tokens = self._tokenizer.control_tokens
        text = tokens.pattern.sub(self._name, _unicode(text))
        for own in (LIVE, NEXT):
            if own in text:
                text = text.replace(own, self._name(own))
        if tokens.may_go_on(text):
            text = text[:-1] + self._name(text[-1])
        if tokens.may_have_begun(text):
            text = self._name(text[0]) + text[1:]
        return text

    def _name(self, found: re.Match[str] | str) -> str:
        spelled = found if isinstance(found, str) else found[0]
        if spelled not in self._names:
            self._names[spelled] = f"q{self._nonce}{len(self._hidden)}q"
            self._hidden.append(spelled)
        return self._names[spelled]

    def encode(self, text: str) -> Int32:
        """Token ids [n] of what a template has made of it: only its own control tokens are ones."""
        tokens = self._tokenizer.control_tokens
        if not self._hidden and len(text) < LONG:
            ids = self._tokenizer.encode(text)
            if np.isin(ids, tokens.ids).sum() == len(tokens.pattern.findall(text)):
                return ids  # else the tokenizer changes texts before it looks for tokens
        found: list[int] = []
        at = 0
        for token in tokens.pattern.finditer(text):
            found += self._as_text(self._undone(text[at : token.start()]))
            found.append(tokens.id_of(token[0]))
            at = token.end()
        found += self._as_text(self._undone(text[at:]))
        return np.asarray(found, np.int32)

    def _as_text(self, text: str) -> list[int]:
        if len(text) < LONG:
            return self._tokenizer.encode_as_text(text)
        if text not in self._encoded:
            self._encoded[text] = self._tokenizer.encode_as_text(text)
        return self._encoded[text]

    def _undone(self, text: str) -> str:
        return re.sub(f"q{self._nonce}([0-9]+)q", lambda name: self._hidden[int(name[1])], text)


def _unicode(text: str) -> str:
    """JSON may escape half of a pair of surrogates, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
