"""Constrained answers: which tokens a grammar allows next, as a mask on the logits.

A grammar is a text that llguidance compiles; `grammar_of_*` make one. It says what the whole answer
looks like; thinking before it is free. Where an abstention is given, that literal text is allowed
too, whatever else is asked for: a model that cannot know should be able to say so.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import numpy as np

from edge.errors import REPORT, CapacityError, ProtocolError, TurnError
from edge.model.grammar_process import COSTLY, MASK, REFUSED, SPARE_S, TOKEN_S, TOO_COMPLEX
from edge.model.grammars import (
    LIVE_S,
    MAX_GRAMMAR_BYTES,
    Vocabulary,
    lost,
    problem_of,
)
from edge.types import Bool, Float32

TOO_COSTLY = f"it takes more than {SPARE_S:g} s of a core at once or {TOKEN_S:g} s for each token"
SIMPLER = "simplify it: fewer or shorter patterns, alternatives and properties, lower bounds"
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}
_BEFORE_ABSTENTION = '"whitespace_flexible": false}} | '
FRAME_FORMAT = "edge.frame"
"""The `format` of a string in a schema that names a perceived frame: `camera:123`."""
_OPEN = json.dumps("[[edge.frame]]")
"""Stands in a grammar for the names of the frames."""


def grammar_of_schema(
    schema: Mapping[str, Any], abstention: str | None = None, *, check: bool = True
) -> str:
    """JSON that a schema allows, without white space; the abstention is a JSON string.

    Where the schema has a string of FRAME_FORMAT, `fill_frames` says which ones there are. An
    object whose schema leaves open what else it may have has nothing else: see `_closed`.

    Raises:
        ProtocolError: the schema cannot be followed.
    """
    _check_size("json_schema", schema)
    lark = f"start: answer\nanswer: %json {json.dumps({**_opened(_closed(schema)), **_COMPACT})}"
    if abstention is not None:
        lark += f" | {_literal(json.dumps(abstention, ensure_ascii=False))}"
    return grammar_of_lark("json_schema", lark, check=check)


def _check_size(name: str, schema: Any) -> None:
    """Refuse a schema before its grammar is made, if that would be too long."""
    level, n_characters = [schema], 0
    while level:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Mapping):
                n_characters += sum(map(len, one))
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            n_characters += 1 + (len(one) if isinstance(one, str) else 0)
        if n_characters > MAX_GRAMMAR_BYTES:
            raise _too_long(name)
        level = inner


def _too_long(name: str) -> ProtocolError:
    problem = f"makes a grammar of more than {MAX_GRAMMAR_BYTES} bytes"
    return ProtocolError(name, problem, SIMPLER)


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
        CapacityError: an answer must name a frame, there is none, and it may not abstain; or that
            cannot be found out now.
    """
    filled = grammar.replace(_OPEN, ", ".join(map(json.dumps, frames)))
    if frames or not problem_of(filled, answering=True):
        return filled
    _, may_abstain, abstention = grammar.partition(_BEFORE_ABSTENTION)
    if may_abstain:
        return f"start: {abstention}"
    problem = "must be named in the answer, and the context has none"
    raise CapacityError("frame", problem, "ask again later, or allow the answer to abstain")


def grammar_of_choice(
    choices: Sequence[str], abstention: str | None = None, *, check: bool = True
) -> str:
    """One of some texts.

    Raises:
        ProtocolError: there is none, or one is empty.
    """
    if not choices or not all(choices):
        raise ProtocolError("choice", f"is {list(choices)}", "give texts to choose from")
    texts = [*choices] if abstention is None else [*choices, abstention]
    return grammar_of_lark("choice", f"start: {' | '.join(map(_literal, texts))}", check=check)


def grammar_of_regex(pattern: str, abstention: str | None = None, *, check: bool = True) -> str:
    """Text that a regular expression matches as a whole, in Rust's syntax without look-around.

    Raises:
        ProtocolError: the expression cannot be followed.
    """
    if abstention is not None:
        pattern = f"(?:{pattern})|{re.escape(abstention)}"
    return _checked("regex", llguidance.LLMatcher.grammar_from_regex(pattern), check)


