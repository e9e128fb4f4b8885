"""What a client may take up, and what happens to one that takes more."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import threading

import httpx2
import pytest
from serve.scripted import (
    DONE,
    TIMEOUT_S,
    ScriptedSession,
    answer,
    served,
    speak_until_cancelled,
)

from edge.config import Config, Socket
from edge.serve import tcp
from edge.serve.limits import MAX_BODY_BYTES, MAX_READING_BYTES
from edge.session.turn import TextDelta

ASK = {"messages": [{"role": "user", "content": "?"}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


@pytest.fixture(params=["unix", "tcp"])
def start(path, request):
    """Serve with some limits; yields a function that connects to one of the two listeners."""

    @contextlib.contextmanager
    def starting(**settings):
        listener = tcp.bind("127.0.0.1:0") if request.param == "tcp" else None
        address = path if listener is None else listener.getsockname()
        with served(path, ScriptedSession(answer("x")), limits(**settings), listener):
            yield lambda: connected(address)

    return starting


def connected(address) -> socket.socket:
    """A connection to a path, or to a host and port."""
    is_tcp = isinstance(address, tuple)
    client = socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(TIMEOUT_S)
    client.connect(address if is_tcp else str(address))
    return client


def until_closed(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(1 << 16):
            received += more
    return received


def get(path, target) -> httpx2.Response:
    transport = httpx2.HTTPTransport(uds=str(path))
    with httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client:
        return client.get(target)


def metric(path, name) -> float:
    text = get(path, "/metrics").text
    found = re.search(rf"^{re.escape(name)} (.*)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def limits(**socket_settings) -> Config:
    return Config(socket=Socket(**socket_settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_connections_per_client": 3}, f"connections of (process {os.getpid()}|address 127)"),
        ({"max_connections": 3}, "connections: 3 are open already"),
    ],
    ids=["of one client", "of all"],
)
def test_too_many_connections(path, start, settings, said):
    with start(**settings) as connect:
        first = [connect() for _ in range(3)]
        for client in first:  # each is known to be let in
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with connect() as more:
            refused = until_closed(more)
        assert refused.startswith(b"HTTP/1.1 503")
        error = json.loads(refused.partition(b"\r\n\r\n")[2])["error"]
        assert re.match(said, error["message"])
        assert error["code"] == "over_capacity"
        assert b"Retry-After: 1" in refused
        for client in first:
            with client:
                client.shutdown(socket.SHUT_WR)
                assert until_closed(client) == b""  # the service has noticed
        with connect() as next_one:
            next_one.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert next_one.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert metric(path, 'edge_connections_refused_total{reason="capacity"}') == 1


def test_the_two_listeners_share_one_limit(path):
    listener = tcp.bind("127.0.0.1:0")
    address = listener.getsockname()
    with (
        served(path, ScriptedSession(answer("x")), limits(max_connections=2), listener),
        connected(address) as first,
        connected(path) as second,
    ):
        for client in (first, second):
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        for where in (address, path):
            with connected(where) as more:
                assert b"connections: 2 are open already" in until_closed(more)


@pytest.mark.parametrize("sent", [b"", b"GET /readyz HT", b"GET /readyz HTTP/1.1\r\nHost: ed"])
def test_a_connection_that_never_makes_a_request_is_closed(start, sent):
    with start(idle_s=0.1) as connect, connect() as idle:
        idle.sendall(sent)
        assert until_closed(idle) == b""


def test_a_connection_that_makes_no_more_requests_is_closed(start):
    with start(idle_s=0.1) as connect, connect() as idle:
        idle.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert until_closed(idle).endswith(b'{"ready":true}')


def test_a_body_that_does_not_arrive_is_408(path, start):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    with start(idle_s=0.1) as connect, connect() as slow:
        slow.sendall(head + b'{"messages"')
        refused = until_closed(slow)
        assert refused.startswith(b"HTTP/1.1 408")
        assert b"body: did not arrive within 0.1 s" in refused
        name = 'edge_requests_total{route="/v1/chat/completions",status="408"}'
        assert metric(path, name) == 1


def test_bodies_that_arrive_together_are_bounded_together(path):
    n = MAX_READING_BYTES // MAX_BODY_BYTES
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nContent-Length: {MAX_BODY_BYTES}"
    with served(path, ScriptedSession(answer("x"))), contextlib.ExitStack() as stack:
        arriving = [stack.enter_context(connected(path)) for _ in range(n)]
        for client in arriving:
            client.sendall(head.encode() + b"\r\nExpect: 100-continue\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 100")  # it is being read
        with connected(path) as more:
            more.sendall(head.encode() + b"\r\n\r\n")
            refused = until_closed(more)
        assert refused.startswith(b"HTTP/1.1 503")
        assert f"{n * MAX_BODY_BYTES} are arriving already".encode() in refused
        assert get(path, "/readyz").status_code == 200
        for client in arriving:
            client.close()
        small = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=small, base_url="http://edge", timeout=TIMEOUT_S) as other:
            assert other.post("/v1/chat/completions", json=ASK).status_code == 200


def test_a_body_of_unknown_length_takes_as_much_room_as_the_largest(path):
    n = MAX_READING_BYTES // MAX_BODY_BYTES
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nTransfer-Encoding: chunked\r\n"
    waits = head + b"Expect: 100-continue\r\n\r\n"
    whole = b"2\r\n{}\r\n0\r\n\r\n"
    with served(path, ScriptedSession(answer("x"))), contextlib.ExitStack() as stack:
        arriving = [stack.enter_context(connected(path)) for _ in range(n)]
        for client in arriving:
            client.sendall(waits)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 100")  # it is being read
        with connected(path) as more:
            more.sendall(head + b"\r\n" + whole)
            refused = more.recv(1 << 16)
        assert refused.startswith(b"HTTP/1.1 503")
        assert f"{n * MAX_BODY_BYTES} are arriving already".encode() in refused
        arriving[0].sendall(whole)
        assert arriving[0].recv(1 << 16).startswith(b"HTTP/1.1 400")
        with connected(path) as more:
            more.sendall(head + b"\r\n" + whole)
            assert more.recv(1 << 16).startswith(b"HTTP/1.1 400")


def test_a_client_that_reads_nothing_is_dropped(path, start):
    """It asks for the same answer again and again without taking one of them."""
    with start(idle_s=0.5) as connect, connect() as greedy:
        greedy.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            while True:
                greedy.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
        greedy.settimeout(TIMEOUT_S)
        until_closed_by_the_service(greedy)
        assert metric(path, 'edge_clients_dropped_total{reason="reads nothing"}') == 1


def until_closed_by_the_service(client: socket.socket) -> None:
    """Without reading: sending fails when the other side has gone."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            client.sendall(b"G")


