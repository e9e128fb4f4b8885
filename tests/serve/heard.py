"""All that clients hear of one scripted session: replies, streams, events, metrics, as texts.

    python tests/serve/heard.py      # from the root; writes tests/assets/heard

test_heard.py hears it again: whoever changes what a client is told sees it in a difference of text.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import httpx2  # noqa: E402
import websockets.sync.client  # noqa: E402
from msgspec import to_builtins  # noqa: E402
from serve.changed_requests import FUNCTION  # noqa: E402
from serve.scripted import (  # noqa: E402
    DONE,
    MODEL,
    MS,
    TIMELINE,
    TIMEOUT_S,
    ScriptedSession,
    served,
)

from edge.errors import CapacityError, EngineError  # noqa: E402
from edge.senses.turn_events import SpeechStarted  # noqa: E402
from edge.serve.metrics import Metrics  # noqa: E402
from edge.serve.session_events import dropped_events, told_event  # noqa: E402
from edge.session.budget import Degraded  # noqa: E402
from edge.session.intake import Refused  # noqa: E402
from edge.session.notes import Noted  # noqa: E402
from edge.session.perception import Rebased  # noqa: E402
from edge.session.triggers import TriggerBegan, TriggerEnded  # noqa: E402
from edge.session.turn import (  # noqa: E402
    Chance,
    ChoiceDone,
    Failed,
    Likely,
    Question,
    SpeechStopped,
    Spoken,
    Status,
    TextDelta,
    ToolCall,
    Turn,
)
from edge.types import Evidence, Stages  # noqa: E402

KEPT = ROOT / "tests" / "assets" / "heard"
DRAWN = re.compile(r"\b([a-z]+)[-_]([0-9a-f]{8,}|[0-9A-Za-z]{16,})\b")
TIMES = re.compile(
    r'("created"|"created_at"|"completed_at"|"expires_at"): \d+|("loop"|"socket"): [\d.]+'
)
EVIDENCE = (Evidence("camera", 2000 * MS, 2500 * MS, (3, 4)),)
STAGES = Stages("video", 2000 * MS, 2003 * MS, 2010 * MS, 2031 * MS, 2077 * MS, 64, 48, 16)
STATUS = Status(
    ready=True,
    model=MODEL,
    n_context_tokens=321,
    max_context_tokens=8192,
    counters={"answers": 3, "camera_dropped": 2, "camera_received": 9},
    uptime_ns=12_345_678_901,
    start_ns=1000 * MS,
    recent=(STAGES, replace(STAGES, modality="audio", captured_ns=1500 * MS)),
    mode="open",
    senses={"camera": {"received": 9, "skipped": 1, "dropped": 2, "failed": 3, "lost": 4}},
)
FULL = replace(DONE, n_reasoning_tokens=2, n_completion_tokens=9)
MESSAGES = [{"role": "user", "content": "What?"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def likely(text: str, logprob: float) -> Chance:
    """A token and one that was less likely."""
    others = (Likely(text.encode(), logprob), Likely(b"\xe4", logprob - 1))
    return Chance(Likely(text.encode(), logprob), others)


def play(turn: Turn) -> None:
    """What its question's last message asks for: each kind of event in each order that can be."""
    question = turn.question
    asked = question.messages[-1].content
    for event in _events(question, asked):
        turn.deliver(event)


def _events(question: Question, asked: str) -> Iterator[Any]:
    chances = question.n_alternatives is not None
    if question.thinking:
        yield TextDelta("Let me", reasoning=True)
        yield TextDelta(" see.", reasoning=True)
    if asked == "Fail":
        yield TextDelta("I")
        yield Failed(EngineError("decode", "failed", "restart"))
        return
    if asked == "Be full":
        yield Failed(CapacityError("turn", "8 questions are waiting", "ask later"))
        return
    for k in range(question.n_choices):
        if chances:
            yield likely("A", -0.25)
        if asked != "Call":
            yield TextDelta("A")
        if chances:
            yield likely(" cup", -1.5)
        yield TextDelta(" cup, äß")
        if chances:
            yield likely("", -0.5)
        if question.tools:
            yield ToolCall("drive", {"where": "näher", "n": 1.5})
            yield ToolCall("drive", {"where": "left"}, is_whole=asked != "Be cut")
        if k + 1 < question.n_choices:
            yield ChoiceDone("length", 0.5)
    yield replace(FULL, finish_reason="length" if asked == "Be cut" else "stop")


