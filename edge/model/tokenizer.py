"""Text <-> token ids, with the special tokens resolved by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers.decoders import DecodeStream

from edge.errors import CheckpointError, ProtocolError
from edge.types import Int32

IMAGE, IMAGE_START, IMAGE_END = "<image>", "<img>", "</img>"
AUDIO, AUDIO_START, AUDIO_END = "<so_embedding>", "<so_start>", "<so_end>"
THINK_START, THINK_END = "<think>", "</think>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens that the runtime itself handles."""

    image: int
    audio: int
    think_end: int
    tool_call: int
    tool_call_end: int
    turn_end: int


class Tokenizer:
    """The checkpoint's own tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        """Load `folder`/tokenizer.json.

        Raises:
            CheckpointError: it is not a tokenizer, or lacks a special token.
        """
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        # The tokenizers library raises plain Exception for a malformed file.
        except Exception as error:  # noqa: BLE001
            raise CheckpointError(
                path, f"is not a tokenizer ({error})", "copy the checkpoint's tokenizer.json again"
            ) from None
        self._path = path
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special)
        self._as_text = tokenizers.Tokenizer.from_str(self.as_json())
        self._as_text.encode_special_tokens = True
        required = {
            name: self._id(name)
            for name in (
                *(IMAGE, IMAGE_START, IMAGE_END, AUDIO, AUDIO_START, AUDIO_END),
                *(THINK_START, THINK_END, TURN_START, TURN_END, TOOL_CALL, TOOL_CALL_END),
            )
        }
        self.special = SpecialIds(
            image=required[IMAGE],
            audio=required[AUDIO],
            think_end=required[THINK_END],
            tool_call=required[TOOL_CALL],
            tool_call_end=required[TOOL_CALL_END],
            turn_end=required[TURN_END],
        )

    def find(self, name: str) -> int | None:
        """Id of one token, by its text."""
        token: int | None = self._tokenizer.token_to_id(name)
        return token

    def _id(self, name: str) -> int:
        token = self.find(name)
        if token is None:
            raise CheckpointError(
                self._path,
                f"has no special token {name!r}",
                "use the tokenizer.json of a Nemotron 3 Nano Omni checkpoint",
            )
        return token

    def as_json(self) -> str:
        """The content of a tokenizer.json."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str) -> Int32:
        """Token ids [n]; special tokens in the text become their ids, nothing is added."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_as_text(self, text: str) -> list[int]:
        """Token ids; what spells a special token is text like any other."""
        return list(self._as_text.encode(text, add_special_tokens=False).ids)

    def tokens(self) -> list[int]:
        """Ids of all tokens that there are, the special ones too."""
        return sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def special_tokens(self) -> list[int]:
        """Ids of all tokens that stand for no text."""
        return [self._id(name) for name in sorted(self._special)]

    def decode(self, ids: list[int]) -> str:
        """The text of all `ids`, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def refuse_special_tokens(self, text: str) -> None:
        """Keep outsiders from writing turns or media into the prompt.

        Raises:
            ProtocolError: the text spells a special token.
        """
        for name in sorted(self._special):
            if name in text:
                raise ProtocolError(
                    "message", f"contains the special token {name!r}", "leave it out"
                )


class Detokenizer:
    """Turns the tokens of one answer into text as they come, never half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._n_characters = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._stream.step(self._tokenizer._tokenizer, token) or ""
        self._n_characters += len(text)
        return text

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        return self._tokenizer.decode(self._ids)[self._n_characters :]
