"""What lies between the linears, against float64 forms of the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import FLOAT32_EPS, instruction_set
from numpy.typing import NDArray

from edge import _kernels
from edge.engines import kernels

F64 = NDArray[np.float64]
EXP_ERROR = 4 * FLOAT32_EPS
"""Of the kernels' exp: two units in the last place, each two roundings wide."""


@pytest.fixture(params=_kernels.instruction_sets(), autouse=True)
def each_instruction_set(request: pytest.FixtureRequest) -> Any:
    with instruction_set(request.param):
        yield


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def silu(x: F64) -> F64:
    return x / (1 + np.exp(np.minimum(-x, 700)))


@pytest.mark.parametrize("size", [1e-42, 1e-3, 1, 1e3, 1e15])
@pytest.mark.parametrize(("n_rows", "width"), [(1, 1), (3, 7), (1, 2688), (300, 40)])
def test_rms_norm(n_rows: int, width: int, size: float) -> None:
    x, w = normal(n_rows, width) * np.float32(size), normal(width, seed=1)
    y = kernels.rms_norm(x, w, 1e-5)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * w
    # width + 1 roundings of positive terms halve under the root; 5 more follow.
    bound = ((width + 1) / 2 + 5) * FLOAT32_EPS * np.abs(expected)
    assert (np.abs(y - expected) <= bound + 1e-40).all()


@pytest.mark.parametrize("size", [1, 30, 200])
@pytest.mark.parametrize(
    ("n_rows", "n_groups", "width"), [(1, 1, 5), (3, 4, 9), (1, 8, 512), (70, 2, 64)]
)
def test_gated_rms_norm(n_rows: int, n_groups: int, width: int, size: float) -> None:
    both = normal(n_rows, 2 * n_groups * width)  # the gate lies beside x, as after a projection
    x, gate = np.split(both, 2, axis=1)
    gate *= np.float32(size)
    w = normal(n_groups * width, seed=1)
    y = kernels.gated_rms_norm(x, gate, w, n_groups, 1e-5)
    gated = (x.astype(np.float64) * silu(gate.astype(np.float64))).reshape(n_rows, n_groups, width)
    normed = gated / np.sqrt((gated**2).mean(-1, keepdims=True) + 1e-5)
    expected = normed.reshape(n_rows, -1) * w
    bound = ((width + 1) / 2 + 10 + EXP_ERROR / FLOAT32_EPS * 2) * FLOAT32_EPS * np.abs(expected)
    # Where exp(-x) would overflow the kernels stop at exp(88): the gate is -3e-39 there, not 0.
    assert (np.abs(y - expected) <= bound + 1e-30).all()


@pytest.mark.parametrize("size", [1e-42, 1, 1e4])
@pytest.mark.parametrize("n_taps", [1, 2, 4, 16])
@pytest.mark.parametrize(("n_rows", "width"), [(1, 3), (2, 17), (1, 6144), (300, 1030)])
def test_causal_conv1d(n_rows: int, width: int, n_taps: int, size: float) -> None:
    x, past = normal(n_rows, width), normal(n_taps - 1, width, seed=1)
    x, past = x * np.float32(size), past * np.float32(size)
    taps, bias = normal(n_taps, width, seed=2), normal(width, seed=3)
    y, after = kernels.causal_conv1d(x, past, taps, bias)
    rows = np.concatenate([past, x]).astype(np.float64)
    terms = [rows[t : t + n_rows] * taps[t] for t in range(n_taps)]
    inner = bias + sum(terms)
    error = (n_taps + 1) * FLOAT32_EPS * (np.abs(bias) + sum(map(np.abs, terms)))
    # The slope of silu is below 1.1.
    bound = 1.1 * error + (EXP_ERROR + 4 * FLOAT32_EPS) * np.abs(silu(inner))
    # Where exp(-x) would overflow the kernels stop at exp(88).
    assert (np.abs(y - silu(inner)) <= bound + 1e-30).all()
    np.testing.assert_array_equal(after, rows[n_rows:].astype(np.float32))


def recurrence(
    x: F64, b: F64, c: F64, dt: F64, a_log: F64, d: F64, state: F64
) -> tuple[F64, F64, F64]:
    """One row after the other; and y with every term's magnitude, from which bounds follow."""
    n_heads, head_dim, _ = state.shape
    per_group = n_heads // b.shape[1]
    y, sizes = np.empty(x.shape), np.empty(x.shape)
    state, size = state.copy(), np.abs(state)
    for t in range(len(x)):
        for h in range(n_heads):
            step = np.logaddexp(0, dt[t, h])
            decay, g = np.exp(-step * np.exp(a_log[h])), h // per_group
            state[h] = decay * state[h] + step * np.outer(x[t, h], b[t, g])
            size[h] = decay * size[h] + step * np.abs(np.outer(x[t, h], b[t, g]))
            y[t, h] = state[h] @ c[t, g] + d[h] * x[t, h]
            sizes[t, h] = size[h] @ np.abs(c[t, g]) + np.abs(d[h] * x[t, h])
    assert head_dim == x.shape[2]
    return y, sizes, state


