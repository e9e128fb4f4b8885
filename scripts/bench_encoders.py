"""What an encoder's call costs with the pause after it, and the prefill that follows it.

    python scripts/bench_encoders.py BUNDLE [--calls 20] [--rounds 1000]

Processor time is that of the whole process, from a call's start to the next one 100 ms later, with
one thread and with one a core. A round is a prefill alone and one right after a call, each behind a
pause, in either order; what is told of the rounds' ratios is their median, and between which values
it lies with 95 % confidence, whatever their distribution. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

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


def prefill_ms(bundle: Bundle, n_rounds: int) -> list[tuple[float, float]]:
    """Of each round, a prefill alone and one right after an encoder's call."""
    engine = CpuEngine(bundle)
    mel, rows = clip(engine), engine.embed(np.arange(MAX_PREFILL_TOKENS, dtype=np.int32) + 40)

    def took_ms(is_after: bool) -> float:
        state = engine.new_state()
        if is_after:
            engine.encode_audio(mel)
        began_s = time.perf_counter()
        engine.prefill(state, rows)
        took_s = time.perf_counter() - began_s
        time.sleep(PAUSE_S)
        return took_s * 1e3

    rounds = []
    for n in range(n_rounds + 1):
        first = took_ms(n % 2 == 0)
        second = took_ms(n % 2 == 1)
        rounds.append((second, first) if n % 2 == 0 else (first, second))
    return rounds[1:]  # the first call loads the encoder


def median_within(values: list[float]) -> tuple[float, float]:
    """Between which values the median of what these are drawn from lies, with 95 % confidence.

    Of n values as many are below it as of n coins show heads.
    """
    ranked, n = sorted(values), len(values)
    n_heads = math.floor((n - 1.96 * math.sqrt(n)) / 2)
    return (ranked[max(0, n_heads - 1)], ranked[min(n - 1, n - n_heads)])


def main() -> None:
    """Print what was measured, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1000)
    args = parser.parse_args()
    bundle, n_cores = Bundle(args.bundle), len(os.sched_getaffinity(0))
    one, all_cores = (call_ms(bundle, n, args.calls) for n in (1, 0))
    rounds = prefill_ms(bundle, args.rounds)
    alone, after = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [after / alone for alone, after in rounds]
    least, most = median_within(ratios)
    print(
        f"a call and {PAUSE_S:g} s after it, processor time: {one:.2f} ms with 1 thread, ", end=""
    )
    print(f"{all_cores:.2f} ms with {n_cores} ({all_cores / one:.2f} times)")
    print(f"a prefill of {MAX_PREFILL_TOKENS}: {alone:.2f} ms alone, ", end="")
    print(f"{after:.2f} ms right after a call: {statistics.median(ratios):.3f} times, ", end="")
    print(f"with 95 % confidence {least:.3f} to {most:.3f} ({len(rounds)} rounds)")
    found: dict[str, Any] = {"call_cpu_ms": {"1": one, "all": all_cores}}
    found["prefill_ms"] = [alone, after]
    found |= {"ratio": statistics.median(ratios), "ratio_within": [least, most]}
    print(json.dumps({"cores": n_cores, **found}))


if __name__ == "__main__":
    main()
