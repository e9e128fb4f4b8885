"""Number formats of quantized weights: what their bytes mean and how they are made.

A weight W of a linear layer is [n, k]: n outputs, k inputs. The layouts are those of ModelOpt's
checkpoints, and packing gives the very bytes of its exporter on a CPU:

    NVFP4   W[i, j] = E2M1(codes) * block_scale[i, j / 16] * scale    W4A4 and W4A16
    FP8     W[i, j] = E4M3(codes) * scale
    INT4    W[i, j] = int4(codes) * block_scale[i, j / 128]           weight-only and AWQ

A bundle interleaves the bytes of NVFP4 weights, so that kernels read sixteen rows side by side:
`interleave_nvfp4`.

One exception: where ModelOpt's scale of a whole tensor is zero (all weights zero, or below about
1e-42), it divides by zero and writes NaN. Here that scale is 1 and the weights read back as zero.

Source: NVIDIA ModelOpt 0.47.0, torch/export/quant_utils.py and
torch/quantization/qtensor/nvfp4_tensor.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edge import _kernels
from edge.errors import CheckpointError

NVFP4_GROUP = 16
"""Columns that share a block scale."""
NVFP4_TILE = 16
"""Rows whose bytes a bundle interleaves."""
INT4_BLOCK = 128
E2M1_MAX = 6.0
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Nvfp4:
    """A weight of 4.5 bits an element.

    Args:
        codes: [n, k / 2] uint8. Column 2j is the low half of byte j, column 2j + 1 the high half;
            three bits choose from 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the fourth is the sign.
        block_scale: [n, k / 16] float8_e4m3fn (`weight_scale`).
        scale: of the whole tensor (`weight_scale_2`).
    """

    codes: NDArray[np.uint8]
    block_scale: NDArray[Any]
    scale: np.float32


@dataclass(frozen=True)
class Fp8:
    """A weight of 8 bits an element.

    Args:
        codes: [n, k] float8_e4m3fn.
        scale: of the whole tensor (`weight_scale`).
    """

    codes: NDArray[Any]
    scale: np.float32


@dataclass(frozen=True)
class Int4:
    """A weight of 4.25 bits an element.

    Args:
        codes: [n / 2, k] uint8. Row 2i is the low half of a byte, row 2i + 1 the high half; each
            half is a two's complement integer, -8 to 7.
        block_scale: [n, k / 128] float32 (`weight_scale`).
    """

    codes: NDArray[np.uint8]
    block_scale: NDArray[np.float32]


def pack_nvfp4(
    weight: NDArray[Any], scale_2: float | None = None, *, name: str = "weight", n_threads: int = 0
) -> Nvfp4:
    """Quantize to NVFP4.

    Args:
        weight: [n, k] float32 or bfloat16, k a multiple of 16.
        scale_2: scale of the whole tensor, above zero; by default its largest magnitude / 2688.
        name: what errors call the weight.
        n_threads: 0 takes all cores.

    Raises:
        CheckpointError: a wrong shape or dtype, NaN or infinity in the weight.
    """
    bits, amax = _checked(weight, name, 1, NVFP4_GROUP, n_threads)
    n, k = bits.shape
    scale = _scale(amax, E2M1_MAX * E4M3_MAX) if scale_2 is None else np.float32(scale_2)
    if not 0 < scale < np.inf:
        raise ValueError(f"scale_2 is {scale_2}")
    codes = np.empty((n, k // 2), np.uint8)
    block_scale = np.empty((n, k // NVFP4_GROUP), np.uint8)
    _kernels.pack_nvfp4(bits, float(scale), codes, block_scale, n_threads)
    return Nvfp4(codes, block_scale.view(ml_dtypes.float8_e4m3fn), scale)


def unpack_nvfp4(weight: Nvfp4, *, n_threads: int = 0) -> NDArray[np.float32]:
    """The values [n, k] that the bytes stand for."""
    n, half = weight.codes.shape
    values = np.empty((n, 2 * half), np.float32)
    codes = np.ascontiguousarray(weight.codes)
    block_scale = np.ascontiguousarray(weight.block_scale).view(np.uint8)
    _kernels.unpack_nvfp4(codes, block_scale, float(weight.scale), values, n_threads)
    return values


def interleave_nvfp4(weight: Nvfp4) -> Nvfp4:
    """The same weight in a bundle's order: bytes change places within each tile of 16 rows.

    Of a tile of r rows (the last has n % 16 if that is not 0) the codes lie as [group of 16
    columns] [half: 2] [row: r] [4]; a byte holds column 8 * half + c of its group in the low half
    and column 8 * half + 4 + c in the high one. The block scales lie as [group] [row: r]. Shapes
    stay.
    """
    codes, scales = interleave_codes(weight.codes), interleave_scales(weight.block_scale)
    return Nvfp4(codes, scales, weight.scale)


def interleave_codes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [n, k / 2] of an NVFP4 weight in a bundle's order."""
    to = np.empty_like(codes, order="C")
    _kernels.interleave_nvfp4(np.ascontiguousarray(codes), to)
    return to