def test_a_reader_who_stops_for_a_while_gets_all_of_an_answer_that_fits_its_outbox(path):
    n_events, text = 900, "x" * 500
    delivered = threading.Event()

    def play(turn):
        for _ in range(n_events):
            turn.deliver(TextDelta(text))
        turn.deliver(DONE)
        delivered.set()

    with served(path, ScriptedSession(play)), connected(path) as slow:
        body = json.dumps({**ASK, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n"
        slow.sendall(head.encode() + b"\r\n" + body)
        assert delivered.wait(TIMEOUT_S)
        assert get(path, "/healthz").status_code == 200
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += slow.recv(1 << 16)
    assert received.count(text.encode()) == n_events
    assert b"data: [DONE]" in received


def test_an_answer_that_takes_long_is_no_idle_connection(path):
    go = threading.Event()

    def play(turn):
        assert go.wait(TIMEOUT_S)
        answer("at last")(turn)

    with served(path, ScriptedSession(play), limits(idle_s=0.05)), connected(path) as client:
        body = json.dumps(ASK).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"\r\n" + body)
        for _ in range(40):  # each takes a while: far more than the limit in all
            assert get(path, "/readyz").status_code == 200
        go.set()
        assert b"at last" in until_closed(client)


def test_requests_are_counted_by_route_and_status(path):
    with served(path, ScriptedSession(answer("x"))):
        assert get(path, "/readyz").status_code == 200
        assert get(path, "/nowhere/1").status_code == 404
        assert get(path, "/nowhere/2").status_code == 404
        text = get(path, "/metrics")
    assert text.headers["Content-Type"].startswith("text/plain; version=")
    for line in (
        'edge_requests_total{route="/readyz",status="200"} 1.0',
        'edge_requests_total{route="unknown",status="404"} 2.0',
        'edge_request_seconds_count{route="/readyz"} 1.0',
        "edge_n_frames_total 12.0",
        "edge_context_tokens 321.0",
        "edge_context_max_tokens 8192.0",
        "edge_ready 1.0",
    ):
        assert line in text.text.splitlines(), line
    assert "edge_process_open_fds" in text.text


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_what_malloc_has_given_out_is_counted(path):
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    n_bytes = 64 << 20
    with served(path, ScriptedSession(answer("x"))):
        before = metric(path, "edge_malloc_used_bytes")
        block = libc.malloc(ctypes.c_size_t(n_bytes))
        during = metric(path, "edge_malloc_used_bytes")
        libc.free(block)
        after = metric(path, "edge_malloc_used_bytes")
        assert metric(path, "edge_python_blocks") > 10_000
    assert during - before == pytest.approx(n_bytes, rel=0.05)
    assert during - after == pytest.approx(n_bytes, rel=0.05)


def test_what_is_no_http_is_counted_and_leaves_no_traceback_in_the_log(path, caplog):
    sent = (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n")
    with served(path, ScriptedSession(answer("x"))):
        for junk in sent:
            with connected(path) as client:
                client.sendall(junk + b"\r\n\r\n")
                assert until_closed(client).startswith(b"HTTP/1.")
        assert metric(path, "edge_requests_malformed_total") == len(sent)
    assert "Traceback" not in caplog.text


def test_headers_that_are_not_ascii_are_refused(path):
    head = b"GET /v1/realtime HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\n"
    head += b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \xfc\r\n\r\n"
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.sendall(head)
        assert b"header Sec-WebSocket-Key: is not ASCII" in client.recv(1 << 16)


def test_a_client_that_goes_is_counted_as_such(path):
    started, seen = threading.Event(), threading.Event()
    with served(path, ScriptedSession(speak_until_cancelled(started, seen))):
        with connected(path) as client:
            body = json.dumps({**ASK, "stream": True}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}"
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            assert started.wait(TIMEOUT_S)
        assert seen.wait(TIMEOUT_S)
        name = 'edge_requests_total{route="/v1/chat/completions",status="499"}'
        assert metric(path, name) == 1
