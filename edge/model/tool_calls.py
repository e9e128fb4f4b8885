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
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>\s*", re.DOTALL)


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
    properties = (tool["function"].get("parameters") or {}).get("properties")
    found = properties if isinstance(properties, Mapping) else {}
    return {key: one if isinstance(one, Mapping) else {} for key, one in found.items()}


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
    rules = ["start: call", "TEXT: /[^<\\n]+/"]
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
    if not _is_text(schema):
        compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
        value = f"%json {json.dumps(compact)}"
    elif isinstance(schema.get("enum"), list):
        value = "(" + " | ".join(_literal(choice) for choice in schema["enum"]) + ")"
    else:
        value = "TEXT"
    before, after = _literal(f"<parameter={key}>\n"), _literal("\n</parameter>\n")
    return f"{before} {value} {after}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