@pytest.mark.parametrize("dt_size", [0.1, 3, 30])
@pytest.mark.parametrize(
    ("n_rows", "n_heads", "head_dim", "n_groups", "state_size"),
    [(1, 2, 3, 1, 5), (1, 8, 16, 2, 128), (7, 2, 5, 2, 9), (64, 4, 8, 2, 16), (65, 2, 8, 1, 24),
     (300, 4, 7, 2, 17)],
)  # fmt: skip
def test_state_space(
    n_rows: int, n_heads: int, head_dim: int, n_groups: int, state_size: int, dt_size: float
) -> None:
    x, dt = (
        normal(n_rows, n_heads * head_dim),
        normal(n_rows, n_heads, seed=1) * np.float32(dt_size),
    )
    both = normal(n_rows, 2 * n_groups * state_size, seed=2)
    b, c = np.split(both, 2, axis=1)
    dt_bias, a_log, d = normal(3, n_heads, seed=3)
    state = normal(n_heads, head_dim, state_size, seed=4)
    before = state.copy()
    y, after = kernels.state_space(x, b, c, dt, (dt_bias, a_log, d), n_groups, state)
    np.testing.assert_array_equal(state, before)

    parts = (
        (n_rows, n_heads, head_dim),
        (n_rows, n_groups, state_size),
        (n_rows, n_groups, state_size),
    )
    wide = [v.astype(np.float64).reshape(shape) for v, shape in zip((x, b, c), parts, strict=True)]
    shifted = (dt + dt_bias).astype(np.float64)
    expected, sizes, last = recurrence(
        *wide, shifted, *(v.astype(np.float64) for v in (a_log, d, state))
    )
    # Every term passes at most: rounding of its step and of the log decay (which counts by its
    # own size, where exp(-size) * size < 0.37), exp, a product for each chunk or row that its state
    # outlives, and the sums over rows, states and chunks. Decays forget: 64 of those count.
    roundings = 64 + state_size + min(n_rows, 128) + 16
    bound = roundings * FLOAT32_EPS * sizes + 1e-30
    assert (np.abs(y.reshape(expected.shape) - expected) <= bound).all()
    np.testing.assert_allclose(
        after, last, rtol=0, atol=roundings * FLOAT32_EPS * np.abs(last).max()
    )


