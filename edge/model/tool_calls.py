"""Tool calls as the model writes them, and the grammar of writing one.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Source: the published chat template; vLLM 0.33 `qwen3_coder` tool parser, which serves this model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.model.grammars import MAX_GRAMMAR_BYTES
from edge.model.tokenizer import TOOL_CALL, TOOL_CALL_END
from edge.model.typed import ANYTHING, NOTHING, NULL, TEXT, Option, options_of, read_as

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_FUNCTION_END = re.compile(r"</function>\s*\Z")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_TAG = re.compile(r"(?:(?<=\n)|(?<=>)|^)<parameter=(?P<name>[^>\n]+)>|</parameter>")
_TEXT = r"([^<]|<+[^<\/]|<+\/[^<p])*\n<\/parameter>\n"
"""Any text in which nothing looks like its end, and its end."""

DEFINITIONS = ("$defs", "definitions")


def parse_tool_call(
    text: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, dict[str, Any]] | None:
    """Read a proposed call. Closing tags may have been left out, and be part of a text.

    Args:
        text: what stands between <tool_call> and </tool_call>.
        tools: what may be called, as OpenAI describes functions.
    Returns:
        Name and arguments; None if it is no call of one of the tools.
    """
    call = _Call.begin(text, tools)
    if call is None or not call.read():
        return None
    return call.name, call.arguments


def is_closed(text: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call has its end: what looks like it may be part of a text."""
    call = _Call.begin(text, tools)
    return call is None or (call.read() and call.is_sure and call.has_end)


def begun_tool_call(
    text: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, dict[str, Any]] | None:
    """What is certain of a call that was cut.

    Returns:
        Name and the arguments that are complete; None if it is no call of one of the tools, or its
        name is not complete.
    """
    call = _Call.begin(text, tools)
    if call is None:
        return None
    call.read()
    return call.name, call.closed


@dataclass
class _Call:
    """A call that is read, parameter by parameter."""

    text: str
    name: str
    at: int
    """Read so far."""
    whole: Mapping[str, Any]
    """The schema of all parameters."""
    arguments: dict[str, Any] = field(default_factory=dict)
    closed: dict[str, Any] = field(default_factory=dict)
    """Those that have their end."""
    is_sure: bool = True
    """No closing tag was left out so far."""
    has_end: bool = False

    @classmethod
    def begin(cls, text: str, tools: Sequence[Mapping[str, Any]]) -> _Call | None:
        found = _FUNCTION.match(text)
        schemas = {tool["function"]["name"]: _whole(tool) for tool in tools}
        if found is None or found[1] not in schemas:
            return None
        return cls(text, found[1], found.end(), schemas[found[1]])

    def read(self) -> bool:
        """Whether all of it is a call."""
        end = _FUNCTION_END.search(self.text, self.at)
        self.has_end = end is not None
        n = len(self.text.rstrip()) if end is None else end.start()
        while self.text[self.at : n].strip():
            parameter = _PARAMETER.match(self.text, self.at, n)
            if parameter is None:
                return False
            self._parameter(parameter[1], parameter.end(), n)
        return True

    def _parameter(self, key: str, start: int, n: int) -> None:
        properties = _properties(self.whole)
        end, self.at, is_closed = self._end(start, n, {*self.arguments, key})
        written = self.text[start:end].removeprefix("\n").removesuffix("\n")
        self.arguments[key] = read_as(written, properties.get(key, {}), self.whole)
        self.is_sure &= is_closed
        if self.is_sure:
            self.closed[key] = self.arguments[key]

    def _end(self, start: int, n: int, seen: set[str]) -> tuple[int, int, bool]:
        """Where a value ends, where the next thing begins, and whether that is sure.

        A call within a text has tags of its own, in pairs. Where there is no end beyond those, a
        closing tag was left out, or one of the text's tags has no partner.
        """
        tags = [*_TAG.finditer(self.text, start, n)]
        n_open = 0
        for tag in tags:
            if tag["name"]:
                n_open += 1
            elif n_open:
                n_open -= 1
            elif self._goes_on(tag.end(), n, seen):
                return tag.start(), tag.end(), True
        properties = _properties(self.whole)
        for tag in tags:
            if not tag["name"] and self._goes_on(tag.end(), n, seen):
                return tag.start(), tag.end(), False
            is_next = tag["name"] in properties and tag["name"] not in seen
            if is_next and self.text[start : tag.start()].strip():
                return tag.start(), tag.start(), False
        return n, n, False

    def _goes_on(self, at: int, n: int, seen: set[str]) -> bool:
        """Whether nothing stands behind a closing tag, or another parameter."""
        if not self.text[at:n].strip():
            return True
        found = _PARAMETER.match(self.text, at, n)
        if found is None or found[1] in seen:
            return False
        is_open = self.whole.get("additionalProperties") is not False
        return found[1] in _properties(self.whole) or is_open


def _whole(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's parameters; clients write anything here."""
    whole = tool["function"].get("parameters")
    return whole if isinstance(whole, Mapping) else {}


def _properties(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameter -> its schema."""
    properties = whole.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def tool_call_lark(tools: Sequence[Mapping[str, Any]]) -> str:
    """A Lark grammar, as llguidance reads it, of exactly one call of one of the tools.

    Required parameters come in the order of the schema, all others may be left out. What it allows
    `parse_tool_call` reads as what the schema admits. Definitions are in it for each parameter: one
    that is too long anyway is left as it is by then.
    """
    n_characters = 0
    rules = ["start: call", f"TEXT: /{_TEXT}/"]
    calls = []
    for n, tool in enumerate(tools):
        name, whole = tool["function"]["name"], _whole(tool)
        required = whole.get("required")
        required = required if isinstance(required, list) else []
        parts = [_quoted(f"\n<function={name}>\n")]
        for k, (key, schema) in enumerate(_properties(whole).items()):
            rules.append(f"p{n}_{k}: {_parameter(key, schema, whole)}")
            n_characters += len(rules[-1])
            if n_characters > MAX_GRAMMAR_BYTES:
                return "\n".join(rules)
            parts.append(f"p{n}_{k}" if key in required else f"p{n}_{k}?")
        parts.append(_quoted("</function>\n"))
        rules.append(f"c{n}: {TOOL_CALL} {' '.join(parts)} {TOOL_CALL_END}")
        calls.append(f"c{n}")
    rules.append(f"call: {' | '.join(calls)}")
    return "\n".join(rules)


def _parameter(key: str, schema: Any, whole: Mapping[str, Any]) -> str:
    before, after = _quoted(f"<parameter={key}>\n"), _quoted("\n</parameter>\n")
    options = options_of(schema, whole)
    if any(one.only is NOTHING and _is_text(one) for one in options):
        return f"{before} TEXT"
    return f"{before} ({' | '.join(_written(one, whole) for one in options)}) {after}"


def _is_text(option: Option) -> bool:
    """Whether any text is a value of it; what it refers to is missing where it still does."""
    return option.kind == TEXT or (option.kind == ANYTHING and "$ref" not in option.schema)


def _written(option: Option, whole: Mapping[str, Any]) -> str:
    """A value as `read_as` reads it."""
    if option.kind == NULL:
        return _quoted("null")
    if option.kind == TEXT:
        return _quoted(option.only)
    definitions = {name: whole[name] for name in DEFINITIONS if name in whole}
    compact = {**option.schema, **definitions, "x-guidance": {"whitespace_flexible": False}}
    return f"%json {json.dumps(compact)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
