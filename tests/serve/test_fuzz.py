"""Broken and hostile clients, quickly; scripts/fuzz_socket.py sends a million against a service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import socket
import tempfile
import threading
from pathlib import Path

import attack
import fuzz_messages as fuzz
import hostile_messages as hostile
import pytest
from fuzz_socket import Sender
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from serve.scripted import MODEL, TIMEOUT_S, ScriptedSession, answer, served
from websockets.sync.client import unix_connect

from edge.client import Client
from edge.serve import realtime

N_MESSAGES = 2000


@pytest.fixture(autouse=True)
def calm_log(caplog):
    """What is dropped and refused is warned of; nothing worse is logged."""
    caplog.set_level(logging.ERROR)
    yield
    assert [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR] == []


def with_seeds(test):
    """Three of them; none is simpler than another."""
    few = settings(
        max_examples=3,
        phases=set(Phase) - {Phase.shrink, Phase.explain},
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return few(given(seed=st.integers(0, 2**32 - 1))(test))


@with_seeds
def test_broken_clients_end_nobody_and_a_neighbour_sees_nothing_of_them(tmp_path, seed):
    path, session = tmp_path / "edge.sock", ScriptedSession(answer("red"))
    answers, stop = [], threading.Event()

    def neighbour():
        while not stop.is_set():
            events = list(Client(path, TIMEOUT_S).ask("What is it?"))
            answers.append("".join(event.text for event in events[:-1]))

    with served(path, session):
        thread = threading.Thread(target=neighbour)
        thread.start()
        sender = Sender(path, N_MESSAGES, seed)
        asyncio.run(sender.run())
        stop.set()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        assert Client(path).models() == [MODEL]
    assert sum(sender.kinds.values()) >= N_MESSAGES
    assert len(sender.kinds) == 5
    assert answers
    assert set(answers) == {"red"}


def test_half_written_requests_of_one_client_do_not_mix_with_anothers(tmp_path):
    path = tmp_path / "edge.sock"
    rng = random.Random(5)

    async def main():
        halves = []
        for _ in range(16):
            reader, writer = await asyncio.open_unix_connection(path)
            whole = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n"
            data = head % len(whole) + whole
            cuts = sorted(rng.randrange(len(data)) for _ in range(3))
            halves.append((reader, writer, data, [0, *cuts, len(data)]))
        for part in range(4):
            for _, writer, data, cuts in rng.sample(halves, len(halves)):
                writer.write(data[cuts[part] : cuts[part + 1]])
                await asyncio.sleep(0)
        for reader, writer, _, _ in halves:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
            assert head.startswith(b"HTTP/1.1 200")
            writer.close()

    with served(path, ScriptedSession(answer("x"))):
        asyncio.run(main())


N_HOSTILE = 300


@contextlib.contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(str(path))
        yield client, attack.Replies(client)


@with_seeds
def test_requests_with_a_hostile_leaf_are_answered_as_described(tmp_path, seed):
    rng = random.Random(seed)
    met = set()
    with served(tmp_path / "edge.sock", ScriptedSession(answer("red"))):
        for _ in range(N_HOSTILE):
            one = hostile.request(rng)
            with connected(tmp_path / "edge.sock") as (client, replies):
                client.sendall(one.fresh(rng.randrange(10**8)))
                status, head, body = replies.reply(one)
            assert not attack.wrong_with(one, status, head, body), (one.kind, one.data, body)
            met.add(status)
    assert met >= {200, 400, 404}


@with_seeds
def test_events_with_a_hostile_leaf_are_this_clients_affair(tmp_path, seed):
    rng = random.Random(seed)
    with (
        served(tmp_path / "edge.sock", ScriptedSession(answer("red"))),
        connected(tmp_path / "edge.sock") as (client, replies),
    ):
        client.sendall(fuzz.HANDSHAKE)
        assert replies.reply()[0] == 101
        for k in range(N_HOSTILE):
            one = hostile.event(rng)
            last = json.dumps({"type": "no.such.event", "event_id": f"mark{k}"}).encode()
            client.sendall(one.fresh(rng.randrange(10**8)) + fuzz.frame(1, last))
            while True:
                opcode, body = replies.message()
                assert opcode == 1, (one.data, opcode, body)
                told = json.loads(body)
                error = told.get("error") or {}
                assert error.get("type") != "server_error", (one.data, body)
                if told["type"] == "error" and error["event_id"] == f"mark{k}":
                    break


def test_an_agent_with_hostile_arguments_is_told_what_is_wrong_with_them(tmp_path, monkeypatch):
    if os.environ.get("CI") != "true":
        pytest.importorskip("mcp", reason="needs mcp: make .venv/.dev")
    from mcp import Client as McpClient

    from edge import mcp_server

    monkeypatch.setattr(mcp_server, "MAX_WATCH_S", 0.05)
    rng = random.Random(7)
    tools = {
        "look": ("question",),
        "ask": ("question", "max_tokens", "thinking"),
        "recall": ("from_s_ago", "to_s_ago", "question"),
        "listen": ("question",),
        "watch": ("condition", "timeout_s"),
    }

    # The SDK's own client sends neither depth nor half a pair.
    leaves = [hostile.wrong_type, hostile.number, hostile.marker]
    leaves += [hostile.odd_text, hostile.twice, hostile.crowd]

    async def main(path):
        n_errors, value = 0, None
        async with McpClient(mcp_server.make_server(path)) as client:
            for _ in range(60):
                name = rng.choice([*tools])
                leaf = rng.choice(leaves)(rng)
                with contextlib.suppress(ValueError):  # of no number
                    value = json.loads(leaf)
                brief = {"condition": "Is it?", "timeout_s": 0.01} if name == "watch" else {}
                called = client.call_tool(name, brief | {rng.choice(tools[name]): value})
                result = await asyncio.wait_for(called, TIMEOUT_S)
                n_errors += result.is_error
                said = result.content[0].text
                assert "Traceback" not in said
                assert "Internal" not in said, (name, value, said)
            assert n_errors
            assert not (await client.call_tool("look", {})).is_error

    with served(tmp_path / "edge.sock", ScriptedSession(answer("red"))):
        asyncio.run(main(tmp_path / "edge.sock"))


class AnyOrder(RuleBasedStateMachine):
    """Good events of the Realtime socket in any order, some of them broken; it always answers."""

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.session = ScriptedSession(answer("red"))
        self.stack.enter_context(served(folder / "edge.sock", self.session))
        self.socket = self.stack.enter_context(
            unix_connect(str(folder / "edge.sock"), "ws://edge/v1/realtime")
        )
        self.n_responses = 0

    @initialize()
    def created(self):
        assert self._next()["type"] == "session.created"

    @rule(event=st.sampled_from(fuzz.EVENTS))
    def good(self, event):
        self.socket.send(json.dumps(event))

    @rule(seed=st.integers(0, 1 << 30))
    def altered(self, seed):
        rng = random.Random(seed)
        event = fuzz.altered(rng, rng.choice(fuzz.EVENTS))
        self.socket.send(json.dumps(event))

    @rule()
    def respond(self):
        self.socket.send('{"type": "response.create"}')
        self.n_responses += 1

    @invariant()
    def lives(self):
        """What is asked for last is answered, behind all the rest, once each."""
        self.socket.send('{"type": "input_audio_buffer.clear", "event_id": "mark"}')
        self.socket.send('{"type": "no.such.event", "event_id": "mark"}')
        while True:
            event = self._next()
            if event["type"] == "error" and event["error"]["event_id"] == "mark":
                return

    def _next(self):
        return json.loads(self.socket.recv(timeout=TIMEOUT_S))

    def teardown(self):
        self.stack.close()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


N_PIPELINED = 100


@pytest.mark.parametrize("kind", ["requests", "events"])
def test_who_sends_much_at_once_leaves_others_their_turns(tmp_path, monkeypatch, kind):
    """Between two of its messages the event loop comes round, whatever is there already."""
    n_begun, n_when_others = 0, []

    def begin():
        nonlocal n_begun
        n_begun += 1
        if n_begun == 1:
            asyncio.get_running_loop().call_soon(lambda: n_when_others.append(n_begun))

    async def take(self, message):
        begin()

    monkeypatch.setattr(realtime.Client, "take", take)
    session = ScriptedSession(answer("red"))
    status = session.status
    session.status = lambda: (begin(), status())[1]
    with (
        served(tmp_path / "edge.sock", session),
        connected(tmp_path / "edge.sock") as (client, replies),
    ):
        if kind == "events":
            client.sendall(fuzz.HANDSHAKE)
            assert replies.reply()[0] == 101
            n_begun = 0
            client.sendall(fuzz.frame(1, b"{}") * N_PIPELINED + fuzz.frame(8, b"\x03\xe8"))
            while replies.message()[0] != 8:
                pass
        else:
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: e\r\n\r\n" * N_PIPELINED)
            for _ in range(N_PIPELINED):
                assert replies.reply()[0] == 200
    assert n_begun >= N_PIPELINED
    assert n_when_others[-1] <= 2
