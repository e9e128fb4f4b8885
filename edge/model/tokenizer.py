"""Text <-> token ids, with the special tokens resolved by name."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers.decoders import DecodeStream

from edge.errors import CheckpointError
from edge.files import read_bounded
from edge.types import Int32

IMAGE, IMAGE_START, IMAGE_END = "<image>", "<img>", "</img>"
AUDIO, AUDIO_START, AUDIO_END = "<so_embedding>", "<so_start>", "<so_end>"
THINK_START, THINK_END = "<think>", "</think>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
OWN_TOKENS = (
    *(IMAGE, IMAGE_START, IMAGE_END, AUDIO, AUDIO_START, AUDIO_END),
    *(THINK_START, THINK_END, TURN_START, TURN_END, TOOL_CALL, TOOL_CALL_END),
)
"""What the runtime itself writes or looks for."""
PANIC = "PanicException"
"""How Rust's panics end in Python; the class can be imported from nowhere."""
UNREACHABLE = "\ue000"
"""Before a token's name in a vocabulary: no text has both."""
TEMPLATE = "chat_template.jinja"
MAX_TOKENIZER_BYTES, MAX_TEMPLATE_BYTES = 1 << 28, 1 << 24
"""The published ones have 17 MB and 11 KB; a template may be a value among others, as a file's."""
_UNREADABLE = (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_OLDER_PLACES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")


def read_template(folder: Path) -> str | None:
    """The text of a checkpoint's chat template, a file of its own or a value where older ones are.

    Returns:
        Of several templates the one that is called default; None if there is none.
    Raises:
        CheckpointError: it cannot be read, or there is another one for tools.
    Source: transformers 5.23.0, `from_pretrained` of tokenization_utils_base.py and
        processing_utils.py.
    """
    for name in (TEMPLATE, *_OLDER_PLACES):
        path = folder / name
        if not path.exists():
            continue
        try:
            text = str(read_bounded(path, MAX_TEMPLATE_BYTES), "utf-8")
            told = text if name == TEMPLATE else json.loads(text).get("chat_template")
            if isinstance(told, list):
                told = {one["name"]: one["template"] for one in told}
        except _UNREADABLE as error:
            problem = f"has no chat template that can be read ({error})"
            raise CheckpointError(path, problem, "copy the checkpoint's again") from None
        if isinstance(told, dict):
            if "tool_use" in told:
                remedy = f"put the one to use into {TEMPLATE}"
                raise CheckpointError(path, "has another chat template for tools", remedy)
            told = told.get("default")
        if isinstance(told, str):
            return told
    return None


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens that the runtime itself handles."""

    image: int
    audio: int
    think_start: int
    think_end: int
    tool_call: int
    tool_call_end: int
    turn_end: int


class ControlTokens:
    """The tokens that structure a prompt, which no text from outside may become.

    These are a checkpoint's special tokens, and those that were added to its vocabulary without
    being called special, if the runtime or the chat template writes them.
    """

    def __init__(self, ids: Mapping[str, int], alone: Mapping[str, str]) -> None:
        """Make a list of them.

        Args:
            ids: id by name.
            alone: name -> a pattern that also takes the space around it that the token takes.
        """
        self._ids = dict(ids)
        self.ids = sorted(self._ids.values())
        plain = [name for name in self._ids if alone.get(name, name) == name]
        odd = sorted((name for name in self._ids if name not in plain), key=len, reverse=True)
        self.pattern = re.compile("|".join([*(alone[name] for name in odd), _one_of(plain)]))
        self._all = "\n".join(self._ids)
        self._beginnings = {name[:n] for name in self._ids for n in range(1, len(name))}
        self._ends = {name[n:] for name in self._ids for n in range(1, len(name))}
        self._longest = max(map(len, self._ids))

    def __contains__(self, name: str) -> bool:
        return name in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def id_of(self, found: str) -> int:
        """Of one that `pattern` has found."""
        return self._ids[found if found in self._ids else found.strip()]

    def may_go_on(self, text: str) -> bool:
        """Whether what stands behind a text could make a token of its end."""
        return any(text[-n:] in self._beginnings for n in self._lengths(text))

    def may_have_begun(self, text: str) -> bool:
        """Whether what stands before a text, or on both sides of it, could make a token of it."""
        if text and len(text) < self._longest and "\n" not in text and text in self._all:
            return True
        return any(text[:n] in self._ends for n in self._lengths(text))

    def _lengths(self, text: str) -> Iterable[int]:
        return range(1, min(self._longest, len(text) + 1))


class Tokenizer:
    """The checkpoint's own tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        """Load `folder`/tokenizer.json; the chat template beside it may make control tokens.

        Raises:
            CheckpointError: it is no tokenizer, lacks a special token, or has one that is no text.
        """
        path = self._path = folder / "tokenizer.json"
        with self._telling():
            content = read_bounded(path, MAX_TOKENIZER_BYTES)
            self._tokenizer = tokenizers.Tokenizer.from_str(str(content, "utf-8"))
            self._find_tokens(folder)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What a malformed file leads to is one error.

        The library raises plain Exception for it, or panics: that is no Exception.
        """
        remedy = "copy the checkpoint's tokenizer.json again"
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(self._path, f"is not a tokenizer ({error})", remedy) from error
        except BaseException as error:
            if type(error).__name__ != PANIC:
                raise
            raise CheckpointError(self._path, f"is not a tokenizer ({error})", remedy) from None

    def _find_tokens(self, folder: Path) -> None:
        """Those that the runtime handles, and those that no text may become."""
        required = {name: self._id(name) for name in OWN_TOKENS}
        self.special = SpecialIds(
            image=required[IMAGE],
            audio=required[AUDIO],
            think_start=required[THINK_START],
            think_end=required[THINK_END],
            tool_call=required[TOOL_CALL],
            tool_call_end=required[TOOL_CALL_END],
            turn_end=required[TURN_END],
        )
        written = read_template(folder) or ""
        added = self._tokenizer.get_added_tokens_decoder()
        control = {
            token.content: (number, token)
            for number, token in added.items()
            if token.special
            or token.content in OWN_TOKENS
            or (token.content in written and not token.content.isspace())
        }
        ids = required | {name: number for name, (number, _) in control.items()}
        self.control_tokens = ControlTokens(
            ids, {name: _alone(token) for name, (_, token) in control.items()}
        )
        for name, number in required.items():
            if self._tokenizer.encode(name, add_special_tokens=False).ids != [number]:
                raise CheckpointError(
                    self._path,
                    f"does not find its special token {name!r} in text",
                    "use the tokenizer.json of a Nemotron 3 Nano Omni checkpoint",
                )
        self._as_text = self._without(self.control_tokens)

    def _without(self, control: ControlTokens) -> tokenizers.Tokenizer:
        """The same tokenizer, which makes no control token of a text.

        Raises:
            CheckpointError: it cannot write one's name as text.
        """
        whole = json.loads(self.as_json())
        model = whole["model"]
        vocabulary = model.get("vocab")
        if not isinstance(vocabulary, dict):
            raise CheckpointError(
                self._path,
                f"is a tokenizer of the kind {model.get('type')!r}",
                "use the tokenizer.json of a Nemotron 3 Nano Omni checkpoint",
            )
        for name in control:
            vocabulary.pop(name, None)
            vocabulary[UNREACHABLE + name] = control.id_of(name)
        others = [token for token in whole["added_tokens"] if token["content"] not in control]
        vocabulary |= {token["content"]: token["id"] for token in others}
        merges = model.get("merges") or []
        pairs = [one.split(" ", 1) if isinstance(one, str) else one for one in merges]
        model["merges"] = [
            pair for pair in pairs if not any(one in control for one in (*pair, "".join(pair)))
        ]
        if model.get("unk_token") in control:
            model["unk_token"] = None
        whole |= {"added_tokens": others, "post_processor": None}
        made = tokenizers.Tokenizer.from_str(json.dumps(whole))
        names = [*control]
        for name, encoded in zip(names, made.encode_batch(names), strict=True):
            is_text = set(control.ids).isdisjoint(encoded.ids)
            if not is_text or made.decode(encoded.ids, skip_special_tokens=False) != name:
                raise CheckpointError(
                    self._path,
                    f"cannot write its control token {name!r} as text",
                    "copy the checkpoint's tokenizer.json again",
                )
        return made

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

    def as_text_json(self) -> str:
        """Likewise, of what `encode_as_text` encodes with."""
        return str(self._as_text.to_str())

    def encode(self, text: str) -> Int32:
        """Token ids [n] of our own words; a special token's name becomes its id.

        What others have said is encoded by `encode_as_text`, or by `Outside` where it is mixed with
        our words.
        """
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_as_text(self, text: str) -> list[int]:
        """Token ids; what spells a control token is text like any other."""
        return list(self._as_text.encode(text, add_special_tokens=False).ids)

    def tokens(self) -> list[int]:
        """Ids of all tokens that there are, the special ones too."""
        return sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """The text of all `ids`; special tokens are left out, or spelled."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special))


def _one_of(names: Iterable[str]) -> str:
    """A pattern of the longest of some names, tried letter by letter: there are 1000."""
    by_first: dict[str, list[str]] = {}
    for name in names:
        by_first.setdefault(name[:1], []).append(name[1:])
    may_end = by_first.pop("", None) is not None
    each = [re.escape(first) + _one_of(rest) for first, rest in by_first.items()]
    if not each:
        return ""
    return f"(?:{'|'.join(each)}){'?' if may_end else ''}"


def _alone(token: tokenizers.AddedToken) -> str:
    """A pattern of where the tokenizer finds an added token; its name if that is anywhere."""
    if not (token.single_word or token.lstrip or token.rstrip):
        return str(token.content)
    name = re.escape(token.content)
    if token.single_word:
        name = rf"(?<!\w){name}(?!\w)"
    before, after = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
    return f"{before}{name}{after}"


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
