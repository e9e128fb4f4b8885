"""Run the real service into bad luck, and compare what it keeps with what it promises.

A full, read-only or slow disk, a clock that is set back, a process that is stopped for a while, too
few files, too little memory, and kill -9 in the middle of a rebase and of a recording. Each case
runs `edge run` on a bundle and a film, lets it happen, and looks at what was said to be kept:
answers, settings, events that were told, and the recording, which is replayed. A case that needs
what is not there (root, for file systems of its own) is left out, and says so. The last line is
JSON with --json; ends with 1 if anything was lost that was said to be kept.

Usage:
    python scripts/bad_luck.py BUNDLE FILM
    python scripts/bad_luck.py BUNDLE FILM --only "full disk" "kill -9" --json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from media_bombs import png

from edge.client import Client, Finished
from edge.errors import EdgeError
from edge.session.record import read
from edge.session.record_files import FLUSH_S, files_of

TIMEOUT_S = 120.0
LOOK_S = 0.05
"""From one look at a service to the next."""
SLOW_BYTES_PER_S = 1 << 20
STOPPED_S = 30.0
SPARE_MIB = (16, 0)
"""A running process is given so much more memory than it has."""
REBASE_SHARE = 4
SETTINGS = """
[context]
max_tokens = {max_tokens}
keep_tokens = {keep_tokens}
[record]
folder = "{folder}"
max_bytes = {max_bytes}
keep_free_bytes = 0
"""
CLOCK_SET_BACK = """
import runpy, signal, sys, time
by_s, real, real_ns, gmtime = 3600, time.time, time.time_ns, time.gmtime
def back(*_):
    time.time = lambda: real() - by_s
    time.time_ns = lambda: real_ns() - by_s * 10**9
    time.gmtime = lambda s=None: gmtime(real() - by_s if s is None else s)
signal.signal(signal.SIGUSR1, back)
sys.argv[0] = "edge"
runpy.run_module("edge.cli", run_name="__main__")
"""
"""The wall clock of one process goes back by an hour. A machine's own cannot be set for a test."""


class LostError(Exception):
    """What was said to be kept is not."""


class LeftOutError(Exception):
    """A case cannot be tried here."""


@dataclass
class Row:
    """What became of one case."""

    case: str
    promised: str
    found: str = ""
    kept: bool | None = None
    """None: it was left out."""
    figures: dict[str, Any] = field(default_factory=dict)


