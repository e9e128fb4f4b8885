"""How much of a core a session takes beside its engine, while it perceives a film and is asked.

The session runs in this process, in real time. Every thread's processor time is read from Linux at
the beginning and at the end. The engine's is what the loop's thread spends inside its calls, and
all of the threads that are not Python's (ONNX Runtime; the kernels have one thread here, so that
the features are not counted as the engine's). FFmpeg's, which decode the film in a camera's place,
are told apart by their names, or by having ended with the film, which is played again and again.
The rest is ours: the loop, the features, the sources. The last line is JSON.

Usage:
    python scripts/bench_cpu.py BUNDLE FILM --seconds 60
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edge import _kernels, service
from edge.clock import MonotonicClock
from edge.config import load_config
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.model.sampling import Sampling
from edge.notify import Notifier
from edge.pulse import Pulse
from edge.session.turn import Done, Failed, Message, Question
from edge.startup import Startup

CALLS = ("encode_tubelets", "encode_audio", "embed", "prefill", "snapshot", "restore")
"""What else the engine offers calls these."""
QUESTION, ASK_EVERY_S, ANSWER_TOKENS = "What do you see?", 20.0, 16
TASKS = Path("/proc/self/task")
WARM_UP_S = 5.0


def thread_s() -> dict[int, float]:
    """Processor time of each thread, by its id."""
    spent: dict[int, float] = {}
    for task in TASKS.iterdir():
        try:
            spent[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:  # it has just ended
            continue
    return spent


def name_of(thread: int) -> str:
    """What Linux calls it."""
    try:
        return (TASKS / str(thread) / "comm").read_text().strip()
    except OSError:
        return ""


class Inside:
    """Processor time that the calling threads spend inside the engine."""

    def __init__(self) -> None:
        self.spent_s, self._depth = 0.0, 0
        for name in CALLS:
            setattr(CpuEngine, name, self._metered(getattr(CpuEngine, name)))

    def _metered(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def metered(*arguments: Any) -> Any:
            self._depth += 1
            began_s = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.spent_s += time.thread_time() - began_s

        return metered


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the session and split its processor time."""
    inside = Inside()
    changes: dict[str, dict[str, object]] = {
        "perception": {"fps": arguments.fps, "listen": arguments.listen}
    }
    config = load_config(None, changes)
    senses = service.open_senses(config, arguments.film, None, sound=True, repeat=True)
    bundle = Bundle(arguments.bundle)
    notifier = Notifier.of({})
    loop = service._session(
        *(CpuEngine(bundle), bundle, config, senses, MonotonicClock(), None),
        *(Startup(notifier), notifier, Pulse()),
    )
    _kernels.set_threads(1)  # so that no feature is computed on a thread of the pool
    runner = threading.Thread(target=loop.run, name="loop")
    runner.start()
    time.sleep(WARM_UP_S)  # encoders are loaded
    before, inside_before_s, began_s = thread_s(), inside.spent_s, time.monotonic()
    process_before_s = time.process_time()
    n_asked = 0
    while (since_s := time.monotonic() - began_s) < arguments.seconds:
        if since_s >= n_asked * ASK_EVERY_S:
            ask(loop)
            n_asked += 1
        time.sleep(0.2)
    seconds, after = time.monotonic() - began_s, thread_s()
    process_s = time.process_time() - process_before_s
    inside_s = inside.spent_s - inside_before_s
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    split: defaultdict[str, float] = defaultdict(float)
    for thread, spent_s in after.items():
        name = python.get(thread) or ("ffmpeg" if name_of(thread).startswith("av:") else "engine")
        split[name] += spent_s - before.get(thread, 0.0)
    split["loop"] -= inside_s
    split["engine"] += inside_s
    split["ffmpeg"] += process_s - sum(split.values())
    counters = loop.status().counters
    loop.stop()
    runner.join()
    shares = {name: round(100 * spent / seconds, 2) for name, spent in split.items()}
    beside = sum(share for name, share in shares.items() if name != "engine")
    return {
        "seconds": round(seconds, 1),
        "fps": arguments.fps,
        "listen": arguments.listen,
        "percent_of_a_core": shares,
        "beside_the_engine": round(beside, 2),
        "beside_engine_and_film": round(beside - shares["ffmpeg"] - shares.get("video", 0.0), 2),
        "segments": counters["video_segments"] + counters["audio_segments"],
        "dropped": counters["video_dropped"] + counters["audio_dropped"],
        "answers": counters["answers"],
    }


def ask(loop: Any) -> None:
    """Ask and wait for the end of the answer."""
    ended = threading.Event()

    def deliver(event: object) -> None:
        if isinstance(event, Done | Failed):
            ended.set()

    loop.ask(Question((Message("user", QUESTION),), Sampling(), ANSWER_TOKENS), deliver)
    ended.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("film", type=Path, help="a recording with sound")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--listen", choices=("windows", "utterances"), default="windows")
    arguments = parser.parse_args()
    found = measure(arguments)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; percent of one core")
    for name, share in found["percent_of_a_core"].items():
        print(f"  {name:12} {share:7.2f}")
    print(f"  beside the engine {found['beside_the_engine']:.2f}", end="")
    print(f", without decoding the film {found['beside_engine_and_film']:.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
