"""Requests with one place changed, and what the service said to each: all that it can say.

    python tests/serve/changed_requests.py      # from the root; writes tests/assets/replies

One request of each kind uses nearly every field. Every place in it is replaced by values of other
types and sizes; of all that were answered alike one is kept. The kept ones are sent again by
test_changed_requests.py: whoever changes what a client is told sees it in a difference of text.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import websockets.sync.client

from edge.serve.fields import HEADER
from edge.session.turn import Question

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "tests" / "assets" / "replies"
Place = tuple[str | int, ...]
GONE = "<left out>"
"""Stands for a field that is not sent."""
OTHERS: tuple[Any, ...] = (
    *(GONE, None, True, False, 0, -1, 1, 3, 0.5, 1e9, 1 << 70),
    *("", "x", "auto", "none", "user", "system", "assistant", "required", "text", [], {}, ["x"]),
    *([1], [{}], {"a": 1}, {"type": "function"}, {"type": "text"}, {"type": "nobody_knows"}),
)
TIMEOUT_S = 20.0
MAX_SHOWN = 100
MAX_AT_A_PLACE = 4
TYPES = re.compile(r"xpected `[^;]*|is (NoneType|bool|int|float|str|list|dict)\\b")
"""What a value of another type is told, by the type: one of them is enough at each place."""
IDS = re.compile(r"\b(chatcmpl|resp|msg|rs|fc|item|event|sess|conv|trig|call|trigger)_[0-9a-zA-Z]+")


def _png() -> str:
    """Data URL of a picture of 16 x 16 pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _wav() -> str:
    """Base64 of a tenth of a second of silence."""
    data = bytes(3200)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16,
                       1, 1, 16_000, 32_000, 2, 16, b"data", len(data))  # fmt: skip
    return base64.b64encode(head + data).decode()


SCHEMA = {"type": "object", "properties": {"where": {"type": "string"}}}
FUNCTION = {"name": "drive", "description": "Drive.", "parameters": SCHEMA}
SETTINGS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 5,
    "stop": ["END", "\n\n"],
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "logit_bias": {"5": 1.5},
    "top_k": 4,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "reasoning_budget": 20,
    "thinking_token_budget": 30,
    "chat_template_kwargs": {"enable_thinking": True, "reasoning_budget": 25},
    "media_io_kwargs": {"video": {"fps": 2.0, "num_frames": 8}},
    "mm_processor_kwargs": {"use_audio_in_video": True, "video_pruning_rate": 0.25},
    "edge": {"recall_s": [9.0, 2.0], "deadline_s": 3.0, "consistency": False, "abstain": "no"},
}


