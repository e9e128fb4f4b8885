"""Who waits at the socket of a service that cannot start hears why."""

from __future__ import annotations

import http.client
import json
import select
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.client import Client
from edge.errors import CapacityError, ConfigurationError
from edge.serve import refusal
from edge.serve.refusal import tell_waiting

ERROR = ConfigurationError("edge.toml", "perception.fps is -1", "correct it")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket as systemd hands it over."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{folder}/sock")
        made.listen(8)
        yield made


def connected(listener: socket.socket, sent: bytes = b"") -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(listener.getsockname())
    client.sendall(sent)
    return client


def test_all_who_wait_are_told(listener):
    asking = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    clients = [connected(listener, asking) for _ in range(3)]
    assert tell_waiting(listener, ERROR) == 3
    for client in clients:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 503
        assert str(ERROR) == json.loads(response.read())["error"]["message"]
        client.close()


def test_nobody_waits(listener):
    assert tell_waiting(listener, ERROR) == 0


def test_who_says_nothing_and_who_has_gone_hold_up_nobody(listener, monkeypatch):
    monkeypatch.setattr(refusal, "READ_S", 0.05)
    with connected(listener) as silent:
        connected(listener).close()
        with connected(listener, b"GET /healthz HTTP/1.1\r\n\r\n") as asking:
            assert tell_waiting(listener, ERROR) == 3
            assert b"503" in asking.recv(100)
        assert b"503" in silent.recv(100)


def test_who_has_yet_to_ask_is_let_ask_first(listener):
    """Else some clients take the answer for a broken connection."""
    with connected(listener) as late:
        telling = threading.Thread(target=tell_waiting, args=(listener, ERROR))
        telling.start()
        said_before, _, _ = select.select([late], [], [], 0.05)
        late.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        late.shutdown(socket.SHUT_WR)
        assert not said_before
        assert b"503" in late.recv(100)
        telling.join()


def test_our_client_raises_the_reason(listener, monkeypatch):
    heard: list[Exception] = []

    def ask() -> None:
        try:
            Client(Path(listener.getsockname())).health()
        except CapacityError as error:
            heard.append(error)

    client = threading.Thread(target=ask)
    client.start()
    while not tell_waiting(listener, ERROR):  # until it has connected
        pass
    client.join()
    (error,) = heard
    assert str(error) == str(ERROR)
