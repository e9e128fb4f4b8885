"""Clients of something that is no service: whatever it sends, they raise what they say they do."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import socket
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.scripted import REPORT, TIMEOUT_S, ScriptedSession, answer, served
from test_mcp import use

from edge.async_client import AsyncClient
from edge.client import Client
from edge.errors import EdgeError, SocketError
from edge.wire import MAX_BODY_BYTES, MAX_LINE_BYTES

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
SPOKEN = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "red"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "edge": REPORT},
    {"choices": [], "usage": USAGE},
]
BEGAN = {
    "type": "edge.trigger.began",
    "event_id": "event_1",
    "id": "trigger_1",
    "condition": "Is it?",
    "at_s": 9.0,
    "began_s": 8.0,
    "confidence": 0.75,
    "evidence": REPORT["evidence"],
}
MODELS = {"object": "list", "data": [{"id": "nemotron", "object": "model"}]}
TRIGGERS = {"data": [{"id": "trigger_1", "condition": "Is it?"}]}
STAGES = {"modality": "video", "n_tokens": 3, "n_pruned": 0, "captured_s": 1.0}
STAGES |= {"late_ms": 1.0, "features_ms": 1.0, "encode_ms": 1.0, "prefill_ms": 1.0}
ANSWERED = {"asked_s": 1.0, "finish_reason": "stop", "n_prompt_tokens": 3}
ANSWERED |= {"n_completion_tokens": 2, "first_token_ms": 1.0, "finished_ms": 2.0}
HEALTH = {
    "status": "ok",
    "problems": [],
    "ready": True,
    "model": "nemotron",
    "mode": "open",
    "uptime_s": 2.0,
    "n_context_tokens": 3,
    "max_context_tokens": 8192,
    "counters": {"n_frames": 1},
    "clients": {"realtime": 0},
    "recent": [STAGES],
    "answers": [ANSWERED],
}


@dataclass(frozen=True)
class Call:
    """What both clients have."""

    payloads: list[object]
    """What a service says to it."""
    use_sync: object
    use_async: object
    is_stream: bool = False
    is_endless: bool = False

    def body(self, payloads: list[object]) -> bytes:
        """What is sent for them."""
        if not self.is_stream:
            return json.dumps(payloads[0]).encode()
        events = [b"data: " + json.dumps(payload).encode() + b"\n\n" for payload in payloads]
        return b"".join(events) + (b"" if self.is_endless else b"data: [DONE]\n\n")


async def listed(stream):
    """All of it."""
    return [event async for event in stream]


def first(stream):
    with contextlib.closing(stream):
        return next(stream)


async def afirst(stream):
    async with contextlib.aclosing(stream):
        return await anext(stream)


CALLS = {
    "ask": Call(
        SPOKEN,
        lambda client: list(client.ask("?")),
        lambda client: listed(client.ask("?")),
        is_stream=True,
    ),
    "watch": Call(
        [BEGAN],
        lambda client: first(client.watch("?")),
        lambda client: afirst(client.watch("?")),
        is_stream=True,
        is_endless=True,
    ),
    "events": Call(
        [BEGAN],
        lambda client: first(client.events()),
        lambda client: afirst(client.events()),
        is_stream=True,
        is_endless=True,
    ),
    "models": Call([MODELS], Client.models, AsyncClient.models),
    "health": Call([HEALTH], Client.health, AsyncClient.health),
    "triggers": Call([TRIGGERS], Client.triggers, AsyncClient.triggers),
    "create": Call(
        [TRIGGERS["data"][0]],
        lambda client: client.create_trigger("?"),
        lambda client: client.create_trigger("?"),
    ),
    "delete": Call(
        [{"id": "trigger_1", "deleted": True}],
        lambda client: client.delete_trigger("trigger_1"),
        lambda client: client.delete_trigger("trigger_1"),
    ),
}


@dataclass
class Impostor:
    """Says the same to everybody who connects."""

    path: str
    spoken: list[bytes] = field(default_factory=list)
    resets: bool = False
    """It ends a connection by a reset where the kernel can (what it was sent is left unread)."""

    def serve(self, listener: socket.socket) -> None:
        """Until the listener is shut."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(TIMEOUT_S)
                    connection.recv(1 if self.resets else 1 << 16)
                    for part in self.spoken:
                        connection.sendall(part)


@pytest.fixture(scope="module")
def impostor(tmp_path_factory):
    path = tmp_path_factory.mktemp("impostor") / "edge.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)
        one = Impostor(path)
        thread = threading.Thread(target=one.serve, args=(listener,))
        thread.start()
        yield one
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def outcome(call):
    """A value, or an error of ours; any other is the test's failure."""
    try:
        return call()
    except EdgeError as error:
        return type(error)


def both(impostor, name, spoken: list[bytes], resets=False):
    """What both clients make of it."""
    impostor.spoken, impostor.resets = spoken, resets
    call = CALLS[name]

    async def main():
        async with AsyncClient(impostor.path, TIMEOUT_S) as client:
            return await asyncio.wait_for(call.use_async(client), TIMEOUT_S)

    return (
        outcome(lambda: call.use_sync(Client(impostor.path, TIMEOUT_S))),
        outcome(lambda: asyncio.run(main())),
    )


