"""A million hostile messages that know the protocol, by four roles at once, beside a neighbour.

The real service (cpu engine, one process) perceives a recording under a supervisor that hears its
watchdog. Observer, operator and admin, with user ids of their own, and a client over TCP without
the token send what scripts/hostile_messages.py makes, pipelined and over WebSockets. A well-behaved
neighbour, a user of its own, asks and streams all the time. Blocks alternate: in one the attackers
send to the service, in the next, the control, at the same rate to a process that reads and throws
away. So both have the same machine, and the ratio is what the service makes of it.

Ends with 1 if the service ends, misses its watchdog, loses an answer of the neighbour's, answers
with a status that /openapi.json has not, without OpenAI's error object, or with 500, closes a
connection without a word, logs a traceback, or if its memory grows. What did that is written to
FAILURES, one message a file.

Usage:
    python scripts/attack.py BUNDLE FILM --messages 20000
    python scripts/attack.py --replay FILE SOCKET      # one message again, and what is answered

As another user than root all attackers have the caller's own user id, and its role.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import hostile_messages as hostile
from fuzz_messages import HANDSHAKE, frame
from fuzz_socket import SETTINGS, last_lines, perceiving, resident_mb, slope_of, stop

from edge.serve.openapi import describe

ROLES = ("observer", "operator", "admin", "tcp")
USERS = {"observer": 60011, "operator": 60012, "admin": 60013, "tcp": 60014, "neighbour": 60015}
N_HTTP, N_WEBSOCKETS, PIPELINED = 2, 1, 16
"""Connections of an attacker, and how many messages are under way on each."""
CORPUS = 1500
"""Messages that an attacker makes before each block; each is sent with a new nonce every time."""
ATTACKERS_NICE = 10
BLOCK_S, CONTROL_PART = 6.0, 3
"""Of the attack; the control's are a third of it."""
WATCHDOG_S = 20.0
"""As in jetson/edge.service."""
REPLY_S = 60.0
"""Without an answer for so long a message hangs."""
ASK_S, ANSWER_S = 0.1, 60.0
"""The neighbour's pause, and the time past which its answer is lost."""
SETTLE_S = 0.3
"""After a block begins, what the neighbour measures is of neither."""
MAX_RATIO = 2.0
MAX_GROWTH_MB = 64.0
"""Of resident memory, over the second half of the run."""
MAX_FAILURES = 50
"""So many are kept."""
ROLES_OF = """
[socket]
tcp = "127.0.0.1:{port}"
token_file = "{token}"
[access]
observers = ["{observer}"]
operators = ["{operator}", "{neighbour}"]
admins = ["{admin}"]
"""


# An attacker: a process of one role. It is told on stdin what to do, and tells lines of JSON.


class ClosedError(Exception):
    """The other side has closed the connection."""


class Replies:
    """What comes back on a connection, taken apart as cheaply as it can be."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._data = sock, bytearray()

    def _until(self, mark: bytes, start: int = 0) -> int:
        while (at := self._data.find(mark, start)) < 0:
            start = max(0, len(self._data) - len(mark))
            self._more()
        return at + len(mark)

    def _at_least(self, n_bytes: int) -> None:
        while len(self._data) < n_bytes:
            self._more()

    def _more(self) -> None:
        data = self._sock.recv(1 << 16)
        if not data:
            raise ClosedError
        self._data += data

    def _take(self, n_bytes: int) -> bytes:
        self._at_least(n_bytes)
        taken = bytes(self._data[:n_bytes])
        del self._data[:n_bytes]
        return taken

    def reply(self, to: hostile.Hostile | None = None) -> tuple[int, bytes, bytes]:
        """Status, head in lower case, and body of an HTTP reply; of an endless one its head.

        Args:
            to: what is answered, if it is no usual request.
        """
        head = self._take(self._until(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if status < 200:
            return (status, head, b"") if status == 101 else self.reply(to)
        if to is not None and (to.method == "HEAD" or is_endless(to, head)):
            return status, head, b""
        length = re.search(rb"content-length: (\d+)", head)
        if length is not None:
            return status, head, self._take(int(length[1]))
        body = b""
        while b"chunked" in head and (size := int(self._take(self._until(b"\r\n"))[:-2], 16)):
            body += self._take(size + 2)[:-2]
        if b"chunked" in head:
            self._take(2)
        return status, head, body

    def message(self) -> tuple[int, bytes]:
        """Opcode and contents of a frame of the server's, which has no mask."""
        first, second = self._take(2)
        n_bytes = second & 127
        if n_bytes > 125:
            n_bytes = int.from_bytes(self._take(2 if n_bytes == 126 else 8), "big")
        return first & 15, self._take(n_bytes)