class Service:
    """A running `edge run`."""

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        words: list[object],
        *,
        before: Callable[[], None] | None = None,
        program: tuple[str, ...] = ("-m", "edge.cli"),
    ) -> None:
        self.socket, self._log = folder / "edge.sock", folder / "log"
        command = [sys.executable, *program, "run", bundle, "--socket", self.socket, *words]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stderr=log, preexec_fn=before
            )
        self.client = Client(self.socket, TIMEOUT_S)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def until(self, what: str, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Look at its health until something is so."""
        end_s = time.monotonic() + TIMEOUT_S
        health: dict[str, Any] = {}
        while time.monotonic() < end_s:
            if self.process.poll() is not None:
                code = self.process.returncode
                raise LostError(f"the service ended ({code}) before {what}: {self.log[-300:]}")
            with contextlib.suppress(EdgeError):
                health = self.client.health()
                if is_so(health):
                    return health
            time.sleep(LOOK_S)
        raise LostError(f"not {what} after {TIMEOUT_S:.0f} s: {health}")

    def ready(self) -> Service:
        """Once it answers."""
        self.until("ready", lambda health: health["ready"])
        return self

    def perceiving(self, n: int = 2) -> Service:
        """Once so many more pictures are in the context."""
        seen = self.ready().client.health()["counters"].get("video_segments", 0)
        self.until(
            "pictures are seen", lambda h: h["counters"].get("video_segments", 0) >= seen + n
        )
        return self

    def ask(self, max_tokens: int = 4) -> float:
        """Ask, and be answered; how long that took, s."""
        began_s = time.monotonic()
        events = [*self.client.ask("What do you see?", max_tokens=max_tokens)]
        if not isinstance(events[-1], Finished):
            raise LostError("an answer has no end")
        return time.monotonic() - began_s

    def stop(self) -> None:
        """SIGTERM, and an orderly end."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(TIMEOUT_S)
        if code != 0:
            raise LostError(f"it ended with {code}: {self.log[-300:]}")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


@dataclass
class Place:
    """Where one case happens."""

    folder: Path
    bundle: Path
    film: Path
    started: list[Service] = field(default_factory=list)
    mounted: list[Path] = field(default_factory=list)

    @property
    def recorded(self) -> Path:
        """The folder of recordings."""
        return self.folder / "recorded"

    def run(
        self,
        *words: object,
        max_tokens: int = 4096,
        keep_tokens: int = 1024,
        max_bytes: int = 1 << 30,
        film: Path | None = None,
        **how: Any,
    ) -> Service:
        """A service that records into `recorded`, and sees the film again and again."""
        settings = self.folder / "edge.toml"
        settings.write_text(
            SETTINGS.format(
                max_tokens=max_tokens,
                keep_tokens=keep_tokens,
                folder=self.recorded,
                max_bytes=max_bytes,
            )
        )
        given = ["--config", settings, "--video", film or self.film, "--repeat", "--quiet", *words]
        service = Service(self.folder, self.bundle, given, **how)
        self.started.append(service)
        return service

    def mount(self, path: Path, options: str) -> None:
        """A file system in memory."""
        if os.geteuid():
            raise LeftOutError("needs root, to mount a file system")
        path.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
        if mounted.returncode:
            raise LeftOutError(f"cannot mount a file system ({mounted.stderr.strip()})")
        self.mounted.append(path)

    def remount(self, path: Path, options: str) -> None:
        """With other options."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)

    def replayed(self, *paths: Path) -> list[dict[str, Any]]:
        """What `edge replay` says of each file, each by itself; all events are as recorded."""
        reports: list[dict[str, Any]] = []
        for path in paths:
            words = [sys.executable, "-m", "edge.cli", "replay", self.bundle, path, "--json"]
            done = subprocess.run(
                [str(word) for word in words], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise LostError(f"{path.name} does not replay: {done.stderr.strip()[-300:]}")
            report = json.loads(done.stdout)
            reports += report["files"] if path.is_dir() else [report]
        return reports

    def close(self) -> None:
        """Leave nothing behind."""
        for service in self.started:
            if service.process.poll() is None:
                service.process.send_signal(signal.SIGCONT)
                service.kill()
        for path in self.mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def n_events(paths: list[Path], kind: str) -> int:
    """How many events of a kind are recorded."""
    steps = (step for path in paths for step in read(path).steps())
    return sum(event["type"] == kind for step in steps for event in step.events)


def full_disk(place: Place) -> tuple[str, dict[str, Any]]:
    """The session goes on, it is told, and recorded again when there is room; all that was written
    replays."""
    place.mount(place.recorded, "size=5m")
    service = place.run().perceiving()
    full = service.until("told that the disk is full", lambda health: health["problems"])
    answered_s = service.ask()
    place.remount(place.recorded, "size=200m")
    service.until("recorded again", lambda health: not health["problems"])
    service.perceiving()
    again_s = service.ask()
    service.stop()
    reports = place.replayed(place.recorded)
    if len(reports) < 2 or not reports[0]["cut"] or reports[-1]["cut"]:
        raise LostError(f"of the recording there is {reports}")
    if service.log.count("event=stopped error=") != 1 or full["status"] != "degraded":
        raise LostError(f"it was told otherwise than once: {service.log}")
    steps = [report["steps"] for report in reports]
    found = (
        f"degraded ({full['problems'][0]}), said once; answered meanwhile; recorded again by "
        f"itself; {' + '.join(str(n) for n in steps)} steps in {len(steps)} files replay"
    )
    return found, {"steps": steps, "answered_s": [answered_s, again_s]}


def read_only(place: Place) -> tuple[str, dict[str, Any]]:
    """The service starts and goes on, it is told; recorded when it can be."""
    is_root = not os.geteuid()
    if is_root:
        place.mount(place.recorded, "ro,size=200m")
    else:
        place.recorded.mkdir(0o500)
    service = place.run().perceiving()
    told = service.until("told", lambda health: health["problems"])
    service.ask()
    if is_root:
        place.remount(place.recorded, "rw")
    else:
        place.recorded.chmod(0o700)
    service.until("recorded", lambda health: not health["problems"])
    service.perceiving()
    service.ask()
    service.stop()
    (report,) = place.replayed(place.recorded)
    if report["cut"] or not report["events"]:
        raise LostError(f"of the recording there is {report}")
    found = (
        f"started degraded ({told['problems'][0]}) and answered; writable again, {report['steps']} "
        "steps from the middle of the session on replay"
    )
    return found, {"steps": report["steps"]}


def slow_disk(place: Place) -> tuple[str, dict[str, Any]]:
    """The session does not wait for it; what does not fit into 64 MiB is left out in whole steps,
    told, and the file says where it ends; recorded again from the next file on."""
    film, pipe = place.folder / "noise.mkv", place.folder / "a.mcap"
    _noise(film)
    os.mkfifo(pipe)
    is_slow, kept = threading.Event(), place.folder / "through_the_pipe.mcap"
    is_slow.set()

    def read_slowly() -> None:
        with pipe.open("rb", buffering=0) as source, kept.open("wb") as sink:
            while data := source.read(SLOW_BYTES_PER_S // 20):
                sink.write(data)
                if is_slow.is_set():
                    time.sleep(len(data) / SLOW_BYTES_PER_S)

    reader = threading.Thread(target=read_slowly, daemon=True)
    reader.start()
    service = place.run("--record", pipe, "--fps", 8, film=film).perceiving()
    told = service.until("told that it is slow", lambda health: health["problems"])
    answered_s = service.ask()
    is_slow.clear()
    service.until("recorded again", lambda health: not health["problems"])
    service.perceiving()
    counters = service.client.health()["counters"]
    service.stop()
    reader.join(TIMEOUT_S)
    reports = place.replayed(kept, *sorted(place.folder.glob("a-*.mcap")))
    if len(reports) < 2 or "too slow" not in reports[0]["cut"]:
        raise LostError(f"of the recording there is {reports}")
    found = (
        f"degraded ({told['problems'][0]}); a question meanwhile took {answered_s:.1f} s; "
        f"{counters['recording_steps_dropped']} steps left out in {counters['recording_gaps']} "
        f"gap; both files replay, the first ends with the reason. Through a pipe that is read at "
        "1 MB/s: a disk of that speed was not to be had"
    )
    return found, {"answered_s": answered_s, "left_out": counters["recording_steps_dropped"]}


def _noise(path: Path) -> None:
    draws = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuvj420p"
        stream.time_base = Fraction(1, 8)
        for n in range(16):
            pixels = draws.integers(0, 256, (720, 1280, 3)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format="yuvj420p")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def clock_set_back(place: Place) -> tuple[str, dict[str, Any]]:
    """Nothing inside depends on the wall clock: answers, triggers and replays are as before, files
    stay in order."""
    service = place.run(program=("-c", CLOCK_SET_BACK)).perceiving()
    before_s = service.ask()
    service.process.send_signal(signal.SIGUSR1)
    service.perceiving()
    after_s = service.ask()
    up_s = service.client.health()["uptime_s"]
    service.stop()
    place.run().perceiving().stop()
    reports = place.replayed(place.recorded)
    names = [Path(report["file"]).name for report in reports]
    if any(report["cut"] for report in reports) or names != sorted(names) or len(names) != 2:
        raise LostError(f"of the recording there is {reports}")
    n_steps = sum(report["steps"] for report in reports)
    found = (
        f"answers before and after, up for {up_s:.0f} s as before; {n_steps} steps in 2 files "
        "replay, in their order. In the process: its own wall clock goes back"
    )
    return found, {"answered_s": [before_s, after_s]}


def stopped(place: Place) -> tuple[str, dict[str, Any]]:
    """An answer under way goes on, who asks meanwhile is answered; what was not perceived is
    counted; the recording replays."""
    service = place.run().perceiving()
    answer = service.client.ask("What do you see?", max_tokens=64)
    next(answer)
    service.process.send_signal(signal.SIGSTOP)
    asked: list[float] = []
    asking = threading.Thread(target=lambda: asked.append(service.ask()))
    asking.start()
    time.sleep(STOPPED_S)
    service.process.send_signal(signal.SIGCONT)
    events = [*answer]
    asking.join(TIMEOUT_S)
    service.perceiving()
    health = service.client.health()
    service.stop()
    (report,) = place.replayed(place.recorded)
    if not isinstance(events[-1], Finished) or not asked or report["cut"]:
        raise LostError(f"{events[-1:]}, {asked}, {report}")
    dropped = sum(n for name, n in health["counters"].items() if name.endswith("_dropped"))
    found = (
        f"stopped for {STOPPED_S:.0f} s in the middle of an answer: its rest came, a question "
        f"meanwhile was answered after {asked[0]:.1f} s; {dropped} items dropped, counted; "
        f"{report['steps']} steps replay. (systemd would have begun a new service after 20 s)"
    )
    return found, {"answered_s": asked[0]}


def few_files(place: Place) -> tuple[str, dict[str, Any]]:
    """It starts, and answers; more connections than there are files for are refused, and when they
    have gone it answers again; the recording replays."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    service = place.run(before=limit).perceiving()
    service.ask()
    crowd = []
    for _ in range(64):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(1.0)
        with contextlib.suppress(OSError):
            one.connect(str(service.socket))
        crowd.append(one)
    time.sleep(1.0)
    is_alive = service.process.poll() is None
    for one in crowd:
        one.close()
    service.perceiving()
    after_s = service.ask()
    service.stop()
    reports = place.replayed(place.recorded)
    if not is_alive or reports[-1]["cut"]:
        raise LostError(f"alive: {is_alive}, recorded: {reports}")
    found = (
        "starts with 32 files and answers; 64 connections at once did not end it, and after them "
        f"it answered in {after_s:.1f} s; {sum(r['steps'] for r in reports)} steps replay"
    )
    return found, {"answered_s": after_s}


def memory_at_start(place: Place) -> tuple[str, dict[str, Any]]:
    """One clear line and an exit code, whatever the process was just doing."""
    said: dict[str, str] = {}
    starts = False
    for mib in (200, 300, 400, 500, 600, 800, 1000):
        n_bytes = mib << 20

        def limit(n_bytes: int = n_bytes) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))

        service = place.run(before=limit)
        end_s = time.monotonic() + TIMEOUT_S
        while service.process.poll() is None and time.monotonic() < end_s:
            if "event=" in service.log or service.socket.exists():
                with contextlib.suppress(EdgeError):
                    starts = bool(service.client.health()["ready"])
                    break
            time.sleep(LOOK_S)
        log = service.log
        service._log.unlink()
        if starts:
            service.stop()
            break
        code = service.process.wait(TIMEOUT_S)
        lines = [line for line in log.splitlines() if line.startswith("edge: ")]
        said[f"{mib} MiB"] = f"{code}: {lines[-1] if lines else log[-200:]}"
        if "Traceback" in log or code not in (65, 75) or len(lines) != 1:
            raise LostError(f"with {mib} MiB it ended with {code}: {log[-400:]}")
    each = "; ".join(f"{limit} {line}" for limit, line in said.items())
    found = f"{len(said)} limits end in one line each: {each}"
    return found, {"said": said}


