"""The GPU's expert kernels in Triton's interpreter: against float64, and against the CPU kernels.

A bound is what the kernel's docstring derives: so many roundings of float32 sums, and those to
float16 that it says. The interpreter's sums are float32, in another order than a GPU's, which the
bound covers; what it cannot show is that a compiler's output does the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gpu_interpreter import interpreted, launch, require_triton
from kernel_cases import finite_codes
from numpy.typing import NDArray

from edge import _kernels
from edge.engines import formats, kernels
from gpu_kernels.launch import FORMATS, PAIRS, TILE

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
EPS = 2.0**-24
"""Largest relative error of a float32 rounding; of a float16 rounding 2^-11."""
TINY = 2.0**-149
"""The smallest float32."""
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """A weight of each expert: its values, as the GPU has it and as the CPU has it."""

    values: Float64
    arguments: dict[str, NDArray[Any]]
    cpu: _kernels.Weight


@dataclass(frozen=True)
class Case:
    """One call of the experts."""

    format: str
    up: Stack
    down: Stack
    x: NDArray[np.float16]
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]


@cache
def modules() -> dict[str, ModuleType]:
    require_triton()
    return interpreted()


def nvfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8], scale: Any) -> Stack:
    """Given in a checkpoint's order; the kernels read a bundle's."""
    each = [
        formats.Nvfp4(c, s, one) for c, s, one in zip(codes, scales.view(E4M3), scale, strict=True)
    ]
    bundled = [formats.interleave_nvfp4(one) for one in each]
    codes = np.stack([one.codes for one in bundled])
    block_scale = np.stack([one.block_scale for one in bundled])
    return Stack(
        np.stack([formats.unpack_nvfp4(one) for one in each]).astype(np.float64),
        {
            "codes": codes.view(np.uint32),
            "block_scale": block_scale.view(np.uint8),
            "scale": scale,
        },
        kernels.weight(codes, block_scale, scale),
    )


def int4(codes: NDArray[np.uint8], block_scale: NDArray[np.float32]) -> Stack:
    values = [
        formats.unpack_int4(formats.Int4(c, s)) for c, s in zip(codes, block_scale, strict=True)
    ]
    arguments = {"codes": codes.view(np.uint32), "block_scale": block_scale}
    return Stack(np.stack(values).astype(np.float64), arguments, kernels.weight(codes, block_scale))


def random_stack(rng: np.random.Generator, name: str, experts: int, n: int, k: int) -> Stack:
    if name == "int4":
        codes = rng.integers(0, 256, (experts, n // 2, k), np.uint8)
        return int4(codes, rng.uniform(-0.1, 0.1, (experts, n, k // 128)).astype(np.float32))
    codes = rng.integers(0, 256, (experts, n, k // 2), np.uint8)
    scales = finite_codes(rng, (experts, n, k // 16))
    return nvfp4(codes, scales, rng.uniform(1e-3, 2e-3, experts).astype(np.float32))


def random_case(
    name: str, n_tokens: int, experts: int, n_slots: int, hidden: int, width: int, seed: int = 0
) -> Case:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(experts)[:n_slots] for _ in range(n_tokens)]).astype(np.int32)
    return Case(
        name,
        random_stack(rng, name, experts, width, hidden),
        random_stack(rng, name, experts, hidden, width),
        rng.standard_normal((n_tokens, hidden)).astype(np.float16),
        ids,
        rng.uniform(0.1, 1, (n_tokens, n_slots)).astype(np.float32),
    )


def decode(case: Case) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Hidden [tokens, slots, width] and y [tokens, hidden size]."""
    (n_tokens, n_slots), (_, width, size) = case.ids.shape, case.up.values.shape
    hidden = np.full((n_tokens, n_slots, width), np.nan, np.float32)
    y = np.full((n_tokens, size), np.nan, np.float16)
    up = {"x": case.x, "ids": case.ids, **case.up.arguments, "hidden": hidden}
    up |= {"n": width, "k": size, "n_slots": n_slots}
    launch(modules(), f"decode_up_{case.format}", up, n_tokens=n_tokens)
    down = {"hidden": hidden, "ids": case.ids, "weights": case.weights, **case.down.arguments}
    down |= {"n": size, "k": width, "n_slots": n_slots, "y": y}
    launch(modules(), f"decode_down_{case.format}", down, n_tokens=n_tokens)
    return hidden, y


