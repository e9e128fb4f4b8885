"""How a graph reads the decoder's weights: as the bundle's own bytes, which are its inputs.

A graph holds no weight at all. It is made from names, dtypes and shapes alone, a plan of it stays
small, both of the decoder's plans share one copy, and loading an engine is handing over addresses.
What a target has no type for is decoded from its bytes by tables.

Bytes are bound as INT8: TensorRT lets UINT8 feed nothing but a cast, no plugin either. Its headers
know no conversion from a byte to int32, so that one goes through float32, which is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np

from build_engine.graphs.onnx_ops import Graph
from edge.engines.formats import INT4_BLOCK, NVFP4_GROUP, NVFP4_TILE
from edge.engines.safetensors import Layout
from edge.errors import BundleError
from edge.types import Float32

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)

Kind: TypeAlias = Literal["float32", "bfloat16", "fp8", "int4", "nvfp4"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight [*stack, n, k] as the bundle holds it."""

    name: str
    kind: Kind
    stack: tuple[int, ...]
    n: int
    k: int
    has_input_scale: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The bundle's tensors that its values are made of."""
        scales: dict[Kind, tuple[str, ...]] = {
            "fp8": ("scale",),
            "int4": ("block_scale",),
            "nvfp4": ("block_scale", "scale"),
        }
        return (self.name, *(f"{self.name}.{scale}" for scale in scales.get(self.kind, ())))


def stored(layout: Layout, name: str) -> Stored:
    """What the bundle holds under `name`.

    Args:
        layout: dtype and shape of every tensor of decoder.safetensors.
    Raises:
        BundleError: it is missing, or its dtype is that of no known format.
    """
    if name not in layout:
        raise BundleError(name, "is not in decoder.safetensors", "build the bundle again")
    dtype, (*stack, n, k) = layout[name]
    has_input_scale = f"{name}.input_scale" in layout
    kinds: dict[str, Kind] = {"float32": "float32", "bfloat16": "bfloat16", E4M3.name: "fp8"}
    kind = kinds.get(dtype.name)
    if kind is None and dtype == np.uint8 and f"{name}.block_scale" in layout:
        integers = layout[f"{name}.block_scale"][0] == np.float32
        kind, n, k = ("int4", 2 * n, k) if integers else ("nvfp4", n, 2 * k)
    if kind is None:
        raise BundleError(name, f"has the dtype {dtype}, of no known format", "build it again")
    return Stored(name, kind, tuple(stack), n, k, has_input_scale)


def bind(graph: Graph, layout: Layout, name: str, *, fp8: bool = False) -> str:
    """Declare a tensor of the bundle as an input; FP8 as a type only where `fp8`, else as bytes."""
    dtype, shape = layout[name]
    as_bytes = dtype == np.uint8 or (dtype == E4M3 and not fp8)
    return graph.input(name, np.int8 if as_bytes else dtype, shape)


def decoded(graph: Graph, weight: Stored, tensors: Sequence[str]) -> str:
    """The values of a weight, float32 [*stack, n, k].

    Args:
        tensors: names, in the graph, of what `weight.tensors` lists.
    """
    if weight.kind == "float32":
        return tensors[0]
    if weight.kind == "bfloat16":
        return graph.cast(tensors[0], np.float32)
    if weight.kind == "fp8":
        values = _looked_up(graph, _e4m3_table(), tensors[0])
        return graph.op("Mul", values, _per_matrix(graph, weight, tensors[1]))
    if weight.kind == "int4":
        return _int4(graph, weight, *tensors)
    return _nvfp4(graph, weight, *tensors)


