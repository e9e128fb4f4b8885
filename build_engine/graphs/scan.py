"""The selective state space of Mamba2 over the tokens of one call, as one quadratic chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from build_engine.graphs.onnx_ops import Graph
from edge.model.spec import DecoderSpec

MASKED = np.float32(-30_000)
"""Before exp or softmax: it gives zero, and unlike an infinity never a NaN."""
SMALL = np.float32(-5)
"""Below it log(1 + exp(x)) is taken from its series: 1 + exp(x) would round away what is left."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The tensors of one scan, by name, all float32."""

    x: str
    """[T, heads * head dim]."""
    b: str
    c: str
    """[T, groups * state size]."""
    dt: str
    """[T, heads], before bias and softplus."""
    state: str
    """[heads, head dim, state size]."""
    dt_bias: str
    a_log: str
    d: str
    """[heads]."""


def scan(graph: Graph, spec: DecoderSpec, s: Scan, causal: str) -> tuple[str, str]:
    """S_t = exp(dt A) S + dt x B^T, y = S C + D x.

    Heads are grouped from the start, [groups, heads a group, T, *], so that B and C, which are a
    group's, broadcast over its heads.

    Args:
        causal: bool [T, T], true where the column is no later than the row.
    Returns:
        y [T, heads * head dim], and the state after the last token.
    """
    groups, heads = spec.n_groups, spec.mamba_n_heads // spec.n_groups
    width, n_state = spec.mamba_head_dim, spec.state_size
    x = graph.transpose(graph.reshape(s.x, -1, groups, heads, width), 1, 2, 0, 3)
    b, c = (
        graph.op(
            "Unsqueeze", graph.transpose(graph.reshape(v, -1, groups, n_state), 1, 0, 2), _at(1)
        )
        for v in (s.b, s.c)
    )  # [groups, 1, T, state]
    state = graph.reshape(s.state, groups, heads, width, n_state)
    step = _softplus(graph, graph.op("Add", s.dt, s.dt_bias))  # [T, heads]
    rate = graph.op("Neg", graph.op("Exp", s.a_log))
    sums = _Sums(graph, graph.op("Mul", step, rate), groups, heads)
    step = graph.transpose(graph.reshape(step, -1, groups, heads), 1, 2, 0)

    driven = graph.op("Mul", x, graph.op("Unsqueeze", step, _at(3)))
    # masked before exp: above the diagonal the difference is positive, and exp would overflow
    fall = graph.op("Where", causal, sums.between(), MASKED)
    scores = graph.op("MatMul", c, graph.transpose(b, 0, 1, 3, 2))
    y = graph.op("MatMul", graph.op("Mul", graph.op("Exp", fall), scores), driven)
    before = graph.op("MatMul", c, graph.transpose(state, 0, 1, 3, 2))
    y = graph.op("Add", y, graph.op("Mul", graph.op("Exp", sums.from_start()), before))
    y = graph.op("Add", y, graph.op("Mul", x, graph.reshape(s.d, groups, heads, 1, 1)))

    left = graph.op("Mul", driven, graph.op("Exp", sums.to_end()))
    entered = graph.op("MatMul", graph.transpose(left, 0, 1, 3, 2), b)
    kept = graph.op("Mul", graph.op("Exp", sums.whole()), state)
    after = graph.reshape(graph.op("Add", kept, entered), spec.mamba_n_heads, width, n_state)
    return graph.reshape(graph.transpose(y, 2, 0, 1, 3), -1, spec.d_inner), after


class _Sums:
    """Differences of the running sum of the log decays, [groups, heads a group, *, *].

    Summed as whole parts, which float32 holds exactly, and fractions apart: a difference of plain
    float32 sums would lose the small decays after large ones.
    """

    def __init__(self, graph: Graph, decays: str, groups: int, heads: int) -> None:
        """Sum `decays` [T, heads] along T."""
        self._graph = graph
        whole = graph.op("Round", decays)
        both = graph.op("Concat", whole, graph.op("Sub", decays, whole), axis=1)
        sums = graph.op("CumSum", both, np.array(0, np.int64))
        sums = graph.transpose(graph.reshape(sums, -1, 2, groups, heads), 1, 2, 3, 0)
        parts = graph.ops("Split", sums, n_outputs=2, axis=0, num_outputs=2)
        self._parts = [graph.reshape(part, groups, heads, -1) for part in parts]

    def _as(self, axis: int, *, last: bool = False) -> list[str]:
        """Both parts with another axis; `last` takes the last token's."""
        graph = self._graph
        parts = [graph.slice(p, 2, -1) if last else p for p in self._parts]
        return [graph.op("Unsqueeze", part, _at(axis)) for part in parts]

    def _difference(self, to: list[str], start: list[str]) -> str:
        each = (self._graph.op("Sub", a, b) for a, b in zip(to, start, strict=True))
        return self._graph.op("Add", *each)

    def between(self) -> str:
        """From each token (column) to each (row), [.., T, T]."""
        return self._difference(self._as(3), self._as(2))

    def to_end(self) -> str:
        """From each token to the last, [.., T, 1]."""
        return self._difference(self._as(3, last=True), self._as(3))

    def from_start(self) -> str:
        """Up to each token, [.., T, 1]."""
        return self._graph.op("Add", *self._as(3))

    def whole(self) -> str:
        """Of all tokens, [.., 1, 1]."""
        return self._graph.op("Add", *self._as(3, last=True))


def _softplus(graph: Graph, x: str) -> str:
    """log(1 + exp(x)), neither overflowing nor losing digits."""
    power = graph.op("Exp", graph.op("Neg", graph.op("Abs", x)))
    large = graph.op("Log", graph.op("Add", power, np.float32(1)))
    large = graph.op("Add", large, graph.op("Relu", x))
    small = graph.op("Sub", np.float32(1 / 2), graph.op("Mul", power, np.float32(1 / 3)))
    small = graph.op("Sub", np.float32(1), graph.op("Mul", power, small))
    small = graph.op("Mul", power, small)  # p - p^2 / 2 + p^3 / 3, with p = exp(x) here
    return graph.op("Where", graph.op("Less", x, SMALL), small, large)


def _at(axis: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array([axis], np.int64)
