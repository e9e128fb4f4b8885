"""The CUDA driver calls that the tensorrt engine makes, typed; every failure is an error of ours.

`driver` is the module `cuda.bindings.driver` of cuda-python, or what stands for it in a test. The
probe comes first: a TensorRT runtime made on a machine without a driver ends the process.

Source: CUDA driver API reference; cuda-python 13.4 (each call returns its code, then its values).
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DeviceError, EdgeError, EngineError

OUT_OF_MEMORY, NO_DEVICE, NOT_SUPPORTED = 2, 100, 801
"""Of CUresult."""
NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the default stream does not wait for this one, nor it for that."""
ON_CPU = "or run on the CPU with `--engine cpu`"
MAX_NAME_BYTES = 256
MEMINFO = Path("/proc/meminfo")
DROP_CACHES = "free what files hold (`sync; echo 1 | sudo tee /proc/sys/vm/drop_caches`)"
"""A board's GPU may be refused memory that Linux could have back from its caches."""


@dataclass(frozen=True, slots=True)
class Device:
    """What identifies a kind of GPU; two boards of one kind are equal."""

    name: str
    compute_capability: str
    """Such as 8.7."""
    n_multiprocessors: int

    def __str__(self) -> str:
        return f"{self.name} (sm {self.compute_capability}, {self.n_multiprocessors} SMs)"


class Cuda:
    """The first GPU, by its primary context, which TensorRT uses too."""

    def __init__(self, driver: Any) -> None:
        """Look for a driver and a GPU.

        Raises:
            DeviceError: there is none, or it cannot be used.
        """
        self._driver = driver
        try:
            (code,) = driver.cuInit(0)
        except RuntimeError:  # cuda-python found no library
            raise DeviceError(
                "CUDA driver",
                "libcuda.so.1 is not on this machine",
                f"install JetPack's or NVIDIA's driver, {ON_CPU}",
            ) from None
        if int(code):
            raise _refusal(code)
        self._device = self._call("cuDeviceGet", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.use()

    def use(self) -> None:
        """Make the calling thread's calls go to this GPU."""
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Let go of the GPU, after everything on it was freed."""
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def device(self) -> Device:
        """What this GPU is."""
        name = self._call("cuDeviceGetName", MAX_NAME_BYTES, self._device)
        names = ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT")
        kinds = self._driver.CUdevice_attribute
        major, minor, count = (
            self._call(
                "cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{n}"), self._device
            )
            for n in names
        )
        return Device(name.split(b"\0")[0].decode(), f"{major}.{minor}", count)

    def memory_bytes(self) -> tuple[int, int]:
        """Free and in all, in bytes."""
        free, total = self._call("cuMemGetInfo")
        return free, total

    def allocate(self, n_bytes: int, what: str) -> int:
        """Address of so many bytes on the GPU, aligned to 256.

        Raises:
            DeviceError: there is no room; `what` says for which part.
        """
        code, address = self._driver.cuMemAlloc(n_bytes)
        self._check("cuMemAlloc", code, what, n_bytes)
        return int(address)

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def allocate_host(self, n_bytes: int) -> int:
        """Address of so many bytes of pinned host memory, which the GPU copies from and to."""
        code, address = self._driver.cuMemAllocHost(n_bytes)
        self._check("cuMemAllocHost", code, "pinned host memory", n_bytes)
        return int(address)

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def stream(self) -> int:
        """A new stream."""
        return int(self._call("cuStreamCreate", NON_BLOCKING))

    def free_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the stream is done; earlier failures come to light here."""
        self._call("cuStreamSynchronize", stream)

    def upload(self, to: int, from_host: int, n_bytes: int, stream: int) -> None:
        """Copy pinned host memory to the GPU, in the stream's order."""
        self._call("cuMemcpyHtoDAsync", to, from_host, n_bytes, stream)

    def download(self, to_host: int, address: int, n_bytes: int, stream: int) -> None:
        """Copy from the GPU to pinned host memory, in the stream's order."""
        self._call("cuMemcpyDtoHAsync", to_host, address, n_bytes, stream)

    def copy(self, to: int, address: int, n_bytes: int, stream: int) -> None:
        """Copy on the GPU, in the stream's order."""
        self._call("cuMemcpyDtoDAsync", to, address, n_bytes, stream)

    def copy_pieces(
        self, to: tuple[int, int], pieces: tuple[int, int], n_bytes: int, n: int, stream: int
    ) -> None:
        """Copy `n` pieces of `n_bytes` on the GPU, in the stream's order.

        Args:
            to, pieces: address of the first piece, and bytes from one piece to the next.
        """
        copy = self._driver.CUDA_MEMCPY2D()
        copy.dstMemoryType = copy.srcMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.dstDevice, copy.dstPitch = to
        copy.srcDevice, copy.srcPitch = pieces
        copy.WidthInBytes, copy.Height = n_bytes, n
        self._call("cuMemcpy2DAsync", copy, stream)

    def zero(self, address: int, n_bytes: int, stream: int) -> None:
        """Fill with zeros, in the stream's order."""
        self._call("cuMemsetD8Async", address, 0, n_bytes, stream)

    def begin_capture(self, stream: int) -> None:
        """What is put into the stream from now on is remembered instead of done."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """What was remembered, as a graph that can be launched again and again."""
        graph = self._call("cuStreamEndCapture", stream)
        executable = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)
        return int(executable)

    def launch(self, graph: int, stream: int) -> None:
        """Do what the graph remembers, in the stream's order."""
        self._call("cuGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the call gives besides its code: nothing, one value, or several."""
        code, *values = getattr(self._driver, name)(*arguments)
        self._check(name, code)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, call: str, code: Any, what: str = "GPU memory", n_bytes: int = 0) -> None:
        if not int(code):
            return
        if int(code) == OUT_OF_MEMORY:
            free, total = self.memory_bytes()
            asked = f"needs {n_bytes / 1e9:.2f} GB, " if n_bytes else ""
            linux = f"Linux has {available_bytes() / 1e9:.2f} GB available"
            raise DeviceError(
                what,
                f"{asked}{free / 1e9:.2f} of {total / 1e9:.2f} GB are free, {linux}",
                f"{DROP_CACHES}, stop other programs, or compile for a smaller context",
            )
        raise EngineError(call, f"gave {_name(code)}", "see the kernel's log (dmesg)")


def host_array(address: int, dtype: np.dtype[Any], n: int) -> NDArray[Any]:
    """Pinned host memory as an array of `n` values."""
    buffer = (ctypes.c_uint8 * (n * dtype.itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype, n)


def available_bytes() -> int:
    """What Linux could give to programs, its caches included; 0 if it does not say."""
    said = re.search(r"^MemAvailable: +(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    return 1024 * int(said[1]) if said else 0


def _name(code: Any) -> str:
    return f"{getattr(code, 'name', 'CUDA error')} ({int(code)})"


def _refusal(code: Any) -> EdgeError:
    """Why cuInit failed."""
    if int(code) == NO_DEVICE:
        return DeviceError(
            "GPU",
            f"the driver sees none ({_name(code)})",
            f"check `nvidia-smi` and that the container is given the GPU, {ON_CPU}",
        )
    hint = "give the sandbox /dev/dri/renderD*" if int(code) == NOT_SUPPORTED else "restart"
    return DeviceError("CUDA driver", f"cuInit gave {_name(code)}", f"{hint}, {ON_CPU}")
