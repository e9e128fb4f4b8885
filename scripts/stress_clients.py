"""64 clients that connect, ask, watch, cancel and die at random, on a service that perceives.

Each of eight processes runs eight clients; now and then one of the processes is killed in the
middle and another takes its place. Ends with 1 if a living client's answer is lost or not ended, if
a turn is stuck at the end, or if descriptors or memory of the service grow.

Usage:
    python scripts/stress_clients.py BUNDLE FILM --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_socket import SETTINGS, last_lines, n_descriptors, perceiving, resident_mb, stop

from edge.async_client import AsyncClient
from edge.client import Client
from edge.errors import CapacityError, EdgeError
from edge.wire import Ask, Finished, Watch

N_PROCESSES, N_CLIENTS = 8, 8
KILL_EVERY_S = 4.0
PAUSE_S = 1.0
"""Between two things that a client does, on average."""
ANSWER_S = 60.0
"""An answer that takes longer is lost."""
WARM_UP_SHARE = 0.4
MAX_SLOPE_MB_MIN = 2.0
MAX_WAITING = """
[socket]
max_waiting = 64
"""


async def client(path: Path, rng: random.Random, told: Counter[str]) -> None:
    """One client's life, for ever."""
    while True:
        what = rng.choices(("ask", "cancel", "watch", "events", "status"), (5, 3, 1, 1, 2))[0]
        try:
            async with AsyncClient(path, ANSWER_S) as one:
                await _do(what, one, rng)
            told[what] += 1
        except CapacityError:
            told["full"] += 1
        except EdgeError as error:
            told[f"lost {what}: {error}"[:150]] += 1
        await asyncio.sleep(rng.expovariate(1.0 / PAUSE_S))


async def _do(what: str, one: AsyncClient, rng: random.Random) -> None:
    if what == "status":
        await one.health()
    elif what == "ask":
        told = [event async for event in one.ask(Ask("Say red.", max_tokens=rng.randrange(1, 9)))]
        assert isinstance(told[-1], Finished)
    else:
        streams: dict[str, Callable[[], AsyncGenerator[Any, None]]] = {
            "cancel": lambda: one.ask(Ask("Hello", max_tokens=200)),
            "watch": lambda: one.watch(Watch("Is there a circle?", cooldown_s=0.0)),
            "events": lambda: one.events(),
        }
        async with contextlib.aclosing(streams[what]()) as events:
            with contextlib.suppress(asyncio.TimeoutError, StopAsyncIteration):
                await asyncio.wait_for(anext(events), rng.random())


async def process(path: Path, seed: int) -> None:
    """Clients of one process; a line of counts a second until it is killed."""
    told: Counter[str] = Counter()
    rng = random.Random(seed)
    clients = [
        asyncio.create_task(client(path, random.Random(rng.random()), told))
        for _ in range(N_CLIENTS)
    ]
    try:
        while not any(task.done() for task in clients):
            await asyncio.sleep(0.5)
            print(json.dumps(told), flush=True)
    finally:
        for task in clients:
            if task.done():
                told[f"lost client: {task.exception()!r}"[:150]] += 1
                print(json.dumps(told), flush=True)


