"""One engine in a process of its own, so that no engine's threads meet another's.

    python scripts/peers/worker.py ENGINE MODEL THREADS [LLAMA]

It says `{"version": ..., "bytes_a_token": ...}` and then answers each line it reads with one line:
`decode N SEED` and `prefill N SEED` with seconds, `logits N SEED` with the last row.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from runners import LlamaCpp, OmniEdge, Runner, Transformers
from shape import SCALED_DOWN


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints does not get between
    engine, model, n_threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    runner: Runner
    if engine == "llama.cpp":
        runner = LlamaCpp(model, n_threads, Path(sys.argv[4]))
    elif engine == "transformers":
        runner = Transformers(model, n_threads)
    else:
        runner = OmniEdge(model, n_threads)
    about = {"version": runner.version, "bytes_a_token": runner.bytes_a_token}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        work, n, seed = line.split()
        print(json.dumps(answer(runner, work, int(n), int(seed))), file=answers, flush=True)


def answer(runner: Runner, work: str, n: int, seed: int) -> float | list[float]:
    """Seconds of `work` over n tokens, which are the same for every engine; or logits."""
    tokens = np.random.default_rng(seed).integers(0, SCALED_DOWN["vocab_size"], n, np.int32)
    parts = [tokens] if work == "prefill" else np.split(tokens, n)
    runner.begin()
    began = time.perf_counter()
    for part in parts:
        runner.advance(part)
    seconds = time.perf_counter() - began
    return runner.logits().tolist() if work == "logits" else seconds


if __name__ == "__main__":
    main()
