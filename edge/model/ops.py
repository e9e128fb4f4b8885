"""The operations that the decoder is written in.

Two realizations exist: the cpu engine's, which compute on numpy arrays, and the builder's, which
emit ONNX nodes. Whatever one computes, the other computes, because `decoder.py` is written once.
Weights and states are named, not passed: the realization knows where they live.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ops(Protocol[T]):
    """Shapes: n rows (tokens) of this call, H hidden size. All values are float32 in meaning."""

    def linear(self, x: T, weight: str) -> T:
        """[n, in] -> [n, out]: x @ W^T, no bias."""

    def rms_norm(self, x: T, weight: str) -> T:
        """[n, H] -> [n, H]: x / rms(x) * w, in float32."""

    def add(self, a: T, b: T) -> T:
        """Elementwise sum."""

    def relu2(self, x: T) -> T:
        """max(x, 0) squared."""

    def split(self, x: T, sizes: Sequence[int]) -> Sequence[T]:
        """Cut the last dimension into pieces of the given sizes."""

    def last_row(self, x: T) -> T:
        """[n, H] -> [1, H]."""

    def causal_conv1d(self, x: T, layer: int) -> T:
        """[n, conv_dim] -> same: depthwise, with the layer's carried columns, bias and SiLU."""

    def ssd(self, x: T, b: T, c: T, dt: T, layer: int) -> T:
        """State-space duality scan with the layer's carried state.

        x [n, d_inner], b and c [n, groups * state], dt [n, heads] before bias and softplus.
        """

    def gated_rms_norm(self, y: T, gate: T, weight: str) -> T:
        """[n, d_inner]: the gate first (y * silu(gate)), then RMS norm within each group."""

    def attention(self, q: T, k: T, v: T, layer: int) -> T:
        """Causal grouped-query attention over the layer's past and these rows, no positions."""

    def route(self, x: T, layer: int) -> tuple[T, T]:
        """[n, H] -> expert ids and weights, both [n, experts per token]."""

    def experts(self, x: T, ids: T, weights: T, layer: int) -> T:
        """Weighted sum of the chosen experts: down(relu2(up(x)))."""