def memory_while_running(place: Place) -> tuple[str, dict[str, Any]]:
    """A turn may fail; the service lives, and answers again when there is memory. What a library
    of others does without memory may end it: then as with kill -9."""
    service = place.run().perceiving()
    service.ask()
    answered_s = [time.monotonic()]
    service.perceiving(int(3 * FLUSH_S) + 1)
    pid, infinity = service.process.pid, resource.RLIM_INFINITY
    outcomes: Counter[str] = Counter()
    for spare_mib in SPARE_MIB:
        n_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        n_bytes = n_pages * resource.getpagesize() + (spare_mib << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (n_bytes, infinity))
        for name, body in dear_questions():
            try:
                with service.client._answer("POST", "/v1/chat/completions", body) as got:
                    got.read()
                outcomes[f"{name}: answered"] += 1
            except EdgeError as error:
                outcomes[f"{name}: {error}"] += 1
            if service.process.poll() is not None:
                found, figures = _kept_until(place, answered_s, time.monotonic(), place.run)
                code = service.process.returncode
                ended = f"{name}, {spare_mib} MiB more than it had: it ended with {code}"
                return f"{dict(outcomes)}; {ended}; {found}", {"outcomes": outcomes, **figures}
        resource.prlimit(pid, resource.RLIMIT_AS, (infinity, infinity))
    after_s = service.ask()
    service.stop()
    reports = place.replayed(place.recorded)
    found = (
        f"{' and '.join(map(str, SPARE_MIB))} MiB more than it had: {dict(outcomes)}; "
        f"then answers again in {after_s:.1f} s; {sum(r['steps'] for r in reports)} steps replay"
    )
    return found, {"outcomes": outcomes}


