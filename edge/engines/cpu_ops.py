"""The decoder's operations on the native kernels, over weights as the bundle maps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import _kernels
from edge.engines import kernels
from edge.engines.state import DecoderState
from edge.model.spec import DecoderSpec
from edge.types import Float32


class KernelWeights:
    """Weights by name, each as the kernels take it; made when it is first asked for, then kept."""

    def __init__(self, stored: Mapping[str, NDArray[Any]]) -> None:
        """Take the tensors of decoder.safetensors, by the names that it gives them."""
        self._stored = stored
        self._matrices: dict[str, _kernels.Weight] = {}
        self._last_name = ""
        self._next: dict[str, _kernels.Weight] = {}
        self._vectors: dict[str, Float32] = {}

    def matrix(self, name: str) -> _kernels.Weight:
        """A linear's weight or a stack of experts, over the mapped bytes."""
        # asked for each time: so a frugal bundle learns which block is in use
        values = self._stored[name]
        if name not in self._matrices:
            block_scale, scale = (self._stored.get(f"{name}.{s}") for s in ("block_scale", "scale"))
            self._matrices[name] = kernels.weight(values, block_scale, scale)
        weight = self._next[self._last_name] = self._matrices[name]
        self._last_name = name
        if name in self._next:  # as it was for the token before
            _kernels.will_read(self._next[name])
        return weight

    def vector(self, name: str) -> Float32:
        """A small tensor in float32; one of two dimensions comes with them exchanged."""
        if name not in self._vectors:
            values = self._stored[name].astype(np.float32, copy=False)
            self._vectors[name] = np.require(values.T, requirements=["C", "ALIGNED"])
        return self._vectors[name]


@dataclass(slots=True)
class CpuOps:
    """`Ops` on the kernels, on one state. `exact` as in `kernels`."""

    spec: DecoderSpec
    weights: KernelWeights
    state: DecoderState
    exact: bool

    def linear(self, x: Float32, weight: str) -> Float32:
        return kernels.linear(self.weights.matrix(weight), x, exact=self.exact)

    def rms_norm(self, x: Float32, weight: str) -> Float32:
        return kernels.rms_norm(x, self.weights.vector(weight), self.spec.norm_eps)

    def add(self, a: Float32, b: Float32) -> Float32:
        return a + b

    def relu2(self, x: Float32) -> Float32:
        y: Float32 = np.maximum(x, 0)
        return np.multiply(y, y, out=y)

    def split(self, x: Float32, sizes: Sequence[int]) -> Sequence[Float32]:
        parts, first = [], 0
        for size in sizes:
            parts.append(x[:, first : first + size])
            first += size
        return parts

    def last_row(self, x: Float32) -> Float32:
        return x[-1:]

    def causal_conv1d(self, x: Float32, layer: int) -> Float32:
        taps, bias = (self.weights.vector(f"layers.{layer}.conv_{n}") for n in ("weight", "bias"))
        y, self.state.conv[layer] = kernels.causal_conv1d(x, self.state.conv[layer], taps, bias)
        return y

    def ssd(self, x: Float32, b: Float32, c: Float32, dt: Float32, layer: int) -> Float32:
        dt_bias, a_log, d = (
            self.weights.vector(f"layers.{layer}.{name}") for name in ("dt_bias", "A_log", "D")
        )
        state, heads = self.state, (dt_bias, a_log, d)
        y, state.ssm[layer] = kernels.state_space(
            *(x, b, c, dt, heads, self.spec.n_groups, state.ssm[layer]),
            in_place=layer not in state.shared,
        )
        state.shared.discard(layer)
        return y

    def gated_rms_norm(self, y: Float32, gate: Float32, weight: str) -> Float32:
        w = self.weights.vector(weight)
        return kernels.gated_rms_norm(y, gate, w, self.spec.n_groups, self.spec.norm_eps)

    def attention(self, q: Float32, k: Float32, v: Float32, layer: int) -> Float32:
        n_past, n_rows = self.state.n_tokens, self.state.n_tokens + len(q)
        cache = self.state.kv[layer]
        shape = (len(q), self.spec.n_kv_heads, self.spec.head_dim)
        cache.append(n_past, k.reshape(shape), v.reshape(shape))
        return kernels.attention(q, cache.keys[:n_rows], cache.values[:n_rows])

    def route(self, x: Float32, layer: int) -> tuple[Any, Any]:
        spec = self.spec
        return kernels.route(
            self.linear(x, f"layers.{layer}.gate"),
            self.weights.vector(f"layers.{layer}.gate_bias"),
            spec.n_experts_per_token,
            (spec.n_expert_groups, spec.n_expert_groups_per_token),
            spec.norm_topk_prob,
            spec.routed_scaling_factor,
        )

    def experts(self, x: Float32, ids: Any, weights: Any, layer: int) -> Float32:
        up, down = (self.weights.matrix(f"layers.{layer}.experts_{n}") for n in ("up", "down"))
        return kernels.experts(up, down, x, ids, weights, exact=self.exact)
