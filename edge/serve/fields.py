"""What becomes of each field that a client may send: one policy for every request.

    honoured   it does what its protocol says
    ignored    it cannot change the answer; the reply says that it was ignored
    refused    it would change the answer, and is not done here: an error names it, unless its value
               asks for nothing (`frequency_penalty: 0`)

The types of a request say it themselves: a field is honoured unless it is marked by `ignored` or
`unless`. docs/fields.md is made of them. Fields that no type knows are ignored, so that tomorrow's
clients are served; only within `edge`, which is ours, they are refused. null asks for nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from edge.errors import ProtocolError

log = logging.getLogger(__name__)

T = TypeVar("T")
MISSING = "missing_required_parameter"
"""OpenAI's code for it."""
HEADER = "X-Edge-Ignored"
"""Of a reply: the fields that had no effect."""
POLICY = "x-edge-policy"
"""In a JSON Schema: what becomes of a field that is not honoured."""
MAX_TOLD = 16
"""Of them are named to a client; and so long is a name at most, times four."""
MAX_LOGGED = 256
"""Of their names are in the log, each once."""
_logged: set[str] = set()
MAX_DEPTH = 64
"""Of lists and objects in one another, the outermost too: a schema of 28 levels in a tool."""


_types: dict[type, inspect.Type] = {}


def _described(kind: type) -> inspect.Type:
    if kind not in _types:
        _types[kind] = inspect.type_info(kind)
    return _types[kind]


def told_of(what: str) -> Meta:
    """Says more about a field that is honoured, in docs/fields.md."""
    return Meta(description=what)


def ignored(why: str) -> Meta:
    """Marks a field that cannot change an answer.

    Args:
        why: it cannot, as a sentence for docs/fields.md.
    """
    return Meta(description=why, extra_json_schema={POLICY: "ignored"}, extra={"policy": "ignored"})


def unless(*neutral: object, why: str) -> Meta:
    """Marks a field that would change an answer, and is refused.

    Args:
        neutral: values that ask for nothing, besides null.
        why: it is refused, as a sentence for docs/fields.md.
    """
    # As JSON: equal annotations are one to typing, and False equals 0.
    return Meta(
        description=why,
        extra_json_schema={POLICY: "refused", "enum": [None, *neutral]},
        extra={"policy": "refused", "neutral": [*map(json.dumps, neutral)]},
    )