def dear_questions() -> Iterator[tuple[str, bytes]]:
    """Bodies with what takes memory: a small and a large picture, a large grammar, a long text."""
    for name, n_side in (("small picture", 64), ("large picture", 4000)):
        url = f"data:image/png;base64,{b64encode(png(n_side, n_side)).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        yield name, _body(content)
    names = {"type": "string", "enum": [f"name {n}" for n in range(3000)]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": names}}
    yield "grammar", _body("Who?", response_format=wanted)
    yield "long text", _body("a b c " * 100_000)


def _body(content: object, **fields: object) -> bytes:
    message = {"role": "user", "content": content}
    return json.dumps({"messages": [message], "max_tokens": 2, **fields}).encode()


def killed(place: Place, *, in_rebase: bool = False) -> tuple[str, dict[str, Any]]:
    """What was told more than a second before is in the recording, which replays to where it was
    cut; the next start goes on in the same folder."""
    run = partial(place.run, max_tokens=600, keep_tokens=150) if in_rebase else place.run
    service = run().perceiving()
    answered_s = []
    for _ in range(3):
        service.ask()
        answered_s.append(time.monotonic())
    if in_rebase:
        service.until("a rebase", lambda health: health["counters"]["rebases"] > 0)
        room = 600 - (600 - 150) // REBASE_SHARE  # from here on the next one is under way
        service.until("in a rebase", lambda health: health["n_context_tokens"] > room)
    else:
        service.perceiving(int(3 * FLUSH_S) + 1)
    killed_s = time.monotonic()
    service.kill()
    return _kept_until(place, answered_s, killed_s, run)


def _kept_until(
    place: Place, answered_s: list[float], killed_s: float, run: Callable[..., Any]
) -> tuple[str, dict[str, Any]]:
    """Of a service that was ended: what is recorded, and whether the next goes on beside it."""
    paths = files_of(place.recorded)
    (report,) = place.replayed(*paths)
    n_told = sum(killed_s - at_s > 2 * FLUSH_S for at_s in answered_s)
    n_kept = n_events(paths, "Done")
    if n_kept < n_told or not report["cut"]:
        raise LostError(f"{n_told} answers were told, {n_kept} are recorded: {report}")
    run().perceiving().stop()
    reports = place.replayed(place.recorded)
    if len(reports) != 2 or reports[-1]["cut"]:
        raise LostError(f"after the next start there is {reports}")
    found = (
        f"{n_kept} of {len(answered_s)} answers recorded, {report['steps']} steps replay to the cut"
        "; the next start records beside it"
    )
    return found, {"steps": report["steps"], "answers": n_kept}


def killed_in_rebase(place: Place) -> tuple[str, dict[str, Any]]:
    """Likewise, where a rebase is under way: nothing of it is on the disk."""
    return killed(place, in_rebase=True)


CASES: dict[str, Callable[[Place], tuple[str, dict[str, Any]]]] = {
    "full disk": full_disk,
    "read-only folder": read_only,
    "slow disk (1 MB/s)": slow_disk,
    "clock set back by 1 h": clock_set_back,
    "SIGSTOP for 30 s": stopped,
    "ulimit -n 32": few_files,
    "prlimit --as, at the start": memory_at_start,
    "prlimit --as, while it runs": memory_while_running,
    "kill -9 in a recording": killed,
    "kill -9 in a rebase": killed_in_rebase,
}


def tried(case: str, bundle: Path, film: Path) -> Row:
    """Let it happen, in a folder of its own."""
    happen = CASES[case]
    row = Row(case, " ".join((happen.__doc__ or "").split()))
    with tempfile.TemporaryDirectory(prefix="edge-bad-luck-") as folder:
        place = Place(Path(folder), bundle, film)
        try:
            row.found, row.figures = happen(place)
            row.kept = True
        except LeftOutError as reason:
            row.found = f"left out: {reason}"
        except (LostError, EdgeError) as lost:
            row.found, row.kept = f"LOST: {lost}", False
        finally:
            place.close()
    return row


def rows(cases: list[str], bundle: Path, film: Path) -> Iterator[Row]:
    """One after the other."""
    for case in cases:
        yield tried(case, bundle, film)


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES], metavar="CASE")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    options = parser.parse_args()
    found = []
    print("| what happens | what is promised | what was found |\n|---|---|---|", flush=True)
    for row in rows(options.only, options.bundle.resolve(), options.film.resolve()):
        found.append(row)
        print(f"| {row.case} | {row.promised} | {row.found} |", flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in found]))
    return int(any(row.kept is False for row in found))


if __name__ == "__main__":
    sys.exit(main())
