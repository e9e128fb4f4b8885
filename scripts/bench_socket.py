"""How much time the socket itself takes: the real service code over a session of zero cost.

The loop, its thread and the application run in this process; the client is another process and
talks plain WebSocket. Times are the client's, on the clock that both share, so they hold the
client's own part too. A session of zero cost never leaves the interpreter, so it is measured once
more with calls that do. "echo" is a thread that sends back what it receives: what the machine
itself takes for such a round at the time; "stalls" is how often it takes the core away from a
thread that only looks at the clock. Prints a table; the last line is JSON.

    python scripts/bench_socket.py [--rounds 2000] [--idle 16]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from published_config import CONFIG, GENERATION_CONFIG
from simulate import TOKENIZER

from edge.clock import MonotonicClock, VirtualClock
from edge.config import Config, Context
from edge.engines.simulated import Cost, Costs, SimulatedEngine, SimulatedState
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.spec import model_spec
from edge.model.tokenizer import Tokenizer
from edge.serve import unix_socket
from edge.serve.app import make_app, serving
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.turn import AnswerEvent, Done, Question, Turn
from edge.startup import SWITCH_INTERVAL_S
from edge.types import Float32

MODEL = "zero-cost"
SETTINGS = Config(context=Context(max_tokens=8192, keep_tokens=2048))
N_TOKENS = 8
STALL_NS, STALLS_SEEN_S = 100_000, 2.0
CALL_S = 0.005
"""As a device's: meanwhile the interpreter is free. Without cost it never is."""
NOTHING = Cost(0.0, 0.0, "none")


