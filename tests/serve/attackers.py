"""Clients who mean no good, as processes of other users: they connect, send, and hold on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

TIMEOUT_S = 20.0
# Begins as root, for other users may not be able to read the interpreter.
_CHILD = """
import json, os, socket, sys

words = json.loads(sys.stdin.readline())
uid, address, n_processes, n_connections, payloads = words
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
for _ in range(n_processes - 1):
    if os.fork() == 0:
        break
family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
held = []
for n in range(n_connections):
    client = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET:
        client.bind((f"127.0.0.{1 + n % 4}", 0))
    client.settimeout(20)
    try:
        client.connect(address if family == socket.AF_UNIX else tuple(address))
        client.settimeout(0.1)
        client.sendall(payloads[n % len(payloads)].encode("latin-1"))
    except OSError:  # refused, or nobody takes what it sends
        pass
    held.append(client)
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def attack(
    uid: int,
    address: object,
    *payloads: bytes,
    n_processes: int = 1,
    n_connections: int = 1,
) -> Iterator[None]:
    """While the block runs, somebody holds connections to a service.

    Args:
        uid: whose processes they are.
        address: the Unix socket's path, or host and port: then from four addresses.
        payloads: are sent one on each connection, in turn.
        n_connections: of each process.
    """
    words = [uid, address, n_processes, n_connections, [p.decode("latin-1") for p in payloads]]
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(words).encode() + b"\n")
        child.stdin.flush()
        for _ in range(n_processes):
            assert child.stdout.readline() == b"ready\n"
        yield
        child.stdin.close()
        assert child.stdout.read() == b""  # all of them have gone
        child.wait(TIMEOUT_S)
