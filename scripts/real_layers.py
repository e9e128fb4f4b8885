"""Blocks of the published model at their real sizes, with random weights, to time one by one.

Weights are random bytes in the formats of the recipe `nvfp4`: routed experts NVFP4, Mamba2 and the
shared expert FP8, queries, keys and values BF16, the router float32. Their scales keep activations
near 1. Nothing is read from a checkpoint.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray
from published_config import CONFIG, GENERATION_CONFIG

from build_engine.decoder_weights import Packed, packed_tensors
from build_engine.recipe import Recipe, load_recipe
from edge import _kernels
from edge.engines.cpu_ops import CpuOps, KernelWeights
from edge.engines.formats import NVFP4_GROUP
from edge.engines.state import DecoderState
from edge.model.decoder import block
from edge.model.spec import DecoderSpec, model_spec
from edge.types import Float32

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
BF16 = np.dtype(ml_dtypes.bfloat16)
READ_BYTES = 1 << 30
NAMES = {"E": "mixture of experts", "M": "Mamba2", "*": "attention"}


class RealLayers:
    """A decoder of the blocks `pattern`, without embeddings and head, on one state."""

    def __init__(self, pattern: str, recipe: str = "nvfp4", seed: int = 0) -> None:
        spec = model_spec(CONFIG, GENERATION_CONFIG).decoder
        self.spec: DecoderSpec = msgspec.structs.replace(spec, pattern=pattern)
        self.stored = random_weights(self.spec, load_recipe(recipe), seed)
        self.state = DecoderState.empty(self.spec)
        self.ops = CpuOps(self.spec, KernelWeights(self.stored), self.state, exact=False)

    def run(self, layer: int, rows: Float32) -> Float32:
        """One block over `rows` [n, hidden size]; the state's length stays."""
        return block(self.ops, self.spec, layer, rows)

    def weight_bytes(self, layer: int, n_experts: int | None = None) -> int:
        """Bytes of a block's weights that rows meet which choose `n_experts` different experts."""
        if n_experts is None:
            n_experts = self.spec.n_experts_per_token
        at, total = f"layers.{layer}.", 0
        for name, values in self.stored.items():
            if name.startswith(at):
                share = n_experts / self.spec.n_experts if ".experts_" in name else 1
                total += round(values.nbytes * share)
        return total


def random_weights(spec: DecoderSpec, recipe: Recipe, seed: int) -> dict[str, NDArray[Any]]:
    """All weights of the blocks, by the names of a bundle."""
    rng = np.random.default_rng(seed)
    stored: dict[str, NDArray[Any]] = {}
    for packed in packed_tensors(spec):
        if packed.name.startswith("layers."):
            stored |= _random(packed, recipe, rng)
    return stored


def _random(packed: Packed, recipe: Recipe, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    shape, name = packed.shape, packed.name
    size = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 1.0
    module = packed.sources[0].removeprefix("language_model.").removesuffix(".weight")
    form = recipe.format_of(module) if packed.matrix else "float32"
    if form in ("float32", "bf16"):
        values = rng.standard_normal(shape, np.float32) * np.float32(size)
        return {name: values.astype(BF16) if form == "bf16" else values}
    stack = shape[:-2] if len(shape) > 2 else ()
    if form == "fp8":  # below 2 in magnitude
        codes = _bytes(rng, shape) & np.uint8(0xBF)
        return {name: codes.view(E4M3), f"{name}.scale": np.full(stack, size, np.float32)}
    *rows, k = shape
    scales = _bytes(rng, (*rows, k // NVFP4_GROUP)) & np.uint8(0x07) | np.uint8(0x38)  # 1 to 2
    return {
        name: _bytes(rng, (*rows, k // 2)),
        f"{name}.block_scale": scales.view(E4M3),
        f"{name}.scale": np.full(stack, size / 4, np.float32),
    }


def _bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)


def rows_of(rng: np.random.Generator, n: int, spec: DecoderSpec) -> Float32:
    """Random activations [n, hidden size]."""
    return rng.standard_normal((n, spec.hidden_size), np.float32)


def reader(n_threads: int) -> Callable[[], float]:
    """A plain pass over 1 GiB: bytes a second. It also drives everything else out of the caches."""
    data = np.ones((1, READ_BYTES // 4), np.float32)
    return lambda: READ_BYTES / seconds(lambda: _kernels.amax(data, n_threads))


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleaved(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each call once a round, in turn, after one round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if round_:
                found[name].append(value)
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)
