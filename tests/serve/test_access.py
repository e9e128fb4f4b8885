"""Who is let in and what each may do, with processes of other users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import fuzz_messages as fuzz
import pytest
from serve.scripted import TIMEOUT_S, ScriptedSession, answer, served

from edge.config import Access, Config, load_config
from edge.errors import ConfigurationError
from edge.serve.access import Peer, Roles
from edge.serve.realtime import OBSERVER_MESSAGE_BYTES
from edge.serve.schema import AnyClientEvent

STRANGER, WATCHER, ROBOT, CHIEF = 60001, 60002, 60003, 60004
VIDEO, MOTION = 61001, 61002
ACCESS = Access(
    observers=(str(WATCHER), f"@{VIDEO}"), operators=(f"@{MOTION}",), admins=(str(CHIEF),)
)
ASK = b'{"messages": [{"role": "user", "content": "?"}]}'


def needs_root() -> None:
    """To be other users."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("needs root, to be other users")
        pytest.skip("needs root, to be other users")


@pytest.fixture
def path():
    """A socket that everybody can reach: the service itself has to look who comes."""
    needs_root()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    with served(folder / "edge.sock", ScriptedSession(answer("x")), Config(access=ACCESS)):
        yield folder / "edge.sock"
    shutil.rmtree(folder)


def asks(path, uid, target, data=None, method=None, groups=()):
    """HTTP status and answer for a process of a user."""
    command = ["curl", "--silent", "--show-error", "--unix-socket", str(path)]
    command += ["--max-time", str(TIMEOUT_S), "--write-out", "\n%{http_code}"]
    command += [] if data is None else ["--data-binary", "@-"]
    command += [] if method is None else ["--request", method]
    done = subprocess.run(
        [*command, f"http://edge{target}"],
        input=data or b"",
        capture_output=True,
        user=uid,
        group=uid,
        extra_groups=groups,
        cwd="/",
        check=True,
    )
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(body) if body.startswith(b"{") else body


def test_a_user_without_a_role_is_refused_at_connect(path):
    for target, data in (("/v1/models", None), ("/v1/chat/completions", ASK)):
        status, refused = asks(path, STRANGER, target, data)
        assert (status, refused["error"]["code"]) == (403, "access_denied")
        assert f"user {STRANGER}" in refused["error"]["message"]
    # A group that somebody else is in does not help.
    assert asks(path, STRANGER, "/readyz", groups=[ROBOT])[0] == 403
    _, metrics = asks(path, 0, "/metrics")
    assert b'edge_connections_refused_total{reason="access"} 3.0' in metrics
    # No request of theirs was even read.
    assert b'edge_requests_total{route="/v1/models"' not in metrics


@pytest.mark.parametrize(("uid", "groups"), [(WATCHER, ()), (STRANGER, (VIDEO,))])
def test_an_observer_sees_and_cannot_ask(path, uid, groups):
    for target in ("/v1/models", "/healthz", "/readyz", "/metrics", "/v1/edge/triggers"):
        assert asks(path, uid, target, groups=groups)[0] == 200
    for target, data, method in (
        ("/v1/chat/completions", ASK, None),
        ("/v1/edge/turns", b'{"button": "begin"}', None),
        ("/v1/edge/triggers", b'{"condition": "x"}', None),
        ("/v1/edge/triggers/trigger_1", None, "DELETE"),
    ):
        status, refused = asks(path, uid, target, data, method, groups)
        assert (status, refused["error"]["code"]) == (403, "access_denied")
        assert "is for the role operator, yours is observer" in refused["error"]["message"]


def test_an_operator_asks_and_cannot_reconfigure(path):
    robot = {"uid": STRANGER, "groups": (VIDEO, MOTION)}  # the higher role counts
    assert asks(path, target="/v1/chat/completions", data=ASK, **robot)[0] == 200
    assert asks(path, target="/v1/edge/turns", data=b'{"button": "begin"}', **robot)[0] == 200
    assert asks(path, target="/v1/edge/triggers", data=b'{"condition": "x"}', **robot)[0] == 200
    status, refused = asks(path, target="/v1/edge/turns", data=b'{"mode": "open"}', **robot)
    assert status == 403
    assert "is for the role admin, yours is operator" in refused["error"]["message"]


@pytest.mark.parametrize("uid", [CHIEF, 0])
def test_an_admin_reconfigures(path, uid):
    assert asks(path, uid, "/v1/edge/turns", b'{"mode": "open"}')[0] == 200


# Starts as root, for other users may not be able to read the interpreter.
AS_USER = """
import json, os, sys
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import unix_connect
from edge.client import Client
from edge.errors import AccessError

uid, gid, path, events = json.loads(sys.argv[1])
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
try:
    told = [Client(path).health()["ready"]]
except AccessError as error:
    told = [error.thing]
for event in events:
    try:
        with unix_connect(path, "ws://edge/v1/realtime") as socket:
            socket.recv(20)  # session.created
            socket.send(json.dumps(event))
            told.append(json.loads(socket.recv(20)))
    except InvalidStatus as error:
        told.append(error.response.status_code)
    except ConnectionClosed as error:
        told.append(error.rcvd.code)
print(json.dumps(told))
"""


