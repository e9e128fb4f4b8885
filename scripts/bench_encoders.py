"""What an encoder's call costs with the pause after it, and the prefill that follows it.

    python scripts/bench_encoders.py BUNDLE [--calls 20] [--rounds 60]

Processor time is that of the whole process, from a call's start to the next one 100 ms later, with
one thread and with one a core. Prefills of 256 tokens are timed in turn alone and right after a
call, each behind a pause. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.types import Float32

PAUSE_S = 0.1


def clip(engine: CpuEngine) -> Float32:
    """Log-mel of two seconds of noise."""
    shape = (200, engine.spec.audio.n_mels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def call_ms(bundle: Bundle, n_threads: int, n_calls: int) -> float:
    """Processor time of a call and the pause after it, the median."""
    engine = CpuEngine(bundle, n_threads)
    mel, took_ms = clip(engine), []
    engine.encode_audio(mel)
    time.sleep(PAUSE_S)
    for _ in range(n_calls):
        began_s = time.process_time()
        engine.encode_audio(mel)
        time.sleep(PAUSE_S)
        took_ms.append((time.process_time() - began_s) * 1e3)
    return statistics.median(took_ms)


def prefill_ms(bundle: Bundle, n_rounds: int) -> tuple[float, float]:
    """A prefill alone, and right after an encoder's call: the medians."""
    engine = CpuEngine(bundle)
    mel, rows = clip(engine), engine.embed(np.arange(MAX_PREFILL_TOKENS, dtype=np.int32) + 40)
    took_ms: dict[bool, list[float]] = {False: [], True: []}
    for n in range(2 * n_rounds + 2):
        state, is_after = engine.new_state(), n % 2 == 1
        if is_after:
            engine.encode_audio(mel)
        began_s = time.perf_counter()
        engine.prefill(state, rows)
        if n > 1:
            took_ms[is_after].append((time.perf_counter() - began_s) * 1e3)
        time.sleep(PAUSE_S)
    return statistics.median(took_ms[False]), statistics.median(took_ms[True])


def main() -> None:
    """Print what was measured, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    bundle, n_cores = Bundle(args.bundle), len(os.sched_getaffinity(0))
    one, all_cores = (call_ms(bundle, n, args.calls) for n in (1, 0))
    alone, after = prefill_ms(bundle, args.rounds)
    print(
        f"a call and {PAUSE_S:g} s after it, processor time: {one:.2f} ms with 1 thread, ", end=""
    )
    print(f"{all_cores:.2f} ms with {n_cores} ({all_cores / one:.2f} times)")
    print(f"a prefill of {MAX_PREFILL_TOKENS}: {alone:.2f} ms alone, ", end="")
    print(f"{after:.2f} ms right after a call ({after / alone:.2f} times)")
    found = {"call_cpu_ms": {"1": one, "all": all_cores}, "prefill_ms": [alone, after]}
    print(json.dumps({"cores": n_cores, **found}))


if __name__ == "__main__":
    main()
