"""A GPU's memory, streams and graphs on the host, behind the names of `cuda.bindings.driver`.

It is as strict as a debugger: work in a stream is done as late as is allowed, when someone waits;
memory must be alive, long enough and written before it is read; what waits for a download is NaN.
`Misuse` is raised where a GPU would compute nonsense.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

POISON = 0xFF
"""Bytes of a NaN, in every float format."""


class Misuse(AssertionError):  # noqa: N818
    """What would be undefined on a GPU."""


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_NOT_SUPPORTED = 801


class CUdevice_attribute(enum.IntEnum):  # noqa: N801
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUmemorytype(enum.IntEnum):
    CU_MEMORYTYPE_DEVICE = 2


@dataclass
class CUDA_MEMCPY2D:  # noqa: N801
    srcMemoryType: Any = None  # noqa: N815
    srcDevice: int = 0  # noqa: N815
    srcPitch: int = 0  # noqa: N815
    dstMemoryType: Any = None  # noqa: N815
    dstDevice: int = 0  # noqa: N815
    dstPitch: int = 0  # noqa: N815
    WidthInBytes: int = 0
    Height: int = 0


@dataclass
class Block:
    """A piece of memory on the GPU."""

    address: int
    values: NDArray[np.uint8]
    written: NDArray[np.bool_]
    alive: bool = True


@dataclass
class Stream:
    """Work that was given and is not done."""

    waiting: list[Callable[[], None]] = field(default_factory=list)
    captured: list[Callable[[], None]] | None = None


class FakeDriver:
    """The module, and the GPU behind it."""

    CUresult, CUdevice_attribute = CUresult, CUdevice_attribute
    CUstreamCaptureMode, CUmemorytype = CUstreamCaptureMode, CUmemorytype
    CUDA_MEMCPY2D = CUDA_MEMCPY2D

    def __init__(self, total_bytes: int = 1 << 30, compute_capability: str = "8.7") -> None:
        self.total_bytes = total_bytes
        self.name, self.n_multiprocessors = b"Orin", 16
        self.compute_capability = compute_capability
        self.no_library = False
        self.failing: dict[str, int] = {}
        """Code that a call gives from now on."""
        self.log: list[str] = []
        """Names of the calls that put work into a stream, and of the waits, as they come."""
        self.n_allocations = 0
        self.n_contexts = 0
        self._blocks: list[Block] = []
        self._host: dict[int, Any] = {}
        self._streams: dict[int, Stream] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._current = threading.local()
        self._handles = itertools.count(1)
        self._next_address = 0x7_0000_0000

    def leaks(self) -> dict[str, int]:
        """What was taken and not given back, by kind."""
        taken = {
            "blocks": sum(block.alive for block in self._blocks),
            "host": len(self._host),
            "streams": len(self._streams),
            "graphs": len(self._graphs),
            "contexts": self.n_contexts,
        }
        return {kind: n for kind, n in taken.items() if n}

    def taken_bytes(self) -> int:
        """Of the GPU's and the pinned memory."""
        alive = [len(block.values) for block in self._blocks if block.alive]
        return sum(alive) + sum(map(len, self._host.values()))

    # --- memory -------------------------------------------------------------------------------

    def span(self, address: int, n_bytes: int) -> tuple[Block, slice]:
        """Where `n_bytes` from `address` on are."""
        for block in self._blocks:
            start = address - block.address
            if 0 <= start < len(block.values):
                if not block.alive:
                    raise Misuse(f"{address:#x} was freed")
                if start + n_bytes > len(block.values):
                    raise Misuse(f"{n_bytes} bytes at {address:#x} pass the end of their memory")
                return block, slice(start, start + n_bytes)
        raise Misuse(f"{address:#x} is no address on the GPU")

    def read(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        """Bytes that were written."""
        block, part = self.span(address, n_bytes)
        if not block.written[part].all():
            raise Misuse(f"{n_bytes} bytes at {address:#x} are read before they are written")
        return block.values[part].copy()

    def write(self, address: int, values: NDArray[np.uint8]) -> None:
        """Overwrite bytes."""
        block, part = self.span(address, len(values))
        block.values[part], block.written[part] = values, True

    def _host_bytes(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        for start, buffer in self._host.items():
            if start <= address and address + n_bytes <= start + len(buffer):
                return np.frombuffer(buffer, np.uint8)[address - start :][:n_bytes]
        raise Misuse(f"{n_bytes} bytes at {address:#x} are not pinned host memory")

    # --- streams ------------------------------------------------------------------------------

    def give(self, stream: int, what: str, work: Callable[[], None]) -> None:
        """Put work into a stream, or into the graph that is being captured from it."""
        self.log.append(what)
        target = self._streams[stream]
        (target.waiting if target.captured is None else target.captured).append(work)

    def capturing(self, stream: int) -> bool:
        return self._streams[stream].captured is not None

    def _finish(self) -> None:
        for stream in self._streams.values():
            waiting, stream.waiting = stream.waiting, []  # after a misuse, nothing is left
            for work in waiting:
                work()

    def _code(self, call: str) -> CUresult | int:
        """What a call gives; all but the first few need a context in the calling thread."""
        if not hasattr(self._current, "context"):
            return CUresult.CUDA_ERROR_INVALID_CONTEXT
        code = self.failing.get(call, 0)
        return CUresult(code) if code in list(CUresult) else code

    def _not_captured(self, call: str) -> None:
        if any(stream.captured is not None for stream in self._streams.values()):
            raise Misuse(f"{call} while a stream is captured")

    # --- the calls ----------------------------------------------------------------------------

    def cuInit(self, flags: int) -> tuple[Any]:  # noqa: N802
        if self.no_library:
            raise RuntimeError("libcuda.so.1 not found")
        return (CUresult(self.failing.get("cuInit", 0)),)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, int]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, int]:  # noqa: N802
        self.n_contexts += 1
        return CUresult.CUDA_SUCCESS, 77

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any]:  # noqa: N802
        self.n_contexts -= 1
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxSetCurrent(self, context: int) -> tuple[Any]:  # noqa: N802
        self._current.context = context
        return (CUresult.CUDA_SUCCESS,)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[Any, bytes]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, self.name.ljust(length, b"\0")

    def cuDeviceGetAttribute(self, which: Any, device: int) -> tuple[Any, int]:  # noqa: N802
        major, minor = map(int, self.compute_capability.split("."))
        return CUresult.CUDA_SUCCESS, {75: major, 76: minor, 16: self.n_multiprocessors}[which]

    def cuMemGetInfo(self) -> tuple[Any, int, int]:  # noqa: N802
        used = sum(len(block.values) for block in self._blocks if block.alive)
        return CUresult.CUDA_SUCCESS, self.total_bytes - used, self.total_bytes

    def cuMemAlloc(self, n_bytes: int) -> tuple[Any, int]:  # noqa: N802
        self._not_captured("cuMemAlloc")
        if code := self._code("cuMemAlloc"):
            return code, 0
        if n_bytes > self.cuMemGetInfo()[1]:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        self.n_allocations += 1
        address = self._next_address
        self._next_address += -(-n_bytes // 256) * 256 + 4096  # nothing lies behind anything
        empty = np.full(n_bytes, POISON, np.uint8)
        self._blocks.append(Block(address, empty, np.zeros(n_bytes, bool)))
        return CUresult.CUDA_SUCCESS, address

    def cuMemFree(self, address: int) -> tuple[Any]:  # noqa: N802
        self._not_captured("cuMemFree")
        self._finish()
        block, _ = self.span(address, 1)
        if block.address != address:
            raise Misuse(f"{address:#x} is not where memory begins")
        block.alive = False
        return (CUresult.CUDA_SUCCESS,)

    def cuMemAllocHost(self, n_bytes: int) -> tuple[Any, int]:  # noqa: N802
        self._not_captured("cuMemAllocHost")
        if code := self._code("cuMemAllocHost"):
            return code, 0
        self.n_allocations += 1
        buffer = (ctypes.c_uint8 * n_bytes)()
        ctypes.memset(buffer, POISON, n_bytes)
        self._host[ctypes.addressof(buffer)] = buffer
        return CUresult.CUDA_SUCCESS, ctypes.addressof(buffer)

    def cuMemFreeHost(self, address: int) -> tuple[Any]:  # noqa: N802
        self._not_captured("cuMemFreeHost")
        self._finish()
        del self._host[address]
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamCreate(self, flags: int) -> tuple[Any, int]:  # noqa: N802
        if flags != 1:
            raise Misuse("a stream that waits for the default stream")
        handle = next(self._handles)
        self._streams[handle] = Stream()
        return CUresult.CUDA_SUCCESS, handle

    def cuStreamDestroy(self, stream: int) -> tuple[Any]:  # noqa: N802
        self._finish()
        del self._streams[stream]
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamSynchronize(self, stream: int) -> tuple[Any]:  # noqa: N802
        self._not_captured("cuStreamSynchronize")
        self.log.append("wait")
        self._finish()
        return (self._code("cuStreamSynchronize"),)

    def cuMemcpyHtoDAsync(self, to: int, address: int, n_bytes: int, stream: int) -> tuple[Any]:  # noqa: N802
        self._host_bytes(address, n_bytes)
        self.give(stream, "upload", lambda: self.write(to, self._host_bytes(address, n_bytes)))
        return (self._code("cuMemcpyHtoDAsync"),)

    def cuMemcpyDtoHAsync(self, to: int, address: int, n_bytes: int, stream: int) -> tuple[Any]:  # noqa: N802
        self._host_bytes(to, n_bytes)[:] = POISON

        def work() -> None:
            self._host_bytes(to, n_bytes)[:] = self.read(address, n_bytes)

        self.give(stream, "download", work)
        return (self._code("cuMemcpyDtoHAsync"),)

    def cuMemcpyDtoDAsync(self, to: int, address: int, n_bytes: int, stream: int) -> tuple[Any]:  # noqa: N802
        self.give(stream, "copy", lambda: self.write(to, self.read(address, n_bytes)))
        return (self._code("cuMemcpyDtoDAsync"),)

    def cuMemcpy2DAsync(self, copy: CUDA_MEMCPY2D, stream: int) -> tuple[Any]:  # noqa: N802
        device = CUmemorytype.CU_MEMORYTYPE_DEVICE
        if (copy.srcMemoryType, copy.dstMemoryType) != (device, device):
            raise Misuse("a copy of other memory than the GPU's")
        if copy.WidthInBytes > min(copy.srcPitch, copy.dstPitch):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)

        def work() -> None:
            for i in range(copy.Height):
                values = self.read(copy.srcDevice + i * copy.srcPitch, copy.WidthInBytes)
                self.write(copy.dstDevice + i * copy.dstPitch, values)

        self.give(stream, "append", work)
        return (self._code("cuMemcpy2DAsync"),)

    def cuMemsetD8Async(self, to: int, value: int, n_bytes: int, stream: int) -> tuple[Any]:  # noqa: N802
        self.give(stream, "fill", lambda: self.write(to, np.full(n_bytes, value, np.uint8)))
        return (self._code("cuMemsetD8Async"),)

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:  # noqa: N802
        if self._streams[stream].captured is not None:
            raise Misuse("a capture within a capture")
        self._streams[stream].captured = []
        return (self._code("cuStreamBeginCapture"),)

    def cuStreamEndCapture(self, stream: int) -> tuple[Any, Any]:  # noqa: N802
        graph, self._streams[stream].captured = self._streams[stream].captured, None
        handle = next(self._handles)
        self._graphs[handle] = graph or []
        return self._code("cuStreamEndCapture"), handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, int]:  # noqa: N802
        self.n_allocations += 1
        handle = next(self._handles)
        self._graphs[handle] = list(self._graphs[graph])
        return self._code("cuGraphInstantiate"), handle

    def cuGraphDestroy(self, graph: int) -> tuple[Any]:  # noqa: N802
        del self._graphs[graph]
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[Any]:  # noqa: N802
        captured = self._graphs[graph]
        self.give(stream, "launch", lambda: [work() for work in captured] and None)
        return (self._code("cuGraphLaunch"),)

    def cuGraphExecDestroy(self, graph: int) -> tuple[Any]:  # noqa: N802
        self._finish()
        del self._graphs[graph]
        return (CUresult.CUDA_SUCCESS,)
