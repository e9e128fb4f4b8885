"""Send a running service a million broken messages while it perceives, and watch what that does.

The service perceives a recording without end. Some clients send what scripts/fuzz_messages.py makes
and vanish in mid-message; a well-behaved neighbour asks all the time and hears of every segment.
Ends with 1 if the service ends, if the neighbour sees anything of it, if a segment is in the state
later than a second after its capture, if a frame is dropped, or if memory grows.

Usage:
    python scripts/fuzz_socket.py BUNDLE FILM
    python scripts/fuzz_socket.py BUNDLE FILM --messages 50000 --seed 7
    python scripts/fuzz_socket.py BUNDLE FILM --seconds 300
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import fuzz_messages as fuzz

from edge.client import Client
from edge.errors import CapacityError, EdgeError

N_CLIENTS = 8
BURST = 40
"""Messages on one connection at most; then it is closed, however far it is."""
READ_S = 0.02
"""So long a client waits for what is said to it before it goes on."""
MAX_LATE_MS = 1000.0
"""From capture to the state: the next two frames of a recording at 2 a second."""
MAX_USED_MB_MIN, MAX_RESIDENT_MB_MIN = 1.0, 5.0
"""Over the second half, at up to USUAL_MIN messages a minute; in proportion where they are more. A
leak of 10 bytes each would be 3. What is resident grows more: malloc keeps what was freed between
what was not."""
USUAL_MIN = 300_000
WARM_S, WARM_MESSAGES = 180, 1_000_000
"""What is shorter in both only warms up: its memory is not judged."""
SAMPLE_S, USED_S = 1.0, 1.0
SETTINGS = """
[answer]
max_tokens = 4
[context]
max_tokens = 1024
keep_tokens = 400
"""


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def n_descriptors(pid: int) -> int:
    """Its open files."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Sender:
    """Broken clients of one service."""

    def __init__(self, path: Path, n_messages: int, seed: int) -> None:
        self._path, self._rng = path, random.Random(seed)
        self.n_left = n_messages
        self.kinds: Counter[str] = Counter()

    async def run(self) -> None:
        """All of them, until every message is sent."""
        await asyncio.gather(*(self._client() for _ in range(N_CLIENTS)))

    async def _client(self) -> None:
        while self.n_left > 0:
            # A refused or broken connection is what is to be expected here.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    await self._burst(reader, writer)
                finally:
                    writer.transport.abort()

    async def _burst(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What one says does not depend on how far the others are.
        rng = random.Random(self._rng.getrandbits(64))
        frames = rng.random() < 0.6
        if frames:
            writer.write(fuzz.HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
        for _ in range(min(rng.randrange(1, BURST + 1), self.n_left)):
            ends = rng.random() < 0.02
            make = (
                (fuzz.broken_frame if ends else fuzz.event)
                if frames
                else rng.choice((fuzz.request, fuzz.look))
                if not ends
                else fuzz.broken_request
            )
            self.n_left -= 1
            self.kinds[make.__name__] += 1
            message = make(rng)
            writer.write(message)
            if rng.random() < 0.05:  # answers are read now and then
                await writer.drain()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(1 << 16), READ_S)
            if reader.at_eof() or writer.is_closing():
                return
        await writer.drain()
        with contextlib.suppress(asyncio.TimeoutError):
            while await asyncio.wait_for(reader.read(1 << 16), READ_S):
                pass


class Neighbour:
    """Asks all the time, and hears of every segment."""

    def __init__(self, path: Path) -> None:
        self._path, self._stop = path, threading.Event()
        self.ready_ms: list[float] = []
        self.answer_ms: list[float] = []
        self.late_ms: list[float] = []
        self.troubles: list[str] = []
        self.n_full = 0
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._hear)]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def _ask(self) -> None:
        client, expected = Client(self._path, 30.0), ""
        while not self._stop.is_set():
            try:
                began_s = time.monotonic()
                client.models()
                self.ready_ms.append(1e3 * (time.monotonic() - began_s))
                began_s = time.monotonic()
                events = list(client.ask("Say red.", max_tokens=2, temperature=0.0, recall_s=None))
                self.answer_ms.append(1e3 * (time.monotonic() - began_s))
                expected = expected or type(events[-1]).__name__
            except CapacityError:
                self.n_full += 1  # eight others ask: said so, at once
            except EdgeError as error:
                self.troubles.append(str(error))
            self._stop.wait(0.1)

    def _hear(self) -> None:
        try:
            for event in Client(self._path, 30.0).events(["edge.perceived"]):
                stages = event["segment"]
                parts = ("late_ms", "features_ms", "encode_ms", "prefill_ms")
                self.late_ms.append(sum(stages[part] for part in parts))
                if self._stop.is_set():
                    return
        except EdgeError as error:
            if not self._stop.is_set():
                self.troubles.append(f"events: {error}")

    def stop(self) -> None:
        """Wait for the last answer."""
        self._stop.set()
        self._threads[0].join(30)


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """One service, all messages; what was seen, and what is wrong with it."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-fuzz-"))
        path = Path(folder) / "edge.sock"
        service = stack.enter_context(perceiving(arguments, Path(folder)))
        neighbour = Neighbour(path)
        time.sleep(5.0)
        quiet_ms, quiet_late_ms = list(neighbour.ready_ms), list(neighbour.late_ms)
        n_messages = sys.maxsize if arguments.seconds else arguments.messages
        sender = Sender(path, n_messages, arguments.seed)
        resident: list[tuple[float, float]] = []
        used: list[tuple[float, float]] = []
        n_before = n_descriptors(service.pid)
        thread = threading.Thread(target=lambda: asyncio.run(sender.run()))
        began_s = time.monotonic()
        thread.start()
        total = None if arguments.seconds else n_messages
        with tqdm(total=total, unit="messages", disable=None) as bar:
            while thread.is_alive():
                thread.join(SAMPLE_S)
                bar.update(n_messages - sender.n_left - bar.n)
                if service.poll() is not None:
                    break
                now_s = time.monotonic() - began_s
                if arguments.seconds and now_s >= arguments.seconds:
                    sender.n_left = 0
                resident.append((now_s, resident_mb(service.pid)))
                if now_s >= len(used) * USED_S:
                    n_bytes = _metric(Client(path).metrics(), "edge_malloc_used_bytes")
                    used.append((now_s, n_bytes / 1e6))
        took_s = time.monotonic() - began_s
        time.sleep(3.0)  # connections that were left open are noticed
        neighbour.stop()
        ended = service.poll()
        health: dict[str, Any] = {} if ended is not None else Client(path).health()
        metrics = "" if ended is not None else Client(path).metrics()
        n_after = 0 if ended is not None else n_descriptors(service.pid)
        ended = stop(service)
        said = (Path(folder) / "log").read_text(errors="replace")
    counters = health.get("counters", {})
    late = neighbour.late_ms or [0.0]
    (resident_mb_min, resident_error), (used_mb_min, used_error) = map(slope_of, (resident, used))
    n_sent = sum(sender.kinds.values())
    times_usual = max(1.0, n_sent / (took_s / 60) / USUAL_MIN)
    is_warm = took_s >= WARM_S or n_sent >= WARM_MESSAGES
    report = {
        "messages": n_sent,
        "by_kind": dict(sender.kinds),
        "seconds": round(took_s, 1),
        "messages_per_s": round(n_sent / took_s),
        "resident_mb": [round(mb, 1) for _, mb in (*resident[:1], *resident[-1:])],
        "resident_mb_min": resident_mb_min,
        "resident_mb_min_error": resident_error,
        "used_mb": [round(mb, 1) for _, mb in (*used[:1], *used[-1:])],
        "used_mb_min": used_mb_min,
        "used_mb_min_error": used_error,
        "descriptors": [n_before, n_after],
        "segments": len(neighbour.late_ms),
        "late_ms_max": round(max(late), 1),
        "late_ms_max_before": round(max(quiet_late_ms or [0.0]), 1),
        "n_late": sum(ms > MAX_LATE_MS for ms in late),
        "frames_dropped": counters.get("video_dropped", -1),
        "degraded": counters.get("degraded", 0),
        "neighbour_answers": len(neighbour.answer_ms),
        "neighbour_full": neighbour.n_full,
        "neighbour_ready_ms_p99": round(float(np.percentile(neighbour.ready_ms, 99)), 2),
        "neighbour_ready_ms_p99_before": round(float(np.percentile(quiet_ms, 99)), 2),
        "neighbour_troubles": neighbour.troubles[:5],
        "malformed": _metric(metrics, "edge_requests_malformed_total"),
        "exit": ended,
        "tracebacks": said.count("Traceback"),
    }
    wrong = [
        text
        for is_wrong, text in (
            (ended != 0, f"the service ended with {ended}"),
            (report["tracebacks"], f"tracebacks in the log, ending with {last_lines(said)}"),
            (neighbour.troubles, "the neighbour was troubled"),
            (report["n_late"], "segments were late"),
            (report["frames_dropped"] != 0, "frames were dropped"),
            (
                is_warm and used_mb_min - used_error > MAX_USED_MB_MIN * times_usual,
                "memory leaks",
            ),
            (
                is_warm and resident_mb_min - resident_error > MAX_RESIDENT_MB_MIN * times_usual,
                "resident memory grows",
            ),
            (n_after > n_before + 2, "descriptors are left open"),
        )
        if is_wrong
    ]
    return report, wrong


def slope_of(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """A minute's growth of what was sampled, over the second half, and three standard errors.

    The live context alone grows by some MB and is rebased, every 16 s or so.
    """
    half = np.array(samples[len(samples) // 2 :])
    if len(half) < 4:
        return 0.0, 0.0
    line, covariance = np.polyfit(half[:, 0] / 60, half[:, 1], 1, cov=True)
    return round(float(line[0]), 2), round(3 * float(np.sqrt(covariance[0, 0])), 2)


def last_lines(log: str) -> dict[str, int]:
    """What the tracebacks of a log end with."""
    ends: Counter[str] = Counter()
    is_in = False
    for line in log.splitlines():
        if line.startswith("Traceback"):
            is_in = True
        elif is_in and line and not line.startswith(" "):
            ends[line[:200]] += 1
            is_in = False
    return dict(ends)


def _metric(text: str, name: str) -> float:
    found = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0]) if found else 0.0


@contextlib.contextmanager
def perceiving(
    words: argparse.Namespace,
    folder: Path,
    settings: str = SETTINGS,
    environment: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A service that answers, and perceives a film without end.

    Args:
        words: with its bundle and the film.
        folder: for its socket, `edge.sock`, its settings, and its `log`.
        environment: beside this process's own.
    """
    path, file = folder / "edge.sock", folder / "edge.toml"
    file.write_text(settings)
    command: list[str | Path] = [sys.executable, "-m", "edge.cli", "run", words.bundle]
    command += ["--video", words.film, "--repeat", "--quiet", "--socket", path, "--config", file]
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(command, stderr=log, env=os.environ | (environment or {}))
    try:
        wait_until_ready(service, Client(path))
        yield service
    finally:
        service.kill()
        service.wait()


def stop(service: subprocess.Popen[bytes]) -> int:
    """Have it end in order, if it has not ended; what it ended with."""
    service.terminate()
    return service.wait(timeout=60)


def wait_until_ready(service: subprocess.Popen[bytes], client: Client) -> None:
    """Return when it answers."""
    while True:
        with contextlib.suppress(EdgeError):
            if client.health()["ready"]:
                return
        if service.poll() is not None:
            sys.exit(f"the service ended with {service.returncode}")
        time.sleep(0.1)


def main() -> None:
    """Fuzz, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, help="so long, instead of so many")
    parser.add_argument("--seed", type=int, default=0)
    report, wrong = run(parser.parse_args())
    for name, value in report.items():
        print(f"{name:28} {value}")
    print(json.dumps(report))
    if wrong:
        sys.exit("fuzz: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
