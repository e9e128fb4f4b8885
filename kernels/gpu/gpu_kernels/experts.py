"""Routed experts, y = sum over a token's slots of weight * down(max(up(x), 0)^2).

Two ways with the same meaning. Decode: each (token, slot) pair reads its expert; no pair waits for
another. Prefill: pairs are sorted by expert, and a tile of weights is decoded once for all pairs of
its expert, for the tensor cores. Neither adds with atomics: the order of every sum is fixed, so
that the same input gives the same bits.

Arguments stand in the order in which a TensorRT plugin passes them: inputs, sizes, outputs.
n and k are a matrix's rows and columns; n is a multiple of 16, k of 16 (NVFP4) or 128 (INT4). IDs
are trusted: an ID outside the stack reads outside it.
"""

import triton
import triton.language as tl

from gpu_kernels.weights import (
    NVFP4_ROWS_SCALE,
    NVFP4_TILE_SCALE,
    int4_rows,
    int4_tile,
    nvfp4_rows,
    nvfp4_tile,
)


@triton.jit
def _rows(
    codes, block_scale, scale, expert, x, row, n, k, FORMAT: tl.constexpr, BLOCK: tl.constexpr
):
    """16 rows of one expert's product with a vector, in float32."""
    expert = expert.to(tl.int64)
    codes += expert * (n // 8 * k)
    if FORMAT == "nvfp4":
        block_scale += expert * (n * (k // 16))
        y = nvfp4_rows(codes, block_scale, x, row, k, BLOCK)
        return y * (tl.load(scale + expert) * NVFP4_ROWS_SCALE)
    block_scale += expert * (n * (k // 128))
    return int4_rows(codes, block_scale, x, row, k, BLOCK)


@triton.jit
def decode_up(
    x, ids, codes, block_scale, scale, n, k, n_slots, hidden,
    FORMAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """hidden = max(up(x), 0)^2 of every pair, in float32: above 255 a float16 would overflow.

    Grid: (n / 16, pairs).

    Bound: codes, scales and x are exact, so what differs from real numbers is k + 4 roundings of a
    float32 sum: |error of up| <= (k + 4) * 2^-24 * sum |w x| =: e, and of its square
    <= 2 |up| e + e^2 + 2^-24 * (|up| + e)^2.

    Args:
        x: [tokens, k] float16.
        ids: [tokens, n_slots] int32.
        codes, block_scale, scale: stacks as a bundle has them; INT4 has no scale and ignores it.
        hidden: [pairs, n] float32.
    """
    pair = tl.program_id(1)
    row = tl.program_id(0) * 16
    y = _rows(
        codes, block_scale, scale, tl.load(ids + pair), x + pair // n_slots * k, row, n, k,
        FORMAT, BLOCK,
    )  # fmt: skip
    y = tl.maximum(y, 0.0)
    tl.store(hidden + pair * n + row + tl.arange(0, 16), y * y)


@triton.jit
def decode_down(
    hidden, ids, weights, codes, block_scale, scale, n, k, n_slots, y,
    FORMAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = sum over slots of weight * down(hidden), slot by slot in their order.

    Grid: (n / 16, tokens).

    Bound: as `decode_up`, (k + n_slots + 5) * 2^-24 * sum |weight w hidden|, and one rounding to
    float16.

    Args:
        hidden: [pairs, k] float32.
        ids, weights: [tokens, n_slots] int32 and float32.
        codes, block_scale, scale: as `decode_up`.
        y: [tokens, n] float16.
    """
    token = tl.program_id(1)
    row = tl.program_id(0) * 16
    total = tl.zeros([16], tl.float32)
    for slot in range(n_slots):
        pair = token * n_slots + slot
        part = _rows(
            codes, block_scale, scale, tl.load(ids + pair), hidden + pair * k, row, n, k,
            FORMAT, BLOCK,
        )  # fmt: skip
        total += tl.load(weights + pair) * part
    tl.store(y + token * n + row + tl.arange(0, 16), total.to(tl.float16))


@triton.jit
def sort_pairs(ids, n_pairs, n_experts, order, begins, BLOCK: tl.constexpr):
    """Stable sort of pairs by expert, by counting: a pair's place is how many come before it.

    An expert's beginning is the place of a pair that comes before all of its own, so that both are
    one count. Compares all with all: 3 million comparisons for 1,728 pairs.
    Grid: (ceil((n_pairs + n_experts + 1) / BLOCK)).

    Args:
        ids: [n_pairs] int32.
        order: [n_pairs] int32, pairs in the order of their experts.
        begins: [n_experts + 1] int32; pairs of expert e are order[begins[e] : begins[e + 1]].
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_pair = i < n_pairs
    expert = i - n_pairs
    key = tl.where(is_pair, tl.load(ids + i, mask=is_pair, other=0), expert)
    before = tl.where(is_pair, i, 0)
    place = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n_pairs, BLOCK):
        j = start + tl.arange(0, BLOCK)
        others = tl.load(ids + j, mask=j < n_pairs, other=n_experts)[None, :]
        earlier = (others == key[:, None]) & (j[None, :] < before[:, None])
        first = ((others < key[:, None]) | earlier) & (j < n_pairs)[None, :]
        place += tl.sum(first.to(tl.int32), 1)
    tl.store(order + place, i, mask=is_pair)
    tl.store(begins + expert, place, mask=(expert >= 0) & (expert <= n_experts))


@triton.jit
def prefill_up(
    x, order, begins, codes, block_scale, scale, n, k, n_slots, hidden, hidden_scale,
    FORMAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """hidden = max(up(x), 0)^2 of every pair, in float16 with a power of two for BLOCK_N columns.

    The largest value of a pair's block is brought to between 2^12 and 2^14 before it is rounded:
    no overflow, and only what is 2^-26 of it or less is subnormal.
    Grid: (ceil(n / BLOCK_N), experts); an expert without pairs costs one empty program.

    Bound: that of `decode_up`, plus 2^-11 of the value and 2^-37 of the block's largest.

    Args:
        x: [tokens, k] float16.
        order, begins: of `sort_pairs`.
        codes, block_scale, scale: as `decode_up`.
        hidden: [pairs, n] float16, a pair's row at its place in `order`.
        hidden_scale: [pairs, ceil(n / BLOCK_N)] float32, what its block is to be multiplied by.
    """
    block, expert = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end = tl.load(begins + expert), tl.load(begins + expert + 1)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    for first in range(begin, end, BLOCK_M):
        place = first + tl.arange(0, BLOCK_M)
        token = tl.load(order + place, mask=place < end, other=0) // n_slots
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, k, BLOCK_K):
            column = start + tl.arange(0, BLOCK_K)[None, :]
            inside = (place < end)[:, None] & (column < k)
            a = tl.load(x + token[:, None] * k + column, mask=inside, other=0)
            if FORMAT == "nvfp4":
                tile = nvfp4_tile(
                    codes + expert * (n * (k // 8)), block_scale + expert * (n * (k // 16)),
                    block * BLOCK_N, start, n, k, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                total = tl.dot(a, tl.trans(tile), total)
            else:
                tile = int4_tile(
                    codes + expert * (n // 8 * k), block * BLOCK_N, start, n, k, BLOCK_N, BLOCK_K
                )
                step = block_scale + (expert * n + rows) * (k // 128) + start // 128
                step = tl.load(step, mask=rows < n, other=0)
                total += tl.dot(a, tl.trans(tile)) * step[None, :]
        if FORMAT == "nvfp4":
            total *= tl.load(scale + expert) * NVFP4_TILE_SCALE
        total = tl.maximum(total, 0.0)
        # The power of two below the largest, or 2^-60 where all is smaller than that. Its inverse
        # by its bits: a division is not exact on every device.
        most = tl.maximum(tl.max(total, 1), 2.0**-60)
        exponent = most.to(tl.int32, bitcast=True) & 0x7F800000
        power = exponent.to(tl.float32, bitcast=True) * 0.015625
        total *= (0x7F000000 - exponent).to(tl.float32, bitcast=True)[:, None] * 64.0
        at = hidden + place[:, None] * n + rows[None, :]
        inside = (place < end)[:, None] & (rows < n)[None, :]
        tl.store(at, (total * total).to(tl.float16), mask=inside)
        at = hidden_scale + place * tl.cdiv(n, BLOCK_N) + block
        tl.store(at, power * power, mask=place < end)


@triton.jit
def prefill_down(
    hidden, hidden_scale, order, begins, weights, codes, block_scale, scale, n, k, parts,
    FORMAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """weight * down(hidden) of every pair, in float32; `combine` adds them up.

    Grid: (ceil(n / BLOCK_N), experts).

    Bound: (k + 8) * 2^-24 * sum |weight w hidden| beside what `hidden` lacks.

    Args:
        hidden, hidden_scale: of `prefill_up`, whose BLOCK_N is this kernel's BLOCK_K.
        order, begins: of `sort_pairs`.
        weights: [pairs] float32.
        codes, block_scale, scale: as `decode_up`.
        parts: [pairs, n] float32, by the pair's own number.
    """
    block, expert = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end = tl.load(begins + expert), tl.load(begins + expert + 1)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    for first in range(begin, end, BLOCK_M):
        place = first + tl.arange(0, BLOCK_M)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, k, BLOCK_K):
            column = start + tl.arange(0, BLOCK_K)[None, :]
            inside = (place < end)[:, None] & (column < k)
            a = tl.load(hidden + place[:, None] * k + column, mask=inside, other=0)
            back = hidden_scale + place * tl.cdiv(k, BLOCK_K) + start // BLOCK_K
            back = tl.load(back, mask=place < end, other=0)[:, None]
            if FORMAT == "nvfp4":
                tile = nvfp4_tile(
                    codes + expert * (n * (k // 8)), block_scale + expert * (n * (k // 16)),
                    block * BLOCK_N, start, n, k, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                total += tl.dot(a, tl.trans(tile)) * back
            else:
                tile = int4_tile(
                    codes + expert * (n // 8 * k), block * BLOCK_N, start, n, k, BLOCK_N, BLOCK_K
                )
                step = block_scale + (expert * n + rows) * (k // 128) + start // 128
                step = tl.load(step, mask=rows < n, other=0)
                total += tl.dot(a, tl.trans(tile)) * (step[None, :] * back)
        if FORMAT == "nvfp4":
            total *= tl.load(scale + expert) * NVFP4_TILE_SCALE
        pair = tl.load(order + place, mask=place < end, other=0)
        total *= tl.load(weights + pair, mask=place < end, other=0)[:, None]
        at = parts + pair[:, None] * n + rows[None, :]
        tl.store(at, total, mask=(place < end)[:, None] & (rows < n)[None, :])


@triton.jit
def combine(parts, n, n_slots, y, BLOCK: tl.constexpr):
    """y = sum of a token's parts, slot by slot in their order, rounded once to float16.

    Grid: (ceil(n / BLOCK), tokens).

    Args:
        parts: [tokens, n_slots, n] float32.
        y: [tokens, n] float16.
    """
    token = tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for slot in range(n_slots):
        at = parts + (token * n_slots + slot) * n + column
        total += tl.load(at, mask=column < n, other=0)
    tl.store(y + token * n + column, total.to(tl.float16), mask=column < n)
