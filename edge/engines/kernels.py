"""The native kernels, with shapes and dtypes: what `_kernels` computes, as functions of arrays.

Rows are float32 and may lie apart (a part of wider rows is taken as it is); a weight is taken in
the layout that a bundle maps, without a copy. `exact` keeps activations in float32; without it a
single row meets NVFP4 and INT4 weights as 8-bit codes, one scale for 16 of them.

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
        values: [..., n, k] float32, bfloat16 or float8_e4m3fn, or codes as `formats` packs them.
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
