"""The tensorrt engine's memory: taken once, freed in order, and the weights brought into it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.engines.bundle import Bundle
from edge.engines.cuda import Cuda, host_array
from edge.engines.plan import COMPILE, Binding
from edge.errors import BundleError

ALIGNMENT = 256
"""What TensorRT asks of an address."""
UPLOAD_BYTES = 16 << 20
KINDS = {
    "float32": ("FLOAT",),
    "float16": ("HALF",),
    "bfloat16": ("BF16",),
    "float8_e4m3fn": ("FP8", "INT8"),
    "uint8": ("INT8", "INT4", "FP4"),
    "int32": ("INT32",),
}
"""How a plan may call what decoder.safetensors holds."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A named part of a larger piece of memory."""

    name: str
    offset: int


def aligned(n_bytes: int) -> int:
    """The next address that TensorRT accepts."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def pieces(bindings: Iterable[Binding]) -> tuple[list[Piece], int]:
    """One behind the other; where each begins, and the bytes of all."""
    found, n_bytes = [], 0
    for binding in bindings:
        found.append(Piece(binding.name, n_bytes))
        n_bytes += aligned(binding.n_bytes())
    return found, n_bytes


class Memory:
    """What is taken here is freed when `stack` is closed, last first."""

    def __init__(self, cuda: Cuda, stack: contextlib.ExitStack) -> None:
        self._cuda, self._stack = cuda, stack
        self.n_bytes: dict[str, int] = {}
        """Taken on the GPU, by what for."""

    def on_device(self, n_bytes: int, what: str) -> int:
        """Address of memory on the GPU; `what` it is for, should there be no room."""
        address = self._cuda.allocate(max(n_bytes, ALIGNMENT), what)
        self._stack.callback(self._cuda.free, address)
        self.n_bytes[what] = self.n_bytes.get(what, 0) + n_bytes
        return address

    def on_host(self, n_bytes: int) -> int:
        """Address of pinned memory."""
        address = self._cuda.allocate_host(n_bytes)
        self._stack.callback(self._cuda.free_host, address)
        return address

    def host_array(self, address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        """Pinned memory as an array."""
        return host_array(address, dtype, math.prod(shape)).reshape(shape)

    def stream(self) -> int:
        """A new stream."""
        stream = self._cuda.stream()
        self._stack.callback(self._cuda.free_stream, stream)
        return stream

    def graph(self, stream: int) -> int:
        """What the stream remembered since its capture began."""
        graph = self._cuda.end_capture(stream)
        self._stack.callback(self._cuda.free_graph, graph)
        return graph


def load_weights(
    wanted: list[Binding], bundle: Bundle, memory: Memory, cuda: Cuda, stream: int
) -> dict[str, int]:
    """Copy weights of a bundle to the GPU, in the order of their file; address by name.

    Raises:
        BundleError: the plan wants one that the bundle lacks, or holds in another form.
    """
    stored = bundle.decoder_weights(one_block=True)
    for binding in wanted:
        if binding.name not in stored:
            raise BundleError(bundle.path, f"lacks {binding.name}, which its plan takes", COMPILE)
        values = stored[binding.name]
        kinds = KINDS.get(values.dtype.name, ())
        if binding.kind not in kinds or binding.n_bytes() != values.nbytes:
            raise BundleError(
                bundle.path,
                f"holds {binding.name} as {values.dtype} {values.shape}, its plan takes "
                f"{binding.kind} {binding.shape}",
                COMPILE,
            )
    order = {name: i for i, name in enumerate(stored)}
    placed, n_bytes = pieces(sorted(wanted, key=lambda binding: order[binding.name]))
    start = memory.on_device(n_bytes, "weights")
    with contextlib.ExitStack() as stack:
        host = Memory(cuda, stack).on_host(UPLOAD_BYTES)
        staging = host_array(host, np.dtype(np.uint8), UPLOAD_BYTES)
        for piece in placed:
            rest = np.asarray(stored[piece.name]).reshape(-1).view(np.uint8)
            to = start + piece.offset
            while len(rest):
                part, rest = rest[:UPLOAD_BYTES], rest[UPLOAD_BYTES:]
                staging[: len(part)] = part
                cuda.upload(to, host, len(part), stream)
                cuda.synchronize(stream)  # before the staging memory is written again
                to += len(part)
    return {piece.name: start + piece.offset for piece in placed}