def read(body: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """Read the body of a request.

    Args:
        body: JSON.
        kind: a struct.

    Returns:
        What it says, and the fields in it that have no effect, each once: `messages[].name`.
    Raises:
        ProtocolError: it is no JSON, or a field of it cannot be served; the error's thing is the
            field.
    """
    return settle(decoded(body), kind)


def decoded(text: bytes | str, thing: str = "body") -> object:
    """What JSON says.

    Args:
        thing: what the text is, for errors.
    Raises:
        ProtocolError: it is none, or nested too deeply.
    """
    try:
        with bounded(thing):
            value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        problem = f"is not JSON ({error})"
        raise ProtocolError(thing, problem, "send a JSON object", code="invalid_json") from error
    return flat(value, thing)


@contextlib.contextmanager
def bounded(thing: str) -> Iterator[None]:
    """A reader's own bound of depth, which depends on the thread and on who called, is ours."""
    try:
        yield
    except RecursionError:
        raise _too_deep(thing) from None


def flat(value: T, thing: str) -> T:
    """The value, if it is not nested too deeply for whatever reads it afterwards.

    Raises:
        ProtocolError: it is.
    """
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not level:
            return value
    raise _too_deep(thing)


def _too_deep(thing: str) -> ProtocolError:
    return ProtocolError(
        thing, f"is nested more than {MAX_DEPTH} levels deep", "send a flatter one"
    )


def settle(value: object, kind: type[T]) -> tuple[T, list[str]]:
    """`read` of what JSON says."""
    try:
        read = msgspec.convert(value, kind)  # first: a crowd of wrong items is refused at once
        return read, [*dict.fromkeys(_unheard(value, _described(kind), ""))]
    except msgspec.ValidationError as error:
        raise _wrong_field(error, kind) from error


def told(unheard: list[str]) -> dict[str, str]:
    """The header that says so, if there is anything to say; the log says it once."""
    if not unheard:
        return {}
    fields = [re.sub(r"[^\w.\[\]-]", "?", name, flags=re.ASCII)[: 4 * MAX_TOLD] for name in unheard]
    for name in fields:
        if name not in _logged and len(_logged) < MAX_LOGGED:
            _logged.add(name)
            log.info("request=field_ignored field=%s", name)
    more = ["..."] if len(fields) > MAX_TOLD else []
    return {HEADER: ", ".join([*fields[:MAX_TOLD], *more])}


def _unheard(value: object, kind: inspect.Type, path: str) -> Iterator[str]:
    """Fields without effect, in all that the type knows.

    Raises:
        ProtocolError: a field is refused.
    """
    if isinstance(kind, inspect.Metadata):
        yield from _unheard(value, kind.type, path)
    elif isinstance(value, list):
        lists = [one for one in _kinds(kind) if isinstance(one, inspect.ListType)]
        for k, item in enumerate(value):
            for one in lists if isinstance(item, dict | list) else ():
                yield from _unheard(item, one.item_type, f"{path}[{k}]")
    elif isinstance(value, dict) and (struct := _struct_of(value, kind)) is not None:
        known = {field.encode_name: field.type for field in struct.fields}
        for name, item in value.items():
            place = f"{path}.{name}".lstrip(".")
            if name == struct.tag_field or item is None:
                continue
            empty = item in ("", [], {})
            if name not in known:
                if not struct.forbid_unknown_fields and not empty:
                    yield _collapsed(place)
                continue
            marks = _marks(known[name])
            if marks.get("policy") == "ignored":
                if not empty:
                    yield _collapsed(place)
            elif marks.get("policy") == "refused":
                _refuse_unless(item, marks["neutral"], place, _why(known[name]))
            else:
                yield from _unheard(item, known[name], place)


def _kinds(kind: inspect.Type) -> list[inspect.Type]:
    """The types of a union, without what is said about them."""
    if isinstance(kind, inspect.StructType):
        return [kind]
    if isinstance(kind, inspect.Metadata):
        return _kinds(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [one for part in kind.types for one in _kinds(part)]
    return [kind]


def _struct_of(value: dict[str, Any], kind: inspect.Type) -> inspect.StructType | None:
    """The struct that an object is meant to be."""
    for one in _kinds(kind):
        if isinstance(one, inspect.StructType) and (
            one.tag_field is None or value.get(one.tag_field) == one.tag
        ):
            return one
    return None


def _marks(kind: inspect.Type) -> dict[str, Any]:
    found = kind.extra if isinstance(kind, inspect.Metadata) else None
    return found or {}


def _why(kind: inspect.Type) -> str:
    told = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    return str((told or {}).get("description", ""))


def _refuse_unless(value: object, neutral: list[str], place: str, why: str) -> None:
    for one in map(json.loads, neutral):
        if value == one and isinstance(value, bool) == isinstance(one, bool):
            return
    shown = json.dumps(value, ensure_ascii=False)[:40]
    others = f", or send {neutral[0]}" if neutral else ""
    code = "unsupported_value" if neutral else "unsupported_parameter"
    raise ProtocolError(place, f"is {shown}: {why.rstrip('.')}", f"leave it out{others}", code=code)


def _collapsed(place: str) -> str:
    return re.sub(r"\[\d+\]", "[]", place)


def _wrong_field(error: msgspec.ValidationError, whole: type) -> ProtocolError:
    """msgspec's `problem - at `$.path``, as our error."""
    problem, _, path = str(error).partition(" - at `")
    path = path.removeprefix("key` in `").removeprefix("$")
    place = path.removesuffix("`")
    named = re.fullmatch(r"Object (contains|missing) \w+ field `(.*)`", problem, re.DOTALL)
    if named:
        name = f"{place}.{named[2]}".lstrip(".")
        if named[1] == "missing":
            return ProtocolError(name, "is missing", "send it", MISSING)
        return ProtocolError(name, "is not a known field", "leave it out", code="unknown_parameter")
    code = "invalid_type" if problem.startswith("Expected `") and ", got `" in problem else None
    choices = _choices(whole, place) if problem.startswith("Invalid ") else []
    return ProtocolError(
        place.lstrip(".") or "body",
        problem[0].lower() + problem[1:],
        f"send one of {choices}" if choices else "correct the field",
        code=code or "invalid_value",
    )


def _choices(whole: type, place: str) -> list[str]:
    """What a text may be at a place where it may not be any."""
    kinds = _kinds(_described(whole))
    for step in re.findall(r"[^.\[\]]+", place):
        inner: list[inspect.Type] = []
        for one in kinds:
            if isinstance(one, inspect.ListType):
                inner.append(one.item_type)
            elif isinstance(one, inspect.StructType):
                inner += [field.type for field in one.fields if field.encode_name == step]
                if one.tag_field == step:
                    inner.append(inspect.LiteralType((one.tag,)))
        kinds = [one for part in inner for one in _kinds(part)]
    values = [one.values for one in kinds if isinstance(one, inspect.LiteralType)]
    return [*dict.fromkeys(value for some in values for value in some if isinstance(value, str))]


def table(kind: type, without: type | None = None) -> str:
    """What becomes of every field that a request's type knows, as Markdown.

    Args:
        without: a type whose fields have a table of their own.
    """
    lines = ["| field | | asks for nothing | |", "|---|---|---|---|"]
    elsewhere = set() if without is None else {*_rows(_described(without), "", frozenset())}
    for path, policy, neutral, why in _rows(_described(kind), "", frozenset()):
        if (path, policy, neutral, why) in elsewhere:
            continue
        lines.append(f"| `{path}` | {policy} | {neutral and f'`{neutral}`'} | {why} |")
    return "\n".join(lines) + "\n"


def _rows(
    kind: inspect.Type, path: str, above: frozenset[type]
) -> Iterator[tuple[str, str, str, str]]:
    """Of each field its path, what becomes of it, values that ask for nothing, as JSON, and why."""
    kinds = _kinds(kind)
    for one in kinds:
        if isinstance(one, inspect.ListType):
            yield from _rows(one.item_type, f"{path}[]", above)
        if not isinstance(one, inspect.StructType) or one.cls in above:
            continue
        n_structs = sum(isinstance(other, inspect.StructType) for other in kinds)
        here = f"{path}<{one.tag}>" if n_structs > 1 and one.tag is not None else path
        for field in one.fields:
            place = f"{here}.{field.encode_name}".lstrip(".")
            marks = _marks(field.type)
            neutral = ", ".join(marks.get("neutral", ()))
            yield place, marks.get("policy", "honoured"), neutral, _why(field.type)
            yield from _rows(field.type, place, above | {one.cls})
