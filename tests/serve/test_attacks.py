"""Clients who mean no good, as real users, against a running service: all others get in."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from serve.attackers import attack
from serve.scripted import ScriptedSession, answer, served
from serve.test_access import asks, needs_root
from serve.test_limits import HANDSHAKE, connected, metric

from edge.config import Access, Config, Socket
from edge.serve import tcp

STRANGER, WATCHER, OTHER_WATCHER, THIRD_WATCHER = 60001, 60002, 60012, 60022
ROBOT, OTHER_ROBOT, CHIEF = 60003, 60013, 60004
ACCESS = Access(
    observers=(str(WATCHER), str(OTHER_WATCHER), str(THIRD_WATCHER)),
    operators=(str(ROBOT), str(OTHER_ROBOT)),
    admins=(str(CHIEF),),
)
TOKEN = "0123456789abcdef0123456789abcdef"
SMALL = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode()
LARGE = json.dumps({"messages": [{"role": "user", "content": "?" * 300_000}]}).encode()
MODE = b'{"mode": "open"}'
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ANNOUNCED = b"Content-Length: 16777216\r\n"
FRAGMENT = b"\x01\xff" + (4000).to_bytes(8, "big") + bytes(4)
PING = b"\x89\xfd" + bytes(4 + 125)


@contextlib.contextmanager
def serving(**limits):
    """A service with a TCP listener; yields its two addresses."""
    needs_root()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    listener = tcp.bind("127.0.0.1:0")
    given = Socket(tcp="127.0.0.1:1", token_file=str(folder / "token"), **limits)
    config, address = Config(socket=given, access=ACCESS), listener.getsockname()
    with served(folder / "edge.sock", ScriptedSession(answer("x")), config, listener):
        yield folder / "edge.sock", address
    shutil.rmtree(folder)


@pytest.fixture
def service():
    with serving() as addresses:
        yield addresses


def all_others_get_in(path, address) -> None:
    """An operator, an admin and a client with the token are answered."""
    for body in (SMALL, LARGE):
        status, answered = asks(path, ROBOT, "/v1/chat/completions", body)
        assert (status, answered["object"]) == (200, "chat.completion")
    assert asks(path, CHIEF, "/v1/edge/turns", MODE) == (200, {"mode": "open"})
    with connected(address) as client:
        client.sendall(GET + b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


MANY = {"n_processes": 5, "n_connections": 32}
BEGUN = {
    "nothing": b"",
    "half a head": GET,
    "half an upgrade": HANDSHAKE[:-2],
    "a handshake and nothing after": HANDSHAKE,
}
HELD = {
    "an upgrade to what is not spoken": GET + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n" + b"x",
    "half a message": HANDSHAKE + FRAGMENT + bytes(3000),
    "pings, and no pong is read": HANDSHAKE + PING * 2000,
    "answers are not read": (GET + b"\r\n") * 1000,
    "a chunked body behind GET": GET + CHUNKED + b"\r\n",
    "a body behind DELETE": GET.replace(b"GET", b"DELETE") + ANNOUNCED + b"\r\n",
}
BODIES = {
    "a body": POST + ANNOUNCED + b"\r\n",
    "a chunked body": POST + CHUNKED + b"\r\n",
    "much of a body": POST + ANNOUNCED + b"\r\n" + bytes(2_000_000),
    "expects to be told to go on": POST + ANNOUNCED + b"Expect: 100-continue\r\n\r\n",
    "trailers without an end": POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 100,
    "a chunk's extension without an end": POST + CHUNKED + b"\r\n2;" + b"x" * 100_000,
    "compressed": POST + b"Content-Encoding: gzip\r\n" + ANNOUNCED + b"\r\n",
}
ALL = {**BEGUN, **HELD, **BODIES}


@pytest.mark.parametrize("sent", [BEGUN, HELD, BODIES], ids=["begun", "held", "bodies"])
@pytest.mark.parametrize("uid", [WATCHER, OTHER_ROBOT], ids=["observer", "operator"])
def test_who_holds_connections_keeps_nobody_out(service, uid, sent):
    path, address = service
    with attack(uid, str(path), *sent.values(), **MANY):
        all_others_get_in(path, address)


@pytest.mark.parametrize("sent", [BEGUN, ALL], ids=["begun", "all"])
def test_who_has_no_token_keeps_nobody_out(service, sent):
    path, address = service
    with attack(STRANGER, address, *sent.values(), n_connections=160):
        all_others_get_in(path, address)


def test_a_user_without_a_role_keeps_nobody_out(service):
    path, address = service
    with attack(STRANGER, str(path), GET, **MANY):
        all_others_get_in(path, address)


FEW = {"max_connections": 32, "max_connections_per_client": 16}
"""Of these observers may have 27, and all who are no admins 31."""
EVENTS = b"GET /v1/edge/events HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_idle_observers_make_place_for_all(monkeypatch):
    monkeypatch.setattr("edge.serve.connection.PATIENCE_S", 600.0)  # by themselves they stay
    with (
        serving(**FEW) as (path, address),
        attack(WATCHER, str(path), GET, n_connections=16),
        attack(OTHER_WATCHER, str(path), GET, n_connections=16),
    ):
        assert asks(path, THIRD_WATCHER, "/healthz")[0] == 200
        all_others_get_in(path, address)
        assert metric(path, 'edge_clients_dropped_total{reason="idle observer"}') >= 6


def test_places_are_kept_from_observers_who_are_not_idle():
    with (
        serving(**FEW) as (path, address),
        attack(WATCHER, str(path), EVENTS, n_connections=16),
        attack(OTHER_WATCHER, str(path), EVENTS, n_connections=16),
    ):
        status, refused = asks(path, THIRD_WATCHER, "/healthz")
        assert (status, refused["error"]["code"]) == (503, "over_capacity")
        assert "connections: 27 are open already" in refused["error"]["message"]
        all_others_get_in(path, address)
        with attack(OTHER_ROBOT, str(path), EVENTS, n_connections=16):  # 4 of them get in
            assert asks(path, ROBOT, "/healthz")[0] == 503
            assert asks(path, CHIEF, "/healthz")[0] == 200


@pytest.mark.parametrize("version", ["Content-Encoding: gzip", "Transfer-Encoding: gzip, chunked"])
def test_what_is_compressed_takes_no_memory(service, version):
    """29 MB each for 15 KB, once: more than this service's whole memory together."""
    path, address = service
    bomb = gzip.compress(bytes(16 << 20))
    head = POST + version.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    if "Transfer" in version:
        head = POST + version.encode() + b"\r\n\r\n%x\r\n" % len(bomb)
    before = metric(path, "edge_malloc_used_bytes")
    with attack(OTHER_ROBOT, str(path), head + bomb[:-20], n_connections=30):
        all_others_get_in(path, address)
        assert metric(path, "edge_malloc_used_bytes") - before < 30 << 20