def bodies() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> path and body of a request that uses nearly every field of its kind."""
    png, wav = _png(), _wav()
    call = {"id": "call_1", "type": "function", "function": {"name": "drive", "arguments": "{}"}}
    chat = {
        **SETTINGS,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "name": "ann",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": png, "detail": "low"}},
                    {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
                ],
            },
            {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "drive"}},
        "max_tokens": 9,
        "max_completion_tokens": 8,
        "n": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "parallel_tool_calls": False,
        "stream_options": {"include_usage": True},
        "modalities": ["text"],
        "store": False,
        "metadata": {"a": "b"},
    }
    formats = {
        "messages": [{"role": "user", "content": "Where?"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": SCHEMA, "strict": True},
        },
        "structured_outputs": {"regex": None, "choice": None, "json": None},
        "functions": None,
        "function_call": None,
        "edge": {"remember": True, "abstain": "unknown"},
    }
    responses = {
        **{key: value for key, value in SETTINGS.items() if key != "stop"},
        "instructions": "Be brief.",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Go?"},
                    {"type": "input_image", "image_url": png, "detail": "auto"},
                ],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
            {"type": "function_call", "call_id": "call_1", "name": "drive", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "done"},
            {"type": "message", "role": "user", "content": "And now?"},
        ],
        "tools": [{"type": "function", **FUNCTION, "strict": True}],
        "tool_choice": {"type": "function", "name": "drive"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 9,
        "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
        "store": False,
        "truncation": "disabled",
        "background": False,
        "metadata": {"a": "b"},
    }
    trigger = {
        "condition": "Is there a cup?",
        "modality": "video",
        "period_s": 1.0,
        "threshold_on": 0.7,
        "threshold_off": 0.3,
        "debounce_s": 1.0,
        "cooldown_s": 10.0,
    }
    return {
        "chat": ("/v1/chat/completions", chat),
        "formats": ("/v1/chat/completions", formats),
        "responses": ("/v1/responses", responses),
        "trigger": ("/v1/edge/triggers", trigger),
        "turns": ("/v1/edge/turns", {"mode": "open"}),
    }


def events() -> dict[str, dict[str, Any]]:
    """Name -> an event of /v1/realtime that uses nearly every field of its kind."""
    message = {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "Hello"},
            {"type": "input_image", "image_url": _png()},
            {"type": "input_audio", "audio": base64.b64encode(bytes(9600)).decode()},
        ],
    }
    tool = {"type": "function", **FUNCTION}
    session = {
        "type": "realtime",
        "model": None,
        "instructions": "Be brief.",
        "output_modalities": ["text"],
        "tools": [tool],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_output_tokens": 9,
        "reasoning": {"effort": "none"},
        "truncation": "auto",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 16_000},
                "turn_detection": {
                    "type": "server_vad",
                    "create_response": True,
                    "interrupt_response": True,
                    "idle_timeout_ms": None,
                },
            }
        },
        "edge": {
            "events": ["health", "trigger"],
            "thinking": False,
            "temperature": 0.5,
            "seed": 5,
            "response_format": {"type": "choice", "choice": ["a", "b"]},
            "remember": False,
            "recall_s": [9.0, 2.0],
            "deadline_s": 3.0,
            "abstain": "no",
        },
    }
    del session["model"]
    said = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": ""}],
    }
    called = {"type": "function_call", "name": "drive", "arguments": "{}", "call_id": "call_1"}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
    response = {
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "output_modalities": ["text"],
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "drive"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "conversation": "none",
        "input": [message, said, called, result],
        "metadata": {"a": "b"},
        "edge": {"temperature": 0.25, "deadline_s": 3.0},
    }
    sound = base64.b64encode(bytes(9600)).decode()
    return {
        "session": {"type": "session.update", "session": session},
        "item": {"type": "conversation.item.create", "item": message, "previous_item_id": "root"},
        "call": {"type": "conversation.item.create", "item": called},
        "result": {"type": "conversation.item.create", "item": result},
        "response": {"type": "response.create", "response": response},
        "cancel": {"type": "response.cancel", "response_id": "resp_1"},
        "append": {"type": "input_audio_buffer.append", "audio": sound},
        "commit": {"type": "input_audio_buffer.commit"},
        "clear": {"type": "input_audio_buffer.clear"},
        "delete": {"type": "conversation.item.delete", "item_id": "item_1"},
        "truncate": {
            "type": "conversation.item.truncate",
            "item_id": "item_1",
            "content_index": 0,
            "audio_end_ms": 5,
        },
        "retrieve": {"type": "conversation.item.retrieve", "item_id": "item_1"},
        "playback": {"type": "edge.playback.append", "audio": sound, "delay_ms": 5.0},
        "watch": {
            "type": "edge.trigger.create",
            "trigger": {"condition": "Is there a cup?", "modality": "video", "period_s": 1.0},
        },
        "unwatch": {"type": "edge.trigger.delete", "trigger_id": "trigger_1"},
    }


def places(node: Any, at: Place = ()) -> Iterator[Place]:
    """Every place in a JSON value, the outer before the inner."""
    inner = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in inner:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def changed(body: dict[str, Any], at: Place, value: Any) -> dict[str, Any]:
    """A body with another value at a place."""
    found = copy.deepcopy(body)
    if not at:
        return found
    node: Any = found
    for key in at[:-1]:
        node = node[key]
    if value == GONE:
        del node[at[-1]]
    else:
        node[at[-1]] = value
    return found


def asked(question: Question, usual: Question | None) -> dict[str, str]:
    """What a question has otherwise than the usual one, each field in words."""

    def shown(node: Any) -> Any:
        if isinstance(node, np.ndarray):
            return f"{node.dtype} {node.shape}"
        if is_dataclass(node):
            kept = {field.name: shown(getattr(node, field.name)) for field in fields(node)}
            return {type(node).__name__: kept}
        if isinstance(node, tuple | list):
            return [shown(one) for one in node]
        return node if isinstance(node, dict | str | int | float | None) else repr(node)

    def of(one: Question) -> dict[str, str]:
        names = [field.name for field in fields(one) if field.name != "user"]  # who runs this
        said = {name: json.dumps(shown(getattr(one, name))) for name in names}
        return {name: brief(text) for name, text in said.items()}

    before = {} if usual is None else of(usual)
    return {key: value for key, value in of(question).items() if before.get(key) != value}


def brief(text: str) -> str:
    """A text that is long by its beginning and its hash."""
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}... {hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Http:
    """Requests of one kind, on a running service."""

    def __init__(self, client: httpx2.Client, questions: list[Question]) -> None:
        self._client, self._questions = client, questions
        self._usual: dict[str, Question | None] = {}
        self._bodies = bodies()

    def said(self, name: str, at: Place, value: Any) -> dict[str, Any]:
        """What comes of one request."""
        path, body = self._bodies[name]
        if at and name not in self._usual:
            self.said(name, (), None)
        self._questions.clear()
        reply = self._client.post(path, json=changed(body, at, value))
        told: dict[str, Any] = {"status": reply.status_code}
        if HEADER in reply.headers:
            told["ignored"] = reply.headers[HEADER]
        if reply.status_code != 200:
            told["error"] = reply.json()["error"]
        elif name in ("trigger", "turns"):
            told["reply"] = reply.json()
        if not at:
            self._usual[name] = self._questions[-1] if self._questions else None
        if self._questions:
            told["asked"] = asked(self._questions[-1], self._usual[name] if at else None)
        return normal(told)


def normal(told: Any) -> Any:
    """Without names that are drawn."""
    return json.loads(IDS.sub(r"\1_", json.dumps(told)))


class Realtime:
    """Events, each on a connection of its own."""

    def __init__(self, path: Path, questions: list[Question]) -> None:
        self._path, self._questions = path, questions
        self._usual: dict[str, tuple[Any, Question | None]] = {}
        self._events = events()

    def said(self, name: str, at: Place, value: Any) -> dict[str, Any]:
        """What comes of one event, until it is known that nothing more does."""
        if at and name not in self._usual:
            self.said(name, (), None)
        event = changed(self._events[name], at, value)
        self._questions.clear()
        heard: list[Any] = []
        address = "ws://edge/v1/realtime"
        with websockets.sync.client.unix_connect(str(self._path), address, max_size=None) as ws:
            ws.recv(timeout=TIMEOUT_S)
            ws.send(json.dumps(event))
            # An answer that begins is waited for; then an event whose error comes last.
            ws.send(json.dumps({"type": "conversation.item.retrieve", "item_id": "last_of_all"}))
            is_last, n_open = False, 0
            while not is_last or n_open > 0:
                one = json.loads(ws.recv(timeout=TIMEOUT_S))
                error = one.get("error") or {}
                if "last_of_all" in str(error.get("message")):
                    is_last = True
                    continue
                n_open += {"response.created": 1, "response.done": -1}.get(one["type"], 0)
                heard.append(one)
        told: dict[str, Any] = {"heard": normal([short(one) for one in heard])}
        question = self._questions[-1] if self._questions else None
        if not at:
            self._usual[name] = told["heard"], question
        usual, usual_question = self._usual[name]
        if question is not None:
            told["asked"] = asked(question, usual_question if at else None)
        if at:
            before = dict(usual)
            told["heard"] = [[k, difference(before.get(k), fields)] for k, fields in told["heard"]]
        return told


def short(event: dict[str, Any]) -> Any:
    """An event's type, and its fields but for what the service draws."""
    kept = {key: value for key, value in event.items() if key != "event_id"}
    return [kept.pop("type"), kept]


