"""Decoders of every recipe: a tiny checkpoint's weights in the formats that a bundle would hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from make_tiny_checkpoint import make_checkpoint
from numpy.typing import NDArray

from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import packed_tensors
from build_engine.pack import pack_linear
from build_engine.recipe import CALIBRATED, Recipe
from edge.engines.cpu_ops import CpuOps, KernelWeights
from edge.engines.formats import Nvfp4, interleave_nvfp4
from edge.engines.safetensors import Layout
from edge.engines.state import DecoderState
from edge.model.decoder import advance
from edge.model.spec import DecoderSpec
from edge.types import Float32

DIVISIBLE = {
    "hidden_size": 128,
    "hybrid_override_pattern": "MEE*",
    "moe_shared_expert_intermediate_size": 128,
}
"""INT4 has blocks of 128 columns."""
SUFFIXES = {"nvfp4": ("", ".block_scale", ".scale"), "fp8": ("", ".scale"), "bf16": ("",)}
SUFFIXES |= {"w4a16": SUFFIXES["nvfp4"], "int4": ("", ".block_scale")}
Tensors = dict[str, NDArray[Any]]


def divisible_checkpoint(folder: Path, **changes: Any) -> Checkpoint:
    """One whose sizes suit every format; its float weights are float32."""
    make_checkpoint(folder, "base", {"llm_config": DIVISIBLE | changes})
    return Checkpoint(folder)


def recipe_weights(checkpoint: Checkpoint, recipe: Recipe) -> Tensors:
    """What decoder.safetensors would hold, without the samples that some recipes ask for."""
    tensors: Tensors = {}
    for packed in packed_tensors(checkpoint.spec.decoder):
        module = packed.sources[0].removeprefix("language_model.").removesuffix(".weight")
        inside = packed.matrix and packed.name.startswith("layers.")
        chosen = recipe.format_of(module) if inside else "bf16"
        each = [
            list(pack_linear("m", checkpoint.float32(s, packed.source_shape), chosen).values())
            for s in packed.sources
        ]
        if len(SUFFIXES[chosen]) == 3:
            whole = [interleave_nvfp4(Nvfp4(*parts)) for parts in each]
            each = [[w.codes, w.block_scale, np.asarray(w.scale)] for w in whole]
        for suffix, parts in zip(SUFFIXES[chosen], zip(*each, strict=True), strict=True):
            values = np.stack(parts) if len(parts) > 1 else parts[0]
            tensors[packed.name + suffix] = np.asarray(values)
        tensors[packed.name] = tensors[packed.name].reshape(_shape(packed.shape, each[0][0]))
        if chosen in CALIBRATED:  # beside the weights, for those who quantize activations
            stack = packed.shape[: len(packed.shape) - len(packed.source_shape)]
            tensors[f"{packed.name}.input_scale"] = np.full(stack, 0.01, np.float32)
    return tensors


def _shape(shape: tuple[int, ...], part: NDArray[Any]) -> tuple[int, ...]:
    """Of codes as they are packed, of anything else as the bundle names it."""
    return shape if part.dtype == np.float32 else (*shape[:-2], *part.shape)


def layout_of(weights: Tensors) -> Layout:
    """dtype and shape by name."""
    return {name: (values.dtype, values.shape) for name, values in weights.items()}


def prefill(spec: DecoderSpec, weights: Tensors, state: DecoderState, rows: Float32) -> Float32:
    """The cpu engine's exact decoder on bare weights: logits [1, vocabulary]."""
    logits = advance(CpuOps(spec, KernelWeights(weights), state, exact=True), spec, rows)
    state.n_tokens += len(rows)
    return logits
