"""What a client may take up, and what happens to one that takes more."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import itertools
import json
import os
import re
import select
import socket
import threading
import time

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
from edge.serve.connection import PATIENCE_S, Connection
from edge.serve.door import host_of, n_kept
from edge.serve.room import FREE_BYTES
from edge.session.turn import TextDelta

ASK = {"messages": [{"role": "user", "content": "?"}]}
HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


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
        (
            {"max_connections_per_client": 3},
            f"connections of (user {os.geteuid()}|this machine): 3 are",
        ),
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


def asking(address) -> socket.socket:
    """A connection that is known to be let in."""
    client = connected(address)
    client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    return client


def test_each_listener_has_its_own_places(path):
    listener = tcp.bind("127.0.0.1:0")
    address = listener.getsockname()
    with (
        served(path, ScriptedSession(answer("x")), limits(max_connections=2), listener),
        contextlib.ExitStack() as stack,
    ):
        for where in (address, path):
            for _ in range(2):
                stack.enter_context(asking(where))
            with connected(where) as more:
                assert b"connections: 2 are open already" in until_closed(more)


def test_over_tcp_the_oldest_that_has_shown_nothing_makes_place(path):
    listener = tcp.bind("127.0.0.1:0")
    address = listener.getsockname()
    settings = limits(max_connections=3, max_connections_per_client=2)
    with (
        served(path, ScriptedSession(answer("x")), settings, listener),
        asking(address) as known,
        connected(address) as silent,
        asking(address) as newer,  # of the same host, whose two places were taken
    ):
        assert until_closed(silent) == b""
        for client in (known, newer):
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with connected(address) as more:
            assert b"connections of this machine: 2 are open already" in until_closed(more)
        assert metric(path, 'edge_clients_dropped_total{reason="shows no token"}') == 1


def test_places_are_kept_for_those_who_may_do_more():
    assert [n_kept(128, role) for role in ("observer", "operator", "admin", None)] == [20, 4, 0, 0]
    assert n_kept(1, "observer") == 0


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", "this machine"),
        ("127.9.9.9", "this machine"),
        ("::1", "this machine"),
        ("::ffff:127.0.0.1", "this machine"),
        ("192.168.1.7", "address 192.168.1.7"),
        ("::ffff:192.168.1.7", "address 192.168.1.7"),
        ("2001:db8::1:2:3:4", "network 2001:db8::/64"),
        ("fe80::1%eth0", "network fe80::/64"),
    ],
)
def test_one_host_has_many_addresses(address, host):
    assert host_of(address) == host


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
        assert b"body: arrives too slowly: 11 bytes within 0." in refused
        assert b'"code":"timeout"' in refused
        name = 'edge_requests_total{route="/v1/chat/completions",status="408"}'
        assert metric(path, name) == 1


@pytest.fixture
def little_room(monkeypatch):
    """What is arriving may be 1,000,000 bytes together, 400,000 of them one user's."""
    monkeypatch.setattr("edge.serve.app.MAX_READING_BYTES", 1_000_000)
    monkeypatch.setattr("edge.serve.app.MAX_SHARE_BYTES", 400_000)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


def body_of(n_bytes: int, n_sent: int, chunked: bool) -> bytes:
    """A request with so many blanks of its body, which is no JSON."""
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % n_bytes
    begin, end = (b"%x\r\n" % n_bytes, b"\r\n0\r\n\r\n") if chunked else (b"", b"")
    whole = HEAD + length + b"\r\n\r\n" + begin + b" " * n_sent
    return whole + (end if n_sent == n_bytes else b"")


def answered(address, request: bytes) -> bytes:
    with connected(address) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
        return until_closed(client)


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_counted_as_they_arrive_and_not_as_they_are_announced(path, chunked):
    """What one user sends leaves room for others, and for what is small."""
    listener = tcp.bind("127.0.0.1:0")
    n_bytes = FREE_BYTES + 300_000
    whole = body_of(n_bytes, n_bytes, chunked)
    with (
        served(path, ScriptedSession(answer("x")), tcp_listener=listener),
        contextlib.ExitStack() as stack,
    ):
        for _ in range(8):  # they take no room
            stack.enter_context(connected(path)).sendall(body_of(n_bytes, 0, chunked))
        assert answered(path, whole).startswith(b"HTTP/1.1 400")
        with connected(path) as first:
            first.sendall(body_of(n_bytes, n_bytes - 1, chunked))
            refused = next(r for _ in range(1000) if b" 503 " in (r := answered(path, whole)))
            assert b"of user %d are arriving already" % os.geteuid() in refused
            assert answered(path, body_of(2, 2, chunked)).startswith(b"HTTP/1.1 400")
            assert answered(listener.getsockname(), whole).startswith(b"HTTP/1.1 400")
        assert any(b" 400 " in answered(path, whole) for _ in range(1000))


