"""One tile of a weight, read back as the kernels decode it. Import it after `interpreted()`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import triton
import triton.language as tl
from gpu_interpreter import Tensor
from numpy.typing import NDArray

from gpu_kernels.weights import NVFP4_TILE_SCALE, int4_tile, nvfp4_tile


@triton.jit
def _store_tile(
    codes, block_scale, n, k, to, FORMAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS
    if FORMAT == "nvfp4":
        tile = nvfp4_tile(codes, block_scale, row, 0, n, k, ROWS, COLUMNS)
    else:
        tile = int4_tile(codes, row, 0, n, k, ROWS, COLUMNS)
    at = (row + tl.arange(0, ROWS)[:, None]) * k + tl.arange(0, COLUMNS)[None, :]
    tl.store(to + at, tile)


def read_tile(name: str, weight: Mapping[str, NDArray[Any]], n: int, k: int) -> NDArray[np.float64]:
    """The values [n, k] of a weight, without the scales that are applied to sums."""
    to = np.full((n, k), np.nan, np.float16)
    codes, block_scale = Tensor(weight["codes"]), Tensor(weight["block_scale"])
    _store_tile[(n // 64,)](codes, block_scale, n, k, Tensor(to), FORMAT=name, ROWS=64, COLUMNS=k)
    scale = float(NVFP4_TILE_SCALE.value) if name == "nvfp4" else 1.0
    return to.astype(np.float64) * scale
