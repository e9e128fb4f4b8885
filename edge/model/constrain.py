"""Constrained answers: which tokens a grammar allows next, as a mask on the logits.

A grammar is a text that llguidance compiles; `grammar_of_*` make one. It says what the whole answer
looks like; thinking before it is free. Where an abstention is given, that literal text is allowed
too, whatever else is asked for: a model that cannot know should be able to say so.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import numpy as np

from edge.errors import REPORT, CapacityError, ProtocolError, TurnError
from edge.model.tokenizer import Tokenizer
from edge.types import Float32

MAX_GRAMMAR_CHARACTERS = 1 << 16
"""Compiling one takes the loop's time: at worst, thousands of properties, 2 s of it."""
MAX_KNOWN_GRAMMARS = 64
"""Of which it is remembered whether they can be followed: a client asks by the same again."""
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}
_BEFORE_ABSTENTION = '"whitespace_flexible": false}} | '
FRAME_FORMAT = "edge.frame"
"""The `format` of a string in a schema that names a perceived frame: `camera:123`."""
_OPEN = json.dumps("[[edge.frame]]")
"""Stands in a grammar for the names of the frames."""


def grammar_of_schema(schema: Mapping[str, Any], abstention: str | None = None) -> str:
    """JSON that a schema allows, without white space; the abstention is a JSON string.

    Where the schema has a string of FRAME_FORMAT, `fill_frames` says which ones there are. An
    object whose schema leaves open what else it may have has nothing else: see `_closed`.

    Raises:
        ProtocolError: the schema cannot be followed.
    """
    lark = f"start: answer\nanswer: %json {json.dumps({**_opened(_closed(schema)), **_COMPACT})}"
    if abstention is not None:
        lark += f" | {_literal(json.dumps(abstention, ensure_ascii=False))}"
    return grammar_of_lark("json_schema", lark)


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without properties that it allows and does not name.

    A model that may make up properties often never ends with it, and whoever wrote a schema's
    properties meant them. xgrammar's strict mode, which vLLM uses, does the same. Schemas that put
    an object together from parts stay as they are: a part does not name the others' properties.
    """
    return schema if _is_composed(schema) else _closed_object(schema)


_PARTS = ("allOf", "not", "if", "then", "else", "dependentSchemas", "dependencies", "$dynamicRef")
_ALTERNATIVES = ("anyOf", "oneOf", "$ref")
_DATA = ("const", "enum", "default", "examples")
_SAID = ("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames")
_NAMED = ("properties", "$defs", "definitions")
"""Keywords whose keys are names, not keywords."""


def _is_composed(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_is_composed, schema))
    if not isinstance(schema, Mapping):
        return False
    if any(word in schema for word in _PARTS):
        return True
    if any(word in schema for word in _ALTERNATIVES) and "properties" in schema:
        return True
    return any(
        any(map(_is_composed, value.values()))
        if name in _NAMED and isinstance(value, Mapping)
        else name not in _DATA and _is_composed(value)
        for name, value in schema.items()
    )


def _closed_object(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed_object(value) for value in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {
        name: {key: _closed_object(part) for key, part in value.items()}
        if name in _NAMED and isinstance(value, Mapping)
        else value
        if name in _DATA
        else _closed_object(value)
        for name, value in schema.items()
    }
    named, least = schema.get("properties"), schema.get("required") or ()
    is_open = isinstance(named, Mapping) and not any(word in schema for word in _SAID)
    if is_open and named and set(least) <= named.keys() and "minProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def _opened(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        if schema.get("format") == FRAME_FORMAT:
            return {"enum": [json.loads(_OPEN)]}
        return {name: _opened(value) for name, value in schema.items()}
    return [_opened(value) for value in schema] if isinstance(schema, list) else schema


def names_frames(grammar: str) -> bool:
    """Whether a grammar is complete only with the names of frames."""
    return _OPEN in grammar


def fill_frames(grammar: str, frames: Sequence[str]) -> str:
    """The grammar with the names of the frames that may be named.

    Args:
        frames: may be empty: then an answer that must name one can only be the abstention.
    Raises:
        CapacityError: an answer must name a frame, there is none, and it may not abstain.
    """
    filled = grammar.replace(_OPEN, ", ".join(map(json.dumps, frames)))
    if frames or not llguidance.LLMatcher.validate_grammar(filled):
        return filled
    _, may_abstain, abstention = grammar.partition(_BEFORE_ABSTENTION)
    if may_abstain:
        return f"start: {abstention}"
    problem = "must be named in the answer, and the context has none"
    raise CapacityError("frame", problem, "ask again later, or allow the answer to abstain")


def grammar_of_choice(choices: Sequence[str], abstention: str | None = None) -> str:
    """One of some texts.

    Raises:
        ProtocolError: there is none, or one is empty.
    """
    if not choices or not all(choices):
        raise ProtocolError("choice", f"is {list(choices)}", "give texts to choose from")
    texts = [*choices] if abstention is None else [*choices, abstention]
    return grammar_of_lark("choice", f"start: {' | '.join(map(_literal, texts))}")


def grammar_of_regex(pattern: str, abstention: str | None = None) -> str:
    """Text that a regular expression matches as a whole, in Rust's syntax without look-around.

    Raises:
        ProtocolError: the expression cannot be followed.
    """
    if abstention is not None:
        pattern = f"(?:{pattern})|{re.escape(abstention)}"
    return _checked("regex", llguidance.LLMatcher.grammar_from_regex(pattern))


def grammar_of_lark(name: str, lark: str) -> str:
    """What a Lark grammar, as llguidance reads it, allows.

    Args:
        name: of what was asked for, in an error.
    Raises:
        ProtocolError: the grammar cannot be followed.
    """
    return _checked(name, llguidance.LLMatcher.grammar_from_lark(lark))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _checked(name: str, grammar: str) -> str:
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        problem = f"is a grammar of {len(grammar)} characters, more than {MAX_GRAMMAR_CHARACTERS}"
        raise ProtocolError(name, problem, "simplify it")
    problem = _problem_of(grammar)
    if problem and not problem.startswith("WARNING"):
        line = " ".join(problem.split()).replace(";", ",")
        raise ProtocolError(name, f"cannot be followed ({line[:300]})", "simplify it")
    return grammar


@functools.lru_cache(maxsize=MAX_KNOWN_GRAMMARS)
def _problem_of(grammar: str) -> str:
    """What llguidance says of a grammar; without the interpreter's lock, for up to 2 s."""
    return str(llguidance.LLMatcher.validate_grammar(grammar))


