"""How fast weights become NVFP4: our packer beside ModelOpt's own, in one run, on the same tensors.

    python scripts/bench_packing.py [--threads 2] [--experts 3] [--rounds 5]

Each round runs every packer once, in turn, over the same expert weights in bfloat16 (up_proj
[1856, 2688] and down_proj [2688, 1856]). The table shows medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from edge.engines import formats

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its optional parts lack here
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

Bytes = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Codes and block scales."""
SHAPES = [(1856, 2688), (2688, 1856)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    random = torch.Generator().manual_seed(0)
    weights = [
        (torch.randn(shape, generator=random) * 0.02).to(torch.bfloat16)
        for shape in SHAPES * options.experts
    ]
    arrays = [weight.view(torch.int16).numpy().view(bfloat16) for weight in weights]
    n_weights = sum(weight.numel() for weight in weights)

    def modelopt() -> list[Bytes]:
        results = [NVFP4QTensor.quantize(weight, 16) for weight in weights]
        return [
            (codes._quantized_data.numpy(), scales.view(torch.uint8).numpy())
            for codes, scales, _ in results
        ]

    def ours() -> list[Bytes]:
        results = [formats.pack_nvfp4(array, n_threads=options.threads) for array in arrays]
        return [(packed.codes, packed.block_scale.view(np.uint8)) for packed in results]

    packers: dict[str, Callable[[], list[Bytes]]] = {
        "ModelOpt 0.47.0": modelopt,
        "Omni Edge": ours,
    }
    for mine, theirs in zip(ours(), modelopt(), strict=True):  # also warms both up
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)

    seconds: dict[str, list[float]] = {name: [] for name in packers}
    for _ in range(options.rounds):
        for name, pack in packers.items():
            start = time.perf_counter()
            pack()
            seconds[name].append(time.perf_counter() - start)

    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = median["ModelOpt 0.47.0"] / median["Omni Edge"]
    print(f"NVFP4 of {n_weights / 1e6:.1f} M bfloat16 weights, {options.threads} threads, ", end="")
    print(f"median of {options.rounds} interleaved rounds; the bytes are the same\n")
    print(f"{'packer':<18}{'seconds':>9}{'M weights/s':>14}")
    for name, time_s in median.items():
        print(f"{name:<18}{time_s:>9.3f}{n_weights / time_s / 1e6:>14.0f}")
    print(f"{'ratio':<18}{ratio:>9.1f}\n")
    figures = {
        "n_weights": n_weights,
        "threads": options.threads,
        "rounds": options.rounds,
        "modelopt_s": round(median["ModelOpt 0.47.0"], 4),
        "omni_edge_s": round(median["Omni Edge"], 4),
        "ratio": round(ratio, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