class Told(ScriptedSession):
    """With something to tell of itself."""

    def __init__(self, ready: bool = True) -> None:
        super().__init__(play)
        self._is_ready = ready

    def status(self) -> Status:
        return replace(STATUS, ready=self._is_ready)


def _chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": MESSAGES, **fields}


def _responses(asked: str = "What?", **fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"input": asked, **fields}


def asks() -> list[tuple[str, dict[str, Any]]]:
    """Path and body of requests whose whole reply is kept, each once streamed and once not."""
    tool = {"type": "function", "function": FUNCTION}
    own = {"type": "function", **FUNCTION}
    usage = {"stream_options": {"include_usage": True}}
    cut = [{"role": "user", "content": "Be cut"}]
    full = [{"role": "user", "content": "Be full"}]
    think = {"chat_template_kwargs": {"enable_thinking": True}}
    kinds = [
        _chat(),
        _chat(**usage, **think, logprobs=True, top_logprobs=2, tools=[tool], n=2),
        _chat(messages=cut, tools=[tool], parallel_tool_calls=False, max_tokens=3),
        _chat(functions=[FUNCTION], edge={"remember": False}, user="me", service_tier="auto"),
        _chat(messages=[{"role": "user", "content": "Fail"}]),
        _chat(messages=full),
        _chat(messages=cut, n=2, **think, include_reasoning=False),
        _responses(),
        _responses(
            reasoning={"effort": "low"},
            tools=[own],
            include=["message.output_text.logprobs"],
            top_logprobs=2,
            metadata={"a": "b"},
            instructions="Be brief.",
        ),
        _responses("Be cut", tools=[own], temperature=0.5, store=False, user="me"),
        _responses("Fail"),
        _responses("Be full"),
        _responses("Call", text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}),
    ]
    return [
        (path, {**{k: v for k, v in body.items() if stream or k != "stream_options"}, **more})
        for path, body in kinds
        for stream, more in ((False, {}), (True, {"stream": True}))
    ]


def others() -> list[tuple[str, str]]:
    """Method and path of what has no body."""
    return [
        *(("GET", path) for path in ("/healthz", "/readyz", "/v1/models", f"/v1/models/{MODEL}")),
        *(("GET", path) for path in ("/v1/models/another", "/v1/nowhere", "/v1/chat/completions")),
        *(("GET", path) for path in ("/v1/responses/resp_1", "/v1/edge/triggers", "/v1/responses")),
        *(("POST", path) for path in ("/healthz", "/metrics", "/v1/models", "/v1/realtime")),
        *(("POST", path) for path in ("/v1/chat/completions", "/v1/responses")),
        *(("POST", path) for path in ("/v1/edge/triggers", "/v1/edge/turns")),
        *(("DELETE", path) for path in ("/v1/edge/triggers/none", "/v1/responses/resp_1")),
        *(("DELETE", "/v1/models"), ("PUT", "/v1/responses"), ("GET", "/v1/realtime")),
    ]


def drawn_alike(lines: Iterator[str]) -> list[str]:
    """With a number for each name that is drawn, and without times."""
    known: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return known.setdefault(found[0], f"{found[1]}_drawn_{len(known)}")

    return [TIMES.sub(r"\1\2: 0", DRAWN.sub(number, line)) for line in lines]