def is_endless(message: hostile.Hostile, head: bytes) -> bool:
    """Whether what answers a message is a stream that only the client ends."""
    return message.path == "/v1/edge/events" and b"text/event-stream" in head


@cache
def documented() -> dict[tuple[str, str], set[int]]:
    """Method and route -> the statuses that it may answer with."""
    paths = describe()["paths"]
    return {
        (method.upper(), path): {int(status) for status in told["responses"]}
        for path, methods in paths.items()
        for method, told in methods.items()
    }


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorReply(msgspec.Struct):
    error: _Error


class _Event(msgspec.Struct):
    type: str
    error: _Error | None = None


class _Marked(msgspec.Struct):
    event_id: str | None = None


class _MarkedError(msgspec.Struct):
    error: _Marked


def wrong_with(message: hostile.Hostile, status: int, head: bytes, body: bytes) -> str:
    """What is wrong with a message's reply; empty: nothing."""
    if status == 500:
        return "500"
    method = "GET" if message.method == "HEAD" else message.method
    if status not in documented().get((method, message.path), set()) | {403, 404, 405}:
        return f"status {status} is not documented"
    if status == 400 and b"text/plain" in head and b"connection: close" in head:
        return ""  # what is no HTTP is told so by aiohttp, in plain text
    if status < 400 or message.method == "HEAD" or b"text/event-stream" in head:
        return ""
    if b"application/json" not in head:
        return f"status {status} without JSON"
    try:
        msgspec.json.decode(body, type=_ErrorReply)
    except msgspec.DecodeError as error:
        return f"status {status} without an error object ({error})"
    return ""


class Pace:
    """A bound on the rate of all connections of a process."""

    def __init__(self) -> None:
        self._lock, self._next_s, self.per_s = threading.Lock(), 0.0, 0.0

    def wait(self, n: int) -> None:
        """Until n more may be sent."""
        with self._lock:
            now_s = time.monotonic()
            self._next_s = max(self._next_s, now_s - 0.2) + n / max(self.per_s, 0.1)
            wait_s = self._next_s - now_s
        if wait_s > 0:
            time.sleep(wait_s)


