"""What a sequence leaves behind in the decoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edge.model.spec import DecoderSpec
from edge.types import Float32

KV_BLOCK_ROWS = 256
"""The cache of a layer grows by doubling, from this many rows."""


@dataclass(slots=True)
class KVCache:
    """Keys and values of one attention layer, time-major [rows, K/V heads, head dim]."""

    keys: Float32
    values: Float32

    def append(self, n_past: int, keys: Float32, values: Float32) -> None:
        """Write new rows behind `n_past` valid ones, growing when the buffer is full."""
        n_rows = n_past + len(keys)
        if n_rows > len(self.keys):
            shape = (max(2 * len(self.keys), n_rows), *self.keys.shape[1:])
            for name in ("keys", "values"):
                grown = np.empty(shape, np.float32)
                grown[:n_past] = getattr(self, name)[:n_past]
                setattr(self, name, grown)
        self.keys[n_past:n_rows] = keys
        self.values[n_past:n_rows] = values


@dataclass(slots=True)
class DecoderState:
    """Everything that one sequence has left behind."""

    n_tokens: int
    kv: dict[int, KVCache]
    """By attention layer."""
    conv: dict[int, Float32]
    """By Mamba2 layer, [conv_kernel - 1, conv_dim]: the last inputs of the convolution."""
    ssm: dict[int, Float32]
    """By Mamba2 layer, [heads, head dim, state size]."""
    shared: set[int] = field(default_factory=set)
    """Mamba2 layers whose array in `ssm` a snapshot holds too: it must not be written to."""

    @staticmethod
    def empty(spec: DecoderSpec) -> DecoderState:
        """The state before the first token."""
        kv_shape = (KV_BLOCK_ROWS, spec.n_kv_heads, spec.head_dim)
        conv_shape = (spec.conv_kernel - 1, spec.conv_dim)
        ssm_shape = (spec.mamba_n_heads, spec.mamba_head_dim, spec.state_size)
        return DecoderState(
            n_tokens=0,
            kv={
                i: KVCache(np.empty(kv_shape, np.float32), np.empty(kv_shape, np.float32))
                for i in spec.layers("*")
            },
            conv={i: np.zeros(conv_shape, np.float32) for i in spec.layers("M")},
            ssm={i: np.zeros(ssm_shape, np.float32) for i in spec.layers("M")},
        )
