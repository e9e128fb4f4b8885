"""How each kernel is launched: its arguments in order, its fixed constants, its grid.

Without Triton, so that a device that only launches compiled kernels can read it. A kernel is
called with its arguments' addresses and int32 sizes in the order of `arguments`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ROWS = 16
"""Rows of a weight that are interleaved, and that one program of a decode kernel computes."""
TILE = 64
"""Rows and columns of a weight that a prefill kernel decodes at a time."""
PAIRS = 16
"""Pairs of one expert that a prefill kernel takes at a time."""
ALIGNMENT_BYTES = 16
"""Of every address except those of camera frames: the kernels load 16 bytes at once."""
FORMATS = ("nvfp4", "int4")
COLUMNS = {"nvfp4": 16, "int4": 128}
"""What the columns of a weight are a multiple of."""

Grid = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel.

    Args:
        name: its file's name, and the entry point's unless it is given.
        function: module and name of its source in this package.
        arguments: name -> Triton type; `*` marks an address. Inputs, sizes, outputs.
        n_outputs: how many of the last arguments are written.
        constants: what is compiled in.
        grid: sizes by name -> programs; sizes may be TensorRT's symbolic integers.
        num_warps: a program has 32 threads for each.
        num_stages: loads that are under way at once, where a loop feeds the tensor cores.
        multiples_of_16: sizes that are a multiple of 16.
        any_address: addresses that need no alignment.
    """

    name: str
    function: tuple[str, str]
    arguments: Mapping[str, str]
    n_outputs: int
    constants: Mapping[str, Any]
    grid: Callable[[Mapping[str, Any]], Grid]
    num_warps: int = 4
    num_stages: int = 3
    multiples_of_16: tuple[str, ...] = ()
    any_address: tuple[str, ...] = ()


def ceil_div(a: Any, b: int) -> Any:
    """a / b rounded up; a may be a symbolic integer."""
    return (a + (b - 1)) // b


def _weight(format_name: str) -> dict[str, str]:
    if format_name == "nvfp4":
        return {"codes": "*u32", "block_scale": "*u8", "scale": "*fp32"}
    return {"codes": "*u32", "block_scale": "*fp32"}  # no scale of a whole matrix


def _experts(format_name: str) -> list[Kernel]:
    weight, sizes = _weight(format_name), {"n": "i32", "k": "i32", "n_slots": "i32"}
    # INT4 has no scale of a whole matrix.
    scale = {} if "scale" in weight else {"scale": None}
    step = {"FORMAT": format_name, **scale}
    decode = {**step, "BLOCK": 32 if format_name == "nvfp4" else 1}
    prefill = {**step, "BLOCK_M": PAIRS, "BLOCK_N": TILE, "BLOCK_K": TILE}
    routes = {"ids": "*i32", "weights": "*fp32"}
    sorted_pairs = {"order": "*i32", "begins": "*i32"}
    hidden = {"hidden": "*fp16", "hidden_scale": "*fp32"}
    dimensions = ("n", "k")
    return [
        Kernel(
            f"decode_up_{format_name}",
            ("experts", "decode_up"),
            {"x": "*fp16", "ids": "*i32", **weight, **sizes, "hidden": "*fp32"},
            1,
            decode,
            lambda s: (s["n"] // ROWS, s["n_tokens"] * s["n_slots"], 1),
            num_warps=2,
            multiples_of_16=dimensions,
        ),
        Kernel(
            f"decode_down_{format_name}",
            ("experts", "decode_down"),
            {"hidden": "*fp32", **routes, **weight, **sizes, "y": "*fp16"},
            1,
            decode,
            lambda s: (s["n"] // ROWS, s["n_tokens"], 1),
            num_warps=2,
            multiples_of_16=dimensions,
        ),
        Kernel(
            f"prefill_up_{format_name}",
            ("experts", "prefill_up"),
            {"x": "*fp16", **sorted_pairs, **weight, **sizes, **hidden},
            2,
            prefill,
            lambda s: (ceil_div(s["n"], TILE), s["n_experts"], 1),
            num_warps=2,
            multiples_of_16=dimensions,
        ),
        Kernel(
            f"prefill_down_{format_name}",
            ("experts", "prefill_down"),
            {
                **hidden, **sorted_pairs, "weights": "*fp32", **weight,
                "n": "i32", "k": "i32", "parts": "*fp32",
            },
            1,
            prefill,
            lambda s: (ceil_div(s["n"], TILE), s["n_experts"], 1),
            num_warps=2,
            multiples_of_16=dimensions,
        ),
    ]  # fmt: skip


def _resize(name: str, chroma: bool) -> Kernel:
    planes = {"pixels": "*u8", **({"chroma": "*u8"} if chroma else {})}
    axis = {"first": "*i32", "weights": "*fp32", "row_bytes": "i32"}
    chroma_rows = {"chroma_row_bytes": "i32"} if chroma else {}
    sizes = {"n_rows": "i32", "n_columns": "i32", "n_taps": "i32"}
    return Kernel(
        name,
        ("frames", "resize_width"),
        {**planes, **axis, **chroma_rows, **sizes, "planes": "*fp32"},
        1,
        {
            "NV12": chroma,
            "BLOCK": 128,
            **({} if chroma else {"chroma": None, "chroma_row_bytes": 0}),
        },
        lambda s: (ceil_div(s["n_columns"], 128), s["n_rows"], 1),
        any_address=("pixels", "chroma"),
    )


_KERNELS = [
    *_experts("nvfp4"),
    *_experts("int4"),
    Kernel(
        "sort_pairs",
        ("experts", "sort_pairs"),
        {"ids": "*i32", "n_pairs": "i32", "n_experts": "i32", "order": "*i32", "begins": "*i32"},
        2,
        {"BLOCK": 64},
        lambda s: (ceil_div(s["n_tokens"] * s["n_slots"] + (s["n_experts"] + 1), 64), 1, 1),
    ),
    Kernel(
        "combine",
        ("experts", "combine"),
        {"parts": "*fp32", "n": "i32", "n_slots": "i32", "y": "*fp16"},
        1,
        {"BLOCK": 512},
        lambda s: (ceil_div(s["n"], 512), s["n_tokens"], 1),
        multiples_of_16=("n",),
    ),
    _resize("resize_width_rgb", chroma=False),
    _resize("resize_width_nv12", chroma=True),
    Kernel(
        "patchify",
        ("frames", "patchify"),
        {
            "planes": "*fp32", "first": "*i32", "weights": "*fp32", "gain": "*fp32",
            "offset": "*fp32", "n_rows": "i32", "n_columns": "i32", "n_taps": "i32",
            "side": "i32", "stride": "i32", "patches": "*fp16",
        },
        1,
        {"BLOCK": 128},
        lambda s: (ceil_div(s["n_columns"], 128), s["n_rows_out"], 3),
        any_address=("patches",),
    ),
    Kernel(
        "dissimilarity",
        ("frames", "dissimilarity"),
        {"tubelet": "*fp16", "before": "*fp16", "n": "i32", "result": "*fp32"},
        1,
        {"BLOCK": 1024},
        lambda s: (s["n_places"], 1, 1),
        multiples_of_16=("n",),
    ),
]  # fmt: skip
KERNELS = {kernel.name: kernel for kernel in _KERNELS}
