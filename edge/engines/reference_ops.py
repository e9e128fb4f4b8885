"""The decoder's operations in plain numpy: the readable reference, which the kernels are held to.

Every formula is float32 and exact to the model. The builder calibrates with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engines.state import DecoderState
from edge.engines.weights import Weights
from edge.model.spec import DecoderSpec
from edge.types import Float32

Float64 = NDArray[np.float64]

ROUTER_EPSILON = np.float32(1e-20)


def sigmoid(x: Float32) -> Float32:
    """1 / (1 + exp(-x)) without overflow."""
    # exp of a negative magnitude never overflows; both branches are exact.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def silu(x: Float32) -> Float32:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Float32) -> Float32:
    """log(1 + exp(x)) without overflow."""
    return np.logaddexp(np.float32(0), x)


@dataclass(slots=True)
class ReferenceOps:
    """`Ops` in plain numpy, on one state."""

    spec: DecoderSpec
    weights: Weights
    state: DecoderState

    def linear(self, x: Float32, weight: str) -> Float32:
        return x @ self.weights[weight].T

    def rms_norm(self, x: Float32, weight: str) -> Float32:
        return _normalised(x, self.spec.norm_eps) * self.weights[weight]

    def add(self, a: Float32, b: Float32) -> Float32:
        return a + b

    def relu2(self, x: Float32) -> Float32:
        y: Float32 = np.maximum(x, 0)
        return np.square(y)

    def split(self, x: Float32, sizes: Sequence[int]) -> Sequence[Float32]:
        return np.split(x, np.cumsum(sizes)[:-1], axis=-1)

    def last_row(self, x: Float32) -> Float32:
        return x[-1:]

    def causal_conv1d(self, x: Float32, layer: int) -> Float32:
        kernel = self.weights[f"layers.{layer}.conv_weight"]  # [conv_dim, K]
        columns = np.concatenate([self.state.conv[layer], x])
        n_taps, n_rows = kernel.shape[1], len(x)
        self.state.conv[layer] = columns[n_rows:].copy()
        taps = (columns[k : k + n_rows] * kernel[:, k] for k in range(n_taps))
        return silu(self.weights[f"layers.{layer}.conv_bias"] + sum(taps))

    def time_step(self, dt: Float32, layer: int) -> Float32:
        """softplus(dt + bias) [n, heads]; the published limits (0, inf) clamp nothing."""
        return softplus(dt + self.weights[f"layers.{layer}.dt_bias"])

    def ssd(self, x: Float32, b: Float32, c: Float32, dt: Float32, layer: int) -> Float32:
        # One chunk in its quadratic form: S_t = exp(dt A) S + dt x B^T, y = S C + D x.
        spec, n = self.spec, len(x)
        per_group = spec.mamba_n_heads // spec.n_groups
        x = x.reshape(n, spec.mamba_n_heads, spec.mamba_head_dim).transpose(1, 0, 2)  # [h, n, p]
        b = b.reshape(n, spec.n_groups, spec.state_size).transpose(1, 0, 2)  # [g, n, s]
        c = c.reshape(n, spec.n_groups, spec.state_size).transpose(1, 0, 2)
        step = self.time_step(dt, layer).T  # [h, n]
        decay_rate = -np.exp(self.weights[f"layers.{layer}.A_log"])
        # In float64: a difference of float32 sums would lose the small decays after large ones.
        total: Float64 = np.cumsum(step.astype(np.float64) * decay_rate[:, None], axis=1)  # [h, n]
        since = (total[:, :, None] - total[:, None, :]).astype(np.float32)
        since[:, ~np.tri(n, dtype=bool)] = -np.inf
        decay = np.exp(since)  # [h, to, from]
        scores = np.repeat(c @ b.transpose(0, 2, 1), per_group, axis=0)  # [h, to, from]
        driven = x * step[:, :, None]
        c, b = np.repeat(c, per_group, axis=0), np.repeat(b, per_group, axis=0)
        state = self.state.ssm[layer]
        y: Float32 = (scores * decay) @ driven
        y += np.exp(total)[:, :, None].astype(np.float32) * (c @ state.transpose(0, 2, 1))
        y += self.weights[f"layers.{layer}.D"][:, None, None] * x
        left: Float32 = np.exp(total[:, -1:] - total)[:, :, None].astype(np.float32)  # [h, n, 1]
        kept: Float32 = np.exp(total[:, -1])[:, None, None].astype(np.float32)
        entered = np.asarray((driven * left).transpose(0, 2, 1) @ b, np.float32)
        self.state.ssm[layer] = kept * state + entered
        return y.transpose(1, 0, 2).reshape(n, spec.d_inner)

    def gated_rms_norm(self, y: Float32, gate: Float32, weight: str) -> Float32:
        gated = (y * silu(gate)).reshape(len(y), self.spec.n_groups, -1)
        return _normalised(gated, self.spec.norm_eps).reshape(y.shape) * self.weights[weight]

    def attention(self, q: Float32, k: Float32, v: Float32, layer: int) -> Float32:
        spec, n, n_past = self.spec, len(q), self.state.n_tokens
        cache = self.state.kv[layer]
        row_shape = (n, spec.n_kv_heads, spec.head_dim)
        cache.append(n_past, k.reshape(row_shape), v.reshape(row_shape))
        q = q.reshape(n, spec.n_kv_heads, -1, spec.head_dim) * np.float32(spec.head_dim**-0.5)
        out = np.empty_like(q)
        visible = np.tri(n, n_past + n, n_past, dtype=bool)
        for kv_head in range(spec.n_kv_heads):
            keys = cache.keys[: n_past + n, kv_head]
            values = cache.values[: n_past + n, kv_head]
            scores = q[:, kv_head].transpose(1, 0, 2) @ keys.T  # [query heads, n, past + n]
            scores = np.where(visible, scores, -np.inf)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            out[:, kv_head] = (scores @ values).transpose(1, 0, 2)
        return out.reshape(n, -1)

    def route(self, x: Float32, layer: int) -> tuple[Any, Any]:
        spec = self.spec
        scores = sigmoid(self.linear(x, f"layers.{layer}.gate"))
        # The bias steers the choice only; the weights are the unbiased scores.
        choice = self.group_limited(scores + self.weights[f"layers.{layer}.gate_bias"])
        ids = np.argsort(-choice, axis=-1, kind="stable")[:, : spec.n_experts_per_token]
        weights = np.take_along_axis(scores, ids, axis=-1)
        if spec.norm_topk_prob:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + ROUTER_EPSILON)
        return ids, weights * np.float32(spec.routed_scaling_factor)

    def group_limited(self, choice: Float32) -> Float32:
        """Exclude the experts outside the best groups; a group counts by its two best."""
        spec = self.spec
        if spec.n_expert_groups == 1:
            return choice
        grouped = choice.reshape(len(choice), spec.n_expert_groups, -1)
        strength = np.sort(grouped, axis=-1)[:, :, -2:].sum(axis=-1)
        order = np.argsort(-strength, axis=-1, kind="stable")
        dropped = order[:, spec.n_expert_groups_per_token :]
        grouped = grouped.copy()
        np.put_along_axis(grouped, dropped[:, :, None], -np.inf, axis=1)
        return grouped.reshape(choice.shape)

    def experts(self, x: Float32, ids: Any, weights: Any, layer: int) -> Float32:
        up, down = (f"layers.{layer}.experts_{name}" for name in ("up", "down"))
        out = np.zeros_like(x)
        for expert in np.unique(ids):
            rows, slots = np.nonzero(ids == expert)
            hidden = self.relu2(self.expert_linear(x[rows], up, expert))
            out[rows] += weights[rows, slots, None] * self.expert_linear(hidden, down, expert)
        return out

    def expert_linear(self, x: Float32, weight: str, expert: int) -> Float32:
        """`linear` with one of a stack of matrices."""
        return x @ self.weights.expert(weight, expert).T


def _normalised(x: Float32, eps: float) -> Float32:
    """x / sqrt(mean(x^2) + eps) over the last dimension."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    normalised: Float32 = x / np.sqrt(mean_square + np.float32(eps))
    return normalised
