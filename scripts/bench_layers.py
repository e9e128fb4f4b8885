"""One block of each kind at its real size: how much of the memory's bandwidth decoding it uses.

    python scripts/bench_layers.py [--threads 2] [--rounds 30] [--json]

Weights are random (see real_layers.py). Experts are 128, of which a token takes 6: 718 MB a block,
far beyond any cache; Mamba2 and attention blocks come several times. Every round reads 1 GiB
between two blocks, which is the bandwidth that the shares are of, and empties the caches. A block
counts its weights and, of Mamba2, its state once; the median of each round's own share is printed.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from real_layers import NAMES, RealLayers, median, reader, rows_of, seconds

from edge import _kernels

PATTERN = "EMMMM****"
CONTEXT_TOKENS = 64
GOAL = 0.75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="nothing but the JSON")
    options = parser.parse_args()
    _kernels.set_threads(options.threads)
    figures = measured(options.threads, options.rounds)
    if not options.json:
        print_table(figures)
    print(json.dumps(figures))


def measured(n_threads: int, rounds: int) -> dict[str, object]:
    """Milliseconds and shares by kind of block."""
    layers, rng, read = RealLayers(PATTERN), np.random.default_rng(1), reader(n_threads)
    for layer in range(len(PATTERN)):
        layers.run(layer, rows_of(rng, CONTEXT_TOKENS, layers.spec))
    layers.state.n_tokens = CONTEXT_TOKENS
    spent: dict[str, list[float]] = {letter: [] for letter in NAMES}
    shares: dict[str, list[float]] = {letter: [] for letter in NAMES}
    bandwidths: list[float] = []
    for _ in range(rounds):
        for letter in NAMES:
            of_kind = layers.spec.layers(letter)
            row = rows_of(rng, 1, layers.spec)  # another token, other experts
            bandwidth = read()
            took = seconds(lambda: [layers.run(layer, row) for layer in of_kind]) / len(of_kind)  # noqa: B023
            spent[letter].append(took)
            shares[letter].append(bytes_of(layers, of_kind[0]) / bandwidth / took)
            bandwidths.append(bandwidth)
    return {
        "threads": n_threads,
        "rounds": rounds,
        "instruction_set": _kernels.instruction_set(),
        "read_gb_s": round(median(bandwidths) / 1e9, 2),
        "blocks": {
            NAMES[letter]: {
                "mb": round(bytes_of(layers, layers.spec.layers(letter)[0]) / 1e6, 1),
                "ms": round(1e3 * median(spent[letter]), 3),
                "of_the_limit": round(median(shares[letter]), 3),
            }
            for letter in NAMES
        },
    }


def bytes_of(layers: RealLayers, layer: int) -> int:
    """What one token reads of a block at the least."""
    state = layers.state.ssm.get(layer)
    return layers.weight_bytes(layer) + (0 if state is None else state.nbytes)


def print_table(figures: dict[str, object]) -> None:
    print(
        f"decode, one token, {figures['threads']} threads, {figures['instruction_set']}; ", end=""
    )
    print(f"memory reads {figures['read_gb_s']} GB/s; medians of {figures['rounds']} rounds\n")
    print(f"{'block':<22}{'MB':>8}{'ms':>9}{'of the limit':>15}")
    blocks = figures["blocks"]
    assert isinstance(blocks, dict)
    for name, block in blocks.items():
        print(f"{name:<22}{block['mb']:>8.1f}{block['ms']:>9.3f}{block['of_the_limit']:>15.0%}")
    print(f"\nThe goal is {GOAL:.0%} for {NAMES['E']} and {NAMES['M']}.\n")


if __name__ == "__main__":
    main()
