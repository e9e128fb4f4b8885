"""Clients that shut their sending side after the question, and wait for the answer."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import threading
import time

import pytest
from serve.scripted import DONE, TIMEOUT_S, ScriptedSession, answer, served
from serve.test_limits import connected, metric, until_closed
from serve.test_room import talking

from edge.serve import tcp
from edge.serve.connection import ALIVE, CONTINUE
from edge.session.turn import TextDelta

ASK = {"messages": [{"role": "user", "content": "?"}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


@pytest.fixture(params=["unix", "tcp"])
def serve(path, request):
    """Serves a script; yields the address of one of the two listeners."""

    @contextlib.contextmanager
    def serving(play):
        listener = tcp.bind("127.0.0.1:0") if request.param == "tcp" else None
        address = path if listener is None else listener.getsockname()
        with served(path, ScriptedSession(play), tcp_listener=listener):
            yield address

    return serving


def question(stream: bool, version: str = "1.1") -> bytes:
    body = json.dumps({**ASK, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def after(released: threading.Event, begun: threading.Event | None = None):
    """A turn that speaks only once it may, or has begun to."""

    def play(turn):
        if begun is not None:
            turn.deliver(TextDelta("Well"))
            begun.set()
        assert released.wait(TIMEOUT_S)
        turn.deliver(TextDelta("There it is"))
        turn.deliver(DONE)

    return play


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
def test_it_gets_its_answer_and_then_the_connections_end(path, serve, stream, version):
    released = threading.Event()
    with serve(after(released)) as address, connected(address) as client:
        client.sendall(question(stream, version))
        client.shutdown(socket.SHUT_WR)
        threading.Timer(0.3, released.set).start()  # several looks later
        received = until_closed(client)
        assert received.startswith(b"HTTP/" + version.encode() + b" 200")
        assert b"There it is" in received
        assert received.endswith((b"[DONE]\n\n", b"[DONE]\n\n\r\n0\r\n\r\n") if stream else b"}")
        assert metric(path, 'edge_requests_total{route="/v1/chat/completions",status="200"}') == 1


def test_it_may_shut_its_side_in_the_middle_of_the_answer(serve):
    released, begun = threading.Event(), threading.Event()
    with serve(after(released, begun)) as address, connected(address) as client:
        client.sendall(question(stream=True))
        assert begun.wait(TIMEOUT_S)
        client.shutdown(socket.SHUT_WR)
        threading.Timer(0.3, released.set).start()
        received = until_closed(client)
        assert b"Well" in received
        assert b"There it is" in received
        assert b"[DONE]" in received


def test_all_that_was_asked_before_is_answered_in_its_order(serve):
    get = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serve(answer("There it is")) as address, connected(address) as client:
        client.sendall(get + question(stream=False) + get + question(stream=True) + get)
        client.shutdown(socket.SHUT_WR)
        received = until_closed(client)
    assert received.count(b"HTTP/1.1 200 OK") == 5
    assert received.count(b"There it is") == 2
    assert received.endswith(b'{"ready":true}')


@pytest.mark.parametrize("sent", [b"", b"GET /readyz HTT", b"GET /readyz HTTP/1.1\r\nHost: e"])
def test_one_that_asks_nothing_is_closed_at_once(serve, sent):
    with serve(answer("x")) as address, connected(address) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert until_closed(client) == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_half_a_body_is_refused_at_once(serve, chunked):
    whole = question(stream=False)
    if chunked:
        head, _, body = whole.partition(b"\r\n\r\n")
        head = head.rpartition(b"\r\n")[0] + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        whole = head + f"{len(body):x}\r\n".encode() + body  # and no last chunk
    else:
        whole = whole[:-1]
    with serve(answer("x")) as address, connected(address) as client:
        client.sendall(whole)
        client.shutdown(socket.SHUT_WR)
        received = until_closed(client)
    assert received.startswith(b"HTTP/1.1 400")
    assert b"body: ended before it was whole" in received


@pytest.mark.parametrize("spoken", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shut_first", [False, True])
def test_one_that_has_gone_altogether_cancels_its_turn(serve, stream, spoken, shut_first):
    started, seen = threading.Event(), threading.Event()

    def play(turn):
        if spoken:
            turn.deliver(TextDelta("Well"))
        started.set()
        if turn.cancelled.wait(TIMEOUT_S):
            seen.set()

    with serve(play) as address:
        with connected(address) as client:
            client.sendall(question(stream))
            if shut_first:
                client.shutdown(socket.SHUT_WR)
            assert started.wait(TIMEOUT_S)
            if stream and spoken:
                while b"Well" not in client.recv(1 << 16):
                    pass
        assert seen.wait(TIMEOUT_S)


def test_over_tcp_a_long_wait_is_told_in_http(path):
    """Only what is sent finds out whether somebody is there; HTTP/1.0 has no word for it."""
    listener = tcp.bind("127.0.0.1:0")
    address = listener.getsockname()
    released = threading.Event()
    with (
        served(path, ScriptedSession(after(released)), tcp_listener=listener),
        connected(address) as client,
        connected(path) as local,
        connected(address) as old,
    ):
        for one, version in ((client, "1.1"), (local, "1.1"), (old, "1.0")):
            one.sendall(question(stream=False, version=version))
            one.shutdown(socket.SHUT_WR)
        for _ in range(2):
            assert client.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE
        released.set()
        for one in (client, local, old):
            assert b" 200 OK" in until_closed(one).partition(b"\r\n")[0]


def test_over_tcp_it_is_told_more_and_more_rarely(path, monkeypatch):
    monkeypatch.setattr("edge.serve.connection.PROBE_S", 0.02)
    monkeypatch.setattr("edge.serve.connection.LOOK_S", 0.001)
    listener = tcp.bind("127.0.0.1:0")
    released = threading.Event()
    with (
        served(path, ScriptedSession(after(released)), tcp_listener=listener),
        connected(listener.getsockname()) as client,
    ):
        began_s = time.monotonic()
        client.sendall(question(stream=False))
        client.shutdown(socket.SHUT_WR)
        for _ in range(4):
            assert client.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE
        waited_s = time.monotonic() - began_s
        released.set()
        assert waited_s >= 8 * 0.02
        assert b"There it is" in until_closed(client)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_over_tcp_a_long_pause_is_told_in_the_stream(path, version):
    """As a comment, within the stream's own chunks: a stock client reads on."""
    listener = tcp.bind("127.0.0.1:0")
    released, begun = threading.Event(), threading.Event()
    with (
        served(path, ScriptedSession(after(released, begun)), tcp_listener=listener),
        connected(listener.getsockname()) as client,
    ):
        client.sendall(question(stream=True, version=version))
        assert begun.wait(TIMEOUT_S)
        client.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(client)
        response.begin()
        lines = iter(response.readline, b"")
        assert b"Well" in b"".join(itertools.takewhile(lambda line: line + b"\n" != ALIVE, lines))
        released.set()
        assert b"There it is" in b"".join(lines)


def test_a_websocket_that_ends_ends(path):
    with served(path, ScriptedSession(answer("x"))), talking(path) as client:
        client.shutdown(socket.SHUT_WR)
        until_closed(client)
