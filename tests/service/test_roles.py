"""Roles by real users, through the mode that the shipped unit gives the socket."""

from __future__ import annotations

import grp
import os
import pwd
import random
import re
import shutil
import sys
import tempfile
import wave
from pathlib import Path

import pytest
from serve.test_access import asks, needs_root
from supervisor import Supervisor

ROOT = Path(__file__).parents[2]
EDGE, PERSON = 60020, 60021
"""What the installer's user and group are here, and somebody who is nothing by himself."""
CHAT = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}'
LISTENING = '\n[turns]\nmode = "push_to_talk"\n[perception]\nlisten = "utterances"\n'


def shipped(unit: str, key: str) -> str:
    """A setting of a shipped unit."""
    (value,) = re.findall(f"^{key}=(.*)", (ROOT / "jetson" / unit).read_text(), re.MULTILINE)
    return value


@pytest.fixture
def path(bundle):
    """A service's socket, made as edge.socket says and handed over."""
    needs_root()
    folder = Path(tempfile.mkdtemp())  # as edge.service's RuntimeDirectory: everybody reaches it
    folder.chmod(int(shipped("edge.socket", "DirectoryMode"), 8))
    with wave.open(str(folder / "noise.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(random.Random(1).randbytes(2 * 16_000))
    access = (ROOT / "jetson" / "edge.toml").read_text().partition("[perception]")[0]
    given = f'operators = ["@{EDGE}"]\nobservers = ["@video"]\nadmins = ["daemon"] #'
    settings = folder / "edge.toml"
    settings.write_text(access.replace('operators = ["@edge"]', given) + LISTENING)
    assert given in settings.read_text()
    words = ["run", bundle("base"), "--audio", folder / "noise.wav", "--repeat"]
    words += ["--config", settings]
    command = [sys.executable, "-m", "edge.cli", *(str(word) for word in words)]
    supervisor = Supervisor(folder, command)
    supervisor.path.chmod(int(shipped("edge.socket", "SocketMode"), 8))
    os.chown(supervisor.path, EDGE, EDGE)
    try:
        supervisor.start()
        supervisor.wait_for("READY=1")
        yield supervisor.path
    finally:
        supervisor.close()
        shutil.rmtree(folder)


def test_each_does_what_its_role_may(path):
    video = grp.getgrnam("video").gr_gid
    observer = {"uid": PERSON, "groups": (video,)}
    operator = {"uid": PERSON, "groups": (EDGE,)}
    admin = {"uid": pwd.getpwnam("daemon").pw_uid}
    stranger = {"uid": PERSON, "groups": (PERSON + 1,)}
    may = {
        "look": ("/healthz", None, {"observer", "operator", "admin"}),
        "ask": ("/v1/chat/completions", CHAT, {"operator", "admin"}),
        "reconfigure": ("/v1/edge/turns", b'{"mode": "open"}', {"admin"}),
    }
    who = {"observer": observer, "operator": operator, "admin": admin, "stranger": stranger}
    told = {
        (name, doing): asks(path, target=target, data=data, **one)
        for name, one in who.items()
        for doing, (target, data, _) in may.items()
    }
    statuses = {key: status for key, (status, _) in told.items()}
    assert statuses == {
        (name, doing): 200 if name in names else 403
        for name in who
        for doing, (_, _, names) in may.items()
    }
    assert "yours is observer" in told["observer", "ask"][1]["error"]["message"]
    assert "yours is operator" in told["operator", "reconfigure"][1]["error"]["message"]
    assert told["stranger", "look"][1]["error"]["param"] == f"user {PERSON}"