class LeftAt:
    """Remembers when the first text of each response had been handed to the kernel."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self._is_waiting = False

    def watch(self, write: Callable[[Any, bytes], None]) -> Callable[[Any, bytes], None]:
        """The write of a transport, watched."""

        def watched(transport: Any, data: bytes) -> None:
            write(transport, data)
            self._is_waiting |= b'"response.created"' in data
            if self._is_waiting and b'"response.output_text.delta"' in data:
                self._is_waiting = False
                self.times_ns.append(time.monotonic_ns())

        return watched


class TimedLoop(LiveLoop):
    """Remembers when the first token of each answer was sampled."""

    sampled_ns: list[int]

    def ask(
        self,
        question: Question,
        deliver: Callable[[AnswerEvent], None],
        asked_ns: int | None = None,
    ) -> Turn:
        def timed(event: AnswerEvent) -> None:
            if isinstance(event, Done):
                self.sampled_ns.append(event.timeline.first_token_ns)
            deliver(event)

        return super().ask(question, timed, asked_ns)


class LetterEngine(SimulatedEngine):
    """Always says the same letter; a call takes no time, or leaves the interpreter for some."""

    def __init__(self, tokenizer: Tokenizer, call_s: float) -> None:
        self._call_s = call_s
        spec = model_spec(CONFIG, GENERATION_CONFIG)
        super().__init__(Costs(*[NOTHING] * len(fields(Costs))), VirtualClock(), spec)
        letter = int(tokenizer.encode("a")[0])
        self._logits = np.zeros(letter + 1, np.float32)
        self._logits[letter] = 1.0

    def prefill(self, state: SimulatedState, embeddings: Float32) -> Float32:
        if self._call_s:
            time.sleep(self._call_s)
        return super().prefill(state, embeddings)

    def decode(self, state: SimulatedState, token: int) -> Float32:
        if self._call_s:
            time.sleep(self._call_s)
        return super().decode(state, token)


def make_loop(call_s: float) -> TimedLoop:
    """The real loop without senses."""
    tokenizer, clock = Tokenizer(TOKENIZER), MonotonicClock()
    prompt = LivePrompt(tokenizer, ChatTemplate(TOKENIZER), "")
    loop = TimedLoop(
        LetterEngine(tokenizer, call_s), prompt, SETTINGS, clock, MODEL, [], start_ns=clock.now_ns()
    )
    loop.sampled_ns = []
    return loop


class Client:
    """A WebSocket without a library: what is measured is the service, not its client's threads."""

    def __init__(self, path: Path) -> None:
        """Connect, and receive the first event."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nHost: e\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline() != b"\r\n":
            pass
        self.until("session.created")

    def send(self, message: bytes) -> None:
        """One text frame, masked with zeros, which leaves it as it is."""
        head = struct.pack("!BBH", 0x81, 0x80 | 126, len(message))
        self._socket.sendall(head + bytes(4) + message)

    def until(self, kind: str) -> int:
        """Receive up to an event; when it was there, ns."""
        while True:
            n_bytes = self._stream.read(2)[1]
            if n_bytes == 126:
                (n_bytes,) = struct.unpack("!H", self._stream.read(2))
            message = self._stream.read(n_bytes)
            now_ns = time.monotonic_ns()
            if message and json.loads(message)["type"] == kind:
                return now_ns


def echo(listener: socket.socket) -> None:
    """Send one client back what it sends."""
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


def echoed_ns(path: Path, n_rounds: int) -> list[int]:
    """How long `echo` takes, time after time."""
    times_ns: list[int] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        for _ in range(n_rounds):
            began_ns = time.monotonic_ns()
            connection.sendall(b"x" * 60)
            connection.recv(4096)
            times_ns.append(time.monotonic_ns() - began_ns)
    return times_ns


def client(path: Path, n_rounds: int, n_idle: int, results: Connection) -> None:
    """The other process: one that talks among some that do not."""
    echo_ns = echoed_ns(path.with_name("echo.sock"), n_rounds)
    idle = [Client(path) for _ in range(n_idle)]
    talking = Client(path)
    turnaround_ns: list[int] = []
    first_ns: list[int] = []
    asked_ns: list[int] = []
    clear = json.dumps({"type": "input_audio_buffer.clear"}).encode()
    wanted = {"conversation": "none", "max_output_tokens": N_TOKENS}
    create = json.dumps({"type": "response.create", "response": wanted}).encode()
    for _ in range(n_rounds):
        began_ns = time.monotonic_ns()
        talking.send(clear)
        turnaround_ns.append(talking.until("input_audio_buffer.cleared") - began_ns)
        asked_ns.append(time.monotonic_ns())
        talking.send(create)
        first_ns.append(talking.until("response.output_text.delta"))
        talking.until("response.done")
    results.send((echo_ns, turnaround_ns, asked_ns, first_ns))
    assert len(idle) == n_idle  # they were there all the time


def stalls_per_s() -> float:
    """How often a thread that has the core loses it for more than 0.1 ms."""
    began_ns = last_ns = time.monotonic_ns()
    n_stalls = 0
    while last_ns - began_ns < STALLS_SEEN_S * 1e9:
        now_ns = time.monotonic_ns()
        n_stalls += now_ns - last_ns > STALL_NS
        last_ns = now_ns
    return round(n_stalls / STALLS_SEEN_S, 1)


def measure(n_rounds: int, n_idle: int, call_s: float, left: LeftAt) -> dict[str, Any]:
    """One run: ms; stalls before and after it."""
    left.times_ns = []
    n_stalls = stalls_per_s()
    loop = make_loop(call_s)
    thread = threading.Thread(target=loop.run)
    thread.start()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edge.sock"
        listener = unix_socket.bind(path)
        echoing = unix_socket.bind(path.with_name("echo.sock"))
        echoes = threading.Thread(target=echo, args=(echoing,))
        echoes.start()

        async def serve() -> Any:
            async with serving(make_app(loop, SETTINGS, MODEL, Sampling()), listener):
                other = multiprocessing.get_context("spawn").Process(
                    target=client, args=(path, n_rounds, n_idle, theirs)
                )
                other.start()
                found = await asyncio.to_thread(ours.recv)
                await asyncio.to_thread(other.join)
                return found

        echo_ns, turnaround_ns, asked_ns, first_ns = asyncio.run(serve())
        echoes.join()
        echoing.close()
    loop.stop()
    thread.join()
    until_left_ns = [a - b for a, b in zip(left.times_ns, loop.sampled_ns, strict=True)]
    after_sampled_ns = [a - b for a, b in zip(first_ns, loop.sampled_ns, strict=True)]
    after_asked_ns = [a - b for a, b in zip(first_ns, asked_ns, strict=True)]
    return {
        "engine_call_ms": call_s * 1e3,
        "idle_clients": n_idle,
        "stalls_per_s": [n_stalls, stalls_per_s()],
        **_summary("echo", echo_ns),
        **_summary("event_to_event", turnaround_ns),
        **_summary("asked_to_first_token", after_asked_ns),
        **_summary("sampled_to_left", until_left_ns),
        **_summary("sampled_to_client", after_sampled_ns),
    }


def _summary(name: str, times_ns: list[int]) -> dict[str, float]:
    ordered = sorted(times_ns)
    return {
        f"{name}_p50_ms": round(statistics.median(ordered) / 1e6, 3),
        f"{name}_p99_ms": round(ordered[int(0.99 * len(ordered))] / 1e6, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--idle", type=int, default=16)
    words = parser.parse_args()
    left = LeftAt()
    transport: Any = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    transport.write = left.watch(transport.write)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    runs = [measure(words.rounds, n_idle, 0.0, left) for n_idle in (0, words.idle)]
    runs += [measure(words.rounds // 10, n_idle, CALL_S, left) for n_idle in (0, words.idle)]
    for run in runs:
        print("  ".join(f"{name}={value}" for name, value in run.items()))
    print(json.dumps({"benchmark": "socket", "rounds": words.rounds, "runs": runs}))


if __name__ == "__main__":
    main()
