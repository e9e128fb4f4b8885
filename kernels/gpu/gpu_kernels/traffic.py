"""How many bytes a launch moves, from its arguments' shapes: tests trace the kernels against it.

A byte of a weight counts as often as programs ask for it, so that a kernel that reads its weights
twice moves twice as much. What many programs read alike counts once (`CACHED`): rows of x, routes
and hidden values, a camera's pixels. A cache between the programs is taken to hold those: at the
published sizes and 256 tokens, what the programs of one expert share is at most 64 KB. Lanes of one
load that ask for the same address are one. Caches are given credit for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gpu_kernels.launch import COLUMNS, KERNELS, PAIRS, TILE, ceil_div

CACHED = frozenset(
    {
        *("x", "ids", "weights", "scale", "order", "begins", "hidden", "hidden_scale"),
        *("pixels", "chroma", "planes", "first", "gain", "offset"),
    }
)
"""Arguments of which a launch reads each byte once, however many programs ask for it."""
WEIGHT = ("codes", "block_scale", "scale")
_ITEM_BYTES = {"*fp16": 2, "*fp32": 4, "*i32": 4, "*u8": 1, "*u32": 1}
"""Codes are loaded as words, and have the shape of a bundle's bytes."""


def moved_bytes(name: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Bytes that one launch reads and writes, by argument.

    Pairs are taken to be spread evenly over the experts: where a token's experts differ and there
    are no more pairs than experts, every pair has its own.

    Args:
        name: in the launch table.
        shapes: of all of its addresses; of a weight as a bundle has it.
    """
    kernel = KERNELS[name]
    moved = {
        argument: math.prod(shapes[argument]) * _ITEM_BYTES[kind]
        for argument, kind in kernel.arguments.items()
        if kind.startswith("*")
    }
    if "FORMAT" not in kernel.constants:
        return moved
    n_experts, is_prefill = shapes["codes"][0], "BLOCK_M" in kernel.constants
    pairs = math.prod(shapes["order" if is_prefill else "ids"])
    taken = min(pairs, n_experts)
    reads = taken * math.ceil(pairs / taken / PAIRS) if is_prefill else pairs
    for part in WEIGHT:
        if part in moved:
            moved[part] = moved[part] // n_experts * (taken if part in CACHED else reads)
    if is_prefill and kernel.constants["FORMAT"] == "int4":
        moved["block_scale"] *= COLUMNS["int4"] // TILE  # each tile of columns asks for its scales
    return moved


def expert_shapes(
    name: str, n_tokens: int, n_slots: int, n_experts: int, n: int, k: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of all addresses of a launch of one of the experts' kernels.

    Args:
        name: in the launch table.
        n, k: rows and columns of the weight that it reads, or the columns of what it adds up.
    """
    kernel, pairs = KERNELS[name], n_tokens * n_slots
    width = n if "_up_" in name else k
    one_by_one = name.startswith("decode")
    shapes: dict[str, tuple[int, ...]] = {
        "x": (n_tokens, k),
        "ids": (n_tokens, n_slots),
        "weights": (n_tokens, n_slots),
        "order": (pairs,),
        "begins": (n_experts + 1,),
        "hidden": (n_tokens, n_slots, width) if one_by_one else (pairs, width),
        "hidden_scale": (pairs, ceil_div(width, TILE)),
        "parts": (pairs, n),
        "y": (n_tokens, n),
        "scale": (n_experts,),
    }
    if form := kernel.constants.get("FORMAT"):
        codes = (n, k // 2) if form == "nvfp4" else (n // 2, k)
        shapes["codes"] = (n_experts, *codes)
        shapes["block_scale"] = (n_experts, n, k // COLUMNS[form])
    return {a: shapes[a] for a, kind in kernel.arguments.items() if kind.startswith("*")}
