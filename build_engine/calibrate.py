"""Calibration, one block at a time: how large the values are that reach each linear.

The samples run through the decoder block by block, in float32, while ModelOpt's own quantizers
watch: what they collect is what ModelOpt's `max` calibration of the whole model collects, but only
one block's weights are ever in use. Source: `modelopt.torch.quantization` 0.47.0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# ModelOpt brings along the client of a model hub. Nothing here asks it for anything, nor may it.
os.environ["HF_HUB_OFFLINE"] = "1"

import modelopt
import numpy as np
import torch
from modelopt.torch.quantization.config import QuantizerAttributeConfig
from modelopt.torch.quantization.nn import TensorQuantizer

from build_engine.checkpoint import Checkpoint
from build_engine.checkpoint_weights import CheckpointWeights
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.reference_ops import ReferenceOps
from edge.engines.state import DecoderState
from edge.model.decoder import block
from edge.model.spec import DecoderSpec
from edge.types import Float32

E4M3_BITS = (4, 3)


@dataclass
class Observers:
    """ModelOpt's quantizers of one block, each collecting the largest magnitude it meets."""

    quantizers: dict[str, Any] = field(default_factory=dict)

    def see(self, name: str, values: Float32) -> None:
        """Show values to the quantizer `name`."""
        if name not in self.quantizers:
            quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=E4M3_BITS, axis=None))
            quantizer.disable_quant()
            quantizer.enable_calib()
            self.quantizers[name] = quantizer
        self.quantizers[name](torch.from_numpy(np.ascontiguousarray(values)))

    def largest(self) -> dict[str, float]:
        """By quantizer: the largest magnitude."""
        for quantizer in self.quantizers.values():
            quantizer.load_calib_amax()
        return {name: float(quantizer.amax) for name, quantizer in self.quantizers.items()}


@dataclass(slots=True)
class ObservedOps(ReferenceOps):
    """The cpu engine's operations, with an observer at every linear's input.

    Keys and values are observed as they leave their projections, for the K/V cache.
    """

    observers: Observers = field(default_factory=Observers)

    def linear(self, x: Float32, weight: str) -> Float32:
        self.observers.see(weight, x)
        y = ReferenceOps.linear(self, x, weight)
        if weight.endswith((".k_proj", ".v_proj")):
            self.observers.see(f"{weight}.output", y)
        return y

    def expert_linear(self, x: Float32, weight: str, expert: int) -> Float32:
        self.observers.see(f"{weight}.{expert}", x)
        return ReferenceOps.expert_linear(self, x, weight, expert)


def calibrate_block(
    checkpoint: Checkpoint, layer: int, samples: Sequence[Float32]
) -> tuple[list[Float32], dict[str, float]]:
    """Run the samples through one block and watch.

    Args:
        samples: [n, H] each, as they reach the block; every sample is a sequence of its own.
    Returns:
        The samples as they leave the block, and by observed linear (named as in a bundle, routed
        experts with their number) the largest magnitude of its input.
    """
    spec: DecoderSpec = checkpoint.spec.decoder
    weights, observers = CheckpointWeights(checkpoint), Observers()

    def run(rows: Float32, n_at_once: int) -> Float32:
        state = DecoderState.empty(spec)
        ops = ObservedOps(spec, weights, state, observers)
        after = []
        for start in range(0, len(rows), n_at_once):
            after.append(block(ops, spec, layer, rows[start : start + n_at_once]))
            state.n_tokens += len(after[-1])
        return np.concatenate(after)

    if spec.pattern[layer] == "E":  # no row depends on another: each expert is read only once
        together = np.concatenate(samples)
        ends = np.cumsum([len(rows) for rows in samples])[:-1]
        after = np.split(run(together, len(together)), ends)
    else:
        after = [run(rows, MAX_PREFILL_TOKENS) for rows in samples]
    return after, observers.largest()


def versions() -> dict[str, str]:
    """Of what the result depends on."""
    return {"modelopt": modelopt.__version__, "torch": torch.__version__, "numpy": np.__version__}
