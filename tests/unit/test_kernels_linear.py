"""Linears of every format against float64, on every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    COLUMNS,
    E4M3,
    FORMATS,
    bound_of,
    case,
    dequantized,
    float_bound,
    instruction_set,
    nvfp4,
    quantized_bound,
)
from numpy.typing import NDArray

from edge import _kernels
from edge.engines import kernels

INSTRUCTION_SETS = _kernels.instruction_sets()


@pytest.fixture(params=INSTRUCTION_SETS, autouse=True)
def each_instruction_set(request: pytest.FixtureRequest) -> Any:
    with instruction_set(request.param):
        yield


def activations(n: int, k: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def assert_close(y: NDArray[Any], x: NDArray[Any], w: NDArray[np.float64], bound: Any) -> None:
    error = np.abs(y - x.astype(np.float64) @ w.T)
    assert (error <= bound(x, w)).all(), float((error / bound(x, w)).max())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(2, 1), (6, 5), (18, 9), (34, 11), (258, 7)])
def test_one_row(name: str, n: int, k: int, exact: bool) -> None:
    """Rows and columns that are a multiple of no block, but of what the format itself needs."""
    k *= COLUMNS[name]
    weight, values = case(name, n, k)
    x = activations(1, k)
    y = kernels.linear(weight, x, exact=exact)
    assert_close(y, x, values, bound_of(name, 1, exact=exact))


@pytest.mark.parametrize("n_rows", [0, 2, 3, 4, 5, 31, 300])
@pytest.mark.parametrize("name", FORMATS)
def test_many_rows(name: str, n_rows: int) -> None:
    n, k = 38, {"int4": 640, "nvfp4": 656}.get(name, 601)
    weight, values = case(name, n, k)
    x = activations(n_rows, k)
    for exact in (True, False):
        y = kernels.linear(weight, x, exact=exact)
        assert_close(y, x, values, bound_of(name, n_rows, exact=exact))


@pytest.mark.parametrize("name", FORMATS)
def test_every_number_of_rows_below_17(name: str) -> None:
    k = COLUMNS[name] if COLUMNS[name] > 1 else 23
    weight, values = case(name, 42, k)
    for n_rows in range(1, 17):
        x = activations(n_rows, k)
        for exact in (True, False):
            y = kernels.linear(weight, x, exact=exact)
            assert_close(y, x, values, bound_of(name, n_rows, exact=exact))


def test_every_byte() -> None:
    """All E4M3 codes as weights and as scales, all pairs of nibbles."""
    unit = np.eye(256, dtype=np.float32)
    codes = np.arange(256, dtype=np.uint8)
    fp8 = kernels.weight(np.tile(codes, (2, 1)).view(E4M3), None, np.float32(1))
    expected = codes.view(E4M3).astype(np.float32)
    nan = np.isnan(expected)
    for column in range(256):  # alone: a NaN reaches every sum
        one = np.zeros((1, 256), np.float32)
        one[0, column] = 1
        assert np.isnan(kernels.linear(fp8, one, exact=True)).all()
    finite = kernels.weight(np.where(nan, np.uint8(0), codes)[None].view(E4M3), None, np.float32(1))
    y = kernels.linear(finite, unit, exact=True)[:, 0]
    np.testing.assert_array_equal(y, np.where(nan, 0, expected))
    for column in range(256):
        y = kernels.linear(finite, unit[column : column + 1], exact=True)[0]
        assert y[0] == (0 if nan[column] else expected[column])

    for exact in (True, False):
        scales = np.arange(256, dtype=np.uint8)[:, None].view(E4M3)
        ones = np.full((256, 8), 0x22, np.uint8)  # the value 1
        weight = nvfp4(ones, scales, np.float32(1))
        x = np.zeros((1, 16), np.float32)
        x[0, 3] = 1
        y = kernels.linear(weight, x, exact=exact)[0]
        np.testing.assert_allclose(y, expected, rtol=2**-20)

        packed = codes.reshape(16, 16).repeat(16, axis=0)  # every byte in every place of a row
        packed = np.stack([np.roll(row, i) for i, row in enumerate(packed)])
        ones_scale = np.ones((256, 2), np.float32).astype(E4M3)
        weight = nvfp4(packed, ones_scale, np.float32(1))
        values = dequantized("nvfp4", packed, ones_scale, np.float32(1))
        for column in range(32):
            y = kernels.linear(weight, unit[column : column + 1, :32].copy(), exact=exact)[0]
            np.testing.assert_allclose(y, values[:, column], rtol=2**-20)

        packed = np.stack([np.roll(codes, i) for i in range(256)])
        block_scale = np.ones((512, 2), np.float32)
        weight = kernels.weight(packed, block_scale)
        values = dequantized("int4", packed, block_scale, None)
        for column in (0, 1, 31, 127, 128, 255):
            y = kernels.linear(weight, unit[column : column + 1], exact=exact)[0]
            np.testing.assert_allclose(y, values[:, column], rtol=2**-20)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 2.0**-126, 1e-20, 1e20, 1e33])
@pytest.mark.parametrize("exact", [True, False])
def test_extreme_scales_of_a_tensor(scale: float, exact: bool) -> None:
    """Denormal to nearly overflowing; the step itself may lose digits where it is denormal."""
    rng = np.random.default_rng(5)
    packed = rng.integers(0, 256, (8, 72), np.uint8)
    block_scale = rng.integers(1, 0x7F, (8, 9), np.uint8).view(E4M3)
    true = dequantized("nvfp4", packed, block_scale, np.float32(1)) * np.float64(np.float32(scale))
    x = activations(1, 144)
    bound = quantized_bound(x, true) if not exact else float_bound(x, true)
    lost = 2.0**-149 * 6 * np.abs(x).sum()  # half a denormal step a weight, and one at the end
    weight = nvfp4(packed, block_scale, np.float32(scale))
    for rows in (1, 2):
        y = kernels.linear(weight, np.repeat(x, rows, axis=0), exact=exact)
        assert (np.abs(y - x.astype(np.float64) @ true.T) <= bound + lost).all()


@pytest.mark.parametrize("size", [0, 1e-42, 1e-31, 1e-5, 1e30])
def test_extreme_activations(size: float) -> None:
    for name in ("int4", "nvfp4"):
        weight, values = case(name, 4, 256)
        x = (activations(1, 256) * size).astype(np.float32)
        assert_close(kernels.linear(weight, x, exact=False), x, values, quantized_bound)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["int4", "nvfp4"])
def test_a_bad_activation_is_not_hidden(name: str, bad: float) -> None:
    weight, _ = case(name, 4, 256)
    x = activations(1, 256)
    x[0, 77] = bad
    for exact in (True, False):
        assert not np.isfinite(kernels.linear(weight, x, exact=exact)).any()


def test_rows_that_lie_apart() -> None:
    weight, values = case("bfloat16", 12, 40)
    wide = activations(5, 100)
    x = wide[:, 30:70]
    assert_close(kernels.linear(weight, x, exact=True), x, values, float_bound)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 7, 40])
def test_experts(name: str, exact: bool, n_rows: int) -> None:
    hidden, width, n_experts, n_slots = 128, 256, 9, 4
    up, up_values = case(name, width, hidden, 1, (n_experts,))
    down, down_values = case(name, hidden, width, 2, (n_experts,))
    x = activations(n_rows, hidden)
    rng = np.random.default_rng(3)
    ids = np.stack([rng.permutation(n_experts)[:n_slots] for _ in x]).astype(np.int32)
    ids[:, 0] = np.where((ids == 5).any(1), ids[:, 0], 5)  # one expert has every row
    shares = rng.uniform(0.1, 1, ids.shape).astype(np.float32)
    y = kernels.experts(up, down, x, ids, shares, exact=exact)
    of = bound_of(name, n_rows, exact=exact)
    expected, bound = np.zeros(y.shape), np.zeros(y.shape)
    for i, row in enumerate(x):
        for e, share in zip(ids[i], shares[i].astype(np.float64), strict=True):
            above = row.astype(np.float64) @ up_values[e].T
            error = of(row[None], up_values[e])[0]
            inner = np.maximum(above, 0) ** 2
            # What a wrong input does to the square, and then to the sum; then the sum's own error.
            spread = (np.abs(above) + error) ** 2 - above**2 + 4 * 2.0**-24 * inner
            expected[i] += share * (inner @ down_values[e].T)
            own = of((inner + spread)[None], down_values[e])[0]
            bound[i] += share * (spread @ np.abs(down_values[e]).T + own)
    bound += (n_slots + 2) * 2.0**-24 * (bound + np.abs(expected)) + 1e-30
    assert (np.abs(y - expected) <= bound).all()


def test_what_does_not_fit_is_refused() -> None:
    weight, _ = case("nvfp4", 4, 32)
    with pytest.raises(ValueError, match=r"x is not \[rows, k\]"):
        kernels.linear(weight, activations(1, 48), exact=True)
    with pytest.raises(ValueError, match="values have not the weight's size"):
        _kernels.Weight("float32", 1, 2, 2, np.zeros(15, np.uint8), None, None)
    with pytest.raises(ValueError, match="format is none of"):
        _kernels.Weight("int3", 1, 2, 2, np.zeros(16, np.uint8), None, None)
    stack, _ = case("float32", 8, 8, stack=(3,))
    ids = np.int32([[0, 3]])
    with pytest.raises(ValueError, match="an expert that does not exist"):
        kernels.experts(
            stack, stack, activations(1, 8), ids, np.ones((1, 2), np.float32), exact=True
        )
