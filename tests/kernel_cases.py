"""Weights of every format for kernel tests, with their values in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edge import _kernels
from edge.engines import formats, kernels

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
BF16 = np.dtype(ml_dtypes.bfloat16)
FORMATS = ["float32", "bfloat16", "fp8", "int4", "nvfp4"]
COLUMNS = {"float32": 1, "bfloat16": 1, "fp8": 1, "int4": 128, "nvfp4": 16}
"""What the columns of a format are a multiple of."""
FLOAT32_EPS = 2.0**-24
"""Largest relative error of one float32 rounding."""

Case = tuple[_kernels.Weight, NDArray[np.float64]]


def case(name: str, n: int, k: int, seed: int = 0, stack: tuple[int, ...] = ()) -> Case:
    """A weight of format `name` and its values [*stack, n, k]: random codes, scales around 1."""
    rng = np.random.default_rng(seed)
    shape = (*stack, n, k)
    if name in ("float32", "bfloat16"):
        values = rng.standard_normal(shape).astype(np.float32 if name == "float32" else BF16)
        return kernels.weight(values), values.astype(np.float64)
    scale = rng.uniform(0.5, 2, stack).astype(np.float32)
    if name == "fp8":
        codes = finite_codes(rng, shape).view(E4M3)
        return kernels.weight(codes, None, scale), dequantized("fp8", codes, None, scale)
    if name == "int4":
        packed = rng.integers(0, 256, (*stack, n // 2, k), np.uint8)
        block_scale = rng.uniform(0.01, 1, (*stack, n, k // 128)).astype(np.float32)
        return kernels.weight(packed, block_scale), dequantized("int4", packed, block_scale, None)
    packed = rng.integers(0, 256, (*stack, n, k // 2), np.uint8)
    scales = finite_codes(rng, (*stack, n, k // 16)).view(E4M3)
    return nvfp4(packed, scales, scale), dequantized("nvfp4", packed, scales, scale)


def nvfp4(codes: Any, block_scale: Any, scale: Any) -> _kernels.Weight:
    """A weight, or a stack, given in a checkpoint's order."""
    n, k = codes.shape[-2:]
    codes = [formats.interleave_codes(c) for c in codes.reshape(-1, n, k)]
    scales = [formats.interleave_scales(s) for s in block_scale.reshape(-1, n, k // 8)]
    stack = block_scale.shape[:-2]
    return kernels.weight(
        np.stack(codes).reshape(*stack, n, k), np.stack(scales).reshape(*stack, n, k // 8), scale
    )


def finite_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    codes = rng.integers(0, 256, shape, np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x38
    return codes


def dequantized(name: str, codes: Any, block_scale: Any, scale: Any) -> NDArray[np.float64]:
    """What `formats` makes of the bytes, of each matrix of a stack."""
    if codes.ndim > 2:
        parts = (None if p is None else list(p) for p in (codes, block_scale, scale))
        each = [p if p is not None else [None] * len(codes) for p in parts]
        return np.stack([dequantized(name, *one) for one in zip(*each, strict=True)])
    if name == "fp8":
        values = formats.unpack_fp8(formats.Fp8(codes, scale))
    elif name == "int4":
        values = formats.unpack_int4(formats.Int4(codes, block_scale))
    else:
        values = formats.unpack_nvfp4(formats.Nvfp4(codes, block_scale, scale))
    return values.astype(np.float64)


def float_bound(x: NDArray[Any], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest error of a float32 sum of products: each of k + 3 roundings of the absolute sum.

    k additions in whatever order, one rounding of each product, of its weight and of the scale.
    """
    k = x.shape[-1]
    return (k + 3) * FLOAT32_EPS * (np.abs(x.astype(np.float64)) @ np.abs(w).T) + k * 2.0**-149


def quantized_bound(x: NDArray[Any], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest error when groups of 16 activations are 127ths of their largest: half a step each."""
    k = x.shape[-1]
    padded = np.zeros((len(x), -(-k // 16) * 16))
    padded[:, :k] = np.abs(x)
    step = padded.reshape(len(x), -(-k // 16), 16).max(-1) / 127
    half = np.repeat(step / 2, 16, axis=1)[:, :k] + 2.0**-100
    # The quotient x * (127 / amax) is rounded too, so a tie may fall to either side.
    return (1 + 2.0**-14) * half @ np.abs(w).T + float_bound(x, w)


def bound_of(name: str, n_rows: int, *, exact: bool) -> Any:
    """The bound that holds for so many rows of activations with weights of format `name`."""
    codes = not exact and (name == "nvfp4" or (name == "int4" and n_rows == 1))
    return quantized_bound if codes else float_bound


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Compute with another instruction set."""
    before = _kernels.instruction_set()
    _kernels.use_instruction_set(name)
    try:
        yield
    finally:
        _kernels.use_instruction_set(before)
