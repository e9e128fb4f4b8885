"""What an answer may be: formats, tools and our own settings, the same for chat and realtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.config import Config
from edge.errors import ProtocolError
from edge.model.constrain import (
    grammar_of_choice,
    grammar_of_lark,
    grammar_of_regex,
    grammar_of_schema,
)
from edge.model.tool_calls import tool_call_lark
from edge.serve.fields import ignored
from edge.serve.protocol import (
    MAX_TOOLS,
    ChoiceFormat,
    EdgeAnswer,
    Json,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
)

ToolName = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$(?!\\n)")]


class ChatFunction(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function as chat completions describe it."""

    name: ToolName
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct, frozen=True):
    """A tool that the model may propose to call."""

    function: ChatFunction
    type: Literal["function"] = "function"
    cache_control: Annotated[Any, ignored("Nothing is cached between requests.")] = None
    defer_loading: Annotated[Any, ignored("All tools stand in the prompt.")] = None

    def described(self) -> dict[str, Any]:
        """As the chat template has it."""
        return {"function": msgspec.to_builtins(self.function), "type": self.type}


class _ToolName(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True, tag="function"):
    """The tool that must be called."""

    function: _ToolName


class _Allowed(msgspec.Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(max_length=MAX_TOOLS)]


class AllowedTools(msgspec.Struct, frozen=True, tag="allowed_tools"):
    """Some of the tools, one of which may or must be called."""

    allowed_tools: _Allowed


ToolChoice = Literal["auto", "none", "required"] | NamedTool | AllowedTools | None


def named_tool(name: str) -> NamedTool:
    """The choice of one tool."""
    return NamedTool(_ToolName(name))


def allowed_tools(mode: Literal["auto", "required"], names: Sequence[str]) -> AllowedTools:
    """The choice of some."""
    return AllowedTools(_Allowed(mode, [named_tool(name) for name in names]))


def chosen_tools(tools: Sequence[ChatTool], choice: ToolChoice) -> tuple[dict[str, Any], ...]:
    """The tools that this answer may call, as the chat template has them.

    Raises:
        ProtocolError: a chosen one is not among them, or one must be called and there is none.
    """
    if choice == "none":
        return ()
    chosen = [*tools]
    if isinstance(choice, NamedTool | AllowedTools):
        named = [choice] if isinstance(choice, NamedTool) else choice.allowed_tools.tools
        names = {tool.function.name for tool in named}
        chosen = [tool for tool in tools if tool.function.name in names]
        if len({tool.function.name for tool in chosen}) < len(names):
            chosen = []
    if not chosen and choice not in (None, "auto"):
        raise ProtocolError("tool_choice", "asks for a tool that is not given", "give it in tools")
    return tuple(tool.described() for tool in chosen)


def must_call(choice: ToolChoice) -> bool:
    """Whether the answer must be a call."""
    if isinstance(choice, AllowedTools):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or isinstance(choice, NamedTool)


def grammar_of(
    wanted: ResponseFormat | None,
    abstention: str | None,
    tools: Sequence[dict[str, Any]],
    *,
    calls: bool,
    check: bool = True,
) -> str:
    """The grammar of an answer; empty where it is free.

    Args:
        abstention: text that is always allowed too.
        calls: whether the answer must be a call of one of the tools.
        check: whether to find out that it can be followed; it was before, if not.
    Raises:
        ProtocolError: it cannot be followed.
        CapacityError, UncheckedError: that cannot be found out here and now.
    """
    if calls:
        return grammar_of_lark("tools", tool_call_lark(tools), check=check)
    grammar = _grammar(wanted, abstention, check)
    if grammar and tools:
        remedy = 'leave one out, or set tool_choice to "none" or "required"'
        raise ProtocolError("response_format", "is given together with tools", remedy)
    return grammar


def _grammar(wanted: ResponseFormat | None, abstention: str | None, check: bool) -> str:
    if isinstance(wanted, JsonObjectFormat):
        schema = {"type": "object"} if wanted.schema is None else wanted.schema
        return grammar_of_schema(schema, abstention, check=check)
    if isinstance(wanted, JsonSchemaFormat):
        return grammar_of_schema(wanted.json_schema.schema, abstention, check=check)
    if isinstance(wanted, RegexFormat):
        return grammar_of_regex(wanted.regex, abstention, check=check)
    if isinstance(wanted, ChoiceFormat):
        return grammar_of_choice(wanted.choice, abstention, check=check)
    return ""


def abstention_of(edge: EdgeAnswer, config: Config) -> str | None:
    """What is always allowed: the request's own, or the configured one; empty is none."""
    text = config.answer.abstain if edge.abstain is None else edge.abstain
    return text or None


def checked(edge: EdgeAnswer, *, thinking: bool) -> bool:
    """Whether to find out where the answer comes from.

    Raises:
        ProtocolError: the answer thinks first, and follows from that.
    """
    if edge.consistency and thinking:
        raise ProtocolError("edge.consistency", "is asked together with thinking", "leave one out")
    return bool(edge.consistency)


def remembered(edge: EdgeAnswer, config: Config) -> bool:
    """Whether question and answer stay in the live context.

    Raises:
        ProtocolError: the question stands on a part of the past, which nothing is added to.
    """
    if edge.recall_s is None:
        return config.answer.remember if edge.remember is None else edge.remember
    if edge.remember:
        raise ProtocolError(
            "edge.remember", "is asked together with edge.recall_s", "leave one out"
        )
    return False


def recalled(edge: EdgeAnswer) -> tuple[float, float] | None:
    """The part of the past that is asked about.

    Raises:
        ProtocolError: it ends before it begins.
    """
    recall_s = edge.recall_s
    if recall_s is not None and recall_s[0] <= recall_s[1]:
        raise ProtocolError(
            "edge.recall_s", f"is {list(recall_s)}", "give the longer time ago first: [30, 10]"
        )
    return recall_s