def difference(usual: Any, found: Any) -> Any:
    """What is otherwise than usual."""
    if not isinstance(usual, dict) or not isinstance(found, dict):
        return found
    gone = dict.fromkeys(usual.keys() - found.keys(), GONE)
    new = {
        key: difference(usual.get(key), value)
        for key, value in found.items()
        if key not in usual or usual[key] != value
    }
    return {**new, **gone}


def all_changes(body: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    """As it is, and with each place changed to each other value."""
    yield (), None
    for at in places(body):
        for value in OTHERS:
            yield at, value


def collected(
    said: Callable[[str, Place, Any], dict[str, Any]], name: str, body: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One change for each different outcome, and at most a few at a place."""
    known: set[str] = set()
    n_at: Counter[Place] = Counter()
    for at, value in all_changes(body):
        told = said(name, at, value)
        key = TYPES.sub("", json.dumps(told, sort_keys=True))
        if key not in known and n_at[at] < MAX_AT_A_PLACE:
            n_at[at] += 1
            known.add(key)
            yield {"of": name, "at": list(at), "put": value, **told}


def main() -> int:
    from serve.scripted import ScriptedSession, answer, served

    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edge.sock"
        session = ScriptedSession(answer("x"))
        with served(path, session):
            transport = httpx2.HTTPTransport(uds=str(path))
            with httpx2.Client(transport=transport, base_url="http://edge", timeout=60) as client:
                http = Http(client, session.questions)
                for name, (_, body) in bodies().items():
                    write(KEPT / f"{name}.jsonl", collected(http.said, name, body))
            realtime = Realtime(path, session.questions)
            for name, event in events().items():
                write(KEPT / f"realtime_{name}.jsonl", collected(realtime.said, name, event))
    return 0


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """One line each."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.name}: {len(lines)} replies, {path.stat().st_size} bytes")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