@pytest.mark.usefixtures("little_room")
def test_bodies_of_all_are_bounded_together(path, monkeypatch):
    monkeypatch.setattr("edge.serve.app.MAX_SHARE_BYTES", 1_000_000)
    n_bytes = FREE_BYTES + 600_000
    whole = body_of(n_bytes, n_bytes, chunked=False)
    with served(path, ScriptedSession(answer("x"))), connected(path) as first:
        first.sendall(whole[:-1])
        refused = next(r for _ in range(1000) if b" 503 " in (r := answered(path, whole)))
    assert b"of 600000 more bytes: " in refused
    assert b" are arriving already" in refused


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE"])
@pytest.mark.parametrize("length", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
def test_where_nothing_is_sent_a_body_is_refused_at_once(path, method, length):
    head = method + b" /healthz HTTP/1.1\r\nHost: edge\r\n" + length + b"\r\n\r\n"
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.sendall(head)
        refused = until_closed(client)
    assert refused.startswith(b"HTTP/1.1 400")
    if method != b"HEAD":
        assert b"body: comes behind " + method in refused


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"zstd", b"identity", b"x"])
def test_what_is_compressed_is_refused_by_name(path, method, encoding):
    head = method + b" /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nContent-Length: 100\r\n"
    head += b"Content-Encoding: " + encoding + b"\r\n\r\n"
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.sendall(head + gzip.compress(bytes(10_000))[:20])
        refused = until_closed(client)
    assert refused.startswith(b"HTTP/1.1 415")
    assert b"header Content-Encoding: is '" + encoding in refused
    assert b'"unsupported_content_encoding"' in refused