def _int4(graph: Graph, weight: Stored, codes: str, block_scale: str) -> str:
    """A byte is two rows: the even one in its low half."""
    stack, n, k = weight.stack, weight.n, weight.k
    first = len(stack)
    pairs = _looked_up(graph, _both_halves(_int4_values()), codes)  # [*stack, n / 2, k, 2]
    rows = graph.transpose(pairs, *range(first), first, first + 2, first + 1)
    blocks = graph.reshape(rows, *stack, n, k // INT4_BLOCK, INT4_BLOCK)
    scale = graph.reshape(block_scale, *stack, n, k // INT4_BLOCK, 1)
    return graph.reshape(graph.op("Mul", blocks, scale), *stack, n, k)


def _nvfp4(graph: Graph, weight: Stored, codes: str, block_scale: str, scale: str) -> str:
    """Tiles of 16 rows, the last with what is left."""
    # before all else: TensorRT does little with bytes but convert them
    codes, block_scale = _indices(graph, codes), _indices(graph, block_scale)
    whole, axis = weight.n - weight.n % NVFP4_TILE, len(weight.stack)
    parts = []
    for start, end, rows in ((0, whole, NVFP4_TILE), (whole, weight.n, weight.n - whole)):
        if start < end:
            part = (graph.slice(x, axis, start, end) for x in (codes, block_scale))
            parts.append(_tiles(graph, weight, (end - start) // rows, rows, *part))
    values = parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=axis)
    return graph.op("Mul", values, _per_matrix(graph, weight, scale))


def _tiles(
    graph: Graph, weight: Stored, n_tiles: int, rows: int, codes: str, block_scale: str
) -> str:
    """[tile][group of 16 columns][half of it][row][byte], a byte is columns c and 4 + c."""
    stack, n_groups, first = weight.stack, weight.k // NVFP4_GROUP, len(weight.stack)
    codes = graph.reshape(codes, *stack, n_tiles, n_groups, 2, rows, 4)
    values = graph.op("Gather", _both_halves(_e2m1_values()), codes, axis=0)
    scales = graph.reshape(block_scale, *stack, n_tiles, n_groups, 1, rows, 1, 1)
    scaled = graph.op("Mul", values, graph.op("Gather", _e4m3_table(), scales, axis=0))
    tile, group, half, row, byte, nibble = range(first, first + 6)
    ordered = graph.transpose(scaled, *range(first), tile, row, group, half, nibble, byte)
    return graph.reshape(ordered, *stack, n_tiles * rows, weight.k)


def _per_matrix(graph: Graph, weight: Stored, scale: str) -> str:
    """A scale [*stack] that broadcasts over the matrices."""
    return graph.reshape(scale, *weight.stack, 1, 1) if weight.stack else scale


def _looked_up(graph: Graph, table: Float32, codes: str) -> str:
    """Bytes -> their values; a table of two columns adds a last axis of length 2."""
    return graph.op("Gather", table, _indices(graph, codes), axis=0)


def _indices(graph: Graph, codes: str) -> str:
    """Bytes, bound as -128 to 127 -> int32 places in a table that begins at byte 128."""
    shifted = graph.op("Add", graph.cast(codes, np.float32), np.float32(128))
    return graph.cast(shifted, np.int32)


def _from_128(table: Float32) -> Float32:
    """A table of all bytes in the order of their signed values."""
    return np.roll(table, 128, axis=0)


def _e4m3_table() -> Float32:
    """Values of all 256 codes. The two that are NaN are in no bundle: zero."""
    codes = np.arange(256, dtype=np.uint8)
    return _from_128(np.where(codes & 0x7F == 0x7F, 0, codes.view(E4M3).astype(np.float32)))


def _e2m1_values() -> Float32:
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return np.concatenate([magnitudes, -magnitudes])


def _int4_values() -> Float32:
    values: Float32 = np.concatenate([np.arange(8), np.arange(-8, 0)]).astype(np.float32)
    return values


def _both_halves(values: Float32) -> Float32:
    """Of each byte its low and its high half's value, [256, 2]."""
    byte = np.arange(256)
    return _from_128(np.stack([values[byte & 15], values[byte >> 4]], axis=1))