class Attacker:
    """All connections of one role."""

    def __init__(self, role: str, addresses: dict[str, Any], seed: int) -> None:
        self._role, self._addresses = role, addresses
        self._rng = random.Random(f"{seed} {role}")
        self._pace = Pace()
        self._lock = threading.Lock()
        self._n_sent = 0
        self.sent, self.outcomes = Counter[str](), Counter[str]()
        self._phase, self._epoch = "idle", 0
        self._corpora: tuple[list[hostile.Hostile], list[hostile.Hostile]] = ([], [])
        self._n_busy = 0

    def run(self) -> None:
        """Do what stdin says, until it says no more."""
        threads = [
            threading.Thread(target=self._connection, args=(is_socket,), daemon=True)
            for is_socket in [False] * N_HTTP + [True] * N_WEBSOCKETS
        ]
        for thread in threads:
            thread.start()
        for line in sys.stdin:
            phase, _, rate = line.strip().partition(" ")
            if phase != "idle":
                self._corpora = (
                    [hostile.request(self._rng) for _ in range(CORPUS)],
                    [hostile.event(self._rng) for _ in range(CORPUS // 3)],
                )
                self._pace.per_s = float(rate)
            self._phase, self._epoch = phase, self._epoch + 1
            until_s = time.monotonic() + REPLY_S
            while phase == "idle" and self._n_busy and time.monotonic() < until_s:
                time.sleep(0.005)  # what is under way is answered first
            with self._lock:
                told = {"sent": dict(self.sent), "outcomes": dict(self.outcomes)}
                self.sent.clear()
                self.outcomes.clear()
            self._say({"was": told})

    def _say(self, said: dict[str, Any]) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()

    def _fail(self, message: hostile.Hostile, data: bytes, why: str) -> None:
        told = {"role": self._role, "kind": message.kind, "why": why, "path": message.path}
        self._say({"failed": {**told, "data": data.decode("latin-1")}})

    def _connect(self) -> socket.socket:
        address = self._addresses[f"{self._phase} {'tcp' if self._role == 'tcp' else 'unix'}"]
        sock = socket.socket(
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM
        )
        sock.settimeout(REPLY_S)
        sock.connect(address if isinstance(address, str) else tuple(address))
        return sock

    def _connection(self, is_socket: bool) -> None:
        while True:
            while self._phase == "idle":
                time.sleep(0.01)
            with self._lock:
                self._n_busy += 1
            epoch, phase = self._epoch, self._phase
            waiting: deque[tuple[hostile.Hostile, bytes]] = deque()
            try:
                with contextlib.closing(self._connect()) as sock:
                    if phase == "control":
                        self._throw(sock, epoch, is_socket)
                    elif is_socket and self._role != "tcp":
                        self._talk(sock, epoch, waiting)
                    else:
                        self._ask(sock, epoch, waiting)
            except (OSError, ClosedError) as error:
                if phase == "attack":
                    self._note(waiting[0][0].kind if waiting else "-", "closed")
                    is_late = isinstance(error, TimeoutError)
                    why = f"not answered in {REPLY_S:g} s" if is_late else "closed without a word"
                    if waiting:
                        self._fail(*waiting[0], why)
                    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
                        self._say({"gone": [[m.kind, d.decode("latin-1")] for m, d in waiting]})
                        return
            finally:
                with self._lock:
                    self._n_busy -= 1
            time.sleep(0.005)

    def _note(self, kind: str, outcome: str, n: int = 1) -> None:
        with self._lock:
            self.outcomes[f"{kind} {outcome}"] += n

    def _batch(self, corpus: list[hostile.Hostile]) -> list[tuple[hostile.Hostile, bytes]]:
        n = 1 if self._role == "tcp" else PIPELINED  # its connection ends with its refusal
        self._pace.wait(n)
        chosen = self._rng.choices(corpus, k=n)
        with self._lock:
            self._n_sent += n
            for one in chosen:
                self.sent[one.kind] += 1
            number = self._n_sent
        return [(one, one.fresh(number + k)) for k, one in enumerate(chosen)]

    def _throw(self, sock: socket.socket, epoch: int, is_socket: bool) -> None:
        """To the process that throws away."""
        while epoch == self._epoch:
            sock.sendall(b"".join(data for _, data in self._batch(self._corpora[is_socket])))

    def _ask(
        self,
        sock: socket.socket,
        epoch: int,
        waiting: deque[tuple[hostile.Hostile, bytes]],
    ) -> None:
        """Requests over HTTP, pipelined."""
        replies, status = Replies(sock), 0
        while epoch == self._epoch:
            waiting.extend(self._batch(self._corpora[0]))
            sender = threading.Thread(target=_send, args=(sock, [data for _, data in waiting]))
            sender.start()  # it may not read all before it has answered some
            is_whole = False
            try:
                while waiting:
                    message, data = waiting[0]
                    status, head, body = replies.reply(message)
                    why = wrong_with(message, status, head, body)
                    self._note(message.kind, str(status))
                    if why:
                        self._fail(message, data, why)
                    waiting.popleft()
                    ends = status == 101 or b"connection: close" in head
                    if ends or is_endless(message, head):
                        # What follows it was not read.
                        self._note(message.kind, "closed after it", len(waiting))
                        waiting.clear()
                        return
                is_whole = True
            except ClosedError:
                if status < 400:
                    raise
                # It does not read on behind a request that it has refused, and may say no more.
                self._note(waiting[0][0].kind, "closed after a refusal", len(waiting))
                waiting.clear()
                return
            finally:
                if not is_whole:  # it may be in the middle of a message
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                sender.join()

    def _talk(
        self,
        sock: socket.socket,
        epoch: int,
        waiting: deque[tuple[hostile.Hostile, bytes]],
    ) -> None:
        """Events over a WebSocket; a last one that is told to be wrong says that all were read."""
        replies = Replies(sock)
        sock.sendall(HANDSHAKE)
        status, _, body = replies.reply()
        if status != 101:
            self._note("-", str(status))
            return
        while epoch == self._epoch:
            waiting.extend(self._batch(self._corpora[1]))
            mark = f"mark{self._n_sent}"
            last = frame(1, json.dumps({"type": "no.such", "event_id": mark}).encode())
            sender = threading.Thread(
                target=_send, args=(sock, [*(data for _, data in waiting), last])
            )
            sender.start()
            try:
                while True:
                    opcode, body = replies.message()
                    if opcode == 8:
                        code = int.from_bytes(body[:2], "big")
                        self._note("-", f"closed with {code}")
                        if code not in (1000, 1001, 1008, 1009, 1013):
                            self._fail(*waiting[0], f"closed with {code}")
                        return
                    if opcode != 1:
                        continue
                    told = msgspec.json.decode(body, type=_Event)
                    if told.type != "error":
                        continue
                    if told.error is None or (
                        told.error.type == "server_error" and told.error.code is None
                    ):
                        for one in waiting:  # it does not say which
                            self._fail(*one, "500 of one of them")
                    if mark.encode() in body:
                        break
                    self._note("event", "error")
                self._note("event", "read", len(waiting))
                waiting.clear()
            finally:
                sender.join(REPLY_S)


def _send(sock: socket.socket, parts: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # whoever reads sees it too
        sock.sendall(b"".join(parts))


def attack(words: dict[str, Any]) -> None:
    """Be an attacker."""
    os.nice(ATTACKERS_NICE)  # in both phases: what is measured is the service, not their own work
    become(words["role"])
    Attacker(words["role"], words["addresses"], words["seed"]).run()


def become(who: str) -> None:
    """Another user, if this is root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(USERS[who])
        os.setuid(USERS[who])


# What the control sends to.


def sink(listeners: list[socket.socket]) -> None:
    """Read and throw away."""
    selector, buffer = selectors.DefaultSelector(), bytearray(1 << 16)
    for listener in listeners:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(BlockingIOError):
                if key.data:
                    client, _ = key.fileobj.accept()
                    selector.register(client, selectors.EVENT_READ, False)
                    continue
                try:
                    n_bytes = key.fileobj.recv_into(buffer)
                except ConnectionError:
                    n_bytes = 0
                if not n_bytes:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


# The neighbour.


def neighbour(words: dict[str, Any]) -> None:
    """Ask, streamed, and look at the health, all the time; a line of JSON for each."""
    become("neighbour")
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": "Say red."}],
            "stream": True,
            "max_tokens": 4,
            "temperature": 0,
        }
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    ask = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    look = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    while True:
        said: dict[str, Any] = {"at_s": time.monotonic()}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(ANSWER_S)
                sock.connect(words["path"])
                began_s = time.monotonic()
                sock.sendall(look)
                status, _, _ = Replies(sock).reply()
                said["health_ms"] = 1e3 * (time.monotonic() - began_s)
                said["at_s"] = began_s = time.monotonic()
                sock.sendall(ask)
                first_ms, data = _streamed(sock, began_s)
                said["first_ms"], said["whole_ms"] = first_ms, 1e3 * (time.monotonic() - began_s)
                if status != 200 or not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                    said["lost"] = data[-300:].decode("latin-1")
        except (OSError, ClosedError) as error:
            said["lost"] = repr(error)
        print(json.dumps(said), flush=True)
        time.sleep(ASK_S)


def _streamed(sock: socket.socket, began_s: float) -> tuple[float, bytes]:
    """When the first text came, in ms, and all that came."""
    data, first_ms = b"", 0.0
    while True:
        more = sock.recv(1 << 16)
        if not more:
            raise ClosedError
        data += more
        if not first_ms and re.search(rb'"content":"[^"]', data):
            first_ms = 1e3 * (time.monotonic() - began_s)
        if data.endswith(b"0\r\n\r\n") or (
            not data.startswith(b"HTTP/1.1 200") and b"\r\n\r\n{" in data
        ):
            return first_ms, data


# The service, and who watches it.


class Watchdog(threading.Thread):
    """Hears what a supervisor hears."""

    def __init__(self, address: Path) -> None:
        super().__init__(daemon=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(address))
        self._last_s: float | None = None
        self.longest_s = 0.0
        self.start()

    def run(self) -> None:
        """For as long as there is somebody to hear."""
        while True:
            if b"WATCHDOG=1" in self._sock.recv(4096).splitlines():
                self.silent_s()
                self._last_s = time.monotonic()

    def silent_s(self) -> float:
        """Since it was last fed; 0 before it ever was."""
        silent_s = 0.0 if self._last_s is None else time.monotonic() - self._last_s
        self.longest_s = max(self.longest_s, silent_s)
        return silent_s


class Crowd:
    """The attackers and the neighbour, as their processes are told and tell."""

    def __init__(self, addresses: dict[str, Any], path: Path, seed: int) -> None:
        self.failures: list[dict[str, Any]] = []
        self.gone: list[list[str]] = []
        self.answers: list[dict[str, Any]] = []
        self.sent: dict[str, Counter[str]] = {role: Counter() for role in ROLES}
        self.outcomes: dict[str, Counter[str]] = {role: Counter() for role in ROLES}
        self._told: dict[str, list[dict[str, Any]]] = {role: [] for role in ROLES}
        self._changed = threading.Condition()
        self._processes = {
            role: self._start("attack", {"role": role, "addresses": addresses, "seed": seed})
            for role in ROLES
        }
        self._processes["neighbour"] = self._start("neighbour", {"path": str(path)})
        for who, process in self._processes.items():
            threading.Thread(target=self._hear, args=(who, process), daemon=True).start()

    @staticmethod
    def _start(what: str, words: dict[str, Any]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__, f"--{what}", json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _hear(self, who: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if who == "neighbour":
                self.answers.append(said)
            elif "failed" in said:
                self.failures.append(said["failed"])
            elif "gone" in said:
                self.gone += said["gone"]
            else:
                with self._changed:
                    self._told[who].append(said["was"])
                    self._changed.notify_all()

    def tell(self, phase: str, per_s: dict[str, float]) -> dict[str, dict[str, Any]]:
        """Begin a phase; what each role has sent, and met, in the one before."""
        for role in ROLES:
            stdin = self._processes[role].stdin
            assert stdin is not None
            stdin.write(f"{phase} {per_s.get(role, 0.0)}\n")
            stdin.flush()
        with self._changed:
            if not self._changed.wait_for(lambda: all(self._told.values()), 120):
                sys.exit("attack: an attacker says nothing")
            return {role: self._told[role].pop(0) for role in ROLES}

    def stop(self) -> None:
        """All of them."""
        for process in self._processes.values():
            process.kill()
            process.wait()


def free_port() -> int:
    """Of this machine, for a moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def service(
    folder: Path, arguments: argparse.Namespace
) -> Iterator[tuple[subprocess.Popen[bytes], Watchdog, dict[str, Any]]]:
    """One that perceives, and one that throws away; with the addresses of both."""
    path, sink_path = folder / "edge.sock", folder / "sink.sock"
    port, token = free_port(), folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    settings = SETTINGS + ROLES_OF.format(port=port, token=token, **USERS)
    watchdog = Watchdog(folder / "notify")
    fed = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    listeners = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET)]
    listeners[0].bind(str(sink_path))
    listeners[1].bind(("127.0.0.1", 0))
    for listener in listeners:
        listener.listen(64)
        listener.set_inheritable(True)
    numbers = [listener.fileno() for listener in listeners]
    sinking = subprocess.Popen(
        [sys.executable, __file__, "--sink", json.dumps(numbers)], pass_fds=numbers
    )
    try:
        with perceiving(arguments, folder, settings, fed) as running:
            for socket_path in (path, sink_path):
                socket_path.chmod(0o666)
            addresses = {
                "attack unix": str(path),
                "attack tcp": ["127.0.0.1", port],
                "control unix": str(sink_path),
                "control tcp": [*listeners[1].getsockname()],
            }
            yield running, watchdog, addresses
    finally:
        sinking.kill()
        sinking.wait()


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """All blocks; what was seen, what is wrong with it, and the messages that did it."""
    with tempfile.TemporaryDirectory(prefix="edge-attack-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # other users come to its sockets
        with service(folder, arguments) as (running, watchdog, addresses):
            crowd = Crowd(addresses, folder / "edge.sock", arguments.seed)
            try:
                seen = _blocks(running, watchdog, crowd, arguments)
            finally:
                crowd.stop()
            ended = stop(running)
            log = (folder / "log").read_text(errors="replace")
            if "Traceback" in log:
                arguments.failures.mkdir(parents=True, exist_ok=True)
                (arguments.failures / "log").write_text(log)
    return _judged(seen, crowd, watchdog, ended, log)


def _blocks(
    running: subprocess.Popen[bytes],
    watchdog: Watchdog,
    crowd: Crowd,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Alternate until all messages are sent."""
    spans: list[tuple[str, float, float]] = []
    rates: dict[str, list[dict[str, float]]] = {"attack": [], "control": []}
    resident: list[tuple[float, float]] = []
    n_sent, began_s = 0, time.monotonic()
    per_s = {role: arguments.rate / len(ROLES) for role in ROLES}
    crowd.tell("idle", {})
    with tqdm(total=arguments.messages, unit="messages", disable=None) as bar:
        while n_sent < arguments.messages and running.poll() is None:
            for phase in ("attack", "control"):
                measured = phase == "control" and rates["attack"]
                wanted = rates["attack"][-1] if measured else per_s
                crowd.tell(phase, wanted)
                block_s = time.monotonic()
                part = 1 if phase == "attack" else CONTROL_PART
                while (now_s := time.monotonic()) < block_s + arguments.block_s / part:
                    time.sleep(0.5)
                    if running.poll() is None:
                        resident.append((now_s - began_s, resident_mb(running.pid)))
                    watchdog.silent_s()
                spans.append((phase, block_s + SETTLE_S, time.monotonic()))
                told = crowd.tell("idle", {})
                now_s = time.monotonic()
                sent = {role: sum(told[role]["sent"].values()) for role in ROLES}
                n_taken = sum(n_answered(told[role]["outcomes"]) for role in ROLES)
                rates[phase].append({role: n / (now_s - block_s) for role, n in sent.items()})
                if phase == "attack":
                    n_sent += n_taken
                    bar.update(n_taken)
                    bar.set_postfix_str(f"{resident[-1][1]:.0f} MB")
                    for role in ROLES:
                        crowd.sent[role].update(told[role]["sent"])
                        crowd.outcomes[role].update(told[role]["outcomes"])
    return {"spans": spans, "rates": rates, "resident": resident, "n_sent": n_sent}


def n_answered(outcomes: dict[str, int]) -> int:
    """Of an attacker's messages those that were read to the end: what follows a refusal may not be.

    Events are not answered one by one; the last of a batch says that all were read.
    """
    apart = ("closed", "event error")
    return sum(n for name, n in outcomes.items() if not any(one in name for one in apart))


def _judged(
    seen: dict[str, Any], crowd: Crowd, watchdog: Watchdog, ended: int, log: str
) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    measured: dict[str, dict[str, list[float]]] = {
        phase: {"first_ms": [], "whole_ms": [], "health_ms": []} for phase in ("attack", "control")
    }
    lost = [one["lost"] for one in crowd.answers if "lost" in one]
    for one in crowd.answers:
        for phase, start_s, end_s in seen["spans"]:
            if "lost" not in one and start_s <= one["at_s"] <= end_s:
                for name, ms in measured[phase].items():
                    ms.append(one[name])
    resident = seen["resident"]
    slope, slope_error = slope_of(resident)
    took_min = (resident[-1][0] - resident[0][0]) / 60 if resident else 0.0
    growth_mb = (slope - slope_error) * took_min / 2
    kinds = sum(crowd.sent.values(), Counter[str]())
    outcomes = sum(crowd.outcomes.values(), Counter[str]())
    statuses: Counter[str] = Counter()
    for name, n in outcomes.items():
        statuses[name.rpartition(" ")[2] if "closed" not in name else "closed"] += n
    report: dict[str, Any] = {
        "messages": seen["n_sent"],
        "sent": sum(sum(sent.values()) for sent in crowd.sent.values()),
        "by_kind": dict(kinds.most_common()),
        "by_role": {role: sum(sent.values()) for role, sent in crowd.sent.items()},
        "per_s": {
            phase: {
                role: round(float(np.mean([rate[role] for rate in rates])))
                for role in (ROLES if rates else ())
            }
            for phase, rates in seen["rates"].items()
        },
        "replies": dict(statuses.most_common()),
        "outcomes": {role: dict(met.most_common()) for role, met in crowd.outcomes.items()},
        "exit": ended,
        "watchdog_longest_s": round(watchdog.longest_s, 2),
        "tracebacks": last_lines(log),
        "resident_mb": [round(mb, 1) for _, mb in resident[:: max(1, len(resident) // 10)]],
        "resident_mb_max": round(max((mb for _, mb in resident), default=0.0), 1),
        "resident_mb_min": slope,
        "resident_mb_min_error": slope_error,
        "neighbour_answers": sum("lost" not in one for one in crowd.answers),
        "neighbour_lost": lost[:5],
    }
    for phase, by_name in measured.items():
        for name, ms in by_name.items():
            for at in (50, 99):
                p = round(float(np.percentile(ms, at)), 1) if ms else None
                report[f"{phase}_{name}_p{at}"] = p
        report[f"{phase}_n"] = len(by_name["first_ms"])
    both = report["attack_first_ms_p99"], report["control_first_ms_p99"]
    report["ratio_first_ms_p99"] = None if None in both else round(both[0] / both[1], 2)
    whys = Counter(f"{one['why']} ({one['kind']})" for one in crowd.failures)
    wrong = [
        text
        for is_wrong, text in (
            (ended != 0, f"the service ended with {ended}"),
            (watchdog.longest_s > WATCHDOG_S, f"the watchdog missed {watchdog.longest_s:.1f} s"),
            (lost, f"the neighbour lost {len(lost)} answers"),
            (report["tracebacks"], f"tracebacks in the log: {report['tracebacks']}"),
            (crowd.failures, f"replies: {dict(whys.most_common(8))}"),
            (growth_mb > MAX_GROWTH_MB, f"memory grew by {growth_mb:.0f} MB in the second half"),
        )
        if is_wrong
    ]
    kept = crowd.failures[:MAX_FAILURES]
    kept += [{"kind": kind, "why": "was under way", "data": data} for kind, data in crowd.gone]
    return report, wrong, kept


def write_failures(folder: Path, failures: list[dict[str, Any]]) -> None:
    """One message a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, one in enumerate(failures):
        name = re.sub(r"\W+", "-", f"{k:03d}-{one['kind']}-{one['why']}")[:80]
        (folder / name).write_bytes(one["data"].encode("latin-1"))


def replay(file: Path, path: str) -> None:
    """Send one message again; print what is answered."""
    data = file.read_bytes()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(REPLY_S)
        sock.connect(path)
        replies = Replies(sock)
        if data[0] < 0x80:
            sock.sendall(data)
            status, _, body = replies.reply()
            print(status, body[:2000].decode(errors="replace"))
            return
        sock.sendall(HANDSHAKE + data + frame(1, b'{"type":"no.such","event_id":"last"}'))
        replies.reply()
        while b'"last"' not in (told := replies.message())[1] and told[0] != 8:
            print(told[1][:500])


def main() -> None:
    """Attack, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("film", type=Path, nargs="?")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=3000.0, help="messages a second at most")
    parser.add_argument("--block-s", type=float, default=BLOCK_S)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path(".cache/attack"))
    parser.add_argument("--json", action="store_true", help="nothing but a JSON object")
    parser.add_argument("--replay", nargs=2, metavar=("FILE", "SOCKET"))
    for what in ("attack", "neighbour", "sink"):  # what its own processes are
        parser.add_argument(f"--{what}", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        replay(Path(arguments.replay[0]), arguments.replay[1])
    elif arguments.attack:
        attack(arguments.attack)
    elif arguments.neighbour:
        neighbour(arguments.neighbour)
    elif arguments.sink:
        sink([socket.socket(fileno=number) for number in arguments.sink])
    elif arguments.film is None:
        parser.error("give a bundle and a film")
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("attack: was told to stop"))
        report, wrong, failures = run(arguments)
        report |= {"seed": arguments.seed, "wrong": wrong}
        for name, value in () if arguments.json else report.items():
            print(f"{name:28} {value}")
        print(json.dumps(report))
        if failures:
            write_failures(arguments.failures, failures)
        if wrong:
            sys.exit(f"attack: {'; '.join(wrong)}; what did it is in {arguments.failures}")


if __name__ == "__main__":
    main()
