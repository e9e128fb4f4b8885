"""How cost grows: decode time against the context's length, prefill time against its chunk's size.

    python scripts/bench_growth.py [--threads 2] [--rounds 7] [--json] [--pictures docs]

One attention, one Mamba2 and one mixture-of-experts block at the published model's sizes with
random weights (see real_layers.py; about 1.5 GB). Beside each measured time stands what arithmetic
predicts of two figures that are measured in the same run, in turn with the blocks: the memory's
bandwidth and the speed of products.

    decode   (weights + state + keys and values) / bandwidth + attention's operations / speed
    prefill  that, with the experts that the chunk's rows choose and all operations

The speed is that of 256 rows with a block's own FP8 or BF16 weights. The slope of a line is
that of a fit through its measured points. Two pictures are written; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from log_chart import Line, log_chart
from real_layers import NAMES, RealLayers, interleaved, median, reader, rows_of, seconds
from tqdm import tqdm

from edge import _kernels
from edge.engines import kernels
from edge.engines.state import KVCache

PATTERN = "EM*"
CONTEXTS = [1024 << i for i in range(8)]
CHUNKS = [1 << i for i in range(0, 9, 2)]
PREFILL_CONTEXT = 1024
LINEARS = ("_proj", ".gate", "_up", "_down")
Points = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="nothing but the JSON")
    parser.add_argument("--pictures", type=Path, default=Path("docs"), help="a folder")
    options = parser.parse_args()
    _kernels.set_threads(options.threads)
    layers, rng = RealLayers(PATTERN), np.random.default_rng(1)
    fill_cache(layers, rng, CONTEXTS[-1])
    read = reader(options.threads)
    speed = product_speed(layers, rng, options.rounds)
    decode = grow_decode(layers, rng, read, speed, options)
    prefill = grow_prefill(layers, rng, read, speed, options)
    figures = {
        "threads": options.threads,
        "rounds": options.rounds,
        "instruction_set": _kernels.instruction_set(),
        "gflops": {name: round(value / 1e9, 1) for name, value in speed.items()},
        "decode": decode,
        "prefill": prefill,
    }
    write_picture(
        options.pictures / "decode_growth.svg", "Decode, one block", "tokens before", decode
    )
    write_picture(options.pictures / "prefill_growth.svg", "Prefill, one block", "rows", prefill)
    if not options.json:
        print_tables(figures)
    print(json.dumps(figures))


def fill_cache(layers: RealLayers, rng: np.random.Generator, n_tokens: int) -> None:
    """Random keys and values of all tokens before, and room for a chunk behind them."""
    spec = layers.spec
    shape = (n_tokens + CHUNKS[-1], spec.n_kv_heads, spec.head_dim)
    for layer in spec.layers("*"):
        keys, values = (rng.standard_normal(shape, np.float32) for _ in range(2))
        layers.state.kv[layer] = KVCache(keys, values)


def product_speed(layers: RealLayers, rng: np.random.Generator, rounds: int) -> dict[str, float]:
    """Operations a second of the largest chunk with each kind of block's own weights."""
    weights = {"E": "layers.0.shared_up", "M": "layers.1.in_proj", "*": "layers.2.q_proj"}
    rows, speed = rows_of(rng, CHUNKS[-1], layers.spec), {}
    for letter, name in weights.items():
        matrix = layers.ops.weights.matrix(name)
        multiply = partial(kernels.linear, matrix, rows, exact=False)
        took = median([seconds(multiply) for _ in range(rounds + 1)][1:])
        speed[NAMES[letter]] = 2 * rows.size * matrix.n / took
    return speed


