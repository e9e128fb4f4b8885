"""Decode and prefill beside transformers and llama.cpp: one model, one machine, one run.

    python scripts/bench_peers.py WORK [--llama SDIST] [--threads 2] [--rounds 7]

WORK keeps what is made once: a random model in the published layout, scaled down to 388 M
parameters, and its form for every engine (3.5 GB; see scripts/peers/models.py). SDIST is an
unpacked source package of llama-cpp-python 0.3.36 with its llama.cpp built in SDIST/build:

    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36
    tar xf llama_cpp_python-0.3.36.tar.gz
    cd llama_cpp_python-0.3.36
    cmake -S vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
    cmake --build build --target llama
    pip install diskcache==5.6.3              # which its Python binding imports

On a processor with AMX, GCC 12 drops part of the tile configuration and Q4_0 then crashes in a
prefill: add -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse' to the first cmake there.

Every engine runs in a process of its own and gets the same random tokens. A round measures each of
them once, in an order that turns from round to round, with the memory's bandwidth before each one;
then it decodes once more beside a process that spins. Figures are medians over rounds; ratios are
medians of each round's own ratio. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from peers.models import gguf_models, our_bundles, text_models
from peers.report import Measured, rows, table
from tqdm import tqdm

from edge.bench import bandwidth

WORKER = Path(__file__).with_name("peers") / "worker.py"
DECODE_TOKENS, PREFILL_TOKENS, COMPARED_TOKENS = 32, 512, 64
OURS, ORACLE = "Omni Edge NVFP4", "transformers FP32"
BESIDE_A_BUSY_PROCESS = (OURS, "llama.cpp NVFP4", "llama.cpp Q4_0")
INSTALL_TRANSFORMERS = "make .venv/.oracle"
INSTALL_LLAMA = "build it as `bench_peers.py --help` says and give --llama"


@dataclass(frozen=True, slots=True)
class Competitor:
    """An engine on one form of the model."""

    engine: str
    weights: str
    arguments: tuple[Path | str, ...]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.weights}"


class Worker:
    """A competitor's process; a context that ends it."""

    def __init__(self, competitor: Competitor) -> None:
        command = [sys.executable, WORKER, competitor.engine, *competitor.arguments]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._name = competitor.name
        about = self._read()
        self.version: str = about["version"]
        self.bytes_a_token: int = about["bytes_a_token"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, work: str, n: int, seed: int) -> Any:
        """Seconds, or logits: see worker.py."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{work} {n} {seed}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"bench_peers: {self._name} ended: run {WORKER.name} alone to see why")
        return json.loads(line)


def competitors(
    work: Path, llama: Path | None, n_threads: int
) -> tuple[list[Competitor], dict[str, str]]:
    """Those that can run here, and how to get the others."""
    found = [Competitor("Omni Edge", k, (v, str(n_threads))) for k, v in our_bundles(work).items()]
    missing = {}
    if llama is not None and any((llama / "build/bin").glob("libllama.*")):
        for weights, path in gguf_models(work, llama).items():
            found.append(Competitor("llama.cpp", weights, (path, str(n_threads), llama)))
    else:
        missing["llama.cpp"] = INSTALL_LLAMA
    if find_spec("torch") and find_spec("transformers"):
        path = text_models(work)["BF16"]
        found.append(Competitor("transformers", "FP32", (path, str(n_threads))))
    else:
        missing["transformers"] = INSTALL_TRANSFORMERS
    return found, missing


def measure(workers: dict[str, Worker], n_threads: int, n_rounds: int) -> Measured:
    """Every round of the run."""
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    read_gb_s: list[float] = []
    for worker in workers.values():  # warms up, and reads the weights into memory
        worker.ask("decode", DECODE_TOKENS, 0)
        worker.ask("prefill", PREFILL_TOKENS, 0)
    for n in tqdm(range(n_rounds), desc="rounds", disable=not sys.stderr.isatty()):
        turn = n % len(workers)
        names = [*list(workers)[turn:], *list(workers)[:turn]]
        for work, n_tokens in (("decode", DECODE_TOKENS), ("prefill", PREFILL_TOKENS)):
            for name in names:
                read_gb_s.append(bandwidth(n_threads, 1)["read_gb_s"])
                seconds[work][name].append(workers[name].ask(work, n_tokens, n + 1))
        with a_busy_process():
            for name in filter(BESIDE_A_BUSY_PROCESS.__contains__, names):
                seconds["busy"][name].append(workers[name].ask("decode", DECODE_TOKENS, n + 1))
    decode = {name: seconds["decode"][name] for name in workers}
    return Measured(
        decode, seconds["busy"], seconds["prefill"], read_gb_s, DECODE_TOKENS, PREFILL_TOKENS
    )


@contextmanager
def a_busy_process() -> Iterator[None]:
    """One process beside, that does nothing and never rests."""
    spinning = "print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spinning], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def cosines(workers: dict[str, Worker]) -> dict[str, float]:
    """How far each engine's logits point where the oracle's do: it shows that the model is one."""
    if ORACLE not in workers:
        return {}
    logits = {
        name: np.asarray(worker.ask("logits", COMPARED_TOKENS, 0))
        for name, worker in workers.items()
    }
    true = logits[ORACLE] / np.linalg.norm(logits[ORACLE])
    return {name: float(x @ true / np.linalg.norm(x)) for name, x in logits.items()}


def conditions(n_threads: int, n_rounds: int) -> dict[str, Any]:
    """What the figures depend on beside the engines."""
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": n_threads,
        "rounds": n_rounds,
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    llama = options.llama and options.llama.resolve()
    found, missing = competitors(options.work.resolve(), llama, options.threads)
    before = conditions(options.threads, options.rounds)
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(Worker(c)) for c in found}
        agreement = cosines(workers)
        measured = measure(workers, options.threads, options.rounds)
    sizes = {name: worker.bytes_a_token for name, worker in workers.items()}
    result = rows(measured, sizes, agreement, OURS)
    read_gb_s = round(median(measured.read_gb_s), 1)
    before["load_after"] = round(os.getloadavg()[0], 2)
    print(table(result))
    print(f"\nmemory: {read_gb_s} GB/s read, from {min(measured.read_gb_s)}", end="")
    print(
        f" to {max(measured.read_gb_s)}; {DECODE_TOKENS} tokens decoded, {PREFILL_TOKENS} prefilled"
    )
    print(", ".join(f"{key} {value}" for key, value in before.items()))
    versions = {c.engine: workers[c.name].version for c in found}
    for name, version in versions.items():
        print(f"{name}: {version}")
    for name, advice in missing.items():
        print(f"{name}: not measured; {advice}")
    figures = {
        "conditions": {**before, "read_gb_s": read_gb_s, "versions": versions},
        "engines": [asdict(row) for row in result],
        "missing": missing,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