def _shown(reply: httpx2.Response) -> list[str]:
    head = [f"{reply.status_code} {reply.headers.get('Content-Type')}"]
    names = ("Allow", "Retry-After", "Cache-Control", "X-Edge-Ignored", "Connection")
    head += [f"{name}: {reply.headers[name]}" for name in names if name in reply.headers]
    lines = []
    for line in reply.text.split("\n"):
        before, _, body = line.partition("{")
        shown = (
            f"{before}{json.dumps(json.loads('{' + body), ensure_ascii=False)}" if body else line
        )
        lines.append(shown)
    return [*head, *lines, ""]


def _client(path: Path) -> httpx2.Client:
    transport = httpx2.HTTPTransport(uds=str(path))
    return httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S)


def replies(folder: Path) -> Iterator[str]:
    """To all requests, one after the other; then while nothing is ready."""
    with served(folder / "a.sock", Told()), _client(folder / "a.sock") as client:
        for path, body in asks():
            yield f"POST {path} {json.dumps(body)}"
            yield from _shown(client.post(path, json=body))
        for method, path in others():
            yield f"{method} {path}"
            yield from _shown(client.request(method, path))
        kept = client.post("/v1/responses", json={"input": "What?"}).json()["id"]
        for method in ("GET", "DELETE", "GET"):
            yield f"{method} what is kept"
            yield from _shown(client.request(method, f"/v1/responses/{kept}"))
        trigger = {"condition": "Is there a cup?", "modality": "video"}
        made = client.post("/v1/edge/triggers", json=trigger)
        yield from _shown(made)
        yield from _shown(client.get("/v1/edge/triggers"))
        yield from _shown(client.delete(f"/v1/edge/triggers/{made.json()['id']}"))
    yield from _events_heard(folder / "d.sock", "/v1/edge/events", len(happened()) - 8)
    path = "/v1/edge/events?types=edge.trigger.began,edge.degraded"
    yield from _events_heard(folder / "e.sock", path, 2)
    with served(folder / "b.sock", Told(ready=False)), _client(folder / "b.sock") as client:
        yield from _shown(client.get("/readyz"))
        yield from _shown(client.get("/healthz"))


def _events_heard(socket: Path, path: str, n_events: int) -> Iterator[str]:
    """The first events of a stream."""
    session = Told()
    with served(socket, session), _client(socket) as client, client.stream("GET", path) as stream:
        yield f"{path} {stream.status_code} {stream.headers['Content-Type']}"
        for event in happened():  # whoever has the head is among those who hear
            session.events.tell(event)
        for line in stream.iter_lines():
            yield line
            n_events -= not line
            if n_events == 0:
                return


def conversation(folder: Path) -> Iterator[str]:
    """One client of /v1/realtime: each event that it sends, and all that it hears."""
    own = {"type": "function", **FUNCTION}
    message = {"type": "message", "role": "user", "content": []}

    def said(text: str) -> dict[str, Any]:
        item = {**message, "content": [{"type": "input_text", "text": text}]}
        return {"type": "conversation.item.create", "item": item, "event_id": "mine"}

    def settings(**fields: Any) -> dict[str, Any]:
        return {"type": "session.update", "session": {"type": "realtime", **fields}}

    sends: list[dict[str, Any]] = [
        settings(edge={"events": ["perceived", "degraded", "trigger"]}, output_modalities=["text"]),
        said("What?"),
        {"type": "response.create"},
        {"type": "response.create", "response": {"tools": [own], "reasoning": {"effort": "low"}}},
        settings(tools=[own], instructions="Be brief.", max_output_tokens=9),
        said("Be cut"),
        {"type": "response.create", "response": {"metadata": {"a": "b"}}},
        said("Fail"),
        {"type": "response.create"},
        said("Be full"),
        {"type": "response.create", "response": {"conversation": "none", "input": []}},
        {"type": "response.create"},
        {"type": "nonsense", "event_id": "mine"},
        {"type": "conversation.item.delete", "item_id": "nobody"},
    ]
    end = {"type": "conversation.item.retrieve", "item_id": "last_of_all"}
    address = "ws://edge/v1/realtime"
    with (
        served(folder / "c.sock", Told()),
        websockets.sync.client.unix_connect(str(folder / "c.sock"), address, max_size=None) as ws,
    ):
        yield json.dumps(json.loads(ws.recv(timeout=TIMEOUT_S)))
        for event in sends:
            yield f"> {json.dumps(event)}"
            ws.send(json.dumps(event))
            ws.send(json.dumps(end))
            is_last, n_open = False, 0
            while not is_last or n_open > 0:
                text = json.dumps(json.loads(ws.recv(timeout=TIMEOUT_S)))
                if "last_of_all" in text:
                    is_last = True
                    continue
                n_open += ("response.created" in text[:80]) - ('"response.done"' in text[:80])
                yield text


