"""`edge top`: a service and its board in a terminal, once a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from edge.client import Client
from edge.errors import EdgeError
from edge.session.health import BoardHealth
from jetson.board import HealthReader

PERIOD_S = 1.0
_OF_A_SENSE = ("received", "skipped", "dropped", "failed")


def watch(socket_path: Path | str, *, once: bool = False) -> None:
    """Show it until Ctrl-C; a service that is away is waited for.

    Args:
        once: one look, then return.
    Raises:
        EdgeError: at the first look nobody serves there.
    """
    client, read_health, console = Client(socket_path), HealthReader(), Console()
    first = view(client.health(), read_health())
    if once:
        console.print(first)
        return
    with Live(first, console=console, auto_refresh=False) as live:
        while True:
            time.sleep(PERIOD_S)
            try:
                shown = view(client.health(), read_health())
            except EdgeError as error:
                shown = Panel(f"waiting: {error}", title="edge")
            live.update(shown, refresh=True)


def view(health: Mapping[str, Any], board: BoardHealth) -> RenderableType:
    """What the service and the board say, as rich shows it.

    Args:
        health: the service's `/healthz`.
    """
    counters: dict[str, int] = health["counters"]
    n_tokens, max_tokens = health["n_context_tokens"], health["max_context_tokens"]
    top = Table.grid(padding=(0, 2))
    top.add_row("up", f"{health['uptime_s']:.0f} s", "speech", str(health["mode"]))
    top.add_row("context", f"{n_tokens} of {max_tokens} tokens", "", "")
    top.add_row("", ProgressBar(max_tokens, n_tokens, width=24), "", "")
    top.add_row("board", _board(board), "", "")
    clients = ", ".join(f"{n} {what}" for what, n in health["clients"].items())
    top.add_row("clients", clients, "", "")
    for problem in health["problems"]:
        top.add_row("problem", f"[red]{escape(problem)}[/red]", "", "")
    parts: list[RenderableType] = [Panel(top, title=f"edge: {health['model']}", expand=False)]
    senses = [name.removesuffix("_received") for name in counters if name.endswith("_received")]
    if senses:
        parts.append(_senses(senses, counters))
    if health["recent"]:
        parts.append(_stages(health["recent"]))
    if health["answers"]:
        parts.append(_answers(health["answers"], health["uptime_s"]))
    shown = {f"{sense}_{what}" for sense in senses for what in _OF_A_SENSE}
    others = {name: n for name, n in counters.items() if name not in shown}
    parts.append("  ".join(f"{name} {n}" for name, n in others.items()))
    return Group(*parts)


def _board(board: BoardHealth) -> str:
    said = [f"memory {board.memory_share:.0%}"]
    if board.temperature_c is not None and board.max_temperature_c is not None:
        said.append(f"{board.temperature_c:.0f} of {board.max_temperature_c:.0f} °C")
    if board.power_w is not None:
        said.append(f"{board.power_w:.1f} W")
    if board.is_throttled:
        said.append("[red]clocks are lowered[/red]")
    return ", ".join(said)


def _senses(senses: Sequence[str], counters: Mapping[str, int]) -> Table:
    table = Table("sense", *_OF_A_SENSE, title="senses", title_justify="left")
    for sense in senses:
        table.add_row(sense, *(str(counters[f"{sense}_{what}"]) for what in _OF_A_SENSE))
    return table


def _answers(answers: Sequence[Mapping[str, Any]], now_s: float) -> Table:
    """The newest first."""
    names = ("asked", "ended by", "prompt", "tokens", "first token ms", "all ms")
    table = Table(*names, title="last answers", title_justify="left")
    for answer in reversed(answers):
        table.add_row(
            f"{now_s - answer['asked_s']:.0f} s ago",
            *(answer["finish_reason"], str(answer["n_prompt_tokens"])),
            *(str(answer["n_completion_tokens"]), f"{answer['first_token_ms']:.1f}"),
            f"{answer['finished_ms']:.1f}",
        )
    return table


def _stages(recent: Sequence[Mapping[str, Any]]) -> Table:
    """How long the newest segment of each modality took from stage to stage."""
    newest = {stages["modality"]: stages for stages in recent}
    steps = [key for key in next(iter(newest.values())) if key.endswith("_ms")]
    names = [f"{step.removesuffix('_ms')} ms" for step in steps]
    table = Table("newest", *names, "tokens", title="stages", title_justify="left")
    for modality, stages in newest.items():
        took = [f"{stages[step]:.1f}" for step in steps]
        table.add_row(modality, *took, str(stages["n_tokens"]))
    return table