def prefill(case: Case) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """As `decode`: hidden brought back to its scale and order."""
    (n_tokens, n_slots), (n_experts, width, size) = case.ids.shape, case.up.values.shape
    n_pairs = n_tokens * n_slots
    order = np.full(n_pairs, -1, np.int32)
    begins = np.full(n_experts + 1, -1, np.int32)
    pairs = {"ids": case.ids, "n_pairs": n_pairs, "n_experts": n_experts}
    sizes = {"n_tokens": n_tokens, "n_slots": n_slots, "n_experts": n_experts}
    launch(modules(), "sort_pairs", {**pairs, "order": order, "begins": begins}, **sizes)
    np.testing.assert_array_equal(order, np.argsort(case.ids.ravel(), kind="stable"))
    np.testing.assert_array_equal(
        begins, np.searchsorted(np.sort(case.ids.ravel()), np.arange(n_experts + 1))
    )
    routes = {"order": order, "begins": begins}
    hidden = np.full((n_pairs, width), np.nan, np.float16)
    hidden_scale = np.full((n_pairs, -(-width // TILE)), np.nan, np.float32)
    made = {"hidden": hidden, "hidden_scale": hidden_scale}
    up = {"x": case.x, **routes, **case.up.arguments, "n": width, "k": size, "n_slots": n_slots}
    launch(modules(), f"prefill_up_{case.format}", up | made, **sizes)
    parts = np.full((n_pairs, size), np.nan, np.float32)
    down = {**made, **routes, "weights": case.weights, **case.down.arguments}
    down |= {"n": size, "k": width, "parts": parts}
    launch(modules(), f"prefill_down_{case.format}", down, **sizes)
    y = np.full((n_tokens, size), np.nan, np.float16)
    launch(modules(), "combine", {"parts": parts, "n": size, "n_slots": n_slots, "y": y}, **sizes)
    back = np.empty((n_pairs, width), np.float32)
    back[order] = hidden * np.repeat(hidden_scale, TILE, axis=1)[:, :width]
    return back.reshape(n_tokens, n_slots, width), y


WAYS = {"decode": decode, "prefill": prefill}


def expected(case: Case, way: str) -> tuple[Float64, Float64, Float64, Float64]:
    """Hidden and its bound, y and its bound, from real numbers."""
    x = case.x.astype(np.float64)
    up, down = case.up.values[case.ids], case.down.values[case.ids]
    sums = np.einsum("tswh,th->tsw", up, x)
    error = (x.shape[1] + 4) * EPS * np.einsum("tswh,th->tsw", np.abs(up), np.abs(x))
    hidden = np.maximum(sums, 0) ** 2
    hidden_bound = 2 * np.abs(sums) * error + error**2 + EPS * (np.abs(sums) + error) ** 2 + TINY
    if way == "prefill":
        starts = np.arange(0, hidden.shape[-1], TILE)
        most = np.maximum.reduceat(hidden + hidden_bound, starts, axis=-1)
        most = np.repeat(most, TILE, axis=-1)[..., : hidden.shape[-1]]
        hidden_bound += 2.0**-11 * (hidden + hidden_bound) + 2.0**-37 * most
    weights = np.abs(case.weights.astype(np.float64))
    y = np.einsum("ts,tshw,tsw->th", case.weights.astype(np.float64), down, hidden)
    lacking = np.einsum("ts,tshw,tsw->th", weights, np.abs(down), hidden_bound)
    most = np.einsum("ts,tshw,tsw->th", weights, np.abs(down), hidden + hidden_bound)
    roundings = hidden.shape[-1] + case.ids.shape[1] + 8
    y_bound = lacking + roundings * EPS * most
    return hidden, hidden_bound, y, y_bound


def check(case: Case, way: str) -> None:
    hidden, y = WAYS[way](case)
    true_hidden, hidden_bound, true_y, y_bound = expected(case, way)
    y_bound = y_bound + 2.0**-11 * (np.abs(true_y) + y_bound) + 2.0**-25  # y is rounded to float16
    assert np.abs(true_y).max() < 65504, "a case whose answer is no float16"
    cpu = kernels.experts(
        case.up.cpu, case.down.cpu, case.x.astype(np.float32), case.ids, case.weights, exact=True
    )
    _, _, _, cpu_bound = expected(case, "decode")
    shares = {
        "hidden": np.abs(hidden - true_hidden) / hidden_bound,
        "y": np.abs(y - true_y) / y_bound,
        "beside the CPU kernel": np.abs(y - cpu.astype(np.float64)) / (y_bound + cpu_bound),
    }
    worst = {name: float(share.max()) for name, share in shares.items()}
    assert all(share <= 1 for share in worst.values()), worst  # NaN is not


# tokens, experts, slots, hidden size, width: off the blocks of 16 groups, 64 rows and 16 pairs
SIZES = {
    ("nvfp4", "decode"): [(1, 3, 2, 48, 16), (3, 4, 2, 16, 48), (1, 2, 1, 528, 16)],
    ("int4", "decode"): [(1, 3, 2, 128, 128), (2, 2, 1, 128, 128)],
    ("nvfp4", "prefill"): [(1, 3, 2, 48, 16), (9, 4, 3, 80, 144), (65, 8, 2, 16, 64)],
    ("int4", "prefill"): [(1, 3, 2, 128, 128), (40, 3, 2, 256, 128)],
}


@pytest.mark.parametrize(
    ("name", "way", "size"), [(*key, size) for key, sizes in SIZES.items() for size in sizes]
)
def test_sizes(name: str, way: str, size: tuple[int, int, int, int, int]) -> None:
    check(random_case(name, *size), way)


def test_eight_tokens_at_once() -> None:
    check(random_case("nvfp4", 8, 4, 1, 16, 16), "decode")


def test_three_hundred_tokens() -> None:
    check(random_case("nvfp4", 300, 4, 1, 16, 32), "prefill")


@pytest.mark.parametrize("name", FORMATS)
def test_all_tokens_on_one_expert(name: str) -> None:
    case = random_case(name, 2 * PAIRS + 3, 5, 1, 128, 128)
    check(replace(case, ids=np.full_like(case.ids, 3)), "prefill")


@pytest.mark.parametrize("way", WAYS)
def test_an_expert_taken_twice_counts_twice(way: str) -> None:
    case = random_case("nvfp4", 2, 3, 3, 16, 16)
    check(replace(case, ids=np.array([[1, 1, 2], [0, 1, 0]], np.int32)), way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-40, 2.0**-20])
def test_the_smallest_scales(way: str, scale: float) -> None:
    """Subnormal E4M3 scales, and a float32 scale that is subnormal, too."""
    rng = np.random.default_rng(1)
    case = random_case("nvfp4", 2, 2, 1, 32, 32)
    codes = rng.integers(0, 256, (2, 32, 16), np.uint8)
    tiny = nvfp4(codes, rng.integers(0, 8, (2, 32, 2), np.uint8), np.float32([scale, scale]))
    check(replace(case, up=tiny), way)
    check(replace(case, down=tiny), way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORMATS)
def test_hidden_values_that_no_float16_holds(name: str, way: str) -> None:
    case = random_case(name, 1, 2, 1, 128, 128)
    loud = replace(case, x=case.x * np.float16(3000), weights=case.weights * np.float32(1e-8))
    assert expected(loud, way)[0].max() > 1e6
    check(loud, way)


@pytest.mark.parametrize("way", WAYS)
def test_zeros(way: str) -> None:
    case = random_case("nvfp4", 2, 2, 1, 16, 16)
    hidden, y = WAYS[way](replace(case, x=np.zeros_like(case.x)))
    assert not hidden.any()
    assert not y.any()


@pytest.mark.parametrize("way", WAYS)
def test_the_same_input_gives_the_same_bits_in_any_company(way: str) -> None:
    """Alone, a token's answer is what it is among others: no sum depends on the rest."""
    case = random_case("nvfp4", 3, 3, 2, 16, 32)
    last = replace(case, x=case.x[2:].copy(), ids=case.ids[2:].copy(), weights=case.weights[2:])
    np.testing.assert_array_equal(WAYS[way](case)[1][2:], WAYS[way](last)[1])


def test_every_code_and_every_scale_is_exact() -> None:
    modules()
    from gpu_tiles import read_tile

    scales = np.array([s for s in range(256) if s & 0x7F != 0x7F], np.uint8)  # without NaN
    scales = np.concatenate([scales, [0, 0]]).astype(np.uint8).reshape(1, 256, 1)
    row = np.arange(0, 16, 2, dtype=np.uint8) | np.arange(1, 16, 2, dtype=np.uint8) << 4
    weight = nvfp4(np.tile(row, (1, 256, 1)), scales, np.float32([1]))
    np.testing.assert_array_equal(read_tile("nvfp4", weight.arguments, 256, 16), weight.values[0])

    packed = np.arange(256, dtype=np.uint8).repeat(128).reshape(1, 256, 128)
    weight = int4(packed, np.ones((1, 512, 1), np.float32))
    np.testing.assert_array_equal(read_tile("int4", weight.arguments, 512, 128), weight.values[0])
