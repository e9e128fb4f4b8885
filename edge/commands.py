"""What a person does with a running service: thin clients of its socket."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import advice
from edge.client import Client, Event, Finished, Text
from edge.errors import ConfigurationError
from edge.wire import DEFAULT_SOCKET

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

RECALLED = "What happened?"


def ask(arguments: argparse.Namespace) -> None:
    """Ask a running service; the answer appears as it is made."""
    recall_s = arguments.recall and tuple(arguments.recall)
    events = _client(arguments).ask(arguments.question, recall_s=recall_s, **_settings(arguments))
    _show(events, arguments.json, is_now=recall_s is None)


def say(arguments: argparse.Namespace) -> None:
    """Ask with a recording: what it says is the question."""
    events = _client(arguments).say(arguments.file, arguments.text, **_settings(arguments))
    _show(events, arguments.json, is_now=True)


def recall(arguments: argparse.Namespace) -> None:
    """Ask about a part of the past that the service keeps."""
    recall_s = (arguments.start, arguments.end)
    events = _client(arguments).ask(arguments.question, recall_s=recall_s, **_settings(arguments))
    _show(events, arguments.json, is_now=False)


def watch(arguments: argparse.Namespace) -> None:
    """Tell when a condition begins and ends to be met, until Ctrl-C."""
    told = _client(arguments).watch(
        arguments.condition,
        modality=arguments.modality,
        period_s=arguments.period,
        debounce_s=arguments.debounce,
        cooldown_s=arguments.cooldown,
        priority=arguments.priority,
    )
    for triggered in told:
        state = "began" if triggered.began else "ended"
        why = "" if triggered.cause in (None, "judged") else f"  {triggered.cause}"
        if arguments.json:
            fields = {name: getattr(triggered, name) for name in type(triggered).__slots__}
            print(json.dumps(fields), flush=True)
        else:
            where = ", ".join(str(evidence["source"]) for evidence in triggered.evidence)
            line = f"{triggered.at_s:9.1f} s  {state}  {triggered.confidence:.2f}  {where}{why}"
            print(line, flush=True)
        if arguments.once:
            return


def events(arguments: argparse.Namespace) -> None:
    """Show what happens in a running service, one JSON object a line, until Ctrl-C."""
    for event in _client(arguments).events(arguments.types):
        print(json.dumps(event), flush=True)


def status(arguments: argparse.Namespace) -> None:
    """Show what a running service is doing."""
    health = _client(arguments).health()
    if arguments.json:
        print(json.dumps(health))
        return
    for key, value in health.items():
        if key == "problems":
            for problem in value:
                print(f"{'problem':20} {problem}")
        elif key in ("counters", "clients"):
            print("  ".join(f"{name} {count}" for name, count in value.items()))
        elif key == "silent_s":
            print(f"{key:20}", "  ".join(f"{name} {age_s:.1f}" for name, age_s in value.items()))
        elif not isinstance(value, list):
            print(f"{key:20} {value}")


def mcp(arguments: argparse.Namespace) -> None:
    """Offer a running service to an agent: an MCP server on stdin and stdout."""
    try:
        from edge.mcp_server import make_server
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "edge mcp", f"needs the package {error.name}", advice.install("mcp")
        ) from error
    make_server(Path(arguments.socket or DEFAULT_SOCKET)).run("stdio")


def _client(arguments: argparse.Namespace) -> Client:
    return Client(arguments.socket or DEFAULT_SOCKET)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "thinking": arguments.thinking or None,
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "remember": arguments.remember or None,
        "deadline_s": arguments.deadline,
        "consistency": arguments.consistency or None,
    }


def _show(events: Iterator[Event], as_json: bool, is_now: bool) -> None:
    """Print an answer.

    Args:
        is_now: it is about what the robot perceives now: say on stderr what it does not.
    """
    content: list[str] = []
    reasoning: list[str] = []
    missing: list[str] = []
    for event in events:
        if isinstance(event, Text):
            (reasoning if event.reasoning else content).append(event.text)
            if not as_json:
                print(event.text, end="", flush=True)
        elif isinstance(event, Finished):
            missing = [*_missing(event.timeline)] if is_now else []
            if not as_json:
                continue
            report = {
                "content": "".join(content),
                "reasoning_content": "".join(reasoning),
                "finish_reason": event.finish_reason,
                "usage": event.usage,
                "edge": event.timeline,
            }
            print(json.dumps(report))
    if not as_json:
        print()
    sys.stdout.flush()
    for line in missing:
        print(f"edge: {line}", file=sys.stderr)


def _missing(report: dict[str, Any]) -> Iterator[str]:
    """Which senses an answer about now stands on nothing new of, in words."""
    sources = report.get("sources", [])
    for modality, kind in (("video", "camera"), ("audio", "microphone")):
        of_kind = [source for source in sources if source["modality"] == modality]
        if not of_kind and modality == "video":
            yield "there is no camera: the answer stands on nothing seen"
        for source in (source for source in of_kind if source["stale"]):
            age_s = source["age_s"]
            has = "nothing of it" if age_s is None else f"nothing younger than {age_s:.0f} s of it"
            yield f"{kind} {source['source']} gives nothing now: the answer has {has}"


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--thinking", action="store_true", help="reason before answering")
    command.add_argument("--max-tokens", type=int, help="longest answer")
    command.add_argument("--temperature", type=float, help="0 is greedy")
    command.add_argument("--seed", type=int, help="makes sampling repeatable")
    command.add_argument("--deadline", type=float, help="seconds after which it is too late")
    command.add_argument(
        "--consistency",
        action="store_true",
        help="find out whether the answer was seen or heard (shown with --json)",
    )
    command.add_argument(
        "--remember", action="store_true", help="question and answer stay in the live context"
    )


def add_commands(commands: Commands) -> None:
    """Put them into the command line."""
    command = commands.add_parser("ask", help="ask a running service", description=ask.__doc__)
    command.add_argument("question")
    _add_settings(command)
    command.add_argument(
        "--recall",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="only from what was perceived between so many seconds ago, such as 30 10",
    )
    command.set_defaults(call=ask)

    command = commands.add_parser("say", help="ask with a recording", description=say.__doc__)
    command.add_argument("file", type=Path, help="WAV file, at most 30 s")
    command.add_argument("--text", default="", help="in writing behind it")
    _add_settings(command)
    command.set_defaults(call=say)

    command = commands.add_parser("recall", help="ask about the past", description=recall.__doc__)
    command.add_argument("start", type=float, help="seconds ago, such as 30")
    command.add_argument("end", type=float, nargs="?", default=0.0, help="seconds ago (default 0)")
    command.add_argument("question", nargs="?", default=RECALLED, help=f"default: {RECALLED}")
    _add_settings(command)
    command.set_defaults(call=recall)

    command = commands.add_parser(
        "watch", help="tell when a condition is met", description=watch.__doc__
    )
    command.add_argument("condition", help='in plain language, such as "Is there a person?"')
    command.add_argument("--modality", choices=("video", "audio", "any"), default="any")
    command.add_argument("--period", type=float, default=1.0, help="seconds between judgements")
    command.add_argument("--debounce", type=float, default=0.0, help="seconds it has to hold")
    command.add_argument("--cooldown", type=float, default=5.0, help="seconds of quiet after it")
    command.add_argument("--priority", choices=("high", "normal", "low"), default="normal")
    command.add_argument("--once", action="store_true", help="end with the first event")
    command.set_defaults(call=watch)

    command = commands.add_parser(
        "events", help="show what happens in a service", description=events.__doc__
    )
    command.add_argument("types", nargs="*", help="only those that begin so: edge.trigger")
    command.set_defaults(call=events)

    command = commands.add_parser("status", help="what a service is doing")
    command.set_defaults(call=status)

    command = commands.add_parser(
        "mcp", help="offer a service to an agent", description=mcp.__doc__
    )
    command.set_defaults(call=mcp)