def grammar_of_lark(name: str, lark: str, *, check: bool = True) -> str:
    """What a Lark grammar, as llguidance reads it, allows.

    Args:
        name: of what was asked for, in an error.
        check: whether to find out, within `grammars.CHECK_S`, that it can be followed; one that
            was not checked fails the turn instead.
    Raises:
        ProtocolError: the grammar cannot be followed.
        CapacityError, UncheckedError: that cannot be found out here and now.
    """
    return _checked(name, llguidance.LLMatcher.grammar_from_lark(lark), check)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _checked(name: str, grammar: str, check: bool) -> str:
    if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise _too_long(name)
    problem = problem_of(grammar) if check else ""
    if problem:
        raise ProtocolError(name, f"cannot be followed ({_one_line(problem)})", SIMPLER)
    return grammar


class Constraint:
    """Follows one answer through its grammar, in a process of its own.

    The next mask is made there while the model computes the next logits.
    """

    def __init__(self, tokens: Vocabulary, grammar: str) -> None:
        """Have the grammar compiled; nothing is waited for.

        Raises:
            CapacityError: there can be no process for it now.
        """
        self._line, self._grammar = tokens.follow(grammar)
        self._patience_s, self._is_live = tokens.patience_s, tokens.patience_s <= LIVE_S
        self._n_masks = 1
        """That are to come."""
        self._asked_s = time.monotonic()
        """For the last of them."""
        self._allowed: Bool = np.empty(0, np.bool_)

    def is_late(self, within_s: float = 0.0) -> bool:
        """Whether the next mask is to come and others need not wait for it; never in a replay.

        Args:
            within_s: look for so long.
        """
        if not self._is_live or not self._n_masks or self._line.closed:
            return False
        return not self._line.poll(within_s)

    @property
    def is_overdue(self) -> bool:
        """Whether the mask that is late has been waited for long enough."""
        return time.monotonic() - self._asked_s > self._patience_s

    def allow(self, logits: Float32) -> Float32:
        """The logits with -inf for every token that may not come next.

        Args:
            logits: shape (vocabulary,), float32; left as they are.
        Raises:
            ProtocolError: the grammar cannot be followed, or is too costly to go on with.
            CapacityError: its process says nothing for too long, or was ended.
            TurnError: a token was taken that was not allowed.
        """
        until_s = time.monotonic() + self._patience_s
        while self._n_masks:
            self._allowed = self._next_mask(len(logits), until_s)
            self._n_masks -= 1
        return np.where(self._allowed, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """The answer goes on with `token`, which was allowed: else the next `allow` says so."""
        self._n_masks, self._asked_s = self._n_masks + 1, time.monotonic()
        with contextlib.suppress(OSError):  # it has ended: `allow` says why
            self._line.send_bytes(token.to_bytes(4, "little"))

    def _next_mask(self, n_vocab: int, until_s: float) -> Bool:
        try:
            if not self._line.poll(max(0.0, until_s - time.monotonic())):
                self._line.close()
                raise never_followed()
            said = self._line.recv_bytes()
        except (EOFError, OSError):
            said = b""
        if (kind := said[:1]) == MASK:
            bits = np.frombuffer(said, np.uint8, offset=1)
            return np.unpackbits(bits, count=n_vocab, bitorder="little").view(np.bool_)
        self._line.close()
        if kind == REFUSED:
            problem = f"refuses a token that it allowed ({_one_line(said[1:].decode())})"
            raise TurnError("constraint", problem, REPORT)
        if kind == TOO_COMPLEX:
            problem = said[1:].decode()
        else:
            problem = TOO_COSTLY if kind == COSTLY else self._grammar.wait() or ""
        if not problem:
            raise lost()
        raise ProtocolError(
            "grammar", f"cannot be followed further ({_one_line(problem)})", SIMPLER
        )


def never_followed() -> CapacityError:
    """The next mask does not come."""
    return CapacityError("format", "was not followed in time", "ask again later, or simplify it")


def _one_line(problem: str) -> str:
    return " ".join(problem.split()).replace(";", ",")[:300]
