"""The decoder's weights as a bundle holds them; a quantized one is dequantized when asked for.

A weight NAME is stored as float32 or bfloat16, or as codes with its scales beside it:
FP8 as NAME and NAME.scale; NVFP4 as NAME, NAME.block_scale and NAME.scale, interleaved; INT4 as
NAME and NAME.block_scale. Routed experts are stacked along a first dimension, scales likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edge.engines.formats import (
    Fp8,
    Int4,
    Nvfp4,
    deinterleave_nvfp4,
    unpack_fp8,
    unpack_int4,
    unpack_nvfp4,
)
from edge.types import Float32, Int32

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


class Weights(Protocol):
    """What the decoder's operations ask of weights."""

    def __getitem__(self, name: str) -> Float32:
        """One whole weight that is not a stack of experts."""

    def expert(self, name: str, index: int) -> Float32:
        """One matrix out of a stack."""

    def rows(self, name: str, ids: Int32) -> Float32:
        """Chosen rows of a table that is not quantized."""


class DecoderWeights:
    """Weights by name, over mapped arrays."""

    def __init__(self, stored: Mapping[str, NDArray[Any]]) -> None:
        """Take the tensors of decoder.safetensors, by the names that it gives them."""
        self._stored = stored

    def __getitem__(self, name: str) -> Float32:
        """One whole weight that is not a stack of experts."""
        return self._float32(name, ...)

    def expert(self, name: str, index: int) -> Float32:
        """One matrix out of a stack."""
        return self._float32(name, index)

    def rows(self, name: str, ids: Int32) -> Float32:
        """Chosen rows of a table that is not quantized."""
        return self._stored[name][ids].astype(np.float32)

    def _float32(self, name: str, index: Any) -> Float32:
        values = np.asarray(self._stored[name][index])
        if values.dtype == np.float32:
            return values
        if values.dtype == BFLOAT16:
            return from_bfloat16(values)
        if values.dtype == E4M3:
            return unpack_fp8(Fp8(values, self._stored[f"{name}.scale"][index]))
        block_scale = self._stored[f"{name}.block_scale"][index]
        if block_scale.dtype == E4M3:
            scale = self._stored[f"{name}.scale"][index]
            return unpack_nvfp4(deinterleave_nvfp4(Nvfp4(values, block_scale, scale)))
        return unpack_int4(Int4(values, block_scale))


def from_bfloat16(values: NDArray[Any]) -> Float32:
    """Exact: the bits of a bfloat16 are the upper half of a float32's."""
    bits = values.view(np.uint16).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)