@functools.lru_cache(maxsize=2)
def vocabulary(
    tokenizer: Tokenizer, n_vocab: int, stop_ids: tuple[int, ...]
) -> llguidance.LLTokenizer:
    """The tokens as llguidance needs them; slow the first time, so call it before the first turn.

    Args:
        n_vocab: logits that the model gives; it may be more than the tokenizer knows.
    """
    known = llguidance.LLTokenizer(tokenizer.as_json(), n_vocab=n_vocab, eos_token=[*stop_ids])
    as_text = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, known))
    return llguidance.LLTokenizer(as_text, n_vocab=n_vocab, eos_token=[*stop_ids])


class _Vocabulary:
    """The same tokens, but what spells a special token in a format is text like any other.

    Where a grammar leaves one continuation, llguidance tokenizes it to find the one token that it
    allows. The checkpoint's tokenizer finds the special token there, which the grammar refuses.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, known: llguidance.LLTokenizer) -> None:
        self.eos_token_id = known.eos_token
        self.tokens = [b""] * known.vocab_size
        for token in tokenizer.tokens():
            self.tokens[token] = known.decode_bytes([token])
        self.special_token_ids = tokenizer.control_tokens.ids
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_as_text(text)


class Constraint:
    """Follows one answer through its grammar."""

    def __init__(self, tokens: llguidance.LLTokenizer, grammar: str) -> None:
        """Compile the grammar.

        Args:
            tokens: what `vocabulary` gave.
        Raises:
            ProtocolError: it cannot be compiled for these tokens.
        """
        self._matcher = llguidance.LLMatcher(tokens, grammar, log_level=0)
        self._n_vocab = tokens.vocab_size
        if self._matcher.is_error():
            _checked("grammar", grammar)
            raise ProtocolError("grammar", self._error(), "simplify it")

    def allow(self, logits: Float32) -> Float32:
        """The logits with -inf for every token that may not come next.

        Args:
            logits: shape (vocabulary,), float32; left as they are.
        Raises:
            ProtocolError: the grammar is too complex to go on with.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ProtocolError("grammar", self._error(), "simplify it")
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").view(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """The answer goes on with `token`, which was allowed.

        Raises:
            TurnError: it was not.
        """
        if not self._matcher.consume_token(token):
            raise TurnError("constraint", f"refuses token {token} that it allowed", REPORT)

    def _error(self) -> str:
        return " ".join(self._matcher.get_error().split()).replace(";", ",")[:300]