def grow_decode(
    layers: RealLayers,
    rng: np.random.Generator,
    read: Any,
    speed: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Milliseconds of one token by the number of tokens before it."""
    points: dict[str, tuple[Points, Points]] = {name: ([], []) for name in NAMES.values()}
    for n in tqdm(CONTEXTS, desc="decode", disable=options.json):
        layers.state.n_tokens = n
        found = timed(layers, rng, read, 1, options.rounds)
        bandwidth = median(found["read"])
        for letter, name in NAMES.items():
            predicted = decode_bytes(layers, letter, n) / bandwidth
            if letter == "*":
                predicted += attention_operations(layers, n) / speed[name]
            points[name][0].append((n, 1e3 * median(found[letter])))
            points[name][1].append((n, 1e3 * predicted))
    return {name: curve(*both) for name, both in points.items()}


def grow_prefill(
    layers: RealLayers,
    rng: np.random.Generator,
    read: Any,
    speed: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Milliseconds of a chunk by its rows, with PREFILL_CONTEXT tokens before it."""
    layers.state.n_tokens = PREFILL_CONTEXT
    points: dict[str, tuple[Points, Points]] = {name: ([], []) for name in NAMES.values()}
    for n in tqdm(CHUNKS, desc="prefill", disable=options.json):
        found = timed(layers, rng, read, n, options.rounds)
        bandwidth = median(found["read"])
        for letter, name in NAMES.items():
            n_bytes = decode_bytes(layers, letter, PREFILL_CONTEXT, median(found["experts"]))
            of_a_row = operations(layers, letter, PREFILL_CONTEXT + n // 2)
            predicted = n_bytes / bandwidth + n * of_a_row / speed[name]
            points[name][0].append((n, 1e3 * median(found[letter])))
            points[name][1].append((n, 1e3 * predicted))
    return {name: curve(*both) for name, both in points.items()}


def timed(
    layers: RealLayers, rng: np.random.Generator, read: Any, n: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of `n` rows in each block, what memory gave meanwhile, and experts that were met."""
    rows = rows_of(rng, n, layers.spec)

    def experts() -> float:
        nonlocal rows
        rows = rows_of(rng, n, layers.spec)
        normed = layers.ops.rms_norm(rows, "layers.0.norm")
        return float(len(np.unique(layers.ops.route(normed, 0)[0])))

    calls = {"experts": experts}
    for layer, letter in enumerate(layers.spec.pattern):
        calls[f"read {letter}"] = read
        calls[letter] = partial(lambda layer: seconds(lambda: layers.run(layer, rows)), layer)
    found = interleaved(calls, rounds)
    found["read"] = [value for letter in layers.spec.pattern for value in found[f"read {letter}"]]
    return found


def decode_bytes(layers: RealLayers, letter: str, n_past: int, n_experts: float = 0) -> float:
    """What a block reads at the least: weights, keys and values, state."""
    layer, spec = layers.spec.pattern.index(letter), layers.spec
    total = float(layers.weight_bytes(layer, round(n_experts) or None))
    if letter == "*":
        total += n_past * 2 * spec.n_kv_heads * spec.head_dim * 4
    if letter == "M":
        total += layers.state.ssm[layer].nbytes
    return total


def operations(layers: RealLayers, letter: str, n_past: int) -> float:
    """Multiplications and additions of one row: linears, and attention to what was before."""
    layer, spec, total = layers.spec.pattern.index(letter), layers.spec, 0.0
    for name, values in layers.stored.items():
        if name.startswith(f"layers.{layer}.") and name.endswith(LINEARS):
            share = spec.n_experts_per_token / spec.n_experts if ".experts_" in name else 1
            total += 2 * share * values.size * (2 if values.dtype == np.uint8 else 1)
    if letter == "*":
        total += attention_operations(layers, n_past)
    return total


def attention_operations(layers: RealLayers, n_past: int) -> float:
    """Of one row with the keys and the values of the tokens before it."""
    return 2.0 * 2 * layers.spec.n_q_heads * layers.spec.head_dim * n_past


def curve(measured: Points, predicted: Points) -> dict[str, Any]:
    """Both lines, and by how much a further token or row lengthens each."""
    return {
        "ms": {int(x): round(y, 4) for x, y in measured},
        "predicted_ms": {int(x): round(y, 4) for x, y in predicted},
        "us_each": round(1e3 * slope(measured), 4),
        "predicted_us_each": round(1e3 * slope(predicted), 4),
    }


def slope(points: Points) -> float:
    """Of a straight line through the points, each weighed by what it is relative to its size."""
    xs, ys = np.array(points).T
    return float(np.polyfit(xs, ys, 1, w=1 / ys)[0])


def write_picture(path: Path, title: str, x_name: str, curves: dict[str, Any]) -> None:
    def points(values: dict[int, float]) -> Sequence[tuple[float, float]]:
        return list(values.items())

    lines = [
        Line(name, points(found["ms"]), points(found["predicted_ms"]))
        for name, found in curves.items()
    ]
    path.write_text(log_chart(title, x_name, "milliseconds", lines))


def print_tables(figures: dict[str, Any]) -> None:
    for what, x_name in (("decode", "tokens before"), ("prefill", "rows")):
        curves = figures[what]
        print(f"\n{what}, ms (predicted)\n{x_name:>14}", *(f"{n:>22}" for n in curves))
        for x in next(iter(curves.values()))["ms"]:
            cells = (f"{c['ms'][x]:>10.3f} ({c['predicted_ms'][x]:>9.3f})" for c in curves.values())
            print(f"{x:>14}", *cells)
        cells = (f"{c['us_each']:>10.3f} ({c['predicted_us_each']:>9.3f})" for c in curves.values())
        print(f"{'us for each':>14}", *cells)
    print()


if __name__ == "__main__":
    main()