def test_state_space_in_any_split() -> None:
    """One row at a time gives what a long chunk gives: measured, 4e-7 of the largest value."""
    x, b, c, dt = normal(150, 12), normal(150, 20), normal(150, 20, seed=1), normal(150, 3, seed=2)
    heads = tuple(normal(3, 3, seed=3))
    state = start = np.zeros((3, 4, 20), np.float32)
    whole, last = kernels.state_space(x, b, c, dt, heads, 1, start)
    for t in range(150):
        part, state = kernels.state_space(
            x[t : t + 1], b[t : t + 1], c[t : t + 1], dt[t : t + 1], heads, 1, state
        )
        np.testing.assert_allclose(part[0], whole[t], rtol=0, atol=2e-6 * np.abs(whole).max())
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0.1, 1, 30])
@pytest.mark.parametrize(
    ("n_rows", "n_past", "n_kv_heads", "per_head", "dim"),
    [(1, 0, 1, 1, 3), (1, 1, 2, 3, 5), (1, 2500, 2, 16, 128), (5, 3, 2, 2, 8), (300, 0, 1, 4, 16),
     (130, 200, 2, 16, 12), (7, 1021, 1, 16, 8), (20, 1010, 2, 16, 8), (3, 5000, 2, 3, 32)],
)  # fmt: skip
def test_attention(
    n_rows: int, n_past: int, n_kv_heads: int, per_head: int, dim: int, size: float
) -> None:
    q = normal(n_rows, n_kv_heads * per_head * dim) * np.float32(size)
    keys, values = normal(2, n_past + n_rows, n_kv_heads, dim, seed=1)
    y = kernels.attention(q, keys, values)
    heads = q.reshape(n_rows, n_kv_heads, per_head, dim).astype(np.float64)
    scores = np.einsum("nhqd,thd->hqnt", heads, keys.astype(np.float64)) / np.sqrt(dim)
    sizes = np.einsum("nhqd,thd->hqnt", np.abs(heads), np.abs(keys).astype(np.float64)) / np.sqrt(
        dim
    )
    scores[..., ~np.tri(n_rows, n_past + n_rows, n_past, dtype=bool)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    expected = np.einsum("hqnt,thd->nhqd", shares, values.astype(np.float64))
    # A score's error (dim products and the scale) is a factor of its share; then sums over keys.
    score_error = (dim + 3) * FLOAT32_EPS * sizes
    factor = 2 * score_error + EXP_ERROR + (n_past + n_rows + 8) * FLOAT32_EPS
    error = shares * (factor + (shares * factor).sum(-1, keepdims=True))
    bound = np.einsum("hqnt,thd->nhqd", error, np.abs(values).astype(np.float64)) + 1e-30
    assert (np.abs(y.reshape(expected.shape) - expected) <= bound).all()


def test_rows_behind_the_length_are_never_read() -> None:
    cache = np.full((2, 500, 2, 8), np.nan, np.float32)
    cache[:, :123] = normal(2, 123, 2, 8)
    for n_rows in (1, 20):
        y = kernels.attention(normal(n_rows, 32), cache[0, :123], cache[1, :123])
        assert np.isfinite(y).all()


@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (4, 3), (12, 6)])
@pytest.mark.parametrize("normalise", [True, False])
def test_route(groups: tuple[int, int], normalise: bool) -> None:
    logits, bias = normal(40, 12) * 3, normal(12, seed=1)
    logits[0], bias[3:9] = 0, bias[3]  # equal ones
    n_slots = 4
    ids, weights = kernels.route(logits, bias, n_slots, groups, normalise, 2.5)
    for i, row in enumerate(logits.astype(np.float64)):
        scores = 1 / (1 + np.exp(-row))
        choice = (scores + bias).reshape(groups[0], -1)
        strength = np.sort(choice, axis=1)[:, -2:].sum(1)
        best = np.argsort(-strength, kind="stable")[: groups[1]]
        allowed = np.isin(np.arange(groups[0]), best).repeat(12 // groups[0])
        # By float32, in which equal choices are equal.
        order = np.where(allowed, (scores.astype(np.float32) + bias), -np.inf)
        chosen = np.argsort(-order, kind="stable")[:n_slots]
        np.testing.assert_array_equal(ids[i], chosen)
        expected = scores[chosen] / (scores[chosen].sum() if normalise else 1) * 2.5
        np.testing.assert_allclose(weights[i], expected, rtol=12 * FLOAT32_EPS)


def test_scores_that_saturate() -> None:
    """Sigmoids of 0 and 1, and nothing overflows on the way; equal ones go to the first."""
    logits = np.float32([[-1e30, -100, 0, 100, 1e30, -3e38, 3e38, -88]])
    ids, weights = kernels.route(logits, np.zeros(8, np.float32), 8, (1, 1), True, 1.0)
    assert ids.tolist() == [[3, 4, 6, 2, 7, 1, 0, 5]]
    np.testing.assert_allclose(weights[0, :4], np.float32([1, 1, 1, 0.5]) / 3.5, rtol=1e-6)
    assert (weights[0, 4:] >= 0).all()
    assert (weights[0, 4:] < 1e-37).all()


@pytest.mark.parametrize("size", [1e-42, 1e-20, 1e15])
def test_state_space_of_extreme_values(size: float) -> None:
    """Values and state together: y and the next state are that many times larger or smaller."""
    x, b, c, dt = normal(70, 12), normal(70, 20), normal(70, 20, seed=1), normal(70, 3, seed=2)
    heads, state = tuple(normal(3, 3, seed=3)), normal(3, 4, 20, seed=4)
    y, after = kernels.state_space(x, b, c, dt, heads, 1, state)
    factor = np.float32(size)
    large, later = kernels.state_space(x * factor, b, c, dt, heads, 1, state * factor)
    for got, expected in ((large, y), (later, after)):
        error = np.abs(got / np.float64(factor) - expected)
        # Products of denormals lose up to half of 2^-149 each; about a hundred are summed.
        assert (error <= 1e-5 * np.abs(expected).max() + 100 * 2.0**-149 / size).all()


def test_nan_reaches_the_output() -> None:
    x = normal(2, 32)
    x[1, 5] = np.nan
    keys = normal(2, 1, 32, seed=1)
    bad = keys.copy()
    bad[0, 0, 3] = np.nan
    for y in (
        kernels.rms_norm(x, np.ones(32, np.float32), 1e-5)[1],
        kernels.gated_rms_norm(x, x, np.ones(32, np.float32), 1, 1e-5)[1],
        kernels.attention(normal(2, 32), bad, keys),
        kernels.attention(normal(2, 32), keys, bad)[:, 3],
    ):
        assert np.isnan(y).all()