def interleave_scales(block_scale: NDArray[Any]) -> NDArray[Any]:
    """Block scales [n, k / 16] of an NVFP4 weight in a bundle's order."""
    tiles = [np.ascontiguousarray(tile.T).reshape(tile.shape) for tile in _tiles(block_scale)]
    return np.concatenate(tiles)


def deinterleave_nvfp4(weight: Nvfp4) -> Nvfp4:
    """What `interleave_nvfp4` was given."""
    codes, scales = [], []
    for tile in _tiles(weight.codes):
        r, groups = len(tile), tile.shape[1] // (NVFP4_GROUP // 2)
        nibbles = np.stack([tile & 15, tile >> 4]).reshape(2, groups, 2, r, 4)
        columns = nibbles.transpose(3, 1, 2, 0, 4).reshape(r, -1, 2)
        codes.append(columns[..., 0] | columns[..., 1] << 4)
    for tile in _tiles(weight.block_scale):
        scales.append(np.ascontiguousarray(tile.reshape(tile.shape[::-1]).T))
    return Nvfp4(np.concatenate(codes), np.concatenate(scales), weight.scale)


def _tiles(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[i : i + NVFP4_TILE] for i in range(0, len(rows), NVFP4_TILE)]


def pack_fp8(weight: NDArray[Any], *, name: str = "weight", n_threads: int = 0) -> Fp8:
    """Quantize to FP8, one scale: the largest magnitude / 448.

    Args:
        weight: [n, k] float32 or bfloat16.
        name, n_threads: as in `pack_nvfp4`.

    Raises:
        CheckpointError: as `pack_nvfp4`.
    """
    bits, amax = _checked(weight, name, 1, 1, n_threads)
    scale = _scale(amax, E4M3_MAX)
    codes = np.empty(bits.shape, np.uint8)
    _kernels.pack_fp8(bits, float(scale), codes, n_threads)
    return Fp8(codes.view(ml_dtypes.float8_e4m3fn), scale)


def unpack_fp8(weight: Fp8, *, n_threads: int = 0) -> NDArray[np.float32]:
    """The values [n, k] that the bytes stand for; NaN where a code is NaN."""
    values = np.empty(weight.codes.shape, np.float32)
    codes = np.ascontiguousarray(weight.codes).view(np.uint8)
    _kernels.unpack_fp8(codes, float(weight.scale), values, n_threads)
    return values


def pack_int4(weight: NDArray[Any], *, name: str = "weight", n_threads: int = 0) -> Int4:
    """Quantize to INT4, one scale for 128 columns of a row: their largest magnitude / 7.

    Args:
        weight: [n, k] float32 or bfloat16, n even, k a multiple of 128. For AWQ it is already
            divided by `pre_quant_scale`, which the layer multiplies its input with.
        name, n_threads: as in `pack_nvfp4`.

    Raises:
        CheckpointError: as `pack_nvfp4`.
    """
    bits, _ = _checked(weight, name, 2, INT4_BLOCK, n_threads)
    n, k = bits.shape
    codes = np.empty((n // 2, k), np.uint8)
    block_scale = np.empty((n, k // INT4_BLOCK), np.float32)
    _kernels.pack_int4(bits, codes, block_scale, n_threads)
    return Int4(codes, block_scale)


def unpack_int4(weight: Int4, *, n_threads: int = 0) -> NDArray[np.float32]:
    """The values [n, k] that the bytes stand for."""
    pairs, k = weight.codes.shape
    values = np.empty((2 * pairs, k), np.float32)
    codes = np.ascontiguousarray(weight.codes)
    block_scale = np.ascontiguousarray(weight.block_scale)
    _kernels.unpack_int4(codes, block_scale, values, n_threads)
    return values


def _checked(
    weight: NDArray[Any], name: str, rows: int, columns: int, n_threads: int
) -> tuple[NDArray[Any], np.float32]:
    """The weight as the kernels take it, and its largest magnitude."""
    if weight.dtype not in (np.float32, ml_dtypes.bfloat16):
        raise CheckpointError(name, f"is {weight.dtype}", "float32 and bfloat16 can be quantized")
    if weight.ndim != 2 or weight.shape[0] % rows or weight.shape[1] % columns:
        raise CheckpointError(
            name,
            f"has the shape {weight.shape}",
            f"this format takes rows by {rows} and columns by {columns}",
        )
    bits = np.ascontiguousarray(weight)
    if bits.dtype == ml_dtypes.bfloat16:
        bits = bits.view(np.uint16)
    amax = np.float32(_kernels.amax(bits, n_threads))
    if not np.isfinite(amax):
        raise CheckpointError(name, "holds NaN or infinity", "the checkpoint is damaged")
    return bits, amax


def _scale(amax: np.float32, largest_code: float) -> np.float32:
    """The tensor's scale, so that its largest magnitude becomes the largest code."""
    scale = amax / np.float32(largest_code)
    return scale if scale > 0 else np.float32(1)