def test_what_is_compressed_is_not_unpacked(path):
    """What is no gzip hinders nothing: the connection goes on."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nContent-Length: 8\r\n"
    ready = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.sendall(head + b"Content-Encoding: gzip\r\n\r\nnot gzip" + ready)
        received = until_closed(client)
    assert received.startswith(b"HTTP/1.1 415")
    assert received.endswith(b'{"ready":true}')


def test_a_body_for_nobody_is_not_waited_for(path):
    head = b" /nowhere HTTP/1.1\r\nHost: edge\r\nContent-Length: 100\r\n\r\n"
    with served(path, ScriptedSession(answer("x"))):
        with connected(path) as client:
            client.sendall(b"POST" + head)
            assert until_closed(client).startswith(b"HTTP/1.1 404")
        with connected(path) as client:
            client.sendall(
                b"POST" + head.replace(b"100", b"16777217").replace(b"nowhere", b"v1/responses")
            )
            assert until_closed(client).startswith(b"HTTP/1.1 413")


@pytest.fixture
def impatient(monkeypatch):
    """A head has 0.3 s, and 1,000,000 bytes of a body another second."""
    monkeypatch.setattr("edge.serve.connection.PATIENCE_S", 0.3)
    monkeypatch.setattr("edge.serve.connection.MIN_BYTES_PER_S", 1_000_000)
    monkeypatch.setattr("edge.serve.door.LOOK_S", 0.05)


def trickled(client: socket.socket, drip: bytes) -> bytes:
    """What is heard while one byte after another is sent, until the other side closes."""
    client.settimeout(0.02)
    received = b""
    for n in itertools.count():
        with contextlib.suppress(TimeoutError):
            if not (more := client.recv(1 << 16)):
                return received
            received += more
        try:
            client.sendall(drip[n % len(drip) :][:1])
        except (BrokenPipeError, ConnectionResetError):
            return received
    raise AssertionError


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("begun", "drip", "heard"),
    [
        (b"", b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 1000, b""),
        (
            b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /x HTTP/1.1\r\n" + b"X: y\r\n" * 1000,
            b'{"ready":true}',
        ),
        (HANDSHAKE[:-2], b"X: y\r\n", b""),
        (HANDSHAKE + b"\x01\xff" + (9000).to_bytes(8, "big") + bytes(4), b" ", b"session.created"),
        (HANDSHAKE + b"\x01\x80" + bytes(4), b"\0\x80" + bytes(4), b"session.created"),
        (HEAD + b"Content-Length: 9000\r\n\r\n", b" ", b"body: arrives too slowly"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"arrives too slowly"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", b"arrives too slowly"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n9;", b"x", b"arrives too slowly"),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", b"", b"arrives too slowly"),
    ],
    ids=[
        *("a head", "the second head", "a handshake", "a message", "empty fragments"),
        *("a body", "chunks", "trailers", "an extension", "nothing after 100"),
    ],
)
def test_who_sends_byte_by_byte_is_closed(start, begun, drip, heard):
    """The whole has its time, not each byte; 60 s of idleness are something else."""
    with start() as connect, connect() as client:
        client.sendall(begun)
        received = trickled(client, drip) if drip else until_closed(client)
        assert heard in received
        assert heard or not received


def test_a_head_has_its_time_and_what_is_asked_in_it_has_more(path, monkeypatch):
    now_s = [1000.0]
    monkeypatch.setattr(Connection, "_now_s", staticmethod(lambda: now_s[0]))
    monkeypatch.setattr("edge.serve.door.LOOK_S", 0.01)
    begun, go = threading.Event(), threading.Event()

    def play(turn):
        begun.set()
        assert go.wait(TIMEOUT_S)
        answer("at last")(turn)

    body = json.dumps(ASK).encode()
    with served(path, ScriptedSession(play)), connected(path) as late, asking(path):  # both are in
        now_s[0] += 1
        with connected(path) as in_time, connected(path) as waiting:
            waiting.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert begun.wait(TIMEOUT_S)
            now_s[0] += PATIENCE_S  # the head of one is owed since then, and no longer
            assert until_closed(late) == b""
            in_time.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert in_time.recv(1 << 16).startswith(b"HTTP/1.1 200")
            go.set()
            assert b"at last" in until_closed(waiting)
        assert metric(path, 'edge_clients_dropped_total{reason="sends slowly"}') == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "begun",
    [
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
    ],
    ids=["headers", "trailers"],
)
def test_headers_without_an_end_are_refused_while_they_come(path, begun):
    """They would be kept until their end."""
    endless = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 8000) for n in range(1000))
    with served(path, ScriptedSession(answer("x"))):
        assert answered(path, begun + endless)[:12] in (b"HTTP/1.0 400", b"HTTP/1.1 408")


@pytest.mark.usefixtures("impatient")
def test_who_sends_steadily_may_take_longer(path):
    body = json.dumps(ASK).encode() + b" " * 2_000_000
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        began_s = time.monotonic()
        for at in range(0, len(body), 40_000):
            client.sendall(body[at : at + 40_000])
            while time.monotonic() - began_s < 0.6 * at / len(body):
                select.select([], [], [], 0.005)
        assert time.monotonic() - began_s > 0.5
        assert until_closed(client).startswith(b"HTTP/1.1 200")


def test_a_client_that_reads_nothing_is_dropped(path, start):
    """It asks for the same answer again and again without taking one of them."""
    with start(idle_s=0.5) as connect, connect() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)  # TCP's grows to megabytes
        greedy.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            for _ in range(200):
                greedy.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
        greedy.settimeout(TIMEOUT_S)
        until_closed_by_the_service(greedy)
        assert metric(path, 'edge_clients_dropped_total{reason="reads nothing"}') == 1


def test_a_client_that_reads_late_has_its_time(path, monkeypatch):
    """It is looked at several times meanwhile, as those show who send slowly beside it."""
    monkeypatch.setattr("edge.serve.connection.PATIENCE_S", 0.1)
    monkeypatch.setattr("edge.serve.door.LOOK_S", 0.02)
    n = 100
    with served(path, ScriptedSession(answer("x"))), connected(path) as reader:
        reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * (n - 1))
        reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        for _ in range(2):
            with connected(path) as slow:
                slow.sendall(b"GET")
                assert until_closed(slow) == b""
        assert until_closed(reader).count(b"HTTP/1.1 200") == n
        assert metric(path, 'edge_clients_dropped_total{reason="reads nothing"}') == 0


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

    with served(path, ScriptedSession(play), limits(idle_s=0.5)), connected(path) as client:
        body = json.dumps(ASK).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"\r\n" + body)
        began_s = time.monotonic()
        while time.monotonic() - began_s < 1.5:
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
