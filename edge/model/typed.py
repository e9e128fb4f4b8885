"""What a text says to somebody who expects a value of a JSON Schema.

The family's templates write texts as they are, mappings and lists as JSON, and all else as Python
does: `True`, `None`. So does the model. The schema says which of these a text is.

Source: vLLM's `qwen3_coder` tool parser, and `coerce_to_schema_type` of its tool_parsers/utils.py.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

MAX_DEPTH = 64
"""Of a value: a client's own JSON reader may bear no more."""
MAX_LITERAL_CHARACTERS = 1 << 16
"""Of a value in Python's notation; JSON may be longer."""
MAX_PARTS = 256
"""Of a schema: references may lead in circles."""
TEXT, ANYTHING, NULL = "string", "anything", "null"
NULLS = ("null", "None")

_KINDS = {
    TEXT: r"str\w*|text|varchar|char|enum",
    "integer": r"u?int\w*|long|short|unsigned",
    "number": r"num\w*|float\w*|double",
    "boolean": r"bool\w*|binary",
    "object": r"object|dict\w*",
    "array": r"arr\w*|list\w*|sequence|tuple",
    NULL: r"null|none",
}
"""As JSON Schema names them, and as clients do."""
_SAID_BY = {
    "object": ("properties", "additionalProperties", "patternProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    TEXT: ("pattern", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""Without a type: what is only said of values of a kind."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class _Nothing:
    """No value: None is one."""


NOTHING = _Nothing()


@dataclass(frozen=True, slots=True)
class Option:
    """One kind of value that a schema admits."""

    kind: str
    """TEXT, integer, number, boolean, object, array, NULL or ANYTHING."""
    schema: Mapping[str, Any]
    """Which of them."""
    only: Any = NOTHING
    """The one value, if there is one."""


def options_of(schema: Any, whole: Mapping[str, Any]) -> list[Option]:
    """What a schema admits, in its own order but null first; constraints of a kind are not read.

    Args:
        schema: of any form, as clients write it.
        whole: what its references point into.
    """
    found = list(_options(schema, whole, [MAX_PARTS]))
    found.sort(key=lambda option: option.kind != NULL)
    return found or [Option(ANYTHING, {})]


def _options(schema: Any, whole: Mapping[str, Any], left: list[int]) -> Iterator[Option]:
    left[0] -= 1
    if not isinstance(schema, Mapping) or left[0] < 0:
        yield Option(ANYTHING, {})
        return
    referred = _referred(schema, whole)
    if referred is not None:
        own = {key: one for key, one in schema.items() if key != "$ref"}
        yield from _options({**referred, **own}, whole, left)
        return
    if "$ref" in schema:
        yield Option(ANYTHING, schema)
        return
    if schema.get("nullable") is True:
        yield Option(NULL, {"type": NULL})
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        for value in values:
            yield Option(kind_of(value), {"const": value}, value)
        return
    if isinstance(schema.get("allOf"), list):
        rest = {key: one for key, one in schema.items() if key not in ("allOf", "nullable")}
        for option in _all_of([rest, *schema["allOf"]], whole, left):
            is_one = option.only is not NOTHING
            yield option if is_one else replace(option, schema={**schema, "type": option.kind})
        return
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            rest = {key: one for key, one in schema.items() if key not in (name, "nullable")}
            for part in schema[name]:
                both = {**rest, **part} if isinstance(part, Mapping) else part
                yield from _options(both, whole, left)
            return
    for kind in _kinds(schema):
        yield Option(kind, {**schema, "type": kind} if kind != ANYTHING else schema)


def _all_of(parts: list[Any], whole: Mapping[str, Any], left: list[int]) -> list[Option]:
    """What the most telling part admits."""

    def telling(options: list[Option]) -> int:
        return sum(1 + (one.only is NOTHING) + 2 * (one.kind == ANYTHING) for one in options)

    each = [list(_options(part, whole, left)) for part in parts]
    told = [one for one in each if any(option.kind != ANYTHING for option in one)]
    named = [one for one in told if all(option.only is not NOTHING for option in one)]
    return min(named or told or [[Option(ANYTHING, {})]], key=telling)


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    said = schema.get("type")
    names = said if isinstance(said, list) else [said]
    kinds = [
        kind
        for name in names
        if isinstance(name, str)
        for kind, pattern in _KINDS.items()
        if re.fullmatch(pattern, name.strip(), re.IGNORECASE)
    ]
    kinds = kinds or [kind for kind, keys in _SAID_BY.items() if any(k in schema for k in keys)]
    return [*dict.fromkeys(kinds)] or [ANYTHING]


def _referred(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a schema refers to, if it does and that is here."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = whole
    for name in reference[2:].split("/"):
        name = name.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


def kind_of(value: Any) -> str:
    """Of a JSON value."""
    kinds: dict[type, str] = {
        str: TEXT,
        bool: "boolean",
        int: "integer",
        float: "number",
        dict: "object",
        list: "array",
    }
    return kinds.get(type(value), NULL)


def read_as(text: str, schema: Any, whole: Mapping[str, Any]) -> Any:
    """The value that a text stands for.

    Args:
        schema: what is expected.
        whole: what its references point into.
    Returns:
        A JSON value: the first kind decides that the text can be of, as the schema has them. What
        is of none is the text, or what it would be if nothing was expected.
    """
    options = options_of(schema, whole)
    for option in options:
        found = _read(text, option)
        if found is not NOTHING:
            return found
    if any(option.kind == TEXT for option in options):
        return text
    if [option.kind for option in options] == ["boolean"] and text.strip() in ("0", "1"):
        return text.strip() == "1"
    return _anything(text)


def _read(text: str, option: Option) -> Any:
    if option.only is not NOTHING:
        same = _of_kind(text, option.kind)
        return option.only if same == option.only and same is not NOTHING else NOTHING
    return _of_kind(text, option.kind)


def _of_kind(text: str, kind: str) -> Any:
    if kind == TEXT:
        return text
    if kind == ANYTHING:
        return _anything(text)
    written = text.strip()
    if kind == NULL:
        return None if written in NULLS else NOTHING
    if kind == "boolean":
        return {"true": True, "false": False}.get(written.lower(), NOTHING)
    if kind in ("integer", "number"):
        return _number(written, whole=kind == "integer")
    found = _literal(written)
    if isinstance(found, str):  # a model may write JSON within JSON
        found = _literal(found)
    return found if kind_of(found) == kind and found is not NOTHING else NOTHING


def _number(written: str, *, whole: bool) -> Any:
    if not _NUMBER.fullmatch(written):
        return NOTHING
    try:
        return int(written)
    except ValueError:  # also one of thousands of digits
        value = float(written)
    if not math.isfinite(value) or (whole and not value.is_integer()):
        return NOTHING
    return int(value) if whole else value


def _anything(text: str) -> Any:
    """The template quotes no text, so what is quoted is a text with quotes."""
    found = _literal(text.strip())
    return text if found is NOTHING or isinstance(found, str) else found


def _literal(written: str) -> Any:
    """A JSON value in JSON's notation or in Python's."""
    try:
        found = json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError):
        if not written.startswith(("[", "{", "(")) or len(written) > MAX_LITERAL_CHARACTERS:
            return {"None": None, "True": True, "False": False}.get(written, NOTHING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes
                found = ast.literal_eval(written)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return NOTHING
    try:
        found = _plain(found, MAX_DEPTH)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return NOTHING
    return found


def _refuse(name: str) -> None:
    raise ValueError(name)


def _plain(value: Any, depth: int) -> Any:
    """Of JSON's kinds only.

    Raises:
        ValueError: it is not, or too deep.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(value, dict):
        return {_key(key): _plain(one, depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value]
    raise ValueError(f"a {type(value).__name__}")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    raise ValueError(f"a key that is a {type(key).__name__}")