class Crowd:
    """The processes, some of which die."""

    def __init__(self, path: Path, folder: Path, seed: int) -> None:
        self._path, self._folder, self._rng = path, folder, random.Random(seed)
        self.n_started = self.n_killed = 0
        self._running = [self._start() for _ in range(N_PROCESSES)]

    def _start(self) -> subprocess.Popen[bytes]:
        self.n_started += 1
        command = [sys.executable, __file__, "--as-process", str(self._path), str(self.n_started)]
        with (self._folder / f"{self.n_started}.json").open("wb") as file:
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def kill_one(self) -> None:
        """One dies in whatever it does, and another comes."""
        at = self._rng.randrange(N_PROCESSES)
        self._running[at].kill()
        self._running[at].wait()
        self.n_killed += 1
        self._running[at] = self._start()

    def end(self) -> Counter[str]:
        """All die; what they counted while they lived."""
        for one in self._running:
            one.kill()
            one.wait()
        told: Counter[str] = Counter()
        for path in self._folder.glob("*.json"):
            lines = [line for line in path.read_text().splitlines() if line.strip()]
            whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
            told.update(json.loads(whole[-1]) if whole else {})
            told.update({f"lost output: {line[:100]}": 1 for line in lines if line not in whole})
        return told


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """One service and its clients; what was seen, and what is wrong with it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-stress-")))
        path = folder / "edge.sock"
        service = stack.enter_context(perceiving(arguments, folder, SETTINGS + MAX_WAITING))
        n_before = n_descriptors(service.pid)
        crowd = Crowd(path, folder, arguments.seed)
        samples: list[tuple[float, float, float]] = []
        began_s = killed_s = time.monotonic()
        with tqdm(total=round(60 * arguments.minutes), unit="s", disable=None) as bar:
            while (since_s := time.monotonic() - began_s) < 60 * arguments.minutes:
                time.sleep(1.0)
                bar.update(round(since_s) - bar.n)
                if service.poll() is not None:
                    break
                pid = service.pid
                samples.append((since_s, resident_mb(pid), float(n_descriptors(pid))))
                if time.monotonic() - killed_s > KILL_EVERY_S:
                    crowd.kill_one()
                    killed_s = time.monotonic()
        told = crowd.end()
        wrong: list[str] = []
        report: dict[str, Any] = {}
        if service.poll() is None:
            time.sleep(2.0)
            report = after(Client(path), service.pid, n_before, wrong)
        code = stop(service)
        tracebacks = last_lines((folder / "log").read_text(errors="replace"))
    later = np.array([s for s in samples if s[0] >= WARM_UP_SHARE * samples[-1][0]])
    slope = float(np.polyfit(later[:, 0] / 60, later[:, 1], 1)[0])
    lost = {what: n for what, n in told.items() if what.startswith("lost")}
    report |= {
        "minutes": arguments.minutes,
        "done": {what: n for what, n in told.items() if what not in lost},
        "lost": lost,
        "processes_killed": crowd.n_killed,
        "memory_mb": [round(float(later[at, 1]), 1) for at in (0, -1)],
        "slope_mb_min": round(slope, 2),
        "most_descriptors": int(max(s[2] for s in samples)),
        "exit": code,
        "tracebacks": tracebacks,
    }
    for is_wrong, text in (
        (lost, "answers were lost"),
        (code != 0, f"the service ended with {code}"),
        (tracebacks, "tracebacks in the log"),
        (slope > MAX_SLOPE_MB_MIN, "memory grows"),
        (not told["ask"], "nobody was answered"),
    ):
        if is_wrong:
            wrong.append(text)
    return report, wrong


def after(one: Client, pid: int, n_before: int, wrong: list[str]) -> dict[str, Any]:
    """How the service is when all have died."""
    began_s = time.monotonic()
    list(one.ask("Say red.", max_tokens=2))
    answer_ms = 1e3 * (time.monotonic() - began_s)
    n_triggers, n_after = len(one.triggers()), n_descriptors(pid)
    gone = [line for line in one.metrics().splitlines() if 'status="499"' in line]
    for is_wrong, text in (
        (answer_ms > 1000, "a turn is stuck"),
        (n_triggers, "triggers outlive their clients"),
        (n_after > n_before + 2, "descriptors are left open"),
    ):
        if is_wrong:
            wrong.append(text)
    return {
        "last_answer_ms": round(answer_ms, 1),
        "triggers_left": n_triggers,
        "descriptors": [n_before, n_after],
        "clients_gone": sum(float(line.split()[-1]) for line in gone if "_total{" in line),
        "counters": one.health()["counters"],
    }


def main() -> None:
    """Stress, print, judge."""
    if sys.argv[1:2] == ["--as-process"]:
        asyncio.run(process(Path(sys.argv[2]), int(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    report, wrong = run(parser.parse_args())
    for name, value in report.items():
        print(f"{name:20} {value}")
    print(json.dumps(report))
    if wrong:
        sys.exit("stress: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
