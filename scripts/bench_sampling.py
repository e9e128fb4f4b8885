"""What a sampled token costs beside its logits: CPU time of one thread, best of 15.

    python scripts/bench_sampling.py [--tokens 131072]

Logits are drawn from a normal distribution, as wide as `spread`: of a model that is sure of a few
tokens, down to one that is sure of nothing. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np

from edge.model.sampling import Sampler, Sampling

SETTINGS = {
    "greedy": Sampling(),
    "published": Sampling(0.6, 0.95),
    "hot": Sampling(1.0),
    "top_k": Sampling(0.6, 0.95, 50),
    "min_p": Sampling(0.6, min_p=0.05),
    "wide": Sampling(2.0, 0.999, 50_000),
    "penalties": Sampling(0.6, 0.95, presence_penalty=0.5, repetition_penalty=1.1),
}
"""published: of the model's generation_config.json."""
SPREADS = (4.0, 3.0, 2.0, 1.0, 0.01)
N_TIMES = 15


def best_ms(n_vocab: int, spread: float, settings: Sampling) -> float:
    """The quickest of several tokens, each drawn at another point."""
    rng = np.random.default_rng(0)
    took_ns = []
    for seed in range(N_TIMES):
        logits = (rng.normal(size=n_vocab) * spread).astype(np.float32)
        sampler = Sampler(replace(settings, seed=seed))
        sampler.read(range(1000))
        began_ns = time.thread_time_ns()
        sampler.choose(logits)
        took_ns.append(time.thread_time_ns() - began_ns)
    return min(took_ns) / 1e6


def main() -> None:
    """Print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=131_072, help="of the vocabulary")
    n_vocab = parser.parse_args().tokens
    found = {
        name: {f"{spread:g}": round(best_ms(n_vocab, spread, settings), 3) for spread in SPREADS}
        for name, settings in SETTINGS.items()
    }
    print(f"ms a token, {n_vocab} tokens; logits spread by", *SPREADS)
    for name, times in found.items():
        print(f"{name:10}", *(f"{ms:7.3f}" for ms in times.values()))
    print(json.dumps({"n_vocab": n_vocab, "ms": found}))


if __name__ == "__main__":
    main()
