"""What the Realtime socket sends at once, and what it leaves in the client's bounded outbox."""

from __future__ import annotations

import json
import re

import httpx2
import pytest
import websockets.sync.client
from serve.scripted import TIMEOUT_S, ScriptedSession, answer, served
from serve.test_limits import until_closed
from serve.test_room import talking

from edge.config import Config, Socket
from edge.serve.outbox import Outbox
from edge.serve.room import FREE_BYTES
from edge.session.notes import Noted

N_ROUNDS = 100
"""Of a neighbour's requests, each of which takes the service's event loop two rounds or more."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


def neighbour(path) -> httpx2.Client:
    """Its answers show that the event loop has come round."""
    transport = httpx2.HTTPTransport(uds=str(path))
    return httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S)


def test_a_client_that_stops_reading_is_dropped_however_slowly_its_events_come(path):
    """One event a round: the outbox was empty before each. 4 MB, and its socket holds 0.2."""
    n_events, n_bytes = 200, 20_000
    session = ScriptedSession(answer("x"))
    update = {"type": "session.update", "session": {"type": "realtime"}}
    update["session"]["edge"] = {"events": ["noted"]}
    message = json.dumps(update).encode()
    assert len(message) < 126
    with (
        served(path, session, Config(socket=Socket(max_outbox_events=16))),
        neighbour(path) as other,
        talking(path) as slow,
    ):
        slow.sendall(b"\x81" + bytes([0x80 + len(message)]) + bytes(4) + message)
        assert b"session.updated" in slow.recv(1 << 16)
        for number in range(n_events):
            session.events.tell(Noted(0, f"<{number}>" + "x" * n_bytes, 1))
            assert other.get("/readyz").status_code == 200
        assert 'edge_clients_dropped_total{reason="outbox full"} 1.0' in other.get("/metrics").text
        heard = [int(number) for number in re.findall(rb"<(\d+)>", until_closed(slow))]
    assert heard == list(range(len(heard)))
    assert 0 < len(heard) < n_events - 16


def test_a_refused_client_hears_why_and_then_its_connection_ends(path, monkeypatch):
    monkeypatch.setattr("edge.serve.app.MAX_READING_BYTES", 1000)
    monkeypatch.setattr("edge.serve.realtime.LINGER_S", 0.0)
    head = b"\x81\xff" + (4 * FREE_BYTES).to_bytes(8, "big") + bytes(4)
    with (
        served(path, ScriptedSession(answer("x"))),
        neighbour(path) as other,
        talking(path) as client,
    ):
        client.sendall(head + bytes(2 * FREE_BYTES))
        client.setblocking(False)
        received = b""
        for _ in range(N_ROUNDS):
            assert other.get("/readyz").status_code == 200
            try:
                received += client.recv(1 << 16)
            except BlockingIOError:
                continue
            if b"\x88\x02" in received:
                break
    assert b"are arriving already" in received
    assert received.endswith(b"\x88\x02" + (1013).to_bytes(2, "big"))


@pytest.mark.parametrize("protocol", ["realtime", "chat"])
def test_the_first_text_of_an_answer_is_hurried(path, monkeypatch, protocol):
    hurried, deliver = [], Outbox.deliver

    def seen(self, event, hurry=False):
        hurried.append(hurry)
        deliver(self, event, hurry)

    monkeypatch.setattr(Outbox, "deliver", seen)
    session = ScriptedSession(answer("a", "b", "c"))
    with served(path, session), neighbour(path) as other:
        if protocol == "chat":
            body = {"messages": [{"role": "user", "content": "?"}]}
            assert other.post("/v1/chat/completions", json=body).status_code == 200
        else:
            with websockets.sync.client.unix_connect(str(path), "ws://e/v1/realtime") as ws:
                ws.send('{"type": "response.create"}')
                while json.loads(ws.recv(TIMEOUT_S))["type"] != "response.done":
                    pass
    assert hurried.count(True) == 1
    assert hurried[-3:] == [False] * 3  # two more texts, and the end
