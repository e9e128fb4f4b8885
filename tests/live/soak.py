"""A supervised service with camera, microphone and clients that is killed again and again.

    python tests/live/soak.py BUNDLE --minutes 30 --kill-every 120

Needs what tests/live/test_microphone.py needs. Prints a line a life, then one JSON line; ends with
1 if the service was ever away for longer than 10 s, missed its watchdog, grew, or left a zombie or
a socket that nobody holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent / "service")]

from supervisor import Supervisor  # noqa: E402

from edge.client import Client  # noqa: E402
from edge.errors import EdgeError  # noqa: E402

N_CLIENTS = 4
MAX_AWAY_S = 10.0
SETTLED_S = 20.0
"""A life's memory is read so long after its start."""
MAX_GROWTH = 1.1
CONFIG = """
[perception]
fps = 2
listen = "utterances"
[turns]
mode = "open"
[answer]
max_tokens = 8
[[camera]]
name = "front"
source = "udp://127.0.0.1:{port}"
[[microphone]]
name = "head"
source = "device:pulse"
"""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--kill-every", type=float, default=120.0)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(given.bundle, Path(folder), 60 * given.minutes, given.kill_every)


def soak(bundle: Path, folder: Path, seconds: float, every_s: float) -> int:
    from test_microphone import Pulse

    pulse = Pulse(folder)
    os.environ.update(pulse.environment)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has been compiled
    pulse.start()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    film = subprocess.Popen([sys.executable, str(HERE / "barcode_stream.py"), str(port)])
    settings = folder / "edge.toml"
    settings.write_text(CONFIG.format(port=port))
    command = [sys.executable, "-m", "edge.cli", "run", str(bundle), "--config", str(settings)]
    supervisor = Supervisor(folder, command, watchdog_s=20.0)
    speech = _speech(folder / "speech.wav")
    ended = threading.Event()
    answered, lost = [0] * N_CLIENTS, [0] * N_CLIENTS

    def ask(n: int) -> None:
        while not ended.is_set():
            try:
                list(Client(supervisor.path, 60.0).ask("What is there?", max_tokens=4))
                answered[n] += 1
            except EdgeError:
                lost[n] += 1
            ended.wait(1.0)

    def speak() -> None:
        while not ended.wait(7.0):
            pulse.play(speech)

    people = [threading.Thread(target=ask, args=(n,)) for n in range(N_CLIENTS)]
    people.append(threading.Thread(target=speak))
    away_s, memory_mb, silent = [], [], 0
    zombies, stale = 0, set()
    rng = random.Random(0)
    until_s = time.monotonic() + seconds
    supervisor.start()
    supervisor.wait_for("READY=1")
    for person in people:
        person.start()
    try:
        while time.monotonic() < until_s:
            born_s, dies_s = time.monotonic(), time.monotonic() + every_s * rng.uniform(0.7, 1.3)
            is_read = False
            while time.monotonic() < dies_s:
                silent += supervisor.hear(supervisor.watchdog_s) is None
                if not is_read and time.monotonic() > born_s + SETTLED_S:
                    memory_mb.append(_memory_mb(supervisor.process.pid))
                    is_read = True
            zombies += _n_zombies(supervisor.process.pid)
            supervisor.process.send_signal(signal.SIGKILL)
            supervisor.process.wait()
            killed_s = time.monotonic()
            supervisor.start()
            supervisor.wait_for("READY=1")
            list(Client(supervisor.path, 60.0).ask("Hello", max_tokens=1))
            away_s.append(time.monotonic() - killed_s)
            stale |= _stale_sockets(folder)
            print(f"life {len(away_s)}: answering {away_s[-1]:.2f} s after kill -9", flush=True)
        code, drained_s = supervisor.stop()
    finally:
        ended.set()
        startup_s = [float(s) for s in re.findall(r"startup_s=(\S+)", supervisor.log)]
        supervisor.close()  # who still waits for an answer is turned away
        for person in people:
            person.join()
        film.kill()
        film.wait()
        pulse.stop()
    grown = memory_mb[-1] / memory_mb[0] if memory_mb else 1.0
    report = {
        "minutes": seconds / 60,
        "kills": len(away_s),
        "away_s": {"median": round(statistics.median(away_s), 2), "most": round(max(away_s), 2)},
        "startup_s": {
            "median": round(statistics.median(startup_s), 2),
            "most": round(max(startup_s), 2),
        },
        "answered": sum(answered),
        "lost_with_the_service": sum(lost),
        "memory_mb_of_each_life": [round(mb) for mb in memory_mb],
        "watchdog_missed": silent,
        "zombies": zombies,
        "stale_sockets": sorted(stale),
        "exit_code": code,
        "drained_s": round(drained_s, 2),
    }
    print(json.dumps(report))
    is_wrong = max(away_s) > MAX_AWAY_S or grown > MAX_GROWTH or silent > 0 or code != 0
    return int(is_wrong or zombies > 0 or bool(stale))


def _n_zombies(parent: int) -> int:
    """Children that have ended and that `parent` has not waited for."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        count += (state, its_parent) == ("Z", str(parent))
    return count


def _stale_sockets(folder: Path) -> set[str]:
    """Sockets below `folder` that no process has bound."""
    bound = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    found = {str(path) for path in folder.rglob("*") if path.is_socket()}
    return found - bound


def _memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def _speech(path: Path) -> Path:
    """A recorded word of Debian's alsa-utils; without it a tone."""
    recorded = Path("/usr/share/sounds/alsa/Front_Center.wav")
    if recorded.exists():
        return recorded
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone = 8000 * np.sin(np.arange(16_000) * 0.2)
        file.writeframes(tone.astype(np.int16).tobytes())
    return path


if __name__ == "__main__":
    sys.exit(main())