def reply(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    return head + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("name", CALLS)
def test_what_a_service_sends_is_read(impostor, name):
    """The base of what is broken below: it is not refused by itself."""
    call = CALLS[name]
    body = call.body(call.payloads)
    for spoken in (reply(body), chunked(body), reply(body, "text/plain; charset=latin-1")):
        one, other = both(impostor, name, [spoken])
        assert one == other
        assert not isinstance(one, type)
    windows = body.replace(b"\n", b"\r\n").replace(b"data: ", b"data:") + b": comment\r\n"
    if call.is_stream:
        one, other = both(impostor, name, [chunked(windows)])
        assert one == other
        assert not isinstance(one, type)


NOTHING = object()
VALUES = [NOTHING, None, True, 7, -0.5, "red", "\ud800", [], [1], {}, {"a": 1}, [[]], 10**400]


def places(value, where=()):
    """Everything within a value of JSON, and itself."""
    yield where
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*where, key))


def with_another(value, where, another):
    """The value with another in its place."""
    if not where:
        return {} if another is NOTHING else another
    changed = copy.deepcopy(value)
    inner = changed
    for key in where[:-1]:
        inner = inner[key]
    if another is NOTHING:
        del inner[where[-1]]
    else:
        inner[where[-1]] = another
    return changed


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=150)
@given(data=st.data())
def test_another_value_anywhere_is_refused_or_does_not_matter(impostor, name, data):
    call = CALLS[name]
    which = data.draw(st.sampled_from(list(places(call.payloads))[1:]))
    payloads = with_another(call.payloads, which, data.draw(st.sampled_from(VALUES)))
    if payloads:
        one, other = both(impostor, name, [reply(call.body(payloads))])
        assert one == other


JUNK = st.binary(max_size=40) | st.sampled_from(
    [b"\0", b"\xff\xfe", b"\r\n", b"\n\n", b"data: ", b"data: {", b"[DONE]", b"-5\r\n", b"zz\r\n"]
)
HEADERS = [
    b"Content-Length: -3",
    b"Content-Length: 99999999999999999999",
    "Content-Length: ²".encode(),
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate",
    b"Content-Encoding: br",
    b"Content-Type: \xff\xfe",
    b"Content-Type: application/json; charset=none-such",
    b"Location: http://[",
    b"Set-Cookie: \xff=\0",
    b"Connection: upgrade\r\nUpgrade: websocket",
    b": no name",
    b"no colon",
    b"X: " + b"x" * 100_000,
]
STATUSES = [b"200 OK", b"200", b"302 Found", b"204 No Content", b"103 Early", b"999 ", b"0 ", b"-1"]


@settings(max_examples=400)
@given(data=st.data())
def test_bytes_that_are_cut_changed_or_no_http(impostor, data):
    name = data.draw(st.sampled_from(sorted(CALLS)))
    call = CALLS[name]
    body = call.body(call.payloads)
    whole = data.draw(st.sampled_from([reply(body), chunked(body)]))
    if data.draw(st.booleans()):
        head, _, rest = whole.partition(b"\r\n")
        head = b"HTTP/1.1 " + data.draw(st.sampled_from(STATUSES))
        more = b"\r\n".join(data.draw(st.lists(st.sampled_from(HEADERS), max_size=2)))
        whole = head + b"\r\n" + more + (b"\r\n" if more else b"") + rest
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(whole)))
        until = at + data.draw(st.integers(0, 8))
        whole = whole[:at] + data.draw(JUNK) + whole[until:]
    cut = data.draw(st.none() | st.integers(0, len(whole)))
    both(impostor, name, [whole[:cut]], resets=data.draw(st.booleans()))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"error": "broken"}',
        b'data: {"error": 5}\n\ndata: [DONE]\n\n',
        b"data: [DONE]\n\n",
        b"data: {}\n\n",
        b"data: \xff\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_no_answer(impostor, name, body):
    if name == "delete":
        return  # its answer says nothing
    one, other = both(impostor, name, [reply(body)])
    assert one == other
    assert issubclass(one, EdgeError)
    if b"error" not in body:
        assert one is SocketError


@pytest.mark.parametrize("name", CALLS)
def test_what_never_ends_is_given_up(impostor, name):
    """Neither a line nor a body is waited for until the memory is full."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    n_bytes = MAX_LINE_BYTES if CALLS[name].is_stream else MAX_BODY_BYTES
    forever = [head + b"data: ", *[b"x" * (1 << 20)] * (2 + (n_bytes >> 20)), b"\n"]
    assert both(impostor, name, forever) == (SocketError, SocketError)


def test_metrics_that_are_no_text(impostor):
    impostor.spoken = [reply(b"edge_up \xff\n", "text/plain")]
    with pytest.raises(SocketError, match="sent what no service sends"):
        Client(impostor.path, TIMEOUT_S).metrics()


def test_a_triggers_id_is_one_part_of_its_address(tmp_path):
    path = tmp_path / "edge.sock"
    with served(path, ScriptedSession(answer("x"))):
        for name in ("a b", "../events", "ä/?#"):
            for outcome_ in (
                outcome(lambda name=name: Client(path).delete_trigger(name)),
                outcome(lambda name=name: asyncio.run(deleted(path, name))),
            ):
                assert outcome_.__name__ == "ProtocolError"


async def deleted(path, name):
    async with AsyncClient(path) as client:
        await client.delete_trigger(name)


def test_an_agents_tool_says_what_was_wrong(impostor):
    call = CALLS["ask"]
    broken = with_another(SPOKEN, (2, "edge", "newest_capture_age_ms"), "old")
    impostor.spoken = [reply(call.body(broken))]

    async def script(client):
        return [
            await client.call_tool("look", {}),
            await client.call_tool("watch", {"condition": "?"}),
        ]

    for result in use(impostor.path, script):
        assert result.is_error
        assert "edge.sock: sent what no service sends" in result.content[0].text
