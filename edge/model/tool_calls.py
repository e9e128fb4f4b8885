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
from typing import Any

from edge.model.tokenizer import TOOL_CALL, TOOL_CALL_END

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)</function>\s*", re.DOTALL)
_TEXT = r"([^<]|<+[^<\/]|<+\/[^<p])*\n<\/parameter>\n"
"""Any text in which nothing looks like its end, and its end."""
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>\s*", re.DOTALL)

DEFINITIONS = ("$defs", "definitions")
MAX_REFERENCES = 8
"""From one to the next; a circle ends there, and cannot be followed."""


def parse_tool_call(
    text: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, dict[str, Any]] | None:
    """Read a proposed call.

    Args:
        text: what stands between <tool_call> and </tool_call>.
        tools: what may be called, as OpenAI describes functions.
    Returns:
        Name and arguments; None if it is no call of one of the tools.
    """
    found = _FUNCTION.fullmatch(text)
    schemas = {tool["function"]["name"]: _parameters(tool) for tool in tools}
    if found is None or found[1] not in schemas:
        return None
    arguments: dict[str, Any] = {}
    at = 0
    while at < len(found[2].rstrip()):
        parameter = _PARAMETER.match(found[2], at)
        if parameter is None:
            return None
        key = parameter[1]
        arguments[key] = _value(parameter[2], schemas[found[1]].get(key, {}))
        at = parameter.end()
    return found[1], arguments


def _parameters(tool: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Parameter -> its schema; what is no schema says nothing. Clients write anything here."""
    whole = tool["function"].get("parameters")
    whole = whole if isinstance(whole, Mapping) else {}
    properties = whole.get("properties")
    found = properties if isinstance(properties, Mapping) else {}
    return {
        key: _alone(one, whole) if isinstance(one, Mapping) else {} for key, one in found.items()
    }


def _alone(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a schema, so that it can be read without the whole that it may refer to."""
    for _ in range(MAX_REFERENCES):
        found = _referred(schema, whole)
        if found is None:
            break
        schema = {**found, **{key: one for key, one in schema.items() if key != "$ref"}}
    if '"$ref"' not in json.dumps(schema):
        return schema
    return {**schema, **{name: whole[name] for name in DEFINITIONS if name in whole}}


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


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """Only a parameter that may be a string is taken as it is written."""
    written = text.removeprefix("\n").removesuffix("\n")
    if _is_text(schema):
        return written
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written


def _is_text(schema: Mapping[str, Any]) -> bool:
    choices = schema.get("enum")
    if isinstance(choices, list):
        return all(isinstance(value, str) for value in choices)
    kind = schema.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def tool_call_lark(tools: Sequence[Mapping[str, Any]]) -> str:
    """A Lark grammar, as llguidance reads it, of exactly one call of one of the tools.

    Required parameters come in the order of the schema, all others may be left out.
    """
    rules = ["start: call", f"TEXT: /{_TEXT}/"]
    calls = []
    for n, tool in enumerate(tools):
        name, schema = tool["function"]["name"], tool["function"].get("parameters") or {}
        required = schema.get("required")
        required = required if isinstance(required, list) else []
        parts = [_literal(f"\n<function={name}>\n")]
        for k, (key, value) in enumerate(_parameters(tool).items()):
            rules.append(f"p{n}_{k}: {_parameter(key, value)}")
            parts.append(f"p{n}_{k}" if key in required else f"p{n}_{k}?")
        parts.append(_literal("</function>\n"))
        rules.append(f"c{n}: {TOOL_CALL} {' '.join(parts)} {TOOL_CALL_END}")
        calls.append(f"c{n}")
    rules.append(f"call: {' | '.join(calls)}")
    return "\n".join(rules)


def _parameter(key: str, schema: Mapping[str, Any]) -> str:
    before, after = _literal(f"<parameter={key}>\n"), _literal("\n</parameter>\n")
    if not _is_text(schema):
        compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
        return f"{before} %json {json.dumps(compact)} {after}"
    if isinstance(schema.get("enum"), list):
        return f"{before} ({' | '.join(map(_literal, schema['enum']))}) {after}"
    return f"{before} TEXT"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
