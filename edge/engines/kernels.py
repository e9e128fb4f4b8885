"""The native kernels, with shapes and dtypes: what `_kernels` computes, as functions of arrays.

Rows are float32 and may lie apart (a part of wider rows is taken as it is); a weight is taken in
the layout that a bundle maps, without a copy. `exact` keeps activations in float32; without it all
rows meet NVFP4 weights, and a single one INT4 weights, as 8-bit codes, one scale for 16 of them.

Threads and the instruction set belong to the process: `_kernels.set_threads` and
`_kernels.use_instruction_set`, or EDGE_KERNELS=portable in the environment.
"""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edge import _kernels
from edge.engines.formats import INT4_BLOCK, NVFP4_GROUP
from edge.errors import ConfigurationError
from edge.types import Float32, Int32

ENVIRONMENT = "EDGE_KERNELS"


def choose_instruction_set() -> None:
    """Take the instruction set that the environment names, or else the processor's best.

    Raises:
        ConfigurationError: it names none that this processor and build have.
    """
    known = _kernels.instruction_sets()
    name = os.environ.get(ENVIRONMENT, known[0])
    if name not in known:
        raise ConfigurationError(ENVIRONMENT, f"is {name!r}", f"use one of {', '.join(known)}")
    _kernels.use_instruction_set(name)


def weight(
    values: NDArray[Any], block_scale: NDArray[Any] | None = None, scale: Any = None
) -> _kernels.Weight:
    """A weight, or a stack of weights of one shape, over arrays that it keeps and never copies.

    Args:
        values: [..., n, k] float32, bfloat16 or float8_e4m3fn, or codes as `formats` packs them,
            NVFP4 interleaved.
        block_scale: NVFP4 [..., n, k / 16] float8_e4m3fn, INT4 [..., n, k / 128] float32.
        scale: [...] float32, of NVFP4 and FP8.
    """
    *stack, n, k = values.shape
    if block_scale is None:
        name = {np.dtype(ml_dtypes.float8_e4m3fn): "fp8"}.get(values.dtype, values.dtype.name)
    elif block_scale.dtype == np.float32:
        name, n, k = "int4", 2 * n, block_scale.shape[-1] * INT4_BLOCK
    else:
        name, k = "nvfp4", block_scale.shape[-1] * NVFP4_GROUP
    scales = None if scale is None else np.ascontiguousarray(scale, np.float32).reshape(-1)
    blocks = None if block_scale is None else _bytes(block_scale)
    return _kernels.Weight(name, int(np.prod(stack)), n, k, _bytes(values), blocks, scales)


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def linear(w: _kernels.Weight, x: Float32, *, exact: bool) -> Float32:
    """x [rows, k] @ W^T -> [rows, n]."""
    y = np.empty((len(x), w.n), np.float32)
    _kernels.linear(w, x, y, exact)
    return y


def experts(
    up: _kernels.Weight,
    down: _kernels.Weight,
    x: Float32,
    ids: Int32,
    weights: Float32,
    *,
    exact: bool,
) -> Float32:
    """Routed experts.

    Args:
        up, down: stacks [experts, width, hidden] and [experts, hidden, width].
        x: [rows, hidden].
        ids: [rows, slots], the experts that a row takes.
        weights: [rows, slots], contiguous.

    Returns:
        [rows, hidden]: the sum over a row's slots of weight * down(max(up(x), 0) ** 2).
    """
    y = np.empty((len(x), down.n), np.float32)
    _kernels.experts(up, down, x, ids, weights, y, exact)
    return y


def rms_norm(x: Float32, w: Float32, eps: float) -> Float32:
    """[rows, n] -> same: x / sqrt(mean(x^2) + eps) * w."""
    y = np.empty(x.shape, np.float32)
    _kernels.rms_norm(x, w, eps, y)
    return y


def gated_rms_norm(x: Float32, gate: Float32, w: Float32, n_groups: int, eps: float) -> Float32:
    """[rows, n] -> same: x * silu(gate), then RMS norm within each group of columns."""
    y = np.empty(x.shape, np.float32)
    _kernels.gated_rms_norm(x, gate, w, n_groups, eps, y)
    return y


def causal_conv1d(
    x: Float32, past: Float32, taps: Float32, bias: Float32
) -> tuple[Float32, Float32]:
    """Depthwise convolution along the rows, then SiLU.

    Args:
        x: [rows, n].
        past: [taps - 1, n], the rows before x.
        taps: [taps, n]; the last meets a row itself.
        bias: [n].

    Returns:
        [rows, n], and the past of what follows x.
    """
    y, after = np.empty(x.shape, np.float32), np.empty(past.shape, np.float32)
    _kernels.causal_conv1d(x, past, taps, bias, y, after)
    return y, after


def state_space(
    x: Float32,
    b: Float32,
    c: Float32,
    dt: Float32,
    heads: tuple[Float32, Float32, Float32],
    n_groups: int,
    state: Float32,
    *,
    in_place: bool = False,
) -> tuple[Float32, Float32]:
    """S_t = exp(dt A) S + dt x B^T, y = S C + D x, with dt = softplus(dt + bias), A = -exp(A_log).

    Args:
        x: [rows, heads * head dim].
        b, c: [rows, groups * state size]; neighbouring heads share a group.
        dt: [rows, heads], before bias and softplus.
        heads: bias of dt, A_log and D, each [heads].
        state: [heads, head dim, state size].
        in_place: write the state after the last row over it, which is half the traffic; otherwise
            it is not written to.

    Returns:
        y as x, and the state after the last row.
    """
    y = np.empty(x.shape, np.float32)
    after = state if in_place else np.empty(state.shape, np.float32)
    _kernels.state_space(x, b, c, dt, *heads, n_groups, state, y, after)
    return y, after


def attention(q: Float32, keys: Float32, values: Float32) -> Float32:
    """Causal grouped-query attention of the last rows over all rows.

    Args:
        q: [rows, heads * head dim].
        keys, values: [past + rows, K/V heads, head dim].
    """
    y = np.empty(q.shape, np.float32)
    _kernels.attention(q, keys, values, y)
    return y


def route(
    logits: Float32,
    bias: Float32,
    n_slots: int,
    groups: tuple[int, int],
    normalise: bool,
    factor: float,
) -> tuple[Int32, Float32]:
    """The experts of each row and their weights.

    Args:
        logits: [rows, experts]; their sigmoid is the score.
        bias: [experts], added for the choice alone.
        n_slots: experts of a row.
        groups: how many groups there are, and how many of them a row may use.
        normalise: whether a row's weights are divided by their sum.
        factor: of all weights.

    Returns:
        ids and weights [rows, n_slots], the highest first; of equal ones the first expert.
    """
    ids = np.empty((len(logits), n_slots), np.int32)
    weights = np.empty(ids.shape, np.float32)
    _kernels.route(logits, bias, *groups, normalise, factor, ids, weights)
    return ids, weights
