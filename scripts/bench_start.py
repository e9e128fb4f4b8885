"""From the process's start to READY with a large bundle of which the page cache holds nothing.

The bundle is the tiny model's with more and larger experts, random bytes that the router never
chooses: all have to be hashed before the service is ready, and none is computed with. A round is

- `read`: the files are read from end to end, by one thread, and not hashed;
- `hash`: what then lies in the page cache is hashed by two threads, each with half of every file;
- `start`: `edge run` is started under a supervisor and becomes ready;
- `again`: the same, with the record that the last start has left.

Before each but `hash` the kernel lets go of the files, and mincore counts what stays: nothing may.
Printed are medians of one run, and starts as ratios to the slower of `read` and `hash` of the same
round; where others use the machine, processor times say more. The last line is JSON.

Usage:
    python scripts/bench_start.py                     # 18 GB, removed at the end
    python scripts/bench_start.py --gb 2 --rounds 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/service"))

from page_cache import drop
from supervisor import Supervisor

from build_engine.bundle import build_bundle, save_manifest
from edge.engines.bundle import DECODER_WEIGHTS, Bundle
from edge.engines.checked import STAMP
from edge.engines.hashing import file_entry
from edge.engines.layout import decoder_weights
from edge.engines.safetensors import SafetensorsFile, SafetensorsWriter
from edge.errors import EdgeError

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "tests/assets/tiny_omni"
STEPS = {
    "read": "read by one thread",
    "hash": "hashed by two threads",
    "start": "process start to READY",
    "again": "the same, remembered",
}
WIDTH = 1920
"""Of an expert; 4,000 of them in three blocks are 18 GB."""
NEVER = -1e9
"""The bias of an expert that the router never chooses."""
BLOCK_BYTES = 1 << 22
SETTLED_S = 1.5
"""What changed just before a start is not remembered by it."""
TIMEOUT_S = 900.0


def make_bundle(folder: Path, n_bytes: int) -> None:
    """Write one of about so many bytes: a small model and experts that nobody asks."""
    build_bundle(CHECKPOINT, folder, "cpu", lambda *_: None)
    manifest = Bundle(folder, check_hashes=False).manifest
    small, path = SafetensorsFile(folder / DECODER_WEIGHTS), folder / DECODER_WEIGHTS
    before, itemsize = manifest.spec.decoder, small.dtype(_experts(small)[0]).itemsize
    per_expert = len(_experts(small)) * WIDTH * before.hidden_size * itemsize
    n_experts = max(before.n_experts, n_bytes // per_expert)
    decoder = msgspec.structs.replace(before, n_experts=n_experts, expert_size=WIDTH)
    layout = {w.name: (small.dtype(w.name), w.stack + w.shape) for w in decoder_weights(decoder)}
    layout = {name: layout[name] for name in small.names()}  # in the file's order
    large = folder / "large"
    with SafetensorsWriter(large, layout) as writer:
        for name, (_, shape) in tqdm(layout.items(), desc="experts"):
            writer.write(name, _larger(small.tensor(name), shape))
    large.rename(path)
    spec = msgspec.structs.replace(manifest.spec, decoder=decoder)
    files = manifest.files | {DECODER_WEIGHTS: file_entry(path)}
    save_manifest(msgspec.structs.replace(manifest, spec=spec, files=files), folder)


def _experts(file: SafetensorsFile) -> list[str]:
    return [name for name in file.names() if ".experts_" in name]


def _larger(values: NDArray[Any], shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """A tensor's values in front, and behind them what changes no result."""
    if values.shape == shape:
        yield values
    elif values.ndim == 1:  # the biases
        yield np.concatenate([values, np.full(shape[0] - len(values), NEVER, values.dtype)])
    elif values.ndim == 2:  # the router
        yield np.concatenate([values, np.zeros((shape[0] - len(values), shape[1]), values.dtype)])
    else:  # one expert after the other: zeros in what is wider, noise in what is never used
        for matrix in values:
            padding = [(0, new - old) for old, new in zip(matrix.shape, shape[1:], strict=True)]
            yield np.pad(matrix.view(np.uint8).view(f"u{values.itemsize}"), padding).view(
                values.dtype
            )
        noise = np.frombuffer(os.urandom(int(np.prod(shape[1:])) * values.itemsize), np.uint8)
        for _ in range(shape[0] - len(values)):
            yield noise.view(values.dtype).reshape(shape[1:])


@contextmanager
def _measured() -> Iterator[dict[str, Any]]:
    """Seconds of what is done, and this process's processor time."""
    found: dict[str, Any] = {}
    before, began_s = os.times(), time.monotonic()
    yield found
    after, found["s"] = os.times(), time.monotonic() - began_s
    found["user_s"], found["system_s"] = after.user - before.user, after.system - before.system