def happened() -> list[object]:
    """What the session notices by itself."""
    rung: Any = SimpleNamespace(name="frames halved")
    judged = ("trigger_1", "Is there a cup?", 5100 * MS, 4100 * MS, 0.87654321, EVIDENCE)
    return [
        STAGES,
        Degraded(5000 * MS, rung, "late"),
        Refused(5001 * MS, "camera", "too large"),
        Rebased(5002 * MS, 99),
        Noted(5003 * MS, "A cup.", 3),
        TriggerBegan(*judged),
        *(TriggerEnded(*judged, cause) for cause in ("judged", "unseen", "deleted", "stopped")),
        SpeechStarted(5004 * MS, 5304 * MS),
        SpeechStopped(6004 * MS, True),
        Spoken(6005 * MS, EVIDENCE[0]),
        TextDelta("A"),
        TextDelta("Hm", reasoning=True),
        FULL,
        Failed(EngineError("decode", "failed", "restart")),
        ToolCall("drive", {}),
    ]


def noticed(_: Path) -> Iterator[str]:
    """The same as clients hear it, and what the senses have lost."""
    for event in happened():
        yield json.dumps(to_builtins(told_event(event, STATUS.start_ns)))
    before = {"a_dropped": 3, "a_skipped": 1, "b_dropped": 2, "b_skipped": 2, "c_dropped": 0}
    now = {"a_dropped": 5, "a_skipped": 1, "b_dropped": 2, "b_skipped": 2, "c_dropped": 0}
    for one in dropped_events(before, {**now, "d_dropped": 1, "d_skipped": 4}):
        yield json.dumps(to_builtins(one))


def metrics(_: Path) -> Iterator[str]:
    """All that is counted, but for what the process itself has used."""
    found = Metrics(lambda: STATUS)
    found.connections.inc()
    found.refused("no role")
    found.dropped("outbox full")
    found.malformed()
    found.answered("/v1/models", 200, 0.02)
    late = replace(TIMELINE, first_token_ns=TIMELINE.asked_ns + 400 * MS)
    for n_tokens in (5, 0, 5):
        found.hear(replace(DONE, n_completion_tokens=n_tokens, timeline=late))
    found.hear("nothing that is counted")
    for _ in range(9):
        found.hear(replace(DONE, n_completion_tokens=0))
    for line in found.text().decode().splitlines():
        if "_created" in line or "edge_process" in line:  # the library's own
            continue
        name, _, value = line.partition(" ")
        measured = name in ("edge_malloc_used_bytes", "edge_python_blocks")
        yield f"{name} {float(value) > 0}" if measured else line
    yield f"{found.clients()} {len(found.answers)}"


TEXTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "replies": replies,
    "conversation": conversation,
    "noticed": noticed,
    "metrics": metrics,
}


def main() -> None:
    """Write them all."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, lines in TEXTS.items():
        with tempfile.TemporaryDirectory() as folder:
            (KEPT / f"{name}.txt").write_text("\n".join([*drawn_alike(lines(Path(folder))), ""]))


if __name__ == "__main__":
    main()