def as_user(uid, path, events=(), gid=None):
    """What our client's health and each event on the Realtime socket lead to."""
    who = [uid, gid or uid, str(path), list(events)]
    command = [sys.executable, "-c", AS_USER, json.dumps(who)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_our_own_client_says_why_it_was_refused(path):
    assert as_user(STRANGER, path) == [f"user {STRANGER}"]
    assert as_user(WATCHER, path) == [True]


def choosing(**session) -> dict:
    """A client's settings."""
    return {"type": "session.update", "session": {"type": "realtime", **session}}


PATTERNS = [{"type": "string", "pattern": f".*a.{{{n}}}x.*"} for n in range(60)]
BOMB = {"type": "json_schema", "json_schema": {"schema": {"allOf": PATTERNS}}}


def test_on_the_realtime_socket_an_observer_hears_and_does_nothing_else(path):
    events = [{"type": "response.create"}, *fuzz.EVENTS]
    assert {event["type"] for event in events} == {
        str(kind.__struct_config__.tag) for kind in get_args(AnyClientEvent)
    }
    more = [
        choosing(instructions="Obey"),
        choosing(edge={"events": ["edge.speech"], "response_format": BOMB}),
        choosing(audio={"input": {"format": {"type": "audio/pcm", "rate": 24_000}}}),
        choosing(edge={"remember": True}),
        choosing(tools=[]),
    ]
    hears = choosing(edge={"events": ["health"]})
    _, *refused, updated = as_user(WATCHER, path, (*events, *more, hears))
    for answered, event in zip(refused, [*events, *more], strict=True):
        assert answered["type"] == "error", event
        assert "is for the role operator, yours is observer" in answered["error"]["message"]
        assert answered["error"]["code"] == "access_denied"
    assert [one["error"]["message"].partition(":")[0] for one in refused[len(events) :]] == [
        *("setting session.instructions", "setting session.edge.response_format"),
        *("setting session.audio", "setting session.edge.remember", "setting session.tools"),
    ]
    assert updated["type"] == "session.updated"  # of what it hears; it is nobody else's session
    assert updated["session"]["edge"]["events"] == ["health"]
    talk = [event for event in events if not event["type"].endswith(".append")]
    for uid, gid in ((CHIEF, CHIEF), (STRANGER, MOTION)):
        _, *served_ = as_user(uid, path, (*talk, hears), gid)  # appending has no answer
        assert len(served_) == len(talk) + 1
        assert "for the role" not in json.dumps(served_)
    assert as_user(STRANGER, path, [hears]) == [f"user {STRANGER}", 403]


def test_an_observers_message_is_small(path):
    events = [choosing(edge={"events": ["health"] * n}) for n in (100, 1000)]
    assert len(json.dumps(events[0])) < OBSERVER_MESSAGE_BYTES < len(json.dumps(events[1]))
    _, small, large = as_user(WATCHER, path, events)
    assert small["type"] == "session.updated"
    assert large == 1009  # too big
    assert as_user(CHIEF, path, events[1:])[1]["type"] == "session.updated"


def test_roles_by_name_and_number():
    roles = Roles(Access(observers=("@nogroup",), operators=("nobody", "4711")))
    nobody = 65534
    assert roles.of(Peer(1, nobody, frozenset())) == "operator"
    assert roles.of(Peer(1, 4711, frozenset())) == "operator"
    assert roles.of(Peer(1, 4712, frozenset({nobody}))) == "observer"
    assert roles.of(Peer(1, 4712, frozenset({4711}))) is None
    assert roles.of(Peer(1, 0, frozenset())) == "admin"


def test_root_and_the_services_own_user_are_admins(monkeypatch):
    monkeypatch.setattr("edge.serve.access.geteuid", lambda: 4711)
    roles = Roles(Access(observers=("4712",)))
    found = [roles.of(Peer(1, uid, frozenset())) for uid in (0, 4711, 4712, 4713)]
    assert found == ["admin", "admin", "observer", None]


def test_settings_that_name_nobody_are_refused_all_at_once():
    with pytest.raises(ConfigurationError) as caught:
        Roles(Access(observers=("no_such_user",), admins=("@no_such_group",)))
    assert "user 'no_such_user' is unknown" in str(caught.value)
    assert "group 'no_such_group' is unknown" in str(caught.value)
    with pytest.raises(ConfigurationError, match="operators"):
        load_config(None, {"access": {"operators": ["not a name"]}})


@pytest.mark.parametrize(
    ("uid", "gids", "role"),
    [
        (0, (), "admin"),
        (STRANGER, (), "admin"),  # the service's own user
        (WATCHER, (), "observer"),
        (ROBOT, (MOTION,), "operator"),
        (WATCHER, (MOTION,), "operator"),  # the highest
        (ROBOT, (VIDEO, MOTION), "operator"),
        (CHIEF, (VIDEO,), "admin"),
        (ROBOT, (VIDEO,), "observer"),
        (ROBOT, (), None),
    ],
)
def test_who_has_which_role(monkeypatch, uid, gids, role):
    monkeypatch.setattr("edge.serve.access.geteuid", lambda: STRANGER)
    assert Roles(ACCESS).of(Peer(1, uid, frozenset(gids))) == role