class Bench:
    """One bundle, and a folder for what a service leaves."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self.files = sorted(path for path in bundle.iterdir())
        self.n_bytes = sum(path.stat().st_size for path in self.files)

    def forget(self) -> None:
        """Leave nothing of the files in the page cache.

        Raises:
            SystemExit: the filesystem keeps them.
        """
        n_left = sum(map(drop, self.files))
        if n_left:
            raise SystemExit(f"bench_start: {n_left} pages stay in the page cache")

    def read(self) -> dict[str, Any]:
        """Read everything."""
        self.forget()
        with _measured() as found:
            block = bytearray(BLOCK_BYTES)
            for path in self.files:
                with path.open("rb", buffering=0) as file:
                    while file.readinto(block):
                        pass
        return found

    def hash(self) -> dict[str, Any]:
        """Hash what is in the page cache, in two threads."""
        threads = [threading.Thread(target=self._hash_half, args=(half,)) for half in (0, 1)]
        with _measured() as found:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return found

    def _hash_half(self, half: int) -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        for path in self.files:
            digest, middle = hashlib.sha256(), path.stat().st_size // 2
            with path.open("rb", buffering=0) as file:
                file.seek(half * middle)
                n_left = path.stat().st_size - middle if half else middle
                while n_left and (n_read := file.readinto(block[:n_left])):
                    digest.update(block[:n_read])
                    n_left -= n_read

    def start(self, *, again: bool) -> dict[str, Any]:
        """Seconds from a process's start to READY, its processor time, and what it logged."""
        if not again:
            (self.folder / STAMP).unlink(missing_ok=True)
        self.forget()
        (self.folder / "edge.sock").unlink(missing_ok=True)
        (self.folder / "notify").unlink(missing_ok=True)
        (self.folder / "log").unlink(missing_ok=True)
        command = [sys.executable, "-m", "edge.cli", "run", str(self.bundle)]
        supervisor = Supervisor(self.folder, command)
        try:
            supervisor.start()
            seconds = supervisor.wait_for("READY=1", TIMEOUT_S) - supervisor.started_s
            stat = Path(f"/proc/{supervisor.process.pid}/stat").read_text().rpartition(")")[2]
            user, system = (int(ticks) for ticks in stat.split()[11:13])
            supervisor.stop()
            log = supervisor.log
        finally:
            supervisor.close()
        per_s = os.sysconf("SC_CLK_TCK")
        found: dict[str, Any] = {"s": seconds, "user_s": user / per_s, "system_s": system / per_s}
        for event in ("hashed", "ready"):
            line = re.search(rf"event={event} .*", log)
            pairs = re.findall(r"(\w+)=(\d+\.\d+)", line[0] if line else "")
            found[event] = {name: float(value) for name, value in pairs}
        return found


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """All of it, interleaved."""
    time.sleep(SETTLED_S)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in STEPS}
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "read": bench.read,
        "hash": bench.hash,
        "start": lambda: bench.start(again=False),
        "again": lambda: bench.start(again=True),
    }
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, step in steps.items():
            found[name].append(step())
    ratios, cpu_ratios = [], []
    for read, hashed, start in zip(found["read"], found["hash"], found["start"], strict=True):
        ratios.append(round(start["s"] / max(read["s"], hashed["s"]), 3))
        cpu_ratios.append(round(_cpu_s(start) / _cpu_s(hashed), 3))
    medians = {name: round(median(one["s"] for one in rows), 3) for name, rows in found.items()}
    return {
        "gb": round(bench.n_bytes / 1e9, 3),
        "load": [round(load, 2) for load in os.getloadavg()],
        "seconds": medians,
        "ratio": median(ratios),
        "ratios": ratios,
        "cpu_ratio": median(cpu_ratios),
        "rounds": found,
    }


def _cpu_s(step: dict[str, Any]) -> float:
    return float(step["user_s"] + step["system_s"])


def show(found: dict[str, Any]) -> None:
    """The figures, for a person."""
    gb, rounds = found["gb"], found["rounds"]
    n_rounds = len(rounds["start"])
    print(f"{gb} GB, nothing of it in the page cache, medians of {n_rounds}, load {found['load']}")
    for name, what in STEPS.items():
        seconds, last = found["seconds"][name], rounds[name][-1]
        print(f"  {what:24} {seconds:8.2f} s  {gb / seconds:7.2f} GB/s", end="")
        print(f"   the last: user {last['user_s']:.2f} s, system {last['system_s']:.2f} s")
    print(f"  start / slower of read and hash: {found['ratio']} ({found['ratios']})")
    print(f"  their processor time, start / hash: {found['cpu_ratio']}")
    for name in ("start", "again"):
        print(f"  last {name}: {rounds[name][-1]['ready']} {rounds[name][-1]['hashed'] or ''}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=18.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / ".cache", help="on the disk")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-start-", dir=arguments.folder))
    try:
        make_bundle(work / "bundle", int(arguments.gb * 1e9))
        (work / "run").mkdir()
        found = measure(Bench(work / "bundle", work / "run"), arguments.rounds)
    except EdgeError as error:
        print(f"bench_start: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work)
    show(found)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
